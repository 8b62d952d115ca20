//! Many rules as a tree of chains, so that a packet meets tens of them and not thousands, and a new
//! Service rewrites one leaf and not the whole list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound::{Excluded, Included};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use model::{Family, NamespacedName, Protocol};

use super::language::{ChainName, Fixed, Kind, Match, Rule};

/// Rules in a chain before it branches. Below it the list is as people know it from kube-proxy.
pub const LEAF_RULES_MAX: usize = 32;
/// Bits of the key that one level looks at: at most 16 branches.
const LEVEL_BITS: u32 = 4;
/// Branches on the way to a rule at most: those of addresses of IPv6.
const DEPTH_MAX: u32 = 128 / LEVEL_BITS;

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

/// The rules of each key, with the Services that they are of, in the order of their names.
pub type Leaves = BTreeMap<u128, Vec<(NamespacedName, Rule)>>;

/// The chains of a table while some of them are written anew.
#[derive(Debug)]
pub struct Writer {
    chains: BTreeMap<ChainName, Vec<Rule>>,
    written: BTreeSet<ChainName>,
    /// Branches that lists have and had.
    named: BTreeSet<ChainName>,
    dropped: BTreeSet<ChainName>,
}

impl Writer {
    /// Of the chains of a table.
    pub fn new(chains: BTreeMap<ChainName, Vec<Rule>>) -> Self {
        Self { chains, written: BTreeSet::new(), named: BTreeSet::new(), dropped: BTreeSet::new() }
    }

    /// Gives a chain these rules; `None` deletes it.
    pub fn write(&mut self, chain: ChainName, rules: Option<Vec<Rule>>) {
        let former = self.chains.get(&chain);
        if former == rules.as_ref() {
            self.named.extend(former.into_iter().flatten().filter_map(branch_of));
            return;
        }
        self.dropped.extend(former.into_iter().flatten().filter_map(branch_of));
        self.named.extend(rules.iter().flatten().filter_map(branch_of));
        match rules {
            Some(rules) => self.chains.insert(chain.clone(), rules),
            None => self.chains.remove(&chain),
        };
        self.written.insert(chain);
    }

    /// Writes chains in place of others.
    pub fn replace(
        &mut self,
        former: BTreeMap<ChainName, Vec<Rule>>,
        added: BTreeMap<ChainName, Vec<Rule>>,
    ) {
        for chain in former.into_keys().filter(|chain| !added.contains_key(chain)) {
            self.write(chain, None);
        }
        for (chain, rules) in added {
            self.write(chain, Some(rules));
        }
    }

    /// The rules of the chain that begins the tree; branches below it are written. Rules of keys
    /// that are not `changed` are as they were, and so is each branch of only such keys that is
    /// there: what a branch has is said by its name and the rules of its keys. Each rule matches
    /// its own key only, so that their order says nothing.
    pub fn plant(
        &mut self,
        branches: Branches,
        leaves: &Leaves,
        changed: &BTreeSet<u128>,
    ) -> Vec<Rule> {
        Tree { branches, leaves, changed }.grow(self, 0..=u128::MAX)
    }

    /// Deletes the branches that no list has any more. Answers the chains, and which of them are not
    /// as before.
    pub fn finish(mut self) -> (BTreeMap<ChainName, Vec<Rule>>, BTreeSet<ChainName>) {
        while let Some(chain) = self.dropped.pop_first() {
            if !self.named.contains(&chain) && self.chains.contains_key(&chain) {
                self.write(chain, None);
            }
        }
        (self.chains, self.written)
    }
}

/// The branch that a rule leads to.
fn branch_of(rule: &Rule) -> Option<ChainName> {
    let is_branch =
        |chain: &&ChainName| matches!(chain, ChainName::Keyed(Kind::Addresses | Kind::Ports, _));
    rule.jump().filter(is_branch).cloned()
}

struct Tree<'a> {
    branches: Branches,
    leaves: &'a Leaves,
    changed: &'a BTreeSet<u128>,
}

impl Tree<'_> {
    fn grow(&self, writer: &mut Writer, keys: RangeInclusive<u128>) -> Vec<Rule> {
        let leaves = || self.leaves.range(keys.clone());
        let rules = || leaves().flat_map(|(_, rules)| rules).map(|(_, rule)| rule);
        let (Some((&first, _)), Some((&last, _))) = (leaves().next(), leaves().next_back()) else {
            return vec![];
        };
        if first == last || rules().nth(LEAF_RULES_MAX).is_none() {
            return rules().cloned().collect();
        }
        // Levels begin at fixed bits: another Service elsewhere moves nothing.
        let key_bits = self.branches.key_bits();
        let common = (first ^ last).leading_zeros() - (128 - key_bits);
        let bits = common / LEVEL_BITS * LEVEL_BITS + LEVEL_BITS;
        let below = (1 << (key_bits - bits)) - 1;
        let mut branches = Vec::new();
        let mut next = Some(first);
        while let Some(key) = next {
            let group = key & !below..=key | below;
            let rest = (key | below < last).then_some((Excluded(key | below), Included(last)));
            next = rest.and_then(|rest| self.leaves.range(rest).next()).map(|(&key, _)| key);
            branches.push(self.branch(writer, group, bits));
        }
        branches
    }

    fn branch(&self, writer: &mut Writer, keys: RangeInclusive<u128>, bits: u32) -> Rule {
        let mut rules = self.leaves.range(keys.clone()).flat_map(|(_, rules)| rules);
        if let (Some((_, rule)), None) = (rules.next(), rules.next()) {
            return rule.clone();
        }
        let (matches, chain) = self.branches.branch(*keys.start(), bits);
        let has_changed = self.changed.range(keys.clone()).next().is_some();
        if has_changed || !writer.chains.contains_key(&chain) {
            let below = self.grow(writer, keys);
            writer.write(chain.clone(), Some(below));
        }
        Rule::new(matches, chain)
    }
}

/// The rules at the ends of a tree's branches that lie behind matches that all hold.
pub fn leaves<'a>(
    chains: &'a BTreeMap<ChainName, Vec<Rule>>,
    root: Fixed,
    holds: &dyn Fn(&Match) -> bool,
) -> Vec<&'a Rule> {
    let mut found = Vec::new();
    climb(chains, &root.into(), holds, DEPTH_MAX, &mut found);
    found
}

fn climb<'a>(
    chains: &'a BTreeMap<ChainName, Vec<Rule>>,
    chain: &ChainName,
    holds: &dyn Fn(&Match) -> bool,
    depth: u32,
    found: &mut Vec<&'a Rule>,
) {
    let rules = chains.get(chain).into_iter().flatten();
    for rule in rules.filter(|rule| rule.matches.iter().all(holds)) {
        match branch_of(rule).filter(|_| depth > 0) {
            Some(branch) => climb(chains, &branch, holds, depth - 1, found),
            None => found.push(rule),
        }
    }
}

fn low_32(key: u128) -> u32 {
    (key & u128::from(u32::MAX)) as u32
}

fn low_16(key: u128) -> u16 {
    (key & u128::from(u16::MAX)) as u16
}
