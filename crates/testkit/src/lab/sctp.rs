//! Questions and answers over SCTP in kernels without SCTP: an INIT and the INIT ACK that answers
//! it (RFC 9260, sections 3.3.2 and 3.3.3), by raw sockets. The answer's text is its state cookie.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use super::probe::uninterrupted;

/// The number of the protocol (RFC 9260, section 3).
const SCTP: i32 = 132;
/// Chunks: the first of a connection, and its answer.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The parameter that an INIT ACK must have.
const STATE_COOKIE: u16 = 7;
/// Bytes of the common header, and of an INIT chunk without parameters.
const HEADER_BYTES: usize = 12;
const INIT_BYTES: usize = 20;
/// Bytes of a parameter's type and length.
const PARAMETER_BYTES: usize = 4;
/// More than any packet here.
const PACKET_BYTES_MAX: usize = 512;
/// What both sides call their connection: its value does not matter.
const TAG: u32 = 7;
/// Where source ports begin that do not matter.
const PORTS_FROM: u16 = 42_000;
/// How many there are, before they begin anew.
const PORTS: u16 = 16_000;

/// Asks once from the namespace of the calling thread.
pub(super) fn ask(source: SocketAddr, to: SocketAddr, patience: Duration) -> Result<String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = match source.port() {
        0 => PORTS_FROM + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS,
        port => port,
    };
    let mut socket = open(source.ip())?;
    socket.connect(&SocketAddr::new(to.ip(), 0).into())?;
    let init = packet(port, to.port(), 0, &chunk(INIT, &[]));
    match socket.write(&init) {
        // Whether the own machine's rules refused it or lost it shows in what comes back.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::from(ErrorKind::TimedOut));
        }
        socket.set_read_timeout(Some(left))?;
        let mut bytes = [0; PACKET_BYTES_MAX];
        let length = uninterrupted(|| socket.read(&mut bytes))?;
        let Some(heard) = Heard::parse(payload(source.ip(), &bytes[..length])) else { continue };
        if heard.chunk == INIT_ACK && (heard.from, heard.to) == (to.port(), port) {
            return Ok(String::from_utf8_lossy(heard.cookie).into_owned());
        }
    }
}

/// A server at one address and port.
pub(super) struct Listener {
    socket: Socket,
    at: SocketAddr,
}

impl Listener {
    pub(super) fn open(at: SocketAddr) -> Result<Self> {
        let socket = open(at.ip())?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, at })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes one packet, and answers when it is an INIT to this port.
    pub(super) fn answer(&self) {
        let mut bytes = [0; PACKET_BYTES_MAX];
        let received = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut bytes);
        let Ok((length, Some(peer))) = received else { return };
        let peer: Option<IpAddr> = match (peer.as_sockaddr_in(), peer.as_sockaddr_in6()) {
            (Some(peer), _) => Some(peer.ip().into()),
            (_, Some(peer)) => Some(peer.ip().into()),
            _ => None,
        };
        let heard = Heard::parse(payload(self.at.ip(), &bytes[..length]));
        let (Some(peer), Some(heard)) = (peer, heard) else { return };
        if heard.chunk == INIT && heard.to == self.at.port() {
            let text = format!("{} {}", self.at, SocketAddr::new(peer, heard.from));
            let answer = chunk(INIT_ACK, text.as_bytes());
            let answer = packet(heard.to, heard.from, heard.tag, &answer);
            // Whoever has left gets no answer.
            let _ = self.socket.send_to(&answer, &SocketAddr::new(peer, 0).into());
        }
    }
}

fn open(address: IpAddr) -> Result<Socket> {
    let any_port = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(any_port), Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.bind(&any_port.into())?;
    Ok(socket)
}

/// What a raw socket hands out without the IP header, which it keeps for IPv4 only.
fn payload(own: IpAddr, bytes: &[u8]) -> &[u8] {
    let header = match (own, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    bytes.get(header..).unwrap_or_default()
}

struct Heard<'a> {
    from: u16,
    to: u16,
    chunk: u8,
    /// The initiate tag of the chunk.
    tag: u32,
    cookie: &'a [u8],
}

impl<'a> Heard<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, chunk) = bytes.split_at_checked(HEADER_BYTES)?;
        let (init, parameter) = chunk.split_at_checked(INIT_BYTES)?;
        let port = |at: usize| Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
        let length = parameter.get(2..PARAMETER_BYTES).and_then(|two| two.try_into().ok());
        let length = usize::from(length.map(u16::from_be_bytes).unwrap_or_default());
        Some(Self {
            from: port(0)?,
            to: port(2)?,
            chunk: *init.first()?,
            tag: u32::from_be_bytes(init.get(4..8)?.try_into().ok()?),
            cookie: parameter.get(PARAMETER_BYTES..length).unwrap_or_default(),
        })
    }
}

/// Tag, receive window, one stream each way and the first number; then the cookie, if any.
fn chunk(kind: u8, cookie: &[u8]) -> Vec<u8> {
    let mut parameter = Vec::new();
    if !cookie.is_empty() {
        let length = (PARAMETER_BYTES + cookie.len()) as u16;
        parameter.extend([STATE_COOKIE.to_be_bytes(), length.to_be_bytes()].concat());
        parameter.extend(cookie);
        parameter.resize(parameter.len().next_multiple_of(4), 0);
    }
    let length = (INIT_BYTES + parameter.len()) as u16;
    let mut chunk = vec![kind, 0];
    chunk.extend(length.to_be_bytes());
    chunk.extend(TAG.to_be_bytes());
    chunk.extend([0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 9]);
    chunk.extend(parameter);
    chunk
}

fn packet(from: u16, to: u16, tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunk);
    let sum = crc32c(&packet);
    packet[8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// What a packet is checked by (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..u8::BITS {
            let carry = sum & 1 == 1;
            sum >>= 1;
            if carry {
                sum ^= REVERSED_POLYNOMIAL;
            }
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that every list of CRCs has for CRC-32C.
    #[test]
    fn the_checksum_is_that_of_sctp() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_packed_is_heard() {
        let bytes = packet(1, 2, TAG, &chunk(INIT_ACK, b"text!"));
        let heard = Heard::parse(&bytes).expect("a packet");
        assert_eq!((heard.from, heard.to, heard.chunk, heard.tag), (1, 2, INIT_ACK, TAG));
        assert_eq!(heard.cookie, b"text!");
        assert!(Heard::parse(&bytes[..HEADER_BYTES + 3]).is_none());
    }
}
