//! The commands, one file each.

pub mod agent;
pub mod ask;
pub mod cluster_config;
pub mod cni;
pub mod completion;
pub mod controlplane;
pub mod dns;
pub mod down;
pub mod image;
pub mod ipam;
pub mod kubeconfig;
pub mod load_modules;
pub mod manifests;
pub mod network;
pub mod node;
pub mod node_init;
pub mod port_forward;
pub mod runtime;
pub mod service;
pub mod status;
pub mod supervise;
pub mod uninstall;
pub mod up;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cluster::paths::Paths;
use crate::cluster::spec::ClusterSpec;

/// Which cluster of this machine.
#[derive(clap::Args, Clone, Debug)]
pub struct ClusterName {
    /// The cluster's name on this machine.
    #[arg(long, default_value = "flatnet")]
    pub name: String,
}

impl ClusterName {
    /// The cluster's places.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn paths(&self) -> Result<Paths> {
        Paths::new(&self.name).map_err(anyhow::Error::msg)
    }

    /// The cluster's places and what it was made as.
    ///
    /// # Errors
    /// When there is no such cluster, or its file is damaged.
    pub fn load(&self) -> Result<(Paths, ClusterSpec)> {
        let paths = self.paths()?;
        let spec = ClusterSpec::load(&paths)?.with_context(|| {
            format!("there is no cluster {}: `flatnet up --name {0}` makes it", self.name)
        })?;
        Ok((paths, spec))
    }
}

/// Refuses to go on without root, naming what it is needed for.
///
/// # Errors
/// Without root.
pub fn require_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("{what} needs root: run it with sudo")
}

/// Writes messages to standard error; `RUST_LOG` chooses how many.
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

/// Runs a daemon on one thread until it fails or SIGTERM or SIGINT comes.
///
/// # Errors
/// The daemon's.
pub fn run_daemon<F>(daemon: impl FnOnce(watch::Receiver<bool>) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    start_log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, shutdown) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let daemon = daemon(shutdown);
        tokio::pin!(daemon);
        tokio::select! {
            result = &mut daemon => return result,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
        daemon.await
    })
}
