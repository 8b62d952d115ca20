use super::*;
use crate::message::kind;
use crate::{Action, Client, Index, Rules, answer};
use plan::zone::{ServiceRecords, Zone};

const CLIENT: [u8; 4] = [10, 240, 0, 7];
const SERVERS: [&str; 2] = ["192.0.2.1:53", "192.0.2.2:53"];

/// A forwarder, and randomness that repeats from run to run.
struct Lab {
    forwarder: Forwarder<u32>,
    index: Index,
    seed: u64,
    from: IpAddr,
}

impl Lab {
    fn new(servers: &[&str]) -> Self {
        let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
        let records = ServiceRecords::ExternalName { target: Some("www.example".into()) };
        zone.namespaces.entry("shop".into()).or_default().insert("docs".into(), records);
        let servers: Vec<SocketAddr> = servers.iter().map(|text| address(text)).collect();
        let mut seed = 1;
        let config = Config::parse("loop: false").expect("a configuration");
        let forwarder = Forwarder::new(&config, &servers, &mut || next(&mut seed));
        Self { forwarder, index: Index::new(zone, 1), seed, from: CLIENT.into() }
    }

    /// With other rules from now on.
    fn configured(mut self, text: &str, host: &[&str]) -> Self {
        let config = Config::parse(text).expect("a configuration");
        let host: Vec<SocketAddr> = host.iter().map(|text| address(text)).collect();
        let Self { forwarder, seed, .. } = &mut self;
        forwarder.configure(&config, &host, &mut || next(seed));
        self
    }

    fn ask(&mut self, now_ms: u64, client: u32, name: &str) -> Vec<Output<u32>> {
        let message = query(client as u16, &name.parse().expect("a name"), kind::A, true);
        let asker = Client { transport: Transport::Udp, address: address(SERVERS[0]).ip() };
        let action = answer(&message, Some(&self.index), &Rules::default(), asker, &mut Vec::new());
        let Action::Forward(forward) = action else { panic!("{name} is answered by the cluster") };
        let Self { forwarder, seed, from, .. } = self;
        forwarder.ask(now_ms, client, *from, *forward, &mut || next(seed))
    }

    fn receive(
        &mut self,
        now_ms: u64,
        exchange: u64,
        from: &str,
        message: &[u8],
    ) -> Vec<Output<u32>> {
        let Self { forwarder, seed, .. } = self;
        forwarder.receive(now_ms, exchange, address(from), message, &mut || next(seed))
    }

    fn tick(&mut self, now_ms: u64) -> Vec<Output<u32>> {
        let Self { forwarder, seed, .. } = self;
        forwarder.tick(now_ms, &mut || next(seed))
    }

