//! Handshakes that nobody answered, read from the kernel's connection tracking: no packet costs
//! more for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use model::Family;
use netlink::Error;
use netlink::message::{Attributes, Request, u32_of};
use netlink::socket::Socket;

use super::FAMILY_HEADER_BYTES;
use super::conntrack::{self, delete_flow, tuple, write_filter};
use super::uapi::*;

/// A socket of its own, so that reading may wait for nobody and nobody for it.
pub struct Handshakes {
    socket: Socket,
    families: BTreeSet<Family>,
}

impl Handshakes {
    /// Opens it in the network namespace of the calling thread, for connections of these families.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn open(families: BTreeSet<Family>) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_NETFILTER)?, families })
    }

    /// Where TCP connections lead to that were tried and not answered, by the kernel's number for
    /// them: behind a Service that is the endpoint. The kernel walks over its whole table for each
    /// family, and hands out only these: milliseconds, however little there is in it.
    ///
    /// Of what it finds, it forgets those in `abandoned` that a Service led to their endpoint. Who
    /// still tries repeats its handshake (RFC 6298) and is led to one that answers; a client that
    /// gave up leaves a flow behind that would take the next client of its port to the same
    /// silence, two minutes long. What was answered since the reading before is not touched.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn unanswered(
        &mut self,
        abandoned: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, SocketAddr>, Error> {
        let mut lead_to = BTreeMap::new();
        // A filter by protocol asks for one family.
        for family in &self.families {
            let family = *family;
            let flows =
                self.socket.dump(&request(family), || "read unanswered handshakes".into())?;
            for message in &flows {
                let attributes = message.attributes(FAMILY_HEADER_BYTES);
                let Some(flow) = flow(attributes) else { continue };
                if flow.is_translated && abandoned.contains(&flow.id) {
                    delete_flow(&mut self.socket, family, attributes)?;
                } else {
                    lead_to.insert(flow.id, flow.to);
                }
            }
        }
        Ok(lead_to)
    }
}

/// Forgets handshakes within these networks that nobody translates and no answer to which was seen.
/// Where programs have since carried the connection past connection tracking, its next packet would
/// be invalid; without its entry that is the first one of a connection under way. In the network
/// namespace of the calling thread.
///
/// # Errors
/// What the kernel refused.
pub fn forget_half_seen(networks: &[IpNet]) -> Result<(), Error> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let families: BTreeSet<Family> = networks.iter().map(|one| Family::of(&one.addr())).collect();
    for family in families {
        for message in &socket.dump(&request(family), || "read unanswered handshakes".into())? {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            if is_direct(attributes, networks) == Some(true) {
                delete_flow(&mut socket, family, attributes)?;
            }
        }
    }
    Ok(())
}

/// Whether both ends are within the networks, and meant each other.
fn is_direct(attributes: Attributes<'_>, networks: &[IpNet]) -> Option<bool> {
    let there = tuple(attributes.nested(CTA_TUPLE_ORIG)?)?;
    let back = tuple(attributes.nested(CTA_TUPLE_REPLY)?)?;
    let ends = [there.source, there.destination];
    let are_within =
        ends.iter().all(|end| networks.iter().any(|network| network.contains(&end.ip())));
    Some(are_within && ends == [back.destination, back.source])
}

struct Flow {
    id: u64,
    /// Who would answer.
    to: SocketAddr,
    /// Whether that is somebody else than the client sent to.
    is_translated: bool,
}

fn flow(attributes: Attributes<'_>) -> Option<Flow> {
    let id = u32_of(attributes.find(CTA_ID)?)?.into();
    let to = tuple(attributes.nested(CTA_TUPLE_REPLY)?)?.source;
    let sent_to = tuple(attributes.nested(CTA_TUPLE_ORIG)?)?.destination;
    Some(Flow { id, to, is_translated: to != sent_to })
}

fn request(family: Family) -> Request {
    let mut get = conntrack::request(family, IPCTNL_MSG_CT_GET);
    get.nested(CTA_TUPLE_ORIG, &[], |tuple| {
        tuple.nested(CTA_TUPLE_PROTO, &[], |transport| {
            transport.u8(CTA_PROTO_NUM, model::Protocol::Tcp.number());
        });
    });
    write_filter(&mut get, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_PROTO_NUM);
    get.attribute(CTA_STATUS, &0_u32.to_be_bytes());
    get.attribute(CTA_STATUS_MASK, &IPS_SEEN_REPLY.to_be_bytes());
    get
}
