use serde_json::{Value, json};

use crate::fixtures::{NOW, key, snapshot, verbs, with_input, writes};
use crate::kind::Kind;
use crate::template;
use crate::write::Outcome;

fn set(update: Value) -> Value {
    json!({
        "metadata": {"name": "agent", "generation": 3},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": template_of("new"),
            "updateStrategy": update,
        },
    })
}

fn template_of(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "agent"}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn rolling(max_unavailable: Value, max_surge: Value) -> Value {
    json!({"type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": max_unavailable, "maxSurge": max_surge}})
}

/// The revision of an image, which is the set's.
fn revision(image: &str, number: i64) -> Value {
    let template = template_of(image);
    let hash = template::hash(&template, 0);
    let mut data = template;
    data["$patch"] = json!("replace");
    json!({
        "metadata": {"name": format!("agent-{hash}"), "labels": {"app": "agent",
            "controller-revision-hash": hash}, "ownerReferences": [owner()]},
        "revision": number,
        "data": {"spec": {"template": data}},
    })
}

fn owner() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "uid-agent",
        "controller": true, "blockOwnerDeletion": true})
}

fn node(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "labels": {"zone": "a"}}, "spec": spec})
}

/// A pod of the set: on a node, of an image, ready or not.
fn pod(name: &str, node: &str, image: &str, ready: bool) -> Value {
    let hash = template::hash(&template_of(image), 0);
    let since = NOW.to_string();
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": "agent", "controller-revision-hash": hash},
            "creationTimestamp": "2026-11-21T00:00:00Z",
            "ownerReferences": [owner()],
        },
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" }, "lastTransitionTime": since}]},
    })
}

struct Case {
    set: Value,
    nodes: Vec<Value>,
    pods: Vec<Value>,
}

fn run(case: Case) -> Outcome {
    let nodes = case.nodes.into_iter().map(|node| (Kind::Node, node));
    let pods = case.pods.into_iter().map(|pod| (Kind::Pod, pod));
    let revisions = [("old", 1), ("new", 2)]
        .map(|(image, number)| (Kind::ControllerRevision, revision(image, number)));
    let objects =
        [(Kind::DaemonSet, case.set)].into_iter().chain(nodes).chain(pods).chain(revisions);
    let snapshot = snapshot(objects);
    with_input(None, |input| super::reconcile(&key(Kind::DaemonSet, "agent"), &snapshot, input))
}

fn nodes(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| node(name, json!({}))).collect()
}

/// Writes that concern pods, in short.
fn pod_writes(outcome: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    for (verb, body) in writes(outcome) {
        if verb == "create Pod" {
            let place = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution\
                         /nodeSelectorTerms/0/matchFields/0/values/0";
            let node = body.pointer(place).and_then(Value::as_str).unwrap_or_default();
            all.push(format!("create on {node}"));
        } else if verb.starts_with("delete") {
            all.push(verb);
        }
    }
    all
}

#[test]
fn the_first_step_is_the_revision_of_the_template() {
    let objects = [(Kind::DaemonSet, set(Value::Null)), (Kind::Node, node("n1", json!({})))];
    let snapshot = snapshot(objects);
    let outcome = with_input(None, |input| {
        super::reconcile(&key(Kind::DaemonSet, "agent"), &snapshot, input)
    });
    assert_eq!(verbs(&outcome), ["create ControllerRevision"]);
    let (_, body) = &writes(&outcome)[0];
    assert_eq!(body["revision"], 1);
    assert_eq!(body["data"]["spec"]["template"]["$patch"], "replace");
    let hash = &body["metadata"]["labels"]["controller-revision-hash"];
    assert_eq!(body["metadata"]["name"], format!("agent-{}", hash.as_str().unwrap_or_default()));
}

#[test]
fn a_pod_goes_to_every_node_that_it_may_run_on() {
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
    let unschedulable = "node.kubernetes.io/unschedulable";
    let nodes = vec![
        node("plain", json!({})),
        node(
            "cordoned",
            json!({"unschedulable": true,
            "taints": [{"key": unschedulable, "effect": "NoSchedule"}]}),
        ),
        node("silent", taint("node.kubernetes.io/unreachable", "NoExecute")),
        node("without-network", taint("node.kubernetes.io/network-unavailable", "NoSchedule")),
        node("gpu", taint("gpu", "NoSchedule")),
    ];
    let case = || Case { set: set(Value::Null), nodes: nodes.clone(), pods: vec![] };
    let wanted = ["create on cordoned", "create on plain", "create on silent"];
    assert_eq!(pod_writes(&run(case())), wanted);
    let mut on_host = case();
    on_host.set["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
    on_host.set["spec"]["template"]["spec"]["tolerations"] =
        json!([{"key": "gpu", "operator": "Exists"}]);
    // Another template is another revision, which is made first.
    assert_eq!(verbs(&run(on_host)), ["create ControllerRevision"]);
    let mut chosen = case();
    chosen.set["spec"]["template"]["spec"]["nodeSelector"] = json!({"zone": "b"});
    assert_eq!(verbs(&run(chosen)), ["create ControllerRevision"]);
}

#[test]
fn a_pod_is_made_for_its_node_and_tolerates_what_befalls_it() {
    let outcome = run(Case { set: set(Value::Null), nodes: nodes(&["n1"]), pods: vec![] });
    let (verb, body) = &writes(&outcome)[0];
    assert_eq!(verb, "create Pod");
    let metadata = &body["metadata"];
    assert_eq!(metadata["generateName"], "agent-");
    assert_eq!(metadata["ownerReferences"], json!([owner()]));
    let hash = template::hash(&template_of("new"), 0);
    let labels = json!({"app": "agent", "controller-revision-hash": hash});
    assert_eq!(metadata["labels"], labels);
    let tolerations = body["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    assert_eq!(tolerations.len(), 6);
    let first = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists",
        "effect": "NoExecute"});
    assert_eq!(tolerations[0], first);
}

