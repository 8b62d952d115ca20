//! CronJobs: defaults, refusals, columns.

mod common;

use std::time::Duration;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{Include, ListOptions, PatchKind, Status, table};

fn made(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    let mut body = named(row("cronjobs"), name);
    for (field, value) in spec.as_object().into_iter().flatten() {
        body["spec"][field] = value.clone();
    }
    api.create("cronjobs", "default", body).map(|object| object.value.clone())
}

fn refused(spec: Value) -> String {
    made(&mut Api::new(), "one", spec).expect_err("refused").message
}

#[test]
fn what_is_not_said_has_its_default() {
    let spec = made(&mut Api::new(), "one", json!({})).expect("created")["spec"].take();
    for (field, wanted) in [
        ("concurrencyPolicy", json!("Allow")),
        ("suspend", json!(false)),
        ("successfulJobsHistoryLimit", json!(3)),
        ("failedJobsHistoryLimit", json!(1)),
        ("startingDeadlineSeconds", Value::Null),
    ] {
        assert_eq!(spec[field], wanted, "{field}");
    }
    let job = &spec["jobTemplate"]["spec"];
    assert_eq!(job["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    assert_eq!(job["backoffLimit"], Value::Null, "the Job has its defaults when it is made");
}

#[test]
fn schedules_zones_and_policies_are_checked_in_the_words_of_the_api() {
    let container = json!({"name": "c", "image": "i"});
    let job = |extra: Value| {
        let mut spec = json!({"template": {"spec": {
            "restartPolicy": "OnFailure", "containers": [container]}}});
        for (field, value) in extra.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({"jobTemplate": {"spec": spec}})
    };
    for (spec, wanted) in [
        (json!({"schedule": ""}), "spec.schedule: Required value"),
        (
            json!({"schedule": "* * * *"}),
            "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]",
        ),
        (
            json!({"schedule": "TZ=UTC * * * * *"}),
            "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in \
             schedule, use timeZone field instead",
        ),
        (
            json!({"timeZone": "Europe/Atlantis"}),
            "spec.timeZone: Invalid value: \"Europe/Atlantis\": unknown time zone Europe/Atlantis",
        ),
        (
            json!({"timeZone": "../etc"}),
            "spec.timeZone: Invalid value: \"../etc\": unknown time zone ../etc",
        ),
        (
            json!({"timeZone": ""}),
            "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string",
        ),
        (
            json!({"timeZone": "Local"}),
            "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as \
             defined in https://www.iana.org/time-zones",
        ),
        (
            json!({"concurrencyPolicy": "Perhaps"}),
            "spec.concurrencyPolicy: Unsupported value: \"Perhaps\": supported values: \"Allow\", \
             \"Forbid\", \"Replace\"",
        ),
        (
            json!({"startingDeadlineSeconds": -1}),
            "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            job(json!({"selector": {"matchLabels": {"a": "b"}}})),
            "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: \
             `selector` will be auto-generated",
        ),
        (
            job(json!({"manualSelector": true})),
            "spec.jobTemplate.spec.manualSelector: Unsupported value: \"true\": supported values: \
             \"nil\", \"false\"",
        ),
        (
            job(json!({"template": {"spec": {"containers": [container]}}})),
            "spec.jobTemplate.spec.template.spec.restartPolicy: Unsupported value: \"Always\": \
             supported values: \"OnFailure\", \"Never\"",
        ),
    ] {
        let message = refused(spec);
        assert_eq!(message, format!("CronJob.batch \"one\" is invalid: {wanted}"));
    }
    let long = "x".repeat(53);
    let message = made(&mut Api::new(), &long, json!({})).expect_err("refused").message;
    assert!(message.ends_with("must be no more than 52 characters"), "{message}");
    for good in [
        json!({"timeZone": "Europe/Berlin", "schedule": "@daily"}),
        json!({"timeZone": "Etc/GMT+5", "schedule": "0 9-17/2 * JAN-jun mon,FRI"}),
    ] {
        made(&mut Api::new(), "one", good).expect("created");
    }
}

#[test]
fn only_a_changed_spec_counts_as_a_generation() {
    let mut api = Api::new();
    made(&mut api, "one", json!({})).expect("created");
    let status = json!({"status": {"lastScheduleTime": "2026-11-20T23:00:00Z"}});
    let changed = api.patch_status("cronjobs", "default", "one", status).expect("reported");
    assert_eq!(changed.value["metadata"]["generation"], 1);
    let body = json!({"spec": {"suspend": true}, "status": {"lastScheduleTime": null}});
    let changed = api.patch("cronjobs", "default", "one", PatchKind::Merge, body).expect("changed");
    assert_eq!(changed.value["metadata"]["generation"], 2);
    assert_eq!(changed.value["status"]["lastScheduleTime"], "2026-11-20T23:00:00Z");
}

#[test]
fn the_columns_are_those_of_the_api() {
    let mut api = Api::new();
    made(&mut api, "one", json!({"timeZone": "Asia/Kolkata"})).expect("created");
    let cells = |api: &Api| {
        let list = api.store.list(row("cronjobs"), &ListOptions::default()).expect("a list");
        let objects = list.items.iter().map(|object| &**object);
        let printed =
            table::table(row("cronjobs"), objects, json!({}), api.now, Include::None, true);
        printed["rows"][0]["cells"].clone()
    };
    let since = api.now;
    let first = cells(&api);
    let wanted = json!([
        "one",
        "*/5 * * * *",
        "Asia/Kolkata",
        "False",
        0,
        "<none>",
        first[6],
        "c",
        "i",
        "<none>"
    ]);
    assert_eq!(first, wanted);
    let active = json!([{"kind": "Job", "name": "one-1"}, {"kind": "Job", "name": "one-2"}]);
    let status = json!({"status": {"lastScheduleTime": since, "active": active}});
    api.patch_status("cronjobs", "default", "one", status).expect("reported");
    api.now = since.after(Duration::from_secs(90));
    let second = cells(&api);
    assert_eq!((&second[4], &second[5]), (&json!(2), &json!("90s")));
}
