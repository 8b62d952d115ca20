//! What the zone says of one Service, as small as it can be asked without searching: a hundred
//! thousand endpoints are a few megabytes. Built once a change by the agent, carried by the feed,
//! and asked by the DNS worker as it came.
//!
//! Octets of the feed are no promise: every offset and index is looked up, never trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use model::Protocol;
use plan::zone::{HeadlessEndpoint, NamedPort, ServiceRecords};
use serde::{Deserialize, Serialize};

use crate::Name;

/// The records of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Records {
    /// A Service with addresses of its own: those, in order, and its named ports, in order.
    ClusterIp(Box<[IpAddr]>, Box<[NamedPort]>),
    /// A headless Service.
    Headless(Box<Headless>),
    /// An alias; `None` when its target is none that DNS could carry.
    Alias(Option<Name>),
}

/// The endpoints of a headless Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headless {
    /// By address, then label. One address may stand under two labels while an endpoint gets its
    /// hostname.
    endpoints: Box<[Endpoint]>,
    /// Indices of endpoints with hostnames, by hostname, then address.
    by_hostname: Box<[u32]>,
    /// All named ports, in order.
    ports: Box<[NamedPort]>,
    /// Indices of a port and of the first endpoint of each label that has it, in order.
    services: Box<[(u32, u32)]>,
    /// The hostnames, one behind the other.
    hostnames: Box<str>,
}

/// An address, and where its hostname stands: offset and octets; no octets where there is none,
/// and the label is the address with dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Endpoint(IpAddr, u32, u8);

/// Addresses that stand at one name, those of IPv4 first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Addresses<'a> {
    One(IpAddr),
    List(&'a [IpAddr]),
    Endpoints(&'a Headless),
    /// The endpoints at these indices.
    Chosen(&'a Headless, &'a [u32]),
}

/// The ports that stand at one name: each is an SRV record.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ports<'a> {
    OfService(&'a [IpAddr], &'a [NamedPort]),
    OfEndpoints(&'a Headless, &'a [(u32, u32)]),
}

/// One SRV record: its port, the label of its target below the Service (none: the Service
/// itself), and the target's addresses.
pub(crate) struct PortRecord<'a> {
    pub(crate) port: u16,
    pub(crate) label: Option<Label<'a>>,
    pub(crate) addresses: Addresses<'a>,
}

/// The label of an endpoint: its hostname, or its address with dashes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Label<'a> {
    Hostname(&'a str),
    Address(IpAddr),
}

impl Records {
    /// The same as the plan's records.
    pub fn new(records: &ServiceRecords) -> Self {
        match records {
            ServiceRecords::ClusterIp { addresses, ports } => {
                let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
                let ports: BTreeSet<NamedPort> = ports.iter().cloned().collect();
                Self::ClusterIp(addresses.into_iter().collect(), ports.into_iter().collect())
            }
            ServiceRecords::Headless { endpoints } => {
                Self::Headless(Box::new(Headless::new(endpoints)))
            }
            // The plan made it a name that fits.
            ServiceRecords::ExternalName { target } => {
                Self::Alias(target.as_ref().and_then(|target| target.parse().ok()))
            }
        }
    }

    /// All addresses, by the label below the Service; without one, the Service's own.
    pub fn by_label(&self) -> BTreeMap<Option<String>, BTreeSet<IpAddr>> {
        let mut all: BTreeMap<Option<String>, BTreeSet<IpAddr>> = BTreeMap::new();
        match self {
            Self::ClusterIp(addresses, _) => {
                all.insert(None, addresses.iter().copied().collect());
            }
            Self::Headless(headless) => {
                for endpoint in &headless.endpoints {
                    let label = match headless.hostname(*endpoint) {
                        Some(hostname) => Label::Hostname(hostname),
                        None => Label::Address(endpoint.0),
                    };
                    let label = label.with(|octets| String::from_utf8_lossy(octets).into_owned());
                    for name in [None, Some(label)] {
                        all.entry(name).or_default().insert(endpoint.0);
                    }
                }
            }
            Self::Alias(_) => {}
        }
        all
    }

    /// Addresses that lead back to the Service, or to names below it.
    pub(crate) fn pointing_back(&self) -> impl Iterator<Item = IpAddr> {
        let (addresses, headless) = match self {
            Self::ClusterIp(addresses, _) => (addresses.as_ref(), None),
            Self::Headless(headless) => (Default::default(), Some(headless)),
            Self::Alias(_) => (Default::default(), None),
        };
        let named = headless.into_iter().flat_map(|headless| {
            let indices = headless.by_hostname.iter();
            indices.filter_map(|index| Some(headless.endpoint(*index)?.0))
        });
        addresses.iter().copied().chain(named)
    }

    /// Whether a port with a name has the protocol.
    pub(crate) fn has_port_over(&self, protocol: Protocol) -> bool {
        self.ports().iter().any(|port| port.protocol == protocol)
    }

