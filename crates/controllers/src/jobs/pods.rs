//! The pods of a Job: made as long as they are wanted, let go once they are counted.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use model::Timestamp;

use crate::kind::ObjectKey;
use crate::object::Object;
use crate::replica_sets::is_active;
use crate::snapshot::Snapshot;
use crate::template;
use crate::write::{Outcome, Step, list_or_null};

use super::count::{FAILURES, IGNORED_FAILURES, INDEX, failures, ignored_failures, index_of};
use super::policy::{self, Verdict};
use super::{COMPONENT, Context, End, JOB_NAME, TRACKING};

/// Pods that one run creates or deletes at most.
const BURST_PODS: usize = 100;
/// The wait before a pod is made after one failed; each further failure doubles it.
const BACK_OFF_BASE: Duration = Duration::from_secs(10);
/// The longest such wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(600);
/// Doublings that reach the longest wait.
const BACK_OFF_DOUBLINGS: u32 = 6;

/// Takes the finalizer from pods whose uid stands in the status, and from those that count as
/// nothing.
pub(super) fn let_counted_go(context: &Context<'_>, outcome: &mut Outcome) {
    let known = &context.job.status.uncounted_terminated_pods;
    let counted = |pod: &&Arc<Object>| {
        let uid = &pod.meta.uid;
        known.succeeded.contains(uid) || known.failed.contains(uid)
    };
    let counted = context.pods.iter().filter(counted).chain(&context.count.ignored);
    outcome.steps.extend(counted.filter_map(|pod| release(pod)));
}

/// Takes the finalizer from pods that no Job will count any more.
pub(super) fn release_orphans(
    key: &ObjectKey,
    job: Option<&str>,
    snapshot: &Snapshot,
    outcome: &mut Outcome,
) {
    let labels = [(JOB_NAME.to_owned(), key.name.name.clone())].into();
    for pod in snapshot.pods_with(&key.name.namespace, &labels) {
        let owner = pod.meta.controller().map(|owner| owner.uid.as_str());
        if owner != job || job.is_none() {
            outcome.steps.extend(release(pod));
        }
    }
}

/// Deletes what still runs. Pods that are not needed any more count as nothing.
pub(super) fn stop_all(context: &Context<'_>, end: Option<&End>, outcome: &mut Outcome) {
    let failed = end.is_some_and(|end| !end.succeeds);
    for pod in context.pods.iter().filter(|pod| is_active(pod)).take(BURST_PODS) {
        if !failed {
            outcome.steps.extend(release(pod));
        }
        outcome.push(template::delete_pod(pod, context.object, COMPONENT));
    }
}

/// Makes pods that are missing, and deletes those that are too many.
pub(super) fn manage(context: &Context<'_>, outcome: &mut Outcome) {
    let count = &context.count;
    let spec = &context.job.spec;
    let wanted = match spec.completions {
        Some(completions) => (completions - count.succeeded).clamp(0, spec.parallelism()),
        None if count.succeeded > 0 => count.active.min(spec.parallelism()),
        None => spec.parallelism(),
    };
    if count.active > wanted {
        let surplus = usize::try_from(count.active - wanted).unwrap_or(0);
        let mut active: Vec<_> = context.pods.iter().filter(|pod| is_active(pod)).collect();
        active.sort_by_cached_key(|pod| {
            let ready = pod.pod().is_some_and(|view| view.is_ready());
            (ready, Reverse(pod.meta.creation_timestamp), pod.meta.name.clone())
        });
        for pod in active.into_iter().take(surplus.min(BURST_PODS)) {
            outcome.steps.extend(release(pod));
            outcome.push(template::delete_pod(pod, context.object, COMPONENT));
        }
        return;
    }
    let held = if spec.waits_for_ends() { count.terminating } else { 0 };
    let missing = usize::try_from(wanted - count.active - held).unwrap_or(0).min(BURST_PODS);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_some() {
        let due = free_indexes(context).filter(|index| is_due(context, *index, outcome));
        let due: Vec<i32> = due.take(missing).collect();
        outcome.steps.extend(due.into_iter().map(|index| create(context, Some(index))));
        return;
    }
    let wait = back_off(context);
    if !wait.is_zero() {
        outcome.requeue(wait);
    } else if spec.is_indexed() {
        let free = free_indexes(context).take(missing);
        free.for_each(|index| outcome.push(create(context, Some(index))));
    } else {
        (0..missing).for_each(|_| outcome.push(create(context, None)));
    }
}

/// The indexes that nobody works on and somebody should.
fn free_indexes(context: &Context<'_>) -> impl Iterator<Item = i32> {
    let count = &context.count;
    let used: BTreeSet<i32> =
        context.pods.iter().filter(|pod| is_active(pod)).filter_map(|pod| index_of(pod)).collect();
    let done = |index: &i32| count.indexes.contains(index) || count.failed_indexes.contains(index);
    let all = 0..context.job.spec.completions.unwrap_or(0);
    all.filter(move |index| !used.contains(index) && !done(index))
}

