//! Durations as Go writes them: `1h30m`, `1.5s`.

use std::time::Duration;

/// Units and their nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Digits of a fraction that count: a nanosecond of an hour has fewer.
const MAX_FRACTION_DIGITS: usize = 18;

/// Reads a duration; a negative one reads as zero.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let positive = text.strip_prefix(['-', '+']).unwrap_or(text);
    if positive == "0" {
        return Ok(Duration::ZERO);
    }
    if positive.is_empty() {
        return Err(invalid());
    }
    let mut rest = positive;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = leading(rest, |character| character.is_ascii_digit() || character == '.');
        let after = rest.strip_prefix(number).unwrap_or_default();
        let unit = leading(after, |character| !character.is_ascii_digit() && character != '.');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, unit_ns)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        let part = nanoseconds(whole, fraction, *unit_ns).ok_or_else(invalid)?;
        total = total.saturating_add(part);
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    // Go counts nanoseconds in 63 bits.
    let total = i64::try_from(total).map_err(|_| invalid())?;
    let is_negative = text.starts_with('-');
    Ok(Duration::from_nanos(if is_negative { 0 } else { total.unsigned_abs() }))
}

fn nanoseconds(whole: &str, fraction: &str, unit_ns: u128) -> Option<u128> {
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok() };
    let fraction = fraction.get(..MAX_FRACTION_DIGITS).unwrap_or(fraction);
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let parts = u128::from(digits(fraction)?) * unit_ns / scale;
    u128::from(digits(whole)?).checked_mul(unit_ns)?.checked_add(parts)
}

fn leading(text: &str, is_part: impl Fn(char) -> bool) -> &str {
    let end = text.find(|character| !is_part(character)).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}
