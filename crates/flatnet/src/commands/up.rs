//! `flatnet up`: a cluster on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use client::{Client, ListOptions, ResourcePath};
use controlplane::{MAX_ENDPOINTS_PER_SLICE, pki};
use ipnet::IpNet;
use model::{
    ClusterConfig, DnsFastPath, Family, LoadBalancerMode, Node, NodeLocalDns, Overlay,
    ServiceAcceleration, ServiceBackend, Timestamp, layout,
};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{ClusterName, cluster_config, require_root};
use crate::cluster::paths::Paths;
use crate::cluster::spec::{ClusterSpec, write_private};
use crate::cluster::teardown::{self, Keep};
use crate::cluster::{fabric, host_routes, node_namespaces, preflight, supervisor};
use crate::demo;
use crate::output::{Format, Progress, print, table};

/// How long all nodes may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// A process that was started again this often meanwhile has a lasting reason to fail.
const RESTARTS_MAX: u32 = 5;
/// The IPv6 ranges of clusters that have IPv6 and name none: unique local addresses (RFC 4193).
const DEFAULT_POD_CIDR_V6: &str = "fd00:10:244::/56";
const DEFAULT_SERVICE_CIDR_V6: &str = "fd00:10:96::/112";
const DEFAULT_NODE_CIDR_V6: &str = "fd00:172:30::/64";
/// The API is asked this often meanwhile.
const READY_PERIOD: Duration = Duration::from_millis(10);

/// Arguments of `flatnet up`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet up\n  flatnet up --demo\n  flatnet up --name lab --nodes 5 --overlay host-gw --pod-cidr 10.50.0.0/16 \\\n      --service-cidr 10.60.0.0/16 --node-cidr 172.31.0.0/24"
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// A YAML file with the cluster's configuration, as `flatnet manifests` prints it: ranges,
    /// overlay, pools. What it leaves out has its default.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["overlay", "cross_subnet", "ip_family", "pod_cidr", "service_cidr",
            "node_cidr", "node_cidr_mask_size", "service_backend", "load_balancer_mode",
            "service_acceleration", "failover", "dns_fast_path", "node_local_dns"]
    )]
    config: Option<PathBuf>,
    /// How many nodes (default 3).
    #[arg(long)]
    nodes: Option<usize>,
    /// How pod packets travel between nodes: vxlan, host-gw, ipip, wireguard, or native where
    /// someone else makes the routes (default vxlan).
    #[arg(long)]
    overlay: Option<Overlay>,
    /// Nodes of one L2 segment send each other pod packets directly, whatever tunnel the overlay
    /// is.
    #[arg(long)]
    cross_subnet: bool,
    /// What implements Services on the nodes; on a cluster that runs it is changed live, and
    /// established connections go on (default auto: nftables).
    #[arg(long, value_name = "BACKEND")]
    service_backend: Option<ServiceBackend>,
    /// Which way endpoints on other nodes answer clients outside of the cluster: through the node
    /// that these came to (snat), or past it (dsr; hybrid: connections only), which needs the
    /// backend ebpf (default snat).
    #[arg(long, value_name = "MODE")]
    load_balancer_mode: Option<LoadBalancerMode>,
    /// With the backend ebpf: whether packets of clients outside to endpoints on other nodes are
    /// sent on before the kernel's stack, by XDP in the driver of the nodes' uplink: disabled,
    /// native (all nodes must) or best-effort (where the device can; default disabled).
    #[arg(long, value_name = "MODE")]
    service_acceleration: Option<ServiceAcceleration>,
    /// Whether nodes and endpoints that do not answer get no new connections through Services
    /// (default true).
    #[arg(long, value_name = "BOOL")]
    failover: Option<bool>,
    /// Whether the kernel answers for cluster DNS at the links of pods: auto, on or off (default
    /// auto: where it can).
    #[arg(long, value_name = "CHOICE")]
    dns_fast_path: Option<DnsFastPath>,
    /// Where cluster DNS answers on every node besides the Service's address: one address a family,
    /// or none (default 169.254.20.10). A cluster that was kept hears of it with its next start.
    #[arg(long, value_name = "ADDRESS[,ADDRESS]|none")]
    node_local_dns: Option<NodeLocalDns>,
    /// Which families pods, Services and nodes have; the first is the default of Services
    /// (default ipv4).
    #[arg(long)]
    ip_family: Option<IpFamily>,
    /// The range of pod addresses, or one of each family (default 10.244.0.0/16, fd00:10:244::/56).
    #[arg(long, value_name = "RANGE[,RANGE]", value_delimiter = ',')]
    pod_cidr: Vec<IpNet>,
    /// The range of Service addresses, or one of each family (default 10.96.0.0/16,
    /// fd00:10:96::/112).
    #[arg(long, value_name = "RANGE[,RANGE]", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    /// The range of the nodes' own addresses, or one of each family (default 172.30.0.0/24,
    /// fd00:172:30::/64).
    #[arg(long, value_name = "RANGE[,RANGE]", value_delimiter = ',')]
    node_cidr: Vec<IpNet>,
    /// The prefix length of one node's IPv4 pod range (default 24).
    #[arg(long, value_name = "BITS")]
    node_cidr_mask_size: Option<u8>,
    /// How many endpoints one EndpointSlice has at most, 1 to 1000 (default 100). Slices of a
    /// cluster that was kept are packed anew as they change.
    #[arg(long, value_name = "NUMBER", value_parser = parse_slice_size)]
    max_endpoints_per_slice: Option<usize>,
    /// Write down every request to the API server in this file: who asked for what, and what
    /// became of it, without bodies (audit.k8s.io/v1 Events of level Metadata, one JSON line each;
    /// at 100 MB another file is begun, and 4 older ones are kept). Off by default.
    #[arg(long, value_name = "FILE", value_parser = parse_audit_path)]
    audit_log_path: Option<PathBuf>,
    /// The API server's port (default: 6443, or the next free one).
    #[arg(long)]
    api_port: Option<u16>,
    /// Also deploy a small shop and show it answering.
    #[arg(long)]
    demo: bool,
    /// How to print the result.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// `--ip-family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum IpFamily {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    fn has(self, family: Family) -> bool {
        match self {
            Self::Ipv4 => family == Family::V4,
            Self::Ipv6 => family == Family::V6,
            Self::Dual => true,
        }
    }
}

