//! Forgets tracked flows that lead where they should not any more. Level-triggered: each flow is
//! judged by where it leads now, whatever happened before.

use std::net::{IpAddr, SocketAddr};

use model::{Family, Protocol};
use netlink::Error;
use netlink::message::{Attributes, Request};
use netlink::socket::Socket;
use render::nft::StaleFlows;

use super::FAMILY_HEADER_BYTES;
use super::decode::address;
use super::flows::of_protocol;
use super::uapi::*;

/// Deletes the flows. Connections of TCP are not read: a node may have a million of them, and none
/// is ever stale.
pub fn forget(socket: &mut Socket, stale: &StaleFlows) -> Result<(), Error> {
    let echoes = match stale.family {
        Family::V4 => IPPROTO_ICMP,
        Family::V6 => IPPROTO_ICMPV6,
    };
    let echoes = (!stale.pings.is_empty()).then_some(echoes);
    for protocol in [Protocol::Udp.number()].into_iter().chain(echoes) {
        for message in &of_protocol(socket, stale.family, protocol)? {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            if is_stale(stale, attributes) {
                delete_flow(socket, stale.family, attributes)?;
            }
        }
    }
    Ok(())
}

/// Deletes all flows that the address began, and all that lead to it, translated or not.
pub fn forget_address(socket: &mut Socket, address: IpAddr) -> Result<(), Error> {
    let (source, family) = match address {
        IpAddr::V4(_) => (CTA_IP_V4_SRC, Family::V4),
        IpAddr::V6(_) => (CTA_IP_V6_SRC, Family::V6),
    };
    // Who answers is the source of the reply.
    for (tuple, flags) in
        [(CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)]
    {
        let filter = |request: &mut Request| {
            request.nested(tuple, &[], |tuple| {
                tuple.nested(CTA_TUPLE_IP, &[], |ip| {
                    ip.address(source, address);
                });
            });
            write_filter(request, flags, CTA_FILTER_F_CTA_IP_SRC);
        };
        forget_filtered(socket, family, filter)?;
    }
    Ok(())
}

/// Deletes all flows of a protocol to a port.
pub fn forget_port(
    socket: &mut Socket,
    family: Family,
    protocol: Protocol,
    port: u16,
) -> Result<(), Error> {
    let filter = |request: &mut Request| {
        request.nested(CTA_TUPLE_ORIG, &[], |tuple| {
            tuple.nested(CTA_TUPLE_PROTO, &[], |transport| {
                transport.u8(CTA_PROTO_NUM, protocol.number());
                transport.attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        let flags = CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT;
        write_filter(request, CTA_FILTER_ORIG_FLAGS, flags);
    };
    forget_filtered(socket, family, filter)
}

/// The kernel wants the flags of both directions.
pub(super) fn write_filter(request: &mut Request, side: u16, flags: u32) {
    request.nested(CTA_FILTER, &[], |filter| {
        for one in [CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS] {
            filter.u32(one, if one == side { flags } else { 0 });
        }
    });
}

/// Newer kernels delete by a filter in one walk over the table. Older ones (before 6.10) take the
/// filter for dumps only and refuse the incomplete tuple: then each flow is named.
fn forget_filtered(
    socket: &mut Socket,
    family: Family,
    filter: impl Fn(&mut Request),
) -> Result<(), Error> {
    let mut delete = request(family, IPCTNL_MSG_CT_DELETE);
    filter(&mut delete);
    match socket.call(&delete, || "delete tracked connections".into()) {
        Ok(_) => return Ok(()),
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) if !matches!(error.errno, libc::EINVAL | libc::EOPNOTSUPP) => return Err(error),
        Err(_) => {}
    }
    let mut get = request(family, IPCTNL_MSG_CT_GET);
    filter(&mut get);
    for message in &socket.dump(&get, || "read the tracked connections".into())? {
        delete_flow(socket, family, message.attributes(FAMILY_HEADER_BYTES))?;
    }
    Ok(())
}

/// Deletes one flow of a dump; one that ended by itself meanwhile is no error.
pub(super) fn delete_flow(
    socket: &mut Socket,
    family: Family,
    attributes: Attributes<'_>,
) -> Result<(), Error> {
    let Some(original) = attributes.find(CTA_TUPLE_ORIG) else { return Ok(()) };
    let mut delete = request(family, IPCTNL_MSG_CT_DELETE);
    delete.nested(CTA_TUPLE_ORIG, original, |_| {});
    if let Some(id) = attributes.find(CTA_ID) {
        delete.attribute(CTA_ID, id);
    }
    match socket.call(&delete, || "delete a tracked connection".into()) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn request(family: Family, message: u16) -> Request {
    let family = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    Request::new(NFNL_SUBSYS_CTNETLINK << 8 | message, 0, &[family, 0, 0, 0])
}

/// The client sent to one of the frontends, and the answers come from none of its endpoints; or it
/// pings who shall not answer.
fn is_stale(stale: &StaleFlows, attributes: Attributes<'_>) -> bool {
    if let Some(pinged) = attributes.nested(CTA_TUPLE_ORIG).and_then(pinged) {
        return stale.pings.contains(&pinged);
    }
    let original = attributes.nested(CTA_TUPLE_ORIG).and_then(tuple);
    let reply = attributes.nested(CTA_TUPLE_REPLY).and_then(tuple);
    let (Some(original), Some(reply)) = (original, reply) else { return false };
    if original.protocol != Protocol::Udp.number() {
        return false;
    }
    let to = original.destination;
    let in_range = |(address, first, last): &(IpAddr, u16, u16)| {
        *address == to.ip() && (*first..=*last).contains(&to.port())
    };
    if let Some(endpoints) = stale.frontends.get(&to) {
        return !endpoints.contains(&reply.source);
    }
    let mut ranges = stale.ranges.iter().filter(|(range, _)| in_range(range)).peekable();
    if ranges.peek().is_some() {
        return ranges.any(|(_, endpoints)| !endpoints.contains(&reply.source.ip()));
    }
    to != reply.source && stale.networks.iter().any(|network| network.contains(&to.ip()))
}

/// Whom a flow of ICMP messages is to.
fn pinged(attributes: Attributes<'_>) -> Option<IpAddr> {
    let protocol = attributes.nested(CTA_TUPLE_PROTO)?.u8(CTA_PROTO_NUM)?;
    let ip = attributes.nested(CTA_TUPLE_IP)?;
    let to = ip.find(CTA_IP_V4_DST).or_else(|| ip.find(CTA_IP_V6_DST))?;
    [IPPROTO_ICMP, IPPROTO_ICMPV6].contains(&protocol).then(|| address(to)).flatten()
}

pub(super) struct FlowTuple {
    pub(super) protocol: u8,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

pub(super) fn tuple(attributes: Attributes<'_>) -> Option<FlowTuple> {
    let ip = attributes.nested(CTA_TUPLE_IP)?;
    let transport = attributes.nested(CTA_TUPLE_PROTO)?;
    let end = |v4: u16, v6: u16, port: u16| {
        let address = address(ip.find(v4).or_else(|| ip.find(v6))?)?;
        let port = u16::from_be_bytes(transport.find(port)?.try_into().ok()?);
        Some(SocketAddr::new(address, port))
    };
    Some(FlowTuple {
        protocol: transport.u8(CTA_PROTO_NUM)?,
        source: end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        destination: end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
    })
}
