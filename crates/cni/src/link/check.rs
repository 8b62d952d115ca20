//! Whether an interface is still as ADD made it (CNI-18).

use model::attachment::{Attachment, PodLink};
use model::layout;
use netlink::Netlink;

use super::options::{Datapath, LinkOptions};
use super::{bandwidth, open_namespace, pod};
use crate::config::Route;
use crate::fault::{CHECK_FAILED, Fault};
use crate::request::Request;
use crate::result::Address;

/// What an earlier result says about the pod's interface.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Its MAC address.
    pub mac: &'a str,
    /// Its addresses.
    pub addresses: &'a [Address],
    /// The pod's routes. Further ones, of later plugins, do not matter.
    pub routes: &'a [Route],
}

/// Compares the kernel with an earlier result and the record.
///
/// # Errors
/// Code 104, naming what is not as it was.
pub fn check(
    request: &Request,
    options: &LinkOptions,
    attachment: &Attachment,
    expected: &Expected<'_>,
) -> Result<(), Fault> {
    let mut node = Netlink::open()?;
    check_node_end(&mut node, attachment)?;
    let down = matches!(&options.datapath, Datapath::Bridge(b) if b.disable_container_interface);
    let namespace = open_namespace(request)?;
    let name = &request.interface;
    let difference = namespace.run(|| {
        let mut pod = Netlink::open()?;
        let Some(link) = pod.link(name)? else {
            return Ok(Some(format!("the interface {name} is gone")));
        };
        if link.up == down {
            let state = if down { "up" } else { "down" };
            return Ok(Some(format!("the interface {name} is {state}")));
        }
        if options.mtu.is_some_and(|mtu| mtu != link.mtu) {
            return Ok(Some(format!("the interface {name} has the MTU {}", link.mtu)));
        }
        let Expected { mac, addresses, routes } = *expected;
        match pod::difference(&link, mac, addresses, routes, &mut pod)? {
            None => options.tuning.difference(&link),
            difference => Ok(difference),
        }
    })?;
    if let Some(difference) = difference? {
        return Err(failed(&difference));
    }
    match bandwidth::difference(&mut node, attachment)? {
        Some(difference) => Err(failed(&difference)),
        None => Ok(()),
    }
}

fn check_node_end(node: &mut Netlink, attachment: &Attachment) -> Result<(), Fault> {
    let Some(name) = attachment.link.node_end() else { return Ok(()) };
    let link =
        node.link(name)?.ok_or_else(|| failed(&format!("the node's link {name} is gone")))?;
    if !link.up {
        return Err(failed(&format!("the node's link {name} is down")));
    }
    match &attachment.link {
        PodLink::Bridge { bridge, .. } => {
            let master = node.link(bridge)?.map(|bridge| bridge.index);
            if master.is_none() || link.master != master {
                return Err(failed(&format!("{name} is no port of the bridge {bridge}")));
            }
        }
        PodLink::Routed { .. } => {
            let routes = node.routes(Some(layout::POD_ROUTE_PROTOCOL))?;
            let neighbours = node.neighbours(link.index)?;
            for net in &attachment.addresses {
                let leads = |route: &netlink::Route| {
                    route.destination == *net && route.link_index == Some(link.index)
                };
                if !routes.iter().any(leads) {
                    return Err(failed(&format!("the node's route to {net} is missing")));
                }
                let known = |found: &netlink::Neighbour| {
                    found.address == net.addr() && found.mac == attachment.mac
                };
                if !neighbours.iter().any(known) {
                    let address = net.addr();
                    return Err(failed(&format!("the node's neighbour {address} is missing")));
                }
            }
        }
        PodLink::Macvlan { .. } | PodLink::Chained { .. } => {}
    }
    Ok(())
}

fn failed(what: &str) -> Fault {
    Fault::new(CHECK_FAILED, what, "delete the pod, so that it is made anew")
}
