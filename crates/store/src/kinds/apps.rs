//! Workloads: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision,
//! ReplicationController.

use std::borrow::Cow;

use serde_json::{Value, json as tree};

use super::pod_spec;
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, labels_text, or_none};
use crate::validate::{FieldErrors, immutable, non_negative, one_of};
use crate::write::validate_labels;

const STATUS_AND_SCALE: &[Subresource] = &[Subresource::Scale, Subresource::Status];

const SELECTOR_COLUMN: Column =
    Column::text("Selector", |value, _| or_none(&selector_text(json::at(value, "/spec/selector"))))
        .wide();
const CONTAINERS_COLUMN: Column =
    Column::text("Containers", |value, _| container_texts(value, "name").into()).wide();
const IMAGES_COLUMN: Column =
    Column::text("Images", |value, _| container_texts(value, "image").into()).wide();

/// The claims that each pod of a StatefulSet has.
const CLAIM_TEMPLATES: &str = "/spec/volumeClaimTemplates";

/// apps/v1 Deployment.
pub(crate) static DEPLOYMENT: Resource = Resource {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: STATUS_AND_SCALE,
    storage: "deployments.apps",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Ready", |value, _| ready_of_wanted(value).into()),
        Column::integer("Up-to-date", |value, _| counter(value, "updatedReplicas")),
        Column::integer("Available", |value, _| counter(value, "availableReplicas")),
        Column::AGE,
        CONTAINERS_COLUMN,
        IMAGES_COLUMN,
        SELECTOR_COLUMN,
    ],
    default: |value| {
        default_workload(value, true);
        json::set_default(value, "/spec/revisionHistoryLimit", 10);
        json::set_default(value, "/spec/progressDeadlineSeconds", 600);
        json::set_default_text(value, "/spec/strategy/type", "RollingUpdate");
        if json::text(value, "/spec/strategy/type") == "RollingUpdate" {
            json::set_default(value, "/spec/strategy/rollingUpdate/maxSurge", "25%");
            json::set_default(value, "/spec/strategy/rollingUpdate/maxUnavailable", "25%");
        }
    },
    prepare_create: |value| json::set(value, "/status", tree!({})),
    validate: |value, old, errors| {
        validate_workload(value, old, errors);
        validate_strategy(value, errors);
    },
    ..Resource::BASE
};

/// apps/v1 ReplicaSet.
pub(crate) static REPLICA_SET: Resource = Resource {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: STATUS_AND_SCALE,
    storage: "replicasets.apps",
    has_generation: true,
    selectable_fields: &["/status/replicas"],
    columns: &[
        Column::NAME,
        Column::integer("Desired", |value, _| wanted(value).into()),
        Column::integer("Current", |value, _| counter(value, "replicas")),
        Column::integer("Ready", |value, _| counter(value, "readyReplicas")),
        Column::AGE,
        CONTAINERS_COLUMN,
        IMAGES_COLUMN,
        SELECTOR_COLUMN,
    ],
    default: |value| default_workload(value, true),
    prepare_create: |value| json::set(value, "/status/replicas", 0),
    validate: validate_workload,
    ..Resource::BASE
};

/// apps/v1 StatefulSet.
pub(crate) static STATEFUL_SET: Resource = Resource {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    subresources: STATUS_AND_SCALE,
    storage: "statefulsets.apps",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Ready", |value, _| ready_of_wanted(value).into()),
        Column::AGE,
        CONTAINERS_COLUMN,
        IMAGES_COLUMN,
    ],
    default: |value| {
        default_workload(value, true);
        json::set_default_text(value, "/spec/podManagementPolicy", "OrderedReady");
        json::set_default_text(value, "/spec/updateStrategy/type", "RollingUpdate");
        if json::text(value, "/spec/updateStrategy/type") == "RollingUpdate" {
            json::set_default(value, "/spec/updateStrategy/rollingUpdate/partition", 0);
        }
        json::set_default(value, "/spec/revisionHistoryLimit", 10);
        let policy = "/spec/persistentVolumeClaimRetentionPolicy";
        json::set_default_text(value, &format!("{policy}/whenDeleted"), "Retain");
        json::set_default_text(value, &format!("{policy}/whenScaled"), "Retain");
        for claim in json::items_mut(value, CLAIM_TEMPLATES) {
            json::set_default_text(claim, "/apiVersion", "v1");
            json::set_default_text(claim, "/kind", "PersistentVolumeClaim");
            json::set_default_text(claim, "/status/phase", "Pending");
            super::storage::default_claim(claim);
        }
    },
    prepare_create: |value| {
        json::set(value, "/status", tree!({"replicas": 0, "availableReplicas": 0}))
    },
    validate: |value, old, errors| {
        validate_workload(value, None, errors);
        validate_ordered_update(value, old, errors);
    },
    ..Resource::BASE
};

