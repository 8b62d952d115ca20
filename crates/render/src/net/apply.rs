//! The state after one op, as Linux would leave it, with the errno that Linux answers otherwise
//! (a test in `cni` asks both the same).

use std::net::IpAddr;

use model::layout::IPIP6_LINK;

use super::diff::is_link_local;
use super::sysctls::{CONNTRACK_BUCKETS, CONNTRACK_MAX, OWN_LINKS, link_of};
use super::{LOOPBACK, LinkKind, LinkState, NetObserved, NetOp, RouteState};
use crate::OpError;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const EADDRNOTAVAIL: i32 = 99;
const ENETDOWN: i32 = 100;
const ENETUNREACH: i32 = 101;

impl NetObserved {
    /// The state after one op, or why Linux would refuse it; then nothing has changed.
    ///
    /// # Errors
    /// The errno that Linux answers.
    pub fn apply(&mut self, op: &NetOp) -> Result<(), OpError> {
        self.carry_out(op).map_err(|errno| OpError { errno, message: format!("refused: {op:?}") })
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<(), i32> {
        let of_limit = [CONNTRACK_MAX, CONNTRACK_BUCKETS].contains(&key);
        match &mut self.conntrack {
            None if of_limit => return Err(EACCES),
            Some(limit) if of_limit => {
                let number = value.parse().map_err(|_| EINVAL)?;
                if key == CONNTRACK_MAX {
                    limit.entries_max = number;
                } else {
                    limit.buckets = number;
                }
            }
            _ => drop(self.state.sysctls.insert(key.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    fn carry_out(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::AddLink { name, kind, mac, mtu } => self.add_link(name, kind, *mac, *mtu),
            NetOp::SetMac { link, mac } => self.link(link).map(|link| link.mac = *mac),
            NetOp::SetMtu { link, mtu } => self.link(link).map(|link| link.mtu = *mtu),
            NetOp::SetTxChecksum { link, on } => {
                self.link(link).map(|link| link.tx_checksum = Some(*on))
            }
            NetOp::SetUp { link } => self.link(link).map(|link| link.up = true),
            NetOp::AttachPort { port, bridge } => {
                self.link(bridge)?;
                if self.detached_ports.remove(port) { Ok(()) } else { Err(ENODEV) }
            }
            NetOp::DeleteLink { name } => self.delete_link(name),
            NetOp::SetSysctl { key, value } => {
                if let Some(link) = link_of(key)
                    && !self.state.links.contains_key(link)
                {
                    return Err(ENOENT);
                }
                self.set_sysctl(key, value)
            }
            NetOp::AddAddress { .. } | NetOp::DeleteAddress { .. } => self.change_address(op),
            NetOp::AddRoute { .. } | NetOp::ReplaceRoute { .. } | NetOp::DeleteRoute { .. } => {
                self.change_route(op)
            }
            NetOp::SetNeighbour { .. }
            | NetOp::DeleteNeighbour { .. }
            | NetOp::SetForwarding { .. }
            | NetOp::DeleteForwarding { .. } => self.change_neighbour(op),
            NetOp::SetWireguard { .. }
            | NetOp::SetWireguardPeer { .. }
            | NetOp::DeleteWireguardPeer { .. } => self.change_wireguard(op),
        }
    }

    fn link(&mut self, name: &str) -> Result<&mut LinkState, i32> {
        self.state.links.get_mut(name).ok_or(ENODEV)
    }

    fn add_link(
        &mut self,
        name: &str,
        kind: &LinkKind,
        mac: model::MacAddress,
        mtu: u32,
    ) -> Result<(), i32> {
        if self.state.links.contains_key(name) {
            return Err(EEXIST);
        }
        if let LinkKind::Vxlan { vni, port, .. } = kind {
            let same = |link: &LinkState| matches!(&link.kind, LinkKind::Vxlan { vni: v, port: p, .. } if v == vni && p == port);
            if self.state.links.values().any(same) {
                return Err(EEXIST);
            }
        }
        if let LinkKind::Ipip { local, .. } = kind {
            let same = |link: &LinkState| matches!(&link.kind, LinkKind::Ipip { local: other, .. } if other == local);
            if self.state.links.values().any(same) {
                return Err(EEXIST);
            }
        }
        let tx_checksum = matches!(kind, LinkKind::Vxlan { .. }).then_some(true);
        let link = LinkState { kind: kind.clone(), mac, mtu, up: false, tx_checksum };
        self.state.links.insert(name.to_owned(), link);
        Ok(())
    }

    fn delete_link(&mut self, name: &str) -> Result<(), i32> {
        self.state.links.remove(name).ok_or(ENODEV)?;
        let gone: Vec<IpAddr> = self
            .state
            .addresses
            .iter()
            .filter(|(link, _)| link == name)
            .map(|(_, address)| address.addr())
            .collect();
        self.state.addresses.retain(|(link, _)| link != name);
        self.state.neighbours.retain(|(link, _), _| link != name);
        self.state.forwarding.retain(|(link, _), _| link != name);
        self.state.wireguard.remove(name);
        self.state.wireguard_peers.retain(|(link, _), _| link != name);
        self.state.sysctls.retain(|key, _| link_of(key) != Some(name));
        self.state.routes.retain(|_, route| route.link != name);
        self.forget_sources(&gone);
        Ok(())
    }

    fn change_address(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::AddAddress { link, address } => {
                match link == LOOPBACK {
                    true => drop(self.marked_addresses.insert(*address)),
                    false => self.link(link).map(drop)?,
                }
                match self.state.addresses.insert((link.clone(), *address)) {
                    true => Ok(()),
                    false => Err(EEXIST),
                }
            }
            NetOp::DeleteAddress { link, address } => {
                if !self.state.addresses.remove(&(link.clone(), *address)) {
                    return Err(EADDRNOTAVAIL);
                }
                if link == LOOPBACK {
                    self.marked_addresses.remove(address);
                }
                self.forget_sources(&[address.addr()]);
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    /// Linux removes IPv4 routes along with the address that is their source; of IPv6 routes it
    /// removes the source alone.
    fn forget_sources(&mut self, gone: &[IpAddr]) {
        let names = |route: &RouteState| route.source.is_some_and(|source| gone.contains(&source));
        self.state.routes.retain(|range, route| !(range.addr().is_ipv4() && names(route)));
        for route in self.state.routes.values_mut().filter(|route| names(route)) {
            route.source = None;
        }
    }

    fn change_route(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::AddRoute { destination, route } => {
                self.check_route(route)?;
                if self.state.routes.contains_key(destination) {
                    return Err(EEXIST);
                }
                self.state.routes.insert(*destination, route.clone());
                Ok(())
            }
            NetOp::ReplaceRoute { destination, route } => {
                self.check_route(route)?;
                let present = self.state.routes.get_mut(destination).ok_or(ENOENT)?;
                *present = route.clone();
                Ok(())
            }
            NetOp::DeleteRoute { destination, link } => {
                let ours = self.state.routes.get(destination).ok_or(ESRCH)?;
                if ours.link != *link {
                    return Err(ESRCH);
                }
                self.state.routes.remove(destination);
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    /// Whether Linux would take a route. Of links that are not ours, such as the uplink, nothing
    /// is known here: they are taken for present and up.
    fn check_route(&self, route: &RouteState) -> Result<(), i32> {
        let link = self.state.links.get(&route.link);
        let ours = OWN_LINKS.contains(&route.link.as_str());
        match link {
            None if ours => return Err(ENODEV),
            Some(link) if !link.up => return Err(ENETDOWN),
            _ => {}
        }
        let local = |source| self.state.addresses.iter().any(|(_, net)| net.addr() == source);
        if route.source.is_some_and(|source| !local(source)) {
            return Err(EINVAL);
        }
        let reachable = |gateway: IpAddr| {
            route.onlink
                || is_link_local(gateway)
                || route.link == IPIP6_LINK
                || !ours
                || self.state.addresses.iter().any(|(name, net)| {
                    *name == route.link && net.contains(&gateway) && net.addr() != gateway
                })
        };
        if route.gateway.is_some_and(|gateway| !reachable(gateway)) {
            return Err(ENETUNREACH);
        }
        Ok(())
    }

    fn change_neighbour(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::SetNeighbour { link, address, mac } => {
                self.link(link)?;
                self.state.neighbours.insert((link.clone(), *address), *mac);
                Ok(())
            }
            NetOp::DeleteNeighbour { link, address } => {
                self.link(link)?;
                let key = (link.clone(), *address);
                self.state.neighbours.remove(&key).map(drop).ok_or(ENOENT)
            }
            NetOp::SetForwarding { link, mac, destination } => {
                if self.link(link)?.kind == LinkKind::Bridge {
                    return Ok(()); // Linux takes it for an address of the bridge itself
                }
                self.state.forwarding.insert((link.clone(), *mac), *destination);
                Ok(())
            }
            NetOp::DeleteForwarding { link, mac } => {
                self.link(link)?;
                let key = (link.clone(), *mac);
                self.state.forwarding.remove(&key).map(drop).ok_or(ENOENT)
            }
            _ => Err(EINVAL),
        }
    }

    fn change_wireguard(&mut self, op: &NetOp) -> Result<(), i32> {
        match op {
            NetOp::SetWireguard { link, device } => {
                self.wireguard_link(link)?;
                // The kernel drops a peer that would be the device itself.
                self.state.wireguard_peers.remove(&(link.clone(), device.public_key));
                self.state.wireguard.insert(link.clone(), *device);
                Ok(())
            }
            NetOp::SetWireguardPeer { link, public_key, peer } => {
                self.wireguard_link(link)?;
                let own = self.state.wireguard.get(link);
                if own.is_some_and(|own| own.public_key == *public_key) {
                    return Ok(());
                }
                for ((other, _), found) in &mut self.state.wireguard_peers {
                    if other == link {
                        found.allowed.retain(|range| !peer.allowed.contains(range));
                    }
                }
                self.state.wireguard_peers.insert((link.clone(), *public_key), peer.clone());
                Ok(())
            }
            NetOp::DeleteWireguardPeer { link, public_key } => {
                self.wireguard_link(link)?;
                // The kernel does not mind when there is none.
                self.state.wireguard_peers.remove(&(link.clone(), *public_key));
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    fn wireguard_link(&mut self, name: &str) -> Result<(), i32> {
        match self.link(name)?.kind {
            LinkKind::Wireguard => Ok(()),
            _ => Err(EOPNOTSUPP),
        }
    }
}
