//! `flatnet dns`: a node's DNS worker, and what people ask of it.

mod check;
mod import;
mod query;
mod top;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dns::Name;
use dns::resolv_conf::ResolvConf;
use dnsworker::Options;
use model::{ClusterConfig, Family, layout};
use netlink::Netlink;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use render::net::LOOPBACK;

use super::{ClusterName, cluster_config, start_log};
use crate::cluster::preflight;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// The file of the newest zone, in its directory.
const ZONE_FILE: &str = "zone.json";

/// The file of the configuration, beside that of the cluster: another key of one ConfigMap.
const CONFIG_FILE: &str = "dns.yaml";

/// Arguments of `flatnet dns`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The cluster's ranges, as `flatnet manifests` prints them: runs this node's DNS worker. Its
    /// own configuration is the file dns.yaml beside this one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A cluster of this machine that the node is of (set by its supervisor).
    #[arg(long, hide = true, conflicts_with = "config", requires = "node_name")]
    name: Option<String>,
    /// The node's name in that cluster.
    #[arg(long, hide = true, requires = "name")]
    node_name: Option<String>,
}

/// What people ask for.
#[derive(clap::Subcommand)]
enum Command {
    /// Check a configuration of the DNS worker.
    Check(check::Arguments),
    /// Translate a Corefile of CoreDNS, and list what it could not carry over.
    Import(import::Arguments),
    /// Why a name gets the answer that it gets.
    Query(query::Arguments),
    /// Names and clients that ask most.
    Top(top::Arguments),
}

/// The first descriptor that the supervisor passes: the host's network namespace. Behind it come
/// the sockets.
const FIRST_DESCRIPTOR: i32 = 3;

/// Runs the worker until it is killed, or does what was asked for.
pub fn run(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Import(arguments)) => import::run(&arguments),
        Some(Command::Query(arguments)) => query::run(&arguments),
        Some(Command::Top(arguments)) => top::run(&arguments),
        None => work(arguments.name, arguments.node_name, arguments.config.as_deref()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn work(name: Option<String>, node: Option<String>, config: Option<&Path>) -> Result<ExitCode> {
    start_log();
    let options = match (name, node, config) {
        (Some(name), Some(node), _) => of_cluster(name, &node)?,
        (_, _, Some(config)) => of_node(config)?,
        _ => bail!("name the cluster's configuration with --config, or see `flatnet dns --help`"),
    };
    let program = std::env::current_exe()?.with_file_name(preflight::DNS_WORKER);
    // The worker is a program of its own, a tenth of this one in memory.
    let error = std::process::Command::new(&program).args(options.words()).exec();
    Err(error).with_context(|| {
        format!("starting the DNS worker {}: it belongs beside this program", program.display())
    })
}

/// A node of a cluster that `flatnet up` made.
fn of_cluster(name: String, node: &str) -> Result<Options> {
    let (paths, spec) = ClusterName { name }.load()?;
    Ok(Options {
        sockets: dnsworker::passed(FIRST_DESCRIPTOR + 1),
        upstreams: upstreams(&spec.upstream_resolvers),
        host_search: vec![],
        upstream_network_namespace: Some(format!("/proc/self/fd/{FIRST_DESCRIPTOR}").into()),
        feed_socket: in_run(layout::DNS_FEED_SOCKET),
        cache_file: Some(paths.node(node).join("dns").join(ZONE_FILE)),
        config_file: Some(paths.state().join(CONFIG_FILE)),
        control_socket: Some(in_run(layout::DNS_CONTROL_SOCKET)),
        restarts: false,
    })
}

/// A node of a real cluster: nobody else keeps the sockets, so the worker has a process that does.
/// One that runs already hands them over, and is for its starter to end.
fn of_node(file: &Path) -> Result<Options> {
    let config = cluster_config::read(file)?;
    let own = own_addresses(&config)?;
    let mut resolvers = preflight::host_resolvers();
    // A pod's resolver would send our questions back to us.
    resolvers.retain(|resolver| !own.contains(resolver));
    Ok(Options {
        sockets: listen(&own)?,
        upstreams: upstreams(&resolvers),
        host_search: host_search(),
        upstream_network_namespace: None,
        feed_socket: in_run(layout::DNS_FEED_SOCKET),
        cache_file: Some(Path::new(layout::DNS_ZONE_DIRECTORY).join(ZONE_FILE)),
        config_file: Some(file.with_file_name(CONFIG_FILE)),
        control_socket: Some(in_run(layout::DNS_CONTROL_SOCKET)),
        restarts: true,
    })
}

/// Where the worker of a real node answers: not where a NodeLocal DNSCache that is still there
/// does, which shows by a link of its own.
fn own_addresses(config: &ClusterConfig) -> Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open()?;
    let loopback = netlink.require_link(LOOPBACK)?.index;
    let present = netlink.addresses(None)?;
    let is_free = |address: &IpAddr| {
        let others =
            present.iter().find(|one| one.address.addr() == *address && one.link_index != loopback);
        if let Some(other) = others {
            let link = other.link_index;
            tracing::warn!(
                "{address} is an address of the link number {link}, of a NodeLocal DNSCache \
                 perhaps: names are not answered there until that is gone and this starts again"
            );
        }
        others.is_none()
    };
    let families = [Family::V4, Family::V6].into_iter();
    Ok(families.flat_map(|family| config.dns_addresses(family)).filter(is_free).collect())
}

/// What the node's own search path is, and so the end of its pods'.
fn host_search() -> Vec<Name> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let search = ResolvConf::parse(&text).search;
    search.iter().filter_map(|domain| domain.parse().ok()).collect()
}

fn listen(addresses: &[IpAddr]) -> Result<Vec<RawFd>> {
    let addresses: Vec<SocketAddr> =
        addresses.iter().map(|address| SocketAddr::new(*address, DNS_PORT)).collect();
    let predecessor = dnsworker::predecessor(&in_run(layout::DNS_CONTROL_SOCKET), &addresses);
    let sockets = dnsworker::sockets_at(&addresses, predecessor).with_context(|| {
        format!("opening DNS sockets at {addresses:?} (does another DNS server have the port?)")
    })?;
    sockets.into_iter().map(inherited).collect()
}

/// A descriptor for the program that this one becomes.
fn inherited(socket: OwnedFd) -> Result<RawFd> {
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(socket.into_raw_fd())
}

fn upstreams(resolvers: &[IpAddr]) -> Vec<SocketAddr> {
    resolvers.iter().map(|address| SocketAddr::new(*address, DNS_PORT)).collect()
}

fn in_run(socket: &str) -> PathBuf {
    Path::new(layout::RUN_DIRECTORY).join(socket)
}
