//! What becomes of the first packet of a flow at one node.
//!
//! Sources: the Service and EndpointSlice API references, KEP-1669 (terminating endpoints),
//! KEP-1860 (ipMode of load balancers), KEP-2086 (internal traffic policy), KEP-2433 and KEP-3015
//! (hints). Where the API leaves the choice to the proxy, kube-proxy's nftables mode is followed,
//! since clusters are built on it:
//!
//! - a ClusterIP refuses ports that its Service does not have; a service address that no Service
//!   has swallows packets; other addresses of Services let foreign ports pass;
//! - `Local` policy without an endpoint on this node swallows packets, but refuses them when no
//!   node has an endpoint;
//! - clients on the node itself, pods or processes, reach every endpoint through a node port or an
//!   external address under external policy `Local`: only traffic from elsewhere has been placed
//!   by a load balancer;
//! - `loadBalancerSourceRanges` bind whoever uses the load balancer's address, pods and the node
//!   too, and nobody at node ports.
//!
//! Ours, where kube-proxy does otherwise: source ranges of one family close the load balancer's
//! addresses of the other, and so do ranges that cannot be read.

mod annotations;
mod endpoints;
mod external;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::kinds::{ServicePort, ServiceType, TrafficPolicy};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family, NamespacedName, Protocol, Service, World};

use endpoints::Endpoint;

/// A Service or slice with this label is left to another proxy (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service or slice with this label wants no proxy at all (KEP-2447).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The port that the node's DNS address answers on, by UDP and TCP (RFC 1035).
const DNS_PORT: u16 = 53;

/// The node where the packet is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The node's name.
    pub name: &'a str,
    /// The node's own addresses on the node network.
    pub addresses: &'a [IpAddr],
}

/// A verdict and what it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why.
    pub rule: Rule,
}

/// What a verdict follows from, in the words of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Loopback addresses are never reached from another machine or pod (CVE-2020-8558).
    LoopbackGuard,
    /// The cluster's DNS address is the node's own and answers DNS alone.
    DnsAddress,
    /// A port of a Service, by the ClusterIP.
    ClusterIp(NamespacedName, u16),
    /// A port of a Service, by an address of its load balancer or one of `externalIPs`.
    External(NamespacedName, u16),
    /// A port of a Service, by the node port.
    NodePort(NamespacedName, u16),
    /// A port that a Service has by its annotation.
    PortRange(NamespacedName, u16),
    /// The load balancer is not for this client.
    SourceRanges(NamespacedName),
    /// The Service has no such port.
    NoSuchPort(NamespacedName),
    /// No Service has this address.
    NoSuchService,
    /// A pod talks to somewhere outside the cluster.
    LeavesCluster,
    /// Nothing of the API concerns the packet.
    Untouched,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoopbackGuard => f.write_str("loopback guard"),
            Self::DnsAddress => f.write_str("DNS address"),
            Self::ClusterIp(service, port) => write!(f, "{service} port {port}"),
            Self::External(service, port) => write!(f, "{service} external port {port}"),
            Self::NodePort(service, port) => write!(f, "{service} node port {port}"),
            Self::PortRange(service, port) => write!(f, "{service} port {port} of its ranges"),
            Self::SourceRanges(service) => write!(f, "{service} source ranges"),
            Self::NoSuchPort(service) => write!(f, "{service} has no such port"),
            Self::NoSuchService => f.write_str("no Service at this address"),
            Self::LeavesCluster => f.write_str("leaves the cluster"),
            Self::Untouched => f.write_str("nothing"),
        }
    }
}

/// What becomes of `packet` at `node`.
pub fn verdict(world: &World, config: &ClusterConfig, node: Node<'_>, packet: &Packet) -> Verdict {
    decide(world, config, node, packet).verdict
}

/// What becomes of `packet` at `node`, and why.
pub fn decide(world: &World, config: &ClusterConfig, node: Node<'_>, packet: &Packet) -> Decision {
    let Decision { verdict, rule } = decide_by_address(world, config, node, packet);
    Decision { verdict: with_source_ports(verdict, config), rule }
}

