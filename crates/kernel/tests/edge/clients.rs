//! Servers that say who they are and whom they see, and clients that ask them.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use testkit::lab::probe::uninterrupted;

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for one that shall not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Answers TCP and UDP with its name and the client's address, until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// On all addresses of both families.
    pub fn start(namespace: &Netns, name: &'static str, port: u16) -> Self {
        let address = format!("[::]:{port}");
        let (tcp, udp) = namespace
            .run(|| {
                let tcp = TcpListener::bind(&address).expect("a listener");
                (tcp, UdpSocket::bind(&address).expect("a socket"))
            })
            .expect("the server's namespace");
        let tick = TimeVal::new(0, 50_000);
        setsockopt(&tcp, sockopt::ReceiveTimeout, &tick).expect("a timeout");
        setsockopt(&udp, sockopt::ReceiveTimeout, &tick).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_tcp, stop_udp) = (stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || {
                while !stop_tcp.load(Ordering::Relaxed) {
                    let Ok((mut stream, client)) = tcp.accept() else { continue };
                    // A client that went away is its own business.
                    let _ = stream.write_all(text(name, client).as_bytes());
                }
            }),
            std::thread::spawn(move || {
                while !stop_udp.load(Ordering::Relaxed) {
                    let mut question = [0; 64];
                    let Ok((length, client)) = udp.recv_from(&mut question) else { continue };
                    let answer = [text(name, client).as_bytes(), &question[..length]].concat();
                    let _ = udp.send_to(&answer, client);
                }
            }),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn text(name: &str, client: SocketAddr) -> String {
    format!("{name} {}", client.ip().to_canonical())
}

/// What the server at an address says over TCP; `None` when nobody answers.
pub fn ask_tcp(from: &Netns, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().expect("a socket address");
    from.run(|| match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            Some(text)
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => panic!("cannot connect to {to}: {error}"),
    })
    .expect("the client's namespace")
}

/// Whether a connection can begin at all, refused or not: nobody answers when it is dropped.
pub fn is_silent(from: &Netns, to: &str) -> bool {
    let to: SocketAddr = to.parse().expect("a socket address");
    from.run(|| match TcpStream::connect_timeout(&to, SILENCE) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::TimedOut,
    })
    .expect("the client's namespace")
}

/// A UDP client that keeps its port.
pub struct UdpClient {
    socket: UdpSocket,
    asked: Cell<u32>,
}

impl UdpClient {
    pub fn open(from: &Netns, address: &str) -> Self {
        let socket = from.run(|| UdpSocket::bind(address).expect("a socket")).expect("a namespace");
        Self { socket, asked: Cell::new(0) }
    }

    /// What comes back to this question; an answer to an earlier one is late, and none.
    pub fn ask(&self, to: &str) -> Option<String> {
        self.asked.set(self.asked.get() + 1);
        let question = format!("?{}", self.asked.get());
        self.socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
        self.socket.send_to(question.as_bytes(), to).expect("a datagram");
        let mut answer = [0; 64];
        for _ in 0..self.asked.get() {
            let length = uninterrupted(|| self.socket.recv(&mut answer)).ok()?;
            let text = String::from_utf8_lossy(&answer[..length]);
            if let Some(text) = text.strip_suffix(&question) {
                return Some(text.to_owned());
            }
        }
        None
    }
}
