use super::*;
use crate::Response;
use crate::feed::Change;
use plan::zone::{ServiceRecords, Zone};

/// Machines of the cluster, and where its clients are.
const CLUSTER: [&str; 3] = ["10.240.0.0/16", "172.30.0.2/32", "192.0.2.0/24"];
const CLIENT: [u8; 4] = [10, 240, 0, 7];
const UPSTREAM: &str = "192.0.2.53:53";

/// A server, one upstream server of names, and a clock.
struct Lab {
    server: Server<u32>,
    index: Index,
    seed: u64,
    now_us: u64,
    from: IpAddr,
}

impl Lab {
    fn new(config: &str) -> Self {
        let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
        let web = ServiceRecords::ClusterIp {
            addresses: vec!["10.96.1.1".parse().expect("an address")],
            ports: vec![],
        };
        zone.namespaces.entry("shop".into()).or_default().insert("web".into(), web);
        let mut seed = 1;
        let config = Config::parse(config).expect("a configuration");
        let upstream = UPSTREAM.parse().expect("an address");
        let rules = Rules { search_path: false, ..Rules::default() };
        let server = Server::new(Arc::new(config), rules, &[upstream], &mut || next(&mut seed));
        let mut index = Index::new(zone, 1);
        for range in CLUSTER {
            let range = range.parse().expect("a range");
            index.apply(Change::Client { range, is_there: true });
        }
        Self { server, index, seed, now_us: 0, from: CLIENT.into() }
    }

    /// The answer to a question. Another server's answers are those of `upstream`.
    fn ask(&mut self, name: &str, kind: u16) -> Option<Response> {
        let message = crate::query(9, &name.parse().expect("a name"), kind, true);
        self.ask_message(&message)
    }

