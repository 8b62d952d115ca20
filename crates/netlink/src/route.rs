//! Routes of the main table (`include/uapi/linux/rtnetlink.h`).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::message::{Attributes, Request, family_of, u16_of, u32_of};
use crate::socket::Message;
use crate::{Error, Netlink};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
/// The kernel's number of an outer IPv6 header (`include/uapi/linux/lwtunnel.h`).
const LWTUNNEL_ENCAP_IP6: u16 = 4;
const LWTUNNEL_IP6_DST: u16 = 2;
const LWTUNNEL_IP6_SRC: u16 = 3;
const LWTUNNEL_IP6_HOPLIMIT: u16 = 4;
/// Hop limit of outer packets, the kernel's default for its own.
const HOP_LIMIT: u8 = 64;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
/// An answer about a cached exception (a path MTU), not a route.
const RTM_F_CLONED: u32 = 0x200;
/// Bytes of `struct rtmsg`.
const HEADER_BYTES: usize = 12;
/// Where in `struct rtmsg` the scope stands.
const SCOPE_OFFSET: usize = 6;

/// How far a destination is (`enum rt_scope_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteScope {
    /// Through a gateway, or anywhere.
    #[default]
    Universe,
    /// On the link itself.
    Link,
    /// On this host.
    Host,
}

impl RouteScope {
    const fn number(self) -> u8 {
        match self {
            Self::Universe => libc::RT_SCOPE_UNIVERSE,
            Self::Link => libc::RT_SCOPE_LINK,
            Self::Host => libc::RT_SCOPE_HOST,
        }
    }
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; a prefix of length 0 is the default route.
    pub destination: IpNet,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link that packets leave by. Required to add a route.
    pub link_index: Option<u32>,
    /// The source address of packets that this host itself sends.
    pub source: Option<IpAddr>,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// How far the destination is.
    pub scope: RouteScope,
    /// Takes the gateway for reachable on the link, whatever its address.
    pub onlink: bool,
    /// Preference, lower first; the kernel's default when `None`.
    pub metric: Option<u32>,
    /// What the outer header of each packet says, on a tunnel link that leaves it to routes.
    pub outer: Option<OuterHeader>,
    /// MTU of the path in bytes.
    pub mtu: Option<u32>,
    /// Segment size to announce, in bytes.
    pub advmss: Option<u32>,
}

/// An outer IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeader {
    /// Its source.
    pub source: Ipv6Addr,
    /// Its destination: the far end.
    pub destination: Ipv6Addr,
}

impl Route {
    /// A route to a destination on the link itself.
    pub fn on_link(destination: IpNet, link_index: u32, protocol: u8) -> Self {
        Self {
            destination,
            gateway: None,
            link_index: Some(link_index),
            source: None,
            protocol,
            scope: RouteScope::Link,
            onlink: false,
            metric: None,
            outer: None,
            mtu: None,
            advmss: None,
        }
    }

    /// A route through a gateway.
    pub fn via(destination: IpNet, gateway: IpAddr, link_index: u32, protocol: u8) -> Self {
        let route = Self::on_link(destination, link_index, protocol);
        Self { gateway: Some(gateway), scope: RouteScope::Universe, ..route }
    }
}

