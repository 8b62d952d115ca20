//! `flatnet controlplane`: the API server and the controllers, and the host's routes to what the
//! API makes ranges of.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use controlplane::AuditOptions;

use crate::cluster::host_routes;

use super::{ClusterName, run_daemon};

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
    let (paths, spec) = arguments.cluster.load()?;
    let advertised = spec.api_address()?;
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, spec.api_port));
    let listen = vec![advertised, loopback];
    let audit = spec.audit_log_path.clone().map(AuditOptions::new);
    let slices = spec.max_endpoints_per_slice;
    let config = spec.config.clone();
    let mut options = controlplane::Options::new(paths.state(), config, listen, advertised);
    options.max_endpoints_per_slice = slices.unwrap_or(options.max_endpoints_per_slice);
    options.audit = audit;
    run_daemon(|mut shutdown| async move {
        let stop = async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = shutdown.changed().await;
        };
        tokio::select! {
            ended = controlplane::run(options, stop) => Ok(ended?),
            never = host_routes::follow(&paths, &spec) => match never {},
        }
    })
}
