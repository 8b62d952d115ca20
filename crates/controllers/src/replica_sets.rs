//! ReplicaSets and ReplicationControllers: as many pods as wanted, and a status that says how many there are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use model::Timestamp;

use crate::adoption::{self, claim};
use crate::conditions;
use crate::controller::{Input, Verb};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, ReplicaSet, ReplicaSetStatus, omit_empty};
use crate::pod::Pod;
use crate::snapshot::{Change, Snapshot};
use crate::template;
use crate::write::{Outcome, Step};

/// Pods that one run creates or deletes at most.
const BURST_REPLICAS: usize = 100;
/// The same after a creation failed: one probe instead of a flood of refusals.
const BURST_AFTER_FAILURE: usize = 1;
/// Pods with a lower number are deleted first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::ReplicaSet | Kind::ReplicationController => {
                keys.insert(object.key());
            }
            Kind::Pod => {
                for kind in [Kind::ReplicaSet, Kind::ReplicationController] {
                    adoption::owners(object, kind, snapshot, keys, |set| {
                        Some(&set.replica_set()?.spec.selector)
                    });
                }
            }
            _ => {}
        }
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(key.kind, &key.name) else { return outcome };
    let Some(set) = object.replica_set() else { return outcome };
    let claimed = claim(object, &set.spec.selector, Kind::Pod, snapshot, |_| true);
    outcome.steps = claimed.steps;
    let active: Vec<&Arc<Object>> = claimed.owned.iter().filter(|pod| is_active(pod)).collect();
    // Adoptions come back as changes of the pods; until then their number is not known.
    let adopts = !outcome.steps.is_empty();
    let leaves = object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace);
    if !adopts && !leaves {
        manage(object, set, &active, snapshot, input, &mut outcome);
    }
    let status = status(object, set, &active, input);
    if status != set.status {
        let mut body = omit_empty(json!(status));
        // The one field that the API writes even when it is zero.
        body["replicas"] = json!(status.replicas);
        outcome.push(Step::quiet(object.patch_status(body)));
    }
    let now = input.now;
    let waits = active.iter().filter_map(|pod| {
        pod.pod()?.available_in(set.spec.min_ready_seconds, now).filter(|wait| !wait.is_zero())
    });
    if let Some(wait) = waits.min() {
        outcome.requeue(wait);
    }
    outcome
}

/// Whether the pod counts as a replica.
pub(crate) fn is_active(pod: &Object) -> bool {
    !pod.is_terminating() && is_unfinished(pod)
}

/// Whether containers of the pod may still run.
pub(crate) fn is_unfinished(pod: &Object) -> bool {
    pod.pod().is_some_and(|view| !view.is_finished())
}

/// Who speaks in events.
fn component(object: &Object) -> &'static str {
    match object.kind {
        Kind::ReplicationController => "replication-controller",
        _ => "replicaset-controller",
    }
}

fn manage(
    object: &Object,
    set: &ReplicaSet,
    active: &[&Arc<Object>],
    snapshot: &Snapshot,
    input: &Input<'_>,
    outcome: &mut Outcome,
) {
    let wanted = usize::try_from(set.spec.replicas()).unwrap_or(0);
    let failed = input.last_failure.is_some_and(|last| last.verb == Verb::Create);
    if active.len() < wanted {
        let burst = if failed { BURST_AFTER_FAILURE } else { BURST_REPLICAS };
        for _ in 0..(wanted - active.len()).min(burst) {
            outcome.push(create(object, set));
        }
        if wanted - active.len() > burst {
            outcome.requeue(Duration::ZERO);
        }
    } else if active.len() > wanted {
        let surplus = active.len() - wanted;
        let related = related_pods_by_node(object, snapshot);
        let mut ranked = active.to_vec();
        ranked.sort_by_cached_key(|pod| rank(pod, &related, input.now));
        for pod in ranked.into_iter().take(surplus.min(BURST_REPLICAS)) {
            outcome.push(template::delete_pod(pod, object, component(object)));
        }
        if surplus > BURST_REPLICAS {
            outcome.requeue(Duration::ZERO);
        }
    }
}

fn create(object: &Object, set: &ReplicaSet) -> Step {
    let mut body = template::pod(&set.spec.template, object);
    body["metadata"]["generateName"] = json!(format!("{}-", object.meta.name));
    template::create_pod(body, object, component(object))
}

