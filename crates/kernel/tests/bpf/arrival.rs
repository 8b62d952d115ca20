//! Single frames that come from other machines: which are judged, dropped, forwarded.

use std::net::IpAddr;

use ::model::MacAddress;
use ebpf_abi::Reason;
use kernel::bpf::{Forwarding, Program};
use render::bpf::Way;

use crate::lab::{
    self, Mode, Node, TestPod, address, mac, node_address, pod_addresses, range, wire,
};
use crate::{hooks, raw, remote, run_one};

/// Node 1 with one pod, and another that takes the kernel's path; node 2 by tunnel, node 3 by next
/// hop, node 4 by the kernel's path.
struct Receiver {
    node: Node,
    forwarding: Forwarding,
    tunnel: (u32, MacAddress),
    uplink: (u32, MacAddress),
    _others: (Node, [TestPod; 2]),
}

impl Receiver {
    fn new() -> Self {
        let (mut node, mut other) = (Node::new(Mode::Routed), Node::new(Mode::Routed));
        let pods = [11, 12].map(|number| node.add_pod(1, number));
        node.wanted.pods.get_mut("veth12").expect("the pod").via_stack = true;
        wire(&mut node, &mut other);
        for (ranges, number, way) in [
            (["10.244.3.0/24", "fd00:3::/64"], 3, Way::Direct { next_hop: node_address(3) }),
            (["10.244.4.0/24", "fd00:4::/64"], 4, Way::Stack),
        ] {
            for text in ranges {
                let mut found = remote(way);
                found.node = node_address(number);
                node.wanted.remotes.insert(range(text), found);
            }
        }
        // The network of nodes; those that are known are 2, 3 and 4.
        let mut network = remote(Way::Node);
        network.node = address("::");
        node.wanted.remotes.insert(range("192.0.2.0/24"), network);
        for number in [2, 3, 4] {
            let mut found = remote(Way::Node);
            found.node = node_address(number);
            node.wanted.remotes.insert(node_address(number).into(), found);
        }
        let mut forwarding = node.load(hooks()[0]);
        node.apply(&mut forwarding);
        let mut link = |name: &str| {
            let link = node.netlink.require_link(name).expect("a link");
            (link.index, link.mac.expect("a MAC address"))
        };
        let (tunnel, uplink) = (link("flatnet.1"), link("eth0"));
        node.silence();
        Self { node, forwarding, tunnel, uplink, _others: (other, pods) }
    }

    fn fate(&self, program: Program, link_index: u32, frame: &[u8]) -> (Reason, Vec<u8>) {
        let fate = self.node.run(|| run_one(&self.forwarding, program, link_index, frame));
        (fate.reason, fate.frame)
    }
}