    fn fail(&mut self, now_ms: u64, exchange: u64) -> Vec<Output<u32>> {
        let Self { forwarder, seed, .. } = self;
        forwarder.fail(now_ms, exchange, &mut || next(seed))
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 7
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Queries sent, with those that probe servers or without.
fn queries(
    outputs: &[Output<u32>],
    probes: bool,
) -> impl Iterator<Item = (u64, SocketAddr, Transport, Vec<u8>)> {
    let found = outputs.iter().filter_map(|output| match output {
        Output::Send { exchange, to, transport, message } => {
            Some((*exchange, to.address, *transport, message.clone()))
        }
        _ => None,
    });
    found.filter(move |(_, _, _, message)| {
        let hinfo = kind::HINFO.to_be_bytes();
        message.windows(5).any(|end| end == [0, hinfo[0], hinfo[1], 0, 1]) == probes
    })
}

/// The one query for a client among outputs.
fn sent(outputs: &[Output<u32>]) -> (u64, SocketAddr, Transport, Vec<u8>) {
    let mut found = queries(outputs, false);
    let first = found.next().expect("a query is sent");
    assert!(found.next().is_none(), "one query at a time");
    first
}

/// The one probe among outputs.
fn probe(outputs: &[Output<u32>]) -> (u64, SocketAddr, Vec<u8>) {
    let (exchange, to, _, message) = queries(outputs, true).next().expect("a probe");
    (exchange, to, message)
}

/// Client, code, records and the first time to live of every reply.
fn replies(outputs: &[Output<u32>]) -> Vec<(u32, u16, usize, Option<u32>)> {
    let reply = |output: &Output<u32>| {
        let Output::Reply { client, message, .. } = output else { return None };
        let response = parse_response(message).expect("a response");
        let ttl_s = response.answers.first().map(|record| record.ttl_s);
        Some((*client, response.rcode, response.answers.len(), ttl_s))
    };
    outputs.iter().filter_map(reply).collect()
}

/// A server's answer to a query: one address that lives for a minute.
fn address_answer(message: &[u8]) -> Vec<u8> {
    let mut response = message[..message.len() - 11].to_vec();
    response[2] = 0x81;
    response[3] = 0x80;
    response[7] = 1;
    response[11] = 0;
    response.extend_from_slice(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C\0\x04\xC0\0\x02\x50");
    response
}

fn code_answer(message: &[u8], code: u8) -> Vec<u8> {
    let mut response = message.to_vec();
    response[2] = 0x81;
    response[3] = 0x80 | code;
    response
}

/// Issue 5, item 4: another configuration keeps the cache, unless others would be asked by it or
/// the cache is another.
#[test]
fn the_cache_outlives_configurations_that_do_not_change_what_is_in_it() {
    let rows: &[(&str, &[&str], bool)] = &[
        ("loop: false", &SERVERS, true),
        ("{loop: false, log: all, hosts: {entries: {a.example: [192.0.2.9]}}}", &SERVERS, true),
        ("{loop: false, rate_limit: {queries_per_second: 5}}", &SERVERS, true),
        ("loop: false", &SERVERS[..1], false),
        ("{loop: false, cache: {success: {ttl: 10s}}}", &SERVERS, false),
        ("{loop: false, forward: [{to: [192.0.2.1]}]}", &SERVERS, false),
        ("{loop: false, forward: [{zones: [corp.example], to: [192.0.2.3]}]}", &SERVERS, false),
    ];
    for (text, host, is_kept) in rows {
        let mut lab = Lab::new(&SERVERS);
        let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
        lab.receive(10, exchange, SERVERS[0], &address_answer(&message));
        let mut lab = lab.configured(text, host);
        let is_answered = replies(&lab.ask(20, 2, "www.example")) == [(2, 0, 1, Some(60))];
        assert_eq!(is_answered, *is_kept, "{text}");
    }
}

#[test]
fn an_answer_is_passed_on_kept_and_aged() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, to, transport, message) = sent(&lab.ask(0, 1, "www.example"));
    assert_eq!((to, transport), (address(SERVERS[0]), Transport::Udp));
    let outputs = lab.receive(10, exchange, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&outputs), [(1, 0, 1, Some(60))]);
    assert!(outputs.contains(&Output::Close { exchange }));
    assert_eq!(replies(&lab.ask(20_010, 2, "WWW.example")), [(2, 0, 1, Some(40))]);
    assert_eq!(lab.forwarder.next_deadline_ms(), None);
    sent(&lab.ask(61_000, 3, "www.example"));
}

#[test]
fn one_query_serves_all_who_ask_the_same() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    assert_eq!(lab.ask(1, 2, "www.EXAMPLE"), []);
    let outputs = lab.receive(10, exchange, SERVERS[0], &address_answer(&message));
    let clients: Vec<u32> = replies(&outputs).iter().map(|reply| reply.0).collect();
    assert_eq!(clients, [1, 2]);
}

#[test]
fn an_alias_of_the_cluster_stands_before_the_answer() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "docs.shop.svc.cluster.local"));
    let outputs = lab.receive(1, exchange, SERVERS[0], &address_answer(&message));
    let Some(Output::Reply { message, .. }) = outputs.last() else { panic!("{outputs:?}") };
    let response = parse_response(message).expect("a response");
    let owners: Vec<String> =
        response.answers.iter().map(|record| record.owner.to_string()).collect();
    assert_eq!(response.name.to_string(), "docs.shop.svc.cluster.local.");
    assert_eq!(owners, ["docs.shop.svc.cluster.local.", "www.example."]);
}

#[test]
fn what_does_not_match_is_passed_over_and_the_wait_goes_on() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    let good = address_answer(&message);
    let mut wrong_id = good.clone();
    wrong_id[0] ^= 1;
    let mut wrong_name = good.clone();
    wrong_name[14] ^= 1;
    let mut wrong_kind = good.clone();
    wrong_kind[12 + 13 + 1] = 28;
    for (what, from, message) in [
        ("another server", SERVERS[1], &good),
        ("another port", "192.0.2.1:5353", &good),
        ("another number", SERVERS[0], &wrong_id),
        ("another name", SERVERS[0], &wrong_name),
        ("another type", SERVERS[0], &wrong_kind),
        ("a query", SERVERS[0], &message),
        ("noise", SERVERS[0], &vec![0xFF; 40]),
    ] {
        assert_eq!(lab.receive(5, exchange, from, message), [], "{what}");
    }
    assert_eq!(lab.receive(6, exchange + 1, SERVERS[0], &good), [], "another socket");
    assert_eq!(replies(&lab.receive(7, exchange, SERVERS[0], &good)).len(), 1);
}

