//! Jobs: pods that end, as many as must succeed.
//!
//! A pod carries a finalizer until it is counted, so that none is lost or counted twice
//! (KEP-2307): its uid is written into the status, then the finalizer goes, then the uid becomes
//! a part of the number. Whoever is killed in between goes on from what is written.

mod count;
mod pods;
mod policy;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use model::Timestamp;

use crate::adoption::{self, claim};
use crate::controller::Input;
use crate::job::Job;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, is_true};
use crate::pod::Pod;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Propagation, Step, Write};

use count::Count;
use policy::Verdict;

const COMPONENT: &str = "job-controller";
/// The name of this controller in `spec.managedBy` (KEP-4368).
const OURS: &str = "kubernetes.io/job-controller";
/// The finalizer of pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The label of pods with their Job's name.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// One Job with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    job: &'a Job,
    pods: Vec<Arc<Object>>,
    count: Count,
    now: Timestamp,
}

/// How a Job ends, in the words of its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    succeeds: bool,
    reason: String,
    message: String,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::Job => {
                keys.insert(object.key());
            }
            Kind::Pod => {
                adoption::owners(object, Kind::Job, snapshot, keys, |job| {
                    Some(&job.job()?.spec.selector)
                });
                // One whose Job is gone must lose the finalizer.
                if object.has_finalizer(TRACKING)
                    && let Some(job) = object.meta.labels.get(JOB_NAME)
                {
                    keys.insert(ObjectKey::new(
                        Kind::Job,
                        crate::object::beside(&object.meta, job),
                    ));
                }
            }
            _ => {}
        }
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let found = snapshot.get(Kind::Job, &key.name);
    pods::release_orphans(key, found.map(|job| job.meta.uid.as_str()), snapshot, &mut outcome);
    let Some(object) = found else { return outcome };
    let ours = |job: &&Job| job.spec.managed_by.as_deref().unwrap_or(OURS) == OURS;
    let Some(job) = object.job().filter(ours) else { return outcome };
    let claimed = claim(object, &job.spec.selector, Kind::Pod, snapshot, |_| true);
    outcome.steps.extend(claimed.steps);
    if !outcome.steps.is_empty() {
        return outcome;
    }
    let now = crate::conditions::whole_seconds(input.now);
    let ends = status::begun(&job.status).is_some();
    let count = Count::new(job, &claimed.owned, ends);
    let leaves = object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace);
    let context = Context { object, job, pods: claimed.owned, count, now };
    if is_finished(job) {
        pods::let_counted_go(&context, &mut outcome);
        expire(&context, &mut outcome);
        return outcome;
    }
    let end = end(&context);
    pods::let_counted_go(&context, &mut outcome);
    if end.is_some() || context.job.spec.suspend {
        pods::stop_all(&context, end.as_ref(), &mut outcome);
    } else if !leaves {
        pods::manage(&context, &mut outcome);
    }
    status::write(&context, end.as_ref(), &mut outcome);
    outcome
}

fn is_finished(job: &Job) -> bool {
    ["Complete", "Failed"].iter().any(|kind| is_true(&job.status.conditions, kind))
}

/// Whether the Job ends now, or has begun to.
fn end(context: &Context<'_>) -> Option<End> {
    if let Some(begun) = status::begun(&context.job.status) {
        return Some(begun);
    }
    fails(context).or_else(|| succeeds(context))
}

fn fails(context: &Context<'_>) -> Option<End> {
    let Context { job, count, pods, .. } = context;
    let (spec, status) = (&job.spec, &job.status);
    let message = pods.iter().filter(|pod| count::has_failed(job, pod)).find_map(|pod| {
        match policy::judge(job, pod) {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        }
    });
    if let Some(message) = message {
        return End::failed("PodFailurePolicy", &message);
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts = context.restarts();
    let restarted = restarts > 0 && restarts >= limit;
    if count.failed > limit || (context.restarts_in_place() && restarted) {
        let message = "Job has reached the specified backoff limit";
        return End::failed("BackoffLimitExceeded", message);
    }
    let deadline = spec.active_deadline_seconds.filter(|_| !spec.suspend);
    if let (Some(deadline), Some(start)) = (deadline, status.start_time) {
        let ran_for = context.now.since(start).as_secs();
        if ran_for >= u64::try_from(deadline).unwrap_or(0) {
            let message = "Job was active longer than specified deadline";
            return End::failed("DeadlineExceeded", message);
        }
    }
    let lost = i32::try_from(count.failed_indexes.len()).unwrap_or(i32::MAX);
    if spec.max_failed_indexes.is_some_and(|most| lost > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return End::failed("MaxFailedIndexesExceeded", message);
    }
    let nothing_left =
        lost > 0 && lost.saturating_add(count.succeeded) >= spec.completions.unwrap_or(0);
    if nothing_left { End::failed("FailedIndexes", "Job has failed indexes") } else { None }
}

fn succeeds(context: &Context<'_>) -> Option<End> {
    let Context { job, count, .. } = context;
    if let Some(message) = policy::succeeds(job, &count.indexes) {
        return Some(End { succeeds: true, reason: "SuccessPolicy".into(), message });
    }
    let complete = match job.spec.completions {
        Some(completions) => count.succeeded >= completions,
        None => count.succeeded > 0 && count.active == 0,
    };
    (complete && !job.spec.suspend).then(|| End {
        succeeds: true,
        reason: "CompletionsReached".into(),
        message: "Reached expected number of succeeded pods".into(),
    })
}

impl End {
    fn failed(reason: &str, message: &str) -> Option<Self> {
        Some(Self { succeeds: false, reason: reason.into(), message: message.into() })
    }
}

/// Deletes a Job that ended long enough ago.
fn expire(context: &Context<'_>, outcome: &mut Outcome) {
    let Some(ttl) = context.job.spec.ttl_seconds_after_finished else { return };
    if context.object.is_terminating() {
        return;
    }
    let conditions = context.job.status.conditions.iter();
    let finished = conditions
        .filter(|found| ["Complete", "Failed"].contains(&&*found.kind) && found.status == "True")
        .find_map(|found| found.last_transition_time);
    let Some(finished) = finished else { return };
    let ttl = std::time::Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    let wait = ttl.saturating_sub(context.now.since(finished));
    if !wait.is_zero() {
        outcome.requeue(wait);
        return;
    }
    outcome.push(Step::quiet(Write::Delete {
        object: context.object.key(),
        uid: context.object.meta.uid.clone(),
        propagation: Some(Propagation::Foreground),
        grace_period_seconds: None,
        absent: Vec::new(),
    }));
}

impl Context<'_> {
    fn restarts_in_place(&self) -> bool {
        self.job.spec.template["spec"]["restartPolicy"] == "OnFailure"
    }

    /// How often containers of running pods were started again.
    fn restarts(&self) -> i32 {
        let views = self.pods.iter().filter_map(|pod| pod.pod());
        let running = views.filter(|view| !view.is_finished());
        let statuses = running.flat_map(|view: &Pod| &view.status.container_statuses);
        statuses.map(|status| status.restart_count).fold(0, i32::saturating_add)
    }
}
