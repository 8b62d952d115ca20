//! Fail-over: dead nodes and endpoints get no new connections (issue 4, item 5). How soon is printed;
//! that it is within a second is shown where time is made (`reconcile::failover`). Here it has to be
//! long before the API says anything, on a machine however busy.
//!
//! Where packets are led to endpoints no handshake is lost: its next repetition is led elsewhere.
//! With Services in eBPF so are those of clients outside; a socket of a node or pod chooses once.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{self, Cluster, Kubectl, text_of};
use e2e::eventually;
use e2e::outside::Outside;
use e2e::processes::{agent_status, signal};
use serde_json::Value;

use super::world::{NAMESPACE, World, echo_pod};

/// The node whose pods connect.
const CLIENT_NODE: &str = "node1";
/// The node and its pod that fall silent.
const SILENT_NODE: &str = "node3";
const SILENT_POD: &str = "echo-node3";
/// The API's word about a silent node comes after 40 s, this is far below.
const NOTICED: Duration = Duration::from_secs(10);
/// And back again: the longest time between two probes, and then some; and so for an agent.
const BACK: Duration = Duration::from_secs(30);
/// Connections that would reach each of three endpoints, but for one chance in millions.
const MANY: &str = "60";
/// So many in a row that they use the ports again of those that were tried in vain.
const ALL_PORTS: &str = "6000";
/// No connection of a living endpoint takes longer, however busy the machine is.
const TIMEOUT_MS: &str = "3000";
/// Within this a handshake is repeated three times, the last time after 7 s.
const PATIENT_MS: &str = "10000";
/// The node network of clusters that scenarios make for themselves.
pub const OWN_RANGE: &str = "172.29.2.0/24";
/// What clients call a handshake that nobody answered in time.
const UNANSWERED: &str = "timeout while connecting";

/// A way to fall silent.
struct Silence {
    /// What is left out then: "nodes" or "endpoints".
    left_out: &'static str,
    name: fn(&World) -> Result<String>,
    begin: fn(&World) -> Result<()>,
    end: fn(&World) -> Result<()>,
}

/// The node's link goes down.
const CUT: Silence = Silence {
    left_out: "nodes",
    name: |_| Ok(SILENT_NODE.to_owned()),
    begin: |world| set_port(world, "down"),
    end: |world| set_port(world, "up"),
};

/// The pod swallows what comes, but what comes from its own node: the API never hears of anything.
const FROZEN: Silence = Silence {
    left_out: "endpoints",
    name: |world| Ok(format!("{}:8080", world.pod_ip(SILENT_POD)?)),
    begin: |world| {
        let swallow = "gateway=$(ip route show default | cut -d' ' -f3)
            nft \"table ip frozen { chain input {
                type filter hook input priority -300; ip saddr != $gateway drop
            }; }\"";
        in_silent_pod(world, swallow)
    },
    end: |world| in_silent_pod(world, "nft delete table ip frozen"),
};

pub fn cut_node(world: &World) -> Result<()> {
    falls_silent(world, None, &CUT)
}

pub fn frozen_pod(world: &World) -> Result<()> {
    falls_silent(world, None, &FROZEN)
}

/// Both with Services in eBPF, and clients outside of the cluster beside those in a pod.
pub fn with_ebpf(_: &World) -> Result<()> {
    let world = own_cluster("e2e-ebpf", &["--service-backend", "ebpf"])?;
    let outside = Outside::attach(&world.cluster, OWN_RANGE)?;
    let status = agent_status(&world.cluster, CLIENT_NODE)?;
    ensure!(status["serviceBackend"] == "ebpf", "{status}");
    [FROZEN, CUT].iter().try_for_each(|silence| falls_silent(&world, Some(&outside), silence))
}

/// A node of such a cluster falls silent to clients in a pod and outside.
pub fn cut_node_with_outside(world: &World, outside: &Outside) -> Result<()> {
    falls_silent(world, Some(outside), &CUT)
}

/// The same without fail-over: what the other scenarios see is its work.
pub fn switched_off(_: &World) -> Result<()> {
    let world = own_cluster("nofailover", &["--failover", "false"])?;
    (FROZEN.begin)(&world)?;
    for round in 0..2 {
        let summary = connect(&world, None, MANY)?;
        // The second begins when fail-over would long have worked.
        ensure!(summary["failed"] != 0, "round {round}: none failed: {summary}");
    }
    let status = agent_status(&world.cluster, CLIENT_NODE)?;
    ensure!(status["unreachable"]["endpoints"] == serde_json::json!([]), "{status}");
    Ok(())
}

