//! Single frames through the loaded programs: each field of what they leave, checksums included.

use std::net::{IpAddr, SocketAddr};

use ebpf_abi::flows::{self, Flow, FlowKey, NAT_MARK, PORT_TRIES_MAX};
use kernel::bpf::service_nat::MASQUERADE_PORTS;
use kernel::bpf::{Left, Passage, Program};
use render::ebpf::View;

use crate::lab::{Mode, pod_addresses};
use crate::scene::{FAMILIES, Frontend, PORT, Scene, TARGET, TCP, UDP, node_addresses};
use crate::wire::{
    ACK, FIN, RST, Read, SCTP, SYN, error, frame, packet, read, read_packet, simple, transport,
};

const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
const TC_REDIRECT: i32 = 7;
const CLIENT_PORT: u16 = 40_000;
const ROUNDS: u16 = 300;
/// A mark that is not ours.
const OTHERS_MARK: u32 = 0x10;

/// A scene whose links are silent, and the places of its frames.
pub struct Bench {
    pub scene: Scene,
    pub pod: (u32, [u8; 6]),
    pub uplink: (u32, [u8; 6]),
}

impl Bench {
    pub fn new() -> Self {
        let mut scene = Scene::new(Mode::Routed);
        let mut place = |name: &str| {
            let link = scene.node.netlink.require_link(name).expect("a link");
            (link.index, link.mac.expect("a MAC address").0)
        };
        let (pod, uplink) = (place("veth11"), place("eth0"));
        scene.node.silence();
        Self { scene, pod, uplink }
    }

    /// A frame of somebody else's.
    fn run(&self, program: Program, link: (u32, [u8; 6]), bytes: &[u8]) -> (i32, Vec<u8>) {
        let left = self.pass(program, passage(link, 0), bytes);
        (left.verdict, left.frame)
    }

    fn pass(&self, program: Program, passage: Passage, bytes: &[u8]) -> Left {
        let run = || self.scene.nat.run(program, passage, bytes).expect("a frame that can be run");
        self.scene.node.run(run)
    }

    fn enter(&self, link: (u32, [u8; 6]), bytes: &[u8]) -> Read {
        let (verdict, left) = self.run(Program::ServiceEnter, link, bytes);
        assert_eq!(verdict, TC_NEXT);
        read(&left)
    }

    fn leave(&self, link: (u32, [u8; 6]), bytes: &[u8]) -> Read {
        let (verdict, left) = self.run(Program::ServiceLeave, link, bytes);
        assert_eq!(verdict, TC_NEXT);
        read(&left)
    }

    /// As [`Bench::enter`], of a masqueraded flow: what enters is marked.
    pub fn enter_marked(&self, link: (u32, [u8; 6]), bytes: &[u8]) -> Read {
        let left = self.pass(Program::ServiceEnter, passage(link, OTHERS_MARK), bytes);
        assert_eq!((left.verdict, left.mark), (TC_NEXT, OTHERS_MARK | NAT_MARK));
        read(&left.frame)
    }

    /// As [`Bench::leave`], of a masqueraded flow: the mark ends there.
    pub fn leave_marked(&self, link: (u32, [u8; 6]), bytes: &[u8]) -> Read {
        let passage = passage(link, OTHERS_MARK | NAT_MARK);
        let left = self.pass(Program::ServiceLeave, passage, bytes);
        assert_eq!((left.verdict, left.mark), (TC_NEXT, OTHERS_MARK));
        read(&left.frame)
    }

    /// Whether a frame goes on as it came.
    fn is_left_alone(&self, program: Program, link: (u32, [u8; 6]), bytes: &[u8]) -> bool {
        self.run(program, link, bytes) == (TC_NEXT, bytes.to_vec())
    }

    fn client(&self, family: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.scene.pods[0].addresses[family], port)
    }
}

fn passage(link: (u32, [u8; 6]), mark: u32) -> Passage {
    Passage { link_index: link.0, came_by: link.0, mark }
}

pub fn endpoint(family: usize) -> SocketAddr {
    SocketAddr::new(pod_addresses(1, 12)[family], TARGET)
}

