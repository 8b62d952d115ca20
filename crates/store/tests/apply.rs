//! Server-side apply and `managedFields` (api-server 1.3, trap 13), as the real server does it.

mod common;

use std::sync::Arc;

use common::{Api, named, object, row};
use model::Timestamp;
use serde_json::{Value, json};
use store::{
    Action, FieldDirective, FieldValidation, Object, PatchKind, Record, Staged, Status,
    Subresource, record,
};

fn apply(
    api: &mut Api,
    (plural, name): (&str, &str),
    manager: &'static str,
    force: bool,
    config: Value,
) -> Result<Staged, Status> {
    api.manager = manager;
    api.act(plural, "default", name, None, Action::Apply { config, force })
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn apply_map(
    api: &mut Api,
    manager: &'static str,
    force: bool,
    data: Value,
) -> Result<Staged, Status> {
    apply(api, ("configmaps", "c"), manager, force, config_map(data))
}

/// `manager operation subresource: fields`, in their order.
fn owners(object: &Object) -> Vec<String> {
    let value = object.to_value();
    let entries = value["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let line = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let (manager, operation) = (text("manager"), text("operation"));
        format!("{manager} {operation} {}: {}", text("subresource"), entry["fieldsV1"])
    };
    entries.iter().map(line).collect()
}

fn stored(api: &Api, plural: &str, name: &str) -> Arc<Object> {
    api.get(plural, "default", name).expect("stored")
}

#[test]
fn an_apply_makes_an_object_and_then_changes_it() {
    let mut api = Api::new();
    let made = apply_map(&mut api, "kubectl", false, json!({"a": "1", "b": "2"})).expect("applied");
    assert_eq!(made.code, 201);
    let changed = apply_map(&mut api, "kubectl", false, json!({"a": "3"})).expect("applied");
    assert_eq!(changed.code, 200);
    let object = object(changed);
    assert_eq!(object.value["data"], json!({"a": "3"}), "what is applied no more goes");
    assert_eq!(owners(&object), [r#"kubectl Apply : {"f:data":{"f:a":{}}}"#]);
}

/// Trap 9: a no-op writes nothing, also when time has passed.
#[test]
fn the_same_again_is_no_write() {
    let mut api = Api::new();
    let deployment = || {
        let mut config = named(row("deployments"), "d");
        config["apiVersion"] = "apps/v1".into();
        config["kind"] = "Deployment".into();
        // The server keeps this as `1`.
        let resources = json!({"limits": {"cpu": "1000m"}});
        config["spec"]["template"]["spec"]["containers"][0]["resources"] = resources;
        config
    };
    let first = apply(&mut api, ("deployments", "d"), "me", false, deployment()).expect("applied");
    api.now = Timestamp::from_seconds(api.now.seconds() + 60);
    let again = apply(&mut api, ("deployments", "d"), "me", false, deployment()).expect("applied");
    assert!(again.records.is_empty(), "{:?}", again.records);
    assert_eq!(object(again).to_value(), object(first).to_value());
}

#[test]
fn fields_of_others_are_conflicts_in_the_real_servers_words() {
    let mut api = Api::new();
    apply_map(&mut api, "kubectl", false, json!({"a": "1", "b": "2"})).expect("applied");
    let refused = apply_map(&mut api, "other", false, json!({"a": "9"})).expect_err("refused");
    assert_eq!((refused.code, refused.reason), (409, "Conflict"));
    let one = "Apply failed with 1 conflict: conflict with \"kubectl\": .data.a";
    assert_eq!(refused.message, one);
    let details = refused.details.expect("details");
    assert_eq!(details.causes.len(), 1);
    assert_eq!(details.causes[0].reason, "FieldManagerConflict");
    assert_eq!(details.causes[0].message, "conflict with \"kubectl\"");
    assert_eq!(details.causes[0].field, ".data.a");

    api.manager = "curl";
    let patch = json!({"data": {"c": "3"}});
    api.patch("configmaps", "default", "c", PatchKind::Merge, patch).expect("patched");
    let all = json!({"a": "9", "b": "9", "c": "9"});
    let refused = apply_map(&mut api, "other", false, all.clone()).expect_err("refused");
    let three = "Apply failed with 3 conflicts: conflicts with \"kubectl\":\n- .data.a\n\
                 - .data.b\nconflicts with \"curl\" using v1:\n- .data.c";
    assert_eq!(refused.message, three);
    assert_eq!(stored(&api, "configmaps", "c").value["data"]["a"], "1", "nothing was written");

    let forced = object(apply_map(&mut api, "other", true, all).expect("forced"));
    let fields = r#"{"f:data":{"f:a":{},"f:b":{},"f:c":{}}}"#;
    assert_eq!(owners(&forced), [format!("other Apply : {fields}")]);
}

#[test]
fn the_same_value_is_shared_and_goes_when_nobody_applies_it() {
    let mut api = Api::new();
    for manager in ["one", "two"] {
        apply_map(&mut api, manager, false, json!({"a": "1"})).expect("applied");
    }
    let left = object(apply_map(&mut api, "one", false, json!({"c": "1"})).expect("applied"));
    assert_eq!(left.value["data"], json!({"a": "1", "c": "1"}));
    let expected = [r#"one Apply : {"f:data":{"f:c":{}}}"#, r#"two Apply : {"f:data":{"f:a":{}}}"#];
    assert_eq!(owners(&left), expected);
    let left = object(apply_map(&mut api, "two", false, json!({"b": "1"})).expect("applied"));
    assert_eq!(left.value["data"], json!({"b": "1", "c": "1"}));
}

/// Also what the server fills in later belongs to nobody: ClusterIPs, node ports.
#[test]
fn every_write_leaves_its_owner() {
    let mut api = Api::new();
    api.create("deployments", "default", named(row("deployments"), "d")).expect("created");
    api.manager = "controller";
    let status = json!({"status": {"replicas": 1, "observedGeneration": 1}});
    api.patch_status("deployments", "default", "d", status).expect("patched");
    api.manager = "scaler";
    let scale = json!({"spec": {"replicas": 3}});
    let action = Action::Patch(PatchKind::Merge, scale);
    api.act("deployments", "default", "d", Some(Subresource::Scale), action).expect("scaled");
    api.manager = "editor";
    let mut value = stored(&api, "deployments", "d").to_value();
    value["metadata"]["labels"] = json!({"tier": "front"});
    let object = api.update("deployments", "default", "d", value).expect("updated");
    let owners = owners(&object);
    assert_eq!(owners.len(), 4, "{owners:?}");
    for line in [
        r#"controller Update status: {"f:status":{"f:observedGeneration":{},"f:replicas":{}}}"#,
        r#"scaler Update scale: {"f:spec":{"f:replicas":{}}}"#,
        r#"editor Update : {"f:metadata":{"f:labels":{".":{},"f:tier":{}}}}"#,
    ] {
        assert!(owners.contains(&line.to_owned()), "{line}: {owners:?}");
    }
    let curl = owners.iter().find(|line| line.starts_with("curl Update : ")).expect("the maker");
    assert!(curl.contains("f:template") && !curl.contains("f:replicas"), "{curl}");
    assert!(!curl.contains("f:uid") && !curl.contains("f:status"), "{curl}");
}

#[test]
fn subresources_are_applied_too() {
    let mut api = Api::new();
    api.create("deployments", "default", named(row("deployments"), "d")).expect("created");
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 7}, "status": {"replicas": 2},
    });
    let action = Action::Apply { config, force: false };
    api.manager = "status-manager";
    let status = api.act("deployments", "default", "d", Some(Subresource::Status), action);
    let object = object(status.expect("applied"));
    assert_eq!(object.value["status"]["replicas"], 2);
    assert_eq!(object.value["spec"]["replicas"], 1, "the spec is not of this path");
    let line = r#"status-manager Apply status: {"f:status":{"f:replicas":{}}}"#;
    assert!(owners(&object).contains(&line.to_owned()), "{:?}", owners(&object));

    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"},
        "spec": {"replicas": 4}});
    api.manager = "scaler";
    let mut scale_with = |force| {
        let action = Action::Apply { config: scale.clone(), force };
        api.act("deployments", "default", "d", Some(Subresource::Scale), action)
    };
    let refused = scale_with(false).expect_err("refused");
    let conflict = "Apply failed with 1 conflict: conflict with \"curl\" using apps/v1: \
                    .spec.replicas";
    assert_eq!(refused.message, conflict);
    scale_with(true).expect("forced");
    let object = stored(&api, "deployments", "d");
    assert_eq!(object.value["spec"]["replicas"], 4);
    let line = r#"scaler Apply scale: {"f:spec":{"f:replicas":{}}}"#;
    assert!(owners(&object).contains(&line.to_owned()), "{:?}", owners(&object));
}

