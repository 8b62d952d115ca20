//! `flatnet node-init`: the first process of a node.

use anyhow::Result;

use super::ClusterName;
use crate::cluster::node_namespaces;

/// Arguments of `flatnet node-init`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node.
    #[arg(long)]
    node: String,
}

/// Makes the node's namespaces and waits until its input ends.
///
/// # Errors
/// See [`node_namespaces::init`].
pub fn run(arguments: Arguments) -> Result<()> {
    node_namespaces::init(&arguments.cluster.paths()?, &arguments.node)
}
