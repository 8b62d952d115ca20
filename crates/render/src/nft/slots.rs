//! Which endpoint stands in which slot: chosen from what is there (invariant 1), so that a change
//! of one endpoint changes one slot, and the others keep theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::TableProgram;
use super::language::{Set, Table, Tuple, Value};
use super::layout::{endpoint_datum, endpoint_of};

/// The table that shall be, with a slot for each endpoint.
pub fn assign(program: &TableProgram, observed: Option<&Table>) -> Table {
    let mut table = program.table.clone();
    for (name, frontends) in &program.endpoints {
        let present = observed.and_then(|table| table.sets.get(name));
        let Some(set) = table.sets.get_mut(name) else { continue };
        for (frontend, endpoints) in frontends {
            let kept = present.map(|set| slots_of(set, frontend)).unwrap_or_default();
            for (slot, endpoint) in (0_u32..).zip(choose(&kept, endpoints)) {
                let key = slot_key(frontend, slot);
                set.elements.insert(key, endpoint_datum(endpoint.ip(), endpoint.port()));
            }
        }
    }
    table
}

/// The endpoints of one frontend by slot.
pub fn slots_of(set: &Set, frontend: &Tuple) -> BTreeMap<u32, SocketAddr> {
    set.elements
        .range(frontend.clone()..)
        .take_while(|(key, _)| key.starts_with(frontend))
        .filter_map(|(key, datum)| match key.last() {
            Some(Value::Number(slot)) => Some((*slot, endpoint_of(datum)?)),
            _ => None,
        })
        .collect()
}

fn slot_key(frontend: &Tuple, slot: u32) -> Tuple {
    frontend.iter().copied().chain([Value::Number(slot)]).collect()
}

/// One endpoint a slot: those that have a slot below the count keep it, the others fill the gaps
/// in order.
fn choose(
    present: &BTreeMap<u32, SocketAddr>,
    endpoints: &BTreeSet<SocketAddr>,
) -> Vec<SocketAddr> {
    let mut unplaced = endpoints.clone();
    let mut slots: Vec<Option<SocketAddr>> = vec![None; endpoints.len()];
    for (index, slot) in (0_u32..).zip(&mut slots) {
        *slot = present.get(&index).copied().filter(|endpoint| unplaced.remove(endpoint));
    }
    let mut rest = unplaced.into_iter();
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
        choose(&present, &endpoints.iter().map(|&last| endpoint(last)).collect())
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
}
