//! batch/v1: Job, and what CronJobs share with it.

use model::Timestamp;
use serde_json::{Value, json as tree};

use super::apps::{self, selector_text, validate_label_selector};
use super::{job_policies, pod_spec};
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, human_duration, or_none};
use crate::validate::{FieldErrors, immutable, non_negative, one_of};

/// The label by which a Job knows its pods, and the name that it had before.
const CONTROLLER_UID: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
/// The label of pods with their Job's name, and the name that it had before.
const JOB_NAME: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
/// Most pods that a Job with `Indexed` may have: its status lists their indexes.
const MAX_INDEXED: i64 = 100_000;
/// Fields of a Job that never change.
const FIXED: [&str; 6] = [
    "selector",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
];
/// What of a pod template says where pods run, and how they are known.
const SCHEDULING: [&str; 6] = [
    "/metadata/annotations",
    "/metadata/labels",
    "/spec/affinity",
    "/spec/nodeSelector",
    "/spec/schedulingGates",
    "/spec/tolerations",
];

/// batch/v1 Job.
pub(crate) static JOB: Resource = Resource {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    subresources: &[Subresource::Status],
    storage: "jobs.batch",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Status", |value, _| state(value).into()),
        Column::text("Completions", |value, _| completions(value).into()),
        Column::text("Duration", |value, now| duration(value, now).into()),
        Column::AGE,
        Column::text("Containers", |value, _| apps::container_texts(value, "name").into()).wide(),
        Column::text("Images", |value, _| apps::container_texts(value, "image").into()).wide(),
        Column::text("Selector", |value, _| {
            or_none(&selector_text(json::at(value, "/spec/selector")))
        })
        .wide(),
    ],
    default,
    prepare_create: |value| {
        json::set(value, "/status", tree!({}));
        select_own_pods(value);
    },
    validate,
    ..Resource::BASE
};

fn default(value: &mut Value) {
    let given = |name: &str| json::at(value, &format!("/spec/{name}")).is_some();
    // A limit for each index is meant to be the only one.
    let limit = if given("backoffLimitPerIndex") { i32::MAX } else { 6 };
    let replaced = if given("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    if !given("completions") && !given("parallelism") {
        json::set(value, "/spec/completions", 1);
    }
    json::set_default(value, "/spec/parallelism", 1);
    json::set_default(value, "/spec/backoffLimit", limit);
    json::set_default(value, "/spec/suspend", false);
    json::set_default_text(value, "/spec/completionMode", "NonIndexed");
    json::set_default_text(value, "/spec/podReplacementPolicy", replaced);
    for rule in json::items_mut(value, "/spec/podFailurePolicy/rules") {
        for pattern in json::items_mut(rule, "/onPodConditions") {
            json::set_default_text(pattern, "/status", "True");
        }
    }
    if let Some(spec) = value.pointer_mut("/spec/template/spec") {
        pod_spec::default(spec);
    }
}

/// Gives a new Job a selector that no other pods have, unless its author says that he did.
fn select_own_pods(value: &mut Value) {
    let labels = "/spec/template/metadata/labels";
    if json::at(value, "/metadata/labels").is_none()
        && let Some(labels) = json::at(value, labels).cloned()
    {
        json::set(value, "/metadata/labels", labels);
    }
    if json::flag(value, "/spec/manualSelector") {
        return;
    }
    let uid = json::text(value, "/metadata/uid").to_owned();
    let name = json::text(value, "/metadata/name").to_owned();
    if let Some(labels) = json::object_mut(value, labels) {
        for (key, text) in CONTROLLER_UID
            .map(|key| (key, &uid))
            .into_iter()
            .chain(JOB_NAME.map(|key| (key, &name)))
        {
            labels.insert(key.to_owned(), text.as_str().into());
        }
    }
    let [key, _] = CONTROLLER_UID;
    json::set(value, "/spec/selector", tree!({"matchLabels": {key: uid}}));
}