pub fn segment(to: [u8; 6], protocol: u8, read: (SocketAddr, SocketAddr), flags: u8) -> Vec<u8> {
    simple(to, protocol, read.0, read.1, flags)
}

/// Both directions of a flow of a pod, with right checksums; what is no Service's stays.
#[test]
fn a_pods_flow_is_translated_there_and_back() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        for (protocol, number) in [(TCP, CLIENT_PORT), (UDP, CLIENT_PORT)] {
            let (client, frontend) =
                (bench.client(family, number), Frontend::CLUSTER_IP.address(family));
            let first = segment(bench.pod.1, protocol, (client, frontend), SYN);
            let found = bench.enter(bench.pod, &first);
            assert_eq!((found.source, found.destination), (client, endpoint(family)));
            let answer = segment([9; 6], protocol, (endpoint(family), client), SYN | ACK);
            let found = bench.leave(bench.pod, &answer);
            assert_eq!((found.source, found.destination), (frontend, client));
            // Nothing is masqueraded, and answers enter as they are.
            let inside = segment([9; 6], protocol, (client, endpoint(family)), ACK);
            assert!(bench.is_left_alone(Program::ServiceLeave, bench.pod, &inside));
            assert!(bench.is_left_alone(Program::ServiceEnter, bench.pod, &answer));
        }
        let client = bench.client(family, 41_000);
        let frontend = Frontend::CLUSTER_IP.address(family);
        let rows = [
            ("no Service's port", TCP, SocketAddr::new(frontend.ip(), PORT + 1), SYN),
            ("a pod", TCP, endpoint(family), SYN),
            ("the middle of an unknown connection", TCP, frontend, ACK),
            ("a reset of an unknown connection", TCP, frontend, RST),
            ("another protocol", SCTP, frontend, 0),
        ];
        for (name, protocol, target, flags) in rows {
            let frame = segment(bench.pod.1, protocol, (client, target), flags);
            assert!(bench.is_left_alone(Program::ServiceEnter, bench.pod, &frame), "{name}");
        }
    }
}

/// The four sides of a masqueraded flow, for many clients: all have ports of their own.
#[test]
fn a_masqueraded_flow_is_translated_on_all_four_sides() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let (frontend, own) = (Frontend::NODE_PORT.address(family), node_addresses(1)[family]);
        let mut taken = std::collections::BTreeSet::new();
        for protocol in [TCP, UDP] {
            for port in CLIENT_PORT..CLIENT_PORT + ROUNDS {
                let client = SocketAddr::new(node_addresses(2)[family], port);
                let first = segment(bench.uplink.1, protocol, (client, frontend), SYN);
                let found = bench.enter_marked(bench.uplink, &first);
                assert_eq!((found.source, found.destination), (client, endpoint(family)));
                let inside = segment([9; 6], protocol, (client, endpoint(family)), SYN);
                let seen = bench.leave_marked(bench.pod, &inside).source;
                assert_eq!(seen.ip(), own);
                assert!(MASQUERADE_PORTS.contains(&seen.port()) && taken.insert((protocol, seen)));
                let again = bench.leave_marked(bench.pod, &inside).source;
                assert_eq!(again, seen, "it keeps its port");
                let answer = segment([9; 6], protocol, (endpoint(family), seen), SYN | ACK);
                let found = bench.enter_marked(bench.pod, &answer);
                assert_eq!((found.source, found.destination), (endpoint(family), client));
                let answer = segment([9; 6], protocol, (endpoint(family), client), SYN | ACK);
                let found = bench.leave_marked(bench.uplink, &answer);
                assert_eq!((found.source, found.destination), (frontend, client));
                // Without the mark it is the client's own flow to the endpoint.
                for (link, own) in [(bench.pod, &inside), (bench.uplink, &answer)] {
                    assert!(bench.is_left_alone(Program::ServiceLeave, link, own));
                }
            }
        }
    }
    let flows = bench.scene.nat.flows().expect("the flows");
    assert_eq!(flows.len(), 4 * usize::from(ROUNDS));
    assert!(flows.iter().all(|flow| flow.masqueraded_as.is_some() && flow.is_answered));
}

