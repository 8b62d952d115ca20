//! Finds what a name of the cluster's zone stands for.
//!
//! The shape of the names is fixed by the DNS-Based Service Discovery specification, so a lookup
//! walks the labels from the domain downwards. There is no list of all names: names that exist
//! only because others are below them (empty non-terminals, RFC 8020) come out of the walk.
//!
//! A change costs what it changes and a step down two trees, however large the zone is.

mod clients;
mod labels;
mod places;
mod pods;
mod reverse;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use model::Protocol;
use plan::zone::{PodNames, PodRecords, Zone};

use crate::Name;
use crate::feed::{Change, Settings};
use crate::records::{Addresses, Label, Ports, Records, address_of_label};

pub(crate) use labels::Labels;

/// The label of the zone's name server below `dns`: the name that SOA and NS give.
pub(crate) const NAME_SERVER: &[u8] = b"\x02ns\x03dns";
/// Whom SOA names as responsible, below the domain.
pub(crate) const MAILBOX: &[u8] = b"\x0Ahostmaster";

/// A zone, ready to be asked.
#[derive(Clone, Debug)]
pub struct Index {
    settings: Settings,
    apex: Name,
    name_servers: Vec<IpAddr>,
    serial: u32,
    namespaces: BTreeMap<Box<str>, Namespace>,
    /// By number, which stays while the Service is there.
    services: places::Places<Service>,
    /// Addresses, and the Services that they lead back to.
    reverse: BTreeSet<(IpAddr, u32)>,
    /// Addresses of pods, with the pods' namespaces.
    pods: pods::Pods,
    /// Machines of the cluster, which are answered.
    clients: clients::Ranges,
}

#[derive(Clone, Debug, Default)]
struct Namespace {
    services: BTreeMap<Box<str>, u32>,
    pods: usize,
}

#[derive(Clone, Debug)]
struct Service {
    /// The Service's labels below the domain, in the wire format.
    wire: Box<[u8]>,
    records: Records,
}

/// What a change is about. [`Index::changes`] gives them in this order.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    /// A range of clients.
    Client(IpNet),
    /// A Service, by namespace and name.
    Service(Box<str>, Box<str>),
    /// The pods at an address.
    Pod(IpAddr),
}

