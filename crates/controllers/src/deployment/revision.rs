//! The ReplicaSet of the present template: its name, its revision, and how it is found again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::controller::Verb;
use crate::kind::Kind;
use crate::object::Object;
use crate::write::{Outcome, Step, Write};

use super::{
    COMPONENT, Context, POD_TEMPLATE_HASH, REVISION, REVISION_HISTORY, replicas::Set, rolling,
    status::Note,
};

/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    super::DESIRED_REPLICAS,
    super::MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// The characters of generated names: no vowels, so that no words come out, and nothing that
/// reads like something else.
const SAFE_CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The revision of a ReplicaSet; 0 without the annotation.
pub(super) fn of(object: &Object) -> i64 {
    object.meta.annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether two templates are the same apart from the hash label and nulls.
pub(super) fn is_same_template(one: &Value, other: &Value) -> bool {
    canonical(one) == canonical(other)
}

/// Sees to the ReplicaSet of the present template: its annotations and, where `create` says so,
/// its existence.
pub(super) fn sync(
    context: &Context<'_>,
    create: bool,
    outcome: &mut Outcome,
    notes: &mut Vec<Note>,
) {
    let newest = context.sets.old().map(|set| of(&set.object)).max().unwrap_or(0) + 1;
    match context.sets.new_set() {
        Some(set) => update(context, set, newest, outcome, notes),
        None if create => make(context, newest, outcome, notes),
        None => {}
    }
}

fn update(
    context: &Context<'_>,
    set: &Set,
    newest: i64,
    outcome: &mut Outcome,
    notes: &mut Vec<Note>,
) {
    let mut annotations = copied_annotations(context);
    let present = &set.object.meta.annotations;
    let own = of(&set.object);
    let revision = if own < newest { newest } else { own };
    if own < newest {
        annotations.insert(REVISION.into(), newest.to_string());
        if own > 0 {
            let mut history = present.get(REVISION_HISTORY).cloned().unwrap_or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&own.to_string());
            annotations.insert(REVISION_HISTORY.into(), history);
        }
    }
    annotations.retain(|key, value| present.get(key) != Some(value));
    let min_ready_seconds = context.deployment.spec.min_ready_seconds;
    let differs = set.view().spec.min_ready_seconds != min_ready_seconds;
    if !annotations.is_empty() || differs {
        let mut body = json!({"metadata": {"annotations": annotations}});
        if differs {
            body["spec"] = json!({"minReadySeconds": min_ready_seconds});
        }
        outcome.push(Step::quiet(set.object.patch_unchanged(body)));
    }
    note_revision(context, revision, outcome);
    notes.push(Note::Found(set.object.meta.name.clone()));
}

fn note_revision(context: &Context<'_>, revision: i64, outcome: &mut Outcome) {
    if of(context.object) != revision {
        let body = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        outcome.push(Step::quiet(context.object.patch(body)));
    }
}

fn make(context: &Context<'_>, newest: i64, outcome: &mut Outcome, notes: &mut Vec<Note>) {
    let meta = &context.object.meta;
    let collisions = context.deployment.status.collision_count.unwrap_or(0);
    let hash = hash(&context.deployment.spec.template, collisions);
    let name = format!("{}-{hash}", meta.name);
    if context.snapshot.find(Kind::ReplicaSet, &meta.namespace, &name).is_some() {
        // The name is taken by a set that is not ours, or of another template.
        notes.push(Note::Collision);
        return;
    }
    let replicas = rolling::new_replicas(context);
    let body = body(context, &name, &hash, replicas, newest);
    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
    let mut step = Step::quiet(Write::Create {
        kind: Kind::ReplicaSet,
        namespace: meta.namespace.clone(),
        body,
    });
    if replicas > 0 {
        step = step.on_success(context.object.report(COMPONENT, "ScalingReplicaSet", message));
    }
    let failed = format!("Failed to create new replica set {name:?}: {{error}}");
    let failed = context.object.report(COMPONENT, "ReplicaSetCreateError", failed).warning();
    outcome.push(step.on_failure(failed));
    note_revision(context, newest, outcome);
    notes.push(match context.last_failure.filter(|last| last.verb == Verb::Create) {
        Some(last) => Note::CreateFailed(last.failure.message.clone()),
        None => Note::Created(name),
    });
}

fn body(context: &Context<'_>, name: &str, hash: &str, replicas: i32, revision: i64) -> Value {
    let meta = &context.object.meta;
    let spec = &context.deployment.spec;
    let mut template = without_nulls(&spec.template);
    template["metadata"]["labels"][POD_TEMPLATE_HASH] = json!(hash);
    let mut selector = json!({"matchLabels": spec.selector.match_labels});
    selector["matchLabels"][POD_TEMPLATE_HASH] = json!(hash);
    if !spec.selector.match_expressions.is_empty() {
        selector["matchExpressions"] = json!(spec.selector.match_expressions);
    }
    let mut annotations = copied_annotations(context);
    annotations.insert(REVISION.into(), revision.to_string());
    for (key, value) in context.scale_annotations() {
        annotations.insert(key.into(), value);
    }
    let mut body = Kind::ReplicaSet.object(json!({
        "name": name,
        "namespace": meta.namespace,
        "labels": template["metadata"]["labels"],
        "annotations": annotations,
        "ownerReferences": [context.object.controller_reference()],
    }));
    body["spec"] = json!({"replicas": replicas, "selector": selector, "template": template});
    if spec.min_ready_seconds > 0 {
        body["spec"]["minReadySeconds"] = json!(spec.min_ready_seconds);
    }
    body
}

fn copied_annotations(context: &Context<'_>) -> BTreeMap<String, String> {
    let mut annotations = context.object.meta.annotations.clone();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations
}

/// The value without nulls, which clients send for what is absent.
fn without_nulls(value: &Value) -> Value {
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
fn hash(template: &Value, collisions: i32) -> String {
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
        assert!(is_same_template(&one, &other));
        assert_eq!(hash(&one, 0), hash(&other, 0));
        let third = json!({"metadata": {"labels": {"a": "c"}}, "spec": {}});
        assert!(!is_same_template(&one, &third));
        assert_ne!(hash(&one, 0), hash(&third, 0));
        assert_ne!(hash(&one, 0), hash(&one, 1));
    }
}