/// ICMP errors about either direction: both headers are translated, on each side.
#[test]
fn errors_are_translated_in_both_headers() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    let router: [IpAddr; 2] =
        ["203.0.113.9", "2001:db8:9::9"].map(|text| text.parse().expect("an address"));
    for family in FAMILIES {
        let kinds: &[u8] = if family == 0 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for protocol in [TCP, UDP] {
            let (frontend, pod) = (Frontend::NODE_PORT.address(family), endpoint(family));
            let client = SocketAddr::new(node_addresses(2)[family], CLIENT_PORT);
            bench.enter(bench.uplink, &segment(bench.uplink.1, protocol, (client, frontend), SYN));
            let inside = segment([9; 6], protocol, (client, pod), SYN);
            let seen = bench.leave_marked(bench.pod, &inside).source;
            let ip = |from: SocketAddr, to: SocketAddr| {
                let payload = transport(protocol, (from.port(), to.port()), ACK, b"data");
                packet(from.ip(), to.ip(), protocol, &payload)
            };
            for &kind in kinds {
                // The program, its link; the error's source and destination and what it is about;
                // then the same as they shall be.
                let (enter, leave) = (Program::ServiceEnter, Program::ServiceLeave);
                let rows = [
                    (
                        enter,
                        bench.pod,
                        (pod.ip(), seen.ip()),
                        (seen, pod),
                        (pod.ip(), client.ip()),
                        (client, pod),
                    ),
                    (
                        leave,
                        bench.uplink,
                        (pod.ip(), client.ip()),
                        (client, pod),
                        (frontend.ip(), client.ip()),
                        (client, frontend),
                    ),
                    (
                        leave,
                        bench.uplink,
                        (router[family], client.ip()),
                        (client, pod),
                        (router[family], client.ip()),
                        (client, frontend),
                    ),
                    (
                        enter,
                        bench.uplink,
                        (client.ip(), frontend.ip()),
                        (frontend, client),
                        (client.ip(), pod.ip()),
                        (pod, client),
                    ),
                    (
                        enter,
                        bench.uplink,
                        (router[family], frontend.ip()),
                        (frontend, client),
                        (router[family], pod.ip()),
                        (pod, client),
                    ),
                    // Towards the endpoint nobody but the node is seen.
                    (
                        leave,
                        bench.pod,
                        (router[family], pod.ip()),
                        (pod, client),
                        (seen.ip(), pod.ip()),
                        (pod, seen),
                    ),
                ];
                for (program, link, outer, about, new_outer, new_about) in rows {
                    let bytes =
                        frame([9; 6], &error(outer.0, outer.1, kind, &ip(about.0, about.1)));
                    let found = match program {
                        Program::ServiceEnter => bench.enter_marked(link, &bytes),
                        _ => bench.leave_marked(link, &bytes),
                    };
                    // The node's own errors about it have no mark.
                    let made_here = Passage { came_by: 0, ..passage(link, 0) };
                    let left = bench.pass(program, made_here, &bytes);
                    assert_eq!((left.verdict, read(&left.frame)), (TC_NEXT, found.clone()));
                    assert_eq!(
                        (found.source.ip(), found.destination.ip()),
                        new_outer,
                        "{kind} {outer:?}"
                    );
                    let inner = read_packet(&found.payload[8..], false);
                    assert_eq!((inner.source, inner.destination), new_about, "{kind} {outer:?}");
                }
            }
        }
    }
}

