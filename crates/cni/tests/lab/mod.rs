//! Nodes and pods in network namespaces of their own; all of it goes with the values. Needs root.
#![allow(dead_code)] // each test program uses its part

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kernel::net::NetDriver;
use kernel::nft::NftDriver;
use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::world::Object;
use model::{ClusterConfig, Node, ObjectMeta, Overlay, World};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, VethSpec};
use plan::NodeFacts;
use render::net::NetOp;
use render::nft::NftOp;
use serde_json::{Value, json};
use testkit::lab::probe::uninterrupted;

/// How long any one answer may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
const WIRE_MTU: u32 = 1500;

/// A directory that goes with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("flatnet-cni-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A node: a namespace, a directory for its addresses, and its name.
pub struct LabNode {
    pub namespace: Netns,
    pub name: String,
    pub address: IpAddr,
    pub scratch: Scratch,
}

impl LabNode {
    /// A namespace without any link to others.
    pub fn alone(name: &str, address: IpAddr) -> Self {
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        Self { namespace, name: name.into(), address, scratch: Scratch::new() }
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).expect("a socket in the node")
    }

    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            name: self.name.clone(),
            uplink: model::layout::UPLINK.into(),
            uplink_mtu: WIRE_MTU,
            addresses: vec![self.address],
            ..NodeFacts::default()
        }
    }

    /// One turn of the loop: plan, render, observe, diff, apply. Answers what was written.
    pub fn reconcile(&self, world: &World, config: &ClusterConfig) -> Vec<NetOp> {
        let facts = self.facts();
        let (desired, findings) = plan::node(world, config, &facts);
        assert_eq!(findings, [], "on {}", self.name);
        let program = render::net::render(&desired, config, &facts);
        let work = || {
            let mut driver = NetDriver::open().expect("the driver");
            let before = driver.observe().expect("what is there");
            let ops = render::net::diff(&program, &before);
            let mut believed = before;
            for op in &ops {
                driver.apply(op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
                believed.apply(op).unwrap_or_else(|error| panic!("the fake on {op:?}: {error}"));
            }
            // What the loop believes is what the kernel has, and nothing is left to do.
            let after = driver.observe().expect("what is there now");
            assert_eq!(render::net::diff(&program, &after), [], "a second turn writes nothing");
            for (key, value) in &believed.state.sysctls {
                assert_eq!(after.state.sysctls.get(key), Some(value), "{key}");
            }
            believed.state.sysctls.clone_from(&after.state.sysctls);
            assert_eq!(believed, after, "the honest fake and Linux agree");
            ops
        };
        self.namespace.run(work).expect("the node's namespace")
    }

    /// One turn of the loop over the packet rules. Answers what was written.
    pub fn enforce(&self, world: &World, config: &ClusterConfig) -> Vec<NftOp> {
        let facts = self.facts();
        let (desired, _) = plan::node(world, config, &facts);
        let program = render::nft::render(&desired, config, &facts);
        let work = || {
            let mut driver = NftDriver::open().expect("the driver");
            let ops = render::nft::diff(&program, &driver.observe().expect("what is there"));
            for op in &ops {
                driver.apply(op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            }
            let after = driver.observe().expect("what is there now");
            assert_eq!(render::nft::diff(&program, &after), [], "a second turn writes nothing");
            ops
        };
        self.namespace.run(work).expect("the node's namespace")
    }

    /// The plugin's configuration, as the agent writes it, with this node's directory.
    pub fn plugin_config(&self, world: &World, config: &ClusterConfig) -> Value {
        let (desired, _) = plan::node(world, config, &self.facts());
        let network = desired.network.expect("a pod range");
        let list: Value =
            serde_json::from_str(&render::net::conflist(&network)).expect("a configuration list");
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["ipam"]["dataDir"] = json!(self.scratch.0);
        plugin["dataDir"] = json!(self.scratch.0.join("records"));
        plugin
    }

    /// Files of addresses that are reserved on this node.
    pub fn reserved(&self) -> Vec<String> {
        let directory = fs::read_dir(self.scratch.0.join("flatnet"));
        let names = directory.into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.parse::<IpAddr>().ok().map(|_| name)
        });
        names.collect()
    }
}

