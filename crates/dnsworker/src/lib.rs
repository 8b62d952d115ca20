//! The DNS worker: sockets, files and threads around the protocol core of the `dns` crate.
//!
//! ```text
//! clients ─▶ sockets ─▶ thread 1…n: batch ─▶ dns::Server ─▶ batch ─▶ clients
//!                                   index ──┘    │  ▲
//! agent ─▶ feed ─▶ first thread ─▶ index         ▼  │
//! file ──▶ configuration ─▶ every server    servers of other names
//! ```
//!
//! It answers at sockets that its starter opened and keeps, so that questions wait in the sockets
//! while a killed worker is replaced. The agent feeds it zones; the newest one also stands in a
//! file, so that a worker answers while neither agent nor API server runs. Before the first byte
//! from outside is read, all capabilities are gone.
//!
//! There are as many threads as sockets of one address, and the kernel gives each client, by its
//! address, to one of them: a client's questions are counted in one place, and a flood of them
//! takes no more than the thread that it shares with few others.
//!
//! Questions about other names go to upstream servers from the *host's* network: a host's own
//! resolver, often on a loopback address, is out of reach from a node's network namespace. Sockets
//! that exist keep their namespace, so the whole worker moves to the host's at its start; each
//! question to an upstream server then has a fresh socket, and with it a random port. The host's
//! servers are fixed for the life of a worker; those of the configuration are not.

mod batch;
mod clients;
mod control;
mod exchanges;
mod feed;
mod handover;
mod keeper;
mod lag;
mod options;
mod privileges;
mod random;
mod secure;
mod shared;
mod sockets;
mod status;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dns::{Rules, Server};

use control::{ConfigFile, Control};
use keeper::{Ending, Kept};
use random::Randomness;
use secure::Secure;
use shared::Shared;
use sockets::Inherited;
use status::Listeners;
use worker::Worker;

pub use handover::{Predecessor, is_ready, predecessor, sockets_at, take_over};
pub use options::{IS_READY, Options, USAGE};
pub use sockets::{Listening, listen, passed};

/// Questions that wait for servers of other names when the worker is told to end get this long.
const ENDING_LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked whether they were answered.
const ENDING_INTERVAL: Duration = Duration::from_millis(1);

/// Answers until the process is told to end. What was asked by then is answered; what comes later
/// waits in the sockets for a successor.
///
/// # Errors
/// When a socket, the namespace or the configuration cannot be used, privileges cannot be dropped,
/// or the machine fails to give events, threads or random numbers.
pub fn run(options: &Options) -> Result<()> {
    let mut inherited = sockets::inherit(&options.sockets)?;
    let (config_file, config) = ConfigFile::load(options.config_file.as_deref())?;
    let metrics = std::mem::take(&mut inherited.metrics);
    let listeners = Listeners::open(config.prometheus, metrics, options.control_socket.as_deref())?;
    if let Some(namespace) = &options.upstream_network_namespace {
        privileges::enter_network_namespace(namespace)?;
    }
    if let Some(directory) = options.cache_file.as_ref().and_then(|file| file.parent()) {
        feed::make_directory(directory)?;
    }
    privileges::raise_file_limit();
    // Before there are other threads: each would keep its own.
    privileges::drop_all().context("the DNS worker cannot give up its privileges")?;
    if options.restarts && matches!(keeper::keep()?, Kept::Ended) {
        return Ok(());
    }
    let ending = Ending::watch()?;
    let host = sockets::without_own(&options.upstreams, &inherited)?;
    let mut randomness = Randomness::default();
    let addresses = sockets::addresses(&inherited);
    let rules = Rules {
        host_search: options.host_search.clone(),
        own_addresses: addresses.clone(),
        ..Rules::default()
    };
    let config = Arc::new(config);
    let mut offered = sockets::duplicates(&inherited)?;
    offered.extend(listeners.duplicate()?);
    let shares = sockets::share(inherited)?;
    let servers = shares
        .iter()
        .map(|_| Server::new(config.clone(), rules.clone(), &host, &mut || randomness.next()))
        .collect();
    randomness.check()?;
    let shared = Shared::new(servers)?;
    let mut control = Control {
        shared: shared.clone(),
        feed: feed::Feed::new(&options.feed_socket, config.kubernetes.exposure()),
        zone_file: options.cache_file.as_deref().map(feed::ZoneFile::new),
        config_file,
        config,
        addresses,
        domain: None,
        rules,
        host,
        randomness,
    };
    control.load_zone();
    let threads = start_threads(&shared, shares)?;
    // Who can ask whether we answer finds that we do.
    listeners.serve(&shared, offered)?;
    control.run(&ending)?;
    shared.end()?;
    let deadline = Instant::now() + ENDING_LIMIT;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(ENDING_INTERVAL);
    }
    Ok(())
}

fn start_threads(shared: &Arc<Shared>, shares: Vec<Inherited>) -> Result<Vec<JoinHandle<()>>> {
    let secure = Secure::default();
    let mut threads = Vec::new();
    for (thread, share) in shares.into_iter().enumerate() {
        let worker = Worker::new(shared.clone(), thread, share, secure.clone())?;
        let name = format!("dns-{thread}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = worker.run() {
                // Half a worker would leave half of the clients without answers.
                tracing::error!("a thread of the DNS worker ends: {error:#}");
                std::process::exit(1);
            }
        })?);
    }
    Ok(threads)
}
