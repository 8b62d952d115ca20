//! Running pods whose links somebody damaged.

use model::attachment::{Attachment, PodLink};
use model::layout;
use netlink::{Link, LinkChange, Neighbour, Netlink, Route as KernelRoute};

use super::bandwidth;
use crate::fault::Fault;

/// Puts back what is missing on the node's side of running pods: links that are down, routes and
/// permanent neighbours of routed pods, limits. Answers what was damaged, for people. Writes
/// nothing where nothing is. A node end that is gone, or no longer a port of its bridge, is told
/// and stays so: only a new pod gets a new one.
///
/// # Errors
/// What the kernel refused; what is after it in the list is then tried at the next call.
pub fn repair(attachments: &[Attachment]) -> Result<Vec<String>, Fault> {
    let mut node = Netlink::open()?;
    let links = node.links()?;
    let routes = node.routes(Some(layout::POD_ROUTE_PROTOCOL))?;
    let mut damages = Vec::new();
    for attachment in attachments {
        let Some(name) = attachment.link.node_end() else { continue };
        let pod = &attachment.container_id;
        let Some(link) = links.iter().find(|link| link.name == name) else {
            damages.push(format!("the link {name} of {pod} is gone: delete the pod"));
            continue;
        };
        if !link.up {
            node.change_link(link.index, &LinkChange::up())?;
            damages.push(format!("the link {name} of {pod} was down"));
        }
        match &attachment.link {
            PodLink::Bridge { bridge, .. } => {
                let master = links.iter().find(|link| link.name == *bridge);
                if link.master.is_none() || link.master != master.map(|bridge| bridge.index) {
                    damages.push(format!(
                        "the link {name} of {pod} is no port of {bridge}: delete the pod"
                    ));
                }
            }
            PodLink::Routed { .. } => {
                // A link that was down has lost what was read before.
                let routes = if link.up { &routes[..] } else { &[] };
                damages.extend(lead_in_again(&mut node, link, routes, attachment)?);
            }
            PodLink::Macvlan { .. } | PodLink::Chained { .. } => {}
        }
        if let Some(difference) = bandwidth::difference(&mut node, attachment)? {
            bandwidth::apply(&mut node, attachment)?;
            damages.push(format!("{difference} ({pod})"));
        }
    }
    Ok(damages)
}

/// Routes and neighbours towards a routed pod that are not there.
fn lead_in_again(
    node: &mut Netlink,
    link: &Link,
    routes: &[KernelRoute],
    attachment: &Attachment,
) -> Result<Vec<String>, netlink::Error> {
    let mut damages = Vec::new();
    let known = node.neighbours(link.index)?;
    for net in &attachment.addresses {
        let (name, address) = (&link.name, net.addr());
        let wanted = Neighbour { link_index: link.index, address, mac: attachment.mac };
        if !known.contains(&wanted) {
            node.set_neighbour(&wanted)?;
            damages.push(format!("the neighbour {address} on {name} was missing or changed"));
        }
        let leads =
            |route: &KernelRoute| route.destination == *net && route.link_index == Some(link.index);
        if !routes.iter().any(leads) {
            let route = KernelRoute::on_link(*net, link.index, layout::POD_ROUTE_PROTOCOL);
            match node.add_route(&route) {
                Err(error) if !error.is_present() => return Err(error),
                result => {
                    if result.is_ok() {
                        damages.push(format!("the route to {net} on {name} was missing"));
                    }
                }
            }
        }
    }
    Ok(damages)
}
