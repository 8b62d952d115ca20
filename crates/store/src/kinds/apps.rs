//! Workloads: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController.

use serde_json::{Value, json as tree};

use super::pod_spec;
use crate::json;
use crate::patch::ListRule;
use crate::resource::{Resource, Subresource};
use crate::shape::{Field, FieldKind};
use crate::table::{Column, labels_text, or_none};
use crate::validate::{FieldErrors, immutable, non_negative, one_of};
use crate::write::validate_labels;

const POD_TEMPLATE_SPEC: Option<&str> = Some("/spec/template/spec");
const CONDITIONS: &[ListRule] = &[ListRule::merge_by("status/conditions", "type")];
const STATUS_AND_SCALE: &[Subresource] = &[Subresource::Scale, Subresource::Status];

/// Field types that workloads share.
const WORKLOAD_SHAPE: &[Field] = &[
    Field::new("spec", FieldKind::Object, "Workload"),
    Field::new("spec.replicas", FieldKind::Int32, "DeploymentSpec"),
    Field::new("spec.minReadySeconds", FieldKind::Int32, "DeploymentSpec"),
    Field::new("spec.revisionHistoryLimit", FieldKind::Int32, "DeploymentSpec"),
    Field::new("spec.progressDeadlineSeconds", FieldKind::Int32, "DeploymentSpec"),
    Field::new("spec.paused", FieldKind::Bool, "DeploymentSpec"),
    Field::new("spec.strategy.type", FieldKind::Text, "DeploymentStrategy"),
    Field::new(
        "spec.strategy.rollingUpdate.maxSurge",
        FieldKind::IntOrString,
        "RollingUpdateDeployment",
    ),
    Field::new(
        "spec.strategy.rollingUpdate.maxUnavailable",
        FieldKind::IntOrString,
        "RollingUpdateDeployment",
    ),
    Field::new("spec.template", FieldKind::Object, "DeploymentSpec"),
    Field::new("spec.template.metadata", FieldKind::Object, "PodTemplateSpec"),
    Field::new("spec.template.metadata.labels", FieldKind::TextMap, "ObjectMeta"),
    Field::new("spec.template.metadata.annotations", FieldKind::TextMap, "ObjectMeta"),
];

/// The rich form of a selector.
const SELECTOR_SHAPE: &[Field] = &[
    Field::new("spec.selector", FieldKind::Object, "DeploymentSpec"),
    Field::new("spec.selector.matchLabels", FieldKind::TextMap, "LabelSelector"),
    Field::new("spec.selector.matchExpressions", FieldKind::List, "LabelSelector"),
    Field::new("spec.selector.matchExpressions[].key", FieldKind::Text, "LabelSelectorRequirement"),
    Field::new(
        "spec.selector.matchExpressions[].operator",
        FieldKind::Text,
        "LabelSelectorRequirement",
    ),
    Field::new(
        "spec.selector.matchExpressions[].values",
        FieldKind::TextList,
        "LabelSelectorRequirement",
    ),
];

const SELECTOR_COLUMN: Column =
    Column::text("Selector", |value, _| or_none(&selector_text(json::at(value, "/spec/selector"))))
        .wide();
const CONTAINERS_COLUMN: Column =
    Column::text("Containers", |value, _| container_texts(value, "name").into()).wide();
const IMAGES_COLUMN: Column =
    Column::text("Images", |value, _| container_texts(value, "image").into()).wide();

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
    pod_spec: POD_TEMPLATE_SPEC,
    list_rules: CONDITIONS,
    shape: DEPLOYMENT_SHAPE,
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
    pod_spec: POD_TEMPLATE_SPEC,
    list_rules: CONDITIONS,
    shape: DEPLOYMENT_SHAPE,
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
    pod_spec: POD_TEMPLATE_SPEC,
    list_rules: CONDITIONS,
    shape: DEPLOYMENT_SHAPE,
    notice: Some("StatefulSet is stored, but nothing runs it yet: no pods will be created"),
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
    },
    prepare_create: |value| {
        json::set(value, "/status", tree!({"replicas": 0, "availableReplicas": 0}))
    },
    validate: validate_workload,
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
    pod_spec: POD_TEMPLATE_SPEC,
    list_rules: CONDITIONS,
    shape: DEPLOYMENT_SHAPE,
    notice: Some("DaemonSet is stored, but nothing runs it yet: no pods will be created"),
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
    },
    validate: validate_workload,
    ..Resource::BASE
};

