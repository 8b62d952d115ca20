//! rbac.authorization.k8s.io: Role, ClusterRole and their bindings. What they mean is decided in
//! [`crate::authorize`].

use serde_json::Value;

use crate::json;
use crate::kinds::apps::validate_label_selector;
use crate::names::NameRule;
use crate::resource::Resource;
use crate::table::Column;
use crate::validate::{FieldErrors, immutable};

/// The API group.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// What a subject may be.
const SUBJECT_KINDS: [&str; 3] = ["Group", "ServiceAccount", "User"];

/// rbac.authorization.k8s.io/v1 ClusterRole.
pub(crate) static CLUSTER_ROLE: Resource = Resource {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    storage: "clusterroles.rbac.authorization.k8s.io",
    ..ROLE_BASE
};

/// rbac.authorization.k8s.io/v1 Role.
pub(crate) static ROLE: Resource = Resource {
    kind: "Role",
    plural: "roles",
    singular: "role",
    storage: "roles.rbac.authorization.k8s.io",
    ..ROLE_BASE
};

/// rbac.authorization.k8s.io/v1 ClusterRoleBinding.
pub(crate) static CLUSTER_ROLE_BINDING: Resource = Resource {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    storage: "clusterrolebindings.rbac.authorization.k8s.io",
    ..BINDING_BASE
};

/// rbac.authorization.k8s.io/v1 RoleBinding.
pub(crate) static ROLE_BINDING: Resource = Resource {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    storage: "rolebindings.rbac.authorization.k8s.io",
    ..BINDING_BASE
};

const ROLE_BASE: Resource = Resource {
    group: GROUP,
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    columns: &[
        Column::NAME,
        Column::text("Created At", |value, _| {
            json::text(value, "/metadata/creationTimestamp").into()
        }),
    ],
    validate: validate_role,
    ..Resource::BASE
};

const BINDING_BASE: Resource = Resource {
    group: GROUP,
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    columns: &[Column::NAME, Column::text("Role", |value, _| role_text(value).into()), Column::AGE],
    default: default_binding,
    validate: validate_binding,
    ..Resource::BASE
};

fn role_text(binding: &Value) -> String {
    format!("{}/{}", json::text(binding, "/roleRef/kind"), json::text(binding, "/roleRef/name"))
}

fn validate_role(value: &Value, _: Option<&Value>, errors: &mut FieldErrors) {
    for (index, rule) in json::items(value, "/rules").iter().enumerate() {
        let has = |field: &str| !json::items(rule, &format!("/{field}")).is_empty();
        if !has("verbs") {
            errors
                .required(format!("rules[{index}].verbs"), "verbs must contain at least one value");
        }
        if has("nonResourceURLs") {
            if json::text(value, "/kind") == "Role" {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(format!("rules[{index}].nonResourceURLs"), "", why);
            }
            continue;
        }
        if !has("apiGroups") {
            let why = "resource rules must supply at least one api group";
            errors.required(format!("rules[{index}].apiGroups"), why);
        }
        if !has("resources") {
            let why = "resource rules must supply at least one resource";
            errors.required(format!("rules[{index}].resources"), why);
        }
    }
    if json::at(value, "/aggregationRule").is_some() {
        validate_aggregation(value, errors);
    }
}

fn validate_aggregation(value: &Value, errors: &mut FieldErrors) {
    let selectors = json::items(value, "/aggregationRule/clusterRoleSelectors");
    if selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.required("aggregationRule.clusterRoleSelectors", why);
    }
    for (index, selector) in selectors.iter().enumerate() {
        let field = format!("aggregationRule.clusterRoleSelectors[{index}]");
        validate_label_selector(&field, Some(selector), errors);
    }
}

/// A subject of RBAC's own kinds is of RBAC's group; a ServiceAccount is of the core group.
fn default_binding(value: &mut Value) {
    json::set_default_text(value, "/roleRef/apiGroup", GROUP);
    for subject in json::items_mut(value, "/subjects") {
        if json::text(subject, "/kind") != "ServiceAccount" {
            json::set_default_text(subject, "/apiGroup", GROUP);
        }
    }
}

fn validate_binding(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let kind = json::text(value, "/roleRef/kind");
    let of_cluster = json::text(value, "/kind") == "ClusterRoleBinding";
    let allowed: &[&str] = if of_cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
    if !allowed.contains(&kind) {
        errors.unsupported("roleRef.kind", kind, allowed);
    }
    if json::text(value, "/roleRef/name").is_empty() {
        errors.required("roleRef.name", "");
    }
    for (index, subject) in json::items(value, "/subjects").iter().enumerate() {
        let kind = json::text(subject, "/kind");
        if !SUBJECT_KINDS.contains(&kind) {
            errors.unsupported(format!("subjects[{index}].kind"), kind, &SUBJECT_KINDS);
        }
        if json::text(subject, "/name").is_empty() {
            errors.required(format!("subjects[{index}].name"), "");
        }
        if kind == "ServiceAccount" && json::text(subject, "/namespace").is_empty() {
            errors.required(format!("subjects[{index}].namespace"), "");
        }
    }
    if let Some(old) = old {
        immutable(errors, "roleRef", value.get("roleRef"), old.get("roleRef"));
    }
}
