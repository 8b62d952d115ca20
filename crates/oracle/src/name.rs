//! What one DNS name answers, by the Kubernetes DNS specification 1.1.0.
//!
//! Order and TTL of records, and the weights of SRV records, are the server's choice: answers are
//! sets. A made-up label of an endpoint without hostname is the server's choice too; here it is the
//! address with dashes, as in pod records.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use model::kinds::{Endpoint, ServicePort, ServiceType};
use model::{ClusterConfig, EndpointSlice, Family, NamespacedName, Pod, Service, World};

/// The record types that the specification defines for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordType {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// A port and the host that has it.
    Srv,
    /// The name of an address.
    Ptr,
    /// Text; only `dns-version` has one.
    Txt,
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// An alias; the asker follows it.
    Cname(String),
    /// SRV: port and target, absolute, in lower case, without the final dot.
    Srv(u16, String),
    /// PTR: the absolute name without the final dot.
    Ptr(String),
    /// TXT.
    Txt(String),
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The records, at least one.
    Records(BTreeSet<Record>),
    /// The name exists, without records of this type.
    NoData,
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The name is not the cluster's: others answer.
    NotOurs,
}

/// The version of the specification, which `dns-version` tells.
const SPECIFICATION_VERSION: &str = "1.1.0";

/// Answers a question about an absolute name, with or without the final dot, in any letter case.
pub fn answer(world: &World, config: &ClusterConfig, name: &str, kind: RecordType) -> Answer {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(address) = reverse_address(&name) {
        return reverse(world, config, address, kind);
    }
    let zone = config.cluster_domain.to_ascii_lowercase();
    let Some(below) = below(&name, &zone) else { return Answer::NotOurs };
    let labels: Vec<&str> = below.split('.').filter(|label| !label.is_empty()).rev().collect();
    match labels.as_slice() {
        [] | ["svc"] => Answer::NoData,
        ["dns-version"] => records_of(kind, RecordType::Txt, || {
            BTreeSet::from([Record::Txt(SPECIFICATION_VERSION.into())])
        }),
        ["svc", namespace] => {
            // A name exists when something stands below it (RFC 8020).
            let mut inside = world.services().filter(|one| one.metadata.namespace == *namespace);
            let exists = inside.any(|one| has_name(world, &one, &zone));
            if exists { Answer::NoData } else { Answer::NoSuchName }
        }
        ["pod"] => Answer::NoData,
        ["pod", namespace] => {
            let mut addresses = pod_addresses(world);
            let exists = addresses.any(|(_, of)| of == *namespace);
            if exists { Answer::NoData } else { Answer::NoSuchName }
        }
        ["pod", namespace, label] => {
            let spelt = |address: &IpAddr| address.to_string().replace(['.', ':'], "-");
            let mut found = pod_addresses(world).filter(|(_, of)| of == namespace);
            match found.find(|(address, _)| spelt(address) == *label) {
                Some((address, _)) => addresses(std::iter::once(address), kind),
                None => Answer::NoSuchName,
            }
        }
        ["svc", namespace, service, rest @ ..] => {
            let key = NamespacedName::new(*namespace, *service);
            let Some(service) = world.service(&key) else { return Answer::NoSuchName };
            of_service(world, &service, &zone, rest, kind)
        }
        _ => Answer::NoSuchName,
    }
}

fn has_name(world: &World, service: &Service, zone: &str) -> bool {
    service.spec.kind == ServiceType::ExternalName || !hosts(world, service, zone).is_empty()
}

fn below<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    if name == zone {
        return Some("");
    }
    name.strip_suffix(zone)?.strip_suffix('.')
}

fn records_of(
    asked: RecordType,
    present: RecordType,
    records: impl FnOnce() -> BTreeSet<Record>,
) -> Answer {
    if asked == present { Answer::Records(records()) } else { Answer::NoData }
}

/// `rest`: the labels below the Service, nearest first.
fn of_service(
    world: &World,
    service: &Service,
    zone: &str,
    rest: &[&str],
    kind: RecordType,
) -> Answer {
    if service.spec.kind == ServiceType::ExternalName {
        let target = service.spec.external_name.trim_end_matches('.').to_ascii_lowercase();
        let alias = BTreeSet::from([Record::Cname(target)]);
        return if rest.is_empty() { Answer::Records(alias) } else { Answer::NoSuchName };
    }
    let hosts = hosts(world, service, zone);
    match rest {
        [] if hosts.is_empty() => Answer::NoSuchName,
        [] => addresses(hosts.iter().map(|host| host.address), kind),
        [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
            srv(&hosts, &port[1..], &protocol[1..], kind)
        }
        [protocol] if protocol.starts_with('_') => {
            let known = hosts
                .iter()
                .flat_map(|host| &host.ports)
                .any(|(name, transport, _)| !name.is_empty() && *transport == protocol[1..]);
            if known { Answer::NoData } else { Answer::NoSuchName }
        }
        [label] if service.is_headless() => {
            let named: Vec<&Host> = hosts.iter().filter(|host| host.label == *label).collect();
            if named.is_empty() {
                return Answer::NoSuchName;
            }
            addresses(named.iter().map(|host| host.address), kind)
        }
        _ => Answer::NoSuchName,
    }
}

