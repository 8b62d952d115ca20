//! From what the maps hold to what they shall hold, in an order that keeps traffic right.
//!
//! A program reads a frontend and then its slots, and entries change between the two. So:
//!
//! 1. **make**: pods of this node, members, sources, slots that nothing names yet;
//! 2. **change** slots in place, then hashes;
//! 3. **switch** the frontends, and with them ids, counts and the slots that lie with these;
//! 4. **sweep** what nothing names any more.
//!
//! A count is raised after its slots are written and lowered before they go; a referent exists
//! before its reference and outlives it (invariant 5). Who read the old count and finds its slot
//! gone takes slot 0, which every view with endpoints has: where it lies with the count, that of the
//! same reading.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ebpf_abi::address_bytes;
use ebpf_abi::services::{
    DIRECT, MASQUERADE, MemberKey, NODE_ALLOWED, OUTSIDE, OUTSIDE_REJECT, REJECT, RangeKey,
    SCOPE_NODE_PORT, SOURCE_RANGES, Service, ServiceKey, Slot, SlotKey,
};
use model::{FlatMap, Protocol};

use super::packed::{Entries, Field, UnsortedEntries};
use super::state::{Change, EbpfObserved, EbpfOp, ServiceSource};
use super::{EbpfProgram, FrontendKey, FrontendProgram, View, maglev, slots};

/// The ops from what is to what shall be. Empty when nothing differs.
pub fn diff(program: &EbpfProgram, observed: &EbpfObserved) -> Vec<EbpfOp> {
    let mut target = Target::new(program, observed);
    for (key, frontend) in program.frontends.iter() {
        target.add(&key, &frontend);
    }
    let mut tables = target.tables.into_observed();
    tables.node_addresses = program.node_addresses.iter().map(|one| (*one, ())).collect();
    tables.own_pods = program.own_pods.iter().map(|one| (*one, ())).collect();
    tables.direct_hosts =
        program.direct_hosts.iter().map(|(range, host)| (*range, *host)).collect();
    compare(&tables, observed)
}

/// The ops for these frontends alone: as [`diff`] where all others are as they shall be, at the
/// cost of what changes.
pub fn diff_frontends(
    program: &EbpfProgram,
    observed: &EbpfObserved,
    changed: &BTreeSet<FrontendKey>,
) -> Vec<EbpfOp> {
    let mut target = Target::new(program, observed);
    let mut present = EbpfObserved::default();
    for key in changed {
        copy_frontend(key, observed, &mut present);
        if let Some(frontend) = program.frontends.get(key) {
            target.add(key, &frontend);
        }
    }
    compare(&target.tables.into_observed(), &present)
}

/// The maps as they shall be, with ids and slots chosen from what is there.
struct Target<'a> {
    observed: &'a EbpfObserved,
    /// Whether node ports no longer answer at an address of the node.
    has_lost_address: bool,
    tables: Tables,
    /// Parts of ranges that a frontend has.
    taken: BTreeSet<RangeKey>,
    used: BTreeSet<u32>,
    /// The next id that nothing has; `None` until one is needed.
    next_id: Option<u32>,
}

/// Maps of frontends while they are put together.
#[derive(Default)]
struct Tables {
    services: UnsortedEntries<ServiceKey, Service>,
    ranges: UnsortedEntries<RangeKey, Service>,
    slots: UnsortedEntries<SlotKey, Slot>,
    maglev: UnsortedEntries<SlotKey, u32>,
    members: UnsortedEntries<MemberKey, ()>,
    sources: UnsortedEntries<ServiceSource, ()>,
}

impl Tables {
    fn into_observed(self) -> EbpfObserved {
        EbpfObserved {
            services: self.services.into_entries(),
            ranges: self.ranges.into_entries(),
            slots: self.slots.into_entries(),
            maglev: self.maglev.into_entries(),
            members: self.members.into_entries(),
            sources: self.sources.into_entries(),
            ..EbpfObserved::default()
        }
    }
}

