//! D-10 and issue 5: a cluster of 10,000 Services and 100,000 endpoints, from API objects over the
//! agent's feed to answers: all of them are right, and one change stays small.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns::feed::{Change, Follower, News, Publisher, Reader, Settings};
use dns::message::kind;
use dns::{Action, Client, Index, Name, Response, Rules, Transport, answer, parse_response, query};
use model::kinds::{
    Conditions, Endpoint, EndpointPort, SERVICE_NAME_LABEL, ServicePort, ServiceSpec,
};
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, NamespacedName, Protocol, Service, World};
use plan::zone::{Exposed, service_records};

const SERVICES: u32 = 10_000;
/// Of these, headless ones.
const HEADLESS: u32 = 1_000;
/// Endpoints of each headless one, as many as an EndpointSlice holds.
const ENDPOINTS: u32 = 100;
const NAMESPACES: u32 = 50;
/// What an agent holds of a snapshot at one time: a part, here of the largest Services.
const MAX_PART_OCTETS: usize = 1 << 20;
/// What one endpoint's change may take on its way to a worker: the records of its Service.
const MAX_CHANGE_OCTETS: usize = 32 << 10;

fn namespace(number: u32) -> String {
    format!("n{}", number % NAMESPACES)
}

fn key(number: u32) -> NamespacedName {
    NamespacedName::new(namespace(number), format!("s{number}"))
}

fn domain(number: u32) -> String {
    format!("s{number}.{}.svc.cluster.local", namespace(number))
}

/// From 10.97.0.0 on.
fn service_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0A61_0000 + number)
}

/// From 10.128.0.0 on.
fn pod_address(number: u32, endpoint: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0A80_0000 + number * ENDPOINTS + endpoint)
}

fn service(number: u32) -> Service {
    let is_headless = number < HEADLESS;
    let address = if is_headless { "None".to_owned() } else { service_address(number).to_string() };
    let port = ServicePort { name: "sql".into(), port: 5432, ..ServicePort::default() };
    let spec =
        ServiceSpec { cluster_ips: vec![address], ports: vec![port], ..ServiceSpec::default() };
    let mut service = Service { spec, ..Service::default() };
    let NamespacedName { namespace, name } = key(number);
    (service.metadata.namespace, service.metadata.name) = (namespace, name);
    service
}

fn slice(number: u32, is_ready: impl Fn(u32) -> bool) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    let NamespacedName { namespace, name } = key(number);
    slice.metadata.namespace = namespace;
    slice.metadata.name = format!("{name}-1");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), name);
    let port = EndpointPort { name: "sql".into(), protocol: Protocol::Tcp, port: Some(5432) };
    slice.ports = vec![port];
    let endpoint = |endpoint| Endpoint {
        addresses: vec![pod_address(number, endpoint).to_string()],
        hostname: format!("db-{endpoint}"),
        conditions: Conditions { ready: Some(is_ready(endpoint)), ..Conditions::default() },
        ..Endpoint::default()
    };
    slice.endpoints = (0..ENDPOINTS).map(endpoint).collect();
    slice
}

/// What a worker has behind these octets.
fn take(follower: &mut Follower, index: &mut Option<Index>, octets: &[u8]) {
    follower.push(octets);
    while let Some(received) = follower.next_frame().expect("a good stream") {
        match (received.news, index.as_mut()) {
            (Some(News::Zone(zone)), _) => *index = Some(*zone),
            (Some(News::Changes { changes, .. }), Some(index)) => {
                changes.into_iter().for_each(|change| index.apply(change));
            }
            (Some(News::Changes { .. }), None) => panic!("changes of nothing"),
            (Some(News::Other(_)) | None, _) => {}
        }
    }
}

/// The response to a question, whole.
fn asked(index: &Index, name: &str, kind: u16) -> Response {
    let message = query(3, &name.parse().expect("a name"), kind, true);
    let client = Client { transport: Transport::Tcp, address: Ipv4Addr::LOCALHOST.into() };
    let mut reply = Vec::new();
    let action = answer(&message, Some(index), &Rules::default(), client, &mut reply);
    assert_eq!(action, Action::Reply, "{name}");
    parse_response(&reply).expect("a response")
}

