//! A pod's addresses: given, looked after and taken back, by the built-in allocator or by a
//! delegate.

use std::net::IpAddr;
use std::time::SystemTime;

use ipam::{Ask, Directory, Living, Reserved};
use ipnet::IpNet;
use model::Timestamp;
use serde_json::Value;

use crate::agent;
use crate::config::{Addressing, BuiltIn, Config, Dns, Route};
use crate::delegate::Delegate;
use crate::fault::{CHECK_FAILED, Fault, NO_ADDRESS};
use crate::records;
use crate::request::Request;
use crate::result::{Address, Success};

/// One call of this program.
#[derive(Clone, Copy)]
pub(crate) struct Invocation<'a> {
    /// The environment.
    pub(crate) request: &'a Request,
    /// The configuration, understood.
    pub(crate) config: &'a Config,
    /// The configuration as it came, for delegates.
    pub(crate) value: &'a Value,
}

/// What a pod was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Its addresses, with the prefix length of their subnet.
    pub(crate) addresses: Vec<IpNet>,
    /// The gateway of each.
    pub(crate) gateways: Vec<Option<IpAddr>>,
    /// Routes that come with them.
    pub(crate) routes: Vec<Route>,
    /// Resolver settings that come with them.
    pub(crate) dns: Dns,
}

/// Gives the container's interface its addresses. On a fault nothing is given.
///
/// # Errors
/// When there are none, or the delegate's.
pub(crate) fn give(call: &Invocation<'_>) -> Result<Given, Fault> {
    match &call.config.addressing {
        Addressing::None => Ok(Given::default()),
        Addressing::BuiltIn(built_in) => reserve(call, built_in),
        Addressing::Delegated(plugin) => Ok(given_by(delegate(call, plugin)?.add()?)),
    }
}

/// Takes the addresses of the container's interface back. None is no error.
///
/// # Errors
/// What the file system or the delegate refused.
pub(crate) fn take_back(call: &Invocation<'_>) -> Result<(), Fault> {
    match &call.config.addressing {
        Addressing::None => Ok(()),
        Addressing::BuiltIn(built_in) => {
            let request = call.request;
            if let Some(directory) = open_existing(call, built_in)? {
                directory.release(&request.container_id, &request.interface, now())?;
            }
            Ok(())
        }
        Addressing::Delegated(plugin) => delegate(call, plugin)?.forward("DEL"),
    }
}

/// The addresses that the container's interface has by the reservations: all that is known of a
/// pod without a record. None by a delegate, who keeps them to itself.
///
/// # Errors
/// The file system's.
pub(crate) fn held(call: &Invocation<'_>) -> Result<Vec<IpNet>, Fault> {
    let Addressing::BuiltIn(built_in) = &call.config.addressing else { return Ok(vec![]) };
    let Some(directory) = open_existing(call, built_in)? else { return Ok(vec![]) };
    let request = call.request;
    let own = directory.reservations()?.into_values().filter(|held| {
        held.container_id == request.container_id
            && (held.interface == request.interface || held.interface.is_empty())
    });
    Ok(own.map(|held| IpNet::from(held.address)).collect())
}

/// Whether the addresses of an earlier result are still the container's (CNI-18).
///
/// # Errors
/// Code 104, or the delegate's.
pub(crate) fn check(call: &Invocation<'_>, addresses: &[Address]) -> Result<(), Fault> {
    let built_in = match &call.config.addressing {
        Addressing::None => return Ok(()),
        Addressing::BuiltIn(built_in) => built_in,
        Addressing::Delegated(plugin) => return delegate(call, plugin)?.forward("CHECK"),
    };
    let held = match open_existing(call, built_in)? {
        Some(directory) => directory.reservations()?,
        None => Default::default(),
    };
    let is_ours =
        |address: &IpAddr| built_in.ranges.iter().flatten().any(|one| one.subnet.contains(address));
    for address in addresses.iter().map(|one| one.address.addr()).filter(is_ours) {
        let owner = held.get(&address).map(|held| held.container_id.as_str());
        if owner != Some(call.request.container_id.as_str()) {
            return Err(Fault::new(
                CHECK_FAILED,
                format!("the reservation of {address} is missing"),
                "delete the pod, so that it is made anew",
            ));
        }
    }
    Ok(())
}

/// Whether a pod could be given addresses now (CNI-20).
///
/// # Errors
/// When not.
pub(crate) fn status(call: &Invocation<'_>) -> Result<(), Fault> {
    match &call.config.addressing {
        Addressing::None => Ok(()),
        Addressing::BuiltIn(built_in) => {
            if let Some(socket) = &built_in.agent_socket {
                agent::knock(socket)?;
            }
            let directory = Directory::open(&built_in.data_directory, &call.config.network)?;
            Ok(directory.available(&built_in.ranges, &built_in.withheld)?)
        }
        Addressing::Delegated(plugin) => delegate(call, plugin)?.forward("STATUS"),
    }
}

