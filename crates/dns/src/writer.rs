//! Writes responses, and queries to upstream servers.

use crate::message::{
    CLASS_IN, HEADER_OCTETS, PLAIN_UDP_OCTETS, Query, QueryRef, TCP_MESSAGE_OCTETS,
    UDP_PAYLOAD_OCTETS, flag, kind,
};
use crate::{Name, Record, Transport};

/// Octets of an OPT record without options.
const OPT_OCTETS: usize = 11;
/// Offsets beyond this do not fit into a compression pointer.
const MAX_POINTER: usize = 0x3FFF;

/// The section that a record goes to; sections are written in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A message in the making: header, question, then whole records as far as they fit. An answer or
/// authority record that does not fit sets TC (RFC 2181, 9); an additional one is left out.
pub(crate) struct Writer {
    message: Vec<u8>,
    limit: usize,
    flags: u16,
    rcode: u16,
    counts: [u16; 3],
    has_edns: bool,
    dnssec_ok: bool,
}

impl Writer {
    /// A response to a query that came over this transport.
    pub(crate) fn response(query: &Query, transport: Transport) -> Self {
        Self::into(Vec::with_capacity(PLAIN_UDP_OCTETS), &query.by_ref(), transport)
    }

    /// The same, in place of what a buffer holds.
    pub(crate) fn into(buffer: Vec<u8>, query: &QueryRef<'_>, transport: Transport) -> Self {
        let limit = match (transport, query.edns) {
            (Transport::Tcp, _) => TCP_MESSAGE_OCTETS,
            (Transport::Udp, None) => PLAIN_UDP_OCTETS,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.payload_octets).clamp(PLAIN_UDP_OCTETS, UDP_PAYLOAD_OCTETS)
            }
        };
        let mut message = buffer;
        message.clear();
        message.extend_from_slice(&query.id.to_be_bytes());
        message.extend_from_slice(&[0; HEADER_OCTETS - 2]);
        message.extend_from_slice(query.name);
        message.extend_from_slice(&query.kind.to_be_bytes());
        message.extend_from_slice(&query.class.to_be_bytes());
        Self {
            message,
            limit: limit - query.edns.map_or(0, |_| OPT_OCTETS),
            flags: flag::RESPONSE | flag::RECURSION_AVAILABLE | query.echoed_flags(),
            rcode: 0,
            counts: [0; 3],
            has_edns: query.edns.is_some(),
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }

    pub(crate) fn set_flag(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub(crate) fn set_rcode(&mut self, rcode: u16) {
        self.rcode = rcode;
    }

    /// Where the next record will start.
    pub(crate) fn position(&self) -> usize {
        self.message.len()
    }

    /// Adds a record whose owner is the name at an offset of this message. Returns where its data
    /// starts, or `None` when it did not fit.
    pub(crate) fn record(
        &mut self,
        section: Section,
        owner: usize,
        kind: u16,
        ttl_s: u32,
        data: &[&[u8]],
    ) -> Option<usize> {
        let pointer = u16::try_from(owner).ok().filter(|_| owner <= MAX_POINTER)?;
        self.append(section, &(0xC000 | pointer).to_be_bytes(), kind, ttl_s, data)
    }

    /// Adds a record whose owner is written out.
    pub(crate) fn record_named(
        &mut self,
        section: Section,
        owner: &Name,
        kind: u16,
        ttl_s: u32,
        data: &[&[u8]],
    ) -> Option<usize> {
        self.append(section, owner.wire(), kind, ttl_s, data)
    }

    /// Adds records of an upstream answer. Owners that repeat are compressed.
    pub(crate) fn records<'a>(
        &mut self,
        section: Section,
        records: impl Iterator<Item = (&'a Record, u32)>,
        known: &mut Vec<(Name, usize)>,
    ) {
        for (record, ttl_s) in records {
            let data: &[&[u8]] = &[&record.data];
            let at = known.iter().find(|(name, _)| name.is(&record.owner)).map(|(_, at)| *at);
            let owner_at = self.position();
            let written = match at.filter(|at| *at <= MAX_POINTER) {
                Some(at) => self.record(section, at, record.kind, ttl_s, data),
                None => self.record_named(section, &record.owner, record.kind, ttl_s, data),
            };
            let Some(data_at) = written else { return };
            if at.is_none() {
                known.push((record.owner.clone(), owner_at));
            }
            if record.kind == kind::CNAME
                && let Ok((target, _)) = Name::read(&record.data, 0)
            {
                known.push((target, data_at));
            }
        }
    }

    /// The buffer, without a message.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.message
    }

    /// The finished message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.has_edns {
            self.message.push(0);
            self.message.extend_from_slice(&kind::OPT.to_be_bytes());
            self.message.extend_from_slice(&(UDP_PAYLOAD_OCTETS as u16).to_be_bytes());
            // Upper bits of the response code, version 0, and DO as it came (RFC 3225, 3).
            let flags: u16 = if self.dnssec_ok { 0x8000 } else { 0 };
            self.message.extend_from_slice(&[(self.rcode >> 4) as u8, 0]);
            self.message.extend_from_slice(&flags.to_be_bytes());
            self.message.extend_from_slice(&[0, 0]);
            self.counts[2] += 1;
        }
        let words = [
            self.flags | (self.rcode & flag::RCODE),
            1,
            self.counts[0],
            self.counts[1],
            self.counts[2],
        ];
        for (word, place) in words.iter().zip(self.message[2..].chunks_exact_mut(2)) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        self.message
    }

    fn append(
        &mut self,
        section: Section,
        owner: &[u8],
        kind: u16,
        ttl_s: u32,
        data: &[&[u8]],
    ) -> Option<usize> {
        let data_octets: usize = data.iter().map(|part| part.len()).sum();
        let octets = owner.len() + 10 + data_octets;
        let length = u16::try_from(data_octets).ok();
        let (Some(length), true) = (length, self.message.len() + octets <= self.limit) else {
            if section != Section::Additional {
                self.flags |= flag::TRUNCATED;
            }
            return None;
        };
        self.message.extend_from_slice(owner);
        self.message.extend_from_slice(&kind.to_be_bytes());
        self.message.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.message.extend_from_slice(&ttl_s.to_be_bytes());
        self.message.extend_from_slice(&length.to_be_bytes());
        let data_at = self.message.len();
        for part in data {
            self.message.extend_from_slice(part);
        }
        self.counts[section as usize] = self.counts[section as usize].saturating_add(1);
        Some(data_at)
    }
}

/// A query that asks for recursion; `with_edns` offers [`UDP_PAYLOAD_OCTETS`].
pub fn query(id: u16, name: &Name, kind: u16, with_edns: bool) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_OCTETS + name.wire().len() + 4 + OPT_OCTETS);
    let words = [id, flag::RECURSION_DESIRED, 1, 0, 0, u16::from(with_edns)];
    for word in words {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(name.wire());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    if with_edns {
        message.push(0);
        message.extend_from_slice(&kind::OPT.to_be_bytes());
        message.extend_from_slice(&(UDP_PAYLOAD_OCTETS as u16).to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

/// A response of a header alone, for a query that could not be read.
pub(crate) fn bare_response(id: u16, query_flags: u16, rcode: u16) -> Vec<u8> {
    let flags = flag::RESPONSE
        | (query_flags & (flag::OPCODE | flag::RECURSION_DESIRED))
        | (rcode & flag::RCODE);
    let mut message = Vec::with_capacity(HEADER_OCTETS);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&[0; HEADER_OCTETS - 4]);
    message
}
