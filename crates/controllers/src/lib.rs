//! The controllers of the embedded cluster, as pure functions: a snapshot of the API's objects, a
//! key and `now` in, writes and a time to run again out.
//!
//! [`Manager`] is what a program drives: it takes in lists and watch events, keeps the snapshot
//! and the queues, says which writes are due and takes in their results. It never waits, reads a
//! clock or talks to anybody (invariant 9); `controlplane::drive` does that for it.

mod adoption;
pub mod affinity;
pub mod amounts;
mod conditions;
pub mod controller;
pub mod cron_job;
mod cron_jobs;
mod daemon_sets;
mod deployment;
pub mod disruption;
mod endpoint_slices;
mod endpoints;
mod events;
#[cfg(test)]
mod fixtures;
mod garbage;
pub mod job;
mod jobs;
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
mod revisions;
mod scheduler;
mod selected_pods;
mod service_accounts;
mod service_cidrs;
mod share;
pub mod slice;
mod slice_mirroring;
pub mod snapshot;
mod stateful_sets;
mod taint_eviction;
mod template;
mod token_secrets;
pub mod volume;
pub mod volumes;
pub mod workload;
pub mod write;

pub use controller::{Config, Controller, Input};
pub use kind::{Kind, ObjectKey};
pub use manager::{Batch, Job, Manager, Ticket};
pub use snapshot::{Change, Snapshot};
pub use write::{Failure, Outcome, Propagation, Report, Step, StepResult, Write};