impl Netlink {
    /// The unicast and local routes of the main table, of one protocol (`rtm_protocol`) or of all.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn routes(&mut self, protocol: Option<u8>) -> Result<Vec<Route>, Error> {
        self.routes_in(MAIN_TABLE, protocol)
    }

    /// The same of another table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn routes_in(&mut self, table: u32, protocol: Option<u8>) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0; HEADER_BYTES];
            header[0] = u8::try_from(family).unwrap_or_default();
            header[5] = protocol.unwrap_or_default();
            let mut request = Request::new(RTM_GETROUTE, 0, &header);
            request.u32(RTA_TABLE, table);
            match self.socket.dump(&request, || "list routes".into()) {
                Ok(messages) => {
                    routes.extend(messages.iter().filter_map(|message| parse(message, table)));
                }
                // No such table yet (no route was ever made), or a kernel without IPv6.
                Err(error) if matches!(error.errno, libc::ENOENT | libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| protocol.is_none_or(|protocol| route.protocol == protocol));
        Ok(routes)
    }

    /// Whether the kernel takes an address for one of this host: what it does with a packet to
    /// it. For an IPv6 address a worker of the kernel arranges that some time after it was added,
    /// also without duplicate address detection.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, Error> {
        let mut header = [0; HEADER_BYTES];
        header[0] = family_of(address);
        header[1] = IpNet::from(address).prefix_len();
        let mut request = Request::new(RTM_GETROUTE, 0, &header);
        request.address(RTA_DST, address);
        match self.socket.call(&request, || format!("look up the way to {address}")) {
            Ok(messages) => Ok(messages
                .iter()
                .filter_map(Message::header::<HEADER_BYTES>)
                .any(|header| header[7] == RTN_LOCAL)),
            Err(error) if matches!(error.errno, libc::ENETUNREACH | libc::EHOSTUNREACH) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` when another of the same destination and metric is there, whoever made it;
    /// `ENETUNREACH` when the gateway is not reachable, `ENETDOWN` when the link is down,
    /// `EINVAL` when `source` is no address of this host.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let request = message(RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, route)?;
        self.socket.call(&request, || describe("add", route)).map(drop)
    }

    /// Adds a route to another table than the main one.
    ///
    /// # Errors
    /// As [`Netlink::add_route`].
    pub fn add_route_in(&mut self, table: u32, route: &Route) -> Result<(), Error> {
        let mut request = message(RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, route)?;
        request.u32(RTA_TABLE, table);
        self.socket.call(&request, || describe("add", route)).map(drop)
    }

    /// Puts a route in the place of the one of the same destination and metric, in one step. Who
    /// made the old one does not count: call this only where the old one is known to be ours.
    ///
    /// # Errors
    /// As [`Netlink::add_route`]; `ENOENT` when there is none.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let request = message(RTM_NEWROUTE, libc::NLM_F_REPLACE, route)?;
        self.socket.call(&request, || describe("replace", route)).map(drop)
    }

    /// Removes the route of this destination, protocol, and whatever else is given but its scope.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut request = message(RTM_DELROUTE, 0, route)?;
        request.header_byte(SCOPE_OFFSET, libc::RT_SCOPE_NOWHERE); // whatever its scope
        self.socket.call(&request, || describe("remove", route)).map(drop)
    }
}

fn describe(verb: &str, route: &Route) -> String {
    match route.gateway {
        Some(gateway) => format!("{verb} the route to {} via {gateway}", route.destination),
        None => format!("{verb} the route to {}", route.destination),
    }
}

fn message(kind: u16, flags: i32, route: &Route) -> Result<Request, Error> {
    let family = family_of(route.destination.addr());
    let other_family =
        [route.gateway, route.source].into_iter().flatten().any(|ip| family_of(ip) != family);
    if other_family {
        return Err(Error {
            reason: Some("destination, gateway and source must be of one family".into()),
            ..Error::new(libc::EINVAL, describe("write", route))
        });
    }
    let mut header = [0; HEADER_BYTES];
    header[0] = family;
    header[1] = route.destination.prefix_len();
    header[4] = MAIN_TABLE as u8;
    header[5] = route.protocol;
    header[SCOPE_OFFSET] = route.scope.number();
    header[7] = RTN_UNICAST;
    if route.onlink {
        header[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut request = Request::new(kind, flags, &header);
    if route.destination.prefix_len() > 0 {
        request.address(RTA_DST, route.destination.network());
    }
    let addresses = [(RTA_GATEWAY, route.gateway), (RTA_PREFSRC, route.source)];
    for (kind, address) in addresses {
        if let Some(address) = address {
            request.address(kind, address);
        }
    }
    let numbers = [(RTA_OIF, route.link_index), (RTA_PRIORITY, route.metric)];
    for (kind, number) in numbers {
        if let Some(number) = number {
            request.u32(kind, number);
        }
    }
    if let Some(outer) = route.outer {
        request.attribute(RTA_ENCAP_TYPE, &LWTUNNEL_ENCAP_IP6.to_ne_bytes());
        request.nested(RTA_ENCAP, &[], |header| {
            header
                .address(LWTUNNEL_IP6_SRC, outer.source.into())
                .address(LWTUNNEL_IP6_DST, outer.destination.into())
                .u8(LWTUNNEL_IP6_HOPLIMIT, HOP_LIMIT);
        });
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        request.nested(RTA_METRICS, &[], |metrics| {
            for (kind, number) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                if let Some(number) = number {
                    metrics.u32(kind, number);
                }
            }
        });
    }
    Ok(request)
}

fn parse(message: &Message, wanted_table: u32) -> Option<Route> {
    let header: [u8; HEADER_BYTES] = message.header()?;
    let flags = u32_of(&header[8..])?;
    let attributes = message.attributes(HEADER_BYTES);
    let table = attributes.u32(RTA_TABLE).unwrap_or(u32::from(header[4]));
    let wanted = message.kind == RTM_NEWROUTE
        && matches!(header[7], RTN_UNICAST | RTN_LOCAL)
        && table == wanted_table
        && flags & RTM_F_CLONED == 0;
    if !wanted {
        return None;
    }
    let unspecified = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let metrics = attributes.nested(RTA_METRICS).unwrap_or(Attributes::new(&[]));
    Some(Route {
        destination: IpNet::new(attributes.address(RTA_DST).unwrap_or(unspecified), header[1])
            .ok()?,
        gateway: attributes.address(RTA_GATEWAY),
        link_index: attributes.u32(RTA_OIF),
        source: attributes.address(RTA_PREFSRC),
        protocol: header[5],
        scope: match header[SCOPE_OFFSET] {
            libc::RT_SCOPE_HOST => RouteScope::Host,
            libc::RT_SCOPE_LINK => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        onlink: flags & RTNH_F_ONLINK != 0,
        metric: attributes.u32(RTA_PRIORITY),
        outer: outer_header(attributes),
        mtu: metrics.u32(RTAX_MTU),
        advmss: metrics.u32(RTAX_ADVMSS),
    })
}

fn outer_header(attributes: Attributes<'_>) -> Option<OuterHeader> {
    let kind = attributes.find(RTA_ENCAP_TYPE).and_then(u16_of)?;
    let header = attributes.nested(RTA_ENCAP).filter(|_| kind == LWTUNNEL_ENCAP_IP6)?;
    match (header.address(LWTUNNEL_IP6_SRC)?, header.address(LWTUNNEL_IP6_DST)?) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => Some(OuterHeader { source, destination }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::HEADER_BYTES as MESSAGE_HEADER_BYTES;

    #[test]
    fn an_outer_header_is_read_back_as_it_was_written() {
        let outer = OuterHeader {
            source: "fd00::2".parse().expect("an address"),
            destination: "fd00::3".parse().expect("an address"),
        };
        let destination = "fd00:10:244:2::/64".parse().expect("a prefix");
        let plain = Route::on_link(destination, 7, 102);
        for outer in [None, Some(outer)] {
            let route = Route { outer, ..plain.clone() };
            let bytes = message(RTM_NEWROUTE, 0, &route).expect("one family").finish(1, 0);
            let payload = bytes[MESSAGE_HEADER_BYTES..].to_vec();
            let answer = Message { kind: RTM_NEWROUTE, payload };
            let read = parse(&answer, MAIN_TABLE).expect("a route");
            assert_eq!(read, route);
        }
    }
}
