//! The same defences where a pod has a routed link: forged packets are not forwarded, the node does
//! not answer ARP and neighbour messages that speak for others (X-07, X-08), and what is for
//! everybody reaches nobody (X-17).

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use model::MacAddress;
use netlink::Netlink;
use nix::sys::socket::{setsockopt, sockopt};

use crate::frames::{
    ARP, BROADCAST, Capture, IPV4, IPV6, MARK, Sender, arp, frame, icmpv6, ipv4, ipv6, neighbour,
    on_one_processor, udp, udp6, v4, v6,
};
use crate::lab::{DEADLINE, GATEWAY, GATEWAY6, Lab, OUTSIDE, OUTSIDE6, attach};

const ATTACKS: usize = 10_000;
const TRIALS: usize = 50;
const FOREIGN_MAC: MacAddress = MacAddress([0x0a, 0x66, 6, 6, 6, 6]);
/// UDP ports of the packets that are counted, and of the last one.
const COUNTED: u16 = 5000;
const LAST: u16 = 5001;
/// The same over IPv6, where both are for one socket.
const COUNTED6: u16 = 5006;
/// Source port of what is counted there, and of the last one.
const ATTACKER: u16 = 4000;
const HONEST: u16 = 4001;
/// Room for ten thousand datagrams with what the kernel needs for each.
const SOCKET_BYTES: usize = 32 << 20;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 9);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Counts UDP packets that come out of the node, up to one to [`LAST`].
fn forwarded(lab: &Lab, sender: &Sender, packet: &[u8], count: usize) -> usize {
    let capture = Capture::open(&lab.outside);
    for _ in 0..count {
        sender.send(packet);
    }
    let pod = &lab.routed;
    let to: Ipv4Addr = OUTSIDE.parse().expect("address");
    let node_end = lab.mac_of(&lab.node, "veth-r");
    let last = ipv4(v4(pod.address()), to, 17, &[], &udp(4000, LAST));
    sender.send(&frame(node_end, pod.mac(), IPV4, &last));
    let (mut found, mut counted) = (false, 0);
    capture.until(|frame| {
        let port = udp_port(frame);
        counted += usize::from(port == Some(COUNTED));
        found = port == Some(LAST);
        found
    });
    assert!(found, "an honest packet did not come through");
    counted
}

