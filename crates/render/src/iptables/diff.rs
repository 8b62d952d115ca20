//! From what is there to what shall be. A chain that differs is written whole, others are not
//! touched: the program takes the changed chains of a table together, so a packet meets the rules
//! before or those after.
//!
//! The tables change one after the other, in an order that lets nobody pass meanwhile:
//!
//! 1. **filter, firewall**: a source that shall not be served is dropped before its address is
//!    translated for others, and one that was not still is (invariant 7): until nat has changed,
//!    only sources of the old and the new ranges pass;
//! 2. **nat**: a Service that is new is translated before its address is known to be refused;
//! 3. **filter**: the firewall without what it needs no more;
//! 4. **forget** UDP flows to endpoints that are gone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use model::Family;

use super::language::{
    ChainName, Fixed, Hook, Kind, Match, Rule, Table, TableId, TableName, Target,
};
use super::state::{Command, IptablesObserved, Transaction};
use super::{IptablesOp, IptablesProgram, Touched, TouchedTables, flows};

/// The ops from what is to what shall be. Empty when nothing differs.
pub fn diff(program: &IptablesProgram, observed: &IptablesObserved) -> Vec<IptablesOp> {
    let families = [Family::V4, Family::V6].into_iter();
    families.flat_map(|family| diff_family(family, program, observed, None)).collect()
}

/// The same at a cost that depends on what changed, where the program differs from what is there
/// only in what was touched.
pub fn diff_touched(
    program: &IptablesProgram,
    observed: &IptablesObserved,
    touched: &Touched,
) -> Vec<IptablesOp> {
    let Touched::Only(families) = touched else { return diff(program, observed) };
    let has = |family: &Family| {
        let id = |name| TableId { family: *family, name };
        TableName::ALL.into_iter().all(|name| observed.tables.contains_key(&id(name)))
    };
    if !families.keys().all(has) {
        return diff(program, observed);
    }
    let families = families.iter();
    families.flat_map(|(family, it)| diff_family(*family, program, observed, Some(it))).collect()
}

fn diff_family(
    family: Family,
    program: &IptablesProgram,
    observed: &IptablesObserved,
    touched: Option<&TouchedTables>,
) -> Vec<IptablesOp> {
    let mut ops = Vec::new();
    let empty = Table::default();
    let table = |name| {
        let id = TableId { family, name };
        let tables = [program.tables.get(&id), observed.tables.get(&id)];
        (id, tables.map(|table| table.unwrap_or(&empty)))
    };
    let part = |name, table| match touched {
        None => Cow::Borrowed(table),
        Some(touched) => Cow::Owned(part_of(table, touched.chains.get(&name))),
    };
    let (filter, [wanted, present]) = table(TableName::Filter);
    let [wanted, present] = [wanted, present].map(|table| part(filter.name, table));
    let (firewall, refusals) = (guard(&wanted, &present), rest(&wanted, &present));
    let (nat, [wanted, present]) = table(TableName::Nat);
    let translation = {
        let [wanted, present] = [wanted, present].map(|table| part(nat.name, table));
        whole(&wanted, &present)
    };
    // Without a table another backend translates from now on, and judges the flows: an answer on
    // its way needs the one that it belongs to.
    let is_other = !translation.is_empty() && program.tables.contains_key(&nat);
    for (table, commands) in [(filter, firewall), (nat, translation), (filter, refusals)] {
        if !commands.is_empty() {
            ops.push(IptablesOp::Transaction(Transaction { table, commands }));
        }
    }
    if is_other {
        let places = touched.map(|touched| &touched.places);
        let stale = flows::stale(family, wanted, present, places);
        ops.extend(stale.map(IptablesOp::ForgetFlows));
    }
    ops
}

/// The chains that were touched.
fn part_of(table: &Table, touched: Option<&BTreeSet<ChainName>>) -> Table {
    let found = touched.into_iter().flatten().filter_map(|name| table.chains.get_key_value(name));
    let chains = found.map(|(name, rules)| (name.clone(), rules.clone())).collect();
    Table { chains, hooks: BTreeMap::new() }
}

/// The hooks and the firewall.
fn guard(wanted: &Table, present: &Table) -> Vec<Command> {
    let meanwhile: Vec<(&ChainName, Vec<Rule>)> = changed(wanted, present)
        .map(|(chain, rules)| (chain, meanwhile(chain, rules, wanted, present)))
        .filter(|(chain, rules)| present.chains.get(*chain) != Some(rules))
        .collect();
    let written: Vec<_> = meanwhile.iter().map(|(chain, rules)| (*chain, rules)).collect();
    let mut commands = write(&written);
    if !wanted.is_empty() {
        commands.extend(hooks(wanted, present));
    }
    commands
}

