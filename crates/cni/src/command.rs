//! The commands, and ADD and DEL of a pod's own interface.
//!
//! ```text
//! ADD: addresses ─▶ record ─▶ rules at the edge ─▶ link        (each before what relies on it)
//! DEL: link ─▶ rules at the edge, tracked flows ─▶ addresses ─▶ record
//! ```
//!
//! Whoever is killed in between leaves what DEL or GC finds by the record, or by derived names.

use std::os::fd::AsFd;
use std::path::Path;

use kernel::edge::Edge;
use model::Attachment;
use serde_json::Value;

use crate::addresses::{self, Given, Invocation};
use crate::config::{Addressing, Config};
use crate::fault::{Fault, INCOMPATIBLE_VERSION, INVALID_CONFIG};
use crate::link::options::LinkOptions;
use crate::link::{self, Made};
use crate::records::{self, Records};
use crate::request::Command;
use crate::result::Success;
use crate::version::at_least;
use crate::{agent, chained, check, gc, leased, status};

/// Carries out a command and answers its document; empty where it has none.
pub(crate) fn run(call: &Invocation<'_>) -> Result<String, Fault> {
    let config = call.config;
    match call.request.command {
        Command::Add => return Ok(add(call)?.to_string()),
        Command::Del => delete(call)?,
        Command::Check => {
            require_version(config, "0.4.0", "CHECK")?;
            check::run(call)?;
        }
        Command::Status => {
            require_version(config, "1.1.0", "STATUS")?;
            status::run(call)?;
        }
        Command::Gc => {
            require_version(config, "1.1.0", "GC")?;
            gc::run(call)?;
        }
        // Answered before a configuration is read.
        Command::Version => {}
    }
    Ok(String::new())
}

/// Takes back all that there is of an attachment. Works without the namespace, without an earlier
/// result, without a record, and as often as it is called (CNI-15).
pub(crate) fn delete(call: &Invocation<'_>) -> Result<(), Fault> {
    let (request, config) = (call.request, call.config);
    let records = open_records(call)?;
    let attachment = match records.find(&request.container_id, &request.interface)? {
        Some(attachment) => attachment,
        None => Attachment {
            network: config.network.clone(),
            addresses: addresses::held(call)?,
            ..link::unrecorded(&request.container_id, &request.interface)
        },
    };
    if leased::is_meant(config) {
        // A server is told over the pod's own interface.
        drop(records);
        let told = addresses::take_back(call);
        let records = open_records(call)?;
        disconnect(&attachment)?;
        told?;
        return records.remove(&records::name(&request.container_id, &request.interface));
    }
    disconnect(&attachment)?;
    // A delegate may take its time.
    let kept = Some(records).filter(|_| !is_delegated(config));
    // Only now: the address must not be another pod's while this one still has it.
    addresses::take_back(call)?;
    let records = kept.map_or_else(|| open_records(call), Ok)?;
    records.remove(&records::name(&request.container_id, &request.interface))
}

/// Removes an attachment's link and its rules. Nothing there is no error.
pub(crate) fn disconnect(attachment: &Attachment) -> Result<(), Fault> {
    // A record of an earlier boot may name what is another pod's by now. One without a boot is
    // made of derived names.
    if !attachment.boot_id.is_empty() && attachment.boot_id != records::boot_id()? {
        return Ok(());
    }
    // Whoever closes its socket last waits for the kernel. What waits for the link does that, too.
    let mut edge = Edge::open()?;
    link::remove(attachment, Some(edge.as_fd()))?;
    Ok(edge.detach(attachment)?)
}

/// Writes the record and makes the rules. On a fault the caller calls [`delete`].
pub(crate) fn protect(
    call: &Invocation<'_>,
    records: &Records,
    attachment: &Attachment,
) -> Result<(), Fault> {
    records.write(attachment)?;
    let all = || {
        let all = records::of_all_networks(&call.config.data_directory).unwrap_or_default();
        all.into_iter().filter(|other| other.boot_id == attachment.boot_id).collect()
    };
    Ok(Edge::open()?.attach(attachment, all)?)
}

/// The part of a record that request and configuration decide.
pub(crate) fn begun(call: &Invocation<'_>, options: &LinkOptions) -> Result<Attachment, Fault> {
    let request = call.request;
    Ok(Attachment {
        network: call.config.network.clone(),
        container_id: request.container_id.clone(),
        interface: request.interface.clone(),
        namespace: request
            .namespace
            .as_ref()
            .map(|it| it.display().to_string())
            .unwrap_or_default(),
        boot_id: records::boot_id()?,
        pod: request.pod.clone(),
        pod_uid: request.pod_uid.clone(),
        bandwidth: options.bandwidth,
        ..Attachment::default()
    })
}

