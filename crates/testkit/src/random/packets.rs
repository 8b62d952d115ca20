//! Random packets, most of them to something that a random world has.

use std::net::{IpAddr, SocketAddr};

use model::cluster::nth_address;
use model::kinds::{Service, ServicePort};
use model::packet::{Entry, Packet};
use model::{ClusterConfig, Family, Protocol, World};
use plan::NodeFacts;

use super::Choices;
use crate::case::names::outside;
use crate::objects;

/// Hosts of a pod range: those that a runtime gives first, and those that random worlds use.
const HOSTS: [u128; 6] = [2, 3, 4, 10, 11, 12];
/// Ports beside those of random Services: next to them, within their ranges, and of nobody.
const PORTS: [u16; 8] = [7, 79, 81, 83, 85, 92, 1000, 65535];

/// A packet that can arrive at this node of this world. Nothing comes to a ClusterIP or an
/// external address from another node's pod: that node translates it.
pub fn packet(
    choices: &mut Choices<'_>,
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Packet {
    let (destination, protocol) = destination(choices, world, config, facts);
    let places = Places::of(world, facts, Family::of(&destination.ip()));
    let is_pod = config.is_pod_address(destination.ip());
    let is_node = facts.addresses.contains(&destination.ip());
    let (entry, source) = match choices.below(5) {
        0 | 1 => (Entry::Pod, choices.one_of(&places.pods)),
        2 if !destination.ip().is_loopback() => (Entry::Local, places.node),
        3 if is_pod => (Entry::Overlay, choices.one_of(&places.remote_pods)),
        3 if is_node => (Entry::Uplink, choices.one_of(&places.remote_pods)),
        4 => (Entry::Uplink, places.remote_node),
        _ => (Entry::Uplink, places.outside),
    };
    // What a pod sends to its own address never leaves it.
    let (entry, source) =
        if source == destination.ip() { (Entry::Uplink, places.outside) } else { (entry, source) };
    let source = SocketAddr::new(source, 40000 + choices.below(256) as u16);
    Packet { entry, source, destination, protocol }
}

/// The addresses around one node, of one family.
struct Places {
    node: IpAddr,
    remote_node: IpAddr,
    outside: IpAddr,
    /// Never empty.
    pods: Vec<IpAddr>,
    remote_pods: Vec<IpAddr>,
}

impl Places {
    fn of(world: &World, facts: &NodeFacts, family: Family) -> Self {
        let outside = outside(family);
        let (mut pods, mut remote_pods, mut remote_node) = (Vec::new(), Vec::new(), outside);
        for node in world.nodes() {
            let ranges = node.spec.pod_cidrs.iter();
            let own = ranges.filter(|range| Family::of(&range.addr()) == family);
            let some = own.flat_map(|range| HOSTS.map(|host| nth_address(range, host))).flatten();
            if node.name() == facts.name {
                pods.extend(some);
            } else {
                remote_pods.extend(some);
                let mut addresses = node.internal_ips();
                remote_node =
                    addresses.find(|address| Family::of(address) == family).unwrap_or(remote_node);
            }
        }
        let or_outside = |all: Vec<IpAddr>| if all.is_empty() { vec![outside] } else { all };
        let mut own = facts.addresses.iter().copied();
        let node = own.find(|address| Family::of(address) == family).unwrap_or(outside);
        let (pods, remote_pods) = (or_outside(pods), or_outside(remote_pods));
        Self { node, remote_node, outside, pods, remote_pods }
    }
}

fn destination(
    choices: &mut Choices<'_>,
    world: &World,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> (SocketAddr, Protocol) {
    let protocol = choices.one_of(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let services = world.services().filter(|service| !service.spec.ports.is_empty());
    let all: Vec<Service> = services.collect();
    if !all.is_empty() && !choices.once_in(6) {
        let service = &all[choices.below(all.len())];
        let port = &service.spec.ports[choices.below(service.spec.ports.len())];
        let frontends = frontends(service, port, config, facts);
        if let Some(mut destination) = frontends.get(choices.below(frontends.len())).copied() {
            if choices.once_in(5) {
                destination.set_port(choices.one_of(&PORTS));
            }
            return (destination, if choices.once_in(6) { protocol } else { port.protocol });
        }
    }
    let families: Vec<Family> = objects::families(config).collect();
    let family = families[choices.below(families.len())];
    let places = Places::of(world, facts, family);
    let destination = match choices.below(8) {
        0 => SocketAddr::new(choices.one_of(&places.pods), 8080),
        1 => SocketAddr::new(choices.one_of(&places.remote_pods), 8080),
        2 => SocketAddr::new(places.outside, 443),
        3 => SocketAddr::new(places.remote_node, 30001),
        4 => SocketAddr::new(places.node, 30015),
        5 => {
            let mut ranges = config.service_cidrs.iter();
            let range = ranges.find(|range| Family::of(&range.addr()) == family);
            let nobody = range.and_then(|range| nth_address(range, 9999));
            SocketAddr::new(nobody.unwrap_or(places.outside), 80)
        }
        6 => {
            let dns = config.dns_address(family).unwrap_or(places.outside);
            SocketAddr::new(dns, choices.one_of(&[53, 9153]))
        }
        _ if family == Family::V4 => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 8080),
        _ => SocketAddr::new(places.node, 8080),
    };
    (destination, protocol)
}

/// Where clients may look for a Service's port, whether it is heeded or not.
fn frontends(
    service: &Service,
    port: &ServicePort,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Vec<SocketAddr> {
    let ingress = service.status.load_balancer.ingress.iter().map(|entry| &entry.ip);
    let external = service.spec.external_ips.iter().chain(ingress);
    let external = external.filter_map(|text| text.parse::<IpAddr>().ok());
    let addresses = service.cluster_ips().chain(external);
    let mut found: Vec<SocketAddr> =
        addresses.map(|address| SocketAddr::new(address, port.port)).collect();
    if port.node_port != 0 {
        let own = facts.addresses.iter();
        found.extend(own.map(|address| SocketAddr::new(*address, port.node_port)));
    }
    let is_of_cluster =
        |at: &SocketAddr| objects::families(config).any(|family| family == Family::of(&at.ip()));
    found.retain(is_of_cluster);
    found
}
