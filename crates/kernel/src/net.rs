//! [`NetDriver`]: links, addresses, neighbours, routes and kernel parameters of the namespace
//! that the process runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use model::layout;
use netlink::{
    BridgeSpec, Error, FdbEntry, Link, LinkChange, Neighbour, Netlink, Route, VxlanSpec, offload,
    sysctl,
};
use render::OpError;
use render::net::{
    LOOPBACK, LinkKind, LinkState, NetObserved, NetOp, NetState, RouteState, owned_sysctls,
};
use render::owned::ROUTE_PROTOCOL;

/// The writer of the pod network, over one kept socket.
pub struct NetDriver {
    netlink: Netlink,
}

impl NetDriver {
    /// Opens the driver in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, OpError> {
        Ok(Self { netlink: Netlink::open().map_err(refused)? })
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
            refused.message.push_str(hint);
            refused
        })
    }

    fn read(&mut self) -> Result<NetObserved, Error> {
        let links = self.netlink.links()?;
        let names: BTreeMap<u32, &str> =
            links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let mut state = NetState::default();
        for link in &links {
            let own = link_state(link, &names)?;
            if own.is_none() && link.name != LOOPBACK {
                continue;
            }
            for found in self.netlink.addresses(Some(link.index))? {
                if !is_automatic(found.address.addr()) {
                    state.addresses.insert((link.name.clone(), found.address));
                }
            }
            let Some(own) = own else { continue };
            for found in self.netlink.neighbours(link.index)? {
                state.neighbours.insert((link.name.clone(), found.address), found.mac);
            }
            if own.kind != LinkKind::Bridge {
                for found in self.netlink.fdb(link.index)? {
                    state.forwarding.insert((link.name.clone(), found.mac), found.destination);
                }
            }
            state.links.insert(link.name.clone(), own);
        }
        for route in self.netlink.routes(Some(ROUTE_PROTOCOL))? {
            let link = route.link_index.and_then(|index| names.get(&index));
            let route_state = RouteState {
                gateway: route.gateway,
                link: link.map_or_else(String::new, |name| (*name).to_owned()),
                source: route.source,
                onlink: route.onlink,
            };
            state.routes.insert(route.destination, route_state);
        }
        for key in owned_sysctls() {
            // One that is absent is not there yet (its link, its module): writing it will say so.
            if let Ok(value) = sysctl::read(key) {
                state.sysctls.insert(key.to_owned(), value);
            }
        }
        Ok(NetObserved {
            state,
            detached_ports: detached_ports(&links),
            without_ipv6: !Path::new("/proc/sys/net/ipv6").exists(),
        })
    }

    fn write(&mut self, op: &NetOp) -> Result<(), Error> {
        match op {
            NetOp::AddLink { name, kind, mac, mtu } => match kind {
                LinkKind::Bridge => {
                    let spec = BridgeSpec { name: name.clone(), mac: Some(*mac), mtu: Some(*mtu) };
                    self.netlink.create_bridge(&spec)
                }
                LinkKind::Vxlan { .. } => self.add_vxlan(name, kind, *mac, *mtu),
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
                self.netlink.add_address(index, *address)
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

    fn add_vxlan(
        &mut self,
        name: &str,
        kind: &LinkKind,
        mac: model::MacAddress,
        mtu: u32,
    ) -> Result<(), Error> {
        let LinkKind::Vxlan { vni, port, local: Some(local), uplink: Some(uplink), .. } = kind
        else {
            let action = format!("create the link {name} without its outer address and uplink");
            return Err(Error::new(libc::EINVAL, action));
        };
        let uplink_index = self.index(uplink)?;
        self.netlink.create_vxlan(&VxlanSpec {
            name: name.to_owned(),
            vni: *vni,
            port: *port,
            local: *local,
            uplink_index,
            mac,
            mtu,
        })
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
        let index = self.index(&route.link)?;
        let made = match route.gateway {
            Some(gateway) => Route::via(destination, gateway, index, ROUTE_PROTOCOL),
            None => Route::on_link(destination, index, ROUTE_PROTOCOL),
        };
        Ok(Route { source: route.source, onlink: route.onlink, ..made })
    }
}

/// A link of ours, by name and kind; `None` for all others, also those of the same name.
fn link_state(link: &Link, names: &BTreeMap<u32, &str>) -> Result<Option<LinkState>, Error> {
    let kind = match (link.name.as_str(), link.kind.as_str(), &link.vxlan) {
        (layout::BRIDGE, "bridge", _) => LinkKind::Bridge,
        (layout::VXLAN_LINK, "vxlan", Some(vxlan)) => LinkKind::Vxlan {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local,
            uplink: vxlan
                .uplink_index
                .and_then(|index| names.get(&index))
                .map(|name| (*name).to_owned()),
            learning: vxlan.learning,
        },
        _ => return Ok(None),
    };
    let tx_checksum = match kind {
        LinkKind::Bridge => None,
        LinkKind::Vxlan { .. } => Some(offload::tx_checksum(&link.name)?),
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

fn refused(error: Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

/// What to do, where the errno of an op has one usual cause.
fn hint(op: &NetOp, errno: i32) -> &'static str {
    match (op, errno) {
        (NetOp::SetSysctl { key, .. }, libc::ENOENT) if key.starts_with("net/bridge/") => {
            "; the kernel module br_netfilter is not loaded: modprobe br_netfilter"
        }
        (NetOp::SetSysctl { key, .. }, libc::ENOENT) if key.starts_with("net/netfilter/") => {
            "; the kernel module nf_conntrack is not loaded: modprobe nf_conntrack"
        }
        (NetOp::SetSysctl { .. }, libc::EROFS) => {
            "; /proc/sys is read-only here: run privileged, or mount it writable"
        }
        (NetOp::AddLink { kind: LinkKind::Bridge, .. }, libc::EEXIST) => {
            "; a link of this name is there and is no bridge: rename or delete it"
        }
        (NetOp::AddLink { kind: LinkKind::Vxlan { .. }, .. }, libc::EEXIST) => {
            "; another program has a link of this name, or a VXLAN of the same VNI and port \
             (flannel uses the same): remove it"
        }
        (NetOp::AddLink { .. }, libc::EOPNOTSUPP) => {
            "; the kernel lacks this kind of link: load its module, or use the host-gw overlay \
             where VXLAN is missing"
        }
        (NetOp::AddRoute { .. }, libc::EEXIST) => {
            "; another program has a route to this range: find it with `ip route` and remove it, \
             or choose another pod range"
        }
        (NetOp::AddRoute { .. } | NetOp::ReplaceRoute { .. }, libc::ENETUNREACH) => {
            "; the node is not on this node's L2 segment: use the vxlan overlay"
        }
        (_, libc::EPERM) => "; this needs CAP_NET_ADMIN in the node's network namespace",
        _ => "",
    }
}
