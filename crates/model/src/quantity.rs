//! Quantities of resources: `500m`, `1.5Gi`, `2e3` (apimachinery's `resource.Quantity`).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

/// Nanos in one: the finest part that a quantity has.
const NANOS: i128 = 1_000_000_000;
/// Digits of a number that is read: more do not fit.
const MAX_DIGITS: usize = 28;

/// Decimal suffixes with their powers of ten.
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
/// Binary suffixes with their powers of 1024.
const BINARY: [(&str, u32); 6] = [("Ki", 1), ("Mi", 2), ("Gi", 3), ("Ti", 4), ("Pi", 5), ("Ei", 6)];

/// How a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Decimal,
    Binary,
    Exponent,
}

/// An amount of something. Amounts are equal whatever way they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

impl Quantity {
    /// One.
    pub const ONE: Self = Self { nanos: NANOS, form: Form::Decimal };

    /// Reads a quantity; parts below a nano are rounded up. `None` when the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, suffix) = unsigned.split_at_checked(end.unwrap_or(unsigned.len()))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0
            || whole.len() + fraction.len() > MAX_DIGITS
            || fraction.contains('.')
        {
            return None;
        }
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let places = i32::try_from(fraction.len()).ok()?;
        let (nanos, form) = scale(digits, places, suffix)?;
        let nanos = if text.starts_with('-') { nanos.checked_neg()? } else { nanos };
        Some(Self { nanos, form })
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether nothing is left of it behind the point.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    /// How many times `other` fits into it; `None` for nothing.
    pub fn ratio(&self, other: &Self) -> Option<f64> {
        // What is compared are sizes of requests: far below what a double tells apart.
        (other.nanos != 0).then(|| self.nanos as f64 / other.nanos as f64)
    }

    /// The amount as a whole number; `None` when it is none, or does not fit.
    pub fn integer(&self) -> Option<i64> {
        i64::try_from(self.nanos / NANOS).ok().filter(|_| self.is_whole())
    }

    /// The amount in thousandths, rounded up, as processors are counted; nothing below zero.
    pub fn thousandths(&self) -> u64 {
        let unit = NANOS / 1_000;
        u64::try_from(self.nanos.max(0).saturating_add(unit - 1) / unit).unwrap_or(u64::MAX)
    }

    /// The amount as a number of ones.
    pub fn ones(&self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }
}

/// Nanos of `digits` with `places` behind the point and a suffix.
fn scale(digits: i128, places: i32, suffix: &str) -> Option<(i128, Form)> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        let nanos = digits.checked_mul(1024_i128.checked_pow(*power)?)?;
        return Some((shift(nanos, 9 - places)?, Form::Binary));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((shift(digits, 9 + power - places)?, Form::Decimal));
    }
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = power.checked_add(9)?.checked_sub(places)?;
    Some((shift(digits, power)?, Form::Exponent))
}

/// Moves the point; what falls off is rounded up.
fn shift(digits: i128, power: i32) -> Option<i128> {
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    if power >= 0 {
        return if digits == 0 { Some(0) } else { digits.checked_mul(factor?) };
    }
    let Some(factor) = factor else { return Some(i128::from(digits != 0)) };
    Some(digits / factor + i128::from(digits % factor != 0))
}

impl fmt::Display for Quantity {
    /// The canonical text: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let ones = self.nanos / NANOS;
        let is_whole = self.nanos % NANOS == 0;
        if self.form == Form::Binary && is_whole && ones.unsigned_abs() >= 1024 {
            let fits = |(_, power): &&(&str, u32)| ones % 1024_i128.pow(*power) == 0;
            return match BINARY.iter().rev().find(fits) {
                Some((suffix, power)) => write!(f, "{}{suffix}", ones / 1024_i128.pow(*power)),
                None => write!(f, "{ones}"),
            };
        }
        let unit = |power: i32| 10_i128.pow((power + 9).unsigned_abs());
        let fits = |(_, power): &&(&str, i32)| self.nanos % unit(*power) == 0;
        // Nanos always fit.
        let (suffix, power) = DECIMAL.iter().rev().find(fits).copied().unwrap_or(("n", -9));
        let count = self.nanos / unit(power);
        match (self.form, power) {
            (Form::Exponent, power) if power != 0 => write!(f, "{count}e{power}"),
            (Form::Binary, power) if power > 0 => write!(f, "{ones}"),
            _ => write!(f, "{count}{suffix}"),
        }
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, written as the first unless that is nothing.
    fn add(self, other: Self) -> Self {
        let form = if self.is_zero() { other.form } else { self.form };
        Self { nanos: self.nanos.saturating_add(other.nanos), form }
    }
}

impl Sub for Quantity {
    type Output = Self;

    /// The difference, written as the first unless that is nothing.
    fn sub(self, other: Self) -> Self {
        let form = if self.is_zero() { other.form } else { self.form };
        Self { nanos: self.nanos.saturating_sub(other.nanos), form }
    }
}

impl From<u32> for Quantity {
    fn from(number: u32) -> Self {
        Self { nanos: i128::from(number) * NANOS, form: Form::Decimal }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|| panic!("{text} is a quantity"))
    }

    #[test]
    fn texts_become_canonical() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("+5", "5"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("-1.5", "-1500m"),
            ("2000", "2k"),
            ("1500k", "1500k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1000Ki", "1000Ki"),
            ("0.1Ki", "102400m"),
            ("2e3", "2e3"),
            ("1E", "1E"),
            ("12E2", "1200"),
            ("1n", "1n"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(quantity(text).to_string(), canonical, "{text}");
            assert_eq!(quantity(canonical), quantity(text), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_not_read() {
        let long = "9".repeat(29);
        for text in ["", "-", ".", "m", "1.2.3", "1x", "1 Gi", "e3", "1e", "1e99", "1Kii", &long] {
            assert!(Quantity::parse(text).is_none(), "{text}");
        }
        assert!(Quantity::parse("0e99").is_some_and(|zero| zero.is_zero()));
    }

    #[test]
    fn amounts_are_compared_and_added_whatever_their_texts() {
        assert_eq!(quantity("1Gi"), quantity("1073741824"));
        assert!(quantity("999m") < quantity("1"));
        assert_eq!((quantity("1Gi") + quantity("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::default() + quantity("512Mi")).to_string(), "512Mi");
        assert_eq!(quantity("2").ratio(&quantity("500m")), Some(4.0));
        assert_eq!(quantity("2").ratio(&Quantity::default()), None);
    }
}
