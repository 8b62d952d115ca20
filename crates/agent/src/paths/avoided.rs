//! Packets that the self-test sends by a way that a detour goes past. The routes lead nothing that
//! way; what is put together here takes it all the same, and the far kernel takes it as what its
//! own tunnel links or its uplink bring, past the same guards. So the network between the nodes is
//! tried, and no packet of a pod is.
//!
//! VXLAN packets (RFC 7348) are UDP datagrams. The others take a raw socket, and with it
//! `CAP_NET_RAW`, and where the far uplink filters strictly by reverse path, direct ones are
//! dropped while its routes lead elsewhere: then the way is never found to work, and the detour
//! stays until an operator ends it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use model::overlay::of_family;
use model::{ClusterConfig, Family, MacAddress, Overlay};
use socket2::{Domain, Protocol, Socket, Type};

const IPV4_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Protocol numbers: of UDP, and of a packet of each family within another (RFC 2003, RFC 2473).
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_IPIP: u8 = 4;
const PROTOCOL_IPV6: u8 = 41;
/// Of a socket that is given whole packets (`IPPROTO_RAW`).
const PROTOCOL_RAW: i32 = 255;
/// The VXLAN header's flag for a valid network identifier.
const FLAG_VNI: u8 = 0x08;

/// The way between two nodes that is avoided, and the two ends of the self-test behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Avoided {
    /// What packets are wrapped in.
    pub(crate) wrapping: Wrapping,
    /// This node's address and the peer's.
    pub(crate) nodes: (IpAddr, IpAddr),
    /// The gateways of this node's pods and of the peer's, of one family.
    pub(crate) pods: (IpAddr, IpAddr),
    /// The UDP port of the self-test, at both gateways.
    pub(crate) test_port: u16,
}

/// What packets of pods are wrapped in on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrapping {
    /// VXLAN.
    Vxlan {
        /// The network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
    },
    /// IP in IP.
    Ipip,
    /// Nothing: the peer is the next hop.
    Direct,
}

impl Avoided {
    /// A way between the gateways of two nodes with these addresses, those of outer packets first.
    /// `None` where the nodes have no addresses for it, and for ways that are never avoided.
    pub(super) fn of(
        way: Overlay,
        nodes: (&[IpAddr], &[IpAddr]),
        pods: (IpAddr, IpAddr),
        config: &ClusterConfig,
    ) -> Option<Self> {
        let tunnels = &config.tunnels;
        let wrapping = match way {
            Overlay::Vxlan => Wrapping::Vxlan { vni: tunnels.vxlan_vni, port: tunnels.vxlan_port },
            Overlay::Ipip => Wrapping::Ipip,
            Overlay::HostGw => Wrapping::Direct,
            Overlay::Wireguard | Overlay::Native => return None,
        };
        let family = match way.keeps_family() {
            true => Family::of(&pods.0),
            false => Family::of(nodes.1.first()?),
        };
        let nodes = (of_family(nodes.0, family)?, of_family(nodes.1, family)?);
        Some(Self { wrapping, nodes, pods, test_port: tunnels.path_test_port })
    }

    /// Sends a datagram of the self-test, at once or not at all.
    pub(super) fn send(&self, payload: &[u8]) -> io::Result<()> {
        let packet = self.packet(payload).ok_or(io::ErrorKind::InvalidInput)?;
        let (own, peer) = self.nodes;
        if let Wrapping::Vxlan { port, .. } = self.wrapping {
            // A socket of its own for each: as other tunnel packets do, it comes from a port of
            // its own.
            let socket = UdpSocket::bind((own, 0))?;
            socket.set_nonblocking(true)?;
            return socket.send_to(&packet, SocketAddr::new(peer, port)).map(drop);
        }
        let domain = Domain::for_address(SocketAddr::new(peer, 0));
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(PROTOCOL_RAW)))?;
        socket.set_nonblocking(true)?;
        // Routed as a packet to the peer, whatever its header says: so the peer is the next hop.
        socket.send_to(&packet, &SocketAddr::new(peer, 0).into()).map(drop)
    }

    /// What is given to the socket. `None` when the gateways are of two families, or the payload
    /// is too large for a packet.
    fn packet(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let udp_bytes = u16::try_from(UDP_HEADER_BYTES + payload.len()).ok()?.to_be_bytes();
        let ports = self.test_port.to_be_bytes();
        let mut datagram: Vec<u8> = ports.into_iter().chain(ports).chain(udp_bytes).collect();
        // No checksum: the self-test's sockets take that (RFC 768, RFC 6936), and what is wrong
        // with checksums is found elsewhere.
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let inner = wrapped(self.pods, PROTOCOL_UDP, &datagram)?;
        match self.wrapping {
            Wrapping::Direct => Some(inner),
            Wrapping::Ipip if self.pods.0.is_ipv4() => wrapped(self.nodes, PROTOCOL_IPIP, &inner),
            Wrapping::Ipip => wrapped(self.nodes, PROTOCOL_IPV6, &inner),
            Wrapping::Vxlan { vni, .. } => {
                let [_, a, b, c] = vni.to_be_bytes();
                let mut packet = vec![FLAG_VNI, 0, 0, 0, a, b, c, 0];
                for end in [self.nodes.1, self.nodes.0] {
                    packet.extend(MacAddress::of_vtep(end).0);
                }
                packet.extend(if self.pods.0.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
                packet.extend(inner);
                Some(packet)
            }
        }
    }
}

