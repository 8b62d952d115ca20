//! Strategic merge patches on real kinds, and what patches share.

mod common;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{PatchKind, patch};

fn strategic(plural: &str, old: Value, change: Value) -> Value {
    patch::apply(row(plural), PatchKind::Strategic, &old, &change).expect("a patch")
}

#[test]
fn lists_merge_by_their_keys() {
    for (plural, old, change, expected) in [
        (
            "services",
            json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81, "name": "b"}]}}),
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
            json!({"spec": {"ports": [
                {"port": 80, "name": "http", "targetPort": 8080}, {"port": 81, "name": "b"}]}}),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
            json!({"spec": {"ports": [{"$patch": "delete", "port": 80}]}}),
            json!({"spec": {"ports": [{"port": 81}]}}),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
            json!({"spec": {"ports": [{"$patch": "replace"}, {"port": 82}]}}),
            json!({"spec": {"ports": [{"port": 82}]}}),
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
            json!({"spec": {"$setElementOrder/ports": [{"port": 82}, {"port": 81}, {"port": 80}],
                "ports": [{"port": 82}]}}),
            json!({"spec": {"ports": [{"port": 82}, {"port": 81}, {"port": 80}]}}),
        ),
        // 53/UDP and 53/TCP have one key: the first is meant, as in the real server.
        (
            "services",
            json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
            json!({"spec": {"ports": [{"port": 53, "name": "x"}]}}),
            json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP", "name": "x"}, {"port": 53, "protocol": "TCP"}]}}),
        ),
        (
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]},
                {"name": "b", "image": "y"}]}}}}),
            json!({"spec": {"template": {"spec": {
                "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                "containers": [{"name": "a", "image": "z",
                    "$setElementOrder/env": [{"name": "L"}, {"name": "K"}],
                    "env": [{"name": "L", "value": "2"}]}]}}}}),
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "z",
                    "env": [{"name": "L", "value": "2"}, {"name": "K", "value": "1"}]},
                {"name": "b", "image": "y"}]}}}}),
        ),
        // Atomic lists are replaced.
        (
            "pods",
            json!({"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "a", "args": ["1"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["2"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["2"]}]}}),
        ),
        // Sets.
        (
            "configmaps",
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        ),
        (
            "configmaps",
            json!({"data": {"a": "1", "b": "2"}}),
            json!({"data": {"a": null, "c": "3"}}),
            json!({"data": {"b": "2", "c": "3"}}),
        ),
        (
            "configmaps",
            json!({"data": {"a": "1"}}),
            json!({"data": {"$patch": "replace", "c": "3"}}),
            json!({"data": {"c": "3"}}),
        ),
        (
            "configmaps",
            json!({"data": {"a": "1"}}),
            json!({"data": {"$patch": "delete"}}),
            json!({}),
        ),
        (
            "deployments",
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        ),
        (
            "nodes",
            json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "x"}]}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk"}]}}),
            json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "x"}, {"type": "Disk"}]}}),
        ),
        (
            "pods",
            json!({"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}]}}),
            json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": "1"}]}}),
            json!({"metadata": {"ownerReferences": []}}),
        ),
    ] {
        assert_eq!(strategic(plural, old, change.clone()), expected, "{plural}: {change}");
    }
}

#[test]
fn an_order_alone_reorders() {
    let patched = strategic(
        "services",
        json!({"spec": {"ports": [{"port": 1}, {"port": 2}, {"port": 3}]}}),
        json!({"spec": {"$setElementOrder/ports": [{"port": 3}, {"port": 1}]}}),
    );
    // The unnamed item keeps its place before the one it stood before.
    assert_eq!(patched["spec"]["ports"], json!([{"port": 2}, {"port": 3}, {"port": 1}]));
}

#[test]
fn malformed_strategic_patches_are_refused() {
    for change in [
        json!({"spec": {"ports": [{"name": "no key"}]}}),
        json!({"spec": {"ports": ["no object"]}}),
        json!({"spec": {"$patch": "frobnicate"}}),
        json!({"spec": {"$retainKeys": "x"}}),
        json!({"spec": {"$setElementOrder/ports": 7, "ports": [{"port": 1}]}}),
        json!([]),
    ] {
        let result = patch::apply(row("services"), PatchKind::Strategic, &json!({}), &change);
        assert_eq!(result.expect_err("refused").code, 400, "{change}");
    }
}

