//! Reads responses of other servers.

use std::net::IpAddr;

use crate::Name;
use crate::message::{HEADER_OCTETS, flag, kind, u16_at, u32_at};

/// One resource record. Names within its data are written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose record it is.
    pub owner: Name,
    /// The record type.
    pub kind: u16,
    /// How long it may be kept, in seconds.
    pub ttl_s: u32,
    /// The data, without compression.
    pub data: Vec<u8>,
}

/// A response, without its additional section: nothing in that is ever believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The number of the query.
    pub id: u16,
    /// The flags of the header.
    pub flags: u16,
    /// The response code, without the upper bits of EDNS.
    pub rcode: u16,
    /// The name of the question, in the letter case of the response.
    pub name: Name,
    /// The type of the question.
    pub kind: u16,
    /// The class of the question.
    pub class: u16,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
}

impl Response {
    /// Whether the response was cut, and TCP would bring all of it.
    pub fn is_truncated(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }
}

impl Record {
    /// The data as master files write it.
    pub fn data_text(&self) -> String {
        let data = self.data.as_slice();
        let name = |at: usize| match Name::read(data, at) {
            Ok((name, _)) => name.to_string(),
            Err(error) => format!("({error})"),
        };
        let number = |at: usize| u16_at(data, at).unwrap_or_default();
        match self.kind {
            kind::A | kind::AAAA => {
                let v4 = <[u8; 4]>::try_from(data).map(IpAddr::from).ok();
                let address = v4.or_else(|| <[u8; 16]>::try_from(data).map(IpAddr::from).ok());
                address.map_or_else(|| "(no address)".into(), |address| address.to_string())
            }
            kind::CNAME | kind::PTR | kind::NS | kind::DNAME => name(0),
            kind::SRV => format!("{} {} {} {}", number(0), number(2), number(4), name(6)),
            kind::MX => format!("{} {}", number(0), name(2)),
            kind::SOA => match Name::read(data, 0) {
                Ok((server, end)) => format!("{server} {}", name(end)),
                Err(error) => format!("({error})"),
            },
            kind::TXT | kind::HINFO => strings(data),
            _ => data.iter().map(|octet| format!("{octet:02x}")).collect(),
        }
    }
}

/// Strings behind their lengths, in quotes.
fn strings(mut data: &[u8]) -> String {
    let mut texts = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (text, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or((rest, &[]));
        texts.push(format!("\"{}\"", text.escape_ascii()));
        data = rest;
    }
    texts.join(" ")
}

/// Reads a response to a single question. `None` for anything else. Of a cut one, the records
/// are those that are whole.
pub fn parse_response(message: &[u8]) -> Option<Response> {
    let (id, flags) = (u16_at(message, 0)?, u16_at(message, 2)?);
    if flags & flag::RESPONSE == 0 || flags & flag::OPCODE != 0 || u16_at(message, 4)? != 1 {
        return None;
    }
    let (name, end) = Name::read(message, HEADER_OCTETS).ok()?;
    let mut response = Response {
        id,
        flags,
        rcode: flags & flag::RCODE,
        name,
        kind: u16_at(message, end)?,
        class: u16_at(message, end + 2)?,
        answers: Vec::new(),
        authority: Vec::new(),
    };
    let (answers, authority) = (u16_at(message, 6)?, u16_at(message, 8)?);
    let mut position = end + 4;
    for index in 0..u32::from(answers) + u32::from(authority) {
        let Some((record, end)) = read_record(message, position) else {
            return response.is_truncated().then_some(response);
        };
        position = end;
        if index < u32::from(answers) {
            response.answers.push(record);
        } else {
            response.authority.push(record);
        }
    }
    Some(response)
}

fn read_record(message: &[u8], at: usize) -> Option<(Record, usize)> {
    let (owner, fields) = Name::read(message, at).ok()?;
    let kind = u16_at(message, fields)?;
    let ttl_s = u32_at(message, fields + 4)?;
    let start = fields + 10;
    let end = start + usize::from(u16_at(message, fields + 8)?);
    let data = message.get(start..end)?;
    let data = match names_in(kind) {
        None => data.to_vec(),
        Some((before, names)) => write_out_names(message, start, end, before, names)?,
    };
    // The upper bit would be a negative number of seconds (RFC 2181, 8).
    let ttl_s = if ttl_s > i32::MAX as u32 { 0 } else { ttl_s };
    Some((Record { owner, kind, ttl_s, data }, end))
}

/// Which types may hold compressed names: the octets before them and how many names follow. All
/// other types are copied as they are (RFC 3597, 4).
fn names_in(kind: u16) -> Option<(usize, usize)> {
    match kind {
        kind::NS | kind::CNAME | kind::PTR | kind::DNAME => Some((0, 1)),
        kind::MX => Some((2, 1)),
        kind::SOA => Some((0, 2)),
        kind::SRV => Some((6, 1)),
        _ => None,
    }
}

fn write_out_names(
    message: &[u8],
    start: usize,
    end: usize,
    before: usize,
    names: usize,
) -> Option<Vec<u8>> {
    let mut data = message.get(start..end)?.get(..before)?.to_vec();
    let mut position = start + before;
    for _ in 0..names {
        let (name, next) = Name::read(message, position).ok()?;
        data.extend_from_slice(name.wire());
        position = next;
    }
    data.extend_from_slice(message.get(position..end)?);
    Some(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `www.example.` is an alias of `web.example.`, with compression within the data.
    const ALIAS: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\0\
        \x03www\x07example\0\0\x01\0\x01\
        \xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x06\x03web\xC0\x10\
        \xC0\x29\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\x00\x02\x01";

    #[test]
    fn compressed_names_in_data_are_written_out() {
        let response = parse_response(ALIAS).expect("a response");
        assert_eq!(response.name.to_string(), "www.example.");
        assert_eq!(response.answers.len(), 2);
        assert_eq!(response.answers[0].data, b"\x03web\x07example\0");
        assert_eq!(response.answers[1].owner.to_string(), "web.example.");
        assert_eq!(response.answers[1].data, [192, 0, 2, 1]);
    }

    #[test]
    fn a_response_that_ends_early_counts_only_when_it_says_so() {
        let short = &ALIAS[..ALIAS.len() - 3];
        assert_eq!(parse_response(short), None);
        let mut cut = short.to_vec();
        cut[2] |= 0x02;
        assert_eq!(parse_response(&cut).map(|response| response.answers.len()), Some(1));
    }

    proptest! {
        #[test]
        fn damaged_responses_never_panic(
            flips in proptest::collection::vec((0usize..ALIAS.len(), any::<u8>()), 0..8),
            length in 0usize..=ALIAS.len(),
        ) {
            let mut message = ALIAS.to_vec();
            for (at, octet) in flips {
                message[at] = octet;
            }
            if let Some(response) = parse_response(&message[..length]) {
                for record in response.answers.iter().chain(&response.authority) {
                    prop_assert!(record.owner.wire().len() <= 255);
                }
            }
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_response(&noise);
        }
    }
}
