//! The maps of the programs: read whole, compared, and written where they differ.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ebpf_abi::{Link, REASONS, Remote, RemoteKey, Settings, SourceKey, TUNNEL};
use ipnet::IpNet;
use render::OpError;

use super::entries::Entries;
use super::{Applied, canonical, handshakes, refused};

/// The maps by name, as `bpf/maps.h` and `bpf/handshakes.h` declare them.
pub(super) const MAPS: [&str; 7] =
    ["links", "sources", "pods", "remotes", "settings", "counters", handshakes::MAP];

/// Bytes of keys by longest prefix after the length.
const SOURCE_BYTES: usize = SourceKey::BYTES - 4;
const REMOTE_BYTES: usize = RemoteKey::BYTES - 4;

type Prefixes<const K: usize, const V: usize> = LpmTrie<MapData, [u8; K], [u8; V]>;

/// The open maps.
pub(super) struct Maps {
    links: HashMap<MapData, u32, [u8; Link::BYTES]>,
    sources: Prefixes<SOURCE_BYTES, 4>,
    pods: HashMap<MapData, [u8; 16], [u8; ebpf_abi::Pod::BYTES]>,
    remotes: Prefixes<REMOTE_BYTES, { Remote::BYTES }>,
    settings: Array<MapData, [u8; Settings::BYTES]>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(super) fn open(directory: &Path) -> Result<Self, OpError> {
        let open = |name: &str| {
            let path = directory.join(name);
            MapData::from_pin(&path)
                .and_then(Map::from_map_data)
                .map_err(|error| refused(&format!("open the map {}", path.display()), &error))
        };
        let wrong = |error: MapError| refused("open the maps", &error);
        Ok(Self {
            links: open("links")?.try_into().map_err(wrong)?,
            sources: open("sources")?.try_into().map_err(wrong)?,
            pods: open("pods")?.try_into().map_err(wrong)?,
            remotes: open("remotes")?.try_into().map_err(wrong)?,
            settings: open("settings")?.try_into().map_err(wrong)?,
            counters: open("counters")?.try_into().map_err(wrong)?,
        })
    }

    /// Writes what packets of links are checked against.
    pub(super) fn write_links(
        &mut self,
        wanted: &Entries,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let sources = wanted.sources.iter().map(|key| (prefix_of_source(key), [0; 4])).collect();
        write(&mut self.sources, &sources, done, name_source)?;
        let links = wanted.links.iter().map(|(index, link)| (*index, link.to_bytes())).collect();
        write(&mut self.links, &links, done, |index| format!("link number {index}"))
    }

    /// Writes where packets may go. Tunnel packets are judged by the nodes that are known, so only
    /// when these are.
    pub(super) fn write_destinations(
        &mut self,
        wanted: &Entries,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let remotes = wanted
            .remotes
            .iter()
            .map(|(key, remote)| (prefix_of_remote(key), remote.to_bytes()))
            .collect();
        write(&mut self.remotes, &remotes, done, name_remote)?;
        self.write_settings(&wanted.settings, done)?;
        let pods = wanted.pods.iter().map(|(key, pod)| (*key, pod.to_bytes())).collect();
        write(&mut self.pods, &pods, done, name_pod)
    }

    pub(super) fn remove_destinations(
        &mut self,
        wanted: &Entries,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        if wanted.settings.flags & TUNNEL == 0 {
            self.write_settings(&wanted.settings, done)?;
        }
        let pods = wanted.pods.keys().copied().collect();
        remove(&mut self.pods, &pods, done, name_pod)?;
        let remotes = wanted.remotes.keys().map(prefix_of_remote).collect();
        remove(&mut self.remotes, &remotes, done, name_remote)
    }

    pub(super) fn remove_links(
        &mut self,
        wanted: &Entries,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let links = wanted.links.keys().copied().collect();
        remove(&mut self.links, &links, done, |index| format!("link number {index}"))?;
        let sources = wanted.sources.iter().map(prefix_of_source).collect();
        remove(&mut self.sources, &sources, done, name_source)
    }

    fn write_settings(&mut self, wanted: &Settings, done: &mut Applied) -> Result<(), OpError> {
        let failed = |error: MapError| refused("write the settings of eBPF forwarding", &error);
        let wanted = wanted.to_bytes();
        if self.settings.get(&0, 0).map_err(failed)? != wanted {
            self.settings.set(0, wanted, 0).map_err(failed)?;
            done.changes.push("wrote the settings of the tunnel".into());
        }
        Ok(())
    }

    pub(super) fn pods(&self) -> Result<BTreeSet<[u8; 16]>, OpError> {
        Ok(read(&self.pods)?.into_keys().collect())
    }

    pub(super) fn remotes(&self) -> Result<usize, OpError> {
        Ok(read(&self.remotes)?.len())
    }