#[test]
fn numbers_and_letter_case_differ_from_query_to_query() {
    let mut lab = Lab::new(&SERVERS);
    let mut ids = std::collections::BTreeSet::new();
    let mut names = std::collections::BTreeSet::new();
    for client in 0..32 {
        let (exchange, _, _, message) = sent(&lab.ask(0, client, "a-longer-name.example"));
        ids.insert(message[..2].to_vec());
        names.insert(message[12..35].to_vec());
        // A failure is not kept, so the next client asks again.
        for round in 1..=MAX_ATTEMPTS as u64 {
            lab.tick(round * ATTEMPT_TIMEOUT_MS);
        }
        let _ = exchange;
    }
    assert!(ids.len() > 28 && names.len() > 28, "{} {}", ids.len(), names.len());
}

#[test]
fn another_case_of_letters_is_believed_over_tcp_only() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    let mut lowered = address_answer(&message);
    lowered[13..16].make_ascii_lowercase();
    lowered[17..24].make_ascii_lowercase();
    assert_ne!(lowered[12..24], message[12..24]);
    let (exchange, to, transport, message) = sent(&lab.receive(1, exchange, SERVERS[0], &lowered));
    assert_eq!((to, transport), (address(SERVERS[0]), Transport::Tcp));
    let mut lowered = address_answer(&message);
    lowered[13..16].make_ascii_lowercase();
    assert_eq!(replies(&lab.receive(2, exchange, SERVERS[0], &lowered)).len(), 1);
}

#[test]
fn a_cut_answer_is_asked_again_over_tcp() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    let mut cut = address_answer(&message);
    cut[2] |= 0x02;
    let outputs = lab.receive(1, exchange, SERVERS[0], &cut);
    assert!(outputs.contains(&Output::Close { exchange }) && replies(&outputs).is_empty());
    let (exchange, to, transport, message) = sent(&outputs);
    assert_eq!((to, transport), (address(SERVERS[0]), Transport::Tcp));
    let outputs = lab.receive(2, exchange, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&outputs), [(1, 0, 1, Some(60))]);
}

#[test]
fn servers_that_do_not_answer_are_asked_in_turn_and_then_avoided() {
    let mut lab = Lab::new(&SERVERS);
    let (first, to, _, _) = sent(&lab.ask(0, 1, "www.example"));
    assert_eq!(to, address(SERVERS[0]));
    assert_eq!(lab.forwarder.next_deadline_ms(), Some(ATTEMPT_TIMEOUT_MS));
    assert_eq!(lab.tick(ATTEMPT_TIMEOUT_MS - 1), []);
    let outputs = lab.tick(ATTEMPT_TIMEOUT_MS);
    // The second server is asked, and the first one probed.
    let (second, to, _, message) = sent(&outputs);
    assert_eq!(to, address(SERVERS[1]));
    let (probed, to, question) = probe(&outputs);
    assert_eq!(to, address(SERVERS[0]));
    let outputs = lab.receive(1100, second, SERVERS[1], &address_answer(&message));
    assert_eq!(replies(&outputs).len(), 1);
    assert!(outputs.contains(&Output::Close { exchange: first }), "no socket is left");
    let (_, to, _, _) = sent(&lab.ask(1200, 2, "other.example"));
    assert_eq!(to, address(SERVERS[1]), "the silent one is asked last for a while");
    // Whatever it says to the probe, it is the first again.
    lab.receive(1202, probed, SERVERS[0], &code_answer(&question, 3));
    let (_, to, _, _) = sent(&lab.ask(1203, 3, "third.example"));
    assert_eq!(to, address(SERVERS[0]));
}

#[test]
fn a_slow_answer_to_an_earlier_query_still_counts() {
    let mut lab = Lab::new(&SERVERS);
    let (first, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    lab.tick(ATTEMPT_TIMEOUT_MS);
    let outputs = lab.receive(1500, first, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&outputs).len(), 1);
}

