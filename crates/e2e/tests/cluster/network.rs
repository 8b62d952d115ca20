//! Pods, nodes and the outside reach each other, and see whom they should see.

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::outside::{ADDRESS, Outside};
use serde_json::Value;

use super::world::{NAMESPACE, NODE_RANGE, World, echo_pod};

/// The larger of the two that cross the tunnel: a datagram of two fragments.
pub const DATAGRAM_BYTES: &str = "3000";
/// A body of many segments.
pub const BODY_BYTES: &str = "10000000";

pub fn pod_to_pod(world: &World) -> Result<()> {
    world.cluster.apply(&echo_pod("neighbour", &world.cluster.nodes[0]))?;
    world.cluster.pod_ready(NAMESPACE, "neighbour")?;
    let own = world.pod_ip("echo-node1")?;
    for other in ["neighbour", "echo-node2", "echo-node3"] {
        sees(&world.cluster, "echo-node1", &world.pod_ip(other)?, other, &own)?;
    }
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "neighbour", "--now"]).map(drop)
}

/// Asks `address` from a pod: the right pod must answer, and must have seen `client`.
fn sees(cluster: &Cluster, from: &str, address: &str, pod: &str, client: &str) -> Result<()> {
    let url = format!("http://{address}:8080/");
    let text = cluster.exec(NAMESPACE, from, &["toolbox", "http", &url])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["pod"] == pod, "{pod} should answer at {address}: {answer}");
    ensure!(address_of(&answer) == client, "{pod} should see {client}: {answer}");
    Ok(())
}

/// The client's address as the pod that answered saw it.
fn address_of(answer: &Value) -> &str {
    answer["client"].as_str().unwrap_or_default()
}

pub fn host_gw(_: &World) -> Result<()> {
    let ranges = [
        "--overlay",
        "host-gw",
        "--nodes",
        "2",
        "--pod-cidr",
        "10.42.0.0/16",
        "--service-cidr",
        "10.43.0.0/16",
        "--node-cidr",
        "172.29.1.0/24",
    ];
    // Beside the other cluster, on the same machine.
    let cluster = Cluster::up("e2e-gw", &ranges)?;
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    let pods = [echo_pod("one", "node1"), echo_pod("two", "node2")].concat();
    cluster.apply(&(namespace + &pods))?;
    let one = cluster.pod_ready(NAMESPACE, "one")?;
    let two = cluster.pod_ready(NAMESPACE, "two")?;
    let ip = |pod: &Value| pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    sees(&cluster, "one", &ip(&two), "two", &ip(&one))?;
    sees(&cluster, "two", &ip(&one), "one", &ip(&two))?;
    let links = cluster.on_node("node1", &["ip", "-o", "link", "show"])?;
    ensure!(!links.contains("flatnet.1"), "a tunnel link in a cluster of direct routes: {links}");
    Ok(())
}

pub fn node_to_pod(world: &World) -> Result<()> {
    let local = world.pod_ip("echo-node1")?;
    let remote = world.pod_ip("echo-node2")?;
    let bridge =
        world.cluster.on_node("node1", &["ip", "-o", "-4", "address", "show", "dev", "cni0"])?;
    for (address, pod) in [(local, "echo-node1"), (remote, "echo-node2")] {
        let url = format!("http://{address}:8080/");
        let text = world.cluster.on_node("node1", &["curl", "-s", "--max-time", "5", &url])?;
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["pod"] == pod, "{answer}");
        let client = address_of(&answer);
        let own_range = bridge.split_whitespace().find_map(|word| word.split_once("/24"));
        let (gateway, _) = own_range.context("cni0 has no /24")?;
        let prefix = gateway.rsplit_once('.').context("no address")?.0;
        ensure!(
            client.starts_with(&format!("{prefix}.")),
            "{pod} should see an address of node1's own pod range {prefix}.0/24: {answer}"
        );
    }
    Ok(())
}

pub fn pod_to_outside(world: &World) -> Result<()> {
    let mut outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    outside.serve(&["serve", "--http", "8080"])?;
    let url = format!("http://{ADDRESS}:8080/");
    for node in &world.cluster.nodes {
        let pod = format!("echo-{node}");
        let answer = e2e::eventually("the outside answers", e2e::cluster::READY, || {
            world.toolbox_json(&pod, &["http", &url])
        })?;
        let node_ip = world.node_ip(node)?;
        ensure!(address_of(&answer) == node_ip, "the outside should see {node_ip}: {answer}");
    }
    Ok(())
}

pub fn large_messages(world: &World) -> Result<()> {
    let remote = world.pod_ip("echo-node2")?;
    let udp = ["udp", &remote, "9090", "--payload-bytes", DATAGRAM_BYTES, "--count", "5"];
    let mut all = vec!["toolbox"];
    all.extend(udp);
    let text = world.cluster.exec(NAMESPACE, "echo-node1", &all)?;
    ensure!(text.contains(DATAGRAM_BYTES), "{text}");
    let url = format!("http://{remote}:8080/echo");
    let post = ["toolbox", "http", &url, "--post-bytes", BODY_BYTES];
    let text = world.cluster.exec(NAMESPACE, "echo-node1", &post)?;
    ensure!(text.contains(BODY_BYTES), "{text}");
    Ok(())
}
