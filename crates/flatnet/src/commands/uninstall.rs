//! `flatnet uninstall`: takes everything of flatnet from this node.

use agent::Places;
use anyhow::Result;

use super::require_root;

/// Arguments of `flatnet uninstall`.
#[derive(clap::Args)]
#[command(
    after_help = "Delete the DaemonSets and drain the node first: pods that still run here lose their network.\nKernel parameters stay as they are. Clusters of `flatnet up` are removed by `flatnet down`."
)]
pub struct Arguments {
    /// Also remove addresses, records of pods, and keys.
    #[arg(long)]
    purge: bool,
}

/// Removes, and says what.
///
/// # Errors
/// When an agent runs here, or what could not be removed.
pub fn run(arguments: &Arguments) -> Result<()> {
    require_root("removing flatnet from a node")?;
    let removed = agent::uninstall(&Places::default(), arguments.purge)?;
    if removed.is_empty() {
        println!("there is nothing of flatnet on this node");
    }
    for line in removed {
        println!("removed {line}");
    }
    Ok(())
}
