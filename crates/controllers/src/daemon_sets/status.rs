//! The status of a DaemonSet, which `kubectl rollout status` waits for.

use serde_json::json;

use crate::object::omit_empty;
use crate::workload::DaemonSetStatus;
use crate::write::{Outcome, Step};

use super::Context;

pub(super) fn write(context: &Context<'_>, outcome: &mut Outcome) {
    let status = calculate(context);
    if status != context.set.status {
        let mut body = omit_empty(json!(status));
        // The API writes these even when they are zero.
        body["currentNumberScheduled"] = json!(status.current_number_scheduled);
        body["desiredNumberScheduled"] = json!(status.desired_number_scheduled);
        body["numberMisscheduled"] = json!(status.number_misscheduled);
        body["numberReady"] = json!(status.number_ready);
        outcome.push(Step::quiet(context.object.patch_status(body)));
    }
    let min_ready_seconds = context.set.spec.min_ready_seconds;
    let waits = context.pods.values().flatten().filter_map(|pod| {
        let wait = pod.pod()?.available_in(min_ready_seconds, context.now)?;
        Some(wait).filter(|wait| !wait.is_zero())
    });
    if let Some(wait) = waits.min() {
        outcome.requeue(wait);
    }
}

fn calculate(context: &Context<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: context.object.meta.generation,
        desired_number_scheduled: context.wanted(),
        collision_count: context.set.status.collision_count,
        ..DaemonSetStatus::default()
    };
    for (node, place) in &context.nodes {
        let Some(oldest) = context.pods_on(node).first() else { continue };
        if !place.runs {
            status.number_misscheduled += 1;
            continue;
        }
        let ready = oldest.pod().is_some_and(|view| view.is_ready());
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(ready);
        status.number_available += i32::from(ready && context.is_available(oldest));
        status.updated_number_scheduled += i32::from(context.is_updated(oldest));
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    status
}
