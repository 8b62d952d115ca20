//! D-11: recorded questions and right answers. The objects, questions and answers are those by
//! which CoreDNS tests its `kubernetes` plugin (`handler_test.go`, `reverse_test.go` and
//! `handler_pod_verified_test.go` of coredns/coredns), brought into one cluster: code, whether the
//! answer is authoritative and whole, and its records. Times to live are not compared, since each
//! server chooses its own; neither is what goes along unasked.
//!
//! Where we answer otherwise on purpose, the row says so, with the reason: `DEPARTURES`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns::feed::Change;
use dns::message::{flag, kind_number, rcode_name};
use dns::{Action, Client, Index, Rules, Transport, answer, parse_response, query};
use model::kinds::{Endpoint, EndpointPort, SERVICE_NAME_LABEL, ServicePort, ServiceType};
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, Protocol, Service, World};
use plan::zone::PodNames;

/// A question as `NAME TYPE`, and what CoreDNS answers: the code, then the data of each record, in
/// order. A code alone comes with the SOA of the zone.
const RECORDED: &[(&str, &str)] = &[
    // Services with addresses
    ("svc1.testns.svc A", "NOERROR | A 10.0.0.1"),
    ("svcempty.testns.svc A", "NOERROR | A 10.0.0.1"),
    ("_http._tcp.svc1.testns.svc SRV", "NOERROR | SRV 0 100 80 svc1.testns.svc"),
    ("_http._tcp.svcempty.testns.svc SRV", "NOERROR | SRV 0 100 80 svcempty.testns.svc"),
    ("_http._tcp.svc6.testns.svc SRV", "NOERROR | SRV 0 100 80 svc6.testns.svc"),
    ("svc6.testns.svc AAAA", "NOERROR | AAAA 1234:abcd::1"),
    ("svc-dual-stack.testns.svc A", "NOERROR | A 10.0.0.3"),
    ("svc-dual-stack.testns.svc AAAA", "NOERROR | AAAA 10::3"),
    // Headless Services
    ("hdls1.testns.svc A", "NOERROR | A 172.0.0.2 | A 172.0.0.3 | A 172.0.0.4 | A 172.0.0.5"),
    ("hdls1.testns.svc AAAA", "NOERROR | AAAA 5678:abcd::1 | AAAA 5678:abcd::2"),
    ("hdlsprtls.testns.svc A", "NOERROR | A 172.0.0.20"),
    ("172-0-0-20.hdlsprtls.testns.svc A", "NOERROR | A 172.0.0.20"),
    ("172-0-0-2.hdls1.testns.svc A", "NOERROR | A 172.0.0.2"),
    ("172-0-0-3.hdls1.testns.svc A", "NOERROR | A 172.0.0.3"),
    ("dup-name.hdls1.testns.svc A", "NOERROR | A 172.0.0.4 | A 172.0.0.5"),
    ("5678-abcd--1.hdls1.testns.svc AAAA", "NOERROR | AAAA 5678:abcd::1"),
    ("5678-abcd--2.hdls1.testns.svc AAAA", "NOERROR | AAAA 5678:abcd::2"),
    // Aliases
    ("external.testns.svc CNAME", "NOERROR | CNAME ext.interwebs.test."),
    ("external-to-service.testns.svc A", "NOERROR | A 10.0.0.1 | CNAME svc1.testns.svc"),
    ("endpoint.external.testns.svc CNAME", "NXDOMAIN"),
    // What is there without data, and what is not there
    ("svc1.testns.svc AAAA", "NOERROR"),
    ("svc1.testns.svc SOA", "NOERROR"),
    ("svc0.testns.svc AAAA", "NXDOMAIN"),
    ("svc0.testns.svc A", "NXDOMAIN"),
    ("svc0.svc-nons.svc A", "NXDOMAIN"),
    ("svc1.nsnoexist.svc A", "NXDOMAIN"),
    ("bogusendpoint.hdls1.testns.svc A", "NXDOMAIN"),
    ("bogusendpoint.svc0.testns.svc A", "NXDOMAIN"),
    ("svc A", "NOERROR"),
    ("pod A", "NOERROR"),
    ("testns.svc A", "NOERROR"),
    ("svc NS", "NOERROR"),
    ("testns.svc NS", "NOERROR"),
    ("foo NS", "NXDOMAIN"),
    ("foo.svc NS", "NXDOMAIN"),
    ("dns-version TXT", "NOERROR | TXT \"1.1.0\""),
    // Pods, by their addresses
    ("10-240-0-1.podns.pod A", "NOERROR | A 10.240.0.1"),
    ("podns.pod A", "NOERROR"),
    ("pod-nons.pod A", "NXDOMAIN"),
    ("172-0-0-2.podns.pod A", "NXDOMAIN"),
    // Names of addresses
    ("3.0.0.10.in-addr.arpa. PTR", "NOERROR | PTR svc-dual-stack.testns.svc"),
    ("100.0.64.10.in-addr.arpa. PTR", "NOERROR | PTR ep1a.svc2.testns.svc"),
    (
        "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.7.7.0.0.0.0.d.f.ip6.arpa. PTR",
        "NOERROR | PTR ip6svc2ex.svc2.testns.svc",
    ),
    (
        "6.a.b.9.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.7.7.0.0.0.0.d.f.ip6.arpa. PTR",
        "NOERROR | PTR ip6svc2in.svc2.testns.svc",
    ),
];

