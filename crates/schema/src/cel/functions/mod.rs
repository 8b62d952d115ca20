//! What expressions can call: the language's own functions and those of Kubernetes' libraries.
//! Their types stand in [`super::signatures`].

pub(super) mod authorization;
mod format;
mod list;
mod network;
mod number;
mod semver;
mod text;
mod time;
mod url;

use super::Error;
use super::cost::{Meter, Pattern};
use super::value::{Map, Value};
pub use format::Format;
pub use network::Cidr;
pub use semver::Semver;
pub(crate) use time::parse_duration;
pub use url::Url;

/// What reading a time zone costs: its rules take some kilobytes.
const ZONE_COST: usize = 20;

/// A value, or why there is none.
pub(super) type Said<'a> = Result<Value<'a>, Error>;

/// Calls a function. `pattern` is its regular expression, where that is written out.
pub(super) fn call<'a>(
    name: &str,
    arguments: &[Value<'a>],
    pattern: Option<&Pattern>,
    meter: &mut Meter,
) -> Said<'a> {
    let counted = text::call(name, arguments, pattern, meter)
        .or_else(|| list::call(name, arguments, meter))
        .or_else(|| authorization::call(name, arguments, meter));
    if let Some(said) = counted {
        return said;
    }
    // All others walk what they are given once, if at all.
    let is_walked = |value: &&Value<'_>| matches!(value, Value::Text(_) | Value::Url(_));
    meter.charge_text(arguments.iter().filter(is_walked).map(Value::size).sum())?;
    if let [Value::Timestamp(_), Value::Text(_)] = arguments {
        meter.charge(ZONE_COST)?;
    }
    let found = general(name, arguments)
        .or_else(|| number::call(name, arguments))
        .or_else(|| time::call(name, arguments))
        .or_else(|| network::call(name, arguments))
        .or_else(|| url::call(name, arguments))
        .or_else(|| semver::call(name, arguments))
        .or_else(|| format::call(name, arguments));
    found.unwrap_or_else(|| Err(Error::new("no such overload")))
}

fn general<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let value = match (name, arguments) {
        ("!_", [Value::Bool(truth)]) => Value::Bool(!truth),
        ("dyn", [value]) => value.clone(),
        ("type", [value]) => Value::Type(value.type_name()),
        ("bool", [Value::Bool(truth)]) => Value::Bool(*truth),
        ("bool", [Value::Text(text)]) => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Value::Bool(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Value::Bool(false),
            other => return Some(Err(unreadable("bool", other))),
        },
        ("size", [Value::List(list)]) => length(list.len()),
        ("size", [Value::Map(map)]) => length(map.len()),
        ("size", [Value::Bytes(octets)]) => length(octets.len()),
        ("optional.none", []) => Value::Optional(None),
        ("optional.of", [value]) => Value::some(value.clone()),
        ("optional.ofNonZeroValue", [value]) if value.is_zero() => Value::Optional(None),
        ("optional.ofNonZeroValue", [value]) => Value::some(value.clone()),
        ("hasValue", [Value::Optional(inner)]) => Value::Bool(inner.is_some()),
        ("value", [Value::Optional(inner)]) => match inner {
            Some(inner) => (**inner).clone(),
            None => return Some(Err(Error::new("optional.none() dereference"))),
        },
        ("orValue", [Value::Optional(inner), other]) => inner.as_deref().unwrap_or(other).clone(),
        ("or", [Value::Optional(inner), other]) => match inner {
            Some(_) => Value::Optional(inner.clone()),
            None => other.clone(),
        },
        ("_<_" | "_<=_" | "_>_" | "_>=_", [one, other]) => {
            let order = match one.compare(other) {
                Some(order) => order,
                // Nothing compares with what is no number.
                None if matches!((one, other), (Value::Double(_), _) | (_, Value::Double(_))) => {
                    return Some(Ok(Value::Bool(false)));
                }
                None => return None,
            };
            Value::Bool(match name {
                "_<_" => order.is_lt(),
                "_<=_" => order.is_le(),
                "_>_" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        _ => return None,
    };
    Some(Ok(value))
}

/// A length as a value.
fn length<'a>(length: usize) -> Value<'a> {
    Value::Int(i64::try_from(length).unwrap_or(i64::MAX))
}

/// The entries of a map that is made of texts.
fn map_of<'a>(entries: impl IntoIterator<Item = (String, Value<'a>)>) -> Value<'a> {
    let entries = entries.into_iter().map(|(key, value)| (super::value::Key::Text(key), value));
    Value::Map(Map::Made(std::rc::Rc::new(entries.collect())))
}

fn unreadable(kind: &str, text: &str) -> Error {
    Error::new(format!("type conversion error from 'string' to '{kind}': {text:?}"))
}
