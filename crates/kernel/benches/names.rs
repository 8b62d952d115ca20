//! What a question for a name of the cluster costs a pod (goal G11 of the performance goals): the
//! program at its link against Knot on the same node. Needs root, and Knot:
//!
//! ```text
//! apt-get install knot
//! ./x bench names
//! ```
//!
//! Client and server share one processor, so that the median of a round trip is the processor time
//! of the whole way there and back. The two take turns: while the program is attached it answers
//! first, and Knot never sees the question.

#[path = "../tests/bpf/lab.rs"]
mod lab;
#[path = "../tests/names/question.rs"]
mod question;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::bpf::names::{NameAnswers, Wanted};
use kernel::bpf::probe;
use lab::{Mode, Node, TestPod, address};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plan::zone::{ServiceRecords, Zone};
use question::{Question, TYPE_A};
use render::names::{Client, Names, Times, of_zone, settings};

/// Rounds that count; one before them does not.
const ROUNDS: usize = 7;
/// Longer than a round takes.
const LEASE: Duration = Duration::from_secs(600);
/// Questions of one round.
const QUESTIONS: usize = 10_000;
const SERVER: &str = "10.96.0.10";
const DOMAIN: &str = "cluster.local";
const NAME: &str = "service-7.default.svc.cluster.local";
/// How many Services the zone has.
const SERVICES: usize = 10_000;
/// How long Knot may take to start.
const START: Duration = Duration::from_secs(30);

fn main() {
    let mut processor = CpuSet::new();
    processor.set(0).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &processor).expect("one processor");
    let mut node = Node::new(Mode::Bridge);
    node.set_forwarding(true);
    let pod = node.add_pod(1, 5);
    let loopback = node.netlink.require_link("lo").expect("loopback").index;
    node.netlink.add_address(loopback, IpNet::from(address(SERVER))).expect("an address");
    give_gateway(&mut node);
    let addresses: BTreeMap<String, String> = (0..SERVICES)
        .map(|number| {
            (format!("service-{number}"), format!("10.97.{}.{}", number / 250, number % 250 + 1))
        })
        .collect();
    let _knot = Knot::start(&node, &addresses);
    let socket = pod.namespace.run(client).expect("the pod");
    wait_for_answer(&socket);

    let options = kernel::bpf::Options {
        hook: probe(&node.file_system).hook,
        file_system: node.file_system.clone(),
    };
    let (wanted, names) = program(&pod, &addresses);
    let (mut by_knot, mut by_program) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let knot = measure(&socket);
        let mut answers = node.run(|| NameAnswers::load(&options)).expect("the program");
        let done = node.run(|| answers.apply(&wanted, &names)).expect("a turn");
        assert_eq!(done.failures, []);
        answers.renew(LEASE).expect("a lease");
        let program = measure(&socket);
        let counters = answers.counters().expect("counters");
        assert!(counters["answered"] >= QUESTIONS as u64, "{counters:?}");
        node.run(|| answers.remove()).expect("removed");
        if round > 0 {
            by_knot.push(knot.as_secs_f64() * 1e6);
            by_program.push(program.as_secs_f64() * 1e6);
        }
    }
    let ratios = by_program.iter().zip(&by_knot).map(|(program, knot)| program / knot).collect();
    println!("{:<52}{:>8}{:>8}{:>8}", "one question, 10,000 Services", "min", "median", "max");
    for (what, values) in [
        ("Knot, round trip in µs", by_knot),
        ("the program at the pod's link, in µs", by_program),
        ("the program against Knot (goal G11: at most 0.35)", ratios),
    ] {
        let mut values: Vec<f64> = values;
        values.sort_by(f64::total_cmp);
        println!(
            "{what:<52}{:>8.2}{:>8.2}{:>8.2}",
            values[0],
            values[ROUNDS / 2],
            values[ROUNDS - 1]
        );
    }
}

/// The node's address on the bridge, so that it has a way back to its pods' questions.
fn give_gateway(node: &mut Node) {
    let bridge = node.netlink.require_link("cni0").expect("the bridge").index;
    node.netlink.add_address(bridge, lab::range("10.244.1.1/24")).expect("an address");
}

fn program(pod: &TestPod, addresses: &BTreeMap<String, String>) -> (Wanted, Names) {
    let services = addresses.iter().map(|(name, text)| {
        let records = ServiceRecords::ClusterIp { addresses: vec![address(text)], ports: vec![] };
        (name.clone(), records)
    });
    let zone = Zone {
        domain: DOMAIN.into(),
        namespaces: BTreeMap::from([("default".to_owned(), services.collect())]),
        ..Zone::default()
    };
    let client = Client { addresses: pod.addresses.to_vec(), mac: pod.mac };
    let mut settings = settings(DOMAIN, Times { ttl_s: 5, negative_ttl_s: 5 }, &[]);
    settings.answers_max = u32::MAX;
    let wanted = Wanted {
        clients: BTreeMap::from([(pod.link.clone(), client)]),
        servers: [address(SERVER)].into(),
        settings,
    };
    (wanted, of_zone(&zone))
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(SocketAddr::new(address(SERVER), 53)).expect("a route");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    socket
}

fn wait_for_answer(socket: &UdpSocket) {
    let until = Instant::now() + START;
    let message = Question::plain(NAME, TYPE_A).message();
    let mut reply = [0; 512];
    while Instant::now() < until {
        if socket.send(&message).is_ok() && socket.recv(&mut reply).is_ok() {
            assert_eq!(reply[3] & 15, 0, "Knot knows the name");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("Knot answers nothing");
}

/// The median of a question's round trip.
fn measure(socket: &UdpSocket) -> Duration {
    let mut times = Vec::with_capacity(QUESTIONS);
    let mut reply = [0; 512];
    let mut question = Question::plain(NAME, TYPE_A);
    for number in 0..QUESTIONS {
        question.id = number as u16;
        let message = question.message();
        let start = Instant::now();
        socket.send(&message).expect("sent");
        let octets = socket.recv(&mut reply).expect("answered");
        times.push(start.elapsed());
        assert!(octets > message.len() && reply[..2] == message[..2], "an answer to it");
    }
    times.sort();
    times[QUESTIONS / 2]
}

/// Knot in the node's namespace, with the same names. Ends with the value.
struct Knot {
    process: Child,
    directory: PathBuf,
}

impl Knot {
    fn start(node: &Node, addresses: &BTreeMap<String, String>) -> Self {
        let directory = std::env::temp_dir().join(format!("flatnet-knot-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let place = directory.display();
        let mut zone = String::from(
            "$ORIGIN cluster.local.\n$TTL 5\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\n",
        );
        zone.push_str(&format!("ns.dns A {SERVER}\n"));
        for (name, address) in addresses {
            zone.push_str(&format!("{name}.default.svc A {address}\n"));
        }
        std::fs::write(directory.join("zone"), zone).expect("written");
        let configuration = format!(
            "server:\n  listen: {SERVER}@53\n  rundir: {place}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\ndatabase:\n  storage: {place}\nzone:\n  - domain: {DOMAIN}\n    storage: {place}\n    file: zone\n"
        );
        let file = directory.join("knot.conf");
        std::fs::write(&file, configuration).expect("written");
        let start = || {
            Command::new("knotd")
                .arg("-c")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        };
        let process = node.run(start).expect("Knot cannot be started: apt-get install knot");
        Self { process, directory }
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
