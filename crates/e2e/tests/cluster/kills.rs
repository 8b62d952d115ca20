//! kill -9 of everything, and the way back.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::cluster::flatnet;
use e2e::eventually;

use super::world::{NAMESPACE, World};

/// Rounds of killing.
const ROUNDS: usize = 20;
/// How long the load lasts: a little longer than the rounds.
const LOAD_S: u64 = 45;
/// The time between two datagrams of a client, and how many have no answer at least while a cluster
/// starts.
const BETWEEN_DATAGRAMS: Duration = Duration::from_millis(10);
const UNANSWERED_LEAST: u64 = 10;
/// How long the datagrams are meanwhile; those afterwards are longer.
const LENGTH: usize = 10;
/// Each of so many datagrams is answered within this.
const DATAGRAMS: usize = 20;
const ANSWERED: Duration = Duration::from_secs(1);
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
    let senders: Vec<Sender> = servers.iter().map(|it| Sender::start(it)).collect::<Result<_>>()?;
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
    for (sender, server) in senders.into_iter().zip(servers) {
        sender.ensure_answered().with_context(|| format!("datagrams to {server}"))?;
    }
    Ok(())
}

/// A client of one port that sends datagrams, whatever becomes of them.
struct Sender {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(UdpSocket, u64)>,
}

impl Sender {
    fn start(server: &str) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(ANSWERED))?;
        ask(&socket, LENGTH).context("before anything was done")?;
        socket.set_read_timeout(Some(BETWEEN_DATAGRAMS))?;
        let is_over: Arc<AtomicBool> = Arc::default();
        let told = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut unanswered = 0;
            while !told.load(Ordering::SeqCst) {
                unanswered += u64::from(ask(&socket, LENGTH).is_err());
                std::thread::sleep(BETWEEN_DATAGRAMS);
            }
            (socket, unanswered)
        });
        Ok(Self { is_over, thread })
    }

    /// Each datagram from now on is.
    fn ensure_answered(self) -> Result<()> {
        self.is_over.store(true, Ordering::SeqCst);
        let (socket, unanswered) =
            self.thread.join().map_err(|_| anyhow!("a client of UDP panicked"))?;
        println!("    {unanswered} datagrams of the time between were not answered");
        // Otherwise none came to a node that knew no Services yet, and nothing is shown.
        ensure!(unanswered > UNANSWERED_LEAST, "only {unanswered} were not answered meanwhile");
        socket.set_read_timeout(Some(ANSWERED))?;
        (1..=DATAGRAMS).try_for_each(|number| ask(&socket, LENGTH + number))
    }
}

/// Sends a datagram of this length and waits for a pod's answer to it. Late ones to others may come
/// before.
fn ask(socket: &UdpSocket, length: usize) -> Result<()> {
    socket.send(&vec![0; length])?;
    let mut buffer = [0; 1024];
    loop {
        let count = socket.recv(&mut buffer)?;
        let answer = buffer.get(..count).unwrap_or_default();
        let answer: serde_json::Value = serde_json::from_slice(answer)?;
        ensure!(answer["pod"].as_str().is_some_and(|pod| pod.starts_with("echo-")), "{answer}");
        if answer["bytes"] == length {
            return Ok(());
        }
    }
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
