//! What the eBPF programs below `bpf/` and the loader in `kernel` share: the keys and values of
//! the maps, and their flags and numbers. [`c_header`] says the same in C, with an assertion for
//! each size and offset, so that a program that was compiled against another layout does not
//! compile at all.
//!
//! Addresses have 16 bytes; one of IPv4 is written as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2), so
//! that both families share each map.

pub mod flows;
pub mod handshakes;
mod layout;
pub mod names;
pub mod services;

use std::net::IpAddr;

use layout::{Layout, abi_struct};

/// Number of this layout. Pins of different numbers live in different directories: a program
/// never meets the maps of another layout.
pub const VERSION: u32 = 1;

/// Most pods of one node that are forwarded; what comes later goes by the kernel's own path.
pub const PODS_MAX: u32 = 4096;
/// Most pod links of one node.
pub const LINKS_MAX: u32 = 4096;
/// Most source ranges of all links of one node beyond each link's first two addresses.
pub const SOURCES_MAX: u32 = 16_384;
/// Most pod ranges of other nodes.
pub const REMOTES_MAX: u32 = 16_384;
/// Most connections between pods of one node that are short-cut at the socket, both ends counted.
pub const SOCKETS_MAX: u32 = 65_536;
/// Bits of an address in the keys.
pub const ADDRESS_BITS: u32 = 128;
/// Bits of a [`SourceKey`] before the address.
pub const SOURCE_LINK_BITS: u32 = 32;

/// [`Link::flags`]: sources other than the pod's own are dropped.
pub const ANTI_SPOOFING: u32 = 1;
/// [`Link::flags`], [`Pod::flags`]: packets from and to this pod take the kernel's own path,
/// because rules, address translation or queues there have a say. The place where network policy
/// will decide; until then any pod with a policy carries this flag, and the policy holds.
pub const VIA_STACK: u32 = 2;
/// [`Link::flags`]: the map of sources has more for this link.
pub const EXTRA_SOURCES: u32 = 4;
/// [`Settings::flags`]: tunnel packets that arrive are judged.
pub const TUNNEL: u32 = 1;
/// [`Remote::kind`]: by the kernel's own path; known only so that the node's tunnel packets can be
/// judged.
pub const REMOTE_STACK: u32 = 0;
/// [`Remote::kind`]: by the VXLAN link, to the MAC address of the other node's tunnel link.
pub const REMOTE_TUNNEL: u32 = 1;
/// [`Remote::kind`]: by the uplink, to the next hop.
pub const REMOTE_DIRECT: u32 = 2;
/// [`Remote::kind`]: no pods, but nodes, or the network of nodes. Any node may speak for them in its
/// tunnel packets: for itself, when it answers a pod, and for machines whose packets to pods it was
/// given to route.
pub const REMOTE_NODE: u32 = 3;

abi_struct! {
    /// A node's end of a pod's link. Its key is the link's index.
    Link {
        /// [`ANTI_SPOOFING`], [`VIA_STACK`], [`EXTRA_SOURCES`].
        flags: u32,
        /// The pod's first IPv4 address, or zero.
        ipv4: [u8; 4],
        /// The pod's first IPv6 address, or zero.
        ipv6: [u8; 16],
        /// The MAC address that the pod sends from.
        mac: [u8; 6],
        /// The MAC address that the pod sends to what is not its neighbour.
        gateway_mac: [u8; 6],
    }
}

abi_struct! {
    /// A further source of a link: key of a map by longest prefix.
    SourceKey {
        /// [`SOURCE_LINK_BITS`] and the bits of the address that count.
        prefix_bits: u32,
        /// Index of the node's end of the pod's link.
        link_index: u32,
        /// The range's address.
        address: [u8; 16],
    }
}

abi_struct! {
    /// A pod of this node. Its key is one of its addresses.
    Pod {
        /// Index of the node's end of its link.
        link_index: u32,
        /// [`VIA_STACK`].
        flags: u32,
        /// MTU in bytes of its link.
        mtu: u32,
        /// Its MAC address.
        mac: [u8; 6],
        /// The MAC address that packets from elsewhere come to it from.
        gateway_mac: [u8; 6],
    }
}

abi_struct! {
    /// Pods of another node: key of a map by longest prefix.
    RemoteKey {
        /// The bits of the address that count.
        prefix_bits: u32,
        /// The range's address.
        address: [u8; 16],
    }
}

