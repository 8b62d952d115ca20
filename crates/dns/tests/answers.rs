//! What the cluster's zone answers, from Kubernetes objects to octets, against a written list of
//! expectations; and that no octets from outside do harm.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dns::message::{flag, kind_name, kind_number, rcode_name};
use dns::{Action, Client, Index, Name, Record, Rules, Transport, answer, parse_response, query};
use model::kinds::{
    Conditions, Endpoint, EndpointPort, SERVICE_NAME_LABEL, ServicePort, ServiceType,
};
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, Protocol, Service, World};
use proptest::prelude::*;

fn config() -> ClusterConfig {
    ClusterConfig {
        service_cidrs: vec![
            "10.96.0.0/16".parse().expect("a range"),
            "fd00:96::/112".parse().expect("a range"),
        ],
        pod_cidrs: vec!["10.240.0.0/12".parse().expect("a range")],
        ..ClusterConfig::default()
    }
}

fn service(name: &str, addresses: &[&str], ports: &[(&str, Protocol, u16)]) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "shop".into();
    service.metadata.name = name.into();
    service.spec.cluster_ips = addresses.iter().map(|text| (*text).into()).collect();
    service.spec.ports = ports
        .iter()
        .map(|(name, protocol, port)| ServicePort {
            name: (*name).into(),
            protocol: *protocol,
            port: *port,
            ..ServicePort::default()
        })
        .collect();
    service
}

fn endpoint(address: &str, hostname: &str, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.into()],
        hostname: hostname.into(),
        conditions: Conditions { ready: Some(ready), ..Conditions::default() },
        ..Endpoint::default()
    }
}

fn slice(name: &str, of: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = EndpointSlice { endpoints, ..EndpointSlice::default() };
    slice.metadata.namespace = "shop".into();
    slice.metadata.name = name.into();
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), of.into());
    slice.ports =
        vec![EndpointPort { name: "sql".into(), protocol: Protocol::Tcp, port: Some(5432) }];
    slice
}

fn external(name: &str, target: &str) -> Service {
    let mut service = service(name, &[], &[]);
    service.spec.kind = ServiceType::ExternalName;
    service.spec.external_name = target.into();
    service
}

fn world() -> World {
    let mut world = World::default();
    let mut publishing = service("early", &["None"], &[]);
    publishing.spec.publish_not_ready_addresses = true;
    let services = [
        service(
            "web",
            &["10.96.1.1", "fd00:96::1:1"],
            &[("http", Protocol::Tcp, 80), ("DNS", Protocol::Udp, 53), ("", Protocol::Tcp, 9)],
        ),
        service("db", &["None"], &[("sql", Protocol::Tcp, 5432)]),
        service("idle", &["None"], &[("sql", Protocol::Tcp, 5432)]),
        publishing,
        external("docs", "www.Example.org."),
        external("front", "web.shop.svc.cluster.local"),
        external("gone", "nothing.shop.svc.cluster.local"),
        external("literal", "192.0.2.7"),
        external("ring-a", "ring-b.shop.svc.cluster.local"),
        external("ring-b", "ring-a.shop.svc.cluster.local"),
        service("pending", &[], &[("http", Protocol::Tcp, 80)]),
    ];
    for service in services {
        world.set(Object::Service(Arc::new(service)));
    }
    let slices = [
        slice(
            "db-1",
            "db",
            vec![
                endpoint("10.244.1.5", "db-0", true),
                endpoint("10.244.2.6", "", true),
                endpoint("10.244.2.7", "db-2", false),
            ],
        ),
        // An endpoint on its way from one slice to another is in both.
        slice("db-2", "db", vec![endpoint("10.244.1.5", "db-0", true)]),
        slice("idle-1", "idle", vec![endpoint("10.244.1.9", "", false)]),
        slice("early-1", "early", vec![endpoint("10.244.3.3", "early-0", false)]),
    ];
    for slice in slices {
        world.set(Object::EndpointSlice(Arc::new(slice)));
    }
    world
}

/// What one query leads to, asked from outside of any pod.
fn asked(message: &[u8], index: Option<&Index>, transport: Transport) -> (Action, Vec<u8>) {
    let client = Client { transport, address: Ipv4Addr::LOCALHOST.into() };
    let mut reply = Vec::new();
    let action = answer(message, index, &Rules::default(), client, &mut reply);
    (action, reply)
}

