//! What one pod, or all of them, add to tables.

use std::collections::BTreeMap;

use crate::nft::language::{
    BaseChain, Chain, ChainType, ConnectionState, DataType, Datum, Field, Hook, Name, Rule, Set,
    SetSpec, Statement, Table, TableId, Tuple, Type, Verdict,
};
use crate::nft::packed::Elements;
use crate::owned::PRIORITY_FILTER;

/// What is added to one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Elements by set.
    pub elements: BTreeMap<Name, BTreeMap<Tuple, Datum>>,
    /// Chains that the elements go to. Their names tell their rules, so that pods share them.
    pub chains: BTreeMap<Name, Chain>,
}

/// What is added to each table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(pub BTreeMap<TableId, Part>);

impl Parts {
    /// Adds an element that holds nothing.
    pub(super) fn member(&mut self, id: &TableId, set: &str, key: Tuple) {
        self.entry(id, set, key, Datum::Member);
    }

    /// Adds an element.
    pub(super) fn entry(&mut self, id: &TableId, set: &str, key: Tuple, datum: Datum) {
        let part = self.0.entry(id.clone()).or_default();
        part.elements.entry(set.into()).or_default().entry(key).or_insert(datum);
    }

    /// Adds a chain that is named by its rules, and answers the verdict that leads there.
    pub(super) fn chain(
        &mut self,
        id: &TableId,
        prefix: &str,
        rules: Vec<Vec<Statement>>,
    ) -> Datum {
        Datum::Verdict(Verdict::Goto(self.named_chain(id, prefix, rules)))
    }

    /// As [`Parts::chain`], with a verdict that comes back.
    pub(super) fn subroutine(
        &mut self,
        id: &TableId,
        prefix: &str,
        rules: Vec<Vec<Statement>>,
    ) -> Datum {
        Datum::Verdict(Verdict::Jump(self.named_chain(id, prefix, rules)))
    }

    fn named_chain(&mut self, id: &TableId, prefix: &str, rules: Vec<Vec<Statement>>) -> Name {
        let rules: Vec<Rule> = rules.into_iter().map(|rule| Rule::new(id.family, rule)).collect();
        let fold = |hash: u64, rule: &Rule| hash.rotate_left(1) ^ rule.fingerprint();
        let name = format!("{prefix}-{:016x}", rules.iter().fold(0, fold));
        let part = self.0.entry(id.clone()).or_default();
        part.chains.insert(name.clone(), Chain { base: None, rules });
        name
    }

    /// Adds another pod's; what is there stays.
    pub(super) fn merge(&mut self, other: Self) {
        for (id, part) in other.0 {
            let into = self.0.entry(id).or_default();
            for (set, elements) in part.elements {
                let set = into.elements.entry(set).or_default();
                for (key, datum) in elements {
                    set.entry(key).or_insert(datum);
                }
            }
            into.chains.extend(part.chains);
        }
    }
}

/// A table being written.
pub(super) struct Layout<'a> {
    id: &'a TableId,
    table: Table,
}

impl<'a> Layout<'a> {
    /// Where what passes through is filtered.
    pub(super) const FORWARD: BaseChain =
        BaseChain { chain_type: ChainType::Filter, hook: Hook::Forward, priority: PRIORITY_FILTER };

    pub(super) fn new(id: &'a TableId) -> Self {
        Self { id, table: Table::default() }
    }

    pub(super) fn set(&mut self, name: &str, key: &[Type], data: DataType) -> &mut Self {
        let spec = SetSpec { key: key.to_vec(), data, filled_by_packets_max: None };
        self.table.sets.insert(name.into(), Set { spec, elements: Elements::new() });
        self
    }

    pub(super) fn base(
        &mut self,
        name: &str,
        base: BaseChain,
        rules: Vec<Vec<Statement>>,
    ) -> &mut Self {
        self.insert(name, Some(base), rules)
    }

    pub(super) fn chain(&mut self, name: &str, rules: Vec<Vec<Statement>>) -> &mut Self {
        self.insert(name, None, rules)
    }

    pub(super) fn table(&mut self) -> Table {
        std::mem::take(&mut self.table)
    }

    fn insert(
        &mut self,
        name: &str,
        base: Option<BaseChain>,
        rules: Vec<Vec<Statement>>,
    ) -> &mut Self {
        let rules = rules.into_iter().map(|rule| Rule::new(self.id.family, rule)).collect();
        self.table.chains.insert(name.into(), Chain { base, rules });
        self
    }
}

/// Drops what the pods of a set send and the kernel would not translate.
pub(super) fn never_untranslated(set: &str) -> Vec<Statement> {
    vec![
        Statement::StateIs(ConnectionState::Invalid),
        Statement::In { key: vec![Field::SourceAddress], set: set.into() },
        Statement::Verdict(Verdict::Drop),
    ]
}
