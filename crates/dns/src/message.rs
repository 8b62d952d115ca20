//! Queries as they come from outside, and the numbers of the protocol.

use crate::{Name, name};

/// Octets of the header (RFC 1035, 4.1.1).
pub const HEADER_OCTETS: usize = 12;
/// The largest UDP payload that we send or ask for, so that no datagram is cut into fragments
/// (the value of DNS Flag Day 2020).
pub const UDP_PAYLOAD_OCTETS: usize = 1232;
/// The largest UDP message for a client that does not speak EDNS (RFC 1035, 2.3.4).
pub const PLAIN_UDP_OCTETS: usize = 512;
/// The largest message over TCP, by its two octets of length.
pub const TCP_MESSAGE_OCTETS: usize = 65535;
/// Records behind the question that a query may carry: OPT, and a signature or the SOA of IXFR.
const MAX_QUERY_RECORDS: u32 = 4;

/// Header flags, in the second word of a message.
pub mod flag {
    /// The message is a response.
    pub const RESPONSE: u16 = 0x8000;
    /// The answer is from the authority itself.
    pub const AUTHORITATIVE: u16 = 0x0400;
    /// The message was cut; ask over TCP.
    pub const TRUNCATED: u16 = 0x0200;
    /// The client asks for recursion.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// The server recurses.
    pub const RECURSION_AVAILABLE: u16 = 0x0080;
    /// The server checked the signatures, or the client wants to hear whether (RFC 6840, 5.7).
    pub const AUTHENTIC_DATA: u16 = 0x0020;
    /// The client checks signatures itself (RFC 4035).
    pub const CHECKING_DISABLED: u16 = 0x0010;
    /// Where the operation code stands.
    pub const OPCODE: u16 = 0x7800;
    /// Where the response code stands.
    pub const RCODE: u16 = 0x000F;
}

/// Response codes (RFC 1035, 4.1.1; RFC 6891 for [`rcode::BAD_VERSION`]).
pub mod rcode {
    /// Success, also without data.
    pub const NO_ERROR: u16 = 0;
    /// The query is not a well-formed message.
    pub const FORMAT_ERROR: u16 = 1;
    /// The server cannot answer now.
    pub const SERVER_FAILURE: u16 = 2;
    /// The name does not exist.
    pub const NAME_ERROR: u16 = 3;
    /// The operation is not known here.
    pub const NOT_IMPLEMENTED: u16 = 4;
    /// The server will not do that.
    pub const REFUSED: u16 = 5;
    /// The EDNS version is not known here; its upper bits travel in the OPT record.
    pub const BAD_VERSION: u16 = 16;
}

/// Record types, and the types that only a question may have.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Alias.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// Host information; what RFC 8482 answers to [`ANY`].
    pub const HINFO: u16 = 13;
    /// Mail exchange.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Service location (RFC 2782).
    pub const SRV: u16 = 33;
    /// Alias of a subtree (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// A signature (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Proof that a name or type is not there (RFC 4034).
    pub const NSEC: u16 = 47;
    /// The same with hashed names (RFC 5155).
    pub const NSEC3: u16 = 50;
    /// Incremental zone transfer.
    pub const IXFR: u16 = 251;
    /// Zone transfer.
    pub const AXFR: u16 = 252;
    /// Whatever there is.
    pub const ANY: u16 = 255;
}

/// The class of the Internet.
pub const CLASS_IN: u16 = 1;

/// What a client said of its EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The UDP payload that it takes.
    pub payload_octets: u16,
    /// The version that it speaks.
    pub version: u8,
    /// Whether it wants DNSSEC records.
    pub dnssec_ok: bool,
}

/// A query that can be answered, or refused by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The client's number for it.
    pub id: u16,
    /// The flags of the header as they came.
    pub flags: u16,
    /// The name asked for, in the letter case of the client.
    pub name: Name,
    /// The record type asked for.
    pub kind: u16,
    /// The class asked for.
    pub class: u16,
    /// EDNS, when the client speaks it.
    pub edns: Option<Edns>,
}

/// A query where it stands in its message: nothing of it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryRef<'m> {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// The octets of the name, without compression.
    pub(crate) name: &'m [u8],
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// What stands where a query should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not to be answered: too short for a header, or itself a response.
    Silent,
    /// Answered by this code, without a question section.
    Code {
        /// The number to answer under.
        id: u16,
        /// The flags as they came.
        flags: u16,
        /// The response code.
        rcode: u16,
    },
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// What to answer, or not, when it is none.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        Ok(QueryRef::parse(message)?.to_query())
    }

    /// The header's flags to answer with, before the answer's own are added.
    pub fn echoed_flags(&self) -> u16 {
        self.by_ref().echoed_flags()
    }

    pub(crate) fn by_ref(&self) -> QueryRef<'_> {
        let Self { id, flags, kind, class, edns, .. } = *self;
        QueryRef { id, flags, name: self.name.wire(), kind, class, edns }
    }
}

