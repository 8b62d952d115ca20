//! Addresses at which a Service is found from outside, and for whom they are.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{ClusterConfig, Family, Service};

use super::Node;

/// Whether packets to `address` are the Service's: it is an address of its load balancer that
/// leaves balancing to nodes (KEP-1860), or one of its `externalIPs` that the cluster allows. Never
/// an address of pods or Services, nor one that nobody routes, nor of a family that the Service
/// does not have.
pub fn is_address_of(service: &Service, config: &ClusterConfig, address: IpAddr) -> bool {
    let allowed = config.external_ip_ranges.iter().any(|range| range.contains(&address));
    let is_external_ip = allowed && service.spec.external_ips.iter().any(|one| is(one, address));
    let mut inside = config.pod_cidrs.iter().chain(&config.service_cidrs);
    (is_external_ip || is_load_balancer_of(service, address))
        && !service.is_headless()
        && has_family(service, address)
        && is_routable(address)
        && !inside.any(|range| range.contains(&address))
}

/// Whether `client` may use the Service by an external `address`.
pub fn admits(service: &Service, address: IpAddr, client: IpAddr, node: Node<'_>) -> bool {
    let texts = &service.spec.load_balancer_source_ranges;
    if texts.is_empty() || !is_load_balancer_of(service, address) {
        return true;
    }
    let ranges: Vec<IpNet> = texts.iter().filter_map(|text| text.trim().parse().ok()).collect();
    let in_ranges = |one: IpAddr| ranges.iter().any(|range| range.contains(&one));
    // Where a load balancer has put its address on the node, the node's packets come from it.
    let own = client == address
        && node
            .addresses
            .iter()
            .any(|&own| Family::of(&own) == Family::of(&address) && in_ranges(own));
    in_ranges(client) || own
}

/// Whether the Service has addresses of the family.
pub fn has_family(service: &Service, address: IpAddr) -> bool {
    service.cluster_ips().any(|own| Family::of(&own) == Family::of(&address))
}

fn is_load_balancer_of(service: &Service, address: IpAddr) -> bool {
    service.load_balancer_vips().any(|vip| is(vip, address))
}

fn is(text: &str, address: IpAddr) -> bool {
    text.parse() == Ok(address)
}

fn is_routable(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !special && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}
