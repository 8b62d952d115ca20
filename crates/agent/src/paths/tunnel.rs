//! VXLAN packets that the self-test makes itself (RFC 7348). While pods take a detour, routes lead
//! nothing into the tunnel; these go through it all the same, and the far kernel unwraps them as
//! those of its tunnel link, past the same guards. So the network between the nodes is tried, and
//! no packet of a pod is.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use model::MacAddress;

const IPV4_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const HOP_LIMIT: u8 = 64;
const PROTOCOL_UDP: u8 = 17;
/// The VXLAN header's flag for a valid network identifier.
const FLAG_VNI: u8 = 0x08;

/// The tunnel between two nodes, and the two ends of the self-test within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    /// The VXLAN network identifier.
    pub(crate) vni: u32,
    /// The UDP port of tunnels.
    pub(crate) port: u16,
    /// This node's address and the peer's.
    pub(crate) nodes: (IpAddr, IpAddr),
    /// The gateways of this node's pods and of the peer's, of one family.
    pub(crate) pods: (IpAddr, IpAddr),
    /// The UDP port of the self-test, at both gateways.
    pub(crate) test_port: u16,
}

impl Tunnel {
    /// Sends a datagram of the self-test, at once or not at all. A socket of its own for each: as
    /// other tunnel packets do, it comes from a port of its own.
    pub(super) fn send(&self, payload: &[u8]) -> io::Result<()> {
        let packet = self.packet(payload).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = UdpSocket::bind((self.nodes.0, 0))?;
        socket.set_nonblocking(true)?;
        socket.send_to(&packet, SocketAddr::new(self.nodes.1, self.port)).map(drop)
    }

    /// What the outer UDP header is followed by. `None` when the gateways are of two families, or
    /// the payload is too large for a packet.
    fn packet(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let udp_bytes = u16::try_from(UDP_HEADER_BYTES + payload.len()).ok()?;
        let ports = self.test_port.to_be_bytes();
        let (header, ethertype) = match self.pods {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = udp_bytes.checked_add(IPV4_HEADER_BYTES as u16)?.to_be_bytes();
                let mut header = [0; IPV4_HEADER_BYTES];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&total);
                header[8..10].copy_from_slice(&[HOP_LIMIT, PROTOCOL_UDP]);
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let checksum = internet_checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&checksum);
                (header.to_vec(), [0x08, 0x00])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = udp_bytes.to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, high, low, PROTOCOL_UDP, HOP_LIMIT];
                header.extend(from.octets());
                header.extend(to.octets());
                (header, [0x86, 0xdd])
            }
            _ => return None,
        };
        let [_, a, b, c] = self.vni.to_be_bytes();
        let mut packet = vec![FLAG_VNI, 0, 0, 0, a, b, c, 0];
        for end in [self.nodes.1, self.nodes.0] {
            packet.extend(MacAddress::of_vtep(end).0);
        }
        packet.extend(ethertype);
        packet.extend(header);
        packet.extend(ports.into_iter().chain(ports));
        packet.extend(udp_bytes.to_be_bytes());
        // No checksum: the self-test's sockets take that (RFC 768, RFC 6936), and the outer
        // header has one.
        packet.extend([0, 0]);
        packet.extend(payload);
        Some(packet)
    }
}

/// RFC 1071, over a header of an even number of bytes whose own checksum is zero.
fn internet_checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(pods: [&str; 2]) -> Tunnel {
        let [own, peer] = pods.map(|text| text.parse().expect("an address"));
        let node = |text: &str| text.parse().expect("an address");
        Tunnel {
            vni: 0x01_0203,
            port: 8472,
            nodes: (node("172.30.0.2"), node("172.30.0.3")),
            pods: (own, peer),
            test_port: 8473,
        }
    }

    #[test]
    fn packets_are_those_of_the_rfcs() {
        let packet = tunnel(["10.244.1.1", "10.244.2.1"]).packet(b"hello").expect("a packet");
        assert_eq!(packet[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
        let of_vtep = |text: &str| MacAddress::of_vtep(text.parse().expect("an address")).0;
        assert_eq!(packet[8..14], of_vtep("172.30.0.3"));
        assert_eq!(packet[14..20], of_vtep("172.30.0.2"));
        assert_eq!(packet[20..22], [8, 0]);
        let header = &packet[22..42];
        assert_eq!(internet_checksum(header), 0, "with its checksum the sum is all ones");
        assert_eq!((header[0], header[2..4].to_vec(), header[9]), (0x45, vec![0, 33], 17));
        assert_eq!(header[12..], [10, 244, 1, 1, 10, 244, 2, 1]);
        assert_eq!(packet[42..50], [0x21, 0x19, 0x21, 0x19, 0, 13, 0, 0]);
        assert_eq!(&packet[50..], b"hello");

        let packet = tunnel(["fd00::1", "fd00::2"]).packet(b"hello").expect("a packet");
        assert_eq!(packet[20..30], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 13, 17, 64]);
        assert_eq!((packet[45], packet[61], packet.len()), (1, 2, 8 + 14 + 40 + 8 + 5));

        assert_eq!(tunnel(["10.244.1.1", "fd00::2"]).packet(b""), None);
        assert_eq!(tunnel(["10.244.1.1", "10.244.2.1"]).packet(&vec![0; 65_508]), None);
    }
}
