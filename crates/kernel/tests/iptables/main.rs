//! The iptables driver and the rendered rules on this machine's kernel, in both variants and
//! families, with real packets in network namespaces that each test makes. Needs root.

#[path = "../common/mod.rs"]
mod common;
mod features;
mod lab;
mod rules;
mod source_ports;
