//! A veth pair without a shared layer 2: the node routes to each address of the pod.
//!
//! Both ends know each other's link-layer address for good, so that nobody ever asks for one:
//! nothing can be claimed by ARP or neighbour discovery, no proxy ARP is needed, and the
//! entries do not count towards the neighbour table's limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{MacAddress, layout};
use netlink::{
    Ipv4Parameter, Link, LinkChange, Neighbour, Netlink, Route as KernelRoute, VethSpec, sysctl,
};
use nix::libc;

use super::pod::Setup;
use super::{
    Job, Made, bandwidth, default_route, enable_forwarding, removal, wait_until_it_works,
    write_where_present,
};
use crate::fault::Fault;

/// The gateway of every routed pod: on its link alone, and on no link of the node.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 gateway of every routed pod; the node's end has it.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The gateway that a routed pod uses for the family of an address.
pub(super) fn gateway_of(address: &IpNet) -> IpAddr {
    match address {
        IpNet::V4(_) => GATEWAY_V4.into(),
        IpNet::V6(_) => GATEWAY_V6.into(),
    }
}

/// Makes the pair, and the node's routes to the pod.
pub(super) fn make(job: &Job<'_>) -> Result<Made, Fault> {
    let mut node = Netlink::open()?;
    let name = job.attachment.link.node_end().unwrap_or_default();
    let interface = &job.request.interface;
    // Each pair is a segment of its own, so that all of the node's ends can have one address.
    let gateway_mac = MacAddress::of_pod_address(GATEWAY_V4.into());
    let mut spec = VethSpec::new(name, interface)
        .mac(gateway_mac)
        .peer_in(job.namespace)
        .peer_mac(job.attachment.mac);
    if let Some(mtu) = job.options.mtu {
        spec = spec.mtu(mtu);
    }
    removal::create_veth(&mut node, name, &spec)?;
    let near = node.require_link(name)?;
    write_parameters(&mut node, &near, job)?;
    let alias = job.alias();
    node.change_link(near.index, &LinkChange { alias: Some(&alias), ..LinkChange::up() })?;
    bandwidth::apply(&mut node, job.attachment)?;
    let addresses = job.addresses(1, &|address, _| Some(gateway_of(address)));
    let mut routes = job.routes.to_vec();
    // A pod that is alone on its link reaches nothing without a route.
    for address in &addresses {
        let is_ipv4 = address.address.addr().is_ipv4();
        if !routes.iter().any(|route| route.dst.addr().is_ipv4() == is_ipv4) {
            routes.push(default_route(&address.address));
        }
    }
    // A next hop of the configuration would be on a segment that does not exist here.
    for route in &mut routes {
        route.gw = None;
    }
    let setup = Setup {
        interface,
        index: near.peer_index,
        alias: None,
        addresses: &addresses,
        routes: &routes,
        gateway_mac: Some(gateway_mac),
        tuning: &job.options.tuning,
        down: false,
    };
    let far = job.namespace.run(|| setup.run())??;
    wait_until_it_works(&mut node, name)?;
    lead_in(&mut node, near.index, job)?;
    enable_forwarding(job.attachment.addresses.iter())?;
    let interfaces = vec![job.interface(&near, false), job.interface(&far, true)];
    Ok(Made { interfaces, addresses, routes })
}

/// Parameters of the node's end, before it is up.
fn write_parameters(node: &mut Netlink, near: &Link, job: &Job<'_>) -> Result<(), netlink::Error> {
    let edge = &job.attachment.edge;
    // A second line behind the edge's rules: packets from elsewhere than the pod's addresses do
    // not pass. Addresses that an administrator allows besides have no route back to this link.
    let strict = edge.anti_spoofing && edge.extra_sources.is_empty();
    let ipv4 = [
        (Ipv4Parameter::ReversePathFilter, u32::from(strict)),
        (Ipv4Parameter::AcceptRedirects, 0),
    ];
    node.change_link(near.index, &LinkChange { ipv4: &ipv4, ..LinkChange::default() })?;
    let name = &near.name;
    if !job.attachment.addresses.iter().any(|net| net.addr().is_ipv6()) {
        return write_where_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
    }
    // The gateway's address is its only one (addr_gen_mode 1: none is made from the MAC address).
    for (key, value) in
        [("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0"), ("addr_gen_mode", "1")]
    {
        sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), value)?;
    }
    Ok(())
}

/// The node's addresses, neighbours and routes towards the pod.
fn lead_in(node: &mut Netlink, link_index: u32, job: &Job<'_>) -> Result<(), netlink::Error> {
    let attachment = job.attachment;
    if attachment.addresses.iter().any(|net| net.addr().is_ipv6()) {
        let gateway =
            IpNet::new(GATEWAY_V6.into(), 64).unwrap_or(IpNet::from(IpAddr::from(GATEWAY_V6)));
        node.add_address(link_index, gateway)?;
    }
    for (number, net) in attachment.addresses.iter().enumerate() {
        let address = net.addr();
        node.set_neighbour(&Neighbour { link_index, address, mac: attachment.mac })?;
        let route = KernelRoute {
            source: job.gateways.get(number).copied().flatten(),
            ..KernelRoute::on_link(*net, link_index, layout::POD_ROUTE_PROTOCOL)
        };
        match node.add_route(&route) {
            // The gateway of the range is no address of this node: its own one serves.
            Err(error) if error.errno == libc::EINVAL && route.source.is_some() => {
                node.add_route(&KernelRoute { source: None, ..route })?;
            }
            result => result?,
        }
    }
    Ok(())
}
