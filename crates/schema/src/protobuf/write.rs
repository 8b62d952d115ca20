//! From trees to bytes.

use std::borrow::Borrow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::Timestamp;
use serde_json::{Map, Value};

use super::{BYTES, FIXED64, MAGIC, VARINT};
use crate::{Field, Message, Table, Type, table};

/// Writes an object or a list. `None` when the table does not have its kind, or a value is not of
/// its field's type.
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let table = table();
    let api_version = object.get("apiVersion")?.as_str()?;
    let kind = object.get("kind")?.as_str()?;
    let members = object.as_object()?;
    match table.protobuf_kind(api_version, kind) {
        Some(message) => Some(wrap(api_version, kind, &write_message(table, message, members)?)),
        None => {
            let metadata = object.get("metadata").unwrap_or(&Value::Null);
            let items = object.get("items").and_then(Value::as_array).into_iter().flatten();
            encode_list(api_version, kind, metadata, items)
        }
    }
}

/// Writes a list (`PodList`) of items that come one by one: they need not be there together.
pub fn encode_list(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item: Borrow<Value>>,
) -> Option<Vec<u8>> {
    let table = table();
    let item = table.protobuf_kind(api_version, kind.strip_suffix("List")?)?;
    let empty = Map::new();
    let metadata = metadata.as_object().unwrap_or(&empty);
    let mut raw = Vec::new();
    write_bytes(&mut raw, 1, &write_message(table, table.named("meta.v1.ListMeta")?, metadata)?);
    for one in items {
        write_bytes(&mut raw, 2, &write_message(table, item, one.borrow().as_object()?)?);
    }
    Some(wrap(api_version, kind, &raw))
}

/// Writes one event of a watch: a `WatchEvent` of its own, its length in four bytes before it, and
/// in it the object with magic and type.
pub fn encode_event(event: &str, object: &Value) -> Option<Vec<u8>> {
    let mut inner = Vec::new();
    write_bytes(&mut inner, 1, &encode(object)?);
    let mut body = Vec::new();
    write_bytes(&mut body, 1, event.as_bytes());
    write_bytes(&mut body, 2, &inner);
    let mut frame = u32::try_from(body.len()).ok()?.to_be_bytes().to_vec();
    frame.append(&mut body);
    Some(frame)
}

/// A message with its type and the magic.
fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    write_bytes(&mut meta, 1, api_version.as_bytes());
    write_bytes(&mut meta, 2, kind.as_bytes());
    let mut body = MAGIC.to_vec();
    write_bytes(&mut body, 1, &meta);
    write_bytes(&mut body, 2, raw);
    write_bytes(&mut body, 3, b"");
    write_bytes(&mut body, 4, b"");
    body
}

fn write_message(
    table: &Table,
    message: &Message,
    members: &Map<String, Value>,
) -> Option<Vec<u8>> {
    write_embedded(table, message, members, &[])
}

/// Writes the fields of a message, or of one that is embedded in it under some numbers.
fn write_embedded(
    table: &Table,
    message: &Message,
    members: &Map<String, Value>,
    path: &[u32],
) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut embedded: Vec<u32> = Vec::new();
    for field in &message.fields {
        let Some(value) = members.get(field.name).filter(|value| !value.is_null()) else {
            continue;
        };
        match field.embedded_in.strip_prefix(path) {
            Some([]) => write_field(table, field, value, &mut out)?,
            Some([next, ..]) if !embedded.contains(next) => embedded.push(*next),
            _ => {}
        }
    }
    for number in embedded {
        let inner = write_embedded(table, message, members, &[path, &[number]].concat())?;
        write_bytes(&mut out, number, &inner);
    }
    Some(out)
}

fn write_field(table: &Table, field: &Field, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match &field.kind {
        Type::List(item) => value
            .as_array()?
            .iter()
            .try_for_each(|one| write_value(table, item, one, field.number, out)),
        Type::Map(item) => value.as_object()?.iter().try_for_each(|(key, one)| {
            let mut entry = Vec::new();
            write_bytes(&mut entry, 1, key.as_bytes());
            write_value(table, item, one, 2, &mut entry)?;
            write_bytes(out, field.number, &entry);
            Some(())
        }),
        kind => write_value(table, kind, value, field.number, out),
    }
}

fn write_value(
    table: &Table,
    kind: &Type,
    value: &Value,
    number: u32,
    out: &mut Vec<u8>,
) -> Option<()> {
    match kind {
        Type::Text => write_bytes(out, number, value.as_str()?.as_bytes()),
        Type::Bytes => write_bytes(out, number, &STANDARD.decode(value.as_str()?).ok()?),
        Type::Bool => write_varint_field(out, number, u64::from(value.as_bool()?)),
        Type::Int32 | Type::Int64 => {
            write_varint_field(out, number, value.as_i64()?.cast_unsigned());
        }
        Type::Double => {
            write_varint(out, u64::from(number) << 3 | FIXED64);
            out.extend(value.as_f64()?.to_bits().to_le_bytes());
        }
        Type::Quantity => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            write_single(out, number, text.as_bytes());
        }
        Type::Raw => write_single(out, number, value.to_string().as_bytes()),
        Type::IntOrString => write_int_or_string(out, number, value)?,
        Type::Time | Type::MicroTime => {
            let time = Timestamp::parse(value.as_str()?)?;
            let mut inner = Vec::new();
            write_varint_field(&mut inner, 1, time.seconds().cast_unsigned());
            let fraction = time.microseconds().rem_euclid(1_000_000) * 1_000;
            let fraction = if *kind == Type::MicroTime { fraction } else { 0 };
            write_varint_field(&mut inner, 2, fraction.cast_unsigned());
            write_bytes(out, number, &inner);
        }
        Type::Message(_) => {
            let inner = write_message(table, table.message(kind)?, value.as_object()?)?;
            write_bytes(out, number, &inner);
        }
        // A list in a map is a message that has the items, as `ExtraValue` is.
        Type::List(item) => {
            let mut inner = Vec::new();
            let mut items = value.as_array()?.iter();
            items.try_for_each(|one| write_value(table, item, one, 1, &mut inner))?;
            write_bytes(out, number, &inner);
        }
        // The former does not occur within another list or map; the latter has no numbers.
        Type::Map(_) | Type::Own(_) => return None,
    }
    Some(())
}

fn write_int_or_string(out: &mut Vec<u8>, number: u32, value: &Value) -> Option<()> {
    let mut inner = Vec::new();
    write_varint_field(&mut inner, 1, u64::from(value.is_string()));
    write_varint_field(&mut inner, 2, value.as_i64().unwrap_or(0).cast_unsigned());
    write_bytes(&mut inner, 3, value.as_str().unwrap_or_default().as_bytes());
    write_bytes(out, number, &inner);
    (value.is_string() || value.is_i64()).then_some(())
}

/// A message whose only field these bytes are.
fn write_single(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    let mut inner = Vec::new();
    write_bytes(&mut inner, 1, bytes);
    write_bytes(out, number, &inner);
}

pub(crate) fn write_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    write_varint(out, u64::from(number) << 3 | BYTES);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn write_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    write_varint(out, u64::from(number) << 3 | VARINT);
    write_varint(out, value);
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
