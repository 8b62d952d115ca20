//! What becomes of the first packet of a flow at one node.
//!
//! Sources: the Service and EndpointSlice API references, KEP-1669 (terminating endpoints),
//! KEP-2086 (internal traffic policy). Where the API leaves the choice to the proxy, kube-proxy's
//! nftables mode is followed, since clusters are built on it:
//!
//! - a ClusterIP refuses ports that its Service does not have; a service address that no Service
//!   has swallows packets;
//! - `Local` policy without an endpoint on this node swallows packets, but refuses them when no
//!   node has an endpoint;
//! - clients on the node itself, pods or processes, reach every endpoint through a node port under
//!   external policy `Local`: only traffic from elsewhere has been placed by a load balancer.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::kinds::{ServicePort, TrafficPolicy};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family, NamespacedName, Service, World};

/// A Service with this label is left to another proxy (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A Service with this label wants no proxy at all (KEP-2447).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The port that the node's DNS address answers on (RFC 1035).
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
    /// A port of a Service, by the node port.
    NodePort(NamespacedName, u16),
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
            Self::NodePort(service, port) => write!(f, "{service} node port {port}"),
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
    let to = packet.destination;
    if to.ip().is_loopback() && packet.entry != Entry::Local {
        return Decision { verdict: Verdict::Drop, rule: Rule::LoopbackGuard };
    }
    if config.dns_address(Family::of(&to.ip())) == Some(to.ip()) {
        let verdict = if to.port() == DNS_PORT { untouched(to) } else { Verdict::Reject };
        return Decision { verdict, rule: Rule::DnsAddress };
    }
    for service in world.services().filter(|service| is_proxied(service)) {
        if let Some(decision) = decide_by_service(world, node, packet, service) {
            return decision;
        }
    }
    if config.service_cidrs.iter().any(|range| range.contains(&to.ip())) {
        return Decision { verdict: Verdict::Drop, rule: Rule::NoSuchService };
    }
    if config.is_pod_address(packet.source.ip()) && !is_inside(config, to.ip()) {
        let verdict = pass(BTreeSet::from([to]), SourceTranslation::Masqueraded);
        return Decision { verdict, rule: Rule::LeavesCluster };
    }
    Decision { verdict: untouched(to), rule: Rule::Untouched }
}

fn is_proxied(service: &Service) -> bool {
    let labels = &service.metadata.labels;
    !labels.contains_key(PROXY_NAME_LABEL) && !labels.contains_key(HEADLESS_LABEL)
}

fn is_inside(config: &ClusterConfig, address: IpAddr) -> bool {
    config.is_pod_address(address)
        || config.node_cidrs.iter().any(|range| range.contains(&address))
        || address.is_loopback()
}

/// The Service's say about the packet; `None` when it is not addressed.
fn decide_by_service(
    world: &World,
    node: Node<'_>,
    packet: &Packet,
    service: &Service,
) -> Option<Decision> {
    let to = packet.destination;
    let key = service.metadata.key();
    let same_protocol = |port: &&ServicePort| port.protocol == packet.protocol;
    if service.cluster_ips().any(|address| address == to.ip()) {
        let mut ports = service.spec.ports.iter().filter(same_protocol);
        let Some(port) = ports.find(|port| port.port == to.port()) else {
            return Some(Decision { verdict: Verdict::Reject, rule: Rule::NoSuchPort(key) });
        };
        let local_only = service.spec.internal_traffic_policy == TrafficPolicy::Local;
        let endpoints = endpoints(world, node, service, port, Family::of(&to.ip()));
        // Anybody but a pod of this node: the answer must come back through this node to be
        // translated back.
        let masquerade = packet.entry != Entry::Pod;
        let verdict = verdict_by(&endpoints, local_only, packet, masquerade);
        return Some(Decision { verdict, rule: Rule::ClusterIp(key, port.port) });
    }
    if !service.has_node_ports() || !node.addresses.contains(&to.ip()) {
        return None;
    }
    let mut ports = service.spec.ports.iter().filter(same_protocol);
    let port = ports.find(|port| port.node_port != 0 && port.node_port == to.port())?;
    let endpoints = endpoints(world, node, service, port, Family::of(&to.ip()));
    let verdict = match service.spec.external_traffic_policy {
        // The endpoint may be elsewhere, and would answer past this node.
        TrafficPolicy::Cluster => verdict_by(&endpoints, false, packet, true),
        TrafficPolicy::Local => match packet.entry {
            Entry::Local => verdict_by(&endpoints, false, packet, true),
            Entry::Pod => verdict_by(&endpoints, false, packet, false),
            Entry::Uplink | Entry::Overlay => verdict_by(&endpoints, true, packet, false),
        },
    };
    Some(Decision { verdict, rule: Rule::NodePort(key, port.node_port) })
}

