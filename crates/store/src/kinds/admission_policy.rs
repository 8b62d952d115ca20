//! admissionregistration.k8s.io: ValidatingAdmissionPolicy and its binding. What they say of a
//! write is decided in [`crate::policies`].
//!
//! Source: kubernetes.io, "Validating Admission Policy" (KEP-3488).

use serde_json::{Value, json as tree};

use crate::expressions::{check, check_conditions, without_authorizer};
use crate::json;
use crate::kinds::apps::validate_label_selector;
use crate::kinds::webhook::validate_rule;
use crate::policies;
use crate::resource::{Resource, Subresource};
use crate::table::Column;
use crate::validate::{FieldErrors, one_of};

/// Most validations, variables and audit annotations of one policy, each.
const MAX_EXPRESSIONS: usize = 64;
/// Longest key of an audit annotation together with the policy's name, in bytes.
const MAX_KEY_BYTES: usize = 253;
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

/// admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy.
pub(crate) static POLICY: Resource = Resource {
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    storage: "validatingadmissionpolicies.admissionregistration.k8s.io",
    subresources: &[Subresource::Status],
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::integer("Validations", |value, _| {
            json::items(value, "/spec/validations").len().into()
        }),
        Column::text("ParamKind", |value, _| {
            let text = |field| json::text(value, field);
            match text("/spec/paramKind/kind") {
                "" => "<unset>".into(),
                kind => format!("{}/{kind}", text("/spec/paramKind/apiVersion")).into(),
            }
        }),
        Column::AGE,
    ],
    default: default_policy,
    validate: |value, _, errors| validate_policy(value, errors),
    ..ROW
};

/// admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding.
pub(crate) static BINDING: Resource = Resource {
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    storage: "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("PolicyName", |value, _| json::text(value, "/spec/policyName").into()),
        Column::text("ParamRef", |value, _| {
            let text = |field| json::text(value, field);
            match json::at(value, "/spec/paramRef") {
                None => "<unset>".into(),
                Some(_) if text("/spec/paramRef/name").is_empty() => "*".into(),
                Some(_) => match text("/spec/paramRef/namespace") {
                    "" => text("/spec/paramRef/name").into(),
                    namespace => format!("{namespace}/{}", text("/spec/paramRef/name")).into(),
                },
            }
        }),
        Column::AGE,
    ],
    default: |value| default_match(value, "/spec/matchResources"),
    validate: |value, _, errors| validate_binding(value, errors),
    ..ROW
};

const ROW: Resource = Resource {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    namespaced: false,
    ..Resource::BASE
};

fn default_policy(value: &mut Value) {
    json::set_default_text(value, "/spec/failurePolicy", "Fail");
    default_match(value, "/spec/matchConstraints");
}

fn default_match(value: &mut Value, at: &str) {
    let Some(constraints) = value.pointer_mut(at).filter(|one| one.is_object()) else { return };
    json::set_default_text(constraints, "/matchPolicy", "Equivalent");
    json::set_default(constraints, "/namespaceSelector", tree!({}));
    json::set_default(constraints, "/objectSelector", tree!({}));
    for field in ["/resourceRules", "/excludeResourceRules"] {
        for rule in json::items_mut(constraints, field) {
            json::set_default_text(rule, "/scope", "*");
        }
    }
}

fn validate_policy(value: &Value, errors: &mut FieldErrors) {
    one_of(errors, "spec.failurePolicy", value.pointer("/spec/failurePolicy"), &["Fail", "Ignore"]);
    let has_params = json::at(value, "/spec/paramKind").is_some();
    for field in ["apiVersion", "kind"] {
        if has_params && json::text(value, &format!("/spec/paramKind/{field}")).is_empty() {
            errors.required(format!("spec.paramKind.{field}"), "");
        }
    }
    match json::at(value, "/spec/matchConstraints") {
        None => errors.required("spec.matchConstraints", ""),
        Some(constraints) => {
            validate_match("spec.matchConstraints", constraints, errors);
            if json::items(constraints, "/resourceRules").is_empty() {
                errors.required("spec.matchConstraints.resourceRules", "");
            }
        }
    }
    for field in ["validations", "variables", "auditAnnotations"] {
        let count = json::items(value, &format!("/spec/{field}")).len();
        if count > MAX_EXPRESSIONS {
            errors.too_many(format!("spec.{field}"), count, MAX_EXPRESSIONS);
            return;
        }
    }
    let is_empty = |field| json::items(value, field).is_empty();
    if is_empty("/spec/validations") && is_empty("/spec/auditAnnotations") {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.required("spec.validations", why);
        errors.required("spec.auditAnnotations", why);
    }
    validate_expressions(value, has_params, errors);
}

