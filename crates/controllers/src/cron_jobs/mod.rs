//! CronJobs: a Job at each time of the schedule.
//!
//! A Job carries the time that it was made for in its name, so that none is made twice, and in an
//! annotation, so that whoever is killed behind its creation still knows that the time is done.

mod jobs;
mod status;
#[cfg(test)]
mod tests;
mod times;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;
use model::cron::{Schedule, Zone};

use crate::adoption;
use crate::controller::Input;
use crate::cron_job::{CronJob, CronJobStatus};
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::{Change, Snapshot};
use crate::write::Outcome;

use times::Times;

const COMPONENT: &str = "cronjob-controller";
/// The annotation of a Job with the time that it was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// How long behind a time of the schedule the next run is asked for: never a moment too early.
const START_DELAY: Duration = Duration::from_millis(100);

/// One CronJob with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    cron: &'a CronJob,
    /// Its Jobs, by name.
    jobs: Vec<Arc<Object>>,
    snapshot: &'a Snapshot,
    now: Timestamp,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::CronJob => {
                keys.insert(object.key());
            }
            Kind::Job => adoption::owners(object, Kind::CronJob, snapshot, keys, |_| None),
            _ => {}
        }
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome { in_order: true, ..Outcome::default() };
    let Some(object) = snapshot.get(Kind::CronJob, &key.name) else { return outcome };
    let Some(cron) = object.cron_job() else { return outcome };
    let jobs = snapshot.controlled(Kind::Job, &object.meta.uid).cloned().collect();
    let context = Context { object, cron, jobs, snapshot, now: input.now };
    let status = status::observed(&context, &mut outcome);
    // Before the Jobs, so that a refused one does not hold it up.
    status::write(object, &cron.status, &status, &mut outcome);
    let leaves = object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace);
    if !leaves {
        jobs::clean_up(&context, &mut outcome);
        if !cron.spec.suspend {
            start(&context, &status, &mut outcome);
        }
    }
    outcome
}

/// Makes the Job that is due, and asks for a run at the next time.
fn start(context: &Context<'_>, status: &CronJobStatus, outcome: &mut Outcome) {
    let spec = &context.cron.spec;
    let warning = |reason, message| context.object.report(COMPONENT, reason, message).warning();
    let zone = match spec.time_zone.as_deref() {
        None => Zone::UTC,
        Some(name) => match Zone::named(name) {
            Some(zone) => zone,
            None => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                outcome.report(warning("UnknownTimeZone", message));
                return;
            }
        },
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            outcome.report(warning("UnparseableSchedule", message));
            return;
        }
    };
    let since = status.last_schedule_time.or(context.object.meta.creation_timestamp);
    let since = since.unwrap_or(context.now);
    let times = Times { schedule: &schedule, zone: &zone, now: context.now };
    if let Some(next) = times.following(since) {
        outcome.requeue(next.since(context.now) + START_DELAY);
    }
    let due = times.latest(since, spec.starting_deadline_seconds);
    if due.too_many {
        let message = "too many missed start times. Set or decrease \
                       .spec.startingDeadlineSeconds or check clock skew";
        outcome.report(warning("TooManyMissedTimes", message.to_owned()));
    }
    match (due.time, times.latest(since, None).time) {
        (Some(time), _) => start_at(context, time, &zone, status, outcome),
        (None, Some(missed)) => {
            let time = times::rfc1123(missed);
            let message = format!("Missed scheduled time to start a job: {time}");
            outcome.report(warning("MissSchedule", message));
        }
        (None, None) => {}
    }
}

fn start_at(
    context: &Context<'_>,
    time: Timestamp,
    zone: &Zone,
    observed: &CronJobStatus,
    outcome: &mut Outcome,
) {
    let object = context.object;
    let name = jobs::name(object, time);
    if context.snapshot.find(Kind::Job, &object.meta.namespace, &name).is_some() {
        // Of another minute's part, or somebody else's: of ours the annotation tells.
        return;
    }
    let mut status = observed.clone();
    match context.cron.spec.concurrency_policy.as_str() {
        "Forbid" if !status.active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency \
                           policy is Forbid";
            outcome.report(object.report(COMPONENT, "JobAlreadyActive", message));
            return;
        }
        "Replace" => {
            for entry in std::mem::take(&mut status.active) {
                let job = context.jobs.iter().find(|job| job.meta.uid == entry.uid);
                outcome.steps.extend(job.map(|job| jobs::delete(context, job)));
            }
        }
        _ => {}
    }
    outcome.push(jobs::create(context, time, zone));
    status.last_schedule_time = Some(time);
    status::write(object, observed, &status, outcome);
}
