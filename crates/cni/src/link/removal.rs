//! Removal of a pod's interface.

use std::os::fd::BorrowedFd;
use std::path::Path;

use model::attachment::{Attachment, PodLink};
use netlink::{Netlink, Netns, VethSpec};

use super::{alias_of, bandwidth, is_ours, node_end, refused, tuning};
use crate::fault::Fault;

/// What is known of an attachment without a record: names that are derived.
pub fn unrecorded(container_id: &str, interface: &str) -> Attachment {
    let name = node_end(container_id, interface);
    Attachment {
        container_id: container_id.to_owned(),
        interface: interface.to_owned(),
        link: PodLink::Bridge { name, bridge: String::new() },
        ..Attachment::default()
    }
}

/// Removes an interface that we made, both ends, or puts back what we changed of another
/// plugin's. When this returns, it is gone. Nothing there is no error. `held` stays open for as long
/// as the kernel is at work ([`Netlink::delete_link_promptly`]).
///
/// # Errors
/// When the node's end belongs to another program, or the kernel refuses.
pub fn remove(attachment: &Attachment, held: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
    let mut node = Netlink::open()?;
    match &attachment.link {
        PodLink::Bridge { name, .. } | PodLink::Routed { name } => {
            // Without a record nobody knows whether there were limits.
            if attachment.boot_id.is_empty() || attachment.bandwidth.egress.is_some() {
                bandwidth::remove_ifb(&mut node, attachment)?;
            }
            remove_end(&mut node, name, held)
        }
        PodLink::Macvlan { .. } => remove_macvlan(attachment, held),
        PodLink::Chained { .. } => {
            bandwidth::lift(&mut node, attachment)?;
            put_back(attachment)
        }
    }
}

/// Makes a pair whose node's end has a name. One of ours that is in the way goes first: one without
/// an alias is what an ADD left that was killed between two messages; one with another program's
/// alias stays.
pub(super) fn create_veth(
    node: &mut Netlink,
    name: &str,
    spec: &VethSpec<'_>,
) -> Result<(), Fault> {
    match node.create_veth(spec) {
        Err(error) if error.is_present() => remove_end(node, name, None)?,
        result => return Ok(result?),
    }
    Ok(node.create_veth(spec)?)
}

fn remove_end(node: &mut Netlink, name: &str, held: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
    let Some(link) = node.link(name)? else { return Ok(()) };
    if !is_ours(&link) && (link.kind != "veth" || link.alias.is_some()) {
        return Err(refused(
            format!("the link {name} belongs to another program"),
            "rename or delete it",
        ));
    }
    Ok(node.delete_link_promptly(link.index, held)?)
}

/// A macvlan link is only in the pod: it goes with the namespace, or here. The path of the record
/// may name another pod's namespace by now, so the alias decides.
fn remove_macvlan(attachment: &Attachment, held: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
    let Some(mut pod) = open(attachment)? else { return Ok(()) };
    let Some(link) = pod.link(&attachment.interface)? else { return Ok(()) };
    let ours = alias_of(&attachment.container_id);
    if link.kind != "macvlan" || link.alias.is_some_and(|alias| alias != ours) {
        return Ok(());
    }
    Ok(pod.delete_link_promptly(link.index, held)?)
}

/// Puts the interface of another plugin back into its earlier state, where it is still there.
fn put_back(attachment: &Attachment) -> Result<(), Fault> {
    let Some(state) = &attachment.original else { return Ok(()) };
    let Some(mut pod) = open(attachment)? else { return Ok(()) };
    let Some(link) = pod.link(&attachment.interface)? else { return Ok(()) };
    match tuning::restore(&mut pod, link.index, state) {
        Err(error) if !error.is_absent() => Err(error.into()),
        _ => Ok(()),
    }
}

fn open(attachment: &Attachment) -> Result<Option<Netlink>, Fault> {
    match Netns::open(Path::new(&attachment.namespace)) {
        Ok(namespace) => Ok(Some(Netlink::open_in(&namespace)?)),
        Err(_) => Ok(None),
    }
}
