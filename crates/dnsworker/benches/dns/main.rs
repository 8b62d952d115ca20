//! What an answer of cluster DNS costs in processor time and memory (goal G10 of the performance
//! goals): the worker beside Knot and Unbound, which have the same names. Needs root, and the two:
//!
//! ```text
//! apt-get install knot
//! ./x bench dns
//! ```
//!
//! All three run on one processor, the client on another, in a network namespace; they take turns
//! within each round. What counts is the time that a server's threads ran, by the kernel's account,
//! over the questions that were answered.

mod flood;
#[path = "../../tests/lab/mod.rs"]
mod lab;
mod peers;
mod questions;

use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use lab::{DNS_ADDRESS, Lab};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use peers::Peer;
use questions::{ADDRESSED, Asking, ENDPOINTS, HEADLESS, MIX, PLAIN, Question};

/// Rounds that count; one before them does not.
const ROUNDS: usize = 7;
/// Questions of one round.
const QUESTIONS: usize = 16_000;
/// Questions under way at one time.
const BURSTS: [usize; 2] = [1, 32];
/// How long a server may take to know its names.
const START: Duration = Duration::from_secs(120);

/// A server that is measured.
struct Server {
    name: &'static str,
    address: SocketAddrV4,
    pid: u32,
}

fn main() {
    // What is started from here on stays on the first processor, and makes one thread a socket.
    stay_on(0);
    let mut lab = Lab::new();
    lab.feed(&questions::zone());
    // More than can be asked: the limit counts, and does not limit.
    let limit = "rate_limit: {queries_per_second: 100000000, burst: 100000000}\n";
    std::fs::write(lab.config_file(), limit).expect("writes");
    let worker = lab.start_worker(&[]);
    let port = |port| SocketAddrV4::new(*DNS_ADDRESS.ip(), port);
    let knot = Peer::knot(&lab, port(5301));
    let unbound = Peer::unbound(&lab, port(5302));
    let servers = [
        Server { name: "Knot", address: port(5301), pid: knot.pid() },
        Server { name: "flatnet", address: DNS_ADDRESS, pid: worker },
        Server { name: "Unbound", address: port(5302), pid: unbound.pid() },
    ];
    stay_on(1);
    lab.on_node(|| {
        for server in &servers {
            wait_for(server);
        }
        println!("{} Services, {} endpoints", ADDRESSED + HEADLESS, HEADLESS * ENDPOINTS);
        println!("processor time of one answer, in ns");
        println!("{:<44}{:>8}{:>8}{:>8}", "", "min", "median", "max");
        for (what, mix) in [("an address", PLAIN), ("a mix", MIX)] {
            for burst in BURSTS {
                measure(&servers, &format!("{what}, {burst} at once"), mix, burst);
            }
        }
    });
    println!("memory: the proportional share, in kB");
    for server in &servers {
        println!("{:<44}{:>8}", server.name, share_kb(server.pid));
    }
    println!("round trip of one client's question, in µs");
    println!("{:<44}{:>8}{:>8}", "", "median", "p99");
    for (what, burst, limit) in [
        ("alone", 0, flood::LIMIT),
        ("behind a flood of missing names", flood::BURST, flood::LIMIT),
        ("the same without the limit", flood::BURST, 0),
    ] {
        flood::limit(&lab, limit);
        let times = lab.on_node(|| flood::times(burst));
        println!("{what:<44}{:>8}{:>8}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
}

fn measure(servers: &[Server], what: &str, mix: &[Question], burst: usize) {
    let mut costs = vec![Vec::new(); servers.len()];
    let mut asking: Vec<Asking> =
        servers.iter().map(|server| Asking::new(server.address.into(), mix)).collect();
    for round in 0..=ROUNDS {
        for ((server, asking), costs) in servers.iter().zip(&mut asking).zip(&mut costs) {
            let before = ran(server.pid);
            asking.ask(QUESTIONS, burst);
            let cost = (ran(server.pid) - before).as_nanos() as f64 / QUESTIONS as f64;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    let knot = costs.first().cloned().unwrap_or_default();
    for (server, costs) in servers.iter().zip(costs) {
        let ratios: Vec<f64> = costs.iter().zip(&knot).map(|(own, knot)| own / knot).collect();
        print_row(&format!("{what}: {}", server.name), costs, 0);
        if server.name != "Knot" {
            print_row("  against Knot", ratios, 2);
        }
    }
}

fn print_row(what: &str, mut values: Vec<f64>, digits: usize) {
    values.sort_by(f64::total_cmp);
    let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    println!("{what:<44}{min:>8.digits$}{median:>8.digits$}{max:>8.digits$}");
}

fn wait_for(server: &Server) {
    let until = Instant::now() + START;
    while !questions::is_ready(server.address.into()) {
        assert!(Instant::now() < until, "{} knows no names", server.name);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &set).expect("one of two processors");
}

/// How long a process ran so far, all its threads together.
fn ran(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running server");
    let ran = tasks.map(|task| {
        let file = task.expect("a thread").path().join("schedstat");
        let text = std::fs::read_to_string(file).expect("the kernel counts");
        text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(ran.sum())
}

/// Of pages that processes share, each counts its part.
fn share_kb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("its share");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Where a client asks.
fn connected(to: SocketAddr) -> std::net::UdpSocket {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(to).expect("a route");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    socket
}
