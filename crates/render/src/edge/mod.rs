//! Rules where pods meet the node, made of nothing but [`Attachment`]s: who a pod may say it is,
//! which ports of the node lead to it, whose source is hidden, who may come in.
//!
//! ```text
//! &[Attachment] ─program─▶ tables ─diff─▶ ops            repair, by whoever has all records
//!  &Attachment  ─additions / removals─▶ elements only    attach and detach: the plugin's one exec
//! ```
//!
//! Each concern has a table of its own in each family ([`spoofing`], [`host_ports`],
//! [`masquerade`], [`firewall`]), which exists once a pod needs it: a node without host ports has
//! no hook for them on any packet's way. Chains and sets do not depend on the pods, so a pod costs
//! set and map elements, and coming and going reads nothing. Where that does not hold (the first
//! pod, another version of the program, a flushed table), the kernel refuses elements of a set
//! that is not there, and the whole program is written.
//!
//! Elements are keyed by what only one pod has: its link, its addresses, its ports of the node.

pub mod firewall;
pub mod host_ports;
pub mod masquerade;
pub mod spoofing;

mod part;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{Attachment, Family};

use crate::nft::language::{Name, Table, TableId};
use crate::nft::state::Command;
use crate::nft::{self, NftObserved, NftOp, NftProgram, TableProgram, Transaction};

pub use part::{Part, Parts};

/// All tables that may be at pods' edges.
pub fn tables() -> Vec<TableId> {
    [spoofing::tables(), host_ports::tables(), masquerade::tables(), firewall::tables()].concat()
}

/// The tables that shall be for all pods of the node. A table that is there stays while the node
/// has any pod, though none needs it now: the next pod finds it. Of two pods that claim one key
/// the first has it; see [`conflict`].
pub fn program(attachments: &[Attachment], observed: &NftObserved) -> NftProgram {
    let mut all = Parts::default();
    for attachment in attachments {
        all.merge(parts(attachment));
    }
    let mut tables = BTreeMap::new();
    for id in self::tables() {
        let part = all.0.remove(&id);
        if part.is_none() && (attachments.is_empty() || !observed.tables.contains_key(&id)) {
            continue;
        }
        let mut table = layout(&id);
        let Part { elements, chains } = part.unwrap_or_default();
        for (name, elements) in elements {
            if let Some(set) = table.sets.get_mut(&name) {
                set.elements.extend(elements);
            }
        }
        table.chains.extend(chains);
        tables.insert(id, TableProgram { table, ..TableProgram::default() });
    }
    NftProgram { tables }
}

/// The ops that make what is there right, in order.
pub fn diff(attachments: &[Attachment], observed: &NftObserved) -> Vec<NftOp> {
    nft::diff(&program(attachments, observed), observed)
}

/// What a pod adds, one transaction a table. The kernel refuses it when a table lacks a set or
/// chain (`ENOENT`), or another element has the key (`EEXIST`).
pub fn additions(attachment: &Attachment) -> Vec<Transaction> {
    let elements = parts(attachment).0.into_iter().map(|(table, part)| {
        let commands = part
            .elements
            .into_iter()
            .map(|(set, elements)| Command::AddElements(set, elements.into_iter().collect()));
        Transaction { table, commands: commands.collect() }
    });
    elements.filter(|transaction| !transaction.commands.is_empty()).collect()
}

/// What goes with a pod, one transaction a table.
pub fn removals(attachment: &Attachment) -> Vec<Transaction> {
    let elements = parts(attachment).0.into_iter().map(|(table, part)| {
        let commands = part
            .elements
            .into_iter()
            .map(|(set, elements)| Command::DeleteElements(set, elements.into_keys().collect()));
        Transaction { table, commands: commands.collect() }
    });
    elements.filter(|transaction| !transaction.commands.is_empty()).collect()
}

/// Why an attachment cannot be as it is, whatever else is there.
pub fn refusal(attachment: &Attachment) -> Option<String> {
    host_ports::refusal(attachment)
}

/// Which other attachment has a port of the node that this one wants, in words.
pub fn conflict(attachments: &[Attachment], wanted: &Attachment) -> Option<String> {
    host_ports::conflict(attachments, wanted)
}

/// What was wrong, in words, from the ops that [`diff`] answered: one line a set or chain.
pub fn damages(ops: &[NftOp]) -> Vec<String> {
    let mut damages = BTreeSet::new();
    for op in ops {
        let NftOp::Transaction(Transaction { table, commands }) = op else { continue };
        if commands.contains(&Command::DeleteTable) {
            let other = commands.contains(&Command::AddTable);
            let what = if other { "had another layout" } else { "was left without pods" };
            damages.insert(format!("table {table} {what}"));
            continue;
        }
        if commands.contains(&Command::AddTable) {
            damages.insert(format!("table {table} was missing"));
            continue;
        }
        let goes = |chain: &Name| commands.contains(&Command::DeleteChain(chain.clone()));
        let commands = commands.iter().filter(|command| match command {
            Command::FlushChain(chain) => !goes(chain),
            _ => true,
        });
        damages.extend(commands.map(|command| match command {
            Command::AddElements(set, elements) => {
                format!("set {set} of table {table} lacked {} elements", elements.len())
            }
            Command::DeleteElements(set, keys) => {
                format!("set {set} of table {table} had {} elements too many", keys.len())
            }
            Command::AddSet(set, _) => format!("set {set} of table {table} was missing"),
            Command::DeleteSet(set) => format!("set {set} of table {table} was unknown"),
            Command::DeleteChain(chain) => format!("chain {chain} of table {table} was unused"),
            Command::AddChain(chain, _)
            | Command::FlushChain(chain)
            | Command::AddRule(chain, _) => {
                format!("chain {chain} of table {table} had other rules")
            }
            Command::AddTable | Command::DeleteTable => format!("table {table} was another"),
        }));
    }
    damages.into_iter().collect()
}

/// What a pod needs in each table.
fn parts(attachment: &Attachment) -> Parts {
    let mut parts = Parts::default();
    spoofing::add(&mut parts, attachment);
    host_ports::add(&mut parts, attachment);
    masquerade::add(&mut parts, attachment);
    firewall::add(&mut parts, attachment);
    parts
}

/// A table without any pod.
fn layout(id: &TableId) -> Table {
    spoofing::layout(id)
        .or_else(|| host_ports::layout(id))
        .or_else(|| masquerade::layout(id))
        .or_else(|| firewall::layout(id))
        .unwrap_or_default()
}

/// The addresses of a pod in one family.
fn addresses(attachment: &Attachment, family: Family) -> impl Iterator<Item = IpNet> {
    let addresses = attachment.addresses.iter().copied();
    addresses.filter(move |address| Family::of(&address.addr()) == family)
}
