use serde_json::{Value, json};

use crate::fixtures::{NOW, key, snapshot, verbs, with_input, writes};
use crate::kind::Kind;
use crate::template;
use crate::write::Outcome;

fn set(spec: Value) -> Value {
    let mut all = json!({
        "replicas": 3,
        "serviceName": "web",
        "selector": {"matchLabels": {"app": "web"}},
        "template": template_of("new"),
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    let status = json!({"currentRevision": revision_name("old")});
    json!({"metadata": {"name": "web", "generation": 2}, "spec": all, "status": status})
}

fn template_of(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn revision_name(image: &str) -> String {
    format!("web-{}", template::hash(&template_of(image), 0))
}

fn owner() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "uid-web",
        "controller": true, "blockOwnerDeletion": true})
}

fn revision(image: &str, number: i64) -> Value {
    let mut data = template_of(image);
    data["$patch"] = json!("replace");
    json!({
        "metadata": {"name": revision_name(image), "labels": {"app": "web"},
            "ownerReferences": [owner()]},
        "revision": number,
        "data": {"spec": {"template": data}},
    })
}

/// The pod of an ordinal: ready (`true`), not yet (`false`).
fn pod(ordinal: i32, image: &str, ready: bool) -> Value {
    let name = format!("web-{ordinal}");
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": "web", "controller-revision-hash": revision_name(image),
                "statefulset.kubernetes.io/pod-name": name,
                "apps.kubernetes.io/pod-index": ordinal.to_string()},
            "ownerReferences": [owner()],
        },
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" },
            "lastTransitionTime": NOW.to_string()}]},
    })
}

fn going(ordinal: i32) -> Value {
    let mut pod = pod(ordinal, "new", true);
    pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    pod
}

fn phase(ordinal: i32, phase: &str) -> Value {
    let mut pod = pod(ordinal, "new", false);
    pod["status"]["phase"] = json!(phase);
    pod
}

fn run(set: Value, pods: Vec<Value>) -> Outcome {
    let revisions = [("old", 1), ("new", 2)]
        .map(|(image, number)| (Kind::ControllerRevision, revision(image, number)));
    let pods = pods.into_iter().map(|pod| (Kind::Pod, pod));
    let snapshot = snapshot([(Kind::StatefulSet, set)].into_iter().chain(revisions).chain(pods));
    with_input(None, |input| super::reconcile(&key(Kind::StatefulSet, "web"), &snapshot, input))
}

/// Creations and deletions of pods, in short.
fn steps(outcome: &Outcome) -> Vec<String> {
    let short = |(verb, body): (String, Value)| match verb.as_str() {
        "create Pod" => Some(format!("create {}", body["metadata"]["name"].as_str()?)),
        verb if verb.starts_with("delete") => Some(verb.to_owned()),
        _ => None,
    };
    writes(outcome).into_iter().filter_map(short).collect()
}

#[test]
fn pods_come_and_go_in_the_order_of_their_ordinals() {
    let ordered = || set(json!({}));
    let parallel = || set(json!({"podManagementPolicy": "Parallel"}));
    let new = |ordinal| pod(ordinal, "new", true);
    let cases: Vec<(&str, Value, Vec<Value>, Vec<&str>)> = vec![
        ("the first", ordered(), vec![], vec!["create web-0"]),
        ("the next waits for it", ordered(), vec![pod(0, "new", false)], vec![]),
        ("until it is ready", ordered(), vec![new(0)], vec!["create web-1"]),
        ("a gap is filled first", ordered(), vec![new(0), new(2)], vec!["create web-1"]),
        ("also while it still stops", ordered(), vec![going(0), new(1), new(2)], vec![]),
        ("all at once", parallel(), vec![], vec!["create web-0", "create web-1", "create web-2"]),
        (
            "the highest goes first",
            ordered(),
            vec![new(0), new(1), new(2), new(3), new(4)],
            vec!["delete web-4"],
        ),
        (
            "and must be gone before the next",
            ordered(),
            vec![new(0), new(1), new(2), new(3), going(4)],
            vec![],
        ),
        (
            "not while a wanted one is missing",
            ordered(),
            vec![new(0), new(1), new(3)],
            vec!["create web-2"],
        ),
        (
            "all at once again",
            parallel(),
            vec![new(0), new(1), new(2), new(3), new(4)],
            vec!["delete web-4", "delete web-3"],
        ),
        (
            "ordinals begin where they are told to",
            set(json!({"ordinals": {"start": 5}})),
            vec![new(0)],
            vec!["create web-5"],
        ),
        (
            "one that failed is made anew",
            ordered(),
            vec![phase(0, "Failed"), new(1), new(2)],
            vec!["delete web-0"],
        ),
    ];
    for (what, set, pods, wanted) in cases {
        assert_eq!(steps(&run(set, pods)), wanted, "{what}");
    }
}

