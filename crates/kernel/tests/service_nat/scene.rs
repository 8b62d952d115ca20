//! Two nodes on a wire. The first has Services in eBPF and two pods; the second has a pod, and is
//! at the same time whoever is outside of the cluster.
#![allow(dead_code)] // each module of the tests uses a part

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ebpf_abi::address_bytes;
use ebpf_abi::services::{SCOPE_ADDRESS, SCOPE_NODE_PORT, ServiceKey};
use ipnet::IpNet;
use kernel::bpf::service_nat::{LinkKind, MASQUERADE_PORTS, Options, ServiceNat, Wanted};
use kernel::bpf::services::EbpfDriver;
use kernel::bpf::{Applied, Hook, probe};
use model::{PackedMap, ServiceAcceleration};
use netlink::{Netns, Route};
use render::ebpf::{EbpfProgram, FrontendKey, FrontendProgram, Sizes, View, diff};
use testkit::lab::wait_for_addresses;

use crate::lab::{
    self, Mode, Node, PATIENCE, SILENCE, TestPod, address, node_address, pod_ranges, range,
};

pub const FAMILIES: [usize; 2] = [0, 1];
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// The port of the Services, and that of their endpoints.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;
pub const NODE_PORT: u16 = 30_080;
/// Route protocol of the lab: `static`.
const PROTOCOL: u8 = 4;
/// How often a server looks whether it shall end.
const SERVER_TURN: Duration = Duration::from_millis(20);

/// The address of a Service in each family.
pub fn cluster_ips() -> [IpAddr; 2] {
    ["10.96.0.10", "fd00:96::10"].map(address)
}

/// The addresses of a node on the wire.
pub fn node_addresses(node: u8) -> [IpAddr; 2] {
    [node_address(node), address(&format!("2001:db8::{node}"))]
}

/// The addresses of the first node's end of the tunnel.
pub fn tunnel_addresses() -> [IpAddr; 2] {
    ["10.244.1.254", "fd00:1::fe"].map(address)
}

pub struct Scene {
    pub node: Node,
    pub other: Node,
    /// Pods of the first node.
    pub pods: [TestPod; 2],
    /// A pod of the second.
    pub remote: TestPod,
    pub services: EbpfDriver,
    pub nat: ServiceNat,
    pub options: Options,
    pub wanted: Wanted,
    pub program: EbpfProgram,
}

impl Scene {
    pub fn new(mode: Mode) -> Self {
        Self::with_hook(mode, probe("/sys/fs/bpf".as_ref()).hook)
    }

    pub fn with_hook(mode: Mode, hook: Hook) -> Self {
        Self::with_flows(mode, hook, 16_384)
    }

    pub fn with_flows(mode: Mode, hook: Hook, flows_max: u32) -> Self {
        let (mut node, mut other) = (Node::new(mode), Node::new(Mode::Routed));
        node.set_forwarding(true);
        other.set_forwarding(true);
        let pods = [11, 12].map(|number| node.add_pod(1, number));
        let remote = other.add_pod(2, 21);
        connect(&mut node, &mut other);
        let sizes = Sizes { services: 1024, slots: 1024, clients: 1024, ..Sizes::default() };
        let open = || EbpfDriver::open(&node.file_system, sizes).expect("the maps");
        let services = node.run(open);
        let options = Options {
            file_system: node.file_system.clone(),
            services_maps: services.maps_directory(),
            hook,
            flows_max,
        };
        let load = || ServiceNat::load(&options).unwrap_or_else(|error| panic!("{error}"));
        let nat = node.run(load);
        let pod_links = pods.iter().map(|pod| (pod.link.clone(), LinkKind::Pod));
        let outside = ["eth0", "flatnet.1"].map(|name| (name.to_owned(), LinkKind::Outside));
        let wanted = Wanted {
            links: pod_links.chain(outside).collect(),
            node_addresses: node_addresses(1).into(),
            ports: MASQUERADE_PORTS,
            draining: false,
            uplink: Some("eth0".into()),
            acceleration: ServiceAcceleration::Disabled,
        };
        let program = EbpfProgram {
            frontends: PackedMap::new(),
            node_addresses: node_addresses(1).into(),
            own_pods: pod_ranges(1).into(),
            direct_hosts: BTreeMap::new(),
        };
        let mut scene = Self { node, other, pods, remote, services, nat, options, wanted, program };
        scene.apply();
        scene.write();
        scene
    }