/// A question, what CoreDNS answers, what we answer, and why.
const DEPARTURES: &[(&str, &str, &str, &str)] = &[
    (
        "svc1.testns.svc SRV",
        "NOERROR | SRV 0 100 80 svc1.testns.svc",
        "NOERROR",
        "the specification has SRV records for named ports, not for Services",
    ),
    (
        "svc-dual-stack.testns.svc SRV",
        "NOERROR | SRV 0 50 80 svc-dual-stack.testns.svc",
        "NOERROR",
        "the same",
    ),
    (
        "_http._tcp.hdls1.testns.svc SRV",
        "NOERROR | SRV 0 16 80 172-0-0-2.hdls1.testns.svc \
         | SRV 0 16 80 172-0-0-3.hdls1.testns.svc | SRV 0 16 80 5678-abcd--1.hdls1.testns.svc \
         | SRV 0 16 80 5678-abcd--2.hdls1.testns.svc | SRV 0 16 80 dup-name.hdls1.testns.svc",
        "NOERROR | SRV 0 20 80 172-0-0-2.hdls1.testns.svc \
         | SRV 0 20 80 172-0-0-3.hdls1.testns.svc | SRV 0 20 80 5678-abcd--1.hdls1.testns.svc \
         | SRV 0 20 80 5678-abcd--2.hdls1.testns.svc | SRV 0 20 80 dup-name.hdls1.testns.svc",
        "weights are shared among the records that there are, not among the endpoints",
    ),
    (
        "101.0.0.10.in-addr.arpa. PTR",
        "NOERROR",
        "NXDOMAIN",
        "a name of our own range that nobody has does not exist (RFC 8020)",
    ),
    ("example.org PTR", "NOERROR", "NXDOMAIN", "the same, in the zone of the cluster"),
];

fn service(name: &str, addresses: &[&str], ports: &[&str]) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "testns".into();
    service.metadata.name = name.into();
    service.spec.cluster_ips = addresses.iter().map(|text| (*text).into()).collect();
    let port = |name: &&str| ServicePort {
        name: (*name).into(),
        protocol: Protocol::Tcp,
        port: 80,
        ..ServicePort::default()
    };
    service.spec.ports = ports.iter().map(port).collect();
    service
}

fn external(name: &str, target: &str) -> Service {
    let mut service = service(name, &[], &[]);
    service.spec.kind = ServiceType::ExternalName;
    service.spec.external_name = target.into();
    service
}

/// The endpoints of a Service, as `ADDRESS` or `ADDRESS HOSTNAME`.
fn slice(of: &str, port: &str, endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| {
        let (address, hostname) = text.split_once(' ').unwrap_or((text, ""));
        Endpoint {
            addresses: vec![address.into()],
            hostname: hostname.into(),
            ..Endpoint::default()
        }
    };
    let mut slice = EndpointSlice {
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..EndpointSlice::default()
    };
    slice.metadata.namespace = "testns".into();
    let is_v6 = endpoints.iter().any(|text| text.contains(':'));
    slice.metadata.name = format!("{of}-{}", if is_v6 { 6 } else { 4 });
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), of.into());
    if !port.is_empty() {
        let port = EndpointPort { name: port.into(), protocol: Protocol::Tcp, port: Some(80) };
        slice.ports = vec![port];
    }
    slice
}

