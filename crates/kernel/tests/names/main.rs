//! Names of the cluster answered at pods' links (`bpf/names.c`): the same answers as the DNS
//! worker's, and everything else left to it. Needs root.

mod frames;
#[path = "../bpf/lab.rs"]
mod lab;
mod question;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use dns::{Action, Client, Index, Rules, Transport};
use ebpf_abi::names::NameSettings;
use frames::{Ends, frame, read};
use kernel::bpf::names::{LEASE, NameAnswers, Wanted};
use kernel::bpf::{Hook, probe};
use lab::{BRIDGE_MAC, Mode, Node, TestPod, address, mac};
use plan::zone::{HeadlessEndpoint, ServiceRecords, Zone};
use question::{Question, TYPE_A};
use render::names::{Client as Pod, Names, Times, of_zone};
use testkit::lab::probe::uninterrupted;
use testkit::random::Generator;

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const NEXT: i32 = -1;
const DROPPED: i32 = 2;
const ANSWERED: i32 = 7;
const TYPE_AAAA: u16 = 28;
const SERIAL: u32 = 7;
const DOMAIN: &str = "cluster.local";
const SERVERS: [&str; 3] = ["10.96.0.10", "169.254.20.10", "fd00:96::a"];
/// Questions of the comparison with the worker.
const QUESTIONS: usize = 5_000;

fn cluster_ip(addresses: &[&str]) -> ServiceRecords {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    ServiceRecords::ClusterIp { addresses, ports: vec![] }
}

fn endpoint(label: &str, text: &str) -> HeadlessEndpoint {
    HeadlessEndpoint {
        label: label.into(),
        address: address(text),
        has_hostname: true,
        ports: vec![],
    }
}

/// A zone with a bit of everything.
fn zone() -> Zone {
    let many = (1..=9).map(|n| endpoint("one", &format!("10.244.9.{n}"))).collect();
    let both = vec![
        endpoint("db-0", "10.244.1.7"),
        endpoint("db-1", "10.244.2.7"),
        endpoint("db-1", "fd00:2::7"),
    ];
    let eight = (1..=8).map(|n| endpoint(&format!("p-{n}"), &format!("fd00:8::{n}"))).collect();
    let alias = ServiceRecords::ExternalName { target: Some("example.com".into()) };
    let services = [
        ("web", cluster_ip(&["10.96.0.20"])),
        ("dual", cluster_ip(&["10.96.0.21", "fd00:96::21"])),
        ("six", cluster_ip(&["fd00:96::22"])),
        ("db", ServiceRecords::Headless { endpoints: both }),
        ("eight", ServiceRecords::Headless { endpoints: eight }),
        ("many", ServiceRecords::Headless { endpoints: many }),
        ("alias", alias),
    ];
    let services = services.map(|(name, records)| (name.to_owned(), records));
    let long = "n".repeat(60);
    let of_long = BTreeMap::from([("s".repeat(60), cluster_ip(&["10.96.0.30"]))]);
    Zone {
        domain: DOMAIN.into(),
        name_servers: vec![address("10.96.0.10")],
        namespaces: BTreeMap::from([
            ("default".to_owned(), BTreeMap::from(services)),
            (long, of_long),
        ]),
        ..Zone::default()
    }
}

/// The worker's answer.
fn worker(index: &Index, message: &[u8], client: IpAddr) -> Option<Vec<u8>> {
    let client = Client { transport: Transport::Udp, address: client };
    let mut reply = Vec::new();
    match dns::answer(message, Some(index), &Rules::default(), client, &mut reply) {
        Action::Reply => Some(reply),
        Action::Forward(_) | Action::Drop => None,
    }
}

fn settings(index: &Index) -> NameSettings {
    let times = Times { ttl_s: dns::TTL_S, negative_ttl_s: dns::NEGATIVE_TTL_S };
    let without = Question::plain("web.default.svc.cluster.local", TYPE_AAAA).message();
    let reply = worker(index, &without, address("10.244.1.5")).expect("a reply");
    let reply = dns::parse_response(&reply).expect("a response");
    render::names::settings(DOMAIN, times, &reply.authority[0].data)
}

