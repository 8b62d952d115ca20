//! Echo requests to other nodes (RFC 792, RFC 4443). Their kernels answer, so that what their
//! agents do says nothing of them.
//!
//! The socket takes echo replies that carry our secret and no other packet, by a filter in the
//! kernel: who does not see our requests can neither make a dead node live nor wake us.

use std::io;
use std::net::IpAddr;

use model::Family;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

/// Of the ICMP header: type, code, checksum, identifier, sequence number.
const HEADER_BYTES: usize = 8;
/// The secret, and the number of the beat.
const PAYLOAD_BYTES: usize = 8 + 8;
/// An IPv4 header with all its options.
const IPV4_HEADER_BYTES_MAX: usize = 60;
/// Answers that are read at once.
const ANSWERS_MAX: usize = 256;

/// The sockets of both families, as far as the system gives them.
pub(super) struct Echo {
    secret: u64,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Echo {
    /// Opens them. Without one no node of the family is ever found silent.
    pub(super) fn open() -> Self {
        let mut secret = [0; 8];
        let random = getrandom::fill(&mut secret).map_err(io::Error::other);
        let secret = u64::from_be_bytes(secret);
        let open = |family| match random.as_ref() {
            Ok(()) => open(family, secret)
                .inspect_err(|error| tracing::warn!("no echo requests of {family}: {error}"))
                .ok(),
            Err(error) => {
                tracing::warn!("no echo requests of {family}, for want of randomness: {error}");
                None
            }
        };
        Self { secret, v4: open(Family::V4), v6: open(Family::V6) }
    }

    /// Sends a request at once, or not at all: a lost one is what is being looked for.
    pub(super) fn ask(&self, to: IpAddr, number: u64) {
        let family = Family::of(&to);
        let socket = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        if let Some(socket) = socket {
            let _ = socket.try_send_to(&request(family, self.secret, number), (to, 0).into());
        }
    }

    /// Waits for answers: who gave them, and to which beat.
    pub(super) async fn heard(&self) -> Vec<(IpAddr, u64)> {
        tokio::select! {
            heard = answers(self.v4.as_ref(), self.secret) => heard,
            heard = answers(self.v6.as_ref(), self.secret) => heard,
        }
    }
}

async fn answers(socket: Option<&UdpSocket>, secret: u64) -> Vec<(IpAddr, u64)> {
    let Some(socket) = socket else { return std::future::pending().await };
    if socket.readable().await.is_err() {
        return std::future::pending().await;
    }
    let mut found = Vec::new();
    let mut buffer = [0; IPV4_HEADER_BYTES_MAX + HEADER_BYTES + PAYLOAD_BYTES];
    for _ in 0..ANSWERS_MAX {
        let (length, from) = match socket.try_recv_from(&mut buffer) {
            Ok(received) => received,
            // Errors of single packets pass; an empty socket is awaited.
            Err(_) => break,
        };
        let family = Family::of(&from.ip());
        let number = answer(family, buffer.get(..length).unwrap_or_default(), secret);
        found.extend(number.map(|number| (from.ip(), number)));
    }
    found
}

fn open(family: Family, secret: u64) -> io::Result<UdpSocket> {
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    let program: Vec<SockFilter> = filter(family, secret)
        .into_iter()
        .map(|(code, on_false, value)| SockFilter::new(code, 0, on_false, value))
        .collect();
    socket.attach_filter(&program)?;
    socket.set_nonblocking(true)?;
    // All that is used of it works on any socket for datagrams.
    UdpSocket::from_std(socket.into())
}

/// The ICMP types of requests and answers.
const fn types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}

