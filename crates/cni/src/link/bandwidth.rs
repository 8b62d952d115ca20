//! Limits of a pod's traffic (reference plugin `bandwidth`).
//!
//! What goes to the pod leaves the node's end and is shaped there. What the pod sends enters the
//! node's end: it is led through an `ifb` link of the pod's own and shaped as it leaves that.

use model::attachment::{Attachment, Bandwidth, Rate};
use model::layout;
use netlink::{Link, LinkChange, Netlink, TokenBucket};

use super::{alias_of, hashed, refused};
use crate::fault::Fault;

/// How long a packet may wait for its turn before it is dropped.
const LATENCY_MS: u64 = 25;
/// A bucket that the kernel tells may differ from ours by the steps in which it counts time.
const BURST_TOLERANCE_PERCENT: u32 = 2;

/// The `ifb` link of an attachment.
pub(super) fn ifb_name(container_id: &str, interface: &str) -> String {
    hashed(layout::POD_IFB_PREFIX, container_id, interface)
}

/// Sets the limits of the attachment on its node end. An earlier, killed attempt is no obstacle.
pub(super) fn apply(node: &mut Netlink, attachment: &Attachment) -> Result<(), Fault> {
    let Bandwidth { ingress, egress } = attachment.bandwidth;
    if ingress.is_none() && egress.is_none() {
        return Ok(());
    }
    let near = near_end(node, attachment)?;
    if let Some(rate) = ingress {
        node.set_token_bucket(near.index, &bucket(rate))?;
    }
    if let Some(rate) = egress {
        remove_ifb(node, attachment)?;
        let name = ifb_name(&attachment.container_id, &attachment.interface);
        node.create_ifb(&name, near.mtu)?;
        let ifb = node.require_link(&name)?.index;
        super::write_where_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        node.set_token_bucket(ifb, &bucket(rate))?;
        let alias = alias_of(&attachment.container_id);
        node.change_link(ifb, &LinkChange { alias: Some(&alias), ..LinkChange::up() })?;
        node.redirect_ingress(near.index, ifb)?;
    }
    Ok(())
}

/// Lifts the limits of an attachment whose node end stays: another plugin's.
pub(super) fn lift(node: &mut Netlink, attachment: &Attachment) -> Result<(), Fault> {
    if let Some(name) = attachment.link.node_end()
        && let Some(near) = node.link(name)?
    {
        let nothing =
            |error: &netlink::Error| error.is_absent() || error.errno == nix::libc::EINVAL;
        if attachment.bandwidth.ingress.is_some() {
            node.delete_token_bucket(near.index)
                .or_else(|e| if nothing(&e) { Ok(()) } else { Err(e) })?;
        }
        if attachment.bandwidth.egress.is_some() {
            node.delete_ingress_redirect(near.index)
                .or_else(|e| if nothing(&e) { Ok(()) } else { Err(e) })?;
        }
    }
    remove_ifb(node, attachment)
}

/// Removes the `ifb` link of an attachment, if it has one.
pub(super) fn remove_ifb(node: &mut Netlink, attachment: &Attachment) -> Result<(), Fault> {
    let name = ifb_name(&attachment.container_id, &attachment.interface);
    let Some(link) = node.link(&name)? else { return Ok(()) };
    if link.kind != "ifb" {
        return Err(refused(
            format!("the link {name} belongs to another program"),
            "rename or delete it",
        ));
    }
    Ok(node.delete_link_promptly(link.index, None)?)
}

/// What of the limits is not as it was made; `None` when nothing.
pub(super) fn difference(
    node: &mut Netlink,
    attachment: &Attachment,
) -> Result<Option<String>, Fault> {
    let Bandwidth { ingress, egress } = attachment.bandwidth;
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    let near = near_end(node, attachment)?;
    if let Some(rate) = ingress
        && !is_near(node.token_bucket(near.index)?, rate)
    {
        return Ok(Some(format!("the ingress limit on {} is missing or changed", near.name)));
    }
    if let Some(rate) = egress {
        let name = ifb_name(&attachment.container_id, &attachment.interface);
        let Some(ifb) = node.link(&name)?.filter(|link| link.up) else {
            return Ok(Some(format!("the link {name} of the egress limit is gone or down")));
        };
        if !is_near(node.token_bucket(ifb.index)?, rate)
            || node.ingress_redirect(near.index)? != Some(ifb.index)
        {
            return Ok(Some(format!("the egress limit on {} is missing or changed", near.name)));
        }
    }
    Ok(None)
}

fn near_end(node: &mut Netlink, attachment: &Attachment) -> Result<Link, Fault> {
    match attachment.link.node_end() {
        Some(name) => Ok(node.require_link(name)?),
        None => Err(refused(
            format!("the interface {} has no end on the node", attachment.interface),
            "only a veth pair's bandwidth can be limited",
        )),
    }
}

fn bucket(rate: Rate) -> TokenBucket {
    let rate_bytes_per_s = rate.bits_per_s / 8;
    let burst = rate.burst_bits / 8;
    let limit = (rate_bytes_per_s / 1000).saturating_mul(LATENCY_MS).saturating_add(burst);
    TokenBucket {
        rate_bytes_per_s,
        burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX),
        limit_bytes: u32::try_from(limit).unwrap_or(u32::MAX),
    }
}

fn is_near(found: Option<TokenBucket>, rate: Rate) -> bool {
    let wanted = bucket(rate);
    let tolerance = wanted.burst_bytes / 100 * BURST_TOLERANCE_PERCENT + 64;
    found.is_some_and(|found| {
        found.rate_bytes_per_s == wanted.rate_bytes_per_s
            && found.burst_bytes.abs_diff(wanted.burst_bytes) <= tolerance
    })
}