/// Where a name leads.
#[derive(Debug)]
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
#[derive(Debug)]
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
    Addresses(Addresses<'a>),
    /// SRV records, whose targets are names below these labels in the wire format.
    Ports(&'a [u8], Ports<'a>),
    /// An alias.
    Alias(&'a Name),
    /// The names of an address, at least one.
    Pointers(Pointers<'a>),
}

/// The names of an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointers<'a> {
    index: &'a Index,
    address: IpAddr,
    /// Whether pods' names count.
    with_pods: bool,
}

impl Index {
    /// Prepares a whole zone. The serial stands in its SOA record and should grow from one to the
    /// next. A domain that is no name serves nothing: every name is then outside.
    pub fn new(zone: Zone, serial: u32) -> Self {
        let mut index = Self::empty(Settings::of(&zone));
        index.serial = serial;
        for (namespace, services) in &zone.namespaces {
            for (name, records) in services {
                index.apply(Change::service(namespace, name, Some(records)));
            }
        }
        index
    }

    /// A zone without Services and pods.
    pub fn empty(settings: Settings) -> Self {
        let apex =
            settings.domain.parse().map_or_else(|_| Name::root(), |name: Name| name.to_lower());
        let mut name_servers = settings.name_servers.clone();
        name_servers.sort_unstable();
        Self {
            settings,
            apex,
            name_servers,
            serial: 0,
            namespaces: BTreeMap::new(),
            services: places::Places::default(),
            reverse: BTreeSet::new(),
            pods: pods::Pods::default(),
            clients: clients::Ranges::default(),
        }
    }

    /// The serial number of the zone.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Gives the zone its next serial number.
    pub fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
    }

    /// What the zone says besides Services and pods.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the zone says of one Service.
    pub fn records(&self, namespace: &str, name: &str) -> Option<&Records> {
        let number = self.namespaces.get(namespace)?.services.get(name)?;
        self.services.get(*number).map(|service| &service.records)
    }

    /// Whose pods have an address.
    pub fn pods_at(&self, address: IpAddr) -> Option<&PodNames> {
        self.pods.get(address)
    }

    /// Whether an address is of the cluster: inside its ranges, a pod's, or of one of its machines
    ///
    pub(crate) fn is_client(&self, address: IpAddr) -> bool {
        self.settings.is_inside(address)
            || self.pods.get(address).is_some()
            || self.clients.hold(address)
    }

    /// The ranges of the cluster's machines.
    pub(crate) fn clients(&self) -> impl Iterator<Item = &IpNet> {
        self.clients.iter()
    }

    /// Whether a range is one of these.
    pub(crate) fn has_client(&self, range: &IpNet) -> bool {
        self.clients.has(range)
    }

    /// How many Services have records.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// How many Services and addresses of pods there are.
    pub(crate) fn len(&self) -> usize {
        self.services.len() + self.pods.len()
    }

    /// Takes one change in.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service { namespace, name, records, .. } => {
                self.remove_service(&namespace, &name);
                if let Some(records) = records {
                    self.add_service(namespace, name, records);
                }
            }
            Change::Pod { address, names } => {
                if let Some(old) = self.pods.remove(address) {
                    self.count_pods(&old, false);
                }
                if let Some(names) = names.filter(|names| !names.namespaces.is_empty()) {
                    self.count_pods(&names, true);
                    self.pods.insert(address, names);
                }
            }
            Change::Client { range, is_there } => self.clients.set(range, is_there),
        }
    }

    /// The namespace of the pod that has an address to itself.
    pub(crate) fn namespace_of_pod(&self, address: IpAddr) -> Option<&str> {
        match self.pods.get(address) {
            Some(PodNames { namespaces, is_own: true }) if namespaces.len() == 1 => {
                namespaces.first().map(AsRef::as_ref)
            }
            _ => None,
        }
    }

    /// The cluster's domain.
    pub(crate) fn apex(&self) -> &Name {
        &self.apex
    }

    /// Looks up a name in lower case.
    pub(crate) fn find(&self, name: &[u8], pods: PodRecords) -> Found<'_> {
        let Some(labels) = Labels::new(name) else { return Found::Outside };
        if let Some(below) = labels.below(self.apex.wire()) {
            let zone_labels = labels.count() - below.count();
            let node = match below.whole() {
                Some(below) => self.find_below_apex(below, pods),
                // So many labels has no name.
                None => Node::Missing,
            };
            return Found::Inside { zone_labels, node };
        }
        for (above, label_bits) in
            [(b"\x07in-addr\x04arpa\0".as_slice(), 8), (b"\x03ip6\x04arpa\0", 4)]
        {
            if let Some(below) = labels.below(above) {
                return self.find_reverse(&below, label_bits, pods);
            }
        }
        Found::Outside
    }

    /// `labels` are below the zone's name, the uppermost first.
    fn find_below_apex(&self, labels: &[&[u8]], pods: PodRecords) -> Node<'_> {
        match labels {
            [] => Node::Apex,
            [b"dns-version"] => Node::Version,
            [b"dns"] | [b"svc"] => Node::Empty,
            [b"dns", b"ns"] => Node::Addresses(Addresses::List(&self.name_servers)),
            [b"svc", namespace] => match self.namespace(namespace) {
                Some(namespace) if !namespace.services.is_empty() => Node::Empty,
                _ => Node::Missing,
            },
            [b"svc", namespace, service, below @ ..] => {
                self.find_service(namespace, service, below).unwrap_or(Node::Missing)
            }
            [b"pod", below @ ..] => self.find_pod(below, pods).unwrap_or(Node::Missing),
            _ => Node::Missing,
        }
    }

    fn find_service(&self, namespace: &[u8], service: &[u8], below: &[&[u8]]) -> Option<Node<'_>> {
        let services = &self.namespace(namespace)?.services;
        let number = services.get(std::str::from_utf8(service).ok()?)?;
        let Service { wire, records } = self.services.get(*number)?;
        match (records, below) {
            (Records::Alias(target), []) => Some(target.as_ref().map_or(Node::Empty, Node::Alias)),
            (Records::Alias(_), _) => None,
            (Records::ClusterIp(addresses, _), []) => {
                Some(Node::Addresses(Addresses::List(addresses)))
            }
            (Records::Headless(headless), []) => {
                Some(Node::Addresses(Addresses::Endpoints(headless)))
            }
            (records, [label]) => match (protocol_of(label), records) {
                (Some(protocol), _) => records.has_port_over(protocol).then_some(Node::Empty),
                (None, Records::Headless(headless)) => {
                    headless.labelled(label).map(Node::Addresses)
                }
                (None, _) => None,
            },
            (records, [protocol, port]) => {
                let ports = records.ports_named(port.strip_prefix(b"_")?, protocol_of(protocol)?);
                ports.map(|ports| Node::Ports(wire, ports))
            }
            _ => None,
        }
    }

    /// `below`: labels below `pod`, the uppermost first.
    fn find_pod(&self, below: &[&[u8]], pods: PodRecords) -> Option<Node<'_>> {
        match (pods, below) {
            (PodRecords::Disabled, _) => None,
            (_, []) => Some(Node::Empty),
            (_, [namespace, ..]) if !self.exposes(namespace) => None,
            // Which namespaces there are, nobody looks at.
            (PodRecords::Insecure, [_]) => Some(Node::Empty),
            (PodRecords::Insecure, [_, label]) => {
                Some(Node::Addresses(Addresses::One(address_of_label(label)?)))
            }
            (PodRecords::Verified, [namespace]) => {
                (self.namespace(namespace)?.pods > 0).then_some(Node::Empty)
            }
            (PodRecords::Verified, [namespace, label]) => {
                let address = address_of_label(label)?;
                let names = self.pods.get(address)?;
                let mut namespaces = names.namespaces.iter();
                let is_there = namespaces.any(|one| one.as_bytes() == *namespace);
                is_there.then_some(Node::Addresses(Addresses::One(address)))
            }
            _ => None,
        }
    }

    /// The namespaces of an address's pods that have names.
    fn exposed_namespaces(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        let names = self.pods.get(address);
        let namespaces = names.into_iter().flat_map(|names| &names.namespaces).map(AsRef::as_ref);
        namespaces.filter(|namespace| self.settings.exposed.has_namespace(namespace))
    }

    /// Whether pods of a namespace have names.
    fn exposes(&self, namespace: &[u8]) -> bool {
        std::str::from_utf8(namespace).is_ok_and(|it| self.settings.exposed.has_namespace(it))
    }

    fn namespace(&self, label: &[u8]) -> Option<&Namespace> {
        self.namespaces.get(std::str::from_utf8(label).ok()?)
    }

    fn add_service(&mut self, namespace: Box<str>, name: Box<str>, records: Records) {
        let labels = [name.as_bytes(), namespace.as_bytes(), b"svc"];
        // What is no label, or too long, has no name.
        let Ok(wire) = Name::from_labels(labels.into_iter().chain(self.apex.labels())) else {
            return;
        };
        let octets = wire.wire().len() - self.apex.wire().len();
        let wire: Box<[u8]> = wire.wire().get(..octets).unwrap_or_default().into();
        let is_trusted = matches!(records, Records::ClusterIp(..));
        let number = self.services.insert(Service { wire, records });
        let records = self.services.get(number).map(|service| &service.records);
        for address in records.into_iter().flat_map(Records::pointing_back) {
            if is_trusted || self.settings.is_inside(address) {
                self.reverse.insert((address, number));
            }
        }
        self.namespaces.entry(namespace).or_default().services.insert(name, number);
    }

    fn remove_service(&mut self, namespace: &str, name: &str) {
        let Some(inside) = self.namespaces.get_mut(namespace) else { return };
        let Some(number) = inside.services.remove(name) else { return };
        self.drop_empty(namespace);
        let Some(service) = self.services.remove(number) else { return };
        for address in service.records.pointing_back() {
            self.reverse.remove(&(address, number));
        }
    }

    fn count_pods(&mut self, names: &PodNames, more: bool) {
        for namespace in &names.namespaces {
            let inside = self.namespaces.entry(namespace.clone()).or_default();
            inside.pods = if more { inside.pods + 1 } else { inside.pods.saturating_sub(1) };
            self.drop_empty(namespace);
        }
    }

    fn drop_empty(&mut self, namespace: &str) {
        let empty = |one: &Namespace| one.services.is_empty() && one.pods == 0;
        if self.namespaces.get(namespace).is_some_and(empty) {
            self.namespaces.remove(namespace);
        }
    }

    /// All that [`Index::apply`] took in and that still holds, in the order of its keys.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        self.changes_behind(None)
    }

    /// The same behind a key, whether that is there or not.
    pub(crate) fn changes_behind(&self, last: Option<&Key>) -> impl Iterator<Item = Change> {
        let clients = self.clients.behind(match last {
            None => Some(Bound::Unbounded),
            Some(Key::Client(range)) => Some(Bound::Excluded(range)),
            Some(_) => None,
        });
        let (namespace, service) = match last {
            None | Some(Key::Client(_)) => (Some(Bound::Unbounded), None),
            Some(Key::Service(namespace, name)) => {
                (Some(Bound::Included(namespace.as_ref())), Some((namespace, name)))
            }
            Some(Key::Pod(_)) => (None, None),
        };
        let namespaces = namespace
            .map(|from| self.namespaces.range::<str, _>((from, Bound::Unbounded)))
            .into_iter()
            .flatten();
        let services = namespaces.flat_map(move |(namespace, inside)| {
            let from = match service {
                Some((last, name)) if last == namespace => Bound::Excluded(name.as_ref()),
                _ => Bound::Unbounded,
            };
            let services = inside.services.range::<str, _>((from, Bound::Unbounded));
            services.filter_map(|(name, number)| {
                let records = Some(self.services.get(*number)?.records.clone());
                let (namespace, name) = (namespace.clone(), name.clone());
                Some(Change::Service { namespace, name, records, kind: None })
            })
        });
        let pods = self.pods.behind(match last {
            Some(Key::Pod(address)) => Bound::Excluded(address),
            _ => Bound::Unbounded,
        });
        let clients = clients.map(|range| Change::Client { range: *range, is_there: true });
        let pods = pods.map(|(address, names)| Change::Pod { address, names: Some(names.clone()) });
        clients.chain(services).chain(pods)
    }
}

