//! What is wrong with a schema or with an object, as `field.Error` of the real server says it.

use serde_json::Value;

use super::validate::NO_FIELD;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The path of the field: `spec.ports[0].port`.
    pub field: String,
    /// The cause's reason, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// The text after the field.
    pub message: String,
}

impl Fault {
    /// The value is wrong.
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self::new(field, "FieldValueInvalid", format!("Invalid value: {value}: {why}"))
    }

    /// The value is wrong; it is shown in a way of its own.
    pub(super) fn invalid_shown(field: impl Into<String>, shown: &str, why: &str) -> Self {
        Self::new(field, "FieldValueInvalid", format!("Invalid value: {shown}: {why}"))
    }

    /// The value is of another type.
    pub(super) fn wrong_type(field: &str, found: &str, why: &str) -> Self {
        Self::new(field, "FieldValueTypeInvalid", format!("Invalid value: {found:?}: {why}"))
    }

    /// The value is missing.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let separator = if why.is_empty() { "" } else { ": " };
        Self::new(field, "FieldValueRequired", format!("Required value{separator}{why}"))
    }

    /// The value may not stand here.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self::new(field, "FieldValueForbidden", format!("Forbidden: {why}"))
    }

    /// The value stands twice where each may stand once.
    pub(super) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(field, "FieldValueDuplicate", format!("Duplicate value: {value}"))
    }

    /// The value is none of the few that exist.
    pub(super) fn unsupported<'a>(
        field: impl Into<String>,
        value: &Value,
        supported: impl IntoIterator<Item = &'a Value>,
    ) -> Self {
        let quoted = |value: &Value| match value {
            Value::String(text) => format!("{text:?}"),
            other => format!("\"{other}\""),
        };
        let list: Vec<String> = supported.into_iter().map(quoted).collect();
        let list = list.join(", ");
        let text = format!("Unsupported value: {value}: supported values: {list}");
        Self::new(field, "FieldValueNotSupported", text)
    }

    /// The text is too long.
    pub(super) fn too_long(field: &str, limit_bytes: u64) -> Self {
        let unit = if limit_bytes == 1 { "byte" } else { "bytes" };
        let text = format!("Too long: may not be more than {limit_bytes} {unit}");
        Self::new(field, "FieldValueTooLong", text)
    }

    /// There are too many items or members.
    pub(super) fn too_many(field: &str, count: u64, limit: u64) -> Self {
        let unit = if limit == 1 { "item" } else { "items" };
        let text = format!("Too many: {count}: must have at most {limit} {unit}");
        Self::new(field, "FieldValueTooMany", text)
    }

    /// What an object with such faults is told of its rules.
    pub fn rules_not_checked() -> Self {
        let why = "some validation rules were not checked because the object was invalid; correct \
                   the existing errors to complete validation";
        Self::invalid(NO_FIELD, &"null".into(), why)
    }

    /// Whether a value is so wrong that rules are not evaluated: of another type or missing.
    pub fn blocks_rules(&self) -> bool {
        const BLOCKING: &[&str] = &[
            "FieldValueNotSupported",
            "FieldValueRequired",
            "FieldValueTooLong",
            "FieldValueTooMany",
            "FieldValueTypeInvalid",
        ];
        BLOCKING.contains(&self.reason)
    }

    fn new(field: impl Into<String>, reason: &'static str, message: String) -> Self {
        Self { field: field.into(), reason, message }
    }
}