#[test]
fn pods_that_are_too_many_or_misplaced_go() {
    let mut second = pod("second", "n1", "new", true);
    second["metadata"]["creationTimestamp"] = json!("2026-11-21T00:00:09Z");
    let pods = vec![pod("first", "n1", "new", false), second];
    let case = Case { set: set(Value::Null), nodes: nodes(&["n1"]), pods };
    assert_eq!(pod_writes(&run(case)), ["delete second"], "the oldest stays");

    let taint = |effect: &str| json!({"taints": [{"key": "gpu", "effect": effect}]});
    for (effect, wanted) in [("NoSchedule", vec![]), ("NoExecute", vec!["delete p"])] {
        let nodes = vec![node("n1", taint(effect))];
        let case = Case { set: set(Value::Null), nodes, pods: vec![pod("p", "n1", "new", true)] };
        let outcome = run(case);
        assert_eq!(pod_writes(&outcome), wanted, "{effect}");
        let status = writes(&outcome).last().expect("a status").1["status"].clone();
        assert_eq!(
            (&status["numberMisscheduled"], &status["desiredNumberScheduled"]),
            (&json!(1), &json!(0)),
            "{effect}"
        );
    }

    let mut failed = pod("failed", "n1", "new", false);
    failed["status"]["phase"] = json!("Failed");
    let case = Case { set: set(Value::Null), nodes: nodes(&["n1"]), pods: vec![failed] };
    let outcome = run(case);
    assert_eq!(pod_writes(&outcome), ["delete failed"]);
    let told = outcome.steps[0].success.as_ref().expect("an event");
    assert_eq!((told.reason, told.warning), ("FailedDaemonPod", true));
    let message = "Found failed daemon pod d/failed on node n1, will try to kill it";
    assert_eq!(told.message, message);
}

#[test]
fn an_update_stays_within_its_limits() {
    let old = |name: &str, node: &str, ready: bool| pod(name, node, "old", ready);
    let new = |name: &str, node: &str, ready: bool| pod(name, node, "new", ready);
    let three = ["n1", "n2", "n3"];
    let all_old = || vec![old("a", "n1", true), old("b", "n2", true), old("c", "n3", true)];
    let cases: Vec<(&str, Value, Vec<Value>, Vec<&str>)> = vec![
        ("one at a time", rolling(json!(1), json!(0)), all_old(), vec!["delete a"]),
        (
            "a share, rounded up",
            rolling(json!("50%"), json!(0)),
            all_old(),
            vec!["delete a", "delete b"],
        ),
        (
            "not while another is unavailable",
            rolling(json!(1), json!(0)),
            vec![new("a", "n1", false), old("b", "n2", true), old("c", "n3", true)],
            vec![],
        ),
        (
            "what serves nobody goes first, and costs nothing",
            rolling(json!(1), json!(0)),
            vec![old("a", "n1", true), old("b", "n2", false), old("c", "n3", false)],
            vec!["delete b", "delete c"],
        ),
        ("by hand", json!({"type": "OnDelete"}), all_old(), vec![]),
        (
            "a second pod beside the old one",
            rolling(json!(0), json!(1)),
            all_old(),
            vec!["create on n1"],
        ),
        (
            "which goes when the new one is there",
            rolling(json!(0), json!(1)),
            vec![
                old("a", "n1", true),
                new("d", "n1", true),
                old("b", "n2", true),
                old("c", "n3", true),
            ],
            vec!["delete a"],
        ),
        (
            "and not before",
            rolling(json!(0), json!(1)),
            vec![
                old("a", "n1", true),
                new("d", "n1", false),
                old("b", "n2", true),
                old("c", "n3", true),
            ],
            vec![],
        ),
    ];
    for (what, update, pods, wanted) in cases {
        let outcome = run(Case { set: set(update), nodes: nodes(&three), pods });
        assert_eq!(pod_writes(&outcome), wanted, "{what}");
    }
}

#[test]
fn the_status_counts_nodes() {
    let pods = vec![pod("a", "n1", "new", true), pod("b", "n2", "old", false)];
    let update = json!({"type": "OnDelete"});
    let outcome = run(Case { set: set(update), nodes: nodes(&["n1", "n2", "n3"]), pods });
    let body = writes(&outcome).last().expect("a status").1["status"].clone();
    let wanted = json!({
        "observedGeneration": 3,
        "desiredNumberScheduled": 3,
        "currentNumberScheduled": 2,
        "numberMisscheduled": 0,
        "numberReady": 1,
        "updatedNumberScheduled": 1,
        "numberAvailable": 1,
        "numberUnavailable": 2,
        "collisionCount": null,
    });
    assert_eq!(body, wanted);
}

#[test]
fn a_taken_name_is_counted_as_a_collision() {
    let mut foreign = revision("new", 2);
    foreign["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1",
        "kind": "DaemonSet", "name": "other", "uid": "uid-other", "controller": true}]);
    let objects = [(Kind::DaemonSet, set(Value::Null)), (Kind::ControllerRevision, foreign)];
    let snapshot = snapshot(objects);
    let outcome = with_input(None, |input| {
        super::reconcile(&key(Kind::DaemonSet, "agent"), &snapshot, input)
    });
    assert_eq!(
        writes(&outcome),
        [("patch agent".into(), json!({"metadata": {}, "status": {"collisionCount": 1}}))]
    );
}
