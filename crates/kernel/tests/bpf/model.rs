//! What `bpf/forward.c` shall do with a frame of a pod, said once more in plain Rust, without a
//! look at the program: whole addresses, slices, and a checksum that is computed anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::Reason;
use ipnet::IpNet;

pub type Mac = [u8; 6];

/// What the program knows.
pub struct Scene {
    /// The sender.
    pub mac: Mac,
    pub gateway: Mac,
    pub addresses: Vec<IpAddr>,
    pub extra_sources: Vec<IpNet>,
    pub checked: bool,
    pub via_stack: bool,
    /// Pods of this node, the sender among them.
    pub pods: BTreeMap<IpAddr, Neighbour>,
    pub remotes: Vec<(IpNet, RemoteWay)>,
}

pub struct Neighbour {
    pub mac: Mac,
    pub gateway: Mac,
    pub mtu: usize,
    pub via_stack: bool,
    pub is_sender: bool,
}

pub enum RemoteWay {
    Stack,
    Tunnel { mac: Mac, own: Mac, mtu: usize },
    Direct { mtu: usize },
}

/// What became of a frame: the reason that was counted, and the frame as it goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Fate {
    pub reason: Reason,
    pub frame: Vec<u8>,
}

struct Packet {
    source: IpAddr,
    destination: IpAddr,
    time_to_live: u8,
    protocol: u8,
    payload: usize,
    plain: bool,
    later_fragment: bool,
}

/// ICMP, TCP, UDP, ICMPv6.
const FORWARDED_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];
const EXTENSION_HEADERS: [u8; 6] = [0, 43, 44, 51, 60, 135];

pub fn from_pod(scene: &Scene, frame: &[u8]) -> Fate {
    let same = |reason| Fate { reason, frame: frame.to_vec() };
    let refuse = |reason| same(if scene.checked { reason } else { Reason::StackOther });
    if scene.checked && frame[6..12] != scene.mac {
        return same(Reason::DropSourceMac);
    }
    let packet = match u16::from_be_bytes([frame[12], frame[13]]) {
        0x8100 | 0x88a8 => return refuse(Reason::DropVlan),
        0x0806 if scene.checked && !is_honest_arp(scene, &frame[14..]) => {
            return same(Reason::DropArp);
        }
        0x0800 => read_ipv4(&frame[14..]),
        0x86dd => read_ipv6(&frame[14..]),
        _ => return same(Reason::StackOther),
    };
    let Some(mut packet) = packet else { return refuse(Reason::DropHeaders) };
    if scene.checked
        && let Some(reason) = judge(scene, &mut packet, &frame[14..])
    {
        return same(reason);
    }
    let is_forwarded = FORWARDED_PROTOCOLS.contains(&packet.protocol) && packet.plain;
    if !is_forwarded || packet.destination.is_multicast() || is_class_e(packet.destination) {
        return same(Reason::StackOther);
    }
    if scene.via_stack {
        return same(Reason::StackFlagged);
    }
    forward(scene, &packet, frame)
}

fn forward(scene: &Scene, packet: &Packet, frame: &[u8]) -> Fate {
    let same = |reason| Fate { reason, frame: frame.to_vec() };
    let routed = frame[..6] == scene.gateway;
    let bytes = frame.len() - 14;
    if let Some(pod) = scene.pods.get(&packet.destination) {
        return match () {
            () if !routed && frame[..6] != pod.mac => same(Reason::StackOther),
            () if pod.via_stack => same(Reason::StackFlagged),
            () if pod.is_sender => same(Reason::StackOther),
            () if bytes > pod.mtu => same(Reason::StackTooBig),
            () if !routed => same(Reason::ToPod),
            () if packet.time_to_live <= 1 => same(Reason::StackTimeToLive),
            () => {
                let frame = next_hop(frame, Some((pod.mac, pod.gateway)));
                Fate { reason: Reason::ToPod, frame }
            }
        };
    }
    let remote = scene.remotes.iter().filter(|(range, _)| range.contains(&packet.destination));
    let Some((_, way)) = remote.max_by_key(|(range, _)| range.prefix_len()) else {
        return same(Reason::StackUnknown);
    };
    let (mtu, macs, reason) = match way {
        RemoteWay::Stack => return same(Reason::StackUnknown),
        RemoteWay::Tunnel { mac, own, mtu } => (*mtu, Some((*mac, *own)), Reason::ToTunnel),
        RemoteWay::Direct { mtu } => (*mtu, None, Reason::ToNextHop),
    };
    match () {
        () if !routed => same(Reason::StackOther),
        () if bytes > mtu => same(Reason::StackTooBig),
        () if packet.time_to_live <= 1 => same(Reason::StackTimeToLive),
        () => Fate { reason, frame: next_hop(frame, macs) },
    }
}

