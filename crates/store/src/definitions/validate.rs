//! Whether a definition may be stored.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Path, approval, is_established};
use crate::json;
use crate::kinds::webhook::validate_client;
use crate::names::{rfc1035_label_faults, subdomain_faults};
use crate::validate::{FieldErrors, immutable, one_of};

/// Fields of one version by which clients may select, as in the real server.
const MAX_SELECTABLE_FIELDS: usize = 8;

/// Checks a definition, and its change when the old one is given.
pub(crate) fn validate(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let group = json::text(value, "/spec/group");
    let plural = json::text(value, "/spec/names/plural");
    let name = json::text(value, "/metadata/name");
    if name != format!("{plural}.{group}") {
        errors.invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
    }
    validate_group(group, errors);
    approval::validate(value, old, errors);
    match json::text(value, "/spec/scope") {
        "" => errors.required("spec.scope", ""),
        _ => {
            let scope = json::at(value, "/spec/scope");
            one_of(errors, "spec.scope", scope, &["Cluster", "Namespaced"]);
        }
    }
    if json::flag(value, "/spec/preserveUnknownFields") {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                   spec.versions[*].schema instead";
        errors.invalid("spec.preserveUnknownFields", true, why);
    }
    validate_names(value, errors);
    validate_conversion(value, errors);
    validate_versions(value, old, errors);
    validate_stored_versions(value, errors);
    if let Some(old) = old.filter(|old| is_established(old)) {
        for field in ["group", "scope", "names.plural", "names.kind"] {
            let pointer = format!("/spec/{}", field.replace('.', "/"));
            let (new, old) = (json::at(value, &pointer), json::at(old, &pointer));
            immutable(errors, format!("spec.{field}"), new, old);
        }
    }
}

fn validate_group(group: &str, errors: &mut FieldErrors) {
    if group.is_empty() {
        return errors.required("spec.group", "");
    }
    for fault in subdomain_faults(group) {
        errors.invalid("spec.group", group, &fault);
    }
    if !group.contains('.') {
        errors.invalid("spec.group", group, "should be a domain with at least one dot");
    }
}

fn validate_names(value: &Value, errors: &mut FieldErrors) {
    let text = |name: &str| json::text(value, &format!("/spec/names/{name}")).to_owned();
    for name in ["plural", "singular", "kind", "listKind"] {
        let (field, given) = (format!("spec.names.{name}"), text(name));
        if given.is_empty() {
            errors.required(field, "");
            continue;
        }
        let is_kind = name.to_lowercase().ends_with("kind");
        let label = if is_kind { given.to_lowercase() } else { given.clone() };
        for mut fault in rfc1035_label_faults(&label) {
            if is_kind {
                fault = format!("may have mixed case, but should otherwise match: {fault}");
            }
            errors.invalid(&*field, given.as_str(), &fault);
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let why = "kind and listKind may not be the same";
        errors.invalid("spec.names.listKind", text("listKind"), why);
    }
    for list in ["shortNames", "categories"] {
        for (index, name) in json::texts(value, &format!("/spec/names/{list}")).iter().enumerate() {
            for fault in rfc1035_label_faults(name) {
                errors.invalid(format!("spec.names.{list}[{index}]"), *name, &fault);
            }
        }
    }
}

/// Checks how versions are made of one another.
fn validate_conversion(value: &Value, errors: &mut FieldErrors) {
    let field = "spec.conversion.strategy";
    let webhook = json::at(value, "/spec/conversion/webhook");
    match json::text(value, "/spec/conversion/strategy") {
        "None" => {
            if webhook.is_some() {
                let why = "should not be set when strategy is not set to Webhook";
                errors.forbidden("spec.conversion.webhookClientConfig", why);
            }
        }
        "Webhook" => validate_conversion_webhook(webhook.unwrap_or(&Value::Null), errors),
        "" => errors.required(field, ""),
        other => errors.unsupported(field, other, &["None", "Webhook"]),
    }
}

fn validate_conversion_webhook(webhook: &Value, errors: &mut FieldErrors) {
    let config = "spec.conversion.webhookClientConfig";
    match webhook.get("clientConfig").filter(|config| config.is_object()) {
        None => errors.required(config, "required when strategy is set to Webhook"),
        Some(given) => validate_client(config, given, errors),
    }
    let versions = json::texts(webhook, "/conversionReviewVersions");
    let field = "spec.conversion.conversionReviewVersions";
    if versions.is_empty() {
        errors.required(field, "");
    } else if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        let why = "must include at least one of v1, v1beta1";
        errors.invalid(field, versions.join(","), why);
    }
}

