//! The kubelet's part of an embedded node: it registers the Node, runs the pods that are bound to
//! it, and serves their logs and commands to the API server.
//!
//! What a pod should do next is decided by the pure `machine`; everything else carries facts to it
//! and its actions out. A pod's `flatnet-pause` parents the containers, so that the death of this
//! process disturbs none of them (invariant 14).

mod adopt;
mod capability;
pub mod cgroup;
mod claims;
mod cni;
mod context;
mod disk;
mod environment;
mod events;
mod image_collection;
mod image_policy;
pub mod images;
mod launch;
mod logs;
mod machine;
mod node;
mod options;
mod pause_client;
mod pod;
mod pod_files;
mod pods;
mod probe;
mod quantity;
mod sandbox;
mod security;
mod server;
mod storage;
mod streams;
mod sys;
mod system_calls;
mod tasks;
mod tokens;
mod usage;
mod volumes;
mod worker;

use client::Client;

use crate::context::Context;
use crate::images::{Images, Store};
pub use crate::options::Options;
use crate::pods::Pods;
use crate::server::Server;
pub use crate::streams::port_forward::DATAGRAM_PROTOCOL;
pub use crate::streams::spdy;

/// Runs the node's pods until the process ends. Needs a Tokio runtime; one thread is enough.
///
/// # Errors
/// What cannot be mended by trying again: unreadable certificates, a state directory that cannot
/// be written, a port that is taken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::from_kubeconfig(&options.kubeconfig).await?;
    run_with(options, client).await
}

async fn run_with(options: Options, client: Client) -> anyhow::Result<()> {
    for directory in [&options.state_directory, &options.run_directory] {
        disk::make_private(directory).map_err(anyhow::Error::msg)?;
    }
    let store = Store::open(options.image_directory.clone()).map_err(anyhow::Error::msg)?;
    store.register(&options.node_name, &options.state_directory).map_err(anyhow::Error::msg)?;
    let own = options.state_directory.join("images");
    let images =
        Images::prepare(own, &options.toolbox_binary, store).map_err(anyhow::Error::msg)?;
    let context = Context::new(options, client, images);
    tokio::spawn(Server::open(context.clone()).await?.run());
    tokio::spawn(node::keep_registered(context.clone()));
    tokio::spawn(node::keep_lease(context.clone()));
    tokio::spawn(image_collection::keep_room(context.clone()));
    tokio::spawn(memory::keep_giving_back());
    Pods::adopt(context).follow().await;
    Ok(())
}

#[cfg(test)]
mod tests;
