//! The DNS zone of the cluster: names and addresses of Services and of endpoints with names.
//!
//! The meaning is the DNS-Based Service Discovery specification, version 1.1.0. The zone holds
//! what differs from Service to Service; the shape of names (`_port._protocol.service.namespace
//! .svc.domain`) belongs to the `dns` crate, which reads this value.

mod clients;
mod exposed;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::kinds::ServiceType;
use model::{ClusterConfig, Family, NamespacedName, Protocol, Service, World};
use serde::{Deserialize, Serialize};

pub use clients::{clients, is_of_clients};
pub use exposed::{Exposed, Exposure, Namespaces};
pub use pods::{PodAddresses, PodNames};

/// The longest label of a domain name, in octets (RFC 1035, 2.3.4).
const MAX_LABEL_OCTETS: usize = 63;

/// All that the cluster's DNS says by itself. A function of the `World` (invariant 1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The cluster's domain in lower case, without a final dot.
    pub domain: String,
    /// The addresses that the zone is served at.
    pub name_servers: Vec<IpAddr>,
    /// Ranges whose reverse names belong to the cluster: a name in them that nobody has does not
    /// exist, and is never asked of somebody else.
    pub reverse_ranges: Vec<IpNet>,
    /// Records by namespace, then by Service. A namespace without any is absent, and its name
    /// does not exist.
    pub namespaces: BTreeMap<String, BTreeMap<String, ServiceRecords>>,
}

/// Which names of pods by their addresses there are (`a-b-c-d.namespace.pod.domain`); the modes
/// of CoreDNS's `kubernetes` plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodRecords {
    /// None at all.
    Disabled,
    /// Whatever address the name holds, in any namespace.
    Insecure,
    /// Those of pods that are there.
    #[default]
    Verified,
}

/// What the zone says of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceRecords {
    /// A Service with addresses of its own.
    ClusterIp {
        /// The addresses, at most one a family.
        addresses: Vec<IpAddr>,
        /// The ports that have names.
        ports: Vec<NamedPort>,
    },
    /// A headless Service: its endpoints are its addresses. Without any ready endpoint the
    /// Service has no records at all (specification, 2.4.1).
    Headless {
        /// The endpoints to publish, by label and address, each pair once.
        endpoints: Vec<HeadlessEndpoint>,
    },
    /// An alias.
    ExternalName {
        /// The name that it stands for, in lower case without a final dot. `None` when the API
        /// object holds no name that DNS could carry, such as an address: the Service's name then
        /// exists without records.
        target: Option<String>,
    },
}

/// A port that has a name, and so an SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// The name, in lower case.
    pub name: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port: the Service's own, or the endpoint's of a headless Service.
    pub port: u16,
}

/// One endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadlessEndpoint {
    /// The endpoint's label below the Service: its hostname, or one made of its address.
    pub label: String,
    /// The endpoint's address.
    pub address: IpAddr,
    /// Whether the label is a hostname (or a pod's name), which the address then points back to.
    pub has_hostname: bool,
    /// The endpoint's ports that have names.
    pub ports: Vec<NamedPort>,
}

/// What may be another in the zone: the newest records of some Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneChanges {
    /// All ranges whose reverse names belong to the cluster.
    pub reverse_ranges: Vec<IpNet>,
    /// What has names at all.
    pub exposed: Exposed,
    /// The cluster's [`clients`] as they are now; `None`: as they were.
    pub clients: Option<BTreeSet<IpNet>>,
    /// These Services as they are now.
    pub services: BTreeMap<NamespacedName, ServiceNews>,
}

/// One Service as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceNews {
    /// Its records; `None`: it has none.
    pub records: Option<ServiceRecords>,
    /// Its kind; `None`: it is not there, or an alias.
    pub kind: Option<ServiceKind>,
}

/// Kinds of Services that CoreDNS's measure of DNS programming latency tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceKind {
    /// It has addresses of its own.
    ClusterIp,
    /// Its endpoints are the pods that it selects.
    HeadlessWithSelector,
    /// Its endpoints are whatever somebody wrote down.
    HeadlessWithoutSelector,
}

impl ServiceKind {
    /// Of a Service that is no alias.
    pub fn of(service: &Service) -> Option<Self> {
        match service.spec.kind {
            ServiceType::ExternalName => None,
            _ if !service.is_headless() => Some(Self::ClusterIp),
            _ if service.spec.selector.is_empty() => Some(Self::HeadlessWithoutSelector),
            _ => Some(Self::HeadlessWithSelector),
        }
    }
}

impl ZoneChanges {
    /// No changes to the zone of a cluster.
    pub fn none(config: &ClusterConfig, exposed: &Exposed) -> Self {
        let (reverse_ranges, exposed) = (Zone::empty(config).reverse_ranges, exposed.clone());
        Self { reverse_ranges, exposed, clients: None, services: BTreeMap::new() }
    }

    /// Adds later changes.
    pub fn merge(&mut self, later: Self) {
        self.reverse_ranges = later.reverse_ranges;
        self.exposed = later.exposed;
        self.clients = later.clients.or(self.clients.take());
        self.services.extend(later.services);
    }
}

