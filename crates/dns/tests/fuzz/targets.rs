//! What is checked of each input, wherever it comes from: the tests beside it, or a fuzzer that is
//! guided by what its inputs reach (`./x fuzz`, by `examples/fuzz.rs`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dns::config::ConfigError;
use dns::message::Query;
use dns::resolv_conf::ResolvConf;
use dns::{
    Client, Config, Handled, Incoming, Index, Name, Output, Rules, Server, Transport, corefile,
    parse_response, query,
};
use plan::zone::{ServiceRecords, Zone};

/// What is checked of any octets, and octets to begin with.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "message", check: check_message, samples: sample_messages },
    Target { name: "upstream", check: check_upstream, samples: sample_conversations },
    Target { name: "name", check: check_name, samples: sample_names },
    Target {
        name: "configuration",
        check: check_configuration,
        samples: || vec![EVERY_OPTION.into()],
    },
    Target { name: "corefile", check: check_corefile, samples: || vec![COREFILE.into()] },
    Target { name: "resolv-conf", check: check_resolv_conf, samples: || vec![RESOLV_CONF.into()] },
];

/// Times that a question may be gone on with before it has its answer: attempts, with what each
/// server says to them.
const STEPS_MAX: usize = 200;

pub const EVERY_OPTION: &str = include_str!("../../src/config/every-option.yaml");

const RESOLV_CONF: &str = "# a comment\nnameserver 192.0.2.53\nnameserver 2001:db8::53%eth0\n\
    search one.example two.example\noptions ndots:5 timeout:1\n";

pub const COREFILE: &str = ".:53 {\n    errors\n    health {\n        lameduck 5s\n    }\n    \
    kubernetes cluster.local in-addr.arpa ip6.arpa {\n        pods insecure\n        \
    fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }\n    hosts {\n        \
    192.0.2.1 one.example\n        fallthrough\n    }\n    rewrite name suffix .a.example .b.example\n    \
    template IN A nip.example {\n        match (.*)\n        answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n    }\n    \
    acl {\n        block type ANY net 10.0.0.0/8\n    }\n    dns64 64:ff9b::/96\n    \
    forward . /etc/resolv.conf tls://192.0.2.2 {\n        max_concurrent 1000\n        \
    tls_servername dns.example\n    }\n    cache 30 {\n        success 100 60\n    }\n    loop\n    \
    reload\n    loadbalance\n}\n";

/// What messages are made of: headers, names, pointers that lead somewhere or nowhere, records.
pub const PARTS: &[&[u8]] = &[
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

/// Asks for these names, and about one that is cut.
const NAMES: &[&str] = &["www.example", "docs.shop.svc.cluster.local", "x.private.example"];

/// What a server does on a question that went to it.
pub enum Said {
    Fails,
    /// These octets, with the number that they have or that of the question.
    Octets {
        octets: Vec<u8>,
        is_ours: bool,
    },
}

fn check_message(input: &[u8]) {
    if let Some((how, octets)) = input.split_first() {
        message(octets, how & 1 != 0, how & 2 != 0);
    }
}

pub fn message(octets: &[u8], over_tcp: bool, is_ruled: bool) {
    if let Ok(read) = Query::parse(octets) {
        let again = query(read.id, &read.name, read.kind, read.edns.is_some());
        let again = Query::parse(&again).expect("what we write ourselves");
        assert_eq!((again.id, &again.name, again.kind), (read.id, &read.name, read.kind));
    }
    if let Some(response) = parse_response(octets) {
        let records = response.answers.iter().chain(&response.authority);
        // A record takes at least eleven octets, and names within it are written out.
        assert!(records.clone().count() * 11 <= octets.len());
        for record in records {
            assert!(record.owner.wire().len() <= 255);
            assert!(record.data.len() <= octets.len() + 2 * 255);
            let _ = record.data_text();
        }
    }
    let mut server = server(if is_ruled { every_option() } else { Config::default() });
    let transport = if over_tcp { Transport::Tcp } else { Transport::Udp };
    let from = Client { transport, address: Ipv4Addr::new(10, 244, 1, 5).into() };
    let incoming = Incoming { client: 1, from, message: octets };
    let mut reply = Vec::new();
    if let Handled::Reply = server.question(0, incoming, Some(&index()), &mut reply, &mut || 7) {
        assert_eq!(&reply[..2], &octets[..2], "the client's number");
        assert!(reply[2] & 0x80 != 0 && octets[2] & 0x80 == 0, "an answer, to a question");
        assert!(over_tcp || reply.len() <= 1232);
        assert!(reply.len() == 12 || parse_response(&reply).is_some());
    }
}

fn check_upstream(input: &[u8]) {
    let Some((how, mut rest)) = input.split_first() else { return };
    let mut said = vec![];
    while let [what, length, octets @ ..] = rest {
        let (octets, behind) = octets.split_at(octets.len().min(usize::from(*length) * 4));
        let is_ours = what & 1 != 0;
        said.push(match what & 2 {
            0 => Said::Octets { octets: octets.into(), is_ours },
            _ => Said::Fails,
        });
        rest = behind;
    }
    upstream(said, NAMES[usize::from(how >> 1) % NAMES.len()], how & 1 != 0);
}

/// Whatever a server says, a question has one answer, in time.
pub fn upstream(said: Vec<Said>, name: &str, is_ruled: bool) {
    let mut server = server(if is_ruled { every_option() } else { Config::default() });
    let message = query(9, &name.parse().expect("a name"), 1, true);
    let from = Client { transport: Transport::Udp, address: IpAddr::from([10, 0, 0, 5]) };
    let incoming = Incoming { client: 1, from, message: &message };
    let (mut now_us, mut answers, mut reply) = (0, 0, Vec::new());
    let handled = server.question(now_us, incoming, Some(&index()), &mut reply, &mut || 7);
    let Handled::Wait(outputs) = handled else { return };
    let mut open = split(outputs, &mut answers);
    let mut said = said.into_iter();
    for _ in 0..STEPS_MAX {
        if answers > 0 && open.is_empty() {
            break;
        }
        let outputs = match (open.pop(), said.next()) {
            (Some((exchange, _)), Some(Said::Fails)) => server.fail(now_us, exchange, &mut || 7),
            (Some((exchange, from)), Some(Said::Octets { mut octets, is_ours })) => {
                if is_ours && octets.len() > 2 {
                    // The number that the random source above gives.
                    octets[..2].copy_from_slice(&7_u16.to_be_bytes());
                }
                server.receive(now_us, exchange, from, &octets, &mut || 7)
            }
            _ => {
                let next = server.next_deadline_ms().map_or(now_us, |at| at * 1000);
                now_us = next.max(now_us + 1000);
                server.tick(now_us, &mut || 7)
            }
        };
        open.extend(split(outputs, &mut answers));
    }
    assert_eq!(answers, 1);
    assert_eq!(server.pending(), 0);
}

fn check_name(input: &[u8]) {
    name_in(input, 0);
    if let Some((at, octets)) = input.split_first() {
        name_in(octets, usize::from(*at));
    }
    if let Ok(text) = std::str::from_utf8(input) {
        name_of(text);
    }
}

pub fn name_of(text: &str) {
    // What is written with escapes is for people alone.
    let is_plain = text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'\\');
    if let Some(name) = text.parse::<Name>().ok().filter(|_| is_plain) {
        assert_eq!(name.to_string().parse::<Name>(), Ok(name.clone()), "{name}");
    }
}

