//! Two network namespaces: a node's, with the DNS address on `lo`, and a host's, with a name
//! server on its loopback. Both belong to threads and go when these end, whatever happens.
#![allow(dead_code)] // each test program uses its part

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dns::Index;
use dns::feed::{Publisher, Settings};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use plan::zone::{Exposed, Zone};

/// Where the worker answers.
pub const DNS_ADDRESS: std::net::SocketAddrV4 =
    std::net::SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 53);
/// The name server in the host's namespace.
pub const UPSTREAM: &str = "127.0.0.1:53";

/// A network namespace, held by its handle.
struct Namespace(File);

/// The newest snapshot, and a wake-up when it changes.
type Newest = Arc<(Mutex<Option<Vec<u8>>>, Condvar)>;

/// One node with its worker.
pub struct Lab {
    directory: PathBuf,
    node: Namespace,
    host: Namespace,
    sockets: Vec<OwnedFd>,
    worker: Option<Child>,
    newest: Newest,
    is_fed: bool,
    trusted: Option<PathBuf>,
    restarts: bool,
}

impl Lab {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("flatnet-dnsworker-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let node = Namespace::new(&["address add 10.96.0.10/32 dev lo"]);
        let host = Namespace::new(&[]);
        host.within(|| {
            let udp = UdpSocket::bind(UPSTREAM).expect("port 53 in a namespace of its own");
            let tcp = TcpListener::bind(UPSTREAM).expect("port 53 in a namespace of its own");
            std::thread::spawn(move || serve_datagrams(&udp));
            std::thread::spawn(move || serve_streams(&tcp));
        });
        let sockets = node.within(|| dnsworker::listen(DNS_ADDRESS.into()).expect("sockets"));
        let newest: Newest = Arc::default();
        Self {
            directory,
            node,
            host,
            sockets: sockets.into_descriptors(),
            worker: None,
            newest,
            is_fed: false,
            trusted: None,
            restarts: false,
        }
    }

    /// Where tests may put files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Workers that start from now on trust the issuers in this file.
    pub fn trust(&mut self, certificates: &Path) {
        self.trusted = Some(certificates.to_owned());
    }

    /// Workers that start from now on are started again by a process of theirs.
    pub fn restart_by_itself(&mut self) {
        self.restarts = true;
    }

    /// The worker goes on without this lab, which keeps other sockets from now on.
    pub fn release(&mut self, sockets: Vec<OwnedFd>) -> Option<Child> {
        self.sockets = sockets;
        self.worker.take()
    }

