//! Values. JSON stays where it is, and is read when it is asked for.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use model::Quantity;
use serde_json::Value as Json;

use super::functions::authorization::Authorization;
use super::functions::{Cidr, Format, Semver, Url, parse_duration};
use super::types::{Identity, ListType, ObjectType, Type};

/// Names of types that are values too.
pub(super) const TYPE_NAMES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];
/// The type of what nothing is known of.
static DYN: Type = Type::Dyn;

/// A value while an expression is evaluated.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// A truth.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// A number with a fraction.
    Double(f64),
    /// A text.
    Text(Text<'a>),
    /// Octets.
    Bytes(Rc<[u8]>),
    /// A span of time.
    Duration(SignedDuration),
    /// A point in time.
    Timestamp(Timestamp),
    /// A list.
    List(List<'a>),
    /// A map, or an object.
    Map(Map<'a>),
    /// What may be absent.
    Optional(Option<Rc<Value<'a>>>),
    /// A type, by its name.
    Type(&'static str),
    /// An amount.
    Quantity(Quantity),
    /// An address.
    Ip(IpAddr),
    /// A range of addresses.
    Cidr(Cidr),
    /// A URL.
    Url(Rc<Url>),
    /// A version.
    Semver(Rc<Semver>),
    /// A format of texts.
    Format(Format),
    /// A question about rights, or its answer.
    Authorization(Rc<Authorization<'a>>),
}

/// A text. Whoever takes it on copies none of it.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    /// As it stands in the object or the expression.
    Given(&'a str),
    /// Made by the expression.
    Made(Rc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Given(text) => text,
            Self::Made(text) => text,
        }
    }
}

/// A list, in JSON or made by the expression.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// As it stands in the object.
    Json(&'a [Json], &'a ListType),
    /// Made, with the identity of what it was made of.
    Made(Rc<Vec<Value<'a>>>, &'a Identity),
}

/// A map, in JSON or made by the expression.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// `additionalProperties`, or JSON without a type: keys, with the type of all values.
    Json(&'a serde_json::Map<String, Json>, &'a Type),
    /// An object with the fields of its schema.
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    /// Made by the expression.
    Made(Rc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map. Whole numbers of all kinds are the same key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A truth.
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// A text.
    Text(String),
}

impl<'a> Value<'a> {
    /// JSON as a value of a type. What is not of the type is what JSON says it is.
    pub fn of(json: &'a Json, kind: &'a Type) -> Self {
        match (json, kind) {
            (Json::String(text), Type::Bytes) => match STANDARD.decode(text) {
                Ok(octets) => Self::Bytes(octets.into()),
                Err(_) => Self::Text(Text::Given(text)),
            },
            (Json::String(text), Type::Timestamp) => match timestamp(text) {
                Some(time) => Self::Timestamp(time),
                None => Self::Text(Text::Given(text)),
            },
            (Json::String(text), Type::Duration) => match parse_duration(text) {
                Some(duration) => Self::Duration(duration),
                None => Self::Text(Text::Given(text)),
            },
            (Json::Number(number), Type::Double) => {
                Self::Double(number.as_f64().unwrap_or_default())
            }
            // `1.0` is an integer too.
            (Json::Number(number), Type::Int) if number.is_f64() => {
                Self::Int(number.as_f64().unwrap_or_default() as i64)
            }
            (Json::Array(items), Type::List(list)) => Self::List(List::Json(items, list)),
            (Json::Object(members), Type::Map(map)) => Self::Map(Map::Json(members, &map.1)),
            (Json::Object(members), Type::Object(object)) => {
                Self::Map(Map::Object(members, object))
            }
            _ => Self::untyped(json),
        }
    }

    fn untyped(json: &'a Json) -> Self {
        static ITEMS: ListType = ListType { item: Type::Dyn, identity: Identity::Place };
        match json {
            Json::Null => Self::Null,
            Json::Bool(truth) => Self::Bool(*truth),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                (None, None) => Self::Double(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::Text(Text::Given(text)),
            Json::Array(items) => Self::List(List::Json(items, &ITEMS)),
            Json::Object(members) => Self::Map(Map::Json(members, &DYN)),
        }
    }

    /// A text that the expression made.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Text::Made(text.into().into()))
    }

    /// A map of texts to values.
    pub fn map(entries: impl IntoIterator<Item = (String, Self)>) -> Self {
        let entries = entries.into_iter().map(|(name, value)| (Key::Text(name), value));
        Self::Map(Map::Made(Rc::new(entries.collect())))
    }

    /// A value that may be absent.
    pub fn optional(value: Option<Self>) -> Self {
        Self::Optional(value.map(Rc::new))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(Rc::new(items), &Identity::Place))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Rc::new(value)))
    }

    /// The name of its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorization(value) => value.type_name(),
        }
    }

    /// How large it is: characters, octets, items, members; one for all else.
    pub(super) fn size(&self) -> usize {
        match self {
            // Octets are no fewer than characters, and known without a count.
            Self::Text(text) => text.len(),
            Self::Bytes(octets) => octets.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            Self::Url(url) => url.size(),
            _ => 1,
        }
    }

    /// Whether it is what its type is by itself: `""`, `0`, an empty list.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(truth) => !truth,
            Self::Int(number) => *number == 0,
            Self::Uint(number) => *number == 0,
            Self::Double(number) => *number == 0.0,
            Self::Text(_) | Self::Bytes(_) | Self::List(_) | Self::Map(_) => self.size() == 0,
            Self::Duration(duration) => duration.is_zero(),
            Self::Optional(inner) => inner.is_none(),
            _ => false,
        }
    }

    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Bool(truth) => Some(Key::Bool(*truth)),
            Self::Int(number) => Some(Key::Number(i128::from(*number))),
            Self::Uint(number) => Some(Key::Number(i128::from(*number))),
            Self::Double(number) if number.fract() == 0.0 => Some(Key::Number(*number as i128)),
            Self::Text(text) => Some(Key::Text(text.to_string())),
            _ => None,
        }
    }

    /// The order of two values; `None` when they have none.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Text(one), Self::Text(other)) => Some((**one).cmp(&**other)),
            (Self::Bytes(one), Self::Bytes(other)) => Some(one.cmp(other)),
            (Self::Duration(one), Self::Duration(other)) => Some(one.cmp(other)),
            (Self::Timestamp(one), Self::Timestamp(other)) => Some(one.cmp(other)),
            _ => compare_numbers(self, other),
        }
    }
}

