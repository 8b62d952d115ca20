//! Any cluster, any question: the answer in octets means what the oracle says, which reads the
//! API objects on its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use dns::feed::Change;
use dns::message::{kind, rcode};
use dns::{
    Action, Client, Index, Name, Record, Response, Rules, Transport, answer, parse_response, query,
};
use model::kinds::{
    Conditions, Endpoint, EndpointPort, PodIp, SERVICE_NAME_LABEL, ServicePort, ServiceType,
};
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, Pod, Protocol, Service, World};
use oracle::name::{Answer, Record as Meaning, RecordType, answer as meaning};
use plan::zone::PodAddresses;
use proptest::prelude::*;

const NAMESPACES: [&str; 2] = ["shop", "bank"];
const NAMES: [&str; 4] = ["web", "db", "_tcp", "10-244-0-1"];
const HOSTNAMES: [&str; 4] = ["", "", "db-0", "Db-1"];
const PORTS: [(&str, Protocol, u16); 4] = [
    ("http", Protocol::Tcp, 80),
    ("dns", Protocol::Udp, 53),
    ("dns", Protocol::Tcp, 5353),
    ("", Protocol::Tcp, 9),
];
const ADDRESSES: [&str; 5] = ["10.244.0.1", "10.244.0.2", "172.30.0.2", "fd00::1", "10.244.0.1"];

/// Worlds in the suite, each asked all [`questions`] of all [`KINDS`]: 50,000 and more (issue 5).
/// `DNS_WORLDS` asks for another number, and `PROPTEST_RNG_SEED` for others.
const WORLDS: u32 = 48;
/// The types that are asked for.
const KINDS: [(u16, RecordType); 5] = [
    (kind::A, RecordType::A),
    (kind::AAAA, RecordType::Aaaa),
    (kind::SRV, RecordType::Srv),
    (kind::PTR, RecordType::Ptr),
    (kind::TXT, RecordType::Txt),
];

/// A pod: namespace, address, whether it is of the node's network, whether it has ended.
type DrawnPod = (usize, usize, bool, bool);

/// Kind, cluster addresses and ports of a Service, and its endpoints.
type Drawn = (u8, bool, Vec<usize>, Vec<(usize, usize, bool, bool)>);

fn drawn() -> impl Strategy<Value = Vec<Option<Drawn>>> {
    let endpoint = (0..HOSTNAMES.len(), 0..ADDRESSES.len(), any::<bool>(), any::<bool>());
    let service = (
        0u8..3,
        any::<bool>(),
        proptest::collection::vec(0..PORTS.len(), 0..4),
        proptest::collection::vec(endpoint, 0..5),
    );
    proptest::collection::vec(proptest::option::of(service), NAMESPACES.len() * NAMES.len())
}

fn drawn_pods() -> impl Strategy<Value = Vec<DrawnPod>> {
    let pod = (0..NAMESPACES.len(), 0..ADDRESSES.len(), any::<bool>(), any::<bool>());
    proptest::collection::vec(pod, 0..6)
}

fn pod(number: usize, (namespace, address, of_node, has_ended): &DrawnPod) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.namespace = NAMESPACES[*namespace].into();
    pod.metadata.name = format!("pod{number}");
    pod.spec.host_network = *of_node;
    pod.status.phase = if *has_ended { "Succeeded" } else { "Running" }.into();
    pod.status.pod_ips = vec![PodIp { ip: ADDRESSES[*address].into() }];
    pod
}

fn world(drawn: &[Option<Drawn>], pods: &[Pod]) -> World {
    let mut world = World::default();
    for pod in pods {
        world.set(Object::Pod(Arc::new(pod.clone())));
    }
    for namespace in NAMESPACES {
        // A namespace of which nothing has records is a matter of taste.
        world.set(Object::Service(Arc::new(service(namespace, "always", &["10.96.0.99"], &[]))));
    }
    for (index, one) in drawn.iter().enumerate() {
        let Some((kind, both_families, ports, endpoints)) = one else { continue };
        let (namespace, name) = (NAMESPACES[index % 2], NAMES[index / 2]);
        let v4 = format!("10.96.1.{index}");
        let v6 = format!("fd00:96::{index}");
        let addresses: &[&str] = match (kind, both_families) {
            (0, false) => &[&v4],
            (0, true) => &[&v4, &v6],
            (1, _) => &["None"],
            _ => &[],
        };
        let mut service = service(namespace, name, addresses, ports);
        if *kind == 2 {
            service.spec.kind = ServiceType::ExternalName;
            service.spec.external_name = if *both_families {
                "www.example".into()
            } else {
                "web.shop.svc.cluster.local".into()
            };
        }
        world.set(Object::Service(Arc::new(service)));
        for in_second in [false, true] {
            let slice = slice(namespace, name, in_second, ports, endpoints);
            world.set(Object::EndpointSlice(Arc::new(slice)));
        }
    }
    world
}

