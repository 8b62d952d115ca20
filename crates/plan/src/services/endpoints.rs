//! What slices say of a Service's endpoints, seen from one node, and who of them takes a client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::kinds::{Endpoint, ForName, ServicePort, TrafficPolicy};
use model::{EndpointSlice, Family, FlatSet, Protocol, Unreachable};

use super::annotations::Weights;
use super::{Backends, Findings, HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL, Scheduling};

/// The node that looks at the endpoints.
#[derive(Clone, Copy)]
pub(super) struct Viewer<'a> {
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
    pub(super) weights: &'a Weights<'a>,
}

/// All endpoints of one Service.
#[derive(Default)]
pub(super) struct Endpoints<'a> {
    /// What Service ports match by name and protocol.
    by_port: BTreeMap<PortKey<'a>, Candidates>,
    /// All of a family at port 0, whatever ports the slices name: where port ranges lead to.
    by_family: BTreeMap<Family, Candidates>,
}

type PortKey<'a> = (Family, &'a str, Protocol);

const NO_CANDIDATES: &Candidates = &Candidates(Vec::new());

impl<'a> Endpoints<'a> {
    /// Adds the endpoints of one slice.
    pub(super) fn read(
        &mut self,
        slice: &'a EndpointSlice,
        viewer: Viewer<'_>,
        unreachable: &Unreachable,
        findings: &mut Findings,
    ) {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return, // names take no packets
        };
        let labels = &slice.metadata.labels;
        if labels.contains_key(HEADLESS_LABEL) || labels.contains_key(SERVICE_PROXY_NAME_LABEL) {
            return;
        }
        let mut statements = Vec::with_capacity(slice.endpoints.len());
        for endpoint in &slice.endpoints {
            match usable_address(endpoint, family) {
                Ok(address) => {
                    let mut statement = Statement::new(endpoint, address, viewer);
                    statement.is_unreachable = unreachable.nodes.contains(&endpoint.node_name);
                    statements.push(statement);
                }
                Err(reason) => findings.add(
                    format!("EndpointSlice {}", slice.metadata.key()),
                    format!("{reason}: the endpoint is left out; correct the slice"),
                ),
            }
        }
        for port in &slice.ports {
            // "All ports" and port 0 cannot be the target of a Service port.
            let Some(number) = port.port.filter(|&number| number != 0) else { continue };
            let key = (family, port.name.as_str(), port.protocol);
            self.by_port.entry(key).or_default().0.extend(statements.iter().map(|statement| {
                let address = SocketAddr::new(statement.address.ip(), number);
                let silent =
                    port.protocol == Protocol::Tcp && unreachable.endpoints.contains(&address);
                let is_unreachable = statement.is_unreachable || silent;
                Statement { address, is_unreachable, ..*statement }
            }));
        }
        self.by_family.entry(family).or_default().0.append(&mut statements);
    }

    /// What may answer at a Service's port.
    pub(super) fn of_port(&self, family: Family, port: &'a ServicePort) -> &Candidates {
        let key = (family, port.name.as_str(), port.protocol);
        self.by_port.get(&key).unwrap_or(NO_CANDIDATES)
    }

    /// What may answer at any port.
    pub(super) fn of_family(&self, family: Family) -> &Candidates {
        self.by_family.get(&family).unwrap_or(NO_CANDIDATES)
    }

    /// The addresses of all endpoints on the viewer's node, whatever their state.
    pub(super) fn local_addresses(&self) -> BTreeSet<IpAddr> {
        let all = self.by_family.values().flat_map(|candidates| &candidates.0);
        all.filter(|one| one.is_here).map(|one| one.address.ip()).collect()
    }

    /// The ports that slices have instead, when no slice has the Service's port: the link between
    /// the two is broken.
    pub(super) fn mismatch(&self, port: &ServicePort) -> Option<String> {
        let ports: BTreeSet<(&str, Protocol)> =
            self.by_port.keys().map(|&(_, name, protocol)| (name, protocol)).collect();
        if ports.is_empty() || ports.contains(&(port.name.as_str(), port.protocol)) {
            return None;
        }
        let named: Vec<String> =
            ports.iter().map(|(name, protocol)| format!("{name:?}/{protocol}")).collect();
        Some(named.join(", "))
    }
}

/// The endpoints of one port in one family, one entry for each time that a slice states one:
/// slices may name an endpoint twice, for a moment while it moves between them. What is better for
/// the client wins.
#[derive(Default)]
pub(super) struct Candidates(Vec<Statement>);

/// One endpoint as one slice states it.
#[derive(Clone, Copy)]
struct Statement {
    address: SocketAddr,
    is_ready: bool,
    /// Terminates, but serves on.
    is_leaving: bool,
    is_here: bool,
    is_unreachable: bool,
    for_nodes: Hint,
    for_zones: Hint,
    weight: u16,
}

/// Whose clients shall prefer an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    Unsaid,
    Ours,
    Others,
}

