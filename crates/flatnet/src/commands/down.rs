//! `flatnet down`: stops a cluster and takes it away.

use anyhow::Result;

use super::{ClusterName, require_root};
use crate::cluster::teardown::{self, Keep};

/// Arguments of `flatnet down`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet down\n  flatnet down --keep   # the objects come back with `flatnet up`"
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// Keep the objects and the credentials for the next `up`.
    #[arg(long)]
    keep: bool,
}

/// Takes the cluster away. None there is fine.
///
/// # Errors
/// What could not be removed.
pub fn run(arguments: Arguments) -> Result<()> {
    require_root("removing a cluster")?;
    let paths = arguments.cluster.paths()?;
    if !teardown::exists(&paths) {
        println!("there is no cluster {}", paths.name());
        return Ok(());
    }
    let keep = if arguments.keep { Keep::Objects } else { Keep::Nothing };
    teardown::run(&paths, keep)?;
    match keep {
        Keep::Nothing => println!("cluster {} is gone", paths.name()),
        Keep::Objects => println!(
            "cluster {} is stopped; its objects are in {}",
            paths.name(),
            paths.state().display()
        ),
    }
    Ok(())
}