/// The destination port of a frame with UDP; what only speaks of one (ICMP) has none.
fn udp_port(frame: &[u8]) -> Option<u16> {
    let at = match (frame.get(12..14)?, frame.get(20)?, frame.get(23)?) {
        ([8, 0], _, 17) => 36,
        ([0x86, 0xdd], 17, _) => 56,
        _ => return None,
    };
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

#[test]
fn forged_packets_of_a_routed_pod_are_not_forwarded() {
    let lab = Lab::new();
    let pod = &lab.routed;
    let node_end = lab.mac_of(&lab.node, "veth-r");
    let to: Ipv4Addr = OUTSIDE.parse().expect("address");
    let to6: Ipv6Addr = OUTSIDE6.parse().expect("address");
    let (own, own6) = (v4(pod.address()), v6(pod.address6()));
    let neighbour = v4(lab.a.address());
    let neighbour6 = v6(lab.a.address6());
    let datagram = udp(4000, COUNTED);
    let from = |mac, source| frame(node_end, mac, IPV4, &ipv4(source, to, 17, &[], &datagram));
    let from6 = |mac, source| frame(node_end, mac, IPV6, &ipv6(source, to6, 17, &datagram));
    let attacks = [
        ("another pod's IPv4 source", from(pod.mac(), neighbour)),
        ("an unknown IPv4 source", from(pod.mac(), Ipv4Addr::new(203, 0, 113, 7))),
        ("a foreign MAC", from(FOREIGN_MAC, own)),
        ("another pod's IPv6 source", from6(pod.mac(), neighbour6)),
        ("a foreign MAC over IPv6", from6(FOREIGN_MAC, own6)),
    ]
    .map(|(name, frame)| (name, unmarked(&frame)));
    let sender = Sender::open(&pod.namespace);
    // The neighbours on the way are known before anything is counted.
    forwarded(&lab, &sender, &unmarked(&from6(pod.mac(), own6)), TRIALS);
    let mut edge = lab.edge();
    for (name, frame) in &attacks {
        let without = forwarded(&lab, &sender, frame, TRIALS);
        assert_eq!(without, TRIALS, "{name}: the attack itself does not work");
    }
    attach(&mut edge, &pod.attachment);
    for (name, frame) in &attacks {
        assert_eq!(forwarded(&lab, &sender, frame, ATTACKS), 0, "{name}");
    }
    for honest in [from(pod.mac(), own), from6(pod.mac(), own6)] {
        assert_eq!(forwarded(&lab, &sender, &unmarked(&honest), TRIALS), TRIALS);
    }
    // An administrator's further source, and nothing beside it.
    edge.detach(&pod.attachment).expect("no rules");
    let mut wider = pod.attachment.clone();
    wider.edge.extra_sources = vec![crate::lab::net("203.0.113.0/29")];
    attach(&mut edge, &wider);
    let beside = unmarked(&from(pod.mac(), Ipv4Addr::new(203, 0, 113, 8)));
    assert_eq!(forwarded(&lab, &sender, &attacks[1].1, TRIALS), TRIALS);
    assert_eq!(forwarded(&lab, &sender, &beside, TRIALS), 0);
}

/// A frame as short as its packet: what is behind would not be forwarded.
fn unmarked(frame: &[u8]) -> Vec<u8> {
    let end = frame.len() - MARK.len();
    let text = frame[..end].windows(8).rposition(|bytes| bytes == b"datagram").expect("a datagram");
    frame[..text + 8].to_vec()
}

/// How many answers of a kind the node sends to `count` questions.
fn answered(
    lab: &Lab,
    sender: &Sender,
    question: &[u8],
    count: usize,
    is_answer: impl Fn(&[u8]) -> bool,
) -> usize {
    let capture = Capture::open(&lab.routed.namespace);
    for _ in 0..count {
        sender.send(question);
    }
    let pod = &lab.routed;
    let own = v4(pod.address());
    // The answer to a question of its own is the end; its target tells it from the others.
    let last = arp(1, pod.mac(), own, Ipv4Addr::new(169, 254, 1, 1));
    sender.send(&frame(BROADCAST, pod.mac(), ARP, &last));
    let (mut found, mut answers) = (false, 0);
    capture.until(|frame| {
        let is_arp_answer = frame[12..14] == ARP.to_be_bytes() && frame[21] == 2;
        found = is_arp_answer && frame[38..42] == own.octets();
        answers += usize::from(!found && is_answer(frame));
        found
    });
    assert!(found, "an honest question was not answered");
    answers
}

#[test]
fn the_node_answers_no_message_that_speaks_for_others() {
    let lab = Lab::new();
    let pod = &lab.routed;
    let gateway = Ipv4Addr::new(169, 254, 1, 1);
    let gateway6: Ipv6Addr = "fe80::1".parse().expect("address");
    let node_end = lab.mac_of(&lab.node, "veth-r");
    let victim = v4(lab.a.address());
    let mac = pod.mac();
    let solicit = |from, option| {
        let message = icmpv6(from, gateway6, 135, &neighbour(gateway6, &[(1, option)]));
        frame(node_end, mac, IPV6, &ipv6(from, gateway6, 58, &message))
    };
    let attacks = [
        ("ARP for another pod", frame(BROADCAST, mac, ARP, &arp(1, mac, victim, gateway))),
        ("a solicitation with a foreign MAC", solicit(pod.link_local(), FOREIGN_MAC)),
        ("a solicitation of another pod", solicit(v6(lab.a.address6()), mac)),
    ];
    let is_answer = |frame: &[u8]| {
        let arp = frame[12..14] == ARP.to_be_bytes()
            && frame[21] == 2
            && frame[38..42] == victim.octets();
        let advertisement = frame[12..14] == IPV6.to_be_bytes()
            && frame.get(54) == Some(&136)
            && frame[6..12] == node_end.0;
        arp || advertisement
    };
    let sender = Sender::open(&pod.namespace);
    for (name, question) in &attacks {
        let count = answered(&lab, &sender, question, TRIALS, is_answer);
        assert!(count > 0, "{name}: the attack itself does not work");
    }
    let mut edge = lab.edge();
    attach(&mut edge, &pod.attachment);
    for (name, question) in &attacks {
        assert_eq!(answered(&lab, &sender, question, ATTACKS, is_answer), 0, "{name}");
    }
}

/// Sockets of the node that listen to everybody: to broadcasts, and to groups on the pod's link.
fn listeners(lab: &Lab) -> [UdpSocket; 2] {
    let open = || {
        let sockets = [("0.0.0.0", COUNTED), ("::", COUNTED6)]
            .map(|address| UdpSocket::bind(address).expect("a socket"));
        let near = Netlink::open().expect("netlink").require_link("veth-r").expect("it").index;
        let routed_gateway = Ipv4Addr::new(169, 254, 1, 1);
        sockets[0].join_multicast_v4(&GROUP, &routed_gateway).expect("joined");
        sockets[1].join_multicast_v6(&GROUP6, near).expect("joined");
        for socket in &sockets {
            setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BYTES).expect("a larger buffer");
            socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        }
        sockets
    };
    lab.node.run(open).expect("the node")
}

