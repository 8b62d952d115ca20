//! Servers and forgers that lie, against the worker; and against a resolver of the test's
//! own that leaves out one defence, to see that the lie is one that works.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use dns::{Name, Response, parse_response, query};

use crate::asking::{A, addresses, ask, client, receive, send, until};
use crate::lab::Lab;
use crate::liar::{LIAR, LIE, Liar, TRUTH};

/// What a resolver looks at before it believes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Check {
    Id,
    Question,
    LetterCase,
    Server,
    IsResponse,
    Bailiwick,
}

/// A resolver that leaves one of its checks out, and remembers addresses of names.
#[derive(Default)]
struct Credulous {
    without: Option<Check>,
    known: BTreeMap<Name, Vec<u8>>,
}

fn lab() -> (Lab, Liar) {
    let mut lab = Lab::new();
    let liar = Liar::start(&lab);
    lab.feed(&plan::zone::Zone { domain: "cluster.local".into(), ..Default::default() });
    lab.start_worker(&[LIAR]);
    until("the zone is served", || ask(&lab, "dns-version.cluster.local").rcode == 0);
    (lab, liar)
}

/// RFC 5452; TuDoor: what is wrong is passed over, and the wait goes on.
#[test]
fn lies_are_passed_over_and_the_truth_behind_them_is_believed() {
    let (lab, liar) = lab();
    for (label, defence) in [
        ("id", Some(Check::Id)),
        ("many", Some(Check::Id)),
        ("name", Some(Check::Question)),
        ("type", Some(Check::Question)),
        ("case", Some(Check::LetterCase)),
        ("port", Some(Check::Server)),
        ("source", Some(Check::Server)),
        ("query", Some(Check::IsResponse)),
        // These are no answers to anybody; who gives up at them is denied service.
        ("noise", None),
        ("short", None),
        ("huge", None),
        ("loop", None),
    ] {
        let name = format!("{label}.example");
        assert_eq!(addresses(&lab, &name), [TRUTH], "{label}");
        assert_eq!(addresses(&lab, &name), [TRUTH], "{label}, from the cache");
        let queries = liar.asked(label).len();
        // Only letters in another case cost a question more: they are asked about over TCP.
        assert_eq!(queries, if label == "case" { 2 } else { 1 }, "{label}");
        let Some(check) = defence else { continue };
        let mut careful = Credulous::default();
        assert_eq!(careful.resolve(&lab, &name), TRUTH, "{label}: with all checks");
        let mut credulous = Credulous { without: Some(check), ..Credulous::default() };
        assert_eq!(credulous.resolve(&lab, &name), LIE, "{label}: without {check:?}");
    }
}

#[test]
fn records_of_names_that_nobody_asked_for_are_not_kept() {
    let (lab, _liar) = lab();
    let answer = ask(&lab, "bailiwick.example");
    let owners: Vec<String> =
        answer.answers.iter().map(|record| record.owner.to_string()).collect();
    assert_eq!(owners, ["bailiwick.example."], "nor passed on");
    assert_eq!(addresses(&lab, "victim.example"), [TRUTH]);
    for (without, expected) in [(None, TRUTH), (Some(Check::Bailiwick), LIE)] {
        let mut resolver = Credulous { without, ..Credulous::default() };
        resolver.resolve(&lab, "bailiwick.example");
        assert_eq!(resolver.resolve(&lab, "victim.example"), expected, "{without:?}");
    }
}

/// What a forger who does not see the question must guess: number, port and letter case.
#[test]
fn number_port_and_letter_case_differ_from_question_to_question() {
    const QUESTIONS: usize = 100;
    let (lab, liar) = lab();
    for number in 0..QUESTIONS {
        assert_eq!(addresses(&lab, &format!("guess.n{number:02}.a-longer.example")), [TRUTH]);
    }
    let asked = liar.asked("guess");
    assert_eq!(asked.len(), QUESTIONS);
    let count = |what: &dyn Fn(usize) -> Vec<u8>| {
        (0..QUESTIONS).map(what).collect::<BTreeSet<Vec<u8>>>().len()
    };
    let ids = count(&|place| asked[place].message[..2].to_vec());
    let ports = count(&|place| asked[place].from.port().to_be_bytes().to_vec());
    let cases = count(&|place| asked[place].message[22..39].to_vec());
    // Of so many out of 65,536 (or half as many ports), more than a few alike are no chance.
    assert!(ids >= 95 && ports >= 95 && cases >= 95, "{ids} numbers, {ports} ports, {cases} cases");
    let mut steps = asked.windows(2).map(|two| two[1].from.port().abs_diff(two[0].from.port()));
    assert!(steps.any(|step| step > 1000), "ports do not count up");
}

