//! Which tracked UDP flows go with a change. A UDP client with a fixed source port would otherwise
//! stay on a dead endpoint, since each datagram renews its flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{Family, Protocol};

use super::language::{ChainName, Kind, Match, Rule, Table, Target};
use crate::nft::StaleFlows;

/// Chains that follow each other from a frontend to its endpoints: firewall, external, choice,
/// endpoint.
const CHAIN_DEPTH_MAX: usize = 4;

/// Where clients send to: an address, its first and its last port.
type Frontend = (IpAddr, u16, u16);
/// Where that leads: an address, and a port unless the client's stays.
type Endpoint = (IpAddr, Option<u16>);

/// The UDP frontends that lose an endpoint, or get their first: flows that began without one were
/// not translated.
pub(super) fn stale(
    family: Family,
    node_addresses: &BTreeSet<IpAddr>,
    wanted: &Table,
    present: &Table,
) -> Option<StaleFlows> {
    let node_addresses: Vec<IpAddr> =
        node_addresses.iter().copied().filter(|address| Family::of(address) == family).collect();
    let new = frontends(wanted, &node_addresses);
    let old = frontends(present, &node_addresses);
    let none = BTreeSet::new();
    let mut stale = StaleFlows::none(family);
    for frontend in new.keys().chain(old.keys()) {
        let endpoints = new.get(frontend).unwrap_or(&none);
        if old.get(frontend).is_some_and(|old| old.is_subset(endpoints)) {
            continue;
        }
        let &(address, first, last) = frontend;
        if first == last {
            let endpoints =
                endpoints.iter().map(|&(ip, port)| SocketAddr::new(ip, port.unwrap_or(first)));
            stale.frontends.insert(SocketAddr::new(address, first), endpoints.collect());
        } else {
            let endpoints = endpoints.iter().map(|&(address, _)| address);
            stale.ranges.insert(*frontend, endpoints.collect());
        }
    }
    (!stale.frontends.is_empty() || !stale.ranges.is_empty()).then_some(stale)
}

/// Where clients send UDP to, and where it may lead.
fn frontends(nat: &Table, node_addresses: &[IpAddr]) -> BTreeMap<Frontend, BTreeSet<Endpoint>> {
    let mut frontends: BTreeMap<Frontend, BTreeSet<Endpoint>> = BTreeMap::new();
    for rule in nat.chains.values().flatten() {
        let (Some(chain), Some((first, last))) = (dispatch(rule), udp_ports(rule)) else {
            continue;
        };
        let mut endpoints = BTreeSet::new();
        collect(nat, chain, &mut endpoints, 0);
        let destination = rule.matches.iter().find_map(|one| match one {
            Match::Destination(range) => Some(range.addr()),
            _ => None,
        });
        let addresses = destination.as_ref().map_or(node_addresses, std::slice::from_ref);
        for &address in addresses {
            frontends.entry((address, first, last)).or_default().extend(&endpoints);
        }
    }
    frontends
}

/// The chain of a frontend.
fn dispatch(rule: &Rule) -> Option<&ChainName> {
    rule.jump().filter(|chain| match chain {
        ChainName::Keyed(kind, _) => {
            matches!(kind, Kind::Service | Kind::Internal | Kind::External | Kind::Firewall)
        }
        _ => false,
    })
}

fn udp_ports(rule: &Rule) -> Option<(u16, u16)> {
    let is_udp = rule.matches.contains(&Match::Protocol(Protocol::Udp));
    rule.matches.iter().filter(|_| is_udp).find_map(|one| match one {
        Match::Ports { first, last } => Some((*first, *last)),
        _ => None,
    })
}

fn collect(nat: &Table, chain: &ChainName, endpoints: &mut BTreeSet<Endpoint>, depth: usize) {
    if depth > CHAIN_DEPTH_MAX {
        return;
    }
    for rule in nat.chains.get(chain).into_iter().flatten() {
        match &rule.target {
            Target::Translate { address, port } => drop(endpoints.insert((*address, *port))),
            Target::Jump(next) => collect(nat, next, endpoints, depth + 1),
            _ => {}
        }
    }
}