/// A tunnel packet as `vni`, `port`, VXLAN's flags and the frame within say.
fn tunnelled(
    to: MacAddress,
    outer: (IpAddr, IpAddr),
    (vni, port, flags): (u32, u16, u8),
    frame: &[u8],
) -> Vec<u8> {
    let mut payload = vec![flags, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(frame);
    raw::udp_frame_with((to, mac(99)), outer, (50_000, port), &payload)
}

/// X-09, frame by frame.
#[test]
fn tunnel_packets_are_judged_by_who_sent_them_and_what_they_carry() {
    let receiver = Receiver::new();
    let own = (lab::VNI, lab::VXLAN_PORT, 8);
    let inner = |source: &str| {
        let source = address(source);
        let to = pod_addresses(1, 11)[usize::from(source.is_ipv6())];
        raw::udp_frame((receiver.tunnel.1, mac(98)), (source, to), (1, 2))
    };
    let mut arp = inner("10.244.9.9");
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut cut = inner("10.244.2.5");
    cut.truncate(14 + 12);
    let rows = [
        ("honest", 2, own, inner("10.244.2.5"), false),
        ("honest, IPv6", 2, own, inner("fd00:2::5"), false),
        ("honest, though our way is another", 3, own, inner("10.244.3.5"), false),
        ("honest, though our way is the kernel's", 4, own, inner("fd00:4::5"), false),
        ("another node's pod", 2, own, inner("10.244.3.5"), true),
        ("another node's pod, IPv6", 3, own, inner("fd00:2::5"), true),
        ("our own pod", 2, own, inner("10.244.1.11"), true),
        ("a node, which answers a pod itself", 2, own, inner("192.0.2.2"), false),
        ("a machine that a node routes for", 3, own, inner("192.0.2.50"), false),
        ("the same by a stranger", 77, own, inner("192.0.2.50"), true),
        ("a stranger in a node's name", 77, own, inner("192.0.2.3"), true),
        ("nobody's pod", 2, own, inner("8.8.8.8"), true),
        ("from a stranger", 77, own, inner("10.244.2.5"), true),
        ("cut off", 2, own, cut, true),
        ("not IP", 77, own, arp, false),
        ("another network", 77, (9, lab::VXLAN_PORT, 8), inner("10.244.2.5"), false),
        ("another port", 77, (lab::VNI, 4789, 8), inner("10.244.2.5"), false),
        ("no network", 77, (lab::VNI, lab::VXLAN_PORT, 0), inner("10.244.2.5"), false),
    ];
    for (name, sender, header, frame, is_dropped) in rows {
        let outer = (node_address(sender), node_address(1));
        let frame = tunnelled(receiver.uplink.1, outer, header, &frame);
        let (reason, left) = receiver.fate(Program::FromUplink, receiver.uplink.0, &frame);
        let expected = if is_dropped { Reason::DropTunnel } else { Reason::StackUnknown };
        assert_eq!(reason, expected, "{name}");
        assert_eq!(left, frame, "{name}");
    }
}

#[test]
fn packets_of_other_nodes_pods_are_forwarded_by_the_way_that_they_shall_come() {
    let receiver = Receiver::new();
    let (by_tunnel, by_uplink) = (Program::FromTunnel, Program::FromUplink);
    let rows = [
        ("by tunnel", by_tunnel, "10.244.2.5", "10.244.1.11", Reason::ToPod),
        ("by tunnel, IPv6", by_tunnel, "fd00:2::5", "fd00:1::11", Reason::ToPod),
        ("by next hop", by_uplink, "10.244.3.5", "10.244.1.11", Reason::ToPod),
        ("the wrong way", by_uplink, "10.244.2.5", "10.244.1.11", Reason::StackUnknown),
        ("the other wrong way", by_tunnel, "10.244.3.5", "10.244.1.11", Reason::StackUnknown),
        ("the kernel's way", by_uplink, "10.244.4.5", "10.244.1.11", Reason::StackUnknown),
        ("from outside", by_uplink, "8.8.8.8", "10.244.1.11", Reason::StackUnknown),
        ("to a pod of rules", by_tunnel, "10.244.2.5", "10.244.1.12", Reason::StackFlagged),
        ("to no pod", by_tunnel, "10.244.2.5", "10.244.1.99", Reason::StackUnknown),
    ];
    for (name, program, source, destination, expected) in rows {
        let (link_index, own) =
            if program == by_tunnel { receiver.tunnel } else { receiver.uplink };
        let addresses = (address(source), address(destination));
        let frame = raw::udp_frame((own, mac(98)), addresses, (1, 2));
        let (reason, left) = receiver.fate(program, link_index, &frame);
        assert_eq!(reason, expected, "{name}");
        let is_forwarded = expected == Reason::ToPod;
        assert_eq!(left[..6] == mac(11).0, is_forwarded, "{name}: to the pod's MAC address");
        assert_eq!(left != frame, is_forwarded, "{name}");

        // Not for this node's link, or at its last hop, or larger than the pod's link.
        let elsewhere = raw::udp_frame((mac(97), mac(98)), addresses, (1, 2));
        let mut last = frame.clone();
        last[if addresses.0.is_ipv4() { 22 } else { 21 }] = 1;
        let large = raw::udp_frame_with((own, mac(98)), addresses, (1, 2), &[0; 1500]);
        let oddities = [
            (elsewhere, Reason::StackOther),
            (last, Reason::StackTimeToLive),
            (large, Reason::StackTooBig),
        ];
        for (frame, odd) in oddities {
            let (reason, left) = receiver.fate(program, link_index, &frame);
            assert_ne!(reason, Reason::ToPod, "{name}");
            assert_eq!(left, frame, "{name}");
            assert!(!is_forwarded || reason == odd, "{name}: {reason:?}");
        }
    }
}
