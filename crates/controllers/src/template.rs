//! Pod templates: how they are compared and named, and the pods that are made of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::object::Object;
use crate::write::{Step, Write};

/// The label that tells the pods of one template of a Deployment from those of another.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// The characters of generated names: no vowels, so that no words come out, and nothing that
/// reads like something else.
const SAFE_CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates are the same apart from the hash label and nulls.
pub(crate) fn is_same(one: &Value, other: &Value) -> bool {
    canonical(one) == canonical(other)
}

/// The labels of a template.
pub(crate) fn labels(template: &Value) -> BTreeMap<String, String> {
    template
        .pointer("/metadata/labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default()
}

/// A pod of a template without a name, controlled by `owner`.
pub(crate) fn pod(template: &Value, owner: &Object) -> Value {
    let part = |field: &str| template.pointer(field).cloned().unwrap_or(Value::Null);
    let mut body = Kind::Pod.object(json!({
        "namespace": owner.meta.namespace,
        "labels": part("/metadata/labels"),
        "annotations": part("/metadata/annotations"),
        "finalizers": part("/metadata/finalizers"),
        "ownerReferences": [owner.controller_reference()],
    }));
    if let Some(metadata) = body["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    body["spec"] = part("/spec");
    body
}

/// The creation of a pod, with the events that most controllers tell of it.
pub(crate) fn create_pod(body: Value, owner: &Object, component: &'static str) -> Step {
    let namespace = owner.meta.namespace.clone();
    let created = owner.report(component, "SuccessfulCreate", "Created pod: {name}");
    let failed = owner.report(component, "FailedCreate", "Error creating: {error}");
    Step::quiet(Write::Create { kind: Kind::Pod, namespace, body })
        .on_success(created)
        .on_failure(failed.warning())
}

/// The deletion of a pod, with the events that most controllers tell of it.
pub(crate) fn delete_pod(pod: &Object, owner: &Object, component: &'static str) -> Step {
    let deleted = owner.report(component, "SuccessfulDelete", "Deleted pod: {name}");
    let failed = owner.report(component, "FailedDelete", "Error deleting: {error}");
    Step::quiet(pod.delete()).on_success(deleted).on_failure(failed.warning())
}

/// The value without nulls, which clients send for what is absent.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

fn canonical(template: &Value) -> Value {
    let mut template = without_nulls(template);
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    template
}

/// A short text that differs where templates differ. Upstream hashes Go's memory layout, which
/// nothing else can repeat; only its form is the same.
pub(crate) fn hash(template: &Value, collisions: i32) -> String {
    let mut text = String::new();
    print_sorted(&canonical(template), &mut text);
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    // FNV-1a, 32 bits.
    let hash = text
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let safe = |digit: u8| SAFE_CHARACTERS.get(usize::from(digit) % SAFE_CHARACTERS.len());
    hash.to_string().bytes().filter_map(safe).map(|character| char::from(*character)).collect()
}

/// Prints JSON with sorted keys, whatever order the map type keeps.
fn print_sorted(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (key, value) in sorted(fields) {
                // Writing to a String cannot fail.
                let _ = write!(text, "{key:?}:");
                print_sorted(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                print_sorted(item, text);
                text.push(',');
            }
            text.push(']');
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

fn sorted(fields: &Map<String, Value>) -> BTreeMap<&String, &Value> {
    fields.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_equal_apart_from_hash_label_and_nulls() {
        let one =
            json!({"metadata": {"creationTimestamp": null, "labels": {"a": "b"}}, "spec": {}});
        let other =
            json!({"metadata": {"labels": {"a": "b", "pod-template-hash": "x"}}, "spec": {}});
        assert!(is_same(&one, &other));
        assert_eq!(hash(&one, 0), hash(&other, 0));
        let third = json!({"metadata": {"labels": {"a": "c"}}, "spec": {}});
        assert!(!is_same(&one, &third));
        assert_ne!(hash(&one, 0), hash(&third, 0));
        assert_ne!(hash(&one, 0), hash(&one, 1));
    }
}
