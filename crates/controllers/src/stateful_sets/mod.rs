//! StatefulSets: pods with ordinals, made, removed and updated one after the other.

mod claims;
mod pods;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use model::Timestamp;

use crate::adoption::claim;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::pod::Pod;
use crate::revisions::{self, Present, Revisions};
use crate::share::share;
use crate::snapshot::{Change, Snapshot};
use crate::workload::StatefulSet;
use crate::write::{Outcome, Step};

const COMPONENT: &str = "statefulset-controller";
/// Pods that one run creates or deletes at most, where the order does not matter.
const BURST_PODS: usize = 100;

/// One StatefulSet with all that its decisions read.
struct Context<'a> {
    object: &'a Object,
    set: &'a StatefulSet,
    /// Its pods by ordinal.
    pods: BTreeMap<i32, Arc<Object>>,
    /// The revision that is being replaced; the same as `update` when none is.
    current: Arc<Object>,
    /// The revision of the present template.
    update: Arc<Object>,
    snapshot: &'a Snapshot,
    now: Timestamp,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    revisions::interested(Kind::StatefulSet, change, snapshot, keys, |set| {
        Some(&set.stateful_set()?.spec.selector)
    });
    for claim in change.both().filter(|one| one.kind == Kind::PersistentVolumeClaim) {
        let sets = snapshot.in_namespace(Kind::StatefulSet, &claim.meta.namespace);
        keys.extend(sets.filter(|set| claims::is_of(set, &claim.meta.name)).map(|set| set.key()));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::StatefulSet, &key.name) else { return outcome };
    let Some(set) = object.stateful_set() else { return outcome };
    if object.is_terminating() || snapshot.is_terminating_namespace(&key.name.namespace) {
        return outcome;
    }
    let selector = &set.spec.selector;
    let is_member = |pod: &Object| pods::ordinal_of(object, pod).is_some();
    let claimed = claim(object, selector, Kind::Pod, snapshot, is_member);
    outcome.steps = claimed.steps;
    let revisions = Revisions::claim(object, selector, snapshot, &mut outcome);
    if !outcome.steps.is_empty() {
        // Adopted objects come back as changes; what is there is not known before.
        return outcome;
    }
    let collisions = set.status.collision_count;
    let template = &set.spec.template;
    let update = match revisions.sync(object, template, collisions, snapshot, &mut outcome) {
        Present::Found(revision) => revision,
        Present::Made => return outcome,
        Present::Collision => {
            let count = collisions.unwrap_or(0).saturating_add(1);
            let status = json!({"collisionCount": count});
            outcome.push(Step::quiet(object.patch_status(status)));
            return outcome;
        }
    };
    let current = revisions.named(&set.status.current_revision).unwrap_or(&update).clone();
    let by_ordinal = |pod: Arc<Object>| Some((pods::ordinal_of(object, &pod)?, pod));
    let pods = claimed.owned.into_iter().filter_map(by_ordinal).collect();
    let context = Context { object, set, pods, current, update, snapshot, now: input.now };
    act(&context, &mut outcome);
    claims::set_owners(&context, &mut outcome);
    if outcome.steps.is_empty() {
        let is_used = |found: &Object| context.uses(found);
        revisions.clean_up(set.spec.revision_history_limit, is_used, &mut outcome);
    }
    status::write(&context, &mut outcome);
    outcome
}

/// Pods that are missing, pods that are too many, pods of old templates: in this order, and with
/// `OrderedReady` one at a time.
fn act(context: &Context<'_>, outcome: &mut Outcome) {
    let replicas = replicas(context, outcome);
    if replicas == Progress::Settled
        && condemned(context, outcome) == Progress::Settled
        && context.set.spec.update_strategy.kind != "OnDelete"
    {
        update(context, outcome);
    }
    if outcome.steps.len() > BURST_PODS {
        outcome.steps.truncate(BURST_PODS);
        outcome.requeue(Duration::ZERO);
    }
}

/// Whether the next kind of work may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It may.
    Settled,
    /// Something is to be waited for.
    Waits,
}

