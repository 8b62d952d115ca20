//! The other nodes: which of their claims hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::cluster::overlap;
use model::pool;
use model::{ClusterConfig, Family, Node, Overlay, Timestamp, WireguardKey, World};

use super::{Own, Path, Peer, paths};
use crate::{Finding, NodeFacts};

/// The other nodes in the order of their age. Where two claim the same addresses the older one
/// keeps them, so that a later object cannot draw traffic of existing pods to itself. This node
/// keeps its own in any case: its pods have them.
pub(super) fn peers(
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
    own: &Own<'_>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<String, Peer> {
    let mut nodes: Vec<&Node> =
        world.nodes().map(AsRef::as_ref).filter(|node| node.name() != own.node.name()).collect();
    nodes.sort_by_key(|node| age_order(node));
    let mut held = Held::of(own);
    let mut peers = BTreeMap::new();
    paths::check_wish(config, own.node, findings);
    for node in nodes {
        let Some((addresses, pod_ranges)) = held.claims(node, config, own, findings) else {
            continue;
        };
        let Some(&address) = addresses.first() else { continue };
        paths::check_wish(config, node, findings);
        let pair = [own.node, node];
        let (path, avoided) = paths::path(config, facts, pair, &addresses, &pod_ranges);
        let encrypts = path == Path::Wireguard || config.also_receive.contains(&Overlay::Wireguard);
        let wireguard_key = if encrypts { held.claim_key(node, findings) } else { None };
        let peer = Peer { address, addresses, pod_ranges, path, avoided, wireguard_key };
        check_reachable(node, own, &peer, findings);
        peers.insert(node.name().to_owned(), peer);
    }
    peers
}

/// A node's addresses, at most one a family, that of outer packets first if it has one.
pub(super) fn addresses(node: &Node, outer: Family) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in node.internal_ips() {
        if addresses.iter().all(|other| Family::of(other) != Family::of(&address)) {
            addresses.push(address);
        }
    }
    addresses.sort_by_key(|address| Family::of(address) != outer);
    addresses
}

