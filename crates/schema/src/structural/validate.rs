//! Whether an object is what its schema says, in the words of kube-openapi's validation.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Fault, Kind, List, Schema, format};
use crate::decode::go_kind;

/// Most faults that are told of one object.
pub const MAX_FAULTS: usize = 100;
/// Where the real server files what the combined schemas (`oneOf` and so on) have to say.
pub(super) const NO_FIELD: &str = "<nil>";

impl Schema {
    /// What is wrong with an object: `path` is where it stands, empty for the root.
    pub fn validate(&self, value: &Value, path: &str) -> Vec<Fault> {
        self.validate_change(value, None, path)
    }

    /// What is wrong with a new object. What the change left as it was is not judged again, so that
    /// a schema can become stricter than the objects that are there (KEP-4008).
    pub fn validate_change(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.judge(value, old, path, &mut faults);
        faults.truncate(MAX_FAULTS);
        faults
    }

    fn judge(&self, value: &Value, old: Option<&Value>, path: &str, faults: &mut Vec<Fault>) {
        if faults.len() >= MAX_FAULTS || old == Some(value) {
            return;
        }
        if value.is_null() && self.nullable {
            return;
        }
        if !self.kind.fits(value) {
            let found = type_of(value);
            let why = format!("{path} in body must be of type {}: {found:?}", self.kind.name());
            faults.push(Fault::wrong_type(path, found, &why));
            return;
        }
        if !self.choices.is_empty() && !self.choices.contains(value) {
            faults.push(Fault::unsupported(path, value, &self.choices));
        }
        match value {
            Value::Object(members) => self.judge_members(members, old, path, faults),
            Value::Array(items) => self.judge_items(items, old, path, faults),
            Value::String(text) => self.judge_text(text, path, faults),
            Value::Number(_) => self.judge_number(value, path, faults),
            Value::Null | Value::Bool(_) => {}
        }
        self.judge_combinations(value, path, faults);
    }