/// Refusals as a whole frame: a reset that fits, an error about the datagram; nothing to a reset
/// or to data in the first segment.
#[test]
fn refusals_are_well_formed() {
    let mut bench = Bench::new();
    bench.scene.close(Frontend::CLUSTER_IP, &View::Reject);
    for family in FAMILIES {
        let (client, frontend) =
            (bench.client(family, CLIENT_PORT), Frontend::CLUSTER_IP.address(family));
        let first = segment(bench.pod.1, TCP, (client, frontend), SYN);
        let (verdict, left) = bench.run(Program::ServiceEnter, bench.pod, &first);
        assert_eq!(verdict, TC_REDIRECT);
        assert_eq!((&left[..6], &left[6..12]), (&first[6..12], &first[..6]), "to who sent it");
        let found = read(&left);
        assert_eq!((found.source, found.destination), (frontend, client));
        assert_eq!(found.payload.len(), 20);
        assert_eq!(found.payload[8..12], 8_u32.to_be_bytes(), "acknowledges the SYN");
        assert_eq!(found.payload[13], RST | ACK);

        let datagram = transport(UDP, (client.port(), frontend.port()), 0, &[7; 100]);
        let datagram = packet(client.ip(), frontend.ip(), UDP, &datagram);
        let (verdict, left) =
            bench.run(Program::ServiceEnter, bench.pod, &frame(bench.pod.1, &datagram));
        assert_eq!(verdict, TC_REDIRECT);
        let found = read(&left);
        assert_eq!((found.source.ip(), found.destination.ip()), (frontend.ip(), client.ip()));
        assert_eq!(found.payload[..2], [[3, 3], [1, 4]][family], "port unreachable");
        assert_eq!(found.payload[8..], datagram[..found.payload.len() - 8], "about the datagram");

        let early = transport(TCP, (client.port(), frontend.port()), SYN, b"early data");
        let early = frame(bench.pod.1, &packet(client.ip(), frontend.ip(), TCP, &early));
        assert_eq!(bench.run(Program::ServiceEnter, bench.pod, &early).0, TC_DROP);
        let reset = segment(bench.pod.1, TCP, (client, frontend), RST);
        assert!(bench.is_left_alone(Program::ServiceEnter, bench.pod, &reset));
    }
}

/// The endpoint would take two connections of one client's port for one: the second gets another
/// endpoint, or none. Of datagrams who was asked last answers.
#[test]
fn a_clients_port_leads_to_an_endpoint_by_one_frontend_at_a_time() {
    let mut bench = Bench::new();
    for frontend in [Frontend::CLUSTER_IP, Frontend::LOCAL_NODE_PORT] {
        bench.scene.serve(frontend, &[pod_addresses(1, 12)]);
    }
    for family in FAMILIES {
        let frontends =
            [Frontend::CLUSTER_IP, Frontend::LOCAL_NODE_PORT].map(|one| one.address(family));
        let client = bench.client(family, CLIENT_PORT);
        let ask = |protocol, target| {
            bench.run(
                Program::ServiceEnter,
                bench.pod,
                &segment(bench.pod.1, protocol, (client, target), SYN),
            )
        };
        assert_eq!(read(&ask(TCP, frontends[0]).1).destination, endpoint(family));
        assert_eq!(ask(TCP, frontends[1]).0, TC_DROP);
        for target in [frontends[0], frontends[1]] {
            assert_eq!(read(&ask(UDP, target).1).destination, endpoint(family));
            let answer = segment([9; 6], UDP, (endpoint(family), client), 0);
            assert_eq!(bench.leave(bench.pod, &answer).source, target);
        }
    }
    assert_eq!(bench.scene.counter("nat_drop_taken"), 2);
    // With a second endpoint there is a way out for TCP.
    bench.scene.serve(Frontend::LOCAL_NODE_PORT, &[pod_addresses(1, 12), pod_addresses(1, 13)]);
    let target = Frontend::LOCAL_NODE_PORT.address(0);
    let found = (0..PORT_TRIES_MAX).find_map(|_| {
        let (verdict, left) = bench.run(
            Program::ServiceEnter,
            bench.pod,
            &segment(bench.pod.1, TCP, (bench.client(0, CLIENT_PORT), target), SYN),
        );
        (verdict == TC_NEXT).then(|| read(&left).destination.ip())
    });
    assert_eq!(found, Some(pod_addresses(1, 13)[0]));
}

