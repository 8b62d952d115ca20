//! The maps of Services, read whole and written in batches.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ebpf_abi::services::{
    DIRECT_HOSTS_MAX, MemberKey, NetworkKey, RangeKey, SERVICE_SOURCE_ID_BITS, Service, ServiceKey,
    ServiceSettings, ServiceSourceKey, Slot, SlotKey,
};
use ebpf_abi::{ADDRESS_BITS, address_bytes};
use ipnet::IpNet;
use render::OpError;
use render::ebpf::packed::{self, Entries, UnsortedEntries};
use render::ebpf::state::{NODE_ENTRIES_MAX, full};
use render::ebpf::{Change, EbpfObserved, EbpfOp, ServiceSource, Sizes};

use super::super::{refused, syscalls};

/// The maps that the driver reads and writes, by name as `bpf/services.h` declares them, with the
/// size that each has of [`Sizes`].
const MAPS: [(&str, SizeOf); 9] = [
    ("services", |sizes| sizes.services),
    ("ranges", |sizes| sizes.services),
    ("slots", |sizes| sizes.slots),
    ("maglev", |sizes| sizes.slots),
    ("members", |sizes| sizes.slots),
    ("service_sources", |sizes| sizes.services),
    ("node_addresses", |_| NODE_ENTRIES_MAX as u32),
    ("own_pods", |_| NODE_ENTRIES_MAX as u32),
    ("direct_hosts", |_| DIRECT_HOSTS_MAX),
];
/// What of [`Sizes`] a map has; 0: what the program's source declares.
pub(super) type SizeOf = fn(&Sizes) -> u32;

/// The map that programs fill with clients that stay with their endpoints.
const AFFINITIES: &str = "affinities";
/// The map of what holds for all Services.
const SETTINGS: &str = "service_settings";

/// Entries that one call writes: keeps buffers within a megabyte.
const WRITE_ENTRIES: usize = 8192;

/// All maps of `bpf/services.h`, with the sizes that they shall have; 0: as declared there.
pub(super) fn sizes(sizes: &Sizes) -> impl Iterator<Item = (&'static str, u32)> {
    let clients = sizes.clients;
    let own = MAPS.map(|(name, size)| (name, size(sizes)));
    own.into_iter().chain([(AFFINITIES, clients), (SETTINGS, 0)])
}

/// The open maps.
pub(super) struct Maps {
    sizes: Sizes,
    /// In the order of [`MAPS`].
    maps: [OwnedFd; MAPS.len()],
    settings: OwnedFd,
}

impl Maps {
    pub(super) fn open(directory: &Path, sizes: Sizes) -> Result<Self, OpError> {
        let open = |name: &str| {
            let path = directory.join(name);
            syscalls::open_pin(&path)
                .map_err(|error| refused(&format!("open the map {}", path.display()), &error))
        };
        let mut maps = Vec::new();
        for (name, _) in MAPS {
            maps.push(open(name)?);
        }
        let maps = <[OwnedFd; MAPS.len()]>::try_from(maps).map_err(|_| super::super::absent())?;
        Ok(Self { sizes, maps, settings: open(SETTINGS)? })
    }

    pub(super) fn observe(&self) -> Result<EbpfObserved, OpError> {
        let [services, ranges, slots, maglev, members, sources, node_addresses, own_pods, hosts] =
            &self.maps;
        Ok(EbpfObserved {
            services: read(services, "services")?,
            ranges: read(ranges, "ranges")?,
            slots: read(slots, "slots")?,
            maglev: read(maglev, "maglev")?,
            members: read(members, "members")?,
            sources: read(sources, "service_sources")?,
            node_addresses: read(node_addresses, "node_addresses")?,
            own_pods: read(own_pods, "own_pods")?,
            direct_hosts: read(hosts, "direct_hosts")?,
            sizes: self.sizes,
        })
    }

    pub(super) fn apply(&self, op: &EbpfOp) -> Result<(), OpError> {
        match op {
            EbpfOp::Services(change) => self.change(0, change),
            EbpfOp::Ranges(change) => self.change(1, change),
            EbpfOp::Slots(change) => self.change(2, change),
            EbpfOp::Maglev(change) => self.change(3, change),
            EbpfOp::Members(change) => self.change(4, change),
            EbpfOp::Sources(change) => self.change(5, change),
            EbpfOp::NodeAddresses(change) => self.change(6, change),
            EbpfOp::OwnPods(change) => self.change(7, change),
            EbpfOp::DirectHosts(change) => self.change(8, change),
        }
    }

    /// Writes the settings where they differ. Answers whether they did.
    pub(super) fn set(&self, settings: &ServiceSettings) -> Result<bool, OpError> {
        let failed = |error: std::io::Error| refused("write the settings of Services", &error);
        let (_, present) =
            syscalls::read_all(self.settings.as_fd(), 4, ServiceSettings::BYTES).map_err(failed)?;
        let wanted = settings.to_bytes();
        if present == wanted {
            return Ok(false);
        }
        syscalls::update_batch(self.settings.as_fd(), &[0; 4], &wanted, 1).map_err(failed)?;
        Ok(true)
    }

