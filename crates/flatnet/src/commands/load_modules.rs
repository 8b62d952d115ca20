//! `flatnet load-modules`: the kernel modules that a node of a real cluster needs and that nothing
//! loads by itself. The DaemonSet runs it before the agent, which has no right to load any.

use crate::cluster::preflight;

/// Loads them. A node that cannot is no reason to stop: its agent names what is missing, in the
/// Node's condition too.
pub fn run() {
    match preflight::load_bridge_netfilter() {
        Ok(()) => println!("br_netfilter is there"),
        Err(error) => eprintln!("flatnet: {error:#}"),
    }
}
