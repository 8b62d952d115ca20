//! The part of nftables that flatnet uses, as values: printable, comparable, never text to parse.
//!
//! A rule is a list of statements that run from left to right until one does not match. Keys of
//! sets and maps are typed concatenations. The kernel driver turns each statement into netlink
//! expressions; [`super::trace`] interprets those on packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{Family, MacAddress, PortRange};

use super::packed::Elements;
use super::text::text_of;

/// The name of a table, or of a chain, set or map within one.
pub type Name = String;

/// What a table's chains are called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    /// Packets of one family of IP.
    Ip(Family),
    /// Frames that pass through a bridge.
    Bridge,
    /// ARP packets to and from this node.
    Arp,
    /// Packets of both families of IP, in a table of another program; a rule of ours there is about
    /// this one.
    Inet(Family),
}

impl TableFamily {
    /// The family that [`Field::SourceAddress`] and what belongs to it is of. Tables of frames name
    /// the family at each field instead.
    pub fn address_family(self) -> Family {
        match self {
            Self::Ip(family) | Self::Inet(family) => family,
            Self::Bridge | Self::Arp => Family::V4,
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        Self::Ip(family)
    }
}

/// What tells one of our tables from the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: Name,
}

impl TableId {
    /// A table.
    pub fn new(family: impl Into<TableFamily>, name: &str) -> Self {
        Self { family: family.into(), name: name.into() }
    }

    /// The table of Services, masquerade and guards.
    pub fn services(family: Family) -> Self {
        Self::new(family, crate::owned::NFT_TABLE)
    }
}

/// The name of a link as the kernel compares it: filled up with zeros (`IFNAMSIZ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName(pub [u8; 16]);

impl LinkName {
    /// A name; what is longer than any link's is cut, and names none.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self(bytes)
    }
}

/// The values of one key, or of one map entry.
pub type Tuple = Vec<Value>;

/// What one part of a concatenation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    /// An address of that family.
    Address(Family),
    /// A transport protocol number.
    Protocol,
    /// A port.
    Port,
    /// A slot or a class.
    Number,
    /// The name of a link.
    Link,
    /// A link-layer address.
    Mac,
    /// Ports from one to another: the last part of an interval set's key.
    PortRange,
    /// A network: the last part of an interval set's key.
    Network(Family),
}

/// One part of a key or of a map's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An address.
    Address(IpAddr),
    /// A transport protocol number.
    Protocol(u8),
    /// A port.
    Port(u16),
    /// A slot or a class.
    Number(u32),
    /// The name of a link.
    Link(LinkName),
    /// A link-layer address.
    Mac(MacAddress),
    /// Ports from one to another, both included.
    PortRange(u16, u16),
    /// A network: all of its addresses.
    Network(IpNet),
}

/// What a packet, or chance, gives to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The packet's present source address, in a table of its family.
    SourceAddress,
    /// The packet's present destination address, in a table of its family.
    DestinationAddress,
    /// The source address of a packet of that family, in a table that sees frames of any.
    FramedSource(Family),
    /// The link that the packet came in over; what a bridge hands up came in over the bridge.
    Link,
    /// The frame's source.
    EtherSource,
    /// The link-layer address that an ARP packet speaks for (RFC 826).
    ArpSenderMac,
    /// The IPv4 address that an ARP packet speaks for.
    ArpSenderAddress,
    /// The IPv4 address that an ARP packet is about.
    ArpTargetAddress,
    /// The target of a neighbour solicitation or advertisement (RFC 4861, sections 4.3 and 4.4).
    NeighbourTarget,
    /// The link-layer address in the first option of such a message.
    NeighbourOptionMac,
    /// The transport protocol.
    Protocol,
    /// The transport source port.
    SourcePort,
    /// The transport destination port.
    DestinationPort,
    /// The network that the source of the packet within a tunnel packet belongs to.
    TunnelledSource {
        /// The inner packet's family.
        family: Family,
        /// How many bits of the address tell the network.
        prefix_len: u8,
    },
    /// The network that the source of the packet within an IP-in-IP packet belongs to; both are
    /// of the table's family.
    IpipSource {
        /// How many bits of the address tell the network.
        prefix_len: u8,
    },
    /// A number below `modulus`, by chance.
    Random {
        /// How many numbers there are, at least 1.
        modulus: u32,
    },
}