#[test]
fn an_update_goes_from_the_highest_ordinal_down_to_the_partition() {
    let old = |ordinal| pod(ordinal, "old", true);
    let new = |ordinal| pod(ordinal, "new", true);
    let partition = |number: i32| {
        set(json!({"updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"partition": number}}}))
    };
    let cases: Vec<(&str, Value, Vec<Value>, Vec<&str>)> = vec![
        ("the highest first", partition(0), vec![old(0), old(1), old(2)], vec!["delete web-2"]),
        ("then the next", partition(0), vec![old(0), old(1), new(2)], vec!["delete web-1"]),
        ("when that one serves", partition(0), vec![old(0), old(1), pod(2, "new", false)], vec![]),
        ("down to the partition", partition(2), vec![old(0), old(1), new(2)], vec![]),
        (
            "by hand",
            set(json!({"updateStrategy": {"type": "OnDelete"}})),
            vec![old(0), old(1), old(2)],
            vec![],
        ),
    ];
    for (what, set, pods, wanted) in cases {
        assert_eq!(steps(&run(set, pods)), wanted, "{what}");
    }
    // What stands below the partition is made of the old template when it is made anew.
    for (missing, wanted) in [(0, "old"), (2, "new")] {
        let pods = (0..3).filter(|ordinal| *ordinal != missing).map(old).collect();
        let outcome = run(partition(2), pods);
        let (_, body) = &writes(&outcome)[0];
        assert_eq!(body["spec"]["containers"][0]["image"], wanted);
        let label = &body["metadata"]["labels"]["controller-revision-hash"];
        assert_eq!(label, &json!(revision_name(wanted)));
    }
}

#[test]
fn an_update_takes_as_many_pods_as_may_be_unavailable() {
    let old = |ordinal| pod(ordinal, "old", true);
    let new = |ordinal| pod(ordinal, "new", true);
    let limited = |policy: &str, limit: Value, partition: i32| {
        set(json!({"podManagementPolicy": policy, "updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": limit, "partition": partition}}}))
    };
    let parallel = |limit: Value| limited("Parallel", limit, 0);
    let ordered = |limit: Value| limited("OrderedReady", limit, 0);
    let all_old = || vec![old(0), old(1), old(2)];
    let cases: Vec<(&str, Value, Vec<Value>, Vec<&str>)> = vec![
        ("two", parallel(json!(2)), all_old(), vec!["delete web-2", "delete web-1"]),
        ("in order, too", ordered(json!(2)), all_old(), vec!["delete web-2", "delete web-1"]),
        (
            "a part, rounded down",
            parallel(json!("67%")),
            all_old(),
            vec!["delete web-2", "delete web-1"],
        ),
        ("never none", parallel(json!("10%")), all_old(), vec!["delete web-2"]),
        (
            "all",
            parallel(json!(9)),
            all_old(),
            vec!["delete web-2", "delete web-1", "delete web-0"],
        ),
        (
            "not below the partition",
            limited("Parallel", json!(2), 2),
            all_old(),
            vec!["delete web-2"],
        ),
        (
            "what does not serve yet counts",
            parallel(json!(2)),
            vec![old(0), old(1), pod(2, "new", false)],
            vec!["delete web-1"],
        ),
        ("what goes counts", parallel(json!(2)), vec![old(0), going(1), going(2)], vec![]),
        (
            "below, too",
            parallel(json!(2)),
            vec![pod(0, "new", false), old(1), old(2)],
            vec!["delete web-2"],
        ),
        (
            "but a broken one stops nothing",
            parallel(json!(1)),
            vec![pod(0, "old", false), old(1), new(2)],
            vec!["delete web-1"],
        ),
        (
            "in order the others wait until all serve",
            ordered(json!(2)),
            vec![old(0), old(1), pod(2, "new", false)],
            vec![],
        ),
    ];
    for (what, set, pods, wanted) in cases {
        assert_eq!(steps(&run(set, pods)), wanted, "{what}");
    }
}

#[test]
fn a_pod_knows_its_name_and_place() {
    let outcome = run(set(json!({})), vec![]);
    let (_, body) = &writes(&outcome)[0];
    let labels = json!({
        "app": "web",
        "controller-revision-hash": revision_name("new"),
        "statefulset.kubernetes.io/pod-name": "web-0",
        "apps.kubernetes.io/pod-index": "0",
    });
    assert_eq!(body["metadata"]["labels"], labels);
    assert_eq!(
        (&body["spec"]["hostname"], &body["spec"]["subdomain"]),
        (&json!("web-0"), &json!("web"))
    );
    let told = outcome.steps[0].success.as_ref().expect("an event");
    assert_eq!(
        (told.reason, told.message.as_str()),
        ("SuccessfulCreate", "create Pod web-0 in StatefulSet web successful")
    );
}

#[test]
fn only_pods_with_fitting_names_are_adopted() {
    let orphan = |name: &str| {
        let mut pod = pod(0, "new", true);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["ownerReferences"] = Value::Null;
        pod
    };
    let pods = vec![orphan("web-0"), orphan("web-01"), orphan("web-x"), orphan("other-0")];
    assert_eq!(verbs(&run(set(json!({})), pods)), ["patch web-0"]);
}

#[test]
fn the_status_tells_how_far_the_update_is() {
    let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}});
    let pods = vec![pod(0, "old", true), pod(1, "old", false), pod(2, "new", true)];
    let status = |outcome: &Outcome| writes(outcome).last().expect("a status").1["status"].clone();
    let wanted = json!({
        "observedGeneration": 2,
        "replicas": 3,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "currentReplicas": 2,
        "updatedReplicas": 1,
        "currentRevision": revision_name("old"),
        "updateRevision": revision_name("new"),
        "collisionCount": 0,
    });
    assert_eq!(status(&run(set(partition), pods)), wanted);
    let pods = (0..3).map(|ordinal| pod(ordinal, "new", true)).collect();
    let done = status(&run(set(json!({})), pods));
    assert_eq!(done["currentRevision"], json!(revision_name("new")));
    assert_eq!((&done["currentReplicas"], &done["updatedReplicas"]), (&json!(3), &json!(3)));
}
