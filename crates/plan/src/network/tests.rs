//! What a node's network shall be, for nodes that are right and nodes that are wrong.

use std::sync::Arc;

use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::overlay::{OVERLAY_ANNOTATION, WIREGUARD_KEY_ANNOTATION};
use model::world::Object;
use model::{ObjectMeta, Timestamp};

use super::*;

/// A node as `name, InternalIP, pod ranges, seconds since the epoch that it was made at`.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], i64);

fn world(rows: &[Row<'_>]) -> World {
    let mut world = World::default();
    for row in rows {
        world.set(Object::Node(Arc::new(node(row, &[]))));
    }
    world
}

fn node((name, address, ranges, made_s): &Row<'_>, annotations: &[(&str, &str)]) -> Node {
    let kind = "InternalIP".to_owned();
    let addresses = address.split_whitespace();
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Node {
        metadata: ObjectMeta {
            name: (*name).into(),
            creation_timestamp: Some(Timestamp::from_microseconds(made_s * 1_000_000)),
            annotations: annotations.iter().map(owned).collect(),
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
    }
}

fn facts(uplink_mtu: u32) -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu,
        addresses: vec!["172.30.0.2".parse().expect("an address")],
        uplink_prefixes: ["172.30.0.0/24", "fd00:172:30::/64"]
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        tunnel_checksum_broken: false,
        pod_mtu_limit: None,
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
    let dns = ["10.96.0.10", "169.254.20.10"].map(|text| text.parse::<IpAddr>().expect("text"));
    assert_eq!(own.dns_addresses, dns);
    let tunnel = own.ends.vxlan.expect("a tunnel");
    assert_eq!(own.ends.addresses, ["10.244.1.0/32".parse().expect("a prefix")]);
    let config = ClusterConfig::default();
    let other = NodeFacts { name: "node2".into(), ..facts(1500) };
    let (other, _) = plan(&world(&[NODE1, NODE2]), &config, &other);
    let seen = &other.expect("a plan").peers["node1"];
    assert_eq!((seen.address, &seen.path), (tunnel.local, &Path::Vxlan { mac: tunnel.mac }));
}

#[test]
fn without_a_range_there_is_no_plan_and_the_reason_is_said() {
    let rows: [(&[Row<'_>], &str); 3] = [
        (&[], "not registered"),
        (&[("node1", "172.30.0.2", &[], 100)], "has no pod range"),
        (&[("node1", "172.30.0.2", &["192.168.0.0/24"], 100)], "outside the cluster's pod range"),
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
    assert_eq!((plan.ends.vxlan, plan.peers.len(), plan.gateways.len()), (None, 0, 1));
    assert!(findings[0].message.contains("no InternalIP"));
}

#[test]
fn a_node_that_is_not_ready_keeps_its_routes() {
    // only the Node object's end takes them away.
    let mut silent = node(&NODE2, &[]);
    silent.status.conditions =
        vec![model::kinds::NodeCondition { kind: "Ready".into(), status: "Unknown".into() }];
    let mut world = world(&[NODE1]);
    world.set(Object::Node(Arc::new(silent)));
    let (plan, findings) = plan(&world, &ClusterConfig::default(), &facts(1500));
    assert_eq!(plan.expect("a plan").peers.keys().collect::<Vec<_>>(), ["node2"]);
    assert_eq!(findings, []);
}

mod blocks;
mod ways;
