//! Objects for unit tests.

use serde_json::{Value, json};

use model::{ClusterConfig, NamespacedName, Timestamp};

use crate::controller::{Config, Input, LastFailure};
use crate::kind::{Kind, ObjectKey};
use crate::snapshot::Snapshot;
use crate::write::{Outcome, Write};

/// The time in tests.
pub(crate) const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// A snapshot of objects; each gets a version and, where it has none, a uid from its name.
pub(crate) fn snapshot(objects: impl IntoIterator<Item = (Kind, Value)>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (index, (kind, mut value)) in objects.into_iter().enumerate() {
        let metadata = &mut value["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{name}"));
        }
        if kind.row().namespaced && metadata["namespace"].is_null() {
            metadata["namespace"] = json!("d");
        }
        metadata["resourceVersion"] = json!((index + 1).to_string());
        assert!(snapshot.apply(kind, value).is_some(), "{name} is no object");
    }
    snapshot
}

pub(crate) fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = if kind.row().namespaced { "d" } else { "" };
    ObjectKey::new(kind, NamespacedName::new(namespace, name))
}

/// Runs something with the usual configuration.
pub(crate) fn with_input<T>(
    last_failure: Option<&LastFailure>,
    run: impl FnOnce(&Input<'_>) -> T,
) -> T {
    let cluster = ClusterConfig::default();
    let config = Config::new(cluster, "CA".into(), NOW);
    run(&Input { config: &config, now: NOW, last_failure })
}

/// What was written, in short: verb, kind or key, and for patches the body without the identity.
pub(crate) fn writes(outcome: &Outcome) -> Vec<(String, Value)> {
    let short = |write: &Write| match write {
        Write::Create { kind, body, .. } => (format!("create {}", kind.row().name), body.clone()),
        Write::Patch { object, body, .. } => {
            let mut body = body.clone();
            if let Some(metadata) = body["metadata"].as_object_mut() {
                metadata.remove("uid");
                metadata.remove("resourceVersion");
            }
            (format!("patch {}", object.name.name), body)
        }
        Write::Delete { object, .. } => (format!("delete {}", object.name.name), Value::Null),
        Write::Bind { pod, node, .. } => (format!("bind {} {node}", pod.name), Value::Null),
        other => (format!("{other:?}"), Value::Null),
    };
    outcome.steps.iter().map(|step| short(&step.write)).collect()
}

/// Only the verbs.
pub(crate) fn verbs(outcome: &Outcome) -> Vec<String> {
    writes(outcome).into_iter().map(|(verb, _)| verb).collect()
}

/// A pod of the ReplicaSet `set` on a node, ready for so many seconds (not ready when `None`).
pub(crate) fn pod(name: &str, node: &str, ready_for_seconds: Option<i64>) -> Value {
    let since = Timestamp::from_seconds(NOW.seconds() - ready_for_seconds.unwrap_or(0));
    let status = if ready_for_seconds.is_some() { "True" } else { "False" };
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": "web"},
            "creationTimestamp": "2026-11-21T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set",
                "uid": "uid-set", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"nodeName": node, "containers": [
            {"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {
            "phase": if node.is_empty() { "Pending" } else { "Running" },
            "podIP": if node.is_empty() { "" } else { "10.244.0.9" },
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}],
        },
    })
}
