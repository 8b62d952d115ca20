//! Services, masquerade and the guards of the node in nftables.
//!
//! - [`language`]: tables, chains, rules, sets as values.
//! - [`layout`]: what our table looks like, and why; [`fragment`]: what a Service adds to it.
//! - [`program`]: the table that shall be, kept up to date Service by Service.
//! - [`diff()`]: from what is there to what shall be; slots are chosen here (invariant 1).
//! - [`packed`]: elements of sets as bytes.
//! - `flows`: which tracked flows go with a change.
//! - [`state`]: what the kernel holds, and what it refuses.
//! - [`text`]: rules as people read them.
//! - [`tunnel`]: who may send through the tunnel.
//! - [`mod@trace`]: what becomes of a packet under the rules.

pub mod fragment;
pub mod language;
pub mod layout;
pub mod packed;
pub mod program;
pub mod state;
pub mod text;
pub mod trace;
pub mod tunnel;

mod diff;
mod flows;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, PackedMap, Protocol};
use plan::services::FrontendPlan;
use plan::{Desired, NodeFacts};

pub use diff::{diff, diff_touched};
pub use program::{Touched, update};
pub use slots::Shares;
pub(crate) use slots::elements_of;
pub use state::{Command, NftObserved, Transaction};
pub use trace::{Balancer, TraceError, trace, trace_marked, trace_through};

use language::{Name, Table, TableId, Tuple};
use layout::Layout;
use program::Shared;

/// Whether these rules implement Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// They do.
    #[default]
    Backend,
    /// Chains of iptables do. Here remain the guards, masquerade to the outside, pings of
    /// ClusterIPs, refusals (of all that the plan refuses, and of service addresses that nobody
    /// has), and the chains that keep established flows translated.
    Beside,
    /// As [`Role::Backend`], but where IPVS can choose the endpoint ([`crate::ipvs::is_possible`])
    /// it does: the rules only mark whose source is not kept, and let pass.
    BeforeIpvs,
    /// As [`Role::Backend`] for SCTP and for frontends with source ranges, and as [`Role::Beside`]
    /// for all else. eBPF can neither change a port under SCTP's checksum (RFC 9260, section 6.8)
    /// nor see the node's own associations. Whether source ranges let the node's own sockets in
    /// shows in most cases only in their packets, which come here; those of others it has
    /// translated or dropped before.
    BesideEbpf,
}

impl Role {
    /// Whether frontends are looked up in the nat hooks.
    fn translates(self) -> bool {
        self != Self::Beside
    }

    /// Whether another backend alone leads clients of a frontend to its endpoints.
    fn leaves_to_another(self, protocol: u8, plan: &FrontendPlan) -> bool {
        match self {
            Self::Backend | Self::BeforeIpvs => false,
            Self::Beside => true,
            Self::BesideEbpf => protocol != Protocol::Sctp.number() && plan.source_ranges.is_none(),
        }
    }
}

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
    pub endpoints: BTreeMap<Name, PackedMap<Tuple, Shares>>,
    /// How many times Services add what they share.
    pub(crate) shared: Shared,
    /// Frontends that several Services claim: the first by name has each.
    pub(crate) contested: BTreeSet<(&'static str, Tuple)>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftOp {
    /// Commands on one of our tables that take effect together or not at all.
    Transaction(Transaction),
    /// Forgets tracked flows that lead to what is no longer there. A UDP client with a fixed source
    /// port would otherwise stay on a dead endpoint, since each datagram renews the entry.
    ForgetFlows(StaleFlows),
}

/// Tracked flows to forget: UDP to one of `frontends` that leads elsewhere than its endpoints, and
/// pings that shall not be answered any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// The family of all addresses here.
    pub family: Family,
    /// What clients send to (each address of a node port stands for itself), and where a flow may
    /// lead.
    pub frontends: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    /// The same for ranges of ports, first to last, which a flow keeps.
    pub ranges: BTreeMap<(IpAddr, u16, u16), BTreeSet<IpAddr>>,
    /// Where addresses are Services' alone: what is sent to another one of them than those above
    /// leads nowhere. Of no change, but of a look at all flows.
    pub networks: Vec<IpNet>,
    /// ClusterIPs that have ceased to answer an ICMP echo; each further one would renew the flow.
    pub pings: BTreeSet<IpAddr>,
}

impl StaleFlows {
    /// None.
    pub fn none(family: Family) -> Self {
        Self {
            family,
            frontends: BTreeMap::new(),
            ranges: BTreeMap::new(),
            networks: Vec::new(),
            pings: BTreeSet::new(),
        }
    }

    /// Whether there is nothing to forget.
    pub fn is_none(&self) -> bool {
        self.frontends.is_empty()
            && self.ranges.is_empty()
            && self.networks.is_empty()
            && self.pings.is_empty()
    }
}

/// Says a plan in nftables, Services included. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> NftProgram {
    render_as(Role::Backend, desired, config, facts)
}

/// Says a plan in nftables. A pure function of its arguments.
pub fn render_as(
    role: Role,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> NftProgram {
    let ranges = [&config.pod_cidrs, &config.service_cidrs, &config.node_cidrs];
    let families: BTreeSet<Family> =
        ranges.into_iter().flatten().map(|range| Family::of(&range.addr())).collect();
    let table = |family| {
        let layout = Layout::new(family, role, desired, config, facts);
        let mut table = layout.base();
        program::add_services(&layout, &mut table, desired);
        table
    };
    let tables = families.into_iter().map(|family| (TableId::services(family), table(family)));
    NftProgram { tables: tables.collect() }
}