    /// The records of one named port, if there are any.
    pub(crate) fn ports_named(&self, name: &[u8], protocol: Protocol) -> Option<Ports<'_>> {
        let all = self.ports();
        let key = |port: &NamedPort| (port.name.as_bytes(), port.protocol) < (name, protocol);
        let start = all.partition_point(key);
        let count = all
            .get(start..)?
            .partition_point(|port| port.name.as_bytes() == name && port.protocol == protocol);
        let ports = all.get(start..start + count).filter(|ports| !ports.is_empty())?;
        match self {
            Self::ClusterIp(addresses, _) => Some(Ports::OfService(addresses, ports)),
            Self::Headless(headless) => {
                let services = &headless.services;
                let from = services.partition_point(|(port, _)| (*port as usize) < start);
                let to = services.partition_point(|(port, _)| (*port as usize) < start + count);
                Some(Ports::OfEndpoints(headless, services.get(from..to)?))
            }
            Self::Alias(_) => None,
        }
    }

    fn ports(&self) -> &[NamedPort] {
        match self {
            Self::ClusterIp(_, ports) => ports,
            Self::Headless(headless) => &headless.ports,
            Self::Alias(_) => &[],
        }
    }
}

impl Headless {
    /// `endpoints` are in the plan's order: by label, then address, each pair once.
    fn new(endpoints: &[HeadlessEndpoint]) -> Self {
        let mut hostnames = String::new();
        let mut at = BTreeMap::new();
        let mut compact: Vec<(Endpoint, &HeadlessEndpoint)> = Vec::with_capacity(endpoints.len());
        let named = endpoints.iter().filter(|one| one.has_hostname);
        let taken: BTreeSet<&str> = named.map(|one| one.label.as_str()).collect();
        for endpoint in endpoints {
            // One label, whether it is somebody's hostname or made up, is one name.
            let label = endpoint.label.as_str();
            let hostname = if taken.contains(label) { label } else { "" };
            let offset = *at.entry(hostname).or_insert_with(|| {
                hostnames.push_str(hostname);
                hostnames.len() - hostname.len()
            });
            let octets = u8::try_from(hostname.len()).unwrap_or(0);
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            compact.push((Endpoint(endpoint.address, offset, octets), endpoint));
        }
        compact.sort_by_key(|(endpoint, from)| (endpoint.0, from.label.as_str()));
        let mut named: Vec<(&str, u32)> = Vec::new();
        let ports: BTreeSet<&NamedPort> = endpoints.iter().flat_map(|one| &one.ports).collect();
        let number: BTreeMap<&NamedPort, u32> = ports.iter().copied().zip(0..).collect();
        let mut first: BTreeMap<(u32, &str), u32> = BTreeMap::new();
        for ((_, from), index) in compact.iter().zip(0..) {
            if taken.contains(from.label.as_str()) {
                named.push((&from.label, index));
            }
            for port in from.ports.iter().filter_map(|port| number.get(port)) {
                first.entry((*port, from.label.as_str())).or_insert(index);
            }
        }
        named.sort_unstable();
        let mut services: Vec<(u32, u32)> =
            first.into_iter().map(|((port, _), index)| (port, index)).collect();
        services.sort_unstable();
        Self {
            endpoints: compact.into_iter().map(|(endpoint, _)| endpoint).collect(),
            by_hostname: named.into_iter().map(|(_, index)| index).collect(),
            ports: ports.into_iter().cloned().collect(),
            services: services.into_boxed_slice(),
            hostnames: hostnames.into_boxed_str(),
        }
    }

    /// The addresses of one label below the Service, if there are any.
    pub(crate) fn labelled(&self, label: &[u8]) -> Option<Addresses<'_>> {
        let chosen = self.with_hostname(label);
        if !chosen.is_empty() {
            return Some(Addresses::Chosen(self, chosen));
        }
        let address = address_of_label(label)?;
        let mut all = self.endpoints_at(address);
        // Not where a hostname takes its place.
        all.any(|endpoint| endpoint.2 == 0).then_some(Addresses::One(address))
    }

    /// The hostnames of an address.
    pub(crate) fn hostnames_of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.endpoints_at(address).filter_map(|endpoint| self.hostname(endpoint))
    }

    fn endpoints_at(&self, address: IpAddr) -> impl Iterator<Item = Endpoint> {
        let start = self.endpoints.partition_point(|endpoint| endpoint.0 < address);
        let tail = self.endpoints.get(start..).unwrap_or_default();
        tail.iter().take_while(move |endpoint| endpoint.0 == address).copied()
    }

    fn with_hostname(&self, label: &[u8]) -> &[u32] {
        let of = |index: &u32| {
            let endpoint = self.endpoint(*index)?;
            self.hostname(endpoint).map(str::as_bytes)
        };
        let start = self.by_hostname.partition_point(|index| of(index) < Some(label));
        let tail = self.by_hostname.get(start..).unwrap_or_default();
        let count = tail.partition_point(|index| of(index) == Some(label));
        tail.get(..count).unwrap_or_default()
    }

    fn endpoint(&self, index: u32) -> Option<Endpoint> {
        self.endpoints.get(index as usize).copied()
    }

    fn hostname(&self, endpoint: Endpoint) -> Option<&str> {
        let Endpoint(_, at, octets) = endpoint;
        let range = at as usize..at as usize + usize::from(octets);
        self.hostnames.get(range).filter(|hostname| !hostname.is_empty())
    }
}