/// A cluster as that of the suite, with these flags.
pub fn own_cluster(name: &str, flags: &[&str]) -> Result<World> {
    let ranges = ["--pod-cidr", "10.42.0.0/16", "--service-cidr", "10.43.0.0/16"];
    let nodes = ["--nodes", "3", "--node-cidr", OWN_RANGE];
    let world = World { cluster: Cluster::up(name, &[flags, &ranges, &nodes].concat())? };
    let mut manifest =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    for node in &world.cluster.nodes {
        manifest.push_str(&echo_pod(&format!("echo-{node}"), node));
    }
    manifest.push_str(super::world::ECHO_SERVICE);
    world.cluster.apply(&manifest)?;
    for node in &world.cluster.nodes {
        world.cluster.pod_ready(NAMESPACE, &format!("echo-{node}"))?;
    }
    back(&world, None)?;
    Ok(world)
}

/// What falls silent while clients connect is left out by them all, and comes back. Clients outside
/// are there with Services in eBPF: then pods' sockets are promised nothing of what they had chosen.
fn falls_silent(world: &World, outside: Option<&Outside>, silence: &Silence) -> Result<()> {
    back(world, outside)?;
    let name = (silence.name)(world)?;
    // Somebody has to try it: nobody asks endpoints that nobody uses.
    let in_pod = load(world, None)?;
    let outside_of_it = outside.map(|_| load(world, outside)).transpose()?;
    (silence.begin)(world)?;
    let checked = (|| -> Result<()> {
        noticed(&world.cluster, silence.left_out, &name)?;
        ensure!(is_ready(world)?, "the API says so first: then nothing is shown");
        none_fails(world, outside)?;
        restart_agent(&world.cluster)?;
        none_fails(world, outside)?;
        match outside_of_it {
            Some(clients) => {
                println!("    meanwhile in a pod: {}", in_pod.summary()?);
                clients.all_were_answered()
            }
            None => in_pod.all_were_answered(),
        }
    })();
    (silence.end)(world)?;
    checked?;
    back(world, outside)
}

/// A new agent goes on from what the one before knew.
fn restart_agent(cluster: &Cluster) -> Result<()> {
    let name = format!("agent/{CLIENT_NODE}");
    let before = cluster.process(&name)?;
    signal(before, "KILL")?;
    eventually("the agent is back", BACK, || {
        ensure!(cluster.process(&name)? != before, "still the old one");
        let status = agent_status(cluster, CLIENT_NODE)?;
        ensure!(status["converged"] == true, "{status}");
        Ok(())
    })
}

