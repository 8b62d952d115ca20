//! The controllers of the embedded cluster, as pure functions: a snapshot of the API's objects, a
//! key and `now` in, writes and a time to run again out.
//!
//! [`Manager`] is what a program drives: it takes in lists and watch events, keeps the snapshot
//! and the queues, says which writes are due and takes in their results. It never waits, reads a
//! clock or talks to anybody (invariant 9); `controlplane::drive` does that for it.

mod adoption;
mod conditions;
pub mod controller;
mod deployment;
mod endpoint_slices;
mod endpoints;
mod events;
#[cfg(test)]
mod fixtures;
mod garbage;
pub mod kind;
pub mod manager;
mod namespaces;
mod node_lifecycle;
mod node_ranges;
pub mod object;
pub mod pod;
mod pod_garbage;
mod queue;
mod replica_sets;
mod scheduler;
mod selected_pods;
mod service_accounts;
mod service_cidrs;
pub mod slice;
mod slice_mirroring;
pub mod snapshot;
mod taint_eviction;
pub mod write;

pub use controller::{Config, Controller, Input};
pub use kind::{Kind, ObjectKey};
pub use manager::{Job, Manager, Ticket};
pub use snapshot::{Change, Snapshot};
pub use write::{Failure, Outcome, Propagation, Report, Step, StepResult, Write};