#[test]
fn a_closed_port_and_a_failing_server_lead_to_the_next_at_once() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, _) = sent(&lab.ask(0, 1, "www.example"));
    let (exchange, to, _, message) = sent(&lab.fail(1, exchange));
    assert_eq!(to, address(SERVERS[1]));
    let (_, to, _, _) = sent(&lab.receive(2, exchange, SERVERS[1], &code_answer(&message, 2)));
    assert_eq!(to, address(SERVERS[0]));
}

#[test]
fn a_server_without_edns_is_asked_without_it() {
    let mut lab = Lab::new(&SERVERS[..1]);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    let (_, _, _, plain) = sent(&lab.receive(1, exchange, SERVERS[0], &code_answer(&message, 1)));
    assert_eq!(plain.len(), message.len() - 11);
    assert_eq!(plain[11], 0);
}

#[test]
fn when_nobody_answers_the_client_hears_of_failure_in_time() {
    let mut lab = Lab::new(&SERVERS[..1]);
    lab.ask(0, 1, "www.example");
    let mut outputs = Vec::new();
    let mut now_ms = 0;
    while replies(&outputs).is_empty() {
        now_ms = lab.forwarder.next_deadline_ms().expect("it goes on");
        outputs = lab.tick(now_ms);
    }
    assert_eq!(replies(&outputs), [(1, rcode::SERVER_FAILURE, 0, None)]);
    assert!(now_ms < 5000, "usual clients give up after five seconds");
    assert!(lab.forwarder.by_question.is_empty() && lab.forwarder.by_client.is_empty());
}

#[test]
fn limits_hold_and_everybody_is_answered() {
    let mut lab = Lab::new(&SERVERS);
    let mut asked = 0;
    for client in 1.. {
        lab.from = [10, 240, 0, client].into();
        // nobody takes the places of all.
        for _ in 0..MAX_PENDING_PER_CLIENT {
            sent(&lab.ask(0, asked, &format!("n{asked}.example")));
            asked += 1;
        }
        let refused = lab.ask(0, 7, "one-more.example");
        assert_eq!(replies(&refused), [(7, rcode::SERVER_FAILURE, 0, None)]);
        if asked == MAX_PENDING as u32 {
            break;
        }
    }
    lab.from = CLIENT.into();
    let refused = lab.ask(0, 7, "one-more.example");
    assert_eq!(replies(&refused), [(7, rcode::SERVER_FAILURE, 0, None)]);
    for number in 1..MAX_CLIENTS_PER_QUESTION as u32 {
        assert_eq!(lab.ask(0, number, "n0.example"), []);
    }
    assert_eq!(replies(&lab.ask(0, 8, "n0.example")).len(), 1);
    let mut without = Lab::new(&[]);
    assert_eq!(replies(&without.ask(0, 1, "www.example")), [(1, rcode::REFUSED, 0, None)]);
}

#[test]
fn the_rule_of_the_longest_zone_counts() {
    let rules = "forward:\n\
        - {to: [192.0.2.10]}\n\
        - {zones: [corp.example], to: [192.0.2.20], except: [public.corp.example]}\n\
        - {zones: [a.corp.example], to: ['[2001:db8::1]:5353'], force_tcp: true}\n\
        loop: false";
    for (name, server, transport) in [
        ("www.example", "192.0.2.10:53", Transport::Udp),
        ("notcorp.example", "192.0.2.10:53", Transport::Udp),
        ("CORP.example", "192.0.2.20:53", Transport::Udp),
        ("x.corp.example", "192.0.2.20:53", Transport::Udp),
        ("x.public.corp.example", "192.0.2.10:53", Transport::Udp),
        ("x.a.corp.example", "[2001:db8::1]:5353", Transport::Tcp),
    ] {
        let mut lab = Lab::new(&[]).configured(rules, &[]);
        let (_, to, over, _) = sent(&lab.ask(0, 1, name));
        assert_eq!((to, over), (address(server), transport), "{name}");
    }
}

