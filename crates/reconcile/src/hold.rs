//! Lists that lost most of their objects (invariant 3): an API server that came back empty must
//! not empty the data path. Such a list is held and an alarm is raised; a later list that is whole
//! again cancels it, otherwise it counts after [`HOLD`].

use std::time::Duration;

use model::world::List;

use crate::Now;

/// How long a suspicious list is held.
pub const HOLD: Duration = Duration::from_secs(30);
/// Smaller sets shrink for everyday reasons and are never held.
pub const HOLD_MINIMUM_OBJECTS: usize = 8;

/// Whether a list lost more than half of many objects.
pub(crate) fn is_suspicious(present: usize, listed: usize) -> bool {
    present >= HOLD_MINIMUM_OBJECTS && listed < present / 2
}

/// A list that waits.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) until: Now,
    pub(crate) alarm: String,
    /// What it would make of the kind, with what has come and gone since.
    pub(crate) list: List,
}

impl Held {
    pub(crate) fn new(present: usize, list: List, now: Now) -> Self {
        let alarm = format!(
            "a list of {:?} objects came back with {} of {present}: it is held for {} s, as \
             the API server may have lost data; check it, or wait",
            list.kind(),
            list.len(),
            HOLD.as_secs()
        );
        Self { until: now + HOLD, alarm, list }
    }
}
