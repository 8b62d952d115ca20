//! Answers one query from the cluster's zone, or says what to ask of an upstream server.
//!
//! Nothing is allocated on the way to an answer from the zone: the query is read where it stands,
//! names are compared where they stand, and the answer is written into the caller's buffer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use plan::zone::PodRecords;

use crate::explain::{Step, Trace};
use crate::index::{Found, MAILBOX, NAME_SERVER, Node, Pointers};
use crate::message::{CLASS_IN, HEADER_OCTETS, Malformed, Query, QueryRef, flag, kind, rcode};
use crate::name::{MAX_NAME_OCTETS, labels};
use crate::records::{Addresses, Ports};
use crate::search::{Buffer, SearchPath};
use crate::writer::{Section, Writer, bare_response};
use crate::{Index, Name, Transport};

/// How long clients may keep a record of the cluster, in seconds.
pub const TTL_S: u32 = 5;
/// How long clients may keep that something is not there, in seconds (RFC 2308).
pub const NEGATIVE_TTL_S: u32 = 5;
/// Aliases of the cluster that point at one another are followed this often in one answer.
const MAX_ALIASES: usize = 8;
/// Octets of the five numbers in the data of SOA (RFC 1035, 3.3.13).
const SOA_NUMBERS_OCTETS: usize = 20;
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
    /// Which pod records there are; left out, the verified ones.
    pub pods: Option<PodRecords>,
    /// Addresses of the node, which asks itself: those that questions come to.
    pub own_addresses: BTreeSet<IpAddr>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ttl_s: TTL_S,
            search_path: true,
            host_search: vec![],
            pods: None,
            own_addresses: BTreeSet::new(),
        }
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

/// Answers a query, into the buffer. Without an index, before the first zone came, nothing is
/// known of which names are the cluster's, and the only honest answer is SERVFAIL (invariant 3).
pub fn answer(
    message: &[u8],
    index: Option<&Index>,
    rules: &Rules,
    client: Client,
    reply: &mut Vec<u8>,
) -> Action {
    answer_traced(message, index, rules, client, reply, &mut ())
}

/// The same, telling each step (invariant 12).
pub(crate) fn answer_traced(
    message: &[u8],
    index: Option<&Index>,
    rules: &Rules,
    client: Client,
    reply: &mut Vec<u8>,
    trace: &mut impl Trace,
) -> Action {
    let query = match QueryRef::parse(message) {
        Ok(query) => query,
        Err(Malformed::Silent) => return Action::Drop,
        Err(Malformed::Code { id, flags, rcode }) => {
            *reply = bare_response(id, flags, rcode);
            return Action::Reply;
        }
    };
    let writer = Writer::into(std::mem::take(reply), &query, client.transport);
    let refused = refusal(&query).or(index.is_none().then_some(rcode::SERVER_FAILURE));
    let (Some(index), None) = (index, refused) else {
        *reply = fail(writer, refused.unwrap_or(rcode::SERVER_FAILURE));
        trace.step(Step::Refused);
        return Action::Reply;
    };
    let pods = rules.pods.unwrap_or_default();
    let answering =
        Answering { index, rules, pods, query, transport: client.transport, writer, trace };
    answering.answer(client.address, reply)
}

/// A response without records.
pub fn failure(query: &Query, transport: Transport, rcode: u16) -> Vec<u8> {
    fail(Writer::response(query, transport), rcode)
}

fn fail(mut writer: Writer, rcode: u16) -> Vec<u8> {
    writer.set_rcode(rcode);
    writer.finish()
}

/// What is refused whatever the name is.
fn refusal(query: &QueryRef<'_>) -> Option<u16> {
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

struct Answering<'a, T> {
    index: &'a Index,
    rules: &'a Rules,
    pods: PodRecords,
    query: QueryRef<'a>,
    transport: Transport,
    writer: Writer,
    trace: &'a mut T,
}

/// The aliases that were followed: their targets, where they stand.
#[derive(Default)]
struct Aliases<'n> {
    targets: [&'n [u8]; MAX_ALIASES],
    count: usize,
}

/// The name that is answered for, where it stands in the message, and its zone.
struct Place<'n> {
    name: &'n [u8],
    name_at: usize,
    zone_labels: usize,
}

