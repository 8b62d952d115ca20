//! Pods that are bound to a node that is no more: nobody else will ever end them.

use std::collections::BTreeSet;
use std::time::Duration;

use model::NamespacedName;

use crate::conditions;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

const COMPONENT: &str = "pod-garbage-collector";
/// Why such pods go.
const REASON: &str = "DeletionByPodGC";
/// How long a node may be missing after a pod was bound to it, or after we started: it may be
/// about to register.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Keys are nodes.
pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    let node = match object.kind {
        Kind::Node => object.meta.name.as_str(),
        Kind::Pod => object.pod().map_or("", |pod| pod.spec.node_name.as_str()),
        _ => return,
    };
    if !node.is_empty() {
        keys.insert(ObjectKey::new(Kind::Node, NamespacedName::new("", node)));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    if snapshot.get(Kind::Node, &key.name).is_some() {
        return outcome;
    }
    for pod in snapshot.pods_on(&key.name.name) {
        let since = pod.meta.creation_timestamp.max(Some(input.config.started));
        let missing = since.map_or(QUARANTINE, |since| input.now.since(since));
        if missing < QUARANTINE {
            outcome.requeue(QUARANTINE - missing);
        } else {
            // Nobody but us will ever say that it failed.
            let phase = pod.pod().filter(|view| !view.is_finished()).map(|_| "Failed");
            let why = "PodGC: node no longer exists";
            outcome.in_order = true;
            outcome.steps.extend(conditions::disrupted(pod, REASON, why, phase, input.now));
            outcome.push(delete(pod, key));
        }
    }
    outcome
}

fn delete(pod: &Object, node: &ObjectKey) -> Step {
    let message = format!("PodGC: node {} no longer exists", node.name);
    // The watch of nodes may lag behind that of pods: the absence is checked once more.
    let write = Write::Delete {
        object: pod.key(),
        uid: pod.meta.uid.clone(),
        propagation: None,
        grace_period_seconds: Some(0),
        absent: vec![(node.clone(), String::new())],
    };
    Step::quiet(write).on_success(pod.report(COMPONENT, REASON, message))
}
