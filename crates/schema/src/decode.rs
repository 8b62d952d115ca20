//! Whether a tree has the form of a kind: types as the real server's decoder checks them, and
//! fields that the kind does not have (`fieldValidation`).

mod read;

use model::Timestamp;
use serde_json::{Map, Value};

pub use read::{MAX_FAULTS, Read, read};

use crate::{Message, Table, Type, table};

/// Levels that are looked into; what is deeper is refused elsewhere.
const MAX_DEPTH: usize = 128;

/// Checks the types of an object's known fields. Unknown fields are passed over.
///
/// # Errors
/// What Go's decoder says of the first wrong one.
pub fn check_types(message: &Message, value: &Value) -> Result<(), String> {
    let Some(members) = value.as_object() else {
        let found = go_kind(value);
        return Err(format!(
            "json: cannot unmarshal {found} into Go value of type {}",
            go_type_of(message)
        ));
    };
    Checker { table: table() }.members(message, members, "")
}

/// What the strict decoder says of fields that the kind does not have.
pub fn unknown_fields(message: &Message, value: &Value) -> Vec<String> {
    // A tree reads as itself.
    read(value, Some(message)).map(|read| read.faults).unwrap_or_default()
}

/// Removes the fields that the kind does not have: the real server does not store them.
pub fn prune_unknown(message: &Message, value: &mut Value) {
    if let Some(members) = value.as_object_mut() {
        prune(table(), message, members, MAX_DEPTH);
    }
}

/// What Go calls the type of a JSON value.
pub fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

struct Checker {
    table: &'static Table,
}

impl Checker {
    fn members(
        &self,
        message: &Message,
        members: &Map<String, Value>,
        path: &str,
    ) -> Result<(), String> {
        for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
            let kind = match message.field(name) {
                Some(field) => &field.kind,
                None if is_type_meta(message, name) => &Type::Text,
                None => continue,
            };
            let path = join(path, name);
            self.value(kind, value, message, &path)?;
        }
        Ok(())
    }

    fn value(
        &self,
        kind: &Type,
        value: &Value,
        parent: &Message,
        path: &str,
    ) -> Result<(), String> {
        let refuse = |found: &str, wanted: &str| {
            Err(format!(
                "json: cannot unmarshal {found} into Go struct field {}.{path} of type {wanted}",
                parent.go_name()
            ))
        };
        let number = |fits: bool, wanted: &str| match value {
            _ if fits => Ok(()),
            Value::Number(number) => refuse(&format!("number {number}"), wanted),
            other => refuse(go_kind(other), wanted),
        };
        let is_int32 = || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
        match kind {
            Type::Raw => Ok(()),
            Type::Bool if value.is_boolean() => Ok(()),
            Type::Text | Type::Bytes | Type::IntOrString | Type::Quantity if value.is_string() => {
                Ok(())
            }
            Type::Int32 | Type::IntOrString => number(is_int32(), "int32"),
            Type::Int64 => number(value.is_i64(), "int64"),
            Type::Double => number(value.is_number(), "float64"),
            Type::Quantity if value.is_number() => Ok(()),
            Type::Quantity => Err("quantities must match the regular expression \
                                   '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned()),
            Type::Time | Type::MicroTime if value.is_string() => check_time(value),
            Type::List(item) if value.is_array() => {
                // Go's names of fields have no indexes.
                let items = value.as_array().into_iter().flatten();
                items
                    .filter(|one| !one.is_null())
                    .try_for_each(|one| self.value(item, one, parent, path))
            }
            Type::Map(item) if value.is_object() => {
                let members = value.as_object().into_iter().flatten();
                members
                    .filter(|(_, one)| !one.is_null())
                    .try_for_each(|(_, one)| self.value(item, one, parent, path))
            }
            Type::Message(_) | Type::Own(_) => {
                match (self.table.message(kind), value.as_object()) {
                    (Some(message), Some(members)) => self.members(message, members, path),
                    _ => refuse(go_kind(value), &self.go_type(kind)),
                }
            }
            _ => refuse(go_kind(value), &self.go_type(kind)),
        }
    }

    fn go_type(&self, kind: &Type) -> String {
        match kind {
            Type::Text => "string".to_owned(),
            Type::Bool => "bool".to_owned(),
            Type::Int32 | Type::IntOrString => "int32".to_owned(),
            Type::Int64 => "int64".to_owned(),
            Type::Double => "float64".to_owned(),
            Type::Bytes => "[]uint8".to_owned(),
            Type::Quantity => "resource.Quantity".to_owned(),
            Type::Time | Type::MicroTime => "string".to_owned(),
            Type::Raw => "map[string]interface {}".to_owned(),
            Type::List(item) => format!("[]{}", self.go_type(item)),
            Type::Map(item) => format!("map[string]{}", self.go_type(item)),
            Type::Message(_) | Type::Own(_) => {
                self.table.message(kind).map(go_type_of).unwrap_or_default()
            }
        }
    }
}

/// A message's type in Go: its package has the name of its version.
fn go_type_of(message: &Message) -> String {
    let version = message.name.split('.').nth(1).unwrap_or_default();
    format!("{version}.{}", message.go_name())
}

