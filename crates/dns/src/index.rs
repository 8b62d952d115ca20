//! Finds what a name of the cluster's zone stands for.
//!
//! The shape of the names is fixed by the DNS-Based Service Discovery specification, so a lookup
//! walks the labels from the domain downwards. There is no list of all names: names that exist
//! only because others are below them (empty non-terminals, RFC 8020) come out of the walk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Protocol;
use plan::zone::{HeadlessEndpoint, NamedPort, ServiceRecords, Zone};

use crate::Name;

/// The label of the zone's name server below `dns`: the name that SOA and NS give.
pub(crate) const NAME_SERVER_LABELS: [&[u8]; 2] = [b"ns", b"dns"];

/// A zone, ready to be asked.
#[derive(Clone, Debug)]
pub struct Index {
    zone: Zone,
    apex: Name,
    serial: u32,
    reverse: BTreeMap<IpAddr, Vec<Name>>,
}

/// Where a name leads.
#[derive(Debug, PartialEq)]
pub(crate) enum Found<'a> {
    /// To no zone of the cluster.
    Outside,
    /// Into a zone of the cluster.
    Inside {
        /// How many labels the zone's own name has, counted from the root.
        zone_labels: usize,
        /// What stands at the name.
        node: Node<'a>,
    },
}

/// What stands at one name.
#[derive(Debug, PartialEq)]
pub(crate) enum Node<'a> {
    /// Nothing, and nothing below.
    Missing,
    /// Nothing, but there are names below.
    Empty,
    /// The top of a zone.
    Apex,
    /// The version of the specification.
    Version,
    /// Addresses, and the family that is asked for decides which.
    Addresses(Vec<IpAddr>),
    /// SRV records.
    Ports(Vec<Target>),
    /// An alias.
    Alias(Name),
    /// The names of an address.
    Pointers(&'a [Name]),
}

