//! What becomes of a packet, read off a [`ServicePlan`] as its documentation says: a backend
//! without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::ClusterConfig;
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use plan::NodeFacts;
use plan::services::{Backends, Frontend, FrontendPlan, RangeScope, ServicePlan};

/// What the plans of Services do with a packet; `None` when it is for none of them.
pub fn verdict<'a>(
    plans: impl Iterator<Item = &'a ServicePlan> + Clone,
    config: &ClusterConfig,
    facts: &NodeFacts,
    packet: &Packet,
) -> Option<Verdict> {
    let (address, port) = (packet.destination.ip(), packet.destination.port());
    let protocol = packet.protocol;
    let family = model::Family::of(&address);
    let exact = |frontend: Frontend| {
        plans.clone().find_map(|plan| Some((plan, plan.frontends.get(&frontend)?)))
    };
    let ranged = |scope: RangeScope| {
        let mut all = plans.clone().flat_map(|plan| plan.ranges.iter().map(move |it| (plan, it)));
        let found = all.find(|(_, (range, _))| {
            (range.scope, range.address, range.protocol) == (scope, address, protocol)
                && (range.first..=range.last).contains(&port)
        });
        found.map(|(plan, (_, frontend))| (plan, frontend))
    };
    let inside = exact(Frontend::ClusterIp { address, protocol, port })
        .or_else(|| ranged(RangeScope::ClusterIp));
    if let Some((plan, frontend)) = inside {
        let masqueraded = packet.entry != Entry::Pod || config.masquerade_all;
        return Some(to_backends(plan, &frontend.backends, masqueraded, packet));
    }
    let open = facts.addresses.contains(&address) && config.has_node_ports_at(address);
    let (plan, frontend) = exact(Frontend::External { address, protocol, port })
        .or_else(|| ranged(RangeScope::External))
        .or_else(|| exact(Frontend::NodePort { family, protocol, port }).filter(|_| open))?;
    Some(from_outside(plan, frontend, packet))
}

fn from_outside(plan: &ServicePlan, frontend: &FrontendPlan, packet: &Packet) -> Verdict {
    let client = packet.source.ip();
    if let Some(ranges) = &frontend.source_ranges
        && !ranges.iter().any(|range| range.contains(&client))
    {
        return Verdict::Drop;
    }
    match (&frontend.outside, packet.entry) {
        (None, _) | (Some(_), Entry::Local) => to_backends(plan, &frontend.backends, true, packet),
        (Some(_), Entry::Pod) => to_backends(plan, &frontend.backends, false, packet),
        (Some(outside), Entry::Uplink | Entry::Overlay) => {
            to_backends(plan, outside, false, packet)
        }
    }
}

fn to_backends(
    plan: &ServicePlan,
    backends: &Backends,
    masqueraded: bool,
    packet: &Packet,
) -> Verdict {
    let port = |endpoint: SocketAddr| match endpoint.port() {
        0 => SocketAddr::new(endpoint.ip(), packet.destination.port()),
        _ => endpoint,
    };
    let destinations: BTreeSet<SocketAddr> = match backends {
        Backends::Reject => return Verdict::Reject,
        Backends::Drop => return Verdict::Drop,
        Backends::Endpoints(endpoints) => endpoints.iter().map(|&it| port(it)).collect(),
    };
    let client = packet.source.ip();
    let itself = destinations.iter().any(|endpoint| endpoint.ip() == client);
    let source = if masqueraded {
        SourceTranslation::Masqueraded
    } else if itself && plan.local_addresses.contains(&client) {
        SourceTranslation::MasqueradedTo([client].into())
    } else {
        SourceTranslation::Kept
    };
    Verdict::Pass { destinations, source, source_ports: BTreeMap::new() }
}
