//! Links, addresses, routes and tunnels of one node: its own pod range, and a way to the pods of
//! every other node.
//!
//! A node's object may be wrong (a range that another node holds, no address): such a node is
//! left out with a [`Finding`], and all others keep working (invariant 8).
//!
//! A peer leaves only with its Node object: whether it is ready does not count, since the pods of
//! a node that reports nothing may well run.

mod paths;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::cluster::nth_address;
use model::overlay::of_family;
use model::{ClusterConfig, Family, MacAddress, Node, Overlay, WireguardKey, World};

use crate::{Finding, NodeFacts};

pub(crate) use paths::is_on_link;
pub use paths::{Path, overlay_between};
use peers::{finding, usable_blocks, usable_ranges};

/// Smallest MTU in bytes that every host must be able to receive over IPv4 (RFC 791).
pub const POD_MTU_MIN: u32 = 576;
/// The same over IPv6 (RFC 8200): below it the kernel takes IPv6 away from a link.
pub const POD_MTU_MIN_V6: u32 = 1280;

/// What the node's pod network shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The node's own pod ranges: at most one a family that the Node has, then blocks of pools.
    pub pod_ranges: Vec<IpNet>,
    /// Those of them that are blocks of pools: only the agent gives out their addresses.
    pub blocks: BTreeSet<IpNet>,
    /// Whether the plugin asks the agent which addresses a pod gets.
    pub agent_chooses_addresses: bool,
    /// The first address of each own range, with the range's prefix length: on the bridge, and
    /// the gateway of the pods.
    pub gateways: Vec<IpNet>,
    /// MTU in bytes of pod links and of the bridge: what the narrowest way between nodes leaves.
    pub mtu: u32,
    /// The same by what the links promise: larger where the path self-test found less.
    pub promised_mtu: u32,
    /// This node's ends of tunnels.
    pub ends: TunnelEnds,
    /// How to reach the pods of the other nodes, by node name.
    pub peers: BTreeMap<String, Peer>,
    /// Addresses of cluster DNS, local to every node: the Service's, and those beside it.
    pub dns_addresses: Vec<IpAddr>,
    /// The link to the other nodes.
    pub uplink: String,
}

/// One node's ends of tunnels: those that it sends by, and those that it only receives from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelEnds {
    /// The network address of each own pod range, as a host prefix: on each tunnel link, so that
    /// masqueraded packets carry an address of this node's range.
    pub addresses: Vec<IpNet>,
    /// VXLAN (RFC 7348).
    pub vxlan: Option<VxlanEnd>,
    /// IP in IP, at most one end a family.
    pub ipip: Vec<IpipEnd>,
    /// WireGuard. `None` also while this node has not published its key.
    pub wireguard: Option<WireguardEnd>,
}

/// A VXLAN end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanEnd {
    /// Outer source address: the node's `InternalIP`.
    pub local: IpAddr,
    /// MAC address of the link, derived from `local`.
    pub mac: MacAddress,
    /// MTU in bytes.
    pub mtu: u32,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// Whether the device below may write the inner checksum.
    pub tx_checksum: bool,
}

/// An IP-in-IP end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpipEnd {
    /// Outer source address; packets within are of its family.
    pub local: IpAddr,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A WireGuard end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardEnd {
    /// The key that the Node object publishes: peers expect packets under it.
    pub public_key: WireguardKey,
    /// The UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Another node, as the data path sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer's `InternalIP` of this node's outer family.
    pub address: IpAddr,
    /// Its `InternalIP`s, at most one a family: next hops, and sources of tunnel packets.
    pub addresses: Vec<IpAddr>,
    /// The peer's pod ranges.
    pub pod_ranges: Vec<IpNet>,
    /// How packets to them travel.
    pub path: Path,
    /// The way that they would take but for the detour that `path` is; `None` when it is none.
    pub avoided: Option<Overlay>,
    /// What its WireGuard packets are known by, where it may send such: also before this node
    /// sends them itself.
    pub wireguard_key: Option<WireguardKey>,
}

impl Peer {
    /// The peer's address of the family of a pod range.
    pub fn address_for(&self, range: &IpNet) -> Option<IpAddr> {
        of_family(&self.addresses, Family::of(&range.addr()))
    }
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
    let mut pod_ranges = usable_ranges(node, config, &mut findings);
    if pod_ranges.is_empty() {
        findings.push(finding(&facts.name, "the node has no pod range: the node range controller assigns spec.podCIDRs; until then pods cannot be added here"));
        return (None, findings);
    }
    let node_ranges = pod_ranges.clone();
    let blocks = usable_blocks(node, config, &mut findings);
    pod_ranges.extend(&blocks);
    let own = Own { node, addresses: peers::addresses(node, config.outer_family()), pod_ranges };
    let peers = if own.addresses.is_empty() {
        findings.push(finding(&facts.name, "the node has no InternalIP in its status: pods of this node reach no other node until its runtime or kubelet reports one"));
        BTreeMap::new()
    } else {
        peers::peers(world, config, facts, &own, &mut findings)
    };
    let ways = ways(config, &peers);
    let (promised_mtu, widest) = pod_mtu(facts, &own, &ways);
    check_mtu(&own, facts, promised_mtu, widest, &mut findings);
    // Ends of tunnels keep theirs: what is larger can be tried again only by them.
    let limit = facts.pod_mtu_limit.map(|limit| limit.max(least_mtu(&own.pod_ranges)));
    let mtu = limit.map_or(promised_mtu, |limit| promised_mtu.min(limit));
    let plan = NetworkPlan {
        gateways: own.pod_ranges.iter().filter_map(gateway).collect(),
        mtu,
        promised_mtu,
        ends: ends(config, facts, &own, &node_ranges, &ways, &mut findings),
        peers,
        dns_addresses: node_ranges
            .iter()
            .flat_map(|range| config.dns_addresses(Family::of(&range.addr())))
            .collect(),
        uplink: facts.uplink.clone(),
        blocks: blocks.into_iter().collect(),
        agent_chooses_addresses: config.agent_chooses_addresses(),
        pod_ranges: own.pod_ranges,
    };
    (Some(plan), findings)
}