/// One SRV record and the addresses of its target.
#[derive(Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) weight: u16,
    pub(crate) name: Name,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Index {
    /// Prepares a zone. The serial stands in its SOA record and should grow from one to the next.
    /// A domain that is no name serves nothing: every name is then outside.
    pub fn new(zone: Zone, serial: u32) -> Self {
        let apex = zone.domain.parse().map_or_else(|_| Name::root(), |name: Name| name.to_lower());
        let mut index = Self { zone, apex, serial, reverse: BTreeMap::new() };
        index.reverse = index.reverse_names();
        index
    }

    /// The serial number of the zone.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// A name below the apex; `None` when it is too long to be one.
    pub(crate) fn below_apex<'a>(&'a self, labels: &[&'a [u8]]) -> Option<Name> {
        Name::from_labels(labels.iter().copied().chain(self.apex.labels())).ok()
    }

    /// Looks up a name in lower case.
    pub(crate) fn find(&self, name: &Name) -> Found<'_> {
        let mut labels: Vec<&[u8]> = name.labels().collect();
        labels.reverse();
        let apex_labels = self.apex.labels().count();
        let below_apex = || {
            let (top, below) = labels.split_at_checked(apex_labels)?;
            let same = self.apex.labels().eq(top.iter().rev().copied());
            (same && apex_labels > 0).then_some(below)
        };
        if let Some(below) = below_apex() {
            return Found::Inside { zone_labels: apex_labels, node: self.find_below_apex(below) };
        }
        match labels.as_slice() {
            [b"arpa", b"in-addr", rest @ ..] => self.find_reverse(rest, 8),
            [b"arpa", b"ip6", rest @ ..] => self.find_reverse(rest, 4),
            _ => Found::Outside,
        }
    }

    /// `labels` are below the zone's name, the uppermost first.
    fn find_below_apex(&self, labels: &[&[u8]]) -> Node<'_> {
        match labels {
            [] => Node::Apex,
            [b"dns-version"] => Node::Version,
            [b"dns"] | [b"svc"] => Node::Empty,
            [b"dns", b"ns"] => Node::Addresses(self.zone.name_servers.clone()),
            [b"svc", namespace] => match self.namespace(namespace) {
                Some(_) => Node::Empty,
                None => Node::Missing,
            },
            [b"svc", namespace, service, below @ ..] => {
                self.find_service(namespace, service, below).unwrap_or(Node::Missing)
            }
            _ => Node::Missing,
        }
    }

    fn find_service(&self, namespace: &[u8], service: &[u8], below: &[&[u8]]) -> Option<Node<'_>> {
        let records = self.namespace(namespace)?.get(std::str::from_utf8(service).ok()?)?;
        match (records, below) {
            (ServiceRecords::ExternalName { target }, []) => Some(match target {
                // The plan made it a name that fits.
                Some(target) => target.parse().map_or(Node::Empty, Node::Alias),
                None => Node::Empty,
            }),
            (ServiceRecords::ExternalName { .. }, _) => None,
            (ServiceRecords::ClusterIp { addresses, .. }, []) => {
                Some(Node::Addresses(addresses.clone()))
            }
            (ServiceRecords::Headless { endpoints }, []) => {
                Some(Node::Addresses(distinct_addresses(endpoints)))
            }
            (_, [label]) => match protocol_of(label) {
                Some(protocol) => {
                    let mut ports = named_ports(records);
                    ports.any(|port| port.protocol == protocol).then_some(Node::Empty)
                }
                None => {
                    let endpoints = endpoints_with_label(records, label);
                    (!endpoints.is_empty()).then(|| Node::Addresses(distinct_addresses(endpoints)))
                }
            },
            (_, [protocol, port]) => {
                let protocol = protocol_of(protocol)?;
                let port = std::str::from_utf8(port.strip_prefix(b"_")?).ok()?;
                let is_it = |named: &NamedPort| named.protocol == protocol && named.name == port;
                let targets = self.targets(namespace, service, records, is_it);
                (!targets.is_empty()).then_some(Node::Ports(targets))
            }
            _ => None,
        }
    }

    /// The SRV records of one named port: one for a Service with an address, one for each label
    /// and port of a headless one.
    fn targets(
        &self,
        namespace: &[u8],
        service: &[u8],
        records: &ServiceRecords,
        is_it: impl Fn(&NamedPort) -> bool,
    ) -> Vec<Target> {
        let service_labels: [&[u8]; 3] = [service, namespace, b"svc"];
        let mut found: BTreeMap<(&str, u16), Vec<IpAddr>> = BTreeMap::new();
        match records {
            ServiceRecords::ClusterIp { addresses, ports } => {
                for port in ports.iter().filter(|port| is_it(port)) {
                    found.insert(("", port.port), addresses.clone());
                }
            }
            ServiceRecords::Headless { endpoints } => {
                for endpoint in endpoints {
                    for port in endpoint.ports.iter().filter(|port| is_it(port)) {
                        let addresses = found.entry((&endpoint.label, port.port)).or_default();
                        addresses.push(endpoint.address);
                    }
                }
            }
            ServiceRecords::ExternalName { .. } => {}
        }
        // Together the weights are about 100, as users of cluster DNS know them.
        let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
        let target = |((label, port), addresses): ((&str, u16), Vec<IpAddr>)| {
            let own: &[&[u8]] = if label.is_empty() { &[] } else { &[label.as_bytes()] };
            let labels = own.iter().chain(&service_labels).copied().chain(self.apex.labels());
            let name = Name::from_labels(labels).ok()?;
            Some(Target { port, weight, name, addresses })
        };
        found.into_iter().filter_map(target).collect()
    }

    /// `labels` are below `in-addr.arpa` or `ip6.arpa`, the uppermost first; each is `label_bits`
    /// of an address.
    fn find_reverse(&self, labels: &[&[u8]], label_bits: u32) -> Found<'_> {
        let address_bits = if label_bits == 8 { 32 } else { 128 };
        let (parsed, bits) = leading_bits(labels, label_bits, address_bits);
        let full_labels = (address_bits / label_bits) as usize;
        let exact = (parsed == labels.len() && parsed == full_labels)
            .then(|| self.reverse.get(&address_of(bits, address_bits)))
            .flatten();
        let Some(cut) = self.reverse_cut(bits, parsed, label_bits, address_bits) else {
            // The address of a pod in the node's own network lies outside the cluster's ranges.
            return match exact {
                Some(names) => {
                    Found::Inside { zone_labels: labels.len() + 2, node: Node::Pointers(names) }
                }
                None => Found::Outside,
            };
        };
        let node = if let Some(names) = exact {
            Node::Pointers(names)
        } else if parsed == labels.len() && parsed == cut {
            Node::Apex
        } else if parsed == labels.len()
            && self.has_reverse_below(bits, parsed, label_bits, address_bits)
        {
            Node::Empty
        } else {
            Node::Missing
        };
        Found::Inside { zone_labels: cut + 2, node }
    }

    /// How many labels below `arpa`'s child the reverse zone has that these bits lie in. A range
    /// whose prefix ends within a label is as many zones as the label has values in it (a /12 is
    /// sixteen zones of two labels), so the cut is the prefix rounded up.
    fn reverse_cut(
        &self,
        bits: u128,
        parsed: usize,
        label_bits: u32,
        address_bits: u32,
    ) -> Option<usize> {
        let address = address_of(bits, address_bits);
        self.zone.reverse_ranges.iter().find_map(|range| {
            let cut = u32::from(range.prefix_len()).div_ceil(label_bits) as usize;
            (cut > 0 && parsed >= cut && range.contains(&address)).then_some(cut)
        })
    }

    fn has_reverse_below(
        &self,
        bits: u128,
        parsed: usize,
        label_bits: u32,
        address_bits: u32,
    ) -> bool {
        let free_bits = address_bits - parsed as u32 * label_bits;
        let span = 1_u128.checked_shl(free_bits).map_or(u128::MAX, |span| span - 1);
        let last = address_of(bits.saturating_add(span), address_bits);
        self.reverse.range(address_of(bits, address_bits)..=last).next().is_some()
    }

    fn namespace(&self, label: &[u8]) -> Option<&BTreeMap<String, ServiceRecords>> {
        self.zone.namespaces.get(std::str::from_utf8(label).ok()?)
    }

    /// Addresses of Services, and of endpoints with hostnames, point back to their names.
    fn reverse_names(&self) -> BTreeMap<IpAddr, Vec<Name>> {
        let mut reverse: BTreeMap<IpAddr, Vec<Name>> = BTreeMap::new();
        let services = self.zone.namespaces.iter().flat_map(|(namespace, services)| {
            services.iter().map(move |(service, records)| (namespace, service, records))
        });
        for (namespace, service, records) in services {
            let base = [service.as_bytes(), namespace.as_bytes(), b"svc".as_slice()];
            let mut add = |address: IpAddr, labels: &[&[u8]]| {
                if let Some(name) = self.below_apex(labels) {
                    reverse.entry(address).or_default().push(name);
                }
            };
            match records {
                ServiceRecords::ClusterIp { addresses, .. } => {
                    addresses.iter().for_each(|address| add(*address, &base));
                }
                ServiceRecords::Headless { endpoints } => {
                    for endpoint in endpoints.iter().filter(|endpoint| endpoint.has_hostname) {
                        let [service, namespace, svc] = base;
                        add(
                            endpoint.address,
                            &[endpoint.label.as_bytes(), service, namespace, svc],
                        );
                    }
                }
                ServiceRecords::ExternalName { .. } => {}
            }
        }
        reverse
    }
}

