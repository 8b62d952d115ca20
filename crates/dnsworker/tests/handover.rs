//! Workers that die, end and are replaced while they are asked (issue 5, item 5): their sockets go
//! on. Needs root, and `ip`; fails without.
#![allow(unsafe_code)] // threads of another user: see SAFETY below.

mod lab;

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dns::{parse_response, query};
use lab::{DNS_ADDRESS, Lab, UPSTREAM};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plan::zone::{ServiceRecords, Zone};

/// Waits are bounded by this.
const DEADLINE: Duration = Duration::from_secs(15);
/// A question that has no answer after this long is asked once more, as resolvers do.
const ASKED_AGAIN: Duration = Duration::from_secs(3);
/// The time between questions of the load.
const INTERVAL: Duration = Duration::from_millis(2);
/// How often the worker is killed.
const KILLS: usize = 20;
/// Issue 5, item 5: a killed worker is back in this time. A busy machine may be late now and then.
const BACK: Duration = Duration::from_millis(100);
/// How often the worker is replaced.
const HANDOVERS: usize = 5;
/// Questions before and after each.
const QUESTIONS: usize = 50;
/// Nobody's user.
const NOBODY: libc::uid_t = 65534;

const NAME: &str = "web.shop.svc.cluster.local";

fn zone() -> Zone {
    let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
    let addresses = vec!["10.96.1.1".parse().expect("an address")];
    let web = ServiceRecords::ClusterIp { addresses, ports: vec![] };
    zone.namespaces.entry("shop".into()).or_default().insert("web".into(), web);
    zone
}

/// A lab whose worker knows the zone, also after its death.
fn lab(restarts: bool) -> Lab {
    let mut lab = Lab::new();
    if restarts {
        lab.restart_by_itself();
    }
    lab.feed(&zone());
    lab.start_worker(&[UPSTREAM]);
    let socket = client(&lab, Duration::from_millis(200));
    until("the zone is served and kept", || {
        ask(&socket, 1, NAME) == Some(0) && lab.zone_file().exists()
    });
    lab
}

fn client(lab: &Lab, patience: Duration) -> UdpSocket {
    let socket = lab.udp_client();
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    socket
}

/// One question; its result code, if an answer comes in time.
fn ask(socket: &UdpSocket, id: u16, name: &str) -> Option<u16> {
    let message = query(id, &name.parse().expect("a name"), 1, true);
    socket.send_to(&message, DNS_ADDRESS).expect("sends");
    let mut buffer = [0; 2048];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        let response = parse_response(&buffer[..length]).expect("a response");
        if response.id == id {
            return Some(response.rcode);
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a load came to.
#[derive(Debug, Default)]
struct Outcome {
    asked: usize,
    /// Answered only when they were asked again.
    asked_again: usize,
    /// Never answered, or with a failure.
    lost: usize,
}

/// A load that goes on.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    asked: AtomicUsize,
}

impl Load {
    /// Waits until so many more questions were asked.
    fn goes_on_for(&self, questions: usize) {
        let wanted = self.asked.load(Ordering::SeqCst) + questions;
        until("the load goes on", || self.asked.load(Ordering::SeqCst) >= wanted);
    }
}

/// Asks while `work` goes on: the cluster's names and those of others, each question once, and once
/// more when no answer came.
fn under_load(socket: &UdpSocket, work: impl FnOnce(&Load)) -> Outcome {
    let going = Load::default();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(socket, &going));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&going)));
        going.is_over.store(true, Ordering::SeqCst);
        let outcome = load.join().expect("the load");
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        outcome
    })
}

fn load(socket: &UdpSocket, going: &Load) -> Outcome {
    let is_over = || going.is_over.load(Ordering::SeqCst);
    let mut outcome = Outcome::default();
    let mut waiting: BTreeMap<u16, (Instant, bool, String)> = BTreeMap::new();
    let send = |id: u16, name: &str| {
        let message = query(id, &name.parse().expect("a name"), 1, true);
        socket.send_to(&message, DNS_ADDRESS).expect("sends");
    };
    let mut next = Instant::now();
    let mut buffer = [0; 2048];
    while !(is_over() && waiting.is_empty()) {
        if Instant::now() >= next && !is_over() {
            let id = outcome.asked as u16;
            let name = if id % 4 == 3 { format!("n{id}.example") } else { NAME.to_owned() };
            send(id, &name);
            waiting.insert(id, (Instant::now(), false, name));
            outcome.asked += 1;
            going.asked.store(outcome.asked, Ordering::SeqCst);
            next = Instant::now() + INTERVAL;
        }
        if let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let response = parse_response(&buffer[..length]).expect("a response");
            if let Some((_, was_asked_again, _)) = waiting.remove(&response.id) {
                outcome.asked_again += usize::from(was_asked_again);
                outcome.lost += usize::from(response.rcode != 0);
            }
        }
        for (id, (since, was_asked_again, name)) in &mut waiting {
            if since.elapsed() > ASKED_AGAIN && !*was_asked_again {
                send(*id, name);
                (*since, *was_asked_again) = (Instant::now(), true);
            }
        }
        waiting.retain(|_, (since, _, _)| {
            let is_kept = since.elapsed() <= DEADLINE;
            outcome.lost += usize::from(!is_kept);
            is_kept
        });
    }
    outcome
}