abi_struct! {
    /// The way to the pods of another node.
    Remote {
        /// [`REMOTE_STACK`], [`REMOTE_TUNNEL`], [`REMOTE_DIRECT`] or [`REMOTE_NODE`].
        kind: u32,
        /// Index of the link that packets leave by.
        link_index: u32,
        /// MTU in bytes of the way.
        mtu: u32,
        /// Where the other node's tunnel packets come from.
        node: [u8; 16],
        /// The next hop of [`REMOTE_DIRECT`].
        next_hop: [u8; 16],
        /// MAC address of its tunnel link.
        mac: [u8; 6],
        /// MAC address of this node's tunnel link.
        own_mac: [u8; 6],
    }
}

abi_struct! {
    /// What holds for the whole node: the only element of an array.
    Settings {
        /// [`TUNNEL`].
        flags: u32,
        /// VXLAN network identifier of the tunnel.
        vni: u32,
        /// UDP port of the tunnel.
        port: u32,
    }
}

abi_struct! {
    /// One end of a TCP connection, as its own socket names it.
    SocketKey {
        /// Its own address.
        local: [u8; 16],
        /// The other end's address.
        remote: [u8; 16],
        /// Its own port.
        local_port: u32,
        /// The other end's port.
        remote_port: u32,
    }
}

/// All structures, in the order of the header.
const LAYOUTS: [&Layout; 7] = [
    &Link::LAYOUT,
    &SourceKey::LAYOUT,
    &Pod::LAYOUT,
    &RemoteKey::LAYOUT,
    &Remote::LAYOUT,
    &Settings::LAYOUT,
    &SocketKey::LAYOUT,
];

/// Numbers that both sides use, by their names in C.
const NUMBERS: [(&str, u32); 16] = [
    ("PODS_MAX", PODS_MAX),
    ("LINKS_MAX", LINKS_MAX),
    ("SOURCES_MAX", SOURCES_MAX),
    ("REMOTES_MAX", REMOTES_MAX),
    ("SOCKETS_MAX", SOCKETS_MAX),
    ("ADDRESS_BITS", ADDRESS_BITS),
    ("SOURCE_LINK_BITS", SOURCE_LINK_BITS),
    ("ANTI_SPOOFING", ANTI_SPOOFING),
    ("VIA_STACK", VIA_STACK),
    ("EXTRA_SOURCES", EXTRA_SOURCES),
    ("TUNNEL", TUNNEL),
    ("REMOTE_STACK", REMOTE_STACK),
    ("REMOTE_TUNNEL", REMOTE_TUNNEL),
    ("REMOTE_DIRECT", REMOTE_DIRECT),
    ("REMOTE_NODE", REMOTE_NODE),
    ("REASONS", REASONS.len() as u32),
];

/// What became of a packet: the number of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Given to a pod of this node.
    ToPod,
    /// Given to the tunnel link.
    ToTunnel,
    /// Given to the uplink for a next hop.
    ToNextHop,
    /// To the kernel's path: the destination is no pod that we know a way to.
    StackUnknown,
    /// To the kernel's path: [`VIA_STACK`].
    StackFlagged,
    /// To the kernel's path, which answers that the time to live is used up.
    StackTimeToLive,
    /// To the kernel's path, which answers that the packet is too big, or cuts it.
    StackTooBig,
    /// To the kernel's path: not plain unicast IP (ARP, options, fragments, multicast).
    StackOther,
    /// Dropped: another source MAC address than the pod's.
    DropSourceMac,
    /// Dropped: another source address than the pod's.
    DropSourceAddress,
    /// Dropped: ARP with another sender than the pod.
    DropArp,
    /// Dropped: neighbour discovery for an address that is not the pod's.
    DropNeighbour,
    /// Dropped: a router advertisement or a redirect of a pod.
    DropRouter,
    /// Dropped: a DHCP server's answer of a pod.
    DropDhcp,
    /// Dropped: a frame of a pod with a VLAN tag.
    DropVlan,
    /// Dropped: more IPv6 extension headers than are read, or cut off within the headers.
    DropHeaders,
    /// Dropped: a tunnel packet of a node for pods that are not its own.
    DropTunnel,
}

