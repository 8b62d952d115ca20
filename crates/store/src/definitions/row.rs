//! The rows of a definition.

use std::cmp::Reverse;

use schema::structural::{Schema, message};
use serde_json::Value;

use super::{Custom, Path, Scale, keep};
use crate::conversion::Converter;
use crate::names::NameRule;
use crate::resource::{Resource, Subresource};
use crate::table::{Cell, Column};

/// The rows of all versions, the preferred version first.
pub(super) fn rows(name: &'static str, source: &'static Value) -> Vec<&'static Resource> {
    let versions = source.pointer("/spec/versions").and_then(Value::as_array);
    let mut versions: Vec<&'static Value> = versions.into_iter().flatten().collect();
    versions.sort_by_key(|version| Reverse(rank(text(version, "/name"))));
    let converter = source.get("spec").and_then(Converter::read);
    let converter: Option<&'static Converter> = converter.map(keep);
    versions.into_iter().map(|version| row(name, source, version, converter)).collect()
}

/// The order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then all others by name
/// (kubernetes.io, "Version priority").
pub(crate) fn rank(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let other = || (0, 0, 0, Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other() };
    let end = rest.find(|one: char| !one.is_ascii_digit()).unwrap_or(rest.len());
    let (major, stage) = rest.split_at(end);
    let Ok(major) = major.parse() else { return other() };
    let (level, minor) = match stage.get(..4) {
        _ if stage.is_empty() => return (3, major, 0, Reverse(String::new())),
        Some("beta") => (2, stage.strip_prefix("beta")),
        _ => (1, stage.strip_prefix("alpha")),
    };
    match minor.and_then(|minor| minor.parse().ok()) {
        Some(minor) => (level, major, minor, Reverse(String::new())),
        None => other(),
    }
}

fn row(
    name: &'static str,
    source: &'static Value,
    version: &'static Value,
    converter: Option<&'static Converter>,
) -> &'static Resource {
    let kind = text(source, "/names/kind");
    let custom = Custom { converter, ..custom(source, version) };
    keep(Resource {
        group: text(source, "/spec/group"),
        version: text(version, "/name"),
        kind,
        plural: text(source, "/names/plural"),
        singular: text(source, "/names/singular"),
        short_names: texts(source, "/names/shortNames"),
        categories: texts(source, "/names/categories"),
        namespaced: text(source, "/spec/scope") == "Namespaced",
        subresources: subresources(version),
        storage: name,
        columns: keep(columns(version)),
        selectable_fields: keep(selectable_fields(version)),
        name_rule: NameRule::Subdomain,
        has_generation: true,
        unconditional_update: false,
        notice: notice(source, version),
        custom: Some(keep(custom)),
        ..Resource::BASE
    })
}

fn custom(source: &'static Value, version: &'static Value) -> Custom {
    let tree = version.pointer("/schema/openAPIV3Schema").unwrap_or(&Value::Null);
    let pointer = |field: &str| {
        let path = version.pointer(&format!("/subresources/scale/{field}"))?.as_str()?;
        Path::parse(path)?.pointer()
    };
    let scale = pointer("specReplicasPath").zip(pointer("statusReplicasPath"));
    Custom {
        message: message(text(source, "/names/kind"), tree),
        schema: Schema::compile(tree),
        tree,
        served: flag(version, "/served"),
        storage: flag(version, "/storage"),
        list_kind: text(source, "/names/listKind"),
        scale: scale.map(|(spec_replicas, status_replicas)| Scale {
            spec_replicas,
            status_replicas,
            selector: pointer("labelSelectorPath"),
        }),
        converter: None,
    }
}

fn subresources(version: &Value) -> &'static [Subresource] {
    let has = |name: &str| version.pointer(&format!("/subresources/{name}")).is_some();
    match (has("status"), has("scale")) {
        (true, true) => &[Subresource::Status, Subresource::Scale],
        (true, false) => &[Subresource::Status],
        (false, true) => &[Subresource::Scale],
        (false, false) => &[],
    }
}

/// The name, then the columns that the version has; without any, the age.
fn columns(version: &'static Value) -> Vec<Column> {
    let given = version.pointer("/additionalPrinterColumns").and_then(Value::as_array);
    let given: Vec<Column> = given.into_iter().flatten().filter_map(column).collect();
    let mut columns = vec![Column::NAME];
    if given.is_empty() {
        columns.push(Column::AGE);
    }
    columns.extend(given);
    columns
}

fn column(given: &'static Value) -> Option<Column> {
    let priority = given.get("priority").and_then(Value::as_i64).unwrap_or(0);
    Some(Column {
        name: text(given, "/name"),
        kind: text(given, "/type"),
        format: text(given, "/format"),
        priority: u8::try_from(priority).unwrap_or(u8::MAX),
        description: text(given, "/description"),
        cell: Cell::Path(keep(Path::parse(text(given, "/jsonPath"))?)),
    })
}

fn selectable_fields(version: &'static Value) -> Vec<&'static str> {
    let fields = version.pointer("/selectableFields").and_then(Value::as_array);
    let paths = fields.into_iter().flatten().map(|field| text(field, "/jsonPath"));
    paths
        .filter_map(|path| Path::parse(path)?.pointer())
        .map(|pointer| keep(pointer).as_str())
        .collect()
}

/// What clients of a deprecated version are told.
fn notice(source: &'static Value, version: &'static Value) -> Option<&'static str> {
    if !flag(version, "/deprecated") {
        return None;
    }
    let own = text(version, "/deprecationWarning");
    if !own.is_empty() {
        return Some(own);
    }
    let (group, name) = (text(source, "/spec/group"), text(version, "/name"));
    let kind = text(source, "/names/kind");
    Some(keep(format!("{group}/{name} {kind} is deprecated")).as_str())
}

fn text(tree: &'static Value, pointer: &str) -> &'static str {
    tree.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn texts(tree: &'static Value, pointer: &str) -> &'static [&'static str] {
    let items = tree.pointer(pointer).and_then(Value::as_array);
    keep(items.into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>())
}

fn flag(tree: &Value, pointer: &str) -> bool {
    tree.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_the_order_of_their_maturity() {
        let expected = [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "foo1",
            "foo10",
        ];
        let mut versions = expected;
        versions.reverse();
        versions.sort_by_key(|version| Reverse(rank(version)));
        assert_eq!(versions, expected);
    }
}
