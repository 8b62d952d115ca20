//! Attacks on the tunnel with real packets. Each is first shown to work without our rules.

mod lab;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::{Lab, PATIENCE, Pod};
use model::layout::{BRIDGE, UPLINK};
use model::world::Kind;
use model::{MacAddress, NamespacedName, Overlay};
use netlink::{LinkChange, Netns, VxlanSpec, sysctl};
use testkit::lab::probe::uninterrupted;

/// How long to wait for a packet that shall not come.
const SILENCE: Duration = Duration::from_millis(500);
const PORT: u16 = 7777;
/// The defaults of `TunnelConfig`.
const VXLAN_PORT: u16 = 8472;
const VXLAN_VNI: u32 = 1;
const OTHER_VNI: u32 = 7;

/// A listener in the victim's namespace, and the tunnel end that leads to it.
struct Victim {
    socket: UdpSocket,
    address: Ipv4Addr,
    mac: MacAddress,
}

impl Victim {
    fn new(namespace: &Netns, address: IpAddr, mac: MacAddress) -> Self {
        let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        let bind = || UdpSocket::bind((address, PORT)).expect("bound");
        Self { socket: namespace.run(bind).expect("inside"), address, mac }
    }

    /// A pod behind the tunnel end of a node.
    fn pod(pod: &Pod, node: IpAddr) -> Self {
        Self::new(&pod.namespace, pod.address, MacAddress::of_vtep(node))
    }

    /// Whether a packet that claims the inner source `inner` arrives when the attacker sends it
    /// in a tunnel packet.
    fn is_reached(&self, attack: &Attack<'_>, inner: &str, vni: u32) -> bool {
        let inner: Ipv4Addr = inner.parse().expect("an address");
        let packet = tunnel_packet(vni, self.mac, inner, self.address);
        let send = || {
            let socket = UdpSocket::bind((attack.source, 0)).expect("bound");
            socket.send_to(&packet, SocketAddr::new(attack.to, VXLAN_PORT))
        };
        match attack.from.run(send).expect("inside") {
            Ok(length) => assert_eq!(length, packet.len()),
            Err(error) => panic!("the attacker cannot send: {error}"),
        }
        let patience = if attack.works { PATIENCE } else { SILENCE };
        self.socket.set_read_timeout(Some(patience)).expect("a timeout");
        match uninterrupted(|| self.socket.recv_from(&mut [0; 64])) {
            Ok((_, from)) => {
                assert_eq!(from.ip(), IpAddr::V4(inner));
                true
            }
            Err(_) => false,
        }
    }
}

/// Who sends, with which outer source, to which tunnel end, and whether it is expected to work.
#[derive(Clone, Copy)]
struct Attack<'a> {
    from: &'a Netns,
    source: IpAddr,
    to: IpAddr,
    works: bool,
}

impl<'a> Attack<'a> {
    fn new(from: &'a Netns, to: IpAddr) -> Self {
        Self { from, source: Ipv4Addr::UNSPECIFIED.into(), to, works: true }
    }

    fn stopped(self) -> Self {
        Self { works: false, ..self }
    }
}

/// A VXLAN packet (RFC 7348) with a UDP datagram to the victim within.
fn tunnel_packet(vni: u32, mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let body = b"forged";
    let udp_bytes = 8 + body.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_bytes).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(mac.0);
    packet.extend([0x02, 0, 0, 0, 0, 9, 0x08, 0x00]);
    packet.extend(ip);
    packet.extend(PORT.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend([0, 0]); // no checksum
    packet.extend(body);
    packet
}

#[test]
fn a_machine_that_is_no_node_sends_nothing_through_the_tunnel() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let pod = lab.add_pod(0, "pod");
    let victim = Victim::pod(&pod, lab.nodes[0].address);
    let stranger = lab.stranger(77);
    let attack = Attack::new(&stranger, lab.nodes[0].address);
    assert!(victim.is_reached(&attack, "10.244.2.9", VXLAN_VNI), "the attack works without rules");
    lab.enforce();
    for inner in ["10.244.2.9", "172.30.0.77"] {
        assert!(!victim.is_reached(&attack.stopped(), inner, VXLAN_VNI), "as {inner}");
    }
}

#[test]
fn a_pod_sends_nothing_through_the_tunnel_of_its_node() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let (attacker, pod) = (lab.add_pod(0, "attacker"), lab.add_pod(0, "pod"));
    let victim = Victim::pod(&pod, lab.nodes[0].address);
    // The tunnel's socket is open on every address of the node.
    let attacks = [lab.nodes[0].address, "10.244.1.1".parse().expect("an address")]
        .map(|to| Attack::new(&attacker.namespace, to));
    for attack in &attacks {
        assert!(victim.is_reached(attack, "10.244.2.9", VXLAN_VNI), "it works without rules");
    }
    lab.enforce();
    for attack in &attacks {
        assert!(!victim.is_reached(&attack.stopped(), "10.244.2.9", VXLAN_VNI), "{}", attack.to);
    }
}