/// RFC 3339; Go's complaint names its own reference time.
fn check_time(value: &Value) -> Result<(), String> {
    match value.as_str().and_then(Timestamp::parse) {
        Some(_) => Ok(()),
        None => Err(format!(
            "parsing time {value} as \"2006-01-02T15:04:05Z07:00\": cannot parse {value} as \
             \"2006\""
        )),
    }
}

fn is_type_meta(message: &Message, name: &str) -> bool {
    message.typed && matches!(name, "apiVersion" | "kind")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn prune(table: &Table, message: &Message, members: &mut Map<String, Value>, depth: usize) {
    if depth == 0 {
        return;
    }
    if !message.open {
        members.retain(|name, _| message.field(name).is_some() || is_type_meta(message, name));
    }
    for (name, value) in members.iter_mut() {
        if let Some(field) = message.field(name) {
            prune_in(table, &field.kind, value, depth - 1);
        }
    }
}

fn prune_in(table: &Table, kind: &Type, value: &mut Value, depth: usize) {
    match (kind, value) {
        (Type::Message(_) | Type::Own(_), Value::Object(members)) => {
            if let Some(message) = table.message(kind) {
                prune(table, message, members, depth);
            }
        }
        (Type::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|value| prune_in(table, item, value, depth));
        }
        (Type::Map(item), Value::Object(members)) => {
            members.values_mut().for_each(|value| prune_in(table, item, value, depth));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> &'static Message {
        table().kind("apps/v1", "Deployment").expect("a kind")
    }

    #[test]
    fn a_wrong_type_is_told_in_the_words_of_the_real_decoder() {
        let container =
            |container: Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let field = "json: cannot unmarshal";
        let cases = [
            (
                json!({"spec": {"replicas": "3"}}),
                format!(
                    "{field} string into Go struct field DeploymentSpec.spec.replicas of type int32"
                ),
            ),
            (
                json!({"spec": {"replicas": 3_000_000_000_i64}}),
                format!(
                    "{field} number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"
                ),
            ),
            (
                json!({"spec": []}),
                format!(
                    "{field} array into Go struct field Deployment.spec of type v1.DeploymentSpec"
                ),
            ),
            (
                container(json!({"ports": {}})),
                format!(
                    "{field} object into Go struct field Container.spec.template.spec.containers.ports of type []v1.ContainerPort"
                ),
            ),
            (
                container(json!({"name": 7})),
                format!(
                    "{field} number into Go struct field Container.spec.template.spec.containers.name of type string"
                ),
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                format!(
                    "{field} number into Go struct field ObjectMeta.metadata.labels of type string"
                ),
            ),
        ];
        for (object, expected) in cases {
            assert_eq!(check_types(deployment(), &object), Err(expected), "{object}");
        }
        let good = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": null, "strategy": {"rollingUpdate": {"maxSurge": "25%"}}}});
        assert_eq!(check_types(deployment(), &good), Ok(()));
    }

    fn faults(message: Option<&Message>, text: &str) -> Vec<String> {
        let mut reader = serde_json::Deserializer::from_str(text);
        read(&mut reader, message).expect("JSON").faults
    }

    #[test]
    fn faults_of_fields_are_told_in_the_order_of_the_text() {
        let text = r#"{
            "apiVersion": "apps/v1", "kind": "Deployment", "extra": 1,
            "spec": {
                "replicaz": 1, "replicas": 1, "replicas": 2,
                "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "imag": "c"}]}}
            },
            "metadata": {"labels": {"any": "key", "any": "more"}, "labelz": {}}
        }"#;
        let expected = [
            r#"unknown field "extra""#,
            r#"unknown field "spec.replicaz""#,
            r#"duplicate field "spec.replicas""#,
            r#"unknown field "spec.template.spec.containers[1].imag""#,
            r#"duplicate field "metadata.labels.any""#,
            r#"unknown field "metadata.labelz""#,
        ];
        assert_eq!(faults(Some(deployment()), text), expected);
        // A patch has no kind: only what stands twice is known to be wrong.
        assert_eq!(faults(None, text), [expected[2], expected[4]]);
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = read(&mut reader, None).expect("JSON").value;
        let plain: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(value, plain, "the last one counts, as everywhere");
    }

    #[test]
    fn faults_are_bounded() {
        let many: Vec<String> = (0..500).map(|number| format!("\"x{number}\": 1")).collect();
        let text = format!("{{{}}}", many.join(","));
        assert_eq!(faults(Some(deployment()), &text).len(), MAX_FAULTS);
    }

    #[test]
    fn numbers_stay_what_they_are() {
        for text in ["9007199254740993", "18446744073709551615", "-3", "1.5", "[null,true]"] {
            let mut reader = serde_json::Deserializer::from_str(text);
            let value = read(&mut reader, None).expect("JSON").value;
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn unknown_fields_are_pruned_at_every_level() {
        let mut object = json!({
            "metadata": {"labels": {"any": "key"}, "labelz": {}},
            "spec": {"template": {"spec": {"containers": [{"name": "b", "imag": "c"}]}}},
        });
        assert_eq!(unknown_fields(deployment(), &object).len(), 2);
        prune_unknown(deployment(), &mut object);
        assert_eq!(unknown_fields(deployment(), &object), Vec::<String>::new());
        assert_eq!(object["metadata"]["labels"], json!({"any": "key"}));
    }
}
