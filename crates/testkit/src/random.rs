//! Small random worlds: few names and few addresses, so that collisions of every kind happen.
//!
//! Everything is decoded from bytes ([`Choices`]): a test library shrinks bytes towards zero, and
//! zero is always the plainest choice. The simulator draws its bytes from a seed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::cluster::nth_address;
use model::kinds::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, SERVICE_NAME_LABEL, Service, ServicePort,
    ServiceType, SessionAffinity, TrafficPolicy,
};
use model::packet::{Entry, Packet};
use model::world::Object;
use model::{Family, Protocol, World};
use plan::NodeFacts;

use crate::case::names::outside;
use crate::objects;

/// The machine outside.
const OUTSIDE: IpAddr = outside(Family::V4);
/// Nodes of a random world.
pub const NODES: u8 = 3;
/// Services at most.
const SERVICES_MAX: usize = 4;
/// Slices of one Service at most.
const SLICES_MAX: usize = 3;
/// Endpoints of one slice at most.
const ENDPOINTS_MAX: usize = 4;
/// Different pods of one node.
const PODS_PER_NODE: u8 = 3;

/// Decisions read from bytes; past their end every decision is the first one.
#[derive(Debug)]
pub struct Choices<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl<'a> Choices<'a> {
    /// Decisions from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter() }
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.bytes.next().copied().unwrap_or_default()) % count.max(1)
    }

    /// True once in `count` times.
    pub fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == count.saturating_sub(1)
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Bytes from a seed (splitmix64, public domain, S. Vigna).
pub fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut generator = Generator::new(seed);
    (0..count).map(|_| generator.next() as u8).collect()
}

/// A small deterministic generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Generator {
    state: u64,
}

impl Generator {
    /// A generator with its own sequence for every seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// The node objects of random worlds.
pub fn nodes() -> Vec<Object> {
    (1..=NODES)
        .map(|number| Object::Node(objects::node(number, &objects::config()).into()))
        .collect()
}

/// Services and slices. No address, node port or slice name is taken twice, as the API grants.
pub fn services(choices: &mut Choices<'_>) -> Vec<Object> {
    let mut found = Vec::new();
    let mut node_ports = BTreeSet::new();
    for number in 0..choices.below(SERVICES_MAX + 1) {
        let service = service(choices, number, &mut node_ports);
        for slice in 0..choices.below(SLICES_MAX + 1) {
            found.push(Object::EndpointSlice(Arc::new(self::slice(choices, &service, slice))));
        }
        if !choices.once_in(8) {
            found.push(Object::Service(Arc::new(service)));
        }
    }
    found
}

fn service(choices: &mut Choices<'_>, number: usize, node_ports: &mut BTreeSet<u16>) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = format!("s{number}");
    let address = match choices.below(8) {
        7 => "None".to_string(),
        _ => format!("10.96.0.{}", 20 + number),
    };
    service.spec.cluster_ips = vec![address];
    let kinds = [ServiceType::ClusterIP, ServiceType::NodePort, ServiceType::LoadBalancer];
    service.spec.kind = choices.one_of(&kinds);
    if service.is_headless() {
        service.spec.kind = ServiceType::ClusterIP;
    }
    if choices.once_in(10) {
        service.spec.kind = ServiceType::ExternalName;
        service.spec.cluster_ips = vec![];
        service.spec.external_name = "Example.com".into();
    }
    let policies = [TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local];
    service.spec.internal_traffic_policy = choices.one_of(&policies);
    service.spec.external_traffic_policy = choices.one_of(&policies);
    if choices.once_in(4) {
        service.spec.session_affinity = SessionAffinity::ClientIP;
    }
    if choices.once_in(12) {
        let label = "service.kubernetes.io/service-proxy-name";
        service.metadata.labels.insert(label.into(), "other".into());
        // Whoever owns it, the address is not ours to judge.
        service.spec.cluster_ips = vec!["None".into()];
    }
    for index in 0..=choices.below(3) {
        let mut port = ServicePort {
            name: format!("p{index}"),
            protocol: choices.one_of(&[Protocol::Tcp, Protocol::Udp]),
            port: 80 + index as u16,
            ..ServicePort::default()
        };
        let node_port = 30000 + choices.below(16) as u16;
        if service.has_node_ports() && node_ports.insert(node_port) {
            port.node_port = node_port;
        }
        service.spec.ports.push(port);
    }
    service
}

fn slice(choices: &mut Choices<'_>, service: &Service, number: usize) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    let name = &service.metadata.name;
    slice.metadata.namespace = "default".into();
    slice.metadata.name = format!("{name}-{number}");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), name.clone());
    slice.address_type = choices.one_of(&["IPv4", "IPv4", "IPv4", "FQDN"]).to_string();
    for port in &service.spec.ports {
        if choices.once_in(6) {
            continue;
        }
        slice.ports.push(EndpointPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: choices.one_of(&[Some(8080), Some(8080), Some(9090), None]),
        });
    }
    for _ in 0..choices.below(ENDPOINTS_MAX + 1) {
        let node = 1 + choices.below(usize::from(NODES)) as u8;
        let address = pod_address(node, choices.below(usize::from(PODS_PER_NODE)) as u8);
        let conditions = match choices.below(6) {
            0..=2 => (None, None, None),
            3 => (Some(false), Some(false), Some(false)),
            4 => (Some(false), Some(true), Some(true)),
            _ => (Some(false), Some(false), Some(true)),
        };
        slice.endpoints.push(Endpoint {
            addresses: vec![address.to_string()],
            node_name: format!("node{node}"),
            hostname: choices.one_of(&["", "", "h0", "H1"]).to_string(),
            conditions: Conditions {
                ready: conditions.0,
                serving: conditions.1,
                terminating: conditions.2,
            },
            ..Endpoint::default()
        });
    }
    slice
}

