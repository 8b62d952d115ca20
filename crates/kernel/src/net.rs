//! [`NetDriver`]: links, addresses, neighbours, routes and kernel parameters of the namespace
//! that the process runs in.

mod hint;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use model::layout;
use netlink::wireguard::Wireguard;
use netlink::{
    BridgeSpec, Error, FdbEntry, Link, LinkChange, Neighbour, Netlink, Route, offload, sysctl,
};
use nix::unistd::{SysconfVar, sysconf};
use render::OpError;
use render::net::{
    CONNTRACK_BUCKETS, CONNTRACK_MAX, ConntrackLimit, LOOPBACK, LinkKind, LinkState, NetObserved,
    NetOp, NetState, RouteState, owned_sysctls,
};
use render::owned::ROUTE_PROTOCOL;

use crate::wireguard::KeyStore;
use hint::hint;

/// The writer of the pod network, over kept sockets.
pub struct NetDriver {
    netlink: Netlink,
    wireguard: Wireguard,
    keys: KeyStore,
}

impl NetDriver {
    /// Opens the driver in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, OpError> {
        Self::with_keys(KeyStore::at(layout::WIREGUARD_KEY_DIRECTORY))
    }

    /// Opens the driver with WireGuard keys of another place.
    ///
    /// # Errors
    /// When the system refuses the sockets.
    pub fn with_keys(keys: KeyStore) -> Result<Self, OpError> {
        let netlink = Netlink::open().map_err(refused)?;
        Ok(Self { netlink, wireguard: Wireguard::open().map_err(refused)?, keys })
    }

    /// The address of the kept socket ([`netlink::socket::Socket::port_id`]).
    pub fn port_id(&self) -> u32 {
        self.netlink.port_id()
    }

    /// Reads back what is ours: links by name and kind, what is on them, routes by protocol.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<NetObserved, OpError> {
        self.read().map_err(refused)
    }

    /// Carries out one op, wholly or not at all.
    ///
    /// # Errors
    /// The kernel's errno and words, the object, and what to do where that is known.
    pub fn apply(&mut self, op: &NetOp) -> Result<(), OpError> {
        self.write(op).map_err(|error| {
            let hint = hint(op, error.errno);
            let mut refused = refused(error);
            refused.message.push_str(&hint);
            refused
        })
    }

    fn read(&mut self) -> Result<NetObserved, Error> {
        let links = self.netlink.links()?;
        let names: BTreeMap<u32, &str> =
            links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let (mut state, mut marked_addresses) = (NetState::default(), BTreeSet::new());
        for link in &links {
            let own = link_state(link, &names)?;
            if own.is_none() && link.name != LOOPBACK {
                continue;
            }
            for found in self.netlink.addresses(Some(link.index))? {
                if own.is_none() && found.protocol == ROUTE_PROTOCOL {
                    marked_addresses.insert(found.address);
                }
                if !is_automatic(found.address.addr()) {
                    state.addresses.insert((link.name.clone(), found.address));
                }
            }
            let Some(own) = own else { continue };
            for found in self.netlink.neighbours(link.index)? {
                state.neighbours.insert((link.name.clone(), found.address), found.mac);
            }
            if own.kind == LinkKind::Wireguard {
                self.read_wireguard(link, &mut state)?;
            }
            if matches!(own.kind, LinkKind::Vxlan { .. }) {
                for found in self.netlink.fdb(link.index)? {
                    state.forwarding.insert((link.name.clone(), found.mac), found.destination);
                }
            }
            state.links.insert(link.name.clone(), own);
        }
        for route in self.netlink.routes(Some(ROUTE_PROTOCOL))? {
            let link = route.link_index.and_then(|index| names.get(&index));
            let route_state = RouteState {
                gateway: route.gateway.or(route.outer.map(|outer| outer.destination.into())),
                link: link.map_or_else(String::new, |name| (*name).to_owned()),
                source: route.source,
                onlink: route.onlink,
                mtu: route.mtu,
            };
            state.routes.insert(route.destination, route_state);
        }
        for key in owned_sysctls() {
            // One that is absent is not there yet (its link, its module): writing it will say so.
            if let Ok(value) = sysctl::read(&key) {
                state.sysctls.insert(key, value);
            }
        }
        Ok(NetObserved {
            state,
            detached_ports: detached_ports(&links),
            marked_addresses,
            without_ipv6: !Path::new("/proc/sys/net/ipv6").exists(),
            conntrack: conntrack_limit(),
        })
    }

    fn write(&mut self, op: &NetOp) -> Result<(), Error> {
        match op {
            NetOp::AddLink { name, kind, mac, mtu } => match kind {
                LinkKind::Bridge => {
                    let spec = BridgeSpec { name: name.clone(), mac: Some(*mac), mtu: Some(*mtu) };
                    self.netlink.create_bridge(&spec)
                }
                LinkKind::Vxlan { .. } | LinkKind::Ipip { .. } | LinkKind::Wireguard => {
                    self.add_tunnel(name, kind, *mac, *mtu)
                }
            },
            NetOp::SetMac { link, mac } => {
                self.change(link, LinkChange { mac: Some(*mac), ..LinkChange::default() })
            }
            NetOp::SetMtu { link, mtu } => {
                self.change(link, LinkChange { mtu: Some(*mtu), ..LinkChange::default() })
            }
            NetOp::SetTxChecksum { link, on } => offload::set_tx_checksum(link, *on),
            NetOp::SetUp { link } => self.change(link, LinkChange::up()),
            NetOp::AttachPort { port, bridge } => {
                let master = Some(self.index(bridge)?);
                self.change(port, LinkChange { master, ..LinkChange::up() })?;
                let index = self.index(port)?;
                self.netlink.set_hairpin(index, true)
            }
            NetOp::DeleteLink { name } => {
                let index = self.index(name)?;
                self.netlink.delete_link(index)
            }
            NetOp::AddAddress { link, address } => {
                let index = self.index(link)?;
                match link == LOOPBACK {
                    // The link does not tell whose it is.
                    true => self.netlink.add_address_of(index, *address, ROUTE_PROTOCOL),
                    false => self.netlink.add_address(index, *address),
                }
            }
            NetOp::DeleteAddress { link, address } => {
                let index = self.index(link)?;
                self.netlink.delete_address(index, *address)
            }
            NetOp::AddRoute { destination, route } => {
                let route = self.route(*destination, route)?;
                self.netlink.add_route(&route)
            }
            NetOp::ReplaceRoute { destination, route } => {
                let route = self.route(*destination, route)?;
                self.netlink.replace_route(&route)
            }
            NetOp::DeleteRoute { destination, link } => {
                let index = self.index(link)?;
                self.netlink.delete_route(&Route::on_link(*destination, index, ROUTE_PROTOCOL))
            }
            NetOp::SetSysctl { key, value } => sysctl::write(key, value),
            NetOp::SetNeighbour { .. }
            | NetOp::DeleteNeighbour { .. }
            | NetOp::SetForwarding { .. }
            | NetOp::DeleteForwarding { .. } => self.write_neighbour(op),
            NetOp::SetWireguard { .. }
            | NetOp::SetWireguardPeer { .. }
            | NetOp::DeleteWireguardPeer { .. } => self.write_wireguard(op),
        }
    }

    fn write_neighbour(&mut self, op: &NetOp) -> Result<(), Error> {
        match op {
            NetOp::SetNeighbour { link, address, mac } => {
                let link_index = self.index(link)?;
                self.netlink.set_neighbour(&Neighbour { link_index, address: *address, mac: *mac })
            }
            NetOp::DeleteNeighbour { link, address } => {
                let index = self.index(link)?;
                self.netlink.delete_neighbour(index, *address)
            }
            NetOp::SetForwarding { link, mac, destination } => {
                let link_index = self.index(link)?;
                let entry = FdbEntry { link_index, mac: *mac, destination: *destination };
                self.netlink.set_fdb(&entry)
            }
            NetOp::DeleteForwarding { link, mac } => {
                let index = self.index(link)?;
                self.netlink.delete_fdb(index, *mac)
            }
            _ => Err(Error::new(libc::EINVAL, "write a neighbour")),
        }
    }

    fn change(&mut self, link: &str, change: LinkChange<'_>) -> Result<(), Error> {
        let index = self.index(link)?;
        self.netlink
            .change_link(index, &change)
            .map_err(|error| error.during(format!("change the link {link}")))
    }

    fn index(&mut self, link: &str) -> Result<u32, Error> {
        Ok(self.netlink.require_link(link)?.index)
    }

    fn route(&mut self, destination: ipnet::IpNet, route: &RouteState) -> Result<Route, Error> {
        let link = self.netlink.require_link(&route.link)?;
        let on_link = Route::on_link(destination, link.index, ROUTE_PROTOCOL);
        let made = match (tunnels::outer_header(&link, route), route.gateway) {
            (Some(outer), _) => Route { outer: Some(outer), ..on_link },
            (None, Some(gateway)) => Route::via(destination, gateway, link.index, ROUTE_PROTOCOL),
            (None, None) => on_link,
        };
        Ok(Route { source: route.source, onlink: route.onlink, mtu: route.mtu, ..made })
    }
}

