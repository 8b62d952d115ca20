//! From what is there to what shall be. Servers come before the addresses that make packets theirs
//! and go after them, endpoints that come stand before those that go, and the link is the first to
//! come and the last to go: by it a fresh process sees that IPVS was used (invariants 4, 5).

use super::state::{IpvsObserved, ObservedServer};
use super::{IpvsOp, IpvsProgram, PARAMETERS, Server, ServerKey};

/// The ops from what is to what shall be. Empty when nothing differs but endpoints that wait for
/// the end of their connections.
pub fn diff(program: &IpvsProgram, observed: &IpvsObserved) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    let none = Default::default();
    let present = observed.link.as_ref().unwrap_or(&none);
    if program.is_on {
        if observed.link.is_none() {
            ops.push(IpvsOp::CreateLink);
        }
        let differing = PARAMETERS.into_iter().filter(|(name, value)| {
            observed.parameters.get(name).is_none_or(|present| present != value)
        });
        ops.extend(differing.map(|(name, value)| IpvsOp::SetParameter { name, value }));
    }
    for (key, server) in &program.servers {
        diff_server(&mut ops, *key, server, observed.servers.get(key));
    }
    ops.extend(program.addresses.difference(present).copied().map(IpvsOp::AddAddress));
    ops.extend(present.difference(&program.addresses).copied().map(IpvsOp::DeleteAddress));
    let surplus = observed.servers.keys().filter(|key| !program.servers.contains_key(key));
    ops.extend(surplus.copied().map(IpvsOp::DeleteServer));
    if !program.is_on && observed.link.is_some() {
        ops.push(IpvsOp::DeleteLink);
    }
    ops
}

fn diff_server(
    ops: &mut Vec<IpvsOp>,
    key: ServerKey,
    wanted: &Server,
    present: Option<&ObservedServer>,
) {
    match present {
        None => ops.push(IpvsOp::AddServer(key, wanted.settings.clone())),
        Some(present) if present.settings != wanted.settings => {
            ops.push(IpvsOp::ChangeServer(key, wanted.settings.clone()));
        }
        Some(_) => {}
    }
    for (&endpoint, &weight) in &wanted.destinations {
        match present.and_then(|present| present.destinations.get(&endpoint)) {
            None => ops.push(IpvsOp::AddDestination(key, endpoint, weight)),
            Some(one) if one.weight != weight => {
                ops.push(IpvsOp::ChangeDestination(key, endpoint, weight));
            }
            Some(_) => {}
        }
    }
    for (endpoint, one) in present.into_iter().flat_map(|present| &present.destinations) {
        if !wanted.destinations.contains_key(endpoint) && !one.is_waiting(key.protocol) {
            ops.push(IpvsOp::RetireDestination(key, *endpoint));
        }
    }
}