fn validate(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let none = Value::Null;
    validate_spec("spec", json::at(value, "/spec").unwrap_or(&none), errors);
    validate_selector(value, errors);
    let Some(old) = old else { return };
    for name in FIXED {
        let pointer = format!("/spec/{name}");
        let field = format!("spec.{name}");
        immutable(errors, field, json::at(value, &pointer), json::at(old, &pointer));
    }
    // Indexes may become more or fewer where all of them run at once (KEP-3715).
    let number = |name: &str| json::integer(value, &format!("/spec/{name}"));
    let elastic = json::text(value, "/spec/completionMode") == "Indexed"
        && number("completions") == number("parallelism");
    if !elastic {
        let (new, old) = (json::at(value, "/spec/completions"), json::at(old, "/spec/completions"));
        immutable(errors, "spec.completions", new, old);
    }
    let (new, old) = (fixed_template(value, old), fixed_template(old, old));
    immutable(errors, "spec.template", new.as_ref(), old.as_ref());
}

/// The part of the pod template that may not change: until a suspended Job begins, somebody else
/// may still say where its pods run (KEP-2926).
fn fixed_template(value: &Value, old: &Value) -> Option<Value> {
    let mut template = json::at(value, "/spec/template")?.clone();
    let waits = json::flag(old, "/spec/suspend") && json::at(old, "/status/startTime").is_none();
    if waits {
        for pointer in SCHEDULING {
            json::remove(&mut template, pointer);
        }
    }
    Some(template)
}

/// Checks the spec of a Job, or of the Jobs that a CronJob makes.
pub(super) fn validate_spec(field: &str, spec: &Value, errors: &mut FieldErrors) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        non_negative(errors, format!("{field}.{name}"), json::at(spec, &format!("/{name}")));
    }
    job_policies::validate(field, spec, errors);
    let mode = json::at(spec, "/completionMode");
    one_of(errors, format!("{field}.completionMode"), mode, &["NonIndexed", "Indexed"]);
    if json::text(spec, "/completionMode") == "Indexed" {
        let field = format!("{field}.completions");
        match json::integer(spec, "/completions") {
            None => errors.required(field, "when completion mode is Indexed"),
            Some(count) if count > MAX_INDEXED => {
                let why = "must be less than or equal to 100000 when completion mode is Indexed";
                errors.invalid(field, count, why);
            }
            Some(_) => {}
        }
    }
    let template = format!("{field}.template");
    let labels = json::at(spec, "/template/metadata/labels");
    crate::write::validate_labels(&format!("{template}.labels"), labels, errors);
    match json::at(spec, "/template/spec") {
        Some(pods) => {
            pod_spec::validate(&format!("{template}.spec"), pods, errors);
            let policy = json::text(pods, "/restartPolicy");
            if !matches!(policy, "Never" | "OnFailure") {
                let field = format!("{template}.spec.restartPolicy");
                errors.unsupported(field, policy, &["OnFailure", "Never"]);
            }
        }
        None => errors.required(format!("{template}.spec.containers"), ""),
    }
}

fn validate_selector(value: &Value, errors: &mut FieldErrors) {
    let labels = json::at(value, "/spec/template/metadata/labels");
    match json::at(value, "/spec/selector") {
        None => errors.required("spec.selector", ""),
        Some(selector) => {
            validate_label_selector("spec.selector", Some(selector), errors);
            if !apps::selects_labels(selector, labels) {
                let labels = labels.cloned().unwrap_or_else(|| tree!({}));
                let why = "`selector` does not match template `labels`";
                errors.invalid("spec.template.metadata.labels", labels, why);
            }
        }
    }
}

fn state(value: &Value) -> &'static str {
    let is = |kind: &str| {
        json::items(value, "/status/conditions").iter().any(|condition| {
            json::text(condition, "/type") == kind && json::text(condition, "/status") == "True"
        })
    };
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if json::at(value, "/metadata/deletionTimestamp").is_some() => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(value: &Value) -> String {
    let succeeded = json::integer(value, "/status/succeeded").unwrap_or(0);
    let parallelism = json::integer(value, "/spec/parallelism").unwrap_or(0);
    match json::integer(value, "/spec/completions") {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

fn duration(value: &Value, now: Timestamp) -> String {
    let at = |pointer: &str| Timestamp::parse(json::text(value, pointer));
    let Some(start) = at("/status/startTime") else { return String::new() };
    let end = at("/status/completionTime").unwrap_or(now);
    human_duration(end.seconds().saturating_sub(start.seconds()))
}
