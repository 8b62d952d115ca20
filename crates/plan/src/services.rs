//! Frontends and endpoints of one Service at one node.
//!
//! Which endpoints a client may get depends on where the client is and on two policies. *External*
//! are node ports and the addresses of load balancers and `externalIPs`:
//!
//! | frontend | client | endpoints | source |
//! |---|---|---|---|
//! | ClusterIP | any | by `internalTrafficPolicy` | kept for pods of this node, else masqueraded |
//! | external, `externalTrafficPolicy: Cluster` | any | all | masqueraded, unless [`FrontendPlan::direct`] |
//! | external, `externalTrafficPolicy: Local` | outside the cluster | on this node | kept |
//! | external, `externalTrafficPolicy: Local` | pod of this node, the node itself | all | kept for pods of this node, else masqueraded |
//!
//! [`ClusterConfig::masquerade_all`] changes the first row to masquerading for all.
//!
//! In each row ready endpoints count; where there is none, those that still serve while they
//! terminate (KEP-1669). "All" means those nearby where hints say so. Endpoints that do not answer
//! this node ([`model::Unreachable`]) count as absent where others are left; without any other
//! they stay, since this node may be wrong about all of them. Without any endpoint in the
//! cluster the frontend refuses; when a Local policy hides the ones that exist, it drops, since
//! another node may answer.
//!
//! One packet may fit several frontends. Then ClusterIPs come first, single ports of external
//! addresses next, ranges of ports of external addresses next, node ports last; among Services the
//! first by name.

mod annotations;
mod endpoints;
mod external;
mod ipvs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::kinds::{
    PORT_RANGES_ANNOTATION, SCHEDULING_ANNOTATION, ServicePort, ServiceType, TrafficPolicy,
    WEIGHTS_ANNOTATION,
};
use model::{
    ClusterConfig, EndpointSlice, Family, FlatMap, FlatSet, NamespacedName, Protocol, Service,
    World,
};

pub use annotations::{PORT_RANGES_MAX, WEIGHTS_MAX};
pub use ipvs::IpvsScheduler;

use crate::{Finding, NodeFacts};
use annotations::{PortRanges, Weights};
use endpoints::{Candidates, Endpoints, Viewer};
use external::ExternalAddresses;

/// A Service or slice with this label is another proxy's (KEP-2447).
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service or slice with this label is not for proxies.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What one Service shall be at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// What clients connect to, and what answers there. Never empty in a plan.
    pub frontends: FlatMap<Frontend, FrontendPlan>,
    /// Ranges of ports besides, disjoint from each other and from the ports that `frontends` has
    /// at the same address and protocol: the order of look-ups does not matter. Endpoints have
    /// port 0 here: the packet keeps its port.
    pub ranges: FlatMap<RangeFrontend, FrontendPlan>,
    /// Addresses of the Service's endpoints on this node, ready or not: a connection from one of
    /// them that comes back to itself needs masquerading (hairpin).
    pub local_addresses: BTreeSet<IpAddr>,
    /// The ClusterIPs that answer an ICMP echo now: by configuration, while there is a ready
    /// endpoint of their family.
    pub answers_ping: BTreeSet<IpAddr>,
    /// What external load balancers ask, to choose nodes that have endpoints.
    pub health_check: Option<HealthCheck>,
}

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// An address of the Service.
    ClusterIp {
        /// The address.
        address: IpAddr,
        /// The transport protocol.
        protocol: Protocol,
        /// The Service's port.
        port: u16,
    },
    /// An address that leads to the cluster from outside: of a load balancer
    /// (`status.loadBalancer.ingress` with `ipMode: VIP`), or one of `externalIPs`. It may be an
    /// address of the node itself, and wins over node ports there.
    External {
        /// The address.
        address: IpAddr,
        /// The transport protocol.
        protocol: Protocol,
        /// The Service's port.
        port: u16,
    },
    /// A port of every address of the node at which node ports are open
    /// ([`ClusterConfig::has_node_ports_at`]).
    NodePort {
        /// The family of the node's addresses.
        family: Family,
        /// The transport protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
    },
}

