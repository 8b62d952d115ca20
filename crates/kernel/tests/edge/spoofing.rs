//! BR macspoofchk: nothing of what a pod may not send passes, whatever it
//! does pass without the rules, and what a host must send passes with them.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::MacAddress;

use crate::frames::{
    ARP, BROADCAST, Capture, IPV4, IPV6, Sender, arp, dropped_by_the_machine, frame, icmpv6, ipv4,
    ipv6, last_mark, neighbour, on_one_processor, tagged, udp, unmarked, v4, v6,
};
use crate::lab::{GATEWAY, GATEWAY6, Lab, Pod, attach};

/// Of each kind, under the rules.
const ATTACKS: usize = 10_000;
/// Of each kind, without: enough to see that they would pass.
const TRIALS: usize = 50;
/// Rounds until the machine drops nothing.
const ROUNDS_MAX: usize = 10;
const FOREIGN_MAC: MacAddress = MacAddress([0x0a, 0x66, 6, 6, 6, 6]);
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

type Frames = Vec<(&'static str, Vec<u8>)>;

/// Frames that `pod` may not send, towards a neighbour on the same bridge.
fn attacks(pod: &Pod, victim: &Pod) -> Frames {
    let (mac, to) = (pod.mac(), victim.mac());
    let (own, other) = (v4(pod.address()), v4(victim.address()));
    let gateway: Ipv4Addr = GATEWAY.parse().expect("address");
    let packet = |from| frame(to, mac, IPV4, &ipv4(from, other, 17, &[], &udp(4000, 5000)));
    let honest = packet(own);
    let under =
        |source| frame(BROADCAST, source, IPV4, &ipv4(own, other, 17, &[], &udp(4000, 5000)));
    let to_all =
        |address, group| frame(group, mac, IPV4, &ipv4(own, address, 17, &[], &udp(4000, 5000)));
    let discover = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &[], &udp(68, 67));
    let options = [1, 1, 1, 0];
    let mut frames = vec![
        ("a foreign MAC", under(FOREIGN_MAC)),
        ("the neighbour's MAC", under(to)),
        ("the gateway's MAC", under(MacAddress::of_pod_address(gateway.into()))),
        ("the neighbour's IPv4 source", packet(other)),
        ("the gateway's IPv4 source", packet(gateway)),
        ("an unknown IPv4 source", packet(Ipv4Addr::new(203, 0, 113, 7))),
        ("a DHCP answer", frame(to, mac, IPV4, &ipv4(own, other, 17, &[], &udp(67, 68)))),
        (
            "a DHCP answer behind options",
            frame(to, mac, IPV4, &ipv4(own, other, 17, &options, &udp(67, 68))),
        ),
        ("a DHCP question from 0.0.0.0", frame(BROADCAST, mac, IPV4, &discover)),
        ("IPv4 broadcast", to_all(Ipv4Addr::BROADCAST, BROADCAST)),
        ("IPv4 multicast", to_all(Ipv4Addr::new(239, 1, 2, 3), MacAddress([1, 0, 0x5e, 1, 2, 3]))),
        ("a VLAN tag", tagged(&honest, &[0x8100])),
        ("two VLAN tags", tagged(&honest, &[0x88a8, 0x8100])),
        ("LLDP", frame(to, mac, 0x88cc, &[2, 7, 4])),
        ("RARP", frame(BROADCAST, mac, 0x8035, &arp(3, mac, own, own))),
        ("an ARP answer for the gateway", frame(to, mac, ARP, &arp(2, mac, gateway, other))),
        ("an ARP question of the victim's", frame(to, mac, ARP, &arp(1, mac, other, gateway))),
        ("an ARP answer with a foreign MAC", frame(to, mac, ARP, &arp(2, FOREIGN_MAC, own, other))),
        ("an ARP frame from a foreign MAC", frame(to, FOREIGN_MAC, ARP, &arp(2, mac, own, other))),
        (
            "an ARP probe for the victim's address",
            frame(BROADCAST, mac, ARP, &arp(1, mac, Ipv4Addr::UNSPECIFIED, other)),
        ),
    ];
    frames.extend(attacks6(pod, victim));
    frames
}

