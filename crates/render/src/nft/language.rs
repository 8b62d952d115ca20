//! The part of nftables that flatnet uses, as values: printable, comparable, never text to parse.
//!
//! A rule is a list of statements that run from left to right until one does not match. Keys of
//! sets and maps are typed concatenations. The kernel driver turns each statement into netlink
//! expressions; [`super::trace`] interprets it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::Family;

/// The name of a chain, set or map within our table.
pub type Name = String;

/// The values of one key, or of one map entry.
pub type Tuple = Vec<Value>;

/// What one part of a concatenation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    /// An address of the table's family.
    Address,
    /// An address of the family that the table is not of.
    OtherAddress,
    /// A transport protocol number.
    Protocol,
    /// A port.
    Port,
    /// A slot or a class.
    Number,
}

/// One part of a key or of a map's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An address of the table's family.
    Address(IpAddr),
    /// An address of the other family.
    OtherAddress(IpAddr),
    /// A transport protocol number.
    Protocol(u8),
    /// A port.
    Port(u16),
    /// A slot or a class.
    Number(u32),
}

/// What a packet, or chance, gives to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The packet's present source address.
    SourceAddress,
    /// The packet's present destination address.
    DestinationAddress,
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
    /// A VXLAN packet (RFC 7348) to this port, of this network.
    TunnelPacket {
        /// The UDP port.
        port: u16,
        /// The VXLAN network identifier, 24 bits.
        vni: u32,
    },
    /// The packet within a tunnel packet is of this family.
    TunnelledIs(Family),
    /// The transport protocol is this one.
    ProtocolIs(u8),
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
    /// The flow goes to the loaded endpoint.
    TranslateDestination,
    /// The flow gets an address of the outgoing link as source.
    Masquerade,
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
    pub fn new(family: Family, statements: Vec<Statement>) -> Self {
        let text = format!("{ENCODING_VERSION} {}", text_of(family, &statements));
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
    pub elements: BTreeMap<Tuple, Datum>,
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
            Self::In { set, .. } | Self::Remember { set, .. } => (Some(set), None),
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
            Self::Address(_) => Type::Address,
            Self::OtherAddress(_) => Type::OtherAddress,
            Self::Protocol(_) => Type::Protocol,
            Self::Port(_) => Type::Port,
            Self::Number(_) => Type::Number,
        }
    }
}

/// Rules as a person reads them: close to what `nft list table` prints, loads written out.
pub fn text_of(family: Family, statements: &[Statement]) -> String {
    let words: Vec<String> =
        statements.iter().map(|statement| statement_text(family, statement)).collect();
    words.join(" ")
}

fn statement_text(family: Family, statement: &Statement) -> String {
    let of = |key: &[Field]| key_text(family, key);
    match statement {
        Statement::InRange { field, range, outside } => {
            let not = if *outside { "!= " } else { "" };
            format!("{} {not}{range}", of(&[*field]))
        }
        Statement::NotFromLoopback => "iif != lo".into(),
        Statement::FromLink(link) => format!("iifname {link}"),
        Statement::TunnelPacket { port, vni } => format!("udp dport {port} vxlan vni {vni}"),
        Statement::TunnelledIs(Family::V4) => "vxlan ether type ip".into(),
        Statement::TunnelledIs(Family::V6) => "vxlan ether type ip6".into(),
        Statement::ProtocolIs(protocol) => {
            format!("meta l4proto {}", Value::Protocol(*protocol))
        }
        Statement::StateIs(ConnectionState::New) => "ct state new".into(),
        Statement::StateIs(ConnectionState::Invalid) => "ct state invalid".into(),
        Statement::HasMark(bits) => format!("meta mark & {bits:#x} == {bits:#x}"),
        Statement::In { key, set } => format!("{} @{set}", of(key)),
        Statement::HasEntry { key, map } => format!("{} in map @{map}", of(key)),
        Statement::Dispatch { key, classes, verdicts } => {
            format!("{} map @{classes} vmap @{verdicts}", of(key))
        }
        Statement::VerdictOf { key, map } => format!("{} vmap @{map}", of(key)),
        Statement::Load { key, map } => format!("endpoint = {} map @{map}", of(key)),
        Statement::LoadEndpoint(endpoint) => format!("endpoint = {endpoint}"),
        Statement::Remember { set, timeout_s } => {
            let source = of(&[Field::SourceAddress]);
            format!("update @{set} {{ {source} timeout {timeout_s}s }}")
        }
        Statement::SetMark(bits) => format!("meta mark set meta mark | {bits:#x}"),
        Statement::ClearMark(bits) => format!("meta mark set meta mark & ~{bits:#x}"),
        Statement::NoTrack => "notrack".into(),
        Statement::TranslateDestination => "dnat to endpoint".into(),
        Statement::Masquerade => "masquerade fully-random".into(),
        Statement::RejectWithReset => "reject with tcp reset".into(),
        Statement::RejectWithUnreachable => "reject with port-unreachable".into(),
        Statement::Verdict(verdict) => verdict.to_string(),
    }
}

