//! DaemonSets: one pod on each node that the pod may run on, and updates within the limits of
//! `maxUnavailable` and `maxSurge`.

mod placement;
mod status;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use model::Timestamp;

use crate::adoption::claim;
use crate::controller::{Input, Verb};
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::pod::Pod;
use crate::revisions::{self, Present, Revisions};
use crate::snapshot::{Change, Snapshot};
use crate::template;
use crate::workload::DaemonSet;
use crate::write::{Outcome, Step};

use placement::Placement;

const COMPONENT: &str = "daemonset-controller";
/// Pods that one run creates or deletes at most.
const BURST_PODS: usize = 250;
/// The same after a creation failed: one probe instead of a flood of refusals.
const BURST_AFTER_FAILURE: usize = 1;
/// A pod that failed is replaced this long after it was made: a pod that always fails must not
/// be made again without end. Upstream remembers failures and doubles its wait.
const FAILED_POD_AGE: Duration = Duration::from_secs(10);

/// One DaemonSet with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    set: &'a DaemonSet,
    /// The nodes, with what the template's pod may do there.
    nodes: BTreeMap<&'a str, Placement>,
    /// Its pods by node, also by nodes that are no more: the oldest first.
    pods: BTreeMap<String, Vec<Arc<Object>>>,
    /// The hash of the present template's revision.
    hash: String,
    now: Timestamp,
}

/// What is to be done on nodes.
#[derive(Debug, Default)]
struct Plan {
    /// Nodes that get a pod.
    create: Vec<String>,
    /// Pods that go.
    delete: Vec<Arc<Object>>,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    revisions::interested(Kind::DaemonSet, change, snapshot, keys, |set| {
        Some(&set.daemon_set()?.spec.selector)
    });
    let is_node = change.latest().is_some_and(|object| object.kind == Kind::Node);
    if is_node && placement::may_differ(change) {
        keys.extend(snapshot.all(Kind::DaemonSet).map(|set| set.key()));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::DaemonSet, &key.name) else { return outcome };
    let Some(set) = object.daemon_set() else { return outcome };
    if object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace) {
        return outcome;
    }
    let claimed = claim(object, &set.spec.selector, Kind::Pod, snapshot, |_| true);
    outcome.steps = claimed.steps;
    let revisions = Revisions::claim(object, &set.spec.selector, snapshot, &mut outcome);
    if !outcome.steps.is_empty() {
        // Adopted objects come back as changes; what is there is not known before.
        return outcome;
    }
    let collisions = set.status.collision_count;
    let template = &set.spec.template;
    let present = revisions.sync(object, template, collisions, snapshot, &mut outcome);
    let revision = match present {
        Present::Found(revision) => revision,
        Present::Made => return outcome,
        Present::Collision => {
            let count = collisions.unwrap_or(0).saturating_add(1);
            let status = json!({"collisionCount": count});
            outcome.push(Step::quiet(object.patch_status(status)));
            return outcome;
        }
    };
    let hash = revisions::hash_of(&revision).to_owned();
    let context = Context::new(object, set, claimed.owned, hash, snapshot, input.now);
    let failed = input.last_failure.is_some_and(|last| last.verb == Verb::Create);
    let mut plan = manage(&context, &mut outcome);
    if plan.is_empty() && set.spec.update_strategy.kind != "OnDelete" {
        plan = update::step(&context);
    }
    carry_out(&context, &plan, failed, &mut outcome);
    if plan.is_empty() {
        let is_used = |found: &Object| {
            found.meta.uid == revision.meta.uid || context.has_pods_of(revisions::hash_of(found))
        };
        revisions.clean_up(set.spec.revision_history_limit, is_used, &mut outcome);
    }
    status::write(&context, &mut outcome);
    outcome
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

impl<'a> Context<'a> {
    fn new(
        object: &'a Object,
        set: &'a DaemonSet,
        owned: Vec<Arc<Object>>,
        hash: String,
        snapshot: &'a Snapshot,
        now: Timestamp,
    ) -> Self {
        let mut pods: BTreeMap<String, Vec<Arc<Object>>> = BTreeMap::new();
        for pod in owned {
            let node = pod.pod().map(placement::node_of).unwrap_or_default();
            // One that has ended and is on its way out holds no place.
            let is_over = pod.is_terminating() && pod.pod().is_some_and(Pod::is_finished);
            if !node.is_empty() && !is_over {
                pods.entry(node.to_owned()).or_default().push(pod);
            }
        }
        for pods in pods.values_mut() {
            pods.sort_by_cached_key(|pod| {
                let waits = pod.pod().is_some_and(|view| view.spec.node_name.is_empty());
                (waits, pod.meta.creation_timestamp, pod.meta.name.clone())
            });
        }
        let pod = placement::pod(&set.spec.template);
        let nodes = snapshot
            .all(Kind::Node)
            .map(|node| (node.meta.name.as_str(), placement::judge(&pod, node)))
            .collect();
        Self { object, set, nodes, pods, hash, now }
    }

