//! `Recreate`: the last old pod is gone before the first new one comes.

use crate::write::Outcome;

use super::{Context, revision, rolling, scale_step, status};

pub(super) fn step(context: &Context<'_>, outcome: &mut Outcome, notes: &mut Vec<status::Note>) {
    revision::sync(context, false, outcome, notes);
    if !outcome.steps.is_empty() {
        return;
    }
    for set in context.sets.old().filter(|set| set.spec_replicas() > 0) {
        outcome.steps.extend(scale_step(context, set, 0));
    }
    if !outcome.steps.is_empty() || context.sets.old().any(|set| set.running > 0) {
        return;
    }
    revision::sync(context, true, outcome, notes);
    if outcome.steps.is_empty()
        && let Some(new) = context.sets.new_set()
    {
        outcome.steps.extend(scale_step(context, new, rolling::new_replicas(context)));
    }
}
