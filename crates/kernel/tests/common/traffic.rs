//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::{Family, Protocol};
use netlink::Netns;
use socket2::{Domain, Socket, Type};
use testkit::lab::probe::uninterrupted;

/// How long any answer may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that shall not come.
pub const SILENCE: Duration = Duration::from_millis(500);

/// Answers each connection and datagram with its name and the client's address, in both families,
/// until the value is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Netns, name: &'static str, port: u16) -> Self {
        let address: SocketAddr = SocketAddr::from(([0_u16; 8], port));
        let open = |kind: Type, protocol: Protocol| {
            let number = socket2::Protocol::from(i32::from(protocol.number()));
            let socket = Socket::new(Domain::IPV6, kind, Some(number)).expect("a socket");
            // Waiting ends now and then, to see whether to stop.
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            socket.set_only_v6(false).expect("both families");
            socket.set_reuse_address(true).expect("a port that was used before");
            socket.bind(&address.into()).expect("the port");
            if kind == Type::STREAM {
                socket.listen(16).expect("a listener");
            }
            socket
        };
        let open_both = || (open(Type::STREAM, Protocol::Tcp), open(Type::DGRAM, Protocol::Udp));
        let (tcp, udp) = namespace.run(open_both).expect("the server's namespace");
        let stop = Arc::new(AtomicBool::new(false));
        let [stop_tcp, stop_udp] = [stop.clone(), stop.clone()];
        let threads = vec![
            std::thread::spawn(move || serve_streams(&tcp, name, &stop_tcp)),
            std::thread::spawn(move || serve_datagrams(udp.into(), name, &stop_udp)),
        ];
        Self { stop, threads }
    }
}

fn serve_streams(listener: &Socket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, client)) = listener.accept() else { continue };
        let Some(client) = client.as_socket() else { continue };
        // A client that went away is its own business.
        let _ = stream.set_read_timeout(Some(DEADLINE));
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(format!("{name} {}", client.ip().to_canonical()).as_bytes());
    }
}

fn serve_datagrams(socket: UdpSocket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, client)) = socket.recv_from(&mut [0; 64]) else { continue };
        let answer = format!("{name} {}", client.ip().to_canonical());
        let _ = socket.send_to(answer.as_bytes(), client);
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

/// What a client learnt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Who answered, and which client address it saw.
    From(String, IpAddr),
    Refused,
    Nothing,
}

pub fn answered(name: &str, client: IpAddr) -> Answer {
    Answer::From(name.into(), client)
}

/// One request over a protocol.
pub fn ask(
    from: &Netns,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
    patience: Duration,
) -> Answer {
    let address = SocketAddr::new(address, port);
    match protocol {
        Protocol::Udp => {
            ask_udp_with(&udp_socket(from, Family::of(&address.ip())), address, patience)
        }
        Protocol::Tcp => from.run(|| ask_tcp(address, patience)).expect("the client's namespace"),
        Protocol::Sctp => panic!("many kernels have no SCTP: see `sctp_seen`"),
    }
}

fn ask_tcp(address: SocketAddr, patience: Duration) -> Answer {
    match TcpStream::connect_timeout(&address, patience) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream.write_all(b"who").expect("a request");
            let mut text = [0; 64];
            let length = stream.read(&mut text).expect("an answer");
            parse(&String::from_utf8_lossy(&text[..length]))
        }
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::TimedOut => Answer::Nothing,
            _ => panic!("cannot connect to {address}: {error}"),
        },
    }
}

/// One request over UDP from a socket of the client's.
pub fn ask_udp_with(socket: &UdpSocket, address: SocketAddr, patience: Duration) -> Answer {
    // Connected, so that an ICMP error reaches the socket.
    socket.connect(address).expect("connect");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    match socket.send(b"who") {
        Ok(_) => {}
        // What the kernel tells a sender on the node itself whose datagram a rule refuses.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused
            ) =>
        {
            return Answer::Refused;
        }
        Err(error) => panic!("cannot send to {address}: {error}"),
    }
    let mut answer = [0; 64];
    match uninterrupted(|| socket.recv(&mut answer)) {
        Ok(length) => parse(&String::from_utf8_lossy(&answer[..length])),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Answer::Nothing
        }
        Err(error) => panic!("cannot ask {address}: {error}"),
    }
}

