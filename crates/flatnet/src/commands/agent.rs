//! `flatnet agent`: a node's network.

use anyhow::Result;
use model::layout;

use super::{ClusterName, run_daemon};

/// Arguments of `flatnet agent`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node's name in the API.
    #[arg(long)]
    node_name: String,
    /// The link to the other nodes.
    #[arg(long, default_value = layout::UPLINK)]
    uplink: String,
}

/// Runs until SIGTERM. What is in the kernel stays.
///
/// # Errors
/// See [`agent::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    let (paths, spec) = arguments.cluster.load()?;
    let kubeconfig = paths.component_kubeconfig(&arguments.node_name);
    let options = agent::Options {
        node_name: arguments.node_name,
        kubeconfig,
        config: spec.config,
        uplink: arguments.uplink,
        run_directory: layout::RUN_DIRECTORY.into(),
        cni_configuration_directory: layout::CNI_CONFIGURATION_DIRECTORY.into(),
    };
    run_daemon(|shutdown| agent::run(options, shutdown))
}
