//! A real worker process in network namespaces of the test's own, asked by `dig` and by hand.
//! Needs root, `ip` and `dig`; fails without.

mod lab;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use dns::{Response, parse_response, query};
use lab::{DNS_ADDRESS, Lab, UPSTREAM};
use plan::zone::{Exposed, Exposure, NamedPort, Namespaces, ServiceRecords, Zone};

/// Waits for answers are bounded by this; a busy machine takes long for little.
const DEADLINE: Duration = Duration::from_secs(20);
/// A server that refuses is left at once; one that is silent has a second.
const REFUSED: Duration = Duration::from_millis(500);
/// D-10: a change is answered within this time.
const CHANGED: Duration = Duration::from_secs(1);
/// So often the zone changes.
const CHANGES: u8 = 10;
/// Services of a large zone.
const MANY: u16 = 10_000;
/// By so many percent a worker may be larger that read the zone twice. They were 38.
const LARGER_PERCENT_MAX: u64 = 20;
/// A worker whose memory has not changed for so long has given back what it freed.
const SETTLED: Duration = Duration::from_secs(3);

fn zone(web: &str) -> Zone {
    let mut zone = Zone {
        domain: "cluster.local".into(),
        name_servers: vec![(*DNS_ADDRESS.ip()).into()],
        reverse_ranges: ["10.96.0.0/16", "10.244.0.0/16"]
            .map(|range| range.parse().expect("a range"))
            .into(),
        ..Zone::default()
    };
    let port = NamedPort { name: "http".into(), protocol: model::Protocol::Tcp, port: 80 };
    let web = ServiceRecords::ClusterIp {
        addresses: vec![web.parse().expect("an address")],
        ports: vec![port],
    };
    let docs = ServiceRecords::ExternalName { target: Some("www.example".into()) };
    let many = (0..200).map(|number| plan::zone::HeadlessEndpoint {
        label: format!("10-244-1-{number:03}"),
        address: std::net::Ipv4Addr::new(10, 244, 1, number).into(),
        has_hostname: false,
        ports: vec![],
    });
    let many = ServiceRecords::Headless { endpoints: many.collect() };
    let services = [("web", web), ("docs", docs), ("many", many)];
    let services = services.map(|(name, records)| (name.to_string(), records));
    zone.namespaces.insert("shop".into(), services.into());
    zone
}

/// One question from the node's namespace; `None` when nothing comes in time.
fn ask(lab: &Lab, name: &str, kind: u16) -> Option<Response> {
    let socket = lab.udp_client();
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    send(&socket, 77, name, kind);
    receive(&socket)
}

fn send(socket: &UdpSocket, id: u16, name: &str, kind: u16) {
    let message = query(id, &name.parse().expect("a name"), kind, true);
    socket.send_to(&message, DNS_ADDRESS).expect("sends");
}

fn receive(socket: &UdpSocket) -> Option<Response> {
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, SocketAddr::from(DNS_ADDRESS));
    parse_response(&buffer[..length])
}

