//! Running pods whose links somebody damaged on the node's side.
//!
//! What only a new pod can bring back is left to CHECK: a node end that is gone, or no longer a
//! port of its bridge.

use model::attachment::{Attachment, PodLink};
use model::layout;
use netlink::{Link, LinkChange, Neighbour, Netlink, Route as KernelRoute};

use super::bandwidth;
use crate::fault::Fault;

/// What [`repair`] would put back, for people.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn damages(attachments: &[Attachment]) -> Result<Vec<String>, Fault> {
    walk(attachments, Mode::Look)
}

/// Puts back what is missing: links that are down, routes and permanent neighbours of routed
/// pods, limits. Answers what was damaged, for people, and writes nothing where nothing is.
///
/// # Errors
/// What the kernel refused; what is after it in the list is then tried at the next call.
pub fn repair(attachments: &[Attachment]) -> Result<Vec<String>, Fault> {
    walk(attachments, Mode::Write)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Look,
    Write,
}

fn walk(attachments: &[Attachment], mode: Mode) -> Result<Vec<String>, Fault> {
    let mut node = Netlink::open()?;
    let links = node.links()?;
    let routes = node.routes(Some(layout::POD_ROUTE_PROTOCOL))?;
    let mut damages = Vec::new();
    for attachment in attachments {
        let pod = &attachment.container_id;
        let near = attachment.link.node_end();
        let Some(link) = near.and_then(|name| links.iter().find(|link| link.name == name)) else {
            continue;
        };
        if !link.up {
            damages.push(format!("the link {} of {pod} was down", link.name));
            if mode == Mode::Write {
                node.change_link(link.index, &LinkChange::up())?;
            }
        }
        if let PodLink::Routed { .. } = &attachment.link {
            // A link that was down has lost what was read before.
            let routes = if link.up { &routes[..] } else { &[] };
            damages.extend(lead_in_again(&mut node, link, routes, attachment, mode)?);
        }
        if let Some(difference) = bandwidth::difference(&mut node, attachment)? {
            damages.push(format!("{difference} ({pod})"));
            if mode == Mode::Write {
                bandwidth::apply(&mut node, attachment)?;
            }
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
    mode: Mode,
) -> Result<Vec<String>, netlink::Error> {
    let mut damages = Vec::new();
    let known = node.neighbours(link.index)?;
    for net in &attachment.addresses {
        let (name, address) = (&link.name, net.addr());
        let wanted = Neighbour { link_index: link.index, address, mac: attachment.mac };
        if !known.contains(&wanted) {
            damages.push(format!("the neighbour {address} on {name} was missing or changed"));
            if mode == Mode::Write {
                node.set_neighbour(&wanted)?;
            }
        }
        let leads =
            |route: &KernelRoute| route.destination == *net && route.link_index == Some(link.index);
        if !routes.iter().any(leads) {
            damages.push(format!("the route to {net} on {name} was missing"));
            if mode == Mode::Write {
                let route = KernelRoute::on_link(*net, link.index, layout::POD_ROUTE_PROTOCOL);
                node.add_route(&route).or_else(|error| match error.is_present() {
                    true => Ok(()),
                    false => Err(error),
                })?;
            }
        }
    }
    Ok(damages)
}
