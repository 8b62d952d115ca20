//! Reviews: who may do what, and who somebody is. They are answered from the published state and
//! never stored.
//!
//! Source: kubernetes.io, "Authorization" and "Authenticating"; authorization.k8s.io/v1 and
//! authentication.k8s.io/v1.

use serde_json::{Value, json as tree};

use crate::authorize::{Request, Subject, User, node_rules};
use crate::kinds::review::{
    LOCAL_SUBJECT_ACCESS, SELF_SUBJECT, SELF_SUBJECT_ACCESS, SELF_SUBJECT_RULES, SUBJECT_ACCESS,
    TOKEN, TOKEN_REQUEST,
};
use crate::validate::FieldErrors;
use crate::{FieldValidation, Resource, Status, Store, json};

/// What a review asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// Whether the sender may do something.
    OwnAccess,
    /// Whether somebody may do something.
    Access,
    /// Whether somebody may do something in the namespace of the URL.
    LocalAccess,
    /// All that the sender may do in a namespace.
    OwnRules,
    /// Who the sender is.
    Own,
    /// Whose a token is.
    Token,
}

impl Review {
    /// The review of a row; `None` for rows of objects.
    pub fn of(resource: &Resource) -> Option<Self> {
        let all = [
            (&SELF_SUBJECT_ACCESS, Self::OwnAccess),
            (&SUBJECT_ACCESS, Self::Access),
            (&LOCAL_SUBJECT_ACCESS, Self::LocalAccess),
            (&SELF_SUBJECT_RULES, Self::OwnRules),
            (&SELF_SUBJECT, Self::Own),
            (&TOKEN, Self::Token),
        ];
        all.into_iter().find(|(row, _)| *row == resource).map(|(_, review)| review)
    }
}

/// Reads the body of a review as an object of its row.
///
/// # Errors
/// 400 for a body of another kind, of wrong types or for another namespace than the URL's, and for
/// what `fieldValidation` forbids.
pub fn read(
    resource: &Resource,
    namespace: &str,
    body: Value,
    validation: &FieldValidation,
) -> Result<Value, Status> {
    let mut value = crate::write::read(resource, body, validation)?;
    let given = json::text(&value, "/metadata/namespace").to_owned();
    if resource.namespaced {
        if given != namespace && !given.is_empty() {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the \
                 request",
            ));
        }
        json::set(&mut value, "/metadata/namespace", namespace);
    }
    Ok(value)
}

/// Reads the body of a TokenRequest.
///
/// # Errors
/// 400, as for reviews.
pub fn read_token_request(body: Value, validation: &FieldValidation) -> Result<Value, Status> {
    crate::write::read(&TOKEN_REQUEST, body, validation)
}

/// The fields of a TokenRequest.
pub fn token_request_message() -> Option<&'static schema::Message> {
    TOKEN_REQUEST.message()
}

/// A review with its answer.
pub fn answered(mut review: Value, status: Value) -> Value {
    json::set_default(&mut review, "/metadata", tree!({}));
    json::set(&mut review, "/status", status);
    review
}

impl Store {
    /// Answers a review of rights that [`read`] has read; a review of another kind tells who asks.
    ///
    /// # Errors
    /// 400 and 422 for a question that says too little or too much.
    pub fn review(&self, review: Review, value: &Value, sender: &User) -> Result<Value, Status> {
        match review {
            Review::OwnAccess => self.review_access(&SELF_SUBJECT_ACCESS, value, sender.subject()),
            Review::Access => self.review_of_somebody(&SUBJECT_ACCESS, value),
            Review::LocalAccess => {
                let namespace = json::text(value, "/metadata/namespace");
                if json::text(value, "/spec/resourceAttributes/namespace") != namespace {
                    return Err(Status::bad_request(format!(
                        "spec.resourceAttributes.namespace must match namespace: {namespace}"
                    )));
                }
                self.review_of_somebody(&LOCAL_SUBJECT_ACCESS, value)
            }
            Review::OwnRules => self.review_rules(value, sender.subject()),
            Review::Own | Review::Token => Ok(tree!({"userInfo": sender.info()})),
        }
    }

