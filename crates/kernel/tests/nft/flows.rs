//! Flows by endpoint, as `flatnet service show` tells them (issue 4, item 6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kernel::nft::flows::{Destination, FlowCounts, by_endpoint, of_protocol};
use model::{Family, Protocol};
use netlink::message::Request;
use netlink::socket::Socket;

use super::lab::{Lab, Server, ask_tcp, ask_udp, service, socket};
use super::{DEADLINE, NODE, POD1, POD2, VIP};

fn destination(protocol: Protocol, address: Option<&str>, ports: (u16, u16)) -> Destination {
    let address = address.map(|address| address.parse().expect("an address"));
    let (first_port, last_port) = ports;
    Destination { protocol, family: Family::V4, address, first_port, last_port }
}

fn counts(lab: &Lab, destinations: &[Destination]) -> BTreeMap<IpAddr, FlowCounts> {
    let destinations: BTreeSet<Destination> = destinations.iter().copied().collect();
    let counted = lab.node.run(|| by_endpoint(&destinations)).expect("the node");
    counted.expect("connection tracking")
}

#[test]
fn flows_are_counted_by_the_endpoint_that_they_lead_to() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 30080), &[socket(POD2, 8080)]);
    lab.set_service(service("names", VIP, Protocol::Udp, 53, 0), &[socket(POD1, 5353)]);
    lab.converge(&mut lab.driver());
    let _servers = [Server::start(&lab.pod2, "pod2", 8080), Server::start(&lab.pod1, "pod1", 5353)];
    let cluster_ip = destination(Protocol::Tcp, Some(VIP), (80, 80));
    let node_port = destination(Protocol::Tcp, None, (30080, 30080));
    let names = destination(Protocol::Udp, Some(VIP), (53, 53));
    let range = destination(Protocol::Tcp, Some(VIP), (70, 90));
    let everything = [cluster_ip, node_port, names, range];
    assert_eq!(counts(&lab, &everything), BTreeMap::new());

    for _ in 0..3 {
        ask_tcp(&lab.pod1, socket(VIP, 80), DEADLINE);
    }
    ask_tcp(&lab.outside, socket(NODE, 30080), DEADLINE);
    ask_udp(&lab.outside, socket(VIP, 53), DEADLINE);
    // Past the Service: not its flow.
    ask_tcp(&lab.pod1, socket(POD2, 8080), DEADLINE);
    let (pod1, pod2): (IpAddr, IpAddr) = (POD1.parse().expect("pod"), POD2.parse().expect("pod"));
    for (asked, expected) in [
        (&[cluster_ip][..], &[(pod2, 3)][..]),
        (&[node_port], &[(pod2, 1)]),
        (&[names], &[(pod1, 1)]),
        (&[range], &[(pod2, 3)]),
        // Each flow once, though two destinations have it.
        (&everything, &[(pod1, 1), (pod2, 4)]),
        (&[destination(Protocol::Udp, Some(VIP), (80, 80))], &[]),
    ] {
        let counted = counts(&lab, asked);
        let flows: Vec<(IpAddr, u64)> = counted.iter().map(|(at, it)| (*at, it.flows)).collect();
        assert_eq!(flows, expected, "{asked:?}");
    }
}

/// Packets and bytes are the node's choice (`nf_conntrack_acct`): nothing is told where they are
/// not counted.
#[test]
fn packets_are_told_where_the_node_counts_them() {
    let mut lab = Lab::new();
    lab.set_service(service("names", VIP, Protocol::Udp, 53, 0), &[socket(POD1, 5353)]);
    lab.converge(&mut lab.driver());
    let _server = Server::start(&lab.pod1, "pod1", 5353);
    let names = destination(Protocol::Udp, Some(VIP), (53, 53));
    let pod1: IpAddr = POD1.parse().expect("a pod");
    let account = |value: &str| {
        let written =
            lab.node.run(|| netlink::sysctl::write("net/netfilter/nf_conntrack_acct", value));
        written.expect("the node").expect("a kernel parameter");
    };
    account("0");
    ask_udp(&lab.outside, socket(VIP, 53), DEADLINE);
    let uncounted = FlowCounts { flows: 1, packets: None, bytes: None };
    assert_eq!(counts(&lab, &[names]), [(pod1, uncounted)].into());
    account("1");
    ask_udp(&lab.outside, socket(VIP, 53), DEADLINE);
    let counted = counts(&lab, &[names])[&pod1];
    assert_eq!((counted.flows, counted.packets), (2, Some(2)), "a question and its answer");
    assert!(counted.bytes.is_some_and(|bytes| bytes >= 2 * 28), "{counted:?}");
}

/// `nfnetlink_conntrack.h`.
const CT_NEW: u16 = 1 << 8;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// Bytes of `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;

/// A flow that no packet has made: from a port of a pod to one of another.
fn track(socket: &mut Socket, protocol: Protocol, port: u16) {
    let family = u8::try_from(libc::AF_INET).expect("a family");
    let mut new = Request::new(CT_NEW, libc::NLM_F_CREATE, &[family, 0, 0, 0]);
    for (tuple, from, to) in
        [(CTA_TUPLE_ORIG, (POD1, port), (POD2, 53)), (CTA_TUPLE_REPLY, (POD2, 53), (POD1, port))]
    {
        new.nested(tuple, &[], |tuple| {
            tuple.nested(CTA_TUPLE_IP, &[], |ip| {
                ip.address(1, from.0.parse().expect("an address"));
                ip.address(2, to.0.parse().expect("an address"));
            });
            tuple.nested(CTA_TUPLE_PROTO, &[], |transport| {
                transport.u8(1, protocol.number());
                transport.attribute(2, &from.1.to_be_bytes());
                transport.attribute(3, &to.1.to_be_bytes());
            });
        });
    }
    new.attribute(CTA_TIMEOUT, &600_u32.to_be_bytes());
    socket.call(&new, || format!("track {protocol:?} from port {port}")).expect("tracked");
}

/// What is read at every start and change does not grow with the node's connections of TCP.
#[test]
fn flows_of_one_protocol_are_read_without_the_others() {
    let lab = Lab::new();
    let read = || {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).expect("a socket");
        // Tracking begins with what asks for it; these flows ask themselves.
        for port in 10_000..12_000 {
            track(&mut socket, Protocol::Tcp, port);
        }
        for port in 20_000..20_003 {
            track(&mut socket, Protocol::Udp, port);
        }
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| {
            let read = of_protocol(&mut socket, Family::V4, protocol.number());
            read.expect("connection tracking")
        })
    };
    let [tcp, udp, sctp] = lab.node.run(read).expect("the node");
    assert_eq!((tcp.len(), udp.len(), sctp.len()), (2000, 3, 0));
    for message in &udp {
        let tuple = message.attributes(HEADER_BYTES).nested(CTA_TUPLE_ORIG).expect("a tuple");
        let transport = tuple.nested(CTA_TUPLE_PROTO).expect("a protocol");
        assert_eq!(transport.u8(1), Some(Protocol::Udp.number()));
    }
}
