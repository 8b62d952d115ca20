//! Rules at pods' edges on this machine's kernel: frames that a hostile pod writes byte by byte,
//! ports of the node, who may come in, repair. In network namespaces that each test makes. Needs
//! root.

mod clients;
mod firewall;
mod frames;
mod host_ports;
mod lab;
mod martians;
mod repair;
mod routed;
mod spoofing;