    fn review_of_somebody(&self, row: &Resource, value: &Value) -> Result<Value, Status> {
        let groups = json::texts(value, "/spec/groups").into_iter().map(str::to_owned);
        let groups: Vec<String> = groups.collect();
        let name = json::text(value, "/spec/user");
        if name.is_empty() && groups.is_empty() {
            let mut errors = FieldErrors::default();
            errors.invalid("spec.user", "", "at least one of user or group must be specified");
            return Err(Status::invalid(row, "", &errors));
        }
        self.review_access(row, value, Subject { name, groups: &groups })
    }

    fn review_access(
        &self,
        row: &Resource,
        value: &Value,
        subject: Subject<'_>,
    ) -> Result<Value, Status> {
        check_attributes(row, value)?;
        let text = |field: &str| json::text(value, field);
        let request = match json::at(value, "/spec/nonResourceAttributes") {
            Some(_) => Request::Path {
                verb: text("/spec/nonResourceAttributes/verb"),
                path: text("/spec/nonResourceAttributes/path"),
            },
            None => Request::Resource {
                verb: text("/spec/resourceAttributes/verb"),
                group: text("/spec/resourceAttributes/group"),
                plural: text("/spec/resourceAttributes/resource"),
                subresource: text("/spec/resourceAttributes/subresource"),
                namespace: text("/spec/resourceAttributes/namespace"),
                name: text("/spec/resourceAttributes/name"),
            },
        };
        let (is_allowed, reason) = self.decide(subject, &request);
        let mut status = tree!({"allowed": is_allowed});
        if !reason.is_empty() {
            json::set(&mut status, "/reason", reason);
        }
        Ok(status)
    }

    /// The rules of roles; of a node also its own, of which only those apply that are about what
    /// it runs.
    fn review_rules(&self, value: &Value, subject: Subject<'_>) -> Result<Value, Status> {
        let namespace = json::text(value, "/spec/namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let is_node = subject.node().is_some();
        let of_node = if is_node { node_rules() } else { &[] };
        let (mut of_resources, mut of_paths) = (Vec::new(), Vec::new());
        for rule in self.granted(subject, namespace).chain(of_node) {
            let part = |fields: &[&str]| {
                let fields = fields.iter().filter_map(|field| Some((*field, rule.get(*field)?)));
                fields.map(|(field, list)| (field.to_owned(), list.clone())).collect::<Value>()
            };
            if !json::items(rule, "/resources").is_empty() {
                of_resources.push(part(&["verbs", "apiGroups", "resources", "resourceNames"]));
            }
            if !json::items(rule, "/nonResourceURLs").is_empty() {
                of_paths.push(part(&["verbs", "nonResourceURLs"]));
            }
        }
        let mut status = tree!({
            "resourceRules": of_resources,
            "nonResourceRules": of_paths,
            "incomplete": is_node,
        });
        if is_node {
            let why = "a node has its rules only for what its own pods name";
            json::set(&mut status, "/evaluationError", why);
        }
        Ok(status)
    }
}

/// A review of a right asks about a resource or about a path, and has no metadata.
fn check_attributes(row: &Resource, value: &Value) -> Result<(), Status> {
    let resource = json::at(value, "/spec/resourceAttributes");
    let path = json::at(value, "/spec/nonResourceAttributes");
    let mut metadata = json::members(value, "/metadata");
    let mut errors = FieldErrors::default();
    let (field, shown, why) = match (resource, path) {
        _ if metadata.any(|(name, _)| name != "namespace" || !row.namespaced) => {
            ("metadata", &value["metadata"], "must be empty")
        }
        (_, Some(path)) if row == &LOCAL_SUBJECT_ACCESS => {
            ("spec.nonResourceAttributes", path, "disallowed on this kind of request")
        }
        (Some(_), Some(path)) => (
            "spec.nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => (
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => return Ok(()),
    };
    errors.invalid(field, shown.clone(), why);
    Err(Status::invalid(row, "", &errors))
}
