//! Clients that ask too much: what others get meanwhile, and what a flood gets out of it.

use std::net::UdpSocket;
use std::time::Duration;

use dns::query;
use plan::zone::{HeadlessEndpoint, ServiceRecords, Zone};

use crate::asking::{A, DEADLINE, ask, receive, send, until};
use crate::lab::{DNS_ADDRESS, Lab, UPSTREAM};

/// Who floods. Its questions, and those of the client below, come to one thread of the worker:
/// their addresses differ by a multiple of every number of threads.
const FLOODER: &str = "127.0.0.66";
const OTHER: &str = "127.0.0.78";
/// Questions of a flood, and of the other client meanwhile.
const FLOOD: u16 = 3000;
const OTHERS: u16 = 60;
/// A client that got nothing for this long gets nothing more.
const SILENCE: Duration = Duration::from_secs(2);
/// What a datagram may carry to a client (the value of DNS Flag Day 2020).
const DATAGRAM_OCTETS: usize = 1232;

fn zone() -> Zone {
    let endpoint = |number: u8| HeadlessEndpoint {
        label: format!("10-244-1-{number:03}"),
        address: std::net::Ipv4Addr::new(10, 244, 1, number).into(),
        has_hostname: false,
        ports: vec![],
    };
    let many = ServiceRecords::Headless { endpoints: (0..200).map(endpoint).collect() };
    let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
    zone.namespaces.entry("shop".into()).or_default().insert("many".into(), many);
    zone
}

fn lab(config: &str) -> Lab {
    let mut lab = Lab::new();
    lab.feed(&zone());
    std::fs::write(lab.config_file(), config).expect("writes");
    lab.start_worker(&[UPSTREAM]);
    until("the zone is served", || ask(&lab, "dns-version.cluster.local").rcode == 0);
    lab
}

