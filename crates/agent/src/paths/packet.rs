//! The datagrams of the path self-test.
//!
//! ```text
//!  0  "flatpath"                        8 bytes
//!  8  version 1
//!  9  kind: 0 request, 1 answer
//! 10  channel: 0 between nodes, 1 between gateways of pods
//! 11  flags: 1 without checksum, the answer too; 2 by the way that a detour goes past
//! 12  nonce of the request              8 bytes
//! 20  heard you between nodes, ms ago   4 bytes, all ones for never
//! 24  heard you between gateways        4 bytes
//! 28  TCP port of the sender's gateway for streams, 0 for none   2 bytes
//! 30  zeros to byte 64; of a request, zeros up to the size that is tried
//! ```
//!
//! An answer has 64 bytes and a request no fewer: nobody can have more sent than he sends (X-26).
//! What is to be answered by the way that a detour goes past has by its headers more.

use std::time::Duration;

/// The size of an answer and of the smallest request, in bytes.
pub(super) const PACKET_BYTES: usize = 64;
/// The smallest request that is answered by an avoided way, in bytes: an answer with VXLAN's
/// headers and those of IPv6 within IPv6 is no larger than it is as a plain datagram.
pub(super) const BESIDE_REQUEST_BYTES: usize = 192;
/// The largest datagram: that of a link of 65535 bytes.
pub(super) const PACKET_BYTES_MAX: usize = 65535;

const MAGIC: &[u8; 8] = b"flatpath";
const VERSION: u8 = 1;
const NEVER: u32 = u32::MAX;
const FLAG_UNCHECKED: u8 = 1;
const FLAG_BESIDE: u8 = 2;

/// Between which addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The nodes' own.
    Nodes,
    /// The gateways of their pods, as pod packets travel.
    Pods,
}

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) is_answer: bool,
    pub(super) side: Side,
    /// Whether it travels without a checksum.
    pub(super) unchecked: bool,
    /// Whether its sender sent it by the way that the detour goes past, as the answer shall be.
    pub(super) beside: bool,
    /// What an answer is known by.
    pub(super) nonce: u64,
    /// How long ago the sender heard a request of the receiver between nodes.
    pub(super) heard_nodes: Option<Duration>,
    /// The same between gateways.
    pub(super) heard_pods: Option<Duration>,
    /// Where the sender takes streams, at the gateway of its pods; 0 for nowhere.
    pub(super) stream_port: u16,
}

impl Packet {
    /// In bytes, filled up to a size.
    pub(super) fn bytes(&self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size.max(PACKET_BYTES));
        bytes.extend_from_slice(MAGIC);
        let side = match self.side {
            Side::Nodes => 0,
            Side::Pods => 1,
        };
        let flags = [(self.unchecked, FLAG_UNCHECKED), (self.beside, FLAG_BESIDE)];
        let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum();
        bytes.extend([VERSION, u8::from(self.is_answer), side, flags]);
        bytes.extend(self.nonce.to_be_bytes());
        bytes.extend(milliseconds(self.heard_nodes).to_be_bytes());
        bytes.extend(milliseconds(self.heard_pods).to_be_bytes());
        bytes.extend(self.stream_port.to_be_bytes());
        bytes.resize(size.max(PACKET_BYTES), 0);
        bytes
    }

    /// Reads one. `None` for all that is none, or not of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; PACKET_BYTES] = bytes.first_chunk()?;
        let (magic, rest) = header.split_first_chunk()?;
        let (&[version, kind, side, flags], rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (heard_nodes, rest) = rest.split_first_chunk()?;
        let (heard_pods, rest) = rest.split_first_chunk()?;
        let (stream_port, _) = rest.split_first_chunk()?;
        if magic != MAGIC || version != VERSION {
            return None;
        }
        Some(Self {
            is_answer: match kind {
                0 => false,
                1 => true,
                _ => return None,
            },
            side: match side {
                0 => Side::Nodes,
                1 => Side::Pods,
                _ => return None,
            },
            unchecked: flags & FLAG_UNCHECKED != 0,
            beside: flags & FLAG_BESIDE != 0,
            nonce: u64::from_be_bytes(*nonce),
            heard_nodes: duration(u32::from_be_bytes(*heard_nodes)),
            heard_pods: duration(u32::from_be_bytes(*heard_pods)),
            stream_port: u16::from_be_bytes(*stream_port),
        })
    }
}

fn milliseconds(ago: Option<Duration>) -> u32 {
    ago.map_or(NEVER, |ago| u32::try_from(ago.as_millis()).unwrap_or(NEVER))
}

fn duration(milliseconds: u32) -> Option<Duration> {
    (milliseconds != NEVER).then(|| Duration::from_millis(milliseconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_are_written_and_others_refused() {
        let packet = Packet {
            is_answer: true,
            side: Side::Pods,
            unchecked: true,
            beside: true,
            nonce: 0x0102_0304_0506_0708,
            heard_nodes: Some(Duration::from_millis(17)),
            heard_pods: None,
            stream_port: 4321,
        };
        let bytes = packet.bytes(1472);
        assert_eq!((bytes.len(), Packet::parse(&bytes)), (1472, Some(packet)));
        for (unchecked, beside) in [(true, false), (false, true), (false, false)] {
            let other = Packet { unchecked, beside, ..packet };
            assert_eq!(Packet::parse(&other.bytes(0)), Some(other));
        }
        assert_eq!(packet.bytes(0).len(), PACKET_BYTES);
        assert_eq!(Packet::parse(&bytes[..PACKET_BYTES - 1]), None);
        for (index, value) in [(0, b'g'), (8, 2), (9, 2), (10, 2)] {
            let mut other = bytes.clone();
            other[index] = value;
            assert_eq!(Packet::parse(&other), None, "byte {index}");
        }
    }
}
