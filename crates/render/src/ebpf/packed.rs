//! Entries of maps, and frontends, as bytes: a node keeps tens of thousands, of what shall be and
//! of what is.

use std::fmt::{self, Debug};
use std::iter;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ebpf_abi::address_bytes;
use ebpf_abi::services::{MemberKey, RangeKey, Service, ServiceKey, Slot, SlotKey};
use ipnet::IpNet;
use model::packed::{Unsorted, take_bytes};
use model::{Pack, PackedMap, Part, Protocol, Unpack};

use super::{FrontendKey, FrontendProgram, ServiceSource, View};

/// What one map holds, in the order of the bytes that its keys are kept as; entries of one id are
/// neighbours.
#[derive(Clone, PartialEq, Eq)]
pub struct Entries<K, V>(PackedMap<Packed<K>, Packed<V>>);

/// Entries in any order, for [`Entries`] that are made of them at once.
pub struct UnsortedEntries<K, V>(Unsorted<Packed<K>, Packed<V>>);

/// A key or a value of a map. Most of their types are another crate's.
#[derive(Clone)]
struct Packed<T>(T);

/// What a map's keys and values are kept as.
pub trait Field: Copy {
    /// Appends the value.
    fn put(&self, to: &mut Vec<u8>);
    /// Takes the value from the front of the bytes, or from all of them.
    fn read(bytes: &mut &[u8]) -> Self;
}

impl<K: Field, V: Field> Entries<K, V> {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.0.get(&Packed(*key)).map(|value| value.0)
    }

    /// Whether the key has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.0.contains_key(&Packed(*key))
    }

    /// Gives a key a value.
    pub fn insert(&mut self, key: K, value: V) {
        self.0.insert(&Packed(key), &Packed(value));
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) {
        self.0.remove(&Packed(*key));
    }

    /// The entries by key.
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.0.iter().map(|(key, value)| (key.0, value.0))
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.0.keys().map(|key| key.0)
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = V> {
        self.0.values().map(|value| value.0)
    }

    /// The entries of an id, where keys begin with one.
    pub(crate) fn of_id(&self, id: u32) -> impl Iterator<Item = (K, V)> {
        self.0.starting_with(&id).map(|(key, value)| (key.0, value.0))
    }

    /// The entries that another map lacks, or has with another value.
    pub(super) fn other_than_in(&self, other: &Self) -> Vec<(K, V)> {
        self.0.other_than_in(&other.0).map(|(key, value)| (key.0, value.0)).collect()
    }

    /// The keys that another map lacks.
    pub(super) fn keys_absent_in(&self, other: &Self) -> Vec<K> {
        self.0.keys_absent_in(&other.0).map(|key| key.0).collect()
    }
}

impl<K: Field> Entries<K, Service> {
    /// The ids that frontends name, of inside and of outside views, 0 where they have none.
    pub(super) fn named_ids(&self) -> impl Iterator<Item = u32> {
        let ids = |mut service: &[u8]| [take_number(&mut service), take_number(&mut service)];
        self.0.values_by(ids).flatten()
    }
}

impl<K: Field, V: Field> UnsortedEntries<K, V> {
    /// Adds an entry. Of equal keys the last one counts.
    pub fn push(&mut self, key: K, value: V) {
        self.0.push(&Packed(key), &Packed(value));
    }

    /// The entries by key.
    pub fn into_entries(self) -> Entries<K, V> {
        Entries(self.0.into_map())
    }
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self(PackedMap::new())
    }
}

impl<K, V> Default for UnsortedEntries<K, V> {
    fn default() -> Self {
        Self(Unsorted::default())
    }
}

impl<K: Field + Debug, V: Field + Debug> Debug for Entries<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Of equal keys the last one counts.
impl<K: Field, V: Field> Extend<(K, V)> for Entries<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, more: I) {
        self.0.extend(more.into_iter().map(|(key, value)| (Packed(key), Packed(value))));
    }
}

/// Of equal keys the last one counts.
impl<K: Field, V: Field> FromIterator<(K, V)> for Entries<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut unsorted = UnsortedEntries::default();
        entries.into_iter().for_each(|(key, value)| unsorted.push(key, value));
        unsorted.into_entries()
    }
}

impl<T: Field> Pack for Packed<T> {
    fn pack(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }
}

impl<T: Field> Unpack for Packed<T> {
    fn unpack(mut bytes: &[u8]) -> Self {
        Self(T::read(&mut bytes))
    }
}

impl Field for ServiceKey {
    fn put(&self, to: &mut Vec<u8>) {
        put_address(to, self.address);
        to.extend(self.port.to_be_bytes());
        to.extend([self.protocol, self.scope]);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        let (address, port) = (take_address(bytes), take_port(bytes));
        let [protocol, scope] = take_bytes(bytes);
        Self { address, port, protocol, scope }
    }
}

