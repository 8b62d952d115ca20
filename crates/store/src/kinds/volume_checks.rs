//! Checks of what a pod's volumes are made of.

use serde_json::Value;

use super::container_checks::{descending_path, no_steps_back};
use super::limits::quantity;
use crate::json;
use crate::validate::{FieldErrors, one_of};

/// Types of hostPath volumes; the empty one checks nothing.
const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// Checks the source of one volume.
pub(super) fn validate(field: &str, volume: &Value, errors: &mut FieldErrors) {
    let members = json::members(volume, "").map(|(name, _)| name);
    let mut sources: Vec<&str> = members.filter(|name| *name != "name").collect();
    sources.sort_unstable();
    for further in sources.iter().skip(1) {
        let why = "may not specify more than 1 volume type";
        errors.forbidden(format!("{field}.{further}"), why);
    }
    for (source, member) in [("configMap", "name"), ("secret", "secretName")] {
        if let Some(given) = volume.get(source) {
            let field = format!("{field}.{source}");
            if json::text(given, &format!("/{member}")).is_empty() {
                errors.required(format!("{field}.{member}"), "");
            }
            validate_mode(&field, given, "defaultMode", errors);
            validate_items(&field, given, errors);
        }
    }
    if let Some(path) = volume.get("hostPath") {
        validate_host_path(&format!("{field}.hostPath"), path, errors);
    }
    let limit = json::at(volume, "/emptyDir/sizeLimit").and_then(quantity);
    if limit.is_some_and(|limit| limit.is_negative()) {
        let why = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(format!("{field}.emptyDir.sizeLimit"), why);
    }
    if let Some(projected) = volume.get("projected") {
        let field = format!("{field}.projected");
        validate_mode(&field, projected, "defaultMode", errors);
        for (index, source) in json::items(projected, "/sources").iter().enumerate() {
            validate_projection(&format!("{field}.sources[{index}]"), source, errors);
        }
    }
}

fn validate_projection(field: &str, source: &Value, errors: &mut FieldErrors) {
    for name in ["configMap", "secret"] {
        if let Some(given) = source.get(name) {
            if json::text(given, "/name").is_empty() {
                errors.required(format!("{field}.{name}.name"), "");
            }
            validate_items(&format!("{field}.{name}"), given, errors);
        }
    }
    if let Some(token) = source.get("serviceAccountToken") {
        let field = format!("{field}.serviceAccountToken");
        if json::text(token, "/path").is_empty() {
            errors.required(format!("{field}.path"), "");
        }
        let seconds = json::integer(token, "/expirationSeconds").unwrap_or(i64::MAX);
        if seconds < 600 {
            let why = "may not specify a duration less than 10 minutes";
            errors.invalid(format!("{field}.expirationSeconds"), seconds, why);
        }
    }
}

/// Keys that become files.
fn validate_items(field: &str, source: &Value, errors: &mut FieldErrors) {
    for (index, item) in json::items(source, "/items").iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        if json::text(item, "/key").is_empty() {
            errors.required(format!("{field}.key"), "");
        }
        match json::text(item, "/path") {
            "" => errors.required(format!("{field}.path"), ""),
            path => descending_path(&format!("{field}.path"), path, errors),
        }
        validate_mode(&field, item, "mode", errors);
    }
}

fn validate_mode(field: &str, source: &Value, name: &str, errors: &mut FieldErrors) {
    if let Some(mode) = json::integer(source, &format!("/{name}"))
        && !(0..=0o777).contains(&mode)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid(format!("{field}.{name}"), mode, why);
    }
}

fn validate_host_path(field: &str, source: &Value, errors: &mut FieldErrors) {
    match json::text(source, "/path") {
        "" => errors.required(format!("{field}.path"), ""),
        path => no_steps_back(&format!("{field}.path"), path, errors),
    }
    one_of(errors, format!("{field}.type"), source.get("type"), &HOST_PATH_TYPES);
}