impl Frontend {
    /// The family of the addresses on both sides.
    pub fn family(&self) -> Family {
        match self {
            Self::ClusterIp { address, .. } | Self::External { address, .. } => Family::of(address),
            Self::NodePort { family, .. } => *family,
        }
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::ClusterIp { protocol, .. }
            | Self::External { protocol, .. }
            | Self::NodePort { protocol, .. } => *protocol,
        }
    }
}

/// Many ports of one address, which the endpoints see unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeFrontend {
    /// Whose address it is, and so whose row of the policies counts.
    pub scope: RangeScope,
    /// The address.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port, itself included; not below `first`.
    pub last: u16,
}

/// At which kind of address ports are ranged; nodes have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeScope {
    /// As at [`Frontend::ClusterIp`].
    ClusterIp,
    /// As at [`Frontend::External`].
    External,
}

/// What answers at a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendPlan {
    /// The Service port's name; empty when the only port has none.
    pub port_name: String,
    /// What clients get: every client of a ClusterIP; elsewhere those that `outside` does not
    /// name.
    pub backends: Backends,
    /// What clients outside the cluster get at a node port or an external address under
    /// `externalTrafficPolicy: Local`. Their source is kept, and a pod's too. `None` under
    /// Cluster, and for ClusterIPs.
    pub outside: Option<Backends>,
    /// Whether clients outside the cluster keep their source towards pods, also of other nodes,
    /// which answer them past this node ([`ClusterConfig::load_balancer_mode`]). Only under
    /// `externalTrafficPolicy: Cluster`.
    pub direct: bool,
    /// Seconds that a client stays with its endpoint (`sessionAffinity: ClientIP`).
    pub affinity_timeout_s: Option<u32>,
    /// Clients elsewhere are dropped, whatever the backends are, pods and the node itself
    /// included. Only at external addresses; `None` lets everybody in, an empty set nobody.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// Which of the endpoints a new client gets.
    pub scheduling: Scheduling,
}

impl FrontendPlan {
    /// The plan of a port without a name, a policy or a preference.
    pub fn new(backends: Backends) -> Self {
        Self {
            port_name: String::new(),
            backends,
            outside: None,
            direct: false,
            affinity_timeout_s: None,
            source_ranges: None,
            scheduling: Scheduling::Random,
        }
    }
}

/// What becomes of a new connection at a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// One of these, by [`Scheduling`]. Never empty.
    Endpoints(FlatSet<SocketAddr>),
    /// Refused: the Service has no endpoint anywhere.
    Reject,
    /// Lost: a Local policy and no endpoint on this node, while other nodes have some.
    Drop,
}

/// How one endpoint is chosen among the possible ones. A backend that cannot do one says so and
/// chooses at random.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// Each with the same chance.
    #[default]
    Random,
    /// Each with a chance in proportion to its weight. Every endpoint of the frontend stands here,
    /// and no weight is 0.
    Weighted(BTreeMap<SocketAddr, u16>),
    /// The one with the fewest open connections.
    LeastConnection,
    /// By a consistent hash of the client's address (Eisenbud et al., NSDI 2016): all nodes send a
    /// client to the same endpoint, and few clients move when endpoints change.
    Maglev,
    /// By an algorithm that IPVS alone has, with weights where they differ.
    Ipvs(IpvsScheduler, BTreeMap<SocketAddr, u16>),
}

/// The answer to the health checks of a load balancer (`spec.healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of the node that answers.
    pub port: u16,
    /// The ready endpoints on this node; 0 answers 503, also while terminating ones still serve.
    pub local_endpoints: usize,
}

