//! A node with Services in eBPF at the sockets, two kinds of clients and servers to tell apart.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kernel::bpf::services::EbpfDriver;
use model::{ClusterConfig, NamespacedName};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use render::ebpf::{EbpfOp, Sizes};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testkit::lab::probe::uninterrupted;

use crate::lab::{self, Mode, Node, PATIENCE, SILENCE, TestPod, address};

/// The ports of the servers in each pod.
pub const PORT: u16 = 8080;
/// The Service's addresses; in the client's namespace also of a listener, which hears what is left
/// to the packet path.
pub const CLUSTER_IPS: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
pub const SERVICE_PORT: u16 = 80;
const NODE_ADDRESSES: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

pub struct World {
    pub node: Node,
    pub client: TestPod,
    pub servers: Vec<TestPod>,
    pub driver: EbpfDriver,
    pub cgroup: PathBuf,
    pub config: ClusterConfig,
    pub facts: NodeFacts,
    pub desired: Desired,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Pod,
    Node,
}

impl World {
    pub fn new(cgroup: PathBuf) -> Self {
        let mut node = Node::new(Mode::Routed);
        node.set_forwarding(true);
        let client = node.add_pod(1, 11);
        let servers = vec![node.add_pod(1, 21), node.add_pod(1, 22), node.add_pod(1, 23)];
        let addresses: Vec<IpAddr> = NODE_ADDRESSES.map(address).into();
        // On a link of its own: those of loopback are no source of packets that leave.
        let uplink = BridgeSpec { name: "uplink".into(), mac: None, mtu: None };
        node.netlink.create_bridge(&uplink).expect("an uplink");
        add_addresses(&mut node.netlink, "uplink", &addresses);
        let mut inside = Netlink::open_in(&client.namespace).expect("a socket");
        add_addresses(&mut inside, "lo", &CLUSTER_IPS.map(address));
        let driver = open(&node, Sizes::default());
        let config = ClusterConfig::default();
        let facts = NodeFacts { name: "node1".into(), addresses, ..NodeFacts::default() };
        let desired = Desired { network: Some(network()), ..Desired::default() };
        Self { node, client, servers, driver, cgroup, config, facts, desired }
    }

    /// Makes the maps hold these frontends of one Service, and attaches the programs. Answers the
    /// ops that it took.
    pub fn set(&mut self, frontends: BTreeMap<Frontend, FrontendPlan>) -> Vec<EbpfOp> {
        self.set_plan(ServicePlan { frontends: frontends.into(), ..ServicePlan::default() })
    }

    pub fn set_plan(&mut self, plan: ServicePlan) -> Vec<EbpfOp> {
        self.desired.services = [(NamespacedName::new("shop", "web"), plan)].into();
        let ops = fill(&mut self.driver, &self.desired, &self.config, &self.facts);
        self.driver.attach(&self.cgroup).expect("the kernel takes the programs");
        ops
    }

    pub fn namespace(&self, from: From) -> &Netns {
        match from {
            From::Pod => &self.client.namespace,
            From::Node => &self.node.namespace,
        }
    }

    /// The servers' addresses of a family: 0 is IPv4, 1 is IPv6.
    pub fn endpoints(&self, family: usize) -> BTreeSet<SocketAddr> {
        self.servers.iter().map(|pod| SocketAddr::new(pod.addresses[family], PORT)).collect()
    }

    pub fn listen(&self, family: usize, port: u16) -> Vec<Server> {
        let pods = self
            .servers
            .iter()
            .map(|pod| Server::new(&pod.namespace, SocketAddr::new(pod.addresses[family], port)));
        pods.collect()
    }

    pub fn frontend(&self, family: usize) -> SocketAddr {
        SocketAddr::new(address(CLUSTER_IPS[family]), SERVICE_PORT)
    }

    pub fn node_address(&self, family: usize) -> IpAddr {
        self.facts.addresses[family]
    }
}

pub fn open(node: &Node, sizes: Sizes) -> EbpfDriver {
    node.run(|| EbpfDriver::open(&node.file_system, sizes)).expect("the maps")
}