    fn judge_members(
        &self,
        members: &Map<String, Value>,
        old: Option<&Value>,
        path: &str,
        faults: &mut Vec<Fault>,
    ) {
        let count = members.len() as u64;
        if let Some(limit) = self.bounds.min_properties.filter(|limit| count < *limit) {
            let why = format!("{path} in body should have at least {limit} properties");
            faults.push(Fault::invalid(path, &count.into(), &why));
        }
        if let Some(limit) = self.bounds.max_properties.filter(|limit| count > *limit) {
            faults.push(Fault::too_many(path, count, limit));
        }
        let absent = self.required.iter().filter(|name| !members.contains_key(*name));
        faults.extend(absent.map(|name| Fault::required(join(path, name), "")));
        if self.embedded {
            for name in ["apiVersion", "kind"] {
                if members.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                    faults.push(Fault::required(join(path, name), "must not be empty"));
                }
            }
        }
        for (name, member) in members {
            if let Some(schema) = self.member(name) {
                let old = old.and_then(|old| old.get(name));
                schema.judge(member, old, &join(path, name), faults);
            }
        }
    }

    fn judge_items(
        &self,
        items: &[Value],
        old: Option<&Value>,
        path: &str,
        faults: &mut Vec<Fault>,
    ) {
        let count = items.len() as u64;
        if let Some(limit) = self.bounds.min_items.filter(|limit| count < *limit) {
            let why = format!("{path} in body should have at least {limit} items");
            faults.push(Fault::invalid(path, &count.into(), &why));
        }
        if let Some(limit) = self.bounds.max_items.filter(|limit| count > *limit) {
            faults.push(Fault::too_many(path, count, limit));
        }
        let known = self.by_key(old);
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let place = format!("{path}[{index}]");
            if let Some(key) = self.key_of(item)
                && !seen.insert(key.to_string())
            {
                faults.push(Fault::duplicate(&place, &key));
            }
            if let Some(schema) = &self.items {
                schema.judge(item, self.same_item(item, &known), &place, faults);
            }
        }
    }

    /// What must be distinct between the items of a list.
    pub(super) fn key_of(&self, item: &Value) -> Option<Value> {
        match &self.list {
            List::Atomic => None,
            List::Set => Some(item.clone()),
            List::Map(keys) => {
                let members =
                    keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
                Some(Value::Object(members.collect()))
            }
        }
    }

    fn judge_text(&self, text: &str, path: &str, faults: &mut Vec<Fault>) {
        let length = text.chars().count() as u64;
        let value = Value::from(text);
        if let Some(limit) = self.bounds.max_length.filter(|limit| length > *limit) {
            faults.push(Fault::too_long(path, limit));
        }
        if let Some(limit) = self.bounds.min_length.filter(|limit| length < *limit) {
            let why = format!("{path} in body should be at least {limit} chars long");
            faults.push(Fault::invalid(path, &value, &why));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            let why = format!("{path} in body should match '{}'", pattern.as_str());
            faults.push(Fault::invalid(path, &value, &why));
        }
        if !format::fits(&self.format, text) {
            let why = format!("{path} in body must be of type {}: {text:?}", self.format);
            faults.push(Fault::wrong_type(path, text, &why));
        }
    }

    fn judge_number(&self, value: &Value, path: &str, faults: &mut Vec<Fault>) {
        let Some(number) = value.as_f64() else { return };
        let bounds = &self.bounds;
        let mut tell = |why: String| faults.push(Fault::invalid(path, value, &why));
        if let Some(limit) = bounds.minimum {
            match bounds.exclusive_minimum {
                true if number <= limit => {
                    tell(format!("{path} in body should be greater than {limit}"))
                }
                false if number < limit => {
                    tell(format!("{path} in body should be greater than or equal to {limit}"));
                }
                _ => {}
            }
        }
        if let Some(limit) = bounds.maximum {
            match bounds.exclusive_maximum {
                true if number >= limit => {
                    tell(format!("{path} in body should be less than {limit}"))
                }
                false if number > limit => {
                    tell(format!("{path} in body should be less than or equal to {limit}"));
                }
                _ => {}
            }
        }
        if let Some(factor) = bounds.multiple_of.filter(|factor| number % factor != 0.0) {
            tell(format!("{path} in body should be a multiple of {factor}"));
        }
    }

    fn judge_combinations(&self, value: &Value, path: &str, faults: &mut Vec<Fault>) {
        let mut tell = |why: String| faults.push(Fault::invalid(NO_FIELD, &"".into(), &why));
        let judged = |schemas: &[Self]| -> Vec<Vec<Fault>> {
            schemas.iter().map(|schema| schema.validate(value, path)).collect()
        };
        let valid = |judged: &[Vec<Fault>]| judged.iter().filter(|one| one.is_empty()).count();
        let any = judged(&self.any_of);
        let (is_any, is_one) = (!any.is_empty(), !self.one_of.is_empty());
        if is_any && valid(&any) == 0 {
            tell(format!("{path:?} must validate at least one schema (anyOf)"));
        }
        let one = judged(&self.one_of);
        match valid(&one) {
            1 => {}
            0 if is_one => {
                let rule = "must validate one and only one schema (oneOf)";
                tell(format!("{path:?} {rule}. Found none valid"));
            }
            0 => {}
            count => {
                let rule = "must validate one and only one schema (oneOf)";
                tell(format!("{path:?} {rule}. Found {count} valid alternatives"));
            }
        }
        let all = judged(&self.all_of);
        if valid(&all) < all.len() {
            let none = if valid(&all) == 0 { ". None validated" } else { "" };
            tell(format!("{path:?} must validate all the schemas (allOf){none}"));
        }
        if self.not.as_ref().is_some_and(|not| not.validate(value, path).is_empty()) {
            tell(format!("{path:?} must not validate the schema (not)"));
        }
        // What would have to change for the first alternative.
        for (judged, failed) in
            [(&any, is_any && valid(&any) == 0), (&one, is_one && valid(&one) == 0)]
        {
            if let Some(first) = judged.first().filter(|_| failed) {
                faults.extend(first.iter().cloned());
            }
        }
        faults.extend(all.into_iter().flatten());
    }
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Array => value.is_array(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => is_integer(value),
            Self::Number => value.is_number(),
            Self::Object => value.is_object(),
            Self::String => value.is_string(),
            Self::IntOrString => is_integer(value) || value.is_string(),
        }
    }
}

/// A number without a fraction: `1.0` is one too.
fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// The name of a value's type in JSON schema.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        other => go_kind(other),
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
