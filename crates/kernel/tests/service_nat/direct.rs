//! Direct server return: a client outside, two nodes with a wire between them, and a link from the
//! client to each node. The first node, to which the client sends, has no way back to it: what
//! comes back has come past it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::flows::{Flow, FlowKey};
use ebpf_abi::services::{DIRECT_NODE, DIRECT_PODS};
use ipnet::IpNet;
use kernel::bpf::service_nat::{
    LinkKind, MASQUERADE_PORTS, Options, ServiceNat, Wanted, XDP_PASS, XDP_TX,
};
use kernel::bpf::services::EbpfDriver;
use kernel::bpf::{Hook, Passage, Program, probe};
use model::{MacAddress, PackedMap, ServiceAcceleration};
use netlink::{LinkChange, Neighbour, Netlink, Netns, Route, VethSpec, sysctl};
use render::ebpf::{EbpfProgram, FrontendProgram, Sizes, View, diff};
use testkit::lab::wait_for_addresses;

use crate::lab::{self, Mode, Node, TestPod, address, pod_addresses, pod_ranges, range};
use crate::scene::{
    Connection, FAMILIES, Frontend, Said, Server, TARGET, TCP, UDP, ask_tcp, ask_udp,
    node_addresses, tunnel_addresses, udp_to,
};
use crate::uplink::by_tc;
use crate::wire::{ACK, SYN, checksum, frame, octets, packet, read, simple, transport};

/// Route protocol of the lab: `static`.
const PROTOCOL: u8 = 4;
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
/// What a busy machine may take for anything here.
const LONG: Duration = Duration::from_secs(20);
/// More than one packet of the wire.
const LARGE_BYTES: usize = 8000;
/// Enough for windows to open and for segments to be joined on their way.
const STREAM_BYTES: usize = 1 << 20;

/// Packets of IPv4 to pods of other nodes go by the tunnel, or as they are; those of IPv6 do so in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tunnel,
    Plain,
}

/// A node with Services in eBPF.
struct Side {
    node: Node,
    pod: TestPod,
    services: EbpfDriver,
    nat: ServiceNat,
    wanted: Wanted,
    program: EbpfProgram,
}

impl Side {
    fn new(node: Node, pod: TestPod, number: u8, hook: Hook) -> Self {
        let sizes = Sizes { services: 1024, slots: 1024, clients: 1024, ..Sizes::default() };
        let services = node.run(|| EbpfDriver::open(&node.file_system, sizes)).expect("the maps");
        let options = Options {
            file_system: node.file_system.clone(),
            services_maps: services.maps_directory(),
            hook,
            flows_max: 16_384,
        };
        let nat = node.run(|| ServiceNat::load(&options)).unwrap_or_else(|e| panic!("{e}"));
        let links = [
            (pod.link.as_str(), LinkKind::Pod),
            ("out", LinkKind::Outside),
            ("eth0", LinkKind::Nodes),
            ("flatnet.1", LinkKind::Nodes),
        ];
        let wanted = Wanted {
            links: links.map(|(name, kind)| (name.to_owned(), kind)).into(),
            node_addresses: node_addresses(number).into(),
            ports: MASQUERADE_PORTS,
            draining: false,
            uplink: Some("eth0".into()),
            acceleration: ServiceAcceleration::Disabled,
        };
        let program = EbpfProgram {
            frontends: PackedMap::new(),
            node_addresses: node_addresses(number).into(),
            own_pods: pod_ranges(number).into(),
            direct_hosts: direct_hosts(),
        };
        let mut side = Self { node, pod, services, nat, wanted, program };
        let done = side.node.run(|| side.nat.apply(&side.wanted)).expect("a turn");
        assert_eq!(done.failures, []);
        side.write();
        side
    }

    fn write(&mut self) {
        self.node.run(|| {
            let observed = self.services.observe().expect("the maps");
            for op in diff(&self.program, &observed) {
                self.services.apply(&op).expect("an op");
            }
        });
    }

    /// Leads clients of a node port to this endpoint, answered past this node.
    fn serve(&mut self, endpoint: SocketAddr, protocols: &[u8]) {
        let view = View::Endpoints([(endpoint, 1)].into());
        for protocol in [TCP, UDP] {
            let plan = Frontend::NODE_PORT.plan(&view, protocol);
            let plan = FrontendProgram { direct: protocols.contains(&protocol), ..plan };
            let family = usize::from(endpoint.is_ipv6());
            self.program.frontends.insert(&Frontend::NODE_PORT.key(family, protocol), &plan);
        }
        self.write();
    }