/// The ranges that may be used: inside the cluster's pod range, large enough for a gateway and a
/// pod, the first of each family. A range outside could draw traffic of nodes, Services or the
/// internet into the overlay.
pub(super) fn usable_ranges(
    node: &Node,
    config: &ClusterConfig,
    findings: &mut Vec<Finding>,
) -> Vec<IpNet> {
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

/// The blocks of pools that a node gives pods addresses of.
pub(super) fn usable_blocks(
    node: &Node,
    config: &ClusterConfig,
    findings: &mut Vec<Finding>,
) -> Vec<IpNet> {
    let (blocks, wrong) = pool::blocks_of(node, &config.pools);
    findings.extend(wrong.iter().map(|part| {
        let message = format!(
            "{part:?} in the annotation {} is no block of a pool and is not used: the node's agent \
             writes the annotation; give all agents the same pools",
            pool::BLOCKS_ANNOTATION
        );
        finding(node.name(), &message)
    }));
    blocks
}

pub(super) fn finding(node: &str, message: &str) -> Finding {
    Finding { about: format!("Node {node}"), message: message.to_owned() }
}

/// What belongs to whom.
struct Held<'a> {
    /// By their network addresses. No two overlap, so that only neighbours in this order can
    /// overlap a further one.
    ranges: BTreeMap<IpAddr, (IpNet, &'a Node)>,
    addresses: BTreeMap<IpAddr, &'a Node>,
    keys: BTreeMap<WireguardKey, &'a Node>,
}

impl<'a> Held<'a> {
    fn of(own: &Own<'a>) -> Self {
        Self {
            ranges: own
                .pod_ranges
                .iter()
                .map(|&own_range| by_network(own_range, own.node))
                .collect(),
            addresses: own.addresses.iter().map(|address| (*address, own.node)).collect(),
            keys: paths::key_of(own.node).into_iter().map(|key| (key, own.node)).collect(),
        }
    }

    /// A key that two nodes publish is the older one's: with two peers under one key the kernel
    /// would give the pods of one to the other.
    fn claim_key(&mut self, node: &'a Node, findings: &mut Vec<Finding>) -> Option<WireguardKey> {
        let key = paths::published_key(node, findings)?;
        if let Some(holder) = self.keys.get(&key) {
            let remedy = "remove the younger node's key directory and restart its agent";
            findings.push(conflict(node, holder, &format!("WireGuard key {key} is that"), remedy));
            return None;
        }
        self.keys.insert(key, node);
        Some(key)
    }

    /// A node's addresses, that of this node's outer family first, and its ranges, so far as
    /// nobody has them. `None` when too little is left to reach it.
    fn claims(
        &mut self,
        node: &'a Node,
        config: &ClusterConfig,
        own: &Own<'_>,
        findings: &mut Vec<Finding>,
    ) -> Option<(Vec<IpAddr>, Vec<IpNet>)> {
        let outer = Family::of(own.addresses.first()?);
        let mut addresses = addresses(node, outer);
        if addresses.first().is_none_or(|address| Family::of(address) != outer) {
            findings.push(finding(node.name(), "the node has no InternalIP of this node's family: its pods cannot be reached until its runtime or kubelet reports one"));
            return None;
        }
        addresses.retain(|address| {
            let holder = self.addresses.get(address);
            if let Some(holder) = holder {
                let claim = format!("InternalIP {address} is that");
                let remedy = "give each node an address of its own";
                findings.push(conflict(node, holder, &claim, remedy));
            }
            holder.is_none()
        });
        self.addresses.extend(addresses.iter().map(|address| (*address, node)));
        addresses.first().filter(|address| Family::of(address) == outer)?;
        let mut ranges = usable_ranges(node, config, findings);
        if ranges.is_empty() {
            findings.push(finding(node.name(), "the node has no usable pod range: its pods cannot be reached until spec.podCIDRs is assigned"));
            return None;
        }
        ranges.extend(usable_blocks(node, config, findings));
        ranges.retain(|range| {
            let holder = self.holder(range);
            if let Some((held, holder)) = holder {
                let claim = format!("pod range overlaps ({range} and {held}) that");
                let remedy = "delete and re-create it, so that it gets a range of its own";
                findings.push(conflict(node, holder, &claim, remedy));
            }
            holder.is_none()
        });
        self.ranges.extend(ranges.iter().map(|range| by_network(*range, node)));
        (!ranges.is_empty()).then_some((addresses, ranges))
    }

    /// Who has an address of a range.
    fn holder(&self, range: &IpNet) -> Option<(IpNet, &'a Node)> {
        let before = self.ranges.range(..=range.network()).next_back();
        let after = self.ranges.range(range.network()..).next();
        let near = [before, after].into_iter().flatten().map(|(_, held)| *held);
        near.into_iter().find(|(held, _)| overlap(range, held))
    }
}

fn by_network(range: IpNet, node: &Node) -> (IpAddr, (IpNet, &Node)) {
    (range.network(), (range, node))
}

/// Ways that keep the family need addresses of each family of pods, on both sides.
fn check_reachable(node: &Node, own: &Own<'_>, peer: &Peer, findings: &mut Vec<Finding>) {
    if !matches!(peer.path, Path::Direct | Path::Ipip) {
        return;
    }
    for range in &peer.pod_ranges {
        let family = Family::of(&range.addr());
        let own_address = model::overlay::of_family(&own.addresses, family);
        let lacking = match (peer.address_for(range), own_address) {
            (None, _) => node,
            (_, None) => own.node,
            _ => continue,
        };
        findings.push(finding(lacking.name(), &format!(
            "the node has no InternalIP of the family of the pod range {range}, which {} needs: the pods of {} cannot be reached there from {}; give the node such an address, or use vxlan",
            peer.path.overlay(), node.name(), own.node.name()
        )));
    }
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
