//! One node with two pods, and a machine outside of the cluster, each with addresses of both
//! families: four network namespaces that live as long as the value, joined by veth pairs.
//!
//! ```text
//! pod1 10.244.0.2, fd00:244::2 ──┐
//!                                node 172.30.0.2, fd00:30::2 ── outside 172.30.0.9, fd00:30::9
//! pod2 10.244.0.6, fd00:244::6 ──┘
//! ```

#![allow(dead_code, reason = "each test program uses its part")]

mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::kinds::Node;
use model::world::Object;
use model::{ClusterConfig, Family, FlatMap, FlatSet, Protocol, World};
use netlink::{LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use testkit::lab::wait_for_addresses;

#[allow(unused_imports, reason = "each test program uses its part")]
pub use traffic::{
    Answer, DEADLINE, SILENCE, Server, answered, ask, ask_udp_with, ping, ping_as, sctp_seen,
    udp_socket,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Addresses of one family.
pub struct Addresses {
    pub pod1: IpAddr,
    pub pod2: IpAddr,
    /// The node as pod 1 and pod 2 see it.
    pub gateway1: IpAddr,
    pub gateway2: IpAddr,
    pub node: IpAddr,
    pub outside: IpAddr,
    /// Addresses of Services, and one that is none.
    pub vip: IpAddr,
    pub other_vip: IpAddr,
    pub unknown_vip: IpAddr,
    /// An address of a load balancer, which the outside machine routes to the node.
    pub external: IpAddr,
}

pub fn addresses(family: Family) -> Addresses {
    let address = |v4: &str, v6: &str| match family {
        Family::V4 => v4.parse().expect("an address"),
        Family::V6 => v6.parse().expect("an address"),
    };
    Addresses {
        pod1: address("10.244.0.2", "fd00:244::2"),
        pod2: address("10.244.0.6", "fd00:244::6"),
        gateway1: address("10.244.0.1", "fd00:244::1"),
        gateway2: address("10.244.0.5", "fd00:244::5"),
        node: address("172.30.0.2", "fd00:30::2"),
        outside: address("172.30.0.9", "fd00:30::9"),
        vip: address("10.96.0.20", "fd00:96::20"),
        other_vip: address("10.96.0.21", "fd00:96::21"),
        unknown_vip: address("10.96.7.7", "fd00:96::77"),
        external: address("198.51.100.1", "2001:db8:51::1"),
    }
}

/// The namespaces, and what the node knows.
pub struct Scene {
    pub node: Netns,
    pub pod1: Netns,
    pub pod2: Netns,
    pub outside: Netns,
    pub family: Family,
    pub config: ClusterConfig,
    pub facts: NodeFacts,
    pub desired: Desired,
}

impl Scene {
    pub fn new(family: Family) -> Self {
        let create = || Netns::create().expect("a network namespace (these tests need root)");
        let [node, pod1, pod2, outside] = [create(), create(), create(), create()];
        for namespace in [&node, &pod1, &pod2, &outside] {
            prepare(namespace);
        }
        for (peer, name) in [(&pod1, "pod1"), (&pod2, "pod2"), (&outside, "eth0")] {
            join(&node, peer, name);
        }
        let mut config = ClusterConfig::default();
        let range = |text: &str| text.parse().expect("a range");
        config.pod_cidrs.push(range("fd00:244::/48"));
        config.service_cidrs.push(range("fd00:96::/108"));
        config.node_cidrs.push(range("fd00:30::/64"));
        let facts = NodeFacts {
            name: "node1".into(),
            uplink: "eth0".into(),
            uplink_mtu: 1500,
            addresses: FAMILIES.map(|family| addresses(family).node).to_vec(),
            ..NodeFacts::default()
        };
        let mut world = World::default();
        let mut object = Node::default();
        object.metadata.name = "node1".into();
        object.spec.pod_cidrs = vec![range("10.244.0.0/24"), range("fd00:244::/64")];
        world.set(Object::Node(Arc::new(object)));
        let desired = plan::node(&world, &config, &facts).0;
        Self { node, pod1, pod2, outside, family, config, facts, desired }
    }

    pub fn addresses(&self) -> Addresses {
        addresses(self.family)
    }
}

/// A Service with one port at an address, and at a node port unless that is 0.
pub fn service(
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    node_port: u16,
    plan: &FrontendPlan,
) -> ServicePlan {
    let mut frontends = FlatMap::new();
    let internal = FrontendPlan { outside: None, ..plan.clone() };
    frontends.insert(Frontend::ClusterIp { address, protocol, port }, internal);
    if node_port != 0 {
        let family = Family::of(&address);
        let frontend = Frontend::NodePort { family, protocol, port: node_port };
        frontends.insert(frontend, plan.clone());
    }
    ServicePlan { frontends, ..ServicePlan::default() }
}

/// These endpoints at port 8080; without any, a refusal.
pub fn to(endpoints: &[IpAddr]) -> FrontendPlan {
    let endpoints: FlatSet<SocketAddr> =
        endpoints.iter().map(|&address| SocketAddr::new(address, 8080)).collect();
    FrontendPlan::new(if endpoints.is_empty() {
        Backends::Reject
    } else {
        Backends::Endpoints(endpoints)
    })
}

fn prepare(namespace: &Netns) {
    let set = || {
        for (key, value) in [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // As the network driver does: clients shall be refused however many there are.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ] {
            sysctl::write(key, value).expect(key);
        }
    };
    namespace.run(set).expect("a namespace");
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let lo = netlink.require_link("lo").expect("lo").index;
    netlink.change_link(lo, &LinkChange::up()).expect("lo up");
}

/// Joins the node's link `name` with the peer's `eth0`, with routes of both families.
fn join(node: &Netns, peer: &Netns, name: &str) {
    let mut here = Netlink::open_in(node).expect("netlink");
    here.create_veth(&VethSpec::new(name, "eth0").peer_in(peer)).expect("a veth pair");
    let mut there = Netlink::open_in(peer).expect("netlink");
    let near_link = here.require_link(name).expect("the near end").index;
    let far_link = there.require_link("eth0").expect("the far end").index;
    here.change_link(near_link, &LinkChange::up()).expect("up");
    there.change_link(far_link, &LinkChange::up()).expect("up");
    for family in FAMILIES {
        let all = addresses(family);
        let (near, far, bits) = match (name, family) {
            ("pod1", Family::V4) => (all.gateway1, all.pod1, 30),
            ("pod2", Family::V4) => (all.gateway2, all.pod2, 30),
            ("pod1", Family::V6) => (all.gateway1, all.pod1, 126),
            ("pod2", Family::V6) => (all.gateway2, all.pod2, 126),
            (_, Family::V4) => (all.node, all.outside, 24),
            (_, Family::V6) => (all.node, all.outside, 64),
        };
        let net = |address| ipnet::IpNet::new(address, bits).expect("a prefix");
        here.add_address(near_link, net(near)).expect("address");
        there.add_address(far_link, net(far)).expect("address");
        let everywhere = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        let everywhere = everywhere.parse().expect("a range");
        there.add_route(&Route::via(everywhere, near, far_link, 4)).expect("a default route");
        if name == "eth0" {
            here.add_route(&Route::via(everywhere, far, near_link, 4)).expect("a default route");
        }
        wait_for_addresses(&mut here, [near]).expect("an address in use");
        wait_for_addresses(&mut there, [far]).expect("an address in use");
    }
}