/// Plans one Service at one node. `None` when it needs nothing in the kernel: absent, headless,
/// ExternalName, not yet allocated, or another proxy's.
pub fn plan(
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
    service: &NamespacedName,
) -> (Option<ServicePlan>, Vec<Finding>) {
    let slices: Vec<EndpointSlice> = world.slices_of(service).collect();
    let Some(service) = world.service(service).filter(is_ours) else { return (None, vec![]) };
    let service = &service;
    let mut findings = Findings::default();
    let wishes = Wishes::read(service, &mut findings);
    let viewer = Viewer { node: &facts.name, zone: zone(world, facts), weights: &wishes.weights };
    let mut endpoints = Endpoints::default();
    for slice in &slices {
        endpoints.read(slice, viewer, world.unreachable(), &mut findings);
    }
    let cluster_ips = cluster_ips(service, &mut findings);
    let families: BTreeSet<Family> = cluster_ips.iter().map(Family::of).collect();
    let external = external::addresses(service, &families, config, facts, &mut findings);
    let mut planner = Planner {
        service,
        config,
        facts,
        wishes,
        endpoints,
        cluster_ips: cluster_ips
            .into_iter()
            // The DNS address is answered on this node itself.
            .filter(|address| config.dns_address(Family::of(address)) != Some(*address))
            .collect(),
        families,
        external,
        findings,
        plan: ServicePlan::default(),
    };
    for port in &service.spec.ports {
        planner.add_port(port);
    }
    planner.add_ranges();
    planner.add_the_rest();
    let Planner { plan, findings, .. } = planner;
    let is_empty = plan.frontends.is_empty() && plan.ranges.is_empty();
    ((!is_empty).then_some(plan), findings.0.into_iter().collect())
}

/// Endpoints with a TCP port, among some addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownEndpoints {
    /// On nodes that answer, with a Service of each.
    pub living: BTreeMap<SocketAddr, NamespacedName>,
    /// On nodes that are unreachable as a whole.
    pub behind_silent_nodes: BTreeSet<SocketAddr>,
}

impl KnownEndpoints {
    /// Which of some addresses are endpoints.
    pub fn among(world: &World, addresses: &BTreeSet<SocketAddr>) -> Self {
        let mut known = Self::default();
        for slice in world.slices() {
            let Some(service) = slice.service() else { continue };
            for port in &slice.ports {
                let Some(number) = port.port.filter(|_| port.protocol == Protocol::Tcp) else {
                    continue;
                };
                let sound = |address: &IpAddr| endpoints::fault_of(*address).is_none();
                for endpoint in &slice.endpoints {
                    let Some(address) = endpoint.address().filter(sound) else { continue };
                    let address = SocketAddr::new(address, number);
                    if !addresses.contains(&address) {
                        continue;
                    }
                    if world.unreachable().nodes.contains(&endpoint.node_name) {
                        known.behind_silent_nodes.insert(address);
                    } else {
                        known.living.entry(address).or_insert_with(|| service.clone());
                    }
                }
            }
        }
        known
    }

    /// Whether it is any of them.
    pub fn contains(&self, address: &SocketAddr) -> bool {
        self.living.contains_key(address) || self.behind_silent_nodes.contains(address)
    }
}

/// The zone of the node: what hints of endpoints are compared with. It comes from a label of the
/// Node, and with it the plans of Services change.
pub fn zone<'a>(world: &'a World, facts: &NodeFacts) -> Option<&'a str> {
    world.node(&facts.name)?.zone()
}

fn is_ours(service: &Service) -> bool {
    let labels = &service.metadata.labels;
    service.spec.kind != ServiceType::ExternalName
        && !service.is_headless()
        && !labels.contains_key(SERVICE_PROXY_NAME_LABEL)
        && !labels.contains_key(HEADLESS_LABEL)
}

fn cluster_ips(service: &Service, findings: &mut Findings) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in &service.spec.cluster_ips {
        match text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                let message = format!("clusterIP {text:?} is no address: it is left out");
                findings.add(format!("Service {}", service.metadata.key()), message);
            }
        }
    }
    addresses
}

/// What was found on the way, each once.
#[derive(Default)]
struct Findings(BTreeSet<Finding>);

impl Findings {
    fn add(&mut self, about: String, message: String) {
        self.0.insert(Finding { about, message });
    }
}

/// What the Service asks for by annotations.
struct Wishes<'a> {
    ranges: PortRanges,
    scheduling: Scheduling,
    weights: Weights<'a>,
}