impl Field for RangeKey {
    fn put(&self, to: &mut Vec<u8>) {
        put_address(to, self.address);
        to.extend([self.protocol, self.zero]);
        to.extend(self.port.to_be_bytes());
        put_number(to, self.prefix_bits);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        let address = take_address(bytes);
        let [protocol, zero] = take_bytes(bytes);
        let port = take_port(bytes);
        Self { prefix_bits: take_number(bytes), address, protocol, zero, port }
    }
}

impl Field for Service {
    fn put(&self, to: &mut Vec<u8>) {
        // Ids come first: they are also read alone.
        let numbers = [
            self.id,
            self.outside_id,
            self.flags,
            self.count,
            self.outside_count,
            self.affinity_timeout_s,
            self.maglev_size,
            self.near_count,
        ];
        numbers.into_iter().for_each(|number| put_number(to, number));
        let is_used = |slot: &Slot| *slot != Slot::default();
        let used = self.near.iter().rposition(is_used).map_or(0, |last| last + 1);
        self.near.iter().take(used).for_each(|slot| slot.put(to));
    }

    /// From all of the bytes.
    fn read(bytes: &mut &[u8]) -> Self {
        let mut service = Self {
            id: take_number(bytes),
            outside_id: take_number(bytes),
            flags: take_number(bytes),
            count: take_number(bytes),
            outside_count: take_number(bytes),
            affinity_timeout_s: take_number(bytes),
            maglev_size: take_number(bytes),
            near_count: take_number(bytes),
            near: Default::default(),
        };
        for place in &mut service.near {
            if bytes.is_empty() {
                break;
            }
            *place = Slot::read(bytes);
        }
        service
    }
}

impl Field for SlotKey {
    fn put(&self, to: &mut Vec<u8>) {
        self.id.pack(to);
        self.slot.pack(to);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        Self { id: Part::take(bytes), slot: Part::take(bytes) }
    }
}

impl Field for Slot {
    fn put(&self, to: &mut Vec<u8>) {
        put_address(to, self.address);
        to.extend(self.port.to_be_bytes());
        to.extend(self.zero);
        // Mostly all bits are set.
        put_number(to, !self.keep);
        put_number(to, self.alias);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        Self {
            address: take_address(bytes),
            port: take_port(bytes),
            zero: take_bytes(bytes),
            keep: !take_number(bytes),
            alias: take_number(bytes),
        }
    }
}

impl Field for MemberKey {
    fn put(&self, to: &mut Vec<u8>) {
        self.id.pack(to);
        put_address(to, self.address);
        to.extend(self.port.to_be_bytes());
        to.extend(self.zero);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        let (id, address) = (Part::take(bytes), take_address(bytes));
        Self { id, address, port: take_port(bytes), zero: take_bytes(bytes) }
    }
}

impl Field for ServiceSource {
    fn put(&self, to: &mut Vec<u8>) {
        self.id.pack(to);
        self.range.put(to);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        Self { id: Part::take(bytes), range: IpNet::read(bytes) }
    }
}

impl Field for IpNet {
    fn put(&self, to: &mut Vec<u8>) {
        self.addr().pack(to);
        to.push(self.prefix_len());
    }

    fn read(bytes: &mut &[u8]) -> Self {
        let address = IpAddr::take(bytes);
        let [prefix_len] = take_bytes(bytes);
        Self::new_assert(address, prefix_len)
    }
}

impl Field for IpAddr {
    fn put(&self, to: &mut Vec<u8>) {
        self.pack(to);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        Part::take(bytes)
    }
}

impl Field for u32 {
    fn put(&self, to: &mut Vec<u8>) {
        put_number(to, *self);
    }

    fn read(bytes: &mut &[u8]) -> Self {
        take_number(bytes)
    }
}

/// Of maps that are sets.
impl Field for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut &[u8]) -> Self {}
}

impl Pack for FrontendKey {
    fn pack(&self, to: &mut Vec<u8>) {
        match self {
            Self::Port(key) => {
                to.push(0);
                key.put(to);
            }
            Self::Range { address, protocol, first, last } => {
                to.push(1);
                address.pack(to);
                to.push(protocol.number());
                to.extend(first.to_be_bytes());
                to.extend(last.to_be_bytes());
            }
        }
    }
}

impl Unpack for FrontendKey {
    fn unpack(mut bytes: &[u8]) -> Self {
        let bytes = &mut bytes;
        let [kind] = take_bytes(bytes);
        if kind == 0 {
            return Self::Port(ServiceKey::read(bytes));
        }
        let address = IpAddr::take(bytes);
        let [number] = take_bytes(bytes);
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = all.into_iter().find(|protocol| protocol.number() == number);
        Self::Range {
            address,
            protocol: protocol.expect("what was packed is a protocol"),
            first: take_port(bytes),
            last: take_port(bytes),
        }
    }
}

