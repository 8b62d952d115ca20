//! Ranges of the cluster's clients, so that thousands of nodes cost a question a few steps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;

/// Ranges, and which lengths of prefixes there are among them: of many nodes one or two a family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    ranges: BTreeSet<IpNet>,
    /// How many ranges have each length; addresses of either family with lengths of the other have
    /// no range.
    lengths: BTreeMap<u8, usize>,
}

impl Ranges {
    pub(crate) fn set(&mut self, range: IpNet, is_there: bool) {
        let range = range.trunc();
        let length = range.prefix_len();
        if is_there && self.ranges.insert(range) {
            *self.lengths.entry(length).or_default() += 1;
        } else if !is_there && self.ranges.remove(&range) {
            let count = self.lengths.entry(length).or_default();
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// Whether a range is one of these, as a whole.
    pub(crate) fn has(&self, range: &IpNet) -> bool {
        self.ranges.contains(&range.trunc())
    }

    /// Whether an address is inside one of them.
    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        self.lengths.keys().any(|length| {
            let range = IpNet::new(address, *length);
            range.is_ok_and(|range| self.ranges.contains(&range.trunc()))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.ranges.iter()
    }

    /// Those from a range on; without one, none.
    pub(crate) fn behind(&self, from: Option<Bound<&IpNet>>) -> impl Iterator<Item = &IpNet> {
        let ranges = from.map(|from| self.ranges.range((from, Bound::Unbounded)));
        ranges.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_ranges_of_all_lengths_until_these_go() {
        let mut ranges = Ranges::default();
        let range = |text: &str| -> IpNet { text.parse().expect("a range") };
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        for text in ["10.244.1.0/24", "172.30.0.2/32", "172.30.0.3/32", "fd00:1::/64"] {
            ranges.set(range(text), true);
            ranges.set(range(text), true);
        }
        for (asked, expected) in [
            ("10.244.1.200", true),
            ("10.244.2.1", false),
            ("172.30.0.3", true),
            ("172.30.0.4", false),
            ("fd00:1::5", true),
            ("fd00:2::5", false),
        ] {
            assert_eq!(ranges.hold(address(asked)), expected, "{asked}");
        }
        ranges.set(range("172.30.0.2/32"), false);
        ranges.set(range("172.30.0.2/32"), false);
        assert!(!ranges.hold(address("172.30.0.2")) && ranges.hold(address("172.30.0.3")));
        assert_eq!(ranges.iter().count(), 3);
    }
}