/// The rules of a chain of the guard until nat has changed.
fn meanwhile(chain: &ChainName, rules: &[Rule], wanted: &Table, present: &Table) -> Vec<Rule> {
    match (chain, present.chains.get(chain)) {
        (ChainName::Fixed(Fixed::Firewall), _) => firewall_of_both(wanted, present),
        (ChainName::Keyed(Kind::Firewall, _), Some(former)) => served_by_both(rules, former),
        _ => rules.to_vec(),
    }
}

/// Of two chains that let some sources return and drop all others: the sources of both.
fn served_by_both(one: &[Rule], other: &[Rule]) -> Vec<Rule> {
    let returns = |rule: &&Rule| rule.target == Target::Return;
    let mut both = Vec::new();
    for one in one.iter().filter(returns) {
        for other in other.iter().filter(returns) {
            let rule = match (one.matches.as_slice(), other.matches.as_slice()) {
                ([], _) => other,
                (_, []) => one,
                ([Match::Source(a)], [Match::Source(b)]) if a.contains(b) => other,
                ([Match::Source(a)], [Match::Source(b)]) if b.contains(a) => one,
                _ => continue,
            };
            if !both.contains(rule) {
                both.push(rule.clone());
            }
        }
    }
    both.push(Rule::new([], Target::Drop));
    both
}

/// What the firewall shall drop, and what it did: until nat has changed.
fn firewall_of_both(wanted: &Table, present: &Table) -> Vec<Rule> {
    let chain = ChainName::from(Fixed::Firewall);
    let mut both = wanted.chains.get(&chain).cloned().unwrap_or_default();
    for rule in present.chains.get(&chain).into_iter().flatten() {
        let is_ours = matches!(rule.jump(), Some(ChainName::Keyed(Kind::Firewall, _)));
        if is_ours && !both.contains(rule) {
            both.push(rule.clone());
        }
    }
    both
}

fn rest(wanted: &Table, present: &Table) -> Vec<Command> {
    let is_left = |(chain, rules): &(&ChainName, &Vec<Rule>)| {
        meanwhile(chain, rules, wanted, present) != **rules
    };
    let changed: Vec<_> = changed(wanted, present).filter(is_left).collect();
    let mut commands = write(&changed);
    if wanted.is_empty() {
        commands.extend(hooks(wanted, present));
    }
    commands.extend(sweep(wanted, present));
    commands
}

fn whole(wanted: &Table, present: &Table) -> Vec<Command> {
    let changed: Vec<_> = changed(wanted, present).collect();
    let mut commands = write(&changed);
    commands.extend(hooks(wanted, present));
    commands.extend(sweep(wanted, present));
    commands
}

fn changed<'a>(
    wanted: &'a Table,
    present: &'a Table,
) -> impl Iterator<Item = (&'a ChainName, &'a Vec<Rule>)> {
    let differs =
        |(chain, rules): &(&ChainName, &Vec<Rule>)| present.chains.get(*chain) != Some(*rules);
    wanted.chains.iter().filter(differs)
}

/// All chains before any rule: rules jump to them (invariant 5). New chains stay in this order, and
/// the nft variant's reading sorts them by a quicksort that is slow where they have one.
fn write(changed: &[(&ChainName, &Vec<Rule>)]) -> Vec<Command> {
    let mut chains: Vec<&ChainName> = changed.iter().map(|(chain, _)| *chain).collect();
    chains.sort_by_key(|chain| chain.scattered());
    let chains = chains.into_iter().cloned().map(Command::Write);
    let rules = changed.iter().flat_map(|(chain, rules)| {
        rules.iter().map(|rule| Command::Append((*chain).clone(), rule.clone()))
    });
    chains.chain(rules).collect()
}

/// Rules of ours in the kernel's chains: each once, first where it is new.
fn hooks(wanted: &Table, present: &Table) -> Vec<Command> {
    let none = Vec::new();
    let mut commands = Vec::new();
    for hook in Hook::ALL {
        let of = |hooks: &BTreeMap<Hook, Vec<Rule>>| hooks.get(&hook).unwrap_or(&none).clone();
        let mut surplus = of(&present.hooks);
        for rule in of(&wanted.hooks) {
            match surplus.iter().position(|present| *present == rule) {
                Some(index) => drop(surplus.remove(index)),
                None => commands.push(Command::InsertHook(hook, rule)),
            }
        }
        commands.extend(surplus.into_iter().map(|rule| Command::DeleteHook(hook, rule)));
    }
    commands
}

/// Chains that nothing names any more.
fn sweep(wanted: &Table, present: &Table) -> Vec<Command> {
    let old = || present.chains.keys().filter(|chain| !wanted.chains.contains_key(*chain));
    let emptied = old().cloned().map(Command::Write);
    emptied.chain(old().cloned().map(Command::Delete)).collect()
}
