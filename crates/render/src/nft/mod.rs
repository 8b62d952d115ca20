//! Services, masquerade and the guards of the node in nftables.
//!
//! - [`language`]: tables, chains, rules, sets as values.
//! - [`layout`]: what our table looks like, and why.
//! - [`diff()`]: from what is there to what shall be; slots are chosen here (invariant 1).
//! - [`state`]: what the kernel holds, and what it refuses.
//! - [`text`]: rules as people read them.
//! - [`tunnel`]: who may send through the tunnel.
//! - [`mod@trace`]: what becomes of a packet under the rules.

pub mod language;
pub mod layout;
pub mod state;
pub mod text;
pub mod trace;
pub mod tunnel;

mod diff;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{ClusterConfig, Family};
use plan::{Desired, NodeFacts};

pub use diff::diff;
pub use state::{Command, NftObserved, Transaction};
pub use trace::{TraceError, trace};

use language::{Name, Table, TableId, Tuple};

/// What shall be: of the Services, a table in each family that the cluster uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftProgram {
    /// By family and name.
    pub tables: BTreeMap<TableId, TableProgram>,
}

/// One table but for the choice of slots, which depends on what is there (invariant 1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableProgram {
    /// Chains, sets and their elements; the maps of endpoints are still empty.
    pub table: Table,
    /// For each map of endpoints, the endpoints of each frontend.
    pub endpoints: BTreeMap<Name, BTreeMap<Tuple, BTreeSet<SocketAddr>>>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftOp {
    /// Commands on one of our tables that take effect together or not at all.
    Transaction(Transaction),
    /// Forgets tracked UDP flows that lead to endpoints which are no longer there. A UDP client
    /// with a fixed source port would otherwise stay on a dead endpoint, since each datagram
    /// renews the entry.
    ForgetFlows(StaleFlows),
}

/// Tracked UDP flows to forget: those to one of `frontends` that lead elsewhere than its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// The family of all addresses here.
    pub family: Family,
    /// What clients send to (each address of a node port stands for itself), and where a flow may
    /// lead.
    pub frontends: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
}

/// Says a plan in nftables. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> NftProgram {
    let ranges = [&config.pod_cidrs, &config.service_cidrs, &config.node_cidrs];
    let families: BTreeSet<Family> =
        ranges.into_iter().flatten().map(|range| Family::of(&range.addr())).collect();
    let tables = families
        .into_iter()
        .map(|family| (TableId::services(family), layout::table(family, desired, config, facts)))
        .collect();
    NftProgram { tables }
}
