//! Octets and texts from outside, made of what real ones are made of: no reader panics, runs long
//! or makes much of little, and whatever servers say, each question has one answer. The suite has
//! the same inputs every time; `DNS_FUZZ` asks for so many others a target.
//!
//! They are made by what is known of the formats, not guided by what they reach: the usual fuzzers
//! that are (`cargo fuzz`) want a nightly compiler, and this workspace is built by a stable one alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dns::config::ConfigError;
use dns::message::{Query, flag};
use dns::resolv_conf::ResolvConf;
use dns::{
    Client, Config, Handled, Incoming, Index, Name, Output, Rules, Server, Transport, corefile,
    parse_response, query,
};
use plan::zone::{ServiceRecords, Zone};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

/// Inputs of each target in the suite.
const INPUTS: u32 = 256;
/// Times that a question may be gone on with before it has its answer: attempts, with what each
/// server says to them.
const STEPS_MAX: usize = 200;

/// What messages are made of: headers, names, pointers that lead somewhere or nowhere, records.
const PARTS: &[&[u8]] = &[
    b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0",
    b"\x12\x34\x81\x80\0\x01\0\x02\0\x01\0\x01",
    b"\x12\x34\x83\x83\0\x01\xFF\xFF\0\0\0\0",
    b"\x03web\x04shop\x03svc\x07cluster\x05local\0",
    b"\x03www\x07example\0",
    b"\xC0\x0C",
    b"\xC0\x0D",
    b"\xC0\xFF",
    b"\xFF\xFF",
    b"\x3F",
    b"\x40",
    b"\0",
    b"\0\x01\0\x01",
    b"\0\xFF\0\x01",
    b"\0\x0D\0\x01",
    b"\0\x1C\0\x01",
    b"\0\x01\0\x01\0\0\0\x3C\0\x04\xC0\0\x02\x01",
    b"\0\x05\0\x01\0\0\0\x3C\0\x02\xC0\x0C",
    b"\0\x06\0\x01\0\0\0\x3C\0\x18\xC0\x0C\xC0\x0C\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x01",
    b"\0\x21\0\x01\0\0\0\x3C\0\x08\0\0\0\0\0\x50\xC0\x0C",
    b"\0\0\x29\x04\xD0\0\0\x80\0\0\0",
    b"\0\0\x29\xFF\xFF\0\x01\0\0\0\x04",
];

/// What configurations and Corefiles are made of, beside what stands in the samples.
const WORDS: &[&str] = &[
    "",
    "-",
    ".",
    "0",
    "-1",
    "99999999999999999999",
    "1h",
    "5x",
    "10.0.0.0/8",
    "10.0.0.0/99",
    "tls://192.0.2.1",
    "https://[2001:db8::1]:443/x",
    "192.0.2.1:70000",
    "example.org",
    "a..b",
    "{}",
    "[]",
    "{",
    "}",
    "[",
    "(((",
    "(?P<a>",
    "{{ .Name }}",
    "'",
    "\"",
    "true",
    "&a",
    "*a",
    "\t",
    "\u{fffd}",
];

const COREFILE: &str = ".:53 {\n    errors\n    health {\n        lameduck 5s\n    }\n    \
    kubernetes cluster.local in-addr.arpa ip6.arpa {\n        pods insecure\n        \
    fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }\n    hosts {\n        \
    192.0.2.1 one.example\n        fallthrough\n    }\n    rewrite name suffix .a.example .b.example\n    \
    template IN A nip.example {\n        match (.*)\n        answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n    }\n    \
    acl {\n        block type ANY net 10.0.0.0/8\n    }\n    dns64 64:ff9b::/96\n    \
    forward . /etc/resolv.conf tls://192.0.2.2 {\n        max_concurrent 1000\n        \
    tls_servername dns.example\n    }\n    cache 30 {\n        success 100 60\n    }\n    loop\n    \
    reload\n    loadbalance\n}\n";

fn config() -> ProptestConfig {
    let usual = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var("DNS_FUZZ") {
        Ok(count) => ProptestConfig { cases: count.parse().expect("a count"), ..usual },
        Err(_) => ProptestConfig { cases: INPUTS, rng_seed: RngSeed::Fixed(1), ..usual },
    }
}

