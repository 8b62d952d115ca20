//! What the names in a network's directory say. Reading names alone answers almost every
//! question of an ADD or DEL; contents are read only where the names leave doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::Timestamp;
use model::mac::fnv1a;

use crate::allocator::Occupancy;

const OWNER_PREFIX: &str = ".owner-";
const RELEASED_PREFIX: &str = ".released-";

/// An address that a file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub address: IpAddr,
    /// The file's name: foreign programs may spell an address in another way.
    pub name: String,
    /// The hash of its owner, when a name says so that leads to the same inode. Whoever replaces
    /// a reservation makes another inode, so the index cannot be believed against the file.
    pub owner: Option<u32>,
}

/// All names, sorted by what they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub held: Vec<Held>,
    /// Addresses that nobody has, and when they were given back.
    pub released: BTreeMap<IpAddr, Timestamp>,
    /// Our own names that mean nothing any more: what a crash or host-local left.
    pub stale: Vec<String>,
}

/// Names while they are read, in whatever order the directory has them. There may be some for
/// every address of a node on the way of each ADD, so that nothing is kept of them but values.
#[derive(Debug, Default)]
pub(super) struct Names {
    held: Vec<(IpAddr, u64, String)>,
    owners: Vec<(IpAddr, u64, u32)>,
    released: Vec<(IpAddr, Timestamp)>,
}

impl Names {
    /// Takes note of one name, with the inode that it leads to. What is none of ours or
    /// host-local's is passed over.
    pub fn add(&mut self, name: &str, inode: u64) {
        if !name.starts_with('.') {
            if let Ok(address) = name.parse::<IpAddr>() {
                self.held.push((address.to_canonical(), inode, name.to_owned()));
            }
        } else if let Some((hash, address)) = parse_owner(name) {
            self.owners.push((address, inode, hash));
        } else if let Some((at, address)) = parse_released(name) {
            self.released.push((address, at));
        }
    }
}

impl Listing {
    /// Sorts names by what they mean.
    pub fn of(mut names: Names) -> Self {
        names.held.sort_unstable();
        names.owners.sort_unstable();
        names.released.sort_unstable();
        let mut listing = Self::default();
        let is_held = |address: IpAddr, inode: u64| {
            let found = names
                .held
                .binary_search_by(|(one, other, _)| (*one, *other).cmp(&(address, inode)));
            found.is_ok()
        };
        let mut previous = None;
        for &(address, inode, hash) in &names.owners {
            // Of two names of one file only one can tell the truth; the other one may go.
            if !is_held(address, inode) || previous == Some((address, inode)) {
                listing.stale.push(owner_name(hash, address));
            }
            previous = Some((address, inode));
        }
        for (address, inode, name) in names.held {
            let first =
                names.owners.partition_point(|&(one, other, _)| (one, other) < (address, inode));
            let owner =
                names.owners.get(first).filter(|owner| (owner.0, owner.1) == (address, inode));
            listing.held.push(Held { address, name, owner: owner.map(|owner| owner.2) });
        }
        let taken = listing.taken();
        for (address, at) in names.released {
            if taken.contains(&address) {
                listing.stale.push(released_name(at, address));
            } else if let Some(older) = listing.released.insert(address, at) {
                listing.stale.push(released_name(older, address));
            }
        }
        listing
    }

    /// The addresses that files stand for.
    pub fn taken(&self) -> BTreeSet<IpAddr> {
        self.held.iter().map(|held| held.address).collect()
    }

    /// For the allocator.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy { taken: self.taken(), released: self.released.clone() }
    }
}

/// The hash under which an owner is indexed.
pub(super) fn owner_hash(container_id: &str, interface: &str) -> u32 {
    fnv1a(format!("{container_id}\0{interface}").as_bytes())
}

/// The name that says whose an address is.
pub(super) fn owner_name(hash: u32, address: IpAddr) -> String {
    format!("{OWNER_PREFIX}{hash:08x}-{address}")
}

/// The name that says when an address was given back.
pub(super) fn released_name(at: Timestamp, address: IpAddr) -> String {
    format!("{RELEASED_PREFIX}{}-{address}", at.microseconds())
}

fn parse_owner(name: &str) -> Option<(u32, IpAddr)> {
    let (hash, address) = name.strip_prefix(OWNER_PREFIX)?.split_once('-')?;
    Some((u32::from_str_radix(hash, 16).ok()?, address.parse::<IpAddr>().ok()?))
}

fn parse_released(name: &str) -> Option<(Timestamp, IpAddr)> {
    let (at, address) = name.strip_prefix(RELEASED_PREFIX)?.split_once('-')?;
    Some((Timestamp::from_microseconds(at.parse().ok()?), address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(found: &[(&str, u64)]) -> Listing {
        let mut names = Names::default();
        found.iter().for_each(|(name, inode)| names.add(name, *inode));
        Listing::of(names)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_owner_is_believed_only_while_its_name_leads_to_the_same_file() {
        let hash = owner_hash("c1", "eth0");
        let owner = owner_name(hash, address("10.0.0.2"));
        type Names<'a> = &'a [(&'a str, u64)];
        let rows: [(Names<'_>, Option<u32>, usize); 4] = [
            (&[("10.0.0.2", 7), (&owner, 7)], Some(hash), 0),
            (&[("10.0.0.2", 8), (&owner, 7)], None, 1),
            (&[("10.0.0.2", 7)], None, 0),
            (&[("10.0.0.2", 7), (".owner-xyz-10.0.0.2", 7), (".owner-1-2-3", 7)], None, 0),
        ];
        for (names, expected, stale) in rows {
            let listing = listing(names);
            assert_eq!(listing.held[0].owner, expected, "{names:?}");
            assert_eq!(listing.stale.len(), stale, "{names:?}");
        }
    }

    #[test]
    fn the_newest_release_of_a_free_address_counts() {
        let at = |second| Timestamp::from_seconds(second);
        let names = [
            released_name(at(5), address("10.0.0.2")),
            released_name(at(9), address("10.0.0.2")),
            released_name(at(7), address("10.0.0.3")),
            released_name(at(7), address("fd00::3")),
            "10.0.0.3".to_owned(),
        ];
        let names: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let listing = listing(&names);
        let expected = [(address("10.0.0.2"), at(9)), (address("fd00::3"), at(7))];
        assert_eq!(listing.released, BTreeMap::from(expected));
        assert_eq!(listing.stale, [names[0].0, names[2].0]);
    }

    #[test]
    fn one_address_may_have_two_spellings() {
        let listing = listing(&[("fd00::2", 1), ("FD00:0::2", 2), ("::ffff:10.0.0.2", 3)]);
        assert_eq!(listing.held.len(), 3);
        assert_eq!(listing.taken(), BTreeSet::from([address("fd00::2"), address("10.0.0.2")]));
    }
}