impl<'a> Target<'a> {
    fn new(program: &EbpfProgram, observed: &'a EbpfObserved) -> Self {
        let mut before = observed.node_addresses.keys();
        let has_lost_address = before.any(|address| !program.node_addresses.contains(&address));
        let (tables, taken, used) = (Tables::default(), BTreeSet::new(), BTreeSet::new());
        Self { observed, has_lost_address, tables, taken, used, next_id: None }
    }

    fn add(&mut self, key: &FrontendKey, frontend: &FrontendProgram) {
        let parts = self.take_parts(key);
        if parts.is_empty() && matches!(key, FrontendKey::Range { .. }) {
            return;
        }
        let present = self.kept(key, &parts, frontend);
        let outside = frontend.outside.as_ref();
        let counts = [Some(&frontend.inside), outside].map(|view| view.map_or(0, View::count));
        let has_sources = frontend.source_ranges.is_some();
        let mut service = Service {
            flags: flags(frontend),
            affinity_timeout_s: frontend.affinity_timeout_s.unwrap_or(0),
            ..Service::default()
        };
        if frontend.maglev {
            service.maglev_size = maglev::size_for(counts[0].max(counts[1]));
        }
        if counts[0] > 0 || has_sources {
            service.id = self.keep_id(present.map(|service| service.id));
            let near = present.filter(|present| present.id == service.id);
            let near = near.as_ref().map_or(&[][..], Service::near_slots);
            let chosen = self.add_view(service.id, &frontend.inside, frontend, &service, near);
            service.count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
            // All parts of a range would repeat them.
            let is_near = matches!(key, FrontendKey::Port(_));
            let others = if is_near { service.keep_near(&chosen) } else { &chosen };
            self.add_slots(service.id, service.near_count, others);
        }
        if let Some(outside) = outside.filter(|view| view.count() > 0) {
            service.outside_id = self.keep_id(present.map(|service| service.outside_id));
            let chosen = self.add_view(service.outside_id, outside, frontend, &service, &[]);
            service.outside_count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
            self.add_slots(service.outside_id, 0, &chosen);
        }
        for range in frontend.source_ranges.iter().flatten() {
            let source = ServiceSource { id: service.id, range: range.trunc() };
            self.tables.sources.push(source, ());
        }
        match key {
            FrontendKey::Port(key) => self.tables.services.push(*key, service),
            FrontendKey::Range { .. } => {
                parts.into_iter().for_each(|part| self.tables.ranges.push(part, service));
            }
        }
    }

    /// The parts of a range that no other one has yet. Ranges of several Services at one address may
    /// overlap: a part that was each one's in turn would change with every look.
    fn take_parts(&mut self, key: &FrontendKey) -> Vec<RangeKey> {
        let parts = key.range_keys().into_iter();
        parts.filter(|part| self.taken.insert(*part)).collect()
    }

    /// What is there of a frontend. A flow of UDP goes on as it began as long as its endpoint is one
    /// of its view; so views start anew where clients outside the cluster are masqueraded from now
    /// on, or no more, and those of node ports where the node has lost an address.
    fn kept(
        &self,
        key: &FrontendKey,
        parts: &[RangeKey],
        frontend: &FrontendProgram,
    ) -> Option<Service> {
        let present = service_at(key, parts, self.observed)?;
        let (protocol, is_node_port) = match key {
            FrontendKey::Port(key) => (key.protocol, key.scope == SCOPE_NODE_PORT),
            FrontendKey::Range { protocol, .. } => (protocol.number(), false),
        };
        let is_outside_same = (present.flags & OUTSIDE != 0) == frontend.outside.is_some();
        let is_same = is_outside_same && !(is_node_port && self.has_lost_address);
        (is_same || protocol != Protocol::Udp.number()).then_some(present)
    }