fn verdict_by(
    endpoints: &[Endpoint],
    local_only: bool,
    packet: &Packet,
    masquerade: bool,
) -> Verdict {
    let anywhere = usable(endpoints.iter());
    let here = usable(endpoints.iter().filter(|endpoint| endpoint.is_local));
    let destinations = if local_only { &here } else { &anywhere };
    if !destinations.is_empty() {
        let itself: BTreeSet<IpAddr> = destinations
            .iter()
            .map(SocketAddr::ip)
            .filter(|address| *address == packet.source.ip())
            .collect();
        let source = match (masquerade, itself.is_empty()) {
            (true, _) => SourceTranslation::Masqueraded,
            (false, true) => SourceTranslation::Kept,
            (false, false) => SourceTranslation::MasqueradedTo(itself),
        };
        return pass(destinations.clone(), source);
    }
    if anywhere.is_empty() { Verdict::Reject } else { Verdict::Drop }
}

/// One address of a Service port, as one slice states it.
struct Endpoint {
    address: SocketAddr,
    is_ready: bool,
    is_leaving_but_serving: bool,
    is_local: bool,
}

fn endpoints(
    world: &World,
    node: Node<'_>,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in world.slices_of(&service.metadata.key()) {
        if slice.address_type != family.to_string() {
            continue;
        }
        let numbers = slice
            .ports
            .iter()
            .filter(|offer| offer.name == port.name && offer.protocol == port.protocol)
            .filter_map(|offer| offer.port);
        for number in numbers {
            for endpoint in &slice.endpoints {
                let Some(address) = endpoint.address() else { continue };
                let conditions = &endpoint.conditions;
                found.push(Endpoint {
                    address: SocketAddr::new(address, number),
                    is_ready: conditions.is_ready(),
                    is_leaving_but_serving: conditions.is_terminating() && conditions.is_serving(),
                    is_local: endpoint.node_name == node.name,
                });
            }
        }
    }
    found
}

/// The ready ones; without any, those that still serve while they terminate (KEP-1669).
fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> BTreeSet<SocketAddr> {
    let ready: BTreeSet<SocketAddr> = endpoints
        .clone()
        .filter(|endpoint| endpoint.is_ready)
        .map(|endpoint| endpoint.address)
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    endpoints
        .filter(|endpoint| endpoint.is_leaving_but_serving)
        .map(|endpoint| endpoint.address)
        .collect()
}

fn pass(destinations: BTreeSet<SocketAddr>, source: SourceTranslation) -> Verdict {
    Verdict::Pass { destinations, source }
}