/// A name with an address: the Service itself, or one endpoint of a headless one.
struct Host {
    name: String,
    label: String,
    /// Whether the address leads back to the name.
    has_reverse: bool,
    address: IpAddr,
    /// Port name, transport in lower case, number.
    ports: Vec<(String, String, u16)>,
}

fn hosts(world: &World, service: &Service, zone: &str) -> Vec<Host> {
    let key = service.metadata.key();
    let base = format!("{}.{}.svc.{zone}", key.name, key.namespace);
    if !service.is_headless() {
        let ports: Vec<_> = service.spec.ports.iter().map(service_port).collect();
        let host = |address| Host {
            name: base.clone(),
            label: String::new(),
            has_reverse: true,
            address,
            ports: ports.clone(),
        };
        return service.cluster_ips().map(host).collect();
    }
    let mut found = Vec::new();
    for slice in world.slices_of(&key) {
        let ports: Vec<_> = slice_ports(&slice);
        let with_others = service.spec.publish_not_ready_addresses;
        let published = |one: &&Endpoint| with_others || one.conditions.is_ready();
        for endpoint in slice.endpoints.iter().filter(published) {
            let Some(address) = endpoint.address() else { continue };
            let label = label_of(endpoint, address);
            let name = format!("{label}.{base}");
            found.push(Host {
                name,
                label,
                // Made-up labels are nobody's name.
                has_reverse: !endpoint.hostname.is_empty(),
                address,
                ports: ports.clone(),
            });
        }
    }
    found
}

fn service_port(port: &ServicePort) -> (String, String, u16) {
    (port.name.clone(), port.protocol.to_string().to_ascii_lowercase(), port.port)
}

fn slice_ports(slice: &EndpointSlice) -> Vec<(String, String, u16)> {
    slice
        .ports
        .iter()
        .filter_map(|port| {
            let transport = port.protocol.to_string().to_ascii_lowercase();
            Some((port.name.clone(), transport, port.port?))
        })
        .collect()
}

fn label_of(endpoint: &Endpoint, address: IpAddr) -> String {
    if endpoint.hostname.is_empty() {
        address.to_string().replace(['.', ':'], "-")
    } else {
        endpoint.hostname.to_ascii_lowercase()
    }
}

