//! Lists.

use std::cmp::Ordering;

use super::{Said, number, time};
use crate::cel::Error;
use crate::cel::cost::Meter;
use crate::cel::value::{List, Value};

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>], meter: &mut Meter) -> Option<Said<'a>> {
    match (name, arguments) {
        ("isSorted", [Value::List(list)]) => Some(is_sorted(list, meter)),
        ("sum", [Value::List(list)]) => Some(sum(list, meter)),
        ("min", [Value::List(list)]) => Some(extreme(list, Ordering::Less, meter)),
        ("max", [Value::List(list)]) => Some(extreme(list, Ordering::Greater, meter)),
        _ => None,
    }
}

fn compare(one: &Value<'_>, other: &Value<'_>, meter: &mut Meter) -> Result<Ordering, Error> {
    meter.charge_text(one.size().min(other.size()).max(1))?;
    one.compare(other).ok_or_else(|| Error::new("no such overload"))
}

fn is_sorted<'a>(list: &List<'a>, meter: &mut Meter) -> Said<'a> {
    for (one, other) in list.iter().zip(list.iter().skip(1)) {
        if compare(&one, &other, meter)?.is_gt() {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

/// The sum; of nothing, zero.
fn sum<'a>(list: &List<'a>, meter: &mut Meter) -> Said<'a> {
    let mut items = list.iter();
    let mut total = items.next().unwrap_or(Value::Int(0));
    for item in items {
        meter.charge(1)?;
        let pair = [total, item];
        let added = number::call("_+_", &pair).or_else(|| time::call("_+_", &pair));
        total = added.unwrap_or_else(|| Err(Error::new("no such overload")))?;
    }
    Ok(total)
}

fn extreme<'a>(list: &List<'a>, wanted: Ordering, meter: &mut Meter) -> Said<'a> {
    let mut items = list.iter();
    let name = if wanted.is_lt() { "min" } else { "max" };
    let empty = || Error::new(format!("{name} called on empty list"));
    let mut found = items.next().ok_or_else(empty)?;
    for item in items {
        if compare(&item, &found, meter)? == wanted {
            found = item;
        }
    }
    Ok(found)
}
