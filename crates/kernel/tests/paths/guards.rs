//! The guards between nodes: each attack is first shown to work without our rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use model::layout::{UPLINK, WIREGUARD_LINK};
use model::{MacAddress, Overlay};
use netlink::wireguard::Wireguard;
use netlink::{LinkChange, Netlink, Netns, Route};
use plan::Desired;
use testkit::deferred;
use testkit::emulated::Feature;
use testkit::lab::probe::uninterrupted;

use super::lab::{Families, Lab, PATIENCE, Pod, udp, udp_echo};
use super::packets::{self, Datagram};

/// How long to wait for a packet that shall not come.
const SILENCE: Duration = Duration::from_millis(500);
const WIREGUARD_PORT: u16 = 51820;

/// Routes of someone else that carry pod packets between nodes in plain.
fn add_plain_routes(lab: &Lab) {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut net = lab.nodes[from].netlink();
        let uplink = net.require_link(UPLINK).expect("the uplink").index;
        for (range, hop) in lab.nodes[to].pod_ranges.iter().zip(&lab.nodes[to].addresses) {
            let mut route = Route::via(*range, hop.addr(), uplink, 186);
            route.metric = Some(1); // before ours, whose metric is 0 over IPv4 and 1024 over IPv6
            let _ = net.add_route(&route);
        }
    }
}

#[test]
fn plain_packets_between_pods_of_an_encrypted_cluster_stop_at_either_end() {
    // X-10, on a kernel with or without WireGuard: no key was published yet.
    for families in [Families::V4, Families::V6] {
        let mut lab = Lab::new(Overlay::Native, families, &[0, 0]);
        lab.turn();
        let (one, two) = (lab.add_pod(0, 10), lab.add_pod(1, 20));
        let near = lab.add_pod(0, 11);
        add_plain_routes(&lab);
        let passes = |from: &Netns, to: &Pod, patience| {
            udp_echo(from, &to.namespace, to.addresses[0], 64, patience).is_some()
        };
        let ways = |patience| {
            let gateway = &lab.nodes[0].namespace;
            [passes(&one.namespace, &two, patience), passes(gateway, &two, patience)]
        };
        assert_eq!(ways(PATIENCE), [true; 2], "it works without the guard");
        let encrypted = model::ClusterConfig { overlay: Overlay::Wireguard, ..lab.config.clone() };
        let guard = |index: usize, on: bool| {
            let config = if on { &encrypted } else { &lab.config };
            let node = &lab.nodes[index];
            let (desired, _) = plan::node(&lab.world, config, &node.facts());
            node.enforce(&desired, config);
        };
        for (sender, receiver) in [(true, false), (false, true), (true, true)] {
            guard(0, sender);
            guard(1, receiver);
            assert!(!passes(&one.namespace, &two, SILENCE), "{sender} {receiver}");
            assert!(!passes(&two.namespace, &one, SILENCE), "{sender} {receiver}");
            // By these routes its own address is the source, which is no pod's.
            let own =
                passes(&lab.nodes[0].namespace, &two, if sender { SILENCE } else { PATIENCE });
            assert_eq!(own, !sender, "what a node itself sends to pods is to be encrypted too");
            assert!(passes(&one.namespace, &near, PATIENCE), "pods of one node need no wire");
            guard(0, false);
            guard(1, false);
            assert_eq!(ways(PATIENCE), [true; 2]);
        }
        // While the cluster changes, by the word of who changes it, plain packets still pass.
        let changing =
            model::ClusterConfig { also_receive: [Overlay::Vxlan].into(), ..encrypted.clone() };
        let (desired, _) = plan::node(&lab.world, &changing, &lab.nodes[0].facts());
        lab.nodes[0].enforce(&desired, &changing);
        assert!(passes(&one.namespace, &two, PATIENCE));
        // Before anything is known of the nodes.
        lab.nodes[0].enforce(&Desired::default(), &encrypted);
        assert!(!passes(&one.namespace, &two, SILENCE));
        assert!(passes(&one.namespace, &near, PATIENCE));
        lab.config = encrypted;
    }
}

