use serde_json::{Value, json};

use crate::controller::{LastFailure, Verb};
use crate::fixtures::{key, pod, snapshot, verbs, with_input, writes};
use crate::kind::Kind;
use crate::write::{Failure, Outcome};

fn set(replicas: i64) -> Value {
    json!({
        "metadata": {"name": "set", "generation": 2},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "creationTimestamp": null},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

fn reconcile(set: Value, pods: Vec<Value>, failure: Option<&LastFailure>) -> Outcome {
    let pods = pods.into_iter().map(|pod| (Kind::Pod, pod));
    let snapshot = snapshot([(Kind::ReplicaSet, set)].into_iter().chain(pods));
    with_input(failure, |input| super::reconcile(&key(Kind::ReplicaSet, "set"), &snapshot, input))
}

fn deleted(pods: Vec<Value>, left: i64) -> Vec<String> {
    let outcome = reconcile(set(left), pods, None);
    let verbs = verbs(&outcome).into_iter();
    verbs.filter_map(|verb| verb.strip_prefix("delete ").map(str::to_owned)).collect()
}

#[test]
fn a_missing_pod_is_created_from_the_template() {
    let outcome = reconcile(set(1), vec![], None);
    let writes = writes(&outcome);
    let (verb, body) = &writes[0];
    assert_eq!(verb, "create Pod");
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "set-",
            "namespace": "d",
            "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set",
                "uid": "uid-set", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    assert_eq!(body, &wanted);
}

#[test]
fn what_serves_least_is_deleted_first() {
    let cases: Vec<(&str, Vec<Value>, &str)> = vec![
        ("without a node", vec![pod("a", "n", None), pod("b", "", None)], "b"),
        ("not ready", vec![pod("a", "n", Some(9)), pod("b", "n", None)], "b"),
        ("ready for the shorter time", vec![pod("a", "n", Some(900)), pod("b", "n", Some(9))], "b"),
        (
            "lower deletion cost",
            {
                let mut cheap = pod("b", "n", Some(900));
                cheap["metadata"]["annotations"] =
                    json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
                vec![pod("a", "n", Some(9)), cheap]
            },
            "b",
        ),
        (
            "restarted more often",
            {
                let mut restarted = pod("b", "n", Some(9));
                restarted["status"]["containerStatuses"] = json!([{"restartCount": 3}]);
                vec![pod("a", "n", Some(9)), restarted]
            },
            "b",
        ),
        (
            "younger",
            {
                let mut young = pod("b", "n", Some(9));
                young["metadata"]["creationTimestamp"] = json!("2026-11-21T00:00:07Z");
                vec![pod("a", "n", Some(9)), young]
            },
            "b",
        ),
    ];
    for (what, pods, wanted) in cases {
        assert_eq!(deleted(pods, 1), [wanted], "{what}");
    }
    let crowded = vec![pod("a", "n", Some(9)), pod("b", "m", Some(9)), pod("c", "m", Some(9))];
    assert_eq!(deleted(crowded, 2), ["b"], "of the node with more of them");
}

#[test]
fn ended_and_terminating_pods_do_not_count() {
    let mut ended = pod("a", "n", None);
    ended["status"]["phase"] = json!("Failed");
    let mut going = pod("b", "n", Some(9));
    going["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    let outcome = reconcile(set(2), vec![ended, going, pod("c", "n", Some(9))], None);
    assert_eq!(verbs(&outcome), ["create Pod", "patch set"]);
    let status = &writes(&outcome)[1].1["status"];
    assert_eq!(status["replicas"], 1);
    assert_eq!(status["readyReplicas"], 1);
    assert_eq!(status["observedGeneration"], 2);
}

#[test]
fn pods_are_adopted_by_selector_and_released_when_they_no_longer_match() {
    let mut orphan = pod("orphan", "n", Some(9));
    orphan["metadata"]["ownerReferences"] = Value::Null;
    let mut relabelled = pod("relabelled", "n", Some(9));
    relabelled["metadata"]["labels"] = json!({"app": "debug"});
    let mut foreign = pod("foreign", "n", Some(9));
    foreign["metadata"]["ownerReferences"][0]["uid"] = json!("uid-other");
    let outcome = reconcile(set(1), vec![orphan, relabelled, foreign], None);
    let writes = writes(&outcome);
    assert_eq!(writes[0].0, "patch orphan");
    assert_eq!(writes[0].1["metadata"]["ownerReferences"][0]["uid"], "uid-set");
    assert_eq!(writes[1].0, "patch relabelled");
    assert_eq!(writes[1].1["metadata"]["ownerReferences"], Value::Null);
    assert!(writes.iter().all(|(verb, _)| verb != "create Pod"), "counted before it is adopted");
}

#[test]
fn a_refused_creation_is_probed_once_and_stands_in_the_status() {
    let message = "pods \"set-\" is forbidden: no".to_owned();
    let failure = LastFailure {
        verb: Verb::Create,
        failure: Failure { code: 403, message: message.clone(), ..Failure::default() },
    };
    let outcome = reconcile(set(7), vec![], Some(&failure));
    assert_eq!(verbs(&outcome), ["create Pod", "patch set"]);
    let condition = &writes(&outcome)[1].1["status"]["conditions"][0];
    assert_eq!(condition["type"], "ReplicaFailure");
    assert_eq!(condition["reason"], "FailedCreate");
    assert_eq!(condition["message"], json!(message));
}

#[test]
fn a_pod_is_available_only_after_min_ready_seconds() {
    let mut set = set(1);
    set["spec"]["minReadySeconds"] = json!(30);
    let outcome = reconcile(set, vec![pod("a", "n", Some(10))], None);
    let status = &writes(&outcome)[0].1["status"];
    assert_eq!((&status["readyReplicas"], &status["availableReplicas"]), (&json!(1), &Value::Null));
    assert_eq!(outcome.requeue_after.map(|wait| wait.as_secs()), Some(20));
}

#[test]
fn a_set_that_is_being_deleted_makes_no_pods() {
    let mut set = set(3);
    set["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    let outcome = reconcile(set, vec![], None);
    assert!(verbs(&outcome).iter().all(|verb| verb != "create Pod"));
}

#[test]
fn a_replication_controller_is_a_replica_set_with_a_plain_selector() {
    let mut controller = set(1);
    controller["spec"]["selector"] = json!({"app": "web"});
    let mut own = pod("a", "n", Some(9));
    own["metadata"]["ownerReferences"] = Value::Null;
    let mut other = own.clone();
    other["metadata"]["name"] = json!("b");
    other["metadata"]["labels"] = json!({"app": "other"});
    let objects = [(Kind::ReplicationController, controller), (Kind::Pod, own), (Kind::Pod, other)];
    let run = |snapshot: &crate::snapshot::Snapshot| {
        with_input(None, |input| {
            super::reconcile(&key(Kind::ReplicationController, "set"), snapshot, input)
        })
    };
    let outcome = run(&snapshot(objects.clone()));
    assert_eq!(verbs(&outcome), ["patch a", "patch set"], "the one that it selects is adopted");
    let outcome = run(&snapshot(objects.into_iter().take(1)));
    let (verb, body) = &writes(&outcome)[0];
    assert_eq!(verb, "create Pod");
    assert_eq!(body["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
    let told = outcome.steps[0].success.as_ref().expect("an event");
    assert_eq!((told.component, told.reason), ("replication-controller", "SuccessfulCreate"));
}
