//! The memory of an agent, and of the DNS worker that it feeds, on a node with 250 pods in a cluster
//! of 500 nodes and up to 10,000 Services with 100,000 endpoints (G16): the proportional set size of
//! processes of their own, and the kernel's memory for what they make of it. Needs root; run it with
//! `./x bench memory`.

mod kernel_memory;
#[path = "../../tests/forwarding/mounts.rs"]
mod mounts;
#[path = "../../tests/real/node.rs"]
#[allow(dead_code)] // the tests' part
mod node;
#[path = "../../tests/real/server.rs"]
#[allow(dead_code)] // the tests' part
mod server;

use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::{Options, Places};
use client::ResourcePath;
use kernel_memory::Group;
use model::ServiceBackend;
use mounts::Mounts;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use node::{NAME, Node, eventually, on_a_node};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Nodes besides the own one.
const PEERS: usize = 500;
/// Pods of the node: what a large one has.
const PODS: usize = 250;
/// Services, and endpoints of each, one step after the other; each has all of those before it.
const STEPS: [(usize, usize); 3] = [(1_000, 3), (10_000, 3), (10_000, 10)];
/// Addresses of endpoints: not all can have one of their own.
const ENDPOINT_ADDRESSES: usize = 60_000;
/// The machine's directory, for the process that is measured.
const DIRECTORY: &str = "FLATNET_BENCH_DIRECTORY";
/// The API server's URL, for it.
const SERVER: &str = "FLATNET_BENCH_SERVER";
/// The backend of Services, for it.
const BACKEND: &str = "FLATNET_BENCH_BACKEND";
/// Services and endpoints of each at which the other backend is looked at too.
const GOAL: (usize, usize) = (10_000, 3);
/// Longest wait for the agent to have everything in the kernel.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the memory is read, and how long between.
const SAMPLES: usize = 10;
const SAMPLE_PERIOD: Duration = Duration::from_millis(500);

fn main() {
    if let (Ok(directory), Ok(server)) = (std::env::var(DIRECTORY), std::env::var(SERVER)) {
        return be_the_agent(directory.into(), server);
    }
    print_connection_tracking();
    on_a_node(async |node| {
        let measured = Measured::of(node);
        measured.ebpf("maps at default sizes", (0, 0)).await;
        let mut agent = measured.start(ServiceBackend::Nftables);
        ready(node, "an empty cluster", 0, 0).await;
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
        add_peers(node).await;
        let mut worker = Process(start_worker(node));
        let mut before = (0, 0);
        for (services, endpoints) in STEPS {
            let kernel_before = measured.group.kernel_kb();
            add_services(node, before, (services, endpoints)).await;
            before = (services, endpoints);
            ready(node, "a full cluster", PEERS, services).await;
            println!(
                "{PEERS:>6} peers {PODS:>4} pods {services:>5} Services {:>6} endpoints: {} kB, \
                 DNS worker {} kB",
                services * endpoints,
                agent.settled_kb().await,
                worker.settled_kb().await
            );
            let grown_kb = measured.group.kernel_kb().saturating_sub(kernel_before);
            println!("{:>54}: {grown_kb} kB more than before", "the kernel for the agent");
            // Fresh processes know the same without the garbage of how it came to be.
            drop((agent, worker));
            if before == GOAL {
                measured.ebpf("with Services in eBPF", (PEERS, services)).await;
            }
            agent = measured.start(ServiceBackend::Nftables);
            ready(node, "a restarted agent", PEERS, services).await;
            worker = Process(start_worker(node));
            println!(
                "{:>54}: {} kB, DNS worker {} kB",
                "after a restart",
                agent.settled_kb().await,
                worker.settled_kb().await
            );
        }
    });
}

fn print_connection_tracking() {
    let tracking = kernel_memory::connection_tracking();
    println!(
        "connection tracking: {} kB for {} slots, {} bytes a connection without extensions",
        tracking.table_kb, tracking.slots, tracking.connection_bytes
    );
}

/// A machine whose agents are measured. They share what the machine has mounted, and a control
/// group.
struct Measured<'a> {
    node: &'a Node,
    group: Group,
    _mounts: Mounts,
}

impl<'a> Measured<'a> {
    fn of(node: &'a Node) -> Self {
        let group = Group::make(&format!("flatnet-bench-{}", std::process::id()));
        Self { node, group, _mounts: Mounts::make(&node.directory) }
    }

