//! Whether a schema may stand in a CustomResourceDefinition: it must be structural (every field
//! has a type, and what combines schemas only restricts them), and within our limits.

use serde_json::Value;

use super::{Fault, Schema, flag, regex, rules, text, texts};

/// Deepest nesting of a schema, in levels.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// What JSON schema has and definitions may not.
const UNSUPPORTED: &[&str] = &[
    "$ref",
    "$schema",
    "id",
    "additionalItems",
    "definitions",
    "dependencies",
    "patternProperties",
];
/// What may not stand within `allOf`, `anyOf`, `oneOf` and `not`.
const NOT_IN_COMBINATIONS: &[&str] = &[
    "type",
    "default",
    "nullable",
    "title",
    "description",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    rules::RULES,
];
/// What stands in for a type where a value is a number or a text.
const INT_OR_STRING_TYPES: &[&str] = &["integer", "string"];

/// What is wrong with a schema. `path` is where it stands.
pub fn check(schema: &Value, path: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    match text(schema, "type") {
        "" => {
            faults.push(Fault::required(at(path, "type"), "must not be empty at the root"));
        }
        "object" => {}
        other => {
            let why = "must be object at the root";
            faults.push(Fault::invalid(at(path, "type"), &other.into(), why));
        }
    }
    check_metadata(schema, path, &mut faults);
    look(schema, path, Place::Root, MAX_SCHEMA_DEPTH, &mut faults);
    // Rules are compiled by types, which only a structural schema has.
    if faults.is_empty() {
        rules::check(schema, path, &mut faults);
    }
    faults.truncate(super::MAX_FAULTS);
    faults
}

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Item,
    /// Within `allOf`, `anyOf`, `oneOf` or `not`.
    Combination,
}

/// `metadata` is that of every kind; only the name can be restricted.
fn check_metadata(schema: &Value, path: &str, faults: &mut Vec<Fault>) {
    let metadata = schema.pointer("/properties/metadata/properties");
    let mut names = metadata.and_then(Value::as_object).into_iter().flatten();
    if names.any(|(name, _)| !matches!(name.as_str(), "name" | "generateName")) {
        faults.push(Fault::forbidden(
            at(path, "properties[metadata]"),
            "must not specify anything other than name and generateName, but metadata is \
             implicitly specified",
        ));
    }
}

fn look(schema: &Value, path: &str, place: Place, depth: usize, faults: &mut Vec<Fault>) {
    if faults.len() >= super::MAX_FAULTS {
        return;
    }
    if depth == 0 {
        let why = format!("schemas may be nested at most {MAX_SCHEMA_DEPTH} levels deep");
        return faults.push(Fault::forbidden(path, &why));
    }
    if !schema.is_object() {
        return faults.push(Fault::invalid(path, schema, "must be a schema object"));
    }
    for name in UNSUPPORTED.iter().filter(|name| schema.get(**name).is_some()) {
        faults.push(Fault::forbidden(at(path, name), &format!("{name} is not supported")));
    }
    if place == Place::Combination {
        look_at_combination(schema, path, faults);
    } else {
        look_at_type(schema, path, place, faults);
    }
    look_at_values(schema, path, faults);
    look_at_list(schema, path, faults);
    look_below(schema, path, place, depth - 1, faults);
}

fn look_at_type(schema: &Value, path: &str, place: Place, faults: &mut Vec<Fault>) {
    const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
    let field = at(path, "type");
    let kind = text(schema, "type");
    let is_open = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let is_either = flag(schema, "x-kubernetes-int-or-string");
    match kind {
        "" if is_open || is_either || place == Place::Root => {}
        "" if place == Place::Item => {
            faults.push(Fault::required(field, "must not be empty for specified array items"));
        }
        "" => {
            faults.push(Fault::required(field, "must not be empty for specified object fields"));
        }
        _ if is_either => {
            let why = "must be empty if x-kubernetes-int-or-string is true";
            faults.push(Fault::invalid(field, &kind.into(), why));
        }
        known if TYPES.contains(&known) => {}
        other => {
            let types: Vec<Value> = TYPES.iter().map(|name| (*name).into()).collect();
            faults.push(Fault::unsupported(field, &other.into(), &types));
        }
    }
    if kind == "array" && schema.get("items").is_none() {
        faults.push(Fault::required(at(path, "items"), "must be specified"));
    }
    if flag(schema, "x-kubernetes-embedded-resource") {
        if kind != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            faults.push(Fault::invalid(at(path, "type"), &kind.into(), why));
        }
        if schema.get("properties").is_none() && !is_open {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                       x-kubernetes-preserve-unknown-fields";
            faults.push(Fault::required(at(path, "properties"), why));
        }
    }
}

fn look_at_combination(schema: &Value, path: &str, faults: &mut Vec<Fault>) {
    for name in NOT_IN_COMBINATIONS.iter().filter(|name| schema.get(**name).is_some()) {
        // The one exception: how an integer or a text was told before there was a mark for it.
        let is_either = *name == "type" && INT_OR_STRING_TYPES.contains(&text(schema, "type"));
        if !is_either {
            faults.push(Fault::forbidden(at(path, name), "must be empty to be structural"));
        }
    }
}