    fn counter(&self, name: &str) -> u64 {
        self.nat.counters().expect("the counters")[name]
    }

    /// A frame through one of the loaded programs.
    fn run(&self, program: Program, link: &str, frame: &[u8]) -> (i32, Vec<u8>) {
        let index = Netlink::open_in(&self.node.namespace)
            .and_then(|mut netlink| netlink.require_link(link))
            .expect("a link")
            .index;
        let passage = Passage { link_index: index, came_by: index, mark: 0 };
        let left = self.node.run(|| self.nat.run(program, passage, frame)).expect("a frame");
        (left.verdict, left.frame)
    }
}

/// All nodes and pods of the lab, as each node knows them.
fn direct_hosts() -> BTreeMap<IpNet, u32> {
    let mut hosts = BTreeMap::new();
    for node in [1, 2] {
        hosts.extend(pod_ranges(node).map(|range| (range, DIRECT_PODS)));
        hosts.extend(node_addresses(node).map(|one| (IpNet::from(one), DIRECT_NODE)));
    }
    hosts.extend(tunnel_addresses().map(|one| (IpNet::from(one), DIRECT_NODE)));
    hosts
}

struct Lab {
    /// Where the client sends to.
    first: Side,
    /// Where the endpoint is.
    second: Side,
    client: Netns,
}

/// The client's own addresses, which only the second node knows the way to.
fn client_addresses() -> [IpAddr; 2] {
    ["203.0.113.9", "2001:db8:9::9"].map(address)
}

/// The addresses on the client's link to a node: the node's (1), the client's (2).
fn link_addresses(node: u8, host: u8) -> [IpAddr; 2] {
    [format!("198.51.{node}.{host}"), format!("2001:db8:5{node}::{host}")].map(|one| address(&one))
}

impl Lab {
    fn new(way: Way) -> Self {
        Self::with_hook(way, probe("/sys/fs/bpf".as_ref()).hook)
    }

    fn with_hook(way: Way, hook: Hook) -> Self {
        let (mut one, mut two) = (Node::new(Mode::Routed), Node::new(Mode::Routed));
        one.set_forwarding(true);
        two.set_forwarding(true);
        let (near, far) = (one.add_pod(1, 11), two.add_pod(2, 21));
        lab::wire(&mut one, &mut two);
        lab::route_between(&mut one, &mut two, way == Way::Plain);
        let tunnel = one.netlink.require_link("flatnet.1").expect("the tunnel").index;
        for own in tunnel_addresses() {
            one.netlink.add_address(tunnel, own.into()).expect("an address");
        }
        wait_for_addresses(&mut one.netlink, tunnel_addresses()).expect("addresses in use");
        for (node, far) in [(&mut one, 2), (&mut two, 1)] {
            let link = node.netlink.require_link("eth0").expect("the wire").index;
            let route = Route::via(pod_ranges(far)[1], node_addresses(far)[1], link, PROTOCOL);
            node.netlink.add_route(&route).expect("a route");
        }
        let client = Netns::create().expect("a network namespace");
        connect(&client, &mut one, &mut two);
        let first = Side::new(one, near, 1, hook);
        let second = Side::new(two, far, 2, hook);
        Self { first, second, client }
    }

    /// For what the first node says itself, and what is not answered past it.
    fn add_way_back(&mut self) {
        let netlink = &mut self.first.node.netlink;
        let index = netlink.require_link("out").expect("a link").index;
        for (client, next_hop) in client_addresses().into_iter().zip(link_addresses(1, 2)) {
            let back = Route::via(client.into(), next_hop, index, PROTOCOL);
            netlink.add_route(&back).expect("a route");
        }
    }

    fn far(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.second.pod.addresses[family], TARGET)
    }

    /// Leads clients of both families to the far pod.
    fn serve_far(&mut self, protocols: &[u8]) {
        for family in FAMILIES {
            self.first.serve(self.far(family), protocols);
        }
    }
}