fn service(namespace: &str, name: &str, addresses: &[&str], ports: &[usize]) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = namespace.into();
    service.metadata.name = name.into();
    service.spec.cluster_ips = addresses.iter().map(|text| (*text).into()).collect();
    let port = |index: &usize| {
        let (name, protocol, port) = PORTS[*index];
        ServicePort { name: name.into(), protocol, port, ..ServicePort::default() }
    };
    service.spec.ports = ports.iter().map(port).collect();
    service
}

fn slice(
    namespace: &str,
    name: &str,
    second: bool,
    ports: &[usize],
    endpoints: &[(usize, usize, bool, bool)],
) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    slice.metadata.namespace = namespace.into();
    slice.metadata.name = format!("{name}-{second}");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), name.into());
    let port = |index: &usize| {
        let (name, protocol, port) = PORTS[*index];
        EndpointPort { name: name.into(), protocol, port: Some(port) }
    };
    slice.ports = ports.iter().map(port).collect();
    let endpoint = |(hostname, address, ready, _): &(usize, usize, bool, bool)| Endpoint {
        addresses: vec![ADDRESSES[*address].into()],
        hostname: HOSTNAMES[*hostname].into(),
        conditions: Conditions { ready: Some(*ready), ..Conditions::default() },
        ..Endpoint::default()
    };
    slice.endpoints = endpoints.iter().filter(|one| one.3 == second).map(endpoint).collect();
    slice
}

/// Every name that could mean something, and some that cannot.
fn questions() -> Vec<String> {
    let mut below: Vec<String> = vec![String::new()];
    below.extend(
        ["db-0.", "db-1.", "10-244-0-2.", "fd00--1.", "x.", "_tcp.", "_udp.", "_sctp."]
            .map(String::from),
    );
    below.extend(
        [
            "_http._tcp.",
            "_http._udp.",
            "_dns._udp.",
            "_DNS._tcp.",
            "_._tcp.",
            "http._tcp.",
            "db-0._tcp.",
        ]
        .map(String::from),
    );
    let mut questions: Vec<String> = vec![
        "cluster.local".into(),
        "svc.cluster.local".into(),
        "dns-version.cluster.local".into(),
        "x.cluster.local".into(),
        "example.com".into(),
        "xcluster.local".into(),
        "nowhere.svc.cluster.local".into(),
        "pod.cluster.local".into(),
        "nowhere.pod.cluster.local".into(),
    ];
    for namespace in NAMESPACES {
        questions.push(format!("{namespace}.svc.cluster.local"));
        questions.push(format!("{namespace}.pod.cluster.local"));
        for label in ["10-244-0-1", "10-244-0-2", "172-30-0-2", "fd00--1", "fd00-0--1", "x"] {
            questions.push(format!("{label}.{namespace}.pod.cluster.local"));
            questions.push(format!("x.{label}.{namespace}.pod.cluster.local"));
        }
        for name in NAMES.iter().chain(&["always", "absent"]) {
            questions
                .extend(below.iter().map(|b| format!("{b}{name}.{namespace}.svc.cluster.local")));
        }
    }
    for index in 0..8 {
        questions.push(format!("{index}.1.96.10.in-addr.arpa"));
        let zeros = "0.".repeat(20);
        questions.push(format!("{index}.0.0.0.{zeros}6.9.0.0.0.0.d.f.ip6.arpa"));
    }
    for reverse in ["1.0.244.10", "2.0.244.10", "2.0.30.172", "9.9.244.10", "1.1.1.1", "99.0.96.10"]
    {
        questions.push(format!("{reverse}.in-addr.arpa"));
    }
    questions
}