/// How many pods of the same workload each node has: pods on crowded nodes go first.
fn related_pods_by_node(object: &Object, snapshot: &Snapshot) -> BTreeMap<String, usize> {
    let owner = object.meta.controller().map(|owner| owner.uid.as_str());
    let siblings: Vec<&str> = match owner {
        Some(owner) => {
            snapshot.controlled(Kind::ReplicaSet, owner).map(|set| set.meta.uid.as_str()).collect()
        }
        None => vec![object.meta.uid.as_str()],
    };
    let mut nodes = BTreeMap::new();
    for uid in siblings {
        for pod in snapshot.controlled(Kind::Pod, uid).filter(|pod| is_active(pod)) {
            if let Some(view) = pod.pod().filter(|view| !view.spec.node_name.is_empty()) {
                *nodes.entry(view.spec.node_name.clone()).or_default() += 1;
            }
        }
    }
    nodes
}

type Rank =
    (bool, u8, bool, i64, Reverse<usize>, u32, Reverse<i32>, Reverse<Option<Timestamp>>, String);

/// The order of deletion, the upstream one: pods without node, then pending, then not ready, then
/// by deletion cost, then where more pods of the workload are, then ready for the shorter time
/// (by order of magnitude), then restarted more often, then younger.
fn rank(pod: &Object, related: &BTreeMap<String, usize>, now: Timestamp) -> Rank {
    let Some(view) = pod.pod() else {
        return (false, 0, false, 0, Reverse(0), 0, Reverse(0), Reverse(None), String::new());
    };
    let phase = match view.status.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = pod.meta.annotations.get(DELETION_COST).and_then(|text| text.parse().ok());
    let restarts = view.status.container_statuses.iter().map(|status| status.restart_count);
    (
        !view.spec.node_name.is_empty(),
        phase,
        view.is_ready(),
        cost.unwrap_or(0),
        Reverse(related.get(&view.spec.node_name).copied().unwrap_or(0)),
        ready_magnitude(view, now),
        Reverse(restarts.max().unwrap_or(0)),
        Reverse(pod.meta.creation_timestamp),
        pod.meta.name.clone(),
    )
}

/// The order of magnitude, in bits, of the seconds that the pod has been ready for.
fn ready_magnitude(pod: &Pod, now: Timestamp) -> u32 {
    let since = pod
        .ready_condition()
        .filter(|condition| condition.status == "True")
        .and_then(|condition| condition.last_transition_time);
    since.map_or(0, |since| u64::BITS - now.since(since).as_secs().leading_zeros())
}

fn status(
    object: &Object,
    set: &ReplicaSet,
    active: &[&Arc<Object>],
    input: &Input<'_>,
) -> ReplicaSetStatus {
    let labels = template::labels(&set.spec.template);
    let count = |wanted: &dyn Fn(&Object, &Pod) -> bool| {
        let counted = active.iter().filter(|pod| pod.pod().is_some_and(|view| wanted(pod, view)));
        i32::try_from(counted.count()).unwrap_or(i32::MAX)
    };
    let available = |_: &Object, pod: &Pod| {
        pod.available_in(set.spec.min_ready_seconds, input.now) == Some(Duration::ZERO)
    };
    let mut status = ReplicaSetStatus {
        replicas: count(&|_, _| true),
        fully_labeled_replicas: count(&|pod, _| {
            labels.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value))
        }),
        ready_replicas: count(&|_, pod| pod.is_ready()),
        available_replicas: count(&available),
        observed_generation: object.meta.generation,
        conditions: set.status.conditions.clone(),
    };
    let failure = input.last_failure.filter(|last| last.verb != Verb::Change);
    match failure {
        Some(last) => {
            let reason = if last.verb == Verb::Create { "FailedCreate" } else { "FailedDelete" };
            let message = last.failure.message.clone();
            let condition = conditions::new("ReplicaFailure", true, reason, message, input.now);
            conditions::set(&mut status.conditions, condition);
        }
        None if input.last_failure.is_none() => {
            conditions::remove(&mut status.conditions, "ReplicaFailure");
        }
        None => {}
    }
    status
}

#[cfg(test)]
mod tests;
