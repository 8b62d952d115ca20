//! One pod on the bridge: a veth pair whose far end is born inside the pod.
//!
//! The near end is named by a hash of container and interface, so that DEL finds it without any
//! record, and carries the container id as its alias, so that nothing foreign is ever taken for
//! ours (invariant 4).

use std::net::IpAddr;

use ipam::Reserved;
use ipnet::IpNet;
use model::mac::fnv1a;
use model::{MacAddress, layout};
use netlink::{
    BridgeSpec, Link, LinkChange, Netlink, Netns, Route as KernelRoute, VethSpec, sysctl,
};
use nix::libc;

use crate::config::{Config, Route};
use crate::fault::{
    Fault, INTERFACE_EXISTS, INVALID_ENVIRONMENT, KERNEL_REFUSED, UNKNOWN_CONTAINER,
};
use crate::request::Request;
use crate::result::{Address, Interface, Success};

/// `RTPROT_STATIC`: the routes inside a pod are an administrator's, as far as routing daemons in
/// the pod are concerned.
const POD_ROUTE_PROTOCOL: u8 = 4;
const LOOPBACK: &str = "lo";

/// The name of the node's end of a pod link.
pub(crate) fn node_end(container_id: &str, interface: &str) -> String {
    let hash = fnv1a(format!("{container_id}\0{interface}").as_bytes());
    format!("{}{hash:08x}", layout::POD_LINK_PREFIX)
}

/// Opens the pod's namespace.
///
/// # Errors
/// Code 3 when it is gone; code 4 when it is none, or the node's own.
pub(crate) fn open_namespace(request: &Request) -> Result<Netns, Fault> {
    let path = request.namespace.as_deref().unwrap_or(std::path::Path::new(""));
    let namespace = Netns::open(path).map_err(|error| {
        let code = if error.is_absent() { UNKNOWN_CONTAINER } else { INVALID_ENVIRONMENT };
        Fault::new(code, format!("cannot open CNI_NETNS {}", path.display()), error)
    })?;
    if namespace.identity()? == Netns::current()?.identity()? {
        return Err(Fault::new(
            INVALID_ENVIRONMENT,
            format!("CNI_NETNS {} is the node's own network namespace", path.display()),
            "a pod with host networking needs no plugin",
        ));
    }
    Ok(namespace)
}

/// Refuses a pod that has the interface already (CNI-10): it is another plugin's, or an earlier
/// ADD's that still holds.
pub(crate) fn refuse_existing(namespace: &Netns, interface: &str) -> Result<(), Fault> {
    match Netlink::open_in(namespace)?.link(interface)? {
        None => Ok(()),
        Some(_) => Err(Fault::new(
            INTERFACE_EXISTS,
            format!("the interface {interface} is in the container already"),
            "call DEL before another ADD, or choose another CNI_IFNAME",
        )),
    }
}

/// Puts the pod on the bridge and answers what was made. On an error the caller removes what is
/// there, by [`remove`].
pub(crate) fn make(
    request: &Request,
    config: &Config,
    namespace: &Netns,
    reserved: &[Reserved],
) -> Result<Success, Fault> {
    let mut node = Netlink::open()?;
    let bridge = ensure_bridge(&mut node, config, reserved)?;
    let name = node_end(&request.container_id, &request.interface);
    remove_link(&mut node, &name)?; // what an ADD that was killed left
    let mut spec = VethSpec::new(&name, &request.interface).peer_in(namespace).master(bridge.index);
    if let Some(first) = reserved.first() {
        spec = spec.peer_mac(MacAddress::of_pod_address(first.address));
    }
    if let Some(mtu) = config.mtu {
        spec = spec.mtu(mtu);
    }
    node.create_veth(&spec)?;
    let near = node.require_link(&name)?;
    let alias = format!("{}{}", layout::POD_LINK_ALIAS_PREFIX, request.container_id);
    // A bridge port needs no address of its own: without IPv6 it hears no router advertisement.
    write_where_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    node.set_hairpin(near.index, true)?;
    node.change_link(near.index, &LinkChange { alias: Some(&alias), ..LinkChange::up() })?;
    let addresses = addresses_of(reserved);
    let far = namespace.run(|| set_up_pod(&request.interface, &addresses, &config.routes))??;
    let interface = |link: &Link, sandbox: String| Interface {
        name: link.name.clone(),
        mac: link.mac.unwrap_or_default().to_string(),
        mtu: link.mtu,
        sandbox,
        ..Interface::default()
    };
    let sandbox = request.namespace.as_ref().map(|path| path.display().to_string());
    Ok(Success {
        interfaces: vec![
            interface(&near, String::new()),
            interface(&far, sandbox.unwrap_or_default()),
        ],
        addresses,
        routes: config.routes.clone(),
        dns: config.dns.clone(),
    })
}

/// Removes the node's end of a pod link, and thereby the pod's. Nothing there is no error.
pub(crate) fn remove(container_id: &str, interface: &str) -> Result<(), Fault> {
    remove_link(&mut Netlink::open()?, &node_end(container_id, interface))
}

/// The node's ends of all pod links of ours.
pub(crate) fn all_node_ends(node: &mut Netlink) -> Result<Vec<Link>, Fault> {
    Ok(node.links()?.into_iter().filter(is_ours).collect())
}

