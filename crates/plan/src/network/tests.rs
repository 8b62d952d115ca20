//! What a node's network shall be, for nodes that are right and nodes that are wrong.

use std::sync::Arc;

use model::ObjectMeta;
use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::world::Object;

use super::*;

/// A node as `name, InternalIP, pod ranges, seconds since the epoch that it was made at`.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], i64);

fn world(rows: &[Row<'_>]) -> World {
    let mut world = World::default();
    for (name, address, ranges, made_s) in rows {
        let kind = "InternalIP".to_owned();
        let addresses = address.split_whitespace();
        world.set(Object::Node(Arc::new(Node {
            metadata: ObjectMeta {
                name: (*name).into(),
                creation_timestamp: Some(Timestamp::from_microseconds(made_s * 1_000_000)),
                ..ObjectMeta::default()
            },
            spec: NodeSpec {
                pod_cidrs: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
                ..NodeSpec::default()
            },
            status: NodeStatus {
                addresses: addresses
                    .map(|address| NodeAddress { kind: kind.clone(), address: address.into() })
                    .collect(),
                ..NodeStatus::default()
            },
        })));
    }
    world
}

fn facts(uplink_mtu: u32) -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu,
        addresses: vec!["172.30.0.2".parse().expect("an address")],
    }
}

fn plan_for(rows: &[Row<'_>], overlay: Overlay) -> (Option<NetworkPlan>, Vec<Finding>) {
    let config = ClusterConfig { overlay, ..ClusterConfig::default() };
    plan(&world(rows), &config, &facts(1500))
}

const NODE1: Row<'_> = ("node1", "172.30.0.2", &["10.244.1.0/24"], 100);
const NODE2: Row<'_> = ("node2", "172.30.0.3", &["10.244.2.0/24"], 200);

#[test]
fn a_tunnel_end_is_what_its_peers_compute() {
    let (own, findings) = plan_for(&[NODE1, NODE2], Overlay::Vxlan);
    let own = own.expect("a plan");
    assert_eq!(findings, []);
    assert_eq!(own.gateways, ["10.244.1.1/24".parse().expect("a prefix")]);
    assert_eq!(own.dns_addresses, ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
    let tunnel = own.tunnel.expect("a tunnel");
    assert_eq!(tunnel.addresses, ["10.244.1.0/32".parse().expect("a prefix")]);
    let config = ClusterConfig::default();
    let other = NodeFacts { name: "node2".into(), ..facts(1500) };
    let (other, _) = plan(&world(&[NODE1, NODE2]), &config, &other);
    let seen = &other.expect("a plan").peers["node1"];
    assert_eq!((seen.address, seen.vtep_mac), (tunnel.local, tunnel.mac));
}

#[test]
fn the_mtu_leaves_room_for_the_tunnel() {
    let mtu = |overlay, uplink_mtu| {
        let config = ClusterConfig { overlay, ..ClusterConfig::default() };
        let (plan, findings) = plan(&world(&[NODE1]), &config, &facts(uplink_mtu));
        (plan.expect("a plan").mtu, findings.len())
    };
    assert_eq!(mtu(Overlay::Vxlan, 1500), (1450, 0));
    assert_eq!(mtu(Overlay::Vxlan, 9000), (8950, 0));
    assert_eq!(mtu(Overlay::HostGw, 1500), (1500, 0));
    assert_eq!(mtu(Overlay::Vxlan, 576), (526, 1), "too small is said");
}

#[test]
fn without_a_range_there_is_no_plan_and_the_reason_is_said() {
    let rows: [(&[Row<'_>], &str); 3] = [
        (&[], "not registered"),
        (&[("node1", "172.30.0.2", &[], 100)], "has no pod range"),
        (
            &[("node1", "172.30.0.2", &["192.168.0.0/24"], 100)],
            "outside the cluster's pod range",
        ),
    ];
    for (rows, expected) in rows {
        let (plan, findings) = plan_for(rows, Overlay::Vxlan);
        assert_eq!(plan, None);
        let said: Vec<&str> = findings.iter().map(|found| found.message.as_str()).collect();
        assert!(said.iter().any(|text| text.contains(expected)), "{said:?}: {expected}");
    }
}

#[test]
fn a_wrong_peer_is_left_out_and_named_and_all_others_stay() {
    let rows: [(Row<'_>, &str); 7] = [
        (("bad", "", &["10.244.9.0/24"], 300), "no InternalIP"),
        (("bad", "not-an-address", &["10.244.9.0/24"], 300), "no InternalIP"),
        (("bad", "172.30.0.9", &[], 300), "no usable pod range"),
        (
            ("bad", "172.30.0.9", &["10.244.1.0/24"], 300),
            "overlaps (10.244.1.0/24 and 10.244.1.0/24) that of the older node node1",
        ),
        (
            ("bad", "172.30.0.9", &["10.244.2.128/25"], 300),
            "overlaps (10.244.2.128/25 and 10.244.2.0/24) that of the older node node2",
        ),
        (("bad", "172.30.0.9", &["10.96.0.0/24"], 300), "outside the cluster's pod range"),
        (
            ("bad", "172.30.0.3", &["10.244.9.0/24"], 300),
            "InternalIP 172.30.0.3 is that of the older node node2",
        ),
    ];
    for overlay in [Overlay::Vxlan, Overlay::HostGw] {
        for (bad, expected) in rows {
            let (plan, findings) = plan_for(&[NODE1, NODE2, bad], overlay);
            let plan = plan.expect("a plan");
            assert_eq!(plan.peers.keys().collect::<Vec<_>>(), ["node2"], "{expected}");
            let said = findings.iter().find(|found| found.message.contains(expected));
            let said = said.unwrap_or_else(|| panic!("{expected} in {findings:?}"));
            assert_eq!(said.about, "Node bad");
        }
    }
}

#[test]
fn of_two_claims_the_older_holds_whatever_the_names() {
    for (first, second) in [("a", "z"), ("z", "a")] {
        let rows = [
            NODE1,
            (first, "172.30.0.8", &["10.244.7.0/24"][..], 300),
            (second, "172.30.0.9", &["10.244.7.0/24"][..], 400),
        ];
        let (plan, findings) = plan_for(&rows, Overlay::Vxlan);
        assert_eq!(plan.expect("a plan").peers.keys().collect::<Vec<_>>(), [first]);
        assert_eq!(findings[0].about, format!("Node {second}"));
    }
}

#[test]
fn a_node_keeps_its_own_pods_even_where_it_is_the_younger_and_says_so() {
    let older = ("old", "172.30.0.9", &["10.244.1.0/24"][..], 50);
    let (plan, findings) = plan_for(&[NODE1, older], Overlay::Vxlan);
    let plan = plan.expect("a plan");
    assert_eq!((plan.pod_ranges.len(), plan.peers.len()), (1, 0));
    assert_eq!(findings[0].about, "Node node1", "the younger is to be changed");
    assert!(findings[0].message.contains("the older node old"), "{findings:?}");
}

#[test]
fn a_node_without_an_address_still_serves_its_own_pods() {
    let (plan, findings) =
        plan_for(&[("node1", "", &["10.244.1.0/24"], 100), NODE2], Overlay::Vxlan);
    let plan = plan.expect("a plan");
    assert_eq!((plan.tunnel, plan.peers.len(), plan.gateways.len()), (None, 0, 1));
    assert!(findings[0].message.contains("no InternalIP"));
}