fn addresses(all: impl Iterator<Item = IpAddr>, kind: RecordType) -> Answer {
    let family = match kind {
        RecordType::A => Family::V4,
        RecordType::Aaaa => Family::V6,
        RecordType::Srv | RecordType::Ptr | RecordType::Txt => return Answer::NoData,
    };
    let records: BTreeSet<Record> =
        all.filter(|address| Family::of(address) == family).map(Record::Address).collect();
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

fn srv(hosts: &[Host], port: &str, protocol: &str, kind: RecordType) -> Answer {
    let mut records = BTreeSet::new();
    for host in hosts {
        for (name, transport, number) in &host.ports {
            if !name.is_empty() && name.eq_ignore_ascii_case(port) && transport == protocol {
                records.insert(Record::Srv(*number, host.name.clone()));
            }
        }
    }
    if records.is_empty() {
        return Answer::NoSuchName;
    }
    records_of(kind, RecordType::Srv, || records)
}

fn reverse(world: &World, config: &ClusterConfig, address: IpAddr, kind: RecordType) -> Answer {
    let zone = config.cluster_domain.to_ascii_lowercase();
    let ours = config.is_pod_address(address)
        || config.service_cidrs.iter().any(|range| range.contains(&address));
    let mut names = BTreeSet::new();
    for service in world.services().filter(|one| one.spec.kind != ServiceType::ExternalName) {
        for host in hosts(world, &service, &zone) {
            // Whoever writes an endpoint does not answer for addresses of others.
            let is_believed = ours || !service.is_headless();
            if host.address == address && host.has_reverse && is_believed {
                names.insert(Record::Ptr(host.name));
            }
        }
    }
    if names.is_empty() && ours {
        let label = address.to_string().replace(['.', ':'], "-");
        let here = pod_addresses(world).filter(|(one, _)| *one == address);
        names.extend(here.map(|(_, of)| Record::Ptr(format!("{label}.{of}.pod.{zone}"))));
    }
    match (names.is_empty(), ours) {
        (false, _) => records_of(kind, RecordType::Ptr, || names),
        (true, true) => Answer::NoSuchName,
        (true, false) => Answer::NotOurs,
    }
}

/// Addresses of pods that have not ended, with their namespaces.
fn pod_addresses(world: &World) -> impl Iterator<Item = (IpAddr, &str)> {
    let runs = |pod: &&Arc<Pod>| !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    world.pods().filter(runs).flat_map(|pod| {
        let texts = pod.status.pod_ips.iter().map(|one| one.ip.as_str());
        let texts = texts.chain([pod.status.pod_ip.as_str()]);
        texts.filter_map(|text| Some((text.parse().ok()?, pod.metadata.namespace.as_str())))
    })
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035, RFC 3596).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = labels.split('.').collect();
        parts.reverse();
        return parts.join(".").parse().ok().map(IpAddr::V4);
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<&str> = labels.split('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let text: String = nibbles.iter().rev().copied().collect();
    u128::from_str_radix(&text, 16).ok().map(|bits| IpAddr::V6(bits.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::kinds::{Conditions, EndpointPort, SERVICE_NAME_LABEL};
    use model::world::Object;

    fn service(name: &str, address: &str, kind: ServiceType) -> Service {
        let mut service = Service::default();
        service.metadata.namespace = "shop".into();
        service.metadata.name = name.into();
        service.spec.kind = kind;
        service.spec.cluster_ips = vec![address.into()];
        service.spec.ports =
            vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }];
        service
    }

    fn world() -> World {
        let mut world = World::default();
        world.set(Object::Service(Arc::new(service("web", "10.96.0.20", ServiceType::ClusterIP))));
        world.set(Object::Service(Arc::new(service("db", "None", ServiceType::ClusterIP))));
        let mut alias = service("alias", "", ServiceType::ExternalName);
        alias.spec.external_name = "example.com".into();
        world.set(Object::Service(Arc::new(alias)));
        let mut slice = EndpointSlice::default();
        slice.metadata.namespace = "shop".into();
        slice.metadata.name = "db-1".into();
        slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "db".into());
        slice.address_type = "IPv4".into();
        slice.ports =
            vec![EndpointPort { name: "sql".into(), port: Some(5432), ..EndpointPort::default() }];
        for (address, hostname, ready) in
            [("10.244.1.5", "db-0", true), ("10.244.2.5", "", true), ("10.244.3.5", "db-2", false)]
        {
            slice.endpoints.push(Endpoint {
                addresses: vec![address.into()],
                hostname: hostname.into(),
                conditions: Conditions { ready: Some(ready), ..Conditions::default() },
                ..Endpoint::default()
            });
        }
        world.set(Object::EndpointSlice(Arc::new(slice)));
        world
    }

    #[test]
    fn names_answer_by_the_specification() {
        use Answer::{NoData, NoSuchName, NotOurs, Records};
        use RecordType::{A, Aaaa, Ptr, Srv, Txt};
        let address = |text: &str| Record::Address(text.parse().expect("an address"));
        let records = |all: Vec<Record>| Records(all.into_iter().collect());
        let member = "db-0.db.shop.svc.cluster.local".to_string();
        let unnamed = "10-244-2-5.db.shop.svc.cluster.local".to_string();
        let web = "web.shop.svc.cluster.local".to_string();
        let rows = [
            ("web.shop.svc.cluster.local", A, records(vec![address("10.96.0.20")])),
            ("WEB.shop.SVC.cluster.local.", A, records(vec![address("10.96.0.20")])),
            ("web.shop.svc.cluster.local", Aaaa, NoData),
            (
                "_http._tcp.web.shop.svc.cluster.local",
                Srv,
                records(vec![Record::Srv(80, web.clone())]),
            ),
            ("_http._udp.web.shop.svc.cluster.local", Srv, NoSuchName),
            ("x.web.shop.svc.cluster.local", A, NoSuchName),
            ("none.shop.svc.cluster.local", A, NoSuchName),
            ("shop.svc.cluster.local", A, NoData),
            ("empty.svc.cluster.local", A, NoSuchName),
            ("example.com", A, NotOurs),
            (
                "db.shop.svc.cluster.local",
                A,
                records(vec![address("10.244.1.5"), address("10.244.2.5")]),
            ),
            ("db-0.db.shop.svc.cluster.local", A, records(vec![address("10.244.1.5")])),
            ("db-2.db.shop.svc.cluster.local", A, NoSuchName),
            (
                "_sql._tcp.db.shop.svc.cluster.local",
                Srv,
                records(vec![Record::Srv(5432, member.clone()), Record::Srv(5432, unnamed)]),
            ),
            ("alias.shop.svc.cluster.local", A, records(vec![Record::Cname("example.com".into())])),
            ("20.0.96.10.in-addr.arpa", Ptr, records(vec![Record::Ptr(web)])),
            ("5.1.244.10.in-addr.arpa", Ptr, records(vec![Record::Ptr(member)])),
            ("5.2.244.10.in-addr.arpa", Ptr, NoSuchName),
            ("1.2.0.192.in-addr.arpa", Ptr, NotOurs),
            ("dns-version.cluster.local", Txt, records(vec![Record::Txt("1.1.0".into())])),
        ];
        let (world, config) = (world(), ClusterConfig::default());
        for (name, kind, expected) in rows {
            assert_eq!(answer(&world, &config, name, kind), expected, "{name} {kind:?}");
        }
    }
}
