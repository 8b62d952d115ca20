//! Questions to a DNS server without pause, while a test does something to the server: over UDP
//! from one client, and over TCP on a connection each. None may be lost.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlink::Netns;

/// The time between two questions over UDP, and over TCP.
const UDP_INTERVAL: Duration = Duration::from_millis(2);
const TCP_INTERVAL: Duration = Duration::from_millis(20);
/// A question that has no answer after this long is asked once more, as resolvers do.
const ASKED_AGAIN: Duration = Duration::from_secs(3);
/// And is lost after this long.
const LOST: Duration = Duration::from_secs(15);
/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Octets of an answer that are read.
const ANSWER_OCTETS: usize = 4096;

/// What came of questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// How many were asked.
    pub asked: usize,
    /// How many of them were answered only when they were asked again.
    pub asked_again: usize,
    /// How many had no answer then either, or another than an address.
    pub lost: usize,
}

/// A load that goes on until it is told to end.
pub struct Questions {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Answers>>>,
}

impl Questions {
    /// Asks for the address of a name that has one, in the network namespace at a path.
    ///
    /// # Errors
    /// When the namespace or a socket cannot be had.
    pub fn start(namespace: &Path, server: IpAddr, name: &str) -> Result<Self> {
        let (namespace, server) = (Netns::open(namespace)?, SocketAddr::new(server, DNS_PORT));
        let socket = client(&namespace, server, UDP_INTERVAL)?;
        let is_over: Arc<AtomicBool> = Arc::default();
        let udp = {
            let (is_over, name) = (is_over.clone(), name.to_owned());
            std::thread::spawn(move || over_udp(&socket, &name, &is_over))
        };
        let tcp = {
            let (is_over, name) = (is_over.clone(), name.to_owned());
            std::thread::spawn(move || over_tcp(&namespace, server, &name, &is_over))
        };
        Ok(Self { is_over, threads: vec![udp, tcp] })
    }

    /// Ends it, and says what came of the questions over UDP, and of those over TCP.
    ///
    /// # Errors
    /// When no question could be asked.
    pub fn finish(mut self) -> Result<[Answers; 2]> {
        self.is_over.store(true, Ordering::SeqCst);
        let mut answers = [Answers::default(); 2];
        for (thread, place) in self.threads.drain(..).zip(&mut answers) {
            *place = thread.join().map_err(|_| anyhow!("a client of DNS panicked"))??;
            ensure!(place.asked > 0, "too few questions to mean anything");
        }
        Ok(answers)
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// Asks once, and answers how long that took.
///
/// # Errors
/// When no address comes in time.
pub fn ask(namespace: &Path, server: IpAddr, name: &str) -> Result<Duration> {
    let server = SocketAddr::new(server, DNS_PORT);
    let socket = client(&Netns::open(namespace)?, server, LOST)?;
    let began = Instant::now();
    socket.send(&question(1, name)?)?;
    let mut buffer = [0; ANSWER_OCTETS];
    let length = socket.recv(&mut buffer).with_context(|| format!("{server} has no answer"))?;
    match is_address(buffer.get(..length).unwrap_or_default(), 1) {
        true => Ok(began.elapsed()),
        false => bail!("{server} has no address for {name}"),
    }
}

fn client(namespace: &Netns, server: SocketAddr, patience: Duration) -> Result<UdpSocket> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = namespace.run(|| UdpSocket::bind(any))??;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

fn over_udp(socket: &UdpSocket, name: &str, is_over: &AtomicBool) -> Result<Answers> {
    let mut answers = Answers::default();
    // When it was asked, and whether for the second time.
    let mut waiting: BTreeMap<u16, (Instant, bool)> = BTreeMap::new();
    let mut next = Instant::now();
    let mut buffer = [0; ANSWER_OCTETS];
    while !(is_over.load(Ordering::SeqCst) && waiting.is_empty()) {
        if Instant::now() >= next && !is_over.load(Ordering::SeqCst) {
            let id = answers.asked as u16;
            socket.send(&question(id, name)?)?;
            waiting.insert(id, (Instant::now(), false));
            answers.asked += 1;
            next = Instant::now() + UDP_INTERVAL;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let answer = buffer.get(..length).unwrap_or_default();
                let id = id_of(answer).context("an answer without a head")?;
                if let Some((_, is_second)) = waiting.remove(&id) {
                    answers.asked_again += usize::from(is_second);
                    answers.lost += usize::from(!is_address(answer, id));
                }
            }
            Err(error) if is_pause(error.kind()) => {}
            // A port that nobody has: what was asked there is asked again.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
        for (id, (since, is_second)) in &mut waiting {
            if since.elapsed() > ASKED_AGAIN && !*is_second {
                socket.send(&question(*id, name)?)?;
                (*since, *is_second) = (Instant::now(), true);
            }
        }
        waiting.retain(|_, (since, _)| {
            let is_kept = since.elapsed() <= LOST;
            answers.lost += usize::from(!is_kept);
            is_kept
        });
    }
    Ok(answers)
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn over_tcp(
    namespace: &Netns,
    server: SocketAddr,
    name: &str,
    is_over: &AtomicBool,
) -> Result<Answers> {
    let mut answers = Answers::default();
    while !is_over.load(Ordering::SeqCst) {
        let id = answers.asked as u16;
        answers.asked += 1;
        if ask_over_tcp(namespace, server, id, name).is_err() {
            answers.asked_again += 1;
            answers.lost += usize::from(ask_over_tcp(namespace, server, id, name).is_err());
        }
        std::thread::sleep(TCP_INTERVAL);
    }
    Ok(answers)
}

fn ask_over_tcp(namespace: &Netns, server: SocketAddr, id: u16, name: &str) -> Result<()> {
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&server, LOST))??;
    stream.set_read_timeout(Some(LOST))?;
    let message = question(id, name)?;
    let length = u16::try_from(message.len())?.to_be_bytes();
    stream.write_all(&[&length[..], &message].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    ensure!(is_address(&answer, id), "no address");
    Ok(())
}

/// A question for an IPv4 address (RFC 1035, 4.1).
fn question(id: u16, name: &str) -> Result<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len())?);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    Ok(message)
}

fn id_of(answer: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*answer.first_chunk()?))
}

/// Whether it is an answer to this question without an error and with a record.
fn is_address(answer: &[u8], id: u16) -> bool {
    let code = answer.get(3).map(|octet| octet & 0xF);
    let records = answer.get(6..8).is_some_and(|count| count != [0, 0]);
    id_of(answer) == Some(id) && code == Some(0) && records
}
