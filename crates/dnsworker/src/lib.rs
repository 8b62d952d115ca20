//! The DNS worker: one thread around the protocol core of the `dns` crate.
//!
//! It answers at sockets that its starter opened and keeps, so that questions wait in the sockets
//! while a killed worker is replaced. The agent feeds it zones; the newest one also stands in a
//! file, so that a worker answers while neither agent nor API server runs. Before the first byte
//! from outside is read, all capabilities are gone.
//!
//! Questions about other names go to upstream servers from the *host's* network: a host's own
//! resolver, often on a loopback address, is out of reach from a node's network namespace. Sockets
//! that exist keep their namespace, so the whole worker moves to the host's at its start; each
//! question to an upstream server then has a fresh socket, and with it a random port. The list of
//! servers is fixed for the life of a worker: to change it, restart the worker.

mod clients;
mod exchanges;
mod feed;
mod privileges;
mod sockets;
mod worker;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::{Context, Result};

pub use sockets::listen;

/// What a worker needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Inherited sockets, bound to the DNS address: datagram sockets, and stream sockets that
    /// listen, in any order. See [`listen`].
    pub sockets: Vec<RawFd>,
    /// Servers for names outside the cluster, the preferred first. None: such questions are
    /// refused.
    pub upstreams: Vec<SocketAddr>,
    /// The network namespace that upstream servers are reached from, such as
    /// `/proc/self/fd/5` for an inherited handle. `None`: the one that the worker is started in.
    pub upstream_network_namespace: Option<PathBuf>,
    /// The unix socket where the agent serves zones. It need not exist yet.
    pub feed_socket: PathBuf,
    /// The file that keeps the newest zone; its directory is made, mode 0700. `None`: a restarted
    /// worker knows nothing until the agent feeds it.
    pub cache_file: Option<PathBuf>,
}

/// Answers until the process ends.
///
/// # Errors
/// When a socket or the namespace cannot be used, privileges cannot be dropped, or the machine
/// fails to give events or random numbers.
pub fn run(options: &Options) -> Result<Infallible> {
    let inherited = sockets::inherit(&options.sockets)?;
    if let Some(namespace) = &options.upstream_network_namespace {
        privileges::enter_network_namespace(namespace)?;
    }
    if let Some(directory) = options.cache_file.as_ref().and_then(|file| file.parent()) {
        feed::make_directory(directory)?;
    }
    privileges::raise_file_limit();
    privileges::drop_all().context("the DNS worker cannot give up its privileges")?;
    worker::Worker::new(options, inherited)?.run()
}
