//! OpenAPI 2 as the protobuf messages of gnostic (`OpenAPIv2.proto`), which is the form that Go
//! clients ask for. Names beginning with `x-` travel as YAML, for which JSON will do.
//!
//! A whole document is never one tree: [`definition`] and [`path`] make one entry each, and
//! [`document`] puts them together.

use serde_json::{Map, Value};

use crate::protobuf::{write_bytes, write_varint_field};

/// A whole document of entries that [`path`] and [`definition`] made.
pub fn document(title: &str, paths: &[u8], definitions: &[u8]) -> Vec<u8> {
    let mut info = Vec::new();
    write_bytes(&mut info, 1, title.as_bytes());
    write_bytes(&mut info, 2, b"v1");
    let mut out = Vec::with_capacity(paths.len() + definitions.len() + 64);
    write_bytes(&mut out, 1, b"2.0");
    write_bytes(&mut out, 2, &info);
    write_bytes(&mut out, 8, paths);
    write_bytes(&mut out, 9, definitions);
    out
}

/// Appends a definition by its name and schema.
pub fn definition(out: &mut Vec<u8>, name: &str, schema: &Value) {
    write_bytes(out, 1, &named(name, &of_schema(schema)));
}

/// Appends a path with its operations.
pub fn path(out: &mut Vec<u8>, name: &str, item: &Value) {
    const METHODS: &[(&str, u32)] =
        &[("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)];
    let mut inner = Vec::new();
    for (method, number) in METHODS {
        if let Some(operation) = item.get(method).and_then(Value::as_object) {
            write_bytes(&mut inner, *number, &of_operation(operation));
        }
    }
    write_bytes(out, 2, &named(name, &inner));
}

/// An entry of a map: name and value.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_bytes(&mut out, 1, name.as_bytes());
    write_bytes(&mut out, 2, value);
    out
}

/// Any value, as YAML.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_bytes(&mut out, 2, value.to_string().as_bytes());
    out
}

fn write_extensions(out: &mut Vec<u8>, number: u32, members: &Map<String, Value>) {
    for (name, value) in members.iter().filter(|(name, _)| name.starts_with("x-")) {
        write_bytes(out, number, &named(name, &any(value)));
    }
}

fn of_schema(schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(members) = schema.as_object() else { return out };
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    for (name, number) in [("$ref", 1), ("format", 2), ("title", 3), ("description", 4)] {
        if let Some(text) = text(name) {
            write_bytes(&mut out, number, text.as_bytes());
        }
    }
    let required = members.get("required").and_then(Value::as_array).into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        write_bytes(&mut out, 19, name.as_bytes());
    }
    for choice in members.get("enum").and_then(Value::as_array).into_iter().flatten() {
        write_bytes(&mut out, 20, &any(choice));
    }
    if let Some(additional) = members.get("additionalProperties").filter(|one| one.is_object()) {
        write_bytes(&mut out, 21, &field(1, &of_schema(additional)));
    }
    if let Some(kind) = text("type") {
        write_bytes(&mut out, 22, &field(1, kind.as_bytes()));
    }
    if let Some(items) = members.get("items") {
        write_bytes(&mut out, 23, &field(1, &of_schema(items)));
    }
    if let Some(properties) = members.get("properties").and_then(Value::as_object) {
        let mut inner = Vec::new();
        properties.iter().for_each(|(name, schema)| definition(&mut inner, name, schema));
        write_bytes(&mut out, 25, &inner);
    }
    write_extensions(&mut out, 31, members);
    out
}

fn of_operation(operation: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::new();
    for parameter in operation.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| parameter.get(name).and_then(Value::as_str).unwrap_or_default();
        let mut query = Vec::new();
        for (name, number) in [("in", 2), ("name", 4), ("type", 6)] {
            write_bytes(&mut query, number, text(name).as_bytes());
        }
        if parameter.get("uniqueItems").and_then(Value::as_bool) == Some(true) {
            write_varint_field(&mut query, 20, 1);
        }
        // An item, of its own, not in the body, of the query.
        write_bytes(&mut out, 8, &field(1, &field(2, &field(3, &query))));
    }
    write_extensions(&mut out, 13, operation);
    out
}

/// One field of bytes.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_bytes(&mut out, number, bytes);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field with its number and length, for short ones.
    fn part(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut key = vec![number << 3 | 2];
        if number > 15 {
            key = vec![(number << 3 | 2) & 0x7f | 0x80, number >> 4];
        }
        let length = u8::try_from(bytes.len()).expect("a short field");
        [&key[..], &[length], bytes].concat()
    }

    #[test]
    fn a_definition_is_written_as_gnostic_reads_it() {
        let mut out = Vec::new();
        let schema = json!({
            "type": "object", "description": "d", "required": ["a"],
            "properties": {"a": {"$ref": "#/definitions/b"}, "c": {"type": "array", "items": {}}},
            "additionalProperties": {},
            "x-y": [1],
        });
        definition(&mut out, "k", &schema);
        let array = [part(22, &part(1, b"array")), part(23, &part(1, b""))].concat();
        let a = [part(1, b"a"), part(2, &part(1, b"#/definitions/b"))].concat();
        let c = [part(1, b"c"), part(2, &array)].concat();
        let extension = [part(1, b"x-y"), part(2, &part(2, b"[1]"))].concat();
        let expected = [
            part(4, b"d"),
            part(19, b"a"),
            part(21, &part(1, b"")),
            part(22, &part(1, b"object")),
            part(25, &[part(1, &a), part(1, &c)].concat()),
            part(31, &extension),
        ];
        let expected = part(1, &[part(1, b"k"), part(2, &expected.concat())].concat());
        assert_eq!(out, expected);
    }

    #[test]
    fn an_operation_has_its_parameters_and_its_kind() {
        let mut out = Vec::new();
        let parameter = json!({"name": "dryRun", "in": "query", "type": "string"});
        path(&mut out, "/p", &json!({"patch": {"parameters": [parameter], "x-k": "v"}}));
        let query = [part(2, b"query"), part(4, b"dryRun"), part(6, b"string")].concat();
        let extension = [part(1, b"x-k"), part(2, &part(2, b"\"v\""))].concat();
        let operation =
            [part(8, &part(1, &part(2, &part(3, &query)))), part(13, &extension)].concat();
        let item = [part(1, b"/p"), part(2, &part(8, &operation))].concat();
        assert_eq!(out, part(2, &item));
    }
}