fn attacks6(pod: &Pod, victim: &Pod) -> Frames {
    let (mac, to) = (pod.mac(), victim.mac());
    let (own, other) = (v6(pod.address6()), v6(victim.address6()));
    let gateway: Ipv6Addr = GATEWAY6.parse().expect("address");
    let local = pod.link_local();
    let framed = |packet: &[u8]| frame(to, mac, IPV6, packet);
    let message =
        |from, kind, body: &[u8]| framed(&ipv6(from, other, 58, &icmpv6(from, other, kind, body)));
    let to_all = |kind, body: &[u8]| {
        let message = icmpv6(local, ALL_NODES, kind, body);
        frame(ALL_NODES_MAC, mac, IPV6, &ipv6(local, ALL_NODES, 58, &message))
    };
    let router = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let advertisement = icmpv6(local, other, 134, &router);
    // A header of destination options: eight bytes of padding.
    let behind = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |next, offset: u16, more: u16| {
        let [high, low] = (offset | more).to_be_bytes();
        [next, 0, high, low, 0, 0, 0, 9]
    };
    let first_tiny = [&fragment(60, 0, 1)[..], &behind(58)].concat();
    let first_whole = [&fragment(58, 0, 1)[..], &advertisement].concat();
    let packet = |from| frame(to, mac, IPV6, &ipv6(from, other, 17, &udp(4000, 5000)));
    let group = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 9);
    let two = [(TARGET_OPTION, mac), (TARGET_OPTION, FOREIGN_MAC)];
    vec![
        ("the neighbour's IPv6 source", packet(other)),
        ("the neighbour's link-local source", packet(victim.link_local())),
        ("the gateway's IPv6 source", packet(gateway)),
        ("a DHCPv6 answer", framed(&ipv6(local, other, 17, &udp(547, 546)))),
        ("a router advertisement", to_all(134, &router)),
        ("a router advertisement to one", message(local, 134, &router)),
        (
            "a router advertisement behind options",
            framed(&ipv6(local, other, 60, &[&behind(58)[..], &advertisement].concat())),
        ),
        ("a router advertisement's first fragment", framed(&ipv6(local, other, 44, &first_whole))),
        ("a first fragment without a type", framed(&ipv6(local, other, 44, &first_tiny))),
        ("a redirect", message(local, 137, &neighbour(gateway, &[]))),
        ("a router solicitation", to_all(133, &[0; 4])),
        ("a query of multicast listeners", to_all(130, &[0; 20])),
        ("an advertisement of the gateway", to_all(136, &neighbour(gateway, &[(2, mac)]))),
        ("an advertisement of the victim", message(own, 136, &neighbour(other, &[(2, mac)]))),
        (
            "an advertisement with a foreign MAC",
            message(own, 136, &neighbour(own, &[(TARGET_OPTION, FOREIGN_MAC)])),
        ),
        ("an advertisement with two options", message(own, 136, &neighbour(own, &two))),
        (
            "a solicitation with a foreign MAC",
            message(own, 135, &neighbour(other, &[(SOURCE_OPTION, FOREIGN_MAC)])),
        ),
        (
            "detection of the victim's address",
            message(Ipv6Addr::UNSPECIFIED, 135, &neighbour(other, &[])),
        ),
        (
            "IPv6 multicast",
            frame(
                MacAddress([0x33, 0x33, 0, 0, 0, 9]),
                mac,
                IPV6,
                &ipv6(own, group, 17, &udp(4000, 5000)),
            ),
        ),
    ]
}

