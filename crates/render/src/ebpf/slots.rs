//! Which endpoint stands in which slot, and how often each is chosen.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ebpf_abi::address_bytes;
use ebpf_abi::services::{KEEP_ALWAYS, Slot};
use model::FlatMap;

/// The slots of a view, in order. Endpoints that have a slot below the count keep it, the others
/// fill the gaps in order: a change of one endpoint changes one slot (invariant 1).
pub fn assign(
    present: impl Iterator<Item = (u32, Slot)>,
    endpoints: &FlatMap<SocketAddr, u16>,
) -> Vec<Slot> {
    let mut unplaced: BTreeMap<([u8; 16], u16), u16> = endpoints
        .iter()
        .map(|(endpoint, weight)| ((address_bytes(endpoint.ip()), endpoint.port()), *weight))
        .collect();
    let mut places = vec![None; endpoints.len()];
    for (number, slot) in present {
        if let Some(place) = places.get_mut(number as usize) {
            let key = (slot.address, slot.port);
            *place = unplaced.remove(&key).map(|weight| (key, weight));
        }
    }
    let mut rest = unplaced.into_iter();
    let placed: Vec<_> =
        places.into_iter().filter_map(|place| place.or_else(|| rest.next())).collect();
    let weights: Vec<u16> = placed.iter().map(|(_, weight)| *weight).collect();
    let chances = alias_table(&weights);
    let slot =
        |(((address, port), _), (keep, alias))| Slot { address, port, zero: [0; 2], keep, alias };
    placed.into_iter().zip(chances).map(slot).collect()
}

/// For each slot, with which probability (of 2³²) who drew it stays, and to which slot it goes
/// otherwise, so that slots are chosen by weight (Walker's method in Vose's form, in integers). A
/// slot of weight 0 is never chosen, unless all have it: then all count alike.
fn alias_table(weights: &[u16]) -> Vec<(u32, u32)> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut table: Vec<(u32, u32)> = (0..).take(weights.len()).map(|n| (KEEP_ALWAYS, n)).collect();
    if total == 0 {
        return table;
    }
    let count = weights.len() as u64;
    let mut shares: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) * count).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|index| shares[*index] < total);
    while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
        // Of equal numbers in both hands the kept share is below one, so below 2³².
        let keep = u32::try_from((shares[less] << 32) / total).unwrap_or(KEEP_ALWAYS);
        table[less] = (keep, u32::try_from(more).unwrap_or(0));
        shares[more] -= total - shares[less];
        if shares[more] < total {
            large.pop();
            small.push(more);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, last], 80))
    }

    fn slot(last: u8) -> Slot {
        let endpoint = endpoint(last);
        Slot { address: address_bytes(endpoint.ip()), port: endpoint.port(), ..Slot::default() }
    }

    fn chosen(present: &[(u32, u8)], endpoints: &[u8]) -> Vec<u8> {
        let present = present.iter().map(|&(number, last)| (number, slot(last)));
        let endpoints = endpoints.iter().map(|last| (endpoint(*last), 1)).collect();
        assign(present, &endpoints).iter().map(|slot| slot.address[15]).collect()
    }

    #[test]
    fn endpoints_keep_their_slots_and_new_ones_fill_the_gaps() {
        assert_eq!(chosen(&[(0, 9), (1, 2), (2, 5)], &[1, 2, 5]), [1, 2, 5]);
        assert_eq!(chosen(&[(0, 2), (1, 1)], &[1, 2, 3]), [2, 1, 3]);
        assert_eq!(chosen(&[(0, 1), (1, 2), (2, 3)], &[2, 3]), [3, 2]);
        assert_eq!(chosen(&[(0, 1), (1, 1)], &[1, 2]), [1, 2]);
    }

    #[test]
    fn slots_are_chosen_by_weight() {
        let rows: [&[u16]; 7] =
            [&[1], &[1, 1, 1], &[1, 3], &[0, 5, 5], &[65_535, 1, 1], &[7, 0, 0, 1], &[2, 3, 5, 7]];
        for weights in rows {
            let table = alias_table(weights);
            let mut chances = vec![0.0; weights.len()];
            for (index, (keep, alias)) in table.iter().enumerate() {
                let stays =
                    if *keep == KEEP_ALWAYS { 1.0 } else { f64::from(*keep) / 2_f64.powi(32) };
                chances[index] += stays / weights.len() as f64;
                chances[*alias as usize] += (1.0 - stays) / weights.len() as f64;
            }
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (chance, weight) in chances.iter().zip(weights) {
                let expected = f64::from(*weight) / total;
                assert!((chance - expected).abs() < 1e-8, "{weights:?}: {chances:?}");
            }
        }
    }

    #[test]
    fn equal_weights_need_no_second_draw_and_none_at_all_are_equal() {
        for weights in [&[4_u16, 4, 4][..], &[0, 0]] {
            for (index, (keep, alias)) in (0_u32..).zip(alias_table(weights)) {
                assert_eq!((keep, alias), (KEEP_ALWAYS, index), "{weights:?}");
            }
        }
    }
}