/// The whole zone, from scratch, with all that has names: what [`Zone::set`], key by key, must equal.
pub fn zone(world: &World, config: &ClusterConfig) -> Zone {
    let mut zone = Zone::empty(config);
    for service in world.services() {
        let key = service.metadata.key();
        zone.set(&key, service_records(world, &key, &Exposed::default()));
    }
    zone
}

/// The records of one Service. `None` when it has none: it is absent or not exposed, has no address
/// yet, or is headless without an endpoint to publish.
pub fn service_records(
    world: &World,
    key: &NamespacedName,
    exposed: &Exposed,
) -> Option<ServiceRecords> {
    let service = world.service(key).filter(|service| exposed.has_service(service))?;
    if service.spec.kind == ServiceType::ExternalName {
        let target = external_target(&service.spec.external_name);
        return Some(ServiceRecords::ExternalName { target });
    }
    if service.is_headless() {
        let endpoints = headless_endpoints(world, &service, exposed.exposure.endpoint_pod_names);
        return (!endpoints.is_empty()).then_some(ServiceRecords::Headless { endpoints });
    }
    let addresses: Vec<IpAddr> = service.cluster_ips().collect();
    if addresses.is_empty() {
        return None;
    }
    let ports: BTreeSet<NamedPort> = service
        .spec
        .ports
        .iter()
        .filter(|port| !port.name.is_empty())
        .map(|port| NamedPort {
            name: port.name.to_ascii_lowercase(),
            protocol: port.protocol,
            port: port.port,
        })
        .collect();
    Some(ServiceRecords::ClusterIp { addresses, ports: ports.into_iter().collect() })
}

impl Zone {
    /// The zone of a cluster without Services.
    pub fn empty(config: &ClusterConfig) -> Self {
        let families = [Family::V4, Family::V6];
        Self {
            domain: config.cluster_domain.trim_end_matches('.').to_ascii_lowercase(),
            name_servers: families.iter().filter_map(|f| config.dns_address(*f)).collect(),
            reverse_ranges: config.service_cidrs.iter().chain(&config.pod_cidrs).copied().collect(),
            namespaces: BTreeMap::new(),
        }
    }

    /// Sets or removes the records of one Service, and says whether that changed anything.
    pub fn set(&mut self, key: &NamespacedName, records: Option<ServiceRecords>) -> bool {
        match records {
            Some(records) => {
                let services = self.namespaces.entry(key.namespace.clone()).or_default();
                if services.get(&key.name) == Some(&records) {
                    return false;
                }
                services.insert(key.name.clone(), records);
                true
            }
            None => {
                let Some(services) = self.namespaces.get_mut(&key.namespace) else { return false };
                let removed = services.remove(&key.name).is_some();
                if services.is_empty() {
                    self.namespaces.remove(&key.namespace);
                }
                removed
            }
        }
    }
}

/// The API calls `externalName` a name even when it is spelled like an address, and DNS has no
/// alias to an address.
fn external_target(text: &str) -> Option<String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let labels_fit = name.split('.').all(|label| (1..=MAX_LABEL_OCTETS).contains(&label.len()));
    let is_address = name.parse::<IpAddr>().is_ok();
    // 253 octets of text are 255 in the wire format.
    (labels_fit && name.len() <= 253 && !is_address).then_some(name)
}

/// Slices may overlap while the controller moves an endpoint from one to another: each pair of
/// label and address stands once, with the ports of all.
fn headless_endpoints(
    world: &World,
    service: &Service,
    with_pod_names: bool,
) -> Vec<HeadlessEndpoint> {
    let mut merged: BTreeMap<(String, IpAddr), (bool, BTreeSet<NamedPort>)> = BTreeMap::new();
    for slice in world.slices_of(&service.metadata.key()) {
        let ports: Vec<NamedPort> = slice
            .ports
            .iter()
            .filter(|port| !port.name.is_empty())
            .filter_map(|port| {
                let name = port.name.to_ascii_lowercase();
                Some(NamedPort { name, protocol: port.protocol, port: port.port? })
            })
            .collect();
        for endpoint in &slice.endpoints {
            let published =
                endpoint.conditions.is_ready() || service.spec.publish_not_ready_addresses;
            let Some(address) = endpoint.address().filter(|_| published) else { continue };
            let target = endpoint.target_ref.as_deref().filter(|_| with_pod_names);
            let pod = target.map_or("", |pod| &pod.name);
            let (label, has_hostname) = endpoint_label([&endpoint.hostname, pod], address);
            let entry = merged.entry((label, address)).or_insert((has_hostname, BTreeSet::new()));
            entry.1.extend(ports.iter().cloned());
        }
    }
    merged
        .into_iter()
        .map(|((label, address), (has_hostname, ports))| HeadlessEndpoint {
            label,
            address,
            has_hostname,
            ports: ports.into_iter().collect(),
        })
        .collect()
}

/// The first of the names that is a label. The specification asks for a stable label where there is
/// no hostname; the address with dashes is what users of cluster DNS know.
fn endpoint_label(names: [&str; 2], address: IpAddr) -> (String, bool) {
    let is_label =
        |name: &&str| (1..=MAX_LABEL_OCTETS).contains(&name.len()) && !name.contains('.');
    match names.into_iter().find(is_label) {
        Some(name) => (name.to_ascii_lowercase(), true),
        None => (address.to_string().replace(['.', ':'], "-"), false),
    }
}
