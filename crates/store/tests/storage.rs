//! Volumes, claims and classes: what they get, what is refused, and what quotas count of them.

mod common;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{PatchKind, Status};

fn class(api: &mut Api, name: &str, extra: Value) {
    let mut body = json!({"metadata": {"name": name}, "provisioner": "example.org/disks"});
    for (field, value) in extra.as_object().into_iter().flatten() {
        body[field] = value.clone();
    }
    api.create("storageclasses", "", body).expect("created");
}

fn default_class(api: &mut Api, name: &str) {
    let key = "storageclass.kubernetes.io/is-default-class";
    class(api, name, json!({"metadata": {"name": name, "annotations": {key: "true"}}}));
}

fn claim(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    let mut body = named(row("persistentvolumeclaims"), name);
    for (field, value) in spec.as_object().into_iter().flatten() {
        body["spec"][field] = value.clone();
    }
    api.create("persistentvolumeclaims", "default", body).map(|object| object.value.clone())
}

fn change(api: &mut Api, plural: &str, name: &str, patch: Value) -> Result<Value, Status> {
    let namespace = if plural == "persistentvolumeclaims" { "default" } else { "" };
    api.patch(plural, namespace, name, PatchKind::Merge, patch).map(|object| object.value.clone())
}

#[test]
fn claims_without_a_class_get_the_default_one() {
    let mut api = Api::new();
    assert_eq!(
        claim(&mut api, "early", json!({})).expect("created")["spec"]["storageClassName"],
        Value::Null
    );
    class(&mut api, "plain", json!({}));
    default_class(&mut api, "older");
    api.now = api.now.after(std::time::Duration::from_secs(60));
    default_class(&mut api, "newer");
    for (name, spec, wanted) in [
        ("none", json!({}), "newer"),
        ("plain", json!({"storageClassName": "plain"}), "plain"),
        ("static", json!({"storageClassName": ""}), ""),
    ] {
        let made = claim(&mut api, name, spec).expect("created");
        assert_eq!(made["spec"]["storageClassName"], wanted);
        assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        assert_eq!(made["spec"]["volumeMode"], "Filesystem");
        assert_eq!(made["status"], json!({"phase": "Pending"}));
    }
    let volume = named(row("persistentvolumes"), "v");
    let made = api.create("persistentvolumes", "", volume).expect("created");
    assert_eq!(made.value["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    assert_eq!(made.value["spec"]["persistentVolumeReclaimPolicy"], "Retain");
}

#[test]
fn a_claim_changes_only_as_it_may() {
    let mut api = Api::new();
    class(&mut api, "grows", json!({"allowVolumeExpansion": true}));
    class(&mut api, "fixed", json!({}));
    for name in ["grows", "fixed"] {
        claim(&mut api, name, json!({"storageClassName": name})).expect("created");
        let bound = json!({"spec": {"volumeName": "v"}});
        change(&mut api, "persistentvolumeclaims", name, bound).expect("bound once");
    }
    let ask = |storage: &str| json!({"spec": {"resources": {"requests": {"storage": storage}}}});
    change(&mut api, "persistentvolumeclaims", "grows", ask("2Gi")).expect("the class allows it");
    for (name, patch, wanted) in [
        (
            "fixed",
            ask("2Gi"),
            "persistentvolumeclaims \"fixed\" is forbidden: only dynamically provisioned pvc can \
             be resized and the storageclass that provisions the pvc must support resize",
        ),
        (
            "grows",
            ask("1Gi"),
            "PersistentVolumeClaim \"grows\" is invalid: spec.resources.requests.storage: \
             Forbidden: field can not be less than status.capacity",
        ),
        (
            "fixed",
            json!({"spec": {"volumeName": "w"}}),
            "PersistentVolumeClaim \"fixed\" is invalid: spec: Forbidden: spec is immutable after \
             creation except resources.requests and volumeAttributesClassName for bound claims",
        ),
    ] {
        let refused = change(&mut api, "persistentvolumeclaims", name, patch).expect_err("refused");
        assert_eq!(refused.message, wanted);
    }
}

#[test]
fn what_no_binder_could_use_is_refused() {
    for (plural, kind, spec, wanted) in [
        (
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            json!({"resources": {"requests": {"storage": "1Gi"}}}),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            json!({"accessModes": ["ReadWriteOnce"]}),
            "spec.resources[storage]: Required value",
        ),
        (
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            json!({"accessModes": ["ReadWriteOncePod", "ReadOnlyMany"],
                "resources": {"requests": {"storage": "1Gi"}}}),
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        (
            "persistentvolumes",
            "PersistentVolume",
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}),
            "spec: Required value: must specify a volume type",
        ),
        (
            "persistentvolumes",
            "PersistentVolume",
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "0"},
                "hostPath": {"path": "/data"}}),
            "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
        ),
        (
            "persistentvolumes",
            "PersistentVolume",
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "hostPath": {"path": "/data/../etc"}}),
            "spec.hostPath.path: Invalid value: \"/data/../etc\": must not contain '..'",
        ),
        (
            "persistentvolumes",
            "PersistentVolume",
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "local": {"path": "/data"}}),
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ),
    ] {
        let mut api = Api::new();
        let namespace = if plural == "persistentvolumes" { "" } else { "default" };
        let body = json!({"metadata": {"name": "x"}, "spec": spec});
        let refused = api.create(plural, namespace, body).expect_err("refused");
        assert_eq!(refused.message, format!("{kind} \"x\" is invalid: {wanted}"));
    }
    let mut api = Api::new();
    api.create("persistentvolumes", "", named(row("persistentvolumes"), "v")).expect("created");
    let moved = json!({"spec": {"hostPath": {"path": "/elsewhere"}}});
    let refused = change(&mut api, "persistentvolumes", "v", moved).expect_err("refused");
    assert!(refused.message.ends_with("spec.persistentvolumesource is immutable after creation"));
    class(&mut api, "c", json!({}));
    let patch = json!({"provisioner": "example.org/others"});
    let refused = change(&mut api, "storageclasses", "c", patch).expect_err("refused");
    assert!(
        refused.message.ends_with("provisioner: Forbidden: updates to provisioner are forbidden.")
    );
}

