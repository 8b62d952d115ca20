//! The test of one pair: small packets first, then the largest, then in between; where all
//! arrive, a stream.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::Overlay;
use plan::paths::{Channel, Observation};

use super::avoided::Avoided;
use super::exchange::Line;
use super::packet::PACKET_BYTES;

/// How long an answer may take: longer than any way between nodes of a cluster.
const PATIENCE: Duration = Duration::from_millis(400);
/// And at least, where others came much faster: packets queue.
const PATIENCE_LEAST: Duration = Duration::from_millis(60);
/// An answer is given up after this many times what the fastest took.
const PATIENCE_ROUND_TRIPS: u32 = 8;
/// Requests until an answer came: one packet may be lost.
const ATTEMPTS: usize = 3;
/// Sizes between the smallest and the largest that are tried: halves 64 KiB down to a byte.
const SIZES_MAX: usize = 17;
/// Exchanges of one test at most: small ones between nodes, between gateways, without a checksum
/// and by a way that is avoided; and the search for a size, on both channels.
pub(super) const EXCHANGES_MAX: usize = 4 * ATTEMPTS + 2 * (ATTEMPTS + 2 * SIZES_MAX);
const UDP_HEADER_BYTES: u32 = 8;

/// What is to be tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairTarget {
    /// How pod packets travel.
    pub(crate) way: Overlay,
    /// This node's address and the peer's.
    pub(crate) nodes: (IpAddr, IpAddr),
    /// The gateways of this node's pods and of the peer's.
    pub(crate) pods: (IpAddr, IpAddr),
    /// The largest packets in bytes by what the links promise.
    pub(crate) nodes_mtu: u32,
    /// The same between gateways.
    pub(crate) pods_mtu: u32,
    /// The smallest size in bytes that a link may have.
    pub(crate) least_mtu: u32,
    /// What the way is a detour past, to be tried beside it.
    pub(crate) avoided: Option<Avoided>,
}

/// Tests a pair. It takes some milliseconds where all is well, and some seconds at most.
pub(super) async fn test(target: PairTarget, nodes: Line, pods: Line) -> Observation {
    let began = Instant::now();
    let mut by_pods = channel(&pods, target.pods_mtu, false).await;
    let mut by_nodes = channel(&nodes, target.nodes_mtu, false).await;
    let mut passes_unchecked = false;
    if let Some(rtt_us) = by_pods.rtt_us {
        let sizes = Sizes::of(&target, target.pods_mtu, target.pods.0, rtt_us);
        by_pods.mtu = Some(sizes.largest(&pods).await);
    }
    let is_small = by_pods.mtu.is_some_and(|mtu| mtu < target.pods_mtu);
    let mut passes_streams = None;
    if by_pods.rtt_us.is_some() && !is_small {
        passes_streams = streams(&pods).await;
    }
    if let Some(rtt_us) = by_nodes.rtt_us.filter(|_| is_small) {
        let sizes = Sizes::of(&target, target.nodes_mtu, target.nodes.0, rtt_us);
        by_nodes.mtu = Some(sizes.largest(&nodes).await);
    }
    // Before anything is sent without a checksum: that would be heard too.
    by_pods.heard = pods.is_heard_since(began);
    by_nodes.heard = nodes.is_heard_since(began);
    if by_pods.rtt_us.is_none() {
        passes_unchecked = channel(&pods, target.pods_mtu, true).await.rtt_us.is_some();
    }
    let mut avoided_works = false;
    if let Some(avoided) = target.avoided.clone() {
        let beside = channel(&pods.clone().by(avoided), target.pods_mtu, false).await;
        avoided_works = beside.rtt_us.is_some();
    }
    by_pods.hears = pods.hears();
    by_nodes.hears = nodes.hears();
    Observation {
        way: target.way,
        own_address: target.nodes.0,
        peer_address: target.nodes.1,
        pods: by_pods,
        nodes: by_nodes,
        passes_unchecked,
        passes_streams,
        avoided_works,
    }
}

async fn channel(line: &Line, promised_mtu: u32, unchecked: bool) -> Channel {
    let mut found = Channel { promised_mtu, ..Channel::default() };
    for _ in 0..ATTEMPTS {
        if let Some(took) = line.ask(PACKET_BYTES, unchecked, PATIENCE).await {
            found.rtt_us = Some(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            break;
        }
    }
    found
}

/// Whether streams get through; only what is found each time is believed.
async fn streams(pods: &Line) -> Option<bool> {
    let mut found = None;
    for _ in 0..ATTEMPTS {
        found = pods.passes_streams(PATIENCE).await;
        if found != Some(false) {
            break;
        }
    }
    found
}

/// The search for the largest packet that arrives.
struct Sizes {
    /// Sizes of packets in bytes: one that every link must carry, and the largest wished for.
    least: u32,
    promised: u32,
    header_bytes: u32,
    patience: Duration,
}

impl Sizes {
    fn of(target: &PairTarget, promised: u32, own: IpAddr, rtt_us: u32) -> Self {
        let usual = Duration::from_micros(rtt_us.into()) * PATIENCE_ROUND_TRIPS;
        Self {
            least: target.least_mtu.min(promised),
            promised,
            header_bytes: UDP_HEADER_BYTES + if own.is_ipv4() { 20 } else { 40 },
            patience: usual.clamp(PATIENCE_LEAST, PATIENCE),
        }
    }

    async fn largest(&self, line: &Line) -> u32 {
        for _ in 0..ATTEMPTS {
            if self.arrives(line, self.promised).await {
                return self.promised;
            }
        }
        let (mut arrives, mut too_large) = (self.least, self.promised);
        for _ in 0..SIZES_MAX {
            if too_large.saturating_sub(arrives) <= 1 {
                break;
            }
            let middle = arrives + (too_large - arrives) / 2;
            // Once more, for one may be lost.
            if self.arrives(line, middle).await || self.arrives(line, middle).await {
                arrives = middle;
            } else {
                too_large = middle;
            }
        }
        arrives
    }

    async fn arrives(&self, line: &Line, mtu: u32) -> bool {
        let size = mtu.saturating_sub(self.header_bytes) as usize;
        line.ask(size, false, self.patience).await.is_some()
    }
}
