//! Faults of fields, in the words of the real server, and the checks that kinds share.

use serde_json::Value;

use crate::status::Cause;

/// The faults found in one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors {
    errors: Vec<Cause>,
}

/// Faults beyond this many are not listed: the answer must stay readable and bounded.
pub const MAX_FIELD_ERRORS: usize = 100;

impl FieldErrors {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The value is wrong.
    pub fn invalid(&mut self, field: impl Into<String>, value: impl Into<Value>, why: &str) {
        let text = format!("Invalid value: {}: {why}", value.into());
        self.push("FieldValueInvalid", field.into(), text);
    }

    /// The value is missing.
    pub fn required(&mut self, field: impl Into<String>, why: &str) {
        let text = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        self.push("FieldValueRequired", field.into(), text);
    }

    /// The value stands twice where each may stand once.
    pub fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        let text = format!("Duplicate value: {}", value.into());
        self.push("FieldValueDuplicate", field.into(), text);
    }

    /// The value is none of the few that exist.
    pub fn unsupported(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let list = list.join(", ");
        let text = format!("Unsupported value: {value:?}: supported values: {list}");
        self.push("FieldValueNotSupported", field.into(), text);
    }

    /// The value names something that is not there.
    pub fn not_found(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push("FieldValueNotFound", field.into(), format!("Not found: {}", value.into()));
    }

    /// The value may not stand here.
    pub fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.push("FieldValueForbidden", field.into(), format!("Forbidden: {why}"));
    }

    /// The text, or the texts together, are too long.
    pub fn too_long(&mut self, field: impl Into<String>, limit_bytes: usize) {
        let unit = if limit_bytes == 1 { "byte" } else { "bytes" };
        let text = format!("Too long: may not be more than {limit_bytes} {unit}");
        self.push("FieldValueTooLong", field.into(), text);
    }

    /// The list is too long.
    pub fn too_many(&mut self, field: impl Into<String>, count: usize, limit: usize) {
        let unit = if limit == 1 { "item" } else { "items" };
        let text = format!("Too many: {count}: must have at most {limit} {unit}");
        self.push("FieldValueTooMany", field.into(), text);
    }

    /// The faults as `details.causes`.
    pub fn causes(&self) -> Vec<Cause> {
        self.errors.clone()
    }

    /// The faults in one line: bare when there is one, in brackets when there are several.
    pub fn summary(&self) -> String {
        let lines: Vec<String> =
            self.errors.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        match lines.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        }
    }

    /// What a schema says.
    pub(crate) fn add(&mut self, fault: schema::structural::Fault) {
        self.push(fault.reason, fault.field, fault.message);
    }

    fn push(&mut self, reason: &str, field: String, message: String) {
        if self.errors.len() < MAX_FIELD_ERRORS {
            self.errors.push(Cause { reason: reason.to_owned(), message, field });
        }
    }
}

/// Checks a value that must be one of a few; an absent value is left to `required` checks.
pub(crate) fn one_of(
    errors: &mut FieldErrors,
    field: impl Into<String>,
    value: Option<&Value>,
    supported: &[&str],
) {
    if let Some(Value::String(text)) = value
        && !supported.contains(&text.as_str())
    {
        errors.unsupported(field, text, supported);
    }
}

/// Checks a port number.
pub(crate) fn port_number(errors: &mut FieldErrors, field: impl Into<String>, port: i64) {
    if !(1..=65535).contains(&port) {
        errors.invalid(field, port, "must be between 1 and 65535, inclusive");
    }
}

/// Checks a number that may not be negative.
pub(crate) fn non_negative(
    errors: &mut FieldErrors,
    field: impl Into<String>,
    value: Option<&Value>,
) {
    if let Some(number) = value.and_then(Value::as_i64)
        && number < 0
    {
        errors.invalid(field, number, "must be greater than or equal to 0");
    }
}

/// Checks that an update left a value as it was.
pub(crate) fn immutable(
    errors: &mut FieldErrors,
    field: impl Into<String>,
    new: Option<&Value>,
    old: Option<&Value>,
) {
    if new != old {
        errors.invalid(field, new.cloned().unwrap_or_default(), "field is immutable");
    }
}