fn client_at(lab: &Lab, address: &str) -> UdpSocket {
    let socket = lab.udp_client_at(address);
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

/// Names that do not exist, of the cluster and of others: nobody else waits for more of them than
/// are answered before its own question, loses an answer, or hears of failure.
#[test]
fn a_flood_of_missing_names_loses_no_answer_of_another_client() {
    let lab = lab("rate_limit: {queries_per_second: 20, burst: 100}\n");
    let (flooder, other) = (client_at(&lab, FLOODER), client_at(&lab, OTHER));
    for id in 0..OTHERS {
        for number in 0..FLOOD / OTHERS {
            let zone = if number % 2 == 0 { "shop.svc.cluster.local" } else { "example" };
            send(&flooder, id, &format!("missing{id}x{number}.{zone}"), A);
        }
        let name = if id % 2 == 0 {
            "many.shop.svc.cluster.local".into()
        } else {
            format!("n{id}.example")
        };
        send(&other, id, &name, A);
        let answer = receive(&other).expect("an answer to every question");
        assert_eq!((answer.id, answer.rcode), (id, 0), "{name}");
    }
    let counts = counts(&lab);
    assert!(counts.limited > u64::from(FLOOD) / 2, "{counts:?}");
    // Work that the flood made: answers to it, and questions to the upstream server.
    assert!(counts.answered_missing < u64::from(FLOOD) / 2, "{counts:?}");
}

/// Names whose own servers are silent, so that each question holds a place for seconds: of one
/// client, they leave places for others. Spread over many clients, to whom the bound of each does
/// not apply, the same questions take them all.
#[test]
fn a_flood_of_slow_names_leaves_places_for_others() {
    for (flooders, expected) in [(1, 0), (8, 2)] {
        let lab = lab("rate_limit: {queries_per_second: 0}\n");
        let sockets: Vec<UdpSocket> = (0..flooders)
            .map(|number| client_at(&lab, &format!("127.0.0.{}", 66 + 12 * number)))
            .collect();
        let other = client_at(&lab, "127.0.0.6");
        let mut number: u16 = 0;
        let mut flood_and_ask = || {
            for _ in 0..20 {
                for _ in 0..50 {
                    let flooder = &sockets[usize::from(number) % sockets.len()];
                    send(flooder, number, &format!("silent.n{number}.example"), A);
                    number = number.wrapping_add(1);
                }
                // What came before it was taken when it is answered: none is lost.
                send(&other, 1, "dns-version.cluster.local", A);
                assert_eq!(receive(&other).map(|answer| answer.rcode), Some(0));
            }
            send(&other, 2, &format!("n{number}.example"), A);
            receive(&other).expect("an answer").rcode
        };
        if expected == 0 {
            assert_eq!(flood_and_ask(), expected, "one flooder");
        } else {
            // A machine may be slower than places become free.
            until("all places are taken", || flood_and_ask() == expected);
        }
    }
}

/// Large answers to small questions, as a forger of sources wants them: an address gets no more of
/// them than the limit lets. With the limit off it gets as many as are asked for.
#[test]
fn an_address_gets_no_more_octets_than_its_limit() {
    const LIMIT: usize = 10;
    const ASKED: usize = 1000;
    for is_limited in [true, false] {
        let speed = if is_limited { LIMIT } else { 0 };
        let lab = lab(&format!("rate_limit: {{queries_per_second: {speed}, burst: {LIMIT}}}\n"));
        let victim = client_at(&lab, FLOODER);
        if is_limited {
            victim.set_read_timeout(Some(SILENCE)).expect("a timeout");
        }
        let message = question("many.shop.svc.cluster.local", A, 4096);
        let (mut answers, mut octets) = (0, 0);
        let mut take = |at_most: usize| {
            let mut buffer = [0; 4096];
            for _ in 0..at_most {
                let Ok(length) = victim.recv(&mut buffer) else { break };
                assert!(length <= DATAGRAM_OCTETS, "{length} octets in a datagram");
                answers += 1;
                octets += length;
            }
            (answers, octets)
        };
        for _ in 0..ASKED / 20 {
            (0..20).for_each(|_| drop(victim.send_to(&message, DNS_ADDRESS)));
            if !is_limited {
                take(20);
            }
        }
        let (answers, octets) = take(if is_limited { ASKED } else { 0 });
        if is_limited {
            assert!((LIMIT..ASKED / 2).contains(&answers), "{answers} of {ASKED}");
        } else {
            assert_eq!(answers, ASKED, "without the limit");
            assert!(octets > 5 * ASKED * message.len(), "{octets} octets");
        }
    }
}

/// What is small stays small, and what is no question has no answer.
#[test]
fn answers_are_no_larger_than_asked_for_and_answers_have_none() {
    let lab = lab("");
    let client = client_at(&lab, OTHER);
    let any = 255;
    let mut no_edns = question("many.shop.svc.cluster.local", A, 0);
    no_edns.truncate(no_edns.len() - 11);
    no_edns[11] = 0;
    let mut transfer = question("cluster.local", 252, 4096);
    transfer[1] = 9;
    for (what, message, most) in [
        ("ANY of many", question("many.shop.svc.cluster.local", any, 4096), 100),
        ("ANY of others' names", question("www.example", any, 4096), 100),
        ("without EDNS", no_edns, 512),
        ("a payload of 600", question("many.shop.svc.cluster.local", A, 600), 600),
        ("a payload of nothing", question("many.shop.svc.cluster.local", A, 0), 512),
        ("a payload of 65,535", question("many.shop.svc.cluster.local", A, 65535), DATAGRAM_OCTETS),
        ("a whole zone", transfer, 100),
    ] {
        client.send_to(&message, DNS_ADDRESS).expect("sends");
        let mut buffer = [0; 65535];
        let length = client.recv(&mut buffer).expect("an answer");
        assert!(length <= most, "{what}: {length} octets");
    }
    // Two servers that answer each other's answers would do so for ever.
    let mut response = question("many.shop.svc.cluster.local", A, 1232);
    response[2] |= 0x80;
    for message in [response, vec![0; 11], vec![]] {
        client.send_to(&message, DNS_ADDRESS).expect("sends");
    }
    send(&client, 99, "dns-version.cluster.local", A);
    assert_eq!(receive(&client).expect("an answer").id, 99, "the first answer is to the question");
}

/// A question that offers so much room for its answer.
fn question(name: &str, kind: u16, payload_octets: u16) -> Vec<u8> {
    let mut message = query(1, &name.parse().expect("a name"), kind, true);
    let at = message.len() - 8;
    message[at..at + 2].copy_from_slice(&payload_octets.to_be_bytes());
    message
}

#[derive(Debug)]
struct Counts {
    limited: u64,
    answered_missing: u64,
}

fn counts(lab: &Lab) -> Counts {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(lab.control_socket()).expect("it");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("sends");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("metrics");
    let sum = |start: &str, label: &str| {
        let lines = text.lines().filter(|line| line.starts_with(start) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    Counts {
        limited: sum("flatnet_dns_rate_limited_total", ""),
        answered_missing: sum("coredns_dns_responses_total", "NXDOMAIN"),
    }
}
