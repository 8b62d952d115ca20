//! The ReplicaSets of a Deployment, and how many pods each has, counted so that no lag of a
//! status lets a rollout leave its limits.

use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;

use crate::kind::Kind;
use crate::object::{Deployment, Object, ReplicaSet, RollingUpdate};
use crate::replica_sets::is_active;
use crate::share::share;
use crate::snapshot::Snapshot;
use crate::template;

/// `maxSurge` and `maxUnavailable` where they are absent.
const DEFAULT_PERCENT: i32 = 25;

/// One ReplicaSet.
pub(super) struct Set {
    pub object: Arc<Object>,
    /// Pods that may exist at most: wanted, reported or seen, whichever is more.
    pub counted: i32,
    /// Pods that are available at least: wanted, reported or seen, whichever is less. A set that
    /// was scaled down counts without the pods that it is about to delete.
    pub available: i32,
    /// Pods that have not ended, terminating ones included.
    pub running: usize,
}

impl Set {
    fn new(object: Arc<Object>, snapshot: &Snapshot, now: Timestamp) -> Option<Self> {
        let view = object.replica_set()?;
        let mut active = 0;
        let mut available = 0;
        let mut running = 0;
        for pod in snapshot.controlled(Kind::Pod, &object.meta.uid) {
            let Some(state) = pod.pod().filter(|state| !state.is_finished()) else { continue };
            running += 1;
            if is_active(pod) {
                active += 1;
                let wait = state.available_in(view.spec.min_ready_seconds, now);
                available += i32::from(wait == Some(Duration::ZERO));
            }
        }
        let wanted = view.spec.replicas();
        let counted = wanted.max(view.status.replicas).max(active);
        let available = wanted.min(view.status.available_replicas).min(available);
        Some(Self { counted, available, running, object })
    }

    pub fn view(&self) -> &ReplicaSet {
        static EMPTY: std::sync::LazyLock<ReplicaSet> =
            std::sync::LazyLock::new(ReplicaSet::default);
        self.object.replica_set().unwrap_or(&EMPTY)
    }

    pub fn spec_replicas(&self) -> i32 {
        self.view().spec.replicas()
    }
}

/// All ReplicaSets of a Deployment.
pub(super) struct Sets {
    /// The oldest first.
    all: Vec<Set>,
    new: Option<usize>,
    pub limits: Limits,
}

impl Sets {
    pub fn new(
        owned: Vec<Arc<Object>>,
        deployment: &Deployment,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Self {
        let mut all: Vec<Set> =
            owned.into_iter().filter_map(|object| Set::new(object, snapshot, now)).collect();
        all.sort_by_cached_key(|set| {
            (set.object.meta.creation_timestamp, set.object.meta.name.clone())
        });
        let template = &deployment.spec.template;
        let new = all.iter().position(|set| template::is_same(&set.view().spec.template, template));
        Self { all, new, limits: Limits::new(deployment) }
    }

    /// The ReplicaSet of the present template.
    pub fn new_set(&self) -> Option<&Set> {
        self.all.get(self.new?)
    }

    /// The others, the oldest first.
    pub fn old(&self) -> impl Iterator<Item = &Set> {
        self.all
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != self.new)
            .map(|(_, set)| set)
    }

    pub fn all(&self) -> &[Set] {
        &self.all
    }

    pub fn sum(&self, value: impl Fn(&Set) -> i32) -> i32 {
        self.all.iter().map(value).fold(0, i32::saturating_add)
    }
}

/// The limits of a rollout, in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub max_surge: i32,
    pub max_unavailable: i32,
}

impl Limits {
    fn new(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        let replicas = spec.replicas();
        if spec.strategy.kind == "Recreate" {
            return Self { max_surge: 0, max_unavailable: replicas };
        }
        let default = RollingUpdate::default();
        let update = spec.strategy.rolling_update.as_ref().unwrap_or(&default);
        let max_surge = share(update.max_surge.as_ref(), DEFAULT_PERCENT, replicas, true);
        let mut max_unavailable =
            share(update.max_unavailable.as_ref(), DEFAULT_PERCENT, replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // Percentages may both round to zero; a rollout must be able to move.
            max_unavailable = 1;
        }
        Self { max_surge, max_unavailable: max_unavailable.min(replicas) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_zero_limits_still_let_a_rollout_move() {
        let deployment: Deployment = serde_json::from_value(serde_json::json!({"spec": {
            "replicas": 2,
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}},
        }}))
        .expect("a Deployment");
        assert_eq!(Limits::new(&deployment), Limits { max_surge: 0, max_unavailable: 1 });
    }
}