#[test]
fn a_patch_with_a_version_means_that_version() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    let body = json!({"metadata": {"resourceVersion": "1"}, "data": {"a": "1"}});
    let status = api.patch("configmaps", "default", "c", PatchKind::Merge, body);
    assert_eq!(status.expect_err("stale").reason, "Conflict");
    let body = json!({"data": {"a": "1"}});
    let patched = api.patch("configmaps", "default", "c", PatchKind::Merge, body).expect("patched");
    assert_eq!(patched.value["data"]["a"], "1");
}

#[test]
fn a_patch_cannot_change_what_the_server_owns() {
    let mut api = Api::new();
    let created = api.create("configmaps", "default", named(row("configmaps"), "c")).expect("made");
    let body = json!([
        {"op": "replace", "path": "/metadata/creationTimestamp", "value": "1999-01-01T00:00:00Z"},
        {"op": "add", "path": "/metadata/managedFields", "value": [{}]},
    ]);
    let patched = api.patch("configmaps", "default", "c", PatchKind::Json, body).expect("fine");
    assert_eq!(patched.value, created.value);
    let body = json!({"metadata": {"name": "other"}});
    let status = api.patch("configmaps", "default", "c", PatchKind::Merge, body);
    assert_eq!(
        status.expect_err("a name").message,
        "the name of the object (other) does not match the name on the URL (c)"
    );
}

#[test]
fn a_patch_cannot_make_what_could_not_be_stored() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    let rejected = |api: &mut Api, patch: Value| {
        api.patch("configmaps", "default", "c", PatchKind::Json, patch).expect_err("refused").code
    };
    let doubling: Vec<Value> = (0..40)
        .map(|step| json!({"op": "copy", "from": "", "path": format!("/x{step}")}))
        .collect();
    assert_eq!(rejected(&mut api, json!(doubling)), 422);
    let deepening: Vec<Value> = (1..=store::MAX_OBJECT_DEPTH + 5)
        .map(|level| json!({"op": "add", "path": "/x".repeat(level), "value": {}}))
        .collect();
    assert_eq!(rejected(&mut api, json!(deepening)), 400);
    let large = "x".repeat(store::MAX_OBJECT_BYTES);
    assert_eq!(rejected(&mut api, json!([{"op": "add", "path": "/x", "value": large}])), 413);
    let long: Vec<Value> =
        (0..=patch::MAX_MERGED_LIST_ITEMS).map(|index| json!(format!("f{index}"))).collect();
    let body = json!({"metadata": {"finalizers": long}});
    let status = api.patch("configmaps", "default", "c", PatchKind::Strategic, body);
    assert_eq!(status.expect_err("refused").code, 400);
    let unchanged = api.get("configmaps", "default", "c").expect("stored");
    assert_eq!(unchanged.value.as_object().map(serde_json::Map::len), Some(3));
}

#[test]
fn a_nodes_report_of_a_pod_leaves_what_others_say_in_its_place() {
    let mut api = Api::new();
    let uid =
        api.create("pods", "default", named(row("pods"), "p")).expect("a pod").uid().to_owned();
    let mut report = |status: Value, uid: &str| {
        let body = json!({"metadata": {"uid": uid}, "status": status});
        api.patch_status("pods", "default", "p", body)
    };
    let target = json!({"type": "DisruptionTarget", "status": "True", "reason": "X",
        "lastProbeTime": null, "lastTransitionTime": "2026-11-20T23:25:02Z"});
    report(json!({"conditions": [target]}), &uid).expect("an eviction's word");
    let of_node = |ready: &str, reason: Value, address: &str| {
        json!({
            "podIPs": [{"ip": address}, {"$patch": "replace"}],
            "conditions": [{"type": "Ready", "status": ready, "reason": reason,
                "lastTransitionTime": "2026-11-20T23:25:03Z"}],
            "$setElementOrder/conditions": [{"type": "Ready"}, {"type": "PodScheduled"}],
        })
    };
    report(of_node("False", json!("ContainersNotReady"), "10.244.1.4"), &uid).expect("taken");
    let pod = report(of_node("True", Value::Null, "10.244.1.5"), &uid).expect("taken");
    let ready = json!({"type": "Ready", "status": "True",
        "lastProbeTime": null, "lastTransitionTime": "2026-11-20T23:25:03Z"});
    let mut conditions = pod.value["status"]["conditions"].as_array().cloned().expect("conditions");
    conditions.sort_by_key(|one| one["type"].to_string());
    assert_eq!(conditions, [target, ready]);
    assert_eq!(pod.value["status"]["podIPs"], json!([{"ip": "10.244.1.5"}]));
    let other = report(of_node("True", Value::Null, "10.244.1.6"), "another");
    assert_eq!(other.expect_err("a namesake's").code, 409);
}