#[test]
fn managers_can_be_reset_and_then_belong_to_the_past() {
    for reset in [json!([]), json!([{}])] {
        let mut api = Api::new();
        apply_map(&mut api, "me", false, json!({"a": "1"})).expect("applied");
        let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": reset}]);
        api.manager = "curl";
        let object =
            api.patch("configmaps", "default", "c", PatchKind::Json, patch).expect("reset");
        assert_eq!(object.value.managed_fields(), None, "{reset}");
        let body = json!({"metadata": {"name": "c"}, "data": {"a": "2"}});
        let object = api.update("configmaps", "default", "c", body).expect("updated");
        assert_eq!(object.value.managed_fields(), None, "an update brings them not back");
        let refused = apply_map(&mut api, "me", false, json!({"a": "3"})).expect_err("refused");
        assert!(refused.message.contains("\"before-first-apply\" using v1: .data.a"), "{refused}");
    }
}

/// What kubectl does to move from its own apply to the server's (api-server 1.3).
#[test]
fn managers_can_be_set_but_not_by_an_apply_and_not_through_subresources() {
    let mut api = Api::new();
    apply_map(&mut api, "me", false, json!({"a": "1"})).expect("applied");
    let mut entries =
        stored(&api, "configmaps", "c").to_value()["metadata"]["managedFields"].take();
    entries[0]["manager"] = "renamed".into();
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": entries}]);
    let object = api.patch("configmaps", "default", "c", PatchKind::Json, patch).expect("patched");
    assert_eq!(owners(&object), [r#"renamed Apply : {"f:data":{"f:a":{}}}"#]);
    let malformed = json!([{"manager": "x", "operation": "Grab"}]);
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": malformed}]);
    let same =
        api.patch("configmaps", "default", "c", PatchKind::Json, patch).expect("passed over");
    assert_eq!(same.revision, object.revision);

    let mut config = config_map(json!({}));
    config["metadata"]["managedFields"] = json!([]);
    let refused = apply(&mut api, ("configmaps", "c"), "me", false, config).expect_err("refused");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (400, "metadata.managedFields must be nil")
    );

    api.create("deployments", "default", named(row("deployments"), "d")).expect("created");
    let before = owners(&stored(&api, "deployments", "d"));
    let body = json!({"metadata": {"managedFields": []}});
    let object = api.patch_status("deployments", "default", "d", body).expect("passed over");
    assert_eq!(owners(&object), before);
}

#[test]
fn kubectl_takes_back_what_it_applied_by_itself() {
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut api = Api::new();
    let mut made = config_map(json!({"a": "1", "b": "2"}));
    let last = made.to_string();
    made["metadata"]["annotations"] = json!({annotation: last});
    api.manager = "kubectl-client-side-apply";
    api.create("configmaps", "default", made).expect("created");
    // Nobody else changed `a`; `b` somebody did.
    let refused = apply_map(&mut api, "other", false, json!({"a": "5"})).expect_err("refused");
    assert!(refused.message.contains("kubectl-client-side-apply"), "{refused}");
    api.manager = "curl";
    let patch = json!({"data": {"b": "9"}});
    api.patch("configmaps", "default", "c", PatchKind::Merge, patch).expect("patched");
    let refused =
        apply_map(&mut api, "kubectl", false, json!({"a": "5", "b": "5"})).expect_err("refused");
    let expected = "Apply failed with 1 conflict: conflict with \"curl\" using v1: .data.b";
    assert_eq!(refused.message, expected);
    let applied =
        object(apply_map(&mut api, "kubectl", false, json!({"a": "5"})).expect("applied"));
    let last = applied.value["metadata"]["annotations"][annotation].as_str().expect("text");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last, config_map(json!({"a": "5"})), "kubectl's own apply goes on from here");
    let large = json!({"a": "5".repeat(300_000)});
    let applied = object(apply_map(&mut api, "kubectl", false, large).expect("applied"));
    let left = applied.value.pointer("/metadata/annotations");
    assert!(left.is_none_or(|left| left.get(annotation).is_none()), "no room for it: {left:?}");
}

