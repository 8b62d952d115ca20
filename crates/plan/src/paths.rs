//! The path self-test between nodes: what was found, what it means, and what to do about it.
//!
//! Each node tests what it *sends*: the size that arrives, with and without checksums, and whether
//! the other end heard it. So of a fault in one direction both ends know the direction, and each
//! does its own part: a node's packets fit its own ways out, and its checksums are right. Only the
//! way of a pair must be the same at both ends. Who finds it blocked publishes the next one on its
//! own Node, and both follow ([`crate::network::overlay_between`]).

mod judge;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::overlay::DETOURS_ANNOTATION;
use model::{ClusterConfig, Node, Overlay};

use crate::NodeFacts;
use crate::network::{NetworkPlan, Peer, is_on_link};

pub use judge::{Judgement, Row, Verdict, judge};

/// Ways that may take the place of a blocked one, in the order that they are tried: without a
/// tunnel where the nodes are on one segment, then by the tunnel that every kernel has. A kernel
/// without IP in IP would fail at its link, and pods could not be added there any more.
pub const DETOURS: [Overlay; 2] = [Overlay::HostGw, Overlay::Vxlan];
/// Detours of one node. When more nodes than this cannot be reached, the network is to be repaired.
pub const DETOURS_MAX: usize = 64;

/// What a node found of the ways to one other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// How pod packets travelled.
    pub way: Overlay,
    /// This node's address.
    pub own_address: IpAddr,
    /// The other node's address.
    pub peer_address: IpAddr,
    /// Between gateways of the nodes' pods, as pod packets travel.
    pub pods: Channel,
    /// Between the nodes' addresses.
    pub nodes: Channel,
    /// Whether between gateways something passes as soon as it carries no checksum.
    pub passes_unchecked: bool,
    /// Whether streams get through between gateways as they are sent; `None` when none was tried.
    pub passes_streams: Option<bool>,
    /// Whether the way that a detour stands in for has worked beside it for as long as is asked.
    pub avoided_works: bool,
}

/// What was found between two addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// The fastest answer in microseconds; `None` without any.
    pub rtt_us: Option<u32>,
    /// The largest packet in bytes that arrived, or arrived when anything last did.
    pub mtu: Option<u32>,
    /// The largest packet in bytes by what the links promise.
    pub promised_mtu: u32,
    /// Whether the other end says that it hears this node; `None` when it says nothing.
    pub heard: Option<bool>,
    /// Whether this node hears requests of the other end.
    pub hears: bool,
}

/// What the observation of one other node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets of every promised size pass.
    Works,
    /// Only smaller packets pass.
    SmallMtu,
    /// Datagrams of every size pass, and this node's streams crawl: trains of segments are lost.
    BadSegments,
    /// This node's packets arrive with wrong checksums.
    BadChecksum,
    /// The other node's packets do.
    BadChecksumIn,
    /// What this node sends does not arrive.
    BlockedOut,
    /// What this node sends arrives, what the other sends does not.
    BlockedIn,
    /// Nothing is heard of the other node at all: it may be off, or without this test.
    Silent,
}

impl State {
    /// All of them, for counting.
    pub const ALL: [Self; 8] = [
        Self::Works,
        Self::SmallMtu,
        Self::BadSegments,
        Self::BadChecksum,
        Self::BadChecksumIn,
        Self::BlockedOut,
        Self::BlockedIn,
        Self::Silent,
    ];

    /// One word for machines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::SmallMtu => "small-mtu",
            Self::BadSegments => "bad-segments",
            Self::BadChecksum => "bad-checksum",
            Self::BadChecksumIn => "bad-checksum-in",
            Self::BlockedOut => "blocked-out",
            Self::BlockedIn => "blocked-in",
            Self::Silent => "silent",
        }
    }

    /// Whether links of this node write wrong checksums, or lose what they shall cut apart. The
    /// tunnel link leaves neither to them from then on, and so it is not found again.
    pub const fn blames_links(self) -> bool {
        matches!(self, Self::BadSegments | Self::BadChecksum)
    }

    /// Whether pods surely do not reach each other.
    pub const fn is_broken(self) -> bool {
        !matches!(self, Self::Works | Self::SmallMtu | Self::Silent)
    }
}

