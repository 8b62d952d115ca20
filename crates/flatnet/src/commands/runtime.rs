//! `flatnet runtime`: a node's pods.

use anyhow::{Context, Result};
use controlplane::pki::{Pki, RUNTIME_CLIENT_NAME};
use model::layout;

use super::{ClusterName, run_daemon};

/// Arguments of `flatnet runtime`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The node's name in the API.
    #[arg(long)]
    node_name: String,
}

/// Runs until SIGTERM. Pods go on without it.
///
/// # Errors
/// See [`runtime::run`].
pub fn run(arguments: Arguments) -> Result<()> {
    let (paths, spec) = arguments.cluster.load()?;
    let name = arguments.node_name;
    let node = spec.nodes.iter().find(|node| node.name == name);
    let node = node.with_context(|| format!("there is no node {name} in this cluster"))?;
    let pki = Pki::at(&paths.pki(), [&name]);
    let serving = pki.nodes.get(&name).context("the node has no certificates")?.serving.clone();
    let own = std::env::current_exe()?;
    let mut options = runtime::Options::new(name.clone());
    options.node_addresses = node.addresses.clone();
    options.kubeconfig = paths.component_kubeconfig(&name);
    options.serving_certificate = serving.certificate;
    options.serving_key = serving.key;
    options.client_authority = pki.authority;
    options.client_name = RUNTIME_CLIENT_NAME.into();
    options.state_directory = paths.node(&name).join("runtime");
    options.image_directory = paths.images();
    options.run_directory = std::path::Path::new(layout::RUN_DIRECTORY).join("runtime");
    options.cluster_dns = spec.dns_addresses();
    options.cluster_domain = spec.config.cluster_domain;
    options.pause_binary = own.with_file_name("flatnet-pause");
    options.toolbox_binary = own.with_file_name("flatnet-toolbox");
    run_daemon(|mut shutdown| async move {
        tokio::select! {
            result = runtime::run(options) => result,
            _ = shutdown.changed() => Ok(()),
        }
    })
}
