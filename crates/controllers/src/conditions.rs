//! How conditions are set.

use model::Timestamp;

use crate::object::{Condition, condition};

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

/// The time as objects store it: written and read back it must be equal, or a status would
/// differ from itself.
pub(crate) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_seconds(now.seconds())
}
