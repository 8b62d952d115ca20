//! The names that eBPF answers at pods' links (`bpf/names.c`): those of Services and of endpoints
//! with labels, each with its addresses, in the form of the map. What is not here (long names, many
//! addresses, ports, pods, search paths) is the DNS worker's, which gives the same answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::names::{NAME_ADDRESSES_MAX, NAME_OCTETS_MAX, SOA_OCTETS_MAX};
pub use ebpf_abi::names::{NameAddresses, NameKey, NameSettings};
use model::{MacAddress, NamespacedName};
use plan::zone::{ServiceRecords, Zone};

/// Longest label of a name in octets (RFC 1035, 2.3.4).
const LABEL_OCTETS_MAX: usize = 63;
/// Answers to one pod within `NAME_WINDOW_MS`: 20,000 a second, ten times what a busy pod asks.
const ANSWERS_MAX: u32 = 2_000;

/// Names and what they stand for.
pub type Names = BTreeMap<NameKey, NameAddresses>;

/// Names that are others now; without addresses, there is none any more.
pub type NameChanges = BTreeMap<NameKey, Option<NameAddresses>>;

/// The addresses of a Service by the label below it; without one, its own.
pub type ByLabel = BTreeMap<Option<String>, BTreeSet<IpAddr>>;

/// A pod that is answered at its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its addresses; of each family the first may ask.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address.
    pub mac: MacAddress,
}

/// What holds for all answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long clients may keep an address, in seconds.
    pub ttl_s: u32,
    /// How long clients may keep that there is none, in seconds.
    pub negative_ttl_s: u32,
}

/// All names of a zone.
pub fn of_zone(zone: &Zone) -> Names {
    let mut names = Names::new();
    for (namespace, services) in &zone.namespaces {
        for (name, records) in services {
            let key = NamespacedName::new(namespace, name);
            names.extend(of_service(&zone.domain, &key, records));
        }
    }
    names
}

/// The names of one Service. No two Services have a name in common.
pub fn of_service(domain: &str, key: &NamespacedName, records: &ServiceRecords) -> Names {
    let mut addresses = ByLabel::new();
    match records {
        ServiceRecords::ClusterIp { addresses: own, .. } => {
            addresses.insert(None, own.iter().copied().collect());
        }
        ServiceRecords::Headless { endpoints } => {
            for endpoint in endpoints {
                for name in [None, Some(endpoint.label.clone())] {
                    addresses.entry(name).or_default().insert(endpoint.address);
                }
            }
        }
        ServiceRecords::ExternalName { .. } => {}
    }
    of_labels(domain, key, &addresses)
}

/// The same from its addresses alone.
pub fn of_labels(domain: &str, key: &NamespacedName, addresses: &ByLabel) -> Names {
    let labels = [key.name.as_str(), key.namespace.as_str(), "svc"];
    let entry = |(label, addresses): (&Option<String>, &BTreeSet<IpAddr>)| {
        let (name, name_octets) = wire(label.as_deref().into_iter().chain(labels), domain)?;
        Some((NameKey { name }, values(name_octets, addresses)?))
    };
    addresses.iter().filter_map(entry).collect()
}

/// What changes when a Service that had some names has others.
pub fn changes(before: &Names, after: &Names) -> NameChanges {
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| (*key, None));
    let other = after.iter().filter(|(key, found)| before.get(key) != Some(found));
    gone.chain(other.map(|(key, found)| (*key, Some(*found)))).collect()
}

/// The key of a name as people write it; `None` when none can have it.
pub fn key_of(name: &str) -> Option<NameKey> {
    wire([].into_iter(), name.trim_end_matches('.')).map(|(name, _)| NameKey { name })
}

/// What holds for all names of a zone: `soa` is the data of its SOA record. Without it, or with one
/// that is too long, names without an address of a family are the worker's.
pub fn settings(domain: &str, times: Times, soa: &[u8]) -> NameSettings {
    let zone_octets = wire([].into_iter(), domain).map_or(0, |(_, octets)| octets);
    let mut settings = NameSettings {
        ttl_s: times.ttl_s,
        negative_ttl_s: times.negative_ttl_s,
        answers_max: ANSWERS_MAX,
        zone_octets,
        ..NameSettings::default()
    };
    if soa.len() <= SOA_OCTETS_MAX as usize && zone_octets > 0 {
        settings.soa_octets = soa.len() as u32;
        settings.soa[..soa.len()].copy_from_slice(soa);
    }
    settings
}

/// A name on the wire in lower case, and its octets; `None` when it has no place in a key, or is
/// none.
fn wire<'a>(
    labels: impl Iterator<Item = &'a str>,
    domain: &'a str,
) -> Option<([u8; NAME_OCTETS_MAX as usize], u32)> {
    let mut name = [0; NAME_OCTETS_MAX as usize];
    let mut end = 0;
    for label in labels.chain(domain.split('.')) {
        if label.is_empty() || label.len() > LABEL_OCTETS_MAX {
            return None;
        }
        // The last octet stays for the root's empty label.
        let place = name
            .get_mut(end..=end + label.len())
            .filter(|_| end + label.len() + 1 < NAME_OCTETS_MAX as usize)?;
        place[0] = label.len() as u8;
        place[1..].copy_from_slice(label.to_ascii_lowercase().as_bytes());
        end += label.len() + 1;
    }
    Some((name, end as u32 + 1))
}

