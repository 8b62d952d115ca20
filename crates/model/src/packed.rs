//! Maps of many entries that are read one at a time, in few bytes.

use std::cmp::Ordering;
use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use crate::{EndpointSlice, FlatMap, NamespacedName, Service};

/// What can be written down as bytes for a [`PackedMap`]. Equal values are written alike.
pub trait Pack {
    /// Appends the value.
    fn pack(&self, to: &mut Vec<u8>);
}

/// What a [`PackedMap`] keeps.
pub trait Unpack: Pack + Sized {
    /// The value that was written as these bytes.
    fn unpack(bytes: &[u8]) -> Self;
}

/// A value whose bytes tell where it ends, so that several can stand in a row.
pub trait Part: Pack + Sized {
    /// Takes the value from the front of the bytes.
    fn take(bytes: &mut &[u8]) -> Self;
}

/// Takes so many bytes from the front of what a value was written as.
///
/// # Panics
/// When fewer are left: no value that was packed has fewer.
pub fn take_bytes<const COUNT: usize>(bytes: &mut &[u8]) -> [u8; COUNT] {
    let (first, rest) = bytes.split_first_chunk().expect("what was packed is whole");
    *bytes = rest;
    *first
}

/// Bytes of entries that lie in one piece of memory, unless a single entry has more: few enough to
/// go through them one by one.
const BLOCK_BYTES_MAX: usize = 1024;

/// To search for the place of one entry costs as much as to copy so many.
const COPIES_A_SEARCH: usize = 16;

/// A map in the order of its keys' bytes, whose entries lie one behind the other: a map of addresses
/// and ports takes a tenth of what a tree of values does. To find an entry is to go through a block
/// of others, and to read one is to make it anew.
#[derive(Clone)]
pub struct PackedMap<K, V> {
    /// None of them is empty.
    blocks: Vec<Vec<u8>>,
    len: usize,
    of: PhantomData<fn() -> (K, V)>,
}

/// One entry as it lies in a block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// Where an entry is, or would be.
struct Place {
    block: usize,
    start: usize,
    /// Where the entry ends, if it is there.
    end: Option<usize>,
}

impl<K, V> PackedMap<K, V> {
    /// Without any entry.
    pub fn new() -> Self {
        Self { blocks: Vec::new(), len: 0, of: PhantomData }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all entries out.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// The map of entries in order, each with a key of its own, in full blocks.
    fn of_records<'a>(records: impl Iterator<Item = Record<'a>>) -> Self {
        let mut map = Self::new();
        let mut block: Vec<u8> = Vec::with_capacity(2 * BLOCK_BYTES_MAX);
        for record in records {
            let end = block.len();
            record.write(&mut block);
            if block.len() > BLOCK_BYTES_MAX && end > 0 {
                let entry = block.split_off(end);
                map.blocks.push(block.as_slice().to_vec());
                block.clear();
                block.extend(entry);
            }
            map.len += 1;
        }
        if !block.is_empty() {
            map.blocks.push(block.as_slice().to_vec());
        }
        map.blocks.shrink_to_fit();
        map
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.blocks.iter().flat_map(|block| Records(block))
    }

