//! `flatnet dns`: a node's DNS worker.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dnsworker::Options;
use model::{ClusterConfig, Family, layout};

use super::{ClusterName, cluster_config, start_log};
use crate::cluster::preflight;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// The file of the newest zone, in its directory.
const ZONE_FILE: &str = "zone.json";

/// Arguments of `flatnet dns`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The cluster's ranges, as `flatnet manifests` prints them.
    #[arg(long, value_name = "FILE", required_unless_present = "name")]
    config: Option<PathBuf>,
    /// A cluster of this machine that the node is of (set by its supervisor).
    #[arg(long, hide = true, conflicts_with = "config", requires = "node_name")]
    name: Option<String>,
    /// The node's name in that cluster.
    #[arg(long, hide = true, requires = "name")]
    node_name: Option<String>,
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
    let options = match (arguments.name, arguments.node_name) {
        (Some(name), Some(node)) => of_cluster(name, &node)?,
        _ => of_node(arguments.config.as_deref())?,
    };
    match dnsworker::run(&options)? {}
}

/// A node of a cluster that `flatnet up` made.
fn of_cluster(name: String, node: &str) -> Result<Options> {
    let (paths, spec) = ClusterName { name }.load()?;
    let namespace = FIRST_DESCRIPTOR + 2 * spec.dns_addresses().len() as i32;
    Ok(Options {
        sockets: (FIRST_DESCRIPTOR..namespace).collect(),
        upstreams: upstreams(&spec.upstream_resolvers),
        upstream_network_namespace: Some(format!("/proc/self/fd/{namespace}").into()),
        feed_socket: feed_socket(),
        cache_file: Some(paths.node(node).join("dns").join(ZONE_FILE)),
    })
}

/// A node of a real cluster: nobody keeps the sockets, so that questions that come while the
/// worker is replaced are lost, and asked again.
fn of_node(config: Option<&Path>) -> Result<Options> {
    let config = config.map_or_else(|| Ok(ClusterConfig::default()), cluster_config::read)?;
    let families = [Family::V4, Family::V6];
    let own: Vec<IpAddr> =
        families.into_iter().filter_map(|family| config.dns_address(family)).collect();
    let mut resolvers = preflight::host_resolvers();
    // A pod's resolver would send our questions back to us.
    resolvers.retain(|resolver| !own.contains(resolver));
    Ok(Options {
        sockets: listen(&own)?,
        upstreams: upstreams(&resolvers),
        upstream_network_namespace: None,
        feed_socket: feed_socket(),
        cache_file: Some(Path::new(layout::DNS_ZONE_DIRECTORY).join(ZONE_FILE)),
    })
}

fn listen(addresses: &[IpAddr]) -> Result<Vec<RawFd>> {
    let mut sockets = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, DNS_PORT);
        let (udp, tcp) = dnsworker::listen(address).with_context(|| {
            format!("opening the DNS sockets {address} (does another DNS server have the port?)")
        })?;
        sockets.extend([udp.into_raw_fd(), tcp.into_raw_fd()]);
    }
    Ok(sockets)
}

fn upstreams(resolvers: &[IpAddr]) -> Vec<SocketAddr> {
    resolvers.iter().map(|address| SocketAddr::new(*address, DNS_PORT)).collect()
}

fn feed_socket() -> PathBuf {
    Path::new(layout::RUN_DIRECTORY).join(layout::DNS_FEED_SOCKET)
}
