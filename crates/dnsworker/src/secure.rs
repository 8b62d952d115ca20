//! Servers that are asked over TLS (RFC 7858) and HTTPS (RFC 8484): a thread of their own, begun
//! with the first such question, that hands answers back to the thread that asked.
//!
//! Each server has one connection at a time, which carries many questions. One that broke, or that
//! its server closed when it was idle, is made anew by the next question; one that could not be
//! made is not tried again for a moment, however many questions come. Only a certificate that the
//! host trusts, or where the rule names a CA, that one, valid now and for the name or address that
//! is asked, makes a connection: there is no way to go on without (RFC 8310, the strict profile).

mod pipeline;
mod pool;
mod trust;

use std::rc::Rc;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use dns::config::Server;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::error::TrySendError;

use pool::Pool;

/// Questions that wait for the thread, and as many that wait for servers; further ones fail at
/// once.
const MAX_QUESTIONS: usize = 1024;
/// How long a question may take, connecting included. The forwarder stops waiting earlier.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The largest answer, in octets.
const ANSWER_OCTETS: usize = 65535;

/// What came of a question.
pub(crate) struct Arrived {
    pub(crate) exchange: u64,
    pub(crate) from: std::net::SocketAddr,
    pub(crate) message: Result<Vec<u8>>,
}

/// Where a thread of the worker finds what came for it.
pub(crate) struct Inbox {
    event: Arc<EventFd>,
    sender: mpsc::Sender<Arrived>,
    receiver: mpsc::Receiver<Arrived>,
}

impl Inbox {
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self { event, sender, receiver })
    }

    /// Readable when something came.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// All that came.
    pub(crate) fn take(&mut self) -> Vec<Arrived> {
        let _ = self.event.read();
        self.receiver.try_iter().collect()
    }
}

struct Job {
    exchange: u64,
    server: Server,
    message: Vec<u8>,
    event: Arc<EventFd>,
    sender: mpsc::Sender<Arrived>,
}

impl Job {
    fn finish(self, message: Result<Vec<u8>>) {
        let arrived = Arrived { exchange: self.exchange, from: self.server.address, message };
        if self.sender.send(arrived).is_ok() {
            let _ = self.event.write(1);
        }
    }
}

/// The way to the thread, the same for all threads of the worker.
#[derive(Clone, Default)]
pub(crate) struct Secure {
    jobs: Arc<OnceLock<tokio::sync::mpsc::Sender<Job>>>,
}

impl Secure {
    /// Asks a server; what comes of it arrives in the inbox.
    pub(crate) fn send(&self, inbox: &Inbox, exchange: u64, server: Server, message: Vec<u8>) {
        let (event, sender) = (inbox.event.clone(), inbox.sender.clone());
        let job = Job { exchange, server, message, event, sender };
        match self.jobs.get_or_init(start).try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => job.finish(Err(too_many())),
            Err(TrySendError::Closed(job)) => {
                job.finish(Err(anyhow::anyhow!("the thread for servers over TLS could not start")));
            }
        }
    }
}

fn too_many() -> anyhow::Error {
    anyhow::anyhow!("{MAX_QUESTIONS} questions wait for servers over TLS already")
}

fn start() -> tokio::sync::mpsc::Sender<Job> {
    let (sender, receiver) = tokio::sync::mpsc::channel(MAX_QUESTIONS);
    let started = std::thread::Builder::new().name("tls".into()).spawn(move || {
        if let Err(error) = work(receiver) {
            tracing::error!("DNS servers over TLS cannot be asked: {error:#}");
        }
    });
    if let Err(error) = started {
        tracing::error!("DNS servers over TLS cannot be asked: {error}");
    }
    sender
}

fn work(mut jobs: tokio::sync::mpsc::Receiver<Job>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pool = Rc::new(Pool::default());
    let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        while let Some(job) = jobs.recv().await {
            let Ok(place) = places.clone().try_acquire_owned() else {
                job.finish(Err(too_many()));
                continue;
            };
            let pool = pool.clone();
            tokio::task::spawn_local(async move {
                let asked = tokio::time::timeout(TIMEOUT, pool.ask(&job.server, &job.message));
                let answer = asked.await.context("no answer in time").and_then(|answer| answer);
                job.finish(answer);
                drop(place);
            });
        }
    });
    Ok(())
}