/// Where the walk goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This base chain is done with the packet.
    Accept,
    /// The packet is lost.
    Drop,
    /// On with a chain, then back.
    Jump(Name),
    /// On with a chain, then as if the present one had ended.
    Goto(Name),
}

/// A state of connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The first packet of a flow.
    New,
    /// It belongs to no flow that could be: out of a TCP window, say.
    Invalid,
    /// A tracked packet whose flow keeps its destination.
    Untranslated,
}

/// What a frame carries, as far as rules ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// Internet Protocol.
    Ip(Family),
    /// Address Resolution Protocol.
    Arp,
}

/// One step of a rule: a condition, or an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The address `field` lies in the range, or outside of it.
    InRange {
        /// Source or destination address.
        field: Field,
        /// The range.
        range: IpNet,
        /// True: only outside of it.
        outside: bool,
    },
    /// The packet did not come in over the loopback link.
    NotFromLoopback,
    /// The packet came in over this link; what a bridge hands up came in over the bridge.
    FromLink(Name),
    /// The packet came in over another link than this one, or over none.
    NotFromLink(Name),
    /// The packet goes out over another link than this one.
    NotToLink(Name),
    /// A VXLAN packet (RFC 7348) to this port, of this network.
    TunnelPacket {
        /// The UDP port.
        port: u16,
        /// The VXLAN network identifier, 24 bits.
        vni: u32,
    },
    /// The packet within a tunnel packet is of this family.
    TunnelledIs(Family),
    /// The frame carries this, without any VLAN tag around it.
    Carries(EtherType),
    /// The frame is for more than one station: broadcast or multicast.
    ToGroup,
    /// An ARP packet about IPv4 over Ethernet, whose fields lie where they are looked for.
    ArpOfIpv4,
    /// The transport protocol is this one.
    ProtocolIs(u8),
    /// The transport protocol is another, extension headers (RFC 8200) read through.
    ProtocolIsNot(u8),
    /// The transport header is in this packet, and its source port is another.
    SourcePortIsNot(u16),
    /// A fragment of a packet, but not its first.
    LaterFragment(Family),
    /// An ICMPv6 message of one of these types.
    Icmpv6Type {
        /// The first of them.
        first: u8,
        /// The last of them.
        last: u8,
    },
    /// What follows the IPv6 header is so long, in bytes.
    PayloadIs(u16),
    /// The first option of a neighbour message has this type, and the length of an Ethernet
    /// address's (RFC 4861, section 4.6.1).
    NeighbourOptionIs(u8),
    /// The destination is an address of this node, as its routes tell.
    ToThisNode,
    /// The transport destination port is this one.
    PortIs(u16),
    /// The flow is in this state.
    StateIs(ConnectionState),
    /// All these mark bits are set.
    HasMark(u32),
    /// The key stands in a set.
    In {
        /// The key.
        key: Vec<Field>,
        /// The set.
        set: Name,
    },
    /// The key does not stand in a set.
    NotIn {
        /// The key.
        key: Vec<Field>,
        /// The set.
        set: Name,
    },
    /// An ICMP echo request of a family (RFC 792, RFC 4443).
    EchoRequest(Family),
    /// The key stands in a map of numbers, with whatever number.
    HasEntry {
        /// The key.
        key: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// The key's class in one map, the class's verdict in another. No match without either.
    Dispatch {
        /// The key.
        key: Vec<Field>,
        /// Key to class.
        classes: Name,
        /// Class to verdict.
        verdicts: Name,
    },
    /// The key's verdict. No match without one.
    VerdictOf {
        /// The key.
        key: Vec<Field>,
        /// Key to verdict.
        map: Name,
    },
    /// Loads the key's endpoint (address and port). No match without one.
    Load {
        /// The key.
        key: Vec<Field>,
        /// Key to endpoint.
        map: Name,
    },
    /// Loads this endpoint.
    LoadEndpoint(SocketAddr),
    /// Puts the packet's source address into a set that packets fill, or renews its time. No match
    /// when the set is full.
    Remember {
        /// Source addresses.
        set: Name,
        /// Seconds without a new connection until the source is forgotten.
        timeout_s: u32,
    },
    /// Sets mark bits.
    SetMark(u32),
    /// Clears mark bits.
    ClearMark(u32),
    /// The packet is not tracked.
    NoTrack,
    /// The packet is tracked in this zone of its own.
    TrackInZone(u16),
    /// The flow goes to the loaded endpoint.
    TranslateDestination,
    /// The flow goes to this address, and keeps its destination port.
    TranslateAddress(IpAddr),
    /// The flow gets an address of the outgoing link as source, and one of these source ports (of
    /// an ICMP echo: identifiers), where they are given.
    Masquerade {
        /// None: any that the kernel chooses.
        ports: Option<PortRange>,
    },
    /// A TCP reset to the sender.
    RejectWithReset,
    /// ICMP port unreachable to the sender.
    RejectWithUnreachable,
    /// A verdict.
    Verdict(Verdict),
}

