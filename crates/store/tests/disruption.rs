//! Evictions ask the pod's PodDisruptionBudget (spec api-server.md 4.3, 33).

mod common;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{Action, PatchKind, Status, Subresource};

/// A pod `web-N` that runs, ready or not.
fn pod(api: &mut Api, name: &str, ready: bool) {
    let mut body = named(row("pods"), name);
    body["metadata"]["labels"] = json!({"app": "web"});
    api.create("pods", "default", body).expect("created");
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running",
        "conditions": [{"type": "Ready", "status": ready}]}});
    api.patch_status("pods", "default", name, status).expect("reported");
}

/// A budget as its controller left it.
fn budget(api: &mut Api, name: &str, spec: Value, status: Value) {
    let mut all = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    let body = json!({"metadata": {"name": name}, "spec": all});
    api.create("poddisruptionbudgets", "default", body).expect("created");
    let mut counted = json!({"observedGeneration": 1, "expectedPods": 2});
    for (field, value) in status.as_object().into_iter().flatten() {
        counted[field] = value.clone();
    }
    let status = json!({"status": counted});
    api.patch_status("poddisruptionbudgets", "default", name, status).expect("counted");
}

fn evict(api: &mut Api, name: &str) -> Result<(), Status> {
    let action = Action::Create(json!({"metadata": {"name": name}}));
    api.act("pods", "default", name, Some(Subresource::Eviction), action).map(drop)
}

#[test]
fn each_eviction_is_taken_from_the_budget_until_nothing_is_left() {
    let mut api = Api::new();
    for name in ["a", "b"] {
        pod(&mut api, name, true);
    }
    let counted = json!({"disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1});
    budget(&mut api, "web", json!({}), counted);
    evict(&mut api, "a").expect("one may go");
    assert!(api.get("pods", "default", "a").is_err());
    let left = api.get("poddisruptionbudgets", "default", "web").expect("it").value.clone();
    assert_eq!(left["status"]["disruptionsAllowed"], 0);
    assert!(left["status"]["disruptedPods"]["a"].is_string(), "{}", left["status"]);
    let refused = evict(&mut api, "b").expect_err("the other stays");
    assert_eq!((refused.code, refused.reason), (429, "TooManyRequests"));
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert_eq!(refused.message, message);
    let cause = &refused.to_value()["details"]["causes"][0];
    let why = "The disruption budget web needs 1 healthy pods and has 2 currently";
    assert_eq!(cause, &json!({"reason": "DisruptionBudget", "message": why}));
    assert!(api.get("pods", "default", "b").is_ok());
}

#[test]
fn an_evicted_pod_says_so_until_it_has_stopped() {
    let mut api = Api::new();
    pod(&mut api, "a", true);
    let bound = json!({"target": {"name": "node1"}});
    api.act("pods", "default", "a", Some(Subresource::Binding), Action::Create(bound))
        .expect("bound");
    let version = api.get("pods", "default", "a").expect("it").revision.to_string();
    let evict = |api: &mut Api, version: &str| {
        let options = json!({"preconditions": {"resourceVersion": version}});
        let body = json!({"metadata": {"name": "a"}, "deleteOptions": options});
        api.act("pods", "default", "a", Some(Subresource::Eviction), Action::Create(body))
    };
    let condition = |api: &Api| {
        let pod = api.get("pods", "default", "a").expect("it").value.clone();
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|found| found["type"] == "DisruptionTarget");
        (pod["metadata"]["deletionTimestamp"].is_string(), found)
    };
    evict(&mut api, "1").expect_err("another version");
    assert_eq!(condition(&api), (false, None), "a refused eviction says nothing");
    evict(&mut api, &version).expect("evicted");
    let (goes, found) = condition(&api);
    assert!(goes, "it has its grace");
    let found = found.expect("the condition");
    assert_eq!(
        (&found["status"], &found["reason"], &found["message"]),
        (&json!("True"), &json!("EvictionByEvictionAPI"), &json!("Eviction API: evicting"))
    );
}

#[test]
fn a_dry_run_spends_nothing() {
    let mut api = Api::new();
    pod(&mut api, "a", true);
    budget(&mut api, "web", json!({}), json!({"disruptionsAllowed": 1}));
    api.dry_run = true;
    evict(&mut api, "a").expect("it may go");
    api.dry_run = false;
    let left = api.get("poddisruptionbudgets", "default", "web").expect("it").value.clone();
    assert_eq!(left["status"]["disruptionsAllowed"], 1);
    assert!(api.get("pods", "default", "a").is_ok());
}

#[test]
fn pods_that_serve_nobody_may_go_where_the_policy_lets_them() {
    let healthy = json!({"currentHealthy": 1, "desiredHealthy": 1});
    let lacking = json!({"currentHealthy": 0, "desiredHealthy": 1});
    let always = json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"});
    for (what, ready, spec, status, allowed) in [
        ("ready, nothing left", true, json!({}), healthy.clone(), false),
        ("not ready, the others suffice", false, json!({}), healthy, true),
        ("not ready, the others do not suffice", false, json!({}), lacking.clone(), false),
        ("not ready, and always allowed", false, always, lacking, true),
    ] {
        let mut api = Api::new();
        pod(&mut api, "a", ready);
        budget(&mut api, "web", spec, status);
        assert_eq!(evict(&mut api, "a").is_ok(), allowed, "{what}");
    }
}

#[test]
fn budgets_that_are_unclear_stop_evictions() {
    let mut api = Api::new();
    pod(&mut api, "a", true);
    budget(&mut api, "web", json!({}), json!({"disruptionsAllowed": 1}));
    let change = json!({"spec": {"minAvailable": 2}});
    api.patch("poddisruptionbudgets", "default", "web", PatchKind::Merge, change).expect("changed");
    let refused = evict(&mut api, "a").expect_err("nobody has looked yet").to_value();
    assert_eq!(
        (&refused["code"], &refused["details"]["retryAfterSeconds"]),
        (&json!(429), &json!(10))
    );
    let why = "The disruption budget web is still being processed by the server.";
    assert_eq!(refused["details"]["causes"][0]["message"], why);
    budget(&mut api, "second", json!({}), json!({"disruptionsAllowed": 1}));
    let refused = evict(&mut api, "a").expect_err("two budgets");
    assert_eq!(refused.code, 500);
    // A pod of no budget, and one that has ended.
    let mut body = named(row("pods"), "other");
    body["metadata"]["labels"] = json!({"app": "other"});
    api.create("pods", "default", body).expect("created");
    evict(&mut api, "other").expect("nobody asks");
    api.patch_status("pods", "default", "a", json!({"status": {"phase": "Succeeded"}}))
        .expect("ended");
    evict(&mut api, "a").expect("it serves nobody");
}

#[test]
fn a_patch_of_a_budget_replaces_its_selector() {
    let mut api = Api::new();
    budget(&mut api, "web", json!({}), json!({}));
    let change = json!({"spec": {"selector": {"matchLabels": {"tier": "a"}}}});
    let changed = api
        .patch("poddisruptionbudgets", "default", "web", PatchKind::Strategic, change)
        .expect("changed");
    assert_eq!(changed.value["spec"]["selector"], json!({"matchLabels": {"tier": "a"}}));
    let both = json!({"spec": {"maxUnavailable": 1}});
    let refused = api
        .patch("poddisruptionbudgets", "default", "web", PatchKind::Merge, both)
        .expect_err("not both");
    assert!(refused.message.ends_with("minAvailable and maxUnavailable cannot be both set"));
}