/// A node with two pods that are answered, and a zone.
struct Scene {
    node: Node,
    pods: [TestPod; 2],
    index: Index,
    wanted: Wanted,
    names: Names,
}

impl Scene {
    fn new() -> Self {
        let mut node = Node::new(Mode::Bridge);
        node.set_forwarding(true);
        let pods = [node.add_pod(1, 5), node.add_pod(1, 6)];
        let zone = zone();
        let names = of_zone(&zone);
        let index = Index::new(zone, SERIAL);
        let client = |pod: &TestPod| Pod { addresses: pod.addresses.to_vec(), mac: pod.mac };
        let wanted = Wanted {
            clients: pods.iter().map(|pod| (pod.link.clone(), client(pod))).collect(),
            servers: SERVERS.map(address).into(),
            settings: settings(&index),
        };
        Self { node, pods, index, wanted, names }
    }

    fn load(&self, hook: Hook) -> NameAnswers {
        let options = self.node.options(hook);
        self.node.run(|| NameAnswers::load(&options)).expect("the kernel takes the program")
    }

    fn apply(&self, answers: &mut NameAnswers) -> Vec<String> {
        let done = self.node.run(|| answers.apply(&self.wanted, &self.names)).expect("a turn");
        answers.renew(LEASE).expect("a lease");
        assert_eq!(done.failures, []);
        done.changes
    }

    fn ends(&self, server: &str) -> Ends {
        let server = address(server);
        let own = self.pods[0].addresses;
        let source = own.into_iter().find(|own| own.is_ipv4() == server.is_ipv4());
        Ends {
            source: source.expect("an address of each family"),
            destination: server,
            source_mac: self.pods[0].mac,
            destination_mac: BRIDGE_MAC,
            source_port: 40_000,
            destination_port: 53,
        }
    }

    /// What the program does with a question of the first pod.
    fn ask(&self, answers: &NameAnswers, ends: &Ends, message: &[u8]) -> (i32, Vec<u8>) {
        let frame = frame(ends, message, true);
        self.node.run(|| answers.run(self.pods[0].link_index, &frame)).expect("a run")
    }
}

/// The way to attach that this kernel has.
fn hook(scene: &Scene) -> Hook {
    scene.node.run(|| probe(&scene.node.file_system)).hook
}

/// Checks an answer, whole: back to who asked, and to the last bit what the worker says.
fn check_answer(scene: &Scene, ends: &Ends, message: &[u8], left: &[u8]) {
    let (back, reply, has_checksum) = read(left);
    assert_eq!((back.source, back.destination), (ends.destination, ends.source));
    assert_eq!((back.source_mac, back.destination_mac), (ends.destination_mac, ends.source_mac));
    assert_eq!((back.source_port, back.destination_port), (53, ends.source_port));
    assert!(has_checksum, "the question had a checksum");
    assert_eq!(Some(reply), worker(&scene.index, message, ends.source), "{message:?}");
}

