//! Bodies in Kubernetes' protobuf form, which `kubectl create NOUN` sends since 1.32: magic,
//! then `runtime.Unknown` with the type and the raw message.
//!
//! Only the messages of [`schema`] are read. A field that it does not name is refused with 415,
//! never dropped: what a client asked for must not be lost in silence.

mod schema;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use store::Status;

use schema::{Field, Kind, Message};

/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// The longest encoding of a varint, bytes.
const MAX_VARINT_BYTES: usize = 10;

/// Reads a body as the JSON that it stands for.
pub(super) fn decode(body: &[u8]) -> Result<Value, Status> {
    let envelope = body.strip_prefix(MAGIC).ok_or_else(|| malformed("the magic is missing"))?;
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
                        _ => return Err(malformed("the type is unreadable")),
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            // Encoding and content type of the raw bytes: set for other content only.
            (3 | 4, Wire::Bytes([])) => {}
            _ => return Err(malformed("the envelope is unreadable")),
        }
    }
    let message = schema::message(&api_version, &kind).ok_or_else(|| unknown(&kind, None))?;
    let mut object = read_message(message, raw)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn read_message(message: &Message, bytes: &[u8]) -> Result<Map<String, Value>, Status> {
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let field = message.fields.iter().find(|field| field.number == number);
        let field = field.ok_or_else(|| unknown(message.name, Some(number)))?;
        read_field(field, &wire, &mut object)?;
    }
    Ok(object)
}

fn read_field(
    field: &Field,
    wire: &Wire<'_>,
    object: &mut Map<String, Value>,
) -> Result<(), Status> {
    let value = match (&field.kind, wire) {
        (Kind::Ignored, _) => return Ok(()),
        // Go writes empty values of plain fields too; JSON leaves them out.
        (Kind::Text, Wire::Bytes([])) | (Kind::Number | Kind::Flag, Wire::Varint(0)) => {
            return Ok(());
        }
        (Kind::Text | Kind::OptionalText | Kind::Texts, Wire::Bytes(bytes)) => text(bytes)?.into(),
        // int32 and int64 travel as their two's complement.
        (Kind::Number | Kind::OptionalNumber, Wire::Varint(number)) => number.cast_signed().into(),
        (Kind::Flag | Kind::OptionalFlag, Wire::Varint(number)) => (*number != 0).into(),
        (Kind::NumberOrText, Wire::Bytes(bytes)) => number_or_text(bytes)?,
        (Kind::One(message) | Kind::Many(message), Wire::Bytes(bytes)) => {
            Value::Object(read_message(message, bytes)?)
        }
        (Kind::TextMap | Kind::BytesMap, Wire::Bytes(bytes)) => {
            let (key, value) = entry(bytes)?;
            let value = match field.kind {
                Kind::BytesMap => STANDARD.encode(value),
                _ => text(value)?,
            };
            Value::Object(Map::from_iter([(key, value.into())]))
        }
        _ => return Err(malformed("a value has the wrong form")),
    };
    match (&field.kind, value) {
        (Kind::Texts | Kind::Many(_), value) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(value);
            }
        }
        (Kind::TextMap | Kind::BytesMap, Value::Object(entry)) => {
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.extend(entry);
            }
        }
        (_, value) => {
            object.insert(field.name.to_owned(), value);
        }
    }
    Ok(())
}

/// `IntOrString`: which of the two, the number, the text.
fn number_or_text(bytes: &[u8]) -> Result<Value, Status> {
    let (mut is_text, mut number, mut string) = (false, 0_i64, String::new());
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => return Err(malformed("an int-or-string is unreadable")),
        }
    }
    Ok(if is_text { string.into() } else { number.into() })
}

/// One entry of a map: key and value.
fn entry(bytes: &[u8]) -> Result<(String, &[u8]), Status> {
    let (mut key, mut value) = (String::new(), &[][..]);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => return Err(malformed("a map entry is unreadable")),
        }
    }
    Ok((key, value))
}

/// A value on the wire. The two fixed-size types occur in no message that we read.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// What is left to read of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Status> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let (bytes, rest) =
                    self.0.split_at_checked(length).ok_or_else(|| malformed("it ends early"))?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            _ => return Err(malformed("an unknown wire type")),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64, Status> {
        let mut value = 0_u64;
        for index in 0..MAX_VARINT_BYTES {
            let (byte, rest) = self.0.split_first().ok_or_else(|| malformed("it ends early"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * index).min(63);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number is too long"))
    }
}

fn text(bytes: &[u8]) -> Result<String, Status> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a text is not UTF-8"))
}

fn malformed(problem: &str) -> Status {
    Status::bad_request(format!("the protobuf body cannot be read: {problem}"))
}

fn unknown(message: &str, field: Option<u64>) -> Status {
    let mut status = Status::unknown_body_format();
    let place = match field {
        Some(field) => format!("field {field} of {message}"),
        None => format!("the kind {message:?}"),
    };
    status.message.push_str(&format!(
        " (flatnet does not read {place} in protobuf yet: send JSON, for example with \
         --dry-run=client -o yaml | kubectl apply -f -)"
    ));
    status
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("a short field");
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_config_map_is_read_as_its_json() {
        let metadata = [field(1, b"web"), field(2, b""), field(8, b"")].concat();
        let data = [field(1, b"a"), field(2, b"1")].concat();
        let raw = [field(1, &metadata), field(2, &data)].concat();
        let expected = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "web"},
            "data": {"a": "1"},
        });
        assert_eq!(decode(&body("v1", "ConfigMap", &raw)), Ok(expected));
    }

    #[test]
    fn a_service_port_keeps_number_and_name_apart() {
        let by_name = [vec![1 << 3, 1, 2 << 3, 0], field(3, b"http")].concat();
        let by_number = [vec![1 << 3, 0, 2 << 3, 80], field(3, b"")].concat();
        for (target, expected) in [(by_name, json!("http")), (by_number, json!(80))] {
            let port = [vec![3 << 3, 80], field(4, &target), vec![5 << 3, 0]].concat();
            let raw = field(2, &field(1, &port));
            let service = decode(&body("v1", "Service", &raw)).expect("a Service");
            assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": expected}]));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_not_dropped() {
        let refused = decode(&body("v1", "ConfigMap", &field(15, b"x"))).expect_err("refused");
        assert_eq!(refused.code, 415);
        assert!(refused.message.contains("field 15 of ConfigMap"), "{refused}");
        let refused = decode(&body("batch/v1", "Job", b"")).expect_err("refused");
        assert!(refused.message.starts_with("the body of the request was in an unknown format"));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(raw in prop::collection::vec(any::<u8>(), 0..100)) {
            for kind in ["ConfigMap", "Service", "Secret"] {
                let _ = decode(&body("v1", kind, &raw));
            }
            let _ = decode(&raw);
            let _ = decode(&[MAGIC, &raw].concat());
        }
    }
}