    pub(super) fn counters(&self) -> Result<BTreeMap<&'static str, u64>, OpError> {
        let mut counters = BTreeMap::new();
        for (reason, name) in REASONS {
            let values = self
                .counters
                .get(&reason.index(), 0)
                .map_err(|error| refused("read the counters of eBPF forwarding", &error))?;
            counters.insert(name, values.iter().sum());
        }
        Ok(counters)
    }
}

/// A map of either kind, with keys that can be ordered.
trait Table {
    type Key: Ord + Copy;
    type Value: PartialEq + Copy;
    fn entries(&self) -> Result<BTreeMap<Self::Key, Self::Value>, MapError>;
    fn put(&mut self, key: Self::Key, value: Self::Value) -> Result<(), MapError>;
    fn take(&mut self, key: Self::Key) -> Result<(), MapError>;
}

impl<K: Pod + Ord, V: Pod + PartialEq> Table for HashMap<MapData, K, V> {
    type Key = K;
    type Value = V;

    fn entries(&self) -> Result<BTreeMap<K, V>, MapError> {
        self.iter().collect()
    }

    fn put(&mut self, key: K, value: V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn take(&mut self, key: K) -> Result<(), MapError> {
        self.remove(&key)
    }
}

impl<K: Pod + Ord, V: Pod + PartialEq> Table for LpmTrie<MapData, K, V> {
    /// Bits that count, and the rest of the key.
    type Key = (u32, K);
    type Value = V;

    fn entries(&self) -> Result<BTreeMap<(u32, K), V>, MapError> {
        self.iter()
            .map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)))
            .collect()
    }

    fn put(&mut self, (bits, data): (u32, K), value: V) -> Result<(), MapError> {
        self.insert(&Key::new(bits, data), value, 0)
    }

    fn take(&mut self, (bits, data): (u32, K)) -> Result<(), MapError> {
        self.remove(&Key::new(bits, data))
    }
}

fn read<T: Table>(table: &T) -> Result<BTreeMap<T::Key, T::Value>, OpError> {
    table.entries().map_err(|error| refused("read a map of eBPF forwarding", &error))
}

/// Writes what is absent or other. One entry that the kernel refuses (a full map) stops no other
/// (invariant 6).
fn write<T: Table, D: Display>(
    table: &mut T,
    wanted: &BTreeMap<T::Key, T::Value>,
    done: &mut Applied,
    name: impl Fn(&T::Key) -> D,
) -> Result<(), OpError> {
    let present = read(table)?;
    for (key, value) in wanted {
        if present.get(key) == Some(value) {
            continue;
        }
        match table.put(*key, *value) {
            Ok(()) => done.changes.push(format!("wrote {}", name(key))),
            Err(error) => done
                .failures
                .push(refused(&format!("write {} for eBPF forwarding", name(key)), &error)),
        }
    }
    Ok(())
}

fn remove<T: Table, D: Display>(
    table: &mut T,
    wanted: &BTreeSet<T::Key>,
    done: &mut Applied,
    name: impl Fn(&T::Key) -> D,
) -> Result<(), OpError> {
    for key in read(table)?.keys() {
        if wanted.contains(key) {
            continue;
        }
        match table.take(*key) {
            Ok(()) => done.changes.push(format!("removed {}", name(key))),
            Err(error) => done
                .failures
                .push(refused(&format!("remove {} from eBPF forwarding", name(key)), &error)),
        }
    }
    Ok(())
}

fn prefix_of_source(key: &SourceKey) -> (u32, [u8; SOURCE_BYTES]) {
    (key.prefix_bits, tail(&key.to_bytes()))
}

fn prefix_of_remote(key: impl Borrow<RemoteKey>) -> (u32, [u8; REMOTE_BYTES]) {
    let key = key.borrow();
    (key.prefix_bits, tail(&key.to_bytes()))
}

/// A key without its first number, the length of the prefix.
fn tail<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut rest = [0; N];
    rest.copy_from_slice(&bytes[bytes.len() - N..]);
    rest
}

fn name_pod(key: &[u8; 16]) -> String {
    format!("pod {}", canonical((*key).into()))
}

fn name_remote(key: &(u32, [u8; REMOTE_BYTES])) -> String {
    format!("way to {}", range(key.0, key.1))
}

fn name_source(key: &(u32, [u8; SOURCE_BYTES])) -> String {
    let address: [u8; 16] = tail(&key.1);
    format!("source {}", range(key.0.saturating_sub(ebpf_abi::SOURCE_LINK_BITS), address))
}

fn range(bits: u32, address: [u8; 16]) -> String {
    let address = canonical(address.into());
    let mapped_bits = if address.is_ipv4() { 96 } else { 0 };
    let length = u8::try_from(bits.saturating_sub(mapped_bits)).unwrap_or(u8::MAX);
    IpNet::new(address, length).map_or_else(|_| address.to_string(), |range| range.to_string())
}
