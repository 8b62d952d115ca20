//! Jobs, as their controller reads them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use model::Timestamp;
use model::meta::null_as_default;
use model::selector::LabelSelector;

use crate::object::Condition;

/// A Job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Job {
    /// `spec`.
    pub spec: JobSpec,
    /// `status`.
    pub status: JobStatus,
}

/// `spec` of a Job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    /// Pods that run at a time; 1 when absent.
    pub parallelism: Option<i32>,
    /// Pods that must succeed; when absent, one that succeeds ends the Job.
    pub completions: Option<i32>,
    /// Seconds after its start in which the Job must be done.
    pub active_deadline_seconds: Option<i64>,
    /// Failures that are borne; 6 when absent.
    pub backoff_limit: Option<i32>,
    /// Seconds after its end after which the Job is deleted; never when absent.
    pub ttl_seconds_after_finished: Option<i32>,
    /// `NonIndexed` (also when empty) or `Indexed`.
    #[serde(deserialize_with = "null_as_default")]
    pub completion_mode: String,
    /// `TerminatingOrFailed` (also when empty) or `Failed`: when a pod is made anew.
    #[serde(deserialize_with = "null_as_default")]
    pub pod_replacement_policy: String,
    /// Nothing runs meanwhile.
    #[serde(deserialize_with = "null_as_default")]
    pub suspend: bool,
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into pods.
    pub template: Value,
}

/// `status` of a Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// When the Job began, or was resumed last.
    pub start_time: Option<Timestamp>,
    /// When the last wanted pod had succeeded.
    pub completion_time: Option<Timestamp>,
    /// Pods that run or wait.
    pub active: i32,
    /// Of those, ready ones.
    pub ready: i32,
    /// Pods that are being deleted.
    pub terminating: i32,
    /// Pods that succeeded; with `Indexed` indexes.
    pub succeeded: i32,
    /// Pods that failed.
    pub failed: i32,
    /// With `Indexed`, the indexes that succeeded: `0-2,5`.
    #[serde(deserialize_with = "null_as_default")]
    pub completed_indexes: String,
    /// Pods that ended and are not among the numbers yet.
    #[serde(deserialize_with = "null_as_default")]
    pub uncounted_terminated_pods: Uncounted,
    /// Suspended, SuccessCriteriaMet, FailureTarget, Complete, Failed.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// `status.uncountedTerminatedPods`: uids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    /// Of pods that succeeded.
    #[serde(deserialize_with = "null_as_default")]
    pub succeeded: Vec<String>,
    /// Of pods that failed.
    #[serde(deserialize_with = "null_as_default")]
    pub failed: Vec<String>,
}

impl JobSpec {
    /// Pods that may run at a time.
    pub fn parallelism(&self) -> i32 {
        self.parallelism.unwrap_or(1).max(0)
    }

    /// Whether each pod works on an index of its own.
    pub fn is_indexed(&self) -> bool {
        self.completion_mode == "Indexed"
    }
}
