//! From what is to what shall be: the one place that knows the order (invariant 5).
//!
//! Additions go up the dependencies: parameters, links, addresses, keys, the links up, neighbours,
//! forwarding entries and peers, routes. A route comes last, so that no packet takes a way that is not
//! whole. Removals go down again. A link that must be made anew is removed first, with all on it.

use std::net::IpAddr;

use model::layout;

use super::sysctls::{self, link_of};
use super::{LOOPBACK, NetObserved, NetOp, NetProgram, NetState};

/// The ops from what is to what shall be; none while nothing is known of the node's network.
pub fn diff(program: &NetProgram, observed: &NetObserved) -> Vec<NetOp> {
    let Some(wanted) = &program.state else { return vec![] };
    let mut ops = Vec::new();
    let mut observed = observed.clone();
    for op in rebuilds(wanted, &observed.state) {
        // On what it just read: a link that is there can be removed.
        if observed.apply(&op).is_ok() {
            ops.push(op);
        }
    }
    let present = &observed.state;
    ops.extend(set_sysctls(wanted, &observed, |key| link_of(key).is_none()));
    let raised = program.conntrack.iter().zip(&observed.conntrack);
    let raised = raised.flat_map(|(config, limit)| sysctls::raise(config, limit));
    ops.extend(raised.map(|(key, value)| NetOp::SetSysctl { key: key.to_owned(), value }));
    ops.extend(add_links(wanted, present));
    ops.extend(set_sysctls(wanted, &observed, |key| link_of(key).is_some()));
    ops.extend(add_addresses(wanted, present));
    ops.extend(set_keys(wanted, present));
    ops.extend(set_up(wanted, present));
    if wanted.links.contains_key(layout::BRIDGE) {
        ops.extend(observed.detached_ports.iter().map(|port| NetOp::AttachPort {
            port: port.clone(),
            bridge: layout::BRIDGE.to_owned(),
        }));
    }
    ops.extend(set_neighbours(wanted, present));
    ops.extend(set_peers(wanted, present));
    ops.extend(set_routes(wanted, present));
    ops.extend(removals(wanted, &observed));
    ops
}

/// Links whose kind or tunnel parameters differ: the kernel cannot change those in place.
fn rebuilds(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    let differs = |(name, link): (&String, &super::LinkState)| {
        let present = present.links.get(name)?;
        (present.kind != link.kind).then(|| NetOp::DeleteLink { name: name.clone() })
    };
    wanted.links.iter().filter_map(differs).collect()
}

fn set_sysctls(
    wanted: &NetState,
    observed: &NetObserved,
    belongs: impl Fn(&str) -> bool,
) -> Vec<NetOp> {
    wanted
        .sysctls
        .iter()
        .filter(|(key, _)| belongs(key))
        .filter(|(key, _)| !(observed.without_ipv6 && key.starts_with("net/ipv6/")))
        .filter(|(key, value)| observed.state.sysctls.get(*key) != Some(value))
        .map(|(key, value)| NetOp::SetSysctl { key: key.clone(), value: value.clone() })
        .collect()
}

fn add_links(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    let mut ops = Vec::new();
    for (name, link) in &wanted.links {
        let found = present.links.get(name);
        match found {
            None => ops.push(NetOp::AddLink {
                name: name.clone(),
                kind: link.kind.clone(),
                mac: link.mac,
                mtu: link.mtu,
            }),
            Some(found) => {
                if found.mac != link.mac {
                    ops.push(NetOp::SetMac { link: name.clone(), mac: link.mac });
                }
                if found.mtu != link.mtu {
                    ops.push(NetOp::SetMtu { link: name.clone(), mtu: link.mtu });
                }
            }
        }
        // A new link leaves checksums to the device.
        let offload = found.map_or(Some(true), |found| found.tx_checksum);
        if let Some(on) = link.tx_checksum.filter(|on| offload != Some(*on)) {
            ops.push(NetOp::SetTxChecksum { link: name.clone(), on });
        }
    }
    ops
}