/// apps/v1 DaemonSet.
pub(crate) static DAEMON_SET: Resource = Resource {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    storage: "daemonsets.apps",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::integer("Desired", |value, _| counter(value, "desiredNumberScheduled")),
        Column::integer("Current", |value, _| counter(value, "currentNumberScheduled")),
        Column::integer("Ready", |value, _| counter(value, "numberReady")),
        Column::integer("Up-to-date", |value, _| counter(value, "updatedNumberScheduled")),
        Column::integer("Available", |value, _| counter(value, "numberAvailable")),
        Column::text("Node Selector", |value, _| {
            or_none(&labels_text(json::at(value, "/spec/template/spec/nodeSelector")))
        }),
        Column::AGE,
        CONTAINERS_COLUMN,
        IMAGES_COLUMN,
        SELECTOR_COLUMN,
    ],
    default: |value| {
        default_workload(value, false);
        json::set_default_text(value, "/spec/updateStrategy/type", "RollingUpdate");
        if json::text(value, "/spec/updateStrategy/type") == "RollingUpdate" {
            json::set_default(value, "/spec/updateStrategy/rollingUpdate/maxUnavailable", 1);
            json::set_default(value, "/spec/updateStrategy/rollingUpdate/maxSurge", 0);
        }
        json::set_default(value, "/spec/revisionHistoryLimit", 10);
    },
    prepare_create: |value| {
        let zero = tree!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0,
            "numberMisscheduled": 0, "numberReady": 0,
        });
        json::set(value, "/status", zero);
        set_template_generation(value, 1);
    },
    prepare_update: |value, old| {
        let template = "/spec/template";
        let changed = json::at(value, template) != json::at(old, template);
        let generation = template_generation(old);
        set_template_generation(value, if changed { generation + 1 } else { generation });
    },
    validate: |value, old, errors| {
        validate_workload(value, old, errors);
        validate_daemon_update(value, errors);
    },
    ..Resource::BASE
};

/// apps/v1 ControllerRevision: a template that a DaemonSet or StatefulSet had.
pub(crate) static CONTROLLER_REVISION: Resource = Resource {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    storage: "controllerrevisions.apps",
    columns: &[
        Column::NAME,
        Column::text("Controller", |value, _| or_none(&controller_text(value))),
        Column::integer("Revision", |value, _| {
            json::integer(value, "/revision").unwrap_or(0).into()
        }),
        Column::AGE,
    ],
    default: |value| json::set_default(value, "/revision", 0),
    validate: |value, old, errors| {
        non_negative(errors, "revision", json::at(value, "/revision"));
        match (json::at(value, "/data"), old) {
            (None, _) => errors.required("data", "data is mandatory"),
            (data, Some(old)) => immutable(errors, "data", data, json::at(old, "/data")),
            _ => {}
        }
    },
    ..Resource::BASE
};