    fn change<K: Field, V: Field>(
        &self,
        index: usize,
        change: &Change<K, V>,
    ) -> Result<(), OpError> {
        let (Some((name, size)), Some(map)) = (MAPS.get(index), self.maps.get(index)) else {
            return Err(super::super::absent());
        };
        let failed = |verb: &str, error: std::io::Error| {
            if error.raw_os_error() == Some(libc::E2BIG) {
                return OpError { errno: libc::E2BIG, message: full(name, size(&self.sizes)) };
            }
            refused(&format!("{verb} entries of the eBPF map {name}"), &error)
        };
        match change {
            Change::Put(entries) => {
                for part in entries.chunks(WRITE_ENTRIES) {
                    let (mut keys, mut values) = (Vec::new(), Vec::new());
                    for (key, value) in part {
                        key.put(&mut keys);
                        value.put(&mut values);
                    }
                    syscalls::update_batch(map.as_fd(), &keys, &values, part.len())
                        .map_err(|error| failed("write", error))?;
                }
            }
            Change::Remove(gone) => {
                for part in gone.chunks(WRITE_ENTRIES) {
                    let mut keys = Vec::new();
                    part.iter().for_each(|key| key.put(&mut keys));
                    syscalls::delete_batch(map.as_fd(), &keys, part.len())
                        .map_err(|error| failed("remove", error))?;
                }
            }
        }
        Ok(())
    }
}

/// Entries are kept as they come: a map is never held a second time as the kernel has it.
fn read<K, V>(map: &OwnedFd, name: &str) -> Result<Entries<K, V>, OpError>
where
    K: Field + packed::Field,
    V: Field + packed::Field,
{
    let mut entries = UnsortedEntries::default();
    let take = |keys: &[u8], values: &[u8]| {
        for (key, value) in keys.chunks_exact(K::BYTES).zip(values.chunks_exact(V::BYTES)) {
            // Keys that are none of ours, such as IPv4 ranges shorter than the mapped prefix, stay
            // unseen.
            if let (Some(key), Some(value)) = (K::get(key), V::get(value)) {
                entries.push(key, value);
            }
        }
    };
    syscalls::read_parts(map.as_fd(), K::BYTES, V::BYTES, take)
        .map_err(|error| refused(&format!("read the eBPF map {name}"), &error))?;
    Ok(entries.into_entries())
}

/// A key or a value, as bytes of the map.
trait Field: Sized {
    const BYTES: usize;
    fn put(&self, bytes: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Option<Self>;
}

macro_rules! abi_field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            const BYTES: usize = <$type>::BYTES;

            fn put(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_bytes());
            }

            fn get(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}

abi_field!(ServiceKey, Service, RangeKey, SlotKey, Slot, MemberKey);

impl Field for u32 {
    const BYTES: usize = 4;

    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_ne_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// Of maps that are sets.
impl Field for () {
    const BYTES: usize = 4;

    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&[0; 4]);
    }

    fn get(_: &[u8]) -> Option<Self> {
        Some(())
    }
}

impl Field for IpAddr {
    const BYTES: usize = 16;

    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&address_bytes(*self));
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
    }
}

impl Field for IpNet {
    const BYTES: usize = NetworkKey::BYTES;

    fn put(&self, bytes: &mut Vec<u8>) {
        let key =
            NetworkKey { prefix_bits: prefix_bits(self), address: address_bytes(self.network()) };
        bytes.extend_from_slice(&key.to_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let key = NetworkKey::from_bytes(bytes.try_into().ok()?);
        range(key.prefix_bits, key.address)
    }
}

impl Field for ServiceSource {
    const BYTES: usize = ServiceSourceKey::BYTES;

    fn put(&self, bytes: &mut Vec<u8>) {
        let key = ServiceSourceKey {
            prefix_bits: SERVICE_SOURCE_ID_BITS + prefix_bits(&self.range),
            id: self.id,
            address: address_bytes(self.range.network()),
        };
        bytes.extend_from_slice(&key.to_bytes());
    }

    fn get(bytes: &[u8]) -> Option<Self> {
        let key = ServiceSourceKey::from_bytes(bytes.try_into().ok()?);
        let bits = key.prefix_bits.checked_sub(SERVICE_SOURCE_ID_BITS)?;
        Some(Self { id: key.id, range: range(bits, key.address)? })
    }
}

/// Bits of a range's prefix in a key, where IPv4 is mapped.
fn prefix_bits(range: &IpNet) -> u32 {
    ADDRESS_BITS - u32::from(range.max_prefix_len()) + u32::from(range.prefix_len())
}

fn range(bits: u32, address: [u8; 16]) -> Option<IpNet> {
    let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    let mapped_bits = if address.is_ipv4() { 96 } else { 0 };
    IpNet::new(address, u8::try_from(bits.checked_sub(mapped_bits)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_both_families_read_back_as_they_were_written() {
        for text in ["10.244.1.0/24", "0.0.0.0/0", "192.0.2.1/32", "fd00::/64", "::/0"] {
            let range: IpNet = text.parse().expect("a range");
            let mut bytes = Vec::new();
            range.put(&mut bytes);
            assert_eq!(IpNet::get(&bytes), Some(range));
            let source = ServiceSource { id: 7, range };
            let mut bytes = Vec::new();
            source.put(&mut bytes);
            assert_eq!(ServiceSource::get(&bytes), Some(source));
        }
    }
}
