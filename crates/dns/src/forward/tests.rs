use super::*;
use crate::{Action, Client, Index, Rules, answer};
use plan::zone::{ServiceRecords, Zone};

const SERVERS: [&str; 2] = ["192.0.2.1:53", "192.0.2.2:53"];

/// A forwarder, and randomness that repeats from run to run.
struct Lab {
    forwarder: Forwarder<u32>,
    index: Index,
    seed: u64,
}

impl Lab {
    fn new(servers: &[&str]) -> Self {
        let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
        let records = ServiceRecords::ExternalName { target: Some("www.example".into()) };
        zone.namespaces.entry("shop".into()).or_default().insert("docs".into(), records);
        let servers: Vec<SocketAddr> = servers.iter().map(|text| address(text)).collect();
        Self { forwarder: Forwarder::new(&servers), index: Index::new(zone, 1), seed: 1 }
    }

    fn ask(&mut self, now_ms: u64, client: u32, name: &str) -> Vec<Output<u32>> {
        let message = query(client as u16, &name.parse().expect("a name"), kind::A, true);
        let asker = Client { transport: Transport::Udp, address: address(SERVERS[0]).ip() };
        let action =
            answer(&message, Some(&self.index), &Rules::default(), asker, &mut Vec::new());
        let Action::Forward(forward) = action else {
            panic!("{name} is answered by the cluster")
        };
        let Self { forwarder, seed, .. } = self;
        forwarder.ask(now_ms, client, *forward, &mut || next(seed))
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

/// The one query among outputs.
fn sent(outputs: &[Output<u32>]) -> (u64, SocketAddr, Transport, Vec<u8>) {
    let mut found = outputs.iter().filter_map(|output| match output {
        Output::Send { exchange, to, transport, message } => {
            Some((*exchange, *to, *transport, message.clone()))
        }
        _ => None,
    });
    let first = found.next().expect("a query is sent");
    assert!(found.next().is_none(), "one query at a time");
    first
}

/// Client, code, records and the first time to live of every reply.
fn replies(outputs: &[Output<u32>]) -> Vec<(u32, u16, usize, Option<u32>)> {
    let reply = |output: &Output<u32>| {
        let Output::Reply { client, message } = output else { return None };
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
        for round in 1..=u64::from(MAX_ATTEMPTS) {
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
    let outputs = lab.ask(0, 1, "www.example");
    let (first, to, _, _) = sent(&outputs);
    assert_eq!(to, address(SERVERS[0]));
    assert_eq!(lab.forwarder.next_deadline_ms(), Some(ATTEMPT_TIMEOUT_MS));
    assert_eq!(lab.tick(ATTEMPT_TIMEOUT_MS - 1), []);
    let (second, to, _, message) = sent(&lab.tick(ATTEMPT_TIMEOUT_MS));
    assert_eq!(to, address(SERVERS[1]));
    let outputs = lab.receive(1100, second, SERVERS[1], &address_answer(&message));
    assert_eq!(replies(&outputs).len(), 1);
    assert!(outputs.contains(&Output::Close { exchange: first }), "no socket is left");
    let (_, to, _, _) = sent(&lab.ask(1200, 2, "other.example"));
    assert_eq!(to, address(SERVERS[1]), "the silent one is asked last for a while");
    let (_, to, _, _) = sent(&lab.ask(1200 + PENALTY_MS, 3, "third.example"));
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
    while let Some(deadline_ms) = lab.forwarder.next_deadline_ms() {
        assert!(deadline_ms > now_ms, "time goes on");
        now_ms = deadline_ms;
        outputs = lab.tick(now_ms);
    }
    assert_eq!(replies(&outputs), [(1, rcode::SERVER_FAILURE, 0, None)]);
    assert!(now_ms < 5000, "usual clients give up after five seconds");
    assert!(lab.forwarder.by_exchange.is_empty() && lab.forwarder.by_question.is_empty());
}

#[test]
fn limits_hold_and_everybody_is_answered() {
    let mut lab = Lab::new(&SERVERS);
    for number in 0..MAX_PENDING as u32 {
        sent(&lab.ask(0, number, &format!("n{number}.example")));
    }
    let refused = lab.ask(0, 7, "one-more.example");
    assert_eq!(replies(&refused), [(7, rcode::SERVER_FAILURE, 0, None)]);
    for number in 1..MAX_CLIENTS_PER_QUESTION as u32 {
        assert_eq!(lab.ask(0, number, "n0.example"), []);
    }
    assert_eq!(replies(&lab.ask(0, 8, "n0.example")).len(), 1);
    let mut without = Lab::new(&[]);
    assert_eq!(replies(&without.ask(0, 1, "www.example")), [(1, rcode::REFUSED, 0, None)]);
}