#[test]
fn plain_questions_have_the_workers_answers() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let rows = [
        ("web.default.svc.cluster.local", true),
        ("WEB.Default.svc.CLUSTER.local", true),
        ("dual.default.svc.cluster.local", true),
        ("six.default.svc.cluster.local", true),
        ("db.default.svc.cluster.local", true),
        ("db-0.db.default.svc.cluster.local", true),
        ("db-1.db.default.svc.cluster.local", true),
        ("eight.default.svc.cluster.local", true),
        // More addresses, and a longer name, than the map's.
        ("many.default.svc.cluster.local", false),
        (&format!("{}.{}.svc.cluster.local", "s".repeat(60), "n".repeat(60)), false),
        ("alias.default.svc.cluster.local", false),
        ("nobody.default.svc.cluster.local", false),
        ("default.svc.cluster.local", false),
        ("web.default.svc.cluster.local.default.svc.cluster.local", false),
        ("example.com", false),
        ("", false),
    ];
    for (name, is_known) in rows {
        for (server, kind, edns) in [
            (SERVERS[0], TYPE_A, None),
            (SERVERS[0], TYPE_AAAA, Some((1232, 0, vec![]))),
            (SERVERS[1], TYPE_AAAA, None),
            (SERVERS[2], TYPE_A, Some((512, 0, vec![]))),
            (SERVERS[2], TYPE_AAAA, None),
        ] {
            for id in [0, 1, 2, 0xffff] {
                let question = Question { id, edns: edns.clone(), ..Question::plain(name, kind) };
                let (ends, message) = (scene.ends(server), question.message());
                let (verdict, left) = scene.ask(&answers, &ends, &message);
                if is_known {
                    assert_eq!(verdict, ANSWERED, "{question:?} to {server}");
                    check_answer(&scene, &ends, &message, &left);
                } else {
                    assert_eq!(verdict, NEXT, "{question:?} to {server}");
                    assert_eq!(left, frame(&ends, &message, true), "left as it was");
                }
            }
        }
    }
}

#[test]
fn whatever_is_not_plain_is_left_to_the_worker() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let plain = || Question::plain("web.default.svc.cluster.local", TYPE_A);
    let cookie = vec![0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let questions = [
        ("another type", Question { kind: 16, ..plain() }),
        ("another class", Question { class: 3, ..plain() }),
        ("a response", Question { flags: 0x8100, ..plain() }),
        ("a notification", Question { flags: 0x2000, ..plain() }),
        ("cut", Question { flags: 0x0300, ..plain() }),
        ("with an answer", Question { answers: 1, ..plain() }),
        ("with signatures", Question { edns: Some((1232, 0x8000, vec![])), ..plain() }),
        ("with a cookie", Question { edns: Some((1232, 0, cookie)), ..plain() }),
        ("with something behind", Question { trailing: vec![0], ..plain() }),
        ("with much behind", Question { trailing: vec![0; 200], ..plain() }),
    ];
    let ends = scene.ends(SERVERS[0]);
    for (what, question) in questions {
        let (verdict, _) = scene.ask(&answers, &ends, &question.message());
        assert_eq!(verdict, NEXT, "{what}");
    }
    let whole = plain().message();
    for length in 0..whole.len() {
        let (verdict, _) = scene.ask(&answers, &ends, &whole[..length]);
        assert_eq!(verdict, NEXT, "{length} octets of it");
    }
    let others = [
        ("another port", Ends { destination_port: 5353, ..ends }),
        ("another server", Ends { destination: address("10.96.0.11"), ..ends }),
        // the worker's search path, and whatever rules there are, go by the source.
        ("another source", Ends { source: address("10.244.1.6"), ..ends }),
        ("another sender", Ends { source_mac: mac(6), ..ends }),
    ];
    for (what, ends) in others {
        assert_eq!(scene.ask(&answers, &ends, &whole).0, NEXT, "{what}");
    }
    assert_eq!(scene.ask(&answers, &ends, &whole).0, ANSWERED, "the same, as it should be");
    let frame = frame(&ends, &whole, true);
    let elsewhere = scene.node.run(|| answers.run(1, &frame)).expect("a run");
    assert_eq!(elsewhere.0, NEXT, "at a link that is no pod's");
}

