//! Versions (semver.org 2.0.0), as the `semver` library of Kubernetes has them.

use std::cmp::Ordering;

use super::{Said, unreadable};
use crate::cel::value::Value;

/// A version. What is built of it has no part in the order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Semver {
    numbers: [u64; 3],
    stage: Stage,
}

/// What comes before a version: a version itself comes last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Before(Vec<Part>),
    Itself,
}

/// A part of a pre-release: numbers come before texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Text(String),
}

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let read = |text: &str, rest: &[Value<'_>]| match rest {
        [] => Some(Semver::parse(text)),
        [Value::Bool(normalize)] if *normalize => Some(Semver::parse(&normalized(text))),
        [Value::Bool(_)] => Some(Semver::parse(text)),
        _ => None,
    };
    let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    let value = match (name, arguments) {
        ("isSemver", [Value::Text(text), rest @ ..]) => Value::Bool(read(text, rest)?.is_some()),
        ("semver", [Value::Text(text), rest @ ..]) => match read(text, rest)? {
            Some(version) => Value::Semver(version.into()),
            None => return Some(Err(unreadable("kubernetes.Semver", text))),
        },
        ("major", [Value::Semver(one)]) => number(one.numbers[0]),
        ("minor", [Value::Semver(one)]) => number(one.numbers[1]),
        ("patch", [Value::Semver(one)]) => number(one.numbers[2]),
        (_, [Value::Semver(one), Value::Semver(other)]) => {
            let order = one.cmp(other);
            match name {
                "compareTo" => Value::Int(order as i64),
                "isLessThan" => Value::Bool(order == Ordering::Less),
                "isGreaterThan" => Value::Bool(order == Ordering::Greater),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(Ok(value))
}

impl Semver {
    fn parse(text: &str) -> Option<Self> {
        let (text, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
        let is_word = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if build.is_some_and(|build| !build.split('.').all(is_word)) {
            return None;
        }
        let (core, stage) = text.split_once('-').map_or((text, None), |(a, b)| (a, Some(b)));
        let numbers: Option<Vec<u64>> = core.split('.').map(number).collect();
        let part = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
            _ if !is_word(part) => None,
            true => number(part).map(Part::Number),
            false => Some(Part::Text(part.to_owned())),
        };
        let stage = match stage {
            None => Stage::Itself,
            Some(parts) => Stage::Before(parts.split('.').map(part).collect::<Option<_>>()?),
        };
        Some(Self { numbers: numbers?.try_into().ok()?, stage })
    }
}

/// A number without zeros in front.
fn number(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_plain = is_plain && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// What people write, as a version: without `v` and zeros in front, with all three numbers.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let plain = |number: &str| match number.trim_start_matches('0') {
        "" if !number.is_empty() => "0".to_owned(),
        number => number.to_owned(),
    };
    let mut numbers: Vec<String> = core.split('.').map(plain).collect();
    while numbers.len() < 3 {
        numbers.push("0".to_owned());
    }
    format!("{}{rest}", numbers.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_the_order_of_the_specification() {
        let versions = [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.9.0",
            "1.10.0",
        ];
        let read: Vec<Semver> =
            versions.iter().map(|text| Semver::parse(text).expect("a version")).collect();
        assert!(read.is_sorted_by(|one, other| one < other));
        assert_eq!(Semver::parse("1.0.0+a"), Semver::parse("1.0.0+b-c.d"));
        for wrong in
            ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-a..b", "1.0.0-01", "1.0.0+"]
        {
            assert_eq!(Semver::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn versions_are_normalized_on_demand() {
        for (text, expected) in [
            ("v1", "1.0.0"),
            ("01.02.03-rc.1", "1.2.3-rc.1"),
            ("1.2", "1.2.0"),
            ("0", "0.0.0"),
            ("1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(normalized(text), expected);
        }
    }
}
