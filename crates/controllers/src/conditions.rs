//! How conditions are set.

use model::Timestamp;
use serde_json::json;

use crate::object::{Condition, Object, condition, is_true};
use crate::write::Step;

/// The condition of a pod that somebody takes away (KEP-3329).
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Sets a condition of a workload. One that says the same already stays as it is; the time of the
/// last transition stays where only the reason changes.
pub(crate) fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    if let Some(old) = condition(conditions, &new.kind) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time;
        }
    }
    remove(conditions, &new.kind);
    conditions.push(new);
}

/// Removes a condition.
pub(crate) fn remove(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|condition| condition.kind != kind);
}

/// A condition that became so now.
pub(crate) fn new(
    kind: &str,
    status: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Condition {
    Condition {
        kind: kind.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: reason.into(),
        message,
        last_transition_time: Some(whole_seconds(now)),
        ..Condition::default()
    }
}

/// Tells on a pod why it is about to be deleted, unless it tells already: whoever counts its
/// failure, as a Job does, may then excuse it. `phase` is what nobody else will set any more.
pub(crate) fn disrupted(
    pod: &Object,
    reason: &str,
    message: &str,
    phase: Option<&str>,
    now: Timestamp,
) -> Option<Step> {
    let view = pod.pod()?;
    let done = phase.is_none_or(|phase| view.status.phase == phase);
    if done && is_true(&view.status.conditions, DISRUPTION_TARGET) {
        return None;
    }
    let mut list = view.status.conditions.clone();
    set(&mut list, new(DISRUPTION_TARGET, true, reason, message.to_owned(), now));
    let mut status = json!({"conditions": list});
    if let Some(phase) = phase {
        status["phase"] = json!(phase);
    }
    Some(Step::quiet(pod.patch_status_unchanged(status)))
}

/// The time as objects store it: written and read back it must be equal, or a status would
/// differ from itself.
pub(crate) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_seconds(now.seconds())
}