/// The worker that a keeper runs.
fn child_of(keeper: u32) -> Option<u32> {
    let line = format!("PPid:\t{keeper}\n");
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| status.contains(&line))
    })
}

/// A worker that is killed is back at once, on the same sockets: what it had not read yet is
/// answered by its successor, and nothing is refused.
#[test]
fn a_killed_worker_is_back_at_once_on_the_same_sockets() {
    let mut lab = lab(true);
    let keeper = Ended(lab.release(vec![]).expect("a worker"));
    let mut gaps = Vec::new();
    let asking = client(&lab, Duration::from_millis(1));
    let outcome = under_load(&asking, |_| {
        let socket = client(&lab, DEADLINE);
        for round in 0..KILLS {
            let mut worker = None;
            until("a worker runs", || {
                worker = child_of(keeper.0.id());
                worker.is_some()
            });
            // One that lived for a second is followed at once.
            std::thread::sleep(Duration::from_millis(1100));
            let killed = Instant::now();
            kill(pid(worker.expect("a worker")), Signal::SIGKILL).expect("killed");
            assert_eq!(ask(&socket, round as u16, NAME), Some(0), "asked after its death");
            gaps.push(killed.elapsed());
        }
    });
    gaps.sort_unstable();
    println!("{outcome:?}, the gaps {gaps:?}");
    assert!(outcome.asked > 1000 && outcome.lost == 0, "{outcome:?}");
    assert!(gaps[KILLS / 2] <= BACK, "{gaps:?}");
}

/// Ends a keeper and with it its worker, also when the test fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(pid(self.0.id()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number as i32)
}

/// A successor, of another build perhaps, gets the sockets of a worker that still answers; when the
/// worker is told to end, it answers what it was asked. No question is lost, or asked twice, and
/// metrics are there all the time.
#[test]
fn an_upgrade_hands_the_sockets_over_and_loses_nothing() {
    for restarts in [false, true] {
        let mut lab = lab(restarts);
        // Its own copies would keep the sockets alive, whatever the workers do.
        let mut worker = lab.release(vec![]).expect("a worker");
        let mut current = worker.id();
        let asking = client(&lab, Duration::from_millis(1));
        let outcome = under_load(&asking, |load| {
            for _ in 0..HANDOVERS {
                load.goes_on_for(QUESTIONS);
                let taken = dnsworker::predecessor(&lab.control_socket(), &[DNS_ADDRESS.into()]);
                let taken = taken.expect("a worker");
                assert_eq!(taken.process, pid(current), "who is to be ended");
                let sockets = lab.on_node(|| {
                    dnsworker::sockets_at(&[DNS_ADDRESS.into()], Some(taken)).expect("sockets")
                });
                lab.release(sockets);
                current = lab.start_worker(&[UPSTREAM]);
                until("the successor answers for itself", || {
                    dnsworker::take_over(&lab.control_socket())
                        .is_ok_and(|taken| taken.process == pid(current))
                });
                assert!(metrics(&lab).contains("flatnet_dns_reloads_total"));
                // Now both answer.
                load.goes_on_for(QUESTIONS);
                let successor = lab.release(vec![]).expect("a worker");
                end(std::mem::replace(&mut worker, successor));
                assert!(metrics(&lab).contains("flatnet_dns_reloads_total"));
            }
        });
        end(worker);
        assert_eq!((outcome.asked_again, outcome.lost), (0, 0), "{restarts}: {outcome:?}");
    }
}

/// What a scrape reads.
fn metrics(lab: &Lab) -> String {
    lab.on_node(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9153").expect("somebody listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asks");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    })
}

/// A client that is connected when the worker is told to end has its next question answered, and
/// only then sees the end; one that says nothing does not keep the worker.
#[test]
fn who_is_connected_may_finish() {
    let mut lab = lab(false);
    let (mut asking, mut silent) = (lab.tcp_client(), lab.tcp_client());
    assert_eq!(ask_on(&mut asking, 1), Some(1), "the worker has the connection");
    assert_eq!(ask_on(&mut silent, 2), Some(2), "the worker has the connection");
    let worker = lab.release(vec![]).expect("a worker");
    kill(pid(worker.id()), Signal::SIGTERM).expect("told to end");
    assert_eq!(ask_on(&mut asking, 3), Some(3));
    end(worker);
    for stream in [asking, silent] {
        assert_eq!((&stream).read(&mut [0; 1]).expect("an orderly end"), 0);
    }
}

/// One question on a connection; the id of its answer.
fn ask_on(stream: &mut TcpStream, id: u16) -> Option<u16> {
    let message = query(id, &NAME.parse().expect("a name"), 1, true);
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length[..], &message].concat()).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).ok()?;
    Some(parse_response(&answer).expect("a response").id)
}