/// Octets made of parts, some of them damaged.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => select(PARTS).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
        1 => (select(PARTS), 1usize..200).prop_map(|(part, times)| part.repeat(times)),
    ];
    let flips = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (proptest::collection::vec(part, 0..12), flips).prop_map(|(parts, flips)| {
        let mut octets = parts.concat();
        for (at, octet) in flips {
            if !octets.is_empty() {
                let at = at.index(octets.len());
                octets[at] = octet;
            }
        }
        octets
    })
}

/// A sample with words put in, left out and doubled.
fn damaged(sample: &'static str) -> impl Strategy<Value = String> {
    let edit = (any::<proptest::sample::Index>(), 0u8..4, select(WORDS));
    proptest::collection::vec(edit, 1..6).prop_map(move |edits| {
        // Spaces stay with the words behind them, since some of them mean something.
        let mut words: Vec<&str> = sample.split_inclusive([' ', '\n']).collect();
        for (at, how, word) in edits {
            let at = at.index(words.len().max(1));
            match how {
                _ if words.is_empty() => {}
                0 => drop(words.remove(at)),
                1 => words.insert(at, word),
                2 => words.insert(at, words[at]),
                _ => words[at] = word,
            }
        }
        words.concat()
    })
}

fn index() -> Index {
    let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
    let web = ServiceRecords::ClusterIp { addresses: vec![[10, 96, 1, 1].into()], ports: vec![] };
    let docs = ServiceRecords::ExternalName { target: Some("www.example".into()) };
    let services = zone.namespaces.entry("shop".into()).or_default();
    services.insert("web".into(), web);
    services.insert("docs".into(), docs);
    Index::new(zone, 1)
}

fn server(config: Config) -> Server<u8> {
    let upstream: SocketAddr = "192.0.2.53:53".parse().expect("an address");
    Server::new(Arc::new(config), Rules::default(), &[upstream], &mut || 7)
}

fn every_option() -> Config {
    Config::parse(include_str!("../src/config/every-option.yaml")).expect("a configuration")
}