impl Observation {
    /// What it says.
    pub fn state(&self) -> State {
        if self.pods.rtt_us.is_some() {
            let small = self.pods.mtu.is_some_and(|mtu| mtu < self.pods.promised_mtu);
            return match self.passes_streams {
                _ if small => State::SmallMtu,
                Some(false) => State::BadSegments,
                _ => State::Works,
            };
        }
        match self.pods.heard {
            // An answer to what has no checksum has none either.
            Some(true) if self.passes_unchecked => State::BadChecksumIn,
            _ if self.passes_unchecked => State::BadChecksum,
            Some(true) => State::BlockedIn,
            Some(false) => State::BlockedOut,
            // Requests arrive here, and nothing that answers ours.
            None if self.pods.hears || self.nodes.hears => State::BlockedOut,
            None => State::Silent,
        }
    }
}

/// The detour that a node publishes for a pair.
pub fn detour(node: &Node, peer: &str) -> Option<Overlay> {
    published(node).find(|(name, _)| *name == peer).map(|(_, overlay)| overlay)
}

/// All detours that a node publishes. What is none is passed over: anyone may have written it.
pub fn detours_of(node: &Node) -> BTreeMap<String, Overlay> {
    published(node).map(|(name, overlay)| (name.to_owned(), overlay)).collect()
}

/// Detours as they are published.
pub fn detours_text(detours: &BTreeMap<String, Overlay>) -> String {
    let entries = detours.iter().map(|(peer, overlay)| format!("{peer}={overlay}"));
    entries.collect::<Vec<_>>().join(",")
}

/// Whether the way that a detour to a peer stands in for can be tried beside it: a tunnel, while
/// this node has an end of it, and the direct way.
pub fn is_tried_beside(plan: &NetworkPlan, peer: &Peer) -> bool {
    match peer.avoided {
        Some(Overlay::Vxlan) => plan.ends.vxlan.is_some(),
        Some(Overlay::Ipip) => !plan.ends.ipip.is_empty(),
        Some(Overlay::HostGw) => true,
        Some(Overlay::Wireguard | Overlay::Native) | None => false,
    }
}

/// The detours that a node shall publish: those that it has, and the next one for each peer that
/// cannot be reached by its present way although the peer itself can. The last one stays, working
/// or not: trying all of them over and over would break what works now and then. All of them go
/// once the first way works again; each end finds that for itself, and the pair leaves the detour
/// when neither publishes it.
pub fn detours(
    config: &ClusterConfig,
    facts: &NodeFacts,
    node: &Node,
    plan: &NetworkPlan,
    observations: &BTreeMap<String, Observation>,
) -> BTreeMap<String, Overlay> {
    let mut detours = detours_of(node);
    detours.retain(|name, _| plan.peers.contains_key(name));
    for (name, peer) in &plan.peers {
        let present = detours.get(name).copied();
        let observed = observations.get(name).filter(|found| found.way == peer.path.overlay());
        if observed.is_some_and(|found| found.avoided_works) {
            detours.remove(name);
            continue;
        }
        let blocked = observed.is_some_and(|found| {
            let blocked = matches!(found.state(), State::BlockedOut | State::BlockedIn);
            blocked && found.nodes.rtt_us.is_some()
        });
        // Encryption is never given up, and routes of others are theirs.
        let fixed = matches!(peer.path.overlay(), Overlay::Wireguard | Overlay::Native);
        if !blocked || fixed {
            continue;
        }
        if let Some(next) = next_detour(config, facts, peer, present) {
            detours.insert(name.clone(), next);
        }
    }
    detours.into_iter().take(DETOURS_MAX).collect()
}

fn next_detour(
    config: &ClusterConfig,
    facts: &NodeFacts,
    peer: &Peer,
    present: Option<Overlay>,
) -> Option<Overlay> {
    let after = present.and_then(|present| DETOURS.iter().position(|way| *way == present));
    let rest = DETOURS.iter().skip(after.map_or(0, |position| position + 1)).copied();
    let possible = |way: &Overlay| match way {
        Overlay::HostGw => is_on_link(facts, &peer.addresses, &peer.pod_ranges),
        _ => true,
    };
    // The configured way was the first that failed, unless a direct one went before it.
    let fresh = |way: &Overlay| *way != config.overlay || config.cross_subnet;
    let mut candidates =
        rest.filter(possible).filter(fresh).filter(|way| *way != peer.path.overlay());
    candidates.next()
}

fn published(node: &Node) -> impl Iterator<Item = (&str, Overlay)> {
    let text = node.metadata.annotations.get(DETOURS_ANNOTATION).map_or("", String::as_str);
    let entries = text.split(',').take(DETOURS_MAX).filter_map(|entry| entry.split_once('='));
    entries.filter_map(|(name, way)| {
        let way = way.parse().ok().filter(|way| DETOURS.contains(way))?;
        Some((name, way))
    })
}
