//! What comes before the stack at the uplink (XDP): the same frames as the programs of `tc` make of
//! them, real packets, and what is left to those programs.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kernel::bpf::service_nat::{Options, ServiceNat, Wanted, XDP_PASS, XDP_TX, frames_sent};
use kernel::bpf::services::EbpfDriver;
use kernel::bpf::{Passage, Program};
use model::{MacAddress, ServiceAcceleration};
use netlink::{Neighbour, Route, offload};
use render::ebpf::Sizes;
use render::ebpf::node::UplinkProgram;

use crate::lab::{Mode, Node, address, pod_ranges};
use crate::scene::{
    Connection, FAMILIES, Frontend, Scene, Server, TARGET, TCP, UDP, ask_udp, node_addresses,
    udp_to,
};
use crate::traffic::assert_masqueraded;
use crate::wire::{ACK, FIN, RST, SYN, error, frame, packet, read, seal_ipv4, transport};

/// Route protocol of the lab: `static`.
const PROTOCOL: u8 = 4;
const CLIENT_PORT: u16 = 40_000;
const TC_NEXT: i32 = -1;
/// Questions over one connection.
const QUESTIONS: u64 = 20;
/// Longest wait for the kernel to let go of a link.
const PATIENCE: Duration = Duration::from_secs(10);

/// A scene whose pods elsewhere are reached directly by the uplink, as its clients are.
struct Fast {
    scene: Scene,
    /// The other end of the wire takes what XDP sends only where it has a program too.
    _far: (EbpfDriver, ServiceNat),
    uplink: u32,
    own_mac: [u8; 6],
    far_mac: [u8; 6],
}

impl Fast {
    fn new() -> Self {
        let mut scene = Scene::new(Mode::Routed);
        for (node, far) in [(&mut scene.node, 2), (&mut scene.other, 1)] {
            lead_directly(node, far);
        }
        let far = load_far(&scene.other);
        scene.wanted.acceleration = ServiceAcceleration::Native;
        assert!(scene.apply().contains(&"attached XDP to eth0".to_owned()));
        let uplink = scene.node.netlink.require_link("eth0").expect("the uplink");
        let mac = |link: &netlink::Link| link.mac.expect("a MAC address").0;
        let far_end = scene.other.netlink.require_link("eth0").expect("the far end");
        let (own_mac, far_mac) = (mac(&uplink), mac(&far_end));
        let mut fast = Self { scene, _far: far, uplink: uplink.index, own_mac, far_mac };
        fast.know(MacAddress(far_mac));
        fast
    }

    /// Makes the far end a neighbour for good.
    fn know(&mut self, mac: MacAddress) {
        for address in node_addresses(2) {
            let neighbour = Neighbour { link_index: self.uplink, address, mac };
            self.scene.node.netlink.set_neighbour(&neighbour).expect("a neighbour");
        }
    }

    fn serve_far(&mut self) {
        let far = self.scene.remote.addresses;
        self.scene.serve(Frontend::NODE_PORT, &[far]);
    }

    fn sent(&self) -> u64 {
        let sent = self.scene.nat.sent_at_uplink().expect("the counter");
        // Whoever has not loaded the programs reads the same.
        let read = frames_sent(&self.scene.node.file_system).expect("the counter");
        assert_eq!(read, Some(sent));
        sent
    }

    /// Through both programs of tc and, in between, the stack.
    fn by_tc(&self, bytes: &[u8]) -> Vec<u8> {
        let run = || by_tc(&self.scene.nat, self.uplink, bytes, [self.own_mac, self.far_mac]);
        self.scene.node.run(run)
    }

    fn by_xdp(&self, bytes: &[u8]) -> (u32, Vec<u8>) {
        let run = || self.scene.nat.run_uplink(self.uplink, bytes).expect("a frame");
        self.scene.node.run(run)
    }

    fn to_us(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: u8,
        flags: u8,
    ) -> Vec<u8> {
        let payload = transport(protocol, (source.port(), destination.port()), flags, b"some data");
        frame(self.own_mac, &packet(source.ip(), destination.ip(), protocol, &payload))
    }

