//! From what is there to what shall be, in transactions whose order keeps traffic right.
//!
//! The kernel lets packets pass between two lookups while a transaction takes effect, so a change
//! is split (see [`super::layout`] for the words):
//!
//! 1. **make**: new sets, chains, and elements that nobody finds yet, as slots beyond the count;
//! 2. **switch**: another endpoint into its slot, source ranges, the class of each frontend, and the
//!    rules of chains that stay: now the new count is in force, and nobody draws a slot beyond it.
//!    All at once, as far as one transaction goes: whom the old ranges let in reaches no new
//!    endpoint, and whom the new ones let in no old one;
//! 3. **forget** UDP flows to endpoints that are gone;
//! 4. **sweep**: slots, elements, chains and sets that nothing names any more.
//!
//! So a count is raised after its slots are written and lowered before they go, and a referent
//! exists before its reference and outlives it (invariant 5).

use std::borrow::Cow;

use super::language::{Chain, Datum, Name, Set, Table, TableId, Tuple};
use super::layout::{ANSWERS_PING, View};
use super::packed::Elements;
use super::program::{Touched, TouchedTable};
use super::state::{Command, NftObserved, Transaction};
use super::{NftOp, NftProgram, TableProgram, flows, slots};

/// Elements in one transaction: keeps a batch within a megabyte, and the kernel's lock short.
const TRANSACTION_ELEMENTS_MAX: usize = 4_096;

/// The ops from what is to what shall be. Empty when nothing differs.
pub fn diff(program: &NftProgram, observed: &NftObserved) -> Vec<NftOp> {
    let mut ops = Vec::new();
    for (id, wanted) in &program.tables {
        ops.extend(diff_table(id, wanted, &whole(wanted, observed.tables.get(id))));
    }
    for id in observed.tables.keys().filter(|id| !program.tables.contains_key(id)) {
        let commands = vec![Command::DeleteTable];
        ops.push(NftOp::Transaction(Transaction { table: id.clone(), commands }));
    }
    ops
}

/// The same at a cost that depends on what changed, where the program differs from what is there
/// only in what was touched.
pub fn diff_touched(program: &NftProgram, observed: &NftObserved, touched: &Touched) -> Vec<NftOp> {
    let Touched::Only(touched) = touched else { return diff(program, observed) };
    let mut ops = Vec::new();
    for (id, touched) in touched {
        let Some(wanted) = program.tables.get(id) else { return diff(program, observed) };
        let Some(pair) = restricted(wanted, observed.tables.get(id), touched) else {
            return diff(program, observed);
        };
        ops.extend(diff_table(id, wanted, &pair));
    }
    ops
}

/// What shall be, with a slot for each endpoint, and what is: of both the same part.
struct Pair<'a> {
    target: Table,
    present: Option<Cow<'a, Table>>,
}

fn whole<'a>(program: &TableProgram, present: Option<&'a Table>) -> Pair<'a> {
    let mut target = program.table.clone();
    for (name, frontends) in &program.endpoints {
        let there = present.and_then(|table| table.sets.get(name));
        let Some(set) = target.sets.get_mut(name) else { continue };
        for (frontend, shares) in frontends.iter() {
            set.elements.extend(slots::assign(&frontend, &shares, there));
        }
    }
    Pair { target, present: present.map(Cow::Borrowed) }
}

/// `None` when what is there lacks more than what was touched.
fn restricted(
    program: &TableProgram,
    observed: Option<&Table>,
    touched: &TouchedTable,
) -> Option<Pair<'static>> {
    let observed = observed?;
    let mut target = part_of(&program.table, touched)?;
    let mut present = part_of(observed, touched)?;
    for (name, frontends) in &touched.frontends {
        let there = observed.sets.get(name)?;
        let shares = program.endpoints.get(name)?;
        let wanted = target.sets.entry(name.clone()).or_insert_with(|| without_elements(there));
        for frontend in frontends {
            if let Some(shares) = shares.get(frontend) {
                wanted.elements.extend(slots::assign(frontend, &shares, Some(there)));
            }
        }
        let part = present.sets.entry(name.clone()).or_insert_with(|| without_elements(there));
        for frontend in frontends {
            part.elements.extend(slots::elements_of(there, frontend));
        }
    }
    Some(Pair { target, present: Some(Cow::Owned(present)) })
}

