//! `flatnet agent`: a node's network.

use std::path::{Path, PathBuf};

use agent::{Api, Options};
use anyhow::{Context, Result, bail};
use client::Endpoint;
use model::{ClusterConfig, layout};

use super::{ClusterName, cluster_config, run_daemon};

/// Arguments of `flatnet agent`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet agent --node-name node1 --kubeconfig /etc/kubernetes/flatnet.conf --config /etc/flatnet/config.yaml\n  flatnet agent --node-name node1 --api-server https://192.0.2.10:6443   # in a pod, with its ServiceAccount"
)]
pub struct Arguments {
    /// The node's name in the API.
    #[arg(long)]
    node_name: String,
    /// Who we are, and where the API server is. Without it: the pod's ServiceAccount.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    kubeconfig: Option<PathBuf>,
    /// The API server's URL, by a host address: its Service works only once this agent does.
    /// Without it: where the kubelet says.
    #[arg(long, value_name = "URL", conflicts_with_all = ["name", "kubeconfig"])]
    api_server: Option<String>,
    /// The cluster's ranges and overlay, as `flatnet manifests` prints them.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    config: Option<PathBuf>,
    /// The link to the other nodes. Without it: the one that has the Node's InternalIP, or that
    /// of the default route.
    #[arg(long, value_name = "LINK")]
    uplink: Option<String>,
    /// The CNI plugin to install. Without it: `flatnet-cni` from beside this program.
    #[arg(long, value_name = "FILE")]
    cni_binary: Option<PathBuf>,
    /// A cluster of this machine that the node is of (set by its supervisor).
    #[arg(long, hide = true)]
    name: Option<String>,
}

/// Runs until SIGTERM. What is in the kernel stays.
///
/// # Errors
/// See [`agent::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    let mut options = match &arguments.name {
        Some(name) => of_cluster(name, &arguments.node_name)?,
        None => of_node(&arguments)?,
    };
    if let Some(uplink) = arguments.uplink {
        options.uplink = Some(uplink);
    }
    if let Some(binary) = arguments.cni_binary {
        options.cni_binary = binary;
    }
    give_up_privileges()?;
    run_daemon(|shutdown| agent::run(options, shutdown))
}

/// No program that this process or one of its children starts can have more than it.
fn give_up_privileges() -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("giving up the way to new privileges")
}

/// A node of a cluster that `flatnet up` made.
fn of_cluster(name: &str, node: &str) -> Result<Options> {
    let (paths, spec) = ClusterName { name: name.into() }.load()?;
    let api = Api::Kubeconfig(paths.component_kubeconfig(node));
    let mut options = Options::new(node.into(), api, spec.config)?;
    options.uplink = Some(layout::UPLINK.into());
    // The usual place is the same for all nodes of this machine.
    options.places.wireguard_keys = paths.node(node).join("wireguard");
    Ok(options)
}

/// Any node of a real cluster.
fn of_node(arguments: &Arguments) -> Result<Options> {
    let config = match &arguments.config {
        Some(file) => cluster_config::read(file)?,
        None => ClusterConfig::default(),
    };
    let api = match (&arguments.kubeconfig, &arguments.api_server) {
        (Some(file), _) => Api::Kubeconfig(file.clone()),
        (None, Some(server)) => Api::ServiceAccount { server: server.clone(), directory: None },
        (None, None) => Api::ServiceAccount { server: service_url()?, directory: None },
    };
    Options::new(arguments.node_name.clone(), api, config)
}

/// Where the kubelet tells pods that the API server is.
fn service_url() -> Result<String> {
    if !Path::new(client::SERVICE_ACCOUNT_DIRECTORY).exists() {
        bail!("no --kubeconfig is given, and this is no pod with a ServiceAccount");
    }
    let variable = |name: &str| {
        std::env::var(name)
            .with_context(|| format!("{name} is not set: name the API server with --api-server"))
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    Ok(Endpoint::service_url(&host, &variable("KUBERNETES_SERVICE_PORT")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_gets_no_new_privileges() {
        let flag = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").expect("read");
            let line = status.lines().find_map(|line| line.strip_prefix("NoNewPrivs:"));
            line.map(|value| value.trim().to_owned())
        };
        // It is the thread's: the other tests keep what they have.
        let thread = std::thread::spawn(move || {
            let before = flag();
            give_up_privileges().expect("given up");
            (before, flag())
        });
        let (before, after) = thread.join().expect("no panic");
        assert_eq!((before.as_deref(), after.as_deref()), (Some("0"), Some("1")));
    }
}
