//! The DNS workers' sockets. The supervisor keeps them open: while a worker is replaced, questions
//! wait in the socket and are answered by its successor. A supervisor that was killed leaves workers
//! that still hold them; its successor, of another build perhaps, takes them over from these.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dnsworker::Predecessor;
use model::layout;
use netlink::Netns;
use nix::sys::signal::{Signal, kill};

use super::super::cgroups;
use super::super::node_namespaces::SYSTEM_CGROUP;
use super::super::paths::Paths;
use super::super::spec::ClusterSpec;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Workers of another supervisor get this long for what they were asked already.
const ENDING_LIMIT: Duration = Duration::from_secs(4);
/// How often it is looked whether they ended.
const ENDING_INTERVAL: Duration = Duration::from_millis(2);

/// What a worker inherits: the handle of the host's network namespace, where upstream servers are
/// asked from, and then UDP and TCP at each of the cluster's DNS addresses, opened in the node's.
/// The addresses need not exist yet: the agent adds them to `lo`.
pub(super) fn dns(
    paths: &Paths,
    spec: &ClusterSpec,
    node: &str,
    predecessor: Option<Predecessor>,
) -> Result<Vec<OwnedFd>> {
    let namespace = Netns::open(&paths.netns(node))?;
    let host = File::open("/proc/self/ns/net").context("opening the host's network namespace")?;
    let addresses = spec.listened_dns_addresses();
    let addresses: Vec<SocketAddr> =
        addresses.into_iter().map(|address| SocketAddr::new(address, DNS_PORT)).collect();
    let sockets = namespace
        .run(|| dnsworker::sockets_at(&addresses, predecessor))?
        .with_context(|| format!("opening the DNS sockets {addresses:?} of {node}"))?;
    Ok([host.into()].into_iter().chain(sockets).collect())
}

/// The sockets of workers that a killed supervisor left, by node. The workers are asked to end, and
/// what comes from then on waits for their successors.
pub(super) fn take_over(paths: &Paths, spec: &ClusterSpec) -> BTreeMap<String, Predecessor> {
    let members = |node: &str| cgroups::members(&paths.cgroup().join(node).join(SYSTEM_CGROUP));
    let mut predecessors = BTreeMap::new();
    for node in &spec.nodes {
        let members = members(&node.name);
        // All of them see the node's own `/run`.
        let taken = members.iter().find_map(|pid| dnsworker::take_over(&control_socket(*pid)).ok());
        if let Some(taken) = taken.filter(|taken| members.contains(&taken.process.as_raw())) {
            let _ = kill(taken.process, Signal::SIGTERM);
            predecessors.insert(node.name.clone(), taken);
        }
    }
    let deadline = Instant::now() + ENDING_LIMIT;
    let lives =
        |(node, taken): (&String, &Predecessor)| members(node).contains(&taken.process.as_raw());
    while predecessors.iter().any(lives) && Instant::now() < deadline {
        std::thread::sleep(ENDING_INTERVAL);
    }
    predecessors
}

/// A node's control socket, through the eyes of one of its processes.
fn control_socket(pid: i32) -> PathBuf {
    let root = Path::new("/proc").join(pid.to_string()).join("root");
    let run = layout::RUN_DIRECTORY.trim_start_matches('/');
    root.join(run).join(layout::DNS_CONTROL_SOCKET)
}