/// Links from the client to both nodes: it sends by the first, and is reached by the second.
fn connect(client: &Netns, one: &mut Node, two: &mut Node) {
    let mut inside = Netlink::open_in(client).expect("a socket");
    let loopback = inside.require_link("lo").expect("loopback").index;
    inside.change_link(loopback, &LinkChange::up()).expect("loopback up");
    for own in client_addresses() {
        inside.add_address(loopback, own.into()).expect("an address");
    }
    // Answers come another way than questions go.
    let loosen = || {
        for key in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
            sysctl::write(key, "0").expect("a parameter");
        }
    };
    for node in [&*one, &*two] {
        node.run(loosen);
    }
    client.run(loosen).expect("the client");
    let no_checks = || sysctl::write("net/ipv6/conf/default/accept_dad", "0");
    client.run(no_checks).expect("the client").expect("a parameter");
    for (node, number) in [(&mut *one, 1), (&mut *two, 2)] {
        let name = format!("to{number}");
        let spec = VethSpec::new("out", &name).peer_in(client).mtu(1500);
        node.netlink.create_veth(&spec).expect("a link");
        for (socket, link, host) in [(&mut node.netlink, "out", 1), (&mut inside, &name, 2)] {
            let index = socket.require_link(link).expect("the link").index;
            socket.change_link(index, &LinkChange::up()).expect("the link up");
            for (own, length) in link_addresses(number, host).into_iter().zip([24, 64]) {
                let own = IpNet::new(own, length).expect("a prefix");
                socket.add_address(index, own).expect("an address");
            }
        }
        let own = |host| link_addresses(number, host);
        wait_for_addresses(&mut node.netlink, own(1)).expect("addresses in use");
        wait_for_addresses(&mut inside, own(2)).expect("addresses in use");
    }
    wait_for_addresses(&mut inside, client_addresses()).expect("addresses in use");
    let to_first = inside.require_link("to1").expect("the link").index;
    let next_hops = link_addresses(1, 1);
    for (family, nodes) in ["192.0.2.0/24", "2001:db8::/64"].map(range).into_iter().enumerate() {
        let route = Route::via(nodes, next_hops[family], to_first, PROTOCOL);
        let route = Route { source: Some(client_addresses()[family]), ..route };
        inside.add_route(&route).expect("a route");
    }
    let out = two.netlink.require_link("out").expect("the link").index;
    for (client, next_hop) in client_addresses().into_iter().zip(link_addresses(2, 2)) {
        let back = Route::via(client.into(), next_hop, out, PROTOCOL);
        two.netlink.add_route(&back).expect("a route");
    }
}