    /// The entries whose keys begin with some bytes.
    fn records_with(&self, prefix: Vec<u8>) -> impl Iterator<Item = Record<'_>> {
        let before = self.block_of(&prefix);
        let records = self.blocks.iter().skip(before).flat_map(|block| Records(block));
        let mut records = records.skip_while({
            let prefix = prefix.clone();
            move |record| record.key < prefix.as_slice()
        });
        std::iter::from_fn(move || records.next().filter(|record| record.key.starts_with(&prefix)))
    }

    /// The last block that does not begin behind a key.
    fn block_of(&self, key: &[u8]) -> usize {
        let first = |block: &[u8]| Records(block).next().is_some_and(|first| first.key <= key);
        self.blocks.partition_point(|block| first(block)).saturating_sub(1)
    }

    fn place_of(&self, key: &[u8]) -> Place {
        let block = self.block_of(key);
        let mut place = Place { block, start: 0, end: None };
        let Some(bytes) = self.blocks.get(block) else { return place };
        let mut records = Records(bytes);
        while let Some(record) = records.next() {
            let end = bytes.len() - records.0.len();
            match record.key.cmp(key) {
                Ordering::Less => place.start = end,
                Ordering::Equal => return Place { end: Some(end), ..place },
                Ordering::Greater => break,
            }
        }
        place
    }

    fn record(&self, key: &[u8]) -> Option<Record<'_>> {
        self.record_at(&self.place_of(key))
    }

    fn record_at(&self, place: &Place) -> Option<Record<'_>> {
        Records(self.blocks.get(place.block)?.get(place.start..place.end?)?).next()
    }

    /// Gives a key a value; answers whether it had another one or none.
    fn insert_record(&mut self, new: Record<'_>) -> bool {
        let mut place = self.place_of(new.key);
        if place.end.is_some() {
            if self.record_at(&place) == Some(new) {
                return false;
            }
            self.remove_at(&place);
            place = self.place_of(new.key);
        }
        self.insert_at(&place, new);
        true
    }

    /// The entries of both. Of equal keys the other's counts.
    fn merged(&self, other: &Self) -> Self {
        let (mut own, mut others) = (self.records().peekable(), other.records().peekable());
        Self::of_records(std::iter::from_fn(move || {
            let order = match (own.peek(), others.peek()) {
                (Some(own), Some(other)) => own.key.cmp(other.key),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            if order == Ordering::Less {
                return own.next();
            }
            if order == Ordering::Equal {
                own.next();
            }
            others.next()
        }))
    }

    /// Puts an entry in that is not there.
    fn insert_at(&mut self, place: &Place, record: Record<'_>) {
        let mut entry = Vec::with_capacity(record.key.len() + record.value.len() + 4);
        record.write(&mut entry);
        self.len += 1;
        let is_last = place.block + 1 >= self.blocks.len();
        let Some(block) = self.blocks.get_mut(place.block) else {
            return self.blocks.push(entry);
        };
        let is_full = block.len() + entry.len() > BLOCK_BYTES_MAX;
        if is_full && is_last && place.start == block.len() {
            // What comes in order shall not leave half of each block empty.
            return self.blocks.push(entry);
        }
        block.reserve_exact(entry.len());
        block.splice(place.start..place.start, entry);
        if is_full {
            self.split(place.block);
        }
    }

    fn split(&mut self, number: usize) {
        let Some(block) = self.blocks.get_mut(number) else { return };
        let mut records = Records(block);
        let mut middle = 0;
        while middle < block.len() / 2 && records.next().is_some() {
            middle = block.len() - records.0.len();
        }
        if middle < block.len() {
            let behind = block.split_off(middle);
            block.shrink_to_fit();
            self.blocks.insert(number + 1, behind);
        }
    }

    fn remove_at(&mut self, place: &Place) {
        let (Some(block), Some(end)) = (self.blocks.get_mut(place.block), place.end) else {
            return;
        };
        block.drain(place.start..end);
        block.shrink_to_fit();
        if block.is_empty() {
            self.blocks.remove(place.block);
        }
        self.len -= 1;
    }
}

/// Entries in any order, for a map that is made of them at once: without a search for each, and
/// with full blocks.
pub struct Unsorted<K, V> {
    /// The entries as they lie in blocks, one behind the other.
    bytes: Vec<u8>,
    /// Where each begins.
    starts: Vec<usize>,
    /// A key or a value while it is added.
    part: Vec<u8>,
    of: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Default for Unsorted<K, V> {
    fn default() -> Self {
        Self { bytes: Vec::new(), starts: Vec::new(), part: Vec::new(), of: PhantomData }
    }
}

impl<K: Unpack, V: Unpack> Unsorted<K, V> {
    /// Adds an entry. Of equal keys the last one counts.
    pub fn push<Q: Pack + ?Sized>(&mut self, key: &Q, value: &V) {
        self.starts.push(self.bytes.len());
        self.push_part(key);
        self.push_part(value);
    }

    fn push_part<Q: Pack + ?Sized>(&mut self, part: &Q) {
        self.part.clear();
        part.pack(&mut self.part);
        write_part(&mut self.bytes, &self.part);
    }