/// Asks until an answer is as wanted, or the deadline is over.
fn until(what: &str, deadline: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

fn web_address(lab: &Lab) -> Option<Vec<u8>> {
    let response = ask(lab, "web.shop.svc.cluster.local", 1)?;
    Some(response.answers.first()?.data.clone())
}

#[test]
fn dig_sees_what_the_specification_says() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let rows: &[(&str, &[&str])] = &[
        ("+short web.shop.svc.cluster.local", &["10.96.1.1"]),
        ("+short +tcp web.shop.svc.cluster.local", &["10.96.1.1"]),
        (
            "+short -t SRV _http._tcp.web.shop.svc.cluster.local",
            &["0 100 80 web.shop.svc.cluster.local."],
        ),
        ("+short -x 10.96.1.1", &["web.shop.svc.cluster.local."]),
        ("+short -t TXT dns-version.cluster.local", &["\"1.1.0\""]),
        (
            "WeB.shop.svc.Cluster.local",
            &["WeB.shop.svc.Cluster.local. 5\tIN\tA\t10.96.1.1", "flags: qr aa rd ra;"],
        ),
        (
            "nothing.shop.svc.cluster.local",
            &["status: NXDOMAIN", "SOA\tns.dns.cluster.local. hostmaster.cluster.local."],
        ),
        ("-t AAAA web.shop.svc.cluster.local", &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1"]),
        ("-t ANY web.shop.svc.cluster.local", &["HINFO\t\"RFC8482\" \"\""]),
        ("-t AXFR cluster.local", &["Transfer failed."]),
        ("+opcode=4 web.shop.svc.cluster.local", &["status: NOTIMP"]),
        ("+edns=1 +noednsneg web.shop.svc.cluster.local", &["status: BADVERS"]),
        ("-c CH -t TXT version.bind", &["status: REFUSED"]),
        // Cut over UDP; dig asks again over TCP by itself.
        ("+noedns +ignore many.shop.svc.cluster.local", &["flags: qr aa tc rd ra;"]),
        (
            "+noedns many.shop.svc.cluster.local",
            &[";; Truncated, retrying in TCP mode.", "ANSWER: 200,"],
        ),
        ("many.shop.svc.cluster.local", &["ANSWER: 200,", "udp: 1232"]),
        // Names of others, from the other network namespace
        ("+short www.example", &["192.0.2.80"]),
        ("www.example", &["flags: qr rd ra;", "IN\tA\t192.0.2.80"]),
        ("docs.shop.svc.cluster.local", &["CNAME\twww.example.", "www.example.\t\t", "192.0.2.80"]),
        ("big.example", &["ANSWER: 100,"]),
        ("+norecurse other.example", &["status: REFUSED"]),
        ("missing.example", &["status: NXDOMAIN", "SOA"]),
    ];
    let wrong: Vec<String> = rows
        .iter()
        .map(|(words, expected)| (words, expected, lab.dig(words)))
        .filter(|(_, expected, found)| !expected.iter().all(|part| found.contains(part)))
        .map(|(words, expected, found)| format!("dig {words}\nexpected {expected:?} in\n{found}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn questions_wait_while_a_killed_worker_is_replaced() {
    const QUESTIONS: u16 = 100;
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    for round in 0..3 {
        lab.kill_worker();
        let socket = lab.udp_client();
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        for id in 0..QUESTIONS {
            send(&socket, id, "web.shop.svc.cluster.local", 1);
        }
        lab.start_worker(&[]);
        let mut missing: std::collections::BTreeSet<u16> = (0..QUESTIONS).collect();
        while let Some(response) = receive(&socket) {
            assert_eq!(response.rcode, 0, "the successor knows the zone from its first answer");
            missing.remove(&response.id);
            if missing.is_empty() {
                break;
            }
        }
        assert!(missing.is_empty(), "round {round}: {missing:?} got no answer");
    }
}

#[test]
fn the_zone_file_answers_while_the_agent_is_gone() {
    let mut lab = Lab::new();
    lab.start_worker(&[]);
    let first = ask(&lab, "web.shop.svc.cluster.local", 1).expect("an answer");
    assert_eq!(first.rcode, 2, "nothing is known before the first zone");
    lab.feed(&zone("10.96.1.1"));
    until("the zone is served", DEADLINE, || web_address(&lab) == Some(vec![10, 96, 1, 1]));
    until("the zone is kept", DEADLINE, || lab.zone_file().exists());
    lab.stop_feed();
    lab.kill_worker();
    lab.start_worker(&[]);
    assert_eq!(web_address(&lab), Some(vec![10, 96, 1, 1]));
    // The agent is back with a newer zone.
    lab.feed(&zone("10.96.2.2"));
    until("the new zone is served", DEADLINE, || web_address(&lab) == Some(vec![10, 96, 2, 2]));
    // A damaged file is as good as none.
    lab.kill_worker();
    lab.stop_feed();
    fs::write(lab.zone_file(), b"{\"domain\":").expect("writes");
    lab.start_worker(&[]);
    assert_eq!(ask(&lab, "web.shop.svc.cluster.local", 1).map(|response| response.rcode), Some(2));
}

#[test]
fn a_changed_zone_is_answered_within_a_second() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let mut took = Vec::new();
    for number in 2..2 + CHANGES {
        lab.feed(&zone(&format!("10.96.1.{number}")));
        let is_answered = || web_address(&lab) == Some(vec![10, 96, 1, number]);
        took.push(until("the change", DEADLINE, is_answered));
    }
    assert!(took.iter().max() <= Some(&CHANGED), "{took:?}");
}

#[test]
fn no_thread_of_the_worker_has_privileges() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    let pid = lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let statuses: Vec<String> = tasks
        .map(|task| fs::read_to_string(task.expect("a thread").path().join("status")))
        .map(|status| status.expect("a status"))
        .collect();
    assert!(statuses.len() > 1, "one for the zone, and those that answer");
    for status in statuses {
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "{line} is not in\n{status}");
        }
    }
    let mode = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).expect("it exists").permissions().mode() & 0o777
    };
    until("the zone is kept", DEADLINE, || lab.zone_file().exists());
    assert_eq!(mode(&lab.zone_file()), 0o600);
    assert_eq!(mode(lab.zone_file().parent().expect("a directory")), 0o700);
}

