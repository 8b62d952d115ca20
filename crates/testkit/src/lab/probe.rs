//! Servers that say who they are and whom they see, and clients that ask them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::Protocol;
use netlink::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::sctp;

/// A question that gets no answer for so long gets none.
pub const SILENCE: Duration = Duration::from_millis(400);
/// A server that does answer has so long: machines under load are slow.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The servers look for new sockets and for their end this often, in milliseconds.
const SERVERS_TICK_MS: u16 = 20;
/// A port that is taken for a moment is tried again after this.
const BIND_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// An answer is `LOCAL PEER`, two addresses with ports.
const ANSWER_BYTES_MAX: usize = 128;

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// A server answered.
    Served {
        /// The address that the packet had when it reached the server.
        by: SocketAddr,
        /// The source address that the server saw.
        saw: IpAddr,
    },
    /// Refused: a reset, or an ICMP port unreachable.
    Refused,
    /// Nothing came back.
    Silence,
    /// Something else went wrong, such as no route.
    Failed(String),
}

/// Asks once from the namespace of the calling thread, with this source; port 0 is any.
pub fn ask(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    patience: Duration,
) -> Answer {
    ask_and_see_port(protocol, source, destination, patience).0
}

/// The same, with the source port that the server saw; 0 without an answer.
pub fn ask_and_see_port(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    patience: Duration,
) -> (Answer, u16) {
    let asked = match protocol {
        Protocol::Tcp => ask_tcp(source, destination, patience),
        Protocol::Udp => ask_udp(source, destination, patience),
        Protocol::Sctp => sctp::ask(source, destination, patience),
    };
    match asked {
        Ok(text) => parse(&text).unwrap_or_else(|error| (Answer::Failed(format!("{error:#}")), 0)),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => (Answer::Refused, 0),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => (Answer::Silence, 0),
            _ => (Answer::Failed(error.to_string()), 0),
        },
    }
}

fn ask_tcp(
    source: SocketAddr,
    destination: SocketAddr,
    patience: Duration,
) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, None)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&destination.into(), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(
    source: SocketAddr,
    destination: SocketAddr,
    patience: Duration,
) -> std::io::Result<String> {
    let socket = bind_udp(source, patience)?;
    socket.connect(destination)?;
    socket.set_read_timeout(Some(patience))?;
    match socket.send(b"who") {
        // What the own machine's rules stop does not leave `send`; whether it was refused or lost
        // shows in what comes back.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut buffer = [0; ANSWER_BYTES_MAX];
    let length = uninterrupted(|| socket.recv(&mut buffer))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Binds a socket to a port that the last question from there had: while another lab starts a
/// program, that has a copy of every socket for a moment.
fn bind_udp(source: SocketAddr, patience: Duration) -> std::io::Result<UdpSocket> {
    let deadline = Instant::now() + patience;
    loop {
        match UdpSocket::bind(source) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(BIND_AGAIN_AFTER);
            }
            bound => return bound,
        }
    }
}

/// Calls again while signals interrupt: a call with a timeout is never resumed by the kernel. A
/// program that ends while the thread that starts it still blocks signals interrupts any thread of
/// this process, though nobody handles SIGCHLD (signal(7)).
///
/// # Errors
/// What the call says otherwise.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn parse(text: &str) -> Result<(Answer, u16)> {
    let (by, saw) = text.split_once(' ').ok_or_else(|| anyhow!("{text:?} is no answer"))?;
    let saw: SocketAddr = saw.parse().with_context(|| format!("{text:?} is no answer"))?;
    Ok((Answer::Served { by: by.parse()?, saw: saw.ip() }, saw.port()))
}

/// Servers in any namespaces, on one thread.
pub struct Servers {
    sockets: Arc<Mutex<BTreeMap<(Protocol, SocketAddr), Listening>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Sctp(sctp::Listener),
}

impl Listening {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Sctp(listener) => listener.descriptor(),
        }
    }

    /// Answers one question; whoever asks and leaves at once is no fault of the server.
    fn answer(&self) {
        match self {
            Self::Tcp(listener) => {
                if let Ok((mut stream, peer)) = listener.accept()
                    && let Ok(local) = stream.local_addr()
                {
                    let _ = stream.write_all(format!("{local} {peer}").as_bytes());
                }
            }
            Self::Udp(socket) => {
                let mut question = [0; ANSWER_BYTES_MAX];
                if let Ok((_, peer)) = socket.recv_from(&mut question)
                    && let Ok(local) = socket.local_addr()
                {
                    let _ = socket.send_to(format!("{local} {peer}").as_bytes(), peer);
                }
            }
            Self::Sctp(listener) => listener.answer(),
        }
    }
}

impl Servers {
    /// Starts without any server.
    pub fn start() -> Self {
        let sockets = Arc::new(Mutex::new(BTreeMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (sockets.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                serve(&shared);
            }
        });
        Self { sockets, stop, thread: Some(thread) }
    }

    /// Listens at an address inside a namespace, unless it already does.
    ///
    /// # Errors
    /// When the address is not there or the port is taken.
    pub fn listen(&self, namespace: &Netns, protocol: Protocol, at: SocketAddr) -> Result<()> {
        let mut sockets = self.sockets.lock().map_err(|_| anyhow!("the servers' thread died"))?;
        if sockets.contains_key(&(protocol, at)) {
            return Ok(());
        }
        let listening = namespace
            .run(|| listen(protocol, at))?
            .with_context(|| format!("cannot listen at {at}/{protocol}"))?;
        sockets.insert((protocol, at), listening);
        Ok(())
    }
}

fn listen(protocol: Protocol, at: SocketAddr) -> std::io::Result<Listening> {
    Ok(match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            Listening::Tcp(listener)
        }
        Protocol::Sctp => Listening::Sctp(sctp::Listener::open(at)?),
        Protocol::Udp => {
            let socket = UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            Listening::Udp(socket)
        }
    })
}

fn serve(sockets: &Mutex<BTreeMap<(Protocol, SocketAddr), Listening>>) {
    // Descriptors are copied, so that new servers need not wait for the poll to end.
    let copies: Vec<std::os::fd::OwnedFd> = match sockets.lock() {
        Ok(sockets) => {
            sockets.values().filter_map(|one| one.descriptor().try_clone_to_owned().ok()).collect()
        }
        Err(_) => return,
    };
    let mut polled: Vec<PollFd<'_>> =
        copies.iter().map(|copy| PollFd::new(copy.as_fd(), PollFlags::POLLIN)).collect();
    if poll(&mut polled, PollTimeout::from(SERVERS_TICK_MS)).unwrap_or_default() == 0 {
        return;
    }
    if let Ok(sockets) = sockets.lock() {
        // Non-blocking: those without a question answer nothing.
        for one in sockets.values() {
            one.answer();
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread shows as answers that did not come.
            let _ = thread.join();
        }
    }
}
