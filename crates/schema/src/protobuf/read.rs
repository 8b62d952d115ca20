//! From bytes to trees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::Timestamp;
use serde_json::{Map, Value};

use super::{BYTES, FIXED32, FIXED64, MAGIC, VARINT};
use crate::{Field, Message, Table, Type, table};

/// The longest encoding of a varint, bytes.
const MAX_VARINT_BYTES: usize = 10;
/// Deepest nesting of messages, levels; the API's own messages stay below 20.
const MAX_DEPTH: usize = 64;

/// Why a body cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The table does not have the kind.
    UnknownKind {
        /// Group and version.
        api_version: String,
        /// The kind.
        kind: String,
    },
    /// The bytes are no such message, and why.
    Malformed(&'static str),
}

use Problem::Malformed;

/// Reads a body as the JSON that it stands for.
///
/// # Errors
/// For bytes that are no object, and for kinds that the table does not have.
pub fn decode(body: &[u8]) -> Result<Value, Problem> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Malformed("the magic is missing"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(envelope);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut reader = Reader(bytes);
                while let Some((number, wire)) = reader.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => return Err(Malformed("the type is unreadable")),
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            // Encoding and content type of the raw bytes: set for other content only.
            (3 | 4, Wire::Bytes([])) => {}
            _ => return Err(Malformed("the envelope is unreadable")),
        }
    }
    let mut object = read_kind(&api_version, &kind, raw)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn read_kind(api_version: &str, kind: &str, raw: &[u8]) -> Result<Map<String, Value>, Problem> {
    let table = table();
    // Options carry the version of the group that they are for.
    let version_of_kind = if kind == "DeleteOptions" { "v1" } else { api_version };
    if let Some(message) = table.protobuf_kind(version_of_kind, kind) {
        return read_message(table, message, raw, MAX_DEPTH);
    }
    let item = kind.strip_suffix("List").and_then(|kind| table.protobuf_kind(api_version, kind));
    let (Some(item), Some(metadata)) = (item, table.named("meta.v1.ListMeta")) else {
        let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
        return Err(Problem::UnknownKind { api_version, kind });
    };
    let mut list = Map::from_iter([("items".to_owned(), Value::Array(Vec::new()))]);
    let mut reader = Reader(raw);
    while let Some((number, wire)) = reader.next()? {
        let Wire::Bytes(bytes) = wire else { return Err(Malformed("a list is unreadable")) };
        match (number, list.get_mut("items")) {
            (1, _) => {
                let metadata = read_message(table, metadata, bytes, MAX_DEPTH)?;
                list.insert("metadata".to_owned(), Value::Object(metadata));
            }
            (2, Some(Value::Array(items))) => {
                items.push(Value::Object(read_message(table, item, bytes, MAX_DEPTH)?));
            }
            _ => {}
        }
    }
    Ok(list)
}

