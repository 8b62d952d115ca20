//! Which objects have names (`namespaces`, `namespace_labels`, `labels`, `noendpoints` and
//! `endpoint_pod_names` of CoreDNS's plugin `kubernetes`; features.md, table C): from the text of the
//! configuration, over the feed, to the answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dns::feed::{Change, Follower, News, Place, Publisher, Reader, Settings};
use dns::message::kind;
use dns::{Action, Client, Config, Index, Rules, Transport, answer, parse_response, query};
use model::kinds::{Endpoint, EndpointPort, SERVICE_NAME_LABEL, TargetReference};
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, Protocol, Service, World};
use plan::zone::{
    Exposed, Namespaces, PodNames, PodRecords, ServiceKind, ServiceNews, service_records,
};

/// Namespaces, and their labels `team`.
const NAMESPACES: [(&str, &str); 2] = [("shop", "sales"), ("bank", "money")];

fn config() -> ClusterConfig {
    ClusterConfig {
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        pod_cidrs: vec!["10.244.0.0/16".parse().expect("a range")],
        ..ClusterConfig::default()
    }
}

fn service(namespace: &str, name: &str, address: &str, tier: &str) -> Object {
    let mut service = Service::default();
    (service.metadata.namespace, service.metadata.name) = (namespace.into(), name.into());
    service.metadata.labels.insert("tier".into(), tier.into());
    service.spec.cluster_ips = vec![address.into()];
    Object::Service(Arc::new(service))
}

fn endpoint(address: &str, hostname: &str, pod: &str) -> Endpoint {
    Endpoint {
        addresses: vec![address.into()],
        hostname: hostname.into(),
        target_ref: Some(Box::new(TargetReference { name: pod.into() })),
        ..Endpoint::default()
    }
}

fn world() -> World {
    let mut world = World::default();
    for object in [
        service("shop", "web", "10.96.0.1", "front"),
        service("shop", "db", "None", "back"),
        service("bank", "vault", "10.96.0.2", "back"),
    ] {
        world.set(object);
    }
    let mut slice = EndpointSlice {
        endpoints: vec![
            endpoint("10.244.1.5", "first", "db-5f7d"),
            endpoint("10.244.1.6", "", "db-9c2a"),
            endpoint("10.244.1.7", "", "db.dotted"),
        ],
        ..EndpointSlice::default()
    };
    (slice.metadata.namespace, slice.metadata.name) = ("shop".into(), "db-1".into());
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "db".into());
    slice.ports =
        vec![EndpointPort { name: "sql".into(), protocol: Protocol::Tcp, port: Some(5432) }];
    world.set(Object::EndpointSlice(Arc::new(slice)));
    world
}

/// What the agent tells by a choice.
fn publish(publisher: &mut Publisher, options: &str) {
    let config = Config::parse(&format!("kubernetes: {{{options}}}")).expect(options);
    let exposure = config.kubernetes.exposure();
    let has_labels = |team: &str| match &exposure.namespaces {
        Namespaces::Labelled(labels) => {
            labels.matches(&BTreeMap::from([("team".to_owned(), team.to_owned())]))
        }
        _ => false,
    };
    let chosen = NAMESPACES.iter().filter(|(_, team)| has_labels(team));
    let labelled = chosen.map(|(name, _)| (*name).to_owned()).collect();
    let exposed = Exposed { exposure, labelled };
    let ranges = publisher.index().settings().reverse_ranges.clone();
    publisher.set(&ranges, &exposed);
    let world = world();
    let changes: Vec<Change> = world
        .services()
        .map(|service| {
            let key = service.metadata.key();
            let records = service_records(&world, &key, &exposed);
            Change::of_news(&key, &ServiceNews { records, kind: ServiceKind::of(&service) })
        })
        .collect();
    publisher.publish(changes, 0).expect("fits");
    let pods = NAMESPACES.iter().zip([5, 50]).map(|((namespace, _), last)| {
        let names = PodNames { namespaces: vec![(*namespace).into()], is_own: true };
        Change::Pod { address: IpAddr::from([10, 244, 1, last]), names: Some(names) }
    });
    publisher.publish(pods, 0).expect("fits");
}

/// Gives a worker all that a reader lacks.
fn push_all(publisher: &Publisher, reader: &mut Reader, follower: &mut Follower) {
    while let Some(frame) = publisher.next_frame(reader) {
        follower.push(&frame.expect("fits"));
    }
}

