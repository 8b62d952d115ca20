//! Addresses that pods choose, and pools of addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{READY, flatnet, text_of};
use e2e::eventually;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::world::{BLOCK_PODS, NAMESPACE, POOL, POOL_LABEL, World, echo_pod, free_on};

const ADDRESSES: &str = "flatnet.io/pod-addresses";
const ORDINALS: &str = "flatnet.io/pod-address-pool";

/// The pod range of a node.
fn range_of(world: &World, node: &str) -> Result<IpNet> {
    Ok(world.cluster.field("", "node", node, "/spec/podCIDR")?.parse()?)
}

fn nth(range: &IpNet, index: u32) -> Result<IpAddr> {
    let IpAddr::V4(first) = range.network() else { anyhow::bail!("{range} is not IPv4") };
    Ok(IpAddr::V4((u32::from(first) + index).into()))
}

fn asking(name: &str, node: &str, annotation: &str, value: &str) -> Value {
    let mut pod = echo_pod(name, node);
    pod["metadata"]["annotations"] = json!({ annotation: value });
    pod
}

/// A pod keeps its address when it is made anew, and another that wants it is told who has it.
pub fn fixed(world: &World) -> Result<()> {
    let node = &world.cluster.nodes[0];
    let address = nth(&range_of(world, node)?, 77)?.to_string();
    for _ in 0..2 {
        world.start(&asking("fixed", node, ADDRESSES, &address))?;
        ensure!(world.pod_ip("fixed")? == address, "got {}", world.pod_ip("fixed")?);
        let url = format!("http://{address}:8080/");
        let answer = world.ask(&free_on(&world.cluster.nodes[1]), &url)?;
        ensure!(answer["pod"] == "fixed", "{answer}");
        world.stop("fixed")?;
    }
    world.start(&asking("fixed", node, ADDRESSES, &address))?;
    let place = ["--name", &world.cluster.name, "--node", node];
    let shown = flatnet(&[&["ipam", "show", &address], &place[..]].concat())?;
    ensure!(shown.contains(&format!("{NAMESPACE}/fixed")), "{shown}");
    world.apply(&asking("greedy", node, ADDRESSES, &address))?;
    eventually("an Event names who has the address", READY, || {
        let events = world.events("greedy")?;
        ensure!(
            events.contains(&format!("{address} is taken by pod {NAMESPACE}/fixed")),
            "{events}"
        );
        Ok(())
    })?;
    world.stop("fixed")?;
    world.cluster.pod_ready(NAMESPACE, "greedy").context("once the address is free")?;
    ensure!(world.pod_ip("greedy")? == address);
    world.stop("greedy")
}

/// Pods with the names of a StatefulSet's get the addresses at their ordinals.
pub fn ordinals(world: &World) -> Result<()> {
    let node = &world.cluster.nodes[0];
    let range = range_of(world, node)?;
    let span = format!("{}-{}", nth(&range, 90)?, nth(&range, 91)?);
    for ordinal in [1, 0] {
        let name = format!("web-{ordinal}");
        world.start(&asking(&name, node, ORDINALS, &span))?;
        let wanted = nth(&range, 90 + ordinal)?.to_string();
        ensure!(world.pod_ip(&name)? == wanted, "{name} has {}", world.pod_ip(&name)?);
    }
    world.apply(&asking("web-2", node, ORDINALS, &span))?;
    eventually("an Event says that the pool is too short", READY, || {
        let events = world.events("web-2")?;
        ensure!(events.contains("ends before ordinal 2"), "{events}");
        Ok(())
    })?;
    (0..3).try_for_each(|ordinal| world.stop(&format!("web-{ordinal}")))
}

/// Pods of a namespace get addresses of its pool on both nodes, and a node whose block is full takes
/// another; all others keep to the nodes' ranges.
pub fn pools(world: &World) -> Result<()> {
    let namespace = "pooled";
    world.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": namespace, "labels": { POOL_LABEL.0: POOL_LABEL.1 } },
    }))?;
    let pool: IpNet = POOL.parse()?;
    let mut names = Vec::new();
    for node in &world.cluster.nodes {
        // One more than a block has room for.
        for number in 0..=BLOCK_PODS {
            let name = format!("pooled-{node}-{number}");
            let mut pod = echo_pod(&name, node);
            pod["metadata"]["namespace"] = namespace.into();
            world.apply(&pod)?;
            names.push(name);
        }
    }
    let mut addresses = BTreeSet::new();
    for name in &names {
        let pod = world.cluster.pod_ready(namespace, name)?;
        let address = pod["status"]["podIP"].as_str().context("no address")?.to_owned();
        ensure!(pool.contains(&address.parse::<IpAddr>()?), "{name} has {address}, not of {POOL}");
        ensure!(addresses.insert(address.clone()), "{address} is of two pods");
    }
    let leases = world.cluster.list("kube-system", "lease", "flatnet.io/pod-block")?;
    for node in &world.cluster.nodes {
        let held = leases.iter().filter(|lease| lease["spec"]["holderIdentity"] == **node).count();
        ensure!(held >= 2, "{node} has more pods than a block has room for, and {held} blocks");
    }
    // The way to them, from a pod with an address of a node's range, and back.
    for address in &addresses {
        for node in &world.cluster.nodes {
            let answer = world.ask(&free_on(node), &format!("http://{address}:8080/"))?;
            ensure!(names.iter().any(|name| answer["pod"] == *name), "{answer}");
            let client = world.pod_ip(&free_on(node))?;
            ensure!(answer["client"] == client, "seen with another address: {answer}");
        }
    }
    for node in &world.cluster.nodes {
        flatnet(&["ipam", "check", "--name", &world.cluster.name, "--node", node])
            .context("addresses of blocks are no fault")?;
    }
    world.start(&echo_pod("outsider", &world.cluster.nodes[0]))?;
    let address: IpAddr = world.pod_ip("outsider")?.parse()?;
    ensure!(range_of(world, &world.cluster.nodes[0])?.contains(&address), "{address}");
    world.stop("outsider")?;
    world.cluster.kubectl(&["delete", "namespace", namespace]).map(drop)
}

/// While the agent does not answer, pods that it decides about wait and are told so; then they
/// start.
pub fn waits_for_the_agent(world: &World) -> Result<()> {
    let node = &world.cluster.nodes[1];
    let pid = world.cluster.process(&format!("agent/{node}"))?.to_string();
    let send = |signal: &str| text_of(Command::new("kill").args([signal, &pid]).output()?);
    send("-STOP")?;
    let pod = echo_pod("patient", node);
    let told = world.apply(&pod).and_then(|()| {
        eventually("an Event names the agent", READY, || {
            let events = world.events("patient")?;
            ensure!(events.contains("agent") && events.contains("does not answer"), "{events}");
            Ok(())
        })
    });
    // In any case: the cluster is to end in order.
    send("-CONT")?;
    told?;
    world.cluster.pod_ready(NAMESPACE, "patient").context("once the agent answers")?;
    world.stop("patient")
}