/// What is true of a frontend, a bit each.
mod holds {
    pub const OUTSIDE: u8 = 1;
    pub const MASQUERADE: u8 = 2;
    pub const DIRECT: u8 = 4;
    pub const AFFINITY: u8 = 8;
    pub const SOURCE_RANGES: u8 = 16;
    pub const NODE_ALLOWED: u8 = 32;
    pub const MAGLEV: u8 = 64;
    pub const MEMBERS: u8 = 128;
}

impl Pack for FrontendProgram {
    fn pack(&self, to: &mut Vec<u8>) {
        let rows = [
            (self.outside.is_some(), holds::OUTSIDE),
            (self.masquerade, holds::MASQUERADE),
            (self.direct, holds::DIRECT),
            (self.affinity_timeout_s.is_some(), holds::AFFINITY),
            (self.source_ranges.is_some(), holds::SOURCE_RANGES),
            (self.is_node_allowed, holds::NODE_ALLOWED),
            (self.maglev, holds::MAGLEV),
            (self.has_members, holds::MEMBERS),
        ];
        to.push(rows.into_iter().filter(|(holds, _)| *holds).map(|(_, bit)| bit).sum());
        self.inside.put(to);
        self.outside.iter().for_each(|view| view.put(to));
        self.affinity_timeout_s.iter().for_each(|timeout| put_number(to, *timeout));
        self.source_ranges.iter().flatten().for_each(|range| range.put(to));
    }
}

impl Unpack for FrontendProgram {
    fn unpack(mut bytes: &[u8]) -> Self {
        let bytes = &mut bytes;
        let [bits] = take_bytes(bytes);
        let holds = |bit: u8| bits & bit != 0;
        let inside = View::read(bytes);
        let outside = holds(holds::OUTSIDE).then(|| View::read(bytes));
        let affinity_timeout_s = holds(holds::AFFINITY).then(|| take_number(bytes));
        let range = || (!bytes.is_empty()).then(|| IpNet::read(bytes));
        Self {
            inside,
            outside,
            masquerade: holds(holds::MASQUERADE),
            direct: holds(holds::DIRECT),
            affinity_timeout_s,
            source_ranges: holds(holds::SOURCE_RANGES).then(|| iter::from_fn(range).collect()),
            is_node_allowed: holds(holds::NODE_ALLOWED),
            maglev: holds(holds::MAGLEV),
            has_members: holds(holds::MEMBERS),
        }
    }
}

/// What a view begins with; then how many endpoints there are, and these.
mod view {
    pub const ENDPOINTS: u8 = 0;
    pub const REJECT: u8 = 1;
    pub const DROP: u8 = 2;
}

impl View {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Endpoints(endpoints) => {
                to.push(view::ENDPOINTS);
                put_number(to, u32::try_from(endpoints.len()).unwrap_or(u32::MAX));
                for (endpoint, weight) in endpoints {
                    endpoint.pack(to);
                    put_number(to, u32::from(*weight));
                }
            }
            Self::Reject => to.push(view::REJECT),
            Self::Drop => to.push(view::DROP),
        }
    }

    fn read(bytes: &mut &[u8]) -> Self {
        match take_bytes(bytes) {
            [view::ENDPOINTS] => {
                let count = take_number(bytes);
                let endpoint = |_| {
                    let endpoint = SocketAddr::take(bytes);
                    (endpoint, u16::try_from(take_number(bytes)).unwrap_or(u16::MAX))
                };
                Self::Endpoints((0..count).map(endpoint).collect())
            }
            [view::REJECT] => Self::Reject,
            _ => Self::Drop,
        }
    }
}

fn put_address(to: &mut Vec<u8>, address: [u8; 16]) {
    IpAddr::V6(Ipv6Addr::from(address)).to_canonical().pack(to);
}

fn take_address(bytes: &mut &[u8]) -> [u8; 16] {
    address_bytes(IpAddr::take(bytes))
}

fn take_port(bytes: &mut &[u8]) -> u16 {
    u16::from_be_bytes(take_bytes(bytes))
}

