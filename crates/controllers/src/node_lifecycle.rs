//! Nodes that fall silent: a lease that is not renewed makes the node `Unknown`, keeps new pods
//! away, and takes its pods out of every Service; a renewed one gives all of it back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use model::{NamespacedName, Timestamp};

use crate::conditions::whole_seconds;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Condition, Node, Object, Taint, condition, is_true};
use crate::pod::Pod;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, list_or_null};

const COMPONENT: &str = "node-controller";
/// The namespace of the nodes' leases.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a node may be silent (upstream's `--node-monitor-grace-period`).
const GRACE_PERIOD: Duration = Duration::from_secs(40);
/// Taint of nodes that fell silent.
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of nodes that say that they are not ready.
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of cordoned nodes.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that a silent node says nothing about any more.
const REPORTED_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Reason of conditions that we set in a silent node's stead.
const STATUS_UNKNOWN: &str = "NodeStatusUnknown";
const NEVER_UPDATED: &str = "NodeStatusNeverUpdated";
/// Reason of `Ready: False` that we set on the pods of a silent node, so that we know them again.
const NODE_NOT_READY: &str = "NodeNotReady";

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    let node = match object.kind {
        Kind::Node => object.meta.name.as_str(),
        Kind::Lease if object.meta.namespace == LEASE_NAMESPACE => object.meta.name.as_str(),
        // A pod that is bound to a silent node, or reports late, is taken out as well.
        Kind::Pod => object.pod().map_or("", |pod| pod.spec.node_name.as_str()),
        _ => return,
    };
    if !node.is_empty() {
        keys.insert(ObjectKey::new(Kind::Node, NamespacedName::new("", node)));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::Node, &key.name) else { return outcome };
    let Some(node) = object.node().filter(|_| !object.is_terminating()) else { return outcome };
    let silent = silence(object, snapshot, input);
    if silent >= GRACE_PERIOD {
        blame(object, node, input, &mut outcome);
    } else {
        outcome.requeue(GRACE_PERIOD - silent);
        forgive(object, node, input, &mut outcome);
    }
    if outcome.steps.is_empty() {
        set_taints(object, node, input, &mut outcome);
        set_pods(object, node, snapshot, input, &mut outcome);
    }
    outcome
}

/// How long nothing was heard of the node, while we listened.
fn silence(object: &Object, snapshot: &Snapshot, input: &Input<'_>) -> Duration {
    let lease = snapshot.find(Kind::Lease, LEASE_NAMESPACE, &object.meta.name);
    let renewed = lease.and_then(|lease| lease.lease()?.spec.renew_time);
    let heard = [renewed, object.meta.creation_timestamp, Some(input.config.started)];
    let latest = heard.into_iter().flatten().max().unwrap_or(input.config.started);
    input.now.since(latest)
}

fn blame(object: &Object, node: &Node, input: &Input<'_>, outcome: &mut Outcome) {
    let mut conditions = node.status.conditions.clone();
    let now = Some(whole_seconds(input.now));
    let mut changed = false;
    for kind in REPORTED_CONDITIONS {
        match conditions.iter_mut().find(|found| found.kind == kind) {
            Some(found) if found.status == "Unknown" => {}
            Some(found) => {
                changed = true;
                found.status = "Unknown".into();
                found.reason = STATUS_UNKNOWN.into();
                found.message = "Kubelet stopped posting node status.".into();
                found.last_transition_time = now;
            }
            None if kind == "Ready" => {
                changed = true;
                conditions.push(Condition {
                    kind: kind.into(),
                    status: "Unknown".into(),
                    reason: NEVER_UPDATED.into(),
                    message: "Kubelet never posted node status.".into(),
                    last_transition_time: now,
                    ..Condition::default()
                });
            }
            None => {}
        }
    }
    if changed {
        let message = format!("Node {} status is now: NodeNotReady", object.meta.name);
        let step = Step::quiet(object.patch_status_unchanged(json!({"conditions": conditions})));
        outcome.push(step.on_success(object.report(COMPONENT, "NodeNotReady", message)));
    }
}

