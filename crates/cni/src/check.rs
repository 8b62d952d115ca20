//! CHECK: whether what ADD made is still there.

use std::net::IpAddr;

use ipam::Directory;
use ipnet::IpNet;
use netlink::Netlink;
use serde::Deserialize;

use crate::attachment::{self, next_hop};
use crate::command::lacking;
use crate::config::{Config, Route};
use crate::fault::{CHECK_FAILED, Fault, INVALID_CONFIG};
use crate::request::Request;
use crate::result::Address;

/// An earlier result, as CHECK reads it. What later plugins added does not matter.
#[derive(Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Vec<PreviousInterface>,
    #[serde(default)]
    ips: Vec<PreviousAddress>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct PreviousInterface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct PreviousAddress {
    address: IpNet,
    gateway: Option<IpAddr>,
    #[serde(default)]
    interface: usize,
}

/// Compares the kernel and the reservations with an earlier result.
pub(crate) fn run(request: &Request, config: &Config) -> Result<(), Fault> {
    let value = config.previous_result.clone().ok_or_else(|| lacking("prevResult", "CHECK"))?;
    let previous: Previous = serde_json::from_value(value)
        .map_err(|error| Fault::new(INVALID_CONFIG, "prevResult cannot be understood", error))?;
    check_node_end(request, config)?;
    check_pod_end(request, &previous)?;
    let held = Directory::open(&config.data_directory, &config.network)?.reservations()?;
    for range in config.ranges.iter().flatten() {
        for address in previous.ips.iter().map(|ip| ip.address.addr()) {
            let owner = held.get(&address).map(|held| held.container_id.as_str());
            if range.subnet.contains(&address) && owner != Some(request.container_id.as_str()) {
                return Err(failed(&format!("the reservation of {address} is missing")));
            }
        }
    }
    Ok(())
}

fn check_node_end(request: &Request, config: &Config) -> Result<(), Fault> {
    let mut node = Netlink::open()?;
    let name = attachment::node_end(&request.container_id, &request.interface);
    let link =
        node.link(&name)?.ok_or_else(|| failed(&format!("the node's link {name} is gone")))?;
    if !link.up {
        return Err(failed(&format!("the node's link {name} is down")));
    }
    let bridge = node.link(&config.bridge)?.map(|bridge| bridge.index);
    if bridge.is_none() || link.master != bridge {
        return Err(failed(&format!("{name} is no port of the bridge {}", config.bridge)));
    }
    Ok(())
}

fn check_pod_end(request: &Request, previous: &Previous) -> Result<(), Fault> {
    let namespace = attachment::open_namespace(request)?;
    let mut pod = Netlink::open_in(&namespace)?;
    let name = &request.interface;
    let link = pod.link(name)?.ok_or_else(|| failed(&format!("the interface {name} is gone")))?;
    if !link.up {
        return Err(failed(&format!("the interface {name} is down")));
    }
    let own = previous
        .interfaces
        .iter()
        .position(|interface| interface.name == *name && !interface.sandbox.is_empty())
        .ok_or_else(|| failed(&format!("prevResult does not name the interface {name}")))?;
    let mac = link.mac.unwrap_or_default().to_string();
    if previous.interfaces.get(own).is_some_and(|own| own.mac.to_lowercase() != mac) {
        return Err(failed(&format!("the interface {name} has another MAC address: {mac}")));
    }
    let present = pod.addresses(Some(link.index))?;
    let addresses: Vec<Address> = previous
        .ips
        .iter()
        .filter(|ip| ip.interface == own)
        .map(|ip| Address { address: ip.address, gateway: ip.gateway, interface_index: Some(own) })
        .collect();
    for wanted in &addresses {
        if !present.iter().any(|found| found.address == wanted.address) {
            return Err(failed(&format!("the address {} is missing on {name}", wanted.address)));
        }
    }
    let routes = pod.routes(None)?;
    for wanted in &previous.routes {
        let gateway = next_hop(wanted, &addresses);
        let there = routes.iter().any(|found| {
            found.destination == wanted.dst && (gateway.is_none() || found.gateway == gateway)
        });
        if !there {
            return Err(failed(&format!("the route to {} is missing or changed", wanted.dst)));
        }
    }
    Ok(())
}

fn failed(what: &str) -> Fault {
    Fault::new(CHECK_FAILED, what, "delete the pod, so that it is made anew")
}