/// A client's port that led to an endpoint by one frontend may do so by another when that connection
/// is over: the client's system gives it away again at once, and sends each SYN in vain otherwise.
#[test]
fn a_clients_port_may_lead_to_an_endpoint_by_another_frontend_afterwards() {
    let mut bench = Bench::new();
    for frontend in [Frontend::CLUSTER_IP, Frontend::LOCAL_NODE_PORT] {
        bench.scene.serve(frontend, &[pod_addresses(1, 12)]);
    }
    for family in FAMILIES {
        let frontends =
            [Frontend::CLUSTER_IP, Frontend::LOCAL_NODE_PORT].map(|one| one.address(family));
        let client = bench.client(family, CLIENT_PORT);
        for target in [frontends[0], frontends[1], frontends[0]] {
            let exchange = |flags| {
                let asked = segment(bench.pod.1, TCP, (client, target), flags);
                assert_eq!(bench.enter(bench.pod, &asked).destination, endpoint(family));
                let answer = segment([9; 6], TCP, (endpoint(family), client), flags | ACK);
                assert_eq!(bench.leave(bench.pod, &answer).source, target);
            };
            exchange(SYN);
            exchange(FIN | ACK);
        }
    }
    assert_eq!(bench.scene.counter("nat_drop_taken"), 0);
}

/// S-10 for masqueraded flows: without a free port the flow is dropped and counted.
#[test]
fn a_flow_without_a_port_is_dropped() {
    let mut bench = Bench::new();
    bench.scene.wanted.ports = 20_000..=20_001;
    bench.scene.apply();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    let verdict = |port: u16| {
        let client = SocketAddr::new(node_addresses(2)[0], port);
        let target = Frontend::NODE_PORT.address(0);
        bench.enter(bench.uplink, &segment(bench.uplink.1, UDP, (client, target), 0));
        let inside = segment([9; 6], UDP, (client, endpoint(0)), 0);
        bench.pass(Program::ServiceLeave, passage(bench.pod, NAT_MARK), &inside).verdict
    };
    assert_eq!([1, 2, 3, 1].map(verdict), [TC_NEXT, TC_NEXT, TC_DROP, TC_NEXT]);
    assert_eq!(bench.scene.counter("nat_drop_ports"), 1);
}

/// Frames that end anywhere, and tagged ones, do no harm and go on.
#[test]
fn what_cannot_be_read_goes_on_untouched() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        for protocol in [TCP, UDP] {
            let pair = (bench.client(family, CLIENT_PORT), Frontend::CLUSTER_IP.address(family));
            let whole = segment(bench.pod.1, protocol, pair, SYN);
            let header = 14 + [20, 40][family];
            // Shorter ones the kernel does not run at all.
            for bytes in header..header + if protocol == TCP { 14 } else { 4 } {
                for program in [Program::ServiceEnter, Program::ServiceLeave] {
                    assert!(bench.is_left_alone(program, bench.pod, &whole[..bytes]), "{bytes}");
                }
            }
        }
    }
    assert_eq!(bench.scene.counter("nat_flow_new"), 0);
}

/// A datagram without a checksum keeps none (RFC 768).
#[test]
fn no_checksum_stays_none() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    let pair = (bench.client(0, CLIENT_PORT), Frontend::CLUSTER_IP.address(0));
    let mut datagram = segment(bench.pod.1, UDP, pair, 0);
    datagram[14 + 20 + 6..14 + 20 + 8].fill(0);
    let found = bench.enter(bench.pod, &datagram);
    assert_eq!((found.destination, &found.payload[6..8]), (endpoint(0), &[0, 0][..]));
}

/// Makes all entries of flows older, as if nobody had used them for so many seconds.
fn age(bench: &Bench, seconds: u32) {
    let pin = bench.scene.node.file_system.join("flatnet/flows-v1/maps/flows");
    let map = aya::maps::MapData::from_pin(pin).and_then(aya::maps::Map::from_map_data);
    let mut flows: aya::maps::HashMap<_, [u8; FlowKey::BYTES], [u8; Flow::BYTES]> =
        map.expect("the map").try_into().expect("a hash map");
    let entries: Vec<_> = flows.iter().map(|entry| entry.expect("an entry")).collect();
    for (key, flow) in entries {
        let mut flow = Flow::from_bytes(&flow);
        flow.used_s = flow.used_s.wrapping_sub(seconds);
        flows.insert(key, flow.to_bytes(), 0).expect("written");
    }
}

