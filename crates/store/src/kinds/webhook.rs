//! admissionregistration.k8s.io: MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
//! Which webhook is asked about what is decided in [`crate::webhooks`].
//!
//! Source: kubernetes.io, "Dynamic Admission Control".

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json as tree};

use crate::expressions::{WRITE, check_conditions};
use crate::json;
use crate::kinds::apps::validate_label_selector;
use crate::resource::Resource;
use crate::table::Column;
use crate::validate::{FieldErrors, one_of};

/// Longest time for a webhook's answer, seconds (the real server's).
const MAX_TIMEOUT_SECONDS: i64 = 30;
/// Most webhooks of one configuration: each may be asked about each write.
const MAX_WEBHOOKS: usize = 64;
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// admissionregistration.k8s.io/v1 MutatingWebhookConfiguration.
pub(crate) static MUTATING: Resource = Resource {
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    singular: "mutatingwebhookconfiguration",
    storage: "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    ..CONFIGURATION
};

/// admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration.
pub(crate) static VALIDATING: Resource = Resource {
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    storage: "validatingwebhookconfigurations.admissionregistration.k8s.io",
    ..CONFIGURATION
};

const CONFIGURATION: Resource = Resource {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    namespaced: false,
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::integer("Webhooks", |value, _| json::items(value, "/webhooks").len().into()),
        Column::AGE,
    ],
    default,
    validate: |value, _, errors| validate(value, errors),
    ..Resource::BASE
};

fn default(value: &mut Value) {
    let is_mutating = json::text(value, "/kind") == MUTATING.kind;
    for webhook in json::items_mut(value, "/webhooks") {
        json::set_default_text(webhook, "/failurePolicy", "Fail");
        json::set_default_text(webhook, "/matchPolicy", "Equivalent");
        json::set_default(webhook, "/timeoutSeconds", 10);
        json::set_default(webhook, "/namespaceSelector", tree!({}));
        json::set_default(webhook, "/objectSelector", tree!({}));
        if is_mutating {
            json::set_default_text(webhook, "/reinvocationPolicy", "Never");
        }
        if json::at(webhook, "/clientConfig/service").is_some() {
            json::set_default(webhook, "/clientConfig/service/port", 443);
        }
        for rule in json::items_mut(webhook, "/rules") {
            json::set_default_text(rule, "/scope", "*");
        }
    }
}

fn validate(value: &Value, errors: &mut FieldErrors) {
    let webhooks = json::items(value, "/webhooks");
    if webhooks.len() > MAX_WEBHOOKS {
        errors.too_many("webhooks", webhooks.len(), MAX_WEBHOOKS);
    }
    let mut names = BTreeSet::new();
    for (index, webhook) in webhooks.iter().enumerate() {
        let at = format!("webhooks[{index}]");
        let name = json::text(webhook, "/name");
        if name.split('.').filter(|part| !part.is_empty()).count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            errors.invalid(format!("{at}.name"), name, why);
        }
        if !names.insert(name) {
            errors.duplicate(format!("{at}.name"), name);
        }
        validate_webhook(&at, webhook, errors);
        let config = json::at(webhook, "/clientConfig").unwrap_or(&Value::Null);
        validate_client(&format!("{at}.clientConfig"), config, errors);
        for (index, rule) in json::items(webhook, "/rules").iter().enumerate() {
            validate_rule(&format!("{at}.rules[{index}]"), rule, errors);
        }
    }
}

