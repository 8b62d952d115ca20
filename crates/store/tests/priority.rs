//! PriorityClasses: refusals, columns, and what they give pods.

mod common;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::{Action, Include, ListOptions, PatchKind, Status, Subresource, table};

fn made(api: &mut Api, name: &str, fields: Value) -> Result<Value, Status> {
    let mut body = json!({"metadata": {"name": name}});
    for (field, value) in fields.as_object().into_iter().flatten() {
        body[field] = value.clone();
    }
    api.create("priorityclasses", "", body).map(|object| object.value.clone())
}

fn pod(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    let mut body = named(row("pods"), name);
    for (field, value) in spec.as_object().into_iter().flatten() {
        body["spec"][field] = value.clone();
    }
    api.create("pods", "default", body).map(|object| object.value["spec"].clone())
}

/// Class, priority and preemption policy of a pod's spec.
fn priority(spec: &Value) -> (Value, Value, Value) {
    let field = |name: &str| spec[name].clone();
    (field("priorityClassName"), field("priority"), field("preemptionPolicy"))
}

#[test]
fn a_pod_gets_what_its_class_says() {
    let mut api = Api::new();
    let plain = pod(&mut api, "a", json!({})).expect("created");
    assert_eq!(priority(&plain), (Value::Null, json!(0), json!("PreemptLowerPriority")));
    made(&mut api, "high", json!({"value": 100, "preemptionPolicy": "Never"})).expect("created");
    let high = json!({"priorityClassName": "high"});
    let high = pod(&mut api, "b", high).expect("created");
    assert_eq!(priority(&high), (json!("high"), json!(100), json!("Never")));
    made(&mut api, "usual", json!({"value": 7, "globalDefault": true})).expect("created");
    let usual = pod(&mut api, "c", json!({})).expect("created");
    assert_eq!(priority(&usual), (json!("usual"), json!(7), json!("PreemptLowerPriority")));
    // As a client sends it that took another pod for its model.
    pod(&mut api, "d", json!({"priority": 7, "preemptionPolicy": "PreemptLowerPriority"}))
        .expect("created");
    let of_system = json!({"priorityClassName": "system-cluster-critical"});
    let of_system = pod(&mut api, "e", of_system).expect("created");
    assert_eq!(of_system["priority"], 2_000_000_000);
}

#[test]
fn a_gated_pod_waits_until_its_gates_are_gone_and_gets_no_new_ones() {
    let mut api = Api::new();
    let gates =
        |names: &[&str]| -> Value { names.iter().map(|name| json!({ "name": name })).collect() };
    let spec = json!({"schedulingGates": gates(&["a", "b"])});
    pod(&mut api, "p", spec).expect("created");
    let status = api.get("pods", "default", "p").expect("it").value["status"].clone();
    assert_eq!(status["conditions"][0]["reason"], "SchedulingGated");
    let both = json!({"schedulingGates": gates(&["a"]), "nodeName": "n"});
    let why = pod(&mut api, "q", both).expect_err("refused").message;
    assert!(why.ends_with("cannot be set until all schedulingGates have been cleared"), "{why}");
    let mut patch = |names: &[&str]| {
        let body = json!({"spec": {"schedulingGates": gates(names)}});
        api.patch("pods", "default", "p", PatchKind::Merge, body)
    };
    let why = patch(&["a", "c"]).expect_err("a new one").message;
    assert!(why.ends_with("only deletion is allowed, but found new scheduling gate 'c'"), "{why}");
    patch(&["b"]).expect("one is gone");
    let bind = Action::Create(json!({"target": {"name": "n"}}));
    let subresource = Some(Subresource::Binding);
    let why = api.act("pods", "default", "p", subresource, bind).expect_err("gated").message;
    assert!(why.ends_with("pod p has non-empty .spec.schedulingGates"), "{why}");
}

