//! The status of a Deployment. `kubectl rollout status` and `describe` print its reasons and
//! messages, so that each is the upstream one.

use std::time::Duration;

use serde_json::json;

use crate::conditions;
use crate::object::{Condition, DeploymentStatus, condition, omit_empty};
use crate::write::{Outcome, Step};

use super::{Context, scale};

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What else happened in the same run.
pub(super) enum Note {
    /// The ReplicaSet of the present template is being made.
    Created(String),
    /// It was refused, with the server's words, and is tried again.
    CreateFailed(String),
    /// It is there.
    Found(String),
    /// Its name is taken.
    Collision,
}

/// Whether every pod is of the present template and available, as the stored status says.
pub(super) fn is_complete(context: &Context<'_>) -> bool {
    completes(context, &context.deployment.status)
}

fn completes(context: &Context<'_>, status: &DeploymentStatus) -> bool {
    let wanted = context.deployment.spec.replicas();
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= context.object.meta.generation
}

pub(super) fn write(context: &Context<'_>, notes: Vec<Note>, outcome: &mut Outcome) {
    let old = &context.deployment.status;
    let mut status = calculate(context);
    let deadline = context.deployment.spec.progress_deadline_seconds;
    if deadline.is_some() {
        pause(context, &mut status);
        for note in &notes {
            note_progress(context, note, &mut status);
        }
    }
    if notes.iter().any(|note| matches!(note, Note::Collision)) {
        status.collision_count = Some(old.collision_count.unwrap_or(0).saturating_add(1));
    }
    let waits = context.deployment.spec.paused
        || context.object.is_terminating()
        || scale::is_needed(context);
    if !waits {
        progress(context, deadline, &mut status);
    }
    if status != *old {
        outcome.push(Step::quiet(context.object.patch_status(omit_empty(json!(status)))));
    }
    requeue_at_deadline(context, deadline, &status, outcome);
}

fn calculate(context: &Context<'_>) -> DeploymentStatus {
    let sets = &context.sets;
    let spec = &context.deployment.spec;
    let wanted = spec.replicas();
    let available = sets.sum(|set| set.view().status.available_replicas);
    let total = sets.sum(|set| set.spec_replicas());
    let mut status = DeploymentStatus {
        observed_generation: context.object.meta.generation,
        replicas: sets.sum(|set| set.view().status.replicas),
        updated_replicas: sets.new_set().map_or(0, |set| set.view().status.replicas),
        ready_replicas: sets.sum(|set| set.view().status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (total - available).max(0),
        collision_count: context.deployment.status.collision_count,
        conditions: context.deployment.status.conditions.clone(),
    };
    let enough = available >= wanted - sets.limits.max_unavailable;
    let (reason, message) = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(context, &mut status, AVAILABLE, enough, reason, message.to_owned());
    status
}

fn set(
    context: &Context<'_>,
    status: &mut DeploymentStatus,
    kind: &str,
    value: bool,
    reason: &str,
    message: String,
) {
    let mut new = conditions::new(kind, value, reason, message, context.now);
    new.last_update_time = Some(context.now);
    conditions::set(&mut status.conditions, new);
}

fn pause(context: &Context<'_>, status: &mut DeploymentStatus) {
    let reason = condition(&status.conditions, PROGRESSING).map_or("", |found| &found.reason);
    if reason == DEADLINE_EXCEEDED {
        return;
    }
    let (reason, message) = match (context.deployment.spec.paused, reason == PAUSED) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    let new = Condition {
        status: "Unknown".into(),
        last_update_time: Some(context.now),
        ..conditions::new(PROGRESSING, false, reason, message.into(), context.now)
    };
    conditions::set(&mut status.conditions, new);
}

fn note_progress(context: &Context<'_>, note: &Note, status: &mut DeploymentStatus) {
    let (reason, message) = match note {
        Note::Created(name) => {
            ("NewReplicaSetCreated", format!("Created new replica set \"{name}\""))
        }
        Note::CreateFailed(message) => {
            let message = message.clone();
            return set(context, status, PROGRESSING, false, "ReplicaSetCreateError", message);
        }
        Note::Found(name) if condition(&status.conditions, PROGRESSING).is_none() => {
            ("FoundNewReplicaSet", format!("Found new replica set \"{name}\""))
        }
        Note::Found(_) | Note::Collision => return,
    };
    set(context, status, PROGRESSING, true, reason, message);
}

fn progress(context: &Context<'_>, deadline: Option<i32>, status: &mut DeploymentStatus) {
    replica_failure(context, status);
    let Some(deadline) = deadline else {
        conditions::remove(&mut status.conditions, PROGRESSING);
        return;
    };
    let current = condition(&status.conditions, PROGRESSING).cloned();
    let settled = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|found| found.reason == NEW_SET_AVAILABLE);
    if settled {
        return;
    }
    let what = match context.sets.new_set() {
        Some(new) => format!("ReplicaSet \"{}\"", new.object.meta.name),
        None => format!("Deployment \"{}\"", context.object.meta.name),
    };
    if completes(context, status) {
        let message = format!("{what} has successfully progressed.");
        set(context, status, PROGRESSING, true, NEW_SET_AVAILABLE, message);
    } else if progresses(context, status) {
        let message = format!("{what} is progressing.");
        let mut new = conditions::new(PROGRESSING, true, "ReplicaSetUpdated", message, context.now);
        new.last_update_time = Some(context.now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            new.last_transition_time = current.last_transition_time;
        }
        conditions::remove(&mut status.conditions, PROGRESSING);
        status.conditions.push(new);
    } else if current.is_some_and(|current| is_timed_out(context, &current, deadline)) {
        let message = format!("{what} has timed out progressing.");
        set(context, status, PROGRESSING, false, DEADLINE_EXCEEDED, message);
    }
}

