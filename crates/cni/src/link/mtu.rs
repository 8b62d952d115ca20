//! A running pod's MTU.

use std::path::Path;

use model::attachment::{Attachment, PodLink};
use netlink::{Link, LinkChange, Netlink, Netns};

use super::bandwidth;
use crate::fault::Fault;

/// Brings both ends of a running pod's interface to an MTU in bytes, where they have another one.
/// Connections follow: the kernel looks at it with every packet. Answers whether anything was
/// changed. A pod that is gone is none to change.
///
/// Both or none: a node's end that is smaller than the pod's drops large packets without a word,
/// while the pod learns of a smaller way behind an end of its own size (RFC 1191).
///
/// # Errors
/// What the kernel refused; entering the pod's namespace needs `CAP_SYS_ADMIN` and a view of it.
pub fn set_mtu(attachment: &Attachment, mtu: u32) -> Result<bool, Fault> {
    let mut node = Netlink::open()?;
    let near = match attachment.link.node_end() {
        Some(name) => node.link(name)?,
        None => None,
    };
    let far = open(attachment, near.as_ref());
    let (mut pod, far) = match (far, &near) {
        (Ok(Some(opened)), _) => opened,
        // The path of the record may name another pod's namespace by now.
        (Ok(None), _) => return Ok(false),
        (Err(fault), Some(near)) if near.mtu != mtu => return Err(fault),
        (Err(_), _) => return Ok(false),
    };
    let mut changed = set(&mut pod, &far, mtu)?;
    if let Some(near) = &near {
        changed |= set(&mut node, near, mtu)?;
        let ifb = bandwidth::ifb_name(&attachment.container_id, &attachment.interface);
        if attachment.bandwidth.egress.is_some()
            && let Some(ifb) = node.link(&ifb)?
        {
            changed |= set(&mut node, &ifb, mtu)?;
        }
    }
    Ok(changed)
}

/// The pod's interface with a way to change it, when it is ours: the peer of our own end, or a
/// macvlan link that says so.
fn open(attachment: &Attachment, near: Option<&Link>) -> Result<Option<(Netlink, Link)>, Fault> {
    let namespace = Netns::open(Path::new(&attachment.namespace))?;
    let mut pod = Netlink::open_in(&namespace)?;
    let Some(far) = pod.link(&attachment.interface)? else { return Ok(None) };
    let is_ours = match &attachment.link {
        PodLink::Macvlan { .. } => {
            far.alias.as_deref() == Some(&super::alias_of(&attachment.container_id))
        }
        _ => near.is_some_and(|near| near.peer_index == Some(far.index)),
    };
    Ok(is_ours.then_some((pod, far)))
}

fn set(netlink: &mut Netlink, link: &Link, mtu: u32) -> Result<bool, Fault> {
    if link.mtu == mtu {
        return Ok(false);
    }
    let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
    match netlink.change_link(link.index, &change) {
        Err(error) if !error.is_absent() => Err(error.into()),
        result => Ok(result.is_ok()),
    }
}
