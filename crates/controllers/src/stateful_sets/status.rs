//! The status of a StatefulSet, which `kubectl rollout status` waits for.

use serde_json::json;

use crate::object::omit_empty;
use crate::workload::StatefulSetStatus;
use crate::write::{Outcome, Step};

use super::{Context, is_ready, pods};

pub(super) fn write(context: &Context<'_>, outcome: &mut Outcome) {
    let status = calculate(context);
    if status != context.set.status {
        let mut body = omit_empty(json!(status));
        // The API writes these even when they are zero.
        body["replicas"] = json!(status.replicas);
        body["availableReplicas"] = json!(status.available_replicas);
        body["collisionCount"] = json!(status.collision_count);
        outcome.push(Step::quiet(context.object.patch_status(body)));
    }
    let min_ready_seconds = context.set.spec.min_ready_seconds;
    let waits = context.pods.values().filter_map(|pod| {
        let wait = pod.pod()?.available_in(min_ready_seconds, context.now)?;
        Some(wait).filter(|wait| !wait.is_zero())
    });
    if let Some(wait) = waits.min() {
        outcome.requeue(wait);
    }
}

fn calculate(context: &Context<'_>) -> StatefulSetStatus {
    let (current, update) = (&context.current.meta.name, &context.update.meta.name);
    let mut status = StatefulSetStatus {
        observed_generation: context.object.meta.generation,
        current_revision: current.clone(),
        update_revision: update.clone(),
        collision_count: Some(context.set.status.collision_count.unwrap_or(0)),
        conditions: context.set.status.conditions.clone(),
        ..StatefulSetStatus::default()
    };
    for pod in context.pods.values() {
        status.replicas += 1;
        status.ready_replicas += i32::from(is_ready(pod));
        status.available_replicas += i32::from(context.is_available(pod));
        let stays = !pod.is_terminating();
        let revision = pods::revision_of(pod);
        status.current_replicas += i32::from(stays && revision == current);
        status.updated_replicas += i32::from(stays && revision == update);
    }
    complete(context, &mut status);
    status
}

/// An update is complete when all pods are of its revision and ready.
fn complete(context: &Context<'_>, status: &mut StatefulSetStatus) {
    let wanted = context.set.spec.replicas();
    let counts = [status.replicas, status.updated_replicas, status.ready_replicas];
    let rolls = context.set.spec.update_strategy.kind != "OnDelete";
    if rolls && counts.iter().all(|count| *count == wanted) {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
}