/// `None` when a set is missing that the table shall have before and after.
fn part_of(table: &Table, touched: &TouchedTable) -> Option<Table> {
    let mut part = Table::default();
    for name in &touched.chains {
        if let Some(chain) = table.chains.get(name) {
            part.chains.insert(name.clone(), chain.clone());
        }
    }
    for name in &touched.sets {
        if let Some(set) = table.sets.get(name) {
            part.sets.insert(name.clone(), set.clone());
        }
    }
    for (name, keys) in touched.elements.iter().filter(|(name, _)| !touched.sets.contains(*name)) {
        let set = table.sets.get(name)?;
        let mut some = without_elements(set);
        let found = keys.iter().filter_map(|key| Some((key.clone(), set.elements.get(key)?)));
        some.elements.extend(found);
        part.sets.insert(name.clone(), some);
    }
    Some(part)
}

fn without_elements(set: &Set) -> Set {
    Set { spec: set.spec.clone(), elements: Elements::new() }
}

fn diff_table(id: &TableId, wanted: &TableProgram, pair: &Pair<'_>) -> Vec<NftOp> {
    let Pair { target, present } = pair;
    let empty = Table::default();
    let mut ops = Vec::new();
    match present.as_deref() {
        Some(present) if must_rebuild(target, present) => {
            // The hooks of the new table are in place before those of the old one go, so that
            // no packet passes without rules and translated flows live on.
            let mut commands = vec![Command::DeleteTable, Command::AddTable];
            commands.extend(make(target, &empty));
            commands.extend(switch(target, &empty));
            ops.push(NftOp::Transaction(Transaction { table: id.clone(), commands }));
        }
        _ => {
            let table = present.as_deref().unwrap_or(&empty);
            let mut first: Vec<Command> =
                present.is_none().then_some(Command::AddTable).into_iter().collect();
            first.extend(make(target, table));
            ops.extend(transactions(id, first));
            ops.extend(transactions(id, switch(target, table)));
            let family = id.family.address_family();
            ops.extend(flows::stale(family, wanted, target, table).map(NftOp::ForgetFlows));
            ops.extend(transactions(id, sweep(target, table)));
        }
    }
    ops
}

/// The shape of a set and the hook of a chain cannot be changed in place.
fn must_rebuild(target: &Table, present: &Table) -> bool {
    let reshaped = target
        .sets
        .iter()
        .any(|(name, set)| present.sets.get(name).is_some_and(|present| present.spec != set.spec));
    let rehooked = target.chains.iter().any(|(name, chain)| {
        present.chains.get(name).is_some_and(|present| present.base != chain.base)
    });
    reshaped || rehooked
}

fn make(target: &Table, present: &Table) -> Vec<Command> {
    let mut commands = Vec::new();
    let new_sets = || target.sets.iter().filter(|(name, _)| !present.sets.contains_key(*name));
    let new_chains =
        || target.chains.iter().filter(|(name, _)| !present.chains.contains_key(*name));
    commands.extend(new_sets().map(|(name, set)| Command::AddSet(name.clone(), set.spec.clone())));
    commands.extend(new_chains().map(|(name, chain)| Command::AddChain(name.clone(), chain.base)));
    for (name, chain) in new_chains() {
        commands.extend(add_rules(name, chain));
    }
    for (name, set) in &target.sets {
        if !is_switch(name, set) {
            commands.extend(add_elements(name, set, present));
        }
    }
    commands
}

fn switch(target: &Table, present: &Table) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, chain) in &target.chains {
        let stays = present.chains.get(name).filter(|present| present.rules != chain.rules);
        if stays.is_some() {
            commands.push(Command::FlushChain(name.clone()));
            commands.extend(add_rules(name, chain));
        }
    }
    for (name, set) in target.sets.iter().filter(|(name, set)| !is_switch(name, set)) {
        commands.extend(replace_elements(name, set, present));
    }
    // Classes last: they lead to the others.
    for classes in [false, true] {
        let of_turn =
            |(name, set): &(&Name, &Set)| is_switch(name, set) && is_classes(name) == classes;
        for (name, set) in target.sets.iter().filter(of_turn) {
            commands.extend(drop_elements(name, set, present));
            commands.extend(replace_elements(name, set, present));
            commands.extend(add_elements(name, set, present));
        }
    }
    commands
}