fn set_up(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    wanted
        .links
        .iter()
        .filter(|(name, link)| link.up && !present.links.get(*name).is_some_and(|link| link.up))
        .map(|(name, _)| NetOp::SetUp { link: name.clone() })
        .collect()
}

fn add_addresses(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    wanted
        .addresses
        .difference(&present.addresses)
        .map(|(link, address)| NetOp::AddAddress { link: link.clone(), address: *address })
        .collect()
}

fn set_neighbours(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    let forwarding = wanted
        .forwarding
        .iter()
        .filter(|(key, destination)| present.forwarding.get(key) != Some(destination))
        .map(|((link, mac), destination)| NetOp::SetForwarding {
            link: link.clone(),
            mac: *mac,
            destination: *destination,
        });
    let neighbours =
        wanted.neighbours.iter().filter(|(key, mac)| present.neighbours.get(key) != Some(mac)).map(
            |((link, address), mac)| NetOp::SetNeighbour {
                link: link.clone(),
                address: *address,
                mac: *mac,
            },
        );
    forwarding.chain(neighbours).collect()
}

fn set_keys(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    wanted
        .wireguard
        .iter()
        .filter(|(link, device)| present.wireguard.get(*link) != Some(device))
        .map(|(link, device)| NetOp::SetWireguard { link: link.clone(), device: *device })
        .collect()
}

fn set_peers(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    wanted
        .wireguard_peers
        .iter()
        .filter(|(key, peer)| present.wireguard_peers.get(key) != Some(peer))
        .map(|((link, public_key), peer)| NetOp::SetWireguardPeer {
            link: link.clone(),
            public_key: *public_key,
            peer: peer.clone(),
        })
        .collect()
}

fn set_routes(wanted: &NetState, present: &NetState) -> Vec<NetOp> {
    wanted
        .routes
        .iter()
        .filter(|(destination, route)| present.routes.get(destination) != Some(route))
        .map(|(&destination, route)| match present.routes.contains_key(&destination) {
            true => NetOp::ReplaceRoute { destination, route: route.clone() },
            false => NetOp::AddRoute { destination, route: route.clone() },
        })
        .collect()
}

/// The reverse order of the additions. What lies on a link that goes, goes with it.
fn removals(wanted: &NetState, observed: &NetObserved) -> Vec<NetOp> {
    let present = &observed.state;
    let stays = |link: &String| wanted.links.contains_key(link);
    let mut ops = Vec::new();
    for (destination, route) in &present.routes {
        if !wanted.routes.contains_key(destination) {
            let link = route.link.clone();
            ops.push(NetOp::DeleteRoute { destination: *destination, link });
        }
    }
    for (link, public_key) in present.wireguard_peers.keys().filter(|(link, _)| stays(link)) {
        if !wanted.wireguard_peers.contains_key(&(link.clone(), *public_key)) {
            ops.push(NetOp::DeleteWireguardPeer { link: link.clone(), public_key: *public_key });
        }
    }
    for (link, address) in present.neighbours.keys().filter(|(link, _)| stays(link)) {
        if !wanted.neighbours.contains_key(&(link.clone(), *address)) {
            ops.push(NetOp::DeleteNeighbour { link: link.clone(), address: *address });
        }
    }
    for (link, mac) in present.forwarding.keys().filter(|(link, _)| stays(link)) {
        if !wanted.forwarding.contains_key(&(link.clone(), *mac)) {
            ops.push(NetOp::DeleteForwarding { link: link.clone(), mac: *mac });
        }
    }
    for (link, address) in present.addresses.difference(&wanted.addresses) {
        // An unknown address on loopback is someone else's (invariant 4) unless it has our mark, and
        // addresses that the kernel makes for links itself are nobody's.
        let is_ours = match link == LOOPBACK {
            true => observed.marked_addresses.contains(address),
            false => stays(link),
        };
        if is_ours && !is_link_local(address.addr()) {
            ops.push(NetOp::DeleteAddress { link: link.clone(), address: *address });
        }
    }
    for name in present.links.keys().filter(|name| !stays(name)) {
        ops.push(NetOp::DeleteLink { name: name.clone() });
    }
    ops
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