#[test]
fn policies_choose_the_first_server() {
    let firsts = |policy: &str| -> Vec<String> {
        let rules = format!(
            "forward: [{{to: [192.0.2.1, 192.0.2.2, 192.0.2.3], policy: {policy}}}]\nloop: false"
        );
        let mut lab = Lab::new(&[]).configured(&rules, &[]);
        let ask = |number: u32| sent(&lab.ask(0, number, &format!("n{number}.example"))).1;
        (0..60).map(ask).map(|to| to.ip().to_string()).collect()
    };
    assert!(firsts("sequential").iter().all(|to| to == "192.0.2.1"));
    let turns = firsts("round_robin");
    assert_eq!(turns[..4], ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1"]);
    let random = firsts("random");
    for server in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let count = random.iter().filter(|to| *to == server).count();
        assert!((5..=40).contains(&count), "{server} {count}");
    }
    assert_ne!(random[..6], [&random[..3], &random[..3]].concat());
}

#[test]
fn a_server_is_down_after_failed_probes_and_alive_with_any_answer() {
    let mut lab = Lab::new(&SERVERS);
    lab.ask(0, 1, "www.example");
    let mut now_ms = ATTEMPT_TIMEOUT_MS;
    let (_, to, _) = probe(&lab.tick(now_ms));
    assert_eq!(to, address(SERVERS[0]));
    let is_down = |lab: &Lab| lab.forwarder.health()[0].is_down;
    let mut last = None;
    while !is_down(&lab) {
        assert!(now_ms < 10_000, "two failed probes are enough");
        now_ms = lab.forwarder.next_deadline_ms().expect("probes go on");
        let outputs = lab.tick(now_ms);
        let mine = queries(&outputs, true).find(|(_, to, _, _)| *to == address(SERVERS[0]));
        last = mine.or(last);
    }
    let (exchange, message) = loop {
        now_ms = lab.forwarder.next_deadline_ms().expect("probes go on");
        let outputs = lab.tick(now_ms);
        let mine = queries(&outputs, true).find(|(_, to, _, _)| *to == address(SERVERS[0]));
        if let Some((exchange, _, _, message)) = mine {
            break (exchange, message);
        }
    };
    let mut forged = code_answer(&message, 0);
    forged[0] ^= 1;
    lab.receive(now_ms, exchange, SERVERS[0], &forged);
    assert!(is_down(&lab), "another number is no answer");
    let closed = lab.receive(now_ms, exchange, SERVERS[0], &code_answer(&message, 5));
    assert_eq!(closed, [Output::Close { exchange }]);
    assert!(!is_down(&lab));
}

#[test]
fn a_server_that_asks_us_back_is_not_asked_any_more() {
    let mut lab = Lab::new(&SERVERS).configured("{}", &SERVERS);
    let outputs = lab.tick(0);
    let probes: Vec<_> = queries(&outputs, true).collect();
    assert_eq!(probes.len(), 2, "every server is probed once");
    let query = crate::message::Query::parse(&probes[0].3).expect("a query");
    assert_eq!(lab.forwarder.is_own_probe(&"other.example".parse().expect("a name")), None);
    let server = lab.forwarder.is_own_probe(&query.name.to_lower());
    assert_eq!(server.as_deref(), Some(SERVERS[0]));
    assert_eq!(sent(&lab.ask(0, 1, "www.example")).1, address(SERVERS[1]));
}

#[test]
fn an_answer_in_use_is_asked_for_again_before_it_ends() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    lab.receive(1, exchange, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&lab.ask(50_000, 2, "www.example")), [(2, 0, 1, Some(11))]);
    let outputs = lab.ask(55_000, 3, "www.example");
    assert_eq!(replies(&outputs), [(3, 0, 1, Some(6))]);
    let (exchange, _, _, message) = sent(&outputs);
    assert_eq!(replies(&lab.ask(55_001, 4, "www.example")).len(), 1, "it is not waited for");
    let outputs = lab.receive(55_100, exchange, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&outputs), [], "nobody waits for it");
    assert_eq!(replies(&lab.ask(100_000, 5, "www.example")), [(5, 0, 1, Some(16))]);
}

/// RFC 8767.
#[test]
fn what_expired_is_given_when_nobody_answers() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    lab.receive(1, exchange, SERVERS[0], &address_answer(&message));
    // Servers are asked first, and the client waits for a bounded time.
    sent(&lab.ask(100_000, 2, "www.example"));
    assert_eq!(replies(&lab.tick(100_000 + STALE_AFTER_MS - 1)), []);
    let outputs = lab.tick(100_000 + STALE_AFTER_MS);
    assert_eq!(replies(&outputs), [(2, 0, 1, Some(30))]);
    // The next one does not wait.
    assert_eq!(replies(&lab.ask(102_000, 3, "www.example")), [(3, 0, 1, Some(30))]);
    // With that off, the client hears of failure.
    let rules = "cache: {serve_stale: {duration: 0}}\nloop: false";
    let mut lab = Lab::new(&SERVERS[..1]).configured(rules, &SERVERS[..1]);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    lab.receive(1, exchange, SERVERS[0], &address_answer(&message));
    sent(&lab.ask(100_000, 2, "www.example"));
    let mut outputs = Vec::new();
    while replies(&outputs).is_empty() {
        outputs = lab.tick(lab.forwarder.next_deadline_ms().expect("it goes on"));
    }
    assert_eq!(replies(&outputs), [(2, rcode::SERVER_FAILURE, 0, None)]);
}

