//! Handshakes that nobody answered, read from the kernel's connection tracking: no packet costs
//! more for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netlink::Error;
use netlink::message::{Request, u32_of};
use netlink::socket::Socket;

use super::FAMILY_HEADER_BYTES;
use super::conntrack::{tuple, write_filter};
use super::uapi::*;

/// A socket of its own, so that reading may wait for nobody and nobody for it.
pub struct Handshakes {
    socket: Socket,
}

impl Handshakes {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_NETFILTER)? })
    }

    /// Where TCP connections lead to that were tried and not answered, by the kernel's number for
    /// them: behind a Service that is the endpoint. The kernel walks over its whole table for it,
    /// and hands out only these.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn unanswered(&mut self) -> Result<BTreeMap<u64, SocketAddr>, Error> {
        // A filter by protocol asks for one family.
        let mut flows = Vec::new();
        for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
            let get = request(family);
            flows.extend(self.socket.dump(&get, || "read unanswered handshakes".into())?);
        }
        let lead_to = flows.iter().filter_map(|message| {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            let id = u32_of(attributes.find(CTA_ID)?)?;
            // Who would answer is the source of the reply.
            Some((id.into(), tuple(attributes.nested(CTA_TUPLE_REPLY)?)?.source))
        });
        Ok(lead_to.collect())
    }
}

fn request(family: u8) -> Request {
    let header = [family, 0, 0, 0];
    let mut get = Request::new(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, 0, &header);
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
