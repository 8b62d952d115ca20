//! How large the values of a schema can be, for the estimate of what rules cost (`SchemaDeclType` of
//! the real server): by the limits of the schema, and without them by what fits into one request.

use serde_json::Value;

use super::{flag, text, texts};
use crate::cel::{Extent, MAX_REQUEST_BYTES};

/// Bytes of a character at most.
const MAX_CHARACTER_BYTES: u64 = 4;
/// A text without a limit fills a request but for its quotes.
const LONGEST: u64 = MAX_REQUEST_BYTES - 2;

/// The extent of a schema, from those of its properties, and of its items or further members.
pub(super) fn extent_of(
    tree: &Value,
    is_root: bool,
    properties: Vec<(&str, Extent)>,
    inner: Option<Extent>,
) -> Extent {
    if flag(tree, "x-kubernetes-int-or-string") {
        return Extent::scalar(LONGEST, 1);
    }
    let limit = |name: &str| tree.get(name).and_then(Value::as_u64);
    match text(tree, "type") {
        "array" => Extent::list(limit("maxItems"), inner.unwrap_or_default()),
        "object" => match inner {
            Some(value) => Extent::map(limit("maxProperties"), value),
            None => object(tree, is_root, properties),
        },
        "boolean" => Extent::scalar(0, 4),
        "integer" | "number" => Extent::scalar(0, 1),
        "string" => string(tree, limit("maxLength")),
        _ => Extent::default(),
    }
}

fn object(tree: &Value, is_root: bool, mut properties: Vec<(&str, Extent)>) -> Extent {
    let required = texts(tree, "required");
    let has_default =
        |name: &str| tree.get("properties").and_then(|all| all.get(name)?.get("default")).is_some();
    if is_root || flag(tree, "x-kubernetes-embedded-resource") {
        let any = || Extent::scalar(LONGEST, 2);
        let metadata = Extent::object([("name", any()), ("generateName", any())], |_| false);
        properties.extend([("apiVersion", any()), ("kind", any()), ("metadata", metadata)]);
    }
    let must_have =
        |name: &str| required.iter().any(|required| required == name) && !has_default(name);
    Extent::object(properties, must_have)
}

fn string(tree: &Value, limit: Option<u64>) -> Extent {
    // With their quotes in JSON, the longest and the shortest.
    let (longest, shortest) = match text(tree, "format") {
        "byte" => return Extent::scalar(limit.unwrap_or(LONGEST), 2),
        "duration" => (32, 4),
        "date" => (12, 12),
        "date-time" => (37, 22),
        _ => {
            let choices = tree.get("enum").and_then(Value::as_array).into_iter().flatten();
            let choices = choices.filter_map(Value::as_str).map(|text| text.len() as u64);
            let limit = limit.map(|limit| limit.saturating_mul(MAX_CHARACTER_BYTES));
            return Extent::scalar(limit.or(choices.max()).unwrap_or(LONGEST), 2);
        }
    };
    Extent::scalar(limit.unwrap_or(longest), shortest)
}