fn decide_by_address(
    world: &World,
    config: &ClusterConfig,
    node: Node<'_>,
    packet: &Packet,
) -> Decision {
    let to = packet.destination;
    if to.ip().is_loopback() && packet.entry != Entry::Local {
        return Decision { verdict: Verdict::Drop, rule: Rule::LoopbackGuard };
    }
    if config.is_dns_address(to.ip()) {
        let is_dns = to.port() == DNS_PORT && packet.protocol != Protocol::Sctp;
        let is_of_service = config.dns_address(Family::of(&to.ip())) == Some(to.ip());
        let verdict = if is_dns || !is_of_service { untouched(to) } else { Verdict::Reject };
        return Decision { verdict, rule: Rule::DnsAddress };
    }
    let case = Case { world, config, node, packet };
    let decided = case
        .first_of(Case::at_cluster_ip)
        .or_else(|| case.first_of(Case::at_external_port))
        .or_else(|| case.first_of(Case::in_external_range))
        .or_else(|| case.first_of(Case::at_node_port));
    if let Some(decision) = decided {
        return decision;
    }
    if config.service_cidrs.iter().any(|range| range.contains(&to.ip())) {
        return Decision { verdict: Verdict::Drop, rule: Rule::NoSuchService };
    }
    if case.leaves_cluster(to.ip()) {
        let verdict = pass(BTreeSet::from([to]), SourceTranslation::Masqueraded);
        return Decision { verdict, rule: Rule::LeavesCluster };
    }
    Decision { verdict: untouched(to), rule: Rule::Untouched }
}

/// Whether `address` is a ClusterIP that answers an ICMP echo: if the cluster is configured so,
/// while the Service has a ready endpoint of the family.
pub fn answers_ping(
    world: &World,
    config: &ClusterConfig,
    node: Node<'_>,
    address: IpAddr,
) -> bool {
    let family = Family::of(&address);
    if !config.answer_ping || config.dns_address(family) == Some(address) {
        return false;
    }
    let mut services = world.services().filter(is_proxied);
    services.find(|service| service_has(service, address)).is_some_and(|service| {
        let endpoints = endpoints::of_any_port(world, node, &service, family, 0);
        endpoints.iter().any(|endpoint| endpoint.is_ready)
    })
}

/// The port at which `node` answers a load balancer's health checks of a Service, and how many
/// ready endpoints it has.
pub fn health_check(world: &World, node: Node<'_>, service: &Service) -> Option<(u16, usize)> {
    let spec = &service.spec;
    if spec.kind != ServiceType::LoadBalancer
        || spec.external_traffic_policy != TrafficPolicy::Local
        || spec.health_check_node_port == 0
        || !is_proxied(service)
    {
        return None;
    }
    let ready_here = |family| {
        let endpoints = endpoints::of_any_port(world, node, service, family, 0);
        let mut ready: Vec<SocketAddr> = endpoints
            .iter()
            .filter(|endpoint| endpoint.is_ready && endpoint.is_local)
            .map(|endpoint| endpoint.address)
            .collect();
        ready.sort();
        ready.dedup();
        ready.len()
    };
    let families = service.cluster_ips().map(|address| Family::of(&address));
    families.map(ready_here).max().map(|count| (spec.health_check_node_port, count))
}

fn is_proxied(service: &Service) -> bool {
    let labels = &service.metadata.labels;
    !labels.contains_key(PROXY_NAME_LABEL) && !labels.contains_key(HEADLESS_LABEL)
}

fn service_has(service: &Service, address: IpAddr) -> bool {
    service.spec.kind != ServiceType::ExternalName
        && service.cluster_ips().any(|one| one == address)
}

fn is_inside(config: &ClusterConfig, address: IpAddr) -> bool {
    config.is_pod_address(address)
        || config.node_cidrs.iter().any(|range| range.contains(&address))
        || address.is_loopback()
}

/// One question.
struct Case<'a> {
    world: &'a World,
    config: &'a ClusterConfig,
    node: Node<'a>,
    packet: &'a Packet,
}

