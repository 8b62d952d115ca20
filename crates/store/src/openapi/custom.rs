//! Schemas of definitions, as documents show them.

use schema::openapi::{KIND, Version};
use serde_json::{Map, Value, json};

use crate::{Resource, json as tree};

/// Members of a schema that version 2 knows and its readers follow (`ToStructuralOpenAPIV2` of the
/// real server). What combines schemas is left out: they would take it for all that there is.
const KEPT_IN_VERSION_2: &[&str] = &[
    "additionalProperties",
    "description",
    "enum",
    "format",
    "items",
    "properties",
    "required",
    "title",
    "type",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
];

/// Name and schema of a custom row's objects; `None` for rows of our own.
pub(super) fn schema(row: &Resource, version: Version) -> Option<(String, Value)> {
    let custom = row.custom?;
    let mut schema = match version {
        Version::Two => narrowed(custom.tree),
        Version::Three => custom.tree.clone(),
    };
    let texts = [
        (
            "apiVersion",
            "APIVersion defines the versioned schema of this representation of an object.",
        ),
        ("kind", "Kind is a string value representing the REST resource this object represents."),
    ];
    // One that keeps everything names nothing in version 2.
    if version == Version::Three || schema.get("properties").is_some() {
        for (name, text) in texts {
            let property = json!({"type": "string", "description": text});
            tree::set(&mut schema, &format!("/properties/{name}"), property);
        }
        let metadata = version.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        tree::set(&mut schema, "/properties/metadata", metadata);
    }
    let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
    tree::set(&mut schema, &format!("/{KIND}"), json!([kind]));
    Some((name(row), schema))
}

/// `com.example.v1.Widget`, as the real server names it.
fn name(row: &Resource) -> String {
    let reversed: Vec<&str> = row.group.rsplit('.').collect();
    format!("{}.{}.{}", reversed.join("."), row.version, row.kind)
}

/// A schema in version 2. Clients that validate by it refuse what it does not name, so where more
/// may stand than it can say, it says nothing.
fn narrowed(schema: &Value) -> Value {
    let Some(members) = schema.as_object() else { return schema.clone() };
    let flag = |name: &str| members.get(name).and_then(Value::as_bool).unwrap_or(false);
    let is_open = flag("x-kubernetes-preserve-unknown-fields");
    let hides = |name: &str| match name {
        "type" => flag("nullable") || flag("x-kubernetes-int-or-string"),
        "properties" | "items" => {
            flag("nullable") || is_open || flag("x-kubernetes-embedded-resource")
        }
        "required" => flag("nullable"),
        _ => false,
    };
    let kept = members
        .iter()
        .filter(|(name, _)| KEPT_IN_VERSION_2.contains(&name.as_str()) && !hides(name.as_str()));
    let inner = |name: &str, value: &Value| match (name, value) {
        ("properties", Value::Object(all)) => {
            let all = all.iter().map(|(name, one)| (name.clone(), narrowed(one)));
            Value::Object(all.collect::<Map<_, _>>())
        }
        ("items" | "additionalProperties", one) => narrowed(one),
        (_, other) => other.clone(),
    };
    kept.map(|(name, value)| (name.clone(), inner(name, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_says_nothing_where_it_could_only_say_something_wrong() {
        let schema = json!({
            "type": "object", "required": ["a"], "x-kubernetes-validations": [{"rule": "true"}],
            "properties": {
                "a": {"type": "string", "pattern": "^a$", "enum": ["a"], "description": "d"},
                "type": {"nullable": true, "type": "object", "properties": {"b": {}}},
                "either": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]},
                "open": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"c": {"type": "string"}},
                },
                "list": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                "map": {"type": "object", "additionalProperties": {"type": "string", "not": {}}},
            },
        });
        assert_eq!(
            narrowed(&schema),
            json!({
                "type": "object", "required": ["a"],
                "properties": {
                    "a": {"type": "string", "enum": ["a"], "description": "d"},
                    "type": {},
                    "either": {"x-kubernetes-int-or-string": true},
                    "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "list": {"type": "array", "items": {"type": "integer"}},
                    "map": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            })
        );
    }
}
