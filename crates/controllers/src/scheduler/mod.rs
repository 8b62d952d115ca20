//! Placement: every pod that waits, the highest priority first, gets the best of the nodes that may
//! have it. Where none may, pods of a lower priority go for it ([`preemption`]).

mod filter;
mod preemption;
mod refusal;
mod score;
#[cfg(test)]
mod tests;
mod topology;
mod volumes;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::conditions;
use crate::controller::{Input, whole};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, condition};
use crate::pod::Pod;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

use filter::Candidate;
pub(crate) use filter::wants;
use refusal::{Refusal, everywhere, explain};
use topology::Surroundings;
use volumes::Claims;
pub(crate) use volumes::can_have;

const NAME: &str = "default-scheduler";
/// Pods that one run places: what is decided next sees them.
const BATCH: usize = 64;
/// Pods for which one run looks for others that could go: it costs far more than placing one.
const MAX_PREEMPTION_TRIES: usize = 32;

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    let concerns = match object.kind {
        // A renewed heartbeat alone makes no room.
        Kind::Node => change.both().count() < 2 || node_changed(change),
        Kind::PersistentVolumeClaim | Kind::PersistentVolume | Kind::StorageClass => true,
        Kind::Pod => pod_changed(change),
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

/// A pod that waits, makes room, or is now where others look for it or avoid it.
fn pod_changed(change: &Change) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let facts = |object: &Object| {
        let pod = object.pod();
        let finished = pod.is_some_and(|pod| pod.is_finished());
        let node = pod.map(|pod| pod.spec.node_name.clone());
        (finished, node, object.is_terminating(), object.meta.labels.clone())
    };
    new.pod().is_some_and(|pod| pod.spec.node_name.is_empty()) || facts(old) != facts(new)
}

/// The nodes with their pods, as one run changes them.
struct Table<'a> {
    candidates: Vec<Candidate<'a>>,
    snapshot: &'a Snapshot,
    /// Counts changes of where pods are.
    changes: u64,
    /// What other pods mean for the pod that is judged, and after how many changes that was so.
    surroundings: Option<(u64, Surroundings<'a>)>,
    claims: Claims<'a>,
}

impl<'a> Table<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let nodes = snapshot.all(Kind::Node);
        let candidates = nodes.filter_map(|node| Candidate::new(node, snapshot)).collect();
        let claims = Claims::default();
        Self { candidates, snapshot, changes: 0, surroundings: None, claims }
    }

    fn take(&mut self, index: usize, pod: &'a Arc<Object>) {
        self.changes += 1;
        if let Some(candidate) = self.candidates.get_mut(index) {
            candidate.take(pod);
        }
    }

    fn release(&mut self, index: usize, pod: &'a Arc<Object>) {
        self.changes += 1;
        if let Some(candidate) = self.candidates.get_mut(index) {
            candidate.release(pod);
        }
    }

    /// Turns to a pod.
    fn turn_to(&mut self, object: &'a Object) {
        self.claims = Claims::of(object, self.snapshot);
        self.surroundings = None;
    }

    /// What other pods mean for the pod now.
    fn surroundings(&mut self, object: &'a Object, pod: &'a Pod) -> &Surroundings<'a> {
        let changes = self.changes;
        // Where nothing depends on other pods, it does not on their changes either: pods are only
        // taken away while one is judged, and put back.
        let known = self.surroundings.take();
        let known = known.filter(|(at, known)| *at == changes || known.is_empty());
        let fresh = || (changes, Surroundings::of(object, pod, &self.candidates, self.snapshot));
        let known = known.unwrap_or_else(fresh);
        &self.surroundings.insert(known).1
    }
}

/// Whether a node can have a pod, with what is placed there.
fn judge<'a>(
    object: &'a Object,
    pod: &'a Pod,
    table: &mut Table<'a>,
    index: usize,
) -> Result<(), Vec<Refusal>> {
    table.surroundings(object, pod);
    let Some(node) = table.candidates.get(index) else { return Err(Vec::new()) };
    node.check(pod)?;
    let others = table.surroundings.as_ref().map_or(Ok(()), |(_, others)| others.check(node));
    table.claims.check(node, table.snapshot).and(others).map_err(|refusal| vec![refusal])
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
    let mut run = Run { table: Table::new(snapshot), waiting: &waiting, placed: 0, tries: 0 };
    for object in &waiting {
        let Some(pod) = object.pod() else { continue };
        if run.placed == BATCH {
            outcome.requeue(Duration::ZERO);
            break;
        }
        if !run.place(object, pod, input, &mut outcome) {
            // What is decided next must see who goes.
            outcome.requeue(Duration::ZERO);
            break;
        }
    }
    outcome
}

fn is_schedulable(object: &Object) -> bool {
    let Some(pod) = object.pod() else { return false };
    let ours = pod.spec.scheduler_name.is_empty() || pod.spec.scheduler_name == NAME;
    ours && !object.is_terminating() && !pod.is_finished() && pod.spec.scheduling_gates.is_empty()
}

/// One run over the waiting pods.
struct Run<'a, 'w> {
    table: Table<'a>,
    waiting: &'w [&'a Arc<Object>],
    placed: usize,
    tries: usize,
}

