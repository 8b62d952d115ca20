//! What an update of a pod may change: images, less time, more tolerations, and while the pod is
//! gated where it may go, as long as that only becomes narrower (KEP-3838).

use serde_json::{Map, Value};

use crate::json;
use crate::validate::FieldErrors;

/// Where required node affinity lies in a spec, and in the words of errors.
const REQUIRED_AFFINITY: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Judges the spec of an update by the one before it.
pub(super) fn validate(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    for list in ["containers", "initContainers"] {
        let count = |spec| json::items(spec, &format!("/{list}")).len();
        if count(spec) != count(old) {
            let why = "pod updates may not add or remove containers";
            return errors.forbidden(format!("spec.{list}"), why);
        }
    }
    validate_deadline(spec, old, errors);
    validate_gates(spec, old, errors);
    validate_tolerations(spec, old, errors);
    let is_gated = !json::items(old, "/schedulingGates").is_empty();
    if is_gated {
        validate_node_selector(spec, old, errors);
        validate_node_affinity(spec, old, errors);
    }
    let judged = judged(spec, old);
    let frozen = |spec| frozen_part(spec, &judged, is_gated);
    if frozen(spec) != frozen(old) {
        errors.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
             additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to \
             be set to 1 if it was previously negative)",
        );
    }
}

fn validate_deadline(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let seconds = |spec| json::integer(spec, "/activeDeadlineSeconds");
    let why = match (seconds(spec), seconds(old)) {
        (None, Some(_)) => "must not update from a positive integer to nil value",
        (Some(new), Some(old)) if new > old => "must be less than or equal to previous value",
        _ => return,
    };
    let value = json::at(spec, "/activeDeadlineSeconds").cloned().unwrap_or_default();
    errors.invalid("spec.activeDeadlineSeconds", value, why);
}

/// Gates only ever go (KEP-3521).
fn validate_gates(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let before = json::items(old, "/schedulingGates");
    let gates = json::items(spec, "/schedulingGates");
    for gate in gates.iter().filter(|gate| !before.contains(gate)) {
        let name = json::text(gate, "/name");
        let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
        errors.forbidden("spec.schedulingGates", &why);
    }
}

/// How long a taint is tolerated may change; that it is may not.
fn validate_tolerations(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let timeless = |spec| -> Vec<Value> {
        let mut tolerations = json::items(spec, "/tolerations").to_vec();
        for toleration in &mut tolerations {
            json::remove(toleration, "/tolerationSeconds");
        }
        tolerations
    };
    let new = timeless(spec);
    if !timeless(old).iter().all(|one| new.contains(one)) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden("spec.tolerations", why);
    }
}

fn validate_node_selector(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let labels = |spec| json::at(spec, "/nodeSelector").and_then(Value::as_object);
    let kept = |(key, value)| labels(spec).is_some_and(|new| new.get(key) == Some(value));
    if !labels(old).into_iter().flatten().all(kept) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        let value = json::at(spec, "/nodeSelector").cloned().unwrap_or_default();
        errors.invalid("spec.nodeSelector", value, why);
    }
}

/// Terms are alternatives: none may come or go, and each may only ask for more. Preferences keep
/// no node out, and may become what they like.
fn validate_node_affinity(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let pointer = format!("/affinity/nodeAffinity/{REQUIRED_AFFINITY}/nodeSelectorTerms");
    let field = format!("spec.affinity.nodeAffinity.{REQUIRED_AFFINITY}.nodeSelectorTerms");
    let (new, old) = (json::items(spec, &pointer), json::items(old, &pointer));
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(field, new.to_vec(), why);
    }
    for (index, (new, old)) in new.iter().zip(old).enumerate() {
        if !only_adds(new, old) {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.invalid(format!("{field}[{index}]"), new.clone(), why);
        }
    }
}

/// Whether a term asks for all that it did. One that asked for nothing chose no node at all, and
/// must not begin to.
fn only_adds(new: &Value, old: &Value) -> bool {
    let parts = ["/matchExpressions", "/matchFields"];
    let is_empty = |term| parts.iter().all(|part| json::items(term, part).is_empty());
    let starts = |part| json::items(new, part).starts_with(json::items(old, part));
    (!is_empty(old) || is_empty(new)) && parts.into_iter().all(starts)
}

/// Members of the spec that an update may change, as far as the rules above let it.
fn judged(spec: &Value, old: &Value) -> Vec<&'static str> {
    let mut judged = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let grace = |spec| json::integer(spec, "/terminationGracePeriodSeconds");
    if grace(old).is_some_and(|seconds| seconds < 0) && grace(spec) == Some(1) {
        judged.push("terminationGracePeriodSeconds");
    }
    judged
}

/// The pod spec without what may change.
fn frozen_part(spec: &Value, judged: &[&str], is_gated: bool) -> Value {
    let mut frozen = spec.clone();
    if is_gated {
        json::remove(&mut frozen, "/nodeSelector");
        json::remove(&mut frozen, "/affinity/nodeAffinity");
        if frozen.pointer("/affinity").and_then(Value::as_object).is_some_and(Map::is_empty) {
            json::remove(&mut frozen, "/affinity");
        }
    }
    if let Some(members) = frozen.as_object_mut() {
        members.retain(|name, _| !judged.contains(&name.as_str()));
    }
    for list in ["/containers", "/initContainers"] {
        for container in json::items_mut(&mut frozen, list) {
            json::remove(container, "/image");
        }
    }
    frozen
}