    /// What workers said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Runs something in a thread in the node's namespace; what it starts stays within.
    pub fn on_node<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.within(work)
    }

    /// The same in the host's.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.within(work)
    }

    /// Starts a worker on the sockets that this lab keeps.
    pub fn start_worker(&mut self, upstreams: &[&str]) -> u32 {
        for handle in &self.sockets {
            fcntl(handle, FcntlArg::F_SETFD(FdFlag::empty())).expect("an open socket");
        }
        fcntl(&self.host.0, FcntlArg::F_SETFD(FdFlag::empty())).expect("an open namespace");
        let mut command = Command::new(env!("CARGO_BIN_EXE_flatnet-dnsworker"));
        command
            .arg("--feed")
            .arg(self.directory.join("feed.sock"))
            .arg("--cache-file")
            .arg(self.zone_file())
            .arg("--config")
            .arg(self.config_file())
            .arg("--control")
            .arg(self.control_socket())
            .arg("--upstream-netns")
            .arg(format!("/proc/self/fd/{}", self.host.0.as_raw_fd()));
        for socket in &self.sockets {
            command.args(["--socket", &socket.as_raw_fd().to_string()]);
        }
        for upstream in upstreams {
            command.args(["--upstream", upstream]);
        }
        command.args(self.restarts.then_some("--restarts"));
        if let Some(trusted) = &self.trusted {
            command.env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        command.stderr(Stdio::from(log.expect("a file")));
        let child = self.node.within(|| command.spawn().expect("the worker starts"));
        let pid = child.id();
        self.worker = Some(child);
        pid
    }

    /// Kills the worker as `kill -9` does.
    pub fn kill_worker(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }

    /// Serves a zone from now on, as an agent does.
    pub fn feed(&mut self, zone: &Zone) {
        self.feed_by(zone, &Exposed::default());
    }

    /// The same with a zone that was made by a choice of names.
    pub fn feed_by(&mut self, zone: &Zone, exposed: &Exposed) {
        let index = Index::new(zone.clone(), 0);
        let settings = Settings { exposed: exposed.clone(), ..index.settings().clone() };
        let mut publisher = Publisher::new(settings, 0);
        publisher.publish(index.changes(), 0).expect("fits");
        let frames = publisher.snapshot().map(|frame| frame.expect("fits").to_vec());
        let octets = frames.collect::<Vec<_>>().concat();
        let (lock, changed) = &*self.newest;
        *lock.lock().expect("a lock") = Some(octets);
        changed.notify_all();
        if std::mem::replace(&mut self.is_fed, true) {
            return;
        }
        let listener = UnixListener::bind(self.directory.join("feed.sock")).expect("a socket");
        let newest = self.newest.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let newest = newest.clone();
                if newest.0.lock().expect("a lock").is_none() {
                    return;
                }
                std::thread::spawn(move || send_frames(stream, &newest));
            }
        });
    }

    /// Ends the agent's part: connections close and new ones are refused.
    pub fn stop_feed(&mut self) {
        let (lock, changed) = &*self.newest;
        *lock.lock().expect("a lock") = None;
        changed.notify_all();
        // The listener ends with the connection that it waits for.
        let path = self.directory.join("feed.sock");
        let _ = std::os::unix::net::UnixStream::connect(&path);
        let _ = std::fs::remove_file(path);
        self.newest = Newest::default();
        self.is_fed = false;
    }

    /// Where the worker's configuration stands; there is none at first.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("dns.yaml")
    }

    /// Where the worker answers root.
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub fn zone_file(&self) -> PathBuf {
        self.directory.join("cache/zone.json")
    }

    /// A client's socket in the node's namespace.
    pub fn udp_client(&self) -> UdpSocket {
        self.node.within(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"))
    }

    /// A client's socket at an address of the node.
    pub fn udp_client_at(&self, address: &str) -> UdpSocket {
        self.node.within(|| UdpSocket::bind((address, 0)).expect("a socket"))
    }

    /// A client's connection in the node's namespace.
    pub fn tcp_client(&self) -> TcpStream {
        self.node.within(|| {
            let stream = TcpStream::connect(SocketAddr::from(DNS_ADDRESS)).expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            stream
        })
    }

    /// What `dig` prints in the node's namespace.
    pub fn dig(&self, words: &str) -> String {
        let server = format!("@{}", IpAddr::from(*DNS_ADDRESS.ip()));
        let mut command = Command::new("dig");
        command.args([server.as_str(), "+tries=1", "+time=20"]).args(words.split(' '));
        let output = self.node.within(|| command.output().expect("dig is installed"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill_worker();
        if std::thread::panicking() {
            eprintln!("the worker said:\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Namespace {
    /// A new one, with `lo` up and whatever else `ip` shall do.
    fn new(commands: &[&str]) -> Self {
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
                for words in ["link set lo up"].iter().chain(commands) {
                    let status = Command::new("ip").args(words.split(' ')).status();
                    assert!(status.expect("ip is installed").success(), "ip {words}");
                }
                Self(File::open("/proc/thread-self/ns/net").expect("a handle"))
            });
            made.join().expect("a namespace")
        })
    }

    /// Runs something in a thread within; what it starts stays within.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("a namespace");
                work()
            });
            thread.join().expect("work in a namespace")
        })
    }
}

fn send_frames(mut stream: impl Write, newest: &Newest) {
    let (lock, changed) = &**newest;
    let mut sent = None;
    let mut current = lock.lock().expect("a lock");
    loop {
        let Some(frame) = current.clone() else { return };
        if sent.as_ref() != Some(&frame) {
            if stream.write_all(&frame).is_err() {
                return;
            }
            sent = Some(frame);
        }
        current = changed.wait(current).expect("a lock");
    }
}

/// A name server that knows a few names, written without the crate under test.
pub fn respond(question: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(&question[12..]).to_ascii_lowercase();
    let question_end = 12 + question[12..].iter().position(|octet| *octet == 0)? + 5;
    let mut response = question[..question_end].to_vec();
    let is_missing = text.contains("\x07missing");
    let count: u16 = match () {
        () if text.contains("\x06silent") => return None,
        () if is_missing => 0,
        () if text.contains("\x03big") && !over_tcp => 0,
        () if text.contains("\x03big") => 100,
        () => 1,
    };
    response[2] = if text.contains("\x03big") && !over_tcp { 0x83 } else { 0x81 };
    response[3] = if is_missing { 0x83 } else { 0x80 };
    response[6..8].copy_from_slice(&count.to_be_bytes());
    response[8..12].copy_from_slice(&[0, u8::from(is_missing), 0, 0]);
    for number in 0..count {
        response.extend_from_slice(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C\0\x04\xC0\0\x02");
        response.push(80 + number as u8);
    }
    if is_missing {
        response.extend_from_slice(b"\x07example\0\0\x06\0\x01\0\0\0\x3C\0\x16\0\0");
        response.extend_from_slice(&[0, 0, 0, 9].repeat(5));
    }
    Some(response)
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        if let Some(response) = respond(&buffer[..length], false) {
            let _ = socket.send_to(&response, client);
        }
    }
}

fn serve_streams(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut question).is_ok()
            && let Some(response) = respond(&question, true)
        {
            let length = (response.len() as u16).to_be_bytes();
            let _ = stream.write_all(&[length.as_slice(), &response].concat());
        }
    }
}
