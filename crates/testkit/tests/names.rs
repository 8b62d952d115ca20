//! Cluster DNS and the specification mean the same for every name: the zone that the plan makes,
//! served by the protocol core, against the oracle's direct reading of the objects.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dns::message::{kind, rcode};
use dns::{Action, Client, Index, Name, Rules, Transport};
use model::World;
use model::world::Object;
use oracle::name::{Answer, Record, RecordType};
use proptest::prelude::*;
use testkit::objects;
use testkit::random::{self, Choices};

/// Random worlds.
const WORLDS: u32 = 500;
/// Questions for each.
const QUESTIONS: usize = 24;

/// What the server did, in the oracle's words.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    Answer(Answer),
    /// It asks another server: for names that are not the cluster's, and for what an ExternalName
    /// stands for.
    Forwarded,
}

fn serve(index: &Index, name: &str, asked: RecordType) -> Served {
    let number = match asked {
        RecordType::A => kind::A,
        RecordType::Aaaa => kind::AAAA,
        RecordType::Srv => kind::SRV,
        RecordType::Ptr => kind::PTR,
        RecordType::Txt => kind::TXT,
    };
    let query = dns::query(7, &name.parse().expect("a name"), number, true);
    let client = Client { transport: Transport::Tcp, address: Ipv4Addr::LOCALHOST.into() };
    let mut reply = Vec::new();
    match dns::answer(&query, Some(index), &Rules::default(), client, &mut reply) {
        Action::Forward(_) => return Served::Forwarded,
        Action::Reply => {}
        Action::Drop => panic!("a good query for {name} was dropped"),
    }
    let response = dns::parse_response(&reply).expect("a response");
    let records: BTreeSet<Record> =
        response.answers.iter().map(|record| record_of(record.kind, &record.data)).collect();
    Served::Answer(match (response.rcode, records.is_empty()) {
        (rcode::NAME_ERROR, true) => Answer::NoSuchName,
        (rcode::NO_ERROR, true) => Answer::NoData,
        (rcode::NO_ERROR, false) => Answer::Records(records),
        other => panic!("{name}: {other:?}"),
    })
}

fn record_of(number: u16, data: &[u8]) -> Record {
    let name = |from: usize| {
        let (name, _) = Name::read(data, from).expect("a name");
        let labels: Vec<_> = name.labels().map(String::from_utf8_lossy).collect();
        labels.join(".")
    };
    match number {
        kind::A => {
            let octets: [u8; 4] = data.try_into().expect("four octets");
            Record::Address(IpAddr::V4(Ipv4Addr::from(octets)))
        }
        kind::AAAA => {
            let octets: [u8; 16] = data.try_into().expect("sixteen octets");
            Record::Address(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        kind::SRV => Record::Srv(u16::from_be_bytes([data[4], data[5]]), name(6)),
        kind::PTR => Record::Ptr(name(0)),
        kind::TXT => Record::Txt(String::from_utf8_lossy(&data[1..]).into_owned()),
        other => panic!("a record of type {other}"),
    }
}

fn question(choices: &mut Choices<'_>) -> (String, RecordType) {
    let service = choices.one_of(&["s0", "s1", "s2", "s3", "S0", "none"]);
    let base = match choices.below(10) {
        0 => return reverse(choices),
        1 => choices.one_of(&["example.com", "cluster.local", "svc.cluster.local"]).to_string(),
        2 => choices
            .one_of(&[
                "default.svc.cluster.local",
                "other.svc.cluster.local",
                "dns-version.cluster.local",
                "nothing.cluster.local",
            ])
            .to_string(),
        _ => format!("{service}.default.svc.cluster.local"),
    };
    let below = match choices.below(6) {
        0..=2 => String::new(),
        3 => {
            let port = choices.one_of(&["_p0", "_p1", "_P2", "_none"]);
            let transport = choices.one_of(&["_tcp", "_udp"]);
            format!("{port}.{transport}.")
        }
        4 => choices.one_of(&["h0.", "h1.", "10-244-1-10.", "none.", "_tcp."]).to_string(),
        _ => choices.one_of(&["a.b.", "a._tcp.", "_p0.h0."]).to_string(),
    };
    let kinds =
        [RecordType::A, RecordType::Aaaa, RecordType::Srv, RecordType::Txt, RecordType::Ptr];
    (format!("{below}{base}"), choices.one_of(&kinds))
}

fn reverse(choices: &mut Choices<'_>) -> (String, RecordType) {
    let names = [
        "20.0.96.10.in-addr.arpa",
        "21.0.96.10.in-addr.arpa",
        "99.0.96.10.in-addr.arpa",
        "10.1.244.10.in-addr.arpa",
        "11.2.244.10.in-addr.arpa",
        "10.2.0.192.in-addr.arpa",
    ];
    (choices.one_of(&names).to_string(), choices.one_of(&[RecordType::Ptr, RecordType::A]))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: WORLDS, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_zone_answers_what_the_specification_says(
        world in prop::collection::vec(any::<u8>(), 0..300),
        questions in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let config = objects::config();
        let objects: Vec<Object> = random::services(&mut Choices::new(&world), &config);
        let mut world = World::default();
        for object in objects {
            world.set(object);
        }
        let index = Index::new(plan::zone::zone(&world, &config), 1);
        let mut choices = Choices::new(&questions);
        for _ in 0..QUESTIONS {
            let (name, kind) = question(&mut choices);
            let meant = oracle::name::answer(&world, &config, &name, kind);
            let is_alias = matches!(&meant, Answer::Records(records)
                if records.iter().any(|record| matches!(record, Record::Cname(_))));
            let expected = match meant {
                Answer::NotOurs => Served::Forwarded,
                _ if is_alias => Served::Forwarded,
                meant => Served::Answer(meant),
            };
            prop_assert_eq!(serve(&index, &name, kind), expected, "{} {:?}", name, kind);
        }
    }
}