/// A link of ours, by name and kind; `None` for all others, also those of the same name.
fn link_state(link: &Link, names: &BTreeMap<u32, &str>) -> Result<Option<LinkState>, Error> {
    let kind = match (link.name.as_str(), link.kind.as_str()) {
        (layout::BRIDGE, "bridge") => LinkKind::Bridge,
        _ => match tunnels::kind(link, names) {
            Some(kind) => kind,
            None => return Ok(None),
        },
    };
    let tx_checksum = match kind {
        LinkKind::Vxlan { .. } => Some(offload::tx_checksum(&link.name)?),
        LinkKind::Bridge | LinkKind::Ipip { .. } | LinkKind::Wireguard => None,
    };
    let mac = link.mac.unwrap_or_default();
    Ok(Some(LinkState { kind, mac, mtu: link.mtu, up: link.up, tx_checksum }))
}

fn detached_ports(links: &[Link]) -> BTreeSet<String> {
    let ours = |link: &&Link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        link.kind == "veth"
            && link.name.starts_with(layout::POD_LINK_PREFIX)
            && alias.starts_with(layout::POD_LINK_ALIAS_PREFIX)
            && link.master.is_none()
    };
    links.iter().filter(ours).map(|link| link.name.clone()).collect()
}

/// Addresses that the kernel makes by itself: loopback's own, and link-local ones.
fn is_automatic(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(address) => address.is_loopback(),
        std::net::IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}

