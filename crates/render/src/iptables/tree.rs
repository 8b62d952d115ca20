//! Many rules as a tree of chains, so that a packet meets tens of them and not thousands, and a new
//! Service rewrites one leaf and not the whole list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Family, Protocol};

use super::language::{ChainName, Kind, Match, Rule};

/// Rules in a chain before it branches. Below it the list is as people know it from kube-proxy.
pub const LEAF_RULES_MAX: usize = 32;
/// Bits of the key that one level looks at: at most 16 branches.
const LEVEL_BITS: u32 = 4;

/// What the branches of a tree look at.
#[derive(Clone, Copy, Debug)]
pub enum Branches {
    /// Destination addresses of IPv4.
    Addresses4,
    /// Destination addresses of IPv6.
    Addresses6,
    /// Destination ports of a protocol.
    Ports(Protocol),
}

impl Branches {
    /// By destination addresses.
    pub fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::Addresses4,
            Family::V6 => Self::Addresses6,
        }
    }

    fn key_bits(self) -> u32 {
        match self {
            Self::Addresses4 => 32,
            Self::Addresses6 => 128,
            Self::Ports(_) => 16,
        }
    }

    /// The branch of all keys that begin with the first `bits` bits of `key`.
    fn branch(self, key: u128, bits: u32) -> (Vec<Match>, ChainName) {
        let rest = self.key_bits() - bits;
        let first = key.checked_shr(rest).and_then(|key| key.checked_shl(rest)).unwrap_or(0);
        let range = |address: IpAddr| {
            let range = IpNet::new_assert(address, u8::try_from(bits).unwrap_or(u8::MAX));
            (vec![Match::Destination(range)], ChainName::keyed(Kind::Addresses, &range.to_string()))
        };
        match self {
            Self::Addresses4 => range(Ipv4Addr::from(low_32(first)).into()),
            Self::Addresses6 => range(Ipv6Addr::from(first).into()),
            Self::Ports(protocol) => {
                let last = first | ((1 << rest) - 1);
                let [first, last] = [first, last].map(low_16);
                let name = format!("{protocol} {first}-{last}");
                let matches = vec![Match::Protocol(protocol), Match::Ports { first, last }];
                (matches, ChainName::keyed(Kind::Ports, &name))
            }
        }
    }
}

/// The key of an address.
pub fn key_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The rules of the chain that begins the tree; chains below it are added to `chains`. Each rule
/// matches its own key only, so that their order says nothing.
pub fn plant(
    chains: &mut BTreeMap<ChainName, Vec<Rule>>,
    branches: Branches,
    leaves: &BTreeMap<u128, Vec<Rule>>,
) -> Vec<Rule> {
    let leaves: Vec<(u128, &[Rule])> =
        leaves.iter().map(|(&key, rules)| (key, rules.as_slice())).collect();
    grow(chains, branches, &leaves)
}

fn grow(
    chains: &mut BTreeMap<ChainName, Vec<Rule>>,
    branches: Branches,
    leaves: &[(u128, &[Rule])],
) -> Vec<Rule> {
    let count: usize = leaves.iter().map(|(_, rules)| rules.len()).sum();
    let (Some((first, _)), Some((last, _))) = (leaves.first(), leaves.last()) else {
        return vec![];
    };
    if count <= LEAF_RULES_MAX || first == last {
        return leaves.iter().flat_map(|(_, rules)| rules.iter().cloned()).collect();
    }
    // Levels begin at fixed bits: another Service elsewhere moves nothing.
    let common = (first ^ last).leading_zeros() - (128 - branches.key_bits());
    let bits = common / LEVEL_BITS * LEVEL_BITS + LEVEL_BITS;
    let prefix = |key: u128| key >> (branches.key_bits() - bits);
    let mut rules = Vec::new();
    for group in leaves.chunk_by(|(one, _), (other, _)| prefix(*one) == prefix(*other)) {
        match group {
            [(_, [rule])] => rules.push(rule.clone()),
            group => {
                let key = group.first().map_or(0, |(key, _)| *key);
                let (matches, chain) = branches.branch(key, bits);
                let below = grow(chains, branches, group);
                chains.insert(chain.clone(), below);
                rules.push(Rule::new(matches, chain));
            }
        }
    }
    rules
}

fn low_32(key: u128) -> u32 {
    (key & u128::from(u32::MAX)) as u32
}

fn low_16(key: u128) -> u16 {
    (key & u128::from(u16::MAX)) as u16
}
