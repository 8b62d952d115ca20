//! DaemonSets, StatefulSets, Jobs and what belongs to them: defaults, refusals, columns.

mod common;

use std::time::Duration;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{Include, ListOptions, PatchKind, Status, table};

fn made(api: &mut Api, plural: &str, spec: Value) -> Result<Value, Status> {
    let mut body = named(row(plural), "one");
    for (field, value) in spec.as_object().into_iter().flatten() {
        body["spec"][field] = value.clone();
    }
    api.create(plural, "default", body).map(|object| object.value.clone())
}

fn refused(plural: &str, spec: Value) -> String {
    made(&mut Api::new(), plural, spec).expect_err("refused").message
}

/// The row of `one`, cells joined.
fn cells(api: &Api, plural: &str) -> String {
    let list = api.store.list(row(plural), &ListOptions::default()).expect("a list");
    let objects = list.items.iter().map(|object| &**object);
    let printed = table::table(row(plural), objects, json!({}), api.now, Include::None, true);
    let cells = printed["rows"][0]["cells"].as_array().cloned().unwrap_or_default();
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    cells.iter().map(text).collect::<Vec<_>>().join("|")
}

#[test]
fn limits_of_updates_are_checked() {
    let rolling = |unavailable: Value, surge: Value| {
        json!({"updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}})
    };
    for (plural, spec, wanted) in [
        (
            "daemonsets",
            rolling(json!(0), json!(0)),
            "Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            "daemonsets",
            rolling(json!(1), json!(1)),
            "may not be set when maxUnavailable is non-zero",
        ),
        ("daemonsets", rolling(json!("101%"), json!(0)), "must not be greater than 100%"),
        (
            "daemonsets",
            json!({"updateStrategy": {"type": "Recreate"}}),
            "supported values: \"RollingUpdate\", \"OnDelete\"",
        ),
        (
            "statefulsets",
            json!({"podManagementPolicy": "Sometimes"}),
            "supported values: \"OrderedReady\", \"Parallel\"",
        ),
        (
            "statefulsets",
            json!({"updateStrategy": {"rollingUpdate": {"partition": -1}}}),
            "must be greater than or equal to 0",
        ),
        (
            "statefulsets",
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
        ),
        (
            "statefulsets",
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
            "must not be greater than 100%",
        ),
    ] {
        let message = refused(plural, spec);
        assert!(message.ends_with(wanted), "{plural}: {message}");
    }
}

#[test]
fn a_stateful_set_changes_only_what_may_change() {
    let mut api = Api::new();
    made(&mut api, "statefulsets", json!({"serviceName": "web"})).expect("created");
    let mut patch = |body: Value| {
        let kind = PatchKind::Merge;
        api.patch("statefulsets", "default", "one", kind, json!({"spec": body}))
    };
    patch(json!({"replicas": 3, "minReadySeconds": 5, "ordinals": {"start": 2}})).expect("changed");
    let refused = patch(json!({"serviceName": "other"})).expect_err("refused").message;
    let wanted = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', \
                  'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
                  'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    assert!(refused.ends_with(wanted), "{refused}");
}

#[test]
fn a_daemon_set_counts_its_templates() {
    let mut api = Api::new();
    let name = "deprecated.daemonset.template.generation";
    let first = made(&mut api, "daemonsets", json!({})).expect("created");
    assert_eq!(first["metadata"]["annotations"][name], "1");
    for (body, wanted) in [
        (json!({"minReadySeconds": 5}), "1"),
        (json!({"template": {"metadata": {"annotations": {"a": "b"}}}}), "2"),
    ] {
        let body = json!({"spec": body});
        let changed = api.patch("daemonsets", "default", "one", PatchKind::Merge, body);
        let changed = changed.expect("changed").value.clone();
        assert_eq!(changed["metadata"]["annotations"][name], wanted);
    }
}

#[test]
fn a_job_selects_its_own_pods_and_nothing_else() {
    let mut api = Api::new();
    let job = made(&mut api, "jobs", json!({})).expect("created");
    let uid = &job["metadata"]["uid"];
    let spec = &job["spec"];
    let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    assert_eq!(spec["selector"], selector);
    let labels = json!({
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "one",
        "controller-uid": uid,
        "job-name": "one",
    });
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    for (field, wanted) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(spec[field], wanted, "{field}");
    }
    let queue = made(&mut Api::new(), "jobs", json!({"parallelism": 3})).expect("created");
    assert_eq!(queue["spec"]["completions"], Value::Null);
}

#[test]
fn jobs_that_make_no_sense_are_refused() {
    let template = |policy: &str| {
        json!({"template": {"spec": {"restartPolicy": policy,
            "containers": [{"name": "c", "image": "i"}]}}})
    };
    for (spec, wanted) in [
        (
            template("Always"),
            "Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"",
        ),
        (json!({"completions": -1}), "must be greater than or equal to 0"),
        (
            json!({"completionMode": "Indexed", "parallelism": 2}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            json!({"backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
    ] {
        let message = refused("jobs", spec);
        assert!(message.ends_with(wanted), "{message}");
    }
    let mut api = Api::new();
    made(&mut api, "jobs", json!({})).expect("created");
    let body = json!({"spec": {"completions": 7}});
    let fixed = api.patch("jobs", "default", "one", PatchKind::Merge, body).expect_err("refused");
    assert!(fixed.message.ends_with("spec.completions: Invalid value: 7: field is immutable"));
}

/// A Job with indexes whose failures have a limit each.
fn indexed(changes: Value) -> Value {
    let mut spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2,
        "backoffLimitPerIndex": 1});
    for (field, value) in changes.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    spec
}

fn failure_rule(rule: Value) -> Value {
    indexed(json!({"podFailurePolicy": {"rules": [rule]}}))
}

#[test]
fn policies_of_jobs_are_taken_and_checked() {
    let mut api = Api::new();
    let patterns = json!([{"type": "DisruptionTarget"}]);
    let spec = failure_rule(json!({"action": "Ignore", "onPodConditions": patterns}));
    let job = made(&mut api, "jobs", spec).expect("created");
    let spec = &job["spec"];
    assert_eq!(spec["backoffLimit"], 2_147_483_647);
    assert_eq!(spec["podReplacementPolicy"], "Failed");
    assert_eq!(spec["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"], "True");
    let codes = |operator: &str, values: Value| json!({"action": "FailJob", "onExitCodes": {"operator": operator, "values": values}});
    let success = |rule: Value| indexed(json!({"successPolicy": {"rules": [rule]}}));
    for (spec, wanted) in [
        (failure_rule(codes("In", json!([0]))), "must not be 0 for the In operator"),
        (failure_rule(codes("In", json!([3, 2]))), "must be ordered"),
        (failure_rule(codes("NotIn", json!([2, 2]))), "values[1]: Duplicate value: 2"),
        (
            failure_rule(json!({"action": "Ignore"})),
            "specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (
            failure_rule(json!({"action": "Retry", "onPodConditions": [{"type": "X"}]})),
            "supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"",
        ),
        (
            json!({"podFailurePolicy": {"rules": []}, "podReplacementPolicy": "TerminatingOrFailed"}),
            "supported values: \"Failed\"",
        ),
        (indexed(json!({"maxFailedIndexes": 4})), "must be less than or equal to completions"),
        (
            success(json!({})),
            "at least one of succeededCount or succeededIndexes must be specified",
        ),
        (success(json!({"succeededIndexes": "1-3"})), "too large index: \"1-3\""),
        (
            success(json!({"succeededIndexes": "0,2", "succeededCount": 3})),
            "must be less than or equal to 2 (the number of indexes in the specified \
             succeededIndexes field)",
        ),
        (
            json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}),
            "requires indexed completion mode",
        ),
        (json!({"managedBy": "me"}), "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    ] {
        let message = refused("jobs", spec);
        assert!(message.ends_with(wanted), "{message}");
    }
    made(&mut Api::new(), "jobs", success(json!({"succeededIndexes": "0,2", "succeededCount": 1})))
        .expect("a policy that makes sense");
}

#[test]
fn where_the_pods_of_a_job_run_may_be_said_until_it_begins() {
    let mut api = Api::new();
    made(&mut api, "jobs", json!({"suspend": true})).expect("created");
    let place = json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}});
    api.patch("jobs", "default", "one", PatchKind::Merge, place).expect("it has not begun");
    let other = json!({"spec": {"template": {"spec": {"hostNetwork": true}}}});
    let why = api.patch("jobs", "default", "one", PatchKind::Merge, other).expect_err("refused");
    assert!(why.message.ends_with("field is immutable"), "{}", why.message);
    let begun = json!({"status": {"startTime": api.now.to_string()}});
    api.patch_status("jobs", "default", "one", begun).expect("begun");
    let place = json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "hdd"}}}}});
    api.patch("jobs", "default", "one", PatchKind::Merge, place).expect_err("too late");
    let mut api = Api::new();
    made(&mut api, "jobs", indexed(json!({"parallelism": 3}))).expect("created");
    let more = json!({"spec": {"completions": 4, "parallelism": 4}});
    api.patch("jobs", "default", "one", PatchKind::Merge, more).expect("all run at once");
    let fewer = json!({"spec": {"completions": 2}});
    api.patch("jobs", "default", "one", PatchKind::Merge, fewer).expect_err("they do not");
}