/// `None` where the kernel shows it to be read only, or does not track flows.
fn conntrack_limit() -> Option<ConntrackLimit> {
    let number = |key: &str| sysctl::read(key).ok()?.parse().ok();
    let processors = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten()?;
    sysctl::is_writable(CONNTRACK_MAX).then_some(ConntrackLimit {
        entries_max: number(CONNTRACK_MAX)?,
        buckets: number(CONNTRACK_BUCKETS)?,
        processors: u32::try_from(processors).ok()?,
    })
}

fn refused(error: Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use netlink::Netns;

    use super::*;

    /// S-11: the limit is the machine's. Where this runs in its first namespace it is raised a
    /// little, and set back.
    #[test]
    fn tracked_flows_are_limited_by_the_first_namespace_alone() {
        let other = Netns::create().expect("namespaces need root");
        assert_eq!(other.run(conntrack_limit).expect("a namespace"), None);
        let Some(before) = conntrack_limit() else {
            assert!(!sysctl::is_writable(CONNTRACK_MAX), "it can be set, and was not read");
            return;
        };
        assert!(before.processors > 0 && before.buckets > 0, "{before:?}");
        let mut driver = NetDriver::open().expect("netlink");
        let mut set = |entries: u32| {
            let (key, value) = (CONNTRACK_MAX.to_owned(), entries.to_string());
            driver.apply(&NetOp::SetSysctl { key, value }).expect("set");
            conntrack_limit().expect("read").entries_max
        };
        let raised = before.entries_max + 1;
        assert_eq!([set(raised), set(before.entries_max)], [raised, before.entries_max]);
    }
}