/// Seven bits a byte, the least first: most numbers are small.
fn put_number(to: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> u32 {
    let mut number = 0;
    for shift in (0..u32::BITS).step_by(7) {
        let [byte] = take_bytes(bytes);
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NUMBERS: [u32; 7] = [0, 1, 127, 128, 0xffff, u32::MAX - 1, u32::MAX];

    fn address(text: &str) -> [u8; 16] {
        address_bytes(text.parse().expect("an address"))
    }

    fn read_back<T: Field + PartialEq + Debug>(values: &[T]) {
        for value in values {
            let mut bytes = Vec::new();
            value.put(&mut bytes);
            let mut rest = bytes.as_slice();
            assert_eq!(T::read(&mut rest), *value);
            assert!(rest.is_empty(), "{value:?}");
        }
    }

    /// Also what only somebody else would write into a map: it has to be seen, and put right.
    #[test]
    fn what_maps_have_is_read_as_it_was_put() {
        read_back(&NUMBERS);
        let slots = NUMBERS.map(|number| Slot {
            address: address(if number % 2 == 0 { "10.244.1.3" } else { "fd00::7" }),
            port: 8080,
            zero: [number as u8, 1],
            keep: number,
            alias: !number,
        });
        read_back(&slots);
        let service = Service {
            flags: 0x81,
            id: 300,
            count: 7,
            outside_id: u32::MAX,
            outside_count: 1,
            affinity_timeout_s: 10_800,
            maglev_size: 1021,
            near_count: 2,
            ..Service::default()
        };
        let mut gap = service;
        gap.near[1] = slots[2];
        let mut full = service;
        full.near.iter_mut().zip(slots).for_each(|(place, slot)| *place = slot);
        read_back(&[Service::default(), service, gap, full]);
        for address in ["10.96.0.1", "::", "::10.96.0.1", "fd00::1"].map(address) {
            read_back(&[ServiceKey { address, port: 443, protocol: 6, scope: 1 }]);
            read_back(&[MemberKey { id: 7, address, port: 53, zero: [0, 9] }]);
            let range = RangeKey { prefix_bits: 158, address, protocol: 17, zero: 3, port: 4 };
            read_back(&[range]);
        }
        read_back(&[SlotKey { id: 1, slot: 0x0102_0304 }]);
        for text in ["0.0.0.0/0", "10.1.2.3/15", "fd00::/128"] {
            let range: IpNet = text.parse().expect("a range");
            read_back(&[range]);
            read_back(&[ServiceSource { id: 256, range }]);
        }
    }

    #[test]
    fn frontends_are_read_as_they_were_put() {
        let key = ServiceKey { address: address("10.96.0.1"), port: 443, protocol: 6, scope: 0 };
        let range = |text: &str| FrontendKey::Range {
            address: text.parse().expect("an address"),
            protocol: Protocol::Udp,
            first: 1000,
            last: 0xffff,
        };
        let endpoints = |count: u8| {
            let endpoint =
                |last| (SocketAddr::from(([10, 244, 1, last], 80)), u16::from(last) * 99);
            View::Endpoints((0..count).map(endpoint).collect())
        };
        let plain = FrontendProgram {
            inside: endpoints(0),
            outside: None,
            masquerade: false,
            direct: true,
            affinity_timeout_s: None,
            source_ranges: None,
            is_node_allowed: false,
            maglev: true,
            has_members: false,
        };
        let ranges = ["10.0.0.0/8", "fd00::/64"].map(|text| text.parse().expect("a range"));
        let full = FrontendProgram {
            inside: View::Reject,
            outside: Some(endpoints(200)),
            masquerade: true,
            direct: false,
            affinity_timeout_s: Some(10_800),
            source_ranges: Some(ranges.into()),
            is_node_allowed: true,
            maglev: false,
            has_members: true,
        };
        let nobody = FrontendProgram {
            outside: Some(View::Drop),
            source_ranges: Some([].into()),
            ..plain.clone()
        };
        let all = [
            (FrontendKey::Port(key), plain),
            (range("10.96.0.1"), full),
            (range("fd00::1"), nobody),
        ];
        let packed: PackedMap<FrontendKey, FrontendProgram> = all.iter().cloned().collect();
        assert_eq!(packed.iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn entries_of_an_id_are_neighbours_in_order() {
        let keys = [3, 256, 4, 0x0304].into_iter().flat_map(|id| {
            [0, 1, 255, 256, 70_000].into_iter().rev().map(move |slot| SlotKey { id, slot })
        });
        let entries: Entries<SlotKey, u32> = keys.clone().map(|key| (key, key.slot)).collect();
        let tree: BTreeMap<SlotKey, u32> = keys.map(|key| (key, key.slot)).collect();
        assert!(entries.iter().eq(tree.clone()), "{entries:?}");
        let of_one: Vec<u32> = entries.of_id(4).map(|(_, number)| number).collect();
        assert_eq!(of_one, [0, 1, 255, 256, 70_000]);
        assert_eq!(entries.of_id(5).count(), 0);
    }

    #[test]
    fn ids_are_read_alone() {
        let key = |port| ServiceKey { port, ..ServiceKey::default() };
        let service = |id, outside_id| Service { id, outside_id, flags: 1, ..Service::default() };
        let entries: Entries<ServiceKey, Service> =
            [(key(1), service(700, 0)), (key(2), service(0, 90_000))].into_iter().collect();
        assert_eq!(entries.named_ids().collect::<Vec<_>>(), [700, 0, 0, 90_000]);
    }
}
