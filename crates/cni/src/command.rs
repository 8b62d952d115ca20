//! The commands.

use std::collections::BTreeSet;
use std::time::SystemTime;

use ipam::{Ask, Directory, Living, Withheld};
use model::Timestamp;
use netlink::Netlink;

use crate::attachment;
use crate::check;
use crate::config::Config;
use crate::fault::{Fault, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_ENVIRONMENT, UNAVAILABLE};
use crate::request::{Command, Request};
use crate::result::Success;
use crate::version::at_least;

/// Carries out a command and answers its document; empty where it has none.
pub(crate) fn run(request: &Request, config: &Config) -> Result<String, Fault> {
    let silent = |()| String::new();
    match request.command {
        Command::Add => {
            add(request, config).map(|success| success.to_json(&config.version).to_string())
        }
        Command::Del => delete(request, config).map(silent),
        Command::Check => {
            require_version(config, "0.4.0", "CHECK")?;
            check::run(request, config).map(silent)
        }
        Command::Status => {
            require_version(config, "1.1.0", "STATUS")?;
            status(config).map(silent)
        }
        Command::Gc => {
            require_version(config, "1.1.0", "GC")?;
            collect(config).map(silent)
        }
        Command::Version => Err(Fault::new(
            INVALID_ENVIRONMENT,
            "VERSION takes no network configuration",
            "it is answered before one is read",
        )),
    }
}

fn add(request: &Request, config: &Config) -> Result<Success, Fault> {
    let namespace = attachment::open_namespace(request)?;
    attachment::refuse_existing(&namespace, &request.interface)?;
    let requested: Vec<_> =
        request.requested_addresses.iter().chain(&config.requested_addresses).copied().collect();
    let reserved = Directory::open(&config.data_directory, &config.network)?.reserve(&Ask {
        sets: &config.ranges,
        withheld: &Withheld::default(),
        container_id: &request.container_id,
        interface: &request.interface,
        requested: &requested,
    })?;
    attachment::make(request, config, &namespace, &reserved).inspect_err(|_| {
        // Nothing half made stays (CNI-12); a fault in here would hide the first one, and the
        // runtime's DEL tries again.
        let _ = delete(request, config);
    })
}

/// First the links, then the address: it must not be another pod's while this one still has it.
/// Works without the namespace, without an earlier result, and as often as it is called.
fn delete(request: &Request, config: &Config) -> Result<(), Fault> {
    attachment::remove(&request.container_id, &request.interface)?;
    Directory::open(&config.data_directory, &config.network)?.release(
        &request.container_id,
        &request.interface,
        now(),
    )?;
    Ok(())
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_microseconds(since.as_micros().try_into().unwrap_or_default())
}

/// Whether an ADD would find an address and a place to write it down.
fn status(config: &Config) -> Result<(), Fault> {
    let unavailable =
        |error: &dyn std::fmt::Display| Fault::new(UNAVAILABLE, "no pod can be added now", error);
    Directory::open(&config.data_directory, &config.network)
        .and_then(|directory| directory.available(&config.ranges, &Withheld::default()))
        .map_err(|error| unavailable(&error))?;
    Netlink::open().map_err(|error| unavailable(&error))?;
    Ok(())
}

/// Removes the links and addresses of all that is not among the living attachments. Goes on
/// after a fault and tells the first.
fn collect(config: &Config) -> Result<(), Fault> {
    let mut living = Living::default();
    for valid in &config.valid_attachments {
        living.add(&valid.container_id, &valid.interface);
    }
    let names: BTreeSet<String> = config
        .valid_attachments
        .iter()
        .map(|valid| attachment::node_end(&valid.container_id, &valid.interface))
        .collect();
    let mut first_fault = None;
    let mut node = Netlink::open()?;
    let bridge = node.link(&config.bridge)?.map(|link| link.index);
    for link in attachment::all_node_ends(&mut node)? {
        // Links on another bridge are another network's.
        if names.contains(&link.name) || link.master != bridge {
            continue;
        }
        match node.delete_link(link.index) {
            Err(error) if !error.is_absent() => {
                first_fault.get_or_insert(Fault::from(error));
            }
            _ => {}
        }
    }
    let directory = Directory::open(&config.data_directory, &config.network)?;
    let released = directory.release_where(now(), |held| !living.holds(held));
    if let Err(error) = released {
        first_fault.get_or_insert(error.into());
    }
    first_fault.map_or(Ok(()), Err)
}

fn require_version(config: &Config, least: &str, command: &str) -> Result<(), Fault> {
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
