//! Lists that lost most of their objects (invariant 3): an API server that came back empty must
//! not empty the data path. Such a list is held and an alarm is raised; a later list that is whole
//! again cancels it, otherwise it counts after [`HOLD`].

use std::collections::BTreeMap;
use std::time::Duration;

use model::NamespacedName;
use model::world::{Kind, Object};

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
    objects: BTreeMap<NamespacedName, Object>,
}

impl Held {
    pub(crate) fn new(kind: Kind, present: usize, objects: Vec<Object>, now: Now) -> Self {
        let alarm = format!(
            "a list of {kind:?} objects came back with {} of {present}: it is held for {} s, as \
             the API server may have lost data; check it, or wait",
            objects.len(),
            HOLD.as_secs()
        );
        let objects = objects.into_iter().map(|object| (object.key(), object)).collect();
        Self { until: now + HOLD, alarm, objects }
    }

    pub(crate) fn set(&mut self, object: Object) {
        self.objects.insert(object.key(), object);
    }

    pub(crate) fn remove(&mut self, key: &NamespacedName) {
        self.objects.remove(key);
    }

    pub(crate) fn into_objects(self) -> Vec<Object> {
        self.objects.into_values().collect()
    }
}
