//! ResourceQuotas: what they count and refuse, in the transaction of every write.

mod common;

use common::{Api, named, request, row};
use serde_json::{Value, json};
use store::{Action, PatchKind, Status, Subresource};

fn with_quota(spec: Value) -> Api {
    let mut api = Api::new();
    quota(&mut api, "q", spec).expect("created");
    api
}

fn quota(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    let body = json!({"metadata": {"name": name}, "spec": spec});
    api.create("resourcequotas", "default", body).map(|object| object.value.clone())
}

fn used(api: &Api, name: &str) -> Value {
    let found = api.get("resourcequotas", "default", name).expect("the quota");
    found.value["status"]["used"].clone()
}

fn pod(name: &str, resources: Value) -> Value {
    let mut body = named(row("pods"), name);
    body["spec"]["containers"][0]["resources"] = resources;
    body
}

fn create(api: &mut Api, plural: &str, body: Value) -> Result<(), Status> {
    api.create(plural, "default", body).map(drop)
}

fn end(api: &mut Api, name: &str, phase: &str) {
    api.patch_status("pods", "default", name, json!({"status": {"phase": phase}})).expect("ended");
}

#[test]
fn what_is_there_counts_when_a_quota_comes_and_what_goes_frees_its_place() {
    let mut api = Api::new();
    create(&mut api, "pods", pod("before", json!({}))).expect("created");
    quota(&mut api, "q", json!({"hard": {"pods": "2", "count/pods": "9"}})).expect("created");
    assert_eq!(used(&api, "q"), json!({"pods": "1", "count/pods": "1"}));
    create(&mut api, "pods", pod("second", json!({}))).expect("within the quota");
    let refused = create(&mut api, "pods", pod("third", json!({}))).expect_err("the quota is used");
    assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
    let text = "pods \"third\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, \
                limited: pods=2";
    assert_eq!(refused.message, text);
    // What has ended is still an object, but no longer a pod that runs.
    end(&mut api, "second", "Succeeded");
    assert_eq!(used(&api, "q"), json!({"pods": "1", "count/pods": "2"}));
    create(&mut api, "pods", pod("third", json!({}))).expect("there is room");
    api.delete("pods", "default", "third", json!({})).expect("deleted");
    api.delete("pods", "default", "second", json!({})).expect("deleted");
    assert_eq!(used(&api, "q"), json!({"pods": "1", "count/pods": "1"}));
}

#[test]
fn two_writers_of_one_batch_never_take_the_same_rest() {
    let mut api = with_quota(json!({"hard": {"pods": "1"}}));
    let ask = |name| {
        let action = Action::Create(pod(name, json!({})));
        request(row("pods"), "default", "", None, action)
    };
    // Nothing is published between the two.
    api.stage(&ask("first")).expect("the only place");
    assert!(api.stage(&ask("second")).expect_err("taken").message.contains("used: pods=1"));
    // What could not be made durable never happened, and is not counted.
    api.store.discard();
    assert_eq!(used(&api, "q"), json!({"pods": "0"}));
    api.run(&ask("second")).expect("the only place");
    assert_eq!(used(&api, "q"), json!({"pods": "1"}));
}

#[test]
fn a_dry_run_is_refused_but_never_counted() {
    let mut api = with_quota(json!({"hard": {"pods": "1"}}));
    api.dry_run = true;
    create(&mut api, "pods", pod("a", json!({}))).expect("would be created");
    assert_eq!(used(&api, "q"), json!({"pods": "0"}));
    api.dry_run = false;
    create(&mut api, "pods", pod("a", json!({}))).expect("created");
    api.dry_run = true;
    create(&mut api, "pods", pod("b", json!({}))).expect_err("would be refused");
}

