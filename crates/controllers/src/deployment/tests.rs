use serde_json::{Value, json};

use crate::controller::{LastFailure, Verb};
use crate::fixtures::{key, snapshot, verbs, with_input, writes};
use crate::kind::Kind;
use crate::write::{Failure, Outcome};

fn deployment(replicas: i64, image: &str) -> Value {
    json!({
        "metadata": {"name": "web", "generation": 3},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(image),
        },
    })
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A ReplicaSet of `web`, scaled when the Deployment wanted `desired` with a surge of `surge`.
fn set(name: &str, image: &str, replicas: i64, desired: i64, surge: i64) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": "web"},
            "creationTimestamp": if image == "old" { "2026-11-20T00:00:00Z" } else { "2026-11-21T00:00:00Z" },
            "annotations": {
                "deployment.kubernetes.io/revision": if image == "old" { "1" } else { "2" },
                "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                "deployment.kubernetes.io/max-replicas": (desired + surge).to_string(),
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
                "uid": "uid-web", "controller": true}],
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": template(image)},
        "status": {"replicas": replicas, "availableReplicas": replicas},
    })
}

fn reconcile(deployment: Value, sets: Vec<Value>) -> Outcome {
    let sets = sets.into_iter().map(|set| (Kind::ReplicaSet, set));
    let snapshot = snapshot([(Kind::Deployment, deployment)].into_iter().chain(sets));
    with_input(None, |input| super::reconcile(&key(Kind::Deployment, "web"), &snapshot, input))
}

fn scaled(outcome: &Outcome) -> Vec<(String, Value)> {
    writes(outcome)
        .into_iter()
        .filter(|(_, body)| !body["spec"]["replicas"].is_null())
        .map(|(verb, body)| (verb, body["spec"]["replicas"].clone()))
        .collect()
}

#[test]
fn the_first_replica_set_is_named_by_its_template() {
    let outcome = reconcile(deployment(3, "new"), vec![]);
    let writes = writes(&outcome);
    let (verb, body) = &writes[0];
    assert_eq!(verb, "create ReplicaSet");
    let hash = body["metadata"]["labels"]["pod-template-hash"].as_str().expect("a hash");
    assert_eq!(body["metadata"]["name"], json!(format!("web-{hash}")));
    assert_eq!(
        body["spec"]["selector"]["matchLabels"],
        json!({"app": "web", "pod-template-hash": hash})
    );
    assert_eq!(body["spec"]["template"]["metadata"]["labels"]["pod-template-hash"], json!(hash));
    let wanted = json!({
        "deployment.kubernetes.io/revision": "1",
        "deployment.kubernetes.io/desired-replicas": "3",
        "deployment.kubernetes.io/max-replicas": "4",
    });
    assert_eq!(body["metadata"]["annotations"], wanted);
    let revision = &writes[1].1["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
    assert_eq!(revision, "1");
}

#[test]
fn a_taken_name_counts_as_a_collision_and_the_next_name_differs() {
    let made = reconcile(deployment(1, "new"), vec![]);
    let name = writes(&made)[0].1["metadata"]["name"].clone();
    let mut foreign = set("x", "other", 1, 1, 1);
    foreign["metadata"]["name"] = name.clone();
    foreign["metadata"]["ownerReferences"][0]["uid"] = json!("uid-else");
    let outcome = reconcile(deployment(1, "new"), vec![foreign.clone()]);
    assert_eq!(verbs(&outcome), ["patch web"]);
    assert_eq!(writes(&outcome)[0].1["status"]["collisionCount"], 1);
    let mut counted = deployment(1, "new");
    counted["status"] = json!({"collisionCount": 1});
    let outcome = reconcile(counted, vec![foreign]);
    assert_ne!(writes(&outcome)[0].1["metadata"]["name"], name);
}

#[test]
fn a_refused_replica_set_is_told_in_the_condition_that_rollouts_are_judged_by() {
    let message = "replicasets.apps \"web\" is forbidden: no".to_owned();
    let last = LastFailure {
        verb: Verb::Create,
        failure: Failure { code: 403, message: message.clone(), ..Failure::default() },
    };
    let mut body = deployment(1, "new");
    body["spec"]["progressDeadlineSeconds"] = json!(600);
    let snapshot = snapshot([(Kind::Deployment, body)]);
    let key = key(Kind::Deployment, "web");
    let outcome = with_input(Some(&last), |input| super::reconcile(&key, &snapshot, input));
    assert_eq!(verbs(&outcome)[0], "create ReplicaSet", "it is tried again");
    let status = writes(&outcome).pop().expect("a status").1;
    let conditions = status["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let progressing = conditions.iter().find(|one| one["type"] == "Progressing").expect("it");
    assert_eq!(progressing["status"], "False");
    assert_eq!(progressing["reason"], "ReplicaSetCreateError");
    assert_eq!(progressing["message"], json!(message));
}

#[test]
fn a_scaled_rollout_keeps_its_proportions() {
    // In the middle of a rollout of 10 (surge 3): 8 old, 5 new; then 20 are wanted (surge 5).
    let sets = || vec![set("old", "old", 8, 10, 3), set("new", "new", 5, 10, 3)];
    let mut up = scaled(&reconcile(deployment(20, "new"), sets()));
    up.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(up, [("patch new".into(), json!(10)), ("patch old".into(), json!(15))]);
    let mut down = scaled(&reconcile(deployment(5, "new"), sets()));
    down.sort_by(|one, other| one.0.cmp(&other.0));
    let sum: i64 = down.iter().filter_map(|(_, replicas)| replicas.as_i64()).sum();
    assert_eq!(sum, 7, "5 and a surge of 2: {down:?}");
    assert_eq!(down.len(), 2, "both shrink: {down:?}");
    let mut none = scaled(&reconcile(deployment(0, "new"), sets()));
    none.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(none, [("patch new".into(), json!(0)), ("patch old".into(), json!(0))]);
}

#[test]
fn copied_annotations_leave_out_what_is_the_deployment_s_own() {
    let mut body = deployment(1, "new");
    body["metadata"]["annotations"] = json!({
        "kubernetes.io/change-cause": "because",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    });
    let outcome = reconcile(body, vec![]);
    let annotations = &writes(&outcome)[0].1["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/change-cause"], "because");
    assert!(annotations.get("kubectl.kubernetes.io/last-applied-configuration").is_none());
}