    /// The map of the entries.
    pub fn into_map(mut self) -> PackedMap<K, V> {
        let entry = |start: usize| self.bytes.get(start..).unwrap_or_default();
        let key = |start: usize| read_part(entry(start)).map(|(key, _)| key);
        // In order already, as API servers send them, it is only looked through.
        self.starts.sort_by(|one, other| key(*one).cmp(&key(*other)));
        let is_last_of_key = |(index, start): &(usize, &usize)| {
            self.starts.get(index + 1).is_none_or(|next| key(*next) != key(**start))
        };
        let last = self.starts.iter().enumerate().filter(is_last_of_key);
        PackedMap::of_records(last.filter_map(|(_, start)| Records(entry(*start)).next()))
    }
}

impl<K: Unpack, V: Unpack> PackedMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Pack + ?Sized>(&self, key: &Q) -> Option<V> {
        self.record(&bytes_of(key)).map(|record| V::unpack(record.value))
    }

    /// Whether the key has a value.
    pub fn contains_key<Q: Pack + ?Sized>(&self, key: &Q) -> bool {
        self.record(&bytes_of(key)).is_some()
    }

    /// Gives a key a value; answers whether it had another one or none.
    pub fn insert<Q: Pack + ?Sized>(&mut self, key: &Q, value: &V) -> bool {
        let (key, value) = (bytes_of(key), bytes_of(value));
        self.insert_record(Record { key: &key, value: &value })
    }

    /// Takes a key out, and answers the value that it had.
    pub fn remove<Q: Pack + ?Sized>(&mut self, key: &Q) -> Option<V> {
        let key = bytes_of(key);
        let value = self.record(&key).map(|record| V::unpack(record.value))?;
        self.remove_at(&self.place_of(&key));
        Some(value)
    }

    /// The entries by key.
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.records().map(|record| (K::unpack(record.key), V::unpack(record.value)))
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.records().map(|record| K::unpack(record.key))
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = V> {
        self.records().map(|record| V::unpack(record.value))
    }

    /// What some make of the values' bytes, by key.
    pub fn values_by<T>(&self, read: impl Fn(&[u8]) -> T) -> impl Iterator<Item = T> {
        self.records().map(move |record| read(record.value))
    }

    /// The entries whose keys begin with what is written as the beginning.
    pub fn starting_with<Q: Pack + ?Sized>(
        &self,
        start: &Q,
    ) -> impl Iterator<Item = (K, V)> + use<'_, K, V, Q> {
        let records = self.records_with(bytes_of(start));
        records.map(|record| (K::unpack(record.key), V::unpack(record.value)))
    }

    /// The entries that another map lacks, or has with another value.
    pub fn other_than_in(&self, other: &Self) -> impl Iterator<Item = (K, V)> {
        let records = self.records_other_than_in(other);
        records.map(|record| (K::unpack(record.key), V::unpack(record.value)))
    }

    /// The keys of these entries.
    pub fn keys_other_than_in(&self, other: &Self) -> impl Iterator<Item = K> {
        self.records_other_than_in(other).map(|record| K::unpack(record.key))
    }

    fn records_other_than_in(&self, other: &Self) -> impl Iterator<Item = Record<'_>> {
        let mut others = other.records().peekable();
        self.records().filter(move |record| {
            while others.next_if(|other| other.key < record.key).is_some() {}
            others.peek() != Some(record)
        })
    }

    /// The keys that another map lacks.
    pub fn keys_absent_in(&self, other: &Self) -> impl Iterator<Item = K> {
        let mut others = other.records().peekable();
        let records = self.records().filter(move |record| {
            while others.next_if(|other| other.key < record.key).is_some() {}
            others.peek().is_none_or(|other| other.key != record.key)
        });
        records.map(|record| K::unpack(record.key))
    }
}

/// The entries from here to the end of a block.
struct Records<'a>(&'a [u8]);

impl Record<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        write_part(to, self.key);
        write_part(to, self.value);
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (key, rest) = read_part(self.0)?;
        let (value, rest) = read_part(rest)?;
        self.0 = rest;
        Some(Record { key, value })
    }
}

/// A length, seven bits a byte with the least first, and so many bytes.
fn write_part(to: &mut Vec<u8>, part: &[u8]) {
    let mut length = part.len();
    while length >= 0x80 {
        to.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    to.push(length as u8);
    to.extend_from_slice(part);
}

/// What [`write_part`] wrote, and what follows it.
fn read_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 == 0 {
        return rest.split_at_checked(usize::from(*first));
    }
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let (length, rest) = bytes.split_at_checked(end + 1)?;
    let length = length.iter().rev().fold(0, |all, byte| all << 7 | usize::from(byte & 0x7f));
    rest.split_at_checked(length)
}

