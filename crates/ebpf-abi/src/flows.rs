//! The flows that `bpf/service_nat.c` translates, packet by packet, and what it knows of links.
//!
//! Destinations are translated where a packet enters the node's stack, sources where it leaves it,
//! as netfilter does. In between, and so for routing, reverse-path filters, connection tracking
//! and policy, a packet has its true source and its true destination. Client C, frontend V,
//! endpoint E and, where the source is masqueraded, the node's N:
//!
//! ```text
//! enters C→V   destination becomes E      leaves C→E   source becomes N (or stays)
//! leaves E→C   source becomes V          enters E→N   destination becomes C (or is C)
//! ```
//!
//! Each of the four is one entry, found by what the packet says there. The first is the flow
//! itself: it knows the state, and the others hold only while it leads where they come from.
//!
//! C may talk to E itself at the same time, also from the same port. Between entering and leaving
//! nothing else tells the two apart, so packets of masqueraded flows carry [`NAT_MARK`] there, and
//! leave by entries of their own ([`MASQUERADED`]).

use crate::layout::{Layout, abi_struct};

/// Number of this layout. Flows of another layout are forgotten: their pins live in another
/// directory.
pub const FLOWS_VERSION: u32 = 1;

/// Entries of the map of flows unless the loader says otherwise: two a flow, four a masqueraded
/// one. The longest unused go first where it is full.
pub const FLOWS_DEFAULT: u32 = 131_072;
/// How many tables of flows programs may look into, each of them at one of the places below.
pub const FLOW_TABLES: u32 = 2;
/// The table of flows that all are written to.
pub const FLOWS_PRESENT: u32 = 0;
/// While one of another size takes over: the table that it takes over from, which nobody writes to.
/// Whoever finds a flow there alone brings it along.
pub const FLOWS_FORMER: u32 = 1;
/// Most links that packets are translated on.
pub const NAT_LINKS_MAX: u32 = 8192;
/// How many ports are tried for a masqueraded flow before it is refused.
pub const PORT_TRIES_MAX: u32 = 32;
/// How many endpoints are tried when the client's port already leads to one by another frontend. A
/// client that is dropped repeats its first segment, and so tries again.
pub const CHOICES_MAX: u32 = 2;

/// [`FlowKey::side`]: entering the node's stack.
pub const ENTERING: u32 = 0;
/// [`FlowKey::side`]: leaving it.
pub const LEAVING: u32 = 1;
/// [`FlowKey::side`] is this more for the later fragments of a packet, whose identification
/// stands in the place of the ports.
pub const FRAGMENTS: u32 = 2;

/// [`FlowKey::side`] has this bit for what leaves of a masqueraded flow.
pub const MASQUERADED: u32 = 4;

/// Bit of a packet's mark between entering and leaving: it is of a masqueraded flow.
pub const NAT_MARK: u32 = 0x0000_2000;

/// [`Flow::flags`]: the source becomes an address of this node.
pub const FLOW_MASQUERADED: u32 = 1;
/// [`Flow::flags`]: an entry of the way back; not the flow itself.
pub const FLOW_BACK: u32 = 2;
/// [`Flow::flags`]: the endpoint has the port that the client asked for.
pub const FLOW_SAME_PORT: u32 = 4;
/// [`Flow::flags`]: an answer has been seen.
pub const FLOW_ANSWERED: u32 = 8;
/// [`Flow::flags`]: the client has sent its last (FIN).
pub const FLOW_FIN_SENT: u32 = 16;
/// [`Flow::flags`]: the endpoint has sent its last (FIN).
pub const FLOW_FIN_ANSWERED: u32 = 32;
/// [`Flow::flags`]: one of both has reset the connection, and nothing followed.
pub const FLOW_RESET: u32 = 64;
/// [`Flow::flags`]: handed on to the endpoint's node, which answers the client itself
/// (`bpf/direct.h`). Of its leaving entry `other` is the frontend, and there is no new source.
pub const FLOW_DIRECT: u32 = 128;
/// [`Flow::flags`]: such a flow at the endpoint's node.
pub const FLOW_RETURN: u32 = 256;

