//! Namespace, ConfigMap, Secret, ServiceAccount.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::json;
use crate::names::{NameRule, config_key_faults};
use crate::resource::{Resource, Subresource};
use crate::table::Column;
use crate::validate::{FieldErrors, immutable};

/// Most bytes of all values of a ConfigMap or a Secret.
const MAX_DATA_BYTES: usize = 1024 * 1024;

/// core/v1 Namespace.
pub(crate) static NAMESPACE: Resource = Resource {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    // A namespace takes all that is in it along: there is no deletecollection.
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Finalize, Subresource::Status],
    storage: "namespaces",
    name_rule: NameRule::Label,
    columns: &[
        Column::NAME,
        Column::text("Status", |value, _| json::text(value, "/status/phase").into()),
        Column::AGE,
    ],
    selectable_fields: &["/status/phase"],
    returns_deleted: true,
    default: |value| {
        let name = json::text(value, "/metadata/name").to_owned();
        json::set(value, "/metadata/labels/kubernetes.io~1metadata.name", name);
    },
    prepare_create: |value| {
        json::set(value, "/spec/finalizers", vec!["kubernetes"]);
        json::set(value, "/status/phase", "Active");
    },
    prepare_update: |value, old| json::copy(value, old, "/spec/finalizers"),
    ..Resource::BASE
};

/// core/v1 ConfigMap.
pub(crate) static CONFIG_MAP: Resource = Resource {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    storage: "configmaps",
    columns: &[
        Column::NAME,
        Column::integer("Data", |value, _| {
            let count = |pointer| json::members(value, pointer).count();
            (count("/data") + count("/binaryData")).into()
        }),
        Column::AGE,
    ],
    validate: |value, old, errors| {
        validate_keys(value, "data", errors);
        validate_keys(value, "binaryData", errors);
        validate_base64(value, "binaryData", errors);
        for (key, _) in json::members(value, "/data") {
            if json::at(value, "/binaryData").is_some_and(|binary| binary.get(key).is_some()) {
                errors.invalid(
                    format!("data[{key}]"),
                    key,
                    "duplicate of key present in binaryData",
                );
            }
        }
        validate_immutable(value, old, &["data", "binaryData"], errors);
    },
    ..Resource::BASE
};

/// core/v1 Secret.
pub(crate) static SECRET: Resource = Resource {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    storage: "secrets",
    columns: &[
        Column::NAME,
        Column::text("Type", |value, _| json::text(value, "/type").into()),
        Column::integer("Data", |value, _| json::members(value, "/data").count().into()),
        Column::AGE,
    ],
    selectable_fields: &["/type"],
    default: default_secret,
    validate: |value, old, errors| {
        validate_keys(value, "data", errors);
        validate_base64(value, "data", errors);
        for (kind, keys) in REQUIRED_SECRET_KEYS {
            if json::text(value, "/type") == *kind {
                for key in *keys {
                    if json::at(value, "/data").and_then(|data| data.get(key)).is_none() {
                        errors.required(format!("data[{key}]"), "");
                    }
                }
            }
        }
        if json::text(value, "/type") == TOKEN_TYPE
            && json::text(value, "/metadata/annotations/kubernetes.io~1service-account.name")
                .is_empty()
        {
            errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
        }
        if let Some(old) = old {
            immutable(errors, "type", value.get("type"), old.get("type"));
        }
        validate_immutable(value, old, &["data"], errors);
    },
    ..Resource::BASE
};

/// The type of Secrets that hold a token of a ServiceAccount, put there by a controller.
const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";

/// Keys that typed secrets must have.
const REQUIRED_SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
];

/// core/v1 ServiceAccount.
pub(crate) static SERVICE_ACCOUNT: Resource = Resource {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    storage: "serviceaccounts",
    columns: &[
        Column::NAME,
        Column::integer("Secrets", |value, _| json::items(value, "/secrets").len().into()),
        Column::AGE,
    ],
    subresources: &[Subresource::Token],
    returns_deleted: true,
    ..Resource::BASE
};

/// `stringData` is for writers only: it goes into `data`, over what is there.
fn default_secret(value: &mut Value) {
    json::set_default_text(value, "/type", "Opaque");
    let Some(Value::Object(texts)) = json::remove(value, "/stringData") else {
        return;
    };
    if let Some(data) = json::object_mut(value, "/data") {
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or_default().as_bytes();
            data.insert(key, STANDARD.encode(bytes).into());
        }
    }
}

fn validate_keys(value: &Value, field: &str, errors: &mut FieldErrors) {
    let mut bytes = 0;
    for (key, text) in json::members(value, &format!("/{field}")) {
        for fault in config_key_faults(key) {
            errors.invalid(format!("{field}[{key}]"), key, &fault);
        }
        bytes += text.as_str().map(str::len).unwrap_or_default();
    }
    if bytes > MAX_DATA_BYTES {
        errors.too_long(field, MAX_DATA_BYTES);
    }
}

fn validate_base64(value: &Value, field: &str, errors: &mut FieldErrors) {
    for (key, text) in json::members(value, &format!("/{field}")) {
        let text = text.as_str().unwrap_or_default();
        if STANDARD.decode(text).is_err() {
            errors.invalid(format!("{field}[{key}]"), text, "illegal base64 data");
        }
    }
}

fn validate_immutable(
    value: &Value,
    old: Option<&Value>,
    fields: &[&str],
    errors: &mut FieldErrors,
) {
    let Some(old) = old.filter(|old| json::flag(old, "/immutable")) else {
        return;
    };
    let why = "field is immutable when `immutable` is set";
    if !json::flag(value, "/immutable") {
        errors.forbidden("immutable", why);
    }
    for field in fields {
        if value.get(field) != old.get(field) {
            errors.forbidden(*field, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as tree;

    use super::*;

    #[test]
    fn string_data_goes_over_data() {
        let mut secret = tree!({"data": {"a": "eA=="}, "stringData": {"a": "hunter2", "b": ""}});
        default_secret(&mut secret);
        assert_eq!(secret, tree!({"type": "Opaque", "data": {"a": "aHVudGVyMg==", "b": ""}}));
    }
}
