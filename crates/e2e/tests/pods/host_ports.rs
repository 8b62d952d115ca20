//! `hostPort`: a pod's port on its node (X-04, FW).

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use e2e::outside::{ADDRESS, Outside};
use serde_json::{Value, json};

use super::world::{NAMESPACE, NODE_RANGE, World, echo_pod, free_on};

const HTTP: u16 = 18080;
const UDP: u16 = 19090;
/// How long damage may last, on a machine that is busy with other tests.
const REPAIR: Duration = Duration::from_secs(5);
/// How long a datagram may take.
const DATAGRAM: Duration = Duration::from_millis(200);

/// An echo pod on the first node with ports there.
fn hosted(world: &World, name: &str) -> Value {
    let mut pod = echo_pod(name, &world.cluster.nodes[0]);
    pod["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": 8080, "hostPort": HTTP },
        { "containerPort": 9090, "hostPort": UDP, "protocol": "UDP" },
    ]);
    pod
}

pub fn reachable(world: &World) -> Result<()> {
    world.start(&hosted(world, "hosted"))?;
    let outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    let [first, second] = &world.cluster.nodes[..] else { anyhow::bail!("two nodes") };
    let (node, other) = (world.node_ip(first)?, world.node_ip(second)?);
    let url = format!("http://{node}:{HTTP}/");
    let answer: Value = serde_json::from_str(&outside.toolbox(&["http", &url])?)?;
    ensure!(answer["pod"] == "hosted", "{answer}");
    ensure!(answer["client"] == ADDRESS, "the pod should see the outside's address: {answer}");
    let answer = outside.toolbox(&["udp", &node, &UDP.to_string()])?;
    ensure!(answer.contains("hosted"), "by UDP: {answer}");
    // From pods of both nodes, and from the pod itself.
    for pod in [free_on(first), free_on(second), "hosted".to_owned()] {
        let answer = world.ask(&pod, &url).with_context(|| format!("from {pod}"))?;
        ensure!(answer["pod"] == "hosted", "from {pod}: {answer}");
        let command = ["toolbox", "udp", &node, &UDP.to_string()];
        let answer = world.cluster.exec(NAMESPACE, &pod, &command)?;
        ensure!(answer.contains("hosted"), "by UDP from {pod}: {answer}");
    }
    for from in [first, second] {
        let text = world.cluster.on_node(from, &["curl", "-s", "--max-time", "5", &url])?;
        ensure!(text.contains("hosted"), "from {from}: {text}");
    }
    // Nowhere else.
    let elsewhere = format!("http://{other}:{HTTP}/");
    let answer = outside.toolbox(&["http", &elsewhere, "--timeout-ms", "1000"]);
    ensure!(answer.is_err(), "another node answers on the port: {answer:?}");
    drop(outside);
    world.stop("hosted")
}

pub fn no_transit(world: &World) -> Result<()> {
    world.start(&hosted(world, "hosted"))?;
    let mut outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    outside.serve(&["serve", "--http", &HTTP.to_string()])?;
    let url = format!("http://{ADDRESS}:{HTTP}/");
    let from = free_on(&world.cluster.nodes[0]);
    let answer = eventually("the outside answers", READY, || world.ask(&from, &url))?;
    ensure!(answer["pod"] != "hosted", "what only passed the node was taken: {answer}");
    drop(outside);
    world.stop("hosted")
}

pub fn rebuilt(world: &World) -> Result<()> {
    world.start(&hosted(world, "hosted"))?;
    let outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    let node = &world.cluster.nodes[0];
    let url = format!("http://{}:{HTTP}/", world.node_ip(node)?);
    let tables = world.cluster.on_node(node, &["nft", "list", "tables"])?;
    let own: Vec<&str> = tables.lines().filter(|line| line.ends_with("-host-ports")).collect();
    ensure!(!own.is_empty(), "no table of host ports: {tables}");
    for table in own {
        let words: Vec<&str> = table.split_whitespace().skip(1).collect();
        world.cluster.on_node(node, &[&["nft", "delete", "table"], &words[..]].concat())?;
    }
    eventually("the port answers again", REPAIR, || {
        let text = outside.toolbox(&["http", &url, "--timeout-ms", "500"])?;
        ensure!(text.contains("hosted"), "{text}");
        Ok(())
    })?;
    drop(outside);
    world.stop("hosted")
}

/// The flow that the kernel tracked for the first pod must not keep the client from the second.
pub fn taken_over(world: &World) -> Result<()> {
    world.start(&hosted(world, "first"))?;
    let outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    let client =
        outside.udp_client(&format!("{}:{UDP}", world.node_ip(&world.cluster.nodes[0])?))?;
    ensure!(who_answers(&client)? == "first");
    world.stop("first")?;
    let nobody = who_answers(&client);
    ensure!(nobody.is_err(), "a pod that is gone answers: {nobody:?}");
    world.start(&hosted(world, "second"))?;
    eventually("the second pod answers the same client", REPAIR, || {
        let pod = who_answers(&client)?;
        ensure!(pod == "second", "{pod} answers");
        Ok(())
    })?;
    drop(outside);
    world.stop("second")
}

fn who_answers(client: &UdpSocket) -> Result<String> {
    client.set_read_timeout(Some(DATAGRAM))?;
    client.send(b"who is there?")?;
    let mut buffer = [0; 4096];
    let length = client.recv(&mut buffer)?;
    let answer: Value = serde_json::from_slice(&buffer[..length])?;
    Ok(answer["pod"].as_str().unwrap_or_default().to_owned())
}

pub fn conflict(world: &World) -> Result<()> {
    world.start(&hosted(world, "hosted"))?;
    let free = |name: &str, address: &str| {
        let mut pod = hosted(world, name);
        let node = pod["spec"]["nodeName"].take();
        pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        let ports = pod["spec"]["containers"][0]["ports"].as_array_mut();
        for port in ports.into_iter().flatten() {
            port["hostIP"] = address.into();
        }
        pod
    };
    world.apply(&free("second", ""))?;
    eventually("the second pod is told why it waits", READY, || {
        let events = world.events("second")?;
        ensure!(events.contains("free ports for the requested pod ports"), "{events}");
        Ok(())
    })?;
    world.stop("hosted")?;
    world.cluster.pod_ready(NAMESPACE, "second").context("after the port is free")?;
    world.stop("second")?;
    // On another address of the node there is room; on loopback no pod is heard, and it is told so.
    let node = world.node_ip(&world.cluster.nodes[0])?;
    world.start(&free("hosted", &node))?;
    world.apply(&free("second", "127.0.0.1"))?;
    eventually("an Event tells of loopback", READY, || {
        let events = world.events("second")?;
        ensure!(
            events.contains("Successfully assigned") && events.contains("loopback"),
            "{events}"
        );
        Ok(())
    })?;
    let url = format!("http://{node}:{HTTP}/");
    let text =
        world.cluster.on_node(&world.cluster.nodes[0], &["curl", "-s", "--max-time", "5", &url])?;
    ensure!(text.contains("hosted"), "{text}");
    ["hosted", "second"].into_iter().try_for_each(|pod| world.stop(pod))
}