#[test]
fn a_pod_that_poses_as_a_node_sends_nothing_through_the_tunnel() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    // The rules at the pod's edge would stop it before the tunnel's.
    let (attacker, pod) = (lab.add_liar(0, "attacker"), lab.add_pod(0, "pod"));
    let victim = Victim::pod(&pod, lab.nodes[0].address);
    lab.nodes[0]
        .namespace
        .run(|| {
            // Else the reverse-path filter of the bridge would stop it, as long as it is left on.
            for link in ["all", BRIDGE] {
                let key = format!("net/ipv4/conf/{link}/rp_filter");
                sysctl::write(&key, "0").expect("the unsafe switch of another tool");
            }
        })
        .expect("inside");
    let mut netlink = attacker.netlink();
    let link = netlink.require_link("eth0").expect("the pod's link").index;
    netlink.add_address(link, "172.30.0.3/32".parse().expect("a prefix")).expect("added");
    let source = lab.nodes[1].address;
    let attack = Attack { source, ..Attack::new(&attacker.namespace, lab.nodes[0].address) };
    assert!(victim.is_reached(&attack, "10.244.2.9", VXLAN_VNI), "the attack works without rules");
    lab.enforce();
    assert!(!victim.is_reached(&attack.stopped(), "10.244.2.9", VXLAN_VNI));
}

#[test]
fn a_pod_sends_nothing_to_the_tunnels_of_other_nodes_not_even_masqueraded() {
    let mut lab = Lab::new(2, Overlay::Vxlan);
    // Then packets from pods to other nodes are masqueraded, and would have a node as source.
    lab.config.node_cidrs = vec!["192.0.2.0/24".parse().expect("a range")];
    lab.reconcile();
    let (attacker, pod) = (lab.add_pod(0, "attacker"), lab.add_pod(1, "pod"));
    let victim = Victim::pod(&pod, lab.nodes[1].address);
    let attack = Attack::new(&attacker.namespace, lab.nodes[1].address);
    assert!(victim.is_reached(&attack, "10.244.1.9", VXLAN_VNI), "the attack works without rules");
    lab.nodes[0].enforce(&lab.world, &lab.config);
    let inner = "10.244.1.9";
    assert!(!victim.is_reached(&attack.stopped(), inner, VXLAN_VNI), "it does not leave the node");
    lab.enforce();
    assert!(!victim.is_reached(&attack.stopped(), inner, VXLAN_VNI));
}

#[test]
fn a_node_speaks_for_its_own_pods_only() {
    let mut lab = Lab::new(3, Overlay::Vxlan);
    lab.reconcile();
    let pod = lab.add_pod(0, "pod");
    let victim = Victim::pod(&pod, lab.nodes[0].address);
    let to = lab.nodes[0].address;
    let attack = Attack::new(&lab.nodes[1].namespace, to);
    // Of another node; of the receiving node.
    let wrong = ["10.244.3.9", "10.244.1.99"];
    for inner in wrong {
        assert!(victim.is_reached(&attack, inner, VXLAN_VNI), "{inner} works without rules");
    }
    lab.enforce();
    for inner in wrong {
        assert!(!victim.is_reached(&attack.stopped(), inner, VXLAN_VNI), "as {inner}");
    }
    for own in ["10.244.2.9", "172.30.0.3"] {
        assert!(victim.is_reached(&attack, own, VXLAN_VNI), "as {own}");
    }
    // A node that left speaks for nobody, though its address is still there.
    lab.world.remove(Kind::Node, &NamespacedName::new("", "node2"));
    let ops = lab.nodes[0].enforce(&lab.world, &lab.config);
    assert_eq!(ops.len(), 1, "elements go, rules stay: {ops:?}");
    assert!(!victim.is_reached(&attack.stopped(), "10.244.2.9", VXLAN_VNI));
}

#[test]
fn tunnels_of_others_on_the_same_port_are_left_alone() {
    let lab = Lab::new(1, Overlay::Vxlan);
    lab.reconcile();
    lab.enforce();
    let node = &lab.nodes[0];
    let mut netlink = node.netlink();
    let mac = "02:00:00:00:00:07".parse().expect("a MAC");
    let uplink_index = netlink.require_link(UPLINK).expect("the uplink").index;
    let spec = VxlanSpec {
        name: "other".into(),
        vni: OTHER_VNI,
        port: VXLAN_PORT,
        local: node.address,
        uplink_index,
        mac,
        mtu: 1450,
    };
    netlink.create_vxlan(&spec).expect("another tool's tunnel");
    let link = netlink.require_link("other").expect("the tunnel").index;
    netlink.add_address(link, "192.168.77.1/24".parse().expect("a prefix")).expect("added");
    netlink.change_link(link, &LinkChange::up()).expect("up");
    let address = "192.168.77.1".parse().expect("an address");
    let victim = Victim::new(&node.namespace, address, mac);
    let stranger = lab.stranger(77);
    let packet = Attack::new(&stranger, node.address);
    assert!(victim.is_reached(&packet, "192.168.77.9", OTHER_VNI));
}
