//! Two machines that are nodes, on one wire whose faults the test chooses, each with its agent, and
//! the API server on the loopback of the machine that the test runs on. All of it goes with the
//! value.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::{AgentStatus, Api, Options, PathRow, Places};
use client::{ListOptions, ResourcePath};
use model::layout::{self, UPLINK};
use model::{ClusterConfig, Family, Overlay};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, VethSpec};
use serde_json::{Value, json};
use testkit::lab::wait_for_addresses;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::server::Server;

/// Longest wait for anything that shall come.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for a datagram: it is on its way, or lost.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Pairs are tested again after this.
pub const PATH_TEST_PERIOD: Duration = Duration::from_secs(2);

pub struct Lab {
    pub nodes: Vec<Machine>,
    pub wire: Netns,
    family: Family,
    pub server: Server,
    directory: PathBuf,
}

/// A node with its agent.
pub struct Machine {
    pub namespace: Arc<Netns>,
    pub directory: PathBuf,
    pub options: Options,
    /// What the agent's thread does before it begins, as mounting what it takes for the node's own.
    pub prepare: fn(&Path),
    agent: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

/// Runs a test with two nodes of IPv4 whose agents are not started yet.
pub fn with_two_nodes(overlay: Overlay, test: impl AsyncFnOnce(&mut Lab)) {
    with_two_nodes_of(Family::V4, overlay, test);
}

/// The same of one family or the other.
pub fn with_two_nodes_of(family: Family, overlay: Overlay, test: impl AsyncFnOnce(&mut Lab)) {
    let config = ClusterConfig { overlay, ..ClusterConfig::default() };
    with_two_nodes_as(family, config, test);
}

/// The same with more of the configuration.
pub fn with_two_nodes_as(
    family: Family,
    mut config: ClusterConfig,
    test: impl AsyncFnOnce(&mut Lab),
) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("fn-paths-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        if family == Family::V6 {
            let range = |text: &str| vec![text.parse().expect("a range")];
            config.pod_cidrs = range("fd00:10:244::/48");
            config.service_cidrs = range("fd00:10:96::/112");
            config.node_cidrs = range("fd00:172:30::/64");
        }
        let server = Server::start(&directory, &config, "node1").await;
        let wire = Netns::create().expect("a network namespace (these tests need root)");
        let mut switch = Netlink::open_in(&wire).expect("a socket");
        switch
            .create_bridge(&BridgeSpec { name: "wire".into(), ..BridgeSpec::default() })
            .expect("a bridge");
        let bridge = switch.require_link("wire").expect("the bridge").index;
        switch.change_link(bridge, &LinkChange::up()).expect("up");
        let mut lab = Lab { nodes: vec![], family, wire, server, directory };
        for number in [1, 2] {
            lab.add_node(number, &config).await;
        }
        test(&mut lab).await;
        for node in &mut lab.nodes {
            node.stop();
        }
        lab.server.stop().await;
        let _ = std::fs::remove_dir_all(&lab.directory);
    });
}

