//! Fail-over: dead nodes and endpoints get no new connections (issue 4, item 5). How soon is printed;
//! that it is within a second is shown where time is made (`reconcile::failover`). Here it has to be
//! long before the API says anything, on a machine however busy.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Kubectl, text_of};
use e2e::eventually;
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
/// And back again: the longest time between two probes, and then some.
const BACK: Duration = Duration::from_secs(30);
/// Connections that would reach each of three endpoints, but for one chance in millions.
const MANY: &str = "60";
/// So many in a row that they use the ports again of those that were tried in vain.
const ALL_PORTS: &str = "6000";
/// No connection of a living endpoint takes longer, however busy the machine is.
const TIMEOUT_MS: &str = "3000";
/// Within this a handshake is repeated three times, the last time after 7 s.
const PATIENT_MS: &str = "10000";
/// What clients call a handshake that nobody answered in time.
const UNANSWERED: &str = "timeout while connecting";

pub fn cut_node(world: &World) -> Result<()> {
    let port = |state: &str| {
        let namespace = format!("{}-net", world.cluster.name);
        let words = ["-n", &namespace, "link", "set", SILENT_NODE, state];
        text_of(Command::new("ip").args(words).output()?)
    };
    ensure!(pods(world)?.contains(SILENT_POD), "it answers before");
    let clients = load(world)?;
    port("down")?;
    let checked = (|| -> Result<()> {
        noticed(&world.cluster, "nodes", SILENT_NODE)?;
        ensure!(is_ready(world)?, "the API says so first: then nothing is shown");
        none_fails(world)?;
        // A new agent goes on from what the one before knew.
        let before = world.cluster.process("agent/node1")?;
        signal(before, "KILL")?;
        eventually("the agent is back", NOTICED, || {
            ensure!(world.cluster.process("agent/node1")? != before, "still the old one");
            let status = agent_status(&world.cluster, CLIENT_NODE)?;
            ensure!(status["converged"] == true, "{status}");
            Ok(())
        })?;
        none_fails(world)?;
        clients.all_were_answered()
    })();
    port("up")?;
    checked?;
    back(world)
}

pub fn frozen_pod(world: &World) -> Result<()> {
    ensure!(pods(world)?.contains(SILENT_POD), "it answers before");
    let endpoint = format!("{}:8080", world.pod_ip(SILENT_POD)?);
    freeze(world)?;
    let checked = (|| -> Result<()> {
        // Somebody has to try it: nobody asks endpoints that nobody uses.
        let clients = load(world)?;
        noticed(&world.cluster, "endpoints", &endpoint)?;
        none_fails(world)?;
        clients.all_were_answered()
    })();
    world.cluster.on_node(SILENT_NODE, &["nft", "delete table ip frozen"])?;
    checked?;
    back(world)
}

/// The same without fail-over: what the other scenarios see is its work.
pub fn switched_off(_: &World) -> Result<()> {
    let arguments = ["--nodes", "3", "--failover", "false", "--pod-cidr", "10.42.0.0/16"];
    let ranges = ["--service-cidr", "10.43.0.0/16", "--node-cidr", "172.29.2.0/24"];
    let cluster = Cluster::up("nofailover", &[&arguments[..], &ranges].concat())?;
    let world = World { cluster };
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
    back(&world)?;
    freeze(&world)?;
    for round in 0..2 {
        let summary = connect(&world, MANY)?;
        // The second begins when fail-over would long have worked.
        ensure!(summary["failed"] != 0, "round {round}: none failed: {summary}");
    }
    let status = agent_status(&world.cluster, CLIENT_NODE)?;
    ensure!(status["unreachable"]["endpoints"] == serde_json::json!([]), "{status}");
    Ok(())
}

/// Waits until the client's node leaves it out; `what` is "nodes" or "endpoints".
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

/// Waits until nothing is left out, and all three answer again.
fn back(world: &World) -> Result<()> {
    let all: BTreeSet<String> =
        world.cluster.nodes.iter().map(|node| format!("echo-{node}")).collect();
    eventually("all answer again", BACK, || {
        let found = pods(world)?;
        ensure!(found == all, "only {found:?}");
        Ok(())
    })
}

/// Not one of many new connections fails.
fn none_fails(world: &World) -> Result<()> {
    let summary = connect(world, ALL_PORTS)?;
    ensure!(summary["failed"] == 0, "new connections failed: {summary}");
    Ok(())
}

/// What new connections through the Service come to.
fn connect(world: &World, count: &str) -> Result<Value> {
    let summary =
        ask(world, &["http", "--count", count, "--timeout-ms", TIMEOUT_MS, "--json"])?.summary()?;
    ensure!(summary["failed"].is_u64(), "{summary}");
    Ok(summary)
}

/// New connections for some seconds.
fn load(world: &World) -> Result<Clients> {
    ask(world, &["load", "--duration-s", "8", "--rate", "100", "--timeout-ms", PATIENT_MS])
}

/// Who answers new connections.
fn pods(world: &World) -> Result<BTreeSet<String>> {
    let summary = connect(world, MANY)?;
    let by_pod = summary["by_pod"].as_object().with_context(|| summary.to_string())?;
    Ok(by_pod.keys().cloned().collect())
}

/// Clients in a pod of the client's node that go on while something else is done.
struct Clients(Child);

/// Starts the toolbox's command against the Service, with a new connection each time.
fn ask(world: &World, command: &[&str]) -> Result<Clients> {
    let url = format!("http://{}/", world.cluster_ip("web")?);
    let pod = format!("echo-{CLIENT_NODE}");
    let mut words = vec!["exec", "-n", NAMESPACE, &pod, "--", "toolbox"];
    words.extend(command);
    words.extend(["--concurrency", "20"]);
    words.insert(7, &url);
    let mut kubectl = world.cluster.kubectl_command(Kubectl::Old, &words);
    Ok(Clients(kubectl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?))
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
    fn summary(self) -> Result<Value> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = || format!("{text} {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text).with_context(said)
    }
}

fn is_ready(world: &World) -> Result<bool> {
    let node = world.cluster.get("", "node", SILENT_NODE)?;
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
    Ok(conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Its own node swallows what others send to the pod. The node itself still reaches it, so that
/// the API never hears of anything.
fn freeze(world: &World) -> Result<()> {
    let address = world.pod_ip(SILENT_POD)?;
    let rules = format!(
        "table ip frozen {{ chain forward {{ type filter hook forward priority -300; \
         ip daddr {address} drop; }}; }}"
    );
    world.cluster.on_node(SILENT_NODE, &["nft", &rules]).map(drop)
}
