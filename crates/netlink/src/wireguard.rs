//! Keys, ports and peers of WireGuard links, by generic netlink (`include/uapi/linux/wireguard.h`
//! and `genetlink.h`). Links themselves are made by [`crate::Netlink::create_wireguard`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use model::WireguardKey;

use crate::Error;
use crate::generic::{self, HEADER_BYTES};
use crate::message::{Attributes, Request, u16_of};
use crate::socket::{Message, Socket};

const WG_GENL_NAME: &str = "wireguard";
const WG_GENL_VERSION: u8 = 1;
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;

/// Bytes of `struct sockaddr_in` and `struct sockaddr_in6`.
const SOCKADDR_IN_BYTES: usize = 16;
const SOCKADDR_IN6_BYTES: usize = 28;
/// Elements of a list have a number of their own, which the kernel does not look at.
const LIST_ELEMENT: u16 = 0;

/// What a WireGuard link is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireguardLink {
    /// Who it is to its peers; `None` before it got a key.
    pub public_key: Option<WireguardKey>,
    /// Its UDP port.
    pub port: u16,
    /// Its peers by key.
    pub peers: BTreeMap<WireguardKey, WireguardLinkPeer>,
}

/// A peer of a WireGuard link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireguardLinkPeer {
    /// Where it is. The kernel follows a peer that sends from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// What it may send, and what is sent to it.
    pub allowed: BTreeSet<IpNet>,
}

/// A kept generic netlink socket. The kernel's WireGuard is looked for when it is needed first:
/// asking loads the module.
pub struct Wireguard {
    socket: Socket,
    family: Option<u16>,
}

impl Wireguard {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_GENERIC)?, family: None })
    }

    /// What a link is.
    ///
    /// # Errors
    /// `ENODEV` when there is no such link, `EOPNOTSUPP` when it is no WireGuard link, `ENOENT`
    /// when the kernel has no WireGuard.
    pub fn link(&mut self, index: u32) -> Result<WireguardLink, Error> {
        let mut request = self.request(WG_CMD_GET_DEVICE)?;
        request.u32(WGDEVICE_A_IFINDEX, index);
        let action = || format!("read the WireGuard link number {index}");
        let messages = self.socket.dump(&request, action)?;
        let mut link = WireguardLink::default();
        messages.iter().for_each(|message| read(message, &mut link));
        Ok(link)
    }

    /// Gives a link its private key and port.
    ///
    /// # Errors
    /// As [`Wireguard::link`]; `EADDRINUSE` when another socket has the port.
    pub fn set_link(&mut self, index: u32, private: &[u8; 32], port: u16) -> Result<(), Error> {
        let mut request = self.request(WG_CMD_SET_DEVICE)?;
        request
            .u32(WGDEVICE_A_IFINDEX, index)
            .attribute(WGDEVICE_A_PRIVATE_KEY, private)
            .attribute(WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
        let action = || format!("give the WireGuard link number {index} its key and port {port}");
        self.socket.call(&request, action).map(drop)
    }

    /// Adds or changes a peer; what it may send is replaced.
    ///
    /// # Errors
    /// As [`Wireguard::link`].
    pub fn set_peer(
        &mut self,
        index: u32,
        key: &WireguardKey,
        peer: &WireguardLinkPeer,
    ) -> Result<(), Error> {
        let mut request = self.request(WG_CMD_SET_DEVICE)?;
        request.u32(WGDEVICE_A_IFINDEX, index);
        write_peer(&mut request, key, peer);
        self.socket.call(&request, || format!("set the WireGuard peer {key}")).map(drop)
    }

    /// Removes a peer; one that is not there is no error.
    ///
    /// # Errors
    /// As [`Wireguard::link`].
    pub fn remove_peer(&mut self, index: u32, key: &WireguardKey) -> Result<(), Error> {
        let mut request = self.request(WG_CMD_SET_DEVICE)?;
        request.u32(WGDEVICE_A_IFINDEX, index).nested(WGDEVICE_A_PEERS, &[], |peers| {
            peers.nested(LIST_ELEMENT, &[], |one| {
                one.attribute(WGPEER_A_PUBLIC_KEY, &key.0).u32(WGPEER_A_FLAGS, WGPEER_F_REMOVE_ME);
            });
        });
        self.socket.call(&request, || format!("remove the WireGuard peer {key}")).map(drop)
    }

    fn request(&mut self, command: u8) -> Result<Request, Error> {
        let family = match self.family {
            Some(family) => family,
            None => generic::family(&mut self.socket, WG_GENL_NAME)?,
        };
        self.family = Some(family);
        Ok(Request::new(family, 0, &[command, WG_GENL_VERSION, 0, 0]))
    }
}

fn write_peer(request: &mut Request, key: &WireguardKey, peer: &WireguardLinkPeer) {
    request.nested(WGDEVICE_A_PEERS, &[], |peers| {
        peers.nested(LIST_ELEMENT, &[], |one| {
            one.attribute(WGPEER_A_PUBLIC_KEY, &key.0)
                .u32(WGPEER_A_FLAGS, WGPEER_F_REPLACE_ALLOWEDIPS);
            if let Some(endpoint) = peer.endpoint {
                one.attribute(WGPEER_A_ENDPOINT, &sockaddr(endpoint));
            }
            one.nested(WGPEER_A_ALLOWEDIPS, &[], |list| {
                for range in &peer.allowed {
                    list.nested(LIST_ELEMENT, &[], |one| write_range(one, range));
                }
            });
        });
    });
}

