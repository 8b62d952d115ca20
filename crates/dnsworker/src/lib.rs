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
mod lag;
mod privileges;
mod random;
mod secure;
mod shared;
mod sockets;
mod status;
mod worker;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use dns::{Name, Rules, Server};

use control::{ConfigFile, Control};
use random::Randomness;
use secure::Secure;
use shared::Shared;
use status::Listeners;
use worker::Worker;

pub use sockets::{Listening, listen, passed};

/// What a worker needs to know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Inherited sockets, bound to the DNS addresses: datagram sockets, and stream sockets that
    /// listen, in any order. See [`listen`].
    pub sockets: Vec<RawFd>,
    /// The host's servers for names outside the cluster, the preferred first. None, and none in
    /// the configuration: such questions are refused.
    pub upstreams: Vec<SocketAddr>,
    /// The domains behind the cluster's own in the search paths of pods: the node's.
    pub host_search: Vec<Name>,
    /// The network namespace that upstream servers are reached from, such as
    /// `/proc/self/fd/5` for an inherited handle. `None`: the one that the worker is started in.
    pub upstream_network_namespace: Option<PathBuf>,
    /// The unix socket where the agent serves zones. It need not exist yet.
    pub feed_socket: PathBuf,
    /// The file that keeps the newest zone; its directory is made, mode 0700. `None`: a restarted
    /// worker knows nothing until the agent feeds it.
    pub cache_file: Option<PathBuf>,
    /// The configuration ([`dns::Config`]); it may be absent, appear and change at any time.
    pub config_file: Option<PathBuf>,
    /// The unix socket to answer root's questions at.
    pub control_socket: Option<PathBuf>,
}

/// Answers until the process ends.
///
/// # Errors
/// When a socket, the namespace or the configuration cannot be used, privileges cannot be dropped,
/// or the machine fails to give events, threads or random numbers.
pub fn run(options: &Options) -> Result<Infallible> {
    let inherited = sockets::inherit(&options.sockets)?;
    let (config_file, config) = ConfigFile::load(options.config_file.as_deref())?;
    let listeners = Listeners::open(config.prometheus, options.control_socket.as_deref())?;
    if let Some(namespace) = &options.upstream_network_namespace {
        privileges::enter_network_namespace(namespace)?;
    }
    if let Some(directory) = options.cache_file.as_ref().and_then(|file| file.parent()) {
        feed::make_directory(directory)?;
    }
    privileges::raise_file_limit();
    // Before there are other threads: each would keep its own.
    privileges::drop_all().context("the DNS worker cannot give up its privileges")?;
    let host = sockets::without_own(&options.upstreams, &inherited)?;
    let mut randomness = Randomness::default();
    let rules = Rules { host_search: options.host_search.clone(), ..Rules::default() };
    let config = Arc::new(config);
    let shares = sockets::share(inherited)?;
    let servers = shares
        .iter()
        .map(|_| Server::new(config.clone(), rules.clone(), &host, &mut || randomness.next()))
        .collect();
    randomness.check()?;
    let shared = Shared::new(servers);
    let mut control = Control {
        shared: shared.clone(),
        feed: feed::Feed::new(&options.feed_socket),
        zone_file: options.cache_file.as_deref().map(feed::ZoneFile::new),
        config_file,
        rules,
        host,
        randomness,
    };
    control.load_zone();
    listeners.serve(&shared)?;
    let secure = Secure::default();
    for (thread, share) in shares.into_iter().enumerate() {
        let worker = Worker::new(shared.clone(), thread, share, secure.clone())?;
        let name = format!("dns-{thread}");
        std::thread::Builder::new().name(name).spawn(move || {
            let Err(error) = worker.run();
            // Half a worker would leave half of the clients without answers.
            tracing::error!("a thread of the DNS worker ends: {error:#}");
            std::process::exit(1);
        })?;
    }
    control.run()
}
