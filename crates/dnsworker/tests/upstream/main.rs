//! Servers of others, over real sockets: encrypted ones, ones that lie, and clients that flood a
//! real worker process, in network namespaces of the test's own. Needs root and `ip`; fails
//! without.

mod asking;
#[path = "../lab/mod.rs"]
mod lab;
mod secure;
mod tls;
