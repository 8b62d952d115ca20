//! The table of consistent hashing (Eisenbud et al., "Maglev", NSDI 2016, section 3.4): each
//! endpoint fills entries in an order of its own, in turns, so that all have equally many and few
//! entries change hands when an endpoint comes or goes. It depends on the endpoints alone: all
//! nodes have the same.

use std::net::SocketAddr;

/// Entries of a table, prime: with up to [`SMALL_ENDPOINTS_MAX`] endpoints, and with more.
const SIZES: [u32; 2] = [1021, 16_381];
/// Endpoints that the smaller table serves within a few percent of equal shares.
const SMALL_ENDPOINTS_MAX: usize = 32;

/// The number of entries for so many endpoints.
pub fn size_for(endpoints: usize) -> u32 {
    SIZES[usize::from(endpoints > SMALL_ENDPOINTS_MAX)]
}

/// For each entry the index of its endpoint. Empty without endpoints.
pub fn table(endpoints: &[SocketAddr], size: u32) -> Vec<usize> {
    let length = size as usize;
    let mut entries: Vec<Option<usize>> = vec![None; length];
    let mut turns: Vec<Turn> = endpoints.iter().map(|one| Turn::new(one, size)).collect();
    let mut filled = 0;
    while filled < length && !turns.is_empty() {
        for (index, turn) in turns.iter_mut().enumerate() {
            if filled == length {
                break;
            }
            // `skip` and `size` have no common divisor: every entry comes up.
            while let Some(entry) = entries.get_mut(turn.next as usize) {
                turn.next = (turn.next + turn.skip) % size;
                if entry.is_none() {
                    *entry = Some(index);
                    filled += 1;
                    break;
                }
            }
        }
    }
    entries.into_iter().flatten().collect()
}

struct Turn {
    next: u32,
    skip: u32,
}

impl Turn {
    fn new(endpoint: &SocketAddr, size: u32) -> Self {
        let hash = hash_of(endpoint);
        // Both are below the size, which has 32 bits.
        let next = (hash >> 32) % u64::from(size);
        let skip = (hash & u64::from(u32::MAX)) % u64::from(size - 1) + 1;
        Self { next: next as u32, skip: skip as u32 }
    }
}

/// FNV-1a with a finish that spreads the last bytes over all bits (that of splitmix64).
fn hash_of(endpoint: &SocketAddr) -> u64 {
    let address = ebpf_abi::address_bytes(endpoint.ip());
    let bytes = address.into_iter().chain(endpoint.port().to_be_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (0..count).map(|last| SocketAddr::from(([10, 244, 0, last], 80))).collect()
    }

    #[test]
    fn every_entry_is_filled_and_endpoints_have_equal_shares() {
        for count in [1, 2, 3, 7, 32, 33, 200] {
            let size = size_for(usize::from(count));
            let table = table(&endpoints(count), size);
            assert_eq!(table.len(), size as usize);
            let shares: Vec<usize> = (0..usize::from(count))
                .map(|index| table.iter().filter(|entry| **entry == index).count())
                .collect();
            let (least, most) = (shares.iter().min(), shares.iter().max());
            let spread = most.zip(least).map_or(0, |(most, least)| most - least);
            assert!(spread <= 1, "{count} endpoints: {shares:?}");
        }
        assert_eq!(table(&[], 1021), Vec::<usize>::new());
    }

    #[test]
    fn an_endpoint_that_goes_takes_few_others_clients_along() {
        let all = endpoints(10);
        let before = table(&all, 1021);
        let rest: Vec<SocketAddr> = all.iter().copied().filter(|one| *one != all[4]).collect();
        let after = table(&rest, 1021);
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| **before != 4 && all[**before] != rest[**after])
            .count();
        assert!(moved * 10 < 1021, "{moved} of 1021 entries changed hands without need");
    }
}
