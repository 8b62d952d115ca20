//! The rows of the registry, by area: columns, defaults, preparation and validation of each kind.

pub(crate) mod addressing;
pub(crate) mod admission_policy;
pub(crate) mod apps;
pub(crate) mod batch;
pub(crate) mod core;
pub(crate) mod cron_job;
pub(crate) mod csi_driver;
pub(crate) mod definition;
pub(crate) mod endpoints;
pub(crate) mod events;
mod job_policies;
pub(crate) mod limits;
pub(crate) mod networking;
pub(crate) mod node;
pub(crate) mod pod;
mod pod_spec;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod rbac;
pub(crate) mod review;
pub(crate) mod scheduling;
pub(crate) mod service;
pub(crate) mod service_families;
mod service_update;
mod service_validation;
pub(crate) mod storage;
pub(crate) mod webhook;
