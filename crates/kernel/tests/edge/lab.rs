//! A node with two pods on its bridge and a routed one, and a machine outside: network namespaces
//! that live as long as the value.
//!
//! ```text
//! a 10.50.0.2 ── veth-a ─┐
//!                        cni0 10.50.0.1 ─ node ─ eth0 172.31.0.2 ── outside 172.31.0.9, 1.1.1.1
//! b 10.50.0.3 ── veth-b ─┘                 │
//!                    r 10.50.1.2 ── veth-r ┘
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use kernel::edge::Edge;
use model::attachment::PodLink;
use model::{Attachment, MacAddress};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use testkit::lab::wait_for_addresses;

/// How long anything that shall come may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const BRIDGE: &str = "cni0";
pub const GATEWAY: &str = "10.50.0.1";
pub const GATEWAY6: &str = "fd50::1";
pub const NODE: &str = "172.31.0.2";
pub const OUTSIDE: &str = "172.31.0.9";
pub const OUTSIDE6: &str = "fd31::9";
/// An address far away, which the outside machine has.
pub const FAR: &str = "1.1.1.1";
/// What routed pods take for their gateway.
const ROUTED_GATEWAY: &str = "169.254.1.1";

/// A pod and its record.
pub struct Pod {
    pub namespace: Netns,
    pub attachment: Attachment,
}

impl Pod {
    pub fn mac(&self) -> MacAddress {
        self.attachment.mac
    }

    pub fn address(&self) -> IpAddr {
        self.attachment.addresses[0].addr()
    }

    pub fn address6(&self) -> IpAddr {
        self.attachment.addresses[1].addr()
    }

    pub fn link_local(&self) -> Ipv6Addr {
        match render::edge::spoofing::link_local(&self.attachment) {
            Some(IpAddr::V6(address)) => address,
            other => panic!("{other:?}"),
        }
    }
}

pub struct Lab {
    pub node: Netns,
    pub a: Pod,
    pub b: Pod,
    pub routed: Pod,
    pub outside: Netns,
}

impl Lab {
    pub fn new() -> Self {
        let node = namespace();
        node.run(|| {
            for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                sysctl::write(key, "1").expect("forwarding");
            }
            // Bridged frames keep the mark behind their packet. The rules are called before anyway.
            for key in ["iptables", "ip6tables", "arptables"] {
                sysctl::write(&format!("net/bridge/bridge-nf-call-{key}"), "0").expect("a switch");
            }
            let mut netlink = Netlink::open().expect("netlink");
            let gateway: IpAddr = GATEWAY.parse().expect("address");
            let mac = Some(MacAddress::of_pod_address(gateway));
            let spec = BridgeSpec { name: BRIDGE.into(), mac, mtu: None };
            netlink.create_bridge(&spec).expect("a bridge");
            up(&mut netlink, BRIDGE, &["10.50.0.1/24", "fd50::1/64"]);
        })
        .expect("node");
        let [a, b] = [("a", 2), ("b", 3)].map(|(name, last)| bridged(&node, name, last));
        let routed = routed(&node);
        let outside = outside(&node);
        let lab = Self { node, a, b, routed, outside };
        lab.wait_for_addresses();
        lab
    }

    fn wait_for_addresses(&self) {
        let pods = [&self.a, &self.b, &self.routed];
        let own = pods.map(|pod| (&pod.namespace, pod.address6()));
        let others = [(&self.node, "fd50::1"), (&self.node, "fe80::1"), (&self.outside, OUTSIDE6)]
            .map(|(namespace, address)| (namespace, address.parse().expect("an address")));
        for (namespace, address) in own.into_iter().chain(others) {
            let mut netlink = Netlink::open_in(namespace).expect("netlink");
            wait_for_addresses(&mut netlink, [address]).expect("an address in use");
        }
    }

    pub fn edge(&self) -> Edge {
        self.node.run(|| Edge::open().expect("an edge")).expect("node")
    }

    /// The link-layer address that a namespace's link has.
    pub fn mac_of(&self, namespace: &Netns, link: &str) -> MacAddress {
        let mut netlink = Netlink::open_in(namespace).expect("netlink");
        netlink.require_link(link).expect("the link").mac.expect("an address")
    }
}

/// Attaches a pod whose node has no other.
pub fn attach(edge: &mut Edge, attachment: &Attachment) {
    edge.attach(attachment, || vec![attachment.clone()]).expect("rules");
}

fn namespace() -> Netns {
    let namespace = Netns::create().expect("a network namespace (these tests need root)");
    namespace
        .run(|| {
            // Addresses are there at once.
            for key in ["default/accept_dad", "all/accept_dad", "default/accept_ra"] {
                sysctl::write(&format!("net/ipv6/conf/{key}"), "0").expect("no waiting");
            }
            up(&mut Netlink::open().expect("netlink"), "lo", &[]);
        })
        .expect("the namespace");
    namespace
}

