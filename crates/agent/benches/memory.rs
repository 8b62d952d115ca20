//! The memory of an agent on a node with 250 pods in a cluster of 500 nodes and 1,000 Services:
//! the proportional set size of a process of its own. Needs root; run it with `./x bench memory`.

#[path = "../tests/real/node.rs"]
#[allow(dead_code)] // the tests' part
mod node;
#[path = "../tests/real/server.rs"]
#[allow(dead_code)] // the tests' part
mod server;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use agent::{Options, Places};
use client::ResourcePath;
use node::{NAME, Node, eventually, on_a_node};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Nodes besides the own one.
const PEERS: usize = 500;
/// Pods of the node: what a large one has.
const PODS: usize = 250;
/// Services, with three endpoints each.
const SERVICES: usize = 1_000;
/// The machine's directory, for the process that is measured.
const DIRECTORY: &str = "FLATNET_BENCH_DIRECTORY";
/// The API server's URL, for it.
const SERVER: &str = "FLATNET_BENCH_SERVER";
/// Longest wait for the agent to have everything in the kernel.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the memory is read, and how long between.
const SAMPLES: usize = 10;
const SAMPLE_PERIOD: Duration = Duration::from_millis(500);

fn main() {
    if let (Ok(directory), Ok(server)) = (std::env::var(DIRECTORY), std::env::var(SERVER)) {
        return be_the_agent(directory.into(), server);
    }
    on_a_node(async |node| {
        let mut agent = Agent(start(node));
        ready(node, "an empty cluster", 0).await;
        println!("{:>6} peers {:>4} pods {:>5} Services: {} kB", 1, 0, 1, agent.settled_kb().await);
        for number in 0..PODS {
            // Their namespaces may go at once: the node's part of them stays in the records.
            drop(node.add_pod(&format!("pod{number}")));
        }
        println!(
            "{:>6} peers {PODS:>4} pods {:>5} Services: {} kB",
            1,
            1,
            agent.settled_kb().await
        );
        fill(node).await;
        ready(node, "a full cluster", PEERS).await;
        println!(
            "{PEERS:>6} peers {PODS:>4} pods {SERVICES:>5} Services: {} kB",
            agent.settled_kb().await
        );
        // A fresh process knows the same without the garbage of how it came to be.
        drop(agent);
        agent = Agent(start(node));
        ready(node, "a restarted agent", PEERS).await;
        println!("{:>36}: {} kB", "after a restart", agent.settled_kb().await);
    });
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    /// The largest of some readings.
    async fn settled_kb(&mut self) -> u64 {
        let mut largest = 0;
        for _ in 0..SAMPLES {
            tokio::time::sleep(SAMPLE_PERIOD).await;
            largest = largest.max(proportional_kb(self.0.id()));
        }
        largest
    }
}

fn proportional_kb(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    number.and_then(|number| number.trim().parse().ok()).expect("a number")
}

fn start(node: &Node) -> Child {
    node.options();
    Command::new(std::env::current_exe().expect("our own program"))
        .env(DIRECTORY, &node.directory)
        .env(SERVER, &node.server.url)
        .spawn()
        .expect("the agent starts")
}

/// The process that is measured. It is in the machine's network namespace already.
fn be_the_agent(directory: std::path::PathBuf, server: String) {
    let account = directory.join("serviceaccount");
    let options = Options {
        node_name: NAME.into(),
        api: agent::Api::ServiceAccount { server, directory: Some(account) },
        config: model::ClusterConfig {
            pod_cidrs: "10.244.0.0/15".parse().into_iter().collect(),
            node_cidrs: "172.30.0.0/16".parse().into_iter().collect(),
            ..model::ClusterConfig::default()
        },
        uplink: None,
        cni_binary: directory.join("flatnet-cni"),
        path_test_period: Duration::from_secs(600),
        places: Places {
            run: directory.join("run"),
            cni_configuration: directory.join("net.d"),
            cni_plugin: directory.join("bin"),
            ipam: directory.join("networks"),
            records: directory.join("records"),
            wireguard_keys: directory.join("wireguard"),
            dns_zone: directory.join("dns"),
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (_stop, stopping) = watch::channel(false);
    runtime.expect("a runtime").block_on(agent::run(options, stopping)).expect("the agent");
}

async fn ready(node: &Node, what: &str, peers: usize) {
    let started = Instant::now();
    eventually(what, PATIENCE, async || {
        let status = node.status().await;
        status.is_some_and(|status| status.ready && status.converged && status.peers >= peers)
    })
    .await;
    println!("{what}: in the kernel after {} ms", started.elapsed().as_millis());
}

async fn fill(node: &Node) {
    for number in 0..PEERS {
        let (high, low) = (number / 250, number % 250);
        let address = format!("172.30.{}.{}", 1 + high, 1 + low);
        // 10.244.1.0/24 and 10.244.2.0/24 are the first two nodes'.
        let (second, third) = (244 + (number + 3) / 256, (number + 3) % 256);
        let range = format!("10.{second}.{third}.0/24");
        node.register(&format!("peer{number}"), &address, &range).await;
    }
    for number in 0..SERVICES {
        let name = format!("service{number}");
        let services = ResourcePath::new("v1", "services").namespace("default");
        let ports = json!([{ "port": 80, "targetPort": 8080 }]);
        let object = json!({ "metadata": { "name": name }, "spec": { "ports": ports } });
        let _: Value = node.server.admin.create(&services, &object).await.expect("created");
        let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices");
        let endpoints: Vec<Value> = (0..3)
            .map(|endpoint| {
                let address = format!("10.245.{}.{}", number % 240, 2 + endpoint + number / 240);
                json!({ "addresses": [address], "conditions": { "ready": true } })
            })
            .collect();
        let object = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "port": 8080 }],
        });
        let path = slices.namespace("default");
        let _: Value = node.server.admin.create(&path, &object).await.expect("created");
    }
}