#[test]
fn a_dead_upstream_server_does_not_keep_names_from_being_resolved() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    // Nobody listens at the first: its port is refused at once.
    lab.start_worker(&["127.0.0.2:53", UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let began = Instant::now();
    let response = ask(&lab, "www.example", 1).expect("an answer");
    assert_eq!(response.answers.len(), 1);
    assert!(began.elapsed() < REFUSED, "{:?}", began.elapsed());
    // One that is silent: the client hears of failure, and the cluster's names are not held up.
    let waiting = lab.udp_client();
    waiting.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    send(&waiting, 1, "silent.example", 1);
    assert!(web_address(&lab).is_some());
    assert_eq!(receive(&waiting).map(|response| response.rcode), Some(2));
}

#[test]
fn questions_over_one_tcp_connection_are_all_answered() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let mut stream = lab.tcp_client();
    let mut sent = Vec::new();
    // More than may wait at one time, from the zone and from upstream.
    for id in 0..100_u16 {
        let name = if id % 2 == 0 {
            "web.shop.svc.cluster.local".into()
        } else {
            format!("n{id}.example")
        };
        let message = query(id, &name.parse().expect("a name"), 1, false);
        sent.extend((message.len() as u16).to_be_bytes());
        sent.extend(message);
    }
    stream.write_all(&sent).expect("sends");
    stream.shutdown(std::net::Shutdown::Write).expect("a half-closed connection");
    let mut ids: Vec<u16> = (0..100).map(|_| read_framed(&mut stream).id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0, "then the connection is closed");
}

#[test]
fn idle_tcp_connections_do_not_keep_others_out() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let idle: Vec<TcpStream> = (0..200).map(|_| lab.tcp_client()).collect();
    let mut stream = lab.tcp_client();
    let message = query(5, &"web.shop.svc.cluster.local".parse().expect("a name"), 1, false);
    stream.write_all(&(message.len() as u16).to_be_bytes()).expect("sends");
    stream.write_all(&message).expect("sends");
    assert_eq!(read_framed(&mut stream).id, 5);
    drop(idle);
}

fn read_framed(stream: &mut TcpStream) -> Response {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).expect("a message");
    parse_response(&message).expect("a response")
}

/// What the worker answers at its control socket.
fn told(lab: &Lab, path: &str) -> String {
    let mut stream =
        std::os::unix::net::UnixStream::connect(lab.control_socket()).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: dns\r\n\r\n").expect("sends");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

/// Issue 5, item 7: root hears why a name gets its answer, from the code that answers.
#[test]
fn an_answer_is_explained_at_the_control_socket() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let text = told(&lab, "/query/web.shop.svc.cluster.local./1/10.244.1.5");
    assert!(text.contains("web.shop.svc.cluster.local.: 1 addresses"), "{text}");
    assert!(text.contains("web.shop.svc.cluster.local. 5 A 10.96.1.1"), "{text}");
    assert!(told(&lab, "/query/a..b/1/10.244.1.5").starts_with("HTTP/1.1 400 "));
}

/// Issue 5, item 4: a new configuration is taken while questions are asked, and none is lost; a
/// wrong one changes nothing.
#[test]
fn a_configuration_is_taken_without_losing_a_question() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let host = |lab: &Lab| ask(lab, "box.example", 1).expect("no question is lost").answers;
    assert_eq!(host(&lab)[0].data, [192, 0, 2, 80]);
    for number in 1..6_u8 {
        let text = format!("hosts: {{entries: {{box.example: [192.0.2.{number}]}}}}\n");
        fs::write(lab.config_file(), text).expect("writes");
        until("the configuration is taken", DEADLINE, || host(&lab)[0].data == [192, 0, 2, number]);
    }
    fs::write(lab.config_file(), "hosts: {entry: 1}\n").expect("writes");
    until("the fault is counted", DEADLINE, || {
        told(&lab, "/metrics").contains("\ncoredns_reload_failed_total 1\n")
    });
    assert_eq!(host(&lab)[0].data, [192, 0, 2, 5], "the one before it stays in force");
    let top = told(&lab, "/top");
    assert!(top.contains("\"name\":\"box.example.\""), "{top}");
}

