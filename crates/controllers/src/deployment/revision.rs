//! The ReplicaSet of the present template: its name, its revision, and how it is found again.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::controller::Verb;
use crate::kind::Kind;
use crate::object::Object;
use crate::template::{self, POD_TEMPLATE_HASH};
use crate::write::{Outcome, Step, Write};

use super::{COMPONENT, Context, REVISION, REVISION_HISTORY, replicas::Set, rolling, status::Note};

/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    super::DESIRED_REPLICAS,
    super::MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// The revision of a ReplicaSet; 0 without the annotation.
pub(super) fn of(object: &Object) -> i64 {
    object.meta.annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
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
    let hash = template::hash(&context.deployment.spec.template, collisions);
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
    let mut template = template::without_nulls(&spec.template);
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