pub fn name_in(octets: &[u8], at: usize) {
    if let Ok((name, end)) = Name::read(octets, at) {
        assert!(name.wire().len() <= 255 && end <= octets.len());
        assert_eq!(Name::read(name.wire(), 0), Ok((name.clone(), name.wire().len())));
    }
}

fn check_configuration(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        configuration(text);
    }
}

pub fn configuration(text: &str) {
    match Config::parse(text) {
        Ok(config) => drop(server(config)),
        Err(ConfigError::Field { line, problem }) => {
            let ends = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            let lines = text.replace("\r\n", "\n").split(ends).count();
            assert!((1..=lines + 1).contains(&line), "{line}: {text}");
            assert!(!problem.is_empty());
        }
        Err(_) => {}
    }
}

fn check_corefile(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        corefile_of(text);
    }
}

pub fn corefile_of(text: &str) {
    let Ok(imported) = corefile::import(text) else { return };
    // Values that are wrong stay wrong, and are refused by their place; the form is right.
    let form = serde_yaml_ng::from_str::<serde::de::IgnoredAny>(&imported.yaml);
    assert!(form.is_ok(), "{form:?}\n{}\nof\n{text}", imported.yaml);
    if let Err(error) = Config::parse(&imported.yaml) {
        let said = error.to_string();
        assert!(!said.contains("unknown field"), "{said}\n{}", imported.yaml);
    }
}

fn check_resolv_conf(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        resolv_conf(text);
    }
}

pub fn resolv_conf(text: &str) {
    let read = ResolvConf::parse(text);
    assert!(read.server_addresses().len() <= text.lines().count());
    let _ = read.candidates("web.shop");
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

pub fn every_option() -> Config {
    Config::parse(EVERY_OPTION).expect("a configuration")
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

/// A question and an answer.
fn sample_messages() -> Vec<Vec<u8>> {
    let asked = query(7, &"web.shop.svc.cluster.local".parse().expect("a name"), 1, true);
    let answer =
        [b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0", PARTS[4], PARTS[12], PARTS[5], PARTS[16]];
    [asked, answer.concat()]
        .into_iter()
        .flat_map(|one| [0_u8, 3].map(|how| [&[how], one.as_slice()].concat()))
        .collect()
}

/// What an upstream server says: an answer, and a lie before it.
fn sample_conversations() -> Vec<Vec<u8>> {
    let answer =
        [b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0", PARTS[4], PARTS[12], PARTS[5], PARTS[16]];
    let mut answer = answer.concat();
    answer.resize(answer.len().next_multiple_of(4), 0);
    let said = |what: u8| [&[what, (answer.len() / 4) as u8], answer.as_slice()].concat();
    vec![
        [&[0], said(1).as_slice()].concat(),
        [&[3], said(0).as_slice(), &said(2), &said(1)].concat(),
    ]
}

fn sample_names() -> Vec<Vec<u8>> {
    vec![b"_sql._tcp.db-0.shop.svc.cluster.local.".into(), [b"\x05", PARTS[3], PARTS[5]].concat()]
}