fn validate_versions(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let versions = json::items(value, "/spec/versions");
    let field = "spec.versions";
    let mut names = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let name = json::text(version, "/name");
        let place = format!("{field}[{index}]");
        for fault in rfc1035_label_faults(name) {
            errors.invalid(format!("{place}.name"), name, &fault);
        }
        if !names.insert(name) {
            errors.invalid(field, value_of(versions), "must contain unique version names");
        }
        let old = old.map(|old| json::items(old, "/spec/versions")).unwrap_or_default();
        let old = old.iter().find(|old| json::text(old, "/name") == name);
        validate_version(version, old, &place, errors);
    }
    let storage = versions.iter().filter(|version| json::flag(version, "/storage")).count();
    if storage != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.invalid(field, value_of(versions), why);
    }
}

/// Names of versions, for errors: whole versions would bury what is wrong.
fn value_of(versions: &[Value]) -> Value {
    versions.iter().map(|version| json::text(version, "/name")).collect::<Vec<_>>().into()
}

/// Checks a version. A schema that stays as it was is not judged again: what is refused today may
/// have been let in before.
fn validate_version(version: &Value, old: Option<&Value>, place: &str, errors: &mut FieldErrors) {
    let schema_field = format!("{place}.schema.openAPIV3Schema");
    match json::at(version, "/schema/openAPIV3Schema") {
        None => errors.required(&*schema_field, "schemas are required"),
        same if old.is_some_and(|old| json::at(old, "/schema/openAPIV3Schema") == same) => {}
        Some(schema) => {
            for fault in schema::structural::check(schema, &schema_field) {
                errors.add(fault);
            }
        }
    }
    for (index, column) in json::items(version, "/additionalPrinterColumns").iter().enumerate() {
        let field = format!("{place}.additionalPrinterColumns[{index}]");
        if json::text(column, "/name").is_empty() {
            errors.required(format!("{field}.name"), "");
        }
        let types = ["boolean", "date", "integer", "number", "string"];
        match json::text(column, "/type") {
            "" => errors
                .required(format!("{field}.type"), &format!("must be one of {}", types.join(","))),
            _ => one_of(errors, format!("{field}.type"), column.get("type"), &types),
        }
        validate_path(column, &format!("{field}.jsonPath"), "", errors);
    }
    validate_selectable_fields(version, &format!("{place}.selectableFields"), errors);
    let Some(scale) = json::at(version, "/subresources/scale") else { return };
    let scale_field = format!("{place}.subresources.scale");
    for (name, root) in [
        ("specReplicasPath", ".spec."),
        ("statusReplicasPath", ".status."),
        ("labelSelectorPath", "."),
    ] {
        if name != "labelSelectorPath" || !json::text(scale, "/labelSelectorPath").is_empty() {
            validate_pointer(scale, &format!("{scale_field}.{name}"), name, root, errors);
        }
    }
}