#[test]
fn nothing_leaves_in_plain_before_the_first_handshake_or_when_the_link_is_gone() {
    if deferred!(Feature::WireGuard) {
        return;
    }
    let mut lab = Lab::new(Overlay::Wireguard, Families::V4, &[0, 0]);
    lab.publish_keys();
    // One end alone: its handshakes are not answered.
    lab.turn_of(0);
    let one = lab.add_pod(0, 10);
    let to: SocketAddr = "10.244.2.20:7007".parse().expect("an address");
    let client = udp(&one.namespace, "0.0.0.0:0".parse().expect("it"), SILENCE);
    let wire = packets::Sniffer::on(&lab.router);
    let speak = || client.send_to(b"secret words", to).expect("sent");
    speak();
    let mut net = lab.nodes[0].netlink();
    let link = net.require_link(WIREGUARD_LINK).expect("the link").index;
    net.delete_link(link).expect("removed");
    add_plain_routes(&lab);
    speak();
    assert!(!wire.sees(b"secret words", SILENCE), "in plain on the wire");
    // The sniffer is able to see it.
    lab.config.overlay = Overlay::HostGw;
    lab.turn_of(0);
    speak();
    assert!(wire.sees(b"secret words", PATIENCE));
}

#[test]
fn a_new_key_takes_over_and_nothing_is_sent_in_plain_meanwhile() {
    if deferred!(Feature::WireGuard) {
        return;
    }
    let mut lab = Lab::new(Overlay::Wireguard, Families::Both, &[0, 0]);
    lab.publish_keys();
    lab.turn();
    let (one, two) = (lab.add_pod(0, 10), lab.add_pod(1, 20));
    let wire = packets::Sniffer::on(&lab.router);
    let speaks = |patience| {
        let to = two.addresses[0];
        udp_echo(&one.namespace, &two.namespace, to, 64, patience).is_some()
    };
    assert!(speaks(PATIENCE));
    let old = lab.nodes[1].keys.load_or_make().expect("the old key");
    let new = lab.nodes[1].keys.rotate().expect("a new key");
    lab.publish_keys();
    lab.turn_of(0);
    assert!(!speaks(SILENCE), "the other end has the old key still");
    let ops = lab.turn_of(1);
    assert_eq!(ops.len(), 1, "the key changes in place: {ops:?}");
    assert!(speaks(PATIENCE), "a handshake under the new key");
    lab.nodes[1].keys.retire_others(&new).expect("retired");
    assert!(lab.nodes[1].keys.private(&old).is_err());
    assert!(lab.turn_of(1).is_empty());
    // The payload of the echoes is 0, 1, 2, …
    let payload: Vec<u8> = (0..32).collect();
    assert!(!wire.sees(&payload, SILENCE), "in plain on the wire");
}

#[test]
fn the_port_of_wireguard_is_open_to_nodes_alone() {
    // A plain socket stands for the kernel's own.
    for families in [Families::V4, Families::V6] {
        let mut lab = Lab::new(Overlay::Native, families, &[0, 0]);
        lab.turn();
        let pod = lab.add_pod(0, 10);
        let stranger = lab.stranger(0, 77);
        let at = SocketAddr::new(lab.nodes[0].addresses[0].addr(), WIREGUARD_PORT);
        let there = SocketAddr::new(lab.nodes[1].addresses[0].addr(), WIREGUARD_PORT);
        let reaches = |from: &Netns, at: SocketAddr, patience| {
            let index = usize::from(at == there);
            let server = udp(&lab.nodes[index].namespace, at, patience);
            let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = udp(from, any.parse().expect("it"), patience);
            let _ = client.send_to(b"x", at);
            uninterrupted(|| server.recv_from(&mut [0; 8])).is_ok()
        };
        let attacks = [(&stranger, at), (&pod.namespace, at), (&pod.namespace, there)];
        for (from, at) in attacks {
            assert!(reaches(from, at, PATIENCE), "it works without rules: {at}");
        }
        lab.config.overlay = Overlay::Wireguard;
        for node in &lab.nodes {
            let (desired, _) = plan::node(&lab.world, &lab.config, &node.facts());
            node.enforce(&desired, &lab.config);
        }
        for (from, at) in attacks {
            assert!(!reaches(from, at, SILENCE), "{at}");
        }
        assert!(reaches(&lab.nodes[1].namespace, at, PATIENCE), "nodes speak");
    }
}

