//! Numbers and quantities.

use model::Quantity;

use super::{Said, unreadable};
use crate::cel::Error;
use crate::cel::value::Value;

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    match arguments {
        [Value::Int(one), Value::Int(other)] => integers(name, *one, *other),
        [Value::Uint(one), Value::Uint(other)] => unsigned(name, *one, *other),
        [Value::Double(one), Value::Double(other)] => Some(Ok(Value::Double(match name {
            "_+_" => one + other,
            "_-_" => one - other,
            "_*_" => one * other,
            "_/_" => one / other,
            _ => return None,
        }))),
        [Value::Int(one)] if name == "-_" => Some(in_range(one.checked_neg().map(Value::Int))),
        [Value::Double(one)] if name == "-_" => Some(Ok(Value::Double(-one))),
        [one] if matches!(name, "int" | "uint" | "double") => convert(name, one),
        _ => quantities(name, arguments),
    }
}

fn in_range(value: Option<Value<'_>>) -> Said<'_> {
    value.ok_or_else(|| Error::new("integer overflow"))
}

fn integers<'a>(name: &str, one: i64, other: i64) -> Option<Said<'a>> {
    let result = match name {
        "_+_" => one.checked_add(other),
        "_-_" => one.checked_sub(other),
        "_*_" => one.checked_mul(other),
        "_/_" if other == 0 => return Some(Err(Error::new("division by zero"))),
        "_/_" => one.checked_div(other),
        "_%_" if other == 0 => return Some(Err(Error::new("modulus by zero"))),
        "_%_" => one.checked_rem(other),
        _ => return None,
    };
    Some(in_range(result.map(Value::Int)))
}

fn unsigned<'a>(name: &str, one: u64, other: u64) -> Option<Said<'a>> {
    let result = match name {
        "_+_" => one.checked_add(other),
        "_-_" => one.checked_sub(other),
        "_*_" => one.checked_mul(other),
        "_/_" if other == 0 => return Some(Err(Error::new("division by zero"))),
        "_/_" => one.checked_div(other),
        "_%_" if other == 0 => return Some(Err(Error::new("modulus by zero"))),
        "_%_" => one.checked_rem(other),
        _ => return None,
    };
    let overflow = || Error::new("unsigned integer overflow");
    Some(result.map(Value::Uint).ok_or_else(overflow))
}

/// `int`, `uint` and `double`.
fn convert<'a>(name: &str, value: &Value<'a>) -> Option<Said<'a>> {
    let whole = match value {
        Value::Int(number) => i128::from(*number),
        Value::Uint(number) => i128::from(*number),
        Value::Double(number) if name == "double" => return Some(Ok(Value::Double(*number))),
        // A double that is too large, or no number, saturates, and is out of range below.
        Value::Double(number) if number.is_nan() => i128::MAX,
        Value::Double(number) => *number as i128,
        Value::Timestamp(time) if name == "int" => i128::from(time.as_second()),
        Value::Duration(duration) if name == "int" => duration.as_nanos(),
        Value::Text(text) => {
            let text = &**text;
            return Some(match name {
                "int" => text.parse().map(Value::Int).map_err(|_| unreadable("int", text)),
                "uint" => text.parse().map(Value::Uint).map_err(|_| unreadable("uint", text)),
                _ => text.parse().map(Value::Double).map_err(|_| unreadable("double", text)),
            });
        }
        _ => return None,
    };
    Some(match name {
        "int" => in_range(i64::try_from(whole).ok().map(Value::Int)),
        "uint" => in_range(u64::try_from(whole).ok().map(Value::Uint)),
        _ => Ok(Value::Double(whole as f64)),
    })
}

fn quantities<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let value = match (name, arguments) {
        ("isQuantity", [Value::Text(text)]) => Value::Bool(Quantity::parse(text).is_some()),
        ("quantity", [Value::Text(text)]) => match Quantity::parse(text) {
            Some(quantity) => Value::Quantity(quantity),
            None => {
                let why = "quantities must match the regular expression \
                           '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                return Some(Err(Error::new(why)));
            }
        },
        ("sign", [Value::Quantity(one)]) => {
            Value::Int(i64::from(!one.is_zero()) * if one.is_negative() { -1 } else { 1 })
        }
        ("isInteger", [Value::Quantity(one)]) => Value::Bool(one.integer().is_some()),
        ("asInteger", [Value::Quantity(one)]) => match one.integer() {
            Some(number) => Value::Int(number),
            None => {
                return Some(Err(Error::new("cannot convert value to integer")));
            }
        },
        ("asApproximateFloat", [Value::Quantity(one)]) => Value::Double(one.ones()),
        ("compareTo", [Value::Quantity(one), Value::Quantity(other)]) => {
            Value::Int(one.cmp(other) as i64)
        }
        ("isGreaterThan", [Value::Quantity(one), Value::Quantity(other)]) => {
            Value::Bool(one > other)
        }
        ("isLessThan", [Value::Quantity(one), Value::Quantity(other)]) => Value::Bool(one < other),
        ("add" | "sub", [Value::Quantity(one), other]) => {
            let other = match other {
                Value::Quantity(other) => *other,
                Value::Int(number) => Quantity::parse(&number.to_string())?,
                _ => return None,
            };
            Value::Quantity(if name == "add" { *one + other } else { *one - other })
        }
        _ => return None,
    };
    Some(Ok(value))
}