fn write_range(request: &mut Request, range: &IpNet) {
    let family = if range.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let family = u16::try_from(family).unwrap_or_default();
    request
        .attribute(WGALLOWEDIP_A_FAMILY, &family.to_ne_bytes())
        .address(WGALLOWEDIP_A_IPADDR, range.network())
        .u8(WGALLOWEDIP_A_CIDR_MASK, range.prefix_len());
}

/// Reads one message of a dump. A link with many peers comes in several; a peer with many ranges
/// is repeated.
fn read(message: &Message, link: &mut WireguardLink) {
    let attributes = message.attributes(HEADER_BYTES);
    if let Some(key) = key_of(attributes.find(WGDEVICE_A_PUBLIC_KEY)) {
        link.public_key = Some(key);
    }
    if let Some(port) = attributes.find(WGDEVICE_A_LISTEN_PORT).and_then(u16_of) {
        link.port = port;
    }
    let peers = attributes.nested(WGDEVICE_A_PEERS).unwrap_or(Attributes::new(&[]));
    for (_, bytes) in peers {
        let attributes = Attributes::new(bytes);
        let Some(key) = key_of(attributes.find(WGPEER_A_PUBLIC_KEY)) else { continue };
        let peer = link.peers.entry(key).or_default();
        if let Some(endpoint) = attributes.find(WGPEER_A_ENDPOINT).and_then(endpoint_of) {
            peer.endpoint = Some(endpoint);
        }
        let ranges = attributes.nested(WGPEER_A_ALLOWEDIPS).unwrap_or(Attributes::new(&[]));
        peer.allowed.extend(ranges.filter_map(|(_, bytes)| range_of(bytes)));
    }
}

/// A key of zeros is none.
fn key_of(bytes: Option<&[u8]>) -> Option<WireguardKey> {
    let key: [u8; 32] = bytes?.try_into().ok()?;
    (key != [0; 32]).then_some(WireguardKey(key))
}

fn range_of(bytes: &[u8]) -> Option<IpNet> {
    let attributes = Attributes::new(bytes);
    let address = attributes.address(WGALLOWEDIP_A_IPADDR)?;
    IpNet::new(address, attributes.u8(WGALLOWEDIP_A_CIDR_MASK)?).ok()
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn sockaddr(endpoint: SocketAddr) -> Vec<u8> {
    let family = if endpoint.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = u16::try_from(family).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(endpoint.port().to_be_bytes());
    match endpoint.ip() {
        IpAddr::V4(address) => {
            bytes.extend(address.octets());
            bytes.resize(SOCKADDR_IN_BYTES, 0);
        }
        IpAddr::V6(address) => {
            bytes.extend([0; 4]); // flow label
            bytes.extend(address.octets());
            bytes.resize(SOCKADDR_IN6_BYTES, 0);
        }
    }
    bytes
}

fn endpoint_of(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address: IpAddr = match i32::from(u16_of(bytes)?) {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Ipv4Addr::from(octets).into()
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    fn peer(endpoint: &str, allowed: &[&str]) -> WireguardLinkPeer {
        WireguardLinkPeer {
            endpoint: Some(endpoint.parse().expect("an endpoint")),
            allowed: allowed.iter().map(|range| range.parse().expect("a range")).collect(),
        }
    }

    fn as_answer(request: &Request) -> Message {
        let payload = request.finish(1, 0)[message::HEADER_BYTES..].to_vec();
        Message { kind: 0, payload }
    }

    #[test]
    fn what_is_written_to_a_link_is_read_back() {
        let one = peer("172.30.0.3:51820", &["10.244.2.0/24", "172.30.0.3/32"]);
        let other = peer("[fd00::4]:51821", &["fd00:10:244:3::/64", "fd00::4/128"]);
        let mut expected = WireguardLink { port: 51820, ..WireguardLink::default() };
        expected.public_key = Some(WireguardKey([9; 32]));
        let mut link = WireguardLink::default();
        for (number, peer) in [(1, one), (2, other)] {
            let mut request = Request::new(0, 0, &[0; HEADER_BYTES]);
            request
                .attribute(WGDEVICE_A_PUBLIC_KEY, &[9; 32])
                .attribute(WGDEVICE_A_LISTEN_PORT, &51820_u16.to_ne_bytes());
            write_peer(&mut request, &WireguardKey([number; 32]), &peer);
            read(&as_answer(&request), &mut link);
            expected.peers.insert(WireguardKey([number; 32]), peer);
        }
        assert_eq!(link, expected);
    }

    #[test]
    fn a_peer_that_is_repeated_gathers_its_ranges() {
        let mut link = WireguardLink::default();
        for range in ["10.244.2.0/24", "172.30.0.3/32"] {
            let mut request = Request::new(0, 0, &[0; HEADER_BYTES]);
            write_peer(&mut request, &WireguardKey([1; 32]), &peer("172.30.0.3:1", &[range]));
            read(&as_answer(&request), &mut link);
        }
        assert_eq!(link.peers[&WireguardKey([1; 32])].allowed.len(), 2);
    }

    #[test]
    fn endpoints_are_the_kernels_socket_addresses() {
        let v4 = sockaddr("172.30.0.3:51820".parse().expect("an endpoint"));
        assert_eq!(v4, [2, 0, 0xca, 0x6c, 172, 30, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        let v6 = sockaddr("[fd00::3]:51820".parse().expect("an endpoint"));
        assert_eq!((v6.len(), &v6[..4], v6[23]), (28, &[10, 0, 0xca, 0x6c][..], 3));
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_panic(
            payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)
        ) {
            read(&Message { kind: 0, payload: payload.clone() }, &mut WireguardLink::default());
            let _ = endpoint_of(&payload);
        }
    }
}