impl<'a, T: Trace> Answering<'a, T> {
    fn answer(self, client: IpAddr, reply: &mut Vec<u8>) -> Action {
        let lower = Buffer::lower(self.query.name);
        let found = self.index.find(lower.wire(), self.pods);
        self.trace.step(Step::Looked { name: lower.wire(), found: &found });
        if !matches!(found, Found::Inside { node: Node::Missing, .. }) || !self.may_search() {
            return self.follow(lower.wire(), HEADER_OCTETS, found, Aliases::default(), reply);
        }
        match SearchPath::new(self.index, self.rules, client, lower.wire()) {
            Some(path) => self.search(&path, lower.wire(), found, reply),
            None => self.follow(lower.wire(), HEADER_OCTETS, found, Aliases::default(), reply),
        }
    }

    /// Search paths are gone for addresses alone, and for clients that want all of an answer.
    fn may_search(&self) -> bool {
        let is_address = matches!(self.query.kind, kind::A | kind::AAAA);
        is_address && self.rules.search_path && self.query.flags & flag::RECURSION_DESIRED != 0
    }

    /// Looks for the first name of the client's search path that exists. What the cluster itself
    /// has decides at once; for others, upstream servers are asked, and the cluster's own answer is
    /// kept for when they have none.
    fn search(
        mut self,
        path: &SearchPath<'_>,
        name: &[u8],
        missing: Found<'_>,
        reply: &mut Vec<u8>,
    ) -> Action {
        let mut asks: Vec<Name> = Vec::new();
        let mut candidate = Buffer::default();
        let mut own = None;
        for step in path.steps() {
            if !path.write(step, &mut candidate) {
                continue;
            }
            let found = self.index.find(candidate.wire(), self.pods);
            self.trace.step(Step::Searched { name: candidate.wire(), found: &found });
            match found {
                Found::Outside => asks.push(Name::of_wire(candidate.wire())),
                Found::Inside { node: Node::Missing, .. } => {}
                Found::Inside { .. } => {
                    own = Some(found);
                    break;
                }
            }
        }
        let (query, transport) = (self.query, self.transport);
        let action = match own {
            Some(found) => {
                self.writer.set_flag(flag::AUTHORITATIVE);
                let mut aliases = Aliases::default();
                match self.write_alias(HEADER_OCTETS, candidate.wire(), &mut aliases) {
                    Some(at) => self.follow(candidate.wire(), at, found, aliases, reply),
                    None => self.finish(rcode::SERVER_FAILURE, reply),
                }
            }
            None => self.follow(name, HEADER_OCTETS, missing, Aliases::default(), reply),
        };
        if asks.is_empty() || action != Action::Reply {
            return action;
        }
        let (more, otherwise) = (asks.split_off(1), Some(std::mem::take(reply)));
        let Some(first) = asks.pop() else { return action };
        let query = query.to_query();
        let aliases = vec![query.name.clone()];
        Action::Forward(Box::new(Forward {
            query,
            transport,
            aliases,
            name: first,
            more,
            otherwise,
        }))
    }

