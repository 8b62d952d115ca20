//! Checks of one container: what it asks for, its environment, mounts, probes and hooks.

use model::quantity::Quantity;
use serde_json::Value;

use super::limits::amounts;
use super::pod_spec::validate_port_reference;
use crate::json;
use crate::validate::{FieldErrors, non_negative, one_of};

/// Resources that containers ask for without saying whose they are.
const STANDARD_RESOURCES: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
/// Of these a node may promise more than it has; of all others the request is the limit.
const OVERCOMMITTED: [&str; 3] = STANDARD_RESOURCES;
/// What a variable may take its value from.
const VARIABLE_SOURCES: [&str; 4] =
    ["configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef"];
/// Fields of the pod that a variable may have.
const VARIABLE_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// In which of a pod's lists a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `containers`.
    Main,
    /// `initContainers`.
    Init,
}

/// Checks what of a container depends on the list that it stands in.
pub(super) fn validate_role(field: &str, container: &Value, role: Role, errors: &mut FieldErrors) {
    let policy = container.get("restartPolicy");
    match (role, policy.and_then(Value::as_str)) {
        (Role::Main, Some(_)) => {
            let why = "may not be set for non-init containers";
            errors.forbidden(format!("{field}.restartPolicy"), why);
        }
        (Role::Init, Some(_)) => {
            one_of(errors, format!("{field}.restartPolicy"), policy, &["Always"]);
        }
        (Role::Init, None) => {
            for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if json::at(container, &format!("/{name}")).is_some() {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    errors.forbidden(format!("{field}.{name}"), why);
                }
            }
        }
        (Role::Main, None) => {}
    }
}

/// Checks what is the same in every list.
pub(super) fn validate(field: &str, container: &Value, errors: &mut FieldErrors) {
    validate_resources(&format!("{field}.resources"), container, errors);
    for (index, variable) in json::items(container, "/env").iter().enumerate() {
        validate_variable(&format!("{field}.env[{index}]"), variable, errors);
    }
    for (index, mount) in json::items(container, "/volumeMounts").iter().enumerate() {
        validate_sub_path(&format!("{field}.volumeMounts[{index}]"), mount, errors);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = json::at(container, &format!("/{name}")) {
            validate_probe(&format!("{field}.{name}"), probe, name, errors);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = json::at(container, &format!("/lifecycle/{name}")) {
            let handlers = ["exec", "httpGet", "sleep", "tcpSocket"];
            validate_handler(&format!("{field}.lifecycle.{name}"), hook, &handlers, errors);
        }
    }
    let policy = container.get("terminationMessagePolicy");
    let policies = ["FallbackToLogsOnError", "File"];
    one_of(errors, format!("{field}.terminationMessagePolicy"), policy, &policies);
}

fn validate_resources(field: &str, container: &Value, errors: &mut FieldErrors) {
    let limits = amounts(container, "/resources/limits");
    let requests = amounts(container, "/resources/requests");
    for (side, amounts) in [("limits", &limits), ("requests", &requests)] {
        for (name, amount) in amounts {
            validate_amount(&format!("{field}.{side}[{name}]"), name, amount, errors);
        }
    }
    for (name, request) in &requests {
        let may_exceed = OVERCOMMITTED.contains(&name.as_str());
        match limits.get(name) {
            Some(limit) if !may_exceed && request != limit => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.invalid(format!("{field}.requests"), request.to_string(), &why);
            }
            Some(limit) if request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(format!("{field}.requests"), request.to_string(), &why);
            }
            None if !may_exceed => {
                let why = "Limit must be set for non overcommitable resources";
                errors.required(format!("{field}.limits"), why);
            }
            _ => {}
        }
    }
}

/// One amount of a resource. Names with a slash say whose resource it is.
fn validate_amount(field: &str, name: &str, amount: &Quantity, errors: &mut FieldErrors) {
    let is_standard = STANDARD_RESOURCES.contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') && !is_standard {
        errors.invalid(field, name, "must be a standard resource type or fully qualified");
        errors.invalid(field, name, "must be a standard resource for containers");
    }
    if amount.is_negative() {
        errors.invalid(field, amount.to_string(), "must be greater than or equal to 0");
    }
    if name.contains('/') && !amount.is_whole() {
        errors.invalid(field, amount.to_string(), "must be an integer");
    }
}

