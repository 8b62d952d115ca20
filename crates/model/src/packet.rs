//! One packet and what becomes of it: the words in which oracle, tracers and lab agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::{PortRange, Protocol};

/// The first packet of a flow, seen at one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Where the packet enters this node's network stack.
    pub entry: Entry,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// Where a packet enters a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// From a pod on this node, through its host-side link.
    Pod,
    /// From a process in the node's own network namespace.
    Local,
    /// From the node network: another node's process, or a machine outside the cluster.
    Uplink,
    /// From another node's pod through the tunnel or a direct route.
    Overlay,
}

/// What becomes of a packet at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forwarded or delivered.
    Pass {
        /// Every destination that the flow can get: one is chosen at random.
        destinations: BTreeSet<SocketAddr>,
        /// How the source is translated.
        source: SourceTranslation,
        /// Towards which of them the source port is one of a range; elsewhere it may be any.
        source_ports: BTreeMap<IpAddr, PortRange>,
    },
    /// Refused: a reset for TCP, an ICMP port unreachable otherwise.
    Reject,
    /// Lost without an answer.
    Drop,
}

/// How the source of a passing packet changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceTranslation {
    /// The receiver sees the sender's address.
    Kept,
    /// The receiver sees an address of this node, chosen by the outgoing link.
    Masqueraded,
    /// Masqueraded only towards these destinations (hairpin: a pod that reaches itself).
    MasqueradedTo(BTreeSet<IpAddr>),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Pass { destinations, source, source_ports } => {
                f.write_str("pass to ")?;
                for (index, destination) in destinations.iter().enumerate() {
                    write!(f, "{}{destination}", if index == 0 { "" } else { ", " })?;
                }
                match source {
                    SourceTranslation::Kept => {}
                    SourceTranslation::Masqueraded => f.write_str(", masqueraded")?,
                    SourceTranslation::MasqueradedTo(these) => {
                        write!(f, ", masqueraded towards {these:?}")?;
                    }
                }
                source_ports.iter().try_for_each(|(destination, ports)| {
                    write!(f, ", from ports {ports} towards {destination}")
                })
            }
        }
    }
}