/// Each state of a flow has its time; after it neither direction is touched any more.
#[test]
fn flows_are_forgotten_when_their_time_is_over() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    // Protocol, the flags of what client and endpoint send after the first packet, and the time.
    let rows: [(u8, &[u8], &[u8], u32); 7] = [
        (TCP, &[], &[], flows::TCP_UNANSWERED_S),
        (TCP, &[], &[SYN | ACK], flows::TCP_ESTABLISHED_S),
        (TCP, &[FIN | ACK], &[SYN | ACK], flows::TCP_HALF_CLOSED_S),
        (TCP, &[FIN | ACK], &[FIN | ACK], flows::TCP_CLOSED_S),
        (TCP, &[], &[SYN | ACK, RST], flows::TCP_CLOSED_S),
        (UDP, &[], &[], flows::UDP_UNANSWERED_S),
        (UDP, &[], &[0], flows::UDP_ANSWERED_S),
    ];
    for (number, (protocol, sent, answered, lifetime_s)) in (0..).zip(rows) {
        for family in FAMILIES {
            for (is_over, offset) in [(false, -2), (true, 2)] {
                let port = CLIENT_PORT + number * 2 + u16::from(is_over);
                let (client, frontend) =
                    (bench.client(family, port), Frontend::CLUSTER_IP.address(family));
                let there = |flags| segment(bench.pod.1, protocol, (client, frontend), flags);
                let back = |flags| segment([9; 6], protocol, (endpoint(family), client), flags);
                bench.enter(bench.pod, &there(SYN));
                sent.iter().for_each(|flags| drop(bench.enter(bench.pod, &there(*flags))));
                answered.iter().for_each(|flags| drop(bench.leave(bench.pod, &back(*flags))));
                age(&bench, lifetime_s.wrapping_add_signed(offset));
                let row = format!("row {number}, family {family}, over: {is_over}");
                let alone = bench.is_left_alone(Program::ServiceLeave, bench.pod, &back(ACK));
                assert_eq!(alone, is_over, "{row}: the answer");
                if protocol == TCP {
                    let alone = bench.is_left_alone(Program::ServiceEnter, bench.pod, &there(ACK));
                    assert_eq!(alone, is_over, "{row}: the client");
                }
            }
        }
    }
}

/// a port of the node whose flow is over may be another backend's: from its first segment on
/// the endpoint's answers are left to that. As long as the flow goes on they are the flow's.
#[test]
fn a_port_of_the_node_that_another_backend_gives_away_is_no_longer_the_old_flows() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let client = SocketAddr::new(node_addresses(2)[family], CLIENT_PORT);
        let (frontend, endpoint) = (Frontend::NODE_PORT.address(family), endpoint(family));
        let there = |flags| {
            let frame = segment(bench.uplink.1, TCP, (client, frontend), flags);
            bench.enter_marked(bench.uplink, &frame);
            let inside = segment([9; 6], TCP, (client, endpoint), flags);
            bench.leave_marked(bench.pod, &inside).source
        };
        let node = there(SYN);
        let back = |flags| segment(bench.pod.1, TCP, (endpoint, node), flags);
        let answer = |flags| {
            let found = bench.enter_marked(bench.pod, &back(flags));
            assert_eq!((found.source, found.destination), (endpoint, client));
            let inside = segment([9; 6], TCP, (endpoint, client), flags);
            bench.leave_marked(bench.uplink, &inside);
        };
        let begin_another = || {
            let frame = segment([9; 6], TCP, (node, endpoint), SYN);
            assert!(bench.is_left_alone(Program::ServiceLeave, bench.pod, &frame));
        };
        answer(SYN | ACK);
        begin_another();
        answer(ACK);
        there(FIN | ACK);
        answer(FIN | ACK);
        answer(ACK);
        begin_another();
        assert!(bench.is_left_alone(Program::ServiceEnter, bench.pod, &back(ACK)));
    }
}