fn index() -> Index {
    let mut world = World::default();
    for service in [
        service("svc1", &["10.0.0.1"], &["http"]),
        service("svcempty", &["10.0.0.1"], &["http"]),
        service("svc6", &["1234:abcd::1"], &["http"]),
        service("svc-dual-stack", &["10.0.0.3", "10::3"], &["http"]),
        service("hdls1", &["None"], &["http"]),
        service("hdlsprtls", &["None"], &[]),
        service("svc2", &["None"], &["http"]),
        external("external", "ext.interwebs.test"),
        external("external-to-service", "svc1.testns.svc.cluster.local."),
    ] {
        world.set(Object::Service(Arc::new(service)));
    }
    let v4 = ["172.0.0.2", "172.0.0.3", "172.0.0.4 dup-name", "172.0.0.5 dup-name"];
    for slice in [
        slice("hdls1", "http", &v4),
        slice("hdls1", "http", &["5678:abcd::1", "5678:abcd::2"]),
        slice("hdlsprtls", "", &["172.0.0.20"]),
        slice("svc2", "http", &["10.64.0.100 ep1a"]),
        slice("svc2", "http", &["fd00:77:30::a ip6svc2ex", "fd00:77:30::2:9ba6 ip6svc2in"]),
    ] {
        world.set(Object::EndpointSlice(Arc::new(slice)));
    }
    let range = |text: &str| text.parse().expect("a range");
    let config = ClusterConfig {
        service_cidrs: vec![range("10.0.0.0/16"), range("1234:abcd::/64")],
        pod_cidrs: vec![range("10.64.0.0/16"), range("fd00:77:30::/64")],
        ..ClusterConfig::default()
    };
    let mut index = Index::new(plan::zone::zone(&world, &config), 1);
    let names = PodNames { namespaces: vec!["podns".into()], is_own: true };
    index.apply(Change::Pod { address: IpAddr::from([10, 240, 0, 1]), names: Some(names) });
    index
}

/// The answer as the tables write it.
fn ask(index: &Index, question: &str) -> String {
    let (name, kind) = question.split_once(' ').expect("a name and a type");
    let name = if name.ends_with('.') { name.into() } else { format!("{name}.cluster.local.") };
    let kind = kind_number(kind).expect("a type");
    let message = query(1, &name.parse().expect("a name"), kind, true);
    let client = Client { transport: Transport::Udp, address: Ipv4Addr::LOCALHOST.into() };
    let mut reply = Vec::new();
    let action = answer(&message, Some(index), &Rules::default(), client, &mut reply);
    assert_eq!(action, Action::Reply, "{question}");
    let response = parse_response(&reply).expect("a response");
    assert_ne!(response.flags & flag::AUTHORITATIVE, 0, "{question}: it is the cluster's");
    assert!(!response.is_truncated(), "{question}: it fits");
    let soa = response.authority.iter().filter(|record| record.kind == 6).count();
    assert_eq!(soa == 1, response.answers.is_empty(), "{question}: absence comes with an SOA");
    let mut lines: Vec<String> = response
        .answers
        .iter()
        .map(|record| {
            let kind = dns::message::kind_name(record.kind);
            let data = record.data_text();
            format!("{kind} {}", data.trim_end_matches(".cluster.local."))
        })
        .collect();
    lines.sort();
    lines.insert(0, rcode_name(response.rcode));
    lines.join(" | ")
}

#[test]
fn recorded_questions_have_the_recorded_answers() {
    let index = index();
    let rows = RECORDED.iter().copied();
    let departures = DEPARTURES.iter().map(|(question, _, ours, _)| (*question, *ours));
    let wrong: Vec<String> = rows
        .chain(departures)
        .map(|(question, expected)| (question, expected, ask(&index, question)))
        .filter(|(_, expected, found)| expected != found)
        .map(|(question, expected, found)| {
            format!("{question}\n  expected {expected}\n  found    {found}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A row that says what the other server says too is no departure.
#[test]
fn departures_are_departures_and_say_why() {
    for (question, theirs, ours, reason) in DEPARTURES {
        assert_ne!(theirs, ours, "{question}");
        assert!(!reason.is_empty(), "{question}");
    }
}