impl<'a> Wishes<'a> {
    fn read(service: &'a Service, findings: &mut Findings) -> Self {
        let mut found = |annotation: &str, reason: &str| {
            let message = format!("annotation {annotation} is not heeded: {reason}");
            findings.add(format!("Service {}", service.metadata.key()), message);
        };
        let annotation = |name: &str| service.metadata.annotations.get(name).map(String::as_str);
        let mut wishes = Self {
            ranges: PortRanges::new(),
            scheduling: Scheduling::Random,
            weights: Weights::default(),
        };
        if let Some(text) = annotation(PORT_RANGES_ANNOTATION) {
            match annotations::port_ranges(text, &service.spec.ports) {
                Ok(ranges) => wishes.ranges = ranges,
                Err(reason) => found(PORT_RANGES_ANNOTATION, &reason),
            }
        }
        if let Some(text) = annotation(SCHEDULING_ANNOTATION) {
            match annotations::scheduling(text) {
                Ok(scheduling) => wishes.scheduling = scheduling,
                Err(reason) => found(SCHEDULING_ANNOTATION, &reason),
            }
        }
        if let Some(text) = annotation(WEIGHTS_ANNOTATION) {
            match Weights::read(text) {
                Ok(_) if !wishes.scheduling.has_weights() => {
                    found(
                        WEIGHTS_ANNOTATION,
                        "only random scheduling and that of IPVS has weights",
                    );
                }
                Ok(weights) => wishes.weights = weights,
                Err(reason) => found(WEIGHTS_ANNOTATION, &reason),
            }
        }
        wishes
    }
}

struct Planner<'a> {
    service: &'a Service,
    config: &'a ClusterConfig,
    facts: &'a NodeFacts,
    wishes: Wishes<'a>,
    endpoints: Endpoints<'a>,
    cluster_ips: Vec<IpAddr>,
    families: BTreeSet<Family>,
    external: ExternalAddresses,
    findings: Findings,
    plan: ServicePlan,
}

impl<'a> Planner<'a> {
    fn add_port(&mut self, port: &'a ServicePort) {
        let ServicePort { protocol, port: number, node_port, .. } = *port;
        let mut add = |frontend: Frontend, plan: FrontendPlan| {
            self.plan
                .frontends
                .insert(frontend, FrontendPlan { port_name: port.name.clone(), ..plan });
        };
        for &address in &self.cluster_ips {
            let candidates = self.endpoints.of_port(Family::of(&address), port);
            let frontend = Frontend::ClusterIp { address, protocol, port: number };
            add(frontend, inside(self.service, &self.wishes, candidates));
        }
        for (&address, clients) in &self.external {
            let candidates = self.endpoints.of_port(Family::of(&address), port);
            let plan = self.wishes.outside(self.service, self.config, protocol, candidates);
            let frontend = Frontend::External { address, protocol, port: number };
            add(frontend, FrontendPlan { source_ranges: clients.clone(), ..plan });
        }
        if self.service.has_node_ports() && node_port != 0 {
            for &family in &self.families {
                let candidates = self.endpoints.of_port(family, port);
                let frontend = Frontend::NodePort { family, protocol, port: node_port };
                let plan = self.wishes.outside(self.service, self.config, protocol, candidates);
                add(frontend, plan);
            }
        }
        if let Some(named) = self.endpoints.mismatch(port) {
            let message = format!(
                "port {:?}/{protocol} matches no port of its EndpointSlices (they have {named}): \
                 connections are refused; compare targetPort with the pods' port names",
                port.name,
            );
            self.find(message);
        }
    }

    fn add_ranges(&mut self) {
        let ranges: Vec<(Protocol, (u16, u16))> = self
            .wishes
            .ranges
            .iter()
            .flat_map(|(&protocol, ranges)| ranges.iter().map(move |&range| (protocol, range)))
            .collect();
        if ranges.is_empty() {
            return;
        }
        for &address in &self.cluster_ips {
            let candidates = self.endpoints.of_family(Family::of(&address));
            let plan = inside(self.service, &self.wishes, candidates);
            self.plan.add_ranges(RangeScope::ClusterIp, address, &ranges, &plan);
        }
        for (&address, clients) in &self.external {
            // A range would take the node's own ports: its ssh, its kubelet, its tunnels.
            let nodes = &self.config.node_cidrs;
            if self.facts.addresses.contains(&address)
                || nodes.iter().any(|range| range.contains(&address))
            {
                let message = format!(
                    "annotation {PORT_RANGES_ANNOTATION} is not heeded at {address}: it is a \
                     node's own address; use a load balancer with addresses of its own"
                );
                self.findings.add(format!("Service {}", self.service.metadata.key()), message);
                continue;
            }
            let candidates = self.endpoints.of_family(Family::of(&address));
            for range in &ranges {
                let plan = self.wishes.outside(self.service, self.config, range.0, candidates);
                let plan = FrontendPlan { source_ranges: clients.clone(), ..plan };
                self.plan.add_ranges(RangeScope::External, address, &[*range], &plan);
            }
        }
    }

