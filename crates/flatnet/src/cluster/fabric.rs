//! The node network: a bridge in a network namespace of its own, a link from it to the host and
//! one to each node.
//!
//! ```text
//!  host ── fn-NAME ═ veth ═ host ┐
//!  node1 ── eth0 ═ veth ═ node1 ─┼─ bridge `nodes`, in namespace NAME-net
//!  node2 ── eth0 ═ veth ═ node2 ─┘
//! ```
//!
//! How the host reaches pods and Services: [`super::host_routes`].

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use model::layout::UPLINK;
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, Route, VethSpec, sysctl};

use super::node_namespaces;
use super::paths::Paths;
use super::spec::{ClusterSpec, NodeSpec};

/// The bridge of the node network, in its namespace.
const BRIDGE: &str = "nodes";
/// Who made these routes (`RTPROT_STATIC`): an administrator, not the agents, who sweep their own.
pub const ROUTE_PROTOCOL: u8 = 4;
/// The kernel's IPv6 parameters of a node's link, the one with the name of [`UPLINK`].
const IPV6_OF_UPLINK: &str = "net/ipv6/conf/eth0";
/// The namespace of the node network, after the cluster's name.
pub const NETWORK: &str = "net";

/// Makes the bridge and the host's link.
///
/// # Errors
/// The kernel's, naming the object.
pub fn create(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    let namespace = Netns::create_at(&paths.netns(NETWORK))?;
    node_namespaces::link(paths, NETWORK)?;
    let mut inside = Netlink::open_in(&namespace)?;
    inside.create_bridge(&BridgeSpec { name: BRIDGE.into(), ..BridgeSpec::default() })?;
    let bridge = inside.require_link(BRIDGE)?;
    inside.change_link(bridge.index, &LinkChange::up())?;

    let mut host = Netlink::open()?;
    host.create_veth(&VethSpec::new(&paths.host_link(), "host").peer_in(&namespace))
        .with_context(|| format!("making the host's link {}", paths.host_link()))?;
    plug_in(&mut inside, "host")?;
    let link = host.require_link(&paths.host_link())?;
    for address in &spec.host_addresses {
        host.add_address(link.index, own_prefix(spec, *address)?)?;
    }
    host.change_link(link.index, &LinkChange::up())?;
    Ok(())
}

/// Plugs a node's namespace into the bridge.
///
/// # Errors
/// The kernel's, naming the object.
pub fn plug_in_node(paths: &Paths, spec: &ClusterSpec, node: &NodeSpec) -> Result<()> {
    let network = Netns::open(&paths.netns(NETWORK))?;
    let namespace = Netns::open(&paths.netns(&node.name))?;
    let mut inside = Netlink::open_in(&network)?;
    inside.create_veth(&VethSpec::new(&node.name, UPLINK).peer_in(&namespace))?;
    plug_in(&mut inside, &node.name)?;

    let mut at_node = Netlink::open_in(&namespace)?;
    let loopback = at_node.require_link("lo")?;
    at_node.change_link(loopback.index, &LinkChange::up())?;
    let uplink = at_node.require_link(UPLINK)?;
    // Nobody else has these addresses, and until a check for duplicates ends, a second or two, the
    // kernel solicits nobody for what it forwards. A kernel without IPv6 has no such directory.
    match namespace.run(|| sysctl::write_all(IPV6_OF_UPLINK, &[("accept_dad", "0")]))? {
        Err(error) if error.errno != libc::ENOENT => return Err(error.into()),
        _ => {}
    }
    for address in &node.addresses {
        at_node.add_address(uplink.index, own_prefix(spec, *address)?)?;
    }
    at_node.change_link(uplink.index, &LinkChange::up())?;
    for host in &spec.host_addresses {
        let everything = if host.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let route = Route::via(everything.parse()?, *host, uplink.index, ROUTE_PROTOCOL);
        at_node.add_route(&route).context("adding the node's default route")?;
    }
    Ok(())
}

/// Takes the node network away, and with it the host's link and routes. An absent one is fine.
///
/// # Errors
/// The kernel's.
pub fn destroy(paths: &Paths) -> Result<()> {
    let mut host = Netlink::open()?;
    // Not left to the namespace's end, which the kernel reaches later: a new cluster of the same
    // name may follow at once.
    if let Some(link) = host.link(&paths.host_link())? {
        host.delete_link_if_there(link.index)?;
    }
    node_namespaces::unlink(paths, NETWORK)?;
    node_namespaces::unbind(&paths.netns(NETWORK))
}

fn plug_in(inside: &mut Netlink, port: &str) -> Result<()> {
    let bridge = inside.require_link(BRIDGE)?;
    let port = inside.require_link(port)?;
    let mut change = LinkChange::up();
    change.master = Some(bridge.index);
    inside.change_link(port.index, &change)?;
    Ok(())
}

/// An address with the node range's prefix length.
fn own_prefix(spec: &ClusterSpec, address: IpAddr) -> Result<IpNet> {
    let range = spec.config.node_cidrs.iter().find(|range| range.contains(&address));
    let range = range.with_context(|| format!("{address} is not in the node range"))?;
    Ok(IpNet::new(address, range.prefix_len())?)
}