/// The reply to a query that gets one.
fn replied(message: &[u8], index: Option<&Index>, transport: Transport) -> Vec<u8> {
    let (action, reply) = asked(message, index, transport);
    assert_eq!(action, Action::Reply);
    reply
}

fn index() -> Index {
    Index::new(plan::zone::zone(&world(), &config()), 7)
}

/// One line for each record, and the code first: what the expectations below are written in.
fn ask(index: &Index, name: &str, kind: &str) -> String {
    let number = kind_number(kind).expect("a type");
    let message = query(0, &name.parse().expect("a name"), number, true);
    match asked(&message, Some(index), Transport::Udp) {
        (Action::Forward(_), _) => "forwarded".into(),
        (Action::Drop, _) => "dropped".into(),
        (Action::Reply, reply) => {
            let response = parse_response(&reply).expect("a response");
            assert_eq!(response.name.to_string().trim_end_matches('.'), name, "the case is kept");
            let mut lines: Vec<String> = response.answers.iter().map(record_text).collect();
            lines.sort();
            let authority = response.authority.iter().map(|record| {
                assert!(record.ttl_s <= 30, "absence is kept for a short time");
                format!("{} {}", kind_name(record.kind), record.owner)
            });
            let code = rcode_name(response.rcode);
            std::iter::once(code).chain(lines).chain(authority).collect::<Vec<_>>().join(" | ")
        }
    }
}