fn look_at_values(schema: &Value, path: &str, faults: &mut Vec<Fault>) {
    if flag(schema, "uniqueItems") {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        faults.push(Fault::forbidden(at(path, "uniqueItems"), why));
    }
    let pattern = text(schema, "pattern");
    if let Err(error) = regex(pattern) {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        faults.push(Fault::invalid(at(path, "pattern"), &pattern.into(), &why));
    }
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let field = at(path, "default");
        let wrong = Schema::compile(schema).validate(default, &field);
        faults.extend(wrong);
    }
    let members = schema.get("properties").and_then(Value::as_object);
    if let (Some(members), Some(additional)) = (members, schema.get("additionalProperties"))
        && !members.is_empty()
        && additional != &Value::Bool(false)
    {
        let why = "additionalProperties and properties are mutual exclusive";
        faults.push(Fault::forbidden(at(path, "additionalProperties"), why));
    }
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        let why = "additionalProperties cannot be set to false";
        faults.push(Fault::forbidden(at(path, "additionalProperties"), why));
    }
}

fn look_at_list(schema: &Value, path: &str, faults: &mut Vec<Fault>) {
    let list_type = text(schema, "x-kubernetes-list-type");
    let keys = texts(schema, "x-kubernetes-list-map-keys");
    let field = at(path, "x-kubernetes-list-type");
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        let known = ["atomic", "map", "set"].map(Value::from);
        faults.push(Fault::unsupported(&field, &list_type.into(), &known));
    }
    if !list_type.is_empty() && text(schema, "type") != "array" {
        let why = "must be array if x-kubernetes-list-type is specified";
        faults.push(Fault::invalid(at(path, "type"), &text(schema, "type").into(), why));
    }
    let keys_field = at(path, "x-kubernetes-list-map-keys");
    match (list_type, keys.is_empty()) {
        ("map", true) => {
            let why = "must not be empty if x-kubernetes-list-type is map";
            faults.push(Fault::required(keys_field, why));
        }
        ("map", false) => look_at_keys(schema, &keys, path, faults),
        (_, false) => {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            faults.push(Fault::invalid(field, &list_type.into(), why));
        }
        (_, true) => {}
    }
    let map_type = text(schema, "x-kubernetes-map-type");
    if !matches!(map_type, "" | "atomic" | "granular") {
        let known = ["atomic", "granular"].map(Value::from);
        let field = at(path, "x-kubernetes-map-type");
        faults.push(Fault::unsupported(field, &map_type.into(), &known));
    }
}

/// Keys must be scalars that every item has.
fn look_at_keys(schema: &Value, keys: &[String], path: &str, faults: &mut Vec<Fault>) {
    let items = schema.get("items").cloned().unwrap_or_default();
    let required = texts(&items, "required");
    for (index, key) in keys.iter().enumerate() {
        let Some(property) = items.get("properties").and_then(|all| all.get(key)) else {
            let field = at(path, &format!("x-kubernetes-list-map-keys[{index}]"));
            faults.push(Fault::invalid(
                field,
                &key.as_str().into(),
                "must name a property of the items",
            ));
            continue;
        };
        let field = at(path, &format!("items.properties[{key}]"));
        if property.get("default").is_none() && !required.contains(key) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default \
                       or be a required property";
            faults.push(Fault::required(at(&field, "default"), why));
        }
        if matches!(text(property, "type"), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            faults.push(Fault::invalid(at(&field, "type"), &text(property, "type").into(), why));
        }
    }
}

fn look_below(schema: &Value, path: &str, place: Place, depth: usize, faults: &mut Vec<Fault>) {
    let below = |own: Place| if place == Place::Combination { place } else { own };
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let field = at(path, &format!("properties[{name}]"));
        look(inner, &field, below(Place::Field), depth, faults);
    }
    match schema.get("items") {
        None => {}
        Some(Value::Array(_)) => {
            let why = "items must be a schema object and not an array";
            faults.push(Fault::forbidden(at(path, "items"), why));
        }
        Some(items) => look(items, &at(path, "items"), below(Place::Item), depth, faults),
    }
    if let Some(additional) = schema.get("additionalProperties").filter(|one| one.is_object()) {
        let field = at(path, "additionalProperties");
        look(additional, &field, below(Place::Field), depth, faults);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let inner = schema.get(name).and_then(Value::as_array).into_iter().flatten();
        for (index, inner) in inner.enumerate() {
            let field = at(path, &format!("{name}[{index}]"));
            look(inner, &field, Place::Combination, depth, faults);
        }
    }
    if let Some(not) = schema.get("not") {
        look(not, &at(path, "not"), Place::Combination, depth, faults);
    }
}

fn at(path: &str, name: &str) -> String {
    format!("{path}.{name}")
}