/// Asks until there is an answer or a refusal, for as long as a busy machine may take.
fn patiently<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + LONG;
    loop {
        match ask() {
            Err(error) if is_passing(&error) && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

/// Silence, and what a sender is told once of how much goes.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(libc::EMSGSIZE)
}

fn tcp(client: &Netns, target: SocketAddr) -> io::Result<Said> {
    patiently(|| ask_tcp(client, target))
}

fn udp(client: &Netns, target: SocketAddr, bytes: usize) -> io::Result<Said> {
    let socket = udp_to(client, target);
    patiently(|| ask_udp(&socket, bytes))
}

/// What the server says over TCP and UDP.
fn ask_both(client: &Netns, target: SocketAddr) -> [Said; 2] {
    let tcp = tcp(client, target).unwrap_or_else(|error| panic!("TCP {target}: {error}"));
    let udp = udp(client, target, 10).unwrap_or_else(|error| panic!("UDP {target}: {error}"));
    [tcp, udp]
}

/// Issue 4: the endpoint sees the client's own address, and the client an answer of the frontend,
/// which went past the node that it came to.
#[test]
fn endpoints_elsewhere_answer_clients_past_the_node() {
    for way in [Way::Tunnel, Way::Plain] {
        let mut lab = Lab::new(way);
        let _server = Server::start(&lab.second.pod);
        lab.serve_far(&[TCP, UDP]);
        for family in FAMILIES {
            for said in ask_both(&lab.client, Frontend::NODE_PORT.address(family)) {
                let expected = ("veth21", client_addresses()[family]);
                assert_eq!((said.server.as_str(), said.client.ip()), expected, "{way:?}");
            }
        }
    }
}

/// Sends a megabyte to the endpoint and back, by a connection to the frontend.
fn echo(lab: &Lab, family: usize) {
    let (own, target) = (lab.far(family), Frontend::NODE_PORT.address(family));
    let open = || TcpListener::bind(own).expect("a listener");
    let listener = lab.second.pod.namespace.run(open).expect("the pod");
    let sent: Vec<u8> = (0..STREAM_BYTES).map(|n| n.to_le_bytes()[n % 3]).collect();
    std::thread::scope(|scope| {
        let echo = || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.set_read_timeout(Some(LONG)).expect("a timeout");
            let mut piece = [0; 16_384];
            loop {
                match stream.read(&mut piece).expect("a piece") {
                    0 => break,
                    bytes => stream.write_all(&piece[..bytes]).expect("written"),
                }
            }
        };
        scope.spawn(echo);
        let connect = || TcpStream::connect_timeout(&target, LONG);
        let mut stream = lab.client.run(connect).expect("the client").expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a timeout");
        let mut sending = stream.try_clone().expect("a clone");
        let payload = sent.clone();
        scope.spawn(move || {
            sending.write_all(&payload).expect("written");
            sending.shutdown(std::net::Shutdown::Write).expect("the end");
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("the answer");
        assert!(received == sent, "{} bytes came back", received.len());
    });
}

/// Full segments fit their outer packets, since the endpoint asks for smaller ones: nothing is too
/// large, also where the wire takes no byte more than the client's link.
#[test]
fn streams_go_through_whole_and_no_segment_is_too_large() {
    for (way, wire_mtu) in [(Way::Tunnel, 1600), (Way::Plain, 1500)] {
        let mut lab = Lab::new(way);
        for side in [&mut lab.first, &mut lab.second] {
            let index = side.node.netlink.require_link("eth0").expect("the wire").index;
            let change = LinkChange { mtu: Some(wire_mtu), ..LinkChange::default() };
            side.node.netlink.change_link(index, &change).expect("its MTU");
        }
        lab.serve_far(&[TCP, UDP]);
        for family in FAMILIES {
            echo(&lab, family);
            assert_eq!(lab.first.counter("nat_drop_size"), 0, "{way:?} {family}");
        }
    }
}

/// RFC 1191, RFC 8201: a datagram that is too large with its outer packet is lost, and its sender
/// learns how much goes; from then on it sends fragments of that size, which all arrive.
#[test]
fn senders_of_large_datagrams_learn_how_much_goes() {
    for way in [Way::Tunnel, Way::Plain] {
        let mut lab = Lab::new(way);
        let _server = Server::start(&lab.second.pod);
        for side in [&mut lab.first, &mut lab.second] {
            for link in ["flatnet.1", "eth0"] {
                let index = side.node.netlink.require_link(link).expect("a link").index;
                let mtu = if way == Way::Tunnel && link == "eth0" { 1600 } else { 1500 };
                let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
                side.node.netlink.change_link(index, &change).expect("its MTU");
            }
        }
        lab.serve_far(&[TCP, UDP]);
        lab.add_way_back();
        for (family, bytes) in [(0, 1472), (0, LARGE_BYTES), (1, 1452), (1, LARGE_BYTES)] {
            let context = format!("{way:?} {family} {bytes}");
            let target = Frontend::NODE_PORT.address(family);
            let said = udp(&lab.client, target, bytes);
            let said = said.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(said.client.ip(), client_addresses()[family], "{context}");
        }
        // Of IPv4 by the tunnel or the wire, which take 1500 bytes here.
        assert!(lab.first.counter("nat_drop_size") > 0, "{way:?}");
    }
}

/// Each protocol by itself (`hybrid`), and whose answers never go past the node: a pod of this node
/// answers through it anyway, with the client's address kept; a node of the cluster and an endpoint
/// that is no pod of another node keep the node's address as their source.
#[test]
fn who_takes_no_part_is_masqueraded_or_answered_here() {
    let mut lab = Lab::new(Way::Tunnel);
    let _servers = [Server::start(&lab.second.pod), Server::start(&lab.first.pod)];
    lab.serve_far(&[TCP]);
    let mut done = Vec::new();
    for family in FAMILIES {
        let (client, target) = (client_addresses()[family], Frontend::NODE_PORT.address(family));
        assert_eq!(tcp(&lab.client, target).expect("an answer").client.ip(), client, "TCP");
        done.push((client, target, [tunnel_addresses()[0], node_addresses(1)[1]][family]));
    }
    lab.add_way_back();
    for (family, (client, target, node)) in done.into_iter().enumerate() {
        lab.serve_far(&[TCP]);
        let said = udp(&lab.client, target, 10).expect("an answer");
        assert_eq!(said.client.ip(), node, "UDP of hybrid");
        lab.serve_far(&[TCP, UDP]);
        for said in ask_both(&lab.second.node.namespace, target) {
            assert_eq!(said.client.ip(), node, "a node of the cluster");
        }
        let near = SocketAddr::new(lab.first.pod.addresses[family], TARGET);
        lab.first.serve(near, &[TCP, UDP]);
        for said in ask_both(&lab.client, target) {
            assert_eq!((said.server.as_str(), said.client.ip()), ("veth11", client));
        }
        lab.first.program.direct_hosts.insert(pod_ranges(2)[family], 0);
        lab.serve_far(&[TCP, UDP]);
        for said in ask_both(&lab.client, target) {
            assert_eq!(said.client.ip(), node, "a node that takes no part");
        }
    }
}

/// An endpoint without a process refuses past the node: its reset, and its ICMP error, which names
/// the frontend.
#[test]
fn errors_of_endpoints_come_past_the_node() {
    let mut lab = Lab::new(Way::Tunnel);
    lab.serve_far(&[TCP, UDP]);
    for family in FAMILIES {
        let target = Frontend::NODE_PORT.address(family);
        let error = tcp(&lab.client, target).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let error = udp(&lab.client, target, 10).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

/// what the endpoint's node forgot of a connection it learns again from the next packet.
#[test]
fn connections_go_on_when_the_endpoints_node_forgot_them() {
    let mut lab = Lab::new(Way::Tunnel);
    let _server = Server::start(&lab.second.pod);
    lab.serve_far(&[TCP, UDP]);
    for family in FAMILIES {
        let target = Frontend::NODE_PORT.address(family);
        let mut connection =
            patiently(|| Connection::open(&lab.client, target)).expect("a connection");
        let before = connection.ask().expect("an answer");
        let pin = lab.second.node.file_system.join("flatnet/flows-v1/maps/flows");
        let map = MapData::from_pin(&pin).and_then(Map::from_map_data).expect("the flows");
        let mut flows = HashMap::<_, [u8; FlowKey::BYTES], [u8; Flow::BYTES]>::try_from(map)
            .expect("a map of flows");
        let keys: Vec<_> = flows.keys().flatten().collect();
        assert!(!keys.is_empty());
        for key in keys {
            flows.remove(&key).expect("removed");
        }
        assert_eq!(connection.ask().expect("an answer"), before);
    }
}

/// The same at the hook XDP of the uplink, for a client that comes by it: bit by bit what the programs
/// of `tc` hand on; what grows too large is theirs, who tell its sender.
#[test]
fn packets_are_handed_on_before_the_stack() {
    let mut lab = Lab::new(Way::Plain);
    lab.serve_far(&[TCP, UDP]);
    let first = &mut lab.first;
    first.wanted.acceleration = ServiceAcceleration::Native;
    let done = first.node.run(|| first.nat.apply(&first.wanted)).expect("a turn");
    assert_eq!(done.failures, []);
    let link = first.node.netlink.require_link("eth0").expect("the uplink").index;
    let macs = [mac_of(&lab.first, "eth0"), mac_of(&lab.second, "eth0")];
    for address in node_addresses(2) {
        let neighbour = Neighbour { link_index: link, address, mac: MacAddress(macs[1]) };
        lab.first.node.netlink.set_neighbour(&neighbour).expect("a neighbour");
    }
    let first = &lab.first;
    for family in FAMILIES {
        let client = SocketAddr::new(client_addresses()[family], 40_000);
        let frontend = Frontend::NODE_PORT.address(family);
        for (protocol, begin, flags) in [(TCP, SYN, ACK), (UDP, 0, 0)] {
            let with = |flags, data: &[u8]| {
                let ports = (client.port(), frontend.port());
                let payload = transport(protocol, ports, flags, data);
                frame(macs[0], &packet(client.ip(), frontend.ip(), protocol, &payload))
            };
            let by_tc = |bytes: &[u8]| first.node.run(|| by_tc(&first.nat, link, bytes, macs));
            let by_xdp = |bytes: &[u8]| first.node.run(|| first.nat.run_uplink(link, bytes));
            by_tc(&with(begin, b""));
            let bytes = with(flags, b"some data");
            let expected = by_tc(&bytes);
            assert!(expected.len() > bytes.len());
            assert_eq!(by_xdp(&bytes), Ok((XDP_TX, expected)), "{family} {protocol}");
            // Fits the wire of 1600 bytes by itself alone.
            let headers = [20, 40][family] + if protocol == TCP { 24 } else { 8 };
            let large = with(flags, &vec![7; 1590 - headers]);
            assert_eq!(by_xdp(&large), Ok((XDP_PASS, large)), "{family} {protocol}");
        }
    }
}

/// A packet as a node hands it on.
fn handed(node: IpAddr, frontend: SocketAddr, inner: &[u8]) -> Vec<u8> {
    let mut outer = Vec::new();
    if node.is_ipv4() {
        outer.extend([0x47, 0]);
        outer.extend(u16::try_from(inner.len() + 28).expect("short").to_be_bytes());
        outer.extend([0, 0, 0x40, 0, 64, 4, 0, 0]);
        outer.extend(octets(node));
        outer.extend(&inner[16..20]);
        outer.extend([0x9e, 8]);
        outer.extend(frontend.port().to_be_bytes());
        outer.extend(octets(frontend.ip()));
        let sum = checksum(&[&outer]);
        outer[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        outer.extend([0x60, 0, 0, 0]);
        outer.extend(u16::try_from(inner.len() + 24).expect("short").to_be_bytes());
        outer.extend([60, 64]);
        outer.extend(octets(node));
        outer.extend(&inner[24..40]);
        outer.extend([41, 2, 0x1e, 20]);
        outer.extend(frontend.port().to_be_bytes());
        outer.extend([0, 0]);
        outer.extend(octets(frontend.ip()));
    }
    outer.extend(inner);
    outer
}

/// The first segment of a connection.
fn first_segment(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let payload = transport(TCP, (source.port(), destination.port()), SYN, b"");
    packet(source.ip(), destination.ip(), TCP, &payload)
}

/// Whether the far pod's answers to a client get another name.
fn is_renamed(side: &Side, client: SocketAddr) -> bool {
    let pod = side.pod.addresses[usize::from(client.is_ipv6())];
    let pod = SocketAddr::new(pod, TARGET);
    let answer = simple(mac_of(side, "out"), TCP, pod, client, SYN | ACK);
    let (_, left) = side.run(Program::ServiceLeave, "out", &answer);
    read(&left).source != pod
}

/// who is no node of the cluster cannot make a pod answer in another's name, nor can a node by
/// a link that is not between nodes, or for who is none of its clients. With the map saying that the
/// attacker is a node, the same packet does it.
#[test]
fn forged_packets_change_nobodys_answers() {
    let mut lab = Lab::new(Way::Tunnel);
    let attackers = ["198.51.100.66", "2001:db8:66::66"].map(address);
    for family in FAMILIES {
        let pod = lab.far(family);
        let side = &mut lab.second;
        let frontend = Frontend::NODE_PORT.address(family);
        let victim = SocketAddr::new(client_addresses()[family], 40_000);
        let (node, attacker) = (node_addresses(1)[family], attackers[family]);
        let near = SocketAddr::new(pod_addresses(1, 11)[family], 40_000);
        let elsewhere = SocketAddr::new(pod_addresses(2, 22)[family], TARGET);
        let first = first_segment(victim, pod);
        let mut to_another = handed(node, frontend, &first_segment(victim, elsewhere));
        let place = if node.is_ipv4() { 16..20 } else { 24..40 };
        to_another[place].copy_from_slice(&octets(pod.ip()));
        let rows = [
            ("a stranger", "flatnet.1", victim, handed(attacker, frontend, &first)),
            ("a stranger, from outside", "out", victim, handed(attacker, frontend, &first)),
            ("a node's address, from outside", "out", victim, handed(node, frontend, &first)),
            ("a node's address, by a pod", "veth21", victim, handed(node, frontend, &first)),
            (
                "a node, for a pod",
                "flatnet.1",
                near,
                handed(node, frontend, &first_segment(near, pod)),
            ),
            ("a node, another pod within", "flatnet.1", victim, to_another),
        ];
        for (name, link, client, forged) in rows {
            let forged = frame(mac_of(side, link), &forged);
            let (verdict, left) = side.run(Program::ServiceEnter, link, &forged);
            let is_whole = verdict == TC_NEXT && left == forged;
            assert!(verdict == TC_DROP || is_whole, "{name}: {verdict}");
            assert!(!is_renamed(side, client), "{name}");
        }
        assert!(side.counter("nat_drop_forged") > 0);
        side.program.direct_hosts.insert(attacker.into(), DIRECT_NODE);
        side.write();
        let forged = frame(mac_of(side, "flatnet.1"), &handed(attacker, frontend, &first));
        let (verdict, left) = side.run(Program::ServiceEnter, "flatnet.1", &forged);
        assert_eq!((verdict, &left[14..]), (TC_NEXT, first.as_slice()));
        assert!(is_renamed(side, victim), "the defence is off");
    }
}

fn mac_of(side: &Side, link: &str) -> [u8; 6] {
    let mut netlink = Netlink::open_in(&side.node.namespace).expect("a socket");
    netlink.require_link(link).expect("a link").mac.expect("a MAC address").0
}