    /// Chooses the slots of a view, of which `near` are there already in the frontend's entry, and
    /// fills what points to them.
    fn add_view(
        &mut self,
        id: u32,
        view: &View,
        frontend: &FrontendProgram,
        service: &Service,
        near: &[Slot],
    ) -> Vec<Slot> {
        let View::Endpoints(endpoints) = view else { return vec![] };
        let present = (0..).zip(near.iter().copied()).chain(slots_of(id, self.observed));
        let chosen = slots::assign(present, endpoints);
        if frontend.has_members {
            chosen.iter().for_each(|slot| self.tables.members.push(member(id, slot), ()));
        }
        if service.maglev_size != 0 {
            self.add_maglev(id, endpoints, &chosen, service.maglev_size);
        }
        chosen
    }

    /// Fills slots in a row, from this number on.
    fn add_slots(&mut self, id: u32, first: u32, slots: &[Slot]) {
        for (number, slot) in (first..).zip(slots) {
            self.tables.slots.push(SlotKey { id, slot: number }, *slot);
        }
    }

    fn add_maglev(
        &mut self,
        id: u32,
        endpoints: &FlatMap<SocketAddr, u16>,
        chosen: &[Slot],
        size: u32,
    ) {
        let endpoints: Vec<SocketAddr> = endpoints.keys().copied().collect();
        let slot_of = |endpoint: &SocketAddr| {
            let address = address_bytes(endpoint.ip());
            let is_it = |slot: &Slot| slot.address == address && slot.port == endpoint.port();
            (0..).zip(chosen).find(|(_, slot)| is_it(slot)).map_or(0, |(number, _)| number)
        };
        let numbers: Vec<u32> = endpoints.iter().map(slot_of).collect();
        for (entry, index) in (0..).zip(maglev::table(&endpoints, size)) {
            let number = numbers.get(index).copied().unwrap_or(0);
            self.tables.maglev.push(SlotKey { id, slot: entry }, number);
        }
    }

    /// The id that a view has, or a new one. 0 is no id.
    fn keep_id(&mut self, present: Option<u32>) -> u32 {
        let kept = present.filter(|id| *id != 0 && !self.used.contains(id));
        let id = kept.unwrap_or_else(|| self.new_id());
        self.used.insert(id);
        id
    }

    /// Above all that is there, so that nothing left of an old view comes into a new one; when
    /// numbers run out, the lowest that nothing has.
    fn new_id(&mut self) -> u32 {
        let id =
            self.next_id.unwrap_or_else(|| ids(self.observed).max().unwrap_or(0).saturating_add(1));
        self.next_id = Some(id.saturating_add(1));
        if id < u32::MAX {
            return id;
        }
        let present: BTreeSet<u32> = ids(self.observed).collect();
        (1..u32::MAX)
            .find(|id| !present.contains(id) && !self.used.contains(id))
            .unwrap_or(u32::MAX)
    }
}

fn flags(frontend: &FrontendProgram) -> u32 {
    let rejects = |view: Option<&View>| view == Some(&View::Reject);
    let rows = [
        (frontend.masquerade, MASQUERADE),
        (rejects(Some(&frontend.inside)), REJECT),
        (frontend.outside.is_some(), OUTSIDE),
        (rejects(frontend.outside.as_ref()), OUTSIDE_REJECT),
        (frontend.source_ranges.is_some(), SOURCE_RANGES),
        (frontend.is_node_allowed, NODE_ALLOWED),
        (frontend.direct, DIRECT),
    ];
    rows.into_iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag).sum()
}

fn service_at(key: &FrontendKey, parts: &[RangeKey], observed: &EbpfObserved) -> Option<Service> {
    match key {
        FrontendKey::Port(key) => observed.services.get(key),
        FrontendKey::Range { .. } => parts.iter().find_map(|part| observed.ranges.get(part)),
    }
}

