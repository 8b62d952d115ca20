//! What shall be, kept up to date Service by Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{Backends, Frontend, FrontendPlan, IpvsScheduler, Scheduling, ServicePlan};
use plan::{Desired, NodeFacts};

use super::{Scheduler, Server, ServerKey, ServerSettings, is_possible};

/// What shall be; empty unless IPVS is the backend of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsProgram {
    /// Whether there are the link and the parameters.
    pub is_on: bool,
    /// Addresses on the link.
    pub addresses: BTreeSet<IpAddr>,
    /// The virtual servers.
    pub servers: BTreeMap<ServerKey, Server>,
    /// Who asks for a place: the first of them has it, also where nftables refuses or translates.
    claims: BTreeMap<ServerKey, BTreeMap<Claim, Frontend>>,
}

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anywhere.
    Everything,
    /// At these servers and their addresses.
    Only(BTreeSet<ServerKey>),
}

/// In the order in which frontends win over each other (`plan::services`).
type Claim = (Rank, NamespacedName);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    ClusterIp,
    External,
    NodePort,
}

/// Says a plan in IPVS. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> IpvsProgram {
    let mut program = IpvsProgram { is_on: true, ..IpvsProgram::default() };
    for (name, plan) in &desired.services {
        program.claim(name, plan, config, facts);
    }
    let keys: Vec<ServerKey> = program.claims.keys().copied().collect();
    for key in keys {
        program.settle(key, desired);
    }
    program
}

/// Brings a program up to date with the plans of some Services, whose former plans `before` has.
/// All else that it depends on must be as it was. Answers where the program may have changed.
pub fn update(
    program: &mut IpvsProgram,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
) -> Touched {
    let mut touched = BTreeSet::new();
    for (name, former) in before {
        if let Some(former) = former {
            touched.extend(program.give_up(name, former, config, facts));
        }
        if let Some(plan) = desired.services.get(name) {
            touched.extend(program.claim(name, plan, config, facts));
        }
    }
    for key in &touched {
        program.settle(*key, desired);
    }
    Touched::Only(touched)
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self::Only(BTreeSet::new())
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Only(keys) if keys.is_empty())
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) => {}
            (_, Self::Everything) => *self = Self::Everything,
            (Self::Only(keys), Self::Only(others)) => keys.extend(others),
        }
    }
}

impl IpvsProgram {
    fn claim(
        &mut self,
        name: &NamespacedName,
        plan: &ServicePlan,
        config: &ClusterConfig,
        facts: &NodeFacts,
    ) -> Vec<ServerKey> {
        let places = places(plan, config, facts);
        for (key, frontend) in &places {
            let claim = (Rank::of(frontend), name.clone());
            self.claims.entry(*key).or_default().insert(claim, *frontend);
        }
        places.into_iter().map(|(key, _)| key).collect()
    }

    fn give_up(
        &mut self,
        name: &NamespacedName,
        plan: &ServicePlan,
        config: &ClusterConfig,
        facts: &NodeFacts,
    ) -> Vec<ServerKey> {
        let places = places(plan, config, facts);
        for (key, frontend) in &places {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.remove(&(Rank::of(frontend), name.clone()));
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
        }
        places.into_iter().map(|(key, _)| key).collect()
    }

    /// Gives a place to the first who asks for it.
    fn settle(&mut self, key: ServerKey, desired: &Desired) {
        let winner = self.claims.get(&key).and_then(BTreeMap::first_key_value);
        let server = winner.and_then(|((_, name), frontend)| {
            let plan = desired.services.get(name)?.frontends.get(frontend)?;
            server(frontend, plan)
        });
        match server {
            Some(server) => drop(self.servers.insert(key, server)),
            None => drop(self.servers.remove(&key)),
        }
        let address = key.address.ip();
        if self.is_cluster_ip(address) {
            self.addresses.insert(address);
        } else {
            self.addresses.remove(&address);
        }
    }

    /// Whether a Service has it for its ClusterIP; other addresses are the node's anyway. Also while
    /// nobody serves it, as with kube-proxy: a connected socket of the node has it for its own
    /// address, and would lose that. What has no server the tables of nftables refuse.
    fn is_cluster_ip(&self, address: IpAddr) -> bool {
        keys_at(&self.claims, address).any(|key| {
            let winner = self.claims.get(&key).and_then(BTreeMap::first_key_value);
            winner.is_some_and(|((rank, _), _)| *rank == Rank::ClusterIp)
        })
    }
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

/// The servers at an address.
pub(super) fn keys_at<T>(
    servers: &BTreeMap<ServerKey, T>,
    address: IpAddr,
) -> impl Iterator<Item = ServerKey> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    protocols.flat_map(move |protocol| {
        let at = |port| ServerKey { protocol, address: SocketAddr::new(address, port) };
        servers.range(at(0)..=at(u16::MAX)).map(|(key, _)| *key)
    })
}

/// Where the frontends of a Service stand, whoever chooses their endpoints.
fn places(
    plan: &ServicePlan,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Vec<(ServerKey, Frontend)> {
    let mut places = Vec::new();
    for frontend in plan.frontends.keys() {
        let protocol = frontend.protocol();
        let addresses = addresses_of(frontend, config, facts).into_iter();
        places.extend(addresses.map(|address| (ServerKey { protocol, address }, *frontend)));
    }
    places
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

/// `None` where nftables translates or refuses.
fn server(frontend: &Frontend, plan: &FrontendPlan) -> Option<Server> {
    let Backends::Endpoints(endpoints) = &plan.backends else { return None };
    if !is_possible(frontend, plan) {
        return None;
    }
    let weight = |endpoint: &SocketAddr| match &plan.scheduling {
        Scheduling::Weighted(weights) | Scheduling::Ipvs(_, weights) => {
            weights.get(endpoint).map_or(1, |&one| u32::from(one))
        }
        Scheduling::Random | Scheduling::LeastConnection | Scheduling::Maglev => 1,
    };
    let scheduler = match &plan.scheduling {
        Scheduling::Random => IpvsScheduler::RoundRobin,
        Scheduling::Weighted(_) => IpvsScheduler::WeightedRoundRobin,
        Scheduling::LeastConnection => IpvsScheduler::LeastConnection,
        Scheduling::Maglev => IpvsScheduler::Maglev,
        Scheduling::Ipvs(scheduler, _) => *scheduler,
    };
    let scheduler = Scheduler::Known(scheduler);
    let settings = ServerSettings { scheduler, affinity_timeout_s: plan.affinity_timeout_s };
    let destinations = endpoints.iter().map(|endpoint| (*endpoint, weight(endpoint))).collect();
    Some(Server { settings, destinations })
}