#[test]
fn what_is_no_configuration_is_refused() {
    let of = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec});
    let typed = "failed to create typed patch object (default/s; /v1, Kind=Service): ";
    let cases = [
        (json!([]), 400, "error decoding YAML: "),
        (json!({"apiVersion": "v1", "kind": "Pod"}), 400, "invalid object type: /v1, Kind=Pod"),
        (
            json!({"apiVersion": "apps/v1", "kind": "Service"}),
            400,
            "invalid object type: apps/v1, Kind=Service",
        ),
        (of(json!({"ports": 1})), 400, "Service in version \"v1\" cannot be handled as a Service"),
        (
            of(json!({"portz": 1})),
            500,
            &format!("{typed}.spec.portz: field not declared in schema"),
        ),
        (
            of(json!({"ports": [{"port": 1}, {"port": 1}]})),
            500,
            &format!("{typed}.spec.ports: duplicate entries for key [port=1,protocol=\"TCP\"]"),
        ),
        (of(json!({"ports": [{"port": 99_999}]})), 422, "Service \"s\" is invalid: [spec.ports[0]"),
    ];
    for (config, code, message) in cases {
        let mut api = Api::new();
        let refused = apply(&mut api, ("services", "s"), "me", false, config).expect_err("refused");
        assert!(refused.code == code && refused.message.starts_with(message), "{refused}");
    }
    let mut api = Api::new();
    let faults = vec!["duplicate field \"data\"".to_owned()];
    api.validation = FieldValidation { directive: FieldDirective::Strict, faults };
    let refused = apply_map(&mut api, "me", false, json!({})).expect_err("refused");
    assert_eq!(refused.message, "error strict decoding YAML: duplicate field \"data\"");
    let renamed =
        apply(&mut Api::new(), ("configmaps", "other"), "me", false, config_map(json!({})));
    assert!(renamed.expect_err("refused").message.contains("does not match the name on the URL"));
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let mut api = Api::new();
    api.dry_run = true;
    let staged = apply_map(&mut api, "me", false, json!({"a": "1"})).expect("applied");
    assert_eq!((staged.code, staged.records.len()), (201, 0));
    assert_eq!(owners(&object(staged)).len(), 1);
    assert_eq!(api.get("configmaps", "default", "c").map(|_| ()).expect_err("absent").code, 404);
}