/// An IP packet between two addresses of one family.
fn wrapped(ends: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(IPV4_HEADER_BYTES + payload.len()).ok()?.to_be_bytes();
            let mut header = [0; IPV4_HEADER_BYTES];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&total);
            header[8..10].copy_from_slice(&[HOP_LIMIT, protocol]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let checksum = internet_checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&checksum);
            header.to_vec()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = u16::try_from(payload.len()).ok()?.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, HOP_LIMIT];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => return None,
    };
    packet.extend(payload);
    Some(packet)
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

    fn avoided(way: Overlay, pods: [&str; 2]) -> Avoided {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let [own, peer] = pods.map(address);
        let nodes = [["172.30.0.2", "fd01::2"], ["172.30.0.3", "fd01::3"]];
        let [own_nodes, peer_nodes] = nodes.map(|both| both.map(address));
        let mut config = ClusterConfig::default();
        config.tunnels.vxlan_vni = 0x01_0203;
        Avoided::of(way, (&own_nodes, &peer_nodes), (own, peer), &config).expect("a way")
    }

    /// An IPv4 packet's header and what it carries.
    fn unwrapped(packet: &[u8]) -> (&[u8], &[u8]) {
        let (header, rest) = packet.split_at(IPV4_HEADER_BYTES);
        assert_eq!(internet_checksum(header), 0, "with its checksum the sum is all ones");
        assert_eq!(usize::from(header[2]) * 256 + usize::from(header[3]), packet.len());
        (header, rest)
    }

    #[test]
    fn packets_are_those_of_the_rfcs() {
        let pods = ["10.244.1.1", "10.244.2.1"];
        let direct = avoided(Overlay::HostGw, pods).packet(b"hello").expect("a packet");
        let (header, datagram) = unwrapped(&direct);
        assert_eq!((header[0], header[9]), (0x45, PROTOCOL_UDP));
        assert_eq!(header[12..], [10, 244, 1, 1, 10, 244, 2, 1]);
        assert_eq!(datagram[..8], [0x28, 0x10, 0x28, 0x10, 0, 13, 0, 0]);
        assert_eq!(&datagram[8..], b"hello");

        let packet = avoided(Overlay::Vxlan, pods).packet(b"hello").expect("a packet");
        assert_eq!(packet[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
        let of_vtep = |text: &str| MacAddress::of_vtep(text.parse().expect("an address")).0;
        assert_eq!(packet[8..14], of_vtep("172.30.0.3"));
        assert_eq!(packet[14..20], of_vtep("172.30.0.2"));
        assert_eq!((packet[20..22].to_vec(), &packet[22..]), (vec![8, 0], &direct[..]));

        let packet = avoided(Overlay::Ipip, pods).packet(b"hello").expect("a packet");
        let (header, inner) = unwrapped(&packet);
        assert_eq!((header[9], inner), (PROTOCOL_IPIP, &direct[..]));
        assert_eq!(header[12..], [172, 30, 0, 2, 172, 30, 0, 3]);
    }

    #[test]
    fn packets_of_ipv6_are_those_of_the_rfcs() {
        let pods = ["fd00::1", "fd00::2"];
        let direct = avoided(Overlay::HostGw, pods).packet(b"hello").expect("a packet");
        assert_eq!(direct[..8], [0x60, 0, 0, 0, 0, 13, PROTOCOL_UDP, HOP_LIMIT]);
        assert_eq!((direct[23], direct[39], direct.len()), (1, 2, 40 + 8 + 5));
        let packet = avoided(Overlay::Vxlan, pods).packet(b"hello").expect("a packet");
        assert_eq!((packet[20..22].to_vec(), &packet[22..]), (vec![0x86, 0xdd], &direct[..]));
        // The outer packet is of the family of the inner one.
        let packet = avoided(Overlay::Ipip, pods).packet(b"hello").expect("a packet");
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 53, PROTOCOL_IPV6, HOP_LIMIT]);
        assert_eq!((packet[23], packet[39], &packet[40..]), (2, 3, &direct[..]));
    }

    #[test]
    fn what_makes_no_packet_is_not_sent() {
        let mixed = avoided(Overlay::Vxlan, ["10.244.1.1", "fd00::2"]);
        assert_eq!(mixed.packet(b""), None);
        let plain = avoided(Overlay::Vxlan, ["10.244.1.1", "10.244.2.1"]);
        assert_eq!(plain.packet(&vec![0; 65_508]), None);
        let pods = (plain.pods.0, plain.pods.1);
        let nodes = [plain.nodes.0];
        let config = ClusterConfig::default();
        for (way, peer) in [
            (Overlay::Wireguard, vec![plain.nodes.1]),
            (Overlay::Native, vec![plain.nodes.1]),
            (Overlay::HostGw, vec!["fd01::3".parse().expect("an address")]),
            (Overlay::Ipip, vec![]),
        ] {
            assert_eq!(Avoided::of(way, (&nodes, &peer), pods, &config), None, "{way}");
        }
    }
}