/// A worker answers by its own choice of names, whatever the agent tells before it has heard of that,
/// and also when it starts anew while no agent is there.
#[test]
fn names_are_answered_by_the_choice_of_the_configuration_alone() {
    let mut lab = Lab::new();
    let exposed = |namespace: &str| {
        let namespaces = Namespaces::Named([namespace.to_owned()].into());
        let exposure = Exposure { namespaces, ..Exposure::default() };
        Exposed { exposure, ..Exposed::default() }
    };
    let chosen = |namespace: &str| format!("kubernetes: {{namespaces: [{namespace}]}}\n");
    let is_asked_for = |lab: &Lab, count: usize| {
        let said = lab.log();
        said.matches("the agent tells of names by another choice").count() >= count
    };
    let rcode = |lab: &Lab| ask(lab, "web.shop.svc.cluster.local", 1).map(|it| it.rcode);
    fs::write(lab.config_file(), chosen("shop")).expect("writes");
    lab.feed(&zone("10.96.1.1"));
    lab.start_worker(&[]);
    let mut number = 0_u8;
    until("another zone is passed over", DEADLINE, || {
        number = number.wrapping_add(1);
        lab.feed(&zone(&format!("10.96.2.{number}")));
        is_asked_for(&lab, 1)
    });
    assert_eq!(rcode(&lab), Some(2), "nothing is known of names by this choice");
    lab.feed_by(&zone("10.96.1.4"), &exposed("shop"));
    until("the zone is served", DEADLINE, || web_address(&lab) == Some(vec![10, 96, 1, 4]));
    // While it runs, another choice counts when the agent tells of it; until then nothing changes.
    fs::write(lab.config_file(), chosen("bank")).expect("writes");
    until("the configuration is taken", DEADLINE, || lab.log().contains("was read anew"));
    let before = lab.log().matches("the agent tells of names by another choice").count();
    lab.feed_by(&zone("10.96.1.5"), &exposed("shop"));
    until("the old choice is passed over", DEADLINE, || is_asked_for(&lab, before + 1));
    assert_eq!(web_address(&lab), Some(vec![10, 96, 1, 4]));
    // A worker that starts anew does not answer by a choice of before.
    lab.stop_feed();
    lab.kill_worker();
    lab.start_worker(&[]);
    assert_eq!(rcode(&lab), Some(2));
    lab.feed_by(&zone("10.96.1.6"), &exposed("bank"));
    until("the zone is served", DEADLINE, || web_address(&lab) == Some(vec![10, 96, 1, 6]));
    lab.stop_feed();
    lab.kill_worker();
    lab.start_worker(&[]);
    assert_eq!(web_address(&lab), Some(vec![10, 96, 1, 6]), "the file is of this choice");
}

/// a flood of names that do not exist, from one pod, leaves the questions of others alone.
#[test]
fn a_flood_from_one_client_does_not_reach_others() {
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    fs::write(lab.config_file(), "rate_limit: {queries_per_second: 200, burst: 200}\n")
        .expect("writes");
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", DEADLINE, || web_address(&lab).is_some());
    let flooder = lab.udp_client_at("127.0.0.66");
    let mut answered = 0;
    for number in 0..5000_u16 {
        send(&flooder, number, &format!("n{number}.shop.svc.cluster.local"), 1);
        if number % 500 == 0 {
            assert!(web_address(&lab).is_some(), "others are answered");
        }
    }
    flooder.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    while receive(&flooder).is_some() {
        answered += 1;
    }
    assert!((1..5000).contains(&answered), "{answered} of the flood were answered");
    let top = told(&lab, "/top");
    assert!(top.contains("\"client\":\"127.0.0.66\""), "{top}");
    let metrics = told(&lab, "/metrics");
    let limited =
        metrics.lines().find_map(|line| line.strip_prefix("flatnet_dns_rate_limited_total "));
    assert_ne!(limited, Some("0"), "the limit held");
}

