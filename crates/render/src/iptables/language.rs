//! Chains and rules as values. Nothing here is a free string but comments, and those hold letters
//! that need no escape: names of objects cannot become rules.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, PortRange, Protocol};

use crate::owned::IPTABLES_PREFIX;

/// Bytes of a chain's name at most (`XT_EXTENSION_MAXNAMELEN` less the final zero).
pub const CHAIN_NAME_BYTES_MAX: usize = 28;
/// Bytes of a comment at most (`XT_MAX_COMMENT_LEN` less the final zero).
const COMMENT_BYTES_MAX: usize = 255;
/// What a chance of 1 is: the kernel compares with 31 random bits.
pub const CHANCE_ONE: u32 = 1 << 31;

/// A table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    /// `iptables` or `ip6tables`.
    pub family: Family,
    /// Which table.
    pub name: TableName,
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name.text(), self.family)
    }
}

/// The tables that we have rules in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Translation of addresses; sees the first packet of a flow.
    Nat,
    /// What is dropped.
    Filter,
}

impl TableName {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// As the programs call it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A chain that the kernel calls. Of these only rules that lead to chains of ours are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What came in, before routing.
    Prerouting,
    /// What is for this node.
    Input,
    /// What passes through.
    Forward,
    /// What this node sends.
    Output,
    /// What goes out, after routing.
    Postrouting,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The chain's name.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }
}

/// A chain of ours: its name begins with [`IPTABLES_PREFIX`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainName {
    /// There is one of it.
    Fixed(Fixed),
    /// There is one for each object of a kind.
    Keyed(Kind, Key),
    /// Of another version of this program; read back only, to be deleted.
    Other(Box<str>),
}

/// Chains of which there is one in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fixed {
    /// Where all begins: by address of the Service.
    Services,
    /// By node port.
    NodePorts,
    /// Sources that external addresses do not serve.
    Firewall,
    /// Marks what needs another source.
    MarkMasquerade,
    /// Does so for all but this node's pods.
    MarkOthers,
    /// Gives what is marked another source.
    Postrouting,
}

impl Fixed {
    const ALL: [Self; 6] = [
        Self::Services,
        Self::NodePorts,
        Self::Firewall,
        Self::MarkMasquerade,
        Self::MarkOthers,
        Self::Postrouting,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Services => "SERVICES",
            Self::NodePorts => "NODEPORTS",
            Self::Firewall => "FIREWALL",
            Self::MarkMasquerade => "MARK-MASQ",
            Self::MarkOthers => "MARK-OTHERS",
            Self::Postrouting => "POSTROUTING",
        }
    }
}

/// Kinds of chains of which there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A choice among all endpoints of a Service's port.
    Service,
    /// The same for clients of the ClusterIP, where they get others.
    Internal,
    /// A choice among those on this node, for clients outside.
    Local,
    /// Clients at node ports and external addresses, before the choice.
    External,
    /// Clients at an external address that serves some sources only.
    Firewall,
    /// One endpoint.
    Endpoint,
    /// Addresses of Services with a common beginning.
    Addresses,
    /// Node ports with a common beginning.
    Ports,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Service,
        Self::Internal,
        Self::Local,
        Self::External,
        Self::Firewall,
        Self::Endpoint,
        Self::Addresses,
        Self::Ports,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Service => "SVC",
            Self::Internal => "SVI",
            Self::Local => "SVL",
            Self::External => "EXT",
            Self::Firewall => "FW",
            Self::Endpoint => "SEP",
            Self::Addresses => "NET",
            Self::Ports => "NPT",
        }
    }
}

/// What stands for an object in the name of its chain: the first 16 letters of the SHA-256 of the
/// object's own name in base 32, as in kube-proxy, so that a Service port has the same letters in
/// both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([u8; 10]);

impl Key {
    const ALPHABET: &'static [u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const LETTERS: usize = 16;