/// Required node affinity of terms, each given by its expressions.
fn affinity(terms: &[Value]) -> Value {
    let terms: Vec<Value> = terms.iter().map(|one| json!({ "matchExpressions": one })).collect();
    json!({"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
}

fn exists(key: &str) -> Value {
    json!({"key": key, "operator": "Exists"})
}

#[test]
fn where_a_gated_pod_may_go_only_becomes_narrower() {
    let mut api = Api::new();
    let spec = json!({"schedulingGates": [{"name": "a"}], "nodeSelector": {"disk": "ssd"},
        "affinity": affinity(&[json!([exists("x")])])});
    pod(&mut api, "gated", spec.clone()).expect("created");
    let mut open = spec;
    open["schedulingGates"] = json!([]);
    pod(&mut api, "open", open).expect("created");
    let terms = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.\
                 nodeSelectorTerms";
    let changed = |selector: Value| json!({ "nodeSelector": selector });
    let wanted = |terms: &[Value]| json!({ "affinity": affinity(terms) });
    let mutated = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
    let replaced = "only additions are allowed (no mutations or deletions)";
    let added = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
    let expression = r#"{"matchExpressions":[{"key":"y","operator":"Exists"}]}"#;
    let refused = [
        (
            changed(json!({"disk": "hdd"})),
            format!("spec.nodeSelector: Invalid value: {{\"disk\":\"hdd\"}}: {mutated}"),
        ),
        (
            changed(json!({"disk": null})),
            format!("spec.nodeSelector: Invalid value: {{}}: {mutated}"),
        ),
        (
            wanted(&[json!([exists("y")])]),
            format!("{terms}[0]: Invalid value: {expression}: {replaced}"),
        ),
        (
            wanted(&[json!([exists("x")]), json!([exists("y")])]),
            format!("{terms}: Invalid value: ["),
        ),
        (json!({"affinity": null}), format!("{terms}: Invalid value: []: {added}")),
        (json!({"hostNetwork": true}), "spec: Forbidden: pod updates may not change".to_owned()),
        (
            json!({"affinity": {"podAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}}),
            "spec: Forbidden: pod updates may not change".to_owned(),
        ),
    ];
    let mut patch = |name: &str, spec: &Value| {
        api.patch("pods", "default", name, PatchKind::Merge, json!({ "spec": spec }))
    };
    for (spec, why) in &refused {
        let message = patch("gated", spec).expect_err("refused").message;
        assert!(message.contains(why), "{spec}: {message}");
    }
    let narrower = json!({"nodeSelector": {"zone": "a"},
        "affinity": affinity(&[json!([exists("x"), exists("y")])])});
    patch("gated", &narrower).expect("narrower");
    let message = patch("open", &narrower).expect_err("no gate").message;
    assert!(message.contains("spec: Forbidden: pod updates may not change"), "{message}");
}

#[test]
fn of_a_pod_time_and_tolerations_change_in_one_direction() {
    let mut api = Api::new();
    let toleration = json!({"key": "k", "operator": "Exists", "effect": "NoExecute"});
    pod(&mut api, "p", json!({"activeDeadlineSeconds": 60, "tolerations": [toleration]}))
        .expect("created");
    let mut patch = |spec: Value| {
        let body = json!({ "spec": spec });
        api.patch("pods", "default", "p", PatchKind::Merge, body).map(|_| ())
    };
    let tolerations = |extra: Value| {
        let mut all = vec![
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 7}),
            json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 9}),
            json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute"}),
        ];
        all.extend(extra.as_array().cloned().unwrap_or_default());
        json!({ "tolerations": all })
    };
    for allowed in [
        json!({"activeDeadlineSeconds": 30}),
        tolerations(json!([])),
        tolerations(json!([{"key": "more", "operator": "Exists"}])),
    ] {
        patch(allowed.clone()).unwrap_or_else(|status| panic!("{allowed}: {status}"));
    }
    for (spec, why) in [
        (
            json!({"activeDeadlineSeconds": 31}),
            "spec.activeDeadlineSeconds: Invalid value: 31: must be less than or equal to \
             previous value",
        ),
        (
            json!({"activeDeadlineSeconds": null}),
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive \
             integer to nil value",
        ),
        (
            json!({"tolerations": [toleration]}),
            "spec.tolerations: Forbidden: existing toleration can not be modified except its \
             tolerationSeconds",
        ),
        (json!({"terminationGracePeriodSeconds": 1}), "spec: Forbidden: pod updates may not"),
        (
            json!({"containers": []}),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
    ] {
        let message = patch(spec.clone()).expect_err("refused").message;
        assert!(message.contains(why), "{spec}: {message}");
    }
}

#[test]
fn a_pod_does_not_choose_its_priority_itself() {
    let mut api = Api::new();
    made(&mut api, "high", json!({"value": 100})).expect("created");
    for (spec, wanted) in [
        (json!({"priorityClassName": "gone"}), "no PriorityClass with name gone was found"),
        (
            json!({"priorityClassName": "high", "priority": 5}),
            "the integer value of priority (5) must not be provided in pod spec; priority \
             admission controller computed 100 from the given PriorityClass name",
        ),
        (
            json!({"priorityClassName": "high", "preemptionPolicy": "Never"}),
            "the string value of PreemptionPolicy (Never) must not be provided in pod spec; \
             priority admission controller computed PreemptLowerPriority from the given \
             PriorityClass name",
        ),
        (
            json!({"priority": 9}),
            "the integer value of priority (9) must not be provided in pod spec; priority \
             admission controller computed 0 from the given PriorityClass name",
        ),
    ] {
        let refused = pod(&mut api, "p", spec).expect_err("refused");
        assert_eq!(refused.code, 403);
        assert_eq!(refused.message, format!("pods \"p\" is forbidden: {wanted}"));
    }
}

#[test]
fn classes_that_make_no_sense_are_refused() {
    let prefix =
        "priority class names with 'system-' prefix are reserved for system use only. error: ";
    for (name, fields, wanted) in [
        (
            "big",
            json!({"value": 1_000_000_001}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
                .to_owned(),
        ),
        (
            "odd",
            json!({"preemptionPolicy": "Always"}),
            "preemptionPolicy: Unsupported value: \"Always\": supported values: \
             \"PreemptLowerPriority\", \"Never\""
                .to_owned(),
        ),
        (
            "system-mine",
            json!({}),
            format!(
                "metadata.name: Forbidden: {prefix}system-mine is not a known system priority class"
            ),
        ),
        (
            "system-node-critical",
            json!({"value": 1}),
            format!(
                "metadata.name: Forbidden: {prefix}value of system-node-critical PriorityClass \
                 must be 2000001000"
            ),
        ),
    ] {
        let message = made(&mut Api::new(), name, fields).expect_err("refused").message;
        let of = format!("PriorityClass.scheduling.k8s.io \"{name}\" is invalid: ");
        assert_eq!(message, of + &wanted);
    }
}

#[test]
fn there_is_one_default_and_the_value_stays() {
    let mut api = Api::new();
    made(&mut api, "usual", json!({"value": 7, "globalDefault": true})).expect("created");
    let second = made(&mut api, "other", json!({"globalDefault": true})).expect_err("refused");
    let wanted = "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is \
                  already marked as default. Only one default can exist";
    assert_eq!(second.message, wanted);
    made(&mut api, "other", json!({"value": 3})).expect("created");
    let mut patch = |name: &str, body: Value| {
        let patched = api.patch("priorityclasses", "", name, PatchKind::Merge, body);
        patched.map(|object| object.value.clone())
    };
    let refused = patch("other", json!({"globalDefault": true})).expect_err("refused");
    assert_eq!(refused.message, wanted);
    patch("usual", json!({"description": "what most have"})).expect("changed");
    let refused = patch("usual", json!({"value": 8})).expect_err("refused").message;
    assert!(refused.ends_with("value: Forbidden: may not be changed in an update."), "{refused}");
    patch("usual", json!({"globalDefault": false})).expect("changed");
    patch("other", json!({"globalDefault": true})).expect("changed");
}

#[test]
fn classes_of_the_system_stay_and_the_columns_are_those_of_the_api() {
    let mut api = Api::new();
    let value = json!({"value": 2_000_001_000});
    made(&mut api, "system-node-critical", value).expect("created");
    let refused =
        api.delete("priorityclasses", "", "system-node-critical", json!({})).expect_err("refused");
    let wanted = "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a \
                  system priority class and cannot be deleted";
    assert_eq!(refused.message, wanted);
    let list = api.store.list(row("priorityclasses"), &ListOptions::default()).expect("a list");
    let objects = list.items.iter().map(|object| &**object);
    let include = Include::None;
    let table = table::table(row("priorityclasses"), objects, json!({}), api.now, include, true);
    let cells = &table["rows"][0]["cells"];
    let wanted =
        json!(["system-node-critical", 2_000_001_000, false, cells[3], "PreemptLowerPriority"]);
    assert_eq!(*cells, wanted);
}