/// The next hop of a route inside the pod: its own, or the gateway of its family.
pub(crate) fn next_hop(route: &Route, addresses: &[Address]) -> Option<IpAddr> {
    let of_family =
        |address: &&Address| address.address.addr().is_ipv4() == route.dst.addr().is_ipv4();
    route.gw.or_else(|| addresses.iter().find(of_family).and_then(|address| address.gateway))
}

fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.kind == "veth"
        && link.name.starts_with(layout::POD_LINK_PREFIX)
        && alias.starts_with(layout::POD_LINK_ALIAS_PREFIX)
}

/// Removes a link of ours. One without an alias is what an ADD left that was killed between two
/// messages; one with another program's alias stays.
fn remove_link(node: &mut Netlink, name: &str) -> Result<(), Fault> {
    let Some(link) = node.link(name)? else { return Ok(()) };
    if !is_ours(&link) && (link.kind != "veth" || link.alias.is_some()) {
        return Err(Fault::new(
            KERNEL_REFUSED,
            format!("the link {name} belongs to another program"),
            "rename or delete it",
        ));
    }
    match node.delete_link(link.index) {
        Err(error) if !error.is_absent() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The bridge; made, with the gateways' addresses, where the agent has not made it yet.
fn ensure_bridge(
    node: &mut Netlink,
    config: &Config,
    reserved: &[Reserved],
) -> Result<Link, Fault> {
    if let Some(link) = node.link(&config.bridge)? {
        return accept_bridge(link);
    }
    let gateways: Vec<IpNet> = reserved
        .iter()
        .filter_map(|one| IpNet::new(one.range.gateway()?, one.range.subnet.prefix_len()).ok())
        .collect();
    let spec = BridgeSpec {
        name: config.bridge.clone(),
        mac: gateways.first().map(|gateway| MacAddress::of_pod_address(gateway.addr())),
        mtu: config.mtu,
    };
    // The agent, or another ADD, may be faster: then the bridge is theirs to finish or ours, and
    // both do the same.
    match node.create_bridge(&spec) {
        Err(error) if !error.is_present() => return Err(error.into()),
        _ => {}
    }
    let link = accept_bridge(node.require_link(&config.bridge)?)?;
    for gateway in gateways {
        match node.add_address(link.index, gateway) {
            Err(error) if !error.is_present() => return Err(error.into()),
            _ => {}
        }
    }
    node.change_link(link.index, &LinkChange::up())?;
    Ok(link)
}

fn accept_bridge(link: Link) -> Result<Link, Fault> {
    if link.kind == "bridge" {
        return Ok(link);
    }
    Err(Fault::new(
        KERNEL_REFUSED,
        format!("the link {} is no bridge", link.name),
        "rename or delete it, or name another bridge in the configuration",
    ))
}

fn addresses_of(reserved: &[Reserved]) -> Vec<Address> {
    let address = |one: &Reserved| {
        Some(Address {
            address: IpNet::new(one.address, one.range.subnet.prefix_len()).ok()?,
            gateway: one.range.gateway(),
            interface_index: Some(1),
        })
    };
    reserved.iter().filter_map(address).collect()
}

/// Inside the pod: parameters before the link is up, then addresses, the link, and routes.
fn set_up_pod(
    interface: &str,
    addresses: &[Address],
    routes: &[Route],
) -> Result<Link, netlink::Error> {
    let mut pod = Netlink::open()?;
    let link = pod.require_link(interface)?;
    // No router and no redirect may lead the pod's packets elsewhere (CVE-2020-10749).
    for key in [
        "ipv6/conf/IF/accept_ra",
        "ipv6/conf/IF/autoconf",
        "ipv6/conf/IF/accept_redirects",
        "ipv4/conf/IF/accept_redirects",
        "ipv4/conf/all/accept_redirects",
    ] {
        write_where_present(&format!("net/{}", key.replace("IF", interface)), "0")?;
    }
    let loopback = pod.require_link(LOOPBACK)?;
    pod.change_link(loopback.index, &LinkChange::up())?;
    for address in addresses {
        pod.add_address(link.index, address.address)?;
    }
    pod.change_link(link.index, &LinkChange::up())?;
    for route in routes {
        let made = match next_hop(route, addresses) {
            Some(gateway) => KernelRoute::via(route.dst, gateway, link.index, POD_ROUTE_PROTOCOL),
            None => KernelRoute::on_link(route.dst, link.index, POD_ROUTE_PROTOCOL),
        };
        pod.add_route(&KernelRoute {
            mtu: route.mtu,
            advmss: route.advmss,
            metric: route.priority,
            ..made
        })?;
    }
    pod.require_link(interface)
}

/// Writes a parameter that a kernel without IPv6 does not have.
fn write_where_present(key: &str, value: &str) -> Result<(), netlink::Error> {
    match sysctl::write(key, value) {
        Err(error) if error.errno == libc::ENOENT && key.starts_with("net/ipv6/") => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ends_fit_a_link_name_and_differ_by_container_and_interface() {
        let names = [node_end("c1", "eth0"), node_end("c1", "net1"), node_end("c1e", "th0")];
        assert!(names.iter().all(|name| name.len() == 12 && name.starts_with("veth")));
        assert!(names[0] != names[1] && names[0] != names[2]);
    }
}