/// One rule of a chain.
///
/// The kernel keeps the fingerprint as the rule's comment: a fresh process recognises a rule by it
/// without decoding expressions, and two rules are equal when their fingerprints are.
#[derive(Clone, Debug)]
pub struct Rule {
    fingerprint: u64,
    statements: Option<Vec<Statement>>,
}

/// Changes whenever a statement is encoded differently, so that a new version of the program
/// replaces the rules of an old one.
const ENCODING_VERSION: u32 = 1;

impl Rule {
    /// A rule of a table of the family.
    pub fn new(family: impl Into<TableFamily>, statements: Vec<Statement>) -> Self {
        let text = format!("{ENCODING_VERSION} {}", text_of(family.into(), &statements));
        Self { fingerprint: fnv1a(text.as_bytes()), statements: Some(statements) }
    }

    /// A rule that was read back from a kernel, where only its fingerprint is known; 0 for a rule
    /// that we did not write, which equals none of ours.
    pub fn observed(fingerprint: u64) -> Self {
        Self { fingerprint, statements: None }
    }

    /// What tells this rule from others.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The statements; `None` when only the fingerprint is known.
    pub fn statements(&self) -> Option<&[Statement]> {
        self.statements.as_deref()
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.fingerprint != 0
    }
}

impl Eq for Rule {}

/// FNV-1a in 64 bits: stable over versions of the compiler, unlike the standard hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .max(1)
}

/// Where the kernel calls a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting,
    /// Packets to this node.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets of this node.
    Output,
    /// Packets that go out, after routing.
    Postrouting,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainType {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each flow, and may translate it.
    Nat,
}

/// How a base chain is attached. Its policy is always to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// What it may do.
    pub chain_type: ChainType,
    /// Where it is called.
    pub hook: Hook,
    /// In which order among chains of a hook.
    pub priority: i32,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// How the kernel calls it; `None` when other chains do.
    pub base: Option<BaseChain>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// What a set holds for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataType {
    /// Nothing: a set.
    None,
    /// Values: a map.
    Values(Vec<Type>),
    /// A verdict: a verdict map.
    Verdict,
}

/// The shape of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// The parts of its key.
    pub key: Vec<Type>,
    /// What it holds for a key.
    pub data: DataType,
    /// `Some` when packets fill it: the most entries that it may have. Its entries are not ours
    /// to compare.
    pub filled_by_packets_max: Option<u32>,
}

impl SetSpec {
    /// Whether its keys are intervals: no two of them may overlap.
    pub fn is_interval(&self) -> bool {
        matches!(self.key.last(), Some(Type::PortRange | Type::Network(_)))
    }