fn sweep(target: &Table, present: &Table) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, set) in target.sets.iter().filter(|(name, set)| !is_switch(name, set)) {
        commands.extend(drop_elements(name, set, present));
    }
    // Chains first, since their rules use sets; but a chain may be named by the element of a
    // verdict map that goes as a whole.
    let old_sets = || present.sets.iter().filter(|(name, _)| !target.sets.contains_key(*name));
    for (name, set) in old_sets() {
        commands.extend(delete_chunks(name, set.elements.keys()));
    }
    let old_chains = || present.chains.keys().filter(|name| !target.chains.contains_key(*name));
    commands.extend(old_chains().map(|name| Command::FlushChain(name.clone())));
    commands.extend(old_chains().map(|name| Command::DeleteChain(name.clone())));
    commands.extend(old_sets().map(|(name, _)| Command::DeleteSet(name.clone())));
    commands
}

/// Whether elements of a set go and come at once: those that switch frontends from one class to
/// another, those that pings are answered by, so that no flow begins after all are forgotten, and
/// intervals, since a new one may overlap with what goes.
fn is_switch(name: &str, set: &Set) -> bool {
    set.spec.is_interval() || name == ANSWERS_PING || is_classes(name)
}

fn is_classes(name: &str) -> bool {
    View::ALL.iter().any(|view| view.classes() == name)
}

fn add_rules(name: &Name, chain: &Chain) -> impl Iterator<Item = Command> {
    chain.rules.iter().map(|rule| Command::AddRule(name.clone(), rule.clone()))
}

/// Adds the elements whose keys are missing.
fn add_elements(name: &Name, set: &Set, present: &Table) -> Vec<Command> {
    let (missing, _) = wrong_elements(name, set, present);
    let chunks = missing.chunks(TRANSACTION_ELEMENTS_MAX);
    chunks.map(|chunk| Command::AddElements(name.clone(), chunk.to_vec())).collect()
}

/// Replaces what has another value: deleted and added in one transaction, a key is never absent.
fn replace_elements(name: &Name, set: &Set, present: &Table) -> Vec<Command> {
    if !present.sets.contains_key(name) {
        return vec![];
    }
    let (_, other) = wrong_elements(name, set, present);
    let replace = |chunk: &[(Tuple, Datum)]| {
        let keys = chunk.iter().map(|(key, _)| key.clone()).collect();
        let added = Command::AddElements(name.clone(), chunk.to_vec());
        [Command::DeleteElements(name.clone(), keys), added]
    };
    other.chunks(TRANSACTION_ELEMENTS_MAX / 2).flat_map(replace).collect()
}

/// Elements that are not there, and those that are there with another value.
type Wrong = (Vec<(Tuple, Datum)>, Vec<(Tuple, Datum)>);

fn wrong_elements(name: &Name, set: &Set, present: &Table) -> Wrong {
    let empty = Elements::new();
    let present = present.sets.get(name).map_or(&empty, |set| &set.elements);
    set.elements.other_than_in(present).partition(|(key, _)| !present.contains_key(key))
}

/// Deletes elements of a set that stays.
fn drop_elements(name: &Name, set: &Set, present: &Table) -> Vec<Command> {
    let Some(present) = present.sets.get(name) else { return vec![] };
    delete_chunks(name, present.elements.keys_absent_in(&set.elements))
}

fn delete_chunks(name: &Name, keys: impl Iterator<Item = Tuple>) -> Vec<Command> {
    let keys: Vec<Tuple> = keys.collect();
    let chunks = keys.chunks(TRANSACTION_ELEMENTS_MAX);
    chunks.map(|chunk| Command::DeleteElements(name.clone(), chunk.to_vec())).collect()
}

/// Commands in order, in as few transactions as the limit allows. What deletes elements stays
/// together with what adds them again.
fn transactions(id: &TableId, commands: Vec<Command>) -> Vec<NftOp> {
    let mut ops = Vec::new();
    let mut current: Vec<Command> = Vec::new();
    let mut elements = 0;
    let mut replacing = false;
    for command in commands {
        let weight = match &command {
            Command::AddElements(_, added) => added.len(),
            Command::DeleteElements(_, deleted) => deleted.len(),
            _ => 0,
        };
        if !replacing && !current.is_empty() && elements + weight > TRANSACTION_ELEMENTS_MAX {
            let commands = std::mem::take(&mut current);
            ops.push(NftOp::Transaction(Transaction { table: id.clone(), commands }));
            elements = 0;
        }
        elements += weight;
        replacing = matches!(command, Command::DeleteElements(..));
        current.push(command);
    }
    if !current.is_empty() {
        ops.push(NftOp::Transaction(Transaction { table: id.clone(), commands: current }));
    }
    ops
}