impl<'a> Run<'a, '_> {
    /// Places one pod, or says why not. False where others are to go for it.
    fn place(
        &mut self,
        object: &'a Arc<Object>,
        pod: &'a Pod,
        input: &Input<'_>,
        outcome: &mut Outcome,
    ) -> bool {
        self.table.turn_to(object);
        let refusals = match self.choose(object, pod) {
            Ok(index) => {
                self.placed += 1;
                let name = self.table.candidates.get(index).map_or("", Candidate::name);
                match self.table.claims.is_ready() {
                    true => outcome.push(bind(object, name)),
                    // The pod follows when its volumes are there.
                    false => outcome.steps.extend(self.table.claims.select(name)),
                }
                self.table.take(index, object);
                return true;
            }
            Err(refusals) => refusals,
        };
        if let Some(problem) = &self.table.claims.problem {
            let message = everywhere(self.table.candidates.len(), problem);
            outcome.steps.extend(refuse(object, pod, &message, "", input));
            return true;
        }
        let mut message = explain(&refusals);
        let mut nominated = pod.status.nominated_node_name.as_str();
        if !refusals.is_empty() && self.tries < MAX_PREEMPTION_TRIES {
            self.tries += 1;
            match preemption::find(object, pod, &mut self.table, &refusals) {
                Ok(plan) => {
                    self.preempt(&plan, object, pod, &message, input, outcome);
                    return false;
                }
                Err(helpless) => {
                    message = format!("{message} {}", helpless.why);
                    if !helpless.keeps_nomination {
                        nominated = "";
                    }
                }
            }
        }
        self.reserve(object, nominated);
        outcome.steps.extend(refuse(object, pod, &message, nominated, input));
        true
    }

    /// The best node, or what is wrong with each.
    fn choose(&mut self, object: &'a Object, pod: &'a Pod) -> Result<usize, Vec<Vec<Refusal>>> {
        if self.table.claims.problem.is_some() {
            return Err(Vec::new());
        }
        let (mut feasible, mut refusals) = (Vec::new(), Vec::new());
        for index in 0..self.table.candidates.len() {
            match judge(object, pod, &mut self.table, index) {
                Ok(()) => feasible.push(index),
                Err(refused) => refusals.push(refused),
            }
        }
        let others = self.table.surroundings.as_ref().map(|(_, others)| others);
        score::best(object, pod, &self.table.candidates, &feasible, others).ok_or(refusals)
    }

    /// Lets pods go for one that no node can have.
    fn preempt(
        &self,
        plan: &preemption::Plan<'a>,
        object: &Arc<Object>,
        pod: &Pod,
        message: &str,
        input: &Input<'_>,
        outcome: &mut Outcome,
    ) {
        let node = self.table.candidates.get(plan.node).map_or("", Candidate::name);
        // Who goes must have heard why.
        outcome.in_order = true;
        outcome.steps.extend(preemption::steps(plan, object, node, input.now));
        // Whoever waits for the same place with a lower priority looks for another.
        for other in self.waiting {
            let Some(view) = other.pod() else { continue };
            if view.status.nominated_node_name == node && view.spec.priority < pod.spec.priority {
                let none = json!({"nominatedNodeName": null});
                outcome.push(Step::quiet(other.patch_status_unchanged(none)));
            }
        }
        outcome.steps.extend(refuse(object, pod, message, node, input));
    }

    /// Keeps the place that others are leaving for a pod from those that come after it.
    fn reserve(&mut self, object: &'a Arc<Object>, node: &str) {
        let index = self.table.candidates.iter().position(|candidate| candidate.name() == node);
        if let Some(index) = index {
            self.table.take(index, object);
        }
    }
}

fn bind(pod: &Object, node: &str) -> Step {
    let name = pod.meta.key();
    let message = format!("Successfully assigned {name} to {node}");
    let write = Write::Bind { pod: name, uid: pod.meta.uid.clone(), node: node.to_owned() };
    Step::quiet(write).on_success(pod.report(NAME, "Scheduled", message))
}

/// Says on the pod why it waits, and for which node, once for each reason.
fn refuse(
    object: &Object,
    pod: &Pod,
    message: &str,
    nominated: &str,
    input: &Input<'_>,
) -> Option<Step> {
    let present = condition(&pod.status.conditions, "PodScheduled");
    let told = present.is_some_and(|found| found.status == "False" && found.message == message);
    if told && pod.status.nominated_node_name == nominated {
        return None;
    }
    let event = object.report(NAME, "FailedScheduling", message).warning();
    let mut new =
        conditions::new("PodScheduled", false, "Unschedulable", message.to_owned(), input.now);
    if let Some(present) = present.filter(|found| found.status == "False") {
        new.last_transition_time = present.last_transition_time;
    }
    let mut list = pod.status.conditions.clone();
    conditions::remove(&mut list, "PodScheduled");
    list.push(new);
    let nominated = (!nominated.is_empty()).then_some(nominated);
    let status = json!({"conditions": list, "nominatedNodeName": nominated});
    let step = Step::quiet(object.patch_status_unchanged(status));
    Some(if told { step } else { step.on_success(event) })
}
