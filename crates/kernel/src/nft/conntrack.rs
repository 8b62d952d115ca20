//! Forgets tracked UDP flows that lead where they should not any more. Level-triggered: each flow
//! is judged by where it leads now, whatever happened before.

use std::net::SocketAddr;

use model::{Family, Protocol};
use netlink::Error;
use netlink::message::{Attributes, Request};
use netlink::socket::Socket;
use render::nft::StaleFlows;

use super::FAMILY_HEADER_BYTES;
use super::decode::address;
use super::uapi::*;

/// Deletes the flows; one that ended by itself meanwhile is no error.
pub fn forget(socket: &mut Socket, stale: &StaleFlows) -> Result<(), Error> {
    let get = request(stale.family, IPCTNL_MSG_CT_GET);
    let flows = socket.dump(&get, || "read the tracked connections".into())?;
    for message in &flows {
        let attributes = message.attributes(FAMILY_HEADER_BYTES);
        if !is_stale(stale, attributes) {
            continue;
        }
        let Some(original) = attributes.find(CTA_TUPLE_ORIG) else { continue };
        let mut delete = request(stale.family, IPCTNL_MSG_CT_DELETE);
        delete.nested(CTA_TUPLE_ORIG, original, |_| {});
        if let Some(id) = attributes.find(CTA_ID) {
            delete.attribute(CTA_ID, id);
        }
        match socket.call(&delete, || "delete a tracked UDP connection".into()) {
            Ok(_) => {}
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn request(family: Family, message: u16) -> Request {
    let family = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    Request::new(NFNL_SUBSYS_CTNETLINK << 8 | message, 0, &[family, 0, 0, 0])
}

/// The client sent to one of the frontends, and the answers come from none of its endpoints.
fn is_stale(stale: &StaleFlows, attributes: Attributes<'_>) -> bool {
    let original = attributes.nested(CTA_TUPLE_ORIG).and_then(tuple);
    let reply = attributes.nested(CTA_TUPLE_REPLY).and_then(tuple);
    let (Some(original), Some(reply)) = (original, reply) else { return false };
    original.protocol == Protocol::Udp.number()
        && stale
            .frontends
            .get(&original.destination)
            .is_some_and(|endpoints| !endpoints.contains(&reply.source))
}

struct FlowTuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

fn tuple(attributes: Attributes<'_>) -> Option<FlowTuple> {
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
