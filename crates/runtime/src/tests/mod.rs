//! Pods of the runtime as a whole: real namespaces, mounts and processes, as root.

mod api;
mod attach;
pub mod certificates;
mod hooks;
mod host_image;
mod images;
mod kill;
mod limits;
mod node;
mod pods;
mod processes;
mod remote;
mod restarts;
mod security;
mod volumes;
