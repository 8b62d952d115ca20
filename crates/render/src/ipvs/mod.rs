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
//! once, since a client that goes on sending would stay for ever.

mod diff;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Packet, Verdict};
use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{Backends, Frontend, FrontendPlan, Scheduling, ServicePlan};
use plan::{Desired, Finding, NodeFacts};

pub use diff::diff;
pub use state::{IpvsObserved, ObservedDestination, ObservedServer};

use crate::nft::{self, NftObserved};

/// Kernel parameters below `net/ipv4/vs`, by name.
///
/// - `conntrack`: translated flows are tracked, which masquerade needs.
/// - `expire_nodest_conn`: who is with an endpoint that is gone gets another one, or a reset.
/// - `expire_quiescent_template`: session affinity ends with its endpoint.
pub const PARAMETERS: [(&str, &str); 3] =
    [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")];

/// What shall be; empty unless IPVS is the backend of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsProgram {
    /// Whether there are the link and the parameters.
    pub is_on: bool,
    /// Addresses on the link.
    pub addresses: BTreeSet<IpAddr>,
    /// The virtual servers.
    pub servers: BTreeMap<ServerKey, Server>,
}

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
    /// One after the other.
    RoundRobin,
    /// The same, as often as the weight says.
    WeightedRoundRobin,
    /// The endpoint with the fewest connections.
    LeastConnection,
    /// Consistent hash of the client's address.
    Maglev,
    /// Another one, which somebody else chose.
    Other(String),
}

impl Scheduler {
    /// The kernel's name of it.
    pub fn name(&self) -> &str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnection => "lc",
            Self::Maglev => "mh",
            Self::Other(name) => name,
        }
    }

    /// By the kernel's name.
    pub fn from_name(name: &str) -> Self {
        let ours =
            [Self::RoundRobin, Self::WeightedRoundRobin, Self::LeastConnection, Self::Maglev];
        let found = ours.into_iter().find(|scheduler| scheduler.name() == name);
        found.unwrap_or_else(|| Self::Other(name.into()))
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
    /// Removes it with its endpoints.
    DeleteServer(ServerKey),
    /// Adds an endpoint with its weight.
    AddDestination(ServerKey, SocketAddr, u32),
    /// Changes an endpoint's weight.
    ChangeDestination(ServerKey, SocketAddr, u32),
    /// No new connections for an endpoint; it goes when it has none.
    RetireDestination(ServerKey, SocketAddr),
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
    let asked = by_nft.find_map(|plan| match plan.scheduling {
        Scheduling::LeastConnection => Some("least-connection"),
        Scheduling::Maglev => Some("maglev"),
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

/// Says a plan in IPVS. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> IpvsProgram {
    let mut program = IpvsProgram { is_on: true, ..IpvsProgram::default() };
    let mut claimed = BTreeSet::new();
    // The order in which frontends win over each other (`plan::services`).
    for rank in [Rank::ClusterIp, Rank::External, Rank::NodePort] {
        for service in desired.services.values() {
            for (frontend, plan) in &service.frontends {
                if Rank::of(frontend) == rank {
                    program.add_frontend(frontend, plan, config, facts, &mut claimed);
                }
            }
        }
    }
    program
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    ClusterIp,
    External,
    NodePort,
}

impl Rank {
    fn of(frontend: &Frontend) -> Self {
        match frontend {
            Frontend::ClusterIp { .. } => Self::ClusterIp,
            Frontend::External { .. } => Self::External,
            Frontend::NodePort { .. } => Self::NodePort,
        }
    }
}

impl IpvsProgram {
    /// A frontend that another Service claimed before is left out, and one that nftables refuses or
    /// translates claims its place all the same.
    fn add_frontend(
        &mut self,
        frontend: &Frontend,
        plan: &FrontendPlan,
        config: &ClusterConfig,
        facts: &NodeFacts,
        claimed: &mut BTreeSet<ServerKey>,
    ) {
        let protocol = frontend.protocol();
        for address in addresses_of(frontend, config, facts) {
            let key = ServerKey { protocol, address };
            if !claimed.insert(key) || !is_possible(frontend, plan) {
                continue;
            }
            let Backends::Endpoints(endpoints) = &plan.backends else { continue };
            self.servers.insert(key, server(endpoints, plan));
            if Rank::of(frontend) == Rank::ClusterIp {
                self.addresses.insert(address.ip());
            }
        }
    }
}

fn addresses_of(frontend: &Frontend, config: &ClusterConfig, facts: &NodeFacts) -> Vec<SocketAddr> {
    match *frontend {
        Frontend::ClusterIp { address, port, .. } | Frontend::External { address, port, .. } => {
            vec![SocketAddr::new(address, port)]
        }
        Frontend::NodePort { family, port, .. } => {
            let own = facts.addresses.iter().copied();
            own.filter(|one| Family::of(one) == family && config.has_node_ports_at(*one))
                .map(|address| SocketAddr::new(address, port))
                .collect()
        }
    }
}

fn server(endpoints: &BTreeSet<SocketAddr>, plan: &FrontendPlan) -> Server {
    let weight = |endpoint: &SocketAddr| match &plan.scheduling {
        Scheduling::Weighted(weights) => weights.get(endpoint).map_or(1, |&one| u32::from(one)),
        Scheduling::Random | Scheduling::LeastConnection | Scheduling::Maglev => 1,
    };
    let scheduler = match &plan.scheduling {
        Scheduling::Random => Scheduler::RoundRobin,
        Scheduling::Weighted(_) => Scheduler::WeightedRoundRobin,
        Scheduling::LeastConnection => Scheduler::LeastConnection,
        Scheduling::Maglev => Scheduler::Maglev,
    };
    let settings = ServerSettings { scheduler, affinity_timeout_s: plan.affinity_timeout_s };
    let destinations = endpoints.iter().map(|endpoint| (*endpoint, weight(endpoint))).collect();
    Server { settings, destinations }
}
