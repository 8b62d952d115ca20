//! What the cluster itself answers is written without a single allocation.

use std::net::IpAddr;

use dns::feed::Change;
use dns::message::kind_number;
use dns::{
    Action, Client, Config, Handled, Incoming, Index, Rules, Server, Transport, answer, query,
};
use model::NamespacedName;
use plan::zone::{HeadlessEndpoint, NamedPort, PodNames, ServiceRecords, Zone};

/// How often each question is asked while allocations are counted.
const ROUNDS: u64 = 100;

fn index() -> Index {
    let zone = Zone {
        domain: "cluster.local".into(),
        name_servers: vec!["10.96.0.10".parse().expect("an address")],
        reverse_ranges: vec!["10.0.0.0/8".parse().expect("a range")],
        ..Zone::default()
    };
    let mut index = Index::new(zone, 1);
    let port =
        |number| NamedPort { name: "sql".into(), protocol: model::Protocol::Tcp, port: number };
    let endpoints = (1..=20).map(|last| HeadlessEndpoint {
        label: format!("db-{last:02}"),
        address: IpAddr::from([10, 244, 1, last]),
        has_hostname: true,
        ports: vec![port(5432)],
    });
    let records = [
        ("db", ServiceRecords::Headless { endpoints: endpoints.collect() }),
        (
            "web",
            ServiceRecords::ClusterIp {
                addresses: vec![IpAddr::from([10, 96, 1, 1])],
                ports: vec![port(80)],
            },
        ),
        (
            "front",
            ServiceRecords::ExternalName { target: Some("web.shop.svc.cluster.local".into()) },
        ),
    ];
    for (name, records) in &records {
        index.apply(Change::of_service(&NamespacedName::new("shop", *name), Some(records)));
    }
    let names = PodNames { namespaces: vec!["shop".into()], is_own: true };
    index.apply(Change::Pod { address: IpAddr::from([10, 244, 1, 99]), names: Some(names) });
    index
}

#[test]
fn answers_of_the_cluster_allocate_nothing() {
    let index = index();
    let rules = Rules::default();
    let client = Client { transport: Transport::Udp, address: IpAddr::from([10, 244, 1, 99]) };
    let mut reply = Vec::with_capacity(2048);
    let mut server = Server::new(Config::default().into(), rules.clone(), &[], &mut || 1);
    let mut now_us = 0;
    for (name, kind, code) in [
        ("web.shop.svc.cluster.local", "A", 0),
        ("WEB.shop.svc.CLUSTER.local", "AAAA", 0),
        ("db.shop.svc.cluster.local", "A", 0),
        ("db-07.db.shop.svc.cluster.local", "A", 0),
        ("_sql._tcp.db.shop.svc.cluster.local", "SRV", 0),
        ("front.shop.svc.cluster.local", "A", 0),
        ("10-244-1-99.shop.pod.cluster.local", "A", 0),
        ("1.1.96.10.in-addr.arpa", "PTR", 0),
        ("7.1.244.10.in-addr.arpa", "PTR", 0),
        ("99.1.244.10.in-addr.arpa", "PTR", 0),
        ("nothing.svc.cluster.local", "A", 3),
        // The client's search path, within the cluster.
        ("web.shop.shop.svc.cluster.local", "A", 0),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local", "A", 0),
    ] {
        let number = kind_number(kind).expect("a type");
        let message = query(7, &name.parse().expect("a name"), number, true);
        let counted = allocation_counter::measure(|| {
            for _ in 0..ROUNDS {
                let action = answer(&message, Some(&index), &rules, client, &mut reply);
                assert_eq!(action, Action::Reply);
            }
        });
        assert_eq!(reply[3] & 0x0F, code, "{name} {kind}");
        assert_eq!(counted.count_total, 0, "{name} {kind}");
        // The same with limits, counts and rules around it, from the second question on.
        let mut ask = || {
            now_us += 10_000;
            let incoming = Incoming { client: (), from: client, message: &message };
            let random = &mut || 1;
            let handled = server.question(now_us, incoming, Some(&index), &mut reply, random);
            assert!(matches!(handled, Handled::Reply));
        };
        ask();
        let counted = allocation_counter::measure(|| (0..ROUNDS).for_each(|_| ask()));
        assert_eq!(counted.count_total, 0, "{name} {kind} by a server");
    }
    // The counter counts.
    assert_eq!(allocation_counter::measure(|| drop(Box::new(index.serial()))).count_total, 1);
}