/// Nodes that share one wire.
pub struct Lab {
    pub world: World,
    pub config: ClusterConfig,
    pub nodes: Vec<LabNode>,
    wire: Netns,
}

impl Lab {
    pub fn new(count: u8, overlay: Overlay) -> Self {
        let wire = Netns::create().expect("a network namespace (these tests need root)");
        let mut switch = Netlink::open_in(&wire).expect("a socket");
        let bridge = BridgeSpec { name: "wire".into(), ..BridgeSpec::default() };
        switch.create_bridge(&bridge).expect("a bridge");
        let bridge = switch.require_link("wire").expect("the bridge").index;
        switch.change_link(bridge, &LinkChange::up()).expect("up");
        drop(switch);
        let mut lab = Self {
            world: World::default(),
            config: ClusterConfig { overlay, ..ClusterConfig::default() },
            nodes: vec![],
            wire,
        };
        for number in 1..=count {
            let address = Ipv4Addr::new(172, 30, 0, number + 1);
            let node = LabNode::alone(&format!("node{number}"), address.into());
            lab.plug_in(&node.namespace, address);
            lab.world.set(node_object(&node.name, &node.address.to_string(), number));
            lab.nodes.push(node);
        }
        lab
    }

    /// One turn of every node's loop.
    pub fn reconcile(&self) -> Vec<Vec<NetOp>> {
        self.nodes.iter().map(|node| node.reconcile(&self.world, &self.config)).collect()
    }

    /// One turn of every node's loop over the packet rules.
    pub fn enforce(&self) -> Vec<Vec<NftOp>> {
        self.nodes.iter().map(|node| node.enforce(&self.world, &self.config)).collect()
    }

    /// A machine on the node network that is no node.
    pub fn stranger(&self, last_octet: u8) -> Netns {
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        self.plug_in(&namespace, Ipv4Addr::new(172, 30, 0, last_octet));
        namespace
    }

    fn plug_in(&self, namespace: &Netns, address: Ipv4Addr) {
        let mut switch = Netlink::open_in(&self.wire).expect("a socket");
        let bridge = switch.require_link("wire").expect("the bridge").index;
        let port = format!("port{}", address.octets()[3]);
        let pair = VethSpec::new(&port, model::layout::UPLINK)
            .peer_in(namespace)
            .mtu(WIRE_MTU)
            .master(bridge);
        switch.create_veth(&pair).expect("a wire to the machine");
        let port = switch.require_link(&port).expect("the port").index;
        switch.change_link(port, &LinkChange::up()).expect("up");
        let mut inside = Netlink::open_in(namespace).expect("a socket");
        for name in [model::layout::UPLINK, "lo"] {
            let link = inside.require_link(name).expect("the link").index;
            inside.change_link(link, &LinkChange::up()).expect("up");
        }
        let uplink = inside.require_link(model::layout::UPLINK).expect("the uplink").index;
        let prefix = format!("{address}/24").parse().expect("a prefix");
        inside.add_address(uplink, prefix).expect("the machine's address");
    }

    /// Adds a pod to a node through the plugin.
    pub fn add_pod(&self, node: usize, name: &str) -> Pod {
        self.add_pod_with(node, name, |_| ())
    }

    /// Adds a pod that may say that it is anybody.
    pub fn add_liar(&self, node: usize, name: &str) -> Pod {
        self.add_pod_with(node, name, |config| config["antiSpoofing"] = json!(false))
    }

    fn add_pod_with(&self, node: usize, name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let node = &self.nodes[node];
        let pod = Pod::new(name);
        let mut config = node.plugin_config(&self.world, &self.config);
        change(&mut config);
        let answer = pod.call("ADD", &node.namespace, &config);
        pod.with_addresses(&answer.expect("ADD"))
    }
}

/// A node object with the pod range `10.244.NUMBER.0/24`.
pub fn node_object(name: &str, address: &str, number: u8) -> Object {
    node_with_ranges(name, address, &[&format!("10.244.{number}.0/24")])
}

/// A node object with these pod ranges.
pub fn node_with_ranges(name: &str, address: &str, ranges: &[&str]) -> Object {
    let kind = "InternalIP".to_owned();
    Object::Node(Arc::new(Node {
        metadata: ObjectMeta { name: name.into(), ..ObjectMeta::default() },
        spec: NodeSpec {
            pod_cidrs: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
            ..NodeSpec::default()
        },
        status: NodeStatus {
            addresses: vec![NodeAddress { kind, address: address.into() }],
            ..NodeStatus::default()
        },
    }))
}