/// What `up` tells when the cluster runs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    name: String,
    nodes: Vec<NodeOutcome>,
    pod_cidrs: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
    node_cidrs: Vec<IpNet>,
    overlay: Overlay,
    service_backend: ServiceBackend,
    api_server: String,
    kubeconfig: PathBuf,
    dns_addresses: Vec<std::net::IpAddr>,
    ready_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    demo: Option<demo::Outcome>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeOutcome {
    name: String,
    status: &'static str,
    address: String,
    pod_cidr: String,
}

/// Makes and starts the cluster, and waits until its nodes are ready.
///
/// # Errors
/// The first fault; what was made until then is taken away again.
pub fn run(arguments: Arguments) -> Result<()> {
    let mut progress = Progress::new(false);
    require_root("making a cluster")?;
    let paths = arguments.cluster.paths()?;
    if supervisor::is_running(&paths)? {
        bail!(
            "cluster {0} runs already: see `flatnet status --name {0}`, or start another with --name",
            paths.name()
        );
    }
    let stored = ClusterSpec::load(&paths)?;
    let keep = if stored.is_some() { Keep::Objects } else { Keep::Nothing };
    let mut spec = match stored {
        Some(stored) => revived(&arguments, stored)?,
        None => new_spec(&arguments)?,
    };
    // Ours until the end: by then the API server has it.
    let port = preflight::api_port(arguments.api_port, spec.api_port)?;
    spec.api_port = port.number();
    preflight::check_machine()?;
    preflight::check_overlay(&spec)?;
    agent::service_backend(spec.config.service_backend)?;
    preflight::check_routes(&paths, &spec)?;
    progress.done("machine and ranges checked");
    // An interruption waits until it can be answered by taking everything away again.
    let interruptions = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    interruptions.thread_block()?;
    let mut outcome = match start(&paths, &spec, &interruptions, &mut progress) {
        Ok(outcome) => outcome,
        Err(error) => {
            let hint = last_words(&paths);
            teardown::run(&paths, keep).context("and taking the unfinished cluster away failed")?;
            return Err(error.context(format!("the cluster could not be started{hint}")));
        }
    };
    let shown =
        if arguments.demo { show(&paths, &spec, &mut progress).map(Some) } else { Ok(None) };
    let demo = shown.as_ref().map(drop).map_err(|error| anyhow!("the demo failed: {error:#}"));
    outcome.demo = shown.ok().flatten();
    print(arguments.output, &outcome, || text(&outcome))?;
    demo
}

