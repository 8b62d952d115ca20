//! Names of addresses, below `in-addr.arpa` and `ip6.arpa` (RFC 1035, 3.5; RFC 3596, 2.5).
//!
//! The API server hands out the addresses of Services; those of endpoints are whatever somebody
//! wrote, and have names only within the cluster's ranges: nobody answers for others' addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use plan::zone::PodRecords;

use super::labels::Below;
use super::{Found, Index, Node, Pointers, Service};

/// The labels of a reverse name that could be read, as upper bits of an address.
#[derive(Clone, Copy)]
struct Read {
    bits: u128,
    labels: usize,
    label_bits: u32,
    address_bits: u32,
}

impl Index {
    /// Each of the labels is `label_bits` of an address.
    pub(super) fn find_reverse(
        &self,
        below: &Below<'_>,
        label_bits: u32,
        pods: PodRecords,
    ) -> Found<'_> {
        let read = Read::new(below.upper(), label_bits);
        let is_whole = read.labels == below.count();
        let with_pods = pods == PodRecords::Verified;
        let is_address = is_whole && read.labels == (read.address_bits / label_bits) as usize;
        let names = is_address.then(|| self.pointers(read.address(), with_pods)).flatten();
        let cut = self.reverse_cut(read);
        if let Some(pointers) = names {
            // Ranges of Services that came at run time are no zones of ours, but their names are.
            let zone_labels = cut.unwrap_or(read.labels) + 2;
            return Found::Inside { zone_labels, node: Node::Pointers(pointers) };
        }
        let Some(cut) = cut else { return Found::Outside };
        let node = if !is_whole {
            Node::Missing
        } else if read.labels == cut {
            Node::Apex
        } else if !is_address && self.has_names_in(read.range(), with_pods) {
            Node::Empty
        } else {
            Node::Missing
        };
        Found::Inside { zone_labels: cut + 2, node }
    }

    /// The names of an address, if it has some.
    fn pointers(&self, address: IpAddr, with_pods: bool) -> Option<Pointers<'_>> {
        let has_service = self.services_at(address).next().is_some();
        let has_pod = with_pods
            && self.exposed_namespaces(address).next().is_some()
            && self.settings.is_inside(address);
        (has_service || has_pod).then_some(Pointers { index: self, address, with_pods })
    }

    /// The Services that an address leads back to.
    pub(super) fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let numbers = self.reverse.range((address, 0)..=(address, u32::MAX));
        numbers.filter_map(|(_, number)| self.services.get(*number))
    }

    /// How many labels below `arpa`'s child the reverse zone has that was read. A range whose
    /// prefix ends within a label is as many zones as the label has values in it (a /12 is sixteen
    /// zones of two labels), so the cut is the prefix rounded up.
    fn reverse_cut(&self, read: Read) -> Option<usize> {
        let address = read.address();
        self.settings.reverse_ranges.iter().find_map(|range| {
            let cut = u32::from(range.prefix_len()).div_ceil(read.label_bits) as usize;
            (cut > 0 && read.labels >= cut && range.contains(&address)).then_some(cut)
        })
    }

    /// Also of pods that are not exposed: their number is no secret, and nobody goes through it.
    fn has_names_in(&self, range: RangeInclusive<IpAddr>, with_pods: bool) -> bool {
        let (first, last) = (*range.start(), *range.end());
        let mut numbers = self.reverse.range((first, 0)..=(last, u32::MAX));
        numbers.next().is_some() || with_pods && self.pods.are_in(range)
    }
}

impl Read {
    /// Reads labels, the uppermost first, until one is no number in its only spelling.
    fn new(labels: &[&[u8]], label_bits: u32) -> Self {
        let address_bits = if label_bits == 8 { 32 } else { 128 };
        let mut read = Self { bits: 0, labels: 0, label_bits, address_bits };
        let mut free_bits = address_bits;
        for label in labels {
            let value = if label_bits == 8 { octet_of(label) } else { nibble_of(label) };
            let (Some(value), Some(left)) = (value, free_bits.checked_sub(label_bits)) else {
                break;
            };
            free_bits = left;
            read.bits |= u128::from(value) << free_bits;
            read.labels += 1;
        }
        read
    }

    fn address(&self) -> IpAddr {
        self.address_of(self.bits)
    }

    /// All addresses that begin with the bits.
    fn range(&self) -> RangeInclusive<IpAddr> {
        let free_bits = self.address_bits - self.labels as u32 * self.label_bits;
        let span = 1_u128.checked_shl(free_bits).map_or(u128::MAX, |span| span - 1);
        self.address()..=self.address_of(self.bits | span)
    }

    fn address_of(&self, bits: u128) -> IpAddr {
        if self.address_bits == 32 {
            Ipv4Addr::from(bits as u32).into()
        } else {
            Ipv6Addr::from(bits).into()
        }
    }
}

fn octet_of(label: &[u8]) -> Option<u8> {
    if label.len() > 1 && label.starts_with(b"0") || !label.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn nibble_of(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}
