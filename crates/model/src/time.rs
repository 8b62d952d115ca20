//! Points in time, as values: nobody in a pure crate asks a clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
///
/// Kubernetes writes two forms: `Time`, whole seconds (`2026-11-20T23:12:29Z`, [`Display`]), and
/// `MicroTime`, six digits (`2026-11-20T23:12:29.123456Z`, [`Timestamp::micro`]).
///
/// [`Display`]: fmt::Display
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    microseconds: i64,
}

impl Timestamp {
    /// The point this many microseconds after the epoch.
    pub const fn from_microseconds(microseconds: i64) -> Self {
        Self { microseconds }
    }

    /// The point this many whole seconds after the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { microseconds: seconds.saturating_mul(1_000_000) }
    }

    /// Microseconds since the epoch.
    pub const fn microseconds(self) -> i64 {
        self.microseconds
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.microseconds.div_euclid(1_000_000)
    }

    /// Reads RFC 3339, with or without a fraction. `None` when it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed: jiff::Timestamp = text.parse().ok()?;
        Some(Self { microseconds: parsed.as_microsecond() })
    }

    /// The `MicroTime` form: always six digits of fraction.
    pub fn micro(self) -> String {
        format!("{:.6}", self.civil())
    }

    /// The time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.microseconds.saturating_sub(earlier.microseconds).max(0) as u64)
    }

    /// The point `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        let add = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self { microseconds: self.microseconds.saturating_add(add) }
    }

    fn civil(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.microseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole =
            jiff::Timestamp::from_second(self.seconds()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{whole}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_print_as_kubernetes_prints_them() {
        let time = Timestamp::parse("2026-11-20T23:12:29.5Z").expect("a time");
        assert_eq!(time.to_string(), "2026-11-20T23:12:29Z");
        assert_eq!(time.micro(), "2026-11-20T23:12:29.500000Z");
        assert_eq!(
            Timestamp::parse(&time.to_string()).map(Timestamp::seconds),
            Some(time.seconds())
        );
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn arithmetic_never_goes_below_zero() {
        let early = Timestamp::from_seconds(10);
        let late = early.after(Duration::from_secs(5));
        assert_eq!(late.since(early), Duration::from_secs(5));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