    /// Begins a flow of a client, which the endpoint elsewhere answers: answers the client, and what
    /// the endpoint takes for it.
    fn begin(&self, family: usize, protocol: u8, port: u16) -> (SocketAddr, SocketAddr) {
        self.begin_with(self.endpoint(family), protocol, port)
    }

    fn begin_with(
        &self,
        endpoint: SocketAddr,
        protocol: u8,
        port: u16,
    ) -> (SocketAddr, SocketAddr) {
        let family = usize::from(endpoint.is_ipv6());
        let client = SocketAddr::new(node_addresses(2)[family], port);
        let first = self.to_us(client, Frontend::NODE_PORT.address(family), protocol, SYN);
        let found = read(&self.by_tc(&first));
        assert_eq!(found.destination, endpoint);
        let answer = self.to_us(endpoint, found.source, protocol, SYN | ACK);
        assert_eq!(read(&self.by_tc(&answer)).destination, client);
        (client, found.source)
    }

    fn endpoint(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.scene.remote.addresses[family], TARGET)
    }

    fn passes(&self, name: &str, bytes: &[u8]) {
        assert_eq!(self.by_xdp(bytes), (XDP_PASS, bytes.to_vec()), "{name}");
    }
}

/// Leads to the other node's pods of IPv4 by the wire, as to those of IPv6. What leaves is whole
/// before it does: XDP sends frames as it finds them.
fn lead_directly(node: &mut Node, far: u8) {
    let link = node.netlink.require_link("eth0").expect("the uplink").index;
    let route = Route::via(pod_ranges(far)[0], node_addresses(far)[0], link, PROTOCOL);
    node.netlink.replace_route(&route).expect("a route");
    node.run(|| offload::set_tx_checksum("eth0", false)).expect("whole checksums");
}

/// The same program at the other end, which knows no Service.
fn load_far(node: &Node) -> (EbpfDriver, ServiceNat) {
    let sizes = Sizes { services: 16, slots: 16, clients: 16, ..Sizes::default() };
    node.run(|| {
        let services = EbpfDriver::open(&node.file_system, sizes).expect("the maps");
        let options = Options {
            file_system: node.file_system.clone(),
            services_maps: services.maps_directory(),
            hook: kernel::bpf::probe("/sys/fs/bpf".as_ref()).hook,
            flows_max: 16,
        };
        let mut nat = ServiceNat::load(&options).expect("the programs");
        let wanted = Wanted {
            links: [].into(),
            node_addresses: Vec::new(),
            ports: kernel::bpf::service_nat::MASQUERADE_PORTS,
            draining: false,
            uplink: Some("eth0".into()),
            acceleration: ServiceAcceleration::Native,
        };
        assert_eq!(nat.apply(&wanted).expect("a turn").failures, []);
        (services, nat)
    })
}

/// What becomes of a frame that comes and goes by one link, through both programs of `tc` and, in
/// between, the stack, which sends it from one MAC address to the other.
pub fn by_tc(nat: &ServiceNat, link_index: u32, bytes: &[u8], macs: [[u8; 6]; 2]) -> Vec<u8> {
    let run = |program, mark, bytes: &[u8]| {
        let passage = Passage { link_index, came_by: link_index, mark };
        let left = nat.run(program, passage, bytes).expect("a frame that can be run");
        assert_eq!(left.verdict, TC_NEXT, "{program:?}");
        left
    };
    let entered = run(Program::ServiceEnter, 0, bytes);
    let routed = a_hop_further(&entered.frame, macs);
    run(Program::ServiceLeave, entered.mark, &routed).frame
}

fn a_hop_further(bytes: &[u8], [from, to]: [[u8; 6]; 2]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[..6].copy_from_slice(&to);
    bytes[6..12].copy_from_slice(&from);
    if bytes[14] >> 4 == 4 {
        bytes[14 + 8] -= 1;
        seal_ipv4(&mut bytes[14..]);
    } else {
        bytes[14 + 7] -= 1;
    }
    bytes
}

