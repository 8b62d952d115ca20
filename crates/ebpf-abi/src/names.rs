//! The names of the cluster that `bpf/names.c` answers at a pod's link, without waking anybody.

use crate::layout::{Layout, abi_struct};

/// Number of this layout: pins of another one live in another directory.
pub const NAMES_VERSION: u32 = 2;

/// Longest name in octets that is kept, with the root's empty label: a multiple of 8, since names
/// are read by words. Longer ones are the worker's.
pub const NAME_OCTETS_MAX: u32 = 128;
/// Most addresses of a family that a name has here; names with more are the worker's.
pub const NAME_ADDRESSES_MAX: u32 = 8;
/// Most names. Those that find no place are the worker's.
pub const NAMES_MAX: u32 = 262_144;
/// Most addresses that the cluster's DNS is asked at.
pub const NAME_SERVERS_MAX: u32 = 16;
/// Most pod links that are answered at.
pub const NAME_LINKS_MAX: u32 = 4096;
/// Longest data of the SOA record.
pub const SOA_OCTETS_MAX: u32 = 256;
/// The time within which the answers to one pod are counted, in milliseconds.
pub const NAME_WINDOW_MS: u32 = 100;

const NAME: usize = NAME_OCTETS_MAX as usize;
const IPV4: usize = 4 * NAME_ADDRESSES_MAX as usize;
const IPV6: usize = 16 * NAME_ADDRESSES_MAX as usize;

abi_struct! {
    /// A name as it is on the wire, in lower case, with zeros behind it.
    NameKey {
        /// Labels, each after its length.
        name: [u8; NAME],
    }
}

abi_struct! {
    /// What a name stands for.
    NameAddresses {
        /// Octets of the name, with the root's empty label.
        name_octets: u32,
        /// How many of `ipv4` there are. None: the name exists, and has no such record.
        ipv4_count: u32,
        /// How many of `ipv6` there are.
        ipv6_count: u32,
        /// IPv4 addresses, one after the other.
        ipv4: [u8; IPV4],
        /// IPv6 addresses, one after the other.
        ipv6: [u8; IPV6],
    }
}

abi_struct! {
    /// Who may ask at a link. Its key is the link's index.
    NameLink {
        /// The pod's IPv4 address, or zero.
        ipv4: [u8; 4],
        /// The pod's IPv6 address, or zero.
        ipv6: [u8; 16],
        /// The pod's MAC address.
        mac: [u8; 6],
        /// So that the structure has no hole.
        unused: u16,
    }
}

abi_struct! {
    /// What holds for all names: the only element of an array.
    NameSettings {
        /// How long clients may keep an address, in seconds.
        ttl_s: u32,
        /// How long clients may keep that there is none, in seconds.
        negative_ttl_s: u32,
        /// Most answers to one pod in [`NAME_WINDOW_MS`]: a flood shall cost others nothing.
        answers_max: u32,
        /// Octets of the zone's own name, with the root's empty label.
        zone_octets: u32,
        /// Octets of `soa`; none: what has no record is the worker's.
        soa_octets: u32,
        /// Data of the zone's SOA record.
        soa: [u8; SOA_OCTETS_MAX as usize],
    }
}

abi_struct! {
    /// What a pod has asked lately. Its key is the link's index.
    NameSpent {
        /// When the window began, by the kernel's clock, in nanoseconds.
        began_ns: u64,
        /// Answers since then.
        answers: u64,
    }
}

pub(crate) const LAYOUTS: [&Layout; 5] = [
    &NameKey::LAYOUT,
    &NameAddresses::LAYOUT,
    &NameLink::LAYOUT,
    &NameSettings::LAYOUT,
    &NameSpent::LAYOUT,
];

pub(crate) const NUMBERS: [(&str, u32); 8] = [
    ("NAME_OCTETS_MAX", NAME_OCTETS_MAX),
    ("NAME_ADDRESSES_MAX", NAME_ADDRESSES_MAX),
    ("NAMES_MAX", NAMES_MAX),
    ("NAME_SERVERS_MAX", NAME_SERVERS_MAX),
    ("NAME_LINKS_MAX", NAME_LINKS_MAX),
    ("SOA_OCTETS_MAX", SOA_OCTETS_MAX),
    ("NAME_WINDOW_MS", NAME_WINDOW_MS),
    ("NAME_REASONS", NAME_REASONS.len() as u32),
];

/// What became of a question: the number of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameReason {
    /// Answered with addresses.
    Answered,
    /// Answered: the name has no address of this family.
    NoData,
    /// To the worker: not a plain question for addresses.
    PassedOther,
    /// To the worker: a name that is not here.
    PassedName,
    /// To the kernel's path, which judges it: not from the pod's own address.
    PassedSource,
    /// To the worker: nobody has kept the maps for too long.
    PassedLease,
    /// Dropped: more than one pod may ask.
    DroppedFlood,
    /// Dropped: the kernel could not make the answer.
    DroppedMaking,
}

/// All reasons with their names in C (after `NAME_`) and in metrics, in the order of their
/// counters.
pub const NAME_REASONS: [(NameReason, &str); 8] = [
    (NameReason::Answered, "answered"),
    (NameReason::NoData, "no_data"),
    (NameReason::PassedOther, "passed_other"),
    (NameReason::PassedName, "passed_name"),
    (NameReason::PassedSource, "passed_source"),
    (NameReason::PassedLease, "passed_lease"),
    (NameReason::DroppedFlood, "dropped_flood"),
    (NameReason::DroppedMaking, "dropped_making"),
];

impl NameReason {
    /// The number of its counter.
    pub fn index(self) -> u32 {
        self as u32
    }
}