    /// Follows aliases from a name, and answers for the last one.
    fn follow<'n>(
        mut self,
        mut name: &'n [u8],
        mut name_at: usize,
        mut found: Found<'n>,
        mut aliases: Aliases<'n>,
        reply: &mut Vec<u8>,
    ) -> Action
    where
        'a: 'n,
    {
        let index = self.index;
        loop {
            let Found::Inside { zone_labels, node } = found else {
                return self.leave(name, name_at, &aliases, reply);
            };
            self.writer.set_flag(flag::AUTHORITATIVE);
            match node {
                Node::Alias(target) if !matches!(self.query.kind, kind::CNAME | kind::ANY) => {
                    name = target.wire();
                    let Some(at) = self.write_alias(name_at, name, &mut aliases) else {
                        return self.finish(rcode::SERVER_FAILURE, reply);
                    };
                    name_at = at;
                    found = index.find(name, self.pods);
                    self.trace.step(Step::Looked { name, found: &found });
                }
                node => {
                    let code = self.write(&Place { name, name_at, zone_labels }, &node);
                    return self.finish(code, reply);
                }
            }
        }
    }

    /// What is not the cluster's is asked of others.
    fn leave(
        mut self,
        name: &[u8],
        name_at: usize,
        aliases: &Aliases<'_>,
        reply: &mut Vec<u8>,
    ) -> Action {
        if self.query.kind == kind::ANY {
            // Minimal for every name: upstream servers are not asked for whole names.
            write_any(&mut self.writer, name_at, self.rules.ttl_s);
            return self.finish(rcode::NO_ERROR, reply);
        }
        if self.query.flags & flag::RECURSION_DESIRED == 0 {
            // An alias alone is a full answer to a client that follows it by itself.
            let is_alone = aliases.count == 0;
            let code = if is_alone { rcode::REFUSED } else { rcode::NO_ERROR };
            return self.finish(code, reply);
        }
        let query = self.query.to_query();
        let targets = aliases.targets.get(..aliases.count).unwrap_or_default();
        let names = std::iter::once(query.name.wire()).chain(targets.iter().copied());
        let aliases = names.take(aliases.count).map(Name::of_wire).collect();
        // Without aliases the name keeps the client's letter case.
        let name = if targets.is_empty() { query.name.clone() } else { Name::of_wire(name) };
        *reply = self.writer.into_buffer();
        Action::Forward(Box::new(Forward {
            query,
            transport: self.transport,
            aliases,
            name,
            more: vec![],
            otherwise: None,
        }))
    }

    fn finish(mut self, rcode: u16, reply: &mut Vec<u8>) -> Action {
        self.writer.set_rcode(rcode);
        *reply = self.writer.finish();
        Action::Reply
    }

    /// Returns where the target stands; `None` when it does not fit, or there are too many.
    fn write_alias<'n>(
        &mut self,
        name_at: usize,
        target: &'n [u8],
        aliases: &mut Aliases<'n>,
    ) -> Option<usize> {
        let (data, ttl_s) = ([target], self.rules.ttl_s);
        let at = self.writer.record(Section::Answer, name_at, kind::CNAME, ttl_s, &data)?;
        *aliases.targets.get_mut(aliases.count)? = target;
        aliases.count += 1;
        Some(at)
    }

    /// Writes what stands at a name, and returns the response code.
    fn write(&mut self, place: &Place<'_>, node: &Node<'_>) -> u16 {
        if matches!(node, Node::Missing) {
            self.write_soa(place, Section::Authority);
            return rcode::NAME_ERROR;
        }
        let (at, ttl_s) = (place.name_at, self.rules.ttl_s);
        let has_data = match (self.query.kind, node) {
            (kind::ANY, _) => write_any(&mut self.writer, at, ttl_s),
            (kind::SOA, Node::Apex) => {
                self.write_soa(place, Section::Answer);
                true
            }
            (kind::NS, Node::Apex) => {
                let data = [NAME_SERVER, self.index.apex().wire()];
                self.writer.record(Section::Answer, at, kind::NS, ttl_s, &data);
                true
            }
            (kind::TXT, Node::Version) => {
                let data = [&[VERSION.len() as u8], VERSION];
                self.writer.record(Section::Answer, at, kind::TXT, ttl_s, &data);
                true
            }
            (kind::A | kind::AAAA, Node::Addresses(addresses)) => {
                self.write_addresses(at, addresses)
            }
            (kind::SRV, Node::Ports(below, ports)) => {
                self.write_ports(at, below, *ports);
                true
            }
            (kind::CNAME, Node::Alias(target)) => {
                self.writer.record(Section::Answer, at, kind::CNAME, ttl_s, &[target.wire()]);
                true
            }
            (kind::PTR, Node::Pointers(pointers)) => {
                self.write_pointers(at, pointers);
                true
            }
            _ => false,
        };
        if !has_data {
            self.write_soa(place, Section::Authority);
        }
        rcode::NO_ERROR
    }

    /// Many clients use the first address only. The client's own random number turns the list, so
    /// that clients spread without any state or randomness here.
    fn write_addresses(&mut self, at: usize, addresses: &Addresses<'_>) -> bool {
        let range = addresses.of_family(self.query.kind == kind::A);
        let turn = range.start + usize::from(self.query.id) % range.len().max(1);
        for address in (turn..range.end).chain(range.start..turn) {
            let Some(address) = addresses.get(address) else { continue };
            let ttl_s = self.rules.ttl_s;
            if write_address(&mut self.writer, Section::Answer, at, address, ttl_s).is_none() {
                break;
            }
        }
        !range.is_empty()
    }

    /// `below` are the Service's labels below the domain. The addresses of the targets go along.
    fn write_ports(&mut self, at: usize, below: &[u8], ports: Ports<'_>) {
        let ttl_s = self.rules.ttl_s;
        // Together the weights are about 100, as users of cluster DNS know them.
        let weight = u16::try_from(100 / ports.len().max(1)).unwrap_or(1).max(1).to_be_bytes();
        let apex = self.index.apex().wire();
        let mut written = 0;
        let mut record_at = self.writer.position();
        for record in ports.iter() {
            let port = record.port.to_be_bytes();
            // Priority, weight, port, target (RFC 2782); the target is not compressed.
            let fits = record.with_label(|length, label| {
                let data = [&[0, 0], &weight, &port, length, label, below, apex];
                let is_name = label.len() + below.len() + apex.len() < MAX_NAME_OCTETS;
                let record = || self.writer.record(Section::Answer, at, kind::SRV, ttl_s, &data);
                is_name.then(record).is_some_and(|data_at| data_at.is_some())
            });
            if !fits {
                return;
            }
            written += 1;
        }
        for record in ports.iter().take(written) {
            // Owner, type, class, TTL, length; priority, weight, port.
            let target_at = record_at + 12 + 6;
            for address in record.addresses.iter() {
                write_address(&mut self.writer, Section::Additional, target_at, address, ttl_s);
            }
            let label = record.with_label(|length, label| length.len() + label.len());
            record_at = target_at + label + below.len() + apex.len();
        }
    }

    fn write_pointers(&mut self, at: usize, pointers: &Pointers<'_>) {
        let apex = self.index.apex().wire();
        let ttl_s = self.rules.ttl_s;
        pointers.each(|parts| {
            let mut data = [apex; Pointers::PARTS + 1];
            let octets = parts.iter().map(|part| part.len()).sum::<usize>() + apex.len();
            for (place, part) in data.iter_mut().zip(parts) {
                *place = part;
            }
            let data = data.get(..=parts.len()).filter(|_| octets <= MAX_NAME_OCTETS);
            if let Some(data) = data {
                self.writer.record(Section::Answer, at, kind::PTR, ttl_s, data);
            }
        });
    }

    /// The SOA of the zone; its last number is how long absence may be kept.
    fn write_soa(&mut self, place: &Place<'_>, section: Section) {
        let mut numbers = [0; SOA_NUMBERS_OCTETS];
        let data = soa_parts(self.index, &mut numbers);
        self.writer.record(section, place.zone_at(), kind::SOA, NEGATIVE_TTL_S, &data);
    }
}

