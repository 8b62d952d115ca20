//! On which nodes a DaemonSet's pod runs, and what is added to it for that.

use serde_json::{Value, json};

use crate::object::{Object, Taint};
use crate::pod::{Pod, Toleration};
use crate::scheduler::wants;
use crate::snapshot::Change;

/// Taints that no daemon pod minds: the node's own agents must run where it is unwell.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for pods that need no pod network.
const TOLERATED_ON_HOST_NETWORK: (&str, &str) =
    ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a DaemonSet's pod may do on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// The node shall have one.
    pub runs: bool,
    /// One that is there stays.
    pub keeps: bool,
}

/// The pod of a template as placement reads it, with the tolerations that it gets.
pub(super) fn pod(template: &Value) -> Pod {
    let mut pod: Pod =
        serde_json::from_value(json!({"spec": template["spec"]})).unwrap_or_default();
    let added = tolerations(&template["spec"]).map(|(key, effect)| Toleration {
        key: key.into(),
        operator: "Exists".into(),
        effect: effect.into(),
        ..Toleration::default()
    });
    pod.spec.tolerations.extend(added);
    pod
}

/// What the pod of [`pod`] may do on a node.
pub(super) fn judge(pod: &Pod, node: &Object) -> Placement {
    let named = &pod.spec.node_name;
    if !(named.is_empty() || *named == node.meta.name) || !wants(pod, node) {
        return Placement::default();
    }
    let taints = node.node().map_or(&[][..], |view| &view.spec.taints);
    let minds = |effects: &[&str]| {
        let tolerates = |taint: &Taint| pod.spec.tolerations.iter().any(|one| one.covers(taint));
        taints.iter().any(|taint| effects.contains(&&*taint.effect) && !tolerates(taint))
    };
    Placement { runs: !minds(&["NoSchedule", "NoExecute"]), keeps: !minds(&["NoExecute"]) }
}

/// Whether a change of a node may change a placement: a heartbeat does not.
pub(super) fn may_differ(change: &Change) -> bool {
    let facts = |node: &Object| {
        (node.meta.labels.clone(), node.node().map(|view| view.spec.taints.clone()))
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => facts(old) != facts(new),
        _ => true,
    }
}

/// The node of a pod: where it is, or where its affinity brings it.
pub(super) fn node_of(pod: &Pod) -> &str {
    if !pod.spec.node_name.is_empty() {
        return &pod.spec.node_name;
    }
    let required = pod.spec.affinity.node_affinity.required.as_ref();
    let terms = required.into_iter().flat_map(|selector| &selector.node_selector_terms);
    terms
        .flat_map(|term| &term.match_fields)
        .find(|field| field.key == "metadata.name" && field.operator == "In")
        .and_then(|field| field.values.first())
        .map_or("", String::as_str)
}

/// Makes a pod's spec one for a node: affinity to it, and the tolerations of daemon pods.
pub(super) fn bring_to(spec: &mut Value, node: &str) {
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in tolerations(spec) {
        let added = json!({"key": key, "operator": "Exists", "effect": effect});
        all.retain(|toleration| toleration["key"] != key || toleration["effect"] != effect);
        all.push(added);
    }
    spec["tolerations"] = json!(all);
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
        "nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [node]},
        ]}],
    });
}

fn tolerations(spec: &Value) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    let on_host = spec["hostNetwork"] == true;
    TOLERATED.into_iter().chain(on_host.then_some(TOLERATED_ON_HOST_NETWORK))
}