/// What a pod must be able to send.
fn honest(pod: &Pod, neighbour_pod: &Pod) -> Frames {
    let (mac, to) = (pod.mac(), neighbour_pod.mac());
    let (own, other) = (v4(pod.address()), v4(neighbour_pod.address()));
    let (own6, other6) = (v6(pod.address6()), v6(neighbour_pod.address6()));
    let local = pod.link_local();
    let reports = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let reports_mac = MacAddress([0x33, 0x33, 0, 0, 0, 0x16]);
    let message = |from, kind, body: &[u8]| {
        frame(to, mac, IPV6, &ipv6(from, other6, 58, &icmpv6(from, other6, kind, body)))
    };
    let report = |from| {
        let message = icmpv6(from, reports, 143, &[0; 4]);
        let hop_by_hop = [58, 0, 5, 2, 0, 0, 1, 0];
        frame(
            reports_mac,
            mac,
            IPV6,
            &ipv6(from, reports, 0, &[&hop_by_hop[..], &message].concat()),
        )
    };
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let later_fragment = [17, 0, 0, 8, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8];
    let tcp = [[0x10, 0, 0x20, 0].as_slice(), &[0; 8], &[0x50, 2, 0, 0, 0, 0, 0, 0]].concat();
    let mut later = ipv4(own, other, 17, &[], b"the rest");
    later[6..8].copy_from_slice(&[0, 3]);
    later[10..12].copy_from_slice(&[0, 0]);
    vec![
        ("UDP", frame(to, mac, IPV4, &ipv4(own, other, 17, &[], &udp(4000, 5000)))),
        ("TCP", frame(to, mac, IPV4, &ipv4(own, other, 6, &[], &tcp))),
        ("SCTP", frame(to, mac, IPV4, &ipv4(own, other, 132, &[], &[0; 12]))),
        ("ICMP", frame(to, mac, IPV4, &ipv4(own, other, 1, &[], &[8, 0, 0, 0, 0, 0, 0, 0]))),
        ("a later fragment", frame(to, mac, IPV4, &later)),
        ("an ARP question", frame(BROADCAST, mac, ARP, &arp(1, mac, own, other))),
        ("an ARP announcement", frame(BROADCAST, mac, ARP, &arp(1, mac, own, own))),
        ("an ARP probe", frame(BROADCAST, mac, ARP, &arp(1, mac, Ipv4Addr::UNSPECIFIED, own))),
        ("UDP over IPv6", frame(to, mac, IPV6, &ipv6(own6, other6, 17, &udp(4000, 5000)))),
        (
            "UDP from the link-local address",
            frame(to, mac, IPV6, &ipv6(local, other6, 17, &udp(1, 2))),
        ),
        ("TCP over IPv6", frame(to, mac, IPV6, &ipv6(own6, other6, 6, &tcp))),
        ("a later IPv6 fragment", frame(to, mac, IPV6, &ipv6(own6, other6, 44, &later_fragment))),
        ("an ICMPv6 echo", message(own6, 128, &[0; 4])),
        ("a solicitation", message(own6, 135, &neighbour(other6, &[(SOURCE_OPTION, mac)]))),
        ("a solicitation without options", message(local, 135, &neighbour(other6, &[]))),
        ("an advertisement", message(own6, 136, &neighbour(own6, &[(TARGET_OPTION, mac)]))),
        ("an advertisement of its link-local", message(own6, 136, &neighbour(local, &[]))),
        ("detection of its own address", message(unspecified, 135, &neighbour(own6, &[]))),
        ("a report of listeners", report(local)),
        ("a report before an address", report(unspecified)),
    ]
}

/// Counts what of a pod's frames reaches another.
struct Range<'a> {
    from: Sender,
    to: &'a Pod,
    /// Tells the bridge where the other pod is, whatever a forged frame told it. It bears no mark:
    /// the port is a hairpin, and its copy for the other pod may come in after the capture began.
    restore: (Sender, Vec<u8>),
    /// An honest frame for everybody.
    last: Vec<u8>,
    round: Cell<u32>,
}

impl<'a> Range<'a> {
    fn new(from: &Pod, to: &'a Pod) -> Self {
        let announcement = |pod: &Pod| {
            let own = v4(pod.address());
            frame(BROADCAST, pod.mac(), ARP, &arp(1, pod.mac(), own, own))
        };
        on_one_processor();
        Self {
            from: Sender::open(&from.namespace),
            to,
            restore: (Sender::open(&to.namespace), unmarked(announcement(to))),
            last: unmarked(announcement(from)),
            round: Cell::new(0),
        }
    }

    /// How many of `count` frames pass.
    fn passed(&self, frame: &[u8], count: usize) -> usize {
        let (restorer, announcement) = &self.restore;
        restorer.send(announcement);
        let capture = Capture::open(&self.to.namespace);
        for _ in 0..count {
            self.from.send(frame);
        }
        // Each round has an end of its own: another's may still be under way.
        self.round.set(self.round.get() + 1);
        let end = last_mark(self.round.get());
        let last = [self.last.as_slice(), &end].concat();
        capture.count(&end, || self.from.send(&last))
    }

