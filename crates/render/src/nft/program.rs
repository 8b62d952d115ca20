//! The table that shall be, kept up to date Service by Service.
//!
//! A Service's additions are a function of its plan ([`super::fragment`]), so they are taken out
//! by its former plan and put in by its new one. What several Services add is counted. So the
//! program after any number of changes equals the one that is rendered from scratch, and remains a
//! function of the current plan alone (invariant 1).

use std::collections::{BTreeMap, BTreeSet};

use model::{ClusterConfig, NamespacedName, PackedMap};
use plan::services::ServicePlan;
use plan::{Desired, NodeFacts};

use super::fragment::{Claim, Fragment, Part, fragments};
use super::language::{Datum, Name, Set, TableId, Tuple, Value, Verdict};
use super::layout::{Class, Layout, RangeView, Source, View};
use super::{NftProgram, Role, TableProgram};

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anywhere.
    Everything,
    /// Here only.
    Only(BTreeMap<TableId, TouchedTable>),
}

/// What changed in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TouchedTable {
    /// Chains.
    pub chains: BTreeSet<Name>,
    /// Sets as a whole: they came or went.
    pub sets: BTreeSet<Name>,
    /// Elements of sets.
    pub elements: BTreeMap<Name, BTreeSet<Tuple>>,
    /// Frontends in maps of slots.
    pub frontends: BTreeMap<Name, BTreeSet<Tuple>>,
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self::Only(BTreeMap::new())
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Only(tables) if tables.is_empty())
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) => {}
            (_, Self::Everything) => *self = Self::Everything,
            (Self::Only(tables), Self::Only(others)) => {
                for (id, other) in others {
                    tables.entry(id).or_default().merge(other);
                }
            }
        }
    }
}

impl TouchedTable {
    fn merge(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        for (name, keys) in other.elements {
            self.elements.entry(name).or_default().extend(keys);
        }
        for (name, keys) in other.frontends {
            self.frontends.entry(name).or_default().extend(keys);
        }
    }

    fn element(&mut self, set: &str, key: &Tuple) {
        insert_into(&mut self.elements, set, key);
    }

    fn frontend(&mut self, map: &str, key: &Tuple) {
        insert_into(&mut self.frontends, map, key);
    }
}

fn insert_into(map: &mut BTreeMap<Name, BTreeSet<Tuple>>, name: &str, key: &Tuple) {
    match map.get_mut(name) {
        Some(keys) => {
            keys.insert(key.clone());
        }
        None => {
            map.insert(name.into(), [key.clone()].into());
        }
    }
}

/// How many Services add what several may; it goes with the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Members of sets.
    elements: BTreeMap<&'static str, PackedMap<Tuple, u32>>,
    /// Chains of all frontends of a view with as many slots.
    count_chains: BTreeMap<CountChain, u32>,
}

type CountChain = (View, u32, Source);

impl Shared {
    /// Whether this is the first to have the element.
    fn take(&mut self, set: &'static str, key: &Tuple) -> bool {
        let elements = self.elements.entry(set).or_default();
        let before = elements.get(key).unwrap_or_default();
        elements.insert(key, &(before + 1));
        before == 0
    }

    /// Whether this was the last to have the element.
    fn release(&mut self, set: &'static str, key: &Tuple) -> bool {
        let Some(elements) = self.elements.get_mut(set) else { return false };
        match elements.remove(key) {
            None => false,
            Some(1) => {
                if elements.is_empty() {
                    self.elements.remove(set);
                }
                true
            }
            Some(count) => {
                elements.insert(key, &(count - 1));
                false
            }
        }
    }

    /// Whether this is the first to have the chain.
    fn take_chain(&mut self, chain: CountChain) -> bool {
        let count = self.count_chains.entry(chain).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether this was the last to have the chain.
    fn release_chain(&mut self, chain: CountChain) -> bool {
        let Some(count) = self.count_chains.get_mut(&chain) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.count_chains.remove(&chain);
        }
        is_last
    }
}

