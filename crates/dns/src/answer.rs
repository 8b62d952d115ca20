//! Answers one query from the cluster's zone, or says what to ask of an upstream server.

use std::net::IpAddr;

use plan::zone::PodRecords;

use crate::index::{Found, NAME_SERVER_LABELS, Node, Target};
use crate::message::{CLASS_IN, HEADER_OCTETS, Malformed, Query, flag, kind, rcode};
use crate::writer::{Section, Writer, bare_response};
use crate::{Index, Name, Transport};

/// How long clients may keep a record of the cluster, in seconds.
pub const TTL_S: u32 = 5;
/// How long clients may keep that something is not there, in seconds (RFC 2308).
pub const NEGATIVE_TTL_S: u32 = 5;
/// Aliases of the cluster that point at one another are followed this often in one answer.
const MAX_ALIASES: usize = 8;
/// The version of DNS-Based Service Discovery that the zone follows.
const VERSION: &[u8] = b"1.1.0";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// How the question came, which limits the answer.
    pub transport: Transport,
    /// Where it came from: a pod's address says which search path its resolver goes.
    pub address: IpAddr,
}

/// What operators choose of the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long clients may keep a record of the cluster, in seconds.
    pub ttl_s: u32,
    /// Whether a pod's search path is gone here, at its first question (`autopath` of CoreDNS).
    pub search_path: bool,
    /// What pods have in their search paths behind the cluster's own domains: the node's.
    pub host_search: Vec<Name>,
    /// Which pod records there are; `None`: as the agent says.
    pub pods: Option<PodRecords>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { ttl_s: TTL_S, search_path: true, host_search: vec![], pods: None }
    }
}

/// What to do with one query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send back what was written.
    Reply,
    /// Ask an upstream server, then reply.
    Forward(Box<Forward>),
    /// Do nothing: what came deserves no answer.
    Drop,
}

/// A question for an upstream server, and what its answer will be put into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The client's query.
    pub(crate) query: Query,
    /// How the client asked, which limits the answer.
    pub(crate) transport: Transport,
    /// The cluster's aliases that lead from the query's name to [`Forward::name`], in order.
    pub(crate) aliases: Vec<Name>,
    /// The name to ask for.
    pub(crate) name: Name,
    /// Names of the client's search path to ask for when the one before does not exist, the next
    /// first.
    pub(crate) more: Vec<Name>,
    /// What to reply when no name of the search path exists, or nobody can be asked: the cluster's
    /// own answer, with which the client goes on by itself. `None`: what the upstream server said.
    pub(crate) otherwise: Option<Vec<u8>>,
}

/// Answers a query, into the buffer. Without an index, before the first zone came, nothing is known of which names
/// are the cluster's, and the only honest answer is SERVFAIL (invariant 3).
pub fn answer(
    message: &[u8],
    index: Option<&Index>,
    _rules: &Rules,
    client: Client,
    reply: &mut Vec<u8>,
) -> Action {
    match answer_old(message, index, client.transport) {
        Old::Reply(octets) => {
            *reply = octets;
            Action::Reply
        }
        Old::Forward(forward) => Action::Forward(forward),
        Old::Drop => Action::Drop,
    }
}

enum Old {
    Reply(Vec<u8>),
    Forward(Box<Forward>),
    Drop,
}

fn answer_old(message: &[u8], index: Option<&Index>, transport: Transport) -> Old {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Malformed::Silent) => return Old::Drop,
        Err(Malformed::Code { id, flags, rcode }) => {
            return Old::Reply(bare_response(id, flags, rcode));
        }
    };
    if let Some(rcode) = refusal(&query) {
        return Old::Reply(failure(&query, transport, rcode));
    }
    match index {
        Some(index) => answer_from(query, index, transport),
        None => Old::Reply(failure(&query, transport, rcode::SERVER_FAILURE)),
    }
}

/// A response without records.
pub fn failure(query: &Query, transport: Transport, rcode: u16) -> Vec<u8> {
    let mut writer = Writer::response(query, transport);
    writer.set_rcode(rcode);
    writer.finish()
}