impl Case<'_> {
    /// What the first Service by name says that says anything.
    fn first_of(&self, way: impl Fn(&Self, &Service) -> Option<Decision>) -> Option<Decision> {
        let mut services = self.world.services().filter(is_proxied);
        services.find_map(|service| way(self, &service))
    }

    fn at_cluster_ip(&self, service: &Service) -> Option<Decision> {
        let to = self.packet.destination;
        if !service_has(service, to.ip()) {
            return None;
        }
        let key = service.metadata.key();
        let (endpoints, rule) = if let Some(port) = self.listed(service) {
            (self.endpoints(service, port), Rule::ClusterIp(key, port.port))
        } else if annotations::has_port(service, self.packet.protocol, to.port()) {
            (self.endpoints_of_range(service), Rule::PortRange(key, to.port()))
        } else {
            return Some(Decision { verdict: Verdict::Reject, rule: Rule::NoSuchPort(key) });
        };
        let local_only = service.spec.internal_traffic_policy == TrafficPolicy::Local;
        // Anybody but a pod of this node: the answer must come back through this node to be
        // translated back.
        let masquerade = self.packet.entry != Entry::Pod || self.config.masquerade_all;
        Some(Decision { verdict: self.verdict_by(&endpoints, local_only, masquerade), rule })
    }

    fn at_external_port(&self, service: &Service) -> Option<Decision> {
        if !self.is_external_address_of(service) {
            return None;
        }
        let port = self.listed(service)?;
        let rule = Rule::External(service.metadata.key(), port.port);
        Some(self.at_external(service, rule, || self.endpoints(service, port)))
    }

    fn in_external_range(&self, service: &Service) -> Option<Decision> {
        let to = self.packet.destination;
        // The annotation may not take what the node itself listens on.
        let at_a_node = self.node.addresses.contains(&to.ip())
            || self.config.node_cidrs.iter().any(|range| range.contains(&to.ip()));
        if at_a_node
            || !self.is_external_address_of(service)
            || !annotations::has_port(service, self.packet.protocol, to.port())
        {
            return None;
        }
        let rule = Rule::PortRange(service.metadata.key(), to.port());
        Some(self.at_external(service, rule, || self.endpoints_of_range(service)))
    }

    fn at_node_port(&self, service: &Service) -> Option<Decision> {
        let to = self.packet.destination;
        let open_at = &self.config.node_port_addresses;
        if !service.has_node_ports()
            || !self.node.addresses.contains(&to.ip())
            || !(open_at.is_empty() || open_at.iter().any(|range| range.contains(&to.ip())))
            || !external::has_family(service, to.ip())
        {
            return None;
        }
        let mut ports = service.spec.ports.iter();
        let port = ports.find(|port| {
            port.protocol == self.packet.protocol
                && port.node_port != 0
                && port.node_port == to.port()
        })?;
        let verdict = self.external_verdict(service, &self.endpoints(service, port));
        Some(Decision { verdict, rule: Rule::NodePort(service.metadata.key(), port.node_port) })
    }

    fn is_external_address_of(&self, service: &Service) -> bool {
        external::is_address_of(service, self.config, self.packet.destination.ip())
    }

    fn at_external(
        &self,
        service: &Service,
        rule: Rule,
        endpoints: impl Fn() -> Vec<Endpoint>,
    ) -> Decision {
        let (address, client) = (self.packet.destination.ip(), self.packet.source.ip());
        if external::admits(service, address, client, self.node) {
            Decision { verdict: self.external_verdict(service, &endpoints()), rule }
        } else {
            let rule = Rule::SourceRanges(service.metadata.key());
            Decision { verdict: Verdict::Drop, rule }
        }
    }

    /// The Service's port of the packet's number and protocol.
    fn listed<'s>(&self, service: &'s Service) -> Option<&'s ServicePort> {
        service.spec.ports.iter().find(|port| {
            port.protocol == self.packet.protocol && port.port == self.packet.destination.port()
        })
    }

    fn endpoints(&self, service: &Service, port: &ServicePort) -> Vec<Endpoint> {
        let family = Family::of(&self.packet.destination.ip());
        endpoints::of_port(self.world, self.node, service, family, port)
    }

    fn endpoints_of_range(&self, service: &Service) -> Vec<Endpoint> {
        let to = self.packet.destination;
        let family = Family::of(&to.ip());
        endpoints::of_any_port(self.world, self.node, service, family, to.port())
    }

    /// Whether a packet to this address would carry a pod's address out of the cluster, to somebody
    /// who does not know the way back.
    fn leaves_cluster(&self, address: IpAddr) -> bool {
        let stays = is_inside(self.config, address) || self.node.addresses.contains(&address);
        let mut kept = self.config.non_masquerade_cidrs.iter();
        self.config.is_pod_address(self.packet.source.ip())
            && !stays
            && !kept.any(|range| range.contains(&address))
    }

    fn external_verdict(&self, service: &Service, endpoints: &[Endpoint]) -> Verdict {
        match service.spec.external_traffic_policy {
            TrafficPolicy::Cluster if self.may_be_answered_directly() => {
                self.kept_towards_pods(self.verdict_by(endpoints, false, true))
            }
            // The endpoint may be elsewhere, and would answer past this node.
            TrafficPolicy::Cluster => self.verdict_by(endpoints, false, true),
            TrafficPolicy::Local => match self.packet.entry {
                Entry::Local => self.verdict_by(endpoints, false, true),
                Entry::Pod => self.verdict_by(endpoints, false, false),
                Entry::Uplink | Entry::Overlay => self.verdict_by(endpoints, true, false),
            },
        }
    }

    /// Whether the client may get its answers past this node: it is outside of the cluster, and the
    /// configuration lets endpoints answer it themselves.
    fn may_be_answered_directly(&self) -> bool {
        let client = self.packet.source.ip();
        let from_elsewhere = matches!(self.packet.entry, Entry::Uplink | Entry::Overlay);
        let mut nodes = self.world.nodes();
        from_elsewhere
            && self.config.load_balancer_mode.is_direct(self.packet.protocol)
            && !self.config.is_pod_address(client)
            && !nodes.any(|node| node.internal_ips().any(|own| own == client))
    }

    /// The same verdict with the source kept towards pods of whichever node: their nodes know whom
    /// they answer in whose name. Nobody else does.
    fn kept_towards_pods(&self, verdict: Verdict) -> Verdict {
        let Verdict::Pass { destinations, .. } = verdict else { return verdict };
        let is_pod = |address: &IpAddr| {
            let mut ranges = self.world.nodes().flat_map(|node| &node.spec.pod_cidrs);
            ranges.any(|range| range.contains(address))
        };
        let addresses = destinations.iter().map(SocketAddr::ip);
        let others: BTreeSet<IpAddr> = addresses.filter(|address| !is_pod(address)).collect();
        let source = if others.is_empty() {
            SourceTranslation::Kept
        } else {
            SourceTranslation::MasqueradedTo(others)
        };
        pass(destinations, source)
    }

    fn verdict_by(&self, endpoints: &[Endpoint], local_only: bool, masquerade: bool) -> Verdict {
        let zone = self.world.node(self.node.name).and_then(|node| node.zone());
        let destinations = endpoints::preferring_answering(endpoints, |endpoints| {
            if local_only {
                let local = endpoints.iter().copied().filter(|endpoint| endpoint.is_local);
                endpoints::usable(local)
            } else {
                endpoints::usable_nearby(endpoints, self.node.name, zone)
            }
        });
        if !destinations.is_empty() {
            // A pod gets no answer past this node from itself, nor from outside of the cluster.
            let is_hidden = |address: &IpAddr| {
                *address == self.packet.source.ip() || self.leaves_cluster(*address)
            };
            let hidden: BTreeSet<IpAddr> =
                destinations.iter().map(SocketAddr::ip).filter(is_hidden).collect();
            let source = match (masquerade, hidden.is_empty()) {
                (true, _) => SourceTranslation::Masqueraded,
                (false, true) => SourceTranslation::Kept,
                (false, false) => SourceTranslation::MasqueradedTo(hidden),
            };
            return pass(destinations, source);
        }
        let anywhere = endpoints::usable(endpoints.iter());
        if anywhere.is_empty() { Verdict::Reject } else { Verdict::Drop }
    }
}

