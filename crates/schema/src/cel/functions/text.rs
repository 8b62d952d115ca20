//! Texts and regular expressions.

use super::{Said, length};
use crate::cel::Error;
use crate::cel::cost::{Meter, Pattern};
use crate::cel::value::{List, Value};

pub(super) fn call<'a>(
    name: &str,
    arguments: &[Value<'a>],
    pattern: Option<&Pattern>,
    meter: &mut Meter,
) -> Option<Said<'a>> {
    let (first, rest) = arguments.split_first()?;
    let said = match (name, first, rest) {
        ("string" | "bytes", value, []) => convert(name, value, meter)?,
        ("join", Value::List(list), rest) => join(list, rest, meter),
        ("_+_", Value::Bytes(one), [Value::Bytes(other)]) => meter
            .charge_text(one.len() + other.len())
            .map(|()| Value::Bytes([&**one, &**other].concat().into())),
        (_, Value::Text(text), [Value::Text(wanted), rest @ ..]) => {
            with_text(name, text, wanted, rest, pattern, meter)?
        }
        (_, Value::Text(text), rest) => alone(name, text, rest, meter)?,
        _ => return None,
    };
    Some(said)
}

/// Functions of a text that take no other.
fn alone<'a>(name: &str, text: &str, rest: &[Value<'a>], meter: &mut Meter) -> Option<Said<'a>> {
    if let Err(error) = meter.charge_text(text.len()) {
        return Some(Err(error));
    }
    let value = match (name, rest) {
        ("size", []) => length(text.chars().count()),
        ("trim", []) => Value::text(text.trim()),
        ("lowerAscii", []) => Value::text(text.to_ascii_lowercase()),
        ("upperAscii", []) => Value::text(text.to_ascii_uppercase()),
        ("strings.quote", []) => Value::text(format!("{text:?}")),
        ("charAt", [Value::Int(place)]) => {
            let count = text.chars().count();
            return Some(match usize::try_from(*place).ok().filter(|place| *place <= count) {
                Some(place) => {
                    Ok(Value::text(text.chars().nth(place).map(String::from).unwrap_or_default()))
                }
                None => Err(out_of_range(*place)),
            });
        }
        ("substring", [Value::Int(begin)]) => return Some(substring(text, *begin, None)),
        ("substring", [Value::Int(begin), Value::Int(end)]) => {
            return Some(substring(text, *begin, Some(*end)));
        }
        ("format", [Value::List(values)]) => return Some(format(text, values, meter)),
        _ => return None,
    };
    Some(Ok(value))
}

/// Functions of a text that take another one.
fn with_text<'a>(
    name: &str,
    text: &str,
    wanted: &str,
    rest: &[Value<'a>],
    pattern: Option<&Pattern>,
    meter: &mut Meter,
) -> Option<Said<'a>> {
    let charged = match name {
        "_+_" => meter.charge_text(text.len() + wanted.len()),
        "startsWith" | "endsWith" => meter.charge_text(wanted.len()),
        "contains" | "indexOf" | "lastIndexOf" => meter.charge_search(text.len(), wanted.len()),
        "matches" | "find" | "findAll" => {
            return matching(name, text, wanted, rest, pattern, meter);
        }
        _ => meter.charge_text(text.len()),
    };
    if let Err(error) = charged {
        return Some(Err(error));
    }
    Some(match (name, rest) {
        ("_+_", []) => Ok(Value::text([text, wanted].concat())),
        ("startsWith", []) => Ok(Value::Bool(text.starts_with(wanted))),
        ("endsWith", []) => Ok(Value::Bool(text.ends_with(wanted))),
        ("contains", []) => Ok(Value::Bool(text.contains(wanted))),
        ("indexOf", []) => Ok(place(text, text.find(wanted))),
        ("lastIndexOf", []) => Ok(place(text, text.rfind(wanted))),
        ("indexOf" | "lastIndexOf", [Value::Int(from)]) => {
            place_from(text, wanted, *from, name == "lastIndexOf")
        }
        ("replace", [Value::Text(new)]) => replace(text, wanted, new, -1, meter),
        ("replace", [Value::Text(new), Value::Int(limit)]) => {
            replace(text, wanted, new, *limit, meter)
        }
        ("split", []) => split(text, wanted, -1, meter),
        ("split", [Value::Int(limit)]) => split(text, wanted, *limit, meter),
        _ => return None,
    })
}