/// What is refused whatever the name is.
fn refusal(query: &Query) -> Option<u16> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Some(rcode::BAD_VERSION);
    }
    let is_transfer = matches!(query.kind, kind::AXFR | kind::IXFR);
    if is_transfer || query.class != CLASS_IN {
        return Some(rcode::REFUSED);
    }
    // OPT is no data that a name could have (RFC 6891, 6.1.1).
    (query.kind == kind::OPT).then_some(rcode::FORMAT_ERROR)
}

fn answer_from(query: Query, index: &Index, transport: Transport) -> Old {
    let mut writer = Writer::response(&query, transport);
    let mut aliases = Vec::new();
    let mut name = query.name.clone();
    let mut name_at = HEADER_OCTETS;
    loop {
        let (zone_labels, node) = match index.find(&name.to_lower()) {
            Found::Inside { zone_labels, node } => (zone_labels, node),
            Found::Outside if query.kind == kind::ANY => {
                // Minimal for every name: upstream servers are not asked for whole names.
                write_any(&mut writer, name_at);
                return Old::Reply(writer.finish());
            }
            Found::Outside if query.flags & flag::RECURSION_DESIRED == 0 => {
                // An alias alone is a full answer to a client that follows it by itself.
                writer.set_rcode(if aliases.is_empty() { rcode::REFUSED } else { rcode::NO_ERROR });
                return Old::Reply(writer.finish());
            }
            Found::Outside => {
                return Old::Forward(Box::new(Forward { query, transport, aliases, name, more: vec![], otherwise: None }));
            }
        };
        writer.set_flag(flag::AUTHORITATIVE);
        if let Node::Alias(target) = &node
            && !matches!(query.kind, kind::CNAME | kind::ANY)
        {
            let written =
                writer.record(Section::Answer, name_at, kind::CNAME, TTL_S, &[target.wire()]);
            let Some(target_at) = written.filter(|_| aliases.len() < MAX_ALIASES) else {
                writer.set_rcode(rcode::SERVER_FAILURE);
                return Old::Reply(writer.finish());
            };
            name_at = target_at;
            aliases.push(std::mem::replace(&mut name, target.clone()));
            continue;
        }
        let place = Place { index, name: &name, name_at, zone_labels };
        place.write(&mut writer, &query, &node);
        return Old::Reply(writer.finish());
    }
}

/// The name that is answered for, where it stands in the message, and its zone.
struct Place<'a> {
    index: &'a Index,
    name: &'a Name,
    name_at: usize,
    zone_labels: usize,
}

