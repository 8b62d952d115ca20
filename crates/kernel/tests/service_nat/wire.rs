//! Frames of the tests' own making, and their reading: headers, ports, and checksums that are
//! computed anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::scene::{TCP, UDP};

pub const SCTP: u8 = 132;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
    /// From the transport's header on.
    pub payload: Vec<u8>,
}

/// The Internet checksum (RFC 1071) over several pieces of even length but the last.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("16 bits")
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, bytes: usize) -> Vec<u8> {
    let mut header = octets(source);
    header.extend(octets(destination));
    header.extend(u32::try_from(bytes).expect("short").to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// Where the checksum stands in a transport's header.
fn checksum_place(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        58 => Some(2),
        _ => None,
    }
}

/// A packet of IP, with the transport's checksum filled in.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    if let Some(place) = checksum_place(protocol) {
        payload[place..place + 2].fill(0);
        let pseudo = pseudo_header(source, destination, protocol, payload.len());
        let sum = checksum(&[&pseudo, &payload]);
        payload[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    } else if protocol == 1 {
        payload[2..4].fill(0);
        let sum = checksum(&[&payload]);
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let bytes = u16::try_from(payload.len()).expect("short");
    let mut packet = Vec::new();
    if source.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((bytes + 20).to_be_bytes());
        packet.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
        seal_ipv4(&mut packet);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(bytes.to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(octets(source));
        packet.extend(octets(destination));
    }
    packet.extend(payload);
    packet
}

/// Computes the checksum of an IPv4 header anew.
pub fn seal_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A segment or datagram: `flags` are TCP's, and `data` follows the header.
pub fn transport(protocol: u8, ports: (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut header = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    match protocol {
        TCP => {
            // With an option (MSS), as a client's first one has it.
            header.extend([0, 0, 0, 7, 0, 0, 0, 0, 6 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            header.extend([2, 4, 5, 0xb4]);
        }
        UDP => {
            let bytes = u16::try_from(8 + data.len()).expect("short");
            header.extend(bytes.to_be_bytes());
            header.extend([0, 0]);
        }
        _ => header.extend([0; 8]),
    }
    header.extend(data);
    header
}

/// In a frame to a MAC address.
pub fn frame(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&to[..], &[2, 0, 0, 0, 0xe, 1], &kind, packet].concat()
}

pub fn simple(
    to: [u8; 6],
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
) -> Vec<u8> {
    let payload = transport(protocol, (source.port(), destination.port()), flags, b"");
    frame(to, &packet(source.ip(), destination.ip(), protocol, &payload))
}

/// Reads a frame whose checksums must all be right.
pub fn read(frame: &[u8]) -> Read {
    read_packet(&frame[14..], true)
}

/// Reads a packet; `whole`: not one that an error repeats the beginning of.
pub fn read_packet(packet: &[u8], whole: bool) -> Read {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (source, destination, protocol, header): (IpAddr, IpAddr, u8, usize) = if is_ipv4 {
        assert_eq!(checksum(&[&packet[..20]]), 0, "the checksum of IPv4");
        let address =
            |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        (address(12).into(), address(16).into(), packet[9], 20)
    } else {
        let address = |at: usize| {
            Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("an address"))
        };
        (address(8).into(), address(24).into(), packet[6], 40)
    };
    let payload = packet[header..].to_vec();
    if whole {
        let length = u16::from_be_bytes([
            packet[if is_ipv4 { 2 } else { 4 }],
            packet[if is_ipv4 { 3 } else { 5 }],
        ]);
        assert_eq!(usize::from(length), payload.len() + if is_ipv4 { 20 } else { 0 }, "the length");
        let pseudo = pseudo_header(source, destination, protocol, payload.len());
        match checksum_place(protocol) {
            // Of UDP none at all is allowed.
            Some(place) if protocol != UDP || payload[place..place + 2] != [0, 0] => {
                assert_eq!(checksum(&[&pseudo, &payload]), 0, "the checksum of {protocol}");
            }
            None if protocol == 1 => assert_eq!(checksum(&[&payload]), 0, "the checksum of ICMP"),
            _ => {}
        }
    }
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let ports = if [TCP, UDP, SCTP].contains(&protocol) { (port(0), port(2)) } else { (0, 0) };
    Read {
        source: SocketAddr::new(source, ports.0),
        destination: SocketAddr::new(destination, ports.1),
        protocol,
        payload,
    }
}

/// An ICMP error of a kind about a packet, of which it repeats 64 bytes.
pub fn error(source: IpAddr, destination: IpAddr, kind: u8, about: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 5, 0x78];
    message.extend(&about[..about.len().min(64)]);
    packet(source, destination, if source.is_ipv4() { 1 } else { 58 }, &message)
}
