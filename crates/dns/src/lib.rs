//! Cluster DNS: the protocol core, bytes and time in, bytes out.
//!
//! [`answer`] reads one query and either answers it from the [`Index`] of the cluster's zone or
//! says what to ask of an upstream server; [`Forwarder`] is that asking as a state machine, with
//! its cache. [`feed`] is the framing by which an agent hands zones to the DNS worker.
//!
//! Pure: no clock, file, socket, thread, environment variable or random source (invariant 9).

mod answer;
mod cache;
pub mod feed;
mod forward;
mod index;
pub mod message;
mod name;
pub mod resolv_conf;
mod response;
mod writer;

pub use answer::{Action, Client, Forward, Rules, NEGATIVE_TTL_S, TTL_S, answer, failure};
pub use forward::{Forwarder, Output, Transport};
pub use index::Index;
pub use name::{Name, NameError};
pub use response::{Record, Response, parse_response};
pub use writer::query;
