//! Links, addresses, routes and tunnels of one node: its own pod range, and a way to the pods of
//! every other node.
//!
//! A node's object may be wrong (a range that another node holds, no address): such a node is
//! left out with a [`Finding`], and all others keep working (invariant 8).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::cluster::{VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, nth_address, overlap};
use model::{ClusterConfig, Family, MacAddress, Node, Overlay, Timestamp, World};

use crate::{Finding, NodeFacts};

/// Smallest pod MTU in bytes that every IPv4 host must be able to receive (RFC 791).
pub const POD_MTU_MIN: u32 = 576;

/// What the node's pod network shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The node's own pod ranges, at most one a family.
    pub pod_ranges: Vec<IpNet>,
    /// The first address of each own range, with the range's prefix length: on the bridge, and
    /// the gateway of the pods.
    pub gateways: Vec<IpNet>,
    /// MTU in bytes of pod links and of the bridge.
    pub mtu: u32,
    /// This node's end of the tunnels; `None` when pod packets are routed directly, or while the
    /// node has no address.
    pub tunnel: Option<Tunnel>,
    /// How to reach the pods of the other nodes, by node name.
    pub peers: BTreeMap<String, Peer>,
    /// Addresses of cluster DNS, local to every node.
    pub dns_addresses: Vec<IpAddr>,
    /// The link to the other nodes.
    pub uplink: String,
}

/// One node's end of the VXLAN tunnels (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source address: the node's `InternalIP`.
    pub local: IpAddr,
    /// MAC address of the tunnel link, derived from `local`.
    pub mac: MacAddress,
    /// The network address of each own pod range, as a host prefix: on the tunnel link.
    pub addresses: Vec<IpNet>,
}

/// Another node, as the data path sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer's `InternalIP`: outer destination, or next hop.
    pub address: IpAddr,
    /// MAC address of the peer's tunnel link, derived from `address`.
    pub vtep_mac: MacAddress,
    /// The peer's pod ranges.
    pub pod_ranges: Vec<IpNet>,
}