/// Whether an index has waited long enough since its last failure. Each waits for itself.
fn is_due(context: &Context<'_>, index: i32, outcome: &mut Outcome) -> bool {
    let Some(last) = context.count.last_failures.get(&index) else { return true };
    let earlier = failures(last).saturating_add(ignored_failures(last));
    let doublings = u32::try_from(earlier).unwrap_or(0).min(BACK_OFF_DOUBLINGS);
    let wait = (BACK_OFF_BASE * 2_u32.pow(doublings)).min(BACK_OFF_MAX);
    let since = ended_at(last).unwrap_or(context.now);
    let wait = wait.saturating_sub(context.now.since(since));
    if !wait.is_zero() {
        outcome.requeue(wait);
    }
    wait.is_zero()
}

/// How long to wait after the last failure. A pod that succeeded since then ends the row.
fn back_off(context: &Context<'_>) -> Duration {
    let ended = |phase: &str| -> Vec<Timestamp> {
        let pods = context
            .pods
            .iter()
            .filter(|pod| pod.pod().is_some_and(|view| view.status.phase == phase));
        pods.filter_map(|pod| ended_at(pod)).collect()
    };
    let success = ended("Succeeded").into_iter().max();
    let failures: Vec<Timestamp> =
        ended("Failed").into_iter().filter(|at| Some(*at) > success).collect();
    let Some(last) = failures.iter().max() else { return Duration::ZERO };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(BACK_OFF_DOUBLINGS);
    let wait = (BACK_OFF_BASE * 2_u32.pow(doublings)).min(BACK_OFF_MAX);
    wait.saturating_sub(context.now.since(*last))
}

/// When a pod ended: it was not ready any more then.
fn ended_at(pod: &Object) -> Option<Timestamp> {
    let ready = pod.pod()?.ready_condition().and_then(|ready| ready.last_transition_time);
    ready.max(pod.meta.creation_timestamp)
}

fn create(context: &Context<'_>, index: Option<i32>) -> Step {
    let name = &context.object.meta.name;
    let mut body = template::pod(&context.job.spec.template, context.object);
    let metadata = &mut body["metadata"];
    let mut finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(TRACKING));
    metadata["finalizers"] = json!(finalizers);
    metadata["generateName"] = json!(format!("{name}-"));
    if let Some(index) = index {
        metadata["generateName"] = json!(format!("{name}-{index}-"));
        metadata["annotations"][INDEX] = json!(index.to_string());
        metadata["labels"][INDEX] = json!(index.to_string());
        if context.job.spec.backoff_limit_per_index.is_some() {
            tell_failures(context, index, &mut metadata["annotations"]);
        }
        let hostname = &mut body["spec"]["hostname"];
        *hostname = json!(format!("{name}-{index}"));
        for list in ["initContainers", "containers"] {
            let containers = body["spec"][list].as_array_mut();
            containers.into_iter().flatten().for_each(tell_index);
        }
    }
    template::create_pod(body, context.object, COMPONENT)
}

/// Notes on a pod how often its index failed before it.
fn tell_failures(context: &Context<'_>, index: i32, annotations: &mut Value) {
    let last = context.count.last_failures.get(&index);
    let counts = last.is_some_and(|last| policy::judge(context.job, last) != Verdict::Ignore);
    let (failed, ignored) = last.map_or((0, 0), |last| (failures(last), ignored_failures(last)));
    let more = |is_more: bool| i32::from(is_more && last.is_some());
    annotations[FAILURES] = json!(failed.saturating_add(more(counts)).to_string());
    let ignored = ignored.saturating_add(more(!counts));
    if ignored > 0 {
        annotations[IGNORED_FAILURES] = json!(ignored.to_string());
    }
}

/// Adds the index to the environment of a container, unless it says otherwise itself.
fn tell_index(container: &mut Value) {
    let mut all = container["env"].as_array().cloned().unwrap_or_default();
    if all.iter().any(|one| one["name"] == "JOB_COMPLETION_INDEX") {
        return;
    }
    let path = format!("metadata.annotations['{INDEX}']");
    all.push(json!({"name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    container["env"] = json!(all);
}

fn release(pod: &Object) -> Option<Step> {
    if !pod.has_finalizer(TRACKING) {
        return None;
    }
    let rest: Vec<_> = pod.meta.finalizers.iter().filter(|name| *name != TRACKING).collect();
    let body = json!({"metadata": {"finalizers": list_or_null(&rest)}});
    Some(Step::quiet(pod.patch(body)))
}