/// Numbers of all kinds have one order (cel-spec, "Ordering"): whole ones are compared as such.
fn compare_numbers(one: &Value<'_>, other: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(number) => Some(i128::from(*number)),
        Value::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    if let (Some(one), Some(other)) = (whole(one), whole(other)) {
        return Some(one.cmp(&other));
    }
    let number = |value: &Value<'_>| match value {
        Value::Double(number) => Some(*number),
        other => whole(other).map(|number| number as f64),
    };
    number(one)?.partial_cmp(&number(other)?)
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Made(items, _) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Json(items, list) => items.get(index).map(|item| Value::of(item, &list.item)),
            Self::Made(items, _) => items.get(index).cloned(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'a>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    pub(super) fn identity(&self) -> &'a Identity {
        match self {
            Self::Json(_, list) => &list.identity,
            Self::Made(_, identity) => identity,
        }
    }
}

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(members, _) => members.len(),
            Self::Object(..) => self.keys().len(),
            Self::Made(entries) => entries.len(),
        }
    }

    /// The value of a key; of an object, the field that an expression names so.
    pub(super) fn get(&self, key: &Key) -> Option<Value<'a>> {
        match (self, key) {
            (Self::Json(members, kind), Key::Text(name)) => {
                members.get(name).map(|member| Value::of(member, kind))
            }
            (Self::Object(members, object), Key::Text(name)) => {
                let field = object.fields.get(name)?;
                members.get(&field.name).map(|member| Value::of(member, &field.kind))
            }
            (Self::Made(entries), key) => entries.get(key).cloned(),
            _ => None,
        }
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        match self {
            Self::Json(members, _) => members.keys().cloned().map(Key::Text).collect(),
            Self::Object(members, object) => {
                let fields = object.fields.iter();
                let present = fields.filter(|(_, field)| members.contains_key(&field.name));
                present.map(|(name, _)| Key::Text(name.clone())).collect()
            }
            Self::Made(entries) => entries.keys().cloned().collect(),
        }
    }
}

impl Key {
    /// How large it is, in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len().max(1),
            _ => 1,
        }
    }

    /// The key as a value.
    pub(super) fn value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Number(number) => match i64::try_from(*number) {
                Ok(number) => Value::Int(number),
                Err(_) => Value::Uint(u64::try_from(*number).unwrap_or(u64::MAX)),
            },
            Self::Text(text) => Value::text(text.clone()),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// RFC 3339, or a date alone.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| format!("{text}T00:00:00Z").parse().ok())
}
