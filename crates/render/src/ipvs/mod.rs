//! Services by IPVS: the kernel's own table of virtual servers, which knows how many connections
//! each endpoint has.
//!
//! ```text
//! nat hooks      nft: frontend ─▶ mark whose source is not kept ─▶ accept
//! then           IPVS: address, protocol, port ─▶ scheduler ─▶ endpoint
//! postrouting    nft: marked, or hairpin ─▶ masquerade
//! ```
//!
//! IPVS chooses where the whole of a frontend is one list of endpoints ([`is_possible`]):
//! ClusterIPs, whose addresses stand on a link of their own since IPVS sees only what is for the
//! node, and node ports, a server at each of the node's addresses. The nftables table beside it
//! ([`crate::nft::Role::BeforeIpvs`]) does what IPVS has no words for:
//!
//! - two views of one frontend (`externalTrafficPolicy: Local`): servers by firewall mark would need
//!   the whole mark for themselves, and with affinity they keep the packet's port;
//! - ranges of ports, for the same reason;
//! - external addresses: on a link of the node they would lead to all that listens on the node;
//! - refusals, sources and masquerade.
//!
//! An endpoint that goes gets weight 0 and is removed when its last connection is gone; for UDP, at
//! once, since a client that goes on sending would stay for ever. So does a server with its
//! endpoints, and its address with the last server: also when another backend takes over. Meanwhile
//! IPVS would refuse new clients, who at the node's own addresses are the node's
//! ([`IpvsObserved::needs_stand_in`]); who comes from the node itself to a ClusterIP is refused or
//! dropped by a chain of nftables that comes before IPVS.
//!
//! A client of UDP that keeps its port keeps its tracked flow, and a flow that IPVS did not see
//! begin it does not translate: neither one that was the node's own before nor, at the first
//! datagram, one to an endpoint that is gone. So these are forgotten ([`IpvsOp::ForgetFlows`]).

mod diff;
mod flows;
mod program;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Packet, Verdict};
use model::{ClusterConfig, NamespacedName, Protocol};
use plan::services::{Frontend, FrontendPlan, IpvsScheduler, Scheduling, ServicePlan};
use plan::{Finding, NodeFacts};

pub use diff::{diff, diff_touched, is_preparation};
pub use program::{IpvsProgram, Touched, render, update};
pub use state::{IpvsObserved, ObservedDestination, ObservedServer};

use crate::nft::{self, NftObserved, StaleFlows};
use crate::owned::IPVS_LINK;

/// Kernel parameters below `net/ipv4/vs`, by name.
///
/// - `conntrack`: translated flows are tracked, which masquerade needs.
/// - `expire_nodest_conn`: who is with an endpoint that is gone gets another one, or a reset.
/// - `expire_quiescent_template`: session affinity ends with its endpoint.
pub const PARAMETERS: [(&str, &str); 3] =
    [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")];

/// What clients send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Address and port.
    pub address: SocketAddr,
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How it chooses.
    pub settings: ServerSettings,
    /// The weight of each endpoint; never 0.
    pub destinations: BTreeMap<SocketAddr, u32>,
}

/// How a virtual server chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// The algorithm.
    pub scheduler: Scheduler,
    /// Seconds that a client stays with its endpoint.
    pub affinity_timeout_s: Option<u32>,
}

/// An algorithm of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheduler {
    /// One that Services may ask for.
    Known(IpvsScheduler),
    /// Another one, which somebody else chose.
    Other(String),
}