/// The one answer among outputs, and the queries that go out.
fn split(outputs: Vec<Output<u8>>, answers: &mut usize) -> Vec<(u64, SocketAddr)> {
    let mut sent = Vec::new();
    for output in outputs {
        match output {
            Output::Reply { message, .. } => {
                *answers += 1;
                assert!(message.len() <= 1232, "an answer that a datagram carries");
            }
            Output::Send { exchange, to, .. } => sent.push((exchange, to.address)),
            Output::Close { .. } => {}
        }
    }
    sent
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn messages_are_read_or_refused(octets in octets(), over_tcp in any::<bool>(), ruled in any::<bool>()) {
        if let Ok(read) = Query::parse(&octets) {
            let again = query(read.id, &read.name, read.kind, read.edns.is_some());
            let again = Query::parse(&again).expect("what we write ourselves");
            prop_assert_eq!((again.id, &again.name, again.kind), (read.id, &read.name, read.kind));
        }
        if let Some(response) = parse_response(&octets) {
            let records = response.answers.iter().chain(&response.authority);
            // A record takes at least eleven octets, and names within it are written out.
            prop_assert!(records.clone().count() * 11 <= octets.len());
            for record in records {
                prop_assert!(record.owner.wire().len() <= 255);
                prop_assert!(record.data.len() <= octets.len() + 2 * 255);
                let _ = record.data_text();
            }
        }
        let mut server = server(if ruled { every_option() } else { Config::default() });
        let transport = if over_tcp { Transport::Tcp } else { Transport::Udp };
        let from = Client { transport, address: Ipv4Addr::new(10, 244, 1, 5).into() };
        let incoming = Incoming { client: 1, from, message: &octets };
        let mut reply = Vec::new();
        if let Handled::Reply = server.question(0, incoming, Some(&index()), &mut reply, &mut || 7) {
            prop_assert_eq!(&reply[..2], &octets[..2], "the client's number");
            prop_assert!(reply[2] & 0x80 != 0 && octets[2] & 0x80 == 0, "an answer, to a question");
            prop_assert!(over_tcp || reply.len() <= 1232);
            prop_assert!(reply.len() == 12 || parse_response(&reply).is_some());
        }
    }

    /// Whatever a server says, a question has one answer, in time.
    #[test]
    fn each_question_has_one_answer(
        said in proptest::collection::vec((octets(), any::<bool>(), any::<bool>()), 0..8),
        name in select(&["www.example", "docs.shop.svc.cluster.local", "x.private.example"][..]),
        ruled in any::<bool>(),
    ) {
        let mut server = server(if ruled { every_option() } else { Config::default() });
        let message = query(9, &name.parse().expect("a name"), 1, true);
        let from = Client { transport: Transport::Udp, address: IpAddr::from([10, 0, 0, 5]) };
        let incoming = Incoming { client: 1, from, message: &message };
        let (mut now_us, mut answers, mut reply) = (0, 0, Vec::new());
        let handled = server.question(now_us, incoming, Some(&index()), &mut reply, &mut || 7);
        let Handled::Wait(outputs) = handled else { return Ok(()) };
        let mut open = split(outputs, &mut answers);
        let mut said = said.into_iter();
        for _ in 0..STEPS_MAX {
            if answers > 0 && open.is_empty() {
                break;
            }
            let outputs = match (open.pop(), said.next()) {
                (Some((exchange, _)), Some((_, true, _))) => server.fail(now_us, exchange, &mut || 7),
                (Some((exchange, from)), Some((mut octets, _, is_ours))) => {
                    if is_ours && octets.len() > 2 {
                        // The number that the random source above gives.
                        octets[..2].copy_from_slice(&7_u16.to_be_bytes());
                    }
                    server.receive(now_us, exchange, from, &octets, &mut || 7)
                }
                _ => {
                    now_us = server.next_deadline_ms().map_or(now_us, |at| at * 1000).max(now_us + 1000);
                    server.tick(now_us, &mut || 7)
                }
            };
            open.extend(split(outputs, &mut answers));
        }
        prop_assert_eq!(answers, 1);
        prop_assert_eq!(server.pending(), 0);
    }

    #[test]
    fn names_are_read_or_refused(text in "[a-zA-Z0-9_.\\\\*\u{0}-\u{ff}-]{0,300}", octets in octets(), at in 0usize..64) {
        // What is written with escapes is for people alone.
        let is_plain = text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'\\');
        if let Some(name) = text.parse::<Name>().ok().filter(|_| is_plain) {
            prop_assert_eq!(name.to_string().parse::<Name>(), Ok(name.clone()), "{}", name);
        }
        if let Ok((name, end)) = Name::read(&octets, at) {
            prop_assert!(name.wire().len() <= 255 && end <= octets.len());
            prop_assert_eq!(Name::read(name.wire(), 0), Ok((name.clone(), name.wire().len())));
        }
    }

    #[test]
    fn configurations_are_read_or_refused_with_a_line(
        text in damaged(include_str!("../src/config/every-option.yaml")),
    ) {
        match Config::parse(&text) {
            Ok(config) => drop(server(config)),
            Err(ConfigError::Field { line, problem }) => {
                prop_assert!((1..=text.lines().count() + 1).contains(&line), "{line}: {text}");
                prop_assert!(!problem.is_empty());
            }
            Err(_) => {}
        }
    }

    #[test]
    fn corefiles_are_translated_into_configurations(text in damaged(COREFILE)) {
        let Ok(imported) = corefile::import(&text) else { return Ok(()) };
        // Values that are wrong stay wrong, and are refused by their place; the form is right.
        let form = serde_yaml_ng::from_str::<serde::de::IgnoredAny>(&imported.yaml);
        prop_assert!(form.is_ok(), "{:?}\n{}\nof\n{text}", form, imported.yaml);
        if let Err(error) = Config::parse(&imported.yaml) {
            let said = error.to_string();
            prop_assert!(!said.contains("unknown field"), "{said}\n{}", imported.yaml);
        }
    }

    #[test]
    fn resolver_configurations_are_read(text in "(nameserver|search|options|domain|#|;| |\n|\t|[0-9a-f.:%]{1,9}){0,40}") {
        let read = ResolvConf::parse(&text);
        prop_assert!(read.server_addresses().len() <= text.lines().count());
        let _ = read.candidates("web.shop");
    }
}

#[test]
fn the_samples_are_good() {
    assert!(every_option().dns64.is_some());
    let imported = corefile::import(COREFILE).expect("a Corefile");
    Config::parse(&imported.yaml).expect("a configuration");
    let whole = [PARTS[1], PARTS[4], PARTS[12], PARTS[5], PARTS[16]].concat();
    let whole = [&whole[..6], &[0, 1, 0, 0, 0, 0], &whole[12..]].concat();
    let response = parse_response(&whole).expect("a response");
    assert_eq!((response.answers.len(), response.flags & flag::RESPONSE), (1, flag::RESPONSE));
}
