//! A machine that is to be a node: a network namespace with an uplink that has no well-known
//! name, a default route, and places of its own for all files. All of it goes with the values.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent::{AgentStatus, Api, Options, Places};
use client::ResourcePath;
use model::{ClusterConfig, layout};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use render::inventory::Row;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

use super::server::Server;

/// Longest wait for anything that shall come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The node's name in the API.
pub const NAME: &str = "node1";
pub const ADDRESS: &str = "172.30.0.2";
pub const UPLINK: &str = "uplink7";

/// The machine.
pub struct Node {
    pub directory: PathBuf,
    pub config: ClusterConfig,
    pub server: Server,
    _wire: Netns,
}

/// Runs a test inside a fresh machine, with the API server that knows it and a peer.
pub fn on_a_node(test: impl AsyncFnOnce(&Node) + Send) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("fn-real-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let removed = Removed(directory.clone());
    let namespace = Netns::create().expect("a network namespace (these tests need root)");
    let wire = Netns::create().expect("a network namespace");
    plug_in(&namespace, &wire);
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tasks = LocalSet::new();
        tasks.block_on(&runtime.expect("a runtime"), async {
            let config = ClusterConfig::default();
            let server = Server::start(&directory, &config, NAME).await;
            let node = Node { directory, config, server, _wire: wire };
            node.register(NAME, ADDRESS, "10.244.1.0/24").await;
            node.register("node2", "172.30.0.3", "10.244.2.0/24").await;
            test(&node).await;
            node.server.stop().await;
        });
    };
    namespace.run(work).expect("the node's namespace");
    drop(removed);
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn plug_in(namespace: &Netns, wire: &Netns) {
    let mut other = Netlink::open_in(wire).expect("a socket");
    let pair = VethSpec::new("port", UPLINK).peer_in(namespace).mtu(1500);
    other.create_veth(&pair).expect("a wire");
    let port = other.require_link("port").expect("the port").index;
    other.change_link(port, &LinkChange::up()).expect("up");
    let mut own = Netlink::open_in(namespace).expect("a socket");
    for name in [UPLINK, "lo"] {
        let index = own.require_link(name).expect("the link").index;
        own.change_link(index, &LinkChange::up()).expect("up");
    }
    let index = own.require_link(UPLINK).expect("the uplink").index;
    own.add_address(index, format!("{ADDRESS}/24").parse().expect("a prefix")).expect("added");
}

impl Node {
    /// Makes a Node object, as a kubelet and the node range controller do.
    pub async fn register(&self, name: &str, address: &str, range: &str) {
        let nodes = ResourcePath::new("v1", "nodes");
        let object = json!({
            "metadata": { "name": name },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        });
        let _: Value = self.server.admin.create(&nodes, &object).await.expect("created");
        let mut object: Value =
            self.server.admin.get(&nodes.clone().name(name)).await.expect("there");
        object["status"]["addresses"] = json!([{ "type": "InternalIP", "address": address }]);
        let path = nodes.name(name);
        let _: Value = self.server.admin.update_status(&path, &object).await.expect("its status");
    }

    /// How the agent is called here.
    pub fn options(&self) -> Options {
        let binary = self.directory.join("flatnet-cni");
        if !binary.exists() {
            std::fs::copy("/bin/true", &binary).expect("some program");
        }
        Options {
            node_name: NAME.into(),
            api: Api::ServiceAccount {
                server: self.server.url.clone(),
                directory: Some(self.server.account.clone()),
            },
            config: self.config.clone(),
            uplink: None,
            cni_binary: binary,
            path_test_period: Duration::from_secs(600),
            places: self.places(),
        }
    }

    /// This machine's directories.
    pub fn places(&self) -> Places {
        Places {
            run: self.directory.join("run"),
            cni_configuration: self.directory.join("net.d"),
            cni_plugin: self.directory.join("bin"),
            ipam: self.directory.join("networks"),
            records: self.directory.join("records"),
            wireguard_keys: self.directory.join("wireguard"),
            dns_zone: self.directory.join("dns"),
        }
    }

    /// Starts an agent and waits until pods can be added.
    pub async fn start_agent(&self) -> Running {
        let running = Running::start(self.options());
        eventually("the agent is ready", PATIENCE, async || {
            assert!(!running.task.is_finished(), "the agent ended");
            self.status().await.is_some_and(|status| status.ready && status.converged)
        })
        .await;
        running
    }

    pub async fn status(&self) -> Option<AgentStatus> {
        serde_json::from_str(&self.ask("/status").await?).ok()
    }

    pub async fn rows(&self) -> Vec<Row> {
        let text = self.ask("/network").await.expect("an answer");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The body of the agent's answer on its private socket.
    pub async fn ask(&self, path: &str) -> Option<String> {
        let socket = self.directory.join("run").join(agent::STATUS_SOCKET);
        let mut stream = tokio::net::UnixStream::connect(socket).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_owned())
    }

    /// The plugin's configuration, from the list that the agent installed.
    pub fn plugin_config(&self) -> Value {
        let file = self.directory.join("net.d").join(layout::CNI_CONFIGURATION_FILE);
        let text = std::fs::read_to_string(file).expect("the configuration list");
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["ipam"]["dataDir"] = json!(self.directory.join("networks"));
        plugin["dataDir"] = json!(self.directory.join("records"));
        plugin
    }

    /// Adds a pod, as a container runtime does.
    pub fn add_pod(&self, name: &str) -> Pod {
        self.add_pod_with(name, |_| {})
    }

    /// The same with a changed configuration of the plugin.
    pub fn add_pod_with(&self, name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut config = self.plugin_config();
        change(&mut config);
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
        let answer = cni::run(variable, config.to_string().as_bytes());
        assert!(answer.success, "{}", answer.text);
        let result: Value = serde_json::from_str(&answer.text).expect("a result");
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address = address.and_then(|text| text.parse().ok()).expect("an address");
        Pod { namespace, address }
    }
}

/// A pod.
pub struct Pod {
    pub namespace: Netns,
    pub address: IpAddr,
}

impl Pod {
    /// Whether a datagram of this pod is answered by another.
    pub fn reaches(&self, other: &Pod) -> bool {
        let bind = |pod: &Pod| {
            let address = pod.address;
            let bound = pod.namespace.run(move || UdpSocket::bind((address, 0)));
            let socket = bound.expect("the pod").expect("bound");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            socket
        };
        let (client, server) = (bind(self), bind(other));
        let to = server.local_addr().expect("an address");
        let mut buffer = [0; 16];
        client.send_to(b"question", to).is_ok()
            && server
                .recv_from(&mut buffer)
                .is_ok_and(|(length, from)| server.send_to(&buffer[..length], from).is_ok())
            && client.recv(&mut buffer).is_ok()
    }
}

/// An agent at work.
pub struct Running {
    stop: watch::Sender<bool>,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub fn start(options: Options) -> Self {
        let (stop, stopping) = watch::channel(false);
        let task = tokio::task::spawn_local(agent::run(options, stopping));
        Self { stop, task }
    }

    /// As SIGTERM does.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends");
        ended.expect("no panic").expect("no error");
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a program of the system in the namespace of the test.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The times and names of files in a directory.
pub fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).expect("a file")
}
