//! Random Services and slices, with every field that decides where packets go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use model::cluster::nth_address;
use model::kinds::{
    Conditions, Endpoint, EndpointHints, EndpointPort, EndpointSlice, ForName, LoadBalancerIngress,
    PORT_RANGES_ANNOTATION, SCHEDULING_ANNOTATION, SERVICE_NAME_LABEL, Service, ServicePort,
    ServiceType, SessionAffinity, TargetReference, TrafficPolicy, WEIGHTS_ANNOTATION,
};
use model::world::Object;
use model::{ClusterConfig, Family, Protocol};

use super::{Choices, NODES};
use crate::objects;

/// Services at most.
const SERVICES_MAX: usize = 4;
/// Slices of one Service at most.
const SLICES_MAX: usize = 3;
/// Endpoints of one slice at most.
const ENDPOINTS_MAX: usize = 4;
/// Different pods of one node.
const PODS_PER_NODE: u8 = 3;
/// Few protocols, so that they meet.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Addresses outside of the cluster, for load balancers and externalIPs: shared by Services, one
/// of them the node's own, some of them of no use.
const EXTERNAL: [&str; 6] = [
    "198.51.100.20",
    "198.51.100.21",
    "2001:db8:51::20",
    "198.51.100.30",
    "172.30.0.2",
    "127.0.0.1",
];

/// Services and slices. No ClusterIP, node port or slice name is taken twice, as the API grants.
pub fn services(choices: &mut Choices<'_>, config: &ClusterConfig) -> Vec<Object> {
    let mut found = Vec::new();
    let mut node_ports = BTreeSet::new();
    for number in 0..choices.below(SERVICES_MAX + 1) {
        let service = service(choices, config, number, &mut node_ports);
        for slice in 0..choices.below(SLICES_MAX + 1) {
            let slice = self::slice(choices, config, &service, slice);
            found.push(Object::EndpointSlice(Arc::new(slice)));
        }
        if !choices.once_in(8) {
            found.push(Object::Service(Arc::new(service)));
        }
    }
    found
}

fn service(
    choices: &mut Choices<'_>,
    config: &ClusterConfig,
    number: usize,
    node_ports: &mut BTreeSet<u16>,
) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = format!("s{number}");
    service.spec.cluster_ips = cluster_ips(choices, config, number);
    let kinds = [ServiceType::ClusterIP, ServiceType::NodePort, ServiceType::LoadBalancer];
    service.spec.kind = choices.one_of(&kinds);
    if service.is_headless() {
        service.spec.kind = ServiceType::ClusterIP;
    }
    if choices.once_in(10) {
        service.spec.kind = ServiceType::ExternalName;
        service.spec.cluster_ips = vec![];
        service.spec.external_name = "Example.com".into();
    }
    let policies = [TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local];
    service.spec.internal_traffic_policy = choices.one_of(&policies);
    service.spec.external_traffic_policy = choices.one_of(&policies);
    if choices.once_in(4) {
        service.spec.session_affinity = SessionAffinity::ClientIP;
    }
    if choices.once_in(12) {
        let label = "service.kubernetes.io/service-proxy-name";
        service.metadata.labels.insert(label.into(), "other".into());
        // Whoever owns it, the address is not ours to judge.
        service.spec.cluster_ips = vec!["None".into()];
    }
    add_ports(choices, &mut service, node_ports);
    add_externals(choices, &mut service);
    add_annotations(choices, &mut service);
    service
}

/// One address a family, at times of one family only.
fn cluster_ips(choices: &mut Choices<'_>, config: &ClusterConfig, number: usize) -> Vec<String> {
    let ranges = config.service_cidrs.iter();
    let addresses = ranges.filter_map(|range| nth_address(range, 20 + number as u128));
    let mut addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    match choices.below(8) {
        7 => vec!["None".into()],
        6 => addresses.split_off(addresses.len().saturating_sub(1)),
        5 => {
            addresses.truncate(1);
            addresses
        }
        _ => addresses,
    }
}

fn add_ports(choices: &mut Choices<'_>, service: &mut Service, node_ports: &mut BTreeSet<u16>) {
    for index in 0..=choices.below(3) {
        let mut port = ServicePort {
            name: format!("p{index}"),
            protocol: choices.one_of(&PROTOCOLS),
            port: 80 + index as u16,
            ..ServicePort::default()
        };
        let node_port = 30000 + choices.below(16) as u16;
        if service.has_node_ports() && node_ports.insert(node_port) {
            port.node_port = node_port;
        }
        service.spec.ports.push(port);
    }
}

