//! Links of tunnels: how each kind is made, recognised and filled.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::{MacAddress, layout};
use netlink::wireguard::WireguardLinkPeer;
use netlink::{Error, IpipSpec, Link, OuterHeader, VxlanSpec};
use render::net::{LinkKind, NetOp, NetState, RouteState, WireguardDevice, WireguardPeer};

use super::NetDriver;

/// What a link is, if it is one of our tunnels.
pub(super) fn kind(link: &Link, names: &BTreeMap<u32, &str>) -> Option<LinkKind> {
    let name_of = |index: Option<u32>| {
        index.and_then(|index| names.get(&index)).map(|name| (*name).to_owned())
    };
    match (link.name.as_str(), link.kind.as_str()) {
        (layout::VXLAN_LINK, "vxlan") => link.vxlan.as_ref().map(|vxlan| LinkKind::Vxlan {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local,
            uplink: name_of(vxlan.uplink_index),
            learning: vxlan.learning,
        }),
        (layout::IPIP_LINK, "ipip") | (layout::IPIP6_LINK, "ip6tnl") => {
            link.ipip.as_ref().map(|ipip| LinkKind::Ipip {
                // One that leads to a single node is not what we made: then it differs.
                local: ipip.local.filter(|_| ipip.remote.is_none()),
                uplink: name_of(ipip.uplink_index),
            })
        }
        (layout::WIREGUARD_LINK, "wireguard") => Some(LinkKind::Wireguard),
        _ => None,
    }
}

/// What outer headers of a route's packets say, on a link of IPv6 in IPv6.
pub(super) fn outer_header(link: &Link, route: &RouteState) -> Option<OuterHeader> {
    let ipip = link.ipip.as_ref().filter(|_| link.name == layout::IPIP6_LINK)?;
    match (ipip.local?, route.gateway?) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => Some(OuterHeader { source, destination }),
        _ => None,
    }
}

impl NetDriver {
    pub(super) fn add_tunnel(
        &mut self,
        name: &str,
        kind: &LinkKind,
        mac: MacAddress,
        mtu: u32,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        match kind {
            LinkKind::Vxlan { vni, port, local: Some(local), uplink: Some(uplink), .. } => {
                let (vni, port, local) = (*vni, *port, *local);
                let uplink_index = self.index(uplink)?;
                let spec = VxlanSpec { name, vni, port, local, uplink_index, mac, mtu };
                self.netlink.create_vxlan(&spec)
            }
            LinkKind::Ipip { local: Some(local), uplink: Some(uplink) } => {
                let uplink_index = self.index(uplink)?;
                self.netlink.create_ipip(&IpipSpec { name, local: *local, uplink_index, mtu })
            }
            LinkKind::Wireguard => self.netlink.create_wireguard(&name, mtu),
            LinkKind::Bridge | LinkKind::Vxlan { .. } | LinkKind::Ipip { .. } => {
                let action = format!("create the link {name} without its outer address and uplink");
                Err(Error::new(libc::EINVAL, action))
            }
        }
    }

    pub(super) fn read_wireguard(
        &mut self,
        link: &Link,
        state: &mut NetState,
    ) -> Result<(), Error> {
        let found = self.wireguard.link(link.index)?;
        if let Some(public_key) = found.public_key {
            let device = WireguardDevice { public_key, port: found.port };
            state.wireguard.insert(link.name.clone(), device);
        }
        for (key, peer) in found.peers {
            let peer = WireguardPeer { endpoint: peer.endpoint, allowed: peer.allowed };
            state.wireguard_peers.insert((link.name.clone(), key), peer);
        }
        Ok(())
    }

    pub(super) fn write_wireguard(&mut self, op: &NetOp) -> Result<(), Error> {
        match op {
            NetOp::SetWireguard { link, device } => {
                let private = self.keys.private(&device.public_key).map_err(|error| Error {
                    reason: Some(error.to_string()),
                    ..Error::new(libc::ENOKEY, format!("give the link {link} its key"))
                })?;
                let index = self.index(link)?;
                self.wireguard.set_link(index, &private, device.port)
            }
            NetOp::SetWireguardPeer { link, public_key, peer } => {
                let index = self.index(link)?;
                let WireguardPeer { endpoint, allowed } = peer.clone();
                let peer = WireguardLinkPeer { endpoint, allowed };
                self.wireguard.set_peer(index, public_key, &peer)
            }
            NetOp::DeleteWireguardPeer { link, public_key } => {
                let index = self.index(link)?;
                self.wireguard.remove_peer(index, public_key)
            }
            _ => Err(Error::new(libc::EINVAL, "write a WireGuard link")),
        }
    }
}