/// A worker that has sockets, but cannot be asked yet, or died and has not been followed yet: a
/// successor waits for it, and does not open sockets beside.
#[test]
fn a_successor_waits_for_a_worker_that_is_about_to_answer() {
    let mut begun = Lab::new();
    let control = begun.control_socket();
    let node = begun.on_node(|| File::open("/proc/thread-self/ns/net").expect("a handle"));
    let looking = std::thread::spawn(move || {
        setns(node, CloneFlags::CLONE_NEWNET).expect("a namespace");
        dnsworker::predecessor(&control, &[DNS_ADDRESS.into()])
    });
    let worker = begun.start_worker(&[]);
    assert_eq!(looking.join().expect("looked").expect("a worker").process, pid(worker));

    let mut lab = lab(true);
    let keeper = Ended(lab.release(vec![]).expect("a worker"));
    let mut dead = None;
    until("a worker runs", || {
        dead = child_of(keeper.0.id());
        dead.is_some()
    });
    kill(pid(dead.expect("a worker")), Signal::SIGKILL).expect("killed");
    let addresses = [DNS_ADDRESS.into()];
    let found = lab.on_node(|| dnsworker::predecessor(&lab.control_socket(), &addresses));
    assert_eq!(found.expect("a worker").process, pid(keeper.0.id()));
    drop(keeper);
    // Now nobody has the address, and nobody is waited for.
    assert!(lab.on_node(|| dnsworker::predecessor(&lab.control_socket(), &addresses)).is_none());
}

/// A server that shares its port, as CoreDNS does, would get a part of our questions.
#[test]
fn sockets_are_not_opened_beside_those_of_others() {
    let lab = Lab::new();
    let address = "127.0.0.1:5300".parse().expect("an address");
    lab.on_node(|| {
        let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
        let other = other.expect("a socket");
        other.set_reuse_port(true).expect("shared");
        other.bind(&std::net::SocketAddr::into(address)).expect("bound");
        let error = dnsworker::listen(address).err().expect("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        drop(other);
        assert!(dnsworker::listen(address).is_ok());
    });
}

/// What a container's probe asks. A worker of another container, which has the very same addresses,
/// does not count.
#[test]
fn a_worker_is_ready_in_its_own_container_once_it_knows_a_zone() {
    let mut lab = Lab::new();
    lab.start_worker(&[]);
    let control = lab.control_socket();
    let program = env!("CARGO_BIN_EXE_flatnet-dnsworker");
    let probe = |words: &[&str]| {
        let all: Vec<&str> = words.iter().copied().chain([program, "--is-ready"]).collect();
        let output = Command::new(all[0]).args(&all[1..]).arg(&control).output().expect("runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut said = String::new();
    until("the worker says what it lacks", || {
        let (is_ready, text) = probe(&[]);
        assert!(!is_ready);
        said = text;
        said.contains("no zone is known yet")
    });
    lab.feed(&zone());
    until("the worker is ready", || probe(&[]).0);
    let (is_ready, said) = probe(&["unshare", "--pid", "--fork"]);
    assert!(!is_ready && said.contains("is another's"), "{said}");
}

/// Tells a worker to end, and waits until it has.
fn end(mut worker: Child) {
    kill(pid(worker.id()), Signal::SIGTERM).expect("told to end");
    let mut code = None;
    until("the worker ends", || {
        code = worker.try_wait().expect("its state");
        code.is_some()
    });
    assert!(code.is_some_and(|code| code.success()), "{code:?}");
}

/// Who has the sockets answers for the cluster's names: the file's mode keeps others out,
/// and where that is off, the worker asks the kernel who they are.
#[test]
fn the_sockets_go_to_root_alone() {
    let lab = lab(false);
    let path = lab.control_socket();
    let connect = |user: libc::uid_t| -> std::io::Result<UnixStream> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: integers only; the system call, unlike libc's function, is about this
                // thread alone.
                let set = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
                assert_eq!(set, 0, "this test needs root");
                UnixStream::connect(&path)
            });
            thread.join().expect("a thread")
        })
    };
    let octets = |mut stream: UnixStream| {
        stream.write_all(b"GET /sockets HTTP/1.1\r\n\r\n").expect("asks");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an end");
        text
    };
    let refused = connect(NOBODY).expect_err("the mode of the file");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("a mode");
    assert_eq!(octets(connect(NOBODY).expect("connected")), "", "no sockets for nobody");
    // The very same question of root's is answered.
    assert!(octets(connect(0).expect("connected")).trim_end().parse::<usize>().is_ok());
    // And nobody's worker is not taken for root's: whoever listens, it is asked for nothing.
    let other = lab.directory().join("other.sock");
    std::fs::set_permissions(lab.directory(), Permissions::from_mode(0o777)).expect("a mode");
    let listener = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: as above.
            let set = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(set, 0, "this test needs root");
            std::os::unix::net::UnixListener::bind(&other).expect("a socket")
        });
        thread.join().expect("a thread")
    });
    let error = dnsworker::take_over(&other).err().expect("refused");
    assert!(format!("{error:#}").contains("user 65534"), "{error:#}");
    drop(listener);
}