fn add_externals(choices: &mut Choices<'_>, service: &mut Service) {
    if choices.once_in(3) {
        let address = choices.one_of(&EXTERNAL).to_string();
        service.spec.external_ips.push(address);
    }
    for _ in 0..choices.below(3) {
        let mode = choices.one_of(&[None, Some("VIP"), Some("Proxy")]).map(String::from);
        let ip = choices.one_of(&EXTERNAL).to_string();
        let entry = LoadBalancerIngress { ip, ip_mode: mode };
        service.status.load_balancer.ingress.push(entry);
    }
    let ranges: [&[&str]; 7] = [
        &[],
        &[],
        &["192.0.2.0/24", "2001:db8::/64"],
        &["10.244.0.0/16"],
        &["172.30.0.2/32", "fd00:172:30::2/128"],
        &["192.0.2.0/24", "192.0.2.10/32", "0.0.0.0/1"],
        &["nonsense"],
    ];
    let ranges = choices.one_of(&ranges).iter().map(ToString::to_string);
    service.spec.load_balancer_source_ranges = ranges.collect();
    if choices.once_in(3) {
        service.spec.health_check_node_port = 31000;
    }
}

fn add_annotations(choices: &mut Choices<'_>, service: &mut Service) {
    let rows: [(&str, &[&str]); 3] = [
        (
            PORT_RANGES_ANNOTATION,
            &["all", "tcp:90-95", "udp:79-82,tcp:85", "sctp:1-65535,tcp:81", "nonsense"],
        ),
        (SCHEDULING_ANNOTATION, &["random", "maglev", "least-connection", "nonsense"]),
        (WEIGHTS_ANNOTATION, &["p1-*=0", "p1-0=5,p*=2", "10.244.2.10=0", "p*=0", "nonsense"]),
    ];
    for (key, values) in rows {
        if choices.once_in(5) {
            let value = choices.one_of(values);
            service.metadata.annotations.insert(key.into(), value.into());
        }
    }
}

fn slice(
    choices: &mut Choices<'_>,
    config: &ClusterConfig,
    service: &Service,
    number: usize,
) -> EndpointSlice {
    let families: Vec<Family> = objects::families(config).collect();
    let family = families[choices.below(families.len())];
    let mut slice = EndpointSlice::default();
    let name = &service.metadata.name;
    slice.metadata.namespace = "default".into();
    slice.metadata.name = format!("{name}-{number}");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), name.clone());
    slice.address_type = if choices.once_in(8) { "FQDN".into() } else { family.to_string() };
    for port in &service.spec.ports {
        if choices.once_in(6) {
            continue;
        }
        slice.ports.push(EndpointPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: choices.one_of(&[Some(8080), Some(8080), Some(9090), None]),
        });
    }
    let hinted = choices.once_in(3);
    for _ in 0..choices.below(ENDPOINTS_MAX + 1) {
        slice.endpoints.push(endpoint(choices, family, hinted));
    }
    slice
}

fn endpoint(choices: &mut Choices<'_>, family: Family, hinted: bool) -> Endpoint {
    let node = 1 + choices.below(usize::from(NODES)) as u8;
    let number = choices.below(usize::from(PODS_PER_NODE)) as u8;
    let conditions = match choices.below(6) {
        0..=2 => (None, None, None),
        3 => (Some(false), Some(false), Some(false)),
        4 => (Some(false), Some(true), Some(true)),
        _ => (Some(false), Some(false), Some(true)),
    };
    let mut names = |all: &[&str]| -> Vec<ForName> {
        let name = choices.one_of(all);
        let names = [name].into_iter().filter(|name| !name.is_empty());
        names.map(|name| ForName { name: name.into() }).collect()
    };
    let hints = hinted.then(|| EndpointHints {
        for_zones: names(&["a", "b", "a", "b", ""]),
        for_nodes: names(&["", "", "node1", "node2"]),
    });
    Endpoint {
        addresses: vec![pod_address(node, number, family).to_string()],
        node_name: format!("node{node}"),
        hostname: choices.one_of(&["", "", "h0", "H1"]).to_string(),
        conditions: Conditions {
            ready: conditions.0,
            serving: conditions.1,
            terminating: conditions.2,
        },
        hints: hints.map(Box::new),
        target_ref: Some(Box::new(TargetReference { name: format!("p{node}-{number}") })),
    }
}

/// The address of a pod.
fn pod_address(node: u8, number: u8, family: Family) -> IpAddr {
    let host = 10 + number;
    match family {
        Family::V4 => IpAddr::from([10, 244, node, host]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into()]),
    }
}