fn pass(destinations: BTreeSet<SocketAddr>, source: SourceTranslation) -> Verdict {
    Verdict::Pass { destinations, source, source_ports: BTreeMap::new() }
}

/// What leaves the cluster in this node's name has the ports that are configured for that.
fn with_source_ports(verdict: Verdict, config: &ClusterConfig) -> Verdict {
    let (Some(ports), Verdict::Pass { destinations, source, .. }) =
        (config.masquerade_ports, &verdict)
    else {
        return verdict;
    };
    let is_masqueraded = |address: &IpAddr| match source {
        SourceTranslation::Kept => false,
        SourceTranslation::Masqueraded => true,
        SourceTranslation::MasqueradedTo(these) => these.contains(address),
    };
    let leaves = |address: &IpAddr| {
        let mut services = config.service_cidrs.iter();
        !is_inside(config, *address) && !services.any(|range| range.contains(address))
    };
    let addresses = destinations.iter().map(SocketAddr::ip);
    let outside = addresses.filter(|address| is_masqueraded(address) && leaves(address));
    Verdict::Pass {
        source_ports: outside.map(|address| (address, ports)).collect(),
        destinations: destinations.clone(),
        source: source.clone(),
    }
}

fn untouched(destination: SocketAddr) -> Verdict {
    pass(BTreeSet::from([destination]), SourceTranslation::Kept)
}

#[cfg(test)]
mod tests;
