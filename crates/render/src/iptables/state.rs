//! What the kernel holds of our chains, and what the programs refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::IptablesOp;
use super::language::{
    CHAIN_NAME_BYTES_MAX, ChainName, Hook, Match, Rule, Table, TableId, TableName, Target,
};
use crate::OpError;

/// What is: what we have in tables. Absent: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IptablesObserved {
    /// By family and name.
    pub tables: BTreeMap<TableId, Table>,
}

/// Commands on one table that take effect together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: TableId,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// One command of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a chain, or removes the rules of the one that is there.
    Write(ChainName),
    /// Appends a rule to a chain.
    Append(ChainName, Rule),
    /// Puts a rule first in a chain of the kernel.
    InsertHook(Hook, Rule),
    /// Deletes one rule of ours from a chain of the kernel.
    DeleteHook(Hook, Rule),
    /// Deletes an empty chain.
    Delete(ChainName),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(chain) => write!(f, "write chain {chain}"),
            Self::Append(chain, _) => write!(f, "append a rule to chain {chain}"),
            Self::InsertHook(hook, _) => write!(f, "insert a rule in chain {}", hook.text()),
            Self::DeleteHook(hook, _) => write!(f, "delete a rule of chain {}", hook.text()),
            Self::Delete(chain) => write!(f, "delete chain {chain}"),
        }
    }
}

/// What a refused program means: it exits with a code and a sentence, and no errno.
pub const EIO: i32 = 5;

impl IptablesObserved {
    /// The state after one op, or why the programs would refuse it; then nothing has changed.
    ///
    /// # Errors
    /// For a missing chain, one still in use, or a rule that its table does not take.
    pub fn apply(&mut self, op: &IptablesOp) -> Result<(), OpError> {
        let IptablesOp::Transaction(transaction) = op else { return Ok(()) };
        let table = self.tables.entry(transaction.table).or_default();
        let mut work = Work {
            id: transaction.table,
            table,
            chains: BTreeMap::new(),
            hooks: BTreeMap::new(),
            used: None,
        };
        let mut result = Ok(());
        for command in &transaction.commands {
            if let Err(reason) = work.carry_out(command) {
                let message = format!("iptables: cannot {command}: {reason}");
                result = Err(OpError { errno: EIO, message });
                work.roll_back();
                break;
            }
        }
        if let Some(table) = self.tables.get_mut(&transaction.table) {
            table.hooks.retain(|_, rules| !rules.is_empty());
        }
        self.tables.retain(|_, table| !table.is_empty());
        result
    }
}

impl Table {
    /// Whether nothing of ours is there.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }
}

/// A transaction under way, with what chains were before.
struct Work<'a> {
    id: TableId,
    table: &'a mut Table,
    chains: BTreeMap<ChainName, Option<Vec<Rule>>>,
    hooks: BTreeMap<Hook, Vec<Rule>>,
    /// The chains that rules jump to, while only deletions follow each other.
    used: Option<BTreeSet<ChainName>>,
}

impl Work<'_> {
    fn carry_out(&mut self, command: &Command) -> Result<(), String> {
        if let Command::Delete(chain) = command {
            return self.delete(chain);
        }
        self.used = None;
        match command {
            Command::Write(chain) => {
                if chain.to_string().len() > CHAIN_NAME_BYTES_MAX {
                    return Err(format!("its name is longer than {CHAIN_NAME_BYTES_MAX} bytes"));
                }
                self.keep(chain);
                self.table.chains.insert(chain.clone(), vec![]);
            }
            Command::Append(chain, rule) => {
                self.check(rule)?;
                self.keep(chain);
                let rules = self.table.chains.get_mut(chain).ok_or("there is no such chain")?;
                rules.push(rule.clone());
            }
            Command::InsertHook(hook, rule) => {
                self.check(rule)?;
                check_hook(self.id.name, *hook)?;
                self.hook(*hook).insert(0, rule.clone());
            }
            Command::DeleteHook(hook, rule) => {
                let rules = self.hook(*hook);
                let index = rules.iter().position(|present| present == rule);
                rules.remove(index.ok_or("there is no such rule")?);
            }
            Command::Delete(_) => {}
        }
        Ok(())
    }

    fn delete(&mut self, chain: &ChainName) -> Result<(), String> {
        let rules = self.table.chains.get(chain).ok_or("there is no such chain")?;
        if !rules.is_empty() {
            return Err("it has rules".into());
        }
        if self.used.is_none() {
            let rules = self.table.chains.values().chain(self.table.hooks.values()).flatten();
            self.used = Some(rules.filter_map(Rule::jump).cloned().collect());
        }
        if self.used.as_ref().is_some_and(|used| used.contains(chain)) {
            return Err("a rule still goes there".into());
        }
        self.keep(chain);
        self.table.chains.remove(chain);
        Ok(())
    }

    fn keep(&mut self, chain: &ChainName) {
        if !self.chains.contains_key(chain) {
            self.chains.insert(chain.clone(), self.table.chains.get(chain).cloned());
        }
    }

    fn hook(&mut self, hook: Hook) -> &mut Vec<Rule> {
        let rules = self.table.hooks.entry(hook).or_default();
        self.hooks.entry(hook).or_insert_with(|| rules.clone());
        rules
    }

    fn roll_back(&mut self) {
        for (chain, rules) in std::mem::take(&mut self.chains) {
            match rules {
                Some(rules) => self.table.chains.insert(chain, rules),
                None => self.table.chains.remove(&chain),
            };
        }
        for (hook, rules) in std::mem::take(&mut self.hooks) {
            self.table.hooks.insert(hook, rules);
        }
    }

    fn check(&self, rule: &Rule) -> Result<(), String> {
        if let Some(chain) = rule.jump().filter(|chain| !self.table.chains.contains_key(*chain)) {
            return Err(format!("it goes to chain {chain}, which does not exist"));
        }
        let protocol = rule.matches.iter().find_map(|one| match one {
            Match::Protocol(protocol) => Some(*protocol),
            _ => None,
        });
        let has_ports = rule.matches.iter().any(|one| matches!(one, Match::Ports { .. }));
        if has_ports && protocol.is_none() {
            return Err("ports need a protocol".into());
        }
        match (&rule.target, self.id.name) {
            (Target::Translate { .. } | Target::Masquerade { .. }, TableName::Filter) => {
                Err("addresses are translated in the nat table only".into())
            }
            (Target::Drop, TableName::Nat) => Err("the nat table filters nothing".into()),
            (
                Target::Translate { port: Some(_), .. } | Target::Masquerade { ports: Some(_) },
                _,
            ) if protocol.is_none() => Err("a port needs a protocol".into()),
            (Target::Unknown(text), _) => Err(format!("`{text}` is no rule of ours")),
            _ => Ok(()),
        }
    }
}

fn check_hook(table: TableName, hook: Hook) -> Result<(), String> {
    let known = match table {
        TableName::Nat => hook != Hook::Forward,
        TableName::Filter => matches!(hook, Hook::Input | Hook::Forward | Hook::Output),
    };
    if known { Ok(()) } else { Err(format!("{} has no chain {}", table.text(), hook.text())) }
}