    /// The key of an object's name.
    pub fn of(name: &str) -> Self {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(name.as_bytes());
        let mut key = [0; 10];
        for (byte, digest) in key.iter_mut().zip(digest) {
            *byte = digest;
        }
        Self(key)
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::LETTERS {
            return None;
        }
        let mut bits: u128 = 0;
        for letter in text.bytes() {
            let value = Self::ALPHABET.iter().position(|&other| other == letter)?;
            bits = bits << 5 | value as u128;
        }
        let mut key = [0; 10];
        key.copy_from_slice(bits.to_be_bytes().get(6..)?);
        Some(Self(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.iter().fold(0_u128, |bits, &byte| bits << 8 | u128::from(byte));
        (0..Self::LETTERS).rev().try_for_each(|letter| {
            let letter = Self::ALPHABET[(bits >> (5 * letter) & 31) as usize];
            write!(f, "{}", char::from(letter))
        })
    }
}

impl ChainName {
    /// The chain of an object of a kind.
    pub fn keyed(kind: Kind, name: &str) -> Self {
        Self::Keyed(kind, Key::of(name))
    }

    /// A number by which chains are in no order of their names.
    pub(super) fn scattered(&self) -> u16 {
        match self {
            Self::Keyed(_, Key([.., first, second])) => u16::from_be_bytes([*first, *second]),
            Self::Fixed(_) | Self::Other(_) => 0,
        }
    }

    /// Reads a name; `None` for chains of others (invariant 4).
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(IPTABLES_PREFIX)?;
        if let Some(fixed) = Fixed::ALL.into_iter().find(|fixed| fixed.text() == rest) {
            return Some(Self::Fixed(fixed));
        }
        let keyed = rest.split_once('-').and_then(|(kind, key)| {
            let kind = Kind::ALL.into_iter().find(|known| known.text() == kind)?;
            Some(Self::Keyed(kind, Key::parse(key)?))
        });
        Some(keyed.unwrap_or_else(|| Self::Other(text.into())))
    }
}

impl From<Fixed> for ChainName {
    fn from(fixed: Fixed) -> Self {
        Self::Fixed(fixed)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(fixed) => write!(f, "{IPTABLES_PREFIX}{}", fixed.text()),
            Self::Keyed(kind, key) => write!(f, "{IPTABLES_PREFIX}{}-{key}", kind.text()),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// What is ours in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Our chains.
    pub chains: BTreeMap<ChainName, Vec<Rule>>,
    /// Our rules in the kernel's chains.
    pub hooks: BTreeMap<Hook, Vec<Rule>>,
}

/// One rule: when all matches hold, its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// In the order of `iptables-save`: source, destination, protocol, then the others.
    pub matches: Vec<Match>,
    /// What happens then.
    pub target: Target,
}

impl Rule {
    /// A rule without those matches that hold always: `iptables-save` leaves them out.
    pub fn new(matches: impl IntoIterator<Item = Match>, target: impl Into<Target>) -> Self {
        let matters = |one: &Match| match one {
            Match::Source(range) | Match::Destination(range) => range.prefix_len() != 0,
            Match::Ports { first, last } => (*first, *last) != (0, u16::MAX),
            _ => true,
        };
        Self { matches: matches.into_iter().filter(matters).collect(), target: target.into() }
    }

    /// The chain that it jumps to.
    pub fn jump(&self) -> Option<&ChainName> {
        match &self.target {
            Target::Jump(chain) => Some(chain),
            _ => None,
        }
    }
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The source is in the range.
    Source(IpNet),
    /// The destination is in the range.
    Destination(IpNet),
    /// The transport protocol.
    Protocol(Protocol),
    /// The destination port is one of these. Needs the protocol before.
    Ports {
        /// The first.
        first: u16,
        /// The last, itself included.
        last: u16,
    },
    /// The source is an address of this node.
    FromThisNode,
    /// The first packet of a tracked flow.
    NewFlow,
    /// None of these bits of the mark is set.
    WithoutMark(u32),
    /// Holds so often in [`CHANCE_ONE`] times.
    Chance(u32),
    /// The source was remembered in the endpoint's list within this time.
    Remembered {
        /// The endpoint's chain, whose name the list has.
        endpoint: ChainName,
        /// Seconds since the client's last connection.
        timeout_s: u32,
    },
    /// Holds, and remembers the source in the endpoint's list.
    Remember {
        /// The endpoint's chain.
        endpoint: ChainName,
    },
    /// Holds.
    Comment(Comment),
}

/// Words for people who list rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment(Box<str>);

impl Comment {
    /// A comment of the letters that names of objects have; others become `_`, so that no name of
    /// an object can end the word or the line that it stands in.
    pub fn new(text: &str) -> Self {
        let harmless = |letter: char| {
            if letter.is_ascii_alphanumeric() || " -_./:".contains(letter) { letter } else { '_' }
        };
        Self(text.chars().map(harmless).take(COMMENT_BYTES_MAX).collect())
    }

    /// The words.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Goes through a chain of ours, and comes back at its end.
    Jump(ChainName),
    /// Back to where the chain was called.
    Return,
    /// Leaves the table.
    Accept,
    /// Drops the packet.
    Drop,
    /// Sets these bits of the mark.
    SetMark(u32),
    /// Clears these bits of the mark.
    ClearMark(u32),
    /// Another destination for the flow.
    Translate {
        /// The address.
        address: IpAddr,
        /// The port; `None` leaves it as it is.
        port: Option<u16>,
    },
    /// Another source for the flow: the node's own address at the outgoing link.
    Masquerade {
        /// The source ports that it may get; none: any that the kernel chooses. They need the
        /// protocol before.
        ports: Option<PortRange>,
    },
    /// A rule of a chain of ours that we did not write, as it was read.
    Unknown(Box<str>),
}

impl From<ChainName> for Target {
    fn from(chain: ChainName) -> Self {
        Self::Jump(chain)
    }
}

impl From<Fixed> for Target {
    fn from(chain: Fixed) -> Self {
        Self::Jump(chain.into())
    }
}