/// The gateway of a pod range: its first address, with the range's prefix length.
pub fn gateway(range: &IpNet) -> Option<IpNet> {
    IpNet::new(nth_address(range, 1)?, range.prefix_len()).ok()
}

/// The smallest MTU in bytes that pods of these ranges can have.
pub fn least_mtu(pod_ranges: &[IpNet]) -> u32 {
    match pod_ranges.iter().any(|range| range.addr().is_ipv6()) {
        true => POD_MTU_MIN_V6,
        false => POD_MTU_MIN,
    }
}

/// This node.
struct Own<'a> {
    node: &'a Node,
    /// At most one a family, that of outer packets first.
    addresses: Vec<IpAddr>,
    pod_ranges: Vec<IpNet>,
}

impl Own<'_> {
    fn outer_address(&self) -> Option<IpAddr> {
        self.addresses.first().copied()
    }

    /// Bytes that a way adds to this node's packets, at most.
    fn overhead(&self, overlay: Overlay) -> u32 {
        let outer = self.outer_address().map_or(Family::V4, |address| Family::of(&address));
        let families = self.pod_ranges.iter().map(|range| match overlay.keeps_family() {
            true => Family::of(&range.addr()),
            false => outer,
        });
        families.map(|family| overlay.overhead(family)).max().unwrap_or_default()
    }
}

/// All ways that packets of this node may take or come by.
fn ways(config: &ClusterConfig, peers: &BTreeMap<String, Peer>) -> BTreeSet<Overlay> {
    let mut ways = config.also_receive.clone();
    ways.insert(config.overlay);
    ways.extend(peers.values().map(|peer| peer.path.overlay()));
    ways
}

/// The MTU of pods, and the most that any way adds.
fn pod_mtu(facts: &NodeFacts, own: &Own<'_>, ways: &BTreeSet<Overlay>) -> (u32, u32) {
    let widest = ways.iter().map(|&way| own.overhead(way)).max().unwrap_or_default();
    (facts.uplink_mtu.saturating_sub(widest), widest)
}

fn check_mtu(own: &Own<'_>, facts: &NodeFacts, mtu: u32, widest: u32, findings: &mut Vec<Finding>) {
    let least = least_mtu(&own.pod_ranges);
    if mtu < least {
        findings.push(finding(
            &facts.name,
            &format!(
                "pods get an MTU of {mtu} bytes because {} has {}: raise the uplink's MTU to at least {} bytes",
                facts.uplink,
                facts.uplink_mtu,
                least + widest
            ),
        ));
    }
}

fn ends(
    config: &ClusterConfig,
    facts: &NodeFacts,
    own: &Own<'_>,
    node_ranges: &[IpNet],
    ways: &BTreeSet<Overlay>,
    findings: &mut Vec<Finding>,
) -> TunnelEnds {
    let mtu = |overlay| facts.uplink_mtu.saturating_sub(own.overhead(overlay));
    let outer = |overlay| own.outer_address().filter(|_| ways.contains(&overlay));
    let ipip = |range: &IpNet| {
        let family = Family::of(&range.addr());
        let mtu = facts.uplink_mtu.saturating_sub(Overlay::Ipip.overhead(family));
        of_family(&own.addresses, family).map(|local| IpipEnd { local, mtu })
    };
    TunnelEnds {
        addresses: node_ranges.iter().map(|range| IpNet::from(range.network())).collect(),
        vxlan: outer(Overlay::Vxlan).map(|local| VxlanEnd {
            local,
            mac: MacAddress::of_vtep(local),
            mtu: mtu(Overlay::Vxlan),
            vni: config.tunnels.vxlan_vni,
            port: config.tunnels.vxlan_port,
            tx_checksum: !facts.tunnel_checksum_broken,
        }),
        ipip: match ways.contains(&Overlay::Ipip) {
            true => node_ranges.iter().filter_map(ipip).collect(),
            false => vec![],
        },
        wireguard: outer(Overlay::Wireguard)
            .and_then(|_| paths::published_key(own.node, findings))
            .map(|public_key| WireguardEnd {
                public_key,
                port: config.tunnels.wireguard_port,
                mtu: mtu(Overlay::Wireguard),
            }),
    }
}
