//! Packets that no honest machine sends, and what passes over a wire.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use model::{MacAddress, Overlay, TunnelConfig};
use netlink::Netns;
use socket2::{Domain, Protocol, Socket, Type};

/// Source and destination port of forged datagrams.
pub const PORT: u16 = 7777;
const BODY: &[u8] = b"forged";
const IPPROTO_UDP: u8 = 17;

/// A forged datagram between pods.
pub struct Datagram {
    pub from: IpAddr,
    pub to: IpAddr,
}

/// A forged tunnel packet.
pub struct Outer {
    pub overlay: Overlay,
    pub to: IpAddr,
    /// Of the tunnel link that it is for.
    pub mac: MacAddress,
    pub inner: Datagram,
}

impl Datagram {
    /// As an IP packet, with the checksums that the receiver asks for.
    fn packet(&self) -> Vec<u8> {
        let length = (8 + BODY.len()) as u16;
        let mut udp = [PORT.to_be_bytes(), PORT.to_be_bytes(), length.to_be_bytes()].concat();
        udp.extend([0, 0]);
        udp.extend(BODY);
        let addresses = [octets(self.from), octets(self.to)].concat();
        let pseudo = [&addresses[..], &length.to_be_bytes(), &[0, IPPROTO_UDP], &udp[..]].concat();
        udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        let mut header = match self.to {
            IpAddr::V4(_) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend([0, 1, 0, 0, 64, IPPROTO_UDP, 0, 0]);
                header
            }
            IpAddr::V6(_) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([IPPROTO_UDP, 64]);
                header
            }
        };
        header.extend(addresses);
        if self.to.is_ipv4() {
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        [header, udp].concat()
    }
}

impl Outer {
    /// Sends it from a machine, under whatever address that has.
    pub fn send(&self, machine: &Netns) {
        let is_v4 = self.to.is_ipv4();
        let inner = self.inner.packet();
        let send = || match self.overlay {
            Overlay::Vxlan => {
                let tunnels = TunnelConfig::default();
                let any = if is_v4 { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).expect("bound");
                let mut packet = vec![0x08, 0, 0, 0];
                packet.extend((tunnels.vxlan_vni << 8).to_be_bytes());
                packet.extend(self.mac.0);
                packet.extend([0x02, 0, 0, 0, 0, 9]);
                packet.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
                packet.extend(&inner);
                socket.send_to(&packet, SocketAddr::new(self.to, tunnels.vxlan_port))
            }
            Overlay::Ipip => {
                let (domain, protocol) = if is_v4 { (Domain::IPV4, 4) } else { (Domain::IPV6, 41) };
                let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)));
                socket.expect("a raw socket").send_to(&inner, &SocketAddr::new(self.to, 0).into())
            }
            other => panic!("{other} has no tunnel packets that anyone could forge"),
        };
        machine.run(send).expect("inside").expect("the attacker can send");
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The checksum of the Internet protocols (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sees all frames of a namespace's links.
pub struct Sniffer(Socket);

impl Sniffer {
    /// Of the namespace with the wire.
    pub fn on(namespace: &Netns) -> Self {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("a raw socket");
        Self(namespace.run(open).expect("inside"))
    }

    /// Whether any frame, of those before and during so long a time, has these bytes in it.
    pub fn sees(&self, bytes: &[u8], patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.0.set_read_timeout(Some(left)).expect("a timeout");
            let mut buffer = vec![0; 65536];
            let Ok(length) = (&self.0).read(&mut buffer) else { return false };
            if buffer[..length].windows(bytes.len()).any(|window| window == bytes) {
                return true;
            }
        }
    }
}
