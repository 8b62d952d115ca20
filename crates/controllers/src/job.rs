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
    /// With `Indexed`, failures that are borne for each index; then no other limit counts.
    pub backoff_limit_per_index: Option<i32>,
    /// Indexes that may fail for good before the Job does; all when absent.
    pub max_failed_indexes: Option<i32>,
    /// What a failure means.
    pub pod_failure_policy: Option<FailurePolicy>,
    /// When enough indexes have succeeded; all when absent.
    pub success_policy: Option<SuccessPolicy>,
    /// Who runs the Job; we when absent.
    pub managed_by: Option<String>,
    /// Nothing runs meanwhile.
    #[serde(deserialize_with = "null_as_default")]
    pub suspend: bool,
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into pods.
    pub template: Value,
}

/// `spec.podFailurePolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FailurePolicy {
    /// The first that fits a failure decides about it.
    #[serde(deserialize_with = "null_as_default")]
    pub rules: Vec<FailureRule>,
}

/// One rule of `podFailurePolicy`: for exit codes or for conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureRule {
    /// `FailJob`, `FailIndex`, `Ignore` or `Count`.
    pub action: String,
    /// How a container ended.
    pub on_exit_codes: Option<ExitCodes>,
    /// What was said of the pod.
    #[serde(deserialize_with = "null_as_default")]
    pub on_pod_conditions: Vec<ConditionPattern>,
}

/// `onExitCodes` of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExitCodes {
    /// The container; any when absent.
    pub container_name: Option<String>,
    /// `In` or `NotIn`.
    pub operator: String,
    /// The exit codes.
    #[serde(deserialize_with = "null_as_default")]
    pub values: Vec<i32>,
}

/// One entry of `onPodConditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConditionPattern {
    /// The condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its status; `True` when absent.
    #[serde(deserialize_with = "null_as_default")]
    pub status: String,
}

/// `spec.successPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SuccessPolicy {
    /// One of them must be met.
    #[serde(deserialize_with = "null_as_default")]
    pub rules: Vec<SuccessRule>,
}

/// One rule of `successPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SuccessRule {
    /// Which indexes matter: `0-2,5`; all when absent.
    pub succeeded_indexes: Option<String>,
    /// How many of them must succeed; all when absent.
    pub succeeded_count: Option<i32>,
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
    /// With a limit for each index, those that failed for good.
    pub failed_indexes: Option<String>,
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

impl ConditionPattern {
    /// The status that the condition must have.
    pub fn status(&self) -> &str {
        if self.status.is_empty() { "True" } else { &self.status }
    }
}

impl JobSpec {
    /// Whether a pod counts as failed, and is made anew, only once it has ended: a failure policy
    /// must see how it did.
    pub fn waits_for_ends(&self) -> bool {
        self.pod_replacement_policy == "Failed" || self.pod_failure_policy.is_some()
    }

    /// Pods that may run at a time.
    pub fn parallelism(&self) -> i32 {
        self.parallelism.unwrap_or(1).max(0)
    }

    /// Whether each pod works on an index of its own.
    pub fn is_indexed(&self) -> bool {
        self.completion_mode == "Indexed"
    }
}