fn request(family: Family, secret: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![types(family).0, 0, 0, 0];
    // The identifier is not looked at: the secret is.
    bytes.extend([0, 0]);
    bytes.extend((number as u16).to_be_bytes());
    bytes.extend(secret.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    if family == Family::V4 {
        // That of ICMPv6 is the kernel's work (RFC 3542, section 3.1).
        let checksum = checksum(&bytes);
        bytes.splice(2..4, checksum.to_be_bytes());
    }
    bytes
}

/// The number in an answer. An IPv4 socket gives the IP header too.
fn answer(family: Family, packet: &[u8], secret: u64) -> Option<u64> {
    let message = match family {
        Family::V4 => packet.get(usize::from(packet.first()? & 0x0f) * 4..)?,
        Family::V6 => packet,
    };
    let (secret_read, rest) = message.get(HEADER_BYTES..)?.split_first_chunk()?;
    let is_ours =
        *message.first()? == types(family).1 && u64::from_be_bytes(*secret_read) == secret;
    is_ours.then(|| rest.first_chunk().map(|number| u64::from_be_bytes(*number))).flatten()
}

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// A classic filter that lets pass what [`answer`] takes (`linux/filter.h`): codes, how far to jump
/// when two values differ, and values. A packet that is too short for a load is dropped.
fn filter(family: Family, secret: u64) -> Vec<(u16, u8, u32)> {
    const LOAD_HEADER_LENGTH: u16 = 0xb1; // ldxb 4*([k]&0xf)
    const LOAD_X: u16 = 0x01; // ldx #k
    const LOAD_BYTE: u16 = 0x50; // ldb [x + k]
    const LOAD_WORD: u16 = 0x40; // ld [x + k]
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let at = |code, value| (code, 0, value);
    let unless_to_end = |value, rest| (JUMP_EQUAL, rest, value);
    let start = match family {
        Family::V4 => at(LOAD_HEADER_LENGTH, 0),
        Family::V6 => at(LOAD_X, 0),
    };
    let (high, low) = ((secret >> 32) as u32, secret as u32);
    vec![
        start,
        at(LOAD_BYTE, 0),
        unless_to_end(types(family).1.into(), 5),
        at(LOAD_WORD, HEADER_BYTES as u32),
        unless_to_end(high, 3),
        at(LOAD_WORD, HEADER_BYTES as u32 + 4),
        unless_to_end(low, 1),
        at(RETURN, u32::MAX),
        at(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: u64 = 0x0102_0304_f506_0708;

    /// The answer that a kernel gives: the request with another type, behind an IP header in IPv4.
    fn reply(family: Family, options_bytes: usize) -> Vec<u8> {
        let mut message = request(family, SECRET, 77);
        message[0] = types(family).1;
        let mut packet = match family {
            Family::V4 => vec![0; 20 + options_bytes],
            Family::V6 => vec![],
        };
        if let Some(first) = packet.first_mut() {
            *first = 0x40 | (5 + options_bytes / 4) as u8;
        }
        packet.extend(message);
        packet
    }

    /// What the kernel does with the filter.
    fn passes(family: Family, secret: u64, packet: &[u8]) -> bool {
        let program = filter(family, secret);
        let (mut a, mut x, mut at) = (0_u32, 0_usize, 0);
        loop {
            let (code, on_false, k) = program[at];
            let load = |bytes: usize| {
                let from = x + k as usize;
                let bytes = packet.get(from..from + bytes)?;
                Some(bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
            };
            at += 1;
            match code {
                0xb1 => x = usize::from(packet[k as usize] & 0xf) * 4,
                0x01 => x = k as usize,
                0x50 | 0x40 => match load(if code == 0x50 { 1 } else { 4 }) {
                    Some(loaded) => a = loaded,
                    None => return false,
                },
                0x15 => at += if a == k { 0 } else { usize::from(on_false) },
                0x06 => return k != 0,
                other => panic!("{other:#x} is not used"),
            }
        }
    }

    #[test]
    fn only_answers_with_our_secret_are_taken_by_the_filter_and_by_us() {
        for (family, options) in [(Family::V4, 0), (Family::V4, 12), (Family::V6, 0)] {
            let good = reply(family, options);
            assert_eq!(answer(family, &good, SECRET), Some(77), "{family}");
            assert!(passes(family, SECRET, &good), "{family}");
            let start = good.len() - HEADER_BYTES - PAYLOAD_BYTES;
            // Another type, as that of the request; and each half of the secret.
            for index in [start, start + HEADER_BYTES, start + HEADER_BYTES + 7] {
                let mut other = good.clone();
                other[index] ^= 8;
                assert_eq!(answer(family, &other, SECRET), None, "{family} {index}");
                assert!(!passes(family, SECRET, &other), "{family} {index}");
            }
            for length in 1..good.len() {
                assert_eq!(answer(family, &good[..length], SECRET), None, "{family} {length}");
            }
            assert!(!passes(family, SECRET, &good[..start + HEADER_BYTES + 4]));
        }
        assert_eq!(answer(Family::V4, &[], SECRET), None);
    }

    #[test]
    fn the_checksum_of_a_request_is_right() {
        let request = request(Family::V4, SECRET, 77);
        assert_eq!(checksum(&request), 0, "with it the sum is all ones");
        assert_eq!((request[0], request.len()), (8, HEADER_BYTES + PAYLOAD_BYTES));
    }
}
