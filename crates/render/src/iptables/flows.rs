//! Which tracked UDP flows go with a change. A UDP client with a fixed source port would otherwise
//! stay on a dead endpoint, since each datagram renews its flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{Family, Protocol};

use super::language::{ChainName, Fixed, Kind, Match, Rule, Table, Target};
use super::{Places, tree};
use crate::nft::StaleFlows;

/// Chains that follow each other from a frontend to its endpoints: firewall, external, choice,
/// endpoint.
const CHAIN_DEPTH_MAX: usize = 4;

/// Where clients send to: an address, its first and its last port.
type Frontend = (IpAddr, u16, u16);
/// Where that leads: an address, and a port unless the client's stays.
type Endpoint = (IpAddr, Option<u16>);

/// What becomes of clients of a frontend.
#[derive(Default)]
struct Treatment {
    endpoints: BTreeSet<Endpoint>,
    /// Whether clients outside the cluster are masqueraded.
    is_masquerading: bool,
}

/// The UDP frontends that lose an endpoint, or get their first: flows that began without one were
/// not translated. Where the source is treated in another way from now on, all flows go: each keeps
/// the source that it began with. `places`: no others can be such.
pub(super) fn stale(
    family: Family,
    wanted: &Table,
    present: &Table,
    places: Option<&Places>,
) -> Option<StaleFlows> {
    let [new, old] = [wanted, present].map(|table| frontends(table, places));
    let none = Treatment::default();
    let mut stale = StaleFlows::none(family);
    for frontend in new.keys().chain(old.keys()) {
        let treatment = new.get(frontend).unwrap_or(&none);
        let former = old.get(frontend);
        let is_other =
            former.is_some_and(|former| former.is_masquerading != treatment.is_masquerading);
        let is_kept = former.is_some_and(|old| old.endpoints.is_subset(&treatment.endpoints));
        if is_kept && !is_other {
            continue;
        }
        let endpoints = || treatment.endpoints.iter().filter(|_| !is_other);
        let &(address, first, last) = frontend;
        if first == last {
            let endpoints =
                endpoints().map(|&(ip, port)| SocketAddr::new(ip, port.unwrap_or(first)));
            stale.frontends.insert(SocketAddr::new(address, first), endpoints.collect());
        } else {
            let endpoints = endpoints().map(|&(address, _)| address);
            stale.ranges.insert(*frontend, endpoints.collect());
        }
    }
    (!stale.frontends.is_empty() || !stale.ranges.is_empty()).then_some(stale)
}

/// Where clients send UDP to, and what becomes of them.
fn frontends(nat: &Table, places: Option<&Places>) -> BTreeMap<Frontend, Treatment> {
    let nodes: Vec<IpAddr> = nat
        .chains
        .get(&Fixed::Services.into())
        .into_iter()
        .flatten()
        .filter(|rule| rule.jump() == Some(&Fixed::NodePorts.into()))
        .filter_map(destination)
        .collect();
    let mut frontends: BTreeMap<Frontend, Treatment> = BTreeMap::new();
    let rules: Vec<&Rule> = match places {
        None => nat.chains.values().flatten().collect(),
        Some(places) => leading_from(nat, places),
    };
    for rule in rules {
        let (Some(chain), Some((first, last))) = (dispatch(rule), udp_ports(rule)) else {
            continue;
        };
        let destination = destination(rule);
        for &address in destination.as_ref().map_or(nodes.as_slice(), std::slice::from_ref) {
            let treatment = frontends.entry((address, first, last)).or_default();
            treatment.follow(nat, chain, 0);
        }
    }
    frontends
}

impl Treatment {
    fn follow(&mut self, nat: &Table, chain: &ChainName, depth: usize) {
        if depth > CHAIN_DEPTH_MAX {
            return;
        }
        // Others mark clients of ClusterIPs.
        let is_external = matches!(chain, ChainName::Keyed(Kind::External, _));
        let everybody = Rule::new([], Fixed::MarkMasquerade);
        for rule in nat.chains.get(chain).into_iter().flatten() {
            match &rule.target {
                Target::Translate { address, port } => {
                    self.endpoints.insert((*address, *port));
                }
                _ if is_external && *rule == everybody => self.is_masquerading = true,
                Target::Jump(next) => self.follow(nat, next, depth + 1),
                _ => {}
            }
        }
    }
}

fn destination(rule: &Rule) -> Option<IpAddr> {
    rule.matches.iter().find_map(|one| match one {
        Match::Destination(range) => Some(range.addr()),
        _ => None,
    })
}

/// The rules of UDP that packets to these places meet first.
fn leading_from<'a>(nat: &'a Table, places: &Places) -> Vec<&'a Rule> {
    let mut rules = Vec::new();
    for address in &places.addresses {
        rules.extend(tree::leaves(&nat.chains, Fixed::Services, &|one| match one {
            Match::Destination(range) => range.contains(address),
            Match::Protocol(protocol) => *protocol == Protocol::Udp,
            _ => true,
        }));
    }
    for port in &places.node_ports {
        rules.extend(tree::leaves(&nat.chains, Fixed::NodePorts, &|one| match one {
            Match::Ports { first, last } => (*first..=*last).contains(port),
            Match::Protocol(protocol) => *protocol == Protocol::Udp,
            _ => true,
        }));
    }
    rules
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
