//! Which address comes next. A pure choice: the same reservations give the same address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Timestamp;
use model::cluster::{nth_address, overlap};
use serde::{Deserialize, Serialize};

use crate::withheld::Withheld;

/// A range of addresses, as host-local's configuration writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The subnet; pods get its prefix length.
    pub subnet: IpNet,
    /// The first address to give out; by default the second of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The last address to give out; by default the last before IPv4's broadcast address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The pods' gateway, never given out; by default the first address after the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Ranges of one family that a pod gets one address from.
pub type RangeSet = Vec<Range>;

/// A range that cannot work. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A set without ranges.
    #[error("an empty range set: name at least one subnet")]
    Empty,
    /// Bits below the prefix are set.
    #[error("the subnet {0} has bits set below its prefix: write {right}", right = .0.trunc())]
    HostBits(IpNet),
    /// No room for network, gateway and a pod.
    #[error("the subnet {0} is too small for a gateway and a pod: use at least a /{longest}", longest = .0.max_prefix_len() - 2)]
    TooSmall(IpNet),
    /// An address of the configuration lies outside its subnet.
    #[error("{field} {address} is not in the subnet {subnet}")]
    Outside {
        /// The key of the configuration.
        field: &'static str,
        /// Its value.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The start is behind the end.
    #[error("rangeStart {0} is behind rangeEnd {1}")]
    Reversed(IpAddr, IpAddr),
    /// Two subnets share addresses.
    #[error("the subnets {0} and {1} overlap: an address could be given twice")]
    Overlap(IpNet, IpNet),
    /// One set mixes families.
    #[error("a range set must not mix IPv4 and IPv6: {0} and {1}; write a set for each")]
    MixedFamilies(IpNet, IpNet),
}

/// All addresses of a set are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The set.
    pub ranges: Vec<String>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no IP addresses available in range set: {}", self.ranges.join(","))
    }
}

impl std::error::Error for Exhausted {}

impl Range {
    /// The whole subnet, with the default gateway.
    pub fn whole(subnet: IpNet) -> Self {
        Self { subnet, range_start: None, range_end: None, gateway: None }
    }

    /// The first and the last address to give out.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        let network = self.subnet.network();
        let first = nth_address(&self.subnet, 1).unwrap_or(network);
        let last = match self.subnet.broadcast() {
            IpAddr::V4(broadcast) => IpAddr::V4(u32::from(broadcast).saturating_sub(1).into()),
            last @ IpAddr::V6(_) => last,
        };
        (self.range_start.unwrap_or(first), self.range_end.unwrap_or(last))
    }

    /// The pods' gateway.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway.or_else(|| nth_address(&self.subnet, 1))
    }

    /// Whether a pod may have the address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let (first, last) = self.bounds();
        self.subnet.contains(&address)
            && (first..=last).contains(&address)
            && Some(address) != self.gateway()
            && address != self.subnet.network()
            && !(address.is_ipv4() && address == self.subnet.broadcast())
    }

    /// Checks one range.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), RangeError> {
        let subnet = self.subnet;
        if subnet.trunc() != subnet {
            return Err(RangeError::HostBits(subnet));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        let fields = [
            ("rangeStart", self.range_start),
            ("rangeEnd", self.range_end),
            ("gateway", self.gateway),
        ];
        for (field, address) in fields {
            if let Some(address) = address.filter(|address| !subnet.contains(address)) {
                return Err(RangeError::Outside { field, address, subnet });
            }
        }
        let (first, last) = self.bounds();
        if first > last { Err(RangeError::Reversed(first, last)) } else { Ok(()) }
    }

    fn describe(&self) -> String {
        let (first, last) = self.bounds();
        format!("{first}-{last}")
    }
}

/// Checks range sets as a whole.
///
/// # Errors
/// The first fault.
pub fn check(sets: &[RangeSet]) -> Result<(), RangeError> {
    for set in sets {
        let first = set.first().ok_or(RangeError::Empty)?;
        for range in set {
            range.check()?;
            if range.subnet.addr().is_ipv4() != first.subnet.addr().is_ipv4() {
                return Err(RangeError::MixedFamilies(first.subnet, range.subnet));
            }
        }
    }
    let all: Vec<&Range> = sets.iter().flatten().collect();
    for (index, range) in all.iter().enumerate() {
        if let Some(other) = all.iter().skip(index + 1).find(|other| share(range, other)) {
            return Err(RangeError::Overlap(range.subnet, other.subnet));
        }
    }
    Ok(())
}

/// Whether two ranges could give out the same address: parts of one subnet may stand side by side.
fn share(one: &Range, other: &Range) -> bool {
    let ((first, last), (other_first, other_last)) = (one.bounds(), other.bounds());
    overlap(&one.subnet, &other.subnet) && first <= other_last && other_first <= last
}

/// What is known about the addresses of a network when one is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// What pods have.
    pub taken: BTreeSet<IpAddr>,
    /// When addresses that nobody has were given back, as far as it is remembered.
    pub released: BTreeMap<IpAddr, Timestamp>,
}

