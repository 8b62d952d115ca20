//! The test of one pair: small packets first, then the largest, then in between; where all
//! arrive, a stream.
//!
//! A way may break and be mended while it is tested. So what one kind of packet is blamed for must
//! show again after another kind has passed: without that, what came too early would look wrong,
//! and what came late enough, right.

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
/// Exchanges of one search for a size: the largest, those in between, and the largest again.
const SEARCH_EXCHANGES_MAX: usize = ATTEMPTS + 2 * SIZES_MAX + 1;
/// Exchanges of one test at most: small ones between nodes and between gateways, both twice,
/// without a checksum and by a way that is avoided; large ones between streams; and the search on
/// both channels.
pub(super) const EXCHANGES_MAX: usize = 7 * ATTEMPTS + 2 * SEARCH_EXCHANGES_MAX;
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
    let (mut by_pods, mut by_nodes) = small(&target, &nodes, &pods).await;
    let mut passes_unchecked = false;
    if by_pods.rtt_us.is_none() {
        passes_unchecked = channel(&pods, target.pods_mtu, true).await.rtt_us.is_some();
    }
    if passes_unchecked {
        (by_pods, by_nodes) = small(&target, &nodes, &pods).await;
        passes_unchecked = by_pods.rtt_us.is_none();
    }
    by_pods.heard = pods.is_heard_since(began);
    by_nodes.heard = nodes.is_heard_since(began);
    let passes_streams = large(&target, (&nodes, &mut by_nodes), (&pods, &mut by_pods)).await;
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

/// Between gateways, then between nodes: answers of these say what was heard of those.
async fn small(target: &PairTarget, nodes: &Line, pods: &Line) -> (Channel, Channel) {
    let by_pods = channel(pods, target.pods_mtu, false).await;
    let by_nodes = channel(nodes, target.nodes_mtu, false).await;
    (by_pods, by_nodes)
}

/// What passes beyond small packets, where those do; answers whether streams do.
async fn large(
    target: &PairTarget,
    (nodes, by_nodes): (&Line, &mut Channel),
    (pods, by_pods): (&Line, &mut Channel),
) -> Option<bool> {
    let sizes = Sizes::of(target, target.pods_mtu, target.pods.0, by_pods.rtt_us?);
    let mtu = sizes.largest(pods).await;
    by_pods.mtu = Some(mtu);
    if mtu == target.pods_mtu {
        return streams(pods, &sizes).await;
    }
    if let Some(rtt_us) = by_nodes.rtt_us {
        let sizes = Sizes::of(target, target.nodes_mtu, target.nodes.0, rtt_us);
        by_nodes.mtu = Some(sizes.largest(nodes).await);
    }
    None
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

/// Whether streams get through; only what is found each time is believed, and after the largest
/// datagrams have passed once more. Where those do not any more, nothing is said of streams.
async fn streams(pods: &Line, sizes: &Sizes) -> Option<bool> {
    for _ in 0..ATTEMPTS {
        let found = pods.passes_streams(PATIENCE).await;
        if found != Some(false) {
            return found;
        }
    }
    match sizes.promised_arrives(pods).await {
        true => pods.passes_streams(PATIENCE).await,
        false => None,
    }
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
        if self.promised_arrives(line).await {
            return self.promised;
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
        // The way may be whole again: then all that was lost says nothing.
        match self.arrives(line, self.promised).await {
            true => self.promised,
            false => arrives,
        }
    }

    async fn promised_arrives(&self, line: &Line) -> bool {
        for _ in 0..ATTEMPTS {
            if self.arrives(line, self.promised).await {
                return true;
            }
        }
        false
    }

    async fn arrives(&self, line: &Line, mtu: u32) -> bool {
        let size = mtu.saturating_sub(self.header_bytes) as usize;
        line.ask(size, false, self.patience).await.is_some()
    }
}