fn validate_variable(field: &str, variable: &Value, errors: &mut FieldErrors) {
    let Some(from) = json::at(variable, "/valueFrom") else { return };
    let field = format!("{field}.valueFrom");
    let given = VARIABLE_SOURCES.iter().filter(|source| from.get(**source).is_some()).count();
    let is_written_out = !json::text(variable, "/value").is_empty();
    if given == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or \
                   `secretKeyRef`";
        errors.invalid(field.as_str(), "", why);
    } else if given > 1 && !is_written_out {
        let why = "may not have more than one field specified at a time";
        errors.invalid(field.as_str(), "", why);
    }
    if let Some(reference) = from.get("fieldRef") {
        let path = json::text(reference, "/fieldPath");
        let place = format!("{field}.fieldRef.fieldPath");
        if path.is_empty() {
            errors.required(place, "");
        } else if !is_variable_field(path) {
            let why = format!("error converting fieldPath: field label not supported: {path}");
            errors.invalid(place, path, &why);
        }
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = from.get(source)
            && json::text(reference, "/key").is_empty()
        {
            errors.required(format!("{field}.{source}.key"), "");
        }
    }
}

fn is_variable_field(path: &str) -> bool {
    let is_member = |of: &str| {
        let key = path.strip_prefix(of).and_then(|rest| rest.strip_prefix("['"));
        key.is_some_and(|rest| rest.ends_with("']"))
    };
    VARIABLE_FIELDS.contains(&path)
        || is_member("metadata.labels")
        || is_member("metadata.annotations")
}

fn validate_sub_path(field: &str, mount: &Value, errors: &mut FieldErrors) {
    let (plain, expanded) = (json::text(mount, "/subPath"), json::text(mount, "/subPathExpr"));
    if !plain.is_empty() && !expanded.is_empty() {
        let why = "subPathExpr and subPath are mutually exclusive";
        errors.invalid(format!("{field}.subPathExpr"), expanded, why);
    }
    for (name, path) in [("subPath", plain), ("subPathExpr", expanded)] {
        descending_path(&format!("{field}.{name}"), path, errors);
    }
}

/// A path that stays below where it begins.
pub(super) fn descending_path(field: &str, path: &str, errors: &mut FieldErrors) {
    if path.starts_with('/') {
        errors.invalid(field, path, "must be a relative path");
    }
    no_steps_back(field, path, errors);
}

/// A path none of whose parts leads up.
pub(super) fn no_steps_back(field: &str, path: &str, errors: &mut FieldErrors) {
    if path.split('/').any(|part| part == "..") {
        errors.invalid(field, path, "must not contain '..'");
    }
}

fn validate_probe(field: &str, probe: &Value, kind: &str, errors: &mut FieldErrors) {
    validate_handler(field, probe, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for name in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(errors, format!("{field}.{name}"), probe.get(name));
    }
    let successes = json::integer(probe, "/successThreshold").unwrap_or(1);
    if kind != "readinessProbe" && successes != 1 {
        errors.invalid(format!("{field}.successThreshold"), successes, "must be 1");
    }
    if let Some(grace) = json::integer(probe, "/terminationGracePeriodSeconds") {
        let place = format!("{field}.terminationGracePeriodSeconds");
        if kind == "readinessProbe" {
            errors.invalid(place, grace, "must not be set for readinessProbes");
        } else if grace <= 0 {
            errors.invalid(place, grace, "must be greater than 0");
        }
    }
}

/// Checks what a probe or a hook does.
fn validate_handler(field: &str, probe: &Value, handlers: &[&str], errors: &mut FieldErrors) {
    let given: Vec<&&str> = handlers
        .iter()
        .filter(|handler| json::at(probe, &format!("/{handler}")).is_some())
        .collect();
    match given.as_slice() {
        [] => errors.required(field, "must specify a handler type"),
        [_] => {}
        [_, second, ..] => errors
            .forbidden(format!("{field}.{second}"), "may not specify more than 1 handler type"),
    }
    for handler in ["httpGet", "tcpSocket"] {
        let port = probe.get(handler).and_then(|handler| handler.get("port"));
        validate_port_reference(&format!("{field}.{handler}.port"), port, errors);
    }
    if probe.get("exec").is_some() && json::items(probe, "/exec/command").is_empty() {
        errors.required(format!("{field}.exec.command"), "");
    }
    if let Some(get) = json::at(probe, "/httpGet") {
        one_of(errors, format!("{field}.httpGet.scheme"), get.get("scheme"), &["HTTP", "HTTPS"]);
    }
}