    /// Whether an entry has the types of this set.
    pub fn accepts(&self, key: &[Value], datum: &Datum) -> bool {
        let typed = |values: &[Value], types: &[Type]| {
            values.iter().map(Value::value_type).eq(types.iter().copied())
        };
        typed(key, &self.key)
            && match (&self.data, datum) {
                (DataType::None, Datum::Member) | (DataType::Verdict, Datum::Verdict(_)) => true,
                (DataType::Values(types), Datum::Values(values)) => typed(values, types),
                _ => false,
            }
    }
}

/// What one entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// Nothing: a member of a set.
    Member,
    /// Values.
    Values(Tuple),
    /// A verdict.
    Verdict(Verdict),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its shape.
    pub spec: SetSpec,
    /// Its entries; empty when packets fill it.
    pub elements: Elements,
}

/// One table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Chains by name.
    pub chains: BTreeMap<Name, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<Name, Set>,
}

impl Statement {
    /// The sets and maps that the statement needs.
    pub fn sets(&self) -> impl Iterator<Item = &Name> {
        let (one, two) = match self {
            Self::In { set, .. } | Self::NotIn { set, .. } | Self::Remember { set, .. } => {
                (Some(set), None)
            }
            Self::HasEntry { map, .. } | Self::VerdictOf { map, .. } | Self::Load { map, .. } => {
                (Some(map), None)
            }
            Self::Dispatch { classes, verdicts, .. } => (Some(classes), Some(verdicts)),
            _ => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// The chain that the statement goes to.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Self::Verdict(verdict) => verdict.target(),
            _ => None,
        }
    }
}

impl Verdict {
    /// The chain that the verdict goes to.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop => None,
        }
    }
}

impl Value {
    /// Which type the value has.
    pub fn value_type(&self) -> Type {
        match self {
            Self::Address(address) => Type::Address(Family::of(address)),
            Self::Protocol(_) => Type::Protocol,
            Self::Port(_) => Type::Port,
            Self::Number(_) => Type::Number,
            Self::Link(_) => Type::Link,
            Self::Mac(_) => Type::Mac,
            Self::PortRange(..) => Type::PortRange,
            Self::Network(network) => Type::Network(Family::of(&network.addr())),
        }
    }

    /// Whether a part of an interval set's key has the value within.
    pub fn contains(&self, value: &Self) -> bool {
        match (self, value) {
            (Self::PortRange(first, last), Self::Port(port)) => (first..=last).contains(&port),
            (Self::Network(network), Self::Address(address)) => network.contains(address),
            _ => self == value,
        }
    }

    /// The least and the greatest value of a part of an interval set's key.
    pub fn ends(&self) -> [Self; 2] {
        match *self {
            Self::PortRange(first, last) => [Self::Port(first), Self::Port(last)],
            Self::Network(network) => {
                [Self::Address(network.network()), Self::Address(network.broadcast())]
            }
            other => [other, other],
        }
    }
}

impl Set {
    /// What the set holds for a packet's key.
    pub fn find(&self, key: &[Value]) -> Option<Datum> {
        if !self.spec.is_interval() {
            return self.elements.get(key);
        }
        self.elements.iter().find(|(interval, _)| holds(interval, key)).map(|(_, datum)| datum)
    }

    /// An element of an interval set that has one end of `key` within, as the kernel looks for it.
    pub fn overlapping(&self, key: &[Value]) -> Option<Tuple> {
        let end = |index: usize| -> Tuple { key.iter().map(|part| part.ends()[index]).collect() };
        let [first, last] = [end(0), end(1)];
        self.elements.keys().find(|interval| holds(interval, &first) || holds(interval, &last))
    }
}

fn holds(interval: &[Value], key: &[Value]) -> bool {
    interval.len() == key.len()
        && interval.iter().zip(key).all(|(part, value)| part.contains(value))
}
