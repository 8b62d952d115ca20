//! The status of a Job, and the conditions by which it ends.

use std::time::Duration;

use serde_json::json;

use crate::conditions;
use crate::job::JobStatus;
use crate::object::{condition, is_true, omit_empty};
use crate::write::{Outcome, Report, Step};

use super::{COMPONENT, Context, End, count};

impl End {
    /// The condition while pods still stop, and that afterwards.
    const fn conditions(&self) -> (&'static str, &'static str) {
        if self.succeeds { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }

    fn report(&self, context: &Context<'_>) -> Report {
        let event = match self.reason.as_str() {
            _ if self.succeeds => {
                return context.object.report(COMPONENT, "Completed", "Job completed");
            }
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
            "FailedIndexes" => "FailedIndexes",
            _ => "BackoffLimitExceeded",
        };
        context.object.report(COMPONENT, event, self.message.clone()).warning()
    }
}

/// The end that a Job is coming to, as its conditions say.
pub(super) fn begun(status: &JobStatus) -> Option<End> {
    [("FailureTarget", false), ("SuccessCriteriaMet", true)].into_iter().find_map(
        |(kind, succeeds)| {
            let found = condition(&status.conditions, kind)?;
            let (reason, message) = (found.reason.clone(), found.message.clone());
            (found.status == "True").then_some(End { succeeds, reason, message })
        },
    )
}

pub(super) fn write(context: &Context<'_>, end: Option<&End>, outcome: &mut Outcome) {
    let old = &context.job.status;
    let count = &context.count;
    let mut status = JobStatus {
        start_time: old.start_time,
        completion_time: old.completion_time,
        active: count.active,
        ready: count.ready,
        terminating: count.terminating,
        succeeded: match context.job.spec.is_indexed() {
            true => count.succeeded,
            false => old.succeeded.saturating_add(count.counted_succeeded),
        },
        failed: old.failed.saturating_add(count.counted_failed),
        completed_indexes: count::print(&count.indexes),
        failed_indexes: context
            .job
            .spec
            .backoff_limit_per_index
            .map(|_| count::print(&count.failed_indexes)),
        uncounted_terminated_pods: count.uncounted.clone(),
        conditions: old.conditions.clone(),
    };
    let mut report = suspend(context, end, &mut status);
    if let Some(end) = end {
        report = finish(context, end, &mut status).or(report);
    }
    deadline(context, &status, outcome);
    if status == *old {
        return;
    }
    let step = Step::quiet(context.object.patch_status_unchanged(body(&status)));
    outcome.push(match report {
        Some(report) => step.on_success(report),
        None => step,
    });
}

fn body(status: &JobStatus) -> serde_json::Value {
    let mut body = omit_empty(json!(status));
    // The API writes these even when they are zero.
    body["ready"] = json!(status.ready);
    body["terminating"] = json!(status.terminating);
    body["uncountedTerminatedPods"] = omit_empty(body["uncountedTerminatedPods"].take());
    if status.completed_indexes.is_empty() {
        body["completedIndexes"] = serde_json::Value::Null;
    }
    body
}

/// The start of a Job, and its pauses.
fn suspend(context: &Context<'_>, end: Option<&End>, status: &mut JobStatus) -> Option<Report> {
    let was = is_true(&status.conditions, "Suspended");
    let suspended = context.job.spec.suspend && end.is_none();
    let mut set = |value: bool, reason: &str, message: &str| {
        let new = conditions::new("Suspended", value, reason, message.to_owned(), context.now);
        conditions::set(&mut status.conditions, new);
    };
    let tell = |reason, message| Some(context.object.report(COMPONENT, reason, message));
    if suspended {
        set(true, "JobSuspended", "Job suspended");
        status.start_time = None;
        return if was { None } else { tell("Suspended", "Job suspended") };
    }
    if was {
        set(false, "JobResumed", "Job resumed");
    }
    status.start_time.get_or_insert(context.now);
    if was { tell("Resumed", "Job resumed") } else { None }
}

/// The first condition at once; the second when all pods have stopped and are counted.
fn finish(context: &Context<'_>, end: &End, status: &mut JobStatus) -> Option<Report> {
    let (first, last) = end.conditions();
    let new =
        |kind: &str| conditions::new(kind, true, &end.reason, end.message.clone(), context.now);
    conditions::set(&mut status.conditions, new(first));
    let waits = status.active > 0 || status.terminating > 0 || context.count.held > 0;
    let uncounted = &status.uncounted_terminated_pods;
    if waits || !uncounted.succeeded.is_empty() || !uncounted.failed.is_empty() {
        return None;
    }
    conditions::set(&mut status.conditions, new(last));
    if end.succeeds {
        status.completion_time = Some(context.now);
    }
    Some(end.report(context))
}

fn deadline(context: &Context<'_>, status: &JobStatus, outcome: &mut Outcome) {
    let deadline = context.job.spec.active_deadline_seconds;
    if let (Some(deadline), Some(start)) = (deadline, status.start_time) {
        let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
        let wait = deadline.saturating_sub(context.now.since(start));
        if !wait.is_zero() {
            outcome.requeue(wait);
        }
    }
}