fn read_message(
    table: &Table,
    message: &Message,
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, Problem> {
    let mut object = Map::new();
    read_into(table, message, &[], bytes, &mut object, depth)?;
    Ok(object)
}

/// Reads the fields of a message, or of one that is embedded in it under some numbers.
fn read_into(
    table: &Table,
    message: &Message,
    path: &[u32],
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Problem> {
    let depth = depth.checked_sub(1).ok_or(Malformed("it is nested too deeply"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let field = message
            .fields
            .iter()
            .find(|field| u64::from(field.number) == number && field.embedded_in == path);
        if let Some(field) = field {
            read_field(table, field, &wire, object, depth)?;
            continue;
        }
        let Ok(next) = u32::try_from(number) else { continue };
        let path = [path, &[next]].concat();
        let embeds = message.fields.iter().any(|field| field.embedded_in.starts_with(&path));
        // What no field has comes from a newer version: Go passes over it too.
        if let (true, Wire::Bytes(inner)) = (embeds, wire) {
            read_into(table, message, &path, inner, object, depth)?;
        }
    }
    Ok(())
}

fn read_field(
    table: &Table,
    field: &Field,
    wire: &Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Problem> {
    match &field.kind {
        Type::List(item) => {
            let list =
                object.entry(field.name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut();
            let list = list.ok_or(Malformed("a list is no list"))?;
            match (&**item, wire) {
                // Numbers may come in one piece.
                (Type::Int32 | Type::Int64, Wire::Bytes(packed)) => {
                    let mut packed = Reader(packed);
                    while !packed.0.is_empty() {
                        list.push(packed.varint()?.cast_signed().into());
                    }
                }
                (item, wire) => list.push(read_value(table, item, wire, depth)?),
            }
        }
        Type::Map(item) => {
            let Wire::Bytes(entry) = wire else { return Err(wrong_form()) };
            let (key, value) = read_entry(table, item, entry, depth)?;
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            map.as_object_mut().ok_or(Malformed("a map is no map"))?.insert(key, value);
        }
        kind => {
            // Go writes empty plain values too; JSON leaves them out.
            let is_zero = matches!(wire, Wire::Varint(0) | Wire::Bytes([]));
            let is_message = matches!(kind, Type::Message(_) | Type::IntOrString);
            if is_zero && !field.explicit && !is_message {
                return Ok(());
            }
            let value = read_value(table, kind, wire, depth)?;
            if !value.is_null() {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn read_value(table: &Table, kind: &Type, wire: &Wire<'_>, depth: usize) -> Result<Value, Problem> {
    Ok(match (kind, wire) {
        (Type::Text, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Bool, Wire::Varint(number)) => (*number != 0).into(),
        // int32 and int64 travel as their two's complement.
        (Type::Int32 | Type::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        (Type::Double, Wire::Fixed64(bits)) => f64::from_bits(*bits).into(),
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Quantity, Wire::Bytes(bytes)) => text(single_field(bytes)?)?.into(),
        (Type::Raw, Wire::Bytes(bytes)) => {
            let json = single_field(bytes)?;
            serde_json::from_slice(json).map_err(|_| Malformed("an embedded text is no JSON"))?
        }
        (Type::Time | Type::MicroTime, Wire::Bytes(bytes)) => time(kind, bytes)?,
        (Type::Message(_), Wire::Bytes(bytes)) => {
            let message = table.message(kind).ok_or(wrong_form())?;
            Value::Object(read_message(table, message, bytes, depth)?)
        }
        (Type::List(item), Wire::Bytes(bytes)) => read_wrapped(table, item, bytes, depth)?,
        _ => return Err(wrong_form()),
    })
}

/// A list in a map: a message that has the items, as `ExtraValue` is.
fn read_wrapped(table: &Table, item: &Type, bytes: &[u8], depth: usize) -> Result<Value, Problem> {
    let depth = depth.checked_sub(1).ok_or(Malformed("it is nested too deeply"))?;
    let mut items = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            items.push(read_value(table, item, &wire, depth)?);
        }
    }
    Ok(Value::Array(items))
}

/// One entry of a map: key and value, an absent value being the empty one.
fn read_entry(
    table: &Table,
    item: &Type,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), Problem> {
    let (mut key, mut value) = (String::new(), Wire::Bytes(&[]));
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = wire,
            _ => return Err(Malformed("a map entry is unreadable")),
        }
    }
    Ok((key, read_value(table, item, &value, depth)?))
}

/// `IntOrString`: which of the two, the number, the text.
fn int_or_string(bytes: &[u8]) -> Result<Value, Problem> {
    let (mut is_text, mut number, mut string) = (false, 0_i64, String::new());
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => return Err(Malformed("an int-or-string is unreadable")),
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// `Time` and `MicroTime`: seconds and nanoseconds since the epoch. Nothing is no time.
fn time(kind: &Type, bytes: &[u8]) -> Result<Value, Problem> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanoseconds) = (0_i64, 0_i64);
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Varint(value)) => seconds = value.cast_signed(),
            (2, Wire::Varint(value)) => nanoseconds = value.cast_signed(),
            _ => return Err(Malformed("a time is unreadable")),
        }
    }
    let microseconds = seconds.saturating_mul(1_000_000).saturating_add(nanoseconds / 1_000);
    let time = Timestamp::from_microseconds(microseconds);
    Ok(if *kind == Type::MicroTime { time.micro() } else { time.to_string() }.into())
}

/// The bytes of a message whose only field they are.
fn single_field(bytes: &[u8]) -> Result<&[u8], Problem> {
    match Reader(bytes).next()? {
        Some((1, Wire::Bytes(inner))) => Ok(inner),
        _ => Err(wrong_form()),
    }
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// What is left to read of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            VARINT => Wire::Varint(self.varint()?),
            FIXED64 => {
                let bytes = self.take(8)?.try_into().map_err(|_| wrong_form())?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            BYTES => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Wire::Bytes(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(Malformed("an unknown wire type")),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed("it ends early"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0_u64;
        for index in 0..MAX_VARINT_BYTES {
            let (byte, rest) = self.0.split_first().ok_or(Malformed("it ends early"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * index).min(63);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }
}

fn text(bytes: &[u8]) -> Result<String, Problem> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("a text is not UTF-8"))
}

const fn wrong_form() -> Problem {
    Malformed("a value has the wrong form")
}
