//! The DNS workers' sockets. The supervisor keeps them open: while a worker is replaced, questions
//! wait in the socket and are answered by its successor.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use model::Family;
use netlink::Netns;

use super::super::paths::Paths;
use super::super::spec::ClusterSpec;

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// What a worker inherits: UDP and TCP at the cluster's DNS address, opened in the node's network
/// namespace, and the handle of the host's, where upstream servers are asked from. The address
/// need not exist yet: the agent adds it to `lo`.
pub(super) fn dns(paths: &Paths, spec: &ClusterSpec, node: &str) -> Result<Vec<OwnedFd>> {
    let address = spec.config.dns_address(Family::V4).context("the service range has no IPv4")?;
    let address = SocketAddr::new(address, DNS_PORT);
    let (udp, tcp) = Netns::open(&paths.netns(node))?
        .run(|| dnsworker::listen(address))?
        .with_context(|| format!("opening the DNS sockets {address} of {node}"))?;
    let host = File::open("/proc/self/ns/net").context("opening the host's network namespace")?;
    Ok(vec![udp.into(), tcp.into(), host.into()])
}