/// who is believed within WireGuard is decided by the ranges of the key alone.
#[test]
fn a_node_speaks_for_its_own_pods_only_within_wireguard() {
    if deferred!(Feature::WireGuard) {
        return;
    }
    for families in [Families::V4, Families::V6] {
        let mut lab = Lab::new(Overlay::Wireguard, families, &[0, 0, 0]);
        lab.publish_keys();
        lab.turn();
        let pod = lab.add_pod(0, 10);
        // The second node has an address of its own range, and one of the third's.
        let node = &lab.nodes[1].namespace;
        let [own, stolen] = [1, 2].map(|number: usize| {
            let range = &lab.nodes[number].pod_ranges[0];
            let address = model::cluster::nth_address(range, 9).expect("an address");
            let mut net = lab.nodes[1].netlink();
            let loopback = net.require_link("lo").expect("loopback").index;
            net.change_link(loopback, &LinkChange::up()).expect("up");
            net.add_address(loopback, address.into()).expect("an address");
            address
        });
        let hears = |source: IpAddr, patience| {
            let server = udp(&pod.namespace, SocketAddr::new(pod.addresses[0], 0), patience);
            let client = udp(node, SocketAddr::new(source, 0), patience);
            let to = server.local_addr().expect("its address");
            client.send_to(b"forged", to).expect("sent");
            let heard = uninterrupted(|| server.recv_from(&mut [0; 8]));
            heard.is_ok_and(|(_, from)| from.ip() == source)
        };
        assert!(hears(own, PATIENCE), "as its own pod");
        assert!(!hears(stolen, SILENCE), "as a pod of the third node");
        let key = lab.nodes[1].keys.load_or_make().expect("the key");
        let trust = || {
            let link = Netlink::open().expect("a socket").require_link(WIREGUARD_LINK);
            let index = link.expect("the link").index;
            let mut wireguard = Wireguard::open().expect("a socket");
            let mut peer = wireguard.link(index).expect("read").peers[&key].clone();
            peer.allowed.insert(lab.nodes[2].pod_ranges[0]);
            wireguard.set_peer(index, &key, &peer).expect("set");
        };
        lab.nodes[0].namespace.run(trust).expect("the node");
        assert!(hears(stolen, PATIENCE), "with its ranges the attack works");
    }
}

/// Sends a forged tunnel packet from a machine and answers whether the pod within hears it.
fn hears(pod: &Pod, from: &Netns, packet: &packets::Outer, patience: Duration) -> bool {
    let server = udp(&pod.namespace, SocketAddr::new(pod.addresses[0], packets::PORT), patience);
    packet.send(from);
    uninterrupted(|| server.recv_from(&mut [0; 64])).is_ok()
}

/// X-09 for one kind of tunnel: who is no node, and who is the wrong one, is not heard.
fn injection_is_dropped(overlay: Overlay, families: Families) {
    let mut lab = Lab::new(Overlay::Native, families, &[0, 0, 0]);
    lab.config.also_receive.insert(overlay);
    for index in 0..3 {
        lab.nodes[index].make_links(&lab.desired(index), &lab.config);
    }
    let pod = lab.add_pod(0, 10);
    let stranger = lab.stranger(0, 77);
    let node = lab.nodes[0].addresses[0].addr();
    let inner = |number: usize| {
        let range = &lab.nodes[number].pod_ranges[0];
        model::cluster::nth_address(range, 9).expect("an address")
    };
    let forged = |source: IpAddr| packets::Outer {
        overlay,
        to: node,
        mac: MacAddress::of_vtep(node),
        inner: Datagram { from: source, to: pod.addresses[0] },
    };
    let attackers = [
        (&stranger, inner(1), "a stranger as a pod of node2"),
        (&lab.nodes[1].namespace, inner(2), "node2 as a pod of node3"),
        (&lab.nodes[1].namespace, inner(0), "node2 as a pod of node1"),
        (&pod.namespace, inner(1), "a pod as a pod of node2"),
    ];
    for (from, source, what) in attackers {
        assert!(hears(&pod, from, &forged(source), PATIENCE), "works without rules: {what}");
    }
    lab.nodes[0].enforce(&lab.desired(0), &lab.config);
    for (from, source, what) in attackers {
        assert!(!hears(&pod, from, &forged(source), SILENCE), "{overlay}: {what}");
    }
    let own = forged(inner(1));
    assert!(hears(&pod, &lab.nodes[1].namespace, &own, PATIENCE), "node2 for its own pods");
}

#[test]
fn forged_vxlan_packets_are_dropped_over_both_families() {
    for families in [Families::V4, Families::V6] {
        injection_is_dropped(Overlay::Vxlan, families);
    }
}

#[test]
fn forged_ipv4_in_ipv4_is_dropped() {
    if deferred!(Feature::Ipip) {
        return;
    }
    injection_is_dropped(Overlay::Ipip, Families::V4);
}

#[test]
fn forged_ipv6_in_ipv6_is_dropped() {
    if deferred!(Feature::Ip6Tunnel) {
        return;
    }
    injection_is_dropped(Overlay::Ipip, Families::V6);
}