fn bytes_of<T: Pack + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    value.pack(&mut bytes);
    bytes
}

impl<K, V> Default for PackedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// However the entries lie in blocks.
impl<K, V> PartialEq for PackedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.records().eq(other.records())
    }
}

impl<K, V> Eq for PackedMap<K, V> {}

impl<K: Unpack + Debug, V: Unpack + Debug> Debug for PackedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Of equal keys the last one counts.
impl<K: Unpack, V: Unpack> Extend<(K, V)> for PackedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, more: I) {
        let more: Self = more.into_iter().collect();
        if more.len() * COPIES_A_SEARCH > self.len() {
            *self = self.merged(&more);
            return;
        }
        for record in more.records() {
            self.insert_record(record);
        }
    }
}

impl<K: Unpack, V: Unpack> FromIterator<(K, V)> for PackedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut unsorted = Unsorted::default();
        entries.into_iter().for_each(|(key, value)| unsorted.push(&key, &value));
        unsorted.into_map()
    }
}

impl<T: Pack + ?Sized> Pack for &T {
    fn pack(&self, to: &mut Vec<u8>) {
        (*self).pack(to);
    }
}

impl Pack for () {
    fn pack(&self, _: &mut Vec<u8>) {}
}

impl Unpack for () {
    fn unpack(_: &[u8]) -> Self {}
}

impl<T: Pack> Pack for [T] {
    fn pack(&self, to: &mut Vec<u8>) {
        self.iter().for_each(|part| part.pack(to));
    }
}

impl<T: Pack> Pack for Vec<T> {
    fn pack(&self, to: &mut Vec<u8>) {
        self.as_slice().pack(to);
    }
}

impl<T: Part> Unpack for Vec<T> {
    fn unpack(bytes: &[u8]) -> Self {
        parts(bytes).collect()
    }
}

impl<K: Pack, V: Pack> Pack for FlatMap<K, V> {
    fn pack(&self, to: &mut Vec<u8>) {
        for (key, value) in self {
            key.pack(to);
            value.pack(to);
        }
    }
}

impl<K: Part + Ord, V: Part> Unpack for FlatMap<K, V> {
    fn unpack(bytes: &[u8]) -> Self {
        parts(bytes).map(|Pair(key, value)| (key, value)).collect()
    }
}

struct Pair<K, V>(K, V);

impl<K: Pack, V: Pack> Pack for Pair<K, V> {
    fn pack(&self, to: &mut Vec<u8>) {
        self.0.pack(to);
        self.1.pack(to);
    }
}

impl<K: Part, V: Part> Part for Pair<K, V> {
    fn take(bytes: &mut &[u8]) -> Self {
        let key = K::take(bytes);
        Self(key, V::take(bytes))
    }
}

fn parts<T: Part>(mut bytes: &[u8]) -> impl Iterator<Item = T> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| T::take(&mut bytes)))
}

impl Pack for u32 {
    fn pack(&self, to: &mut Vec<u8>) {
        to.extend(self.to_be_bytes());
    }
}

impl Part for u32 {
    fn take(bytes: &mut &[u8]) -> Self {
        Self::from_be_bytes(take_bytes(bytes))
    }
}

impl Unpack for u32 {
    fn unpack(mut bytes: &[u8]) -> Self {
        Self::take(&mut bytes)
    }
}

/// The family, and the address.
impl Pack for IpAddr {
    fn pack(&self, to: &mut Vec<u8>) {
        match self {
            Self::V4(address) => {
                to.push(4);
                to.extend(address.octets());
            }
            Self::V6(address) => {
                to.push(6);
                to.extend(address.octets());
            }
        }
    }
}

impl Part for IpAddr {
    fn take(bytes: &mut &[u8]) -> Self {
        match take_bytes(bytes) {
            [4] => Self::from(take_bytes::<4>(bytes)),
            _ => Self::from(take_bytes::<16>(bytes)),
        }
    }
}

