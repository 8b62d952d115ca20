//! Placement: every pod that waits, the highest priority first, gets the node, among those that may
//! have it, with the fewest pods of the same owner, then with the fewest pods. No pod is taken away
//! for another: nodes do not count what pods ask of them.

mod filter;
#[cfg(test)]
mod tests;
mod volumes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::conditions;
use crate::controller::{Input, whole};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, condition};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

pub(crate) use filter::wants;
use filter::{Candidate, Refusal};
use volumes::Claims;
pub(crate) use volumes::can_have;

const NAME: &str = "default-scheduler";
/// Pods that one run places: what is decided next sees them.
const BATCH: usize = 64;

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    let waits = |object: &Object| object.pod().is_some_and(|pod| pod.spec.node_name.is_empty());
    let concerns = match object.kind {
        // A renewed heartbeat alone makes no room.
        Kind::Node => change.both().count() < 2 || node_changed(change),
        Kind::PersistentVolumeClaim | Kind::PersistentVolume | Kind::StorageClass => true,
        // One that waits, or one that made room.
        Kind::Pod => change
            .new
            .as_ref()
            .is_none_or(|new| waits(new) || new.pod().is_some_and(|pod| pod.is_finished())),
        _ => false,
    };
    if concerns {
        keys.insert(whole(Kind::Pod));
    }
}

fn node_changed(change: &Change) -> bool {
    let facts = |object: &Object| {
        let node = object.node();
        let ready = node.map(|node| crate::object::is_true(&node.status.conditions, "Ready"));
        let allocatable = node.map(|node| node.status.allocatable.clone());
        (node.map(|node| node.spec.clone()), object.meta.labels.clone(), ready, allocatable)
    };
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    facts(old) != facts(new)
}

/// Places all waiting pods together, so that each placement is seen by the next.
pub(crate) fn reconcile(snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let mut waiting: Vec<&Arc<Object>> =
        snapshot.pods_on("").filter(|pod| is_schedulable(pod)).collect();
    if waiting.is_empty() {
        return outcome;
    }
    waiting.sort_by_key(|pod| {
        let priority = pod.pod().map_or(0, |view| view.spec.priority);
        (Reverse(priority), pod.meta.creation_timestamp, pod.meta.key())
    });
    let mut candidates: Vec<Candidate<'_>> =
        snapshot.all(Kind::Node).filter_map(|node| Candidate::new(node, snapshot)).collect();
    let mut placed = 0;
    for pod in waiting {
        if placed == BATCH {
            outcome.requeue(Duration::ZERO);
            break;
        }
        let claims = Claims::of(pod, snapshot);
        match choose(pod, &claims, &candidates, snapshot) {
            Ok(index) => {
                placed += 1;
                let Some(candidate) = candidates.get_mut(index) else { continue };
                match claims.is_ready() {
                    true => outcome.push(bind(pod, candidate.name())),
                    // The pod follows when its volumes are there.
                    false => outcome.steps.extend(claims.select(candidate.name())),
                }
                candidate.take(pod);
            }
            Err(message) => outcome.steps.extend(refuse(pod, message, input)),
        }
    }
    outcome
}

fn is_schedulable(object: &Object) -> bool {
    let Some(pod) = object.pod() else { return false };
    let ours = pod.spec.scheduler_name.is_empty() || pod.spec.scheduler_name == NAME;
    ours && !object.is_terminating() && !pod.is_finished() && pod.spec.scheduling_gates.is_empty()
}

fn choose(
    pod: &Object,
    claims: &Claims<'_>,
    candidates: &[Candidate<'_>],
    snapshot: &Snapshot,
) -> Result<usize, String> {
    if let Some(problem) = &claims.problem {
        return Err(no_node(candidates.len(), problem));
    }
    let owner = pod.meta.controller().map(|owner| owner.uid.as_str());
    let mut refusals = Vec::new();
    let mut best = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let checked = candidate.check(pod);
        let checked = checked.and_then(|score| claims.check(candidate, snapshot).map(|()| score));
        match checked {
            Ok(unwelcome) => {
                let score =
                    (unwelcome, candidate.siblings(owner), candidate.pods(), candidate.name());
                if best.as_ref().is_none_or(|(least, _)| score < *least) {
                    best = Some((score, index));
                }
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    best.map(|(_, index)| index).ok_or_else(|| explain(&refusals))
}

/// The scheduler's own words, such as `0/3 nodes are available: 1 node(s) were unschedulable, …`.
fn explain(refusals: &[Refusal]) -> String {
    let nodes = refusals.len();
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for refusal in refusals {
        *counts.entry(refusal.to_string()).or_default() += 1;
    }
    let mut parts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    no_node(nodes, &parts.join(", "))
}

fn no_node(nodes: usize, why: &str) -> String {
    let help = "Preemption is not helpful for scheduling.";
    format!(
        "0/{nodes} nodes are available: {why}. preemption: 0/{nodes} nodes are available: {nodes} {help}"
    )
}

fn bind(pod: &Object, node: &str) -> Step {
    let name = pod.meta.key();
    let message = format!("Successfully assigned {name} to {node}");
    let write = Write::Bind { pod: name, uid: pod.meta.uid.clone(), node: node.to_owned() };
    Step::quiet(write).on_success(pod.report(NAME, "Scheduled", message))
}

/// Says on the pod why it waits, once for each reason.
fn refuse(pod: &Object, message: String, input: &Input<'_>) -> Option<Step> {
    let view = pod.pod()?;
    let present = condition(&view.status.conditions, "PodScheduled");
    if present.is_some_and(|found| found.status == "False" && found.message == message) {
        return None;
    }
    let event = pod.report(NAME, "FailedScheduling", message.clone()).warning();
    let mut new = conditions::new("PodScheduled", false, "Unschedulable", message, input.now);
    if let Some(present) = present.filter(|found| found.status == "False") {
        new.last_transition_time = present.last_transition_time;
    }
    let mut list = view.status.conditions.clone();
    conditions::remove(&mut list, "PodScheduled");
    list.push(new);
    let write = pod.patch_status_unchanged(json!({"conditions": list}));
    Some(Step::quiet(write).on_success(event))
}
