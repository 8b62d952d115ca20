//! `metadata`: what the server sets, and the checks of what it was given.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::names::{self, qualified_name_faults};
use crate::validate::{FieldErrors, immutable};
use crate::{Context, Resource, Subresource, json};

/// Most bytes of all annotations of one object.
pub(crate) const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// Drops what carries no meaning, so that an object compares equal to its stored form: empty
/// maps and lists, and the field that only servers of other times wrote.
pub(super) fn normalize(value: &mut Value) {
    let Some(metadata) = json::object_mut(value, "/metadata") else {
        return;
    };
    metadata.remove("selfLink");
    metadata.retain(|_, member| match member {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    });
}

/// Sets what a new object gets from the server.
pub(crate) fn begin(resource: &Resource, value: &mut Value, context: &mut Context<'_>) {
    let uid = names::uid(context.random);
    if let Some(metadata) = json::object_mut(value, "/metadata") {
        for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), uid.into());
        metadata.insert("creationTimestamp".to_owned(), context.now.to_string().into());
        if resource.has_generation {
            metadata.insert("generation".to_owned(), 1.into());
        } else {
            metadata.remove("generation");
        }
    }
}

/// The bytes of all annotations of an object.
pub(super) fn annotation_bytes(value: &Value) -> usize {
    json::at(value, "/metadata/annotations").map_or(0, bytes_of)
}

/// The bytes of a map of texts.
fn bytes_of(texts: &Value) -> usize {
    let texts = texts.as_object().into_iter().flatten();
    texts.map(|(key, text)| key.len() + text.as_str().map(str::len).unwrap_or_default()).sum()
}

/// Carries over what no update may change.
pub(super) fn carry_over(value: &mut Value, old: &Value) {
    for field in [
        "/metadata/uid",
        "/metadata/creationTimestamp",
        "/metadata/deletionTimestamp",
        "/metadata/deletionGracePeriodSeconds",
        "/metadata/generation",
        "/metadata/generateName",
        "/metadata/resourceVersion",
    ] {
        json::copy(value, old, field);
    }
}

/// Counts a change of the spec (or of whatever is neither metadata nor status).
pub(super) fn count_generation(resource: &Resource, value: &mut Value, old: &Value) {
    // Without a status of its own, all of a custom object is what somebody wants.
    let is_whole = resource.custom.is_some() && !resource.has(Subresource::Status);
    let is_content = |key: &str| {
        !matches!(key, "metadata" | "apiVersion" | "kind") && (is_whole || key != "status")
    };
    if resource.has_generation && content(value, is_content) != content(old, is_content) {
        bump_generation(value);
    }
}

/// Adds one to the generation, where the kind has one.
pub(super) fn bump_generation(value: &mut Value) {
    if let Some(generation) = json::integer(value, "/metadata/generation") {
        json::set(value, "/metadata/generation", generation.saturating_add(1));
    }
}

fn content(value: &Value, is_content: impl Fn(&str) -> bool) -> Vec<(&String, &Value)> {
    value.as_object().into_iter().flatten().filter(|(key, _)| is_content(key)).collect()
}

/// Checks the metadata of an object, and its change when the old object is given.
pub(super) fn validate(
    resource: &Resource,
    value: &Value,
    old: Option<&Value>,
    errors: &mut FieldErrors,
) {
    let name = json::text(value, "/metadata/name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else if old.is_none() {
        for fault in resource.name_rule.faults(name) {
            errors.invalid("metadata.name", name, &fault);
        }
    }
    validate_labels("metadata.labels", json::at(value, "/metadata/labels"), errors);
    validate_annotations("metadata.annotations", json::at(value, "/metadata/annotations"), errors);
    validate_owners(value, errors);
    for finalizer in json::texts(value, "/metadata/finalizers") {
        for fault in qualified_name_faults(finalizer) {
            errors.invalid("metadata.finalizers", finalizer, &fault);
        }
    }
    if let Some(old) = old {
        validate_change(value, old, errors);
    }
}

/// Checks a map of labels, wherever it stands.
pub(crate) fn validate_labels(field: &str, labels: Option<&Value>, errors: &mut FieldErrors) {
    let empty = Map::new();
    for (key, value) in labels.and_then(Value::as_object).unwrap_or(&empty) {
        for fault in qualified_name_faults(key) {
            errors.invalid(field, key.as_str(), &fault);
        }
        let value = value.as_str().unwrap_or_default();
        for fault in names::label_value_faults(value) {
            errors.invalid(field, value, &fault);
        }
    }
}

/// Checks a map of annotations, wherever it stands.
pub(crate) fn validate_annotations(
    field: &str,
    annotations: Option<&Value>,
    errors: &mut FieldErrors,
) {
    let Some(annotations) = annotations else { return };
    for key in annotations.as_object().into_iter().flatten().map(|(key, _)| key) {
        for fault in qualified_name_faults(&key.to_lowercase()) {
            errors.invalid(field, key.as_str(), &fault);
        }
    }
    if bytes_of(annotations) > MAX_ANNOTATIONS_BYTES {
        errors.too_long(field, MAX_ANNOTATIONS_BYTES);
    }
}

fn validate_owners(value: &Value, errors: &mut FieldErrors) {
    let mut controllers = 0;
    for (index, owner) in json::items(value, "/metadata/ownerReferences").iter().enumerate() {
        let field = format!("metadata.ownerReferences[{index}]");
        for (member, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if json::text(owner, &format!("/{member}")).is_empty() {
                errors.invalid(format!("{field}.{member}"), "", why);
            }
        }
        controllers += usize::from(json::flag(owner, "/controller"));
    }
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            json::at(value, "/metadata/ownerReferences").cloned().unwrap_or_default(),
            "Only one reference can have Controller set to true.",
        );
    }
}

fn validate_change(value: &Value, old: &Value, errors: &mut FieldErrors) {
    for (field, pointer) in
        [("metadata.name", "/metadata/name"), ("metadata.namespace", "/metadata/namespace")]
    {
        immutable(errors, field, json::at(value, pointer), json::at(old, pointer));
    }
    if json::at(old, "/metadata/deletionTimestamp").is_some() {
        let before: BTreeSet<&str> = json::texts(old, "/metadata/finalizers").into_iter().collect();
        let added: Vec<&str> = json::texts(value, "/metadata/finalizers")
            .into_iter()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            errors.forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new \
                     finalizers []string{{{}}}",
                    added.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
                ),
            );
        }
    }
}