/// One hop less, with a checksum of all words where there was a right one.
fn next_hop(frame: &[u8], macs: Option<(Mac, Mac)>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some((destination, source)) = macs {
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
    }
    if frame[12..14] == [0x08, 0x00] {
        frame[14 + 8] -= 1;
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[14 + 7] -= 1;
    }
    frame
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits")
}

fn is_honest_arp(scene: &Scene, arp: &[u8]) -> bool {
    if arp.len() < 28 || arp[..6] != [0, 1, 8, 0, 6, 4] || arp[8..14] != scene.mac {
        return false;
    }
    let sender = Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]);
    let is_probe = sender.is_unspecified() && arp[6..8] == [0, 1];
    is_probe || is_own(scene, sender.into())
}

fn is_own(scene: &Scene, address: IpAddr) -> bool {
    let link_local = |address: Ipv6Addr| {
        let [a, b, c, d, e, f] = scene.mac;
        let own = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        address.octets() == own
    };
    !address.is_unspecified()
        && (scene.addresses.contains(&address)
            || scene.extra_sources.iter().any(|range| range.contains(&address))
            || matches!(address, IpAddr::V6(address) if link_local(address)))
}

fn is_class_e(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[0] >= 240)
}

fn read_ipv4(packet: &[u8]) -> Option<Packet> {
    let header = packet.get(..20)?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_bytes < 20 {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let address = |at: usize| -> IpAddr {
        Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
    };
    Some(Packet {
        source: address(12),
        destination: address(16),
        time_to_live: header[8],
        protocol: header[9],
        payload: header_bytes,
        plain: header_bytes == 20 && fragment & 0x3fff == 0,
        later_fragment: fragment & 0x1fff != 0,
    })
}

fn read_ipv6(packet: &[u8]) -> Option<Packet> {
    let header = packet.get(..40)?;
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes");
        Ipv6Addr::from(octets).into()
    };
    (header[0] >> 4 == 6).then(|| Packet {
        source: address(8),
        destination: address(24),
        time_to_live: header[7],
        protocol: header[6],
        payload: 40,
        plain: !EXTENSION_HEADERS.contains(&header[6]),
        later_fragment: false,
    })
}

/// Why a packet of this pod is dropped, if it is.
fn judge(scene: &Scene, packet: &mut Packet, bytes: &[u8]) -> Option<Reason> {
    let own = is_own(scene, packet.source);
    let is_ipv6 = packet.source.is_ipv6();
    let has_none_yet = is_ipv6 && packet.source.is_unspecified();
    if !own && !has_none_yet {
        return Some(Reason::DropSourceAddress);
    }
    if is_ipv6 && !skip_headers(packet, bytes) {
        return Some(Reason::DropHeaders);
    }
    if is_ipv6 && packet.protocol == 58 && !packet.later_fragment {
        return judge_icmpv6(scene, packet, bytes);
    }
    if !own {
        return Some(Reason::DropSourceAddress);
    }
    if packet.protocol == 17 && !packet.later_fragment {
        let Some(ports) = bytes.get(packet.payload..packet.payload + 4) else {
            return Some(Reason::DropHeaders);
        };
        let answers = [[0, 67, 0, 68], [2, 35, 2, 34]];
        return answers.iter().any(|answer| answer == ports).then_some(Reason::DropDhcp);
    }
    None
}

fn skip_headers(packet: &mut Packet, bytes: &[u8]) -> bool {
    for _ in 0..8 {
        if !EXTENSION_HEADERS.contains(&packet.protocol) {
            return true;
        }
        let Some(header) = bytes.get(packet.payload..packet.payload + 8) else { return false };
        let length = usize::from(header[1]);
        packet.payload += match packet.protocol {
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        let offset = u16::from_be_bytes([header[2], header[3]]) & 0xfff8;
        packet.later_fragment |= packet.protocol == 44 && offset != 0;
        packet.protocol = header[0];
        if packet.later_fragment {
            return true;
        }
    }
    !EXTENSION_HEADERS.contains(&packet.protocol)
}

fn judge_icmpv6(scene: &Scene, packet: &mut Packet, bytes: &[u8]) -> Option<Reason> {
    let unspecified = packet.source.is_unspecified();
    let Some(&kind) = bytes.get(packet.payload) else { return Some(Reason::DropHeaders) };
    match kind {
        134 | 137 => Some(Reason::DropRouter),
        131 | 132 | 143 => {
            packet.plain = false;
            None
        }
        135 | 136 => {
            packet.plain = false;
            let Some(message) = bytes.get(packet.payload..packet.payload + 24) else {
                return Some(Reason::DropHeaders);
            };
            let target: [u8; 16] = message[8..].try_into().expect("16 bytes");
            let asks = kind == 135 && !unspecified;
            (!asks && !is_own(scene, Ipv6Addr::from(target).into()))
                .then_some(Reason::DropNeighbour)
        }
        _ => unspecified.then_some(Reason::DropSourceAddress),
    }
}