/// From what is there to what shall be; then nothing differs any more.
pub fn fill(
    driver: &mut EbpfDriver,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Vec<EbpfOp> {
    let program = render::ebpf::render(desired, config, facts);
    let mut believed = driver.observe().expect("the maps");
    let ops = render::ebpf::diff(&program, &believed);
    for op in &ops {
        driver.apply(op).expect("the kernel takes it");
        believed.apply(op).expect("the fake takes it");
    }
    assert_eq!(driver.observe().expect("the maps"), believed, "the fake says what the kernel has");
    assert_eq!(render::ebpf::diff(&program, &believed), []);
    ops
}

/// What a ClusterIP has as its frontends: TCP and UDP of one family.
pub fn cluster_ip(frontend: SocketAddr, plan: &FrontendPlan) -> BTreeMap<Frontend, FrontendPlan> {
    [model::Protocol::Tcp, model::Protocol::Udp]
        .map(|protocol| {
            let (address, port) = (frontend.ip(), frontend.port());
            (Frontend::ClusterIp { address, protocol, port }, plan.clone())
        })
        .into()
}

pub fn to(endpoints: &BTreeSet<SocketAddr>) -> FrontendPlan {
    FrontendPlan::new(Backends::Endpoints(endpoints.clone().into()))
}

/// A TCP and a UDP server at one address, which never wait.
pub struct Server {
    pub address: SocketAddr,
    tcp: TcpListener,
    pub udp: UdpSocket,
}

impl Server {
    pub fn new(namespace: &Netns, address: SocketAddr) -> Self {
        let bind = || (TcpListener::bind(address), UdpSocket::bind(address));
        let (tcp, udp) = namespace.run(bind).expect("the pod");
        let (tcp, udp) = (tcp.expect("a listener"), udp.expect("a socket"));
        tcp.set_nonblocking(true).expect("does not wait");
        udp.set_nonblocking(true).expect("does not wait");
        Self { address, tcp, udp }
    }

    fn has_accepted(&self) -> bool {
        self.tcp.accept().is_ok()
    }

    /// Answers a datagram that is there.
    pub fn answer(&self) -> bool {
        let mut bytes = [0; 64];
        match self.udp.recv_from(&mut bytes) {
            Ok((count, client)) => {
                self.udp.send_to(&bytes[..count], client).expect("an answer");
                true
            }
            Err(_) => false,
        }
    }
}

/// Connects by TCP, and answers who accepted and what the client believes.
pub fn connect(
    namespace: &Netns,
    target: SocketAddr,
    servers: &[Server],
) -> (SocketAddr, SocketAddr) {
    let socket = tcp_socket(namespace, target);
    let result = socket.connect_timeout(&SockAddr::from(target), PATIENCE);
    result.unwrap_or_else(|error| panic!("no connection to {target}: {error}"));
    let peer = socket.peer_addr().expect("a peer").as_socket().expect("of IP");
    let accepted = wait_for(|| servers.iter().find(|server| server.has_accepted()));
    (accepted.expect("one of them accepted").address, peer)
}

pub fn tcp_socket(namespace: &Netns, target: SocketAddr) -> Socket {
    let make = || Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP));
    namespace.run(make).expect("the namespace").expect("a socket")
}

pub fn udp_socket(namespace: &Netns, target: SocketAddr) -> UdpSocket {
    let any: IpAddr = if target.is_ipv4() { address("0.0.0.0") } else { address("::") };
    let socket = namespace.run(|| UdpSocket::bind((any, 0))).expect("the namespace");
    let socket = socket.expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}

/// Sends a datagram, and answers who answered it and whom the client takes it from.
pub fn ask(socket: &UdpSocket, target: SocketAddr, servers: &[Server]) -> (SocketAddr, SocketAddr) {
    socket.send_to(b"question", target).expect("sent");
    heard(socket, servers)
}

/// The same over a connected socket.
pub fn ask_connected(
    namespace: &Netns,
    target: SocketAddr,
    servers: &[Server],
) -> (SocketAddr, SocketAddr) {
    let socket = udp_socket(namespace, target);
    socket.connect(target).expect("connected");
    socket.send(b"question").expect("sent");
    let heard = heard(&socket, servers);
    assert_eq!(socket.peer_addr().expect("a peer"), target, "what the client asked for");
    heard
}

/// Who answers what a socket has sent, and whom the client takes it from.
pub fn heard(socket: &UdpSocket, servers: &[Server]) -> (SocketAddr, SocketAddr) {
    let server = wait_for(|| servers.iter().find(|server| server.answer()));
    let server = server.expect("one of them was asked");
    let (_, from) = uninterrupted(|| socket.recv_from(&mut [0; 64])).expect("an answer");
    (server.address, from)
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn add_addresses(netlink: &mut Netlink, link: &str, addresses: &[IpAddr]) {
    let index = netlink.require_link(link).expect("the link").index;
    netlink.change_link(index, &LinkChange::up()).expect("the link up");
    for address in addresses {
        netlink.add_address(index, (*address).into()).expect("an address");
    }
}

fn network() -> plan::network::NetworkPlan {
    plan::network::NetworkPlan {
        pod_ranges: lab::pod_ranges(1).into(),
        blocks: BTreeSet::new(),
        agent_chooses_addresses: false,
        gateways: vec![],
        mtu: 1500,
        promised_mtu: 1500,
        ends: plan::network::TunnelEnds::default(),
        peers: BTreeMap::new(),
        dns_addresses: vec![],
        uplink: "eth0".into(),
    }
}

/// The errno of a connect that must not succeed.
pub fn refusal(result: io::Result<()>) -> i32 {
    result.expect_err("no connection").raw_os_error().unwrap_or_default()
}