/// Address and port: endpoints and frontends have nothing else.
impl Pack for SocketAddr {
    fn pack(&self, to: &mut Vec<u8>) {
        self.ip().pack(to);
        to.extend(self.port().to_be_bytes());
    }
}

impl Part for SocketAddr {
    fn take(bytes: &mut &[u8]) -> Self {
        let address = IpAddr::take(bytes);
        Self::new(address, u16::from_be_bytes(take_bytes(bytes)))
    }
}

/// A text of a few, none of which has a zero in it: their order is that of the texts.
impl Pack for NamespacedName {
    fn pack(&self, to: &mut Vec<u8>) {
        for text in [&self.namespace, &self.name] {
            to.extend_from_slice(text.as_bytes());
            to.push(0);
        }
    }
}

impl Unpack for NamespacedName {
    fn unpack(bytes: &[u8]) -> Self {
        let mut texts = bytes.split(|byte| *byte == 0);
        let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
        Self { namespace: text(), name: text() }
    }
}

/// The objects of a kind that are packed whole. Their derived forms of writing and reading agree
/// without field names: what [`crate::meta::nullable`] is for.
macro_rules! packed_whole {
    ($($kind:ty),*) => {$(
        impl Pack for $kind {
            fn pack(&self, to: &mut Vec<u8>) {
                to.extend(postcard::to_allocvec(self).expect("the type is written in order"));
            }
        }

        impl Unpack for $kind {
            fn unpack(bytes: &[u8]) -> Self {
                postcard::from_bytes(bytes).expect("the type is read as it was written")
            }
        }
    )*};
}