/// A server that cuts over UDP and over TCP too has two questions, not questions without end.
#[test]
fn an_answer_that_is_always_cut_ends() {
    let (lab, liar) = lab();
    let answer = ask(&lab, "cut.example");
    assert!(answer.rcode == 0 || answer.rcode == 2);
    assert_eq!(liar.asked("cut").len(), 2);
    // Who believes that the next attempt brings all of it asks for ever.
    let turns =
        lab.on_host(|| (0..50).take_while(|_| over_tcp("cut.example").is_truncated()).count());
    assert_eq!(turns, 50);
}

/// Compression that makes much of little, and aliases that lead to themselves.
#[test]
fn large_answers_of_little_octets_take_little_memory() {
    let (mut lab, _liar) = lab();
    lab.kill_worker();
    let pid = lab.start_worker(&[LIAR]);
    until("the zone is served", || ask(&lab, "dns-version.cluster.local").rcode == 0);
    assert_eq!(addresses(&lab, "www.example"), [TRUTH]);
    let before_kb = peak_kb(pid);
    let client = client(&lab);
    for id in 0..20 {
        send(&client, id, &format!("bomb.n{id}.example"), A);
        receive(&client).expect("an answer");
    }
    let grown_kb = peak_kb(pid) - before_kb;
    assert!(grown_kb < 16 << 10, "{grown_kb} kB more");
    let bomb = lab.on_host(|| over_tcp("bomb.example"));
    let written_out: usize =
        bomb.answers.iter().map(|record| record.owner.wire().len() + record.data.len()).sum();
    // Kept as it is written out, the cache's 2048 answers were gigabytes.
    assert!(written_out > 1 << 20, "{written_out} octets of 65,535");
    let circle = ask(&lab, "circle.example");
    assert!(circle.answers.len() <= 17, "{} aliases", circle.answers.len());
}

/// A stream that brings an octet now and then holds neither the question nor others.
#[test]
fn an_answer_that_drips_is_given_up_and_holds_nobody() {
    let (lab, liar) = lab();
    let waiting = client(&lab);
    send(&waiting, 1, "drip.example", A);
    until("it drips", || liar.dripped() > 2);
    for number in 0..20 {
        assert_eq!(addresses(&lab, &format!("n{number}.example")), [TRUTH]);
    }
    let answer = receive(&waiting).expect("an answer");
    assert_eq!(answer.rcode, 2, "it was given up");
    // Each attempt was one question over UDP and one over TCP, and all are over.
    let attempts = liar.asked("drip").len() / 2;
    until("the connections are closed", || liar.left() == attempts);
    let patient = lab.on_host(|| over_tcp("drip.example"));
    assert_eq!(patient.rcode, 0, "who waits for octet after octet gets it, in seconds");
}

impl Credulous {
    /// The address of a name, from the liar unless it is known.
    fn resolve(&mut self, lab: &Lab, name: &str) -> [u8; 4] {
        let name: Name = name.parse().expect("a name");
        let address = match self.known.get(&name) {
            Some(known) => known.clone(),
            None => lab.on_host(|| self.ask(&name)),
        };
        address.try_into().expect("an address")
    }

    fn ask(&mut self, name: &Name) -> Vec<u8> {
        let server = LIAR.parse().expect("an address");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(crate::asking::DEADLINE)).expect("a timeout");
        let message = query(0x1234, name, A, false);
        socket.send_to(&message, server).expect("sends");
        let mut buffer = vec![0; 65_535];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
            let mut octets = buffer[..length].to_vec();
            if self.without == Some(Check::IsResponse) {
                octets[2] |= 0x80;
            }
            let Some(response) = parse_response(&octets) else { continue };
            let asked = (response.name.is(name) && response.kind == A, response.name == *name);
            let wrong = [
                (Check::Id, response.id != 0x1234),
                (Check::Question, !asked.0),
                (Check::LetterCase, asked.0 && !asked.1),
                (Check::Server, from != server),
            ];
            if wrong.iter().any(|(check, is_wrong)| *is_wrong && self.without != Some(*check)) {
                continue;
            }
            let first = response.answers.first().expect("a record").data.clone();
            for record in response.answers {
                if self.without == Some(Check::Bailiwick) || record.owner.is(name) {
                    self.known.insert(record.owner, record.data);
                }
            }
            return first;
        }
    }
}

/// One question to the liar by a client that waits as long as octets come.
fn over_tcp(name: &str) -> Response {
    let mut stream = TcpStream::connect(LIAR).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let message = query(5, &name.parse().expect("a name"), A, false);
    stream.write_all(&(message.len() as u16).to_be_bytes()).expect("sends");
    stream.write_all(&message).expect("sends");
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).expect("a message");
    parse_response(&answer).expect("a response")
}

/// The most memory that a process has had so far.
fn peak_kb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
