//! `flatnet node exec`: a command in a node's namespaces, for looking around.

use anyhow::{Context, Result, bail};

use super::{ClusterName, require_root};
use crate::cluster::supervisor::node_place;

/// Arguments of `flatnet node`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  flatnet node node1 -- ip route")]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node.
    node: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes the command.
///
/// # Errors
/// When the node is unknown or the command cannot be started.
pub fn run(arguments: Arguments) -> Result<()> {
    require_root("entering a node")?;
    let (paths, spec) = arguments.cluster.load()?;
    if !spec.nodes.iter().any(|node| node.name == arguments.node) {
        let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!("there is no node {:?}: the nodes are {}", arguments.node, names.join(", "));
    }
    let (program, rest) = arguments.command.split_first().context("no command given")?;
    let mut command = std::process::Command::new(program);
    command.args(rest);
    node_place(&paths, &arguments.node)?.enter_in(&mut command, vec![])?;
    let status = command.status().with_context(|| format!("starting {program}"))?;
    std::process::exit(status.code().unwrap_or(1));
}