/// `None` when there are more addresses than a map's value has.
fn values(name_octets: u32, addresses: &BTreeSet<IpAddr>) -> Option<NameAddresses> {
    let mut ipv4: Vec<Ipv4Addr> = Vec::new();
    let mut ipv6: Vec<Ipv6Addr> = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(*address),
            IpAddr::V6(address) => ipv6.push(*address),
        }
    }
    if ipv4.len().max(ipv6.len()) > NAME_ADDRESSES_MAX as usize {
        return None;
    }
    let mut values = NameAddresses { name_octets, ..NameAddresses::default() };
    (values.ipv4_count, values.ipv6_count) = (ipv4.len() as u32, ipv6.len() as u32);
    for (place, address) in values.ipv4.chunks_exact_mut(4).zip(&ipv4) {
        place.copy_from_slice(&address.octets());
    }
    for (place, address) in values.ipv6.chunks_exact_mut(16).zip(&ipv6) {
        place.copy_from_slice(&address.octets());
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use plan::zone::HeadlessEndpoint;

    use super::*;

    fn endpoint(label: &str, address: &str) -> HeadlessEndpoint {
        HeadlessEndpoint {
            label: label.into(),
            address: address.parse().expect("an address"),
            has_hostname: true,
            ports: vec![],
        }
    }

    fn shown(names: &Names) -> Vec<(String, u32, u32)> {
        let name = |key: &NameKey, octets: u32| {
            String::from_utf8_lossy(&key.name[..octets as usize - 1])
                .replace(|letter: char| letter.is_control(), ".")
        };
        let row = |(key, found): (&NameKey, &NameAddresses)| {
            (name(key, found.name_octets), found.ipv4_count, found.ipv6_count)
        };
        names.iter().map(row).collect()
    }

    #[test]
    fn a_service_and_its_endpoints_have_their_names() {
        let key = NamespacedName::new("default", "web");
        let records = ServiceRecords::Headless {
            endpoints: vec![endpoint("Web-0", "10.0.0.1"), endpoint("web-1", "fd00::1")],
        };
        let names = of_service("cluster.local", &key, &records);
        let expected = [
            (".web.default.svc.cluster.local", 1, 1),
            (".web-0.web.default.svc.cluster.local", 1, 0),
            (".web-1.web.default.svc.cluster.local", 0, 1),
        ];
        let mut expected: Vec<_> =
            expected.map(|(name, ipv4, ipv6)| (name.to_owned(), ipv4, ipv6)).to_vec();
        let mut found = shown(&names);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn changes_lead_from_one_to_the_other() {
        let key = NamespacedName::new("default", "web");
        let names = |endpoints: &[(&str, &str)]| {
            let endpoints = endpoints.iter().map(|(label, address)| endpoint(label, address));
            let records = ServiceRecords::Headless { endpoints: endpoints.collect() };
            of_service("cluster.local", &key, &records)
        };
        let before = names(&[("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")]);
        let after = names(&[("b", "10.0.0.2"), ("c", "10.0.0.4"), ("d", "10.0.0.5")]);
        let found = changes(&before, &after);
        let key = |label: &str| {
            key_of(&format!("{label}web.default.svc.cluster.local.")).expect("a name")
        };
        assert_eq!(found.get(&key("a.")), Some(&None));
        assert_eq!(found.get(&key("b.")), None);
        let mut made = before.clone();
        for (key, change) in found {
            match change {
                Some(found) => drop(made.insert(key, found)),
                None => drop(made.remove(&key)),
            }
        }
        assert_eq!(made, after);
        assert!(changes(&after, &after).is_empty());
    }

    #[test]
    fn what_has_no_place_is_left_to_the_worker() {
        let long = "l".repeat(63);
        let key = NamespacedName::new(&long, &long);
        let one = ServiceRecords::ClusterIp {
            addresses: vec!["10.96.0.1".parse().expect("an address")],
            ports: vec![],
        };
        assert_eq!(of_service("cluster.local", &key, &one), Names::new());
        let key = NamespacedName::new("default", "many");
        let endpoints = (1..=9).map(|n| endpoint("one", &format!("10.0.0.{n}"))).collect();
        let many = ServiceRecords::Headless { endpoints };
        assert_eq!(of_service("cluster.local", &key, &many), Names::new());
        assert_eq!(of_service("", &NamespacedName::new("a", "b"), &one), Names::new());
    }

    #[test]
    fn an_soa_that_is_too_long_leaves_absence_to_the_worker() {
        let times = Times { ttl_s: 5, negative_ttl_s: 5 };
        assert_eq!(settings("cluster.local", times, &[1; 70]).soa_octets, 70);
        assert_eq!(settings("cluster.local", times, &[1; 70]).zone_octets, 15);
        assert_eq!(settings("cluster.local", times, &[1; 300]).soa_octets, 0);
    }
}