/// Deploys the demo. The cluster stays when that fails, to be looked at.
fn show(paths: &Paths, spec: &ClusterSpec, progress: &mut Progress) -> Result<demo::Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::from_kubeconfig(&paths.kubeconfig()).await?;
        demo::run(paths, spec, &client, progress).await
    })
}

fn start(
    paths: &Paths,
    spec: &ClusterSpec,
    interruptions: &SigSet,
    progress: &mut Progress,
) -> Result<Outcome> {
    // What an earlier boot or an unclean end left is in the way.
    teardown::run(paths, Keep::Objects)?;
    for directory in [paths.state(), paths.run(), paths.logs(), paths.nodes()] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    }
    spec.save(paths)?;
    write_credentials(paths, spec)?;
    progress.done("credentials");
    node_namespaces::prepare(paths)?;
    fabric::create(paths, spec)?;
    for node in &spec.nodes {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(paths.node(&node.name))?;
        node_namespaces::create(paths, &node.name)?;
        fabric::plug_in_node(paths, spec, node)?;
    }
    host_routes::create(paths, spec)?;
    progress.done(&format!("{} nodes and their network", spec.nodes.len()));
    start_supervisor(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let nodes = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        interruptions.thread_unblock()?;
        let client = Client::from_kubeconfig(&paths.kubeconfig()).await?;
        tokio::select! {
            nodes = wait_ready(paths, spec, &client) => nodes,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    progress.done("control plane, agents, runtimes and DNS");
    let ready_ms = progress.elapsed_ms();
    Ok(Outcome {
        name: paths.name().into(),
        nodes,
        pod_cidrs: spec.config.pod_cidrs.clone(),
        service_cidrs: spec.config.service_cidrs.clone(),
        node_cidrs: spec.config.node_cidrs.clone(),
        overlay: spec.config.overlay,
        service_backend: agent::service_backend(spec.config.service_backend)?,
        api_server: spec.local_api_url(),
        kubeconfig: paths.kubeconfig(),
        dns_addresses: spec.dns_addresses(),
        ready_ms,
        demo: None,
    })
}

fn new_spec(arguments: &Arguments) -> Result<ClusterSpec> {
    let config = match &arguments.config {
        Some(file) => read_config(arguments, file)?,
        None => config_of_flags(arguments)?,
    };
    let nodes = arguments.nodes.unwrap_or(3);
    let mut spec = ClusterSpec::new(config, nodes, layout::API_PORT)?;
    spec.upstream_resolvers = preflight::host_resolvers();
    spec.max_endpoints_per_slice = arguments.max_endpoints_per_slice;
    spec.audit_log_path.clone_from(&arguments.audit_log_path);
    Ok(spec)
}

fn read_config(arguments: &Arguments, file: &Path) -> Result<ClusterConfig> {
    Ok(ClusterConfig { name: arguments.cluster.name.clone(), ..cluster_config::read(file)? })
}

fn config_of_flags(arguments: &Arguments) -> Result<ClusterConfig> {
    let mut config =
        ClusterConfig { name: arguments.cluster.name.clone(), ..ClusterConfig::default() };
    let ranges = [
        (&arguments.pod_cidr, &mut config.pod_cidrs, DEFAULT_POD_CIDR_V6),
        (&arguments.service_cidr, &mut config.service_cidrs, DEFAULT_SERVICE_CIDR_V6),
        (&arguments.node_cidr, &mut config.node_cidrs, DEFAULT_NODE_CIDR_V6),
    ];
    let families = families(arguments)?;
    for (given, range, default_v6) in ranges {
        if given.is_empty() {
            range.push(default_v6.parse()?);
            range.retain(|range| families.has(Family::of(&range.addr())));
        } else {
            range.clone_from(given);
        }
    }
    config.overlay = arguments.overlay.unwrap_or_default();
    config.cross_subnet = arguments.cross_subnet;
    config.service_backend = arguments.service_backend.unwrap_or_default();
    config.load_balancer_mode = arguments.load_balancer_mode.unwrap_or_default();
    config.service_acceleration = arguments.service_acceleration.unwrap_or_default();
    config.failover = arguments.failover.unwrap_or(config.failover);
    config.node_local_dns =
        arguments.node_local_dns.clone().map_or(config.node_local_dns, |given| given.0);
    config.dns_fast_path = arguments.dns_fast_path.unwrap_or_default();
    config.node_prefix_length = arguments.node_cidr_mask_size.unwrap_or(config.node_prefix_length);
    Ok(config)
}

/// The families that were asked for, or else those of the first range that was given.
fn families(arguments: &Arguments) -> Result<IpFamily> {
    let given = [&arguments.pod_cidr, &arguments.service_cidr, &arguments.node_cidr];
    let Some(first) = given.into_iter().find(|ranges| !ranges.is_empty()) else {
        return Ok(arguments.ip_family.unwrap_or(IpFamily::Ipv4));
    };
    let has = |family| first.iter().any(|range| Family::of(&range.addr()) == family);
    let meant = match (has(Family::V4), has(Family::V6)) {
        (true, true) => IpFamily::Dual,
        (false, true) => IpFamily::Ipv6,
        _ => IpFamily::Ipv4,
    };
    match arguments.ip_family {
        Some(asked) if asked != meant => {
            bail!("the ranges that are given do not have the families of --ip-family: leave it out")
        }
        _ => Ok(meant),
    }
}

/// A cluster that was kept: it stays what it was made as, only the API's port may move.
fn revived(arguments: &Arguments, mut stored: ClusterSpec) -> Result<ClusterSpec> {
    let config = &stored.config;
    let read = arguments.config.as_ref().map(|file| read_config(arguments, file)).transpose()?;
    let same = |given: &[IpNet], ranges: &[IpNet]| given.is_empty() || given == ranges;
    let same_families = arguments.ip_family.is_none_or(|asked| {
        let has = |family| config.pod_cidrs.iter().any(|range| Family::of(&range.addr()) == family);
        [Family::V4, Family::V6].iter().all(|family| asked.has(*family) == has(*family))
    });
    let unchanged = same(&arguments.pod_cidr, &config.pod_cidrs)
        && same(&arguments.service_cidr, &config.service_cidrs)
        && same(&arguments.node_cidr, &config.node_cidrs)
        && same_families
        && read.is_none_or(|read| read == *config)
        && arguments.overlay.is_none_or(|overlay| overlay == config.overlay)
        && (!arguments.cross_subnet || config.cross_subnet)
        && arguments.node_cidr_mask_size.is_none_or(|bits| bits == config.node_prefix_length)
        && arguments.nodes.is_none_or(|nodes| nodes == stored.nodes.len());
    if !unchanged {
        bail!(
            "cluster {0} was made as {1} nodes, overlay {2}, pods {3:?}, Services {4:?}, nodes {5:?}, \
             and keeps that: leave the flags out, or remove it first with `flatnet down --name {0}`",
            config.name,
            stored.nodes.len(),
            config.overlay,
            config.pod_cidrs,
            config.service_cidrs,
            config.node_cidrs
        );
    }
    if let Some(backend) = arguments.service_backend {
        stored.config.service_backend = backend;
    }
    let mode = arguments.load_balancer_mode;
    stored.config.load_balancer_mode = mode.unwrap_or(stored.config.load_balancer_mode);
    let acceleration = arguments.service_acceleration;
    stored.config.service_acceleration = acceleration.unwrap_or(stored.config.service_acceleration);
    stored.config.failover = arguments.failover.unwrap_or(stored.config.failover);
    let dns_fast_path = arguments.dns_fast_path;
    stored.config.dns_fast_path = dns_fast_path.unwrap_or(stored.config.dns_fast_path);
    if let Some(given) = &arguments.node_local_dns {
        stored.config.node_local_dns.clone_from(&given.0);
    }
    stored.upstream_resolvers = preflight::host_resolvers();
    let slices = arguments.max_endpoints_per_slice;
    stored.max_endpoints_per_slice = slices.or(stored.max_endpoints_per_slice);
    stored.audit_log_path = arguments.audit_log_path.clone().or(stored.audit_log_path);
    Ok(stored)
}

/// The API server runs elsewhere than the command, so that only an absolute path means one file.
fn parse_audit_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("use an absolute path".to_owned()) }
}