#[test]
fn new_kinds_print_as_kubectl_shows_them() {
    let mut api = Api::new();
    made(&mut api, "jobs", json!({"completions": 3})).expect("created");
    api.now = api.now.after(Duration::from_secs(16));
    assert!(cells(&api, "jobs").starts_with("one|Running|0/3||16s|c|i|"));
    let started = api.now.to_string();
    let status = json!({"status": {"startTime": started, "succeeded": 2}});
    api.patch_status("jobs", "default", "one", status).expect("reported");
    api.now = api.now.after(Duration::from_secs(5));
    assert!(cells(&api, "jobs").starts_with("one|Running|2/3|5s|21s|"));
    let done = json!({"status": {"completionTime": api.now.to_string(),
        "conditions": [{"type": "Complete", "status": "True"}]}});
    api.patch_status("jobs", "default", "one", done).expect("reported");
    api.now = api.now.after(Duration::from_secs(9));
    assert!(cells(&api, "jobs").starts_with("one|Complete|2/3|5s|30s|"));

    let budget = json!({"metadata": {"name": "one"}, "spec": {"maxUnavailable": "25%"}});
    api.create("poddisruptionbudgets", "default", budget).expect("created");
    assert_eq!(cells(&api, "poddisruptionbudgets"), "one|N/A|25%|0|0s");

    let mut revision = named(row("controllerrevisions"), "one");
    revision["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1",
        "kind": "DaemonSet", "name": "agent", "uid": "u", "controller": true}]);
    api.create("controllerrevisions", "default", revision).expect("created");
    assert_eq!(cells(&api, "controllerrevisions"), "one|daemonset.apps/agent|1|0s");

    let mut controller = named(row("replicationcontrollers"), "one");
    controller["spec"]["replicas"] = json!(2);
    api.create("replicationcontrollers", "default", controller).expect("created");
    let scale = api.store.get_scale(row("replicationcontrollers"), "default", "one");
    let scale = scale.expect("a scale");
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("app=web"))
    );
}