/// Whether the rollout came further since the stored status.
fn progresses(context: &Context<'_>, status: &DeploymentStatus) -> bool {
    let old = &context.deployment.status;
    status.updated_replicas > old.updated_replicas
        || status.replicas - status.updated_replicas < old.replicas - old.updated_replicas
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas
}

fn is_timed_out(context: &Context<'_>, current: &Condition, deadline: i32) -> bool {
    match current.reason.as_str() {
        NEW_SET_AVAILABLE => false,
        DEADLINE_EXCEEDED => true,
        _ => current
            .last_update_time
            .is_some_and(|since| context.now.since(since) > seconds(deadline)),
    }
}

/// Carries the failure of a ReplicaSet, of the new one first, to where people look.
fn replica_failure(context: &Context<'_>, status: &mut DeploymentStatus) {
    let sets = context.sets.new_set().into_iter().chain(context.sets.old());
    let failure = sets
        .filter_map(|set| condition(&set.view().status.conditions, REPLICA_FAILURE))
        .find(|found| found.status == "True");
    match failure {
        Some(failure) => {
            let mut new = failure.clone();
            new.last_update_time.get_or_insert(context.now);
            conditions::set(&mut status.conditions, new);
        }
        None => conditions::remove(&mut status.conditions, REPLICA_FAILURE),
    }
}

fn requeue_at_deadline(
    context: &Context<'_>,
    deadline: Option<i32>,
    status: &DeploymentStatus,
    outcome: &mut Outcome,
) {
    let Some(deadline) = deadline.filter(|_| !context.deployment.spec.paused) else { return };
    let Some(current) = condition(&status.conditions, PROGRESSING) else { return };
    if [NEW_SET_AVAILABLE, DEADLINE_EXCEEDED].contains(&current.reason.as_str()) {
        return;
    }
    let Some(since) = current.last_update_time else { return };
    // One second more: the deadline must have passed, and times are whole seconds.
    let wait = seconds(deadline).saturating_sub(context.now.since(since)) + Duration::from_secs(1);
    outcome.requeue(wait);
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