/// Random names, types, cases and damage: what is answered is the worker's answer, and what it would
/// answer with addresses of a known name is answered.
#[test]
fn random_questions_have_the_workers_answers() {
    let seed = std::env::var("FLATNET_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("FLATNET_SEED={seed}");
    let mut random = Generator::new(seed);
    let mut scene = Scene::new();
    // Thousands of questions in a moment are no flood here.
    scene.wanted.settings.answers_max = u32::MAX;
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let labels = ["web", "dual", "six", "db", "db-0", "db-1", "default", "svc", "cluster", "local"];
    let mut answered = 0;
    for _ in 0..QUESTIONS {
        let known = random.below(2) == 0;
        let name = if known {
            let service = labels[random.below(4)];
            format!("{service}.default.svc.cluster.local")
        } else {
            let count = 1 + random.below(7);
            (0..count).map(|_| labels[random.below(labels.len())]).collect::<Vec<_>>().join(".")
        };
        let turned = name.chars().map(|letter| match random.below(2) {
            0 => letter.to_ascii_uppercase(),
            _ => letter,
        });
        let question = Question {
            name: turned.collect(),
            kind: [TYPE_A, TYPE_AAAA, 33][random.below(3)],
            id: random.below(0x1_0000) as u16,
            edns: (random.below(2) == 0).then(|| (1232, 0, vec![])),
            ..Question::plain("", 0)
        };
        let mut message = question.message();
        let is_damaged = random.below(4) == 0;
        if is_damaged {
            let at = random.below(message.len());
            message[at] = random.below(256) as u8;
        }
        let ends = scene.ends(SERVERS[random.below(SERVERS.len())]);
        let (verdict, left) = scene.ask(&answers, &ends, &message);
        match verdict {
            ANSWERED => {
                answered += 1;
                check_answer(&scene, &ends, &message, &left);
            }
            verdict => {
                assert_eq!(verdict, NEXT, "{message:?}");
                let is_plain = known && !is_damaged && question.kind != 33;
                assert!(!is_plain, "{question:?} was not answered");
            }
        }
    }
    assert!(answered > QUESTIONS / 5, "{answered} answered");
}

/// Asks by a socket of a pod. `None`: no answer in time.
fn ask_as(pod: &TestPod, server: &str, message: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let server = SocketAddr::new(address(server), 53);
    let ask = || {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(server).expect("a route");
        socket.set_read_timeout(Some(patience)).expect("a limit");
        socket.send(message).expect("sent");
        let mut reply = vec![0; 1500];
        let octets = uninterrupted(|| socket.recv(&mut reply)).ok()?;
        reply.truncate(octets);
        Some(reply)
    };
    pod.namespace.run(ask).expect("the pod")
}

#[test]
fn pods_are_answered_where_no_worker_runs_also_without_us() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    assert!(!scene.apply(&mut answers).is_empty());
    assert_eq!(scene.apply(&mut answers), Vec::<String>::new(), "a second time (invariant 14)");
    drop(answers);
    let name = "dual.default.svc.cluster.local";
    for server in SERVERS {
        for kind in [TYPE_A, TYPE_AAAA] {
            let message = Question::plain(name, kind).message();
            let reply = ask_as(&scene.pods[0], server, &message, lab::PATIENCE);
            let expected = worker(&scene.index, &message, scene.pods[0].addresses[0]);
            assert_eq!(reply, expected, "{server}");
        }
    }
    let mut successor = scene.load(hook(&scene));
    assert_eq!(scene.apply(&mut successor), Vec::<String>::new(), "taken over as it was");
    let observed = scene.node.run(|| successor.observe()).expect("observed");
    assert_eq!(observed.attached, scene.pods.iter().map(|pod| pod.link.clone()).collect());
    assert_eq!(observed.names, scene.names.len());
    assert_eq!(observed.counters["answered"], 6);
    scene.node.run(|| successor.remove()).expect("removed");
    let message = Question::plain(name, TYPE_A).message();
    assert_eq!(ask_as(&scene.pods[0], SERVERS[0], &message, lab::SILENCE), None);
}

#[test]
fn names_come_and_go_one_by_one() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let (key, found) = scene.names.iter().next().expect("a name");
    let ask = |answers: &NameAnswers| {
        let octets = found.name_octets as usize;
        let name = String::from_utf8_lossy(&key.name[1..octets - 1]);
        let name = name.replace(|letter: char| letter.is_control(), ".");
        let message = Question::plain(&name, TYPE_A).message();
        scene.ask(answers, &scene.ends(SERVERS[0]), &message).0
    };
    assert_eq!(ask(&answers), ANSWERED);
    answers.change(&BTreeMap::from([(*key, None)])).expect("gone");
    answers.change(&BTreeMap::from([(*key, None)])).expect("gone already");
    assert_eq!(ask(&answers), NEXT);
    answers.change(&BTreeMap::from([(*key, Some(*found))])).expect("back");
    assert_eq!(ask(&answers), ANSWERED);
}

