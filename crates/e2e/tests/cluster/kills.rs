//! kill -9 of everything, and the way back.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::flatnet;
use e2e::eventually;
use e2e::sender::Sender;

use super::world::{NAMESPACE, World};

/// Rounds of killing.
const ROUNDS: usize = 20;
/// How long the load lasts: a little longer than the rounds.
const LOAD_S: u64 = 45;
/// How long a killed process may be away.
const BACK: Duration = Duration::from_secs(15);

pub fn kills(world: &World) -> Result<()> {
    let cluster_ip = world.cluster_ip("web")?;
    let remote = world.pod_ip("echo-node2")?;
    world.start_load("load-service", &format!("http://{cluster_ip}/"), LOAD_S)?;
    world.start_load("load-pod", &format!("http://{remote}:8080/"), LOAD_S)?;
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        let victims = victims(world, round);
        let name = format!("acknowledged-{round}");
        world.cluster.kubectl(&[
            "create",
            "configmap",
            "-n",
            NAMESPACE,
            &name,
            "--from-literal=a=b",
        ])?;
        written.push(name);
        let before: Vec<i64> =
            victims.iter().map(|name| world.cluster.process(name)).collect::<Result<_>>()?;
        for pid in &before {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status()?;
            ensure!(killed.success(), "kill -9 {pid}");
        }
        for (name, old) in victims.iter().zip(before) {
            eventually(&format!("{name} is back"), BACK, || {
                ensure!(world.cluster.process(name)? != old, "still the old process");
                Ok(())
            })?;
        }
        eventually("nothing is wrong", BACK, || {
            let status = world.cluster.status()?;
            ensure!(
                status["problems"].as_array().is_some_and(Vec::is_empty),
                "{}",
                status["problems"]
            );
            Ok(())
        })?;
    }
    for name in written {
        world.cluster.kubectl(&["get", "configmap", "-n", NAMESPACE, &name])?;
        world.cluster.kubectl(&["delete", "configmap", "-n", NAMESPACE, &name])?;
    }
    world.ensure_no_failure("load-service", LOAD_S)?;
    world.ensure_no_failure("load-pod", LOAD_S)?;
    no_address_twice(world)
}

/// One component after another, and in every fifth round all at once.
fn victims(world: &World, round: usize) -> Vec<String> {
    let mut all = vec!["controlplane".to_owned()];
    for node in &world.cluster.nodes {
        for component in ["agent", "runtime", "dns"] {
            all.push(format!("{component}/{node}"));
        }
    }
    if round % 5 == 4 { all } else { vec![all[(round * 3) % all.len()].clone()] }
}

fn no_address_twice(world: &World) -> Result<()> {
    let text = world.cluster.kubectl(&["get", "pods", "-A", "-o", "json"])?;
    let pods: serde_json::Value = serde_json::from_str(&text)?;
    let mut seen = BTreeSet::new();
    for pod in pods["items"].as_array().context("no items")? {
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            continue;
        }
        if let Some(address) = pod["status"]["podIP"].as_str() {
            ensure!(seen.insert(address.to_owned()), "{address} belongs to two pods");
        }
    }
    Ok(())
}

/// As after a power cut: every process is gone at once, the supervisor first, and the nodes' kernels
/// know nothing any more. R-18: clients that go on sending meanwhile, from ports that stay theirs,
/// are answered by pods as soon as Services are there again.
pub fn power_cut(world: &World) -> Result<()> {
    let node_port = world.cluster.field(NAMESPACE, "service", "web", "/spec/ports/1/nodePort")?;
    let servers = [
        format!("{}:{node_port}", world.node_ip("node2")?),
        format!("{}:90", world.cluster_ip("web")?),
    ];
    let senders = servers.iter().map(|server| Sender::start(server, "echo-"));
    let senders: Vec<Sender> = senders.collect::<Result<_>>()?;
    let create = ["create", "configmap", "-n", NAMESPACE, "before-the-cut", "--from-literal=a=b"];
    world.cluster.kubectl(&create)?;
    let report = format!("/run/flatnet/{}/status.json", world.cluster.name);
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    let supervisor = report["supervisor"].as_i64();
    let processes = report["processes"].as_array().context("no processes")?;
    let processes = processes.iter().filter_map(|process| process["pid"].as_i64());
    for pid in supervisor.into_iter().chain(processes) {
        ensure!(Command::new("kill").args(["-9", &pid.to_string()]).status()?.success());
    }
    flatnet(&["up", "--name", &world.cluster.name])?;
    world.cluster.kubectl(&["get", "configmap", "-n", NAMESPACE, "before-the-cut"])?;
    all_answer(world)?;
    senders.into_iter().try_for_each(Sender::ensure_answered)
}

fn all_answer(world: &World) -> Result<()> {
    for node in &world.cluster.nodes {
        world.cluster.pod_ready(NAMESPACE, &format!("echo-{node}"))?;
    }
    let url = format!("http://{}/", world.cluster_ip("web")?);
    eventually("the Service answers again", BACK, || {
        world.toolbox_json("echo-node1", &["http", &url, "--timeout-ms", "1000"]).map(drop)
    })
}

pub fn keep(world: &World) -> Result<()> {
    world.cluster.kubectl(&[
        "create",
        "configmap",
        "-n",
        NAMESPACE,
        "kept",
        "--from-literal=a=b",
    ])?;
    flatnet(&["down", "--name", &world.cluster.name, "--keep"])?;
    flatnet(&["up", "--name", &world.cluster.name])?;
    world.cluster.kubectl(&["get", "configmap", "-n", NAMESPACE, "kept"])?;
    all_answer(world)
}
