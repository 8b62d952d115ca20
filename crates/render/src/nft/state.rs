//! What the kernel holds of our tables, and what it refuses.

use std::collections::BTreeMap;
use std::fmt;

use super::NftOp;
use super::language::{
    BaseChain, Chain, DataType, Datum, Name, Rule, Set, SetSpec, Table, TableId, Tuple,
};
use super::packed::Elements;
use crate::OpError;

/// What is: our tables. Absent: no table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftObserved {
    /// By family and name.
    pub tables: BTreeMap<TableId, Table>,
}

/// Commands on one of our tables that take effect together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Which of our tables.
    pub table: TableId,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// One command of a transaction. Names are of that table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates the table.
    AddTable,
    /// Deletes the table with all that is in it.
    DeleteTable,
    /// Creates an empty chain.
    AddChain(Name, Option<BaseChain>),
    /// Appends a rule to a chain.
    AddRule(Name, Rule),
    /// Removes all rules of a chain.
    FlushChain(Name),
    /// Deletes a chain with its rules.
    DeleteChain(Name),
    /// Creates an empty set or map.
    AddSet(Name, SetSpec),
    /// Deletes a set or map with its elements.
    DeleteSet(Name),
    /// Adds elements, none of which may be there.
    AddElements(Name, Vec<(Tuple, Datum)>),
    /// Deletes elements, all of which must be there.
    DeleteElements(Name, Vec<Tuple>),
}

impl Command {
    /// The chain, set or map that the command is about.
    pub fn object(&self) -> Option<&Name> {
        match self {
            Self::AddTable | Self::DeleteTable => None,
            Self::AddChain(name, _)
            | Self::AddRule(name, _)
            | Self::FlushChain(name)
            | Self::DeleteChain(name)
            | Self::AddSet(name, _)
            | Self::DeleteSet(name)
            | Self::AddElements(name, _)
            | Self::DeleteElements(name, _) => Some(name),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => f.write_str("add the table"),
            Self::DeleteTable => f.write_str("delete the table"),
            Self::AddChain(name, _) => write!(f, "add chain {name}"),
            Self::AddRule(name, _) => write!(f, "add a rule to chain {name}"),
            Self::FlushChain(name) => write!(f, "flush chain {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::AddSet(name, _) => write!(f, "add set {name}"),
            Self::DeleteSet(name) => write!(f, "delete set {name}"),
            Self::AddElements(name, elements) => {
                write!(f, "add {} elements to {name}", elements.len())
            }
            Self::DeleteElements(name, keys) => {
                write!(f, "delete {} elements of {name}", keys.len())
            }
        }
    }
}

const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOTEMPTY: i32 = 39;
/// The longest name of a chain or set in bytes (`NFT_NAME_MAXLEN` less the final zero).
const NAME_BYTES_MAX: usize = 255;

impl NftObserved {
    /// The state after one op, or why Linux would refuse it; then nothing has changed.
    ///
    /// # Errors
    /// The errno that Linux answers: `ENOENT` for a missing object or reference, `EEXIST` for one
    /// that is there, `EBUSY` for one still in use, `EINVAL` for values of a wrong type.
    pub fn apply(&mut self, op: &NftOp) -> Result<(), OpError> {
        let NftOp::Transaction(transaction) = op else { return Ok(()) };
        let mut work = Work { table: self.tables.remove(&transaction.table), undo: Vec::new() };
        let mut result = Ok(());
        for command in &transaction.commands {
            if let Err((errno, reason)) = work.carry_out(command) {
                let message = format!("nftables: cannot {command}: {reason}");
                result = Err(OpError { errno, message });
                break;
            }
        }
        if result.is_err() {
            work.roll_back();
        }
        if let Some(table) = work.table {
            self.tables.insert(transaction.table.clone(), table);
        }
        result
    }