/// Takes back what [`blame`] said: a node whose lease is renewed is there, and tells itself
/// when it is not ready.
fn forgive(object: &Object, node: &Node, input: &Input<'_>, outcome: &mut Outcome) {
    let mut conditions = node.status.conditions.clone();
    let mut changed = false;
    for found in conditions.iter_mut().filter(|found| found.reason == STATUS_UNKNOWN) {
        changed = true;
        let (status, reason, message) = usual(&found.kind);
        found.status = status.into();
        found.reason = reason.into();
        found.message = message.into();
        found.last_transition_time = Some(whole_seconds(input.now));
    }
    if changed {
        let step = Step::quiet(object.patch_status_unchanged(json!({"conditions": conditions})));
        let message = format!("Node {} status is now: NodeReady", object.meta.name);
        outcome.push(step.on_success(object.report(COMPONENT, "NodeReady", message)));
    }
}

/// What a node says of itself when all is well, until it says otherwise.
fn usual(condition: &str) -> (&'static str, &'static str, &'static str) {
    match condition {
        "MemoryPressure" => {
            ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
        }
        "DiskPressure" => ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        "PIDPressure" => {
            ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
        }
        _ => ("True", "KubeletReady", "kubelet is posting ready status"),
    }
}

fn set_taints(object: &Object, node: &Node, input: &Input<'_>, outcome: &mut Outcome) {
    let ready = condition(&node.status.conditions, "Ready").map(|found| found.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready {
        Some("True") => {}
        Some("Unknown") => {
            wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]);
        }
        Some(_) => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        // It has not reported yet: the scheduler passes over it, and nothing is taken away.
        None => {}
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_ours = |taint: &Taint| [UNREACHABLE, NOT_READY, UNSCHEDULABLE].contains(&&*taint.key);
    let mut taints = node.spec.taints.clone();
    taints.retain(|taint| {
        !is_ours(taint)
            || wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    });
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.into(),
                value: String::new(),
                effect: effect.into(),
                time_added: Some(whole_seconds(input.now)),
            });
        }
    }
    if taints != node.spec.taints {
        outcome.push(Step::quiet(
            object.patch_unchanged(json!({"spec": {"taints": list_or_null(&taints)}})),
        ));
    }
}

/// Pods of a silent node are not ready; when the node is back they are what their containers are.
fn set_pods(
    object: &Object,
    node: &Node,
    snapshot: &Snapshot,
    input: &Input<'_>,
    outcome: &mut Outcome,
) {
    let Some(ready) = condition(&node.status.conditions, "Ready") else { return };
    // A node that is there and says that it is not ready still speaks for its pods.
    let silent = ready.status == "Unknown";
    for pod in snapshot.pods_on(&object.meta.name) {
        let Some(view) = pod.pod() else { continue };
        let marked = view.ready_condition().is_some_and(|found| found.reason == NODE_NOT_READY);
        if silent && view.is_ready() {
            let message = "Node is not ready";
            let event = pod.report(COMPONENT, NODE_NOT_READY, message).warning();
            let step = set_ready(pod, view, false, input.now);
            outcome.push(step.on_success(event));
        } else if !silent && marked && !view.is_ready() {
            let ready = is_true(&view.status.conditions, "ContainersReady");
            outcome.push(set_ready(pod, view, ready, input.now));
        }
    }
}

fn set_ready(pod: &Arc<Object>, view: &Pod, ready: bool, now: Timestamp) -> Step {
    let mut conditions = view.status.conditions.clone();
    for found in conditions.iter_mut().filter(|found| found.kind == "Ready") {
        found.status = if ready { "True" } else { "False" }.into();
        found.reason = if ready { "" } else { NODE_NOT_READY }.into();
        found.message = String::new();
        found.last_transition_time = Some(whole_seconds(now));
    }
    Step::quiet(pod.patch_status_unchanged(json!({"conditions": conditions})))
}
