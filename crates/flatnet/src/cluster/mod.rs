//! A cluster on this machine: its files, namespaces, links and processes.

pub mod cgroups;
pub mod fabric;
pub mod host_routes;
pub mod memory;
pub mod node_namespaces;
pub mod paths;
pub mod preflight;
pub mod spec;
pub mod supervisor;
pub mod teardown;
