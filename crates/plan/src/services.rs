//! Frontends and endpoints of one Service at one node.
//!
//! Which endpoints a client may get depends on where the client is and on two policies:
//!
//! | frontend | client | endpoints | source |
//! |---|---|---|---|
//! | ClusterIP | any | by `internalTrafficPolicy` | kept for pods of this node, else masqueraded |
//! | NodePort, `externalTrafficPolicy: Cluster` | any | all | masqueraded |
//! | NodePort, `externalTrafficPolicy: Local` | outside the cluster | on this node | kept |
//! | NodePort, `externalTrafficPolicy: Local` | pod of this node, the node itself | all | kept for pods of this node, else masqueraded |
//!
//! In each row ready endpoints count; where there is none, those that still serve while they
//! terminate (KEP-1669). Without any endpoint in the cluster the frontend refuses; when a Local
//! policy hides the ones that exist, it drops, since another node may answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::kinds::{Endpoint, EndpointPort, ServicePort, TrafficPolicy};
use model::{ClusterConfig, EndpointSlice, Family, NamespacedName, Protocol, Service, World};

use crate::{Finding, NodeFacts};

/// A Service with this label is another proxy's (KEP-2447).
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service or slice with this label is not for proxies.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What one Service shall be at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// What clients connect to, and what answers there. Never empty in a plan.
    pub frontends: BTreeMap<Frontend, FrontendPlan>,
    /// Ranges of ports besides, disjoint from each other and from the ports that `frontends` has
    /// at the same address and protocol: the order of look-ups does not matter. Endpoints have
    /// port 0 here: the packet keeps its port.
    pub ranges: BTreeMap<RangeFrontend, FrontendPlan>,
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
    Endpoints(BTreeSet<SocketAddr>),
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
    let Some(service) = world.service(service).filter(|service| is_ours(service)) else {
        return (None, vec![]);
    };
    let mut planner = Planner {
        service,
        node: &facts.name,
        endpoints: BTreeMap::new(),
        findings: BTreeSet::new(),
        plan: ServicePlan::default(),
    };
    for slice in world.slices_of(&service.metadata.key()) {
        planner.read_slice(slice);
    }
    for port in &service.spec.ports {
        planner.add_port(config, port);
    }
    let findings = planner.findings.into_iter().collect();
    let plan = Some(planner.plan).filter(|plan| !plan.frontends.is_empty());
    (plan, findings)
}

fn is_ours(service: &Service) -> bool {
    let labels = &service.metadata.labels;
    service.spec.kind != model::kinds::ServiceType::ExternalName
        && !service.is_headless()
        && !labels.contains_key(SERVICE_PROXY_NAME_LABEL)
        && !labels.contains_key(HEADLESS_LABEL)
}

/// A slice port that Service ports match by name and protocol.
type PortKey = (Family, String, Protocol);

/// What slices say together of one endpoint address and port. Slices may name an endpoint twice,
/// for a moment while it moves between them: what is better for the client wins.
#[derive(Clone, Copy, Debug, Default)]
struct EndpointState {
    ready: bool,
    serving_and_terminating: bool,
    local: bool,
}

struct Planner<'a> {
    service: &'a Service,
    node: &'a str,
    endpoints: BTreeMap<PortKey, BTreeMap<SocketAddr, EndpointState>>,
    findings: BTreeSet<Finding>,
    plan: ServicePlan,
}