    /// One turn of the programs, which nothing may hinder. Answers what was written.
    pub fn apply(&mut self) -> Vec<String> {
        let Applied { changes, failures } =
            self.node.run(|| self.nat.apply(&self.wanted)).expect("a turn");
        assert_eq!(failures, []);
        changes
    }

    /// Loads the programs again, as the next process.
    pub fn restart(&mut self) {
        let load = || ServiceNat::load(&self.options).expect("the programs");
        self.nat = self.node.run(load);
    }

    /// Makes the maps say what `program` says.
    pub fn write(&mut self) {
        self.node.run(|| {
            let observed = self.services.observe().expect("the maps");
            for op in diff(&self.program, &observed) {
                self.services.apply(&op).expect("an op");
            }
        });
    }

    /// Puts these endpoints, by their addresses, behind frontends of both families and protocols.
    pub fn serve(&mut self, frontend: Frontend, endpoints: &[[IpAddr; 2]]) {
        for family in FAMILIES {
            let endpoints = endpoints.iter().map(|own| SocketAddr::new(own[family], TARGET));
            let view = View::Endpoints(endpoints.map(|endpoint| (endpoint, 1)).collect());
            self.show(frontend, family, &view);
        }
        self.write();
    }

    /// Lets frontends of both families and protocols refuse or drop.
    pub fn close(&mut self, frontend: Frontend, view: &View) {
        FAMILIES.into_iter().for_each(|family| self.show(frontend, family, view));
        self.write();
    }

    fn show(&mut self, frontend: Frontend, family: usize, view: &View) {
        for protocol in [TCP, UDP] {
            let plan = frontend.plan(view, protocol);
            self.program.frontends.insert(&frontend.key(family, protocol), &plan);
        }
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.nat.counters().expect("the counters")[name]
    }
}

/// Addresses, wire, and ways to the other node's pods: of IPv4 by tunnel, of IPv6 direct.
fn connect(node: &mut Node, other: &mut Node) {
    lab::wire(node, other);
    lab::route_between(node, other, false);
    for (node, far) in [(&mut *node, 2), (&mut *other, 1)] {
        let link = node.netlink.require_link("eth0").expect("the uplink").index;
        let gateway = node_addresses(far)[1];
        let route = Route::via(pod_ranges(far)[1], gateway, link, PROTOCOL);
        node.netlink.add_route(&route).expect("a route");
        // Whoever is outside sends to Services' addresses by the first node.
        if far == 1 {
            for (family, services) in ["10.96.0.0/16", "fd00:96::/64"].into_iter().enumerate() {
                let gateway = node_addresses(far)[family];
                let route = Route::via(range(services), gateway, link, PROTOCOL);
                node.netlink.add_route(&route).expect("a route");
            }
        }
    }
    let tunnel = node.netlink.require_link("flatnet.1").expect("the tunnel").index;
    for own in tunnel_addresses() {
        node.netlink.add_address(tunnel, IpNet::from(own)).expect("an address");
    }
    wait_for_addresses(&mut node.netlink, tunnel_addresses()).expect("addresses in use");
}

/// A frontend of the tests, of either family and protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frontend {
    pub is_node_port: bool,
    /// Clients outside have a view of their own.
    pub is_local: bool,
    pub affinity_timeout_s: Option<u32>,
}

impl Frontend {
    pub const CLUSTER_IP: Self =
        Self { is_node_port: false, is_local: false, affinity_timeout_s: None };
    pub const NODE_PORT: Self =
        Self { is_node_port: true, is_local: false, affinity_timeout_s: None };
    pub const LOCAL_NODE_PORT: Self =
        Self { is_node_port: true, is_local: true, affinity_timeout_s: None };

    /// What clients send to.
    pub fn address(self, family: usize) -> SocketAddr {
        if self.is_node_port {
            return SocketAddr::new(node_addresses(1)[family], NODE_PORT);
        }
        SocketAddr::new(cluster_ips()[family], PORT)
    }

    pub fn plan(self, view: &View, protocol: u8) -> FrontendProgram {
        FrontendProgram {
            inside: view.clone(),
            outside: self.is_local.then(|| view.clone()),
            masquerade: self.is_node_port && !self.is_local,
            direct: false,
            affinity_timeout_s: self.affinity_timeout_s,
            source_ranges: None,
            is_node_allowed: true,
            maglev: false,
            has_members: protocol == UDP || self.affinity_timeout_s.is_some(),
        }
    }

