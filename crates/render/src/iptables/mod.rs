//! Services in iptables, for machines whose tools and people know nothing newer.
//!
//! - [`language`]: chains, rules, matches and targets as values.
//! - [`text`]: rules as `iptables-save` prints them and `iptables-restore` reads them.
//! - [`layout`]: which chains there are, and why; what a Service adds to them.
//! - [`IptablesProgram`]: the tables that shall be, kept up to date Service by Service.
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
mod program;
mod tree;

pub use diff::{diff, diff_touched};
pub use program::{IptablesProgram, Places, Touched, TouchedTables, render, update};
pub use state::{Command, IptablesObserved, Transaction};
pub use trace::{TraceError, trace};

use crate::nft::StaleFlows;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IptablesOp {
    /// Commands on one table that take effect together or not at all.
    Transaction(Transaction),
    /// Forgets tracked UDP flows that lead to endpoints which are no longer there.
    ForgetFlows(StaleFlows),
}
