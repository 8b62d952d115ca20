//! From what is there to what shall be. Servers come before the addresses that make packets theirs
//! and go before them, endpoints that come stand before those that go, and the link is the first to
//! come and the last to go (invariant 5). Flows are forgotten when all that they might begin by
//! again is as it shall be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::Family;

use super::flows::Stale;
use super::program::keys_at;
use super::state::{IpvsObserved, ObservedServer};
use super::{IpvsOp, IpvsProgram, PARAMETERS, Server, ServerKey, Touched};
use crate::nft::NftObserved;
use crate::nft::language::{Table, TableId, Value};
use crate::nft::layout::CLUSTER_ADDRESSES;

/// The ops from what is to what shall be. Empty when nothing differs but what waits for the end of
/// its connections. What has to wait for others to go is among the ops of the next time.
pub fn diff(program: &IpvsProgram, observed: &IpvsObserved) -> Vec<IpvsOp> {
    diff_touched(program, observed, &Touched::Everything)
}

/// The same where the program differs from what is there only in what was touched.
pub fn diff_touched(
    program: &IpvsProgram,
    observed: &IpvsObserved,
    touched: &Touched,
) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    if program.is_on {
        ops.extend(observed.link.is_none().then_some(IpvsOp::CreateLink));
        let differing = PARAMETERS.into_iter().filter(|(name, value)| {
            observed.parameters.get(name).is_none_or(|present| present != value)
        });
        ops.extend(differing.map(|(name, value)| IpvsOp::SetParameter { name, value }));
    }
    let none = BTreeSet::new();
    let present = observed.link.as_ref().unwrap_or(&none);
    let (keys, addresses): (BTreeSet<ServerKey>, BTreeSet<IpAddr>) = match touched {
        Touched::Everything => (
            program.servers.keys().chain(observed.servers.keys()).copied().collect(),
            program.addresses.union(present).copied().collect(),
        ),
        Touched::Only(keys) => (keys.clone(), keys.iter().map(|key| key.address.ip()).collect()),
    };
    let mut stale = Stale::none();
    for key in &keys {
        let (wanted, present) = (program.servers.get(key), observed.servers.get(key));
        match (wanted, present) {
            (Some(wanted), there) => diff_server(&mut ops, *key, wanted, there),
            (None, Some(there)) if !observed.is_retired(key, there) => {
                ops.push(IpvsOp::RetireServer(*key));
            }
            (None, _) => {}
        }
        stale.add(key, wanted, present);
    }
    let wanted = addresses.iter().filter(|address| program.addresses.contains(*address));
    let missing = wanted.filter(|address| !present.contains(*address));
    ops.extend(missing.copied().map(IpvsOp::AddAddress));
    if !program.is_on && observed.servers.is_empty() && observed.retiring.is_empty() {
        // With all its addresses.
        ops.extend(observed.link.is_some().then_some(IpvsOp::DeleteLink));
        return ops;
    }
    let surplus = addresses.iter().filter(|address| {
        present.contains(*address)
            && !program.addresses.contains(*address)
            && !observed.retiring.contains(*address)
            && keys_at(&observed.servers, **address).next().is_none()
    });
    ops.extend(surplus.copied().map(IpvsOp::DeleteAddress));
    ops.extend(stale.into_flows().map(IpvsOp::ForgetFlows));
    ops
}

/// Whether an op may come before the nftables tables change, so that endpoints are there when the
/// first packets are let through to them. Only behind tables that are there already: an address
/// that they do not guard would open all that listens on the node (invariant 7).
pub fn is_preparation(op: &IpvsOp, tables: &NftObserved) -> bool {
    let table_for = |address: IpAddr| -> Option<&Table> {
        tables.tables.get(&TableId::services(Family::of(&address)))
    };
    match op {
        IpvsOp::CreateLink | IpvsOp::SetParameter { .. } => true,
        IpvsOp::AddServer(key, _)
        | IpvsOp::ChangeServer(key, _)
        | IpvsOp::AddDestination(key, ..)
        | IpvsOp::ChangeDestination(key, ..) => table_for(key.address.ip()).is_some(),
        IpvsOp::AddAddress(address) => {
            let guarded = table_for(*address).and_then(|table| table.sets.get(CLUSTER_ADDRESSES));
            guarded.is_some_and(|set| set.elements.contains_key(&vec![Value::Address(*address)]))
        }
        IpvsOp::DeleteLink
        | IpvsOp::DeleteAddress(_)
        | IpvsOp::RetireServer(_)
        | IpvsOp::RetireDestination(..)
        | IpvsOp::ForgetFlows(_) => false,
    }
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