/// All reasons with their names in C and in metrics, in the order of their counters.
pub const REASONS: [(Reason, &str); 17] = [
    (Reason::ToPod, "to_pod"),
    (Reason::ToTunnel, "to_tunnel"),
    (Reason::ToNextHop, "to_next_hop"),
    (Reason::StackUnknown, "stack_unknown"),
    (Reason::StackFlagged, "stack_flagged"),
    (Reason::StackTimeToLive, "stack_time_to_live"),
    (Reason::StackTooBig, "stack_too_big"),
    (Reason::StackOther, "stack_other"),
    (Reason::DropSourceMac, "drop_source_mac"),
    (Reason::DropSourceAddress, "drop_source_address"),
    (Reason::DropArp, "drop_arp"),
    (Reason::DropNeighbour, "drop_neighbour"),
    (Reason::DropRouter, "drop_router"),
    (Reason::DropDhcp, "drop_dhcp"),
    (Reason::DropVlan, "drop_vlan"),
    (Reason::DropHeaders, "drop_headers"),
    (Reason::DropTunnel, "drop_tunnel"),
];

impl Reason {
    /// The number of its counter.
    pub fn index(self) -> u32 {
        self as u32
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        REASONS.iter().find(|(reason, _)| *reason == self).map_or("", |(_, name)| name)
    }
}

/// An address as the maps' keys hold it.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The C header of all this.
pub fn c_header() -> String {
    let mut text = String::from(
        "/* Written by the build from crates/ebpf-abi: change it there. */\n#pragma once\n\n",
    );
    let numbers = NUMBERS.iter().chain(&services::NUMBERS).chain(&flows::NUMBERS);
    for (name, value) in numbers.chain(&names::NUMBERS).chain(&handshakes::NUMBERS) {
        text.push_str(&format!("#define {name} {value}u\n"));
    }
    text.push_str("\nenum reason {\n");
    for (reason, name) in REASONS {
        text.push_str(&format!("\t{} = {},\n", name.to_ascii_uppercase(), reason.index()));
    }
    text.push_str("};\n");
    text.push_str("\nenum nat_reason {\n");
    for (reason, name) in flows::NAT_REASONS {
        text.push_str(&format!("\t{} = {},\n", name.to_ascii_uppercase(), reason.index()));
    }
    text.push_str("};\n");
    text.push_str("\nenum name_reason {\n");
    for (reason, name) in names::NAME_REASONS {
        text.push_str(&format!("\tNAME_{} = {},\n", name.to_ascii_uppercase(), reason.index()));
    }
    text.push_str("};\n");
    for layout in layouts() {
        layout.write_c(&mut text);
    }
    text
}

fn layouts() -> impl Iterator<Item = &'static Layout> {
    let all = LAYOUTS.into_iter().chain(services::LAYOUTS).chain(flows::LAYOUTS);
    all.chain(names::LAYOUTS).chain(handshakes::LAYOUTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_holes_which_the_kernel_would_compare_as_part_of_a_key() {
        for layout in layouts() {
            let mut end = 0;
            for field in layout.fields {
                assert_eq!(field.offset, end, "a hole before {}.{}", layout.name, field.name);
                end += field.size;
            }
            assert_eq!(end, layout.size, "a hole at the end of {}", layout.name);
        }
    }

    #[test]
    fn bytes_read_back_as_they_were_written() {
        let remote = Remote {
            kind: REMOTE_DIRECT,
            link_index: 7,
            mtu: 1500,
            node: address_bytes("192.0.2.1".parse().expect("an address")),
            next_hop: [7; 16],
            mac: [1, 2, 3, 4, 5, 6],
            own_mac: [6, 5, 4, 3, 2, 1],
        };
        let bytes = remote.to_bytes();
        assert_eq!(Remote::from_bytes(&bytes), remote);
        assert_eq!(bytes[4..8], 7u32.to_ne_bytes());
        assert_eq!(bytes[12..28], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1]);
    }

    #[test]
    fn counters_stand_in_the_order_of_their_reasons() {
        for (index, (reason, name)) in REASONS.iter().enumerate() {
            assert_eq!(reason.index() as usize, index, "{name}");
            assert_eq!(reason.name(), *name);
        }
    }

    #[test]
    fn the_header_asserts_each_offset() {
        let header = c_header();
        for layout in LAYOUTS.iter().chain(&services::LAYOUTS).chain(&flows::LAYOUTS) {
            for field in layout.fields {
                let assertion = format!("offsetof(struct {}, {})", layout.c_name(), field.name);
                assert!(header.contains(&assertion), "{assertion}");
            }
        }
        assert!(header.contains("#define VIA_STACK 2u\n"), "{header}");
        assert!(header.contains("\tTO_POD = 0,\n"), "{header}");
    }
}
