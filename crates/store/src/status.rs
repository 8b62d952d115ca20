//! `metav1.Status`: the one form of every error, in the real server's words.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::Resource;
use crate::validate::FieldErrors;

/// A `Status` object: the answer of a failed request, and of a deletion that left nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The HTTP code.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`; empty for success.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// What it is about. Boxed, since most results are no errors.
    pub details: Option<Box<Details>>,
}

/// `status.details`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Group of the resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The plural of the resource, but the kind in `Invalid` answers, as the real server mixes it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Identity of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The single faults.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The machine-readable reason, such as `FieldValueInvalid`.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// The path of the field, such as `spec.ports[0].port`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Status {
    /// A failure without details.
    pub fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401: no valid client certificate.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 404 for an object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.group_resource());
        Self::failure(404, "NotFound", message).about(resource, name)
    }

    /// 404 for a path that names no resource.
    pub fn unknown_path() -> Self {
        let message = "the server could not find the requested resource";
        Self { details: Some(Box::default()), ..Self::failure(404, "NotFound", message) }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let details = Some(Box::default());
        Self { details, ..Self::failure(405, "MethodNotAllowed", message) }
    }

    /// 406, with what can be had instead.
    pub fn not_acceptable() -> Self {
        let message = "406: Not Acceptable\n\nAvailable representations: application/json, \
                       application/yaml, application/vnd.kubernetes.protobuf";
        let details = Some(Box::default());
        Self { details, ..Self::failure(406, "NotAcceptable", message) }
    }

    /// 415 for the body of a create or an update.
    pub fn unknown_body_format() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types \
                       include: application/json, application/yaml, \
                       application/vnd.kubernetes.protobuf";
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 415 for the body of a patch.
    pub fn unknown_patch_type() -> Self {
        let message = "415: Unsupported Media Type";
        let details = Some(Box::default());
        Self { details, ..Self::failure(415, "UnsupportedMediaType", message) }
    }

    /// 415 for a strategic merge patch of a custom object.
    pub(crate) fn no_strategic_patch() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types \
                       include: application/json-patch+json, application/merge-patch+json, \
                       application/apply-patch+yaml";
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 403 with the reason behind it.
    pub fn forbidden(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        Self::forbidden_by_name(resource.group, resource.plural, name, why)
    }

    /// As [`Status::forbidden`], for a resource that need not be served.
    pub(crate) fn forbidden_by_name(
        group: &str,
        plural: &str,
        name: &str,
        why: impl fmt::Display,
    ) -> Self {
        let about = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        let dot = if group.is_empty() { "" } else { "." };
        let message = format!("{plural}{dot}{group}{about} is forbidden: {why}");
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: plural.to_owned(),
            ..Details::default()
        };
        Self { details: Some(Box::new(details)), ..Self::failure(403, "Forbidden", message) }
    }

    /// 409 for a create of what is there.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.group_resource());
        Self::failure(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409 for a write that somebody else came before.
    pub fn conflict(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.group_resource()
        );
        Self::failure(409, "Conflict", message).about(resource, name)
    }

    /// 409 for a stale `resourceVersion`.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        )
    }

    /// 409 for an apply that would change what others own.
    pub(crate) fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let details = Some(Box::new(Details { causes, ..Details::default() }));
        Self { details, ..Self::failure(409, "Conflict", message) }
    }

    /// 410: the revision has left the watch window.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 422 for an object, with every fault found.
    pub fn invalid(resource: &Resource, name: &str, errors: &FieldErrors) -> Self {
        Self::invalid_kind(resource.group, resource.kind, name, errors)
    }

    /// 422 for anything that has a group and a kind, such as `ListOptions`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let group_kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes: errors.causes(),
            ..Details::default()
        };
        let message = format!("{group_kind} {name:?} is invalid: {}", errors.summary());
        Self { details: Some(Box::new(details)), ..Self::failure(422, "Invalid", message) }
    }

    /// 422 for a patch that cannot be applied; the real server says no more than this.
    pub fn patch_rejected() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self { details: Some(Box::default()), ..Self::failure(422, "Invalid", message) }
    }

    /// 504 for a list at a revision that does not exist yet.
    pub fn revision_too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let cause = Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        let details =
            Details { causes: vec![cause], retry_after_seconds: Some(1), ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::failure(504, "Timeout", message) }
    }

    /// 500, for a fault of the server itself.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::failure(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// The answer of a deletion that left nothing.
    pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Self {
        let details = Details { uid: uid.to_owned(), ..Details::of(resource, name) };
        Self { code: 200, reason: "", message: String::new(), details: Some(Box::new(details)) }
    }

    /// A success without details.
    pub fn success(code: u16) -> Self {
        Self { code, reason: "", message: String::new(), details: None }
    }

    /// Whether this is a success.
    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    /// The object for the wire.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": if self.is_success() { "Success" } else { "Failure" },
        });
        if let Some(map) = value.as_object_mut() {
            if !self.message.is_empty() {
                map.insert("message".to_owned(), Value::from(self.message.clone()));
            }
            if !self.reason.is_empty() {
                map.insert("reason".to_owned(), Value::from(self.reason));
            }
            if let Some(details) = &self.details {
                map.insert("details".to_owned(), json!(details));
            }
            // The real server leaves the code out of a deletion's success.
            if !self.is_success() || self.details.is_none() {
                map.insert("code".to_owned(), Value::from(self.code));
            }
        }
        value
    }

    pub(crate) fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = Some(Box::new(Details::of(resource, name)));
        self
    }

    pub(crate) fn with_cause(mut self, reason: &str, message: String, field: &str) -> Self {
        let cause = Cause { reason: reason.to_owned(), message, field: field.to_owned() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }
}

impl Details {
    fn of(resource: &Resource, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.plural.to_owned(),
            ..Self::default()
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Status {}
