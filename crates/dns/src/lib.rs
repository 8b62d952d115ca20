//! Cluster DNS: the protocol core, bytes and time in, bytes out.
//!
//! [`answer`] reads one query and either answers it from the [`Index`] of the cluster's zone or
//! says what to ask of an upstream server; [`Forwarder`] is that asking as a state machine, with
//! its cache. [`feed`] is the framing by which an agent hands zones to the DNS worker.
//!
//! Pure: no clock, file, socket, thread, environment variable or random source (invariant 9).

mod answer;
mod cache;
pub mod config;
pub mod corefile;
mod explain;
pub mod feed;
mod forward;
mod index;
mod limits;
pub mod message;
mod name;
mod records;
pub mod resolv_conf;
mod response;
mod rules;
mod search;
mod server;
mod stats;
mod template;
mod writer;

pub use answer::{
    Action, Client, Forward, NEGATIVE_TTL_S, Rules, TTL_S, answer, failure, soa_data,
};
pub use config::Config;
pub use explain::{Explanation, explain, explain_by};
pub use forward::{ForwardCounts, Forwarder, Health, Output, Random, Source, Transport};
pub use index::Index;
pub use limits::ClientCounts;
pub use name::{Name, NameError};
pub use records::Records;
pub use response::{Record, Response, parse_response};
pub use server::{Asker, Handled, Incoming, Server};
pub use stats::{Snapshot, Top, TopClient, TopName, TopServer};
pub use writer::query;