    fn add_the_rest(&mut self) {
        self.plan.local_addresses = self.endpoints.local_addresses();
        if self.config.answer_ping {
            let answering = self.cluster_ips.iter().copied();
            let endpoints = &self.endpoints;
            self.plan.answers_ping = answering
                .filter(|address| endpoints.of_family(Family::of(address)).has_ready())
                .collect();
        }
        let spec = &self.service.spec;
        if spec.kind == ServiceType::LoadBalancer
            && spec.external_traffic_policy == TrafficPolicy::Local
            && spec.health_check_node_port != 0
        {
            // A pod of two families is one endpoint.
            let of_family = |&family| self.endpoints.of_family(family).ready_here();
            self.plan.health_check = Some(HealthCheck {
                port: spec.health_check_node_port,
                local_endpoints: self.families.iter().map(of_family).max().unwrap_or(0),
            });
        }
    }

    fn find(&mut self, message: String) {
        self.findings.add(format!("Service {}", self.service.metadata.key()), message);
    }
}

/// What clients get at a ClusterIP.
fn inside(service: &Service, wishes: &Wishes<'_>, candidates: &Candidates) -> FrontendPlan {
    let backends = candidates.backends(service.spec.internal_traffic_policy);
    with_preferences(FrontendPlan::new(backends), service, wishes, candidates)
}

impl Wishes<'_> {
    /// What clients get where clients outside the cluster come in.
    fn outside(
        &self,
        service: &Service,
        config: &ClusterConfig,
        protocol: Protocol,
        candidates: &Candidates,
    ) -> FrontendPlan {
        let mut plan = FrontendPlan::new(candidates.backends(TrafficPolicy::Cluster));
        match service.spec.external_traffic_policy {
            TrafficPolicy::Cluster => plan.direct = config.load_balancer_mode.is_direct(protocol),
            TrafficPolicy::Local => {
                plan.outside = Some(candidates.backends(TrafficPolicy::Local));
            }
        }
        with_preferences(plan, service, self, candidates)
    }
}

fn with_preferences(
    mut plan: FrontendPlan,
    service: &Service,
    wishes: &Wishes<'_>,
    candidates: &Candidates,
) -> FrontendPlan {
    plan.affinity_timeout_s = service.affinity_timeout_s();
    plan.scheduling = if wishes.weights.are_given() {
        let both = [Some(&plan.backends), plan.outside.as_ref()];
        let endpoints = both.into_iter().flatten().flat_map(Backends::endpoints);
        wishes.scheduling.with_weights_of(candidates.scheduling(endpoints))
    } else {
        wishes.scheduling.clone()
    };
    plan
}

impl Scheduling {
    fn has_weights(&self) -> bool {
        matches!(self, Self::Random | Self::Ipvs(..))
    }

    /// The same way to choose, with the weights of another.
    fn with_weights_of(&self, other: Self) -> Self {
        match (self, other) {
            (Self::Ipvs(scheduler, _), Self::Weighted(weights)) => Self::Ipvs(*scheduler, weights),
            (Self::Ipvs(scheduler, _), _) => Self::Ipvs(*scheduler, BTreeMap::new()),
            (_, other) => other,
        }
    }
}

impl Backends {
    /// The endpoints; none of what refuses or drops.
    pub fn endpoints(&self) -> impl Iterator<Item = &SocketAddr> {
        match self {
            Self::Endpoints(endpoints) => Some(endpoints),
            Self::Reject | Self::Drop => None,
        }
        .into_iter()
        .flatten()
    }
}

impl ServicePlan {
    fn add_ranges(
        &mut self,
        scope: RangeScope,
        address: IpAddr,
        ranges: &[(Protocol, (u16, u16))],
        plan: &FrontendPlan,
    ) {
        for &(protocol, (first, last)) in ranges {
            let frontend = RangeFrontend { scope, address, protocol, first, last };
            self.ranges.insert(frontend, plan.clone());
        }
    }
}