fn matching<'a>(
    name: &str,
    text: &str,
    wanted: &str,
    rest: &[Value<'a>],
    pattern: Option<&Pattern>,
    meter: &mut Meter,
) -> Option<Said<'a>> {
    let made;
    let pattern = match pattern {
        Some(pattern) => pattern,
        None => {
            // Compiling takes about as long as matching a text of that length.
            if let Err(error) = meter.charge(wanted.len()) {
                return Some(Err(error));
            }
            match Pattern::new(wanted) {
                Ok(pattern) => made = pattern,
                Err(error) => {
                    let message = format!("error parsing regexp: {error}");
                    return Some(Err(Error::new(message)));
                }
            }
            &made
        }
    };
    if let Err(error) = meter.charge_match(text.len(), pattern) {
        return Some(Err(error));
    }
    let found = |limit: i64| {
        let found = pattern.regex.find_iter(text).map(|found| Value::text(found.as_str()));
        Value::list(found.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect())
    };
    Some(Ok(match (name, rest) {
        ("matches", []) => Value::Bool(pattern.regex.is_match(text)),
        ("find", []) => {
            let found = pattern.regex.find(text);
            Value::text(found.map(|found| found.as_str()).unwrap_or_default())
        }
        ("findAll", []) => found(-1),
        ("findAll", [Value::Int(limit)]) => found(*limit),
        _ => return None,
    }))
}

fn convert<'a>(name: &str, value: &Value<'a>, meter: &mut Meter) -> Option<Said<'a>> {
    if let Err(error) = meter.charge_text(value.size()) {
        return Some(Err(error));
    }
    if name == "bytes" {
        return match value {
            Value::Bytes(octets) => Some(Ok(Value::Bytes(octets.clone()))),
            Value::Text(text) => Some(Ok(Value::Bytes(text.as_bytes().into()))),
            _ => None,
        };
    }
    Some(match value {
        Value::Text(text) => Ok(Value::Text(text.clone())),
        Value::Bytes(octets) => match std::str::from_utf8(octets) {
            Ok(text) => Ok(Value::text(text)),
            Err(_) => Err(Error::new("invalid UTF-8 in bytes, cannot convert to string")),
        },
        other => Ok(Value::text(scalar(other)?)),
    })
}

/// A scalar as `string()` writes it.
fn scalar(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(duration) => format!("{}s", duration.as_secs_f64()),
        _ => return None,
    })
}

fn join<'a>(list: &List<'a>, rest: &[Value<'a>], meter: &mut Meter) -> Said<'a> {
    let separator = match rest {
        [] => "",
        [Value::Text(separator)] => separator,
        _ => return Err(Error::new("no such overload")),
    };
    let mut joined = String::new();
    for (index, item) in list.iter().enumerate() {
        let Value::Text(text) = item else { return Err(Error::new("no such overload")) };
        let separator = if index > 0 { separator } else { "" };
        meter.charge_text(separator.len() + text.len() + 1)?;
        joined.push_str(separator);
        joined.push_str(&text);
    }
    Ok(Value::text(joined))
}

fn out_of_range(place: i64) -> Error {
    Error::new(format!("index out of range: {place}"))
}

/// A place in bytes as one in characters; `-1` for none.
fn place<'a>(text: &str, found: Option<usize>) -> Value<'a> {
    match found.and_then(|end| text.get(..end)) {
        Some(before) => length(before.chars().count()),
        None => Value::Int(-1),
    }
}

/// Where the character with a number begins, in bytes; the end for the number behind the last.
fn offset(text: &str, number: i64) -> Result<usize, Error> {
    let wrong = || out_of_range(number);
    let number = usize::try_from(number).map_err(|_| wrong())?;
    let mut places = text.char_indices().map(|(place, _)| place).chain([text.len()]);
    places.nth(number).ok_or_else(wrong)
}

fn place_from<'a>(text: &str, wanted: &str, from: i64, is_last: bool) -> Said<'a> {
    let begin = offset(text, from)?;
    let found = if is_last {
        let end = begin.saturating_add(wanted.len()).min(text.len());
        let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(end);
        text.get(..end).and_then(|before| before.rfind(wanted))
    } else {
        text.get(begin..).and_then(|rest| rest.find(wanted)).map(|found| begin + found)
    };
    Ok(place(text, found))
}

fn substring<'a>(text: &str, begin: i64, end: Option<i64>) -> Said<'a> {
    let first = offset(text, begin)?;
    let last = end.map_or(Ok(text.len()), |end| offset(text, end))?;
    match text.get(first..last) {
        Some(part) => Ok(Value::text(part)),
        None => Err(Error::new(format!(
            "invalid substring range. start: {begin}, end: {}",
            end.unwrap_or_default()
        ))),
    }
}

fn replace<'a>(text: &str, old: &str, new: &str, limit: i64, meter: &mut Meter) -> Said<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = text.matches(old).take(limit).count();
    // Paid for before it is made.
    meter.charge_text(text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::text(text.replacen(old, new, limit)))
}

fn split<'a>(text: &str, separator: &str, limit: i64, meter: &mut Meter) -> Said<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let part = |part: &str| Value::text(part);
    let parts: Vec<Value<'a>> = match (separator, limit) {
        (_, 0) => Vec::new(),
        ("", limit) => {
            let mut parts = Vec::new();
            let mut rest = text;
            while let Some(first) = rest.chars().next().filter(|_| parts.len() + 1 < limit) {
                let (one, after) = rest.split_at_checked(first.len_utf8()).unwrap_or((rest, ""));
                parts.push(part(one));
                rest = after;
            }
            parts.extend((!rest.is_empty()).then(|| part(rest)));
            parts
        }
        (separator, limit) => text.splitn(limit, separator).map(part).collect(),
    };
    meter.charge(parts.len())?;
    Ok(Value::list(parts))
}