fn validate_expressions(value: &Value, has_params: bool, errors: &mut FieldErrors) {
    use schema::cel::Type;
    let mut known = policies::variables(has_params);
    let conditions = json::items(value, "/spec/matchConditions");
    check_conditions("spec.matchConditions", conditions, &known, errors);
    let mut composed: Vec<(&str, Type)> = Vec::new();
    for (index, variable) in json::items(value, "/spec/variables").iter().enumerate() {
        let at = format!("spec.variables[{index}]");
        let name = json::text(variable, "/name");
        if !is_identifier(name) {
            errors.invalid(format!("{at}.name"), name, "name is not a valid CEL identifier");
        } else if composed.iter().any(|(other, _)| *other == name) {
            errors.duplicate(format!("{at}.name"), name);
        }
        let scope = policies::with_composed(&known, &composed);
        let expression = json::text(variable, "/expression");
        let found = check(&format!("{at}.expression"), expression, &scope, &[], errors);
        composed.push((name, found));
    }
    known = policies::with_composed(&known, &composed);
    for (index, validation) in json::items(value, "/spec/validations").iter().enumerate() {
        let at = format!("spec.validations[{index}]");
        let text = |field| json::text(validation, field);
        check(&format!("{at}.expression"), text("/expression"), &known, &[Type::Bool], errors);
        let message = text("/message");
        if message.trim().contains('\n') {
            errors.invalid(format!("{at}.message"), message, "must not contain line breaks");
        } else if message.is_empty() && text("/expression").trim().contains('\n') {
            let why = "message must be specified if expression contains line breaks";
            errors.required(format!("{at}.message"), why);
        }
        if !text("/messageExpression").is_empty() {
            let field = format!("{at}.messageExpression");
            let known = without_authorizer(&known);
            check(&field, text("/messageExpression"), &known, &[Type::String], errors);
        }
        one_of(errors, format!("{at}.reason"), validation.get("reason"), &REASONS);
    }
    let name = json::text(value, "/metadata/name");
    for (index, annotation) in json::items(value, "/spec/auditAnnotations").iter().enumerate() {
        let at = format!("spec.auditAnnotations[{index}]");
        let key = json::text(annotation, "/key");
        if key.is_empty() {
            errors.required(format!("{at}.key"), "");
        } else if name.len() + 1 + key.len() > MAX_KEY_BYTES {
            errors.too_long(format!("{at}.key"), MAX_KEY_BYTES);
        }
        let field = format!("{at}.valueExpression");
        let wanted = [Type::String, Type::Null];
        check(&field, json::text(annotation, "/valueExpression"), &known, &wanted, errors);
    }
}

fn is_identifier(name: &str) -> bool {
    let is_letter = |one: char| one.is_ascii_alphabetic() || one == '_';
    name.starts_with(is_letter) && name.chars().all(|one| is_letter(one) || one.is_ascii_digit())
}

fn validate_match(at: &str, constraints: &Value, errors: &mut FieldErrors) {
    let policy = constraints.get("matchPolicy");
    one_of(errors, format!("{at}.matchPolicy"), policy, &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        validate_label_selector(&format!("{at}.{field}"), constraints.get(field), errors);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        let rules = json::items(constraints, &format!("/{field}"));
        for (index, rule) in rules.iter().enumerate() {
            validate_rule(&format!("{at}.{field}[{index}]"), rule, errors);
        }
    }
}

fn validate_binding(value: &Value, errors: &mut FieldErrors) {
    if json::text(value, "/spec/policyName").is_empty() {
        errors.required("spec.policyName", "");
    }
    if let Some(constraints) = json::at(value, "/spec/matchResources") {
        validate_match("spec.matchResources", constraints, errors);
    }
    let actions = json::texts(value, "/spec/validationActions");
    if actions.is_empty() {
        errors.required("spec.validationActions", "at least one validation action is required");
    }
    for (index, action) in actions.iter().enumerate() {
        let field = format!("spec.validationActions[{index}]");
        if !ACTIONS.contains(action) {
            errors.unsupported(field, action, &ACTIONS);
        } else if actions.iter().take(index).any(|other| other == action) {
            errors.duplicate(field, *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let shown: Vec<&str> = actions.clone();
        let why = "must not contain both Deny and Warn (repeating the same validation failure \
                   information in the API response and headers serves no purpose)";
        errors.invalid("spec.validationActions", shown, why);
    }
    if let Some(reference) = json::at(value, "/spec/paramRef") {
        validate_reference(reference, errors);
    }
}

fn validate_reference(reference: &Value, errors: &mut FieldErrors) {
    let named = !json::text(reference, "/name").is_empty();
    let selector = json::at(reference, "/selector");
    match (named, selector) {
        (true, Some(_)) => {
            errors.forbidden("spec.paramRef.name", "name and selector are mutually exclusive")
        }
        (false, None) => {
            errors.required("spec.paramRef", "one of name or selector must be specified");
        }
        (_, selector) => validate_label_selector("spec.paramRef.selector", selector, errors),
    }
    let action = reference.get("parameterNotFoundAction");
    if action.is_none() {
        errors.required("spec.paramRef.parameterNotFoundAction", "");
    }
    one_of(errors, "spec.paramRef.parameterNotFoundAction", action, &["Allow", "Deny"]);
}

/// The status of a policy that was looked at, by what was found in it; once a generation.
pub(crate) fn set_status(value: &mut Value, type_checking: impl FnOnce(&Value) -> Value) {
    let generation = json::integer(value, "/metadata/generation").unwrap_or(1);
    let is_observed = json::integer(value, "/status/observedGeneration") == Some(generation);
    if is_observed && json::at(value, "/status/typeChecking").is_some() {
        return;
    }
    let found = type_checking(value);
    json::set(value, "/status/observedGeneration", generation);
    json::set(value, "/status/typeChecking", found);
}
