//! The five fields of a schedule, as sets of bits.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp as Instant};

use crate::Timestamp;

/// Set beside the values of a field that restricts nothing: of day and weekday such a one yields
/// to the other.
const STAR: u64 = 1 << 63;
/// How far ahead a time is looked for, years.
const MAX_YEARS_AHEAD: i16 = 5;
const MINUTES_PER_HOUR: i8 = 60;

/// The values of each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
}

/// What a field may hold.
struct Bounds {
    min: u64,
    max: u64,
    /// Names for values that follow one another from `min`.
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds =
    Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Fields {
    /// Reads minutes, hours, days, months and weekdays.
    pub fn parse([minutes, hours, days, months, weekdays]: [&str; 5]) -> Result<Self, String> {
        Ok(Self {
            minutes: field(minutes, &MINUTES)?,
            hours: field(hours, &HOURS)?,
            days: field(days, &DAYS)?,
            months: field(months, &MONTHS)?,
            weekdays: field(weekdays, &WEEKDAYS)?,
        })
    }

    /// The first time after `after` by the clocks of a zone. An hour that the clocks skip has no
    /// times; in one that they repeat all come twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.minutes == 0 || self.hours == 0 {
            return None;
        }
        let minute = after.seconds().div_euclid(60).checked_add(1)?;
        let mut at = Instant::from_second(minute.checked_mul(60)?).ok()?;
        let mut date = zone.to_datetime(at).date();
        let last_year = date.year().saturating_add(MAX_YEARS_AHEAD);
        while date.year() <= last_year {
            let found = if self.has_day(date) { self.within(date, at, zone) } else { None };
            if let Some(found) = found {
                return Some(Timestamp::from_seconds(found.as_second()));
            }
            date = date.tomorrow().ok()?;
            at = date.to_zoned(zone.clone()).ok()?.timestamp();
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let has = |set: u64, value: i8| set & bit(value) != 0;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let restricts_both = (self.days | self.weekdays) & STAR == 0;
        has(self.months, date.month())
            && if restricts_both { day || weekday } else { day && weekday }
    }

    /// The first time on `date` that is not before `at`, which is on that date.
    fn within(&self, date: Date, mut at: Instant, zone: &TimeZone) -> Option<Instant> {
        loop {
            let local = zone.to_datetime(at);
            if local.date() != date {
                return None;
            }
            let step_minutes = if self.hours & bit(local.hour()) == 0 {
                MINUTES_PER_HOUR - local.minute()
            } else if self.minutes & bit(local.minute()) == 0 {
                1
            } else {
                return Some(at);
            };
            at = at.checked_add(SignedDuration::from_mins(step_minutes.into())).ok()?;
        }
    }
}

fn bit(value: i8) -> u64 {
    u32::try_from(value).ok().and_then(|value| 1_u64.checked_shl(value)).unwrap_or(0)
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts.map(|part| range(part, bounds)).try_fold(0, |all, part| Ok(all | part?))
}

/// Reads `*`, `5`, `1-5`, each with a step behind it or not. A number with a step goes on to the
/// end.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let (values, step) = match text.split('/').collect::<Vec<_>>().as_slice() {
        [values] => (*values, None),
        [values, step] => (*values, Some(*step)),
        _ => return Err(format!("too many slashes: {text}")),
    };
    let parts: Vec<&str> = values.split('-').collect();
    let is_any = matches!(parts.first(), Some(&"*" | &"?"));
    let (start, mut end) = match parts.as_slice() {
        _ if is_any => (bounds.min, bounds.max),
        [one] => {
            let value = value(one, bounds)?;
            (value, value)
        }
        [first, last] => (value(first, bounds)?, value(last, bounds)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match step {
        None => 1,
        Some(step) => {
            if parts.len() == 1 {
                end = bounds.max;
            }
            number(step)?
        }
    };
    if start < bounds.min {
        let min = bounds.min;
        return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > bounds.max {
        let max = bounds.max;
        return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let chosen = (start..=end).filter(|value| (value - start) % step == 0);
    let bits = chosen.fold(0, |bits, value| bits | 1 << value);
    Ok(if is_any && step == 1 { bits | STAR } else { bits })
}

fn value(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match (bounds.min..).zip(bounds.names).find(|(_, name)| **name == lower) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<i64>().map_err(|error| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}")
    })?;
    u64::try_from(parsed).map_err(|_| format!("negative number ({parsed}) not allowed: {text}"))
}
