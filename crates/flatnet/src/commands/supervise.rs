//! `flatnet supervise`: the cluster's supervisor.

use anyhow::Result;

use super::ClusterName;
use crate::cluster::supervisor;

/// Arguments of `flatnet supervise`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
}

/// Supervises until SIGTERM.
///
/// # Errors
/// See [`supervisor::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    supervisor::run(&arguments.cluster.paths()?)
}
