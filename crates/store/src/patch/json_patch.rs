//! JSON patch, RFC 6902.

use serde_json::Value;

use super::{MAX_JSON_PATCH_COPIED_BYTES, MAX_JSON_PATCH_OPERATIONS};
use crate::json::tokens;
use crate::{MAX_OBJECT_DEPTH, Status, json};

/// Applies a list of operations, all or none.
pub(super) fn apply(old: &Value, patch: &Value) -> Result<Value, Status> {
    let Some(operations) = patch.as_array() else {
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type \
             jsonpatch.Patch",
            schema::decode::go_kind(patch)
        )));
    };
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::failure(
            413,
            "RequestEntityTooLarge",
            format!(
                "Request entity is too large: The allowed maximum operations in a JSON patch is \
                 {MAX_JSON_PATCH_OPERATIONS}, got {}",
                operations.len()
            ),
        ));
    }
    let mut patched = old.clone();
    let mut copied_bytes = 0;
    for operation in operations {
        // The real server keeps the reason to itself.
        step(&mut patched, operation, &mut copied_bytes).ok_or_else(Status::patch_rejected)?;
    }
    Ok(patched)
}

fn step(document: &mut Value, operation: &Value, copied_bytes: &mut usize) -> Option<()> {
    let path = operation.get("path")?.as_str()?;
    let from = || operation.get("from")?.as_str();
    match json::text(operation, "/op") {
        "add" => add(document, path, operation.get("value")?.clone()),
        "remove" => remove(document, path).map(drop),
        "replace" => {
            let target = document.pointer_mut(path)?;
            *target = operation.get("value")?.clone();
            Some(())
        }
        "move" => {
            let from = from()?;
            // A value cannot move into itself.
            if path.starts_with(&format!("{from}/")) {
                return None;
            }
            let value = remove(document, from)?;
            add(document, path, value)
        }
        "copy" => {
            let value = document.pointer(from()?)?;
            *copied_bytes += json::measure(value, MAX_OBJECT_DEPTH).bytes;
            if *copied_bytes > MAX_JSON_PATCH_COPIED_BYTES {
                return None;
            }
            let value = value.clone();
            add(document, path, value)
        }
        "test" => {
            // An absent value passes a test for null.
            let found = document.pointer(path).unwrap_or(&Value::Null);
            (found == operation.get("value").unwrap_or(&Value::Null)).then_some(())
        }
        _ => None,
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    let Some((parent, _)) = path.rsplit_once('/') else {
        *document = value;
        return path.is_empty().then_some(());
    };
    let name = tokens(path).last()?;
    match document.pointer_mut(parent)? {
        Value::Object(members) => {
            members.insert(name, value);
        }
        Value::Array(items) => {
            let index = if name == "-" { items.len() } else { index(&name)? };
            if index > items.len() {
                return None;
            }
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<Value> {
    let (parent, _) = path.rsplit_once('/')?;
    let name = tokens(path).last()?;
    match document.pointer_mut(parent)? {
        Value::Object(members) => members.remove(&name),
        Value::Array(items) => {
            let index = index(&name)?;
            (index < items.len()).then(|| items.remove(index))
        }
        _ => None,
    }
}

/// An array index without sign and leading zeros (RFC 6901).
fn index(name: &str) -> Option<usize> {
    let plain = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    if plain { name.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_apply_in_order_or_not_at_all() {
        let old = json!({"a": [1, 2], "b": {"c/d": "x"}});
        for (patch, expected) in [
            (json!([{"op": "add", "path": "/a/1", "value": 9}]), Some(json!([1, 9, 2]))),
            (json!([{"op": "add", "path": "/a/-", "value": 9}]), Some(json!([1, 2, 9]))),
            (json!([{"op": "remove", "path": "/a/0"}]), Some(json!([2]))),
            (json!([{"op": "copy", "from": "/b/c~1d", "path": "/a/0"}]), Some(json!(["x", 1, 2]))),
            (json!([{"op": "move", "from": "/a/0", "path": "/a/1"}]), Some(json!([2, 1]))),
            (json!([{"op": "test", "path": "/a/0", "value": 1}]), Some(json!([1, 2]))),
            (json!([{"op": "test", "path": "/a/0", "value": 7}]), None),
            (json!([{"op": "remove", "path": "/a/5"}]), None),
            (json!([{"op": "remove", "path": "/a/01"}]), None),
            (json!([{"op": "replace", "path": "/nope", "value": 1}]), None),
            (json!([{"op": "add", "path": "/no/parent", "value": 1}]), None),
            (json!([{"op": "move", "from": "/b", "path": "/b/x"}]), None),
            (json!([{"op": "frobnicate", "path": "/a"}]), None),
        ] {
            match (apply(&old, &patch), expected) {
                (Ok(patched), Some(expected)) => assert_eq!(patched["a"], expected, "{patch}"),
                (Err(status), None) => assert_eq!(status, Status::patch_rejected(), "{patch}"),
                (result, expected) => panic!("{patch}: {result:?}, expected {expected:?}"),
            }
        }
    }
}