/// How many of `count` frames come to a socket, up to an honest one.
fn heard(socket: &UdpSocket, sender: &Sender, attack: &[u8], last: &[u8], count: usize) -> usize {
    for _ in 0..count {
        sender.send(attack);
    }
    sender.send(last);
    let mut heard = 0;
    loop {
        let (_, from) = socket.recv_from(&mut [0; 16]).expect("an honest datagram comes");
        match from.port() {
            ATTACKER => heard += 1,
            _ => return heard,
        }
    }
}

/// X-17.
#[test]
fn what_a_routed_pod_sends_to_everybody_reaches_nobody_on_the_node() {
    let lab = Lab::new();
    let pod = &lab.routed;
    let (mac, node_end) = (pod.mac(), lab.mac_of(&lab.node, "veth-r"));
    let (own, own6) = (v4(pod.address()), v6(pod.address6()));
    let sent =
        |group, to, port| frame(group, mac, IPV4, &ipv4(own, to, 17, &[], &udp(port, COUNTED)));
    let sent6 = |group, from, to, port| {
        frame(group, mac, IPV6, &ipv6(from, to, 17, &udp6(from, to, (port, COUNTED6))))
    };
    let group_mac = MacAddress([1, 0, 0x5e, 1, 2, 3]);
    let group6 = |last| MacAddress([0x33, 0x33, 0, 0, 0, last]);
    let link_local = pod.link_local();
    let attacks = [
        ("IPv4 broadcast", 0, sent(BROADCAST, Ipv4Addr::BROADCAST, ATTACKER)),
        ("IPv4 multicast", 0, sent(group_mac, GROUP, ATTACKER)),
        ("all nodes of the link", 1, sent6(group6(1), link_local, ALL_NODES, ATTACKER)),
        ("IPv6 multicast", 1, sent6(group6(9), own6, GROUP6, ATTACKER)),
    ];
    let gateways = (GATEWAY.parse().expect("an address"), GATEWAY6.parse().expect("an address"));
    let last = [sent(node_end, gateways.0, HONEST), sent6(node_end, own6, gateways.1, HONEST)];
    on_one_processor();
    let sockets = listeners(&lab);
    let sender = Sender::open(&pod.namespace);
    for (name, family, attack) in &attacks {
        let without = heard(&sockets[*family], &sender, attack, &last[*family], TRIALS);
        assert_eq!(without, TRIALS, "{name}: the attack itself does not work");
    }
    let mut edge = lab.edge();
    attach(&mut edge, &pod.attachment);
    for (name, family, attack) in &attacks {
        let with = heard(&sockets[*family], &sender, attack, &last[*family], ATTACKS);
        assert_eq!(with, 0, "{name}");
    }
}
