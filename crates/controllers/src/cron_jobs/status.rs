//! The status of a CronJob, as its Jobs show it.

use serde_json::json;

use crate::cron_job::{CronJobStatus, JobReference};
use crate::object::Object;
use crate::write::{Outcome, Step, list_or_null};

use super::{COMPONENT, Context, jobs};

/// The status that follows from the Jobs, with the events that go with its changes.
pub(super) fn observed(context: &Context<'_>, outcome: &mut Outcome) -> CronJobStatus {
    let mut status = context.cron.status.clone();
    let cron = context.object;
    for job in &context.jobs {
        let place = status.active.iter().position(|entry| entry.uid == job.meta.uid);
        let scheduled = jobs::scheduled(cron, job);
        status.last_schedule_time = status.last_schedule_time.max(scheduled);
        match (jobs::end(job), place) {
            (Some(end), place) => {
                if let Some(place) = place {
                    status.active.remove(place);
                    let name = &job.meta.name;
                    let message = format!("Saw completed job: {name}, condition: {end}");
                    outcome.report(cron.report(COMPONENT, "SawCompletedJob", message));
                }
                let completed = job.job().and_then(|view| view.status.completion_time);
                status.last_successful_time =
                    status.last_successful_time.max(completed.filter(|_| end == "Complete"));
            }
            (None, None) if scheduled.is_some() => status.active.push(reference(job)),
            (None, None) => {
                let name = &job.meta.name;
                let message =
                    format!("Saw a job that the controller did not create or forgot: {name}");
                outcome.report(cron.report(COMPONENT, "UnexpectedJob", message).warning());
            }
            (None, Some(_)) => {}
        }
    }
    status.active.retain(|entry| {
        let is_there = context.jobs.iter().any(|job| job.meta.uid == entry.uid);
        if !is_there {
            let message = format!("Active job went missing: {}", entry.name);
            outcome.report(cron.report(COMPONENT, "MissingJob", message));
        }
        is_there
    });
    status
}

/// Writes a status where it differs from the one that is there.
pub(super) fn write(
    cron: &Object,
    old: &CronJobStatus,
    new: &CronJobStatus,
    outcome: &mut Outcome,
) {
    if old == new {
        return;
    }
    outcome.push(Step::quiet(cron.patch_status(json!({
        "active": list_or_null(&new.active),
        "lastScheduleTime": new.last_schedule_time,
        "lastSuccessfulTime": new.last_successful_time,
    }))));
}

fn reference(job: &Object) -> JobReference {
    let row = job.kind.row();
    JobReference {
        api_version: row.api_version.to_owned(),
        kind: row.name.to_owned(),
        name: job.meta.name.clone(),
        namespace: job.meta.namespace.clone(),
        resource_version: job.meta.resource_version.clone(),
        uid: job.meta.uid.clone(),
    }
}
