//! How many flows of a Service lead to each endpoint, read from the kernel's connection tracking
//! when somebody asks: no packet costs more for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{Family, Protocol};
use netlink::Error;
use netlink::message::{Attributes, Request, u32_of};
use netlink::socket::{Message, Socket};

use super::FAMILY_HEADER_BYTES;
use super::conntrack::{self, tuple, write_filter};
use super::uapi::*;

/// What clients of a Service send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The family of the address.
    pub family: Family,
    /// The address; `None` for any (node ports).
    pub address: Option<IpAddr>,
    /// The first port.
    pub first_port: u16,
    /// The last port.
    pub last_port: u16,
}

/// The flows to one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// How many are known now, closing ones included.
    pub flows: u64,
    /// Packets of both directions, where the node counts them (`nf_conntrack_acct`).
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}

/// The tracked flows to these destinations, by the address of the endpoint that they lead to. In
/// the network namespace of the calling thread.
///
/// # Errors
/// What the kernel refused.
pub fn by_endpoint(
    destinations: &BTreeSet<Destination>,
) -> Result<BTreeMap<IpAddr, FlowCounts>, Error> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut known = BTreeSet::new();
    let mut counts: BTreeMap<IpAddr, FlowCounts> = BTreeMap::new();
    for destination in destinations {
        let flows = socket.dump(&request(destination), || "read the tracked connections".into())?;
        for message in &flows {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            let id = attributes.find(CTA_ID).and_then(u32_of);
            // A node port may be the port of another destination too.
            if let Some(endpoint) = leads_to(destination, attributes).filter(|_| known.insert(id)) {
                counts.entry(endpoint.ip()).or_default().add(attributes);
            }
        }
    }
    Ok(counts)
}

/// The tracked flows of one protocol, as the kernel tells them (`nfnetlink_conntrack.h`): it walks
/// over its whole table, and copies what is asked for. Before Linux 5.8 it passes over the filter and
/// answers with all flows, so that who asks looks at the protocol all the same.
///
/// # Errors
/// What the kernel refused.
pub fn of_protocol(
    socket: &mut Socket,
    family: Family,
    protocol: u8,
) -> Result<Vec<Message>, Error> {
    let mut get = conntrack::request(family, IPCTNL_MSG_CT_GET);
    get.nested(CTA_TUPLE_ORIG, &[], |tuple| {
        tuple.nested(CTA_TUPLE_PROTO, &[], |transport| {
            transport.u8(CTA_PROTO_NUM, protocol);
        });
    });
    write_filter(&mut get, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_PROTO_NUM);
    socket.dump(&get, || "read the tracked connections".into())
}

/// Both ends of all tracked TCP and UDP flows that lead elsewhere than their clients sent them. In
/// the network namespace of the calling thread.
///
/// # Errors
/// What the kernel refused.
pub fn translated_ends() -> Result<BTreeSet<IpAddr>, Error> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut ends = BTreeSet::new();
    for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
        let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
        let request = Request::new(kind, 0, &[family, 0, 0, 0]);
        for message in socket.dump(&request, || "read the tracked connections".into())? {
            let attributes = message.attributes(FAMILY_HEADER_BYTES);
            let end = |side: u16| attributes.nested(side).and_then(tuple);
            let (Some(client), Some(server)) = (end(CTA_TUPLE_ORIG), end(CTA_TUPLE_REPLY)) else {
                continue;
            };
            let protocols = [Protocol::Tcp, Protocol::Udp].map(Protocol::number);
            if client.destination != server.source && protocols.contains(&client.protocol) {
                ends.extend([client.source.ip(), server.source.ip()]);
            }
        }
    }
    Ok(ends)
}

impl FlowCounts {
    fn add(&mut self, attributes: Attributes<'_>) {
        self.flows += 1;
        let sum = |kind: u16| {
            let sides = [CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY].into_iter();
            let counted = sides.filter_map(|side| u64_of(attributes.nested(side)?.find(kind)?));
            counted.reduce(u64::saturating_add)
        };
        for (total, of_flow) in [
            (&mut self.packets, sum(CTA_COUNTERS_PACKETS)),
            (&mut self.bytes, sum(CTA_COUNTERS_BYTES)),
        ] {
            if let Some(of_flow) = of_flow {
                *total = Some(total.unwrap_or_default().saturating_add(of_flow));
            }
        }
    }
}

/// The kernel walks over its whole table, and hands out only what can be of the destination.
fn request(destination: &Destination) -> Request {
    let (family, kind) = match destination.family {
        Family::V4 => (NFPROTO_IPV4, CTA_IP_V4_DST),
        Family::V6 => (NFPROTO_IPV6, CTA_IP_V6_DST),
    };
    let header = [family, 0, 0, 0];
    let mut get = Request::new(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, 0, &header);
    let mut flags = CTA_FILTER_F_CTA_PROTO_NUM;
    get.nested(CTA_TUPLE_ORIG, &[], |tuple| {
        if let Some(address) = destination.address {
            flags |= CTA_FILTER_F_CTA_IP_DST;
            tuple.nested(CTA_TUPLE_IP, &[], |ip| {
                ip.address(kind, address);
            });
        }
        tuple.nested(CTA_TUPLE_PROTO, &[], |transport| {
            transport.u8(CTA_PROTO_NUM, destination.protocol.number());
            if destination.first_port == destination.last_port {
                flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT;
                transport.attribute(CTA_PROTO_DST_PORT, &destination.first_port.to_be_bytes());
            }
        });
    });
    write_filter(&mut get, CTA_FILTER_ORIG_FLAGS, flags);
    get
}

/// Who answers is the source of the reply.
fn leads_to(destination: &Destination, attributes: Attributes<'_>) -> Option<SocketAddr> {
    let original = tuple(attributes.nested(CTA_TUPLE_ORIG)?)?;
    let reply = tuple(attributes.nested(CTA_TUPLE_REPLY)?)?;
    let Destination { address, first_port, last_port, .. } = *destination;
    let to = original.destination;
    let is_ours = address.is_none_or(|address| address == to.ip())
        && (first_port..=last_port).contains(&to.port());
    is_ours.then_some(reply.source)
}

fn u64_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
