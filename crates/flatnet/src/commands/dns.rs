//! `flatnet dns`: a node's DNS worker, and what people ask of it.

mod check;
mod import;
mod query;
mod top;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dns::Name;
use dns::resolv_conf::ResolvConf;
use dnsworker::Options;
use model::{Family, layout};

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
    match dnsworker::run(&options)? {}
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
    })
}

/// A node of a real cluster: nobody keeps the sockets, so that questions that come while the
/// worker is replaced are lost, and asked again.
fn of_node(file: &Path) -> Result<Options> {
    let config = cluster_config::read(file)?;
    let families = [Family::V4, Family::V6];
    let own: Vec<IpAddr> =
        families.into_iter().filter_map(|family| config.dns_address(family)).collect();
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
    })
}

/// What the node's own search path is, and so the end of its pods'.
fn host_search() -> Vec<Name> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let search = ResolvConf::parse(&text).search;
    search.iter().filter_map(|domain| domain.parse().ok()).collect()
}

fn listen(addresses: &[IpAddr]) -> Result<Vec<RawFd>> {
    let mut sockets = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, DNS_PORT);
        let listening = dnsworker::listen(address).with_context(|| {
            format!("opening the DNS sockets {address} (does another DNS server have the port?)")
        })?;
        sockets.extend(listening.into_descriptors().into_iter().map(IntoRawFd::into_raw_fd));
    }
    Ok(sockets)
}

fn upstreams(resolvers: &[IpAddr]) -> Vec<SocketAddr> {
    resolvers.iter().map(|address| SocketAddr::new(*address, DNS_PORT)).collect()
}

fn in_run(socket: &str) -> PathBuf {
    Path::new(layout::RUN_DIRECTORY).join(socket)
}