    pub fn key(self, family: usize, protocol: u8) -> FrontendKey {
        let own = self.address(family);
        let unspecified = ["0.0.0.0", "::"].map(address)[family];
        let (address, scope) = match self.is_node_port {
            true => (unspecified, SCOPE_NODE_PORT),
            false => (own.ip(), SCOPE_ADDRESS),
        };
        FrontendKey::Port(ServiceKey {
            address: address_bytes(address),
            port: own.port(),
            protocol,
            scope,
        })
    }
}

/// Answers at both protocols with its name and who the client is to it, to each message.
pub struct Server {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(pod: &TestPod) -> Self {
        Self::start_at(&pod.namespace, pod.addresses, TARGET, &pod.link)
    }

    pub fn start_at(namespace: &Netns, own: [IpAddr; 2], port: u16, name: &str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for own in own {
            let own = SocketAddr::new(own, port);
            let open = || (TcpListener::bind(own), UdpSocket::bind(own));
            let (listener, socket) = namespace.run(open).expect("the namespace");
            let (listener, socket) = (listener.expect("a listener"), socket.expect("a socket"));
            let (flag, said) = (ends.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || serve_tcp(&listener, &flag, &said)));
            let (flag, said) = (ends.clone(), name.to_owned());
            threads.push(std::thread::spawn(move || serve_udp(&socket, &flag, &said)));
        }
        Self { ends, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, ends: &AtomicBool, name: &str) {
    listener.set_nonblocking(true).expect("nonblocking");
    let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        while let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(true).expect("nonblocking");
            streams.push((stream, peer));
        }
        streams.retain_mut(|(stream, peer)| {
            let mut piece = [0; 16_384];
            match stream.read(&mut piece) {
                Ok(0) => false,
                Ok(_) => stream.write_all(format!("{name} {peer}").as_bytes()).is_ok(),
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn serve_udp(socket: &UdpSocket, ends: &AtomicBool, name: &str) {
    socket.set_read_timeout(Some(SERVER_TURN)).expect("a timeout");
    let mut piece = [0; 65_536];
    while !ends.load(Ordering::Relaxed) {
        if let Ok((bytes, peer)) = socket.recv_from(&mut piece) {
            let mut answer = format!("{name} {peer}").into_bytes();
            // As much back as came.
            answer.resize(answer.len().max(bytes), b' ');
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// What a server said: its name, and who the client was to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    pub server: String,
    pub client: SocketAddr,
}

pub fn parse(answer: &[u8]) -> Said {
    let text = String::from_utf8_lossy(answer);
    let (server, client) = text.trim().split_once(' ').expect("a name and an address");
    Said { server: server.into(), client: client.parse().expect("an address") }
}

/// A connection in a namespace, to which questions can be put.
pub struct Connection(pub TcpStream);

impl Connection {
    pub fn open(namespace: &Netns, target: SocketAddr) -> io::Result<Self> {
        let connect = || TcpStream::connect_timeout(&target, SILENCE);
        let stream = namespace.run(connect).expect("the namespace")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    pub fn ask(&mut self) -> io::Result<Said> {
        let mut piece = [0; 128];
        self.0.write_all(b"who?")?;
        match self.0.read(&mut piece)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            bytes => Ok(parse(&piece[..bytes])),
        }
    }
}

/// Asks once over a connection of its own.
pub fn ask_tcp(namespace: &Netns, target: SocketAddr) -> io::Result<Said> {
    Connection::open(namespace, target)?.ask()
}

/// A connected UDP socket: it takes answers of its target alone, and learns of ICMP errors.
pub fn udp_to(namespace: &Netns, target: SocketAddr) -> UdpSocket {
    let any = ["0.0.0.0:0", "[::]:0"][usize::from(target.is_ipv6())];
    let open = || UdpSocket::bind(any);
    let socket = namespace.run(open).expect("the namespace").expect("a socket");
    socket.connect(target).expect("connected");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}

pub fn ask_udp(socket: &UdpSocket, bytes: usize) -> io::Result<Said> {
    let mut piece = vec![0; 65_536];
    socket.send(&vec![b'?'; bytes])?;
    let received = socket.recv(&mut piece)?;
    assert!(received >= bytes, "{received} bytes came back");
    Ok(parse(&piece[..received]))
}

/// The servers that answer to so many questions over connections of their own.
pub fn servers_of(namespace: &Netns, target: SocketAddr, times: usize) -> BTreeSet<String> {
    let ask = || ask_tcp(namespace, target).unwrap_or_else(|error| panic!("{target}: {error}"));
    (0..times).map(|_| ask().server).collect()
}
