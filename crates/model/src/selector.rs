//! Label selectors: the map form of Services and the rich form of workloads.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::FlatMap;
use crate::meta::null_as_default;

/// A `metav1.LabelSelector`. All requirements must hold; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be present with exactly these values.
    #[serde(deserialize_with = "null_as_default")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(deserialize_with = "null_as_default")]
    pub match_expressions: Vec<Requirement>,
}

/// One entry of `matchExpressions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How the value is compared.
    pub operator: Operator,
    /// The values of `In` and `NotIn`.
    #[serde(deserialize_with = "null_as_default")]
    pub values: Vec<String>,
}

/// The operators of `matchExpressions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The value is one of `values`.
    In,
    /// The key is absent, or its value none of `values`.
    NotIn,
    /// The key is present.
    #[default]
    Exists,
    /// The key is absent.
    DoesNotExist,
}

/// Labels of an object, in whatever they are kept.
pub trait Labels {
    /// The value of a label.
    fn value(&self, key: &str) -> Option<&String>;
}

impl Labels for BTreeMap<String, String> {
    fn value(&self, key: &str) -> Option<&String> {
        self.get(key)
    }
}

impl Labels for FlatMap<String, String> {
    fn value(&self, key: &str) -> Option<&String> {
        self.get(key)
    }
}

impl LabelSelector {
    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &impl Labels) -> bool {
        matches_map(&self.match_labels, labels)
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

/// The text form: `tier!=db,app in (web, api),canary,!old`.
impl FromStr for LabelSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut depth = 0_usize;
        let parts = text.split(|letter| {
            match letter {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            letter == ',' && depth == 0
        });
        let requirements: Result<Vec<Requirement>, String> =
            parts.filter(|_| !text.trim().is_empty()).map(str::parse).collect();
        Ok(Self { match_labels: BTreeMap::new(), match_expressions: requirements? })
    }
}

/// One part of the text form.
impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || {
            format!(
                "{text:?} is no requirement of labels: write KEY=VALUE, KEY!=VALUE, \
                 KEY in (VALUE, VALUE), KEY notin (VALUE), KEY or !KEY"
            )
        };
        let single = |value: &str| vec![value.trim().to_owned()];
        let (key, operator, values) = if let Some((key, value)) = text.split_once("!=") {
            (key, Operator::NotIn, single(value))
        } else if let Some((key, value)) = text.split_once("==").or(text.split_once('=')) {
            (key, Operator::In, single(value))
        } else if let Some((before, list)) = text.split_once('(') {
            let (key, word) = before.trim().rsplit_once(char::is_whitespace).ok_or_else(wrong)?;
            let operator = match word {
                "in" => Operator::In,
                "notin" => Operator::NotIn,
                _ => return Err(wrong()),
            };
            let list = list.strip_suffix(')').ok_or_else(wrong)?;
            (key, operator, list.split(',').flat_map(single).collect())
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist, vec![])
        } else {
            (text, Operator::Exists, vec![])
        };
        let key = key.trim();
        if !is_label_key(key) || !values.iter().all(|value| value.is_empty() || is_label(value)) {
            return Err(wrong());
        }
        Ok(Self { key: key.to_owned(), operator, values })
    }
}

/// The longest value of a label, and the longest name in its key, in octets.
const LABEL_OCTETS_MAX: usize = 63;
/// The longest domain before the name in a key, in octets.
const PREFIX_OCTETS_MAX: usize = 253;

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= PREFIX_OCTETS_MAX && prefix.split('.').all(is_label) && is_label(name)
        }
        None => is_label(key),
    }
}

fn is_label(text: &str) -> bool {
    let is_end = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
    let octets = text.as_bytes();
    octets.len() <= LABEL_OCTETS_MAX
        && is_end(octets.first())
        && is_end(octets.last())
        && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(octet))
}

impl Requirement {
    fn matches(&self, labels: &impl Labels) -> bool {
        let value = labels.value(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Whether `labels` hold every pair of `wanted`: the selector form of Services.
/// The empty map matches everything here; a Service with an empty selector selects nothing, which
/// its reader decides.
pub fn matches_map<W>(wanted: &W, labels: &impl Labels) -> bool
where
    for<'a> &'a W: IntoIterator<Item = (&'a String, &'a String)>,
{
    wanted.into_iter().all(|(key, value)| labels.value(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn not_in_holds_for_an_absent_key() {
        let selector: LabelSelector = serde_json::from_str(
            r#"{"matchLabels":null,"matchExpressions":[{"key":"tier","operator":"NotIn","values":["db"]}]}"#,
        )
        .expect("a selector");
        assert!(selector.matches(&labels(&[("app", "web")])));
        assert!(selector.matches(&labels(&[("tier", "web")])));
        assert!(!selector.matches(&labels(&[("tier", "db")])));
    }

    #[test]
    fn the_text_form_selects_what_it_says() {
        let web = labels(&[("app", "web"), ("example.com/tier", "front")]);
        for (text, expected) in [
            ("", true),
            (" ", true),
            ("app=web", true),
            ("app == web", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (api, web),example.com/tier", true),
            ("app in (api,db)", false),
            ("app notin (api),!canary", true),
            ("!app", false),
            ("canary", false),
            ("app=", false),
            ("canary notin ()", true),
        ] {
            let selector: LabelSelector = text.parse().expect(text);
            assert_eq!(selector.matches(&web), expected, "{text}");
        }
        for text in [
            "app=web,",
            "=web",
            "app in web",
            "app near (web)",
            "in (web)",
            "app in (web",
            "app>3",
            "a b",
            "a/b/c",
            "app=web=api",
            "-app",
            "app=we b",
            "(web)",
            "!",
            "/app",
            ",",
        ] {
            assert!(text.parse::<LabelSelector>().is_err(), "{text}");
        }
    }
}