impl Scheduler {
    /// The kernel's name of it.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(scheduler) => scheduler.name(),
            Self::Other(name) => name,
        }
    }

    /// By the kernel's name.
    pub fn from_name(name: &str) -> Self {
        IpvsScheduler::from_name(name).map_or_else(|| Self::Other(name.into()), Self::Known)
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpvsOp {
    /// Makes the link of addresses, up.
    CreateLink,
    /// Removes it with its addresses.
    DeleteLink,
    /// Sets one of [`PARAMETERS`].
    SetParameter {
        /// Its name below `net/ipv4/vs`.
        name: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// Makes an address the node's.
    AddAddress(IpAddr),
    /// Undoes that.
    DeleteAddress(IpAddr),
    /// Adds a virtual server, still without endpoints.
    AddServer(ServerKey, ServerSettings),
    /// Changes how it chooses.
    ChangeServer(ServerKey, ServerSettings),
    /// No new connections for its endpoints; it goes when none of them has any.
    RetireServer(ServerKey),
    /// Adds an endpoint with its weight.
    AddDestination(ServerKey, SocketAddr, u32),
    /// Changes an endpoint's weight.
    ChangeDestination(ServerKey, SocketAddr, u32),
    /// No new connections for an endpoint; it goes when it has none.
    RetireDestination(ServerKey, SocketAddr),
    /// Forgets tracked flows of UDP that lead elsewhere than to the endpoints that their server has
    /// from now on.
    ForgetFlows(StaleFlows),
}

impl fmt::Display for IpvsOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink => write!(f, "create link {IPVS_LINK}"),
            Self::DeleteLink => write!(f, "delete link {IPVS_LINK}"),
            Self::SetParameter { name, value } => write!(f, "set parameter {name} to {value}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::AddServer(key, _) => write!(f, "add server {key}"),
            Self::ChangeServer(key, _) => write!(f, "change server {key}"),
            Self::RetireServer(key) => write!(f, "retire server {key}"),
            Self::AddDestination(key, to, _) => write!(f, "add endpoint {to} to {key}"),
            Self::ChangeDestination(key, to, _) => write!(f, "change endpoint {to} of {key}"),
            Self::RetireDestination(key, to) => write!(f, "retire endpoint {to} of {key}"),
            Self::ForgetFlows(stale) => {
                write!(f, "forget flows of {} virtual servers", stale.frontends.len())
            }
        }
    }
}

/// Whether IPVS can choose the endpoints of a frontend.
pub fn is_possible(frontend: &Frontend, plan: &FrontendPlan) -> bool {
    !matches!(frontend, Frontend::External { .. })
        && plan.outside.is_none()
        && plan.source_ranges.is_none()
}

/// What of a Service's wishes is lost where nftables does the choosing.
pub fn unsupported(service: &NamespacedName, plan: &ServicePlan) -> Vec<Finding> {
    let by_nft = plan.frontends.iter().filter(|(frontend, plan)| !is_possible(frontend, plan));
    let mut by_nft = by_nft.map(|(_, plan)| plan).chain(plan.ranges.values());
    let asked = by_nft.find_map(|plan| match &plan.scheduling {
        Scheduling::LeastConnection => Some("least-connection"),
        Scheduling::Maglev => Some("maglev"),
        Scheduling::Ipvs(scheduler, _) => Some(scheduler.name()),
        Scheduling::Random | Scheduling::Weighted(_) => None,
    });
    let finding = |asked| Finding {
        about: format!("Service {service}"),
        message: format!(
            "scheduling {asked} holds with the service backend ipvs only at ClusterIPs and node \
             ports without externalTrafficPolicy: Local and port ranges: elsewhere endpoints are \
             chosen at random; choose another --service-backend, or take the annotation away"
        ),
    };
    asked.map(finding).into_iter().collect()
}

/// What becomes of a flow's first packet at this node, with the nftables table beside.
///
/// # Errors
/// When the rules cannot be followed, or chance decides between passing and not.
pub fn trace(
    observed: &IpvsObserved,
    beside: &NftObserved,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<Verdict, nft::TraceError> {
    let willing = |server: &ObservedServer| {
        let destinations = server.destinations.iter();
        destinations.filter(|(_, one)| one.weight > 0).map(|(endpoint, _)| *endpoint).collect()
    };
    let servers = observed.servers.iter();
    let destinations = servers.map(|(key, server)| ((key.protocol, key.address), willing(server)));
    let balancer = nft::Balancer {
        addresses: observed.link.clone().unwrap_or_default(),
        destinations: destinations.collect(),
    };
    nft::trace_through(beside, &balancer, packet, config, facts)
}