fn record_text(record: &Record) -> String {
    let data = match (kind_name(record.kind).as_str(), record.data.as_slice()) {
        ("A", [a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
        ("AAAA", octets) => {
            let octets: [u8; 16] = octets.try_into().expect("16 octets");
            std::net::Ipv6Addr::from(octets).to_string()
        }
        ("SRV", [p, q, w, x, high, low, target @ ..]) => {
            let target = Name::read(target, 0).expect("a name").0;
            let number = |high: &u8, low: &u8| u16::from(*high) << 8 | u16::from(*low);
            format!("{} {} {} {target}", number(p, q), number(w, x), number(high, low))
        }
        ("CNAME" | "PTR" | "NS", data) => Name::read(data, 0).expect("a name").0.to_string(),
        ("TXT", [_, text @ ..]) => String::from_utf8_lossy(text).into_owned(),
        ("SOA", data) => Name::read(data, 0).expect("a name").0.to_string(),
        ("HINFO", [7, text @ ..]) => String::from_utf8_lossy(&text[..7]).into_owned(),
        (kind, data) => format!("{kind} {data:?}"),
    };
    format!("{} {data}", kind_name(record.kind))
}

#[test]
fn names_of_the_cluster_answer_as_the_specification_says() {
    const SOA: &str = "SOA cluster.local.";
    let no_data = format!("NOERROR | {SOA}");
    let no_name = format!("NXDOMAIN | {SOA}");
    let rows: &[(&str, &str, &str)] = &[
        // D-01
        ("dns-version.cluster.local", "TXT", "NOERROR | TXT 1.1.0"),
        ("DNS-Version.Cluster.LOCAL", "TXT", "NOERROR | TXT 1.1.0"),
        ("dns-version.cluster.local", "A", &no_data),
        // D-02: Services with addresses
        ("web.shop.svc.cluster.local", "A", "NOERROR | A 10.96.1.1"),
        ("WEB.shop.SVC.cluster.local", "A", "NOERROR | A 10.96.1.1"),
        ("web.shop.svc.cluster.local", "AAAA", "NOERROR | AAAA fd00:96::1:1"),
        (
            "_http._tcp.web.shop.svc.cluster.local",
            "SRV",
            "NOERROR | SRV 0 100 80 web.shop.svc.cluster.local.",
        ),
        (
            "_dns._udp.web.shop.svc.cluster.local",
            "SRV",
            "NOERROR | SRV 0 100 53 web.shop.svc.cluster.local.",
        ),
        ("_dns._tcp.web.shop.svc.cluster.local", "SRV", &no_name),
        ("_._tcp.web.shop.svc.cluster.local", "SRV", &no_name),
        ("http._tcp.web.shop.svc.cluster.local", "SRV", &no_name),
        ("_http._tcp.web.shop.svc.cluster.local", "A", &no_data),
        ("1.1.96.10.in-addr.arpa", "PTR", "NOERROR | PTR web.shop.svc.cluster.local."),
        (
            "1.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa",
            "PTR",
            "NOERROR | PTR web.shop.svc.cluster.local.",
        ),
        // D-03: headless Services
        ("db.shop.svc.cluster.local", "A", "NOERROR | A 10.244.1.5 | A 10.244.2.6"),
        ("db-0.db.shop.svc.cluster.local", "A", "NOERROR | A 10.244.1.5"),
        ("10-244-2-6.db.shop.svc.cluster.local", "A", "NOERROR | A 10.244.2.6"),
        ("db-2.db.shop.svc.cluster.local", "A", &no_name),
        (
            "_sql._tcp.db.shop.svc.cluster.local",
            "SRV",
            "NOERROR | SRV 0 50 5432 10-244-2-6.db.shop.svc.cluster.local. \
             | SRV 0 50 5432 db-0.db.shop.svc.cluster.local.",
        ),
        ("idle.shop.svc.cluster.local", "A", &no_name),
        ("early.shop.svc.cluster.local", "A", "NOERROR | A 10.244.3.3"),
        ("5.1.244.10.in-addr.arpa", "PTR", "NOERROR | PTR db-0.db.shop.svc.cluster.local."),
        // D-04: aliases
        ("docs.shop.svc.cluster.local", "A", "forwarded"),
        ("docs.shop.svc.cluster.local", "CNAME", "NOERROR | CNAME www.example.org."),
        (
            "front.shop.svc.cluster.local",
            "A",
            "NOERROR | A 10.96.1.1 | CNAME web.shop.svc.cluster.local.",
        ),
        (
            "gone.shop.svc.cluster.local",
            "A",
            "NXDOMAIN | CNAME nothing.shop.svc.cluster.local. | SOA cluster.local.",
        ),
        ("literal.shop.svc.cluster.local", "A", &no_data),
        ("literal.shop.svc.cluster.local", "CNAME", &no_data),
        ("x.docs.shop.svc.cluster.local", "A", &no_name),
        // D-05: records of pods that are there; here is none (search.rs has some).
        ("10-244-1-5.shop.pod.cluster.local", "A", &no_name),
        // D-06: what exists without data, and what does not exist
        ("web.shop.svc.cluster.local", "TXT", &no_data),
        ("db.shop.svc.cluster.local", "AAAA", &no_data),
        ("_tcp.web.shop.svc.cluster.local", "A", &no_data),
        ("_udp.db.shop.svc.cluster.local", "A", &no_name),
        ("shop.svc.cluster.local", "A", &no_data),
        ("svc.cluster.local", "A", &no_data),
        ("cluster.local", "A", &no_data),
        ("nowhere.svc.cluster.local", "A", &no_name),
        ("web.nowhere.svc.cluster.local", "A", &no_name),
        ("nothing.shop.svc.cluster.local", "A", &no_name),
        ("pending.shop.svc.cluster.local", "A", &no_name),
        ("www.example.com.shop.svc.cluster.local", "A", &no_name),
        ("web.shop.cluster.local", "A", &no_name),
        ("local", "A", "forwarded"),
        ("notcluster.local", "A", "forwarded"),
        ("cluster.local.example.com", "A", "forwarded"),
        ("cluster.local", "SOA", "NOERROR | SOA ns.dns.cluster.local."),
        ("cluster.local", "NS", "NOERROR | NS ns.dns.cluster.local."),
        ("ns.dns.cluster.local", "A", "NOERROR | A 10.96.0.10"),
        ("dns.cluster.local", "A", &no_data),
        // Reverse zones: only the cluster's own ranges
        ("9.9.96.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 96.10.in-addr.arpa."),
        ("1.96.10.in-addr.arpa", "PTR", "NOERROR | SOA 96.10.in-addr.arpa."),
        ("77.96.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 96.10.in-addr.arpa."),
        ("96.10.in-addr.arpa", "SOA", "NOERROR | SOA ns.dns.cluster.local."),
        ("x.1.1.96.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 96.10.in-addr.arpa."),
        ("01.1.96.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 96.10.in-addr.arpa."),
        ("1.1.96.10.in-addr.arpa", "A", "NOERROR | SOA 96.10.in-addr.arpa."),
        // A /12 is sixteen zones of two labels.
        ("1.1.255.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 255.10.in-addr.arpa."),
        ("6.2.244.10.in-addr.arpa", "PTR", "NXDOMAIN | SOA 244.10.in-addr.arpa."),
        ("1.1.239.10.in-addr.arpa", "PTR", "forwarded"),
        ("10.in-addr.arpa", "PTR", "forwarded"),
        ("1.1.1.1.in-addr.arpa", "PTR", "forwarded"),
        // D-07
        ("web.shop.svc.cluster.local", "ANY", "NOERROR | HINFO RFC8482"),
        ("example.com", "ANY", "NOERROR | HINFO RFC8482"),
        ("nothing.shop.svc.cluster.local", "ANY", &no_name),
        ("cluster.local", "AXFR", "REFUSED"),
        ("cluster.local", "IXFR", "REFUSED"),
        ("example.com", "A", "forwarded"),
    ];
    let index = index();
    let wrong: Vec<String> = rows
        .iter()
        .map(|(name, kind, expected)| (name, kind, expected, ask(&index, name, kind)))
        .filter(|(_, _, expected, found)| *expected != found)
        .map(|(name, kind, expected, found)| {
            format!("{name} {kind}\n  expected {expected}\n  found    {found}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn aliases_in_a_ring_end_in_failure() {
    let found = ask(&index(), "ring-a.shop.svc.cluster.local", "A");
    assert!(found.starts_with("SERVFAIL | CNAME ring-a"), "{found}");
}

#[test]
fn nothing_is_known_before_the_first_zone() {
    let message = query(9, &"example.com".parse().expect("a name"), 1, false);
    let reply = replied(&message, None, Transport::Udp);
    assert_eq!(parse_response(&reply).map(|response| response.rcode), Some(2));
}

#[test]
fn answers_from_the_zone_are_authoritative_and_others_are_not() {
    let index = index();
    for (name, kind, authoritative) in [
        ("web.shop.svc.cluster.local", 1, true),
        ("nothing.svc.cluster.local", 1, true),
        ("cluster.local", 252, false),
        ("example.com", 255, false),
    ] {
        let message = query(1, &name.parse().expect("a name"), kind, false);
        let reply = replied(&message, Some(&index), Transport::Udp);
        let flags = u16::from_be_bytes([reply[2], reply[3]]);
        assert_eq!(flags & flag::AUTHORITATIVE != 0, authoritative, "{name}");
        assert_ne!(flags & flag::RECURSION_AVAILABLE, 0);
        assert_ne!(flags & flag::RECURSION_DESIRED, 0, "as the client wrote it");
    }
}

/// A headless Service with this many endpoints.
fn large(count: u32) -> Index {
    let mut world = World::default();
    world.set(Object::Service(Arc::new(service("big", &["None"], &[]))));
    let address = |number: u32| std::net::Ipv4Addr::from(0x0AF4_0000 + number).to_string();
    let endpoints = (0..count).map(|number| endpoint(&address(number), "", true)).collect();
    world.set(Object::EndpointSlice(Arc::new(slice("big-1", "big", endpoints))));
    Index::new(plan::zone::zone(&world, &config()), 1)
}

#[test]
fn what_does_not_fit_into_a_datagram_is_cut_and_whole_over_tcp() {
    let index = large(200);
    let name: Name = "big.shop.svc.cluster.local".parse().expect("a name");
    for (with_edns, transport, limit, truncated, complete) in [
        (false, Transport::Udp, 512, true, false),
        (true, Transport::Udp, 1232, true, false),
        (false, Transport::Tcp, 65535, false, true),
    ] {
        let reply = replied(&query(1, &name, 1, with_edns), Some(&index), transport);
        let response = parse_response(&reply).expect("a response");
        assert!(reply.len() <= limit && reply.len() > limit.min(3000) - 40);
        assert_eq!(response.is_truncated(), truncated);
        assert_eq!(response.answers.len() == 200, complete);
    }
    // Additional addresses that do not fit are no reason to ask again.
    let small = large(8);
    let name = "_sql._tcp.big.shop.svc.cluster.local".parse().expect("a name");
    let reply = replied(&query(1, &name, 33, false), Some(&small), Transport::Udp);
    let response = parse_response(&reply).expect("a response");
    assert!(response.answers.len() < 8 || !response.is_truncated());
}

#[test]
fn clients_are_spread_over_the_addresses() {
    let index = large(3);
    let name: Name = "big.shop.svc.cluster.local".parse().expect("a name");
    let first = |id: u16| {
        let reply = replied(&query(id, &name, 1, false), Some(&index), Transport::Udp);
        parse_response(&reply).expect("a response").answers[0].data.clone()
    };
    let firsts: std::collections::BTreeSet<Vec<u8>> = (0..6).map(first).collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn malformed_queries_get_the_code_that_names_the_fault() {
    let good = query(0x1234, &"web.shop.svc.cluster.local".parse().expect("a name"), 1, true);
    let changed = |changes: &[(usize, u8)]| {
        let mut message = good.clone();
        for (at, octet) in changes {
            message[*at] = *octet;
        }
        message
    };
    let opt = good.len() - 11;
    let rows: Vec<(&str, Vec<u8>, Option<u16>)> = vec![
        ("no header", good[..11].to_vec(), None),
        ("a response", changed(&[(2, 0x81)]), None),
        ("no question", changed(&[(5, 0)]), Some(1)),
        ("two questions", changed(&[(5, 2)]), Some(1)),
        ("an answer in a question", changed(&[(7, 1)]), Some(1)),
        ("cut within the name", good[..20].to_vec(), Some(1)),
        ("cut within OPT", good[..good.len() - 4].to_vec(), Some(1)),
        ("a pointer as name", changed(&[(12, 0xC0), (13, 12)]), Some(1)),
        ("an update", changed(&[(2, 0x28)]), Some(4)),
        ("another class", changed(&[(opt - 1, 3)]), Some(5)),
        ("an unknown EDNS version", changed(&[(opt + 6, 1)]), Some(0)),
    ];
    let index = index();
    for (what, message, expected) in rows {
        match (asked(&message, Some(&index), Transport::Udp), expected) {
            ((Action::Drop, _), None) => {}
            ((Action::Reply, reply), Some(code)) => {
                assert_eq!(u16::from(reply[3] & 0x0F), code, "{what}");
                assert_eq!(reply[..2], [0x12, 0x34], "{what}");
            }
            (found, _) => panic!("{what}: {found:?}"),
        }
    }
    // BADVERS is 16: its upper bits stand in the OPT record.
    let reply = replied(&changed(&[(opt + 6, 1)]), Some(&index), Transport::Udp);
    assert_eq!(reply[reply.len() - 6], 1);
}

#[test]
fn service_by_service_the_zone_is_the_same_as_from_scratch() {
    let (world, config) = (world(), config());
    let mut zone = plan::zone::Zone::empty(&config);
    for service in world.services() {
        let key = service.metadata.key();
        let records = plan::zone::service_records(&world, &key, &plan::zone::Exposed::default());
        let some = records.is_some();
        assert_eq!(zone.set(&key, records.clone()), some);
        assert!(!zone.set(&key, records), "the same again changes nothing");
    }
    assert_eq!(zone, plan::zone::zone(&world, &config));
    for service in world.services() {
        zone.set(&service.metadata.key(), None);
    }
    assert_eq!(zone, plan::zone::Zone::empty(&config));
}

proptest! {
    #[test]
    fn noise_never_panics_and_never_answers_beyond_the_limit(
        noise in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        if let (Action::Reply, reply) = asked(&noise, Some(&index()), Transport::Udp) {
            prop_assert!(reply.len() <= 1232);
        }
    }

    #[test]
    fn damaged_questions_never_panic(
        name in "[a-z_.-]{1,40}",
        kind in any::<u16>(),
        flips in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
    ) {
        let Ok(name) = format!("{name}.shop.svc.cluster.local").parse::<Name>() else { return Ok(()) };
        let mut message = query(7, &name, kind, true);
        for (at, octet) in flips {
            if let Some(place) = message.get_mut(at) {
                *place = octet;
            }
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            if let (Action::Reply, reply) = asked(&message, Some(&index()), transport) {
                prop_assert_eq!(&reply[..2], &message[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
            }
        }
    }
}