/// Invariant 13: bit by bit what the stack sends with the programs of tc, in both directions, of each
/// family and protocol; also a datagram without a checksum, and the ends of connections.
#[test]
fn frames_leave_as_by_the_programs_of_tc() {
    let mut fast = Fast::new();
    fast.serve_far();
    for family in FAMILIES {
        let frontend = Frontend::NODE_PORT.address(family);
        for (protocol, flags) in [(TCP, ACK), (UDP, 0), (TCP, ACK | FIN), (TCP, RST)] {
            let (client, seen) = fast.begin(family, protocol, CLIENT_PORT);
            let there = fast.to_us(client, frontend, protocol, flags);
            let back = fast.to_us(fast.endpoint(family), seen, protocol, flags);
            let mut frames = vec![there, back];
            if (family, protocol) == (0, UDP) {
                let mut without = frames[0].clone();
                without[14 + 20 + 6..14 + 20 + 8].fill(0);
                frames.push(without);
            }
            for bytes in frames {
                let before = fast.sent();
                let (answer, left) = fast.by_xdp(&bytes);
                assert_eq!(answer, XDP_TX, "{family} {protocol} {flags}");
                assert_eq!(left, fast.by_tc(&bytes), "{family} {protocol} {flags}");
                assert_eq!(fast.sent(), before + 1);
            }
        }
    }
}

/// Real packets: an endpoint elsewhere answers as it does without, and all but the beginnings of flows
/// are sent before the stack. Switched off and on under a connection, it goes on.
#[test]
fn clients_outside_reach_endpoints_elsewhere_before_the_stack() {
    let mut fast = Fast::new();
    let _server = Server::start(&fast.scene.remote);
    fast.serve_far();
    for family in FAMILIES {
        let target = Frontend::NODE_PORT.address(family);
        let client = &fast.scene.other.namespace;
        let mut connection = Connection::open(client, target).expect("a connection");
        let socket = udp_to(client, target);
        let mut ask =
            || [connection.ask(), ask_udp(&socket, 10)].map(|said| said.expect("an answer"));
        let first = ask();
        for said in &first {
            assert_masqueraded(said, node_addresses(1)[family], "before the stack");
        }
        let before = fast.sent();
        (0..QUESTIONS).for_each(|_| assert_eq!(ask(), first));
        assert!(fast.sent() - before >= 4 * QUESTIONS, "{} were sent", fast.sent() - before);
        fast.scene.wanted.acceleration = ServiceAcceleration::Disabled;
        assert_eq!(fast.scene.apply(), [format!("detached XDP from link number {}", fast.uplink)]);
        let before = fast.sent();
        assert_eq!(ask(), first);
        assert_eq!(fast.sent(), before);
        fast.scene.wanted.acceleration = ServiceAcceleration::Native;
        assert_eq!(fast.scene.apply(), ["attached XDP to eth0"]);
        assert_eq!(ask(), first);
        assert!(fast.sent() > before);
    }
}