/// The address of a set that has been free the longest, with its range: one that was never
/// given back within memory, round robin after `last`; or the one given back first. So an
/// address comes again within [`crate::REUSE_DELAY_S`] only when no other is left.
///
/// # Errors
/// When all are taken.
pub fn next<'a>(
    set: &'a RangeSet,
    occupancy: &Occupancy,
    withheld: &Withheld,
    last: Option<IpAddr>,
) -> Result<(IpAddr, &'a Range), Exhausted> {
    let is_fresh = |address: &IpAddr| {
        !occupancy.taken.contains(address) && !occupancy.released.contains_key(address)
    };
    if let Some(found) = next_in_round(set, &is_fresh, withheld, last) {
        return Ok(found);
    }
    let allowing = |address: IpAddr| set.iter().find(|range| range.allows(address));
    let rested = occupancy
        .released
        .iter()
        .filter(|(address, _)| !occupancy.taken.contains(address))
        .filter(|(address, _)| withheld.skip(**address).is_none())
        .filter_map(|(address, at)| Some((at, *address, allowing(*address)?)))
        .min_by_key(|(at, address, _)| (**at, *address));
    match rested {
        Some((_, address, range)) => Ok((address, range)),
        None => Err(Exhausted { ranges: set.iter().map(Range::describe).collect() }),
    }
}

/// The next address after `last` that is free, round robin over the ranges of a set.
fn next_in_round<'a>(
    set: &'a RangeSet,
    is_free: &impl Fn(&IpAddr) -> bool,
    withheld: &Withheld,
    last: Option<IpAddr>,
) -> Option<(IpAddr, &'a Range)> {
    let start = last.and_then(|last| {
        set.iter().position(|range| range.subnet.contains(&last)).map(|index| (index, last))
    });
    let (first_range, after) = match start {
        Some((index, last)) => (index, Some(last)),
        None => (0, None),
    };
    let round = (0..set.len()).map(|step| (first_range + step) % set.len());
    for (step, index) in round.enumerate() {
        let Some(range) = set.get(index) else { continue };
        let (first, end) = range.bounds();
        let from = match (step, after) {
            (0, Some(last)) => successor(last).filter(|next| *next >= first).unwrap_or(first),
            _ => first,
        };
        if let Some(address) = first_free(range, is_free, withheld, from, end) {
            return Some((address, range));
        }
    }
    // Once round: what lies before `last` in its own range.
    let (last, range) = (after?, set.get(first_range)?);
    let (first, end) = range.bounds();
    first_free(range, is_free, withheld, first, last.min(end)).map(|address| (address, range))
}