fn named_ports(records: &ServiceRecords) -> Box<dyn Iterator<Item = &NamedPort> + '_> {
    match records {
        ServiceRecords::ClusterIp { ports, .. } => Box::new(ports.iter()),
        ServiceRecords::Headless { endpoints } => {
            Box::new(endpoints.iter().flat_map(|endpoint| &endpoint.ports))
        }
        ServiceRecords::ExternalName { .. } => Box::new(std::iter::empty()),
    }
}

/// The plan orders endpoints by label, so those of one label are neighbours.
fn endpoints_with_label<'a>(records: &'a ServiceRecords, label: &[u8]) -> &'a [HeadlessEndpoint] {
    let ServiceRecords::Headless { endpoints } = records else { return &[] };
    let start = endpoints.partition_point(|endpoint| endpoint.label.as_bytes() < label);
    let tail = endpoints.get(start..).unwrap_or_default();
    let count = tail.partition_point(|endpoint| endpoint.label.as_bytes() == label);
    tail.get(..count).unwrap_or_default()
}

/// One address may stand under two labels while an endpoint gets its hostname.
fn distinct_addresses(endpoints: &[HeadlessEndpoint]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn protocol_of(label: &[u8]) -> Option<Protocol> {
    match label {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        b"_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Reads labels of a reverse name into the upper bits of an address, until one is no number in
/// its only spelling. Returns how many were read.
fn leading_bits(labels: &[&[u8]], label_bits: u32, address_bits: u32) -> (usize, u128) {
    let mut bits = 0;
    let mut free_bits = address_bits;
    for (index, label) in labels.iter().enumerate() {
        let value = if label_bits == 8 { octet_of(label) } else { nibble_of(label) };
        let (Some(value), Some(left)) = (value, free_bits.checked_sub(label_bits)) else {
            return (index, bits);
        };
        free_bits = left;
        bits |= u128::from(value) << free_bits;
    }
    (labels.len(), bits)
}

fn octet_of(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let value: u8 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

fn nibble_of(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn address_of(bits: u128, address_bits: u32) -> IpAddr {
    if address_bits == 32 {
        Ipv4Addr::from(bits as u32).into()
    } else {
        Ipv6Addr::from(bits).into()
    }
}
