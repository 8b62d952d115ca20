//! A client of UDP that keeps its port and goes on sending, whatever becomes of its datagrams.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::eventually;

/// The time between two datagrams, and how many have no answer at least while what is asked is away.
const BETWEEN_DATAGRAMS: Duration = Duration::from_millis(10);
const UNANSWERED_LEAST: u64 = 10;
/// How long the datagrams are meanwhile; those afterwards are longer.
const LENGTH: usize = 10;
/// Each of so many datagrams is answered within this.
const DATAGRAMS: u8 = 20;
const ANSWERED: Duration = Duration::from_secs(1);
/// How long it may take on a busy machine until nodes know what the API says.
const KNOWN: Duration = Duration::from_secs(30);

/// Such a client, in the host's network. It stops when the value is dropped.
pub struct Sender {
    server: Server,
    counts: Arc<Counts>,
    thread: JoinHandle<UdpSocket>,
}

/// Whom it asks, and how the names of pods begin that may answer.
#[derive(Clone)]
struct Server {
    address: String,
    pods: String,
}

/// What became of its datagrams. Those that were refused are among those without an answer.
#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
}

impl Sender {
    /// Sends to an echo server at an address and port, where a pod whose name begins so must answer
    /// at first.
    ///
    /// # Errors
    /// When none does.
    pub fn start(address: &str, pods: &str) -> Result<Self> {
        let server = Server { address: address.to_owned(), pods: pods.to_owned() };
        let socket = server.new_client()?;
        server.ask(&socket, LENGTH).with_context(|| format!("{address}, before all"))?;
        socket.set_read_timeout(Some(BETWEEN_DATAGRAMS))?;
        let counts: Arc<Counts> = Arc::default();
        let (asked, told) = (server.clone(), Arc::downgrade(&counts));
        let thread = std::thread::spawn(move || asked.send_on(socket, &told));
        Ok(Self { server, counts, thread })
    }

    /// Waits until new clients are refused by an ICMP error, and then until this one is too, so many
    /// times: it is not held by where its flow led before.
    ///
    /// # Errors
    /// When that does not come.
    pub fn wait_until_refused(&self) -> Result<()> {
        eventually("a new client is refused", KNOWN, || {
            let address = &self.server.address;
            let answer = self.server.ask(&self.server.new_client()?, LENGTH);
            let error = answer.err().with_context(|| format!("{address} answered"))?;
            ensure!(is_refusal(&error), "{address}: {error:#}");
            Ok(())
        })?;
        self.wait_for_more(&self.counts.refused, DATAGRAMS, "refused")
    }

    /// The same for answers: new clients have one, and then this one has too.
    ///
    /// # Errors
    /// When that does not come.
    pub fn wait_until_answered(&self) -> Result<()> {
        eventually("a new client is answered", KNOWN, || {
            let answer = self.server.ask(&self.server.new_client()?, LENGTH);
            answer.with_context(|| self.server.address.clone())
        })?;
        self.wait_for_more(&self.counts.answered, 1, "answered")
    }

    fn wait_for_more(&self, count: &AtomicU64, more: u8, what: &str) -> Result<()> {
        let address = &self.server.address;
        let since = Instant::now();
        let before = count.load(Ordering::SeqCst);
        eventually("a client that kept its port is as new ones are", KNOWN, || {
            let now = count.load(Ordering::SeqCst) - before;
            ensure!(now >= more.into(), "{address}: {now} datagrams were {what}");
            Ok(())
        })?;
        let took = since.elapsed().as_millis();
        println!("    {address}: {more} datagrams {what} within {took} ms of a new client's");
        Ok(())
    }

    /// Each datagram from now on is answered by a pod in time.
    ///
    /// # Errors
    /// When one is not, and when all were all the time.
    pub fn ensure_answered(self) -> Result<()> {
        let Self { server, counts, thread } = self;
        let unanswered = counts.unanswered.load(Ordering::SeqCst);
        drop(counts);
        let socket = thread.join().map_err(|_| anyhow!("a client of UDP panicked"))?;
        println!("    {unanswered} datagrams of the time between were not answered");
        // Otherwise none came to a node that knew no Services yet, and nothing is shown.
        ensure!(unanswered > UNANSWERED_LEAST, "only {unanswered} were not answered meanwhile");
        socket.set_read_timeout(Some(ANSWERED))?;
        (1..=DATAGRAMS).try_for_each(|number| {
            let answer = server.ask(&socket, LENGTH + usize::from(number));
            answer.with_context(|| format!("datagram {number} to {}", server.address))
        })
    }
}

impl Server {
    /// A client with a port that nobody had.
    fn new_client(&self) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(&self.address)?;
        socket.set_read_timeout(Some(ANSWERED))?;
        Ok(socket)
    }

    /// Sends until nobody wants to know any more what becomes of it.
    fn send_on(&self, socket: UdpSocket, told: &Weak<Counts>) -> UdpSocket {
        while let Some(counts) = told.upgrade() {
            let count = match self.ask(&socket, LENGTH) {
                Ok(()) => &counts.answered,
                Err(error) => {
                    counts.refused.fetch_add(u64::from(is_refusal(&error)), Ordering::SeqCst);
                    &counts.unanswered
                }
            };
            count.fetch_add(1, Ordering::SeqCst);
            drop(counts);
            std::thread::sleep(BETWEEN_DATAGRAMS);
        }
        socket
    }

    /// Sends a datagram of this length and waits for the right pod's answer to it. Late ones to
    /// others may come before.
    fn ask(&self, socket: &UdpSocket, length: usize) -> Result<()> {
        socket.send(&vec![0; length])?;
        let mut buffer = [0; 1024];
        loop {
            let count = socket.recv(&mut buffer)?;
            let answer = buffer.get(..count).unwrap_or_default();
            let answer: serde_json::Value = serde_json::from_slice(answer)?;
            let pod = answer["pod"].as_str();
            ensure!(pod.is_some_and(|pod| pod.starts_with(&self.pods)), "{answer}");
            if answer["bytes"] == length {
                return Ok(());
            }
        }
    }
}

/// Whether it was told that there is nobody (ICMP port unreachable).
fn is_refusal(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}