/// Takes back the addresses of all but the living (CNI-21).
///
/// # Errors
/// What the file system or the delegate refused.
pub(crate) fn collect(call: &Invocation<'_>, living: &Living) -> Result<(), Fault> {
    match &call.config.addressing {
        Addressing::None => Ok(()),
        Addressing::BuiltIn(built_in) => {
            if let Some(directory) = open_existing(call, built_in)? {
                directory.release_where(now(), |held| !living.holds(held))?;
            }
            Ok(())
        }
        Addressing::Delegated(plugin) => delegate(call, plugin)?.forward("GC"),
    }
}

/// Takes back the addresses of one attachment that died with an earlier boot.
///
/// # Errors
/// The file system's.
pub(crate) fn take_back_of_the_dead(
    call: &Invocation<'_>,
    container_id: &str,
    interface: &str,
) -> Result<(), Fault> {
    let Addressing::BuiltIn(built_in) = &call.config.addressing else { return Ok(()) };
    if let Some(directory) = open_existing(call, built_in)? {
        directory.release(container_id, interface, now())?;
    }
    Ok(())
}

/// The result of an IPAM plugin (CNI specification, section 5, "IPAM plugins").
pub(crate) fn as_result(given: Given) -> Success {
    let both = given.addresses.into_iter().zip(given.gateways);
    let address = |(address, gateway)| Address { address, gateway, interface_index: None };
    Success {
        addresses: both.map(address).collect(),
        routes: given.routes,
        dns: given.dns,
        ..Success::default()
    }
}

fn reserve(call: &Invocation<'_>, built_in: &BuiltIn) -> Result<Given, Fault> {
    let (request, config) = (call.request, call.config);
    let dns = built_in.resolv_conf.as_ref().map(|file| file.read()).transpose()?;
    let chosen = match &built_in.agent_socket {
        Some(socket) => agent::ask(socket, request.pod.as_ref(), &request.pod_uid)?,
        None => None,
    };
    let asked_for = request.requested_addresses.iter().chain(&config.requested_addresses);
    let mut requested: Vec<IpAddr> = asked_for.copied().collect();
    let mut sets = &built_in.ranges;
    if let Some(chosen) = &chosen {
        sets = &chosen.ranges;
        // Who calls the plugin may choose again.
        if requested.is_empty() {
            requested.clone_from(&chosen.requested);
        }
    }
    let directory = Directory::open(&built_in.data_directory, &config.network)?;
    let reserved = directory.reserve(&Ask {
        sets,
        withheld: &built_in.withheld,
        container_id: &request.container_id,
        interface: &request.interface,
        requested: &requested,
    });
    let reserved = reserved.map_err(|error| match error {
        ipam::Error::Taken(address) => taken(call, &directory, address),
        error => error.into(),
    })?;
    let address = |one: &Reserved| {
        let net = IpNet::new(one.address, one.range.subnet.prefix_len());
        net.unwrap_or_else(|_| one.address.into())
    };
    Ok(Given {
        addresses: reserved.iter().map(address).collect(),
        gateways: reserved.iter().map(|one| one.range.gateway()).collect(),
        routes: built_in.routes.clone(),
        dns: dns.unwrap_or_default(),
    })
}

/// Names who has a requested address: its owner must let go of it.
fn taken(call: &Invocation<'_>, directory: &Directory, address: IpAddr) -> Fault {
    let held = directory.reservations().ok().and_then(|mut all| all.remove(&address));
    let container = held.map(|held| held.container_id).unwrap_or_default();
    let records = records::of_all_networks(&call.config.data_directory).unwrap_or_default();
    let record = records.into_iter().find(|record| record.container_id == container);
    let holder = match record.and_then(|record| record.pod) {
        Some(pod) => format!("pod {pod}"),
        None => format!("container {container}"),
    };
    Fault::new(
        NO_ADDRESS,
        format!("the requested address {address} is taken by {holder}"),
        format!("delete {holder}, or request another address"),
    )
}

fn given_by(success: Success) -> Given {
    Given {
        addresses: success.addresses.iter().map(|one| one.address).collect(),
        gateways: success.addresses.iter().map(|one| one.gateway).collect(),
        routes: success.routes,
        dns: success.dns,
    }
}

fn delegate<'a>(call: &Invocation<'a>, plugin: &'a str) -> Result<Delegate<'a>, Fault> {
    Delegate::new(plugin, &call.request.plugin_path, call.value)
}

fn open_existing(call: &Invocation<'_>, built_in: &BuiltIn) -> Result<Option<Directory>, Fault> {
    Ok(Directory::open_existing(&built_in.data_directory, &call.config.network)?)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_microseconds(since.as_micros().try_into().unwrap_or_default())
}