/// The first address from `from` to `end` that the range allows and nobody has. Takes at most
/// one step more than there are taken addresses and withheld spans, however large the range.
fn first_free(
    range: &Range,
    is_free: &impl Fn(&IpAddr) -> bool,
    withheld: &Withheld,
    from: IpAddr,
    end: IpAddr,
) -> Option<IpAddr> {
    let mut candidate = Some(from);
    while let Some(address) = candidate.filter(|address| *address <= end) {
        let skipped = withheld.skip(address);
        if skipped.is_none() && is_free(&address) && range.allows(address) {
            return Some(address);
        }
        candidate = successor(skipped.unwrap_or(address));
    }
    None
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(1)?.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::whole(subnet.parse().expect("a subnet"))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// All addresses that a set gives until it is exhausted.
    fn drain(set: &RangeSet, last: Option<IpAddr>) -> Vec<IpAddr> {
        drain_all(set, last, Occupancy::default(), &Withheld::default())
    }

    fn drain_all(
        set: &RangeSet,
        mut last: Option<IpAddr>,
        mut occupancy: Occupancy,
        withheld: &Withheld,
    ) -> Vec<IpAddr> {
        let mut order = Vec::new();
        while let Ok((address, _)) = next(set, &occupancy, withheld, last) {
            assert!(occupancy.taken.insert(address), "{address} was given twice");
            order.push(address);
            last = Some(address);
        }
        order
    }

    fn first_of(set: &RangeSet, last: Option<IpAddr>) -> IpAddr {
        next(set, &Occupancy::default(), &Withheld::default(), last).expect("free").0
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given() {
        let set = vec![range("10.244.1.0/29")];
        let expected: Vec<IpAddr> =
            (2..=6).map(|host| address(&format!("10.244.1.{host}"))).collect();
        assert_eq!(drain(&set, None), expected);
        let other_gateway =
            vec![Range { gateway: Some(address("10.244.1.3")), ..range("10.244.1.0/29") }];
        assert!(!drain(&other_gateway, None).contains(&address("10.244.1.3")));
        assert!(drain(&other_gateway, None).contains(&address("10.244.1.1")));
    }

    #[test]
    fn the_round_goes_on_after_the_last_reserved_and_over_all_ranges() {
        let set = vec![range("10.0.0.0/30"), range("10.0.1.0/29")];
        let order = drain(&set, Some(address("10.0.1.4")));
        let expected = ["10.0.1.5", "10.0.1.6", "10.0.0.2", "10.0.1.2", "10.0.1.3", "10.0.1.4"];
        assert_eq!(order, expected.map(address));
    }

    #[test]
    fn a_last_reserved_outside_starts_at_the_beginning() {
        let set = vec![range("10.0.0.0/29")];
        for last in ["192.168.0.1", "10.0.0.7", "10.0.0.6"] {
            assert_eq!(first_of(&set, Some(address(last))), address("10.0.0.2"), "after {last}");
        }
    }

    #[test]
    fn start_and_end_bound_the_choice() {
        let bounded = Range {
            range_start: Some(address("10.0.0.10")),
            range_end: Some(address("10.0.0.12")),
            ..range("10.0.0.0/24")
        };
        let expected = ["10.0.0.10", "10.0.0.11", "10.0.0.12"].map(address);
        assert_eq!(drain(&vec![bounded], Some(address("10.0.0.3"))), expected);
    }

    #[test]
    fn large_ipv6_ranges_start_at_once() {
        let set = vec![range("fd00:10:244:1::/64")];
        assert_eq!(first_of(&set, None), address("fd00:10:244:1::2"));
        // Also past a withheld span of 2^40 addresses.
        let withheld = Withheld {
            reserved: vec!["fd00:10:244:1::/88".parse().expect("a span")],
            ..Withheld::default()
        };
        let (past, _) = next(&set, &Occupancy::default(), &withheld, None).expect("free");
        assert_eq!(past, address("fd00:10:244:1:0:100::"));
    }

    #[test]
    fn the_longest_free_comes_first_and_a_fresh_one_before_all() {
        let set = vec![range("10.0.0.0/29")]; // .2 to .6
        let at = |second| Timestamp::from_seconds(second);
        let occupancy = Occupancy {
            taken: BTreeSet::from([address("10.0.0.3")]),
            released: BTreeMap::from([
                (address("10.0.0.2"), at(50)),
                (address("10.0.0.4"), at(20)),
                (address("10.0.0.6"), at(20)),
            ]),
        };
        let expected = ["10.0.0.5", "10.0.0.4", "10.0.0.6", "10.0.0.2"].map(address);
        let order = drain_all(&set, Some(address("10.0.0.5")), occupancy, &Withheld::default());
        assert_eq!(order, expected);
    }

    #[test]
    fn withheld_addresses_are_never_chosen_not_even_when_they_were_given_back() {
        let set = vec![range("10.0.0.0/29")];
        let withheld = Withheld {
            reserved: vec!["10.0.0.2-10.0.0.3".parse().expect("a span")],
            on_request: vec!["10.0.0.5".parse().expect("a span")],
        };
        let released = BTreeMap::from([(address("10.0.0.3"), Timestamp::default())]);
        let occupancy = Occupancy { released, ..Occupancy::default() };
        let order = drain_all(&set, None, occupancy, &withheld);
        assert_eq!(order, ["10.0.0.4", "10.0.0.6"].map(address));
    }

    #[test]
    fn exhaustion_names_the_range() {
        let set = vec![range("10.0.0.0/30")];
        let taken = BTreeSet::from([address("10.0.0.2")]);
        let occupancy = Occupancy { taken, ..Occupancy::default() };
        let error = next(&set, &occupancy, &Withheld::default(), None).expect_err("all taken");
        assert!(error.to_string().contains("10.0.0.1-10.0.0.2"), "{error}");
    }

    #[test]
    fn wrong_ranges_are_refused_with_the_remedy() {
        let with = |start: &str, end: &str| Range {
            range_start: Some(address(start)),
            range_end: Some(address(end)),
            ..range("10.0.0.0/24")
        };
        let rows = [
            (vec![vec![range("10.0.0.5/24")]], "write 10.0.0.0/24"),
            (vec![vec![range("10.0.0.0/31")]], "at least a /30"),
            (vec![vec![range("fd00::/127")]], "at least a /126"),
            (vec![vec![]], "at least one subnet"),
            (vec![vec![with("10.0.1.1", "10.0.0.9")]], "rangeStart 10.0.1.1 is not in"),
            (vec![vec![with("10.0.0.9", "10.0.0.3")]], "is behind rangeEnd"),
            (vec![vec![range("10.0.0.0/24")], vec![range("10.0.0.128/25")]], "overlap"),
            (vec![vec![range("10.0.0.0/24"), range("fd00::/64")]], "write a set for each"),
        ];
        for (sets, expected) in rows {
            let error = check(&sets).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
        let halves = vec![vec![with("10.0.0.2", "10.0.0.99"), with("10.0.0.100", "10.0.0.254")]];
        assert_eq!(check(&halves), Ok(()), "parts of one subnet may stand side by side");
    }
}
