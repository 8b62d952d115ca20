//! Points in time and spans of it, in UTC or the zone that is asked for.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};
use model::cron::Zone;

use super::{Said, unreadable};
use crate::cel::Error;
use crate::cel::value::{Value, timestamp};

/// Units of Go's durations, in nanoseconds.
const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Reads Go's form of a duration: `1h30m`, `-1.5s`, `0`. `None` for what is none, or too long for
/// 64 bits of nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<SignedDuration> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut rest = unsigned;
    let mut nanos = 0i128;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|one: char| one.is_ascii_digit() || one == '.');
        let number = rest.strip_suffix(after)?;
        let end = after.find(|one: char| one.is_ascii_digit() || one == '.');
        let (unit, left) = after.split_at_checked(end.unwrap_or(after.len()))?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let fraction: f64 = format!("0.{fraction}0").parse().ok()?;
        let part = whole.checked_mul(*factor as i128)?.checked_add((fraction * factor) as i128)?;
        nanos = nanos.checked_add(part)?;
        rest = left;
    }
    let nanos = if text.starts_with('-') { nanos.checked_neg()? } else { nanos };
    let nanos = i64::try_from(nanos).ok().filter(|_| !unsigned.is_empty())?;
    Some(SignedDuration::from_nanos(nanos))
}

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let value = match (name, arguments) {
        ("timestamp", [Value::Text(text)]) => match timestamp(text) {
            Some(time) => Value::Timestamp(time),
            None => return Some(Err(unreadable("google.protobuf.Timestamp", text))),
        },
        ("timestamp", [Value::Int(seconds)]) => {
            return Some(point(Timestamp::from_second(*seconds).ok()));
        }
        ("timestamp", [Value::Timestamp(time)]) => Value::Timestamp(*time),
        ("duration", [Value::Text(text)]) => match parse_duration(text) {
            Some(duration) => Value::Duration(duration),
            None => return Some(Err(unreadable("google.protobuf.Duration", text))),
        },
        ("duration", [Value::Int(nanos)]) => Value::Duration(SignedDuration::from_nanos(*nanos)),
        ("duration", [Value::Duration(duration)]) => Value::Duration(*duration),
        ("-_", [Value::Duration(one)]) => return Some(span(one.checked_neg())),
        ("_+_", [Value::Duration(one), Value::Duration(other)]) => {
            return Some(span(one.checked_add(*other)));
        }
        ("_-_", [Value::Duration(one), Value::Duration(other)]) => {
            return Some(span(one.checked_sub(*other)));
        }
        ("_+_", [Value::Timestamp(time), Value::Duration(duration)])
        | ("_+_", [Value::Duration(duration), Value::Timestamp(time)]) => {
            return Some(point(time.checked_add(*duration).ok()));
        }
        ("_-_", [Value::Timestamp(time), Value::Duration(duration)]) => {
            return Some(point(time.checked_sub(*duration).ok()));
        }
        ("_-_", [Value::Timestamp(one), Value::Timestamp(other)]) => {
            Value::Duration(one.duration_since(*other))
        }
        (_, [Value::Duration(duration)]) => Value::Int(part_of_duration(name, *duration)?),
        (_, [Value::Timestamp(time)]) => {
            Value::Int(part_of_time(name, Offset::UTC.to_datetime(*time))?)
        }
        (_, [Value::Timestamp(time), Value::Text(zone)]) => match local(*time, zone) {
            Some(local) => Value::Int(part_of_time(name, local)?),
            None => return Some(Err(Error::new(format!("unknown time zone {}", &**zone)))),
        },
        _ => return None,
    };
    Some(Ok(value))
}

/// A time in a zone: one of the IANA database by its name, or `+05:30`.
fn local(time: Timestamp, zone: &str) -> Option<DateTime> {
    let Some((hours, minutes)) = zone.split_once(':') else {
        let zone = if zone.is_empty() { Zone::UTC } else { Zone::named(zone)? };
        return Some(zone.civil(time));
    };
    let hours: i32 = hours.parse().ok()?;
    let minutes: i32 = minutes.parse().ok().filter(|minutes| (0..60).contains(minutes))?;
    let minutes = if zone.starts_with('-') { -minutes } else { minutes };
    let seconds = hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60)?;
    Some(Offset::from_seconds(seconds).ok()?.to_datetime(time))
}

fn span<'a>(duration: Option<SignedDuration>) -> Said<'a> {
    let fits = |duration: &SignedDuration| i64::try_from(duration.as_nanos()).is_ok();
    let overflow = || Error::new("duration overflow");
    duration.filter(fits).map(Value::Duration).ok_or_else(overflow)
}

fn point<'a>(time: Option<Timestamp>) -> Said<'a> {
    time.map(Value::Timestamp).ok_or_else(|| Error::new("timestamp overflow"))
}

fn part_of_duration(name: &str, duration: SignedDuration) -> Option<i64> {
    match name {
        "getHours" => Some(duration.as_hours()),
        "getMinutes" => Some(duration.as_mins()),
        "getSeconds" => Some(duration.as_secs()),
        "getMilliseconds" => i64::try_from(duration.as_millis()).ok(),
        _ => None,
    }
}

/// Months, days of the month and days of the year count from zero, as in JavaScript.
fn part_of_time(name: &str, time: DateTime) -> Option<i64> {
    let part = match name {
        "getFullYear" => i64::from(time.year()),
        "getMonth" => i64::from(time.month()) - 1,
        "getDate" => i64::from(time.day()),
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDayOfWeek" => i64::from(time.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getHours" => i64::from(time.hour()),
        "getMinutes" => i64::from(time.minute()),
        "getSeconds" => i64::from(time.second()),
        "getMilliseconds" => i64::from(time.millisecond()),
        _ => return None,
    };
    Some(part)
}