impl Addresses<'_> {
    /// Where those of one family are.
    pub(crate) fn of_family(&self, is_v4: bool) -> Range<usize> {
        let count = match self {
            Self::One(_) => 1,
            Self::List(addresses) => addresses.len(),
            Self::Endpoints(headless) => headless.endpoints.len(),
            Self::Chosen(_, indices) => indices.len(),
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.at(middle).is_some_and(|address| address.is_ipv4()) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if is_v4 { 0..low } else { low..count }
    }

    /// One of them. `None` where the one before is the same.
    pub(crate) fn get(&self, index: usize) -> Option<IpAddr> {
        let address = self.at(index)?;
        let before = index.checked_sub(1).and_then(|before| self.at(before));
        (before != Some(address)).then_some(address)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let count = self.of_family(false).end;
        (0..count).filter_map(|index| self.get(index))
    }

    fn at(&self, index: usize) -> Option<IpAddr> {
        match self {
            Self::One(address) => (index == 0).then_some(*address),
            Self::List(addresses) => addresses.get(index).copied(),
            Self::Endpoints(headless) => Some(headless.endpoints.get(index)?.0),
            Self::Chosen(headless, indices) => Some(headless.endpoint(*indices.get(index)?)?.0),
        }
    }
}

impl<'a> Ports<'a> {
    /// How many SRV records they are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::OfService(_, ports) => ports.len(),
            Self::OfEndpoints(_, services) => services.len(),
        }
    }

    /// The SRV records.
    pub(crate) fn iter(self) -> impl Iterator<Item = PortRecord<'a>> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }

    fn get(self, index: usize) -> Option<PortRecord<'a>> {
        match self {
            Self::OfService(addresses, ports) => {
                let port = ports.get(index)?.port;
                Some(PortRecord { port, label: None, addresses: Addresses::List(addresses) })
            }
            Self::OfEndpoints(headless, services) => {
                let (port, endpoint) = services.get(index)?;
                let port = headless.ports.get(*port as usize)?.port;
                let endpoint = headless.endpoint(*endpoint)?;
                let (label, addresses) = match headless.hostname(endpoint) {
                    Some(hostname) => {
                        let chosen = headless.with_hostname(hostname.as_bytes());
                        (Label::Hostname(hostname), Addresses::Chosen(headless, chosen))
                    }
                    None => (Label::Address(endpoint.0), Addresses::One(endpoint.0)),
                };
                Some(PortRecord { port, label: Some(label), addresses })
            }
        }
    }
}

impl PortRecord<'_> {
    /// Gives the label of the target below the Service, its length octet first; both are empty
    /// where the target is the Service itself.
    pub(crate) fn with_label<T>(&self, take: impl FnOnce(&[u8], &[u8]) -> T) -> T {
        match &self.label {
            None => take(&[], &[]),
            Some(label) => label.with(|octets| take(&[octets.len() as u8], octets)),
        }
    }
}

/// The longest spelling of an address, in octets.
const MAX_ADDRESS_OCTETS: usize = 39;

impl Label<'_> {
    /// Gives the label's octets.
    pub(crate) fn with<T>(&self, take: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Hostname(hostname) => take(hostname.as_bytes()),
            Self::Address(address) => {
                let mut text = AddressText { octets: [0; MAX_ADDRESS_OCTETS], length: 0 };
                // The longest address fits.
                let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{address}"));
                take(text.octets.get(..text.length).unwrap_or_default())
            }
        }
    }

    fn is(&self, label: &[u8]) -> bool {
        self.with(|octets| octets == label)
    }
}

/// The address that a label spells with dashes, as names of pods do. Only the usual spelling of an
/// address counts: a pod has one name.
pub(crate) fn address_of_label(label: &[u8]) -> Option<IpAddr> {
    let dashes = label.iter().filter(|octet| **octet == b'-').count();
    let mut octets = [0; MAX_ADDRESS_OCTETS];
    let text = octets.get_mut(..label.len())?;
    text.copy_from_slice(label);
    let is_v4 = dashes == 3 && !label.windows(2).any(|pair| pair == b"--");
    for octet in text.iter_mut().filter(|octet| **octet == b'-') {
        *octet = if is_v4 { b'.' } else { b':' };
    }
    let text = std::str::from_utf8(text).ok()?;
    let address = match is_v4 {
        true => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        false => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    };
    address.filter(|address| Label::Address(*address).is(label))
}

/// The text of an address with dashes, on the stack.
struct AddressText {
    octets: [u8; MAX_ADDRESS_OCTETS],
    length: usize,
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        let place = self.octets.get_mut(self.length..end).ok_or(std::fmt::Error)?;
        for (place, octet) in place.iter_mut().zip(text.bytes()) {
            *place = if matches!(octet, b'.' | b':') { b'-' } else { octet };
        }
        self.length = end;
        Ok(())
    }
}
