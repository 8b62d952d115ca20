//! The address at which cluster DNS answers on every node besides the Service's: what NodeLocal
//! DNSCache has (KEP-1024), so that pods and kubelets that name it stay as they are.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::Family;

/// What people write for the addresses: `none`, or a list with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLocalDns(pub Vec<IpAddr>);

impl Default for NodeLocalDns {
    fn default() -> Self {
        Self(usual())
    }
}

impl fmt::Display for NodeLocalDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(NONE);
        }
        let texts: Vec<String> = self.0.iter().map(IpAddr::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl FromStr for NodeLocalDns {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            NONE => Ok(Self(vec![])),
            _ => text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self),
        }
    }
}

const NONE: &str = "none";
/// NodeLocal DNSCache's own, which manifests and kubelets name.
const USUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// The addresses of a cluster that says nothing of them.
pub(crate) fn usual() -> Vec<IpAddr> {
    vec![USUAL]
}

/// The addresses that cannot be, each with what is wrong.
pub(crate) fn faults(
    addresses: &[IpAddr],
    ranges: &[&[IpNet]],
) -> impl Iterator<Item = (IpAddr, &'static str)> {
    addresses.iter().enumerate().filter_map(move |(place, address)| {
        let before = addresses.get(..place).unwrap_or_default();
        let is_second = before.iter().any(|one| Family::of(one) == Family::of(address));
        let is_link_local = matches!(address, IpAddr::V6(one) if one.is_unicast_link_local());
        let is_of_range = ranges.iter().copied().flatten().any(|range| range.contains(address));
        let fault = if is_second {
            "is the second of its family: name one"
        } else if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            "is nowhere that a pod reaches: take 169.254.20.10, or an address of fd00::/8"
        } else if is_link_local {
            "would need a link beside it: take an address of fd00::/8"
        } else if is_of_range {
            "lies in a range of pods, Services or nodes: take one that nobody has"
        } else {
            return None;
        };
        Some((*address, fault))
    })
}

#[cfg(test)]
mod tests {
    use super::NodeLocalDns;
    use crate::{ClusterConfig, Family};

    #[test]
    fn what_people_write_is_read_and_written() {
        for text in ["none", "169.254.20.10", "169.254.20.10,fd00:d::10"] {
            assert_eq!(text.parse::<NodeLocalDns>().expect(text).to_string(), text);
        }
        assert_eq!(NodeLocalDns::default().to_string(), "169.254.20.10");
        for text in ["", "off", "169.254.20.10,", "169.254.20.0/24"] {
            assert!(text.parse::<NodeLocalDns>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_are_told_with_what_to_take() {
        let rows: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&["169.254.20.10"], None),
            (&["169.254.20.10", "fd00:d::10"], None),
            (&["169.254.20.10", "169.254.20.11"], Some("169.254.20.11 is the second")),
            (&["127.0.0.1"], Some("nowhere that a pod reaches")),
            (&["0.0.0.0"], Some("nowhere that a pod reaches")),
            (&["ff02::1"], Some("nowhere that a pod reaches")),
            (&["fe80::10"], Some("would need a link")),
            (&["10.96.0.10"], Some("lies in a range")),
            (&["10.244.3.1"], Some("lies in a range")),
            (&["172.30.0.9"], Some("lies in a range")),
        ];
        for (addresses, expected) in rows {
            let parsed = addresses.iter().map(|text| text.parse().expect("an address"));
            let config =
                ClusterConfig { node_local_dns: parsed.collect(), ..ClusterConfig::default() };
            let found = config.check_ranges(3).err().map(|errors| errors[0].to_string());
            match expected {
                None => assert_eq!(found, None, "{addresses:?}"),
                Some(part) => {
                    assert!(found.is_some_and(|text| text.contains(part)), "{addresses:?}");
                }
            }
        }
    }

    #[test]
    fn a_family_without_services_has_no_dns_address_of_any_kind() {
        let config = ClusterConfig::default();
        let texts = |family| -> Vec<String> {
            config.dns_addresses(family).map(|address| address.to_string()).collect()
        };
        assert_eq!(texts(Family::V4), ["10.96.0.10", "169.254.20.10"]);
        assert!(texts(Family::V6).is_empty());
        let two = vec!["169.254.20.10", "fd00:d::10"].into_iter();
        let config = ClusterConfig {
            service_cidrs: vec!["fd00:10:96::/112".parse().expect("a range")],
            node_local_dns: two.map(|text| text.parse().expect("an address")).collect(),
            ..ClusterConfig::default()
        };
        assert_eq!(config.dns_addresses(Family::V4).count(), 0);
        assert_eq!(config.dns_addresses(Family::V6).count(), 2);
    }
}
