//! The DNS workers' sockets. The supervisor keeps them open: while a worker is replaced, questions
//! wait in the socket and are answered by its successor.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use netlink::Netns;

use super::super::paths::Paths;
use super::super::spec::ClusterSpec;

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// What a worker inherits: the handle of the host's network namespace, where upstream servers are
/// asked from, and then UDP and TCP at each of the cluster's DNS addresses, opened in the node's.
/// The addresses need not exist yet: the agent adds them to `lo`.
pub(super) fn dns(paths: &Paths, spec: &ClusterSpec, node: &str) -> Result<Vec<OwnedFd>> {
    let namespace = Netns::open(&paths.netns(node))?;
    let host = File::open("/proc/self/ns/net").context("opening the host's network namespace")?;
    let mut inherited: Vec<OwnedFd> = vec![host.into()];
    for address in spec.listened_dns_addresses() {
        let address = SocketAddr::new(address, DNS_PORT);
        let listening = namespace
            .run(|| dnsworker::listen(address))?
            .with_context(|| format!("opening the DNS sockets {address} of {node}"))?;
        inherited.extend(listening.into_descriptors());
    }
    Ok(inherited)
}