impl Candidates {
    /// Who takes a new client under a policy: among those that answer this node, else among all.
    pub(super) fn backends(&self, policy: TrafficPolicy) -> Backends {
        let choose = |counts: fn(&Statement) -> bool| match policy {
            TrafficPolicy::Cluster => self.nearest(counts),
            TrafficPolicy::Local => self.ready_else_leaving(|one| one.is_here && counts(one)),
        };
        let mut chosen = choose(|one| !one.is_unreachable);
        if chosen.is_empty() {
            chosen = choose(|_| true);
        }
        if !chosen.is_empty() {
            return Backends::Endpoints(chosen);
        }
        if self.0.iter().any(|one| one.is_ready || one.is_leaving) {
            // Another node may answer.
            Backends::Drop
        } else {
            Backends::Reject
        }
    }

    /// Whether any endpoint is ready.
    pub(super) fn has_ready(&self) -> bool {
        self.0.iter().any(|one| one.is_ready)
    }

    /// How many endpoints on the viewer's node are ready.
    pub(super) fn ready_here(&self) -> usize {
        self.set(|one| one.is_ready && one.is_here).len()
    }

    /// How to choose among `endpoints` where weights are given; equal ones are none.
    pub(super) fn scheduling<'s>(
        &self,
        endpoints: impl Iterator<Item = &'s SocketAddr>,
    ) -> Scheduling {
        let mut weights: BTreeMap<SocketAddr, u16> =
            endpoints.map(|&endpoint| (endpoint, 0)).collect();
        for one in self.0.iter().filter(|one| one.is_ready || one.is_leaving) {
            if let Some(weight) = weights.get_mut(&one.address) {
                *weight = one.weight.max(*weight);
            }
        }
        let first = weights.values().next();
        if weights.values().all(|weight| Some(weight) == first) {
            return Scheduling::Random;
        }
        Scheduling::Weighted(weights)
    }

    /// The ready endpoints that hints keep for this node, else those for its zone, else all
    /// (KEP-2433, KEP-3015). One without hints spoils them: slices are being written, and few
    /// endpoints with hints already would get everybody's clients. Terminating ones are a last
    /// resort, wherever they are.
    fn nearest(&self, counts: impl Fn(&Statement) -> bool) -> FlatSet<SocketAddr> {
        let hints: [fn(&Statement) -> Hint; 2] = [|one| one.for_nodes, |one| one.for_zones];
        for hint in hints {
            let is_ready = |one: &Statement| one.is_ready && counts(one);
            let ours = self.set(|one| is_ready(one) && hint(one) == Hint::Ours);
            let mut ready = self.0.iter().filter(|one| is_ready(one));
            if !ours.is_empty() && ready.all(|one| hint(one) != Hint::Unsaid) {
                return ours;
            }
        }
        self.ready_else_leaving(counts)
    }

    /// KEP-1669.
    fn ready_else_leaving(&self, counts: impl Fn(&Statement) -> bool) -> FlatSet<SocketAddr> {
        let ready = self.set(|one| one.is_ready && counts(one));
        if ready.is_empty() { self.set(|one| one.is_leaving && counts(one)) } else { ready }
    }

    fn set(&self, counts: impl Fn(&Statement) -> bool) -> FlatSet<SocketAddr> {
        self.0.iter().filter(|one| counts(one)).map(|one| one.address).collect()
    }
}

impl Statement {
    fn new(endpoint: &Endpoint, address: IpAddr, viewer: Viewer<'_>) -> Self {
        let conditions = &endpoint.conditions;
        let weight = viewer.weights.of(endpoint, address);
        let hints = endpoint.hints.as_deref();
        let node = Some(viewer.node).filter(|node| !node.is_empty());
        Self {
            address: SocketAddr::new(address, 0),
            is_ready: weight != 0 && conditions.is_ready(),
            is_leaving: weight != 0 && conditions.is_serving() && conditions.is_terminating(),
            is_here: node == Some(endpoint.node_name.as_str()),
            is_unreachable: false,
            for_nodes: Hint::of(hints.map_or(&[][..], |hints| &hints.for_nodes), node),
            for_zones: Hint::of(hints.map_or(&[][..], |hints| &hints.for_zones), viewer.zone),
            weight,
        }
    }
}

impl Hint {
    fn of(names: &[ForName], own: Option<&str>) -> Self {
        match own {
            _ if names.is_empty() => Self::Unsaid,
            Some(own) if names.iter().any(|one| one.name == own) => Self::Ours,
            _ => Self::Others,
        }
    }
}

/// Why no traffic may be sent to an address; whoever may write slices or Services could otherwise
/// reach what listens on a node's loopback or link-local addresses.
pub(super) fn fault_of(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.to_canonical() != address {
        Some("an IPv4 address in IPv6 form")
    } else if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        Some("a loopback, unspecified or multicast address")
    } else if link_local {
        Some("a link-local or broadcast address")
    } else {
        None
    }
}

fn usable_address(endpoint: &Endpoint, family: Family) -> Result<IpAddr, String> {
    let text = endpoint.addresses.first().map_or("", String::as_str);
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    match fault_of(address) {
        Some(fault) => Err(format!("{address} is {fault}")),
        None if Family::of(&address) != family => {
            Err(format!("{address} is not of the slice's family {family}"))
        }
        None => Ok(address),
    }
}
