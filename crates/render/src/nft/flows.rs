//! Which tracked flows go with a change: each datagram renews its flow, so that a client with a fixed
//! source port would stay where it was led once. Nobody else is forgotten: clients of TCP notice.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::{Family, Protocol};

use super::language::{Datum, Table, Tuple, Value, Verdict};
use super::layout::{ANSWERS_PING, Class, NODE_ADDRESSES, RangeView, View};
use super::packed::Elements;
use super::{Shares, StaleFlows, TableProgram};

/// UDP frontends whose endpoints change: flows that lead to none of the new ones are stale, also
/// those that began when there was no endpoint and were not translated. All are where the source is
/// treated in another way from now on, and where the node has lost the address. Where another
/// backend translates from now on, it judges the flows: an answer on its way needs the one that it
/// belongs to.
pub(super) fn stale(
    family: Family,
    program: &TableProgram,
    target: &Table,
    present: &Table,
) -> Option<StaleFlows> {
    let mut stale = StaleFlows::none(family);
    let pings = addresses(present, ANSWERS_PING).collect::<BTreeSet<IpAddr>>();
    let still = addresses(target, ANSWERS_PING).collect();
    stale.pings = pings.difference(&still).copied().collect();
    if program.table.sets.contains_key(View::NodePort.endpoints()) {
        let maps = View::ALL.map(View::endpoints).into_iter();
        let maps = maps.chain(RangeView::ALL.map(RangeView::endpoints));
        let mut changed: BTreeSet<Tuple> =
            maps.flat_map(|map| changed_frontends(map, target, present)).collect();
        let [elsewhere, before] = [target, present].map(frontends_elsewhere);
        changed.retain(|frontend| !elsewhere.contains(frontend));
        for frontend in before.difference(&elsewhere) {
            add(&mut stale, program, frontend, &BTreeSet::new());
        }
        for frontend in changed {
            add(&mut stale, program, &frontend, &allowed(program, &frontend));
        }
        for frontend in frontends_with_other_sources(target, present) {
            add(&mut stale, program, &frontend, &BTreeSet::new());
        }
        add_node_addresses(&mut stale, program, target, present);
    }
    (!stale.is_none()).then_some(stale)
}

/// A node port stands in two views: what either allows is not stale.
fn allowed(program: &TableProgram, frontend: &Tuple) -> BTreeSet<SocketAddr> {
    let maps = program.endpoints.values().filter_map(|frontends| frontends.get(frontend));
    maps.flat_map(Shares::into_keys).collect()
}

/// Where clients of a UDP frontend send to; nothing for other protocols.
fn add(
    stale: &mut StaleFlows,
    program: &TableProgram,
    frontend: &Tuple,
    allowed: &BTreeSet<SocketAddr>,
) {
    let udp = Value::Protocol(Protocol::Udp.number());
    match *frontend.as_slice() {
        [Value::Address(address), protocol, Value::Port(port)] if protocol == udp => {
            stale.frontends.insert(SocketAddr::new(address, port), allowed.clone());
        }
        [protocol, Value::Port(port)] if protocol == udp => {
            let nodes = addresses(&program.table, NODE_ADDRESSES);
            let places = nodes.map(|node| (SocketAddr::new(node, port), allowed.clone()));
            stale.frontends.extend(places);
        }
        [Value::Address(address), protocol, Value::Port(first), Value::Port(last)]
            if protocol == udp =>
        {
            let allowed = allowed.iter().map(SocketAddr::ip).collect();
            stale.ranges.insert((address, first, last), allowed);
        }
        _ => {}
    }
}