#[test]
fn a_stale_version_in_a_configuration_is_a_conflict() {
    let mut api = Api::new();
    apply_map(&mut api, "me", false, json!({"a": "1"})).expect("applied");
    let mut config = config_map(json!({"a": "2"}));
    config["metadata"]["resourceVersion"] = "1".into();
    let refused = apply(&mut api, ("configmaps", "c"), "me", false, config).expect_err("refused");
    assert!(refused.message.contains("the object has been modified"), "{refused}");
}

/// Trap 13: a manager that comes and goes leaves no heap.
#[test]
fn managers_of_updates_are_bounded() {
    const NAMES: [&str; 15] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o"];
    let mut api = Api::new();
    api.create("configmaps", "default", config_map(json!({"z": "1"}))).expect("created");
    for name in NAMES {
        api.manager = name;
        let patch = json!({"data": {name: "1"}});
        api.patch("configmaps", "default", "c", PatchKind::Merge, patch).expect("patched");
    }
    let owners = owners(&stored(&api, "configmaps", "c"));
    assert_eq!(owners.len(), schema::apply::MAX_UPDATE_MANAGERS);
    assert!(owners.iter().any(|line| line.starts_with("ancient-changes Update")), "{owners:?}");
}

#[test]
fn managers_survive_a_restart() {
    let mut api = Api::new();
    apply_map(&mut api, "me", false, json!({"a": "1"})).expect("applied");
    apply_map(&mut api, "you", false, json!({"b": "1"})).expect("applied");
    let expected = stored(&api, "configmaps", "c");
    let last = api.log.last().expect("a record");
    let bytes = last.object_bytes().expect("bytes");
    let read = record::object_from_bytes(&store::Definitions::default(), &last.object_key(), bytes)
        .expect("an object");
    assert_eq!(read.to_value(), expected.to_value());
    assert_eq!(owners(&read).len(), 2);
    let entry = Record::from_bytes(&store::Definitions::default(), last.revision, &last.to_bytes())
        .expect("a record");
    assert_eq!(entry.object.to_value(), expected.to_value());
    let previous = entry.previous.expect("an object before");
    assert_eq!(owners(&previous).len(), 1);
}
