//! CronJobs, as their controller reads them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use model::Timestamp;
use model::meta::null_as_default;

/// A CronJob.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CronJob {
    /// `spec`.
    pub spec: CronJobSpec,
    /// `status`.
    pub status: CronJobStatus,
}

/// `spec` of a CronJob.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    /// When Jobs begin.
    pub schedule: String,
    /// By whose clocks; UTC when absent.
    pub time_zone: Option<String>,
    /// How late a Job may still begin; however late when absent.
    pub starting_deadline_seconds: Option<i64>,
    /// `Allow` (also when empty), `Forbid` or `Replace`: what an earlier Job that runs means.
    #[serde(deserialize_with = "null_as_default")]
    pub concurrency_policy: String,
    /// No Job begins meanwhile.
    #[serde(deserialize_with = "null_as_default")]
    pub suspend: bool,
    /// The Jobs that are made, whole: copied into each.
    pub job_template: Value,
    /// Jobs that succeeded and are kept; all when absent.
    pub successful_jobs_history_limit: Option<i32>,
    /// Jobs that failed and are kept; all when absent.
    pub failed_jobs_history_limit: Option<i32>,
}

/// `status` of a CronJob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    /// Jobs that run.
    #[serde(deserialize_with = "null_as_default")]
    pub active: Vec<JobReference>,
    /// The time of the schedule for which a Job was made last.
    pub last_schedule_time: Option<Timestamp>,
    /// When a Job succeeded last.
    pub last_successful_time: Option<Timestamp>,
}

/// One entry of `status.active`: an ObjectReference, with the fields that are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobReference {
    /// `batch/v1`.
    pub api_version: String,
    /// `Job`.
    pub kind: String,
    /// The Job's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version when it was entered.
    pub resource_version: String,
    /// Its identity.
    pub uid: String,
}