pub fn udp_socket(from: &Netns, family: Family) -> UdpSocket {
    let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
    from.run(|| UdpSocket::bind(any).expect("a socket")).expect("the client's namespace")
}

/// Sends the first packet of an SCTP connection (RFC 9260, section 3.3.2) by a raw socket, and
/// answers with which source, and to which port, it arrives in another namespace.
pub fn sctp_seen(from: &Netns, address: IpAddr, port: u16, at: &Netns) -> Option<(IpAddr, u16)> {
    let any = SocketAddr::new(address, 0);
    let open = || {
        let number = socket2::Protocol::from(i32::from(Protocol::Sctp.number()));
        let socket = Socket::new(Domain::for_address(any), Type::RAW, Some(number));
        let socket = socket.expect("a raw socket");
        socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
        UdpSocket::from(socket)
    };
    let listener = at.run(open).expect("the receiver's namespace");
    // Ports, tag 0, no checksum yet; INIT with its tag, window, streams and first number.
    let mut init = [0; 32];
    init[..2].copy_from_slice(&40_001_u16.to_be_bytes());
    init[2..4].copy_from_slice(&port.to_be_bytes());
    init[12..16].copy_from_slice(&[1, 0, 0, 20]);
    init[16..].copy_from_slice(&[0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&init);
    init[8..12].copy_from_slice(&sum.to_le_bytes());
    let sender = from.run(open).expect("the sender's namespace");
    sender.send_to(&init, any).expect("sent");
    let mut packet = [0; 128];
    let (length, source) = uninterrupted(|| listener.recv_from(&mut packet)).ok()?;
    let header = if any.is_ipv4() { 20 } else { 0 };
    let port = packet.get(header + 2..header + 4).filter(|_| length >= header + 32)?;
    Some((source.ip(), u16::from_be_bytes([port[0], port[1]])))
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
        })
    })
}

/// Whether an echo request is answered.
pub fn ping(from: &Netns, address: IpAddr, patience: Duration) -> bool {
    // Each has an identifier of its own: one that was answered is a flow that goes on.
    static IDENTIFIERS: AtomicU16 = AtomicU16::new(1);
    ping_as(IDENTIFIERS.fetch_add(1, Ordering::Relaxed), from, address, patience)
}

/// Whether the echo request of a client that goes on pinging is answered.
pub fn ping_as(identifier: u16, from: &Netns, address: IpAddr, patience: Duration) -> bool {
    let (domain, number, request) = match Family::of(&address) {
        Family::V4 => (Domain::IPV4, 1, 8),
        Family::V6 => (Domain::IPV6, 58, 128),
    };
    let open = || Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(number)));
    let mut socket = from.run(open).expect("the client's namespace").expect("a raw socket");
    // Type, code, checksum, identifier, number. The kernel sums those of IPv6.
    let mut echo = [request, 0, 0, 0, 0, 0, 0, 1];
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    if domain == Domain::IPV4 {
        let sum = !(u16::from_be_bytes([request, 0]) + identifier + 1);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.connect(&SocketAddr::new(address, 0).into()).expect("connect");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    let deadline = Instant::now() + patience;
    match socket.send(&echo) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return false,
        Err(error) => panic!("cannot ping {address}: {error}"),
    }
    let answer = if domain == Domain::IPV4 { 0 } else { 129 };
    let mut packet = [0; 128];
    while Instant::now() < deadline {
        let Ok(length) = socket.read(&mut packet) else { return false };
        let header = if domain == Domain::IPV4 { 20 } else { 0 };
        if length > header && packet[header] == answer {
            return true;
        }
    }
    false
}

fn parse(text: &str) -> Answer {
    match text.split_once(' ') {
        Some((name, client)) => answered(name, client.parse().expect("an address")),
        None => panic!("an answer of another form: {text:?}"),
    }
}
