//! New connections by the hundred a second through a node port, while the node's programs are
//! looked after.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpf_abi::flows::FLOWS_DEFAULT;
use kernel::bpf::probe;
use netlink::Netns;

use crate::lab::{Mode, PATIENCE};
use crate::one_port::load_table;
use crate::scene::{FAMILIES, Frontend, Scene, TARGET};

/// Clients at once, and how often each begins a connection: 500 a second by all.
const CLIENTS: usize = 8;
const INTERVAL: Duration = Duration::from_millis(16);
/// Long enough that clients' ports and the node's are used again.
const LASTING: Duration = Duration::from_secs(10);
/// Between two turns of the loop that looks after the programs.
const TURN: Duration = Duration::from_millis(200);
const QUESTION: &[u8] = b"question";
const ANSWER: &[u8] = b"answer";

/// Answers each connection in a thread of its own, and closes it: the end that closes first, mostly
/// this one, keeps the connection's ports for a minute (TIME_WAIT).
struct Closing {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
    namespace: Netns,
}

impl Closing {
    fn start(namespace: &Netns, address: SocketAddr) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let listener = namespace.run(|| TcpListener::bind(address)).expect("the namespace");
        let listener = listener.expect("a listener");
        let flag = ends.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || answer(stream));
            }
        });
        Self { ends, thread: Some(thread), address, namespace: another(namespace) }
    }

    /// First segments that were taken for old ones of a connection that is over, as the kernel
    /// counts them.
    fn refused_as_old(&self) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
        let text = self.namespace.run(read).expect("the namespace").expect("counters");
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let mut words = || lines.next().expect("a line").split(' ').collect::<Vec<_>>();
        let (names, values) = (words(), words());
        let place = names.iter().position(|name| *name == "PAWSTimewait");
        values[place.expect("the counter")].parse().expect("a number")
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = self.namespace.run(|| TcpStream::connect_timeout(&self.address, PATIENCE));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Another holder of a namespace.
fn another(namespace: &Netns) -> Netns {
    namespace.run(Netns::current).and_then(|own| own).expect("the namespace")
}

fn answer(mut stream: TcpStream) {
    let mut piece = [0; 64];
    let _ = stream.set_read_timeout(Some(PATIENCE));
    if stream.read(&mut piece).is_ok() {
        let _ = stream.write_all(ANSWER);
    }
}

fn ask(target: SocketAddr) -> io::Result<()> {
    let mut piece = [0; 64];
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(QUESTION)?;
    match stream.read(&mut piece)? {
        count if piece[..count] == *ANSWER => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Asks steadily. Answers how often, and what failed.
fn ask_steadily(target: SocketAddr, end: Instant) -> (usize, Vec<String>) {
    let (mut asked, mut failed) = (0, Vec::new());
    let mut next = Instant::now();
    while Instant::now() < end {
        let began = Instant::now();
        asked += 1;
        if let Err(error) = ask(target) {
            failed.push(format!("{error} after {:?}", began.elapsed()));
        }
        next += INTERVAL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (asked, failed)
}

/// agents that come again and again, and read and write what is right already, cost no
/// connection; and no client gets a port of the node that its endpoint knows as another's.
#[test]
fn connections_by_a_node_port_are_made_at_once_whatever_ports_were_used_before() {
    let hook = probe("/sys/fs/bpf".as_ref()).hook;
    let mut scene = Scene::with_flows(Mode::Bridge, hook, FLOWS_DEFAULT);
    load_table(&scene);
    let pods = [&scene.pods[1], &scene.remote];
    let (here, elsewhere) = (pods[0].addresses, pods[1].addresses);
    let servers: Vec<Closing> = pods
        .into_iter()
        .flat_map(|pod| pod.addresses.map(|own| (pod, SocketAddr::new(own, TARGET))))
        .map(|(pod, own)| Closing::start(&pod.namespace, own))
        .collect();
    scene.serve(Frontend::NODE_PORT, &[here, elsewhere]);
    let end = Instant::now() + LASTING;
    let start = |number: usize| {
        let namespace = another(&scene.remote.namespace);
        let target = Frontend::NODE_PORT.address(FAMILIES[number % 2]);
        std::thread::spawn(move || namespace.run(|| ask_steadily(target, end)))
    };
    let clients: Vec<_> = (0..CLIENTS).map(start).collect();
    while Instant::now() < end {
        scene.restart();
        assert_eq!(scene.apply(), Vec::<String>::new());
        scene.write();
        std::thread::sleep(TURN);
    }
    let mut all = 0;
    for client in clients {
        let (asked, failed) = client.join().expect("a client").expect("the namespace");
        assert_eq!(failed, Vec::<String>::new());
        all += asked;
    }
    assert!(all > 0);
    let refused: u64 = servers.iter().map(Closing::refused_as_old).sum();
    assert_eq!(refused, 0, "of {all} connections");
}
