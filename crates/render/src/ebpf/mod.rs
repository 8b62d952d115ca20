//! Services in the maps of the eBPF programs (`bpf/services.h`).
//!
//! - [`EbpfProgram`]: what each frontend shall do, without numbers.
//! - [`diff()`]: from what is there to what shall be; ids and slots are chosen here (invariant 1).
//! - [`node`]: when maps and programs come and go.
//! - [`state`]: what the maps hold, and what they refuse.
//! - [`packed`]: how entries are kept here.
//! - [`mod@trace`]: what becomes of a packet by the maps.
//!
//! What is no Service (tunnel guards, masquerade to the outside, unknown addresses of the Service
//! ranges, echo requests) stays with the nftables table, and so does SCTP, and what of the node's
//! own source ranges judge by its source ([`crate::nft::Role::BesideEbpf`]).

pub mod node;
pub mod packed;
pub mod state;
pub mod trace;

mod diff;
mod maglev;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ebpf_abi::address_bytes;
use ebpf_abi::services::{
    DIRECT_NODE, DIRECT_PODS, RANGE_PORT_BITS, RangeKey, SCOPE_ADDRESS, SCOPE_NODE_PORT, ServiceKey,
};
use ipnet::IpNet;
use model::packed::Unsorted;
use model::{ClusterConfig, Family, FlatMap, PackedMap, Protocol};
use plan::services::{Backends, Frontend, FrontendPlan, RangeScope, Scheduling, ServicePlan};
use plan::{Desired, NodeFacts};

pub use diff::{diff, diff_frontends};
pub use node::{
    NodeObserved, NodeOp, NodeProgram, Touched, diff_node, diff_node_touched, render_node,
    update_node,
};
pub use state::{Change, EbpfObserved, EbpfOp, ServiceSource, Sizes};
pub use trace::{decide, trace, trace_beside};

/// What the maps shall say, but for ids and slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EbpfProgram {
    /// What each frontend does.
    pub frontends: PackedMap<FrontendKey, FrontendProgram>,
    /// The addresses of the node at which node ports answer.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The ranges of this node's pods.
    pub own_pods: BTreeSet<IpNet>,
    /// The cluster's pods and nodes, and which of them are part of direct server return.
    pub direct_hosts: BTreeMap<IpNet, u32>,
}

/// What clients connect to, in the words of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKey {
    /// One port.
    Port(ServiceKey),
    /// Ports in a row, at one address.
    Range {
        /// The address.
        address: IpAddr,
        /// The transport protocol.
        protocol: Protocol,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
}

/// What one frontend does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendProgram {
    /// For every client that `outside` does not name.
    pub inside: View,
    /// For clients outside the cluster, whose source is kept.
    pub outside: Option<View>,
    /// Whether `inside` masquerades pods of this node too.
    pub masquerade: bool,
    /// Whether endpoints answer clients outside of the cluster past this node, where they can.
    pub direct: bool,
    /// Seconds that a client stays with its endpoint.
    pub affinity_timeout_s: Option<u32>,
    /// The only clients that may come.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// Whether the node itself is one of them.
    pub is_node_allowed: bool,
    /// Whether a client gets its endpoint by a consistent hash of its address.
    pub maglev: bool,
    /// Whether flows ask later if their endpoint still is one.
    pub has_members: bool,
}

/// What some clients of a frontend get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// One of these, by weight.
    Endpoints(FlatMap<SocketAddr, u16>),
    /// A refusal.
    Reject,
    /// Silence.
    Drop,
}

/// Says a plan in the words of the maps. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> EbpfProgram {
    let mut frontends = Unsorted::default();
    // Of two Services that claim the same frontend, which the API server prevents, the first by
    // name has it, and of equal keys the last one counts.
    for service in desired.services.values().rev() {
        for (key, frontend) in render_service(service, config, facts) {
            frontends.push(&key, &frontend);
        }
    }
    let own_pods = desired.network.iter().flat_map(|network| network.pod_ranges.iter().copied());
    let has_node_ports = |address: &&IpAddr| config.has_node_ports_at(**address);
    EbpfProgram {
        frontends: frontends.into_map(),
        node_addresses: facts.addresses.iter().filter(has_node_ports).copied().collect(),
        own_pods: own_pods.collect(),
        direct_hosts: direct_hosts(desired, config),
    }
}

/// The cluster's pods and nodes. All nodes but this one take part; of its own pods it knows
/// already. What is believed of a node comes from the address that its packets to pods of others
/// have where they are masqueraded: of the tunnels' links, or its own.
fn direct_hosts(desired: &Desired, config: &ClusterConfig) -> BTreeMap<IpNet, u32> {
    let mut hosts: BTreeMap<IpNet, u32> =
        config.pod_cidrs.iter().map(|range| (range.trunc(), 0)).collect();
    for peer in desired.network.iter().flat_map(|network| network.peers.values()) {
        for range in &peer.pod_ranges {
            hosts.insert(range.trunc(), DIRECT_PODS);
            hosts.insert(range.network().into(), DIRECT_NODE);
        }
        hosts.extend(peer.addresses.iter().map(|&address| (address.into(), DIRECT_NODE)));
    }
    hosts
}

