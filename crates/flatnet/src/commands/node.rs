//! `flatnet node`: a command in a node's namespaces, for looking around; `flatnet node status`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::{ClusterName, network, require_root};
use crate::cluster::supervisor::node_place;

/// Arguments of `flatnet node`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet node node1 -- ip route   # in a cluster of this machine\n  flatnet node status              # on a node of a real cluster",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    cluster: ClusterName,
    /// The node.
    #[arg(required = true)]
    node: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Say what a node's agent has programmed, what it wants, and what differs.
    Status(network::Arguments),
}

/// Runs one or the other.
pub fn run(arguments: Arguments) -> ExitCode {
    if let Some(Action::Status(arguments)) = &arguments.action {
        return network::status(arguments);
    }
    match execute(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command; its exit code becomes ours.
fn execute(arguments: &Arguments) -> Result<ExitCode> {
    require_root("entering a node")?;
    let (paths, spec) = arguments.cluster.load()?;
    let wanted = arguments.node.as_deref().context("no node given")?;
    if !spec.nodes.iter().any(|node| node.name == wanted) {
        let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!("there is no node {wanted:?}: the nodes are {}", names.join(", "));
    }
    let (program, rest) = arguments.command.split_first().context("no command given")?;
    let mut command = std::process::Command::new(program);
    command.args(rest);
    node_place(&paths, wanted)?.enter_in(&mut command, vec![])?;
    let status = command.status().with_context(|| format!("starting {program}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
