//! The zone of a large cluster in memory: how many octets it takes, how long it takes to build, to
//! change and to be asked. Run it with `./x bench zone`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::feed::{Change, Follower, News, Publisher, Settings};
use dns::message::kind_number;
use dns::{Client, Index, Rules, Transport, answer, query};
use model::NamespacedName;
use plan::zone::{HeadlessEndpoint, NamedPort, PodNames, ServiceRecords};

/// Services with addresses of their own.
const SERVICES: u32 = 10_000;
/// Headless Services, with their endpoints, and as many pods.
const HEADLESS: u32 = 1_000;
const ENDPOINTS: u32 = 100;
/// How often each question is asked.
const ROUNDS: u32 = 200_000;
/// Changes whose time is taken.
const CHANGES: u32 = 1_000;

fn main() {
    let began = Instant::now();
    let mut publisher = Publisher::new(settings(), 1);
    publisher.publish(changes(), 0).expect("fits into a frame");
    println!("the agent takes the zone in: {:?}", began.elapsed());
    let octets: Vec<Arc<[u8]>> = publisher.snapshot().map(|frame| frame.expect("fits")).collect();
    println!("snapshot: {} octets", octets.iter().map(|frame| frame.len()).sum::<usize>());
    let mut index = None;
    let mut took = Duration::ZERO;
    let memory = allocation_counter::measure(|| {
        let began = Instant::now();
        index = Some(read(&octets));
        took = began.elapsed();
    });
    let mut index = index.expect("a zone");
    println!("the worker reads it: {took:?}; it takes {} octets", memory.bytes_current);
    change(&mut publisher, &mut index);
    for (name, kind) in [
        ("s5000.n0.svc.cluster.local", "A"),
        ("nothing.n0.svc.cluster.local", "A"),
        ("pod-7.h500.n0.svc.cluster.local", "A"),
        ("_sql._tcp.s5000.n0.svc.cluster.local", "SRV"),
        ("h500.n0.svc.cluster.local", "A"),
        ("16.39.96.10.in-addr.arpa", "PTR"),
        ("s5000.n0.n1.svc.cluster.local", "A"),
    ] {
        ask(&index, name, kind);
    }
}

fn settings() -> Settings {
    Settings {
        domain: "cluster.local".into(),
        name_servers: vec![IpAddr::from([10, 96, 0, 10])],
        reverse_ranges: vec!["10.0.0.0/8".parse().expect("a range")],
        ..Settings::default()
    }
}

fn changes() -> impl Iterator<Item = Change> {
    let services = (0..SERVICES).map(|number| {
        let address = Ipv4Addr::from(0x0A60_1388 + number);
        let ports = vec![port(80)];
        let records = ServiceRecords::ClusterIp { addresses: vec![address.into()], ports };
        Change::of_service(&key(number, "s"), Some(&records))
    });
    let headless =
        (0..HEADLESS).map(|number| Change::of_service(&key(number, "h"), Some(&headless(number))));
    let pods = (0..HEADLESS * ENDPOINTS).map(|number| Change::Pod {
        address: pod_address(number),
        names: Some(PodNames { namespaces: vec![namespace(number).into()], is_own: true }),
    });
    services.chain(headless).chain(pods)
}

fn headless(number: u32) -> ServiceRecords {
    let endpoint = |index| HeadlessEndpoint {
        label: format!("pod-{index}"),
        address: pod_address(number * ENDPOINTS + index),
        has_hostname: true,
        ports: vec![port(5432)],
    };
    let mut endpoints: Vec<HeadlessEndpoint> = (0..ENDPOINTS).map(endpoint).collect();
    endpoints.sort_by(|one, other| one.label.cmp(&other.label));
    ServiceRecords::Headless { endpoints }
}

fn pod_address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0A80_0000 + number).into()
}

fn port(number: u16) -> NamedPort {
    NamedPort { name: "sql".into(), protocol: model::Protocol::Tcp, port: number }
}

fn key(number: u32, prefix: &str) -> NamespacedName {
    NamespacedName::new(namespace(number), format!("{prefix}{number}"))
}

fn namespace(number: u32) -> String {
    format!("n{}", number % 100)
}

fn read(frames: &[Arc<[u8]>]) -> Index {
    let mut follower = Follower::default();
    let mut zone = None;
    for frame in frames {
        follower.push(frame);
        while let Some(received) = follower.next_frame().expect("a good stream") {
            if let Some(News::Zone(index)) = received.news {
                zone = Some(*index);
            }
        }
    }
    zone.expect("a whole zone")
}

/// One endpoint of a headless Service comes or goes: at the agent, and at the worker.
fn change(publisher: &mut Publisher, index: &mut Index) {
    let ServiceRecords::Headless { mut endpoints } = headless(500) else { return };
    let mut spare = endpoints.pop();
    let (mut at_agent, mut at_worker) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..CHANGES {
        match spare.take() {
            Some(one) => endpoints.push(one),
            None => spare = endpoints.pop(),
        }
        let records = ServiceRecords::Headless { endpoints: endpoints.clone() };
        let began = Instant::now();
        let change = Change::of_service(&key(500, "h"), Some(&records));
        publisher.publish([change.clone()], 0).expect("fits");
        at_agent += began.elapsed();
        let began = Instant::now();
        index.apply(change);
        at_worker += began.elapsed();
    }
    println!(
        "one of {ENDPOINTS} endpoints changes: {:?} at the agent, {:?} at the worker",
        at_agent / CHANGES,
        at_worker / CHANGES
    );
}

fn ask(index: &Index, name: &str, kind: &str) {
    let kind_number = kind_number(kind).expect("a type");
    let message = query(1, &name.parse().expect("a name"), kind_number, true);
    let client = Client { transport: Transport::Udp, address: pod_address(1) };
    let (rules, mut reply) = (Rules::default(), Vec::with_capacity(2048));
    let began = Instant::now();
    for _ in 0..ROUNDS {
        black_box(answer(black_box(&message), Some(index), &rules, client, &mut reply));
    }
    println!("{name} {kind}: {:?}", began.elapsed() / ROUNDS);
}
