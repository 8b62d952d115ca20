//! The Jobs of a CronJob: how they are made, and which of them go.

use std::sync::Arc;

use serde_json::{Value, json};

use model::Timestamp;
use model::cron::Zone;

use crate::kind::Kind;
use crate::object::{Object, is_true};
use crate::write::{Outcome, Propagation, Step, Write};

use super::{COMPONENT, Context, SCHEDULED};

/// How a Job ended.
const ENDS: [&str; 2] = ["Complete", "Failed"];

/// The name of the Job for a time: unique, and the same whoever makes it.
pub(super) fn name(cron: &Object, time: Timestamp) -> String {
    format!("{}-{}", cron.meta.name, time.seconds().div_euclid(60))
}

/// The time that a Job was made for; `None` for one that the controller did not make.
pub(super) fn scheduled(cron: &Object, job: &Object) -> Option<Timestamp> {
    let time = Timestamp::parse(job.meta.annotations.get(SCHEDULED)?)?;
    (job.meta.name == name(cron, time)).then_some(time)
}

/// The condition by which a Job ended.
pub(super) fn end(job: &Object) -> Option<&'static str> {
    let conditions = &job.job()?.status.conditions;
    ENDS.into_iter().find(|end| is_true(conditions, end))
}

/// The creation of the Job for a time.
pub(super) fn create(context: &Context<'_>, time: Timestamp, zone: &Zone) -> Step {
    let cron = context.object;
    let template = &context.cron.spec.job_template;
    let part = |pointer: &str| template.pointer(pointer).cloned().unwrap_or(Value::Null);
    let mut body = Kind::Job.object(json!({
        "name": name(cron, time),
        "namespace": cron.meta.namespace,
        "ownerReferences": [cron.controller_reference()],
    }));
    let labels = part("/metadata/labels");
    if !labels.is_null() {
        body["metadata"]["labels"] = labels;
    }
    let annotations = part("/metadata/annotations");
    body["metadata"]["annotations"] = if annotations.is_object() { annotations } else { json!({}) };
    body["metadata"]["annotations"][SCHEDULED] = json!(zone.rfc3339(time));
    body["spec"] = part("/spec");
    let namespace = cron.meta.namespace.clone();
    let created = cron.report(COMPONENT, "SuccessfulCreate", "Created job {name}");
    let failed = cron.report(COMPONENT, "FailedCreate", "Error creating job: {error}").warning();
    Step::quiet(Write::Create { kind: Kind::Job, namespace, body })
        .on_success(created)
        .on_failure(failed)
}

/// The deletion of a Job, with its pods.
pub(super) fn delete(context: &Context<'_>, job: &Object) -> Step {
    let cron = context.object;
    let deleted = cron.report(COMPONENT, "SuccessfulDelete", "Deleted job {name}");
    let failed = cron.report(COMPONENT, "FailedDelete", "Deleted job: {error}").warning();
    let write = Write::Delete {
        object: job.key(),
        uid: job.meta.uid.clone(),
        propagation: Some(Propagation::Background),
        grace_period_seconds: None,
        absent: Vec::new(),
    };
    Step::quiet(write).on_success(deleted).on_failure(failed)
}

/// Deletes the oldest Jobs that ended, beyond those that are kept.
pub(super) fn clean_up(context: &Context<'_>, outcome: &mut Outcome) {
    let spec = &context.cron.spec;
    let limits = [spec.successful_jobs_history_limit, spec.failed_jobs_history_limit];
    for (kind, limit) in ENDS.into_iter().zip(limits) {
        let Some(limit) = limit else { continue };
        let ended = context.jobs.iter().filter(|job| end(job) == Some(kind));
        let mut ended: Vec<&Arc<Object>> = ended.filter(|job| !job.is_terminating()).collect();
        ended.sort_by_key(|job| {
            let started = job.job().and_then(|view| view.status.start_time);
            (started, job.meta.name.clone())
        });
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        outcome.steps.extend(ended.into_iter().take(surplus).map(|job| delete(context, job)));
    }
}
