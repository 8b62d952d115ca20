//! A schema as a message of the table of fields. Pruning, strict decoding and server-side apply
//! then need no second way.

use serde_json::Value;

use super::{flag, text};
use crate::{Field, Message, Relation, Table, Type, table};

/// The message of a kind that a schema defines. Its names are those of the tree, which therefore
/// lives as long as the program.
pub fn message(kind: &'static str, schema: &'static Value) -> Message {
    let mut message = Message { name: kind, typed: true, ..object(schema) };
    take_metadata(&mut message, table());
    message
}

/// Every object has the metadata of all kinds, whatever its schema says of it.
fn take_metadata(message: &mut Message, table: &Table) {
    message.fields.retain(|field| !matches!(field.name, "apiVersion" | "kind" | "metadata"));
    let sample = table.kind("v1", "ConfigMap").and_then(|sample| sample.field("metadata"));
    message.fields.extend(sample.cloned());
    message.fields.sort_by_key(|field| field.name);
}

fn object(schema: &'static Value) -> Message {
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut fields: Vec<Field> =
        properties.into_iter().flatten().map(|(name, inner)| field(name, inner)).collect();
    fields.sort_by_key(|field| field.name);
    let mut message = Message {
        atomic: text(schema, "x-kubernetes-map-type") == "atomic",
        open: flag(schema, "x-kubernetes-preserve-unknown-fields"),
        fields,
        ..Message::default()
    };
    if flag(schema, "x-kubernetes-embedded-resource") {
        message.typed = true;
        take_metadata(&mut message, table());
    }
    message
}

fn field(name: &'static str, schema: &'static Value) -> Field {
    Field {
        name,
        // Custom objects have no form in protobuf.
        number: 0,
        embedded_in: Vec::new(),
        kind: type_of(schema),
        required: false,
        explicit: true,
        embedded: false,
        relation: relation(schema),
        merge_key: None,
        replaced: false,
        retains_keys: false,
        default: schema.get("default").cloned(),
    }
}

fn type_of(schema: &'static Value) -> Type {
    match text(schema, "type") {
        "object" => match schema.get("additionalProperties") {
            Some(additional @ Value::Object(_)) => Type::Map(Box::new(type_of(additional))),
            Some(Value::Bool(true)) => Type::Map(Box::new(Type::Raw)),
            _ => Type::Own(Box::new(object(schema))),
        },
        "array" => {
            let items = schema.get("items").filter(|items| items.is_object());
            Type::List(Box::new(items.map_or(Type::Raw, type_of)))
        }
        // What a scalar may be is for the schema to say.
        _ => Type::Raw,
    }
}

fn relation(schema: &'static Value) -> Relation {
    let keys = || {
        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    match (text(schema, "type"), text(schema, "x-kubernetes-list-type")) {
        ("array", "set") => Relation::Set,
        ("array", "map") => Relation::Keys(keys()),
        ("array", _) => Relation::Atomic,
        _ if text(schema, "x-kubernetes-map-type") == "atomic" => Relation::Atomic,
        _ => Relation::Granular,
    }
}
