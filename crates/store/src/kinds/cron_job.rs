//! batch/v1: CronJob.

use model::cron::{Schedule, Zone};
use serde_json::{Value, json as tree};

use super::apps::{container_texts, selector_text};
use super::batch::validate_spec;
use super::pod_spec;
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, age, or_none};
use crate::validate::{FieldErrors, non_negative};

/// The longest name: that of a Job has eleven characters more.
const MAX_NAME_BYTES: usize = 52;
/// The longest part of a time zone's name.
const MAX_ZONE_PART_BYTES: usize = 14;

/// batch/v1 CronJob.
pub(crate) static CRON_JOB: Resource = Resource {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    storage: "cronjobs.batch",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Schedule", |value, _| json::text(value, "/spec/schedule").into()),
        Column::text("Timezone", |value, _| or_none(json::text(value, "/spec/timeZone"))),
        Column::boolean("Suspend", |value, _| suspended(value).into()),
        Column::integer("Active", |value, _| json::items(value, "/status/active").len().into()),
        Column::text("Last Schedule", |value, now| {
            match json::at(value, "/status/lastScheduleTime") {
                Some(_) => age(value, "/status/lastScheduleTime", now).into(),
                None => or_none(""),
            }
        }),
        Column::AGE,
        Column::text("Containers", |value, _| container_texts(job(value), "name").into()).wide(),
        Column::text("Images", |value, _| container_texts(job(value), "image").into()).wide(),
        Column::text("Selector", |value, _| {
            or_none(&selector_text(json::at(job(value), "/spec/selector")))
        })
        .wide(),
    ],
    default: |value| {
        json::set_default_text(value, "/spec/concurrencyPolicy", "Allow");
        json::set_default(value, "/spec/suspend", false);
        json::set_default(value, "/spec/successfulJobsHistoryLimit", 3);
        json::set_default(value, "/spec/failedJobsHistoryLimit", 1);
        if let Some(spec) = value.pointer_mut("/spec/jobTemplate/spec/template/spec") {
            pod_spec::default(spec);
        }
    },
    prepare_create: |value| json::set(value, "/status", tree!({})),
    validate,
    ..Resource::BASE
};

/// The template of the Jobs.
fn job(value: &Value) -> &Value {
    json::at(value, "/spec/jobTemplate").unwrap_or(&Value::Null)
}

fn suspended(value: &Value) -> &'static str {
    match json::at(value, "/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
}

fn validate(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let name = json::text(value, "/metadata/name");
    if old.is_none() && name.len() > MAX_NAME_BYTES {
        let why = format!("must be no more than {MAX_NAME_BYTES} characters");
        errors.invalid("metadata.name", name, &why);
    }
    validate_schedule(json::text(value, "/spec/schedule"), errors);
    for name in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]
    {
        non_negative(errors, format!("spec.{name}"), json::at(value, &format!("/spec/{name}")));
    }
    let zone = |value| json::at(value, "/spec/timeZone").and_then(Value::as_str);
    if let Some(zone) = zone(value).filter(|new| old.and_then(zone) != Some(*new)) {
        validate_zone(zone, errors);
    }
    let policy = json::text(value, "/spec/concurrencyPolicy");
    let policies = ["Allow", "Forbid", "Replace"];
    if !policies.contains(&policy) {
        errors.unsupported("spec.concurrencyPolicy", policy, &policies);
    }
    let field = "spec.jobTemplate.spec";
    let spec = json::at(job(value), "/spec").unwrap_or(&Value::Null);
    validate_spec(field, spec, errors);
    if let Some(selector) = json::at(spec, "/selector") {
        let why = "`selector` will be auto-generated";
        errors.invalid(format!("{field}.selector"), selector.clone(), why);
    }
    if json::flag(spec, "/manualSelector") {
        errors.unsupported(format!("{field}.manualSelector"), "true", &["nil", "false"]);
    }
}

fn validate_schedule(schedule: &str, errors: &mut FieldErrors) {
    let field = "spec.schedule";
    if schedule.is_empty() {
        errors.required(field, "");
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid(field, schedule, why);
    } else if let Err(error) = Schedule::parse(schedule) {
        errors.invalid(field, schedule, &error.to_string());
    }
}

fn validate_zone(zone: &str, errors: &mut FieldErrors) {
    let field = "spec.timeZone";
    if zone.is_empty() {
        errors.invalid(field, zone, "timeZone must be nil or non-empty string");
        return;
    }
    if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in \
                   https://www.iana.org/time-zones";
        errors.invalid(field, zone, why);
    }
    // Of `Local` the real server finds a zone where the name is written so.
    if zone != "Local" && (!zone.split('/').all(is_zone_part) || Zone::named(zone).is_none()) {
        errors.invalid(field, zone, &format!("unknown time zone {zone}"));
    }
}

/// Whether a text may stand between the slashes of a time zone's name (the naming rules of the
/// IANA database).
fn is_zone_part(part: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
    (1..=MAX_ZONE_PART_BYTES).contains(&part.len())
        && part != "."
        && part != ".."
        && !part.starts_with('-')
        && part.bytes().all(is_allowed)
}
