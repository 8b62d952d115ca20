//! Datagrams as frames.

use std::net::IpAddr;

use model::MacAddress;

const UDP: u8 = 17;
const LINK_BYTES: usize = 14;
const UDP_BYTES: usize = 8;

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_mac: MacAddress,
    pub destination_mac: MacAddress,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A datagram as a frame; `with_checksum`: IPv4 may leave it out.
pub fn frame(ends: &Ends, payload: &[u8], with_checksum: bool) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(ends.source_port.to_be_bytes());
    udp.extend(ends.destination_port.to_be_bytes());
    udp.extend(((UDP_BYTES + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    if with_checksum {
        let sum = !checksum(&pseudo(ends.source, ends.destination, &udp));
        let sum = if sum == 0 { 0xffff } else { sum };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = Vec::new();
    frame.extend(ends.destination_mac.0);
    frame.extend(ends.source_mac.0);
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0]);
            let mut header = vec![0x45, 0];
            header.extend(((20 + udp.len()) as u16).to_be_bytes());
            header.extend([0, 7, 0x40, 0, 64, UDP, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = !checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((udp.len() as u16).to_be_bytes());
            frame.extend([UDP, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend(udp);
    frame
}

/// Reads a frame back: its ends and the datagram's payload. Panics on wrong checksums and lengths.
pub fn read(frame: &[u8]) -> (Ends, Vec<u8>, bool) {
    let mac = |at: usize| MacAddress(frame[at..at + 6].try_into().expect("6 bytes"));
    let is_ipv4 = frame[12..14] == [8, 0];
    let header = LINK_BYTES + if is_ipv4 { 20 } else { 40 };
    let (source, destination): (IpAddr, IpAddr) = if is_ipv4 {
        assert_eq!(!checksum(&frame[14..34]), 0, "checksum of IPv4");
        let total = u16::from_be_bytes([frame[16], frame[17]]);
        assert_eq!(usize::from(total), frame.len() - LINK_BYTES, "length of IPv4");
        let at = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).expect("4 bytes").into();
        (at(26), at(30))
    } else {
        let length = u16::from_be_bytes([frame[18], frame[19]]);
        assert_eq!(usize::from(length), frame.len() - header, "length of IPv6");
        let at = |at: usize| <[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes").into();
        (at(22), at(38))
    };
    let udp = &frame[header..];
    let number = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    assert_eq!(usize::from(number(4)), udp.len(), "length of UDP");
    let has_checksum = number(6) != 0;
    if has_checksum {
        assert_eq!(!checksum(&pseudo(source, destination, udp)), 0, "checksum of UDP");
    }
    let ends = Ends {
        source,
        destination,
        source_mac: mac(6),
        destination_mac: mac(0),
        source_port: number(0),
        destination_port: number(2),
    };
    (ends, udp[UDP_BYTES..].to_vec(), has_checksum)
}

fn pseudo(source: IpAddr, destination: IpAddr, udp: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, UDP]);
    bytes.extend((udp.len() as u16).to_be_bytes());
    bytes.extend(udp);
    bytes
}

/// The sum of RFC 1071, not yet inverted.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