    /// Whether all of [`TRIALS`] frames pass. A round in which the machine dropped packets of
    /// anybody says nothing.
    fn all_pass(&self, frame: &[u8]) -> bool {
        for _ in 0..ROUNDS_MAX {
            let before = dropped_by_the_machine();
            let is_whole = self.passed(frame, TRIALS) == TRIALS;
            if is_whole || dropped_by_the_machine() == before {
                return is_whole;
            }
        }
        panic!("the machine dropped packets in each of {ROUNDS_MAX} rounds");
    }
}

#[test]
fn nothing_forged_passes_a_bridge_and_all_of_it_does_without_the_rules() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let range = Range::new(&lab.a, &lab.b);
    let attacks = attacks(&lab.a, &lab.b);
    for (name, frame) in &attacks {
        assert!(range.all_pass(frame), "{name}: the attack itself does not work");
    }
    attach(&mut edge, &lab.a.attachment);
    for (name, frame) in &attacks {
        assert_eq!(range.passed(frame, ATTACKS), 0, "{name}");
    }
    // The administrator's switch.
    let mut trusted = lab.a.attachment.clone();
    edge.detach(&trusted).expect("no rules");
    trusted.edge.anti_spoofing = false;
    attach(&mut edge, &trusted);
    let (name, frame) = &attacks[0];
    assert!(range.all_pass(frame), "{name}, switched off");
}

#[test]
fn what_a_host_must_send_passes_a_bridge() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    attach(&mut edge, &lab.a.attachment);
    attach(&mut edge, &lab.b.attachment);
    let range = Range::new(&lab.a, &lab.b);
    for (name, frame) in honest(&lab.a, &lab.b) {
        assert!(range.all_pass(&frame), "{name}");
    }
}

/// an address that an administrator allows besides works: who asks for it is answered, and
/// with it nothing else may be said.
#[test]
fn further_sources_are_announced_by_arp_and_by_neighbour_discovery() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let mut pod = lab.a.attachment.clone();
    pod.edge.extra_sources = vec![crate::lab::net("203.0.113.0/29"), crate::lab::net("fd99::/64")];
    let (mac, to) = (lab.a.mac(), lab.b.mac());
    let other = v6(lab.b.address6());
    let [extra, beside]: [Ipv6Addr; 2] =
        ["fd99::5", "fd98::5"].map(|text| text.parse().expect("an address"));
    let extra4 = Ipv4Addr::new(203, 0, 113, 1);
    let message = |from: Ipv6Addr, kind, body: &[u8]| {
        frame(to, mac, IPV6, &ipv6(from, other, 58, &icmpv6(from, other, kind, body)))
    };
    let own = |target, mac| neighbour(target, &[(TARGET_OPTION, mac)]);
    let none = Ipv6Addr::UNSPECIFIED;
    let rows = [
        ("a datagram", frame(to, mac, IPV6, &ipv6(extra, other, 17, &udp(4000, 5000))), true),
        ("an advertisement", message(extra, 136, &own(extra, mac)), true),
        ("an advertisement without options", message(extra, 136, &neighbour(extra, &[])), true),
        ("a solicitation", message(extra, 135, &neighbour(other, &[(SOURCE_OPTION, mac)])), true),
        ("detection of a duplicate", message(none, 135, &neighbour(extra, &[])), true),
        ("ARP", frame(BROADCAST, mac, ARP, &arp(1, mac, extra4, extra4)), true),
        ("a foreign MAC in an advertisement", message(extra, 136, &own(extra, FOREIGN_MAC)), false),
        ("an advertisement of the victim", message(extra, 136, &own(other, mac)), false),
        ("an advertisement of a neighbour range", message(extra, 136, &own(beside, mac)), false),
        ("one from a neighbour range", message(beside, 136, &own(extra, mac)), false),
        ("detection beside the range", message(none, 135, &neighbour(beside, &[])), false),
        ("a router's advertisement", message(extra, 134, &[0; 12]), false),
    ];
    let range = Range::new(&lab.a, &lab.b);
    attach(&mut edge, &lab.a.attachment);
    for (name, frame, _) in &rows {
        assert_eq!(range.passed(frame, TRIALS), 0, "{name}, which nobody allowed");
    }
    edge.detach(&lab.a.attachment).expect("detach");
    attach(&mut edge, &pod);
    for (name, frame, passes) in &rows {
        match passes {
            true => assert!(range.all_pass(frame), "{name}"),
            false => assert_eq!(range.passed(frame, TRIALS), 0, "{name}"),
        }
    }
}