    /// Gives rules that were read back from a kernel the statements of the program's rules with
    /// the same fingerprint, so that they can be traced and printed.
    pub fn recognise(&mut self, program: &super::NftProgram) {
        for (id, table) in &mut self.tables {
            let Some(wanted) = program.tables.get(id) else { continue };
            let known: BTreeMap<u64, &Rule> = wanted
                .table
                .chains
                .values()
                .flat_map(|chain| &chain.rules)
                .map(|rule| (rule.fingerprint(), rule))
                .collect();
            for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
                if let Some(&known) = known.get(&rule.fingerprint()) {
                    *rule = known.clone();
                }
            }
        }
    }
}

type Refusal = (i32, String);

/// How one step is taken back.
enum Undo {
    Table(Option<Table>),
    Chain(Name, Option<Chain>),
    RemoveLastRule(Name),
    Set(Name, Option<Set>),
    Element(Name, Tuple, Option<Datum>),
}

/// A transaction under way. It keeps how to go back rather than a copy of the table.
struct Work {
    table: Option<Table>,
    undo: Vec<Undo>,
}

impl Work {
    fn carry_out(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::AddTable => {
                if self.table.is_none() {
                    self.table = Some(Table::default());
                    self.undo.push(Undo::Table(None));
                }
                Ok(())
            }
            Command::DeleteTable => {
                let table = self.table.take().ok_or_else(no_table)?;
                self.undo.push(Undo::Table(Some(table)));
                Ok(())
            }
            Command::AddChain(name, base) => self.add_chain(name, *base),
            Command::AddRule(name, rule) => self.add_rule(name, rule),
            Command::FlushChain(name) => {
                let chain = self.chain(name)?;
                let old = chain.clone();
                chain.rules.clear();
                self.undo.push(Undo::Chain(name.clone(), Some(old)));
                Ok(())
            }
            Command::DeleteChain(name) => self.delete_chain(name),
            Command::AddSet(name, spec) => self.add_set(name, spec),
            Command::DeleteSet(name) => self.delete_set(name),
            Command::AddElements(name, elements) => {
                elements.iter().try_for_each(|(key, datum)| self.add_element(name, key, datum))
            }
            Command::DeleteElements(name, keys) => {
                keys.iter().try_for_each(|key| self.delete_element(name, key))
            }
        }
    }

    fn roll_back(&mut self) {
        for step in self.undo.drain(..).rev() {
            match (step, &mut self.table) {
                (Undo::Table(old), table) => *table = old,
                (Undo::Chain(name, old), Some(table)) => restore(&mut table.chains, name, old),
                (Undo::Set(name, old), Some(table)) => restore(&mut table.sets, name, old),
                (Undo::RemoveLastRule(name), Some(table)) => {
                    if let Some(chain) = table.chains.get_mut(&name) {
                        chain.rules.pop();
                    }
                }
                (Undo::Element(set, key, old), Some(table)) => {
                    if let Some(set) = table.sets.get_mut(&set) {
                        match old {
                            Some(old) => drop(set.elements.insert(&key, &old)),
                            None => drop(set.elements.remove(&key)),
                        }
                    }
                }
                (_, None) => {}
            }
        }
    }

    fn add_chain(&mut self, name: &Name, base: Option<BaseChain>) -> Result<(), Refusal> {
        check_name(name)?;
        let table = self.table.as_mut().ok_or_else(no_table)?;
        if table.chains.contains_key(name) {
            return Err((EEXIST, "it exists".into()));
        }
        table.chains.insert(name.clone(), Chain { base, rules: vec![] });
        self.undo.push(Undo::Chain(name.clone(), None));
        Ok(())
    }

    fn add_rule(&mut self, name: &Name, rule: &Rule) -> Result<(), Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        for statement in rule.statements().unwrap_or_default() {
            if let Some(target) = statement.target().filter(|&it| !table.chains.contains_key(it)) {
                return Err((ENOENT, format!("it goes to chain {target}, which does not exist")));
            }
            let missing = statement.sets().find(|&set| !table.sets.contains_key(set));
            if let Some(set) = missing {
                return Err((ENOENT, format!("it needs set {set}, which does not exist")));
            }
        }
        self.chain(name)?.rules.push(rule.clone());
        self.undo.push(Undo::RemoveLastRule(name.clone()));
        Ok(())
    }

    fn delete_chain(&mut self, name: &Name) -> Result<(), Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        let others = table.chains.iter().filter(|&(other, _)| other != name);
        let by_rule = others
            .flat_map(|(_, chain)| &chain.rules)
            .flat_map(|rule| rule.statements().unwrap_or_default())
            .any(|statement| statement.target() == Some(name));
        let of_verdicts = table.sets.values().filter(|set| set.spec.data == DataType::Verdict);
        let by_element = of_verdicts.flat_map(|set| set.elements.values()).any(
            |datum| matches!(datum, Datum::Verdict(verdict) if verdict.target() == Some(name)),
        );
        if by_rule || by_element {
            return Err((EBUSY, "a rule or verdict map still goes there".into()));
        }
        let old = table.chains.remove(name).ok_or_else(|| missing(name))?;
        self.undo.push(Undo::Chain(name.clone(), Some(old)));
        Ok(())
    }

    fn add_set(&mut self, name: &Name, spec: &SetSpec) -> Result<(), Refusal> {
        check_name(name)?;
        let table = self.table.as_mut().ok_or_else(no_table)?;
        if table.sets.contains_key(name) {
            return Err((EEXIST, "it exists".into()));
        }
        let set = Set { spec: spec.clone(), elements: Elements::new() };
        table.sets.insert(name.clone(), set);
        self.undo.push(Undo::Set(name.clone(), None));
        Ok(())
    }

    fn delete_set(&mut self, name: &Name) -> Result<(), Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        let used = table
            .chains
            .values()
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| rule.statements().unwrap_or_default())
            .any(|statement| statement.sets().any(|set| set == name));
        if used {
            return Err((EBUSY, "a rule still uses it".into()));
        }
        let old = table.sets.remove(name).ok_or_else(|| missing(name))?;
        self.undo.push(Undo::Set(name.clone(), Some(old)));
        Ok(())
    }

    fn add_element(&mut self, name: &Name, key: &Tuple, datum: &Datum) -> Result<(), Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        let target = match datum {
            Datum::Verdict(verdict) => verdict.target(),
            _ => None,
        };
        if let Some(chain) = target.filter(|&chain| !table.chains.contains_key(chain)) {
            return Err((ENOENT, format!("{chain} is no chain")));
        }
        let set = table.sets.get_mut(name).ok_or_else(|| missing(name))?;
        if !set.spec.accepts(key, datum) {
            return Err((EINVAL, format!("{key:?} has the wrong type")));
        }
        if set.elements.contains_key(key) {
            return Err((EEXIST, format!("{key:?} is there")));
        }
        if set.spec.is_interval()
            && let Some(other) = set.overlapping(key)
        {
            return Err((ENOTEMPTY, format!("{key:?} overlaps with {other:?}")));
        }
        set.elements.insert(key, datum);
        self.undo.push(Undo::Element(name.clone(), key.clone(), None));
        Ok(())
    }

    fn delete_element(&mut self, name: &Name, key: &Tuple) -> Result<(), Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        let set = table.sets.get_mut(name).ok_or_else(|| missing(name))?;
        let Some(old) = set.elements.remove(key) else {
            return Err((ENOENT, format!("{key:?} is not there")));
        };
        self.undo.push(Undo::Element(name.clone(), key.clone(), Some(old)));
        Ok(())
    }

    fn chain(&mut self, name: &Name) -> Result<&mut Chain, Refusal> {
        let table = self.table.as_mut().ok_or_else(no_table)?;
        table.chains.get_mut(name).ok_or_else(|| missing(name))
    }
}

fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, old: Option<V>) {
    match old {
        Some(old) => map.insert(key, old),
        None => map.remove(&key),
    };
}

fn no_table() -> Refusal {
    (ENOENT, "the table does not exist".into())
}

fn missing(name: &str) -> Refusal {
    (ENOENT, format!("{name} does not exist"))
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err((EINVAL, format!("its name is longer than {NAME_BYTES_MAX} bytes")))
}