/// Seconds after its last packet that a connection is known (kube-proxy's value).
pub const TCP_ESTABLISHED_S: u32 = 86_400;
/// Seconds that one is known which one side has closed (kube-proxy's value).
pub const TCP_HALF_CLOSED_S: u32 = 3600;
/// Seconds that one is known which nobody has answered.
pub const TCP_UNANSWERED_S: u32 = 60;
/// Seconds that one is known after its end, for what is still on its way.
pub const TCP_CLOSED_S: u32 = 60;
/// Seconds after its last packet that a UDP flow is known (nf_conntrack's value).
pub const UDP_ANSWERED_S: u32 = 120;
/// Seconds that one is known which nobody has answered.
pub const UDP_UNANSWERED_S: u32 = 30;
/// Seconds after its last packet that an SCTP association is known: seven heartbeats.
pub const SCTP_S: u32 = 210;

/// [`NatLink::flags`]: frames have a header of Ethernet.
pub const NAT_LINK_ETHERNET: u32 = 1;
/// [`NatLink::flags`]: the node's end of a pod's link. Who comes by another one is outside.
pub const NAT_LINK_POD: u32 = 2;
/// [`NatLink::flags`]: other nodes' packets to pods come by it, also what they hand on.
pub const NAT_LINK_NODES: u32 = 4;

/// [`NatSettings::flags`]: flows that are known go on, and no new ones are taken: another backend
/// takes them.
pub const NAT_DRAINING: u32 = 1;

abi_struct! {
    /// What a packet says of itself on one side.
    FlowKey {
        /// Its source.
        source: [u8; 16],
        /// Its destination.
        destination: [u8; 16],
        /// Its source port; of a later fragment the first half of its identification.
        source_port: u16,
        /// Its destination port; of a later fragment the second half.
        destination_port: u16,
        /// The transport protocol's number.
        protocol: u8,
        /// [`ENTERING`] or [`LEAVING`], and [`FRAGMENTS`], [`MASQUERADED`].
        side: u8,
        /// Nothing.
        zero: [u8; 2],
    }
}

abi_struct! {
    /// What becomes of such a packet.
    Flow {
        /// Its new destination when it enters, its new source when it leaves.
        address: [u8; 16],
        /// Of the flow itself: the node's address that it is masqueraded with. Of the others of a
        /// masqueraded flow: the frontend.
        other: [u8; 16],
        /// The port of `address`. Of a leaving entry 0: none is chosen yet.
        port: u16,
        /// The port of `other`; 0: none is chosen yet.
        other_port: u16,
        /// `FLOW_…`.
        flags: u32,
        /// The view of the Service that the endpoint was chosen from.
        id: u32,
        /// When it was used last, in seconds since the machine started.
        used_s: u32,
    }
}

abi_struct! {
    /// A link that packets are translated on. Its key is the link's index.
    NatLink {
        /// [`NAT_LINK_ETHERNET`], [`NAT_LINK_POD`], [`NAT_LINK_NODES`].
        flags: u32,
        /// The address that flows are masqueraded with which leave by it, or zero.
        ipv4: [u8; 4],
        /// The same of IPv6.
        ipv6: [u8; 16],
    }
}

abi_struct! {
    /// What holds for all flows: the only element of an array.
    NatSettings {
        /// [`NAT_DRAINING`].
        flags: u32,
        /// The first of the ports that flows are masqueraded with.
        port_first: u32,
        /// How many they are. No other program of the node sends from them.
        port_count: u32,
    }
}

abi_struct! {
    /// A key that nobody but the programs knows, drawn by chance: what a flow's first port is
    /// computed with (RFC 6056 section 3.3.3). All zero: none is drawn yet.
    NatSecret {
        /// The first half.
        first: u64,
        /// The second half.
        second: u64,
    }
}

/// All structures, in the order of the header.
pub(crate) const LAYOUTS: [&Layout; 5] =
    [&FlowKey::LAYOUT, &Flow::LAYOUT, &NatLink::LAYOUT, &NatSettings::LAYOUT, &NatSecret::LAYOUT];

