//! Which way packets take between two nodes. Both decide it alone, and must decide the same.

use std::net::IpAddr;

use ipnet::IpNet;
use model::overlay::{OVERLAY_ANNOTATION, WIREGUARD_KEY_ANNOTATION, of_family};
use model::{ClusterConfig, Family, MacAddress, Node, Overlay, WireguardKey};

use super::peers::finding;
use crate::paths::{DETOURS, detour};
use crate::{Finding, NodeFacts};

/// How packets to the pods of a peer travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// In VXLAN packets to the peer's address.
    Vxlan {
        /// MAC address of the peer's tunnel link, derived from its address.
        mac: MacAddress,
    },
    /// The peer's address of the range's family is the next hop. A range without one is not
    /// routed.
    Direct,
    /// In IP packets to the peer's address of the range's family. A range without one is not
    /// routed.
    Ipip,
    /// In WireGuard packets to the peer's address. While the peer has no key nothing passes
    /// between the two nodes' pods.
    Wireguard,
    /// Not ours.
    Native,
}

impl Path {
    /// The way that it belongs to.
    pub fn overlay(&self) -> Overlay {
        match self {
            Self::Vxlan { .. } => Overlay::Vxlan,
            Self::Direct => Overlay::HostGw,
            Self::Ipip => Overlay::Ipip,
            Self::Wireguard => Overlay::Wireguard,
            Self::Native => Overlay::Native,
        }
    }
}

/// The way between two nodes, whichever of them asks: what either wishes, else the cluster's. Of
/// two wishes the first in [`Overlay::ALL`]; a wish that is no overlay is none. In an encrypted
/// cluster no wish counts: anyone who may write a Node could switch encryption off.
///
/// Where that is no encryption, a detour that the path self-test of either found goes first.
pub fn overlay_between(config: &ClusterConfig, one: &Node, other: &Node) -> Overlay {
    let wished = wished_between(config, one, other);
    detour_between(wished, one, other).unwrap_or(wished)
}

fn wished_between(config: &ClusterConfig, one: &Node, other: &Node) -> Overlay {
    if config.overlay == Overlay::Wireguard {
        return Overlay::Wireguard;
    }
    let wishes = [one, other].map(|node| wish(node).and_then(|text| text.parse().ok()));
    let wished = Overlay::ALL.into_iter().find(|overlay| wishes.contains(&Some(*overlay)));
    wished.unwrap_or(config.overlay)
}

/// The detour between two nodes whose wish this is: of two the later in
/// [`DETOURS`], where one found more ways blocked.
fn detour_between(wished: Overlay, one: &Node, other: &Node) -> Option<Overlay> {
    if matches!(wished, Overlay::Wireguard | Overlay::Native) {
        return None;
    }
    let detours = [detour(one, other.name()), detour(other, one.name())];
    DETOURS.into_iter().rev().find(|overlay| detours.contains(&Some(*overlay)))
}

/// What is wrong with a node's wish.
pub(super) fn check_wish(config: &ClusterConfig, node: &Node, findings: &mut Vec<Finding>) {
    let Some(text) = wish(node) else { return };
    let fault = match text.parse::<Overlay>() {
        Err(unknown) => format!("which is {unknown}"),
        Ok(overlay) if overlay != config.overlay && config.overlay == Overlay::Wireguard => {
            "but the cluster is encrypted".to_owned()
        }
        Ok(_) => return,
    };
    let cluster = config.overlay;
    findings.push(finding(
        node.name(),
        &format!("the annotation {OVERLAY_ANNOTATION} asks for {text:?}, {fault}: {cluster} is used; correct or remove the annotation"),
    ));
}

/// The path to a peer with these addresses and ranges; behind it, where it is a detour, the way
/// that it stands in for.
pub(super) fn path(
    config: &ClusterConfig,
    facts: &NodeFacts,
    nodes: [&Node; 2],
    addresses: &[IpAddr],
    pod_ranges: &[IpNet],
) -> (Path, Option<Overlay>) {
    let [own, peer] = nodes;
    let wished = wished_between(config, own, peer);
    // With different prefix lengths two nodes may disagree on this: then one way is direct and
    // the other not, and both nodes take both.
    let direct = config.cross_subnet && is_on_link(facts, addresses, pod_ranges);
    let first = match wished {
        Overlay::Vxlan | Overlay::Ipip if direct => Overlay::HostGw,
        wished => wished,
    };
    let detour = detour_between(wished, own, peer);
    let path = match detour.unwrap_or(first) {
        Overlay::Vxlan => {
            let outer = addresses.first().copied();
            Path::Vxlan { mac: outer.map(MacAddress::of_vtep).unwrap_or_default() }
        }
        Overlay::HostGw => Path::Direct,
        Overlay::Ipip => Path::Ipip,
        Overlay::Wireguard => Path::Wireguard,
        Overlay::Native => Path::Native,
    };
    (path, detour.filter(|detour| *detour != first).and(Some(first)))
}

/// The key that a node publishes.
pub(super) fn published_key(node: &Node, findings: &mut Vec<Finding>) -> Option<WireguardKey> {
    let fault = match node.metadata.annotations.get(WIREGUARD_KEY_ANNOTATION) {
        None => "the node publishes no WireGuard key".to_owned(),
        Some(text) => match text.parse() {
            Ok(key) => return Some(key),
            Err(error) => format!("the node publishes {text:?}, which is {error}"),
        },
    };
    findings.push(finding(
        node.name(),
        &format!("{fault}: nothing passes between its pods and those of other nodes, since it could not be encrypted; its agent writes the annotation {WIREGUARD_KEY_ANNOTATION} when it runs"),
    ));
    None
}

/// The key that a node publishes, if it is one.
pub(super) fn key_of(node: &Node) -> Option<WireguardKey> {
    node.metadata.annotations.get(WIREGUARD_KEY_ANNOTATION)?.parse().ok()
}

/// Whether each range has a next hop on the uplink's own network.
pub(crate) fn is_on_link(facts: &NodeFacts, addresses: &[IpAddr], pod_ranges: &[IpNet]) -> bool {
    pod_ranges.iter().all(|range| {
        let next_hop = of_family(addresses, Family::of(&range.addr()));
        next_hop.is_some_and(|address| {
            facts.uplink_prefixes.iter().any(|prefix| prefix.contains(&address))
        })
    })
}

fn wish(node: &Node) -> Option<&str> {
    node.metadata.annotations.get(OVERLAY_ANNOTATION).map(String::as_str)
}