fn untouched(destination: SocketAddr) -> Verdict {
    pass(BTreeSet::from([destination]), SourceTranslation::Kept)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use model::Protocol;
    use model::kinds::{
        Conditions, Endpoint as SliceEndpoint, EndpointPort, EndpointSlice, SERVICE_NAME_LABEL,
        ServiceType,
    };
    use model::world::Object;

    const NODE_ADDRESSES: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 2))];

    /// A node port Service and endpoints given as (address, node, ready, serving, terminating).
    fn world(
        external: TrafficPolicy,
        internal: TrafficPolicy,
        endpoints: &[(&str, &str, bool, bool, bool)],
    ) -> World {
        let mut service = Service::default();
        service.metadata.namespace = "shop".into();
        service.metadata.name = "web".into();
        service.spec.kind = ServiceType::NodePort;
        service.spec.cluster_ips = vec!["10.96.0.20".into()];
        service.spec.external_traffic_policy = external;
        service.spec.internal_traffic_policy = internal;
        service.spec.ports =
            vec![ServicePort { port: 80, node_port: 30080, ..ServicePort::default() }];
        let mut slice = EndpointSlice::default();
        slice.metadata.namespace = "shop".into();
        slice.metadata.name = "web-1".into();
        slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "web".into());
        slice.address_type = "IPv4".into();
        slice.ports = vec![EndpointPort { port: Some(8080), ..EndpointPort::default() }];
        for (address, node, ready, serving, terminating) in endpoints {
            slice.endpoints.push(SliceEndpoint {
                addresses: vec![address.to_string()],
                node_name: node.to_string(),
                conditions: Conditions {
                    ready: Some(*ready),
                    serving: Some(*serving),
                    terminating: Some(*terminating),
                },
                ..SliceEndpoint::default()
            });
        }
        let mut world = World::default();
        world.set(Object::Service(Arc::new(service)));
        world.set(Object::EndpointSlice(Arc::new(slice)));
        world
    }

    fn ask(world: &World, entry: Entry, source: &str, destination: &str) -> String {
        let packet = Packet {
            entry,
            source: format!("{source}:40000").parse().expect("a source"),
            destination: destination.parse().expect("a destination"),
            protocol: Protocol::Tcp,
        };
        let node = Node { name: "node1", addresses: &NODE_ADDRESSES };
        verdict(world, &ClusterConfig::default(), node, &packet).to_string()
    }

    const READY_HERE: (&str, &str, bool, bool, bool) = ("10.244.1.5", "node1", true, true, false);
    const READY_THERE: (&str, &str, bool, bool, bool) = ("10.244.2.5", "node2", true, true, false);
    const LEAVING_HERE: (&str, &str, bool, bool, bool) = ("10.244.1.6", "node1", false, true, true);

    #[test]
    fn who_is_masqueraded_follows_client_and_policy() {
        use TrafficPolicy::{Cluster, Local};
        let both = "10.244.1.5:8080, 10.244.2.5:8080";
        let here = "10.244.1.5:8080";
        let rows = [
            (Cluster, Cluster, Entry::Pod, "10.244.1.9", "10.96.0.20:80", both, ""),
            (Cluster, Cluster, Entry::Pod, "10.244.1.9", "172.30.0.2:30080", both, ", masqueraded"),
            (Cluster, Cluster, Entry::Local, "172.30.0.2", "10.96.0.20:80", both, ", masqueraded"),
            (Cluster, Cluster, Entry::Uplink, "192.0.2.1", "10.96.0.20:80", both, ", masqueraded"),
            (
                Cluster,
                Cluster,
                Entry::Uplink,
                "192.0.2.1",
                "172.30.0.2:30080",
                both,
                ", masqueraded",
            ),
            (Local, Cluster, Entry::Uplink, "192.0.2.1", "172.30.0.2:30080", here, ""),
            (Local, Cluster, Entry::Pod, "10.244.1.9", "172.30.0.2:30080", both, ""),
            (Local, Cluster, Entry::Local, "172.30.0.2", "172.30.0.2:30080", both, ", masqueraded"),
            (Cluster, Local, Entry::Pod, "10.244.1.9", "10.96.0.20:80", here, ""),
            (Cluster, Local, Entry::Local, "172.30.0.2", "10.96.0.20:80", here, ", masqueraded"),
        ];
        for (external, internal, entry, from, to, destinations, source) in rows {
            let world = world(external, internal, &[READY_HERE, READY_THERE]);
            let expected = format!("pass to {destinations}{source}");
            assert_eq!(ask(&world, entry, from, to), expected, "{entry:?} {from} to {to}");
        }
    }

    #[test]
    fn terminating_endpoints_serve_only_without_ready_ones() {
        use TrafficPolicy::{Cluster, Local};
        let leaving = [LEAVING_HERE];
        let mixed = [LEAVING_HERE, READY_THERE];
        let pod = |world: &World| ask(world, Entry::Pod, "10.244.1.9", "10.96.0.20:80");
        assert_eq!(pod(&world(Cluster, Cluster, &leaving)), "pass to 10.244.1.6:8080");
        assert_eq!(pod(&world(Cluster, Cluster, &mixed)), "pass to 10.244.2.5:8080");
        assert_eq!(pod(&world(Cluster, Local, &mixed)), "pass to 10.244.1.6:8080");
    }

    #[test]
    fn nothing_here_drops_and_nothing_anywhere_refuses() {
        use TrafficPolicy::{Cluster, Local};
        let pod = |world: &World| ask(world, Entry::Pod, "10.244.1.9", "10.96.0.20:80");
        assert_eq!(pod(&world(Cluster, Local, &[READY_THERE])), "drop");
        assert_eq!(pod(&world(Cluster, Local, &[])), "reject");
        assert_eq!(pod(&world(Cluster, Cluster, &[])), "reject");
    }

    #[test]
    fn addresses_outside_the_api_pass_or_stop() {
        let world = world(TrafficPolicy::Cluster, TrafficPolicy::Cluster, &[READY_HERE]);
        let rows = [
            (Entry::Pod, "10.244.1.9", "10.96.0.20:81", "reject"),
            (Entry::Pod, "10.244.1.9", "10.96.9.9:80", "drop"),
            (Entry::Pod, "10.244.1.9", "10.96.0.10:53", "pass to 10.96.0.10:53"),
            (Entry::Pod, "10.244.1.9", "10.96.0.10:9153", "reject"),
            (Entry::Pod, "10.244.1.9", "10.244.3.3:80", "pass to 10.244.3.3:80"),
            (Entry::Pod, "10.244.1.9", "203.0.113.1:443", "pass to 203.0.113.1:443, masqueraded"),
            (Entry::Uplink, "192.0.2.1", "127.0.0.1:80", "drop"),
            (Entry::Local, "127.0.0.1", "127.0.0.1:80", "pass to 127.0.0.1:80"),
            (Entry::Local, "172.30.0.2", "203.0.113.1:443", "pass to 203.0.113.1:443"),
        ];
        for (entry, from, to, expected) in rows {
            assert_eq!(ask(&world, entry, from, to), expected, "{entry:?} {from} to {to}");
        }
        let itself = ask(&world, Entry::Pod, "10.244.1.5", "10.96.0.20:80");
        assert_eq!(itself, "pass to 10.244.1.5:8080, masqueraded towards {10.244.1.5}");
    }
}
