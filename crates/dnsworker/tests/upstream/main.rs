//! Servers of others, over real sockets: encrypted ones, ones that lie, and clients that flood a
//! real worker process, in network namespaces of the test's own. Needs root and `ip`; fails
//! without.

mod asking;
mod flood;
mod foreign;
#[path = "../lab/mod.rs"]
mod lab;
mod liar;
mod lying;
mod private;
mod secure;
mod tls;