/// What one Service contributes.
pub fn render_service(
    service: &ServicePlan,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> BTreeMap<FrontendKey, FrontendProgram> {
    // The kernel takes the first address of the uplink for what the node itself sends there.
    let node_address = |family| facts.addresses.iter().find(|one| Family::of(one) == family);
    let render = |plan: &FrontendPlan, is_cluster_ip, family, protocol| {
        let everybody = if is_cluster_ip { config.masquerade_all } else { plan.outside.is_none() };
        FrontendProgram {
            inside: View::new(&plan.backends, &plan.scheduling),
            outside: plan.outside.as_ref().map(|backends| View::new(backends, &plan.scheduling)),
            masquerade: everybody,
            direct: plan.direct,
            affinity_timeout_s: plan.affinity_timeout_s,
            is_node_allowed: plan.source_ranges.as_ref().is_none_or(|ranges| {
                let is_in = |address| ranges.iter().any(|range| range.contains(address));
                node_address(family).is_some_and(is_in)
            }),
            source_ranges: plan.source_ranges.clone(),
            maglev: plan.scheduling == Scheduling::Maglev,
            has_members: plan.affinity_timeout_s.is_some() || protocol == Protocol::Udp,
        }
    };
    let ports = service.frontends.iter();
    let ports = ports.filter(|(frontend, _)| frontend.protocol() != Protocol::Sctp);
    let ports = ports.map(|(frontend, plan)| {
        let is_cluster_ip = matches!(frontend, Frontend::ClusterIp { .. });
        let program = render(plan, is_cluster_ip, frontend.family(), frontend.protocol());
        (FrontendKey::Port(service_key(frontend)), program)
    });
    let ranges = service.ranges.iter().filter(|(range, _)| range.protocol != Protocol::Sctp);
    let ranges = ranges.map(|(range, plan)| {
        let is_cluster_ip = range.scope == RangeScope::ClusterIp;
        let program = render(plan, is_cluster_ip, Family::of(&range.address), range.protocol);
        let key = FrontendKey::Range {
            address: range.address,
            protocol: range.protocol,
            first: range.first,
            last: range.last,
        };
        (key, program)
    });
    ports.chain(ranges).collect()
}

impl View {
    fn new(backends: &Backends, scheduling: &Scheduling) -> Self {
        let endpoints = match backends {
            Backends::Endpoints(endpoints) => endpoints,
            Backends::Reject => return Self::Reject,
            Backends::Drop => return Self::Drop,
        };
        let weight = |endpoint: &SocketAddr| match scheduling {
            Scheduling::Weighted(weights) => weights.get(endpoint).copied().unwrap_or(1),
            _ => 1,
        };
        Self::Endpoints(endpoints.iter().map(|endpoint| (*endpoint, weight(endpoint))).collect())
    }

    /// How many endpoints there are to choose from.
    pub fn count(&self) -> usize {
        match self {
            Self::Endpoints(endpoints) => endpoints.len(),
            Self::Reject | Self::Drop => 0,
        }
    }
}

impl FrontendKey {
    /// The keys that stand for a range: as few prefixes as cover exactly its ports.
    pub fn range_keys(&self) -> Vec<RangeKey> {
        let Self::Range { address, protocol, first, last } = self else { return vec![] };
        let (mut next, end) = (u32::from(*first), u32::from(*last) + 1);
        let mut keys = Vec::new();
        while next < end {
            // The largest block that begins here and does not go beyond the end.
            let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
            let bits = (0..=aligned).rev().find(|bits| next + (1 << bits) <= end).unwrap_or(0);
            keys.push(RangeKey {
                prefix_bits: RANGE_PORT_BITS + 16 - bits,
                address: address_bytes(*address),
                protocol: protocol.number(),
                zero: 0,
                port: u16::try_from(next).unwrap_or(u16::MAX),
            });
            next += 1 << bits;
        }
        keys
    }
}

fn service_key(frontend: &Frontend) -> ServiceKey {
    let (address, port, scope) = match *frontend {
        Frontend::ClusterIp { address, port, .. } | Frontend::External { address, port, .. } => {
            (address, port, SCOPE_ADDRESS)
        }
        Frontend::NodePort { family, port, .. } => (unspecified(family), port, SCOPE_NODE_PORT),
    };
    let protocol = frontend.protocol().number();
    ServiceKey { address: address_bytes(address), port, protocol, scope }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}