/// Waits until the client's node leaves it out.
fn noticed(cluster: &Cluster, what: &str, name: &str) -> Result<()> {
    let began = Instant::now();
    eventually(&format!("{name} is left out"), NOTICED, || {
        let status = agent_status(cluster, CLIENT_NODE)?;
        let out = &status["unreachable"][what];
        let is_out = out.as_array().is_some_and(|all| all.iter().any(|one| one == name));
        ensure!(is_out && status["converged"] == true, "{status}");
        Ok(())
    })?;
    println!("    {name}: left out after {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Waits until nothing is left out, and all three answer.
fn back(world: &World, outside: Option<&Outside>) -> Result<()> {
    let all: BTreeSet<String> =
        world.cluster.nodes.iter().map(|node| format!("echo-{node}")).collect();
    for clients in [None].into_iter().chain(outside.map(Some)) {
        eventually("all answer again", BACK, || {
            let found = pods(world, clients)?;
            ensure!(found == all, "only {found:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Not one of many new connections fails.
fn none_fails(world: &World, outside: Option<&Outside>) -> Result<()> {
    for (clients, place) in
        [(None, "a pod")].into_iter().chain(outside.map(|it| (Some(it), "outside")))
    {
        let summary = connect(world, clients, ALL_PORTS)?;
        ensure!(summary["failed"] == 0, "new connections from {place} failed: {summary}");
    }
    Ok(())
}

/// What new connections through the Service come to.
fn connect(world: &World, outside: Option<&Outside>, count: &str) -> Result<Value> {
    let command = ["http", "--count", count, "--timeout-ms", TIMEOUT_MS, "--json"];
    let summary = ask(world, outside, &command)?.summary()?;
    ensure!(summary["failed"].is_u64(), "{summary}");
    Ok(summary)
}

/// New connections for some seconds.
fn load(world: &World, outside: Option<&Outside>) -> Result<Clients> {
    let command = ["load", "--duration-s", "8", "--rate", "100", "--timeout-ms", PATIENT_MS];
    ask(world, outside, &command)
}

/// Who answers new connections.
fn pods(world: &World, outside: Option<&Outside>) -> Result<BTreeSet<String>> {
    let summary = connect(world, outside, MANY)?;
    let by_pod = summary["by_pod"].as_object().with_context(|| summary.to_string())?;
    Ok(by_pod.keys().cloned().collect())
}

/// Clients that go on while something else is done; nobody waits for them when that fails.
struct Clients(Child);

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the toolbox's command with a new connection each time: in a pod of the client's node to
/// the Service, or outside to the node port there.
fn ask(world: &World, outside: Option<&Outside>, command: &[&str]) -> Result<Clients> {
    let url = match outside {
        None => format!("http://{}/", world.cluster_ip("web")?),
        Some(_) => {
            let port =
                world.cluster.field(NAMESPACE, "service", "web", "/spec/ports/0/nodePort")?;
            format!("http://{}:{port}/", world.node_ip(CLIENT_NODE)?)
        }
    };
    let toolbox = [&command[..1], &[&url], &command[1..], &["--concurrency", "20"]].concat();
    let pod = format!("echo-{CLIENT_NODE}");
    let mut program = match outside {
        None => {
            let words = [&["exec", "-n", NAMESPACE, &pod, "--", "toolbox"], &toolbox[..]].concat();
            world.cluster.kubectl_command(Kubectl::Old, &words)
        }
        Some(outside) => outside.command(&toolbox),
    };
    let program = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Clients(program.spawn()?))
}

impl Clients {
    /// Who tried what fell silent was led elsewhere by the next repetition of its handshake. A
    /// request that was on its way may be lost.
    fn all_were_answered(self) -> Result<()> {
        let summary = self.summary()?;
        println!("    meanwhile: {summary}");
        ensure!(summary["errors"].get(UNANSWERED).is_none(), "{summary}");
        Ok(())
    }

    /// What they came to, also when some failed.
    fn summary(mut self) -> Result<Value> {
        let (mut text, mut errors) = (String::new(), String::new());
        self.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
        self.0.stderr.take().context("no errors")?.read_to_string(&mut errors)?;
        self.0.wait()?;
        let said = || format!("{text} {errors}");
        serde_json::from_str(&text).with_context(said)
    }
}

/// Whether the API takes both for well.
fn is_ready(world: &World) -> Result<bool> {
    let node = world.cluster.get("", "node", SILENT_NODE)?;
    let pod = world.cluster.get(NAMESPACE, "pod", SILENT_POD)?;
    Ok(cluster::is_ready(&node) && cluster::is_ready(&pod))
}

fn set_port(world: &World, state: &str) -> Result<()> {
    let namespace = format!("{}-net", world.cluster.name);
    let words = ["-n", &namespace, "link", "set", SILENT_NODE, state];
    text_of(Command::new("ip").args(words).output()?).map(drop)
}

/// Runs a line of shell in the pod's network namespace, with the host's programs.
fn in_silent_pod(world: &World, line: &str) -> Result<()> {
    let process = server(world)?;
    let words = ["--net", "--target", &process, "sh", "-c", line];
    text_of(Command::new("nsenter").args(words).output()?).map(drop)
}

/// The process of the pod's server, by its environment and the control group of its cluster.
fn server(world: &World) -> Result<String> {
    let group = format!("/flatnet/{}/", world.cluster.name);
    let variable = format!("POD_NAME={SILENT_POD}");
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // Of processes that end meanwhile, and of what is no process, there is nothing to read.
        let read = |file: &str| std::fs::read_to_string(process.join(file)).unwrap_or_default();
        if read("cgroup").contains(&group) && read("environ").split('\0').any(|it| it == variable) {
            let number = process.file_name().context("no name")?;
            return Ok(number.to_string_lossy().into_owned());
        }
    }
    bail!("no process of {SILENT_POD} in a control group with {group}")
}