fn up(netlink: &mut Netlink, link: &str, addresses: &[&str]) -> u32 {
    let index = netlink.require_link(link).expect("the link").index;
    for address in addresses {
        netlink.add_address(index, net(address)).expect("an address");
    }
    netlink.change_link(index, &LinkChange::up()).expect("up");
    index
}

fn bridged(node: &Netns, name: &str, last: u8) -> Pod {
    let (namespace, near) = (namespace(), format!("veth-{name}"));
    let addresses = [format!("10.50.0.{last}/24"), format!("fd50::{last}/64")];
    let mac = MacAddress::of_pod_address(net(&addresses[0]).addr());
    let mut here = Netlink::open_in(node).expect("netlink");
    let bridge = here.require_link(BRIDGE).expect("the bridge").index;
    let spec = VethSpec::new(&near, "eth0").peer_in(&namespace).peer_mac(mac).master(bridge);
    here.create_veth(&spec).expect("a veth pair");
    let index = up(&mut here, &near, &[]);
    here.set_hairpin(index, true).expect("hairpin");
    let mut there = Netlink::open_in(&namespace).expect("netlink");
    let eth0 = up(&mut there, "eth0", &[&addresses[0], &addresses[1]]);
    for (destination, gateway) in [("0.0.0.0/0", GATEWAY), ("::/0", GATEWAY6)] {
        let gateway = gateway.parse().expect("address");
        there.add_route(&Route::via(net(destination), gateway, eth0, 4)).expect("a route");
    }
    let link = PodLink::Bridge { name: near, bridge: BRIDGE.into() };
    Pod { namespace, attachment: attachment(name, link, mac, &addresses) }
}

fn routed(node: &Netns) -> Pod {
    let namespace = namespace();
    let addresses = ["10.50.1.2/32".to_owned(), "fd50:1::2/128".to_owned()];
    let mac = MacAddress::of_pod_address(net(&addresses[0]).addr());
    let mut here = Netlink::open_in(node).expect("netlink");
    let spec = VethSpec::new("veth-r", "eth0").peer_in(&namespace).peer_mac(mac);
    here.create_veth(&spec).expect("a veth pair");
    let gateway = format!("{ROUTED_GATEWAY}/32");
    let near = up(&mut here, "veth-r", &[&gateway, "fe80::1/64"]);
    for address in &addresses {
        here.add_route(&Route::on_link(net(address), near, 4)).expect("a route");
    }
    let mut there = Netlink::open_in(&namespace).expect("netlink");
    let eth0 = up(&mut there, "eth0", &[&addresses[0], &addresses[1]]);
    for (destination, gateway) in [("0.0.0.0/0", ROUTED_GATEWAY), ("::/0", "fe80::1")] {
        let gateway = gateway.parse().expect("address");
        let route = Route { onlink: true, ..Route::via(net(destination), gateway, eth0, 4) };
        there.add_route(&route).expect("a route");
    }
    let link = PodLink::Routed { name: "veth-r".into() };
    Pod { namespace, attachment: attachment("r", link, mac, &addresses) }
}

fn outside(node: &Netns) -> Netns {
    let outside = namespace();
    let mut here = Netlink::open_in(node).expect("netlink");
    here.create_veth(&VethSpec::new("eth0", "eth0").peer_in(&outside)).expect("a veth pair");
    let near = up(&mut here, "eth0", &["172.31.0.2/24", "fd31::2/64"]);
    let mut there = Netlink::open_in(&outside).expect("netlink");
    let far = up(&mut there, "eth0", &["172.31.0.9/24", "fd31::9/64", "1.1.1.1/32"]);
    let [v4, v6]: [IpAddr; 2] = [NODE, "fd31::2"].map(|it| it.parse().expect("address"));
    for (destination, gateway) in [("10.50.0.0/16", v4), ("fd50::/16", v6)] {
        there.add_route(&Route::via(net(destination), gateway, far, 4)).expect("a route");
    }
    let gateway = OUTSIDE.parse().expect("address");
    here.add_route(&Route::via(net("0.0.0.0/0"), gateway, near, 4)).expect("a route");
    outside
}

fn attachment(name: &str, link: PodLink, mac: MacAddress, addresses: &[String]) -> Attachment {
    Attachment {
        network: "pods".into(),
        container_id: format!("container-{name}"),
        interface: "eth0".into(),
        pod: Some(model::NamespacedName::new("shop", name)),
        link,
        mac,
        addresses: addresses.iter().map(|address| net(address)).collect(),
        ..Attachment::default()
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}