/// Plans the pod network of one node. `None` until the node has a pod range.
pub fn plan(
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> (Option<NetworkPlan>, Vec<Finding>) {
    let mut findings = Vec::new();
    let Some(node) = world.node(&facts.name) else {
        findings.push(finding(&facts.name, "the node is not registered: its runtime or kubelet creates the Node object; until then pods cannot be added here"));
        return (None, findings);
    };
    let pod_ranges = usable_ranges(node, config, &mut findings);
    if pod_ranges.is_empty() {
        findings.push(finding(&facts.name, "the node has no pod range: the node range controller assigns spec.podCIDRs; until then pods cannot be added here"));
        return (None, findings);
    }
    let local = node.internal_ips().next();
    if local.is_none() {
        findings.push(finding(&facts.name, "the node has no InternalIP in its status: pods of this node reach no other node until its runtime or kubelet reports one"));
    }
    let peers = match local {
        Some(local) => peers(world, config, node, &pod_ranges, local, &mut findings),
        None => BTreeMap::new(),
    };
    let mtu = pod_mtu(config, facts, local);
    if mtu < POD_MTU_MIN {
        findings.push(finding(&facts.name, &format!(
            "pods get an MTU of {mtu} bytes because {} has {}: raise the uplink's MTU to at least {} bytes",
            facts.uplink, facts.uplink_mtu, POD_MTU_MIN + VXLAN_OVERHEAD_V6
        )));
    }
    let plan = NetworkPlan {
        gateways: pod_ranges.iter().filter_map(gateway).collect(),
        mtu,
        tunnel: local.filter(|_| config.overlay == Overlay::Vxlan).map(|local| Tunnel {
            local,
            mac: MacAddress::of_vtep(local),
            addresses: pod_ranges.iter().map(|range| IpNet::from(range.network())).collect(),
        }),
        peers,
        dns_addresses: pod_ranges
            .iter()
            .filter_map(|range| config.dns_address(Family::of(&range.addr())))
            .collect(),
        uplink: facts.uplink.clone(),
        pod_ranges,
    };
    (Some(plan), findings)
}

/// The gateway of a pod range: its first address, with the range's prefix length.
pub fn gateway(range: &IpNet) -> Option<IpNet> {
    IpNet::new(nth_address(range, 1)?, range.prefix_len()).ok()
}

fn pod_mtu(config: &ClusterConfig, facts: &NodeFacts, local: Option<IpAddr>) -> u32 {
    let overhead = match (config.overlay, local) {
        (Overlay::HostGw, _) => 0,
        (Overlay::Vxlan, Some(IpAddr::V6(_))) => VXLAN_OVERHEAD_V6,
        (Overlay::Vxlan, _) => VXLAN_OVERHEAD_V4,
    };
    facts.uplink_mtu.saturating_sub(overhead)
}

/// The other nodes in the order of their age. Where two claim the same addresses the older one
/// keeps them, so that a later object cannot draw traffic of existing pods to itself. This node
/// keeps its own in any case: its pods have them.
fn peers(
    world: &World,
    config: &ClusterConfig,
    own: &Node,
    own_ranges: &[IpNet],
    own_address: IpAddr,
    findings: &mut Vec<Finding>,
) -> BTreeMap<String, Peer> {
    let mut nodes: Vec<&Node> =
        world.nodes().map(AsRef::as_ref).filter(|node| node.name() != own.name()).collect();
    nodes.sort_by_key(|node| age_order(node));
    let mut ranges_held: Vec<(IpNet, &Node)> =
        own_ranges.iter().map(|range| (*range, own)).collect();
    let mut addresses_held = BTreeMap::from([(own_address, own)]);
    let mut peers = BTreeMap::new();
    for node in nodes {
        let Some(address) = node.internal_ips().find(|ip| ip.is_ipv4() == own_address.is_ipv4())
        else {
            findings.push(finding(node.name(), "the node has no InternalIP of this node's family: its pods cannot be reached until its runtime or kubelet reports one"));
            continue;
        };
        if let Some(holder) = addresses_held.get(&address) {
            let claim = format!("InternalIP {address} is that");
            findings.push(conflict(node, holder, &claim, "give each node an address of its own"));
            continue;
        }
        addresses_held.insert(address, node);
        let mut pod_ranges = usable_ranges(node, config, findings);
        if pod_ranges.is_empty() {
            findings.push(finding(node.name(), "the node has no usable pod range: its pods cannot be reached until spec.podCIDRs is assigned"));
            continue;
        }
        pod_ranges.retain(|range| {
            let holder = ranges_held.iter().find(|(held, _)| overlap(range, held));
            if let Some((held, holder)) = holder {
                let claim = format!("pod range overlaps ({range} and {held}) that");
                let remedy = "delete and re-create it, so that it gets a range of its own";
                findings.push(conflict(node, holder, &claim, remedy));
            }
            holder.is_none()
        });
        if pod_ranges.is_empty() {
            continue;
        }
        ranges_held.extend(pod_ranges.iter().map(|range| (*range, node)));
        let peer = Peer { address, vtep_mac: MacAddress::of_vtep(address), pod_ranges };
        peers.insert(node.name().to_owned(), peer);
    }
    peers
}

/// Two nodes claim the same; the younger one is to be changed.
fn conflict(one: &Node, other: &Node, claim: &str, remedy: &str) -> Finding {
    let (older, younger) =
        if age_order(one) < age_order(other) { (one, other) } else { (other, one) };
    let message = format!(
        "the node's {claim} of the older node {}: pods of one of them cannot be reached; {remedy}",
        older.name()
    );
    finding(younger.name(), &message)
}

/// Older first; objects without a time last; equal ages by name.
fn age_order(node: &Node) -> (bool, Option<Timestamp>, String) {
    let created = node.metadata.creation_timestamp;
    (created.is_none(), created, node.name().to_owned())
}

/// The ranges that may be used: inside the cluster's pod range, large enough for a gateway and a
/// pod, the first of each family. A range outside could draw traffic of nodes, Services or the
/// internet into the overlay.
fn usable_ranges(node: &Node, config: &ClusterConfig, findings: &mut Vec<Finding>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for range in node.spec.pod_cidrs.iter().map(IpNet::trunc) {
        let inside = config.pod_cidrs.iter().any(|cluster| cluster.contains(&range));
        let large_enough = range.max_prefix_len() - range.prefix_len() >= 2;
        if !inside || !large_enough {
            let fault = if inside {
                "is too small for a pod"
            } else {
                "lies outside the cluster's pod range"
            };
            findings.push(finding(node.name(), &format!("the node's pod range {range} {fault} and is not used: correct --pod-cidr, or delete and re-create the node")));
            continue;
        }
        if ranges.iter().all(|other| Family::of(&other.addr()) != Family::of(&range.addr())) {
            ranges.push(range);
        }
    }
    ranges
}

fn finding(node: &str, message: &str) -> Finding {
    Finding { about: format!("Node {node}"), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
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
}