impl Place<'_> {
    fn write(&self, writer: &mut Writer, query: &Query, node: &Node<'_>) {
        if *node == Node::Missing {
            writer.set_rcode(rcode::NAME_ERROR);
            return self.write_soa(writer, Section::Authority);
        }
        let found = match (query.kind, node) {
            (kind::ANY, _) => write_any(writer, self.name_at),
            (kind::SOA, Node::Apex) => {
                self.write_soa(writer, Section::Answer);
                true
            }
            (kind::NS, Node::Apex) => self.write_name_server(writer),
            (kind::TXT, Node::Version) => {
                let length = [VERSION.len() as u8];
                let data: [&[u8]; 2] = [&length, VERSION];
                writer.record(Section::Answer, self.name_at, kind::TXT, TTL_S, &data);
                true
            }
            (kind::A | kind::AAAA, Node::Addresses(addresses)) => {
                self.write_addresses(writer, query, addresses)
            }
            (kind::SRV, Node::Ports(targets)) => self.write_targets(writer, targets),
            (kind::CNAME, Node::Alias(target)) => {
                let data: [&[u8]; 1] = [target.wire()];
                writer.record(Section::Answer, self.name_at, kind::CNAME, TTL_S, &data);
                true
            }
            (kind::PTR, Node::Pointers(names)) => {
                for name in *names {
                    let data: [&[u8]; 1] = [name.wire()];
                    writer.record(Section::Answer, self.name_at, kind::PTR, TTL_S, &data);
                }
                true
            }
            _ => false,
        };
        if !found {
            self.write_soa(writer, Section::Authority);
        }
    }

    /// Many clients use the first address only. The client's own random number turns the list, so
    /// that clients spread without any state or randomness here.
    fn write_addresses(&self, writer: &mut Writer, query: &Query, addresses: &[IpAddr]) -> bool {
        let wanted: Vec<&IpAddr> =
            addresses.iter().filter(|address| address_kind(address) == query.kind).collect();
        let turn = usize::from(query.id) % wanted.len().max(1);
        for address in wanted.iter().cycle().skip(turn).take(wanted.len()) {
            if write_address(writer, Section::Answer, self.name_at, address).is_none() {
                break;
            }
        }
        !wanted.is_empty()
    }

    fn write_targets(&self, writer: &mut Writer, targets: &[Target]) -> bool {
        let mut written = Vec::with_capacity(targets.len());
        for target in targets {
            let (weight, port) = (target.weight.to_be_bytes(), target.port.to_be_bytes());
            // Priority, weight, port, target (RFC 2782); the target is not compressed.
            let data: [&[u8]; 4] = [&[0, 0], &weight, &port, target.name.wire()];
            match writer.record(Section::Answer, self.name_at, kind::SRV, TTL_S, &data) {
                Some(data_at) => written.push((target, data_at + 6)),
                None => return true,
            }
        }
        for (target, name_at) in written {
            for address in &target.addresses {
                write_address(writer, Section::Additional, name_at, address);
            }
        }
        true
    }

    fn write_name_server(&self, writer: &mut Writer) -> bool {
        if let Some(server) = self.index.below_apex(&NAME_SERVER_LABELS) {
            let data: [&[u8]; 1] = [server.wire()];
            writer.record(Section::Answer, self.name_at, kind::NS, TTL_S, &data);
        }
        true
    }

    /// The SOA of the zone; its last number is how long absence may be kept.
    fn write_soa(&self, writer: &mut Writer, section: Section) {
        let index = self.index;
        let (Some(server), Some(mailbox)) =
            (index.below_apex(&NAME_SERVER_LABELS), index.below_apex(&[b"hostmaster"]))
        else {
            return;
        };
        let mut numbers = [0; 20];
        // Serial, refresh, retry, expire, minimum.
        let values = [index.serial(), 7200, 1800, 86400, NEGATIVE_TTL_S];
        for (place, value) in numbers.chunks_exact_mut(4).zip(values) {
            place.copy_from_slice(&value.to_be_bytes());
        }
        let data: [&[u8]; 3] = [server.wire(), mailbox.wire(), &numbers];
        writer.record(section, self.zone_at(), kind::SOA, NEGATIVE_TTL_S, &data);
    }

    /// Where the zone's name stands in the message: it is the tail of the name asked for.
    fn zone_at(&self) -> usize {
        let labels: Vec<&[u8]> = self.name.labels().collect();
        let above = labels.len().saturating_sub(self.zone_labels);
        self.name_at + labels.iter().take(above).map(|label| label.len() + 1).sum::<usize>()
    }
}

/// RFC 8482: one small record stands for all.
fn write_any(writer: &mut Writer, name_at: usize) -> bool {
    let data: [&[u8]; 1] = [b"\x07RFC8482\x00"];
    writer.record(Section::Answer, name_at, kind::HINFO, TTL_S, &data);
    true
}

fn address_kind(address: &IpAddr) -> u16 {
    if address.is_ipv4() { kind::A } else { kind::AAAA }
}

fn write_address(
    writer: &mut Writer,
    section: Section,
    name_at: usize,
    address: &IpAddr,
) -> Option<usize> {
    match address {
        IpAddr::V4(v4) => writer.record(section, name_at, kind::A, TTL_S, &[&v4.octets()]),
        IpAddr::V6(v6) => writer.record(section, name_at, kind::AAAA, TTL_S, &[&v6.octets()]),
    }
}