/// a host that is not of the cluster, and whose questions the node routes here, is refused in
/// no more octets than it sent, over UDP and TCP; with the option off, the attack succeeds.
#[test]
fn who_is_not_of_the_cluster_is_refused_unless_the_file_says_otherwise() {
    const OUTSIDE: &str = "198.51.100.7";
    let mut lab = Lab::new();
    lab.feed(&zone("10.96.1.1"));
    lab.on_node(|| {
        let words = ["address", "add", "198.51.100.7/32", "dev", "lo"];
        let status = std::process::Command::new("ip").args(words).status();
        assert!(status.expect("ip is installed").success(), "the outer host's address");
    });
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", Duration::from_secs(20), || web_address(&lab).is_some());
    for name in ["web.shop.svc.cluster.local", "www.example"] {
        let message = query(9, &name.parse().expect("a name"), 1, true);
        let refusal = ask_at(&lab, OUTSIDE, &message).expect("an answer");
        assert!(refusal.len() <= message.len(), "{} octets for {}", refusal.len(), message.len());
        let refusal = parse_response(&refusal).expect("a response");
        assert_eq!((refusal.rcode, refusal.answers.len()), (5, 0), "{name}");
        let words = format!("-b {OUTSIDE} +tcp +noall +comments {name}");
        assert!(lab.dig(&words).contains("status: REFUSED"), "{name}");
    }
    let line = "coredns_acl_blocked_requests_total{server=\"dns://:53\",zone=\".\",view=\"\"} 4";
    let metrics = told(&lab, "/metrics");
    assert!(metrics.contains(line), "{metrics}");
    // The node itself is answered all the while, and the outer host once the file says so.
    for config in ["clients: any\n", "clients: cluster\n", "clients: [198.51.100.0/24]\n"] {
        fs::write(lab.config_file(), config).expect("writes");
        let expected = if config.contains("cluster") { 5 } else { 0 };
        let message = query(9, &"www.example".parse().expect("a name"), 1, true);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = ask_at(&lab, OUTSIDE, &message).and_then(|it| parse_response(&it));
            if answer.as_ref().map(|answer| answer.rcode) == Some(expected) {
                break;
            }
            assert!(Instant::now() < deadline, "{config}: {answer:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(web_address(&lab).is_some(), "{config}");
    }
}

/// What comes back to an address of the node.
fn ask_at(lab: &Lab, address: &str, message: &[u8]) -> Option<Vec<u8>> {
    let socket = lab.udp_client_at(address);
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket.send_to(message, DNS_ADDRESS).expect("sends");
    let mut buffer = [0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    buffer.get(..length).map(<[u8]>::to_vec)
}

/// It reads the zone that was kept first, and the agent's behind that.
#[test]
fn a_worker_that_starts_again_is_no_larger() {
    let mut zone = zone("10.96.1.1");
    let services = (0..MANY).map(|number| {
        let [high, low] = number.to_be_bytes();
        let addresses = vec![[10, 96, 100 + high, low].into()];
        (format!("service-{number}"), ServiceRecords::ClusterIp { addresses, ports: vec![] })
    });
    zone.namespaces.insert("large".into(), services.collect());
    let mut lab = Lab::new();
    lab.feed(&zone);
    let fresh = lab.start_worker(&[]);
    until("the zone is kept", DEADLINE, || lab.zone_file().exists());
    let fresh_kb = settled_kb(fresh);
    lab.kill_worker();
    let again = lab.start_worker(&[]);
    let served = format!("serving cluster.local with {} Services", zone_services(&zone));
    until("both zones are read", DEADLINE, || lab.log().matches(&served).count() == 3);
    let limit_kb = fresh_kb + fresh_kb * LARGER_PERCENT_MAX / 100;
    let mut again_kb = 0;
    until(&format!("memory of {limit_kb} kB"), DEADLINE, || {
        again_kb = own_kb(again);
        again_kb <= limit_kb
    });
    println!("{fresh_kb} kB, again {again_kb} kB");
}

fn zone_services(zone: &Zone) -> usize {
    zone.namespaces.values().map(|services| services.len()).sum()
}

/// What a process has of its own once that no longer changes.
fn settled_kb(process: u32) -> u64 {
    let (mut last_kb, mut since) = (own_kb(process), Instant::now());
    until("its memory has settled", DEADLINE, || {
        let now_kb = own_kb(process);
        if now_kb != last_kb {
            (last_kb, since) = (now_kb, Instant::now());
        }
        since.elapsed() >= SETTLED
    });
    last_kb
}

/// What a process has of its own: neither the program nor other files.
fn own_kb(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