fn records(response: &Response, kind: u16) -> BTreeSet<Meaning> {
    let name = |data: &[u8]| {
        let (name, _) = Name::read(data, 0).expect("a name");
        name.to_string().trim_end_matches('.').to_string()
    };
    let meaning = |record: &Record| match (record.kind, record.data.as_slice()) {
        (kind::A, data) => Meaning::Address(<[u8; 4]>::try_from(data).expect("4 octets").into()),
        (kind::AAAA, data) => {
            Meaning::Address(<[u8; 16]>::try_from(data).expect("16 octets").into())
        }
        (kind::CNAME, data) => Meaning::Cname(name(data)),
        (kind::PTR, data) => Meaning::Ptr(name(data)),
        (kind::SRV, data) => Meaning::Srv(u16::from_be_bytes([data[4], data[5]]), name(&data[6..])),
        (kind::TXT, data) => Meaning::Txt(String::from_utf8_lossy(&data[1..]).into_owned()),
        (other, _) => panic!("an unexpected record of type {other}"),
    };
    let alias = response.answers.first().filter(|record| record.kind == kind::CNAME);
    match alias {
        // What the alias leads to is a question of its own.
        Some(alias) if kind != kind::CNAME => BTreeSet::from([meaning(alias)]),
        _ => response.answers.iter().map(meaning).collect(),
    }
}

fn asked(index: &Index, name: &str, kind: u16) -> Answer {
    let message = query(3, &name.parse().expect("a name"), kind, true);
    let client = Client { transport: Transport::Tcp, address: Ipv4Addr::LOCALHOST.into() };
    let mut reply = Vec::new();
    match answer(&message, Some(index), &Rules::default(), client, &mut reply) {
        Action::Reply => {}
        Action::Forward(_) => return Answer::NotOurs,
        Action::Drop => panic!("{name} is dropped"),
    }
    let response = parse_response(&reply).expect("a response");
    let found = records(&response, kind);
    match response.rcode {
        _ if !found.is_empty() => Answer::Records(found),
        rcode::NO_ERROR => Answer::NoData,
        rcode::NAME_ERROR => Answer::NoSuchName,
        other => panic!("{name}: code {other}"),
    }
}

/// What the oracle says of the name at the end of a chain of aliases.
fn end_of_aliases(world: &World, config: &ClusterConfig, name: &str) -> Answer {
    let mut last = meaning(world, config, name, RecordType::A);
    for _ in 0..8 {
        let Answer::Records(records) = &last else { return last };
        let Some(Meaning::Cname(target)) = records.first() else { return last };
        last = meaning(world, config, target, RecordType::A);
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("DNS_WORLDS").map_or(WORLDS, |count| count.parse().expect("a count")),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn octets_mean_what_the_oracle_says(drawn in drawn(), pods in drawn_pods()) {
        let pods: Vec<Pod> = pods.iter().enumerate().map(|(number, one)| pod(number, one)).collect();
        let world = world(&drawn, &pods);
        let config = ClusterConfig {
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a range"), "fd00:96::/112".parse().expect("a range")],
            ..ClusterConfig::default()
        };
        let mut index = Index::new(plan::zone::zone(&world, &config), 1);
        let mut addresses = PodAddresses::default();
        for address in addresses.replace(&pods) {
            index.apply(Change::Pod { address, names: addresses.names_at(address) });
        }
        for name in questions() {
            for (number, record_type) in KINDS {
                let expected = meaning(&world, &config, &name, record_type);
                let found = asked(&index, &name, number);
                // An alias that leads to a name of others is asked there, alias and all.
                let leads_away = || end_of_aliases(&world, &config, &name) == Answer::NotOurs;
                let same = expected == found || found == Answer::NotOurs && leads_away();
                prop_assert!(same, "{} {:?}: expected {:?}, found {:?}", name, record_type, expected, found);
            }
        }
    }
}

#[test]
fn the_oracle_is_asked_fifty_thousand_questions() {
    let distinct = BTreeSet::from_iter(questions()).len();
    assert!(distinct * KINDS.len() * WORLDS as usize >= 50_000, "{distinct}");
}
