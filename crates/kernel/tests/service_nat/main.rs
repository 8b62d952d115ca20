//! Services packet by packet, on this machine's kernel: single frames through the loaded programs,
//! and real packets between pods, nodes and clients outside. Needs root.

mod abandoned;
mod busy;
mod direct;
mod forwarded;
mod frames;
#[path = "../bpf/lab.rs"]
mod lab;
mod life;
mod node;
mod one_port;
mod random;
mod scene;
mod secret;
mod traffic;
mod unattended;
mod uplink;
mod wire;
