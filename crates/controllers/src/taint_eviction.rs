//! `NoExecute` taints: pods that do not tolerate them go, those that do for a time go later.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{NamespacedName, Timestamp};

use crate::conditions;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::Taint;
use crate::pod::Pod;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step};

const COMPONENT: &str = "taint-eviction-controller";
/// Why such pods go, as their condition says it.
const REASON: &str = "DeletionByTaintManager";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    match object.kind {
        Kind::Node => keys.extend(
            snapshot.pods_on(&object.meta.name).filter(|_| has_taints(change)).map(|pod| pod.key()),
        ),
        Kind::Pod if object.pod().is_some_and(|pod| !pod.spec.node_name.is_empty()) => {
            keys.insert(object.key());
        }
        _ => {}
    }
}

fn has_taints(change: &Change) -> bool {
    change
        .both()
        .any(|object| object.node().is_some_and(|node| node.spec.taints.iter().any(is_executing)))
}

fn is_executing(taint: &Taint) -> bool {
    taint.effect == "NoExecute"
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::Pod, &key.name) else { return outcome };
    let Some(pod) = object.pod() else { return outcome };
    if object.is_terminating() || pod.is_finished() || pod.spec.node_name.is_empty() {
        return outcome;
    }
    let name = NamespacedName::new("", &*pod.spec.node_name);
    let Some(node) = snapshot.get(Kind::Node, &name).and_then(|node| node.node()) else {
        return outcome;
    };
    let taints = node.spec.taints.iter().filter(|taint| is_executing(taint));
    match taints.filter_map(|taint| tolerated_for(pod, taint, input.now)).min() {
        None => {}
        Some(Duration::ZERO) => {
            let message = format!("Marking for deletion Pod {}", key.name);
            let event = object.report(COMPONENT, "TaintManagerEviction", message);
            let why = "Taint manager: deleting due to NoExecute taint";
            outcome.in_order = true;
            outcome.steps.extend(conditions::disrupted(object, REASON, why, None, input.now));
            outcome.push(Step::quiet(object.delete()).on_success(event));
        }
        Some(wait) => outcome.requeue(wait),
    }
    outcome
}

/// How long the pod still tolerates the taint; `None` for ever.
fn tolerated_for(pod: &Pod, taint: &Taint, now: Timestamp) -> Option<Duration> {
    let mut covering =
        pod.spec.tolerations.iter().filter(|toleration| toleration.covers(taint)).peekable();
    if covering.peek().is_none() {
        return Some(Duration::ZERO);
    }
    let seconds = covering.filter_map(|toleration| toleration.toleration_seconds).min()?;
    let since = taint.time_added.unwrap_or(now);
    let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(allowed.saturating_sub(now.since(since)))
}