/// A client that connects again from a port that it has closed gets a new flow, whatever of the end
/// was seen; one that repeats its first segment does not.
#[test]
fn a_port_that_is_used_again_begins_a_new_flow() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let (client, frontend) =
            (bench.client(family, CLIENT_PORT), Frontend::CLUSTER_IP.address(family));
        let send = |flags| {
            bench.enter(bench.pod, &segment(bench.pod.1, TCP, (client, frontend), flags));
        };
        let begin = |expected: u64, why: &str| {
            let before = bench.scene.counter("nat_flow_new");
            send(SYN);
            assert_eq!(bench.scene.counter("nat_flow_new") - before, expected, "{why}");
        };
        let answer = |flags| {
            bench.leave(bench.pod, &segment([9; 6], TCP, (endpoint(family), client), flags));
            let flows = bench.scene.nat.flows().expect("the flows");
            let flow = flows.iter().find(|flow| flow.client == client);
            assert!(flow.is_some_and(|flow| flow.is_answered), "{flow:?}");
        };
        begin(1, "new");
        begin(0, "repeated");
        answer(SYN | ACK);
        begin(0, "established");
        answer(RST | ACK);
        begin(1, "after a reset");
        answer(SYN | ACK);
        answer(FIN | ACK);
        send(FIN | ACK);
        begin(1, "after its end");
        answer(SYN | ACK);
        answer(FIN | ACK);
        begin(1, "after the endpoint's end");
        answer(SYN | ACK);
        send(FIN | ACK);
        begin(1, "after the client's end");
    }
}

/// a client's port had a flow and begins one that another backend takes, while this one
/// drains: none of its packets is taken for the former flow's.
#[test]
fn a_port_that_is_used_again_is_another_backends() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let (client, frontend) =
            (bench.client(family, CLIENT_PORT), Frontend::CLUSTER_IP.address(family));
        let there = |flags| segment(bench.pod.1, TCP, (client, frontend), flags);
        let back = |flags| segment([9; 6], TCP, (endpoint(family), client), flags);
        bench.scene.wanted.draining = false;
        bench.scene.apply();
        for flags in [SYN, FIN | ACK] {
            assert_eq!(bench.enter(bench.pod, &there(flags)).destination, endpoint(family));
            bench.leave(bench.pod, &back(flags | ACK));
        }
        bench.scene.wanted.draining = true;
        bench.scene.apply();
        for flags in [SYN, ACK, FIN | ACK] {
            let is_alone = bench.is_left_alone(Program::ServiceEnter, bench.pod, &there(flags));
            assert!(is_alone, "family {family}: {flags}");
            let answer = segment([9; 6], TCP, (frontend, client), flags | ACK);
            let is_alone = bench.is_left_alone(Program::ServiceLeave, bench.pod, &answer);
            assert!(is_alone, "family {family}: the answer to {flags}");
        }
    }
}

/// the same for a port of the node, which another backend takes from all ports at random: the
/// answers to its connection are not the former client's.
#[test]
fn a_port_of_the_node_that_is_used_again_is_another_backends() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let (target, pod) = (Frontend::NODE_PORT.address(family), endpoint(family));
        let client = SocketAddr::new(node_addresses(2)[family], CLIENT_PORT);
        let there = |flags| segment(bench.uplink.1, TCP, (client, target), flags);
        bench.enter_marked(bench.uplink, &there(SYN));
        let inside = segment([9; 6], TCP, (client, pod), SYN);
        let seen = bench.leave_marked(bench.pod, &inside).source;
        let answer = |flags| segment([9; 6], TCP, (pod, seen), flags);
        let leave = |flags| {
            let enters = bench.enter_marked(bench.pod, &answer(flags));
            assert_eq!(enters.destination, client);
            bench.leave_marked(bench.uplink, &segment([9; 6], TCP, (pod, client), flags));
        };
        leave(SYN | ACK);
        leave(SYN | ACK);
        bench.enter_marked(bench.uplink, &there(FIN | ACK));
        leave(FIN | ACK);
        leave(ACK);
        for flags in [SYN | ACK, ACK, FIN | ACK] {
            let is_alone = bench.is_left_alone(Program::ServiceEnter, bench.pod, &answer(flags));
            assert!(is_alone, "family {family}: {flags}");
        }
    }
}

