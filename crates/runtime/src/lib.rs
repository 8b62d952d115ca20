//! The kubelet's part of an embedded node: it registers the Node, runs the pods that are bound to
//! it, and serves their logs and commands to the API server.
//!
//! What a pod should do next is decided by the pure `machine`; everything else carries facts to it
//! and its actions out. A pod's `flatnet-pause` parents the containers, so that the death of this
//! process disturbs none of them (invariant 14).

mod options;

pub use options::Options;

/// Runs the node's pods until the process ends. Needs a Tokio runtime; one thread is enough.
///
/// # Errors
/// What cannot be mended by trying again: unreadable certificates, a state directory that cannot
/// be written, a port that is taken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    anyhow::bail!("node {}: not started", options.node_name)
}
