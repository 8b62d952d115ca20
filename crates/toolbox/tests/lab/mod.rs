//! A network and a mount namespace that belong to a thread, and go with it and its children.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dns::{Action, Client, Index, Rules, Transport, answer};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use plan::zone::{HeadlessEndpoint, NamedPort, ServiceRecords, Zone};

const RESOLV_CONF: &str = "nameserver 127.0.0.1\n\
    search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";

/// The place where the program runs.
pub struct Lab {
    directory: PathBuf,
    network: File,
    mounts: File,
}

/// A program under way; it is killed with this value.
pub struct Running(Option<Child>);

/// What a program came to.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Lab {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("flatnet-toolbox-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let resolv_conf = directory.join("resolv.conf");
        std::fs::write(&resolv_conf, RESOLV_CONF).expect("writes");
        let (network, mounts) = std::thread::scope(|scope| {
            let made = scope.spawn(|| make_namespaces(&resolv_conf));
            made.join().expect("namespaces")
        });
        Self { directory, network, mounts }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs the program to its end.
    pub fn run(&self, words: &str) -> Run {
        self.start(words, &[]).output()
    }

    /// Starts the program.
    pub fn start(&self, words: &str, variables: &[(&str, &str)]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flatnet-toolbox"));
        command
            .args(words.split(' '))
            .env("LAB", "yes")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Running(Some(self.within(|| command.spawn().expect("the program starts"))))
    }

    pub fn try_connect(&self, port: u16) -> io::Result<TcpStream> {
        self.within(|| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(stream)
        })
    }

    pub fn connect(&self, port: u16) -> TcpStream {
        self.try_connect(port).expect("connects")
    }

    /// A port that takes datagrams and never answers.
    pub fn silent_udp(&self, port: u16) -> UdpSocket {
        self.within(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port"))
    }

    /// A server whose answers are good, 503, none, half and too late, in turn.
    pub fn serve_faults(&self, port: u16) {
        let body = "{\"pod\":\"good\"}";
        let good = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answers = [
            Some(good.clone()),
            Some("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".into()),
            Some(String::new()),
            Some(good[..good.len() - 3].to_string()),
            None,
        ];
        let listener = self.listener(port);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.read(&mut [0; 4096]);
                match &answers[number % answers.len()] {
                    Some(answer) => drop(stream.write_all(answer.as_bytes())),
                    None => held.push(stream),
                }
            }
        });
    }

    /// A server that closes each connection after an answer that promised to keep it.
    pub fn serve_then_close(&self, port: u16) {
        let listener = self.listener(port);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        });
    }

    /// Cluster DNS at the address that resolv.conf names.
    pub fn serve_dns(&self) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
        let (udp, tcp) = self.within(|| {
            let udp = UdpSocket::bind(address).expect("port 53 in a namespace of its own");
            (udp, TcpListener::bind(address).expect("port 53 in a namespace of its own"))
        });
        let index = Index::new(zone(), 1);
        let for_streams = index.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let message = &buffer[..length];
                let asker = Client { transport: Transport::Udp, address: client.ip() };
                let mut reply = Vec::new();
                match answer(message, Some(&index), &Rules::default(), asker, &mut reply) {
                    Action::Reply => {}
                    // No name outside the cluster exists here.
                    Action::Forward(_) => {
                        reply = [&message[..2], &[0x81, 0x83], &message[4..]].concat();
                    }
                    Action::Drop => continue,
                }
                let _ = udp.send_to(&reply, client);
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut length = [0; 2];
                let _ = stream.read_exact(&mut length);
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                let _ = stream.read_exact(&mut message);
                let address = Ipv4Addr::LOCALHOST.into();
                let asker = Client { transport: Transport::Tcp, address };
                let (rules, mut reply) = (Rules::default(), Vec::new());
                let action = answer(&message, Some(&for_streams), &rules, asker, &mut reply);
                if action == Action::Reply {
                    let length = (reply.len() as u16).to_be_bytes();
                    let _ = stream.write_all(&[length.as_slice(), &reply].concat());
                }
            }
        });
    }

    fn listener(&self, port: u16) -> TcpListener {
        self.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port"))
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS).expect("a thread of its own");
                setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("a mount namespace");
                setns(&self.network, CloneFlags::CLONE_NEWNET).expect("a network namespace");
                work()
            });
            thread.join().expect("work in a namespace")
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn make_namespaces(resolv_conf: &Path) -> (File, File) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("this test needs root");
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).expect("mounts of its own");
    mount(Some(resolv_conf), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).expect("a mount");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip is installed").success());
    let handle = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).expect("a handle");
    (handle("net"), handle("mnt"))
}

fn zone() -> Zone {
    let mut zone = Zone {
        domain: "cluster.local".into(),
        reverse_ranges: vec!["127.0.0.0/8".parse().expect("a range")],
        ..Zone::default()
    };
    let port = NamedPort { name: "http".into(), protocol: "TCP".parse().expect("TCP"), port: 80 };
    let web = ServiceRecords::ClusterIp {
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        ports: vec![port],
    };
    let endpoint = |number| HeadlessEndpoint {
        label: format!("e{number:03}"),
        address: Ipv4Addr::new(10, 0, 0, number).into(),
        has_hostname: false,
        ports: vec![],
    };
    let many = ServiceRecords::Headless { endpoints: (0..150).map(endpoint).collect() };
    zone.namespaces.insert("shop".into(), [("web".into(), web), ("many".into(), many)].into());
    zone
}

impl Running {
    pub fn signal(&mut self, name: &str) {
        let child = self.0.as_ref().expect("it runs");
        let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
        assert!(status.expect("kill is installed").success());
    }

    /// Whether the program has got as far as handling SIGTERM.
    pub fn handles_sigterm(&self) -> bool {
        let child = self.0.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap_or("0").trim(), 16).unwrap_or(0);
        caught & (1 << 14) != 0
    }

    /// Waits for the end; a signal counts as 128 and its number.
    pub fn wait(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.0.take()?.wait().ok()?;
        status.code().or(status.signal().map(|signal| 128 + signal))
    }

    pub fn take_stdout(&mut self) -> ChildStdout {
        self.0.as_mut().and_then(|child| child.stdout.take()).expect("an output")
    }

    pub fn output(mut self) -> Run {
        use std::os::unix::process::ExitStatusExt;
        let child = self.0.take().expect("it runs");
        let output = child.wait_with_output().expect("an end");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
        Run { code: code.unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