/// What is not plainly a packet of a known flow that leaves as it came is left as it is to the
/// programs of tc and the stack. Each row but for its one difference would be sent.
#[test]
fn all_else_passes_as_it_came() {
    let mut fast = Fast::new();
    fast.serve_far();
    for family in FAMILIES {
        let frontend = Frontend::NODE_PORT.address(family);
        let (client, seen) = fast.begin(family, UDP, CLIENT_PORT);
        fast.begin(family, TCP, CLIENT_PORT);
        let good = fast.to_us(client, frontend, UDP, 0);
        assert_eq!(fast.by_xdp(&good).0, XDP_TX);
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            if family == 0 && bytes.len() > 34 {
                seal_ipv4(&mut bytes[14..34]);
            }
            bytes
        };
        let stranger = SocketAddr::new(client.ip(), CLIENT_PORT + 1);
        let large = transport(UDP, (client.port(), frontend.port()), 0, &[7; 1600]);
        let large = frame(fast.own_mac, &packet(client.ip(), frontend.ip(), UDP, &large));
        let about = packet(frontend.ip(), client.ip(), UDP, &transport(UDP, (1, 2), 0, b"data"));
        let refused = error(client.ip(), frontend.ip(), [3, 1][family], &about);
        let rows = [
            ("begins a connection", fast.to_us(client, frontend, TCP, SYN)),
            ("answers its beginning", fast.to_us(fast.endpoint(family), seen, TCP, SYN | ACK)),
            ("of no flow", fast.to_us(stranger, frontend, UDP, 0)),
            ("an answer to nobody", fast.to_us(fast.endpoint(family), frontend, UDP, 0)),
            ("at the end of its way", changed(&|bytes| bytes[14 + [8, 7][family]] = 1)),
            ("for another station", changed(&|bytes| bytes[5] ^= 1)),
            ("with a tag", changed(&|bytes| bytes[12..14].copy_from_slice(&[0x81, 0]))),
            ("shorter than it says", changed(&|bytes| bytes.truncate(bytes.len() - 1))),
            (
                "cut off within its ports",
                changed(&|bytes| bytes.truncate([14 + 22, 14 + 42][family])),
            ),
            (
                "with options",
                changed(&|bytes| match family {
                    0 => bytes[14] = 0x46,
                    _ => bytes[14 + 6] = 60,
                }),
            ),
            (
                "a fragment",
                changed(&|bytes| match family {
                    0 => bytes[14 + 6] = 0x20,
                    _ => bytes[14 + 6] = 44,
                }),
            ),
            (
                "within another packet",
                changed(&|bytes| bytes[14 + [9, 6][family]] = [4, 41][family]),
            ),
            ("more than fits", large),
            ("an error", frame(fast.own_mac, &refused)),
        ];
        for (name, bytes) in rows {
            fast.passes(&format!("{name} {family}"), &bytes);
        }
        let unanswered = SocketAddr::new(client.ip(), CLIENT_PORT + 2);
        let first = fast.to_us(unanswered, frontend, UDP, 0);
        fast.by_tc(&first);
        fast.passes("not answered yet", &first);
        assert_eq!(fast.by_xdp(&good).0, XDP_TX);
    }
}

/// An IPv6 packet with addresses that stand for IPv4 in the maps is none of IPv4's flows.
#[test]
fn mapped_addresses_on_the_wire_are_nobodys_flow() {
    let mut fast = Fast::new();
    fast.serve_far();
    let (client, _) = fast.begin(0, UDP, CLIENT_PORT);
    let frontend = Frontend::NODE_PORT.address(0);
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => SocketAddr::new(address.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => panic!("{end} is of IPv4"),
    };
    assert_eq!(fast.by_xdp(&fast.to_us(client, frontend, UDP, 0)).0, XDP_TX);
    fast.passes("mapped", &fast.to_us(mapped(client), mapped(frontend), UDP, 0));
}

/// Endpoints of this node and behind a tunnel are the stack's, and so is what has no neighbour yet
/// or no way: as soon as there is one it is sent.
#[test]
fn what_leaves_by_another_link_or_not_yet_passes() {
    let mut fast = Fast::new();
    let here = fast.scene.pods[1].addresses;
    fast.serve_far();
    for family in FAMILIES {
        let (client, _) = fast.begin(family, TCP, CLIENT_PORT);
        let good = fast.to_us(client, Frontend::NODE_PORT.address(family), TCP, ACK);
        let link = fast.scene.node.netlink.require_link("flatnet.1").expect("the tunnel").index;
        let range = pod_ranges(2)[family];
        let netlink = &mut fast.scene.node.netlink;
        netlink.replace_route(&Route::on_link(range, link, PROTOCOL)).expect("a route");
        fast.passes("by the tunnel", &good);
        let netlink = &mut fast.scene.node.netlink;
        let next_hop = address(["192.0.2.77", "2001:db8::77"][family]);
        let route = Route::via(range, next_hop, fast.uplink, PROTOCOL);
        netlink.replace_route(&route).expect("a route");
        fast.passes("without a neighbour", &good);
        let mac = MacAddress(fast.far_mac);
        let neighbour = Neighbour { link_index: fast.uplink, address: next_hop, mac };
        fast.scene.node.netlink.set_neighbour(&neighbour).expect("a neighbour");
        assert_eq!(fast.by_xdp(&good).0, XDP_TX);
    }
    fast.scene.serve(Frontend::NODE_PORT, &[here]);
    for family in FAMILIES {
        let endpoint = SocketAddr::new(here[family], TARGET);
        let (client, _) = fast.begin_with(endpoint, UDP, CLIENT_PORT + 1);
        let good = fast.to_us(client, Frontend::NODE_PORT.address(family), UDP, 0);
        fast.passes("an endpoint here", &good);
    }
}