/// A pod: a namespace that the plugin knows by the path of our descriptor, so that nothing is
/// mounted anywhere.
pub struct Pod {
    pub namespace: Netns,
    pub id: String,
    pub address: IpAddr,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    pub fn new(id: &str) -> Self {
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        let address = Ipv4Addr::UNSPECIFIED.into();
        Self { namespace, id: id.into(), address, addresses: vec![] }
    }

    fn with_addresses(mut self, result: &Value) -> Self {
        let list = result["ips"].as_array().expect("a list of addresses");
        let address = |entry: &Value| {
            let text = entry["address"].as_str().and_then(|text| text.split('/').next());
            text.and_then(|text| text.parse().ok()).expect("an address")
        };
        self.addresses = list.iter().map(address).collect();
        self.address = self.addresses[0];
        self
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd())
    }

    /// Runs the plugin's program on a node, as a container runtime does.
    pub fn call(&self, command: &str, node: &Netns, config: &Value) -> Result<Value, Value> {
        let path = self.path();
        call_plugin(
            node,
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &self.id),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", &path),
                ("CNI_PATH", "/opt/cni/bin"),
            ],
            config,
        )
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).expect("a socket in the pod")
    }
}

/// Runs the plugin's program in a node's namespace; `Err` is the error document.
pub fn call_plugin(
    node: &Netns,
    environment: &[(&str, &str)],
    config: &Value,
) -> Result<Value, Value> {
    let environment: BTreeMap<&str, &str> = environment.iter().copied().collect();
    let run = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flatnet-cni"))
            .env_clear()
            .envs(&environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(config.to_string().as_bytes()).expect("written");
        drop(input);
        child.wait_with_output().expect("it ends")
    };
    let output = node.run(run).expect("the node's namespace");
    let text = String::from_utf8(output.stdout).expect("text");
    let document = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("one JSON document: {text:?}"))
    };
    if output.status.success() { Ok(document) } else { Err(document) }
}

/// Sends one datagram of `bytes` bytes and its echo; answers the address that the server saw.
pub fn udp_echo(client: &Netns, server: &Netns, to: IpAddr, bytes: usize) -> IpAddr {
    let server = server.run(|| UdpSocket::bind((to, 0)).expect("bound")).expect("inside");
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let server_address = server.local_addr().expect("its address");
    let client = client.run(|| UdpSocket::bind((any, 0)).expect("bound")).expect("inside");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    }
    let sent: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
    client.send_to(&sent, server_address).expect("sent");
    let mut buffer = vec![0; 65536];
    let (length, from) =
        uninterrupted(|| server.recv_from(&mut buffer)).expect("the datagram arrives");
    assert_eq!(&buffer[..length], sent, "whole");
    server.send_to(&buffer[..length], from).expect("answered");
    let length = uninterrupted(|| client.recv(&mut buffer)).expect("the answer arrives");
    assert_eq!(length, bytes);
    from.ip()
}

/// Sends a body of `bytes` bytes over TCP; answers the address that the server saw.
pub fn tcp_body(client: &Netns, server: &Netns, to: IpAddr, bytes: usize) -> IpAddr {
    let listener = server.run(|| TcpListener::bind((to, 0)).expect("bound")).expect("inside");
    let address = listener.local_addr().expect("its address");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, from) = listener.accept().expect("accepted");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut body = Vec::new();
            stream.read_to_end(&mut body).expect("the body");
            let intact = body.iter().enumerate().all(|(index, byte)| *byte == (index / 7) as u8);
            (from.ip(), body.len(), intact)
        });
        let mut stream = client
            .run(|| TcpStream::connect_timeout(&address, PATIENCE).expect("connected"))
            .expect("inside");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let body: Vec<u8> = (0..bytes).map(|index| (index / 7) as u8).collect();
        stream.write_all(&body).expect("sent");
        drop(stream);
        let (from, length, intact) = receiver.join().expect("received");
        assert_eq!((length, intact), (bytes, true));
        from
    })
}