fn slots_of(id: u32, observed: &EbpfObserved) -> impl Iterator<Item = (u32, Slot)> + '_ {
    observed.slots.of_id(id).map(|(key, slot)| (key.slot, slot))
}

fn member(id: u32, slot: &Slot) -> MemberKey {
    MemberKey { id, address: slot.address, port: slot.port, zero: [0; 2] }
}

/// All ids that something names, some of them often.
fn ids(observed: &EbpfObserved) -> impl Iterator<Item = u32> + '_ {
    let named = observed.services.named_ids().chain(observed.ranges.named_ids());
    let slots = observed.slots.keys().chain(observed.maglev.keys()).map(|key| key.id);
    let members = observed.members.keys().map(|key| key.id);
    named.chain(slots).chain(members).chain(observed.sources.keys().map(|source| source.id))
}

/// Copies what is there of one frontend.
fn copy_frontend(key: &FrontendKey, observed: &EbpfObserved, to: &mut EbpfObserved) {
    let parts = key.range_keys();
    let Some(service) = service_at(key, &parts, observed) else { return };
    match key {
        FrontendKey::Port(key) => to.services.insert(*key, service),
        FrontendKey::Range { .. } => {
            let parts = parts.into_iter();
            to.ranges.extend(parts.filter_map(|key| Some((key, observed.ranges.get(&key)?))));
        }
    }
    for id in [service.id, service.outside_id].into_iter().filter(|id| *id != 0) {
        to.slots.extend(observed.slots.of_id(id));
        to.maglev.extend(observed.maglev.of_id(id));
        to.members.extend(observed.members.of_id(id));
        to.sources.extend(observed.sources.of_id(id));
    }
}

fn compare(target: &EbpfObserved, present: &EbpfObserved) -> Vec<EbpfOp> {
    let (new_slots, changed_slots): (Vec<_>, Vec<_>) = target
        .slots
        .other_than_in(&present.slots)
        .into_iter()
        .partition(|(key, _)| !present.slots.contains_key(key));
    let mut ops = vec![
        EbpfOp::OwnPods(differing(&target.own_pods, &present.own_pods)),
        EbpfOp::DirectHosts(differing(&target.direct_hosts, &present.direct_hosts)),
        EbpfOp::Members(differing(&target.members, &present.members)),
        EbpfOp::Sources(differing(&target.sources, &present.sources)),
        EbpfOp::Slots(Change::Put(new_slots)),
        EbpfOp::Slots(Change::Put(changed_slots)),
        EbpfOp::Maglev(differing(&target.maglev, &present.maglev)),
        EbpfOp::Services(differing(&target.services, &present.services)),
        EbpfOp::Ranges(differing(&target.ranges, &present.ranges)),
        EbpfOp::NodeAddresses(differing(&target.node_addresses, &present.node_addresses)),
        EbpfOp::NodeAddresses(surplus(&target.node_addresses, &present.node_addresses)),
        EbpfOp::Ranges(surplus(&target.ranges, &present.ranges)),
        EbpfOp::Services(surplus(&target.services, &present.services)),
        EbpfOp::Maglev(surplus(&target.maglev, &present.maglev)),
        EbpfOp::Slots(surplus(&target.slots, &present.slots)),
        EbpfOp::Sources(surplus(&target.sources, &present.sources)),
        EbpfOp::Members(surplus(&target.members, &present.members)),
        EbpfOp::DirectHosts(surplus(&target.direct_hosts, &present.direct_hosts)),
        EbpfOp::OwnPods(surplus(&target.own_pods, &present.own_pods)),
    ];
    ops.retain(|op| op.count() != 0);
    ops
}

fn differing<K: Field, V: Field>(target: &Entries<K, V>, present: &Entries<K, V>) -> Change<K, V> {
    Change::Put(target.other_than_in(present))
}

fn surplus<K: Field, V: Field>(target: &Entries<K, V>, present: &Entries<K, V>) -> Change<K, V> {
    Change::Remove(present.keys_absent_in(target))
}