fn addresses(index: &Index, name: &str) -> BTreeSet<Ipv4Addr> {
    let found = asked(index, name, kind::A).answers.into_iter();
    let octets = found.map(|record| <[u8; 4]>::try_from(record.data).expect("4 octets"));
    octets.map(Ipv4Addr::from).collect()
}

/// The name at an address.
fn name_at(index: &Index, address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    let found = asked(index, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"), kind::PTR).answers;
    let names = found.iter().map(|record| Name::read(&record.data, 0).expect("a name").0);
    names.map(|name| name.to_string()).collect()
}

#[test]
fn a_large_cluster_is_answered_whole_and_changes_by_little() {
    let config = ClusterConfig {
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a range")],
        pod_cidrs: vec!["10.128.0.0/9".parse().expect("a range")],
        ..ClusterConfig::default()
    };
    let mut world = World::default();
    for number in 0..SERVICES {
        world.set(Object::Service(Arc::new(service(number))));
    }
    for number in 0..HEADLESS {
        world.set(Object::EndpointSlice(Arc::new(slice(number, |_| true))));
    }
    let change = |world: &World, number: u32| {
        let key = key(number);
        Change::of_service(&key, service_records(world, &key, &Exposed::default()).as_ref())
    };
    let mut publisher = Publisher::new(Settings::new(&config), 1);
    let all: Vec<Change> = (0..SERVICES).map(|number| change(&world, number)).collect();
    publisher.publish(all, 0).expect("fits");
    let (mut reader, mut follower, mut index) = (Reader::default(), Follower::default(), None);
    while let Some(frame) = publisher.next_frame(&mut reader) {
        let frame = frame.expect("fits into a frame");
        assert!(frame.len() <= MAX_PART_OCTETS, "{}", frame.len());
        take(&mut follower, &mut index, &frame);
    }
    every_name_is_right(index.as_ref().expect("a zone"));

    // One endpoint is ready no more.
    world.set(Object::EndpointSlice(Arc::new(slice(7, |endpoint| endpoint != 42))));
    publisher.publish([change(&world, 7)], 0).expect("fits");
    let next = std::iter::from_fn(|| publisher.next_frame(&mut reader));
    let frames: Vec<Arc<[u8]>> = next.map(|frame| frame.expect("fits")).collect();
    let octets: usize = frames.iter().map(|frame| frame.len()).sum();
    assert!((1..MAX_CHANGE_OCTETS).contains(&octets), "{octets}");
    for frame in frames {
        take(&mut follower, &mut index, &frame);
    }
    let index = index.expect("a zone");
    let left = addresses(&index, &domain(7));
    assert_eq!(left.len() as u32, ENDPOINTS - 1);
    assert!(!left.contains(&pod_address(7, 42)));
    assert_eq!(asked(&index, &format!("db-42.{}", domain(7)), kind::A).rcode, 3);
    assert_eq!(addresses(&index, &domain(8)).len() as u32, ENDPOINTS);
}

fn every_name_is_right(index: &Index) {
    assert_eq!(index.services() as u32, SERVICES);
    for number in HEADLESS..SERVICES {
        let (address, domain) = (service_address(number), domain(number));
        assert_eq!(addresses(index, &domain), BTreeSet::from([address]), "{domain}");
        assert_eq!(name_at(index, address), format!("{domain}."), "{address}");
    }
    let mut endpoints = 0;
    for number in 0..HEADLESS {
        let domain = domain(number);
        let expected: BTreeSet<Ipv4Addr> =
            (0..ENDPOINTS).map(|endpoint| pod_address(number, endpoint)).collect();
        assert_eq!(addresses(index, &domain), expected, "{domain}");
        let services = asked(index, &format!("_sql._tcp.{domain}"), kind::SRV).answers;
        assert_eq!(services.len() as u32, ENDPOINTS, "{domain}");
        for endpoint in 0..ENDPOINTS {
            let (address, own) = (pod_address(number, endpoint), format!("db-{endpoint}.{domain}"));
            assert_eq!(addresses(index, &own), BTreeSet::from([address]), "{own}");
            assert_eq!(name_at(index, address), format!("{own}."), "{address}");
            endpoints += 1;
        }
    }
    assert_eq!(endpoints, 100_000);
    let absent = format!("s{SERVICES}.n0.svc.cluster.local");
    assert_eq!(asked(index, &absent, kind::A).rcode, 3, "{absent}");
    assert!(index.pods_at(IpAddr::from([10, 200, 0, 1])).is_none());
}
