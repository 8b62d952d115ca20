//! Pods of the runtime as a whole: real namespaces, mounts and processes, as root.

mod api;
mod node;
mod pods;
