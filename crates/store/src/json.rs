//! Reading and writing JSON trees by JSON pointer (RFC 6901), without panics on any shape.

use serde_json::{Map, Value};

/// The value at a pointer; `null` reads as absent, as the API server reads it.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    value.pointer(pointer).filter(|value| !value.is_null())
}

/// The text at a pointer; empty when it is absent or not text.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The whole number at a pointer.
pub fn integer(value: &Value, pointer: &str) -> Option<i64> {
    at(value, pointer).and_then(Value::as_i64)
}

/// Whether the value at a pointer is `true`.
pub fn flag(value: &Value, pointer: &str) -> bool {
    at(value, pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of the list at a pointer; none when it is absent or no list.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The items of the list at a pointer, to be changed in place.
pub fn items_mut<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The texts of the list at a pointer.
pub fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// The members of the object at a pointer.
pub fn members<'a>(
    value: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    let map = at(value, pointer).and_then(Value::as_object);
    map.into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// The object at a pointer, made (with its parents) where there is none.
/// `None` when something that is no object stands in the way.
pub fn object_mut<'a>(value: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    let mut here = value;
    for token in tokens(pointer) {
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        here = here.as_object_mut()?.entry(token).or_insert(Value::Null);
    }
    if here.is_null() {
        *here = Value::Object(Map::new());
    }
    here.as_object_mut()
}

/// Writes the value at a pointer, making the objects on the way.
/// Does nothing when something that is no object stands in the way.
pub fn set(value: &mut Value, pointer: &str, new: impl Into<Value>) {
    let (parent, name) = split(pointer);
    if let Some(map) = object_mut(value, parent) {
        map.insert(unescape(name), new.into());
    }
}

/// Writes the value at a pointer where there is none (or `null`).
pub fn set_default(value: &mut Value, pointer: &str, new: impl Into<Value>) {
    if at(value, pointer).is_none() {
        set(value, pointer, new);
    }
}

/// As [`set_default`], but an empty text counts as absent: the API's optional texts have no
/// empty value.
pub fn set_default_text(value: &mut Value, pointer: &str, new: &str) {
    match at(value, pointer) {
        None => set(value, pointer, new),
        Some(Value::String(text)) if text.is_empty() => set(value, pointer, new),
        Some(_) => {}
    }
}

/// Removes the value at a pointer of object members and gives it back.
pub fn remove(value: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, name) = split(pointer);
    value.pointer_mut(parent)?.as_object_mut()?.remove(&unescape(name))
}

/// Copies the value at a pointer from another tree, or removes it where the other has none.
pub fn copy(value: &mut Value, from: &Value, pointer: &str) {
    match at(from, pointer) {
        Some(found) => set(value, pointer, found.clone()),
        None => {
            remove(value, pointer);
        }
    }
}

/// Removes every `null` member: clients send nulls for absent values.
pub fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, member| !member.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// How deep a tree is and how many bytes its text has at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// Levels of objects and lists.
    pub depth: usize,
    /// Bytes of names, texts and brackets.
    pub bytes: usize,
}

/// Measures a tree. It looks no deeper than `depth_limit`, so that a tree that is too deep does no
/// harm here either.
pub fn measure(value: &Value, depth_limit: usize) -> Measure {
    let nested = |value: &Value| match depth_limit {
        0 => Measure { depth: 1, bytes: 0 },
        limit => measure(value, limit - 1),
    };
    let mut total = Measure { depth: 1, bytes: 2 };
    let mut add = |name_bytes: usize, inner: Measure| {
        total.depth = total.depth.max(inner.depth + 1);
        total.bytes += name_bytes + inner.bytes;
    };
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| add(name.len() + 4, nested(value)))
        }
        Value::Array(items) => items.iter().for_each(|value| add(1, nested(value))),
        Value::String(text) => return Measure { depth: 0, bytes: text.len() + 2 },
        _ => return Measure { depth: 0, bytes: 4 },
    }
    total
}

/// The unescaped tokens of a pointer.
pub fn tokens(pointer: &str) -> impl Iterator<Item = String> + '_ {
    pointer.split('/').skip(1).map(unescape)
}

fn split(pointer: &str) -> (&str, &str) {
    pointer.rsplit_once('/').unwrap_or(("", pointer))
}

fn unescape(token: &str) -> String {
    if token.contains('~') { token.replace("~1", "/").replace("~0", "~") } else { token.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_read_as_absent_and_are_replaced() {
        let mut value = json!({"spec": null, "metadata": {"name": "a", "labels": null}});
        assert_eq!(at(&value, "/spec"), None);
        set(&mut value, "/spec/replicas", 1);
        assert_eq!(value["spec"], json!({"replicas": 1}));
        strip_nulls(&mut value);
        assert_eq!(value["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn depth_counts_levels_and_stops_at_the_limit() {
        assert_eq!(measure(&json!("text"), 9), Measure { depth: 0, bytes: 6 });
        assert_eq!(measure(&json!({}), 9).depth, 1);
        assert_eq!(measure(&json!({"a": [{"b": 1}]}), 9).depth, 3);
        let deep = (0..50).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(measure(&deep, 100).depth, 50);
        assert!(measure(&deep, 10).depth > 10);
    }

    #[test]
    fn what_stands_in_the_way_is_left_alone() {
        let mut value = json!({"spec": "text"});
        set(&mut value, "/spec/replicas", 1);
        assert_eq!(value, json!({"spec": "text"}));
        assert_eq!(remove(&mut value, "/spec/replicas"), None);
    }
}