/// a restart writes nothing; what somebody detaches comes back; switched off it
/// goes, and without Services nothing is left.
#[test]
fn it_is_kept_and_goes() {
    let mut fast = Fast::new();
    fast.scene.restart();
    assert_eq!(fast.scene.apply(), Vec::<String>::new());
    assert_eq!(state(&mut fast), UplinkProgram::Attached);
    let pin = format!("flatnet/flows-v1/links/{}-service_uplink", fast.uplink);
    let pin = fast.scene.node.file_system.join(pin);
    std::fs::remove_file(&pin).expect("the pin");
    // The kernel detaches what somebody unpinned some time later, and the link is taken so long.
    let deadline = Instant::now() + PATIENCE;
    let changes = loop {
        let Scene { node, nat, wanted, .. } = &mut fast.scene;
        let done = node.run(|| nat.apply(wanted)).expect("a turn");
        if done.failures.is_empty() {
            break done.changes;
        }
        assert!(Instant::now() < deadline, "{:?}", done.failures);
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(changes, ["attached XDP to eth0"]);
    assert!(pin.exists());
    fast.scene.wanted.acceleration = ServiceAcceleration::Disabled;
    fast.scene.apply();
    assert!(!pin.exists());
    assert_eq!(state(&mut fast), UplinkProgram::Absent);
}

fn state(fast: &mut Fast) -> UplinkProgram {
    let Scene { node, nat, wanted, .. } = &mut fast.scene;
    node.run(|| nat.uplink(wanted)).expect("what is there")
}

/// A device without the hook, one that another program has, and a veth: which is a fault only where
/// it was asked for without condition. Packets take the path of tc all the same.
#[test]
fn what_cannot_be_accelerated_says_so_and_goes_on() {
    let mut fast = Fast::new();
    fast.scene.wanted.acceleration = ServiceAcceleration::BestEffort;
    let changes = fast.scene.apply();
    assert_eq!(changes, [format!("detached XDP from link number {}", fast.uplink)]);
    let UplinkProgram::Refused(reason) = state(&mut fast) else { panic!("a veth") };
    assert!(reason.starts_with("eth0 is a veth"), "{reason}");
    assert_eq!(fast.scene.apply(), Vec::<String>::new());

    fast.scene.wanted.uplink = Some("flatnet.1".into());
    fast.scene.apply();
    let UplinkProgram::Refused(reason) = state(&mut fast) else { panic!("a tunnel") };
    assert!(reason.contains("flatnet.1") && reason.contains("os error 95"), "{reason}");
    fast.scene.wanted.acceleration = ServiceAcceleration::Native;
    let Scene { node, nat, wanted, .. } = &mut fast.scene;
    let done = node.run(|| nat.apply(wanted)).expect("a turn");
    assert_eq!(done.failures.len(), 1);
    assert_eq!(done.failures[0].errno, libc::EOPNOTSUPP);

    let _server = Server::start(&fast.scene.remote);
    fast.serve_far();
    for family in FAMILIES {
        let target = Frontend::NODE_PORT.address(family);
        let said = ask_udp(&udp_to(&fast.scene.other.namespace, target), 10).expect("an answer");
        assert_masqueraded(&said, node_addresses(1)[family], "by tc");
    }
}