impl<'m> QueryRef<'m> {
    /// Reads a query. See [`Query::parse`].
    pub(crate) fn parse(message: &'m [u8]) -> Result<Self, Malformed> {
        let (Some(id), Some(flags), true) =
            (u16_at(message, 0), u16_at(message, 2), message.len() >= HEADER_OCTETS)
        else {
            return Err(Malformed::Silent);
        };
        if flags & flag::RESPONSE != 0 {
            return Err(Malformed::Silent);
        }
        let refuse = |rcode| Malformed::Code { id, flags, rcode };
        if flags & flag::OPCODE != 0 {
            return Err(refuse(rcode::NOT_IMPLEMENTED));
        }
        Self::parse_body(message, id, flags).ok_or(refuse(rcode::FORMAT_ERROR))
    }

    pub(crate) fn to_query(self) -> Query {
        let Self { id, flags, kind, class, edns, .. } = self;
        Query { id, flags, name: Name::of_wire(self.name), kind, class, edns }
    }

    pub(crate) fn echoed_flags(&self) -> u16 {
        self.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED)
    }

    fn parse_body(message: &'m [u8], id: u16, flags: u16) -> Option<Self> {
        if u16_at(message, 4)? != 1 || u16_at(message, 6)? != 0 {
            return None;
        }
        // Before the question there is nothing that a pointer could lead to.
        let name = name::read_plain(message, HEADER_OCTETS).ok()?;
        let end = HEADER_OCTETS + name.len();
        let (kind, class) = (u16_at(message, end)?, u16_at(message, end + 2)?);
        let records = u32::from(u16_at(message, 8)?) + u32::from(u16_at(message, 10)?);
        if records > MAX_QUERY_RECORDS {
            return None;
        }
        let mut position = end + 4;
        let mut edns = None;
        for _ in 0..records {
            let at_root = message.get(position) == Some(&0);
            let fields = name::skip(message, position).ok()?;
            let data_octets = usize::from(u16_at(message, fields + 8)?);
            position = fields + 10 + data_octets;
            if position > message.len() {
                return None;
            }
            if u16_at(message, fields)? == kind::OPT {
                // One OPT, at the root (RFC 6891, 6.1.1).
                if edns.is_some() || !at_root {
                    return None;
                }
                edns = Some(Edns {
                    payload_octets: u16_at(message, fields + 2)?,
                    version: *message.get(fields + 5)?,
                    dnssec_ok: u16_at(message, fields + 6)? & 0x8000 != 0,
                });
            }
        }
        Some(Self { id, flags, name, kind, class, edns })
    }
}

/// The text of a record type, as people write it.
pub fn kind_name(number: u16) -> String {
    match KIND_NAMES.iter().find(|(_, kind)| *kind == number) {
        Some((name, _)) => (*name).to_string(),
        None => format!("TYPE{number}"),
    }
}

/// The record type of a text, in any letter case; also the `TYPE123` form of RFC 3597.
pub fn kind_number(text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    match KIND_NAMES.iter().find(|(name, _)| *name == upper) {
        Some((_, kind)) => Some(*kind),
        None => upper.strip_prefix("TYPE")?.parse().ok(),
    }
}

/// The text of a response code, as people write it.
pub fn rcode_name(number: u16) -> String {
    match number {
        rcode::NO_ERROR => "NOERROR".into(),
        rcode::FORMAT_ERROR => "FORMERR".into(),
        rcode::SERVER_FAILURE => "SERVFAIL".into(),
        rcode::NAME_ERROR => "NXDOMAIN".into(),
        rcode::NOT_IMPLEMENTED => "NOTIMP".into(),
        rcode::REFUSED => "REFUSED".into(),
        other => format!("RCODE{other}"),
    }
}

const KIND_NAMES: [(&str, u16); 18] = [
    ("A", kind::A),
    ("NS", kind::NS),
    ("CNAME", kind::CNAME),
    ("SOA", kind::SOA),
    ("PTR", kind::PTR),
    ("HINFO", kind::HINFO),
    ("MX", kind::MX),
    ("TXT", kind::TXT),
    ("AAAA", kind::AAAA),
    ("SRV", kind::SRV),
    ("DNAME", kind::DNAME),
    ("HINFO", kind::HINFO),
    ("RRSIG", kind::RRSIG),
    ("NSEC", kind::NSEC),
    ("NSEC3", kind::NSEC3),
    ("IXFR", kind::IXFR),
    ("AXFR", kind::AXFR),
    ("ANY", kind::ANY),
];

/// The 16-bit number at an offset; `None` beyond the end.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let octets = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(octets.try_into().ok()?))
}

pub(crate) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let octets = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(octets.try_into().ok()?))
}