fn parse_slice_size(text: &str) -> Result<usize, String> {
    let number = text.parse().ok();
    let allowed = number.filter(|number| (1..=MAX_ENDPOINTS_PER_SLICE).contains(number));
    allowed.ok_or_else(|| format!("use a number from 1 to {MAX_ENDPOINTS_PER_SLICE}"))
}

fn write_credentials(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp::default().after(since_epoch);
    let nodes: BTreeMap<String, Vec<std::net::IpAddr>> =
        spec.nodes.iter().map(|node| (node.name.clone(), node.addresses.clone())).collect();
    let request = pki::PkiRequest {
        config: spec.config.clone(),
        server_addresses: spec.host_addresses.clone(),
        nodes,
    };
    let files = pki::ensure(&paths.pki(), &request, now)?;
    let text = |user: &str, server: &str, identity: &pki::KeyPairFiles| {
        let cluster = paths.name();
        pki::kubeconfig_text(&files, &pki::KubeconfigRequest { cluster, user, server, identity })
    };
    let admin = text(pki::ADMIN_NAME, &spec.local_api_url(), &files.admin)?;
    write_private(&paths.kubeconfig(), &admin)?;
    let api_url = format!("https://{}", spec.api_address()?);
    for (node, identities) in &files.nodes {
        let user = format!("system:node:{node}");
        let kubeconfig = text(&user, &api_url, &identities.client)?;
        write_private(&paths.component_kubeconfig(node), &kubeconfig)?;
    }
    Ok(())
}

