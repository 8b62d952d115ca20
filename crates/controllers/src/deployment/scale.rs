//! A changed number of replicas, spread over the ReplicaSets of a rollout in proportion to what
//! each has, so that a rollout that hangs does not decide which version grows.

use crate::write::Outcome;

use super::replicas::Set;
use super::{Context, DESIRED_REPLICAS, MAX_REPLICAS, scale_step};

/// Whether the wanted number changed since the ReplicaSets were scaled last.
pub(super) fn is_needed(context: &Context<'_>) -> bool {
    let wanted = context.deployment.spec.replicas();
    active(context).any(|set| noted(set, DESIRED_REPLICAS).is_some_and(|desired| desired != wanted))
}

pub(super) fn proportionally(context: &Context<'_>, outcome: &mut Outcome) {
    let wanted = context.deployment.spec.replicas();
    let active: Vec<&Set> = active(context).collect();
    // At most one set has pods: it alone is scaled; without any, the newest.
    if active.len() <= 1 {
        let only = active.first().copied();
        let only = only.or(context.sets.new_set()).or(context.sets.old().last());
        outcome.steps.extend(only.and_then(|set| scale_step(context, set, wanted)));
        return;
    }
    if let Some(new) = context.sets.new_set()
        && is_saturated(context, new)
    {
        for set in context.sets.old().filter(|set| set.spec_replicas() > 0) {
            outcome.steps.extend(scale_step(context, set, 0));
        }
        return;
    }
    if context.deployment.spec.strategy.kind == "Recreate" {
        return;
    }
    for (set, replicas) in shares(context, active) {
        outcome.steps.extend(scale_step(context, set, replicas));
    }
}

fn active<'a>(context: &'a Context<'_>) -> impl Iterator<Item = &'a Set> {
    context.sets.all().iter().filter(|set| set.spec_replicas() > 0)
}

fn noted(set: &Set, annotation: &str) -> Option<i32> {
    set.object.meta.annotations.get(annotation)?.parse().ok()
}

/// Whether the new set has all pods that it ever should, and all are available.
fn is_saturated(context: &Context<'_>, new: &Set) -> bool {
    let wanted = context.deployment.spec.replicas();
    new.spec_replicas() == wanted
        && noted(new, DESIRED_REPLICAS) == Some(wanted)
        && new.view().status.available_replicas == wanted
}

fn shares<'a>(context: &Context<'_>, mut sets: Vec<&'a Set>) -> Vec<(&'a Set, i32)> {
    let wanted = context.deployment.spec.replicas();
    let surge = context.sets.limits.max_surge;
    let allowed = if wanted > 0 { wanted.saturating_add(surge) } else { 0 };
    let present: i32 = sets.iter().map(|set| set.spec_replicas()).sum();
    let add = allowed - present;
    // The larger first; among equals the younger grows and the older shrinks.
    let age = |set: &&Set| (set.object.meta.creation_timestamp, set.object.meta.name.clone());
    sets.sort_by_cached_key(|set| age(set));
    if add > 0 {
        sets.reverse();
    }
    sets.sort_by_key(|set| std::cmp::Reverse(set.spec_replicas()));
    let mut added = 0;
    let mut shares: Vec<(&Set, i32)> = Vec::with_capacity(sets.len());
    for set in sets {
        let left = add - added;
        let share = fraction(context, set);
        let share = if add > 0 { share.clamp(0, left.max(0)) } else { share.clamp(left.min(0), 0) };
        added += share;
        shares.push((set, set.spec_replicas() + share));
    }
    if let Some((_, replicas)) = shares.first_mut() {
        *replicas = (*replicas + add - added).max(0);
    }
    shares
}

/// How much a set should change to keep its part of the whole.
fn fraction(context: &Context<'_>, set: &Set) -> i32 {
    let wanted = i64::from(context.deployment.spec.replicas());
    let present = i64::from(set.spec_replicas());
    if wanted == 0 {
        return -set.spec_replicas();
    }
    let max = wanted + i64::from(context.sets.limits.max_surge);
    let status = context.deployment.status.replicas;
    let before = i64::from(noted(set, MAX_REPLICAS).unwrap_or(status));
    if before <= 0 {
        return 0;
    }
    // Rounded to the nearest; all numbers are small and positive.
    let share = (2 * present * max + before) / (2 * before);
    i32::try_from(share - present).unwrap_or(0)
}