    fn ask_message(&mut self, message: &[u8]) -> Option<Response> {
        let from = Client { transport: Transport::Udp, address: self.from };
        let mut reply = Vec::new();
        let incoming = Incoming { client: 1, from, message };
        let Self { server, index, seed, now_us, .. } = self;
        let random = &mut || next(seed);
        let outputs = match server.question(*now_us, incoming, Some(index), &mut reply, random) {
            Handled::Reply => return parse_response(&reply),
            Handled::Drop => return None,
            Handled::Wait(outputs) => outputs,
        };
        let mut waiting = std::collections::VecDeque::from(outputs);
        while let Some(output) = waiting.pop_front() {
            match output {
                Output::Send { exchange, to, message, .. } => {
                    *now_us += 1000;
                    let answer = upstream(&message);
                    let random = &mut || next(seed);
                    waiting.extend(server.receive(*now_us, exchange, to.address, &answer, random));
                }
                Output::Reply { message, .. } => return parse_response(&message),
                Output::Close { .. } => {}
            }
        }
        None
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 7
}

/// Everybody has the address 192.0.2.80; `both.` has an IPv6 address too, `missing.` is nobody.
fn upstream(message: &[u8]) -> Vec<u8> {
    let query = Query::parse(message).expect("a query");
    let text = query.name.to_lower().to_string();
    let mut writer = Writer::response(&query, Transport::Udp);
    let at = HEADER_OCTETS;
    if text.starts_with("missing.") {
        writer.set_rcode(rcode::NAME_ERROR);
    } else if query.kind == kind::A {
        writer.record(Section::Answer, at, kind::A, 60, &[&[192, 0, 2, 80]]);
    } else if query.kind == kind::AAAA && text.starts_with("both.") {
        writer.record(Section::Answer, at, kind::AAAA, 60, &[&[0x20; 16]]);
    }
    writer.finish()
}

/// Response code, owners and data of an answer.
fn seen(response: Option<Response>) -> (u16, Vec<(String, Vec<u8>)>) {
    let response = response.expect("an answer");
    let record = |record: &crate::Record| (record.owner.to_string(), record.data.clone());
    (response.rcode, response.answers.iter().map(record).collect())
}

fn one(owner: &str, data: &[u8]) -> (u16, Vec<(String, Vec<u8>)>) {
    (0, vec![(owner.to_owned(), data.to_vec())])
}

#[test]
fn names_of_the_cluster_and_of_others_are_answered() {
    let mut lab = Lab::new("loop: false");
    let web = lab.ask("web.shop.svc.cluster.local", kind::A);
    assert_eq!(seen(web), one("web.shop.svc.cluster.local.", &[10, 96, 1, 1]));
    assert_eq!(seen(lab.ask("www.example", kind::A)), one("www.example.", &[192, 0, 2, 80]));
    let metrics = lab.server.snapshot().metrics();
    for line in [
        "coredns_dns_requests_total{server=\"dns://:53\",zone=\".\",view=\"\",proto=\"udp\",family=\"1\",type=\"A\"} 2",
        "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",view=\"\",rcode=\"NOERROR\",plugin=\"forward\"} 1",
        "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",view=\"\",rcode=\"NOERROR\",plugin=\"kubernetes\"} 1",
        "coredns_dns_request_duration_seconds_count{server=\"dns://:53\",zone=\".\",view=\"\"} 2",
        "coredns_cache_misses_total{server=\"dns://:53\",zones=\".\",view=\"\"} 1",
        "coredns_cache_entries{server=\"dns://:53\",zones=\".\",view=\"\",type=\"success\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let top = lab.server.snapshot().top(10);
    let names: Vec<(&str, u64)> =
        top.names.iter().map(|name| (name.name.as_str(), name.asked)).collect();
    assert_eq!(names, [("web.shop.svc.cluster.local.", 1), ("www.example.", 1)]);
    assert_eq!(top.clients[0].asked, 2);
}

#[test]
fn rewritten_names_answer_under_the_name_that_was_asked_for() {
    let mut lab = Lab::new(
        "rewrite:\n- {from: shop.example, to: web.shop.svc.cluster.local}\n\
         - {type: suffix, from: .old.example, to: .example}\nloop: false",
    );
    assert_eq!(seen(lab.ask("Shop.example", kind::A)), one("Shop.example.", &[10, 96, 1, 1]));
    let found = seen(lab.ask("www.old.example", kind::A));
    assert_eq!(found, one("www.old.example.", &[192, 0, 2, 80]));
    // Absence too.
    assert_eq!(seen(lab.ask("missing.old.example", kind::A)).0, rcode::NAME_ERROR);
}

/// X-26 (GO-2026-4630): no rewrite leads around the rules of access, on either name.
#[test]
fn rules_of_access_hold_for_both_names_of_a_rewrite() {
    let rewrite = "rewrite: [{from: open.example, to: secret.example}]\nloop: false\n";
    let acl = |zone: &str| format!("acl: [{{action: block, zones: [{zone}]}}]\n{rewrite}");
    for config in [acl("secret.example"), acl("open.example")] {
        let mut lab = Lab::new(&config);
        assert_eq!(seen(lab.ask("open.example", kind::A)).0, rcode::REFUSED);
        assert_eq!(seen(lab.ask("www.example", kind::A)).0, 0);
        assert!(lab.server.snapshot().metrics().contains(
            "coredns_acl_blocked_requests_total{server=\"dns://:53\",zone=\".\",view=\"\"} 1"
        ));
    }
    // With the rules off, the rewrite leads to the secret.
    let mut lab = Lab::new(rewrite);
    assert_eq!(seen(lab.ask("open.example", kind::A)), one("open.example.", &[192, 0, 2, 80]));
}

#[test]
fn rules_of_access_filter_and_drop() {
    let mut lab = Lab::new(
        "acl:\n- {action: filter, types: [AAAA]}\n- {action: drop, networks: [192.0.2.0/24]}\n",
    );
    assert_eq!(seen(lab.ask("both.example", kind::AAAA)), (0, vec![]));
    lab.from = [192, 0, 2, 1].into();
    assert_eq!(lab.ask("www.example", kind::A), None);
}

#[test]
fn hosts_answer_both_ways() {
    let mut lab =
        Lab::new("hosts: {entries: {box.example: [192.0.2.9, '2001:db8::9']}}\nloop: false");
    assert_eq!(seen(lab.ask("BOX.example", kind::A)), one("BOX.example.", &[192, 0, 2, 9]));
    assert_eq!(seen(lab.ask("box.example", kind::AAAA)).1.len(), 1);
    assert_eq!(seen(lab.ask("box.example", kind::TXT)), (0, vec![]));
    let pointer = seen(lab.ask("9.2.0.192.in-addr.arpa", kind::PTR));
    assert_eq!(pointer.1[0].1, b"\x03box\x07example\0");
}

#[test]
fn templates_make_answers_of_questions() {
    let mut lab = Lab::new(
        "template:\n\
         - {zones: [nip.example], type: A, match: '^ip-(?P<a>\\d+)-(\\d+)\\.nip\\.example\\.$',\n\
         \x20  answer: ['{{ .Name }} 60 IN A 192.0.{{ .Group.a }}.{{ index .Match 2 }}']}\n\
         - {zones: [gone.example], type: ANY, rcode: NXDOMAIN}\nloop: false",
    );
    let found = seen(lab.ask("ip-2-7.nip.example", kind::A));
    assert_eq!(found, one("ip-2-7.nip.example.", &[192, 0, 2, 7]));
    assert_eq!(seen(lab.ask("x.gone.example", kind::TXT)).0, rcode::NAME_ERROR);
    assert_eq!(seen(lab.ask("ip-2-777.nip.example", kind::A)).0, rcode::SERVER_FAILURE);
    assert_eq!(
        seen(lab.ask("www.nip.example", kind::A)),
        one("www.nip.example.", &[192, 0, 2, 80])
    );
}

/// RFC 6147.
#[test]
fn dns64_makes_addresses_where_there_are_none() {
    let mut lab = Lab::new("dns64: {}\nloop: false");
    let made = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 80];
    assert_eq!(seen(lab.ask("www.example", kind::AAAA)), one("www.example.", &made));
    assert_eq!(seen(lab.ask("both.example", kind::AAAA)), one("both.example.", &[0x20; 16]));
    assert_eq!(seen(lab.ask("missing.example", kind::AAAA)).0, rcode::NAME_ERROR);
    assert_eq!(seen(lab.ask("www.example", kind::A)), one("www.example.", &[192, 0, 2, 80]));
    let mut lab = Lab::new("dns64: {translate_all: true}\nloop: false");
    assert_eq!(seen(lab.ask("both.example", kind::AAAA)), one("both.example.", &made));
}

#[test]
fn missing_names_of_the_cluster_may_fall_through() {
    let asked = "old.shop.svc.cluster.local";
    let mut lab = Lab::new("loop: false");
    assert_eq!(seen(lab.ask(asked, kind::A)).0, rcode::NAME_ERROR);
    let mut lab = Lab::new("kubernetes: {fallthrough: [cluster.local]}\nloop: false");
    assert_eq!(seen(lab.ask(asked, kind::A)).1[0].1, [192, 0, 2, 80]);
    let web = lab.ask("web.shop.svc.cluster.local", kind::A);
    assert_eq!(seen(web).1[0].1, [10, 96, 1, 1]);
}

/// what asks for much gets little: no ANY, no transfers, and no more than its share.
#[test]
fn nobody_is_flooded_by_our_answers() {
    let mut lab = Lab::new("rate_limit: {queries_per_second: 100, burst: 10}\nloop: false");
    for kind in [kind::ANY, kind::AXFR, kind::IXFR] {
        let message = crate::query(9, &"cluster.local".parse().expect("a name"), kind, true);
        let from = Client { transport: Transport::Udp, address: lab.from };
        let mut reply = Vec::new();
        let Lab { server, index, seed, .. } = &mut lab;
        let random = &mut || next(seed);
        let incoming = Incoming { client: 1, from, message: &message };
        server.question(0, incoming, Some(index), &mut reply, random);
        assert!(reply.len() <= message.len() + 30, "{kind}: {} octets", reply.len());
    }
    let name = "web.shop.svc.cluster.local";
    let answered = (0..50).filter(|_| lab.ask(name, kind::A).is_some()).count();
    assert_eq!(answered, 7, "three of ten were asked before");
    lab.from = [10, 240, 0, 8].into();
    assert!(lab.ask(name, kind::A).is_some(), "others have their own share");
    let mut off = Lab::new("rate_limit: {queries_per_second: 0}\nloop: false");
    assert_eq!((0..50).filter(|_| off.ask(name, kind::A).is_some()).count(), 50);
}

#[test]
fn the_log_has_what_was_chosen() {
    let lines = |class: &str| -> Vec<String> {
        let mut lab = Lab::new(&format!("log: {class}\nloop: false"));
        lab.ask("web.shop.svc.cluster.local", kind::A);
        lab.ask("no.shop.svc.cluster.local", kind::A);
        lab.ask("www.example", kind::OPT);
        lab.server.take_log()
    };
    assert_eq!(lines("none"), [] as [&str; 0]);
    assert_eq!(lines("error").len(), 1);
    assert_eq!(lines("denial").len(), 1);
    let all = lines("all");
    assert_eq!(all.len(), 3);
    assert!(
        all[0]
            .starts_with("10.240.0.7 \"A IN web.shop.svc.cluster.local. udp\" NOERROR kubernetes"),
        "{}",
        all[0]
    );
}

#[test]
fn a_new_configuration_loses_no_question() {
    let mut lab = Lab::new("loop: false");
    let message = crate::query(9, &"www.example".parse().expect("a name"), kind::A, true);
    let from = Client { transport: Transport::Udp, address: lab.from };
    let Lab { server, index, seed, .. } = &mut lab;
    let incoming = Incoming { client: 1, from, message: &message };
    let handled = server.question(0, incoming, Some(index), &mut Vec::new(), &mut || next(seed));
    let Handled::Wait(outputs) = handled else { panic!("{handled:?}") };
    let other = Config::parse("forward: [{to: [198.51.100.1]}]\nloop: false").expect("one");
    server.configure(Arc::new(other), Rules::default(), &[], &mut || next(seed));
    let [Output::Send { exchange, to, message, .. }] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    let answer = upstream(message);
    let outputs = server.receive(1000, *exchange, to.address, &answer, &mut || next(seed));
    assert!(outputs.iter().any(|output| matches!(output, Output::Reply { client: 1, .. })));
}

/// What is told of a question is what is answered to it (invariant 12).
#[test]
fn an_explanation_says_what_is_answered_and_why() {
    let web = "web.shop.svc.cluster.local";
    for (config, name, kind, step) in [
        ("", web, kind::A, "web.shop.svc.cluster.local.: 1 addresses"),
        ("acl: [{action: block, zones: [shop.svc.cluster.local]}]", web, kind::A, "acl: "),
        ("acl: [{action: filter, types: [AAAA]}]", web, kind::AAAA, "acl: "),
        ("acl: [{action: drop}]", web, kind::A, "acl: "),
        (
            "rewrite: [{from: old.example, to: web.shop.svc.cluster.local}]",
            "old.example",
            kind::A,
            "rewrite: old.example. stands for web.shop.svc.cluster.local.",
        ),
        (
            "hosts: {entries: {a.example: [192.0.2.9]}}",
            "a.example",
            kind::A,
            "hosts: has a.example.",
        ),
        (
            "template: [{type: A, zones: [nip.example], rcode: REFUSED}]",
            "x.nip.example",
            kind::A,
            "template: one is for x.nip.example.",
        ),
        ("", "www.example", kind::A, "forward: the rule of . asks 192.0.2.53:53 (sequential)"),
        ("dns64: {}", "v4.example", kind::AAAA, "dns64: "),
        (
            "kubernetes: {fallthrough: [cluster.local]}",
            "no.cluster.local",
            kind::A,
            "fallthrough: ",
        ),
    ] {
        let mut lab = Lab::new(config);
        let explain = |lab: &Lab| {
            let client = Client { transport: Transport::Udp, address: lab.from };
            let question = (&name.parse().expect("a name"), kind);
            crate::explain_by(&lab.server, lab.now_us, Some(&lab.index), client, question)
        };
        let told = explain(&lab);
        let steps = told.steps.join("\n");
        assert!(steps.contains(step), "{config} {name}: {step} is not in {steps}");
        let answer = lab.ask(name, kind);
        if told.upstream.is_empty() {
            let code = answer.as_ref().map(|answer| rcode_name(answer.rcode));
            assert_eq!(told.code, code, "{config} {name}");
            let records = answer.map_or(0, |answer| answer.answers.len());
            if !steps.contains("template") {
                assert_eq!(told.records.len(), records, "{config} {name}");
            }
        } else {
            assert!(steps.contains("cache: nothing for"), "{steps}");
            let steps = explain(&lab).steps.join("\n");
            let records = answer.map_or(vec![], |answer| answer.answers);
            let is_kept = records.iter().any(|record| record.kind == kind && kind == kind::A);
            assert_eq!(steps.contains("cache: an answer for"), is_kept, "{name}: {steps}");
        }
    }
    let mut lab = Lab::new("forward: [{zones: [corp.example], to: [192.0.2.54]}]");
    lab.from = [10, 240, 0, 8].into();
    let client = Client { transport: Transport::Udp, address: lab.from };
    let question = (&"a.corp.example".parse().expect("a name"), kind::A);
    let told = crate::explain_by(&lab.server, 0, Some(&lab.index), client, question);
    let expected = "forward: the rule of corp.example. asks 192.0.2.54:53 (random)";
    assert_eq!(told.steps.last().map(String::as_str), Some(expected));
}

/// whoever is not of the cluster learns nothing, neither of it nor of others; with the option
/// off, everything.
#[test]
fn only_clients_of_the_cluster_are_answered_unless_the_file_says_otherwise() {
    let own = "169.254.20.10";
    for (config, client, expected) in [
        ("", "10.240.3.4", true),
        ("", "::ffff:10.240.3.4", true),
        ("", "172.30.0.2", true),
        ("", "172.30.0.3", false),
        ("", "198.51.100.7", false),
        ("", "::ffff:198.51.100.7", false),
        ("", "2001:db8::7", false),
        ("", "127.0.0.1", true),
        ("", "::1", true),
        ("", own, true),
        ("acl: [{action: allow}]", "198.51.100.7", false),
        ("hosts: {entries: {www.example: [192.0.2.1]}}", "198.51.100.7", false),
        ("clients: cluster", "198.51.100.7", false),
        ("clients: [198.51.100.0/24]", "198.51.100.7", true),
        ("clients: [198.51.100.0/24]", "198.51.101.7", false),
        ("clients: [198.51.100.0/24]", "10.240.3.4", true),
        ("clients: any", "198.51.100.7", true),
        ("clients: any", "2001:db8::7", true),
    ] {
        let mut lab = Lab::new(config);
        lab.server.rules.own_addresses = [own.parse().expect("an address")].into();
        lab.from = client.parse().expect("an address");
        for name in ["web.shop.svc.cluster.local", "www.example"] {
            let answer = lab.ask(name, kind::A).expect("an answer");
            let code = if expected { rcode::NO_ERROR } else { rcode::REFUSED };
            assert_eq!(answer.rcode, code, "{config} {client} {name}");
            assert_eq!(!answer.answers.is_empty(), expected, "{config} {client} {name}");
        }
        let blocked = if expected { 0 } else { 2 };
        let line = format!(
            "coredns_acl_blocked_requests_total{{server=\"dns://:53\",zone=\".\",view=\"\"}} {blocked}"
        );
        assert!(lab.server.snapshot().metrics().contains(&line), "{config} {client}");
        // Invariant 12: told as it is done.
        let from = Client { transport: Transport::Udp, address: lab.from };
        let name = "web.shop.svc.cluster.local".parse().expect("a name");
        let told = crate::explain_by(&lab.server, 0, Some(&lab.index), from, (&name, kind::A));
        let is_refused = told.steps.iter().any(|step| step.starts_with("clients: "));
        assert_eq!((is_refused, told.code.as_deref() == Some("REFUSED")), (!expected, !expected));
    }
}

/// Before the first zone nobody knows who is of the cluster: no names, for anybody (invariant 3).
#[test]
fn without_a_zone_no_client_is_refused_and_none_gets_names() {
    let mut lab = Lab::new("");
    let address = "198.51.100.7".parse().expect("an address");
    let from = Client { transport: Transport::Udp, address };
    let message = crate::query(9, &"www.example".parse().expect("a name"), kind::A, true);
    let incoming = Incoming { client: 1, from, message: &message };
    let mut reply = Vec::new();
    lab.server.question(0, incoming, None, &mut reply, &mut || 7);
    assert_eq!(parse_response(&reply).map(|it| it.rcode), Some(rcode::SERVER_FAILURE));
}
