//! Comparing verdicts of executors that say the same in different words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::packet::{Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, ServiceBackend, World};
use oracle::service::Rule;
use plan::NodeFacts;
use render::nft::{NftObserved, TraceError};

use crate::agreement::is_of_service;

/// The verdict with the one spelling that comparisons use: masquerading towards every possible
/// destination is masquerading, towards none of them is not.
pub fn normal(verdict: Verdict) -> Verdict {
    let Verdict::Pass {
        destinations,
        source: SourceTranslation::MasqueradedTo(towards),
        source_ports,
    } = verdict
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
    Verdict::Pass { destinations, source, source_ports }
}

/// What is meant, of a backend: what a Service of eBPF masquerades has the programs' own source
/// ports, whatever is configured for what leaves the cluster.
pub fn meant_of(backend: ServiceBackend, meant: &Verdict, rule: &Rule, said: &Verdict) -> Verdict {
    match (meant.clone(), said) {
        (Verdict::Pass { destinations, source, .. }, Verdict::Pass { source_ports: said, .. })
            if backend == ServiceBackend::Ebpf && is_of_service(rule) && said.is_empty() =>
        {
            Verdict::Pass { destinations, source, source_ports: BTreeMap::new() }
        }
        (meant, _) => meant,
    }
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