/// Starts the supervisor in a session of its own, so that it outlives the terminal.
fn start_supervisor(paths: &Paths) -> Result<()> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.logs().join("supervisor.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["supervise", "--name", paths.name()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    command.spawn().context("starting the supervisor")?;
    Ok(())
}

async fn wait_ready(
    paths: &Paths,
    spec: &ClusterSpec,
    client: &Client,
) -> Result<Vec<NodeOutcome>> {
    let path = ResourcePath::new("v1", "nodes");
    let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
    let mut last = String::from("the API server has not answered yet");
    while tokio::time::Instant::now() < deadline {
        match client.list::<Node>(&path, &ListOptions::default()).await {
            Ok(list) => {
                let ready = |name: &str| {
                    list.items.iter().find(|node| node.name() == name && is_usable(node))
                };
                let waiting: Vec<&str> = spec
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .filter(|name| ready(name).is_none())
                    .collect();
                if waiting.is_empty() {
                    return Ok(spec
                        .nodes
                        .iter()
                        .filter_map(|node| ready(&node.name))
                        .map(node_outcome)
                        .collect());
                }
                last = format!("not ready: {}", waiting.join(", "));
            }
            Err(error) => last = error.to_string(),
        }
        if let Some(fallen) = fallen(paths)? {
            bail!("{fallen}");
        }
        tokio::time::sleep(READY_PERIOD).await;
    }
    bail!("after {} s: {last} (logs: {})", READY_TIMEOUT.as_secs(), paths.logs().display())
}

