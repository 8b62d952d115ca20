//! The endpoints of a Service, as its slices state them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::kinds::{EndpointPort, EndpointSlice, ForName, ServicePort};
use model::{Family, Protocol, Service, World};

use super::{HEADLESS_LABEL, Node, PROXY_NAME_LABEL, annotations};

/// One address of a Service port, as one slice states it.
pub struct Endpoint {
    pub address: SocketAddr,
    pub is_ready: bool,
    pub is_leaving_but_serving: bool,
    pub is_local: bool,
    /// Connections to it were not answered here.
    pub is_silent: bool,
    for_nodes: BTreeSet<String>,
    for_zones: BTreeSet<String>,
}

/// The endpoints of one Service port: slice ports have its name and protocol, and a number.
pub fn of_port(
    world: &World,
    node: Node<'_>,
    service: &Service,
    family: Family,
    port: &ServicePort,
) -> Vec<Endpoint> {
    let is_meant =
        |offer: &&EndpointPort| offer.name == port.name && offer.protocol == port.protocol;
    let mut found = Vec::new();
    for slice in slices(world, service, family) {
        let numbers = slice.ports.iter().filter(is_meant).filter_map(|offer| offer.port);
        for number in numbers.filter(|&number| number != 0) {
            found.extend(of_slice(
                world,
                node,
                service,
                &slice,
                family,
                (number, Some(port.protocol)),
            ));
        }
    }
    found
}

/// All endpoints of a Service, whatever ports their slices name, at the port `number`.
pub fn of_any_port(
    world: &World,
    node: Node<'_>,
    service: &Service,
    family: Family,
    number: u16,
) -> Vec<Endpoint> {
    let slices = slices(world, service, family);
    let of_slice =
        |slice: &EndpointSlice| of_slice(world, node, service, slice, family, (number, None));
    slices.iter().flat_map(of_slice).collect()
}

/// What `choose` takes among the endpoints that answer; where it takes none of these, what it takes
/// among all: a node that believes everybody silent may be the one that is cut off.
pub fn preferring_answering(
    endpoints: &[Endpoint],
    choose: impl Fn(&[&Endpoint]) -> BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    let answering: Vec<&Endpoint> = endpoints.iter().filter(|one| !one.is_silent).collect();
    let chosen = choose(&answering);
    if !chosen.is_empty() {
        return chosen;
    }
    choose(&endpoints.iter().collect::<Vec<_>>())
}

/// The ready ones; without any, those that still serve while they terminate (KEP-1669).
pub fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> BTreeSet<SocketAddr> {
    let ready = addresses(endpoints.clone().filter(|endpoint| endpoint.is_ready));
    if !ready.is_empty() {
        return ready;
    }
    addresses(endpoints.filter(|endpoint| endpoint.is_leaving_but_serving))
}

/// The usable ones where distance counts: hints keep endpoints for clients of some nodes or zones.
/// They count when every ready endpoint has them and some are for this node, or else this zone;
/// terminating endpoints are used wherever they are (KEP-2433, KEP-3015).
pub fn usable_nearby(
    endpoints: &[&Endpoint],
    node: &str,
    zone: Option<&str>,
) -> BTreeSet<SocketAddr> {
    let ready: Vec<&Endpoint> =
        endpoints.iter().copied().filter(|endpoint| endpoint.is_ready).collect();
    if ready.iter().all(|endpoint| !endpoint.for_nodes.is_empty()) {
        let here = ready.iter().filter(|endpoint| endpoint.for_nodes.contains(node));
        let here = addresses(here.copied());
        if !here.is_empty() {
            return here;
        }
    }
    if let Some(zone) = zone
        && ready.iter().all(|endpoint| !endpoint.for_zones.is_empty())
    {
        let near = ready.iter().filter(|endpoint| endpoint.for_zones.contains(zone));
        let near = addresses(near.copied());
        if !near.is_empty() {
            return near;
        }
    }
    usable(endpoints.iter().copied())
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> BTreeSet<SocketAddr> {
    endpoints.map(|endpoint| endpoint.address).collect()
}

fn slices(world: &World, service: &Service, family: Family) -> Vec<EndpointSlice> {
    let is_proxied = |slice: &EndpointSlice| {
        let labels = &slice.metadata.labels;
        !labels.contains_key(PROXY_NAME_LABEL) && !labels.contains_key(HEADLESS_LABEL)
    };
    let key = service.metadata.key();
    let of_family = world.slices_of(&key).filter(|slice| slice.address_type == family.to_string());
    of_family.filter(is_proxied).collect()
}

/// Of no protocol are the endpoints of port ranges: no single port of theirs is watched.
fn of_slice(
    world: &World,
    node: Node<'_>,
    service: &Service,
    slice: &EndpointSlice,
    family: Family,
    (number, protocol): (u16, Option<Protocol>),
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for endpoint in &slice.endpoints {
        let Some(address) = endpoint.address().filter(|address| may_be_endpoint(*address, family))
        else {
            continue;
        };
        let takes_clients = annotations::weight(service, endpoint, address) > 0;
        let conditions = &endpoint.conditions;
        let hints = endpoint.hints.as_deref().cloned().unwrap_or_default();
        let names = |list: Vec<ForName>| list.into_iter().map(|entry| entry.name).collect();
        found.push(Endpoint {
            address: SocketAddr::new(address, number),
            is_ready: takes_clients && conditions.is_ready(),
            is_leaving_but_serving: takes_clients
                && conditions.is_terminating()
                && conditions.is_serving(),
            is_local: !node.name.is_empty() && endpoint.node_name == node.name,
            is_silent: world.unreachable().nodes.contains(&endpoint.node_name)
                || (protocol == Some(Protocol::Tcp)
                    && world.unreachable().endpoints.contains(&(address, number).into())),
            for_nodes: names(hints.for_nodes),
            for_zones: names(hints.for_zones),
        });
    }
    found
}

/// The API server lets no other address into a slice: endpoints are no loopback, link-local or
/// multicast addresses, and of the slice's family.
fn may_be_endpoint(address: IpAddr, family: Family) -> bool {
    let fits = match address {
        IpAddr::V4(address) => {
            family == Family::V4 && !address.is_link_local() && !address.is_broadcast()
        }
        IpAddr::V6(address) => {
            family == Family::V6
                && !address.is_unicast_link_local()
                && address.to_ipv4_mapped().is_none()
        }
    };
    fits && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}
