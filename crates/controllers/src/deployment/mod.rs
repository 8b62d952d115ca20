//! Deployments: one ReplicaSet a pod template, and pods moved from the old ones to the new one
//! within the limits of `maxSurge` and `maxUnavailable`.

mod recreate;
mod replicas;
mod revision;
mod rolling;
mod scale;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use model::Timestamp;

use crate::adoption::claim;
use crate::controller::{Input, LastFailure};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Deployment, Object};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step};

use replicas::Sets;

const COMPONENT: &str = "deployment-controller";
/// The revision of a ReplicaSet, and of a Deployment the newest.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Revisions that a ReplicaSet had before it became the newest again.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's wanted number when its ReplicaSets were scaled last.
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// That number with the surge.
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// One Deployment with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    deployment: &'a Deployment,
    snapshot: &'a Snapshot,
    sets: Sets,
    now: Timestamp,
    last_failure: Option<&'a LastFailure>,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::Deployment => {
                keys.insert(object.key());
            }
            Kind::ReplicaSet => match owner_of(object, snapshot, Kind::Deployment) {
                Some(owner) => {
                    keys.insert(owner.key());
                }
                None if object.meta.controller().is_none() => {
                    let deployments =
                        snapshot.in_namespace(Kind::Deployment, &object.meta.namespace);
                    keys.extend(deployments.filter_map(|found| {
                        let selector = &found.deployment()?.spec.selector;
                        selector.matches(&object.meta.labels).then(|| found.key())
                    }));
                }
                None => {}
            },
            // `Recreate` waits until the last old pod is gone.
            Kind::Pod if change.new.is_none() => {
                let set = owner_of(object, snapshot, Kind::ReplicaSet);
                let owner = set.and_then(|set| owner_of(set, snapshot, Kind::Deployment));
                if let Some(owner) = owner.filter(|owner| is_recreate(owner)) {
                    keys.insert(owner.key());
                }
            }
            _ => {}
        }
    }
}

fn owner_of<'a>(object: &Object, snapshot: &'a Snapshot, kind: Kind) -> Option<&'a Arc<Object>> {
    let owner = snapshot.owner(object.meta.controller()?, &object.meta.namespace).ok()??;
    (owner.kind == kind).then_some(owner)
}

fn is_recreate(object: &Object) -> bool {
    object.deployment().is_some_and(|found| found.spec.strategy.kind == "Recreate")
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::Deployment, &key.name) else { return outcome };
    let Some(deployment) = object.deployment() else { return outcome };
    let claimed = claim(object, &deployment.spec.selector, Kind::ReplicaSet, snapshot, |_| true);
    outcome.steps = claimed.steps;
    if !outcome.steps.is_empty() {
        // Adopted sets come back as changes; what is there is not known before.
        return outcome;
    }
    let now = crate::conditions::whole_seconds(input.now);
    let sets = Sets::new(claimed.owned, deployment, snapshot, now);
    let last_failure = input.last_failure;
    let context = Context { object, deployment, snapshot, sets, now, last_failure };
    let leaves = object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace);
    let mut notes = Vec::new();
    if !leaves {
        act(&context, &mut outcome, &mut notes);
    }
    status::write(&context, notes, &mut outcome);
    outcome
}

/// The next step of the rollout. Each step waits for the one before it to be seen, since every
/// change of a ReplicaSet makes its Deployment dirty again.
fn act(context: &Context<'_>, outcome: &mut Outcome, notes: &mut Vec<status::Note>) {
    let spec = &context.deployment.spec;
    if spec.paused {
        revision::sync(context, false, outcome, notes);
        scale::proportionally(context, outcome);
        if outcome.steps.is_empty() {
            cleanup(context, outcome);
        }
        return;
    }
    if scale::is_needed(context) {
        revision::sync(context, false, outcome, notes);
        scale::proportionally(context, outcome);
        return;
    }
    if spec.strategy.kind == "Recreate" {
        recreate::step(context, outcome, notes);
    } else {
        revision::sync(context, true, outcome, notes);
        if outcome.steps.is_empty() {
            rolling::step(context, outcome);
        }
    }
    if outcome.steps.is_empty() && status::is_complete(context) {
        cleanup(context, outcome);
    }
}

/// Deletes the oldest ReplicaSets beyond `revisionHistoryLimit`, where nothing runs of them.
fn cleanup(context: &Context<'_>, outcome: &mut Outcome) {
    let Some(limit) = context.deployment.spec.revision_history_limit else { return };
    let mut old: Vec<_> = context.sets.old().filter(|set| !set.object.is_terminating()).collect();
    let limit = usize::try_from(limit).unwrap_or(0);
    let surplus = old.len().saturating_sub(limit);
    old.sort_by_key(|set| revision::of(&set.object));
    for set in old.into_iter().take(surplus) {
        let observed = set.view().status.observed_generation >= set.object.meta.generation;
        if set.spec_replicas() == 0 && set.view().status.replicas == 0 && observed {
            outcome.push(Step::quiet(set.object.delete()));
        }
    }
}

/// Sets the wanted number of a ReplicaSet, and notes what it was computed from.
fn scale_step(context: &Context<'_>, set: &replicas::Set, replicas: i32) -> Option<Step> {
    let annotations = context.scale_annotations();
    let noted =
        annotations.iter().all(|(key, value)| set.object.meta.annotations.get(*key) == Some(value));
    let from = set.spec_replicas();
    if from == replicas && noted {
        return None;
    }
    let annotations: serde_json::Map<_, _> =
        annotations.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
    let body = json!({
        "metadata": {"annotations": annotations},
        "spec": {"replicas": replicas},
    });
    let step = Step::quiet(set.object.patch_unchanged(body));
    if from == replicas {
        return Some(step);
    }
    let direction = if replicas > from { "up" } else { "down" };
    let message = format!(
        "Scaled {direction} replica set {} from {from} to {replicas}",
        set.object.meta.name
    );
    Some(step.on_success(context.object.report(COMPONENT, "ScalingReplicaSet", message)))
}

impl Context<'_> {
    fn scale_annotations(&self) -> [(&'static str, String); 2] {
        let replicas = self.deployment.spec.replicas();
        let max = replicas + self.sets.limits.max_surge;
        [(DESIRED_REPLICAS, replicas.to_string()), (MAX_REPLICAS, max.to_string())]
    }
}
