//! `flatnet dns`: a node's DNS worker.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use model::layout;

use super::{ClusterName, start_log};

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// Arguments of `flatnet dns`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node's name in the API.
    #[arg(long)]
    node_name: String,
}

/// The first descriptor that the supervisor passes: a datagram and a listening socket an address
/// of cluster DNS, then the host's network namespace.
const FIRST_DESCRIPTOR: i32 = 3;

/// Runs until it is killed.
///
/// # Errors
/// See [`dnsworker::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    start_log();
    let (paths, spec) = arguments.cluster.load()?;
    let upstreams = spec.upstream_resolvers.iter();
    let namespace = FIRST_DESCRIPTOR + 2 * spec.dns_addresses().len() as i32;
    let options = dnsworker::Options {
        sockets: (FIRST_DESCRIPTOR..namespace).collect(),
        upstreams: upstreams.map(|address| SocketAddr::new(*address, DNS_PORT)).collect(),
        upstream_network_namespace: Some(format!("/proc/self/fd/{namespace}").into()),
        feed_socket: Path::new(layout::RUN_DIRECTORY).join(layout::DNS_FEED_SOCKET),
        cache_file: Some(paths.node(&arguments.node_name).join("dns/zone.json")),
    };
    match dnsworker::run(&options)? {}
}