packed_whole!(Service, EndpointSlice);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Every field, with nothing at its default.
    #[test]
    fn what_is_written_down_is_read_again() {
        let text = r#"{"metadata":{"namespace":"shop","name":"web","uid":"u","labels":{"a":"b"},
            "annotations":{"c":"d"}},"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.7",
            "fd00::7"],"selector":{"app":"web"},"ports":[{"name":"http","protocol":"UDP",
            "port":80,"nodePort":30080}],"sessionAffinity":"ClientIP","sessionAffinityConfig":
            {"clientIP":{"timeoutSeconds":5}},"externalTrafficPolicy":"Local",
            "internalTrafficPolicy":"Local","externalIPs":["192.0.2.1"],
            "loadBalancerSourceRanges":["192.0.2.0/24"],"healthCheckNodePort":30081,
            "publishNotReadyAddresses":true,"externalName":"example.com"},"status":
            {"loadBalancer":{"ingress":[{"ip":"192.0.2.2","ipMode":"VIP"}]}}}"#;
        let service: Service = serde_json::from_str(text).expect("a Service");
        assert_eq!(Service::unpack(&bytes_of(&service)), service);
        assert_eq!(Service::unpack(&bytes_of(&Service::default())), Service::default());
        let text = r#"{"metadata":{"namespace":"shop","name":"web-1","labels":{"a":"b"}},
            "addressType":"IPv4","endpoints":[{"addresses":["10.244.1.5"],"conditions":
            {"ready":true,"serving":false,"terminating":true},"hostname":"h","nodeName":"n",
            "hints":{"forZones":[{"name":"z"}],"forNodes":[{"name":"n"}]},"targetRef":
            {"name":"p"}},{}],"ports":[{"name":"http","protocol":"SCTP","port":8080},{}]}"#;
        let slice: EndpointSlice = serde_json::from_str(text).expect("a slice");
        assert_eq!(EndpointSlice::unpack(&bytes_of(&slice)), slice);
        let other = EndpointSlice { address_type: "IPv6".into(), ..slice.clone() };
        assert!(bytes_of(&slice) != bytes_of(&other));
    }

    #[test]
    fn it_holds_what_a_tree_holds() {
        let mut map = PackedMap::new();
        let mut tree = BTreeMap::new();
        for step in 0_u32..6_000 {
            let number = step.wrapping_mul(2_654_435_761) % 900;
            let key = NamespacedName::new(format!("n{}", number % 7), format!("o{number}"));
            if step % 3 == 0 {
                assert_eq!(map.remove(&key), tree.remove(&key));
            } else {
                let changed = tree.insert(key.clone(), step / 5) != Some(step / 5);
                assert_eq!(map.insert(&key, &(step / 5)), changed);
            }
            assert_eq!(map.get(&key), tree.get(&key).copied());
            assert_eq!(map.len(), tree.len());
        }
        let all = || tree.iter().map(|(key, value)| (key.clone(), *value));
        assert!(map.iter().eq(all()), "{map:?}");
        let in_order: PackedMap<NamespacedName, u32> = all().collect();
        assert_eq!(in_order, map);
        assert!(in_order.blocks.len() <= map.blocks.len());
        let older = all().map(|(key, value)| (key, value + 1));
        let backwards: PackedMap<NamespacedName, u32> =
            older.chain(all()).collect::<Vec<_>>().into_iter().rev().collect();
        let twice: PackedMap<NamespacedName, u32> = all().chain(all()).collect();
        assert!(twice == map && twice.blocks == in_order.blocks);
        assert!(backwards.len() == map.len() && backwards != map, "of equal keys the last counts");
        for (key, _) in all() {
            map.remove(&key);
        }
        assert_eq!((map.blocks.len(), map.is_empty()), (0, true));
        assert_ne!(map, in_order);
    }

    #[test]
    fn it_knows_what_another_one_lacks() {
        let map = |entries: &[(u32, u32)]| entries.iter().copied().collect::<PackedMap<_, _>>();
        let [one, other] = [map(&[(1, 1), (2, 2), (4, 4)]), map(&[(0, 1), (2, 3), (4, 4), (5, 1)])];
        assert_eq!(one.other_than_in(&other).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
        assert_eq!(other.other_than_in(&one).collect::<Vec<_>>(), [(0, 1), (2, 3), (5, 1)]);
        assert_eq!(one.keys_absent_in(&other).collect::<Vec<_>>(), [1]);
        assert_eq!(other.keys_absent_in(&one).collect::<Vec<_>>(), [0, 5]);
    }

    #[test]
    fn many_entries_come_in_as_one_by_one() {
        for (present, more) in [(0, 500), (3, 500), (500, 3), (500, 500), (500, 0)] {
            let mut tree: BTreeMap<u32, u32> = (0..present).map(|key| (key * 7, 1)).collect();
            let mut map: PackedMap<u32, u32> = tree.clone().into_iter().collect();
            let entries = (0..more).rev().map(|key| (key * 3, key)).chain([(9, 8), (9, 9)]);
            tree.extend(entries.clone());
            map.extend(entries);
            assert!(map.iter().eq(tree.clone()), "{present} and {more}");
            assert_eq!(map.len(), tree.len());
            let doubled: Vec<u32> = tree.values().map(|value| value * 2).collect();
            assert_eq!(map.values_by(|bytes| u32::unpack(bytes) * 2).collect::<Vec<_>>(), doubled);
        }
    }

    #[test]
    fn keys_are_found_by_their_beginning() {
        struct Namespace(&'static str);
        impl Pack for Namespace {
            fn pack(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(self.0.as_bytes());
                to.push(0);
            }
        }
        let name = |namespace: u32, name: u32| {
            NamespacedName::new(format!("n{namespace}"), format!("{name:03}"))
        };
        let names = (0..12).flat_map(|namespace| (0..200).map(move |one| name(namespace, one)));
        let map: PackedMap<NamespacedName, ()> = names.map(|name| (name, ())).collect();
        let found: Vec<NamespacedName> =
            map.starting_with(&Namespace("n1")).map(|it| it.0).collect();
        assert_eq!(found, (0..200).map(|one| name(1, one)).collect::<Vec<_>>());
        assert_eq!(map.starting_with(&Namespace("n12")).count(), 0);
    }

    #[test]
    fn an_entry_may_be_larger_than_a_block() {
        let mut map: PackedMap<NamespacedName, u32> = PackedMap::new();
        let key = |size: usize| NamespacedName::new("x".repeat(size), "y");
        for size in [5, 5_000, 20_000, 1, 300_000, 128, 127] {
            assert!(map.insert(&key(size), &7));
        }
        let sizes: Vec<usize> = map.keys().map(|key| key.namespace.len()).collect();
        assert_eq!(sizes, [1, 5, 127, 128, 5_000, 20_000, 300_000]);
        assert_eq!(map.remove(&key(5_000)), Some(7));
        assert_eq!(map.len(), 6);
    }
}
