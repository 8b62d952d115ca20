//! `flatnet dns`: a node's DNS worker.

use anyhow::Result;

use super::ClusterName;

/// Arguments of `flatnet dns`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node's name in the API.
    #[arg(long)]
    node_name: String,
}

/// Runs until SIGTERM.
///
/// # Errors
/// See [`dnsworker::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    let _ = (arguments.cluster.load()?, arguments.node_name);
    anyhow::bail!("not wired")
}