/// core/v1 ReplicationController: the ancestor of ReplicaSet, which `kubectl get all` asks for.
pub(crate) static REPLICATION_CONTROLLER: Resource = Resource {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: STATUS_AND_SCALE,
    storage: "replicationcontrollers",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::integer("Desired", |value, _| wanted(value).into()),
        Column::integer("Current", |value, _| counter(value, "replicas")),
        Column::integer("Ready", |value, _| counter(value, "readyReplicas")),
        Column::AGE,
        CONTAINERS_COLUMN,
        IMAGES_COLUMN,
        Column::text("Selector", |value, _| {
            or_none(&labels_text(json::at(value, "/spec/selector")))
        })
        .wide(),
    ],
    default: |value| {
        default_workload(value, true);
        let labels = json::at(value, "/spec/template/metadata/labels").cloned();
        for pointer in ["/spec/selector", "/metadata/labels"] {
            if let Some(labels) = &labels
                && json::members(value, pointer).next().is_none()
            {
                json::set(value, pointer, labels.clone());
            }
        }
    },
    prepare_create: |value| json::set(value, "/status/replicas", 0),
    validate: |value, old, errors| {
        non_negative(errors, "spec.replicas", json::at(value, "/spec/replicas"));
        let selector = json::at(value, "/spec/selector");
        if selector.is_none() {
            errors.required("spec.selector", "");
        }
        validate_template(value, old, errors);
    },
    ..Resource::BASE
};

