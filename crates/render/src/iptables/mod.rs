//! Services in iptables, for machines whose tools and people know nothing newer.
//!
//! - [`language`]: chains, rules, matches and targets as values.
//! - [`text`]: rules as `iptables-save` prints them and `iptables-restore` reads them.
//! - [`layout`]: which chains there are, and why.
//! - [`diff()`]: from what is there to what shall be, chain by chain.
//! - [`state`]: what the kernel holds, and what the programs refuse.
//! - [`flows`]: which tracked UDP flows go with a change.
//! - [`mod@trace`]: what becomes of a packet under the rules.

pub mod flows;
pub mod language;
pub mod layout;
pub mod state;
pub mod text;
pub mod trace;

mod diff;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use model::{ClusterConfig, Family};
use plan::{Desired, NodeFacts};

pub use diff::diff;
pub use state::{Command, IptablesObserved, Transaction};
pub use trace::{TraceError, trace};

use crate::nft::StaleFlows;
use language::{Table, TableId};

/// What shall be: a nat and a filter table in each family that the cluster uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IptablesProgram {
    /// By family and name. Without any, all that is ours goes.
    pub tables: BTreeMap<TableId, Table>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IptablesOp {
    /// Commands on one table that take effect together or not at all.
    Transaction(Transaction),
    /// Forgets tracked UDP flows that lead to endpoints which are no longer there.
    ForgetFlows(StaleFlows),
}

/// Says a plan in iptables. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> IptablesProgram {
    let ranges = [&config.pod_cidrs, &config.service_cidrs, &config.node_cidrs];
    let families: BTreeSet<Family> =
        ranges.into_iter().flatten().map(|range| Family::of(&range.addr())).collect();
    let tables = families
        .into_iter()
        .flat_map(|family| layout::tables(family, desired, config, facts))
        .collect();
    IptablesProgram { tables }
}