#[test]
fn what_containers_ask_for_is_counted_and_must_be_said() {
    let hard = json!({"requests.cpu": "1", "memory": "1Gi", "limits.cpu": "2",
        "requests.ephemeral-storage": "1Gi", "requests.example.org/gpu": "1"});
    let mut api = with_quota(json!({ "hard": hard }));
    let refused = create(&mut api, "pods", pod("a", json!({"requests": {"cpu": "500m"}})));
    let text = "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: web; \
                memory for: web";
    assert_eq!(refused.expect_err("nothing is said of memory").message, text);
    let asked = json!({
        "requests": {"cpu": "600m", "memory": "256Mi", "ephemeral-storage": "10Mi",
            "example.org/gpu": "1"},
        "limits": {"cpu": "1", "example.org/gpu": "1"},
    });
    create(&mut api, "pods", pod("a", asked.clone())).expect("created");
    let counted = json!({"requests.cpu": "600m", "memory": "256Mi", "limits.cpu": "1",
        "requests.ephemeral-storage": "10Mi", "requests.example.org/gpu": "1"});
    assert_eq!(used(&api, "q"), counted);
    let refused = create(&mut api, "pods", pod("b", asked)).expect_err("too much");
    let text = "exceeded quota: q, requested: requests.cpu=600m,requests.example.org/gpu=1, used: \
                requests.cpu=600m,requests.example.org/gpu=1, limited: requests.cpu=1,\
                requests.example.org/gpu=1";
    assert!(refused.message.ends_with(text), "{}", refused.message);
}

#[test]
fn other_kinds_are_counted_by_their_names() {
    let hard = json!({"configmaps": "1", "secrets": "5", "count/deployments.apps": "1",
        "services": "3", "services.nodeports": "2", "services.loadbalancers": "1",
        "resourcequotas": "1"});
    let mut api = with_quota(json!({ "hard": hard }));
    create(&mut api, "configmaps", named(row("configmaps"), "one")).expect("created");
    create(&mut api, "configmaps", named(row("configmaps"), "two")).expect_err("one is the limit");
    create(&mut api, "deployments", named(row("deployments"), "one")).expect("created");
    let refused = create(&mut api, "deployments", named(row("deployments"), "two"));
    let text = "deployments.apps \"two\" is forbidden: exceeded quota: q, requested: \
                count/deployments.apps=1, used: count/deployments.apps=1, limited: \
                count/deployments.apps=1";
    assert_eq!(refused.expect_err("one is the limit").message, text);
    quota(&mut api, "other", json!({"hard": {}})).expect_err("one quota is the limit");
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let port = |number: u16| json!({"name": format!("p{number}"), "port": number});
    let balancer = json!({"type": "LoadBalancer", "ports": [port(80)]});
    create(&mut api, "services", service("a", balancer)).expect("created");
    create(&mut api, "services", service("b", json!({"ports": [port(80), port(81)]})))
        .expect("created");
    let counted = json!({"configmaps": "1", "secrets": "0", "count/deployments.apps": "1",
        "services": "2", "services.nodeports": "1", "services.loadbalancers": "1",
        "resourcequotas": "1"});
    assert_eq!(used(&api, "q"), counted);
    // A change that takes more is refused as a new object is.
    let retype = |api: &mut Api, kind: &str| {
        let patch = json!({"spec": {"type": kind}});
        api.patch("services", "default", "b", PatchKind::Merge, patch).map(drop)
    };
    let refused = retype(&mut api, "NodePort").expect_err("three node ports");
    assert!(
        refused.message.contains("requested: services.nodeports=2, used: services.nodeports=1")
    );
    retype(&mut api, "ClusterIP").expect("no change");
}