/// whoever cannot see our queries must guess number, port and case of the letters. Were the
/// numbers predictable, a forger would be believed; with random ones, the same forgery is not.
#[test]
fn forged_answers_are_believed_only_by_who_sends_predictable_queries() {
    let is_believed = |ours: u64, guessed: u64| {
        let mut lab = Lab::new(&SERVERS[..1]);
        lab.seed = ours;
        let (exchange, _, _, _) = sent(&lab.ask(0, 1, "www.example"));
        // The forger runs our program with the seed that it guesses.
        let mut mirror = Lab::new(&SERVERS[..1]);
        mirror.seed = guessed;
        let (_, _, _, predicted) = sent(&mirror.ask(0, 1, "www.example"));
        let outputs = lab.receive(1, exchange, SERVERS[0], &address_answer(&predicted));
        !replies(&outputs).is_empty()
    };
    assert!(is_believed(7, 7), "the attack works where the defence is off");
    assert!((8..200).all(|guessed| !is_believed(7, guessed)));
}

/// X-25 (TuDoor): a wrong answer does not end the wait for the right one, however many come.
#[test]
fn a_storm_of_wrong_answers_changes_nothing() {
    let mut lab = Lab::new(&SERVERS);
    let (exchange, _, _, message) = sent(&lab.ask(0, 1, "www.example"));
    let good = address_answer(&message);
    for number in 0..1000_u16 {
        let mut wrong = good.clone();
        wrong[..2].copy_from_slice(&number.to_be_bytes());
        if wrong[..2] != good[..2] {
            assert_eq!(lab.receive(1, exchange, SERVERS[0], &wrong), []);
        }
    }
    assert!(lab.forwarder.counts().mismatches >= 999);
    assert_eq!(replies(&lab.receive(2, exchange, SERVERS[0], &good)).len(), 1);
}

#[test]
fn dnssec_is_asked_for_and_kept_apart() {
    let mut lab = Lab::new(&SERVERS);
    let name: Name = "www.example".parse().expect("a name");
    let ask = |lab: &mut Lab, dnssec_ok: bool| {
        let mut message = query(1, &name, kind::A, true);
        let flags_at = message.len() - 4;
        message[flags_at] |= if dnssec_ok { 0x80 } else { 0 };
        let asker = Client { transport: Transport::Udp, address: lab.from };
        let action = answer(&message, Some(&lab.index), &Rules::default(), asker, &mut Vec::new());
        let Action::Forward(forward) = action else { panic!("it is not the cluster's") };
        let Lab { forwarder, seed, from, .. } = lab;
        forwarder.ask(0, 1, *from, *forward, &mut || next(seed))
    };
    let (exchange, _, _, message) = sent(&ask(&mut lab, true));
    assert_eq!(message[message.len() - 4] & 0x80, 0x80);
    let mut signed = address_answer(&message);
    // Checked by the server; a signature beside the address.
    signed[3] |= 0x20;
    signed[7] = 2;
    signed.extend_from_slice(b"\xC0\x0C\0\x2E\0\x01\0\0\0\x3C\0\x02ss");
    let outputs = lab.receive(1, exchange, SERVERS[0], &signed);
    assert_eq!(replies(&outputs), [(1, 0, 2, Some(60))]);
    let Some(Output::Reply { message: reply, .. }) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!(reply[3] & 0x20, 0x20, "the client hears that it was checked");
    // Who does not want signatures does not get them from the cache.
    let (exchange, _, _, message) = sent(&ask(&mut lab, false));
    assert_eq!(message[message.len() - 4] & 0x80, 0);
    let outputs = lab.receive(2, exchange, SERVERS[0], &address_answer(&message));
    assert_eq!(replies(&outputs), [(1, 0, 1, Some(60))]);
}