fn key_text(family: Family, key: &[Field]) -> String {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let words: Vec<String> = key
        .iter()
        .map(|field| match field {
            Field::SourceAddress => format!("{ip} saddr"),
            Field::DestinationAddress => format!("{ip} daddr"),
            Field::Protocol => "meta l4proto".into(),
            Field::SourcePort => "th sport".into(),
            Field::DestinationPort => "th dport".into(),
            Field::TunnelledSource { family: Family::V4, prefix_len } => {
                format!("vxlan ip saddr/{prefix_len}")
            }
            Field::TunnelledSource { family: Family::V6, prefix_len } => {
                format!("vxlan ip6 saddr/{prefix_len}")
            }
            Field::Random { modulus } => format!("numgen random mod {modulus}"),
        })
        .collect();
    words.join(" . ")
}

fn tuple_text(tuple: &[Value]) -> String {
    let words: Vec<String> = tuple.iter().map(Value::to_string).collect();
    words.join(" . ")
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) | Self::OtherAddress(address) => address.fmt(f),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(132) => f.write_str("sctp"),
            Self::Protocol(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => write!(f, "{number:#x}"),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::OtherAddress => "other address",
            Self::Protocol => "protocol",
            Self::Port => "port",
            Self::Number => "number",
        })
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.chain_type {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

/// A table with its family, printed as `nft list table` would.
pub struct TableText<'a>(pub Family, pub &'a Table);

impl fmt::Display for TableText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(family, table) = *self;
        let word = if family == Family::V4 { "ip" } else { "ip6" };
        writeln!(f, "table {word} {} {{", crate::owned::NFT_TABLE)?;
        for (name, set) in &table.sets {
            write_set(f, name, set)?;
        }
        for (name, chain) in &table.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(base) = &chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                match rule.statements() {
                    Some(statements) => writeln!(f, "\t\t{}", text_of(family, statements))?,
                    None => writeln!(f, "\t\t# rule {:016x}", rule.fingerprint())?,
                }
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let words = |types: &[Type]| {
        let words: Vec<String> = types.iter().map(Type::to_string).collect();
        words.join(" . ")
    };
    let key = words(&set.spec.key);
    match &set.spec.data {
        DataType::None => writeln!(f, "\tset {name} {{\n\t\ttype {key}")?,
        DataType::Values(types) => {
            writeln!(f, "\tmap {name} {{\n\t\ttype {key} : {}", words(types))?;
        }
        DataType::Verdict => writeln!(f, "\tmap {name} {{\n\t\ttype {key} : verdict")?,
    }
    if let Some(size) = set.spec.filled_by_packets_max {
        writeln!(f, "\t\tsize {size}\n\t\tflags dynamic,timeout")?;
    }
    for (key, datum) in &set.elements {
        write!(f, "\t\t{}", tuple_text(key))?;
        match datum {
            Datum::Member => writeln!(f)?,
            Datum::Values(values) => writeln!(f, " : {}", tuple_text(values))?,
            Datum::Verdict(verdict) => writeln!(f, " : {verdict}")?,
        }
    }
    writeln!(f, "\t}}")
}