/// The address of a pod.
fn pod_address(node: u8, number: u8) -> IpAddr {
    IpAddr::from([10, 244, node, 10 + number])
}

/// A packet that can arrive at this node of this world. Nothing comes to a ClusterIP from another
/// node's pod: that node translates it.
pub fn packet(choices: &mut Choices<'_>, world: &World, facts: &NodeFacts) -> Packet {
    let places = Places::of(world, facts);
    let protocol = choices.one_of(&[Protocol::Tcp, Protocol::Udp]);
    let destination = destination(choices, world, &places);
    let is_pod = objects::config().is_pod_address(destination.ip());
    let is_node = destination.ip() == places.node;
    let (entry, source) = match choices.below(5) {
        0 | 1 => (Entry::Pod, places.pod(choices)),
        2 if !destination.ip().is_loopback() => (Entry::Local, places.node),
        3 if is_pod => (Entry::Overlay, places.remote_pod(choices)),
        3 if is_node => (Entry::Uplink, places.remote_pod(choices)),
        4 => (Entry::Uplink, places.remote_node),
        _ => (Entry::Uplink, OUTSIDE),
    };
    // What a pod sends to its own address never leaves it.
    let source = if source == destination.ip() { OUTSIDE } else { source };
    let entry = if source == OUTSIDE { Entry::Uplink } else { entry };
    let source = SocketAddr::new(source, 40000 + choices.below(256) as u16);
    Packet { entry, source, destination, protocol }
}

/// The addresses around one node.
struct Places {
    node: IpAddr,
    remote_node: IpAddr,
    pods: Vec<IpAddr>,
    remote_pods: Vec<IpAddr>,
}

impl Places {
    fn of(world: &World, facts: &NodeFacts) -> Self {
        let (mut pods, mut remote_pods, mut remote_node) = (Vec::new(), Vec::new(), OUTSIDE);
        for node in world.nodes() {
            let range = node.spec.pod_cidrs.first();
            // Those that random worlds use, and those that a runtime gives first.
            let some = [2, 3, 4, 10, 11, 12];
            let some = some.into_iter().filter_map(|n| nth_address(range?, n));
            if node.name() == facts.name {
                pods.extend(some);
            } else {
                remote_pods.extend(some);
                remote_node = node.internal_ips().next().unwrap_or(remote_node);
            }
        }
        let node = facts.addresses.first().copied().unwrap_or(OUTSIDE);
        Self { node, remote_node, pods, remote_pods }
    }

    fn pod(&self, choices: &mut Choices<'_>) -> IpAddr {
        if self.pods.is_empty() { OUTSIDE } else { choices.one_of(&self.pods) }
    }

    fn remote_pod(&self, choices: &mut Choices<'_>) -> IpAddr {
        if self.remote_pods.is_empty() { OUTSIDE } else { choices.one_of(&self.remote_pods) }
    }
}

fn destination(choices: &mut Choices<'_>, world: &World, places: &Places) -> SocketAddr {
    let all: Vec<&Arc<Service>> =
        world.services().filter(|service| !service.spec.ports.is_empty()).collect();
    if !all.is_empty() && !choices.once_in(4) {
        let service = all[choices.below(all.len())];
        let port = &service.spec.ports[choices.below(service.spec.ports.len())];
        let address = service.cluster_ips().next();
        if let Some(address) = address.filter(|_| port.node_port == 0 || choices.below(2) == 0) {
            let port = if choices.once_in(10) { 7 } else { port.port };
            return SocketAddr::new(address, port);
        }
        return SocketAddr::new(places.node, port.node_port.max(1));
    }
    match choices.below(8) {
        0 => SocketAddr::new(places.pod(choices), 8080),
        1 => SocketAddr::new(places.remote_pod(choices), 8080),
        2 => SocketAddr::new(OUTSIDE, 443),
        3 => SocketAddr::new(places.remote_node, 30001),
        4 => SocketAddr::new(places.node, 30015),
        5 => SocketAddr::new(IpAddr::from([10, 96, 99, 99]), 80),
        6 => {
            let dns = objects::config().dns_address(Family::V4).unwrap_or(OUTSIDE);
            SocketAddr::new(dns, choices.one_of(&[53, 9153]))
        }
        _ => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 8080),
    }
}
