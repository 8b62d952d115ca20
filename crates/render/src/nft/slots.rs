//! Which endpoint stands in which slot: chosen from what is there (invariant 1), so that a change
//! of one endpoint changes one slot, and the others keep theirs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::{FlatMap, FlatSet};
use plan::services::Scheduling;

use super::language::{Datum, Set, Tuple, Value};
use super::layout::{endpoint_datum, endpoint_of};

/// Slots of one frontend whose endpoints have weights, unless it has more endpoints: what a packet
/// finds is right to a two-hundredth.
const WEIGHT_SLOTS_MAX: u32 = 256;

/// How many slots each endpoint of a frontend has, at least one.
pub type Shares = FlatMap<SocketAddr, u32>;

/// The shares of endpoints: equal but for weights, which are brought down to their least numbers
/// with the same proportions, and further to so many slots as there may be.
pub fn shares(endpoints: &FlatSet<SocketAddr>, scheduling: &Scheduling) -> Shares {
    let Scheduling::Weighted(weights) = scheduling else {
        return endpoints.iter().map(|&endpoint| (endpoint, 1)).collect();
    };
    // The plan names each; one that it did not would have to be reached all the same.
    let weight = |endpoint| weights.get(endpoint).map_or(1, |&weight| u32::from(weight.max(1)));
    let divisor = endpoints.iter().map(weight).fold(0, greatest_common_divisor).max(1);
    let total: u32 = endpoints.iter().map(|endpoint| weight(endpoint) / divisor).sum();
    let share = |endpoint| {
        let share = weight(endpoint) / divisor;
        if total <= WEIGHT_SLOTS_MAX {
            return share;
        }
        let scaled = u64::from(share) * u64::from(WEIGHT_SLOTS_MAX) / u64::from(total);
        u32::try_from(scaled).unwrap_or(WEIGHT_SLOTS_MAX).max(1)
    };
    endpoints.iter().map(|endpoint| (*endpoint, share(endpoint))).collect()
}

fn greatest_common_divisor(one: u32, other: u32) -> u32 {
    let (mut one, mut other) = (one, other);
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// The elements of one frontend, each endpoint in as many slots as its share says: chosen from what
/// the map holds.
pub fn assign(frontend: &Tuple, shares: &Shares, present: Option<&Set>) -> Vec<(Tuple, Datum)> {
    let kept = present.map(|set| slots_of(set, frontend)).unwrap_or_default();
    let slots = (0_u32..).zip(choose(&kept, shares));
    slots
        .map(|(slot, endpoint)| {
            let datum = endpoint_datum(endpoint.ip(), endpoint.port());
            (slot_key(frontend, slot), datum)
        })
        .collect()
}

/// The elements of one frontend.
pub fn elements_of(set: &Set, frontend: &Tuple) -> impl Iterator<Item = (Tuple, Datum)> {
    set.elements.starting_with(frontend)
}

/// The endpoints of one frontend by slot.
fn slots_of(set: &Set, frontend: &Tuple) -> BTreeMap<u32, SocketAddr> {
    elements_of(set, frontend)
        .filter_map(|(key, datum)| match key.last() {
            Some(Value::Number(slot)) => Some((*slot, endpoint_of(&datum)?)),
            _ => None,
        })
        .collect()
}

fn slot_key(frontend: &Tuple, slot: u32) -> Tuple {
    frontend.iter().copied().chain([Value::Number(slot)]).collect()
}

/// One endpoint a slot: those that have a slot below the count keep it, the others fill the gaps
/// in order.
fn choose(present: &BTreeMap<u32, SocketAddr>, shares: &Shares) -> Vec<SocketAddr> {
    let mut unplaced = shares.clone();
    let count = shares.values().sum();
    let mut slots: Vec<Option<SocketAddr>> = Vec::new();
    for slot in 0..count {
        let kept = present.get(&slot).and_then(|endpoint| {
            let left = unplaced.get_mut(endpoint).filter(|left| **left > 0)?;
            *left -= 1;
            Some(*endpoint)
        });
        slots.push(kept);
    }
    let rest = unplaced.into_iter();
    let mut rest = rest.flat_map(|(endpoint, left)| (0..left).map(move |_| endpoint));
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, last], 80))
    }

    fn chosen(present: &[(u32, u8)], endpoints: &[u8]) -> Vec<SocketAddr> {
        let present = present.iter().map(|&(slot, last)| (slot, endpoint(last))).collect();
        choose(&present, &endpoints.iter().map(|&last| (endpoint(last), 1)).collect())
    }

    #[test]
    fn endpoints_keep_their_slots_and_new_ones_fill_the_gaps() {
        assert_eq!(chosen(&[(0, 9), (1, 2), (2, 5)], &[1, 2, 5]), [1, 2, 5].map(endpoint));
        assert_eq!(chosen(&[(0, 2), (1, 1)], &[1, 2, 3]), [2, 1, 3].map(endpoint));
    }

    #[test]
    fn the_last_slot_moves_into_the_gap_when_the_count_falls() {
        assert_eq!(chosen(&[(0, 1), (1, 2), (2, 3)], &[2, 3]), [3, 2].map(endpoint));
    }

    #[test]
    fn an_endpoint_that_stands_in_two_slots_keeps_one() {
        assert_eq!(chosen(&[(0, 1), (1, 1)], &[1, 2]), [1, 2].map(endpoint));
    }

    #[test]
    fn weights_keep_their_proportions_within_the_limit() {
        let rows: [(&[u16], &[u32]); 5] = [
            (&[1, 1], &[1, 1]),
            (&[10, 30], &[1, 3]),
            (&[300, 200, 500], &[3, 2, 5]),
            (&[65_535, 1], &[255, 1]),
            (&[999, 1_000], &[127, 128]),
        ];
        for (weights, expected) in rows {
            let weights: BTreeMap<SocketAddr, u16> =
                (1_u8..).map(endpoint).zip(weights.iter().copied()).collect();
            let endpoints = weights.keys().copied().collect();
            let found = shares(&endpoints, &Scheduling::Weighted(weights));
            assert_eq!(found.into_values().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn an_endpoint_keeps_as_many_slots_as_its_share() {
        let present = [(0, 1), (1, 1), (2, 1), (3, 2)].map(|(slot, last)| (slot, endpoint(last)));
        let shares = [(endpoint(1), 1), (endpoint(2), 2)].into();
        assert_eq!(choose(&present.into(), &shares), [1, 2, 2].map(endpoint));
    }
}