/// Brings a program up to date with the plans of some Services, whose former plans `before` has.
/// All else that it depends on must be as it was: otherwise render anew. Answers where the program
/// changed.
pub fn update(
    program: &mut NftProgram,
    role: Role,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
) -> Touched {
    let mut touched = BTreeMap::new();
    let mut contested = false;
    for (id, table) in &mut program.tables {
        let family = id.family.address_family();
        let layout = Layout::new(family, role, desired, config, facts);
        let mut log = TouchedTable::default();
        let mut editor = Editor { layout: &layout, program: table, log: Some(&mut log) };
        for plan in before.values().flatten() {
            contested |= !editor.remove(plan);
        }
        for plan in before.keys().filter_map(|name| desired.services.get(name)) {
            contested |= !editor.add(plan);
        }
        if log != TouchedTable::default() {
            touched.insert(id.clone(), log);
        }
    }
    if contested {
        // Which of them has the frontend shows only when all stand in order.
        *program = super::render_as(role, desired, config, facts);
        return Touched::Everything;
    }
    Touched::Only(touched)
}

/// Adds all Services to a table that has none.
pub fn add_services(layout: &Layout<'_>, program: &mut TableProgram, desired: &Desired) {
    let mut editor = Editor { layout, program, log: None };
    for plan in desired.services.values() {
        editor.add(plan);
    }
}

struct Editor<'a> {
    layout: &'a Layout<'a>,
    program: &'a mut TableProgram,
    log: Option<&'a mut TouchedTable>,
}

impl Editor<'_> {
    /// Answers false when another Service has one of the frontends. Of Services that claim the same
    /// frontend, which the API server prevents but for external addresses, the first by name has
    /// it.
    fn add(&mut self, plan: &ServicePlan) -> bool {
        let mut uncontested = true;
        for Fragment { claim, parts } in fragments(self.layout, plan) {
            if let Some(claim) = claim.filter(|claim| self.program.is_taken(claim)) {
                self.program.contested.insert(claim.contest());
                uncontested = false;
                continue;
            }
            for part in parts {
                self.add_part(part);
            }
        }
        uncontested
    }

    /// Answers false when another Service claims one of the frontends too.
    fn remove(&mut self, plan: &ServicePlan) -> bool {
        let mut uncontested = true;
        for Fragment { claim, parts } in fragments(self.layout, plan) {
            if claim.is_some_and(|claim| self.program.contested.contains(&claim.contest())) {
                uncontested = false;
                continue;
            }
            for part in parts {
                self.remove_part(part);
            }
        }
        uncontested
    }

    fn add_part(&mut self, part: Part) {
        match part {
            Part::Element(set, key, datum) => self.set_element(set, key, Some(datum)),
            Part::Shared(set, key) => {
                if self.program.shared.take(set, &key) {
                    self.set_element(set, key, Some(Datum::Member));
                }
            }
            Part::Endpoints(map, frontend, shares) => {
                if let Some(log) = &mut self.log {
                    log.frontend(map, &frontend);
                }
                if let Some(frontends) = self.program.endpoints.get_mut(map) {
                    frontends.insert(&frontend, &shares);
                }
            }
            Part::CountChain(view, count, source) => {
                if self.program.shared.take_chain((view, count, source)) {
                    let name = count_chain(view, count, source);
                    let rules = self.layout.slot_rules(view, count, source);
                    self.add_chain(name.clone(), rules);
                    let class = vec![Value::Number(Class::Endpoints { count, source }.number())];
                    let verdict = Datum::Verdict(Verdict::Goto(name));
                    self.set_element(view.verdicts(), class, Some(verdict));
                }
            }
            Part::Chain(name, rules) => self.add_chain(name, rules),
            Part::Set(name, set) => {
                if let Some(log) = &mut self.log {
                    log.sets.insert(name.clone());
                }
                self.program.table.sets.insert(name, set);
            }
        }
    }

    fn remove_part(&mut self, part: Part) {
        match part {
            Part::Element(set, key, _) => self.set_element(set, key, None),
            Part::Shared(set, key) => {
                if self.program.shared.release(set, &key) {
                    self.set_element(set, key, None);
                }
            }
            Part::Endpoints(map, frontend, _) => {
                if let Some(log) = &mut self.log {
                    log.frontend(map, &frontend);
                }
                if let Some(frontends) = self.program.endpoints.get_mut(map) {
                    frontends.remove(&frontend);
                }
            }
            Part::CountChain(view, count, source) => {
                if self.program.shared.release_chain((view, count, source)) {
                    self.remove_chain(&count_chain(view, count, source));
                    let class = vec![Value::Number(Class::Endpoints { count, source }.number())];
                    self.set_element(view.verdicts(), class, None);
                }
            }
            Part::Chain(name, _) => self.remove_chain(&name),
            Part::Set(name, _) => {
                self.program.table.sets.remove(&name);
                if let Some(log) = &mut self.log {
                    log.sets.insert(name);
                }
            }
        }
    }

    fn add_chain(&mut self, name: Name, rules: Vec<Vec<super::language::Statement>>) {
        if let Some(log) = &mut self.log {
            log.chains.insert(name.clone());
        }
        self.program.table.chains.insert(name, self.layout.chain(rules));
    }

    fn remove_chain(&mut self, name: &Name) {
        if let Some(log) = &mut self.log {
            log.chains.insert(name.clone());
        }
        self.program.table.chains.remove(name);
    }

    fn set_element(&mut self, set: &str, key: Tuple, datum: Option<Datum>) {
        if let Some(log) = &mut self.log {
            log.element(set, &key);
        }
        let Some(set) = self.program.table.sets.get_mut(set) else { return };
        match datum {
            Some(datum) => drop(set.elements.insert(&key, &datum)),
            None => drop(set.elements.remove(&key)),
        }
    }
}