/// The process that does not stay up, when there is one: waiting longer would not help.
fn fallen(paths: &Paths) -> Result<Option<String>> {
    let report = supervisor::report(paths)?;
    let processes = report.into_iter().flat_map(|report| report.processes);
    let mut fallen = processes.filter(|process| process.restarts >= RESTARTS_MAX);
    Ok(fallen.next().map(|process| {
        let exit = process.last_exit.unwrap_or_default();
        format!("{} does not stay up ({exit})", process.name)
    }))
}

/// Ready, with a pod range, and without the taint that keeps pods away from new nodes.
fn is_usable(node: &Node) -> bool {
    let tainted = node.spec.taints.iter().any(|taint| taint.key == "node.kubernetes.io/not-ready");
    node.is_ready() && !node.spec.pod_cidrs.is_empty() && !tainted
}

fn node_outcome(node: &Node) -> NodeOutcome {
    NodeOutcome {
        name: node.name().into(),
        status: if node.is_ready() { "Ready" } else { "NotReady" },
        address: node.internal_ips().map(|ip| ip.to_string()).collect::<Vec<_>>().join(","),
        pod_cidr: node.spec.pod_cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(","),
    }
}

/// The end of the logs, for whoever must find out why a start failed.
fn last_words(paths: &Paths) -> String {
    let mut words = String::new();
    for entry in fs::read_dir(paths.logs()).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(line) = text.lines().last() {
            words.push_str(&format!("\n  {}: {line}", entry.file_name().to_string_lossy()));
        }
    }
    words
}

fn text(outcome: &Outcome) -> String {
    let rows: Vec<[String; 4]> = outcome
        .nodes
        .iter()
        .map(|node| {
            let NodeOutcome { name, status, address, pod_cidr } = node;
            [name.clone(), (*status).into(), address.clone(), pod_cidr.clone()]
        })
        .collect();
    let list = |ranges: &[IpNet]| ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    let dns: Vec<String> = outcome.dns_addresses.iter().map(ToString::to_string).collect();
    let dns = dns.join(",");
    let kubeconfig = outcome.kubeconfig.display();
    let mut text = format!(
        "\nCluster {} is ready after {} ms.\n\n{}\n\
         Pods       {}, {} between nodes\n\
         Services   {}, by {}; DNS at {dns}\n\
         Nodes      {}\n\
         API        {}\n\
         kubectl    export KUBECONFIG={kubeconfig}\n\
         From here  curl http://CLUSTER-IP:PORT, http://POD-IP:PORT or http://NODE:NODE-PORT\n",
        outcome.name,
        outcome.ready_ms,
        table(["NODE", "STATUS", "ADDRESS", "POD-CIDR"], &rows),
        list(&outcome.pod_cidrs),
        outcome.overlay,
        list(&outcome.service_cidrs),
        outcome.service_backend,
        list(&outcome.node_cidrs),
        outcome.api_server,
    );
    if let Some(demo) = &outcome.demo {
        text.push_str(&demo::text(demo));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        let command = <Arguments as clap::Args>::augment_args(clap::Command::new("up"));
        let matches = command.try_get_matches_from(["up"].iter().chain(words))?;
        Arguments::from_arg_matches(&matches)
    }

    /// S-17: up to 1,000 endpoints a slice.
    #[test]
    fn the_size_of_slices_is_1_to_1000() {
        for (given, expected) in
            [("1", Some(1)), ("1000", Some(1000)), ("0", None), ("1001", None), ("many", None)]
        {
            let parsed = parse(&["--max-endpoints-per-slice", given]);
            match (parsed, expected) {
                (Ok(arguments), Some(number)) => {
                    assert_eq!(arguments.max_endpoints_per_slice, Some(number));
                }
                (Err(error), None) => assert!(error.to_string().contains("1 to 1000"), "{error}"),
                (parsed, _) => panic!("{given}: accepted is {}", parsed.is_ok()),
            }
        }
        assert_eq!(parse(&[]).expect("no flag").max_endpoints_per_slice, None);
    }
}