#[test]
fn scopes_choose_the_pods_that_count() {
    let mut api = Api::new();
    for (name, spec) in [
        ("best", json!({"scopes": ["BestEffort"]})),
        ("others", json!({"scopes": ["NotBestEffort"]})),
        ("ending", json!({"scopes": ["Terminating"]})),
        ("lasting", json!({"scopes": ["NotTerminating", "BestEffort"]})),
        ("any-class", json!({"scopes": ["PriorityClass"]})),
        (
            "urgent",
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["urgent"]}]}}),
        ),
        (
            "not-urgent",
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "NotIn", "values": ["urgent"]}]}}),
        ),
        ("elsewhere", json!({"scopes": ["CrossNamespacePodAffinity"]})),
    ] {
        let mut spec = spec;
        spec["hard"] = json!({"pods": "9"});
        quota(&mut api, name, spec).expect("created");
    }
    let class = json!({"metadata": {"name": "urgent"}, "value": 5});
    api.create("priorityclasses", "", class).expect("a class");
    create(&mut api, "pods", pod("best", json!({}))).expect("created");
    create(&mut api, "pods", pod("asks", json!({"requests": {"cpu": "1"}}))).expect("created");
    let mut ends = pod("ends", json!({}));
    ends["spec"]["activeDeadlineSeconds"] = json!(60);
    ends["spec"]["priorityClassName"] = json!("urgent");
    create(&mut api, "pods", ends).expect("created");
    let mut near = pod("near", json!({}));
    near["spec"]["affinity"] = json!({"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "namespaces": ["other"]}]}});
    create(&mut api, "pods", near).expect("created");
    for (name, wanted) in [
        ("best", "3"),
        ("others", "1"),
        ("ending", "1"),
        ("lasting", "2"),
        ("any-class", "1"),
        ("urgent", "1"),
        ("not-urgent", "3"),
        ("elsewhere", "1"),
    ] {
        assert_eq!(used(&api, name), json!({"pods": wanted}), "{name}");
    }
    // A pod that moves from one choice to the other is counted there.
    let patch = json!({"spec": {"activeDeadlineSeconds": 5}});
    api.patch("pods", "default", "best", PatchKind::Merge, patch).expect("changed");
    assert_eq!(used(&api, "ending"), json!({"pods": "2"}));
    assert_eq!(used(&api, "lasting"), json!({"pods": "1"}));
}

#[test]
fn what_is_used_is_the_servers_own_to_say() {
    let mut api = with_quota(json!({"hard": {"pods": "1"}}));
    create(&mut api, "pods", pod("a", json!({}))).expect("created");
    let claimed = json!({"status": {"hard": {"pods": "50"}, "used": {"pods": "0"}}});
    let action = Action::Patch(PatchKind::Merge, claimed);
    api.act("resourcequotas", "default", "q", Some(Subresource::Status), action).expect("taken");
    assert_eq!(used(&api, "q"), json!({"pods": "1"}));
    create(&mut api, "pods", pod("b", json!({}))).expect_err("one is the limit");
    let wider = json!({"spec": {"hard": {"pods": "2", "configmaps": "5"}}});
    api.patch("resourcequotas", "default", "q", PatchKind::Merge, wider).expect("changed");
    assert_eq!(used(&api, "q"), json!({"pods": "1", "configmaps": "0"}));
    create(&mut api, "pods", pod("b", json!({}))).expect("there is room");
}

#[test]
fn other_namespaces_have_their_own() {
    let mut api = with_quota(json!({"hard": {"pods": "0"}}));
    api.create("namespaces", "", json!({"metadata": {"name": "other"}})).expect("created");
    api.create("pods", "other", named(row("pods"), "a")).expect("no quota here");
    assert_eq!(used(&api, "q"), json!({"pods": "0"}));
}

#[test]
fn quotas_that_mean_nothing_are_refused_in_the_words_of_the_api() {
    let scoped = |scopes: Value, hard: Value| json!({"scopes": scopes, "hard": hard});
    let choice = |choice: Value| json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [choice]}});
    for (spec, wanted) in [
        (
            json!({"hard": {"widgets": "1"}}),
            "spec.hard[widgets]: Invalid value: \"widgets\": must be a standard resource for quota",
        ),
        (
            json!({"hard": {"pods": "-1"}}),
            "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            json!({"hard": {"pods": "500m"}}),
            "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
        ),
        (
            scoped(json!(["BestEffort", "NotBestEffort"]), json!({"pods": "1"})),
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
        ),
        (
            scoped(json!(["Whatever"]), json!({"pods": "1"})),
            "spec.scopes: Invalid value: [\"Whatever\"]: unsupported scope",
        ),
        (
            scoped(json!(["BestEffort"]), json!({"cpu": "1"})),
            "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
        ),
        (
            choice(json!({"scopeName": "PriorityClass", "operator": "In"})),
            "spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one \
             value when `operator` is 'In' or 'NotIn' for scope selector",
        ),
        (
            choice(json!({"scopeName": "PriorityClass", "operator": "Gt"})),
            "spec.scopeSelector.matchExpressions[0].operator: Invalid value: \"Gt\": not a valid \
             selector operator",
        ),
    ] {
        let refused = quota(&mut Api::new(), "q", spec).expect_err("refused");
        assert_eq!(refused.message, format!("ResourceQuota \"q\" is invalid: {wanted}"));
    }
    let mut api = with_quota(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]}));
    let patch = json!({"spec": {"scopes": ["Terminating"]}});
    let refused = api.patch("resourcequotas", "default", "q", PatchKind::Merge, patch);
    assert!(refused.expect_err("immutable").message.contains("field is immutable"));
}
