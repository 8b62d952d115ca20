//! Namespaces that are being deleted: the pods go first, then all other content, then the
//! namespace itself (KEP-5080).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use model::NamespacedName;

use crate::conditions;
use crate::controller::Input;
use crate::kind::{KINDS, Kind, ObjectKey};
use crate::object::{Condition, Namespace, Object};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

/// Our finalizer in `spec.finalizers`.
const FINALIZER: &str = "kubernetes";

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    if object.kind == Kind::Namespace {
        keys.insert(object.key());
    } else if change.new.is_none() && !object.meta.namespace.is_empty() {
        let name = NamespacedName::new("", &*object.meta.namespace);
        keys.insert(ObjectKey::new(Kind::Namespace, name));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::Namespace, &key.name) else { return outcome };
    let Some(namespace) = object.namespace().filter(|_| object.is_terminating()) else {
        return outcome;
    };
    let finalizers = &namespace.spec.finalizers;
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return outcome;
    }
    let content = Content::of(&key.name.name, snapshot);
    let namespace_name = key.name.name.clone();
    for kind in content.to_delete() {
        let namespace = namespace_name.clone();
        outcome.push(Step::quiet(Write::DeleteCollection { kind, namespace }));
    }
    if content.remaining.is_empty() {
        // Events are not watched; they go with the namespace, after everything that makes them.
        let namespace = namespace_name.clone();
        let kind = Kind::Event;
        outcome.push(Step::quiet(Write::DeleteCollection { kind, namespace }));
        let rest: Vec<_> = finalizers.iter().filter(|name| *name != FINALIZER).collect();
        let mut body = Kind::Namespace.object(json!({
            "name": object.meta.name,
            "uid": object.meta.uid,
            "resourceVersion": object.meta.resource_version,
        }));
        body["spec"] = json!({"finalizers": rest});
        outcome.push(Step::quiet(Write::Finalize { namespace: namespace_name, body }));
        outcome.in_order = true;
        return outcome;
    }
    report(object, namespace, &content, input, &mut outcome);
    outcome
}

/// What is left in a namespace.
struct Content {
    remaining: BTreeMap<Kind, usize>,
    /// Kinds of which some object is not being deleted yet.
    untouched: BTreeSet<Kind>,
    finalizers: BTreeMap<String, usize>,
}

impl Content {
    fn of(namespace: &str, snapshot: &Snapshot) -> Self {
        let mut content = Self {
            remaining: BTreeMap::new(),
            untouched: BTreeSet::new(),
            finalizers: BTreeMap::new(),
        };
        for row in KINDS.iter().filter(|row| row.namespaced && row.watched) {
            for object in snapshot.in_namespace(row.kind, namespace) {
                *content.remaining.entry(row.kind).or_default() += 1;
                if !object.is_terminating() {
                    content.untouched.insert(row.kind);
                }
                for finalizer in &object.meta.finalizers {
                    *content.finalizers.entry(finalizer.clone()).or_default() += 1;
                }
            }
        }
        content
    }

    /// The kinds to delete now: pods alone while there are any.
    fn to_delete(&self) -> Vec<Kind> {
        let pods_left = self.remaining.contains_key(&Kind::Pod);
        let kinds = self.untouched.iter().copied();
        kinds.filter(|kind| !pods_left || *kind == Kind::Pod).collect()
    }
}

/// Says what the deletion waits for, as upstream does.
fn report(
    object: &Object,
    namespace: &Namespace,
    content: &Content,
    input: &Input<'_>,
    outcome: &mut Outcome,
) {
    let remaining: Vec<String> = content
        .remaining
        .iter()
        .map(|(kind, count)| {
            let row = kind.row();
            let group = row.api_version.split_once('/').map_or("", |(group, _)| group);
            format!("{}.{group} has {count} resource instances", row.plural)
        })
        .collect();
    let finalizers: Vec<String> = content
        .finalizers
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect();
    let mut conditions = namespace.status.conditions.clone();
    let mut set = |kind: &str, value: bool, reason: &str, message: String| {
        let new = conditions::new(kind, value, reason, message, input.now);
        let same = |old: &Condition| old.kind == new.kind && old.message == new.message;
        if !conditions.iter().any(same) {
            conditions.retain(|old| old.kind != new.kind);
            conditions.push(new);
        }
    };
    let discovered = "All resources successfully discovered".to_owned();
    set("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", discovered);
    let parsed = "All legacy kube types successfully parsed".to_owned();
    set("NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", parsed);
    let deleted = "All content successfully deleted, may be waiting on finalization".to_owned();
    set("NamespaceDeletionContentFailure", false, "ContentDeleted", deleted);
    let message = format!("Some resources are remaining: {}", remaining.join(", "));
    set("NamespaceContentRemaining", true, "SomeResourcesRemain", message);
    if finalizers.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        set("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message);
    } else {
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            finalizers.join(", ")
        );
        set("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message);
    }
    if conditions != namespace.status.conditions {
        let status = json!({"conditions": conditions});
        outcome.push(Step::quiet(object.patch_status(status)));
    }
}