/// core/v1 ReplicationController: the ancestor of ReplicaSet, which `kubectl get all` asks for.
pub(crate) static REPLICATION_CONTROLLER: Resource = Resource {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    storage: "replicationcontrollers",
    has_generation: true,
    pod_spec: POD_TEMPLATE_SPEC,
    list_rules: CONDITIONS,
    shape: WORKLOAD_SHAPE,
    notice: Some("ReplicationController is stored, but nothing runs it: use a Deployment"),
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
        if json::at(value, "/spec/selector").is_none()
            && let Some(labels) = json::at(value, "/spec/template/metadata/labels").cloned()
        {
            json::set(value, "/spec/selector", labels);
        }
    },
    prepare_create: |value| json::set(value, "/status/replicas", 0),
    validate: |value, _, errors| {
        non_negative(errors, "spec.replicas", json::at(value, "/spec/replicas"));
        let selector = json::at(value, "/spec/selector");
        if selector.is_none() {
            errors.required("spec.selector", "");
        }
        validate_template(value, errors);
    },
    ..Resource::BASE
};

const DEPLOYMENT_SHAPE: &[Field] = &concat_fields();

const fn concat_fields() -> [Field; WORKLOAD_SHAPE.len() + SELECTOR_SHAPE.len()] {
    let mut fields = [WORKLOAD_SHAPE[0]; WORKLOAD_SHAPE.len() + SELECTOR_SHAPE.len()];
    let mut index = 0;
    while index < fields.len() {
        fields[index] = if index < WORKLOAD_SHAPE.len() {
            WORKLOAD_SHAPE[index]
        } else {
            SELECTOR_SHAPE[index - WORKLOAD_SHAPE.len()]
        };
        index += 1;
    }
    fields
}

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
    validate_template(value, errors);
}

fn validate_template(value: &Value, errors: &mut FieldErrors) {
    let labels = json::at(value, "/spec/template/metadata/labels");
    validate_labels("spec.template.labels", labels, errors);
    match json::at(value, "/spec/template/spec") {
        Some(spec) => {
            pod_spec::validate("spec.template.spec", spec, errors);
            let policy = json::text(spec, "/restartPolicy");
            if matches!(policy, "Never" | "OnFailure") {
                errors.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
            }
        }
        None => errors.required("spec.template.spec.containers", ""),
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
        match rolling.and_then(|rolling| rolling.get(name)) {
            Some(Value::String(text)) => {
                let percent = text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok());
                match percent {
                    None => errors.invalid(
                        field,
                        text.as_str(),
                        "a valid percent string must be a numeric string followed by an ending \
                         '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                    ),
                    Some(percent) => {
                        both_zero &= percent == 0;
                        if name == "maxUnavailable" && percent > 100 {
                            errors.invalid(field, text.as_str(), "must not be greater than 100%");
                        }
                    }
                }
            }
            number => {
                both_zero &= number.and_then(Value::as_i64).unwrap_or(0) == 0;
                non_negative(errors, field, number);
            }
        }
    }
    if both_zero {
        let field = "spec.strategy.rollingUpdate.maxUnavailable";
        errors.invalid(field, 0, "may not be 0 when `maxSurge` is 0");
    }
}

fn selects_labels(selector: &Value, labels: Option<&Value>) -> bool {
    let Ok(selector) = serde_json::from_value::<model::selector::LabelSelector>(selector.clone())
    else {
        return false;
    };
    let labels = labels.cloned().unwrap_or_else(|| tree!({}));
    serde_json::from_value(labels).is_ok_and(|labels| selector.matches(&labels))
}

fn container_texts(value: &Value, field: &str) -> String {
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
