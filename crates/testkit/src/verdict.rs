//! Comparing verdicts of executors that say the same in different words.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, World};
use plan::NodeFacts;
use render::nft::{NftObserved, TraceError};

/// The verdict with the one spelling that comparisons use: masquerading towards every possible
/// destination is masquerading, towards none of them is not.
pub fn normal(verdict: Verdict) -> Verdict {
    let Verdict::Pass { destinations, source: SourceTranslation::MasqueradedTo(towards) } = verdict
    else {
        return verdict;
    };
    let all: BTreeSet<IpAddr> = destinations.iter().map(SocketAddr::ip).collect();
    let towards: BTreeSet<IpAddr> = towards.intersection(&all).copied().collect();
    let source = if towards.is_empty() {
        SourceTranslation::Kept
    } else if towards == all {
        SourceTranslation::Masqueraded
    } else {
        SourceTranslation::MasqueradedTo(towards)
    };
    Verdict::Pass { destinations, source }
}

/// What the API means for the packet.
pub fn by_oracle(
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
    packet: &Packet,
) -> oracle::service::Decision {
    let node = oracle::service::Node { name: &facts.name, addresses: &facts.addresses };
    let decision = oracle::service::decide(world, config, node, packet);
    oracle::service::Decision { verdict: normal(decision.verdict), rule: decision.rule }
}

/// What the nftables rules do with the packet.
pub fn by_nft(
    nft: &NftObserved,
    config: &ClusterConfig,
    facts: &NodeFacts,
    packet: &Packet,
) -> Result<Verdict, TraceError> {
    render::nft::trace(nft, packet, config, facts).map(normal)
}