pub(crate) fn open_records(call: &Invocation<'_>) -> Result<Records, Fault> {
    Records::open(&call.config.data_directory, &call.config.network)
}

pub(crate) fn require_version(config: &Config, least: &str, command: &str) -> Result<(), Fault> {
    if at_least(&config.version, least) {
        return Ok(());
    }
    Err(Fault::new(
        INCOMPATIBLE_VERSION,
        format!("the configuration's version {} does not allow {command}", config.version),
        format!("it came with {least}"),
    ))
}

/// A configuration that lacks what a command needs.
pub(crate) fn lacking(key: &str, command: &str) -> Fault {
    Fault::new(
        INVALID_CONFIG,
        format!("the configuration lacks {key}, which {command} needs"),
        "the container runtime must pass it",
    )
}

fn add(call: &Invocation<'_>) -> Result<Value, Fault> {
    let (request, config) = (call.request, call.config);
    if config.is_chained() {
        return chained::add(call);
    }
    if config.previous.is_some() {
        return Err(Fault::new(
            INVALID_CONFIG,
            "ipam is set behind a plugin that made the interface already",
            "remove ipam, or the plugins before this one",
        ));
    }
    let options = LinkOptions::parse(call.value, request)?;
    let namespace = link::open_namespace(request)?;
    link::refuse_existing(&namespace, &request.interface)?;
    let records = open_records(call)?;
    bury_the_dead(call, &records)?;
    let has_leftovers = records.find(&request.container_id, &request.interface)?.is_some();
    // A delegate or the agent may take their time; and DEL locks by itself.
    let mut kept = Some(records).filter(|_| !waits_for_others(config) && !has_leftovers);
    if has_leftovers {
        // The interface is not there: what is recorded is of an ADD that was killed.
        delete(call)?;
        kept = Some(open_records(call)?).filter(|_| !waits_for_others(config));
    }
    // Nothing half made stays (CNI-12); a fault in here would hide the first one, and the runtime's
    // DEL tries again.
    let take_back = |_: &Fault| drop(delete(call));
    let (made, dns) = if leased::is_meant(config) {
        leased::add(call, &options, &namespace).inspect_err(take_back)?
    } else {
        let given = addresses::give(call)?;
        let connect = || {
            let records = kept.map_or_else(|| open_records(call), Ok)?;
            connect(call, &records, &options, &namespace, &given)
        };
        (connect().inspect_err(take_back)?, given.dns)
    };
    // The node's end, where there is one. The records are free again: others need not wait too.
    if let [near, _] = made.interfaces.as_slice() {
        agent::ensure_programs(&near.name);
    }
    let dns = if config.dns.is_empty() { dns } else { config.dns.clone() };
    let Made { interfaces, addresses, routes } = made;
    Ok(Success { interfaces, addresses, routes, dns }.to_json(&config.version))
}

fn connect(
    call: &Invocation<'_>,
    records: &Records,
    options: &LinkOptions,
    namespace: &netlink::Netns,
    given: &Given,
) -> Result<Made, Fault> {
    let link::Plan { link, mac, addresses } = link::plan(call.request, options, &given.addresses)?;
    let mut edge = call.config.edge.of(&given.addresses);
    // A pod without known addresses brings its own: then only it knows what it may say.
    edge.anti_spoofing &= !addresses.is_empty();
    let attachment = Attachment { link, mac, addresses, edge, ..begun(call, options)? };
    protect(call, records, &attachment)?;
    let (gateways, routes) = (&given.gateways, &given.routes);
    let made = link::make(call.request, options, namespace, &attachment, gateways, routes)?;
    records.finish(&attachment)?;
    Ok(made)
}

/// Gives back what pods of an earlier boot had (R-09). Once a boot.
fn bury_the_dead(call: &Invocation<'_>, records: &Records) -> Result<(), Fault> {
    let boot_id = records::boot_id()?;
    if !records.boot_changed(&boot_id)? {
        return Ok(());
    }
    for record in records.list()? {
        let Some(attachment) = record.attachment else { continue };
        let exists = Path::new(&attachment.namespace).exists();
        if ipam::life::died_with_boot(&attachment, &boot_id, exists) {
            let Attachment { container_id, interface, .. } = &attachment;
            addresses::take_back_of_the_dead(call, container_id, interface)?;
            records.remove(&record.name)?;
        }
    }
    records.note_boot(&boot_id)
}

/// Whether addresses are decided elsewhere: no lock is held meanwhile.
fn waits_for_others(config: &Config) -> bool {
    match &config.addressing {
        Addressing::BuiltIn(built_in) => built_in.agent_socket.is_some(),
        Addressing::Delegated(_) => true,
        Addressing::None => false,
    }
}

fn is_delegated(config: &Config) -> bool {
    matches!(config.addressing, Addressing::Delegated(_))
}
