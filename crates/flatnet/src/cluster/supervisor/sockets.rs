//! The DNS workers' sockets. The supervisor keeps them open: while a worker is replaced, questions
//! wait in the socket and are answered by its successor.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
use model::Family;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::paths::Paths;
use super::super::spec::ClusterSpec;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Room for questions that wait while a worker is replaced, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// TCP connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// UDP and TCP at the cluster's DNS address, opened in the node's network namespace. The address
/// need not exist yet: the agent adds it to `lo`.
pub(super) fn dns(paths: &Paths, spec: &ClusterSpec, node: &str) -> Result<Vec<OwnedFd>> {
    let address = spec.config.dns_address(Family::V4).context("the service range has no IPv4")?;
    let address = SocketAddr::new(address, DNS_PORT);
    let handle = paths.netns(node);
    let netns = std::fs::File::open(&handle)
        .with_context(|| format!("opening {}", handle.display()))?;
    // A thread has a network namespace of its own to enter; this process stays where it is.
    let opened = std::thread::spawn(move || -> Result<Vec<OwnedFd>> {
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        let udp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        udp.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        udp.set_freebind_v4(true)?;
        udp.bind(&address.into())?;
        let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        tcp.set_reuse_address(true)?;
        tcp.set_freebind_v4(true)?;
        tcp.bind(&address.into())?;
        tcp.listen(BACKLOG)?;
        for socket in [&udp, &tcp] {
            socket.set_nonblocking(true)?;
        }
        Ok(vec![udp.into(), tcp.into()])
    });
    opened
        .join()
        .map_err(|_| anyhow!("the thread that opens DNS sockets failed"))?
        .with_context(|| format!("opening the DNS sockets {address} of {node}"))
}