/// The name of the chain of all frontends of a view with as many slots.
fn count_chain(view: View, count: u32, source: Source) -> Name {
    let kept = match (view, source) {
        (View::NodePort | View::External, Source::KeptForPods) => "-kept",
        _ => "",
    };
    format!("{}{kept}-n{count}", view.prefix())
}

impl TableProgram {
    /// Whose a frontend is shows in the view of all clients, which every Service has: one that has
    /// no view of its own for clients outside has them in that one.
    fn is_taken(&self, claim: &Claim) -> bool {
        let set = |name: &str| self.table.sets.get(name);
        match claim {
            Claim::Frontend(view, key) => {
                let sets = [view.classes(), view.of_all_clients().classes()];
                sets.into_iter().filter_map(set).any(|set| set.elements.contains_key(key))
            }
            Claim::Range(view, key) => [*view, RangeView::All]
                .into_iter()
                .flat_map(|view| [view.chains(), view.refusals()])
                .filter_map(set)
                .any(|set| overlaps(set, key)),
        }
    }
}

/// Whether the set has ports of the same address and protocol within the range.
fn overlaps(set: &Set, key: &Tuple) -> bool {
    let Some((Value::PortRange(first, last), place)) = key.split_last() else { return false };
    set.elements.starting_with(place).any(|(key, _)| match key.last() {
        Some(Value::PortRange(other_first, other_last)) => {
            first <= other_last && other_first <= last
        }
        _ => false,
    })
}

impl Claim {
    /// What two Services contest when they claim the same, or ranges of the same place.
    fn contest(&self) -> (&'static str, Tuple) {
        match self {
            Self::Frontend(view, key) => (view.classes(), key.clone()),
            Self::Range(view, key) => {
                let place = key.split_last().map_or(&[][..], |(_, place)| place);
                (RangeView::chains(*view), place.to_vec())
            }
        }
    }
}