impl Place<'_> {
    /// Where the zone's name stands in the message: it is the tail of the name asked for.
    fn zone_at(&self) -> usize {
        let above = labels(self.name).count().saturating_sub(self.zone_labels);
        self.name_at + labels(self.name).take(above).map(|label| label.len() + 1).sum::<usize>()
    }
}

/// The data of a zone's SOA record.
pub fn soa_data(index: &Index) -> Vec<u8> {
    soa_parts(index, &mut [0; SOA_NUMBERS_OCTETS]).concat()
}

/// The same in parts; its numbers are written where there is room for them.
fn soa_parts<'a>(index: &'a Index, numbers: &'a mut [u8; SOA_NUMBERS_OCTETS]) -> [&'a [u8]; 5] {
    // Serial, refresh, retry, expire, minimum.
    let values = [index.serial(), 7200, 1800, 86400, NEGATIVE_TTL_S];
    for (place, value) in numbers.chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_be_bytes());
    }
    let apex = index.apex().wire();
    [NAME_SERVER, apex, MAILBOX, apex, numbers]
}

/// RFC 8482: one small record stands for all.
fn write_any(writer: &mut Writer, name_at: usize, ttl_s: u32) -> bool {
    writer.record(Section::Answer, name_at, kind::HINFO, ttl_s, &[b"\x07RFC8482\x00"]);
    true
}

fn write_address(
    writer: &mut Writer,
    section: Section,
    name_at: usize,
    address: IpAddr,
    ttl_s: u32,
) -> Option<usize> {
    match address {
        IpAddr::V4(v4) => writer.record(section, name_at, kind::A, ttl_s, &[&v4.octets()]),
        IpAddr::V6(v6) => writer.record(section, name_at, kind::AAAA, ttl_s, &[&v6.octets()]),
    }
}