impl Key {
    /// What a change is about.
    pub(crate) fn of(change: &Change) -> Self {
        match change {
            Change::Client { range, .. } => Self::Client(*range),
            Change::Service { namespace, name, .. } => {
                Self::Service(namespace.clone(), name.clone())
            }
            Change::Pod { address, .. } => Self::Pod(*address),
        }
    }
}

impl Pointers<'_> {
    /// Parts that a name comes in at most.
    pub(crate) const PARTS: usize = 5;

    /// Gives each name: its labels below the domain, in the wire format, in parts.
    pub(crate) fn each(&self, mut take: impl FnMut(&[&[u8]])) {
        let mut has_name = false;
        for service in self.index.services_at(self.address) {
            has_name = true;
            match &service.records {
                Records::Headless(headless) => {
                    for hostname in headless.hostnames_of(self.address) {
                        take(&[&[hostname.len() as u8], hostname.as_bytes(), &service.wire]);
                    }
                }
                _ => take(&[&service.wire]),
            }
        }
        if !self.with_pods || has_name {
            return;
        }
        for namespace in self.index.exposed_namespaces(self.address) {
            Label::Address(self.address).with(|label| {
                let lengths = [label.len() as u8, namespace.len() as u8];
                let [own, above] = lengths.each_ref().map(std::slice::from_ref);
                take(&[own, label, above, namespace.as_bytes(), b"\x03pod"]);
            });
        }
    }
}

fn protocol_of(label: &[u8]) -> Option<Protocol> {
    match label {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        b"_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}
