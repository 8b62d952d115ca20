//! What becomes of a packet by the maps, followed as `find_service` and `choose` of
//! `bpf/services.h` follow them. It reads the maps and knows nothing of Services.
//!
//! This is the meaning for each packet, which the programs at the hook `tc` have. The programs at
//! the socket agree with it, but for what `bpf/socket_services.c` says of the source. Of the node's
//! own to frontends with source ranges they take what has no source yet, and the nftables table
//! judges the rest: both must mean the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ebpf_abi::address_bytes;
use ebpf_abi::services::{
    DIRECT, DIRECT_PODS, KEEP_ALWAYS, MASQUERADE, OUTSIDE, OUTSIDE_REJECT, RANGE_PORT_BITS, REJECT,
    RangeKey, SCOPE_ADDRESS, SCOPE_NODE_PORT, SOURCE_RANGES, Service, ServiceKey, Slot, SlotKey,
};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family};
use plan::NodeFacts;

use super::EbpfObserved;
use crate::nft::{self, NftObserved, TraceError};
use crate::owned::MARK_EBPF;

/// What becomes of a flow's first packet, where nothing but the maps has a say in it.
///
/// # Errors
/// When chance decides between passing and not.
pub fn trace(
    observed: &EbpfObserved,
    packet: &Packet,
    _config: &ClusterConfig,
    _facts: &NodeFacts,
) -> Result<Verdict, TraceError> {
    let untouched = || Verdict::Pass {
        destinations: [packet.destination].into(),
        source: SourceTranslation::Kept,
        source_ports: BTreeMap::new(),
    };
    Ok(decide(observed, packet)?.unwrap_or_else(untouched))
}