/// What nobody keeps any more is left to the worker, whose rules may be others by then.
#[test]
fn answers_end_with_the_lease() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let message = Question::plain("web.default.svc.cluster.local", TYPE_A).message();
    let ask = |answers: &NameAnswers| scene.ask(answers, &scene.ends(SERVERS[0]), &message).0;
    assert_eq!(ask(&answers), ANSWERED);
    answers.renew(Duration::ZERO).expect("the end");
    assert_eq!(ask(&answers), NEXT);
    assert_eq!(answers.counters().expect("counters")["passed_lease"], 1);
    answers.renew(LEASE).expect("another lease");
    assert_eq!(ask(&answers), ANSWERED);
}

#[test]
fn clients_come_and_go_one_by_one() {
    let scene = Scene::new();
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let message = Question::plain("web.default.svc.cluster.local", TYPE_A).message();
    let ask = |answers: &NameAnswers| scene.ask(answers, &scene.ends(SERVERS[0]), &message).0;
    let mut clients = scene.wanted.clients.clone();
    let first = scene.pods[0].link.clone();
    let client = clients.remove(&first).expect("the first pod");
    let set = |answers: &mut NameAnswers, clients: &BTreeMap<String, Pod>| {
        let done = scene.node.run(|| answers.set_clients(clients)).expect("a turn");
        assert_eq!(done.failures, []);
        scene.node.run(|| answers.observe()).expect("observed").attached
    };
    assert!(!set(&mut answers, &clients).contains(&first));
    assert_eq!(ask(&answers), NEXT);
    clients.insert(first.clone(), client);
    assert!(set(&mut answers, &clients).contains(&first));
    assert_eq!(ask(&answers), ANSWERED);
    assert_eq!(scene.apply(&mut answers), Vec::<String>::new(), "all as before");
}

/// a pod that floods has its own answers limited, nobody else's. With a higher limit the same
/// flood is answered.
#[test]
fn a_flood_of_one_pod_is_dropped_there() {
    let mut scene = Scene::new();
    scene.wanted.settings.answers_max = 10;
    let mut answers = scene.load(hook(&scene));
    scene.apply(&mut answers);
    let ends = scene.ends(SERVERS[0]);
    let message = Question::plain("web.default.svc.cluster.local", TYPE_A).message();
    let dropped = |answers: &NameAnswers| {
        (0..2_000).filter(|_| scene.ask(answers, &ends, &message).0 == DROPPED).count()
    };
    assert!(dropped(&answers) > 0, "the flood was not limited");
    let other = ask_as(&scene.pods[1], SERVERS[0], &message, lab::PATIENCE);
    assert!(other.is_some(), "the other pod");
    let unlimited = NameSettings { answers_max: u32::MAX, ..scene.wanted.settings };
    answers.set(&unlimited).expect("set");
    assert_eq!(dropped(&answers), 0);
}

#[test]
fn the_older_hook_answers_too() {
    let scene = Scene::new();
    let mut answers = scene.load(Hook::Clsact);
    scene.apply(&mut answers);
    let message = Question::plain("web.default.svc.cluster.local", TYPE_A).message();
    assert!(ask_as(&scene.pods[0], SERVERS[0], &message, lab::PATIENCE).is_some());
    let attached = scene.node.run(|| answers.observe()).expect("observed").attached;
    assert_eq!(attached.len(), 2);
    scene.node.run(|| answers.remove()).expect("removed");
    assert_eq!(ask_as(&scene.pods[0], SERVERS[0], &message, lab::SILENCE), None);
    let unused: BTreeSet<String> = BTreeSet::new();
    let again = scene.load(Hook::Clsact);
    let mut again = again;
    assert_eq!(scene.node.run(|| again.observe()).expect("observed").attached, unused);
    scene.node.run(|| again.remove()).expect("removed");
}
