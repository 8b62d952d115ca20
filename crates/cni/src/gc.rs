//! GC: removes all but the living (CNI-21).

use std::collections::BTreeSet;
use std::time::SystemTime;

use ipam::Living;
use ipnet::IpNet;
use model::Attachment;
use netlink::Netlink;
use serde_json::{Value, json};

use crate::addresses::{self, Invocation};
use crate::command::{disconnect, open_records};
use crate::config::{Addressing, Config, ValidAttachment};
use crate::fault::Fault;
use crate::link;
use crate::link::options::{Datapath, LinkOptions};
use crate::records::{self, Record};

/// Removes the links, rules, addresses and records of all that is not among the living
/// attachments. Goes on after a fault and tells all.
///
/// An ADD that ended after this began cannot be in the list that the runtime made before, so
/// what it added stays.
pub(crate) fn run(call: &Invocation<'_>) -> Result<(), Fault> {
    let began = SystemTime::now();
    let config = call.config;
    let named: BTreeSet<String> = config
        .valid_attachments
        .iter()
        .map(|one| records::name(&one.container_id, &one.interface))
        .collect();
    let mut faults = Vec::new();
    let mut kept = config.valid_attachments.clone();
    let mut dead: Vec<String> = Vec::new();
    // A torn reservation names nobody; the record of whose it is does.
    let mut in_use: Vec<IpNet> = Vec::new();
    let records = open_records(call)?;
    for Record { name, modified, attachment } in records.list()? {
        if named.contains(&name) {
            in_use.extend(attachment.into_iter().flat_map(|one| one.addresses));
            continue;
        }
        let gone = match &attachment {
            Some(attachment) if modified >= began => Err(attachment),
            Some(attachment) => disconnect(attachment).map_err(|fault| {
                faults.push(fault);
                attachment
            }),
            None => Ok(()),
        };
        match gone {
            Ok(()) => dead.push(name),
            // Its address must not be another pod's while its link may be there.
            Err(Attachment { container_id, interface, addresses, .. }) => {
                in_use.extend(addresses);
                kept.push(ValidAttachment {
                    container_id: container_id.clone(),
                    interface: interface.clone(),
                });
            }
        }
    }
    if let Err(fault) = remove_unrecorded(call, &kept) {
        faults.push(fault);
    }
    let is_delegated = matches!(config.addressing, Addressing::Delegated(_));
    let locked = Some(records).filter(|_| !is_delegated);
    if let Err(fault) = take_back(call, &kept, &in_use) {
        faults.push(fault);
    } else {
        let records = locked.map_or_else(|| open_records(call), Ok)?;
        faults.extend(dead.iter().filter_map(|name| records.remove(name).err()));
    }
    Fault::all(faults)
}

/// The living by the runtime's word.
pub(crate) fn living(config: &Config) -> Living {
    living_of(&config.valid_attachments)
}

fn living_of(attachments: &[ValidAttachment]) -> Living {
    let mut living = Living::default();
    for one in attachments {
        living.add(&one.container_id, &one.interface);
    }
    living
}

fn take_back(
    call: &Invocation<'_>,
    kept: &[ValidAttachment],
    in_use: &[IpNet],
) -> Result<(), Fault> {
    let mut value: Value = call.value.clone();
    value["cni.dev/valid-attachments"] = json!(kept);
    let mut living = living_of(kept);
    in_use.iter().for_each(|address| living.add_address(address.addr()));
    addresses::collect(&Invocation { value: &value, ..*call }, &living)
}

/// Removes links on our bridge that no record of any network tells of: those of pods that were
/// added before there were records.
fn remove_unrecorded(call: &Invocation<'_>, kept: &[ValidAttachment]) -> Result<(), Fault> {
    let options = LinkOptions::parse(call.value, call.request)?;
    let Datapath::Bridge(bridge) = &options.datapath else { return Ok(()) };
    let mut node = Netlink::open()?;
    let Some(bridge) = node.link(&bridge.name)? else { return Ok(()) };
    let recorded = records::of_all_networks(&call.config.data_directory)?;
    let mut known: BTreeSet<String> =
        recorded.iter().filter_map(|one| one.link.node_end().map(str::to_owned)).collect();
    known.extend(kept.iter().map(|one| link::node_end(&one.container_id, &one.interface)));
    for end in link::all_node_ends(&mut node)? {
        if end.master == Some(bridge.index) && !known.contains(&end.name) {
            match node.delete_link_promptly(end.index, None) {
                Err(error) if !error.is_absent() => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}
