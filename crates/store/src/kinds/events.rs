//! Events: two kinds of one object. core/v1 is the stored form; events.k8s.io/v1 names the same
//! things anew, and keeps the old ones under `deprecated…`.

use model::Timestamp;
use serde_json::{Map, Value};

use crate::json;
use crate::names::NameRule;
use crate::resource::Resource;
use crate::table::{Column, age};
use crate::validate::FieldErrors;

/// core/v1 Event.
pub(crate) static EVENT: Resource = Resource {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: "events",
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    columns: &[
        Column::text("Last Seen", |value, now| last_seen(value, now).into()),
        Column::text("Type", |value, _| json::text(value, "/type").into()),
        Column::text("Reason", |value, _| json::text(value, "/reason").into()),
        Column::text("Object", |value, _| object_text(value, "/involvedObject").into()),
        Column::text("Subobject", |value, _| json::text(value, "/involvedObject/fieldPath").into())
            .wide(),
        Column::text("Source", |value, _| source_text(value).into()).wide(),
        Column::text("Message", |value, _| json::text(value, "/message").trim().into()),
        Column::text("First Seen", |value, now| first_seen(value, now).into()).wide(),
        Column::integer("Count", |value, _| count(value).into()).wide(),
        Column { priority: 1, ..Column::NAME },
    ],
    selectable_fields: &[
        "/involvedObject/kind",
        "/involvedObject/namespace",
        "/involvedObject/name",
        "/involvedObject/uid",
        "/involvedObject/apiVersion",
        "/involvedObject/resourceVersion",
        "/involvedObject/fieldPath",
        "/reason",
        "/reportingComponent",
        "/source",
        "/type",
    ],
    validate: |value, old, errors| {
        if old.is_none() {
            validate_namespace(value, json::text(value, "/involvedObject/namespace"), errors);
        }
    },
    ..Resource::BASE
};

/// events.k8s.io/v1 Event.
pub(crate) static EVENTS_V1: Resource = Resource {
    group: "events.k8s.io",
    columns: &[
        Column::text("Last Seen", |value, now| last_seen(&convert(value, &EVENT), now).into()),
        Column::text("Type", |value, _| json::text(value, "/type").into()),
        Column::text("Reason", |value, _| json::text(value, "/reason").into()),
        Column::text("Object", |value, _| object_text(value, "/regarding").into()),
        Column::text("Message", |value, _| json::text(value, "/note").trim().into()),
    ],
    selectable_fields: &[
        "/regarding/kind",
        "/regarding/namespace",
        "/regarding/name",
        "/regarding/uid",
        "/reason",
        "/reportingController",
        "/type",
    ],
    validate: |value, old, errors| {
        if old.is_none() {
            validate_namespace(value, json::text(value, "/regarding/namespace"), errors);
        }
    },
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: "events",
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    ..Resource::BASE
};

/// Names in core/v1 and in events.k8s.io/v1.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The same event in the form of another row.
pub(crate) fn convert(value: &Value, to: &Resource) -> Value {
    let to_core = to.group.is_empty();
    let rename = |key: &str| {
        RENAMED
            .iter()
            .find_map(|(core, new)| match to_core {
                true => (key == *new).then_some(*core),
                false => (key == *core).then_some(*new),
            })
            .map(str::to_owned)
    };
    let mut converted: Map<String, Value> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, member)| (rename(key).unwrap_or_else(|| key.clone()), member.clone()))
        .collect();
    converted.insert("apiVersion".to_owned(), to.api_version().into());
    Value::Object(converted)
}

/// An event stands in the namespace of what it is about; those about cluster-scoped objects stand
/// in `default`.
fn validate_namespace(value: &Value, about: &str, errors: &mut FieldErrors) {
    let namespace = json::text(value, "/metadata/namespace");
    let expected = if about.is_empty() { "default" } else { about };
    let fits = namespace == expected || (about.is_empty() && namespace == "kube-system");
    if !fits {
        errors.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
}

fn last_seen(value: &Value, now: Timestamp) -> String {
    if json::at(value, "/series").is_some() {
        return age(value, "/series/lastObservedTime", now);
    }
    if json::at(value, "/lastTimestamp").is_some() {
        return age(value, "/lastTimestamp", now);
    }
    first_seen(value, now)
}

fn first_seen(value: &Value, now: Timestamp) -> String {
    if json::at(value, "/firstTimestamp").is_some() {
        return age(value, "/firstTimestamp", now);
    }
    age(value, "/eventTime", now)
}

fn count(value: &Value) -> i64 {
    let count = json::integer(value, "/series/count").or(json::integer(value, "/count"));
    count.unwrap_or(0).max(1)
}

fn object_text(value: &Value, pointer: &str) -> String {
    let kind = json::text(value, &format!("{pointer}/kind")).to_lowercase();
    format!("{kind}/{}", json::text(value, &format!("{pointer}/name")))
}

fn source_text(value: &Value) -> String {
    let component = match json::text(value, "/source/component") {
        "" => json::text(value, "/reportingComponent"),
        component => component,
    };
    let parts = [component, json::text(value, "/source/host")];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