/// A client that had an endpoint by a Service connects to it itself from the same port (as after
/// its socket was translated): the answers come from the endpoint, once the Service's flow is over.
#[test]
fn a_port_that_is_used_again_gets_the_endpoints_own_answers() {
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::CLUSTER_IP, &[pod_addresses(1, 12)]);
    for family in FAMILIES {
        let (client, frontend) =
            (bench.client(family, CLIENT_PORT), Frontend::CLUSTER_IP.address(family));
        let there = |flags| segment(bench.pod.1, TCP, (client, frontend), flags);
        let back = |flags| segment([9; 6], TCP, (endpoint(family), client), flags);
        let direct = segment(bench.pod.1, TCP, (client, endpoint(family)), SYN);
        let is_own = |flags| {
            assert!(bench.is_left_alone(Program::ServiceEnter, bench.pod, &direct));
            bench.is_left_alone(Program::ServiceLeave, bench.pod, &back(flags))
        };
        bench.enter(bench.pod, &there(SYN));
        bench.leave(bench.pod, &back(SYN | ACK));
        assert!(!is_own(ACK), "the Service's flow goes on");
        bench.enter(bench.pod, &there(FIN | ACK));
        bench.leave(bench.pod, &back(FIN | ACK));
        assert!(is_own(SYN | ACK), "family {family}");
    }
}

/// A port of the node stays with the connection that had it for as long as the endpoint may keep
/// that, or it would take another client's first segment for an old one. The same client has it
/// again at once, and in need the one goes first that is unused for the longest time.
#[test]
fn ports_are_left_alone_after_the_end_of_a_connection() {
    let mut bench = Bench::new();
    bench.scene.wanted.ports = 20_000..=20_001;
    bench.scene.apply();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    let (node_port, pod) = (Frontend::NODE_PORT.address(0), endpoint(0));
    let client = |port| SocketAddr::new(node_addresses(2)[0], port);
    let begin = |port: u16| {
        bench.enter(bench.uplink, &segment(bench.uplink.1, TCP, (client(port), node_port), SYN));
        let inside = segment([9; 6], TCP, (client(port), pod), SYN);
        let left = bench.pass(Program::ServiceLeave, passage(bench.pod, NAT_MARK), &inside);
        (left.verdict == TC_NEXT).then(|| read(&left.frame).source.port())
    };
    let end = |port: u16| {
        let last = segment(bench.uplink.1, TCP, (client(port), node_port), FIN | ACK);
        bench.enter_marked(bench.uplink, &last);
        let last = segment([9; 6], TCP, (pod, client(port)), FIN | ACK);
        bench.leave_marked(bench.uplink, &last);
    };
    let first = begin(1).expect("a port");
    end(1);
    age(&bench, 10);
    let second = begin(2).expect("a port");
    assert_ne!(second, first, "the endpoint may remember the first");
    end(2);
    age(&bench, 10);
    assert_eq!(begin(1), Some(first), "the same client again");
    end(1);
    age(&bench, 5);
    assert_eq!(begin(3), Some(second), "of two that are over the older");
    assert_eq!(begin(4), Some(first), "the only one that is over");
    assert_eq!(bench.scene.counter("nat_drop_ports"), 0);
    assert_eq!(begin(5), None, "both are in use");
    assert_eq!(bench.scene.counter("nat_drop_ports"), 1);
}

/// SCTP's checksum covers the ports: only an endpoint of the same port can be had.
#[test]
fn sctp_keeps_its_ports() {
    let mut bench = Bench::new();
    for family in FAMILIES {
        for (port, is_possible) in [(PORT, true), (TARGET, false)] {
            let target = SocketAddr::new(pod_addresses(1, 12)[family], port);
            let plan = Frontend::CLUSTER_IP.plan(&View::Endpoints([(target, 1)].into()), SCTP);
            bench.scene.program.frontends.insert(&Frontend::CLUSTER_IP.key(family, SCTP), &plan);
            bench.scene.write();
            let pair =
                (bench.client(family, CLIENT_PORT + port), Frontend::CLUSTER_IP.address(family));
            let (verdict, left) =
                bench.run(Program::ServiceEnter, bench.pod, &segment(bench.pod.1, SCTP, pair, 0));
            assert_eq!(verdict, if is_possible { TC_NEXT } else { TC_DROP });
            assert!(!is_possible || read(&left).destination == target);
        }
    }
}