/// What becomes of it beside the nftables table, which has a say in what is no Service, in where a
/// translated packet goes, and in what the node itself sends to a frontend with source ranges.
///
/// # Errors
/// When the rules cannot be followed, chance decides between passing and not, or what a socket
/// without a source would get is not what the packet gets.
pub fn trace_beside(
    observed: &EbpfObserved,
    rules: &NftObserved,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<Verdict, TraceError> {
    let by_maps = trace_translated(observed, rules, packet, config, facts)?;
    let has_ranges = |service: Service| service.flags & SOURCE_RANGES != 0;
    if packet.entry != Entry::Local || !find_service(observed, packet).is_some_and(has_ranges) {
        return Ok(by_maps);
    }
    let by_rules = nft::trace(rules, packet, config, facts)?;
    let is_same = match (&by_maps, &by_rules) {
        (Verdict::Pass { destinations, .. }, Verdict::Pass { destinations: others, .. }) => {
            destinations == others
        }
        (by_maps, by_rules) => by_maps == by_rules,
    };
    if !is_same {
        let message = format!("by the maps {by_maps}, by the rules beside them {by_rules}");
        return Err(TraceError::Broken(message));
    }
    Ok(by_rules)
}

/// The maps first, and then the table.
fn trace_translated(
    observed: &EbpfObserved,
    rules: &NftObserved,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<Verdict, TraceError> {
    let (destinations, source) = match decide(observed, packet)? {
        None => return nft::trace(rules, packet, config, facts),
        Some(Verdict::Pass { destinations, source, .. }) => (destinations, source),
        Some(verdict) => return Ok(verdict),
    };
    let mut refused = Vec::new();
    // From a pod to endpoints outside of the cluster.
    let mut hidden = BTreeSet::new();
    let mut ports_beside = BTreeMap::new();
    for destination in &destinations {
        let translated = Packet { destination: *destination, ..packet.clone() };
        let is_ours = match &source {
            SourceTranslation::Kept => false,
            SourceTranslation::Masqueraded => true,
            SourceTranslation::MasqueradedTo(some) => some.contains(&destination.ip()),
        };
        // Nothing marks what this node itself sends.
        let is_marked = is_ours && packet.entry != Entry::Local;
        let mark = if is_marked { MARK_EBPF } else { 0 };
        match nft::trace_marked(rules, mark, &translated, config, facts)? {
            Verdict::Pass { source: SourceTranslation::Kept, .. } => {}
            // The programs would not know the packet any more where it leaves.
            Verdict::Pass { .. } if is_marked => {
                return Err(TraceError::Broken(format!("masqueraded twice towards {destination}")));
            }
            Verdict::Pass { source_ports, .. } => {
                hidden.insert(destination.ip());
                ports_beside.extend(source_ports);
            }
            verdict => refused.push(verdict),
        }
    }
    match refused.as_slice() {
        [] => {}
        [one, others @ ..]
            if refused.len() == destinations.len() && others.iter().all(|other| other == one) =>
        {
            return Ok(one.clone());
        }
        some => {
            let texts = some.iter().map(|verdict| format!("{verdict}, of {destinations:?}"));
            return Err(TraceError::Undecided(texts.collect()));
        }
    }
    if source != SourceTranslation::Kept || hidden.is_empty() {
        return Ok(Verdict::Pass { destinations, source, source_ports: BTreeMap::new() });
    }
    let source = if destinations.iter().all(|one| hidden.contains(&one.ip())) {
        SourceTranslation::Masqueraded
    } else {
        SourceTranslation::MasqueradedTo(hidden)
    };
    Ok(Verdict::Pass { destinations, source, source_ports: ports_beside })
}

/// What the maps say of it; `None`: it goes to no Service.
///
/// # Errors
/// When chance decides between passing and not.
pub fn decide(observed: &EbpfObserved, packet: &Packet) -> Result<Option<Verdict>, TraceError> {
    let Some(service) = find_service(observed, packet) else { return Ok(None) };
    let source = packet.source.ip();
    if service.flags & SOURCE_RANGES != 0 && !is_source_allowed(observed, service.id, source) {
        return Ok(Some(Verdict::Drop));
    }
    let is_own_pod = observed.own_pods.keys().any(|range| range.contains(&source));
    let is_outside = packet.entry != Entry::Local && !is_own_pod;
    let other_view = is_outside && service.flags & OUTSIDE != 0;
    let (id, count, near, reject) = if other_view {
        (service.outside_id, service.outside_count, &[][..], OUTSIDE_REJECT)
    } else {
        (service.id, service.count, service.near_slots(), REJECT)
    };
    if count == 0 {
        let rejects = service.flags & reject != 0;
        return Ok(Some(if rejects { Verdict::Reject } else { Verdict::Drop }));
    }
    let destinations = destinations(observed, &service, (id, count, near), packet)?;
    let to_itself = destinations.iter().any(|destination| destination.ip() == source);
    let source = if other_view {
        SourceTranslation::Kept
    } else if is_outside && service.flags & DIRECT != 0 && direct_host(observed, source).is_none() {
        kept_towards_pods(observed, &destinations)
    } else if service.flags & MASQUERADE != 0 || !is_own_pod {
        SourceTranslation::Masqueraded
    } else if to_itself {
        SourceTranslation::MasqueradedTo([source].into())
    } else {
        SourceTranslation::Kept
    };
    // What these programs masquerade has ports of their own.
    Ok(Some(Verdict::Pass { destinations, source, source_ports: BTreeMap::new() }))
}

/// What is known of an address of the cluster; `None`: it is outside.
fn direct_host(observed: &EbpfObserved, address: IpAddr) -> Option<u32> {
    let known = observed.direct_hosts.iter().filter(|(range, _)| range.contains(&address));
    known.max_by_key(|(range, _)| range.prefix_len()).map(|(_, host)| host)
}

/// Towards whom a client outside of the cluster that may be answered past this node is masqueraded
/// all the same.
fn kept_towards_pods(
    observed: &EbpfObserved,
    destinations: &BTreeSet<SocketAddr>,
) -> SourceTranslation {
    let is_own = |address: IpAddr| observed.own_pods.keys().any(|range| range.contains(&address));
    let is_direct =
        |address| direct_host(observed, address).is_some_and(|it| it & DIRECT_PODS != 0);
    let addresses = destinations.iter().map(SocketAddr::ip);
    let hidden: BTreeSet<IpAddr> =
        addresses.filter(|&address| !is_own(address) && !is_direct(address)).collect();
    if hidden.is_empty() {
        SourceTranslation::Kept
    } else {
        SourceTranslation::MasqueradedTo(hidden)
    }
}

fn find_service(observed: &EbpfObserved, packet: &Packet) -> Option<Service> {
    let (address, port) = (packet.destination.ip(), packet.destination.port());
    let protocol = packet.protocol.number();
    let exact =
        ServiceKey { address: address_bytes(address), port, protocol, scope: SCOPE_ADDRESS };
    let in_range = || {
        (0..=16).find_map(|bits| {
            let mask = u16::try_from((0xffff_u32 << bits) & 0xffff).unwrap_or(0);
            let key = RangeKey {
                prefix_bits: RANGE_PORT_BITS + 16 - bits,
                address: address_bytes(address),
                protocol,
                zero: 0,
                port: port & mask,
            };
            observed.ranges.get(&key)
        })
    };
    let node_port = || {
        let unspecified = super::unspecified(Family::of(&address));
        let key =
            ServiceKey { address: address_bytes(unspecified), scope: SCOPE_NODE_PORT, ..exact };
        observed.services.get(&key).filter(|_| observed.node_addresses.contains_key(&address))
    };
    observed.services.get(&exact).or_else(in_range).or_else(node_port)
}

fn is_source_allowed(observed: &EbpfObserved, id: u32, source: IpAddr) -> bool {
    observed.sources.keys().any(|known| known.id == id && known.range.contains(&source))
}

/// Every endpoint that can be drawn.
fn destinations(
    observed: &EbpfObserved,
    service: &Service,
    (id, count, near): (u32, u32, &[Slot]),
    packet: &Packet,
) -> Result<BTreeSet<SocketAddr>, TraceError> {
    let slot = |number: u32| {
        let near = near.get(usize::try_from(number).unwrap_or(usize::MAX));
        near.copied().or_else(|| observed.slots.get(&SlotKey { id, slot: number }))
    };
    // Who finds a slot gone takes the first one.
    let at = |number: u32| slot(number).or_else(|| slot(0));
    let mut found: BTreeSet<Option<SocketAddr>> = BTreeSet::new();
    if service.maglev_size != 0 {
        let table = observed.maglev.of_id(id).filter(|(key, _)| key.slot < service.maglev_size);
        let numbers: Vec<u32> = table.map(|(_, number)| number).collect();
        let has_gap = numbers.len() < service.maglev_size as usize;
        for number in numbers.into_iter().chain(has_gap.then_some(0)).collect::<BTreeSet<u32>>() {
            found.insert(at(number).map(|slot| endpoint(&slot, packet)));
        }
    } else {
        for number in 0..count {
            let Some(slot) = at(number) else {
                found.insert(None);
                continue;
            };
            if slot.keep != 0 {
                found.insert(Some(endpoint(&slot, packet)));
            }
            if slot.keep != KEEP_ALWAYS {
                found.insert(at(slot.alias).map(|slot| endpoint(&slot, packet)));
            }
        }
    }
    let texts = || found.iter().map(|one| format!("{one:?}")).collect();
    found.iter().copied().collect::<Option<_>>().ok_or_else(|| TraceError::Undecided(texts()))
}

/// An endpoint as the packet gets it.
fn endpoint(slot: &Slot, packet: &Packet) -> SocketAddr {
    let address = IpAddr::V6(Ipv6Addr::from(slot.address)).to_canonical();
    let port = if slot.port == 0 { packet.destination.port() } else { slot.port };
    SocketAddr::new(address, port)
}