/// What a worker with a choice has of the zone.
fn follow(publisher: &Publisher, options: &str) -> Option<Index> {
    let config = Config::parse(&format!("kubernetes: {{{options}}}")).expect(options);
    let mut follower = Follower::new(config.kubernetes.exposure());
    push_all(publisher, &mut Reader::default(), &mut follower);
    let mut zone = None;
    while let Some(received) = follower.next_frame().expect("a good stream") {
        match received.news {
            Some(News::Zone(index)) => zone = Some(*index),
            Some(News::Other(domain)) => assert_eq!(domain, "cluster.local"),
            Some(News::Changes { .. }) => panic!("a snapshot has none"),
            None => {}
        }
    }
    zone
}

/// The response code and the data of the answers to one question.
fn asked(index: &Index, pods: PodRecords, name: &str, kind: u16) -> String {
    let message = query(1, &name.parse().expect("a name"), kind, true);
    let client = Client { transport: Transport::Tcp, address: Ipv4Addr::LOCALHOST.into() };
    let rules = Rules { pods: Some(pods), ..Rules::default() };
    let mut reply = Vec::new();
    assert_eq!(answer(&message, Some(index), &rules, client, &mut reply), Action::Reply, "{name}");
    let response = parse_response(&reply).expect("a response");
    let mut data: Vec<String> = response.answers.iter().map(|one| one.data_text()).collect();
    data.sort();
    match response.rcode {
        0 => data.join(" "),
        3 => "absent".into(),
        code => panic!("{name}: response code {code}"),
    }
}

const WEB: &str = "web.shop.svc.cluster.local";
const DB: &str = "db.shop.svc.cluster.local";
const VAULT: &str = "vault.bank.svc.cluster.local";
const SHOP_POD: &str = "10-244-1-5.shop.pod.cluster.local";
const BANK_POD: &str = "10-244-1-50.bank.pod.cluster.local";
const ALL_OF_DB: &str = "10.244.1.5 10.244.1.6 10.244.1.7";

#[test]
fn what_was_chosen_has_names_and_nothing_else() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        (
            "",
            &[
                (WEB, "10.96.0.1"),
                (DB, ALL_OF_DB),
                (VAULT, "10.96.0.2"),
                (SHOP_POD, "10.244.1.5"),
                (BANK_POD, "10.244.1.50"),
                ("first.db.shop.svc.cluster.local", "10.244.1.5"),
                ("db-9c2a.db.shop.svc.cluster.local", "absent"),
                ("10-244-1-6.db.shop.svc.cluster.local", "10.244.1.6"),
            ],
        ),
        (
            "namespaces: [shop, nobody]",
            &[
                (WEB, "10.96.0.1"),
                (DB, ALL_OF_DB),
                (VAULT, "absent"),
                ("bank.svc.cluster.local", "absent"),
                ("shop.svc.cluster.local", ""),
                ("nobody.svc.cluster.local", "absent"),
                (SHOP_POD, "10.244.1.5"),
                (BANK_POD, "absent"),
                ("bank.pod.cluster.local", "absent"),
            ],
        ),
        (
            "namespace_labels: 'team in (money, gold)'",
            &[
                (WEB, "absent"),
                (VAULT, "10.96.0.2"),
                (SHOP_POD, "absent"),
                (BANK_POD, "10.244.1.50"),
            ],
        ),
        (
            "labels: 'tier=back'",
            &[(WEB, "absent"), (DB, ALL_OF_DB), (VAULT, "10.96.0.2"), (SHOP_POD, "10.244.1.5")],
        ),
        (
            "labels: '!tier'",
            &[(WEB, "absent"), (VAULT, "absent"), ("shop.svc.cluster.local", "absent")],
        ),
        (
            "noendpoints: true",
            &[
                (WEB, "10.96.0.1"),
                (DB, "absent"),
                ("first.db.shop.svc.cluster.local", "absent"),
                (VAULT, "10.96.0.2"),
            ],
        ),
        (
            "endpoint_pod_names: true",
            &[
                (DB, ALL_OF_DB),
                ("first.db.shop.svc.cluster.local", "10.244.1.5"),
                ("db-5f7d.db.shop.svc.cluster.local", "absent"),
                ("db-9c2a.db.shop.svc.cluster.local", "10.244.1.6"),
                ("10-244-1-6.db.shop.svc.cluster.local", "absent"),
                ("10-244-1-7.db.shop.svc.cluster.local", "10.244.1.7"),
            ],
        ),
        (
            "namespaces: [shop], labels: tier=back, endpoint_pod_names: true",
            &[(WEB, "absent"), (DB, ALL_OF_DB), (VAULT, "absent")],
        ),
    ];
    let mut publisher = Publisher::new(Settings::new(&config()), 1);
    // One after the other, as a configuration is changed.
    for (options, questions) in rows {
        publish(&mut publisher, options);
        let index = follow(&publisher, options).expect("a zone");
        for (name, expected) in *questions {
            let found = asked(&index, PodRecords::Verified, name, kind::A);
            assert_eq!(found, *expected, "{name} with {options:?}");
        }
    }
}

