//! One step of a rolling update: never more than `replicas + maxSurge` pods, never fewer than
//! `replicas - maxUnavailable` available ones.

use crate::write::{Outcome, Step};

use super::{Context, scale_step};

pub(super) fn step(context: &Context<'_>, outcome: &mut Outcome) {
    if let Some(step) = scale_new(context) {
        outcome.push(step);
        return;
    }
    scale_down_old(context, outcome);
}

fn scale_new(context: &Context<'_>) -> Option<Step> {
    let new = context.sets.new_set()?;
    scale_step(context, new, new_replicas(context))
}

/// How many pods the ReplicaSet of the present template should have now.
pub(super) fn new_replicas(context: &Context<'_>) -> i32 {
    let wanted = context.deployment.spec.replicas();
    if context.deployment.spec.strategy.kind == "Recreate" {
        return wanted;
    }
    let present = context.sets.new_set().map_or(0, |set| set.spec_replicas());
    if present >= wanted {
        return wanted;
    }
    let max_total = wanted.saturating_add(context.sets.limits.max_surge);
    let room = max_total.saturating_sub(context.sets.sum(|set| set.counted));
    present + room.max(0).min(wanted - present)
}

fn scale_down_old(context: &Context<'_>, outcome: &mut Outcome) {
    let sets = &context.sets;
    if sets.old().all(|set| set.spec_replicas() == 0) {
        return;
    }
    let wanted = context.deployment.spec.replicas();
    let min_available = wanted - sets.limits.max_unavailable;
    let new_unavailable =
        sets.new_set().map_or(0, |set| (set.spec_replicas() - set.available).max(0));
    // What may go even if none of the new pods ever becomes available.
    let total = sets.sum(|set| set.spec_replicas());
    let mut spare = total - min_available - new_unavailable;
    if spare <= 0 {
        return;
    }
    let mut targets: Vec<i32> = Vec::new();
    // Pods that serve nobody go first: they cost nothing, and may be why the rollout hangs.
    for set in sets.old() {
        let unhealthy = (set.spec_replicas() - set.available).clamp(0, spare);
        targets.push(set.spec_replicas() - unhealthy);
        spare -= unhealthy;
    }
    let mut available_spare = sets.sum(|set| set.available) - min_available;
    for (target, set) in targets.iter_mut().zip(sets.old()) {
        let healthy = (*target).min(available_spare).min(spare).min(set.available).max(0);
        *target -= healthy;
        spare -= healthy;
        available_spare -= healthy;
    }
    for (target, set) in targets.into_iter().zip(sets.old()) {
        if target != set.spec_replicas() {
            outcome.steps.extend(scale_step(context, set, target));
        }
    }
}