/// The clauses `%s %d %f %e %b %o %x %X`, with a precision for those that have one.
fn format<'a>(pattern: &str, values: &List<'a>, meter: &mut Meter) -> Said<'a> {
    let mut made = String::new();
    let mut values = values.iter();
    let mut rest = pattern;
    while let Some((before, clause)) = rest.split_once('%') {
        made.push_str(before);
        if let Some(after) = clause.strip_prefix('%') {
            made.push('%');
            rest = after;
            continue;
        }
        let digits = clause.strip_prefix('.').unwrap_or("");
        let after = digits.trim_start_matches(|one: char| one.is_ascii_digit());
        let precision = digits.strip_suffix(after).and_then(|digits| digits.parse::<u8>().ok());
        let clause = if clause.starts_with('.') { after } else { clause };
        let mut following = clause.chars();
        let verb = following.next().ok_or_else(|| Error::new("unexpected end of string"))?;
        let value = values.next().ok_or_else(|| Error::new("index out of range"))?;
        meter.charge_text(value.size().saturating_add(1))?;
        clause_of(verb, precision, &value, meter, &mut made)?;
        rest = following.as_str();
    }
    made.push_str(rest);
    Ok(Value::text(made))
}

fn clause_of(
    verb: char,
    precision: Option<u8>,
    value: &Value<'_>,
    meter: &mut Meter,
    made: &mut String,
) -> Result<(), Error> {
    let places = usize::from(precision.unwrap_or(6));
    let text = match (verb, value) {
        ('s', value) => return show(value, meter, made),
        ('d', Value::Int(_) | Value::Uint(_)) => scalar(value).unwrap_or_default(),
        ('f', Value::Double(number)) => format!("{number:.places$}"),
        ('f', Value::Int(number)) => format!("{:.places$}", *number as f64),
        ('e', Value::Double(number)) => format!("{number:.places$e}"),
        ('e', Value::Int(number)) => format!("{:.places$e}", *number as f64),
        ('b', Value::Int(number)) => signed(*number, &format!("{:b}", number.unsigned_abs())),
        ('b', Value::Uint(number)) => format!("{number:b}"),
        ('b', Value::Bool(truth)) => u8::from(*truth).to_string(),
        ('o', Value::Int(number)) => signed(*number, &format!("{:o}", number.unsigned_abs())),
        ('o', Value::Uint(number)) => format!("{number:o}"),
        ('x', Value::Int(number)) => signed(*number, &format!("{:x}", number.unsigned_abs())),
        ('X', Value::Int(number)) => signed(*number, &format!("{:X}", number.unsigned_abs())),
        ('x', Value::Uint(number)) => format!("{number:x}"),
        ('X', Value::Uint(number)) => format!("{number:X}"),
        ('x' | 'X', Value::Text(text)) => hex(text.as_bytes(), verb),
        ('x' | 'X', Value::Bytes(octets)) => hex(octets, verb),
        (verb, value) => {
            let kind = value.type_name();
            let message = format!("could not parse formatting clause \"%{verb}\" for a {kind}");
            return Err(Error::new(message));
        }
    };
    made.push_str(&text);
    Ok(())
}

fn signed(number: i64, digits: &str) -> String {
    format!("{}{digits}", if number < 0 { "-" } else { "" })
}

fn hex(octets: &[u8], verb: char) -> String {
    let octet =
        |octet: &u8| if verb == 'x' { format!("{octet:02x}") } else { format!("{octet:02X}") };
    octets.iter().map(octet).collect()
}

/// A value as `%s` shows it.
fn show(value: &Value<'_>, meter: &mut Meter, made: &mut String) -> Result<(), Error> {
    meter.charge_text(value.size().saturating_add(1))?;
    match value {
        Value::Null => made.push_str("null"),
        Value::Text(text) => made.push_str(text),
        Value::Bytes(octets) => made.push_str(&String::from_utf8_lossy(octets)),
        Value::Type(name) => made.push_str(name),
        Value::List(list) => {
            made.push('[');
            for (index, item) in list.iter().enumerate() {
                made.push_str(if index > 0 { ", " } else { "" });
                show(&item, meter, made)?;
            }
            made.push(']');
        }
        Value::Map(map) => {
            made.push('{');
            for (index, key) in map.keys().iter().enumerate() {
                made.push_str(if index > 0 { ", " } else { "" });
                meter.charge_text(key.size())?;
                made.push_str(&format!("{key}: "));
                show(&map.get(key).unwrap_or(Value::Null), meter, made)?;
            }
            made.push('}');
        }
        other => match scalar(other) {
            Some(text) => made.push_str(&text),
            None => {
                let kind = other.type_name();
                let message =
                    format!("string clause can only be used on scalars, was given {kind}");
                return Err(Error::new(message));
            }
        },
    }
    Ok(())
}
