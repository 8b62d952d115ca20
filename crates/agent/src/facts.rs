//! What the node's own links say, and which of them leads to the other nodes.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink::{Netlink, offload};
use plan::NodeFacts;

/// Reads the uplink's MTU, addresses and known faults. Without a name the uplink is the link that
/// has one of the Node's addresses, otherwise that of the default route.
///
/// # Errors
/// When there is no such link or netlink refuses.
pub(crate) fn read(
    node_name: &str,
    uplink: Option<&str>,
    node_addresses: &[IpAddr],
) -> Result<NodeFacts> {
    let mut netlink = Netlink::open()?;
    let uplink = match uplink {
        Some(name) => name.to_owned(),
        None => find_uplink(&mut netlink, node_addresses)?,
    };
    let link = netlink.require_link(&uplink).with_context(|| {
        format!("the uplink {uplink} is missing: name the link to the other nodes with --uplink")
    })?;
    let addresses = netlink.addresses(Some(link.index))?;
    Ok(NodeFacts {
        name: node_name.into(),
        uplink_mtu: link.mtu,
        addresses: addresses.iter().map(|found| found.address.addr()).collect(),
        uplink_prefixes: addresses.iter().map(|found| found.address.trunc()).collect(),
        pod_mtu_limit: None,
        tunnel_checksum_broken: offload::tunnel_checksum_is_broken(&uplink)?,
        uplink,
    })
}

fn find_uplink(netlink: &mut Netlink, node_addresses: &[IpAddr]) -> Result<String> {
    let addresses = netlink.addresses(None)?;
    let by_address = node_addresses.iter().find_map(|wanted| {
        addresses.iter().find(|found| found.address.addr() == *wanted).map(|found| found.link_index)
    });
    let index = match by_address {
        Some(index) => Some(index),
        None => default_route(netlink)?,
    };
    let links = netlink.links()?;
    match links.into_iter().find(|link| Some(link.index) == index) {
        Some(link) => Ok(link.name),
        None => bail!(
            "no link has the Node's InternalIP and there is no default route: name the link to \
             the other nodes with --uplink"
        ),
    }
}

/// The link of the default route, that of the lowest metric, IPv4's before IPv6's.
fn default_route(netlink: &mut Netlink) -> Result<Option<u32>> {
    let routes = netlink.routes(None)?;
    let defaults = routes.into_iter().filter(|route| route.destination.prefix_len() == 0);
    let best = defaults
        .min_by_key(|route| (route.destination.addr().is_ipv6(), route.metric.unwrap_or(0)));
    Ok(best.and_then(|route| route.link_index))
}