/// Numbers that both sides use, by their names in C.
pub(crate) const NUMBERS: [(&str, u32); 33] = [
    ("FLOWS_DEFAULT", FLOWS_DEFAULT),
    ("FLOW_TABLES", FLOW_TABLES),
    ("FLOWS_PRESENT", FLOWS_PRESENT),
    ("FLOWS_FORMER", FLOWS_FORMER),
    ("NAT_LINKS_MAX", NAT_LINKS_MAX),
    ("PORT_TRIES_MAX", PORT_TRIES_MAX),
    ("CHOICES_MAX", CHOICES_MAX),
    ("ENTERING", ENTERING),
    ("LEAVING", LEAVING),
    ("FRAGMENTS", FRAGMENTS),
    ("MASQUERADED", MASQUERADED),
    ("NAT_MARK", NAT_MARK),
    ("FLOW_MASQUERADED", FLOW_MASQUERADED),
    ("FLOW_BACK", FLOW_BACK),
    ("FLOW_SAME_PORT", FLOW_SAME_PORT),
    ("FLOW_ANSWERED", FLOW_ANSWERED),
    ("FLOW_FIN_SENT", FLOW_FIN_SENT),
    ("FLOW_FIN_ANSWERED", FLOW_FIN_ANSWERED),
    ("FLOW_RESET", FLOW_RESET),
    ("FLOW_DIRECT", FLOW_DIRECT),
    ("FLOW_RETURN", FLOW_RETURN),
    ("TCP_ESTABLISHED_S", TCP_ESTABLISHED_S),
    ("TCP_HALF_CLOSED_S", TCP_HALF_CLOSED_S),
    ("TCP_UNANSWERED_S", TCP_UNANSWERED_S),
    ("TCP_CLOSED_S", TCP_CLOSED_S),
    ("UDP_ANSWERED_S", UDP_ANSWERED_S),
    ("UDP_UNANSWERED_S", UDP_UNANSWERED_S),
    ("SCTP_S", SCTP_S),
    ("NAT_LINK_ETHERNET", NAT_LINK_ETHERNET),
    ("NAT_LINK_POD", NAT_LINK_POD),
    ("NAT_LINK_NODES", NAT_LINK_NODES),
    ("NAT_DRAINING", NAT_DRAINING),
    ("NAT_REASONS", NAT_REASONS.len() as u32),
];

/// What became of packets of Services: the number of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatReason {
    /// A new flow was led to an endpoint.
    FlowNew,
    /// Refused: the Service has no endpoint.
    Refused,
    /// Dropped: only other nodes have an endpoint for this client, or its source may not come.
    Ignored,
    /// Dropped: no port of the node was free for a masqueraded flow.
    DropPorts,
    /// Dropped: the link that a masqueraded flow leaves by has no address of its family.
    DropAddress,
    /// Dropped: the client's port leads to each endpoint that was tried by another frontend already.
    DropTaken,
    /// Dropped: SCTP to an endpoint of another port, whose checksum covers the whole packet.
    DropSctp,
    /// Dropped: cut off within its headers.
    DropCut,
    /// Dropped: said to be handed on by a node of the cluster, and is not, or not as one would.
    DropForged,
    /// Dropped: too large to be handed on; the sender was told.
    DropSize,
}

/// All of them with their names in C and in metrics, in the order of their counters.
pub const NAT_REASONS: [(NatReason, &str); 10] = [
    (NatReason::FlowNew, "nat_flow_new"),
    (NatReason::Refused, "nat_refused"),
    (NatReason::Ignored, "nat_ignored"),
    (NatReason::DropPorts, "nat_drop_ports"),
    (NatReason::DropAddress, "nat_drop_address"),
    (NatReason::DropTaken, "nat_drop_taken"),
    (NatReason::DropSctp, "nat_drop_sctp"),
    (NatReason::DropCut, "nat_drop_cut"),
    (NatReason::DropForged, "nat_drop_forged"),
    (NatReason::DropSize, "nat_drop_size"),
];

impl NatReason {
    /// The number of its counter.
    pub fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_in_the_order_of_their_numbers() {
        for (number, (reason, _)) in NAT_REASONS.iter().enumerate() {
            assert_eq!(reason.index() as usize, number);
        }
    }
}