#[test]
fn quotas_count_what_claims_ask_for_also_by_class() {
    let mut api = Api::new();
    let by_class = "gold.storageclass.storage.k8s.io/requests.storage";
    let hard = json!({"requests.storage": "5Gi", "persistentvolumeclaims": "3", by_class: "1Gi"});
    let body = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    api.create("resourcequotas", "default", body).expect("created");
    claim(&mut api, "a", json!({"storageClassName": "gold"})).expect("created");
    claim(&mut api, "b", json!({"storageClassName": "iron"})).expect("created");
    let refused = claim(&mut api, "c", json!({"storageClassName": "gold"})).expect_err("refused");
    let text = format!("requested: {by_class}=1Gi, used: {by_class}=1Gi, limited: {by_class}=1Gi");
    assert!(refused.message.ends_with(&text), "{refused}");
    let quota = api.get("resourcequotas", "default", "q").expect("the quota");
    let used = json!({"requests.storage": "2Gi", "persistentvolumeclaims": "2", by_class: "1Gi"});
    assert_eq!(quota.value["status"]["used"], used);
}

#[test]
fn the_claims_of_a_stateful_set_are_volumes_of_its_pods() {
    let mut api = Api::new();
    let mut body = named(row("statefulsets"), "db");
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = mounts;
    let refused = api.create("statefulsets", "default", body.clone()).expect_err("no such volume");
    assert!(refused.message.contains("volumeMounts[0].name: Not found: \"data\""), "{refused}");
    body["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    let made = api.create("statefulsets", "default", body).expect("created");
    let template = &made.value["spec"]["volumeClaimTemplates"][0];
    assert_eq!(template["kind"], "PersistentVolumeClaim");
    assert_eq!(template["spec"]["volumeMode"], "Filesystem");
    assert_eq!(template["status"], json!({"phase": "Pending"}));
}
