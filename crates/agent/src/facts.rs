//! What the node's own links say.

use anyhow::{Context, Result};
use netlink::{Netlink, offload};
use plan::NodeFacts;

/// Reads the uplink's MTU, addresses and known faults.
///
/// # Errors
/// When the link is absent or netlink refuses.
pub(crate) fn read(node_name: &str, uplink: &str) -> Result<NodeFacts> {
    let mut netlink = Netlink::open()?;
    let link = netlink.require_link(uplink).with_context(|| {
        format!("the uplink {uplink} is missing: name the link to the other nodes with --uplink")
    })?;
    let addresses = netlink.addresses(Some(link.index))?;
    Ok(NodeFacts {
        name: node_name.into(),
        uplink: uplink.into(),
        uplink_mtu: link.mtu,
        addresses: addresses.iter().map(|found| found.address.addr()).collect(),
        uplink_prefixes: addresses.iter().map(|found| found.address.trunc()).collect(),
        tunnel_checksum_broken: offload::tunnel_checksum_is_broken(uplink)?,
    })
}