impl Lab {
    async fn add_node(&mut self, number: u8, config: &ClusterConfig) {
        let name = format!("node{number}");
        let address = self.address(number + 1);
        let namespace = Arc::new(self.machine(number + 1));
        self.register(&name, &address, number).await;
        self.serve_in(&namespace);
        let directory = self.directory.join(&name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let options = self.options(&name, directory.clone(), config);
        let prepare: fn(&Path) = |_| {};
        self.nodes.push(Machine { namespace, directory, options, prepare, agent: None });
    }

    /// The address of a machine.
    fn address(&self, number: u8) -> String {
        match self.family {
            Family::V4 => format!("172.30.0.{number}"),
            Family::V6 => format!("fd00:172:30::{number}"),
        }
    }

    /// A machine on the wire: `172.30.0.NUMBER` by `portNUMBER`.
    pub fn machine(&self, number: u8) -> Netns {
        let namespace = Netns::create().expect("a network namespace");
        let mut switch = Netlink::open_in(&self.wire).expect("a socket");
        let bridge = switch.require_link("wire").expect("the bridge").index;
        let port = format!("port{number}");
        let pair = VethSpec::new(&port, UPLINK).peer_in(&namespace).mtu(1500).master(bridge);
        switch.create_veth(&pair).expect("a wire");
        let port = switch.require_link(&port).expect("the port").index;
        switch.change_link(port, &LinkChange::up()).expect("up");
        let mut own = Netlink::open_in(&namespace).expect("a socket");
        for name in [UPLINK, "lo"] {
            let index = own.require_link(name).expect("the link").index;
            own.change_link(index, &LinkChange::up()).expect("up");
        }
        let index = own.require_link(UPLINK).expect("the uplink").index;
        let length = if self.family == Family::V4 { 24 } else { 64 };
        let prefix = format!("{}/{length}", self.address(number)).parse().expect("a prefix");
        own.add_address(index, prefix).expect("added");
        namespace
    }

    /// Makes a Node object, as a kubelet and the node range controller do.
    pub async fn register(&self, name: &str, address: &str, number: u8) {
        let nodes = ResourcePath::new("v1", "nodes");
        let range = match self.family {
            Family::V4 => format!("10.244.{number}.0/24"),
            Family::V6 => format!("fd00:10:244:{number}::/64"),
        };
        let object = json!({
            "metadata": { "name": name },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        });
        let _: Value = self.server.admin.create(&nodes, &object).await.expect("created");
        let path = nodes.name(name);
        let mut object: Value = self.server.admin.get(&path).await.expect("there");
        object["status"]["addresses"] = json!([{ "type": "InternalIP", "address": address }]);
        let _: Value = self.server.admin.update_status(&path, &object).await.expect("its status");
    }

    /// The API server's port, on the loopback of a node too.
    fn serve_in(&self, namespace: &Netns) {
        let address = self.server.url.strip_prefix("https://").expect("a URL").to_owned();
        let bound = address.clone();
        let listener = namespace.run(move || std::net::TcpListener::bind(bound));
        let listener = listener.expect("the node").expect("the same port");
        listener.set_nonblocking(true).expect("set");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        tokio::task::spawn_local(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let address = address.clone();
                tokio::task::spawn_local(async move {
                    if let Ok(mut far) = tokio::net::TcpStream::connect(address).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
    }

    fn options(&self, name: &str, directory: PathBuf, config: &ClusterConfig) -> Options {
        let cni_binary = directory.join("flatnet-cni");
        std::fs::copy("/bin/true", &cni_binary).expect("some program");
        let places = Places {
            run: directory.join("run"),
            cni_configuration: directory.join("net.d"),
            cni_plugin: directory.join("bin"),
            ipam: directory.join("networks"),
            records: directory.join("records"),
            wireguard_keys: directory.join("wireguard"),
            dns_zone: directory.join("dns"),
        };
        let api = Api::ServiceAccount {
            server: self.server.url.clone(),
            directory: Some(self.server.account.clone()),
        };
        Options {
            node_name: name.into(),
            api,
            config: config.clone(),
            uplink: None,
            cni_binary,
            path_test_period: PATH_TEST_PERIOD,
            places,
        }
    }

    pub fn start_agents(&mut self) {
        self.nodes.iter_mut().for_each(Machine::start);
    }

    /// Runs a command on the wire.
    pub fn on_wire(&self, command: &str) {
        run_in(&self.wire, command);
    }

    /// The Node object.
    pub async fn node(&self, name: &str) -> Value {
        self.server.admin.get(&ResourcePath::new("v1", "nodes").name(name)).await.expect("the Node")
    }

    /// Changes one annotation of a Node, as `kubectl annotate` does.
    pub async fn annotate(&self, name: &str, key: &str, value: Value) {
        let path = ResourcePath::new("v1", "nodes").name(name);
        let patch = json!({ "metadata": { "annotations": { key: value } } });
        let kind = client::PatchKind::Merge;
        let _: Value = self.server.admin.patch(&path, kind, &patch).await.expect("patched");
    }

    /// The condition of the self-test.
    pub async fn condition(&self, name: &str) -> Value {
        self.condition_of(name, "FlatnetPathsReady").await
    }

    /// One condition of a Node.
    pub async fn condition_of(&self, name: &str, kind: &str) -> Value {
        let node = self.node(name).await;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap_or(Value::Null)
    }

    /// What was told in Events.
    pub async fn events(&self) -> Vec<String> {
        let path = ResourcePath::new("v1", "events");
        let list = self.server.admin.list::<Value>(&path, &ListOptions::default()).await;
        let message = |event: Value| event["message"].as_str().unwrap_or_default().to_owned();
        list.expect("events").items.into_iter().map(message).collect()
    }

    /// What a node's agent found of its only peer.
    pub async fn path(&self, node: usize) -> PathRow {
        let status = self.nodes[node].status().await.unwrap_or_default();
        status.paths.first().cloned().unwrap_or_default()
    }
}

impl Machine {
    pub fn start(&mut self) {
        let (stop, stopping) = watch::channel(false);
        let (namespace, options) = (Arc::clone(&self.namespace), self.options.clone());
        let (prepare, directory) = (self.prepare, self.directory.clone());
        let work = move || {
            prepare(&directory);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let run = agent::run(options, stopping);
            LocalSet::new().block_on(&runtime.expect("a runtime"), run).expect("the agent");
        };
        let thread = std::thread::spawn(move || namespace.run(work).expect("the namespace"));
        self.agent = Some((stop, thread));
    }

    /// As SIGTERM does.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.agent.take() {
            stop.send_replace(true);
            thread.join().expect("the agent ends without a panic");
        }
    }

    pub async fn status(&self) -> Option<AgentStatus> {
        serde_json::from_str(&self.ask("/status").await?).ok()
    }

    /// The body of the agent's answer on its private socket.
    pub async fn ask(&self, path: &str) -> Option<String> {
        let socket = self.directory.join("run").join(agent::STATUS_SOCKET);
        let mut stream = tokio::net::UnixStream::connect(socket).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// Runs a command on the node.
    pub fn run(&self, command: &str) -> String {
        run_in(&self.namespace, command)
    }

    /// Adds a pod, as a container runtime does.
    pub fn add_pod(&self, name: &str) -> Pod {
        let file = self.directory.join("net.d").join(layout::CNI_CONFIGURATION_FILE);
        let text = std::fs::read_to_string(file).expect("the configuration list");
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["ipam"]["dataDir"] = json!(self.directory.join("networks"));
        config["dataDir"] = json!(self.directory.join("records"));
        let namespace = Netns::create().expect("a network namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        let variable = |key: &str| {
            let value = match key {
                "CNI_COMMAND" => "ADD",
                "CNI_CONTAINERID" => name,
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => &path,
                "CNI_PATH" => "/opt/cni/bin",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let added = self.namespace.run(|| cni::run(variable, config.to_string().as_bytes()));
        let answer = added.expect("the node");
        assert!(answer.success, "{}", answer.text);
        let result: Value = serde_json::from_str(&answer.text).expect("a result");
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address: IpAddr = address.and_then(|text| text.parse().ok()).expect("an address");
        let mut netlink = Netlink::open_in(&namespace).expect("the pod");
        wait_for_addresses(&mut netlink, [address]).expect("an address in use");
        Pod { namespace, address }
    }
}

/// A pod.
pub struct Pod {
    pub namespace: Netns,
    pub address: IpAddr,
}

impl Pod {
    /// Whether a datagram of this pod arrives at another, the first and only one. Larger ones than
    /// the pod's MTU it sends in fragments of that size.
    pub fn reaches(&self, other: &Pod, bytes: usize) -> bool {
        let bind = |pod: &Pod| {
            let address = pod.address;
            let bound = pod.namespace.run(move || UdpSocket::bind((address, 0)));
            let socket = bound.expect("the pod").expect("bound");
            socket.set_read_timeout(Some(ARRIVAL)).expect("a timeout");
            socket
        };
        let (client, server) = (bind(self), bind(other));
        let to = server.local_addr().expect("an address");
        let mut buffer = vec![0; bytes + 1];
        client.send_to(&buffer[..bytes], to).is_ok()
            && server.recv(&mut buffer).is_ok_and(|length| length == bytes)
    }

    pub fn mtu(&self) -> u32 {
        let mut netlink = Netlink::open_in(&self.namespace).expect("the pod");
        netlink.require_link("eth0").expect("its link").mtu
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{what}: after {} ms", started.elapsed().as_millis());
}

pub fn run_in(namespace: &Netns, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = namespace.run(|| Command::new(words[0]).args(&words[1..]).output());
    let output = output.expect("the namespace").expect("the program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}