/// Makes what is missing, the lowest ordinal first.
fn replicas(context: &Context<'_>, outcome: &mut Outcome) -> Progress {
    for ordinal in context.ordinals() {
        let waits = match context.pods.get(&ordinal) {
            None => {
                pods::create(context, ordinal, outcome);
                true
            }
            // A new one is made when this one is gone.
            Some(pod) if is_finished(pod) => {
                if !pod.is_terminating() {
                    outcome.push(pods::delete_ended(context, pod));
                }
                true
            }
            Some(pod) => {
                outcome.steps.extend(pods::mend_identity(pod, ordinal));
                !context.is_available(pod) || pod.is_terminating()
            }
        };
        if waits && context.is_ordered() {
            return Progress::Waits;
        }
    }
    Progress::Settled
}

/// Removes what is too many, the highest ordinal first.
fn condemned(context: &Context<'_>, outcome: &mut Outcome) -> Progress {
    let wanted = context.ordinals();
    for (ordinal, pod) in context.pods.iter().rev() {
        if wanted.contains(ordinal) {
            continue;
        }
        // One that is ready and about to become available is let be until then.
        let ripens = context.is_healthy(pod) && !context.is_available(pod);
        let waits = context.is_ordered() && ripens;
        if !pod.is_terminating() && !waits {
            outcome.push(pods::delete(context, pod));
        }
        if context.is_ordered() {
            return Progress::Waits;
        }
    }
    Progress::Settled
}

/// Removes the pods with the highest ordinals that are of an old template, as many as may be
/// unavailable (KEP-961; one where nothing is said); they are made anew of the present one. No other
/// follows before these serve.
fn update(context: &Context<'_>, outcome: &mut Outcome) {
    let rolling = &context.set.spec.update_strategy.rolling_update;
    let replicas = context.set.spec.replicas();
    let limit = rolling.max_unavailable.as_ref().map_or(1, |given| {
        // A small part of few is one of them.
        share(Some(given), 0, replicas, false).max(1)
    });
    let ordinals = context.ordinals();
    let is_out = |ordinal: &i32| {
        let serves = |pod: &Arc<Object>| context.is_healthy(pod) && context.is_available(pod);
        !context.pods.get(ordinal).is_some_and(serves)
    };
    // Those of lower ordinals count too, but leave room for one: it may be what they wait for.
    let mut below = ordinals.clone().filter(is_out).fold(0_i32, |count, _| count.saturating_add(1));
    let mut out = 0_i32;
    let from = ordinals.start.saturating_add(rolling.partition.unwrap_or(0).max(0));
    for ordinal in (from..ordinals.end).rev() {
        let is_out = is_out(&ordinal);
        below = below.saturating_sub(i32::from(is_out));
        if out.saturating_add(below.min(limit.saturating_sub(1))) >= limit {
            return;
        }
        let outdated = context.pods.get(&ordinal);
        let outdated = outdated.filter(|pod| !pod.is_terminating() && !context.is_updated(pod));
        outcome.steps.extend(outdated.map(|pod| pods::delete(context, pod)));
        out = out.saturating_add(i32::from(is_out || outdated.is_some()));
    }
}

impl Context<'_> {
    /// The ordinals that shall have a pod.
    fn ordinals(&self) -> Range<i32> {
        let start = self.set.spec.ordinals.start.max(0);
        start..start.saturating_add(self.set.spec.replicas())
    }

    fn is_ordered(&self) -> bool {
        self.set.spec.pod_management_policy != "Parallel"
    }

    fn is_updated(&self, pod: &Object) -> bool {
        pods::revision_of(pod) == self.update.meta.name
    }

    /// Whether the pod runs, is ready and stays.
    fn is_healthy(&self, pod: &Object) -> bool {
        !pod.is_terminating() && is_ready(pod)
    }

    fn is_available(&self, pod: &Object) -> bool {
        let wait = |view: &Pod| view.available_in(self.set.spec.min_ready_seconds, self.now);
        is_ready(pod) && pod.pod().and_then(wait) == Some(Duration::ZERO)
    }

    fn uses(&self, revision: &Object) -> bool {
        let name = &revision.meta.name;
        [&self.current, &self.update].iter().any(|used| used.meta.name == *name)
            || self.pods.values().any(|pod| pods::revision_of(pod) == name)
    }
}

fn is_finished(pod: &Object) -> bool {
    pod.pod().is_some_and(Pod::is_finished)
}

fn is_ready(pod: &Object) -> bool {
    pod.pod().is_some_and(|view| view.status.phase == "Running" && view.is_ready())
}