    fn start(&self, backend: ServiceBackend) -> Process {
        // It makes the plugin that is installed.
        self.node.options();
        let agent = Command::new(std::env::current_exe().expect("our own program"))
            .env(DIRECTORY, &self.node.directory)
            .env(SERVER, &self.node.server.url)
            .env(BACKEND, backend.as_str())
            .spawn()
            .expect("the agent starts");
        self.group.take_in(agent.id());
        Process(agent)
    }

    /// Looks at an agent with Services in eBPF.
    async fn ebpf(&self, what: &str, (peers, services): (usize, usize)) {
        let mut agent = self.start(ServiceBackend::Ebpf);
        ready(self.node, "an agent with eBPF", peers, services).await;
        let agent_kb = agent.settled_kb().await;
        let maps = kernel_memory::maps_of(agent.0.id());
        println!("{what:>54}: {agent_kb} kB, {} eBPF maps {} kB", maps.count, maps.kb);
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
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

/// The DNS worker of this build, with a socket that nobody asks at.
fn start_worker(node: &Node) -> Child {
    let own = std::env::current_exe().expect("our own program");
    let profile = own.parent().and_then(Path::parent).expect("a profile's directory");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("an open socket");
    let run = node.directory.join("run");
    Command::new(profile.join("flatnet-dnsworker"))
        .args(["--socket", &socket.as_raw_fd().to_string()])
        .arg("--feed")
        .arg(run.join(model::layout::DNS_FEED_SOCKET))
        .arg("--cache-file")
        .arg(node.directory.join("zone").join("zone.json"))
        .stderr(Stdio::null())
        .spawn()
        .expect("`./x bench` makes it")
}

/// The process that is measured. It is in the machine's network namespace already.
fn be_the_agent(directory: std::path::PathBuf, server: String) {
    mounts::enter(&directory);
    let backend = std::env::var(BACKEND).expect("set by the benchmark");
    let account = directory.join("serviceaccount");
    let options = Options {
        node_name: NAME.into(),
        api: agent::Api::ServiceAccount { server, directory: Some(account) },
        config: model::ClusterConfig {
            pod_cidrs: "10.244.0.0/15".parse().into_iter().collect(),
            node_cidrs: "172.30.0.0/16".parse().into_iter().collect(),
            service_backend: backend.parse().expect("a backend"),
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

async fn ready(node: &Node, what: &str, peers: usize, services: usize) {
    let started = Instant::now();
    eventually(what, PATIENCE, async || {
        let status = node.status().await;
        status.is_some_and(|status| {
            let is_all = status.peers >= peers && status.services >= services;
            status.ready && status.converged && is_all
        })
    })
    .await;
    println!("{what}: in the kernel after {} ms", started.elapsed().as_millis());
}

async fn add_peers(node: &Node) {
    for number in 0..PEERS {
        let (high, low) = (number / 250, number % 250);
        let address = format!("172.30.{}.{}", 1 + high, 1 + low);
        // 10.244.1.0/24 and 10.244.2.0/24 are the first two nodes'.
        let (second, third) = (244 + (number + 3) / 256, (number + 3) % 256);
        let range = format!("10.{second}.{third}.0/24");
        node.register(&format!("peer{number}"), &address, &range).await;
    }
}

/// Adds Services, or endpoints to those that are there, up to a number of both.
async fn add_services(node: &Node, before: (usize, usize), after: (usize, usize)) {
    for number in 0..after.0 {
        let name = format!("service{number}");
        let first = if number < before.0 { before.1 } else { 0 };
        if first == 0 {
            add_service(node, &name).await;
        }
        if first < after.1 {
            add_endpoints(node, &name, number, first..after.1).await;
        }
    }
}

async fn add_service(node: &Node, name: &str) {
    let services = ResourcePath::new("v1", "services").namespace("default");
    let ports = json!([{ "port": 80, "targetPort": 8080 }]);
    let object = json!({ "metadata": { "name": name }, "spec": { "ports": ports } });
    let _: Value = node.server.admin.create(&services, &object).await.expect("created");
}

async fn add_endpoints(node: &Node, name: &str, number: usize, which: Range<usize>) {
    let slice = format!("{name}-{}", which.start);
    let endpoints: Vec<Value> = which
        .map(|endpoint| {
            let place = (number * 10 + endpoint) % ENDPOINT_ADDRESSES;
            let address = format!("10.245.{}.{}", place / 240, 2 + place % 240);
            json!({ "addresses": [address], "conditions": { "ready": true } })
        })
        .collect();
    let object = json!({
        "metadata": { "name": slice, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "port": 8080 }],
    });
    let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices");
    let path = slices.namespace("default");
    let _: Value = node.server.admin.create(&path, &object).await.expect("created");
}