fn validate_webhook(at: &str, webhook: &Value, errors: &mut FieldErrors) {
    let versions = json::texts(webhook, "/admissionReviewVersions");
    if versions.is_empty() {
        let why = "must specify one of v1";
        errors.required(format!("{at}.admissionReviewVersions"), why);
    } else if !versions.contains(&"v1") {
        let shown: Vec<&str> = versions.clone();
        errors.invalid(format!("{at}.admissionReviewVersions"), shown, "must include v1");
    }
    let texts: [(&str, &[&str]); 4] = [
        ("failurePolicy", &["Fail", "Ignore"]),
        ("matchPolicy", &["Equivalent", "Exact"]),
        ("reinvocationPolicy", &["IfNeeded", "Never"]),
        ("sideEffects", &["None", "NoneOnDryRun"]),
    ];
    for (field, allowed) in texts {
        if field == "sideEffects" && webhook.get(field).is_none() {
            errors.required(format!("{at}.{field}"), "must specify one of None, NoneOnDryRun");
            continue;
        }
        one_of(errors, format!("{at}.{field}"), webhook.get(field), allowed);
    }
    let seconds = json::integer(webhook, "/timeoutSeconds").unwrap_or(0);
    if !(1..=MAX_TIMEOUT_SECONDS).contains(&seconds) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(format!("{at}.timeoutSeconds"), seconds, why);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        validate_label_selector(&format!("{at}.{field}"), webhook.get(field), errors);
    }
    let conditions = json::items(webhook, "/matchConditions");
    check_conditions(&format!("{at}.matchConditions"), conditions, &WRITE, errors);
}

/// Checks a `clientConfig`.
pub(crate) fn validate_client(at: &str, config: &Value, errors: &mut FieldErrors) {
    let url = json::at(config, "/url").and_then(Value::as_str);
    let service = json::at(config, "/service");
    match (url, service) {
        (Some(url), None) => validate_url(&format!("{at}.url"), url, errors),
        (None, Some(service)) => {
            for field in ["name", "namespace"] {
                if json::text(service, &format!("/{field}")).is_empty() {
                    errors.required(format!("{at}.service.{field}"), "");
                }
            }
            let path = json::text(service, "/path");
            if !path.is_empty() && !path.starts_with('/') {
                errors.invalid(format!("{at}.service.path"), path, "must start with a '/'");
            }
            let port = json::integer(service, "/port").unwrap_or(0);
            crate::validate::port_number(errors, format!("{at}.service.port"), port);
        }
        _ => errors.required(at, "exactly one of url or service is required"),
    }
    if let Some(bundle) = json::at(config, "/caBundle").and_then(Value::as_str)
        && !bundle.is_empty()
    {
        let text = STANDARD.decode(bundle).ok().and_then(|text| String::from_utf8(text).ok());
        if !text.is_some_and(|text| text.contains("-----BEGIN CERTIFICATE-----")) {
            let why = "unable to load root certificates: unable to parse bytes as PEM block";
            errors.invalid(format!("{at}.caBundle"), "<CA bundle>", why);
        }
    }
}

fn validate_url(at: &str, url: &str, errors: &mut FieldErrors) {
    let Some(rest) = url.strip_prefix("https://") else {
        errors.invalid(
            at,
            url,
            "'https' is the only allowed URL scheme; desired format: \
            https://host[/path]",
        );
        return;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let fault = if host.is_empty() {
        "host must be specified"
    } else if host.contains('@') {
        "user information is not permitted in the URL"
    } else if rest.contains('#') {
        "fragments are not permitted in the URL"
    } else if rest.contains('?') {
        "query parameters are not permitted in the URL"
    } else {
        return;
    };
    errors.invalid(at, url, fault);
}

pub(super) fn validate_rule(at: &str, rule: &Value, errors: &mut FieldErrors) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let texts = json::texts(rule, &format!("/{field}"));
        if texts.is_empty() {
            errors.required(format!("{at}.{field}"), "");
        }
        if texts.len() > 1 && texts.contains(&"*") && field != "resources" {
            let why = "if '*' is present, must not specify other values";
            errors.invalid(format!("{at}.{field}"), texts.clone(), why);
        }
        if field != "apiGroups" && texts.contains(&"") {
            errors.required(format!("{at}.{field}"), "");
        }
    }
    for (index, operation) in json::items(rule, "/operations").iter().enumerate() {
        one_of(errors, format!("{at}.operations[{index}]"), Some(operation), &OPERATIONS);
    }
    one_of(errors, format!("{at}.scope"), rule.get("scope"), &["*", "Cluster", "Namespaced"]);
}