/// Fields by which clients may select: scalars that the schema has, each once.
fn validate_selectable_fields(version: &Value, place: &str, errors: &mut FieldErrors) {
    let mut known = BTreeSet::new();
    for (index, selectable) in json::items(version, "/selectableFields").iter().enumerate() {
        let place = format!("{place}[{index}]");
        let path = json::text(selectable, "/jsonPath");
        if path.is_empty() {
            errors.required(format!("{place}.jsonPath"), "");
            continue;
        }
        let pointer = Path::parse(path).and_then(|path| path.pointer());
        let Some(pointer) = pointer.filter(|_| path.starts_with('.')) else {
            let why = "is an invalid path: must be a json path without array notation";
            errors.invalid(format!("{place}.jsonPath"), path, why);
            continue;
        };
        if pointer == "/metadata" || pointer.starts_with("/metadata/") {
            errors.invalid(&*place, path, "must not point to fields in metadata");
        } else {
            match schema_at(version, &pointer).map(|schema| json::text(schema, "/type")) {
                Some("string" | "boolean" | "integer") => {}
                Some(_) => {
                    let why = "must point to a field of type string, boolean or integer. Enum \
                               string fields and strings with formats are allowed.";
                    errors.invalid(&*place, path, why);
                }
                None => {
                    let why = "is an invalid path: does not refer to a valid field";
                    errors.invalid(format!("{place}.jsonPath"), path, why);
                }
            }
        }
        if !known.insert(pointer) {
            errors.duplicate(&*place, path);
        }
    }
    if known.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(place, known.len(), MAX_SELECTABLE_FIELDS);
    }
}

/// The schema of the place that a JSON pointer leads to.
fn schema_at<'a>(version: &'a Value, pointer: &str) -> Option<&'a Value> {
    let root = json::at(version, "/schema/openAPIV3Schema")?;
    pointer.split('/').skip(1).try_fold(root, |schema, token| {
        let name = token.replace("~1", "/").replace("~0", "~");
        let property = schema.get("properties").and_then(|all| all.get(&name));
        property.or_else(|| schema.get("additionalProperties").filter(|inner| inner.is_object()))
    })
}

fn validate_path(holder: &Value, field: &str, root: &str, errors: &mut FieldErrors) {
    let path = json::text(holder, "/jsonPath");
    if path.is_empty() {
        errors.required(field, "");
    } else if Path::parse(path).is_none() || !path.starts_with(root) {
        let why = "is no JSONPath that flatnet knows: members, indexes, [*] and [?(@.a==\"b\")]";
        errors.invalid(field, path, why);
    }
}

/// Checks a path that must name one place.
fn validate_pointer(holder: &Value, field: &str, name: &str, root: &str, errors: &mut FieldErrors) {
    let path = json::text(holder, &format!("/{name}"));
    if path.is_empty() {
        return errors.required(field, "");
    }
    let pointer = Path::parse(path).and_then(|path| path.pointer());
    if pointer.is_none() || !path.starts_with(root) {
        let why = match root.trim_end_matches('.') {
            "" => "must be a json path without array notation".to_owned(),
            root => format!("should be a json path under {root}"),
        };
        errors.invalid(field, path, &why);
    }
}

fn validate_stored_versions(value: &Value, errors: &mut FieldErrors) {
    let versions = json::items(value, "/spec/versions");
    for (index, stored) in json::texts(value, "/status/storedVersions").iter().enumerate() {
        if !versions.iter().any(|version| json::text(version, "/name") == *stored) {
            let why = format!(
                "missing from spec.versions; {stored} was previously a storage version, and must \
                 remain in spec.versions until a storage migration ensures no data remains \
                 persisted in {stored} and removes {stored} from status.storedVersions"
            );
            errors.invalid(format!("status.storedVersions[{index}]"), *stored, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_stays_as_it_was_is_not_judged_again() {
        let version = |rule: &str| {
            let list = json!({
                "type": "array", "items": {"type": "string"},
                "x-kubernetes-validations": [{"rule": rule}],
            });
            let schema = json!({"type": "object", "properties": {"l": list}});
            json!({"name": "v1", "schema": {"openAPIV3Schema": schema}})
        };
        let slow = version("self.all(a, self.all(b, a == b))");
        let told = |new: &Value, old: Option<&Value>| {
            let mut errors = FieldErrors::default();
            validate_version(new, old, "v", &mut errors);
            errors.summary()
        };
        assert!(told(&slow, None).contains("estimated rule cost exceeds budget"));
        assert!(told(&slow, Some(&version("true"))).contains("estimated rule cost exceeds budget"));
        assert_eq!(told(&slow, Some(&slow)), "[]");
    }
}