impl Planner<'_> {
    fn read_slice(&mut self, slice: &EndpointSlice) {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return, // names take no packets
        };
        if slice.metadata.labels.contains_key(HEADLESS_LABEL) {
            return;
        }
        for endpoint in &slice.endpoints {
            match usable_address(endpoint, family) {
                Ok(address) => {
                    for port in &slice.ports {
                        self.add_endpoint(family, address, endpoint, port);
                    }
                }
                Err(reason) => self.find(
                    format!("EndpointSlice {}", slice.metadata.key()),
                    format!("{reason}: the endpoint is left out; correct the slice"),
                ),
            }
        }
    }

    fn add_endpoint(
        &mut self,
        family: Family,
        address: IpAddr,
        endpoint: &Endpoint,
        port: &EndpointPort,
    ) {
        // "All ports" and port 0 cannot be the target of a Service port.
        let Some(number) = port.port.filter(|&number| number != 0) else { return };
        let conditions = &endpoint.conditions;
        let local = !self.node.is_empty() && endpoint.node_name == self.node;
        let key = (family, port.name.clone(), port.protocol);
        let state = self
            .endpoints
            .entry(key)
            .or_default()
            .entry(SocketAddr::new(address, number))
            .or_default();
        state.ready |= conditions.is_ready();
        state.serving_and_terminating |= conditions.is_serving() && conditions.is_terminating();
        state.local |= local;
        if local {
            self.plan.local_addresses.insert(address);
        }
    }

    fn add_port(&mut self, config: &ClusterConfig, port: &ServicePort) {
        let service = self.service;
        let mut families = BTreeSet::new();
        for text in &service.spec.cluster_ips {
            let Ok(address) = text.parse::<IpAddr>() else {
                let message = format!("clusterIP {text:?} is no address: it is left out");
                self.find(format!("Service {}", service.metadata.key()), message);
                continue;
            };
            let family = Family::of(&address);
            families.insert(family);
            // The DNS address is answered on this node itself.
            if config.dns_address(family) != Some(address) {
                let frontend =
                    Frontend::ClusterIp { address, protocol: port.protocol, port: port.port };
                let backends = self.backends(family, port, service.spec.internal_traffic_policy);
                self.add_frontend(frontend, port, backends, None);
            }
        }
        if service.has_node_ports() && port.node_port != 0 {
            for family in families {
                let frontend =
                    Frontend::NodePort { family, protocol: port.protocol, port: port.node_port };
                let everywhere = self.backends(family, port, TrafficPolicy::Cluster);
                let outside = match service.spec.external_traffic_policy {
                    TrafficPolicy::Cluster => None,
                    TrafficPolicy::Local => Some(self.backends(family, port, TrafficPolicy::Local)),
                };
                self.add_frontend(frontend, port, everywhere, outside);
            }
        }
        self.check_target(port);
    }

    fn add_frontend(
        &mut self,
        frontend: Frontend,
        port: &ServicePort,
        backends: Backends,
        outside: Option<Backends>,
    ) {
        let plan = FrontendPlan {
            port_name: port.name.clone(),
            outside,
            affinity_timeout_s: self.service.affinity_timeout_s(),
            ..FrontendPlan::new(backends)
        };
        self.plan.frontends.insert(frontend, plan);
    }

    fn backends(&self, family: Family, port: &ServicePort, policy: TrafficPolicy) -> Backends {
        let key = (family, port.name.clone(), port.protocol);
        let Some(endpoints) = self.endpoints.get(&key) else { return Backends::Reject };
        let everywhere = eligible(endpoints, |_| true);
        match policy {
            _ if everywhere.is_empty() => Backends::Reject,
            TrafficPolicy::Cluster => Backends::Endpoints(everywhere),
            TrafficPolicy::Local => match eligible(endpoints, |state| state.local) {
                local if local.is_empty() => Backends::Drop,
                local => Backends::Endpoints(local),
            },
        }
    }

    /// Endpoints exist, but none under the port's name: the link between the two is broken.
    fn check_target(&mut self, port: &ServicePort) {
        let matched =
            |(_, name, protocol): &PortKey| *name == port.name && *protocol == port.protocol;
        if self.endpoints.is_empty() || self.endpoints.keys().any(matched) {
            return;
        }
        let named: BTreeSet<String> = self
            .endpoints
            .keys()
            .map(|(_, name, protocol)| format!("{name:?}/{protocol}"))
            .collect();
        let named: Vec<String> = named.into_iter().collect();
        let message = format!(
            "port {:?}/{} matches no port of its EndpointSlices (they have {}): connections are \
             refused; compare targetPort with the pods' port names",
            port.name,
            port.protocol,
            named.join(", "),
        );
        self.find(format!("Service {}", self.service.metadata.key()), message);
    }

    fn find(&mut self, about: String, message: String) {
        self.findings.insert(Finding { about, message });
    }
}

/// The endpoints that take new connections: the ready ones, else those that still serve.
fn eligible(
    endpoints: &BTreeMap<SocketAddr, EndpointState>,
    counts: impl Fn(&EndpointState) -> bool,
) -> BTreeSet<SocketAddr> {
    let those = |wanted: fn(&EndpointState) -> bool| -> BTreeSet<SocketAddr> {
        let matching = endpoints.iter().filter(|(_, state)| counts(state) && wanted(state));
        matching.map(|(&address, _)| address).collect()
    };
    let ready = those(|state| state.ready);
    if ready.is_empty() { those(|state| state.serving_and_terminating) } else { ready }
}

/// The endpoint's address, unless traffic must not be sent there: whoever may write slices could
/// otherwise reach services that listen on a node's loopback or link-local addresses.
fn usable_address(endpoint: &Endpoint, family: Family) -> Result<IpAddr, String> {
    let text = endpoint.addresses.first().map_or("", String::as_str);
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if Family::of(&address.to_canonical()) != family {
        Err(format!("{address} is not of the slice's family {family}"))
    } else if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        Err(format!("{address} is a loopback, unspecified or multicast address"))
    } else if link_local {
        Err(format!("{address} is a link-local or broadcast address"))
    } else {
        Ok(address)
    }
}
