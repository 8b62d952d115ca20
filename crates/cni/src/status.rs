//! STATUS: whether an ADD would work (CNI-20).

use std::os::unix::net::UnixStream;
use std::path::Path;

use kernel::edge::Edge;
use netlink::Netlink;

use crate::addresses::{self, Invocation};
use crate::command::open_records;
use crate::fault::{Fault, LIMITED_CONNECTIVITY, UNAVAILABLE};
use crate::link::options::{Datapath, LinkOptions};
use crate::records;

/// Answers nothing when an ADD would work.
///
/// # Errors
/// Code 50 with the reason; code 51 when pods that run are hurt too.
pub(crate) fn run(call: &Invocation<'_>) -> Result<(), Fault> {
    let Err(fault) = can_add(call) else { return Ok(()) };
    let unavailable = |code, hurt: &str| {
        Err(Fault::new(
            code,
            "no pod can be added now",
            format!("{}: {}{hurt}", fault.message, fault.details),
        ))
    };
    match damage(call) {
        Ok(None) => unavailable(UNAVAILABLE, ""),
        Ok(Some(damage)) => {
            unavailable(LIMITED_CONNECTIVITY, &format!("; pods that run are hurt: {damage}"))
        }
        Err(also) => unavailable(LIMITED_CONNECTIVITY, &format!("; and {also}")),
    }
}

fn can_add(call: &Invocation<'_>) -> Result<(), Fault> {
    let config = call.config;
    if let Some(socket) = &config.agent_socket {
        ask_agent(socket)?;
    }
    drop(open_records(call)?);
    addresses::status(call)?;
    let options = LinkOptions::parse(call.value, call.request)?;
    if let Datapath::Bridge(bridge) = &options.datapath {
        let found = Netlink::open()?.link(&bridge.name)?;
        if found.is_some_and(|link| link.kind != "bridge") {
            let message = format!("the link {} is no bridge", bridge.name);
            return Err(Fault::new(UNAVAILABLE, message, "rename or delete it"));
        }
    }
    Edge::open()?.observe()?;
    Ok(())
}

fn ask_agent(socket: &Path) -> Result<(), Fault> {
    UnixStream::connect(socket).map(drop).map_err(|error| {
        let message = format!("the node's agent does not answer at {}", socket.display());
        Fault::new(UNAVAILABLE, message, format!("{error}; look at the agent's log"))
    })
}

/// What is wrong with pods that were added; `None` when nothing.
fn damage(call: &Invocation<'_>) -> Result<Option<String>, Fault> {
    let boot_id = records::boot_id()?;
    let mut attachments = records::of_all_networks(&call.config.data_directory)?;
    attachments.retain(|one| one.boot_id == boot_id);
    if attachments.is_empty() {
        return Ok(None);
    }
    let mut node = Netlink::open()?;
    for name in attachments.iter().filter_map(|one| one.link.node_end()) {
        match node.link(name)? {
            None => return Ok(Some(format!("the link {name} is gone"))),
            Some(link) if !link.up => return Ok(Some(format!("the link {name} is down"))),
            Some(_) => {}
        }
    }
    let damages = Edge::open()?.damages(&attachments)?;
    Ok(damages.into_iter().next())
}