    /// The pods that are of the DaemonSet on a node.
    fn pods_on(&self, node: &str) -> &[Arc<Object>] {
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    /// How many nodes shall have a pod.
    fn wanted(&self) -> i32 {
        let wanted = self.nodes.values().filter(|place| place.runs).count();
        i32::try_from(wanted).unwrap_or(i32::MAX)
    }

    fn is_updated(&self, pod: &Object) -> bool {
        revisions::is_of(&pod.meta.labels, &self.hash)
    }

    fn is_available(&self, pod: &Object) -> bool {
        let wait = |view: &Pod| view.available_in(self.set.spec.min_ready_seconds, self.now);
        pod.pod().and_then(wait) == Some(Duration::ZERO)
    }

    fn has_pods_of(&self, hash: &str) -> bool {
        self.pods.values().flatten().any(|pod| revisions::is_of(&pod.meta.labels, hash))
    }
}

/// Gives every node that shall have a pod one, and takes away what no node shall have.
fn manage(context: &Context<'_>, outcome: &mut Outcome) -> Plan {
    let mut plan = Plan::default();
    for (node, place) in &context.nodes {
        let pods = context.pods_on(node);
        if place.runs && pods.is_empty() {
            plan.create.push((*node).to_owned());
        } else if place.keeps {
            let running = drop_ended(context, pods, &mut plan, outcome);
            if update::surges(context) {
                update::keep_two(context, &running, &mut plan);
                if running.is_empty() && place.runs {
                    plan.create.push((*node).to_owned());
                }
            } else {
                plan.delete.extend(running.into_iter().skip(1).cloned());
            }
        } else {
            plan.delete.extend(pods.iter().filter(|pod| !pod.is_terminating()).cloned());
        }
    }
    // Pods that wait for a node that is no more: nobody else looks after those.
    let lost = context.pods.iter().filter(|(node, _)| !context.nodes.contains_key(node.as_str()));
    for pod in lost.flat_map(|(_, pods)| pods).filter(|pod| !pod.is_terminating()) {
        if pod.pod().is_some_and(|view| view.spec.node_name.is_empty()) {
            plan.delete.push(pod.clone());
        }
    }
    plan
}

/// The pods of a node that neither ended nor are being deleted. Those that ended are deleted.
fn drop_ended<'a>(
    context: &Context<'_>,
    pods: &'a [Arc<Object>],
    plan: &mut Plan,
    outcome: &mut Outcome,
) -> Vec<&'a Arc<Object>> {
    let mut running = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        let phase = pod.pod().map_or("", |view| view.status.phase.as_str());
        let age =
            pod.meta.creation_timestamp.map_or(FAILED_POD_AGE, |made| context.now.since(made));
        match phase {
            "Failed" | "Succeeded" if age < FAILED_POD_AGE => {
                outcome.requeue(FAILED_POD_AGE.saturating_sub(age));
            }
            "Failed" | "Succeeded" => plan.delete.push(pod.clone()),
            _ => running.push(pod),
        }
    }
    running
}

fn carry_out(context: &Context<'_>, plan: &Plan, failed: bool, outcome: &mut Outcome) {
    let burst = if failed { BURST_AFTER_FAILURE } else { BURST_PODS };
    for node in plan.create.iter().take(burst) {
        let body = new_pod(context, node);
        outcome.push(template::create_pod(body, context.object, COMPONENT));
    }
    for pod in plan.delete.iter().take(BURST_PODS) {
        outcome.push(ended_or_deleted(context, pod));
    }
    if plan.create.len() > burst || plan.delete.len() > BURST_PODS {
        outcome.requeue(Duration::ZERO);
    }
}

/// The deletion of a pod; of one that ended with the event that says so.
fn ended_or_deleted(context: &Context<'_>, pod: &Object) -> Step {
    let view = pod.pod();
    let node = view.map(placement::node_of).unwrap_or_default();
    let step = template::delete_pod(pod, context.object, COMPONENT);
    let name = pod.meta.key();
    let tell = |reason, what| context.object.report(COMPONENT, reason, what);
    match view.map_or("", |view| view.status.phase.as_str()) {
        "Failed" => {
            let what =
                format!("Found failed daemon pod {name} on node {node}, will try to kill it");
            step.on_success(tell("FailedDaemonPod", what).warning())
        }
        "Succeeded" => {
            let what =
                format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
            step.on_success(tell("SucceededDaemonPod", what))
        }
        _ => step,
    }
}

/// The pod of a node: it goes there by affinity, through the scheduler.
fn new_pod(context: &Context<'_>, node: &str) -> Value {
    let mut body = template::pod(&context.set.spec.template, context.object);
    body["metadata"]["generateName"] = json!(format!("{}-", context.object.meta.name));
    body["metadata"]["labels"][revisions::REVISION_HASH] = json!(context.hash);
    let annotations = &context.object.meta.annotations;
    if let Some(generation) = annotations.get("deprecated.daemonset.template.generation") {
        body["metadata"]["labels"]["pod-template-generation"] = json!(generation);
    }
    placement::bring_to(&mut body["spec"], node);
    body
}