/// A `metav1.LabelSelector` as text: `app=web,tier in (a,b),!old`.
pub(crate) fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else {
        return String::new();
    };
    let mut terms: Vec<String> = json::members(selector, "/matchLabels")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for requirement in json::items(selector, "/matchExpressions") {
        let key = json::text(requirement, "/key");
        let mut values = json::texts(requirement, "/values");
        values.sort_unstable();
        let values = values.join(",");
        terms.push(match json::text(requirement, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

/// The selector of a scale: that of a ReplicationController is a plain map.
pub(crate) fn scale_selector(resource: &Resource, value: &Value) -> String {
    let selector = json::at(value, "/spec/selector");
    match resource == &REPLICATION_CONTROLLER {
        true => labels_text(selector),
        false => selector_text(selector),
    }
}

/// Checks a `metav1.LabelSelector`.
pub(crate) fn validate_label_selector(
    field: &str,
    selector: Option<&Value>,
    errors: &mut FieldErrors,
) {
    let Some(selector) = selector else {
        return;
    };
    validate_labels(&format!("{field}.matchLabels"), selector.get("matchLabels"), errors);
    for (index, requirement) in json::items(selector, "/matchExpressions").iter().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let has_values = !json::items(requirement, "/values").is_empty();
        match json::text(requirement, "/operator") {
            "In" | "NotIn" if !has_values => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.required(format!("{field}.values"), why);
            }
            "Exists" | "DoesNotExist" if has_values => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(format!("{field}.values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.invalid(format!("{field}.operator"), other, "not a valid selector operator")
            }
        }
        for fault in crate::names::qualified_name_faults(json::text(requirement, "/key")) {
            errors.invalid(format!("{field}.key"), json::text(requirement, "/key"), &fault);
        }
    }
}

fn default_workload(value: &mut Value, has_replicas: bool) {
    if has_replicas {
        json::set_default(value, "/spec/replicas", 1);
    }
    if let Some(spec) = value.pointer_mut("/spec/template/spec") {
        pod_spec::default(spec);
    }
}

fn validate_workload(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    non_negative(errors, "spec.replicas", json::at(value, "/spec/replicas"));
    non_negative(errors, "spec.minReadySeconds", json::at(value, "/spec/minReadySeconds"));
    let history = json::at(value, "/spec/revisionHistoryLimit");
    non_negative(errors, "spec.revisionHistoryLimit", history);
    let selector = json::at(value, "/spec/selector");
    match selector {
        None => errors.required("spec.selector", ""),
        Some(selector) => {
            validate_label_selector("spec.selector", Some(selector), errors);
            let labels = json::at(value, "/spec/template/metadata/labels");
            let empty = json::members(selector, "/matchLabels").next().is_none()
                && json::items(selector, "/matchExpressions").is_empty();
            if empty {
                let why = "empty selector is invalid for deployment";
                errors.invalid("spec.selector", selector.clone(), why);
            } else if !selects_labels(selector, labels) {
                errors.invalid(
                    "spec.template.metadata.labels",
                    labels.cloned().unwrap_or_else(|| tree!({})),
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    if let Some(old) = old {
        immutable(errors, "spec.selector", selector, json::at(old, "/spec/selector"));
    }
    validate_template(value, old, errors);
}

fn validate_template(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let template = json::at(value, "/spec/template");
    if template.is_some() && old.and_then(|old| json::at(old, "/spec/template")) == template {
        return; // What was taken once stays, whatever is checked since.
    }
    let labels = json::at(value, "/spec/template/metadata/labels");
    validate_labels("spec.template.labels", labels, errors);
    match json::at(value, "/spec/template/spec") {
        Some(spec) => {
            pod_spec::validate("spec.template.spec", &with_claims(value, spec), errors);
            let policy = json::text(spec, "/restartPolicy");
            if matches!(policy, "Never" | "OnFailure") {
                errors.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
            }
        }
        None => errors.required("spec.template.spec.containers", ""),
    }
}

/// The pod spec as pods will have it: the claims of a StatefulSet are volumes too.
fn with_claims<'a>(set: &Value, spec: &'a Value) -> Cow<'a, Value> {
    let names: Vec<&str> = json::items(set, CLAIM_TEMPLATES)
        .iter()
        .map(|template| json::text(template, "/metadata/name"))
        .collect();
    if names.is_empty() {
        return Cow::Borrowed(spec);
    }
    let mut spec = spec.clone();
    let mut volumes = json::items(&spec, "/volumes").to_vec();
    volumes.retain(|volume| !names.contains(&json::text(volume, "/name")));
    let claims = names.into_iter();
    volumes.extend(
        claims.map(|name| tree!({"name": name, "persistentVolumeClaim": {"claimName": name}})),
    );
    json::set(&mut spec, "/volumes", volumes);
    Cow::Owned(spec)
}

/// The managing owner as kubectl names it: `daemonset.apps/flatnet`.
fn controller_text(value: &Value) -> String {
    let owners = json::items(value, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|owner| json::flag(owner, "/controller")) else {
        return String::new();
    };
    let (version, kind) = (json::text(owner, "/apiVersion"), json::text(owner, "/kind"));
    let group = version.split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", kind.to_lowercase(), json::text(owner, "/name"))
}

/// Counts the templates of a DaemonSet. The field that did so is an annotation since apps/v1.
const TEMPLATE_GENERATION: &str = "/metadata/annotations/deprecated.daemonset.template.generation";

fn template_generation(value: &Value) -> i64 {
    json::text(value, TEMPLATE_GENERATION).parse().unwrap_or(1)
}

fn set_template_generation(value: &mut Value, generation: i64) {
    json::set(value, TEMPLATE_GENERATION, generation.to_string());
}

fn validate_daemon_update(value: &Value, errors: &mut FieldErrors) {
    let kind = json::at(value, "/spec/updateStrategy/type");
    one_of(errors, "spec.updateStrategy.type", kind, &["RollingUpdate", "OnDelete"]);
    if kind.and_then(Value::as_str) != Some("RollingUpdate") {
        return;
    }
    let field = "spec.updateStrategy.rollingUpdate";
    let rolling = json::at(value, "/spec/updateStrategy/rollingUpdate");
    let mut zero = |name: &str| {
        let given = rolling.and_then(|rolling| rolling.get(name));
        validate_share(&format!("{field}.{name}"), given, name == "maxUnavailable", errors)
    };
    match (zero("maxUnavailable"), zero("maxSurge")) {
        (true, true) => {
            errors.required(format!("{field}.maxUnavailable"), "cannot be 0 when maxSurge is 0");
        }
        (false, false) => errors.invalid(
            format!("{field}.maxSurge"),
            rolling.and_then(|rolling| rolling.get("maxSurge")).cloned().unwrap_or_default(),
            "may not be set when maxUnavailable is non-zero",
        ),
        _ => {}
    }
}

/// Fields of a StatefulSet's spec that may change.
const CHANGEABLE_OF_STATEFUL_SETS: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn validate_ordered_update(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let policy = json::at(value, "/spec/podManagementPolicy");
    one_of(errors, "spec.podManagementPolicy", policy, &["OrderedReady", "Parallel"]);
    let kind = json::at(value, "/spec/updateStrategy/type");
    one_of(errors, "spec.updateStrategy.type", kind, &["RollingUpdate", "OnDelete"]);
    let partition = "/spec/updateStrategy/rollingUpdate/partition";
    let field = "spec.updateStrategy.rollingUpdate.partition";
    non_negative(errors, field, json::at(value, partition));
    let unavailable = json::at(value, "/spec/updateStrategy/rollingUpdate/maxUnavailable");
    let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
    if unavailable.is_some() && validate_share(field, unavailable, true, errors) {
        errors.invalid(field, unavailable.cloned().unwrap_or_default(), "cannot be 0");
    }
    non_negative(errors, "spec.ordinals.start", json::at(value, "/spec/ordinals/start"));
    let Some(old) = old else { return };
    let fixed = |value: &Value| {
        let mut spec = json::at(value, "/spec").cloned().unwrap_or_default();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|name, _| !CHANGEABLE_OF_STATEFUL_SETS.contains(&name.as_str()));
        }
        spec
    };
    if fixed(value) != fixed(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', \
                   'template', 'updateStrategy', 'revisionHistoryLimit', \
                   'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.forbidden("spec", why);
    }
}

fn validate_strategy(value: &Value, errors: &mut FieldErrors) {
    let kind = json::at(value, "/spec/strategy/type");
    one_of(errors, "spec.strategy.type", kind, &["Recreate", "RollingUpdate"]);
    let rolling = json::at(value, "/spec/strategy/rollingUpdate");
    if kind.and_then(Value::as_str) == Some("Recreate") {
        if rolling.is_some() {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden("spec.strategy.rollingUpdate", why);
        }
        return;
    }
    let mut both_zero = true;
    for name in ["maxUnavailable", "maxSurge"] {
        let field = format!("spec.strategy.rollingUpdate.{name}");
        let given = rolling.and_then(|rolling| rolling.get(name));
        both_zero &= validate_share(&field, given, name == "maxUnavailable", errors);
    }
    if both_zero {
        let field = "spec.strategy.rollingUpdate.maxUnavailable";
        errors.invalid(field, 0, "may not be 0 when `maxSurge` is 0");
    }
}

/// Checks a number of pods, or a percentage of them; whether it is zero.
pub(super) fn validate_share(
    field: &str,
    given: Option<&Value>,
    at_most_all: bool,
    errors: &mut FieldErrors,
) -> bool {
    let Some(Value::String(text)) = given else {
        non_negative(errors, field, given);
        return given.and_then(Value::as_i64).unwrap_or(0) == 0;
    };
    match text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok()) {
        None => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' \
                       (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.invalid(field, text.as_str(), why);
            false
        }
        Some(percent) => {
            if at_most_all && percent > 100 {
                errors.invalid(field, text.as_str(), "must not be greater than 100%");
            }
            percent == 0
        }
    }
}

/// Whether a `metav1.LabelSelector` selects these labels.
pub(crate) fn selects_labels(selector: &Value, labels: Option<&Value>) -> bool {
    let Ok(selector) = serde_json::from_value::<model::selector::LabelSelector>(selector.clone())
    else {
        return false;
    };
    let labels = labels.cloned().unwrap_or_else(|| tree!({}));
    let labels = serde_json::from_value::<std::collections::BTreeMap<_, _>>(labels);
    labels.is_ok_and(|labels| selector.matches(&labels))
}

pub(super) fn container_texts(value: &Value, field: &str) -> String {
    let containers = json::items(value, "/spec/template/spec/containers");
    let pointer = format!("/{field}");
    let texts: Vec<&str> = containers.iter().map(|item| json::text(item, &pointer)).collect();
    texts.join(",")
}

fn wanted(value: &Value) -> i64 {
    json::integer(value, "/spec/replicas").unwrap_or(0)
}

fn counter(value: &Value, field: &str) -> Value {
    json::integer(value, &format!("/status/{field}")).unwrap_or(0).into()
}

fn ready_of_wanted(value: &Value) -> String {
    let ready = json::integer(value, "/status/readyReplicas").unwrap_or(0);
    format!("{ready}/{}", wanted(value))
}