/// Node ports at addresses that the node has no more, and at those that are new to it.
fn add_node_addresses(
    stale: &mut StaleFlows,
    program: &TableProgram,
    target: &Table,
    present: &Table,
) {
    let nodes = |table| addresses(table, NODE_ADDRESSES).collect::<BTreeSet<IpAddr>>();
    let (new, old) = (nodes(target), nodes(present));
    for address in new.symmetric_difference(&old) {
        for frontend in keys(target, View::NodePort).chain(keys(present, View::NodePort)) {
            let [Value::Protocol(protocol), Value::Port(port)] = *frontend.as_slice() else {
                continue;
            };
            if protocol == Protocol::Udp.number() {
                let allowed = if new.contains(address) {
                    allowed(program, &frontend)
                } else {
                    BTreeSet::new()
                };
                // Whoever has the very address goes before.
                stale.frontends.entry(SocketAddr::new(*address, port)).or_insert(allowed);
            }
        }
    }
}

fn keys(table: &Table, view: View) -> impl Iterator<Item = Tuple> {
    table.sets.get(view.classes()).into_iter().flat_map(|set| set.elements.keys())
}

/// Frontends that stay, but whose clients outside the cluster are masqueraded from now on, or no
/// more (`externalTrafficPolicy`): a flow keeps the source that it began with.
fn frontends_with_other_sources(target: &Table, present: &Table) -> Vec<Tuple> {
    let mut found = Vec::new();
    let mut compare = |all: &str, outside: &str| {
        let has = |table: &Table, set: &str, key: &Tuple| {
            table.sets.get(set).is_some_and(|set| set.elements.contains_key(key))
        };
        let keys = target.sets.get(all).into_iter().flat_map(|set| set.elements.keys());
        let changed = |key: &Tuple| {
            has(present, all, key) && has(target, outside, key) != has(present, outside, key)
        };
        found.extend(keys.filter(changed).map(|key| of_slots(&key)));
    };
    compare(View::External.classes(), View::ExternalOutside.classes());
    compare(View::NodePort.classes(), View::NodePortOutside.classes());
    compare(RangeView::All.chains(), RangeView::Outside.chains());
    found
}

/// Frontends that another backend has. One that translates before the kernel tracks flows does not
/// know of those that began under the backend that it took over from: once it leaves a frontend
/// untranslated, they are stale.
fn frontends_elsewhere(table: &Table) -> BTreeSet<Tuple> {
    let class = Datum::Values(vec![Value::Number(Class::Elsewhere.number())]);
    let ports = View::ALL.map(|view| (view.classes(), &class));
    let range = Datum::Verdict(Verdict::Accept);
    let ranges = RangeView::ALL.map(|view| (view.refusals(), &range));
    let mut found = BTreeSet::new();
    for (map, elsewhere) in ports.into_iter().chain(ranges) {
        let elements = table.sets.get(map).into_iter().flat_map(|set| set.elements.iter());
        found.extend(
            elements.filter(|(_, datum)| datum == elsewhere).map(|(key, _)| of_slots(&key)),
        );
    }
    found
}

/// A key of a map of frontends as it stands in maps of slots.
fn of_slots(key: &Tuple) -> Tuple {
    let value = |value: &Value| match *value {
        Value::PortRange(first, last) => vec![Value::Port(first), Value::Port(last)],
        other => vec![other],
    };
    key.iter().flat_map(value).collect()
}

fn addresses<'a>(table: &'a Table, set: &str) -> impl Iterator<Item = IpAddr> + use<'a> {
    let elements = table.sets.get(set).into_iter().flat_map(|set| set.elements.keys());
    elements.filter_map(|key| match key.as_slice() {
        [Value::Address(address)] => Some(*address),
        _ => None,
    })
}

/// Frontends that lose an endpoint, or get their first.
fn changed_frontends(name: &str, target: &Table, present: &Table) -> BTreeSet<Tuple> {
    let empty = Elements::new();
    let new = target.sets.get(name).map_or(&empty, |set| &set.elements);
    let old = present.sets.get(name).map_or(&empty, |set| &set.elements);
    let lost = old.other_than_in(new).map(|(key, _)| key);
    let first = new.keys_absent_in(old).filter(|key| key.last() == Some(&Value::Number(0)));
    lost.chain(first)
        .filter_map(|key| key.split_last().map(|(_, frontend)| frontend.to_vec()))
        .collect()
}