#[test]
fn addresses_lead_back_to_names_that_are_there() {
    let mut publisher = Publisher::new(Settings::new(&config()), 1);
    for (options, address, expected) in [
        ("", "5.1.244.10", "first.db.shop.svc.cluster.local."),
        ("", "6.1.244.10", "absent"),
        ("endpoint_pod_names: true", "6.1.244.10", "db-9c2a.db.shop.svc.cluster.local."),
        ("noendpoints: true", "5.1.244.10", "10-244-1-5.shop.pod.cluster.local."),
        ("", "50.1.244.10", "10-244-1-50.bank.pod.cluster.local."),
        ("namespaces: [shop]", "50.1.244.10", "absent"),
        ("namespaces: [shop]", "2.0.96.10", "absent"),
        ("namespaces: [bank]", "2.0.96.10", "vault.bank.svc.cluster.local."),
    ] {
        publish(&mut publisher, options);
        let index = follow(&publisher, options).expect("a zone");
        let name = format!("{address}.in-addr.arpa");
        let found = asked(&index, PodRecords::Verified, &name, kind::PTR);
        assert_eq!(found, expected, "{name} with {options:?}");
    }
}

/// CoreDNS's `pods insecure` looks at namespaces too, where they are chosen.
#[test]
fn names_of_pods_that_nobody_verifies_are_of_chosen_namespaces() {
    let mut publisher = Publisher::new(Settings::new(&config()), 1);
    for (options, name, expected) in [
        ("", "192-0-2-1.bank.pod.cluster.local", "192.0.2.1"),
        ("namespaces: [shop]", "192-0-2-1.bank.pod.cluster.local", "absent"),
        ("namespaces: [shop]", "192-0-2-1.shop.pod.cluster.local", "192.0.2.1"),
    ] {
        publish(&mut publisher, options);
        let index = follow(&publisher, options).expect("a zone");
        assert_eq!(asked(&index, PodRecords::Insecure, name, kind::A), expected, "{options:?}");
    }
}

/// A worker never answers by a choice that its configuration does not make: neither while the agent
/// does not know its own, nor by a file that it kept.
#[test]
fn a_zone_of_another_choice_is_passed_over() {
    let mut publisher = Publisher::new(Settings::new(&config()), 1);
    publish(&mut publisher, "namespaces: [shop]");
    assert!(follow(&publisher, "").is_none());
    assert!(follow(&publisher, "namespaces: [bank]").is_none());
    assert!(follow(&publisher, "namespaces: [shop], noendpoints: true").is_none());
    let config = Config::parse("kubernetes: {namespaces: [shop]}").expect("a configuration");
    let (mut follower, mut places) = (Follower::default(), vec![]);
    let mut served = 0;
    let mut reader = Reader::default();
    push_all(&publisher, &mut reader, &mut follower);
    while let Some(received) = follower.next_frame().expect("a good stream") {
        places.push(received.place);
        served += usize::from(matches!(received.news, Some(News::Zone(_))));
    }
    assert!(places.iter().all(|place| *place == Place::PassedOver), "{places:?}");
    publisher
        .publish(
            [Change::Client { range: "192.0.2.0/24".parse().expect("a range"), is_there: true }],
            0,
        )
        .expect("fits");
    push_all(&publisher, &mut reader, &mut follower);
    let change = follower.next_frame().expect("a good stream").expect("a frame");
    assert!(
        change.news.is_none() && change.place == Place::PassedOver,
        "of a zone that is not had"
    );
    // The same stream is of use as soon as the choice is the worker's.
    follower.want(config.kubernetes.exposure());
    push_all(&publisher, &mut Reader::default(), &mut follower);
    while let Some(received) = follower.next_frame().expect("a good stream") {
        served += usize::from(matches!(received.news, Some(News::Zone(_))));
    }
    assert_eq!(served, 1);
}
