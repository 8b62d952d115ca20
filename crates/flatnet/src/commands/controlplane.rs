//! `flatnet controlplane`: the API server and the controllers.

use anyhow::Result;

use super::ClusterName;

/// Arguments of `flatnet controlplane`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
}

/// Runs until SIGTERM.
///
/// # Errors
/// See [`controlplane::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    let _ = arguments.cluster.load()?;
    anyhow::bail!("not wired")
}
