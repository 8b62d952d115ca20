use serde_json::{Value, json};

use model::Timestamp;

use crate::fixtures::{NOW, key, snapshot, with_input, writes};
use crate::kind::Kind;
use crate::write::Outcome;

fn job(spec: Value, status: Value) -> Value {
    let mut all = json!({
        "parallelism": 2,
        "completions": 3,
        "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "uid-sum"}},
        "template": {
            "metadata": {"labels": {"batch.kubernetes.io/job-name": "sum",
                "batch.kubernetes.io/controller-uid": "uid-sum"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
        },
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    json!({"metadata": {"name": "sum"}, "spec": all, "status": status})
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(NOW.seconds() - seconds)
}

/// A pod of the Job that ended, or began, so many seconds ago.
fn pod(name: &str, phase: &str, seconds: i64) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"batch.kubernetes.io/job-name": "sum",
                "batch.kubernetes.io/controller-uid": "uid-sum"},
            "finalizers": ["batch.kubernetes.io/job-tracking"],
            "creationTimestamp": ago(seconds + 60),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "sum",
                "uid": "uid-sum", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "False",
            "lastTransitionTime": ago(seconds)}]},
    })
}

fn counted(name: &str, phase: &str, seconds: i64) -> Value {
    let mut pod = pod(name, phase, seconds);
    pod["metadata"]["finalizers"] = json!([]);
    pod
}

fn indexed(mut pod: Value, index: i32) -> Value {
    let name = "batch.kubernetes.io/job-completion-index";
    pod["metadata"]["annotations"] = json!({name: index.to_string()});
    pod
}

fn run(job: Value, pods: Vec<Value>) -> Outcome {
    let pods = pods.into_iter().map(|pod| (Kind::Pod, pod));
    let snapshot = snapshot([(Kind::Job, job)].into_iter().chain(pods));
    with_input(None, |input| super::reconcile(&key(Kind::Job, "sum"), &snapshot, input))
}

/// Writes to pods, in short: `create`, `delete NAME`, `release NAME`.
fn pod_writes(outcome: &Outcome) -> Vec<String> {
    let short = |(verb, body): (String, Value)| match verb.as_str() {
        "create Pod" => Some("create".to_owned()),
        verb if verb.starts_with("delete") => Some(verb.to_owned()),
        verb if body["metadata"].get("finalizers").is_some() => {
            Some(verb.replace("patch", "release"))
        }
        _ => None,
    };
    writes(outcome).into_iter().filter_map(short).collect()
}

fn status(outcome: &Outcome) -> Value {
    let last = writes(outcome).into_iter().last();
    last.map(|(_, body)| body["status"].clone()).unwrap_or_default()
}

/// The conditions of a status that are true, with their reasons.
fn conditions(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = status["conditions"].as_array().cloned().unwrap_or_default();
    let is_true = list.iter().filter(|one| one["status"] == "True");
    is_true.map(|one| (text(&one["type"]), text(&one["reason"]))).collect()
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    wanted.iter().map(|(kind, reason)| ((*kind).to_owned(), (*reason).to_owned())).collect()
}

#[test]
fn as_many_pods_run_as_are_still_wanted() {
    let running = |name: &str| pod(name, "Running", 5);
    let one_done = json!({"succeeded": 1, "startTime": ago(9)});
    let two_done = json!({"succeeded": 2, "startTime": ago(9)});
    for (what, spec, status, pods, wanted) in [
        ("as parallelism says", json!({}), json!({}), vec![], vec!["create", "create"]),
        ("one runs already", json!({}), json!({}), vec![running("a")], vec!["create"]),
        ("no more than are missing", json!({}), two_done, vec![], vec!["create"]),
        (
            "without completions, until one succeeds",
            json!({"completions": null}),
            one_done,
            vec![running("a")],
            vec![],
        ),
        (
            "fewer than before",
            json!({"parallelism": 1}),
            json!({}),
            vec![running("a"), running("b")],
            vec!["release a", "delete a"],
        ),
        (
            "none while it is suspended",
            json!({"suspend": true}),
            json!({}),
            vec![running("a")],
            vec!["release a", "delete a"],
        ),
        (
            "one that is going counts as failed, and is made anew",
            json!({"parallelism": 1}),
            json!({}),
            vec![{
                let mut going = running("a");
                going["metadata"]["deletionTimestamp"] = json!(ago(1));
                going
            }],
            vec!["create"],
        ),
        (
            "or not before it is gone",
            json!({"parallelism": 1, "podReplacementPolicy": "Failed"}),
            json!({}),
            vec![{
                let mut going = running("a");
                going["metadata"]["deletionTimestamp"] = json!(ago(1));
                going
            }],
            vec![],
        ),
    ] {
        assert_eq!(pod_writes(&run(job(spec, status), pods)), wanted, "{what}");
    }
}

#[test]
fn a_pod_that_ended_is_counted_once_whatever_is_interrupted() {
    let ended = || pod("a", "Succeeded", 5);
    let started = |rest: Value| {
        let mut status = json!({"startTime": ago(9)});
        for (name, value) in rest.as_object().into_iter().flatten() {
            status[name] = value.clone();
        }
        job(json!({"parallelism": 0}), status)
    };
    // Noted, not counted; the finalizer stays until that is written.
    let outcome = run(started(json!({})), vec![ended()]);
    assert_eq!(pod_writes(&outcome), [] as [&str; 0]);
    let noted = status(&outcome);
    assert_eq!(noted["uncountedTerminatedPods"]["succeeded"], json!(["uid-a"]));
    assert_eq!(noted["succeeded"], Value::Null);
    // Noted: it is let go.
    let uncounted = json!({"uncountedTerminatedPods": {"succeeded": ["uid-a"]}});
    let outcome = run(started(uncounted.clone()), vec![ended()]);
    assert_eq!(pod_writes(&outcome), ["release a"]);
    // Let go, or gone: counted.
    for pods in [vec![counted("a", "Succeeded", 5)], vec![]] {
        let done = status(&run(started(uncounted.clone()), pods));
        assert_eq!(done["succeeded"], 1);
        assert_eq!(done["uncountedTerminatedPods"]["succeeded"], Value::Null);
    }
    let outcome = run(started(json!({"succeeded": 1})), vec![counted("a", "Succeeded", 5)]);
    assert_eq!(status(&outcome), Value::Null, "and not once more");
}

#[test]
fn failures_are_borne_up_to_the_limit_with_growing_pauses() {
    let limit = |limit: i32, failed: i32| {
        job(
            json!({"backoffLimit": limit, "parallelism": 1}),
            json!({"failed": failed, "startTime": ago(99)}),
        )
    };
    let failed = |name: &str, seconds: i64| counted(name, "Failed", seconds);
    let outcome = run(limit(6, 1), vec![failed("a", 4)]);
    assert_eq!(pod_writes(&outcome), [] as [&str; 0]);
    assert_eq!(outcome.requeue_after, Some(std::time::Duration::from_secs(6)));
    let outcome = run(limit(6, 1), vec![failed("a", 10)]);
    assert_eq!(pod_writes(&outcome), ["create"]);
    let outcome = run(limit(6, 2), vec![failed("a", 90), failed("b", 10)]);
    assert_eq!(outcome.requeue_after, Some(std::time::Duration::from_secs(10)), "twice as long");
    let outcome = run(limit(1, 2), vec![failed("a", 90), failed("b", 60)]);
    let wanted = [("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")];
    assert_eq!(conditions(&status(&outcome)), pairs(&wanted));
    let told = outcome.steps.last().and_then(|step| step.success.clone()).expect("an event");
    assert_eq!(
        (told.reason, told.warning, told.message.as_str()),
        ("BackoffLimitExceeded", true, "Job has reached the specified backoff limit")
    );
}

#[test]
fn a_job_ends_when_its_pods_have() {
    let done = json!({"succeeded": 3, "startTime": ago(9)});
    let outcome = run(job(json!({}), done.clone()), vec![pod("late", "Running", 5)]);
    assert_eq!(pod_writes(&outcome), ["release late", "delete late"]);
    let first = ("SuccessCriteriaMet", "CompletionsReached");
    assert_eq!(conditions(&status(&outcome)), pairs(&[first]));
    let outcome = run(job(json!({}), done), vec![]);
    let state = status(&outcome);
    assert_eq!(conditions(&state), pairs(&[first, ("Complete", "CompletionsReached")]));
    assert_eq!(state["completionTime"], json!(NOW));
    let told = outcome.steps.last().and_then(|step| step.success.clone()).expect("an event");
    assert_eq!((told.reason, told.message.as_str()), ("Completed", "Job completed"));

    let deadline = |seconds: i64| {
        job(json!({"activeDeadlineSeconds": 60}), json!({"startTime": ago(seconds)}))
    };
    let outcome = run(deadline(20), vec![pod("a", "Running", 5), pod("b", "Running", 5)]);
    assert_eq!(outcome.requeue_after, Some(std::time::Duration::from_secs(40)));
    let outcome = run(deadline(60), vec![pod("a", "Running", 5)]);
    assert_eq!(pod_writes(&outcome), ["delete a"], "it is counted as failed");
    assert_eq!(conditions(&status(&outcome)), pairs(&[("FailureTarget", "DeadlineExceeded")]));
}

#[test]
fn indexes_are_worked_on_once_each() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4});
    let pods = vec![
        indexed(pod("a", "Succeeded", 5), 0),
        indexed(pod("b", "Running", 5), 2),
        indexed(counted("c", "Failed", 50), 1),
    ];
    let outcome = run(job(spec, json!({"startTime": ago(9), "failed": 1})), pods);
    let made: Vec<Value> = writes(&outcome)
        .into_iter()
        .filter(|(verb, _)| verb == "create Pod")
        .map(|(_, body)| body)
        .collect();
    let name = "batch.kubernetes.io/job-completion-index";
    let indexes: Vec<&Value> =
        made.iter().map(|pod| &pod["metadata"]["annotations"][name]).collect();
    assert_eq!(indexes, ["1", "3"]);
    assert_eq!(made[0]["spec"]["hostname"], "sum-1");
    assert_eq!(made[0]["metadata"]["generateName"], "sum-1-");
    assert_eq!(made[0]["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    let state = status(&outcome);
    assert_eq!((&state["completedIndexes"], &state["succeeded"]), (&json!("0"), &json!(1)));
}

#[test]
fn a_job_that_pauses_says_so_and_begins_anew() {
    let started = json!({"startTime": ago(9)});
    let paused = run(job(json!({"suspend": true}), started), vec![]);
    let state = status(&paused);
    assert_eq!(state["startTime"], Value::Null);
    assert_eq!(conditions(&state), pairs(&[("Suspended", "JobSuspended")]));
    let suspended = json!({"conditions": [{"type": "Suspended", "status": "True",
        "reason": "JobSuspended"}]});
    let resumed = run(job(json!({}), suspended), vec![]);
    assert_eq!(pod_writes(&resumed), ["create", "create"]);
    let state = status(&resumed);
    assert_eq!(state["startTime"], json!(NOW));
    assert_eq!(state["conditions"][0]["reason"], "JobResumed");
}

#[test]
fn a_job_that_ended_is_deleted_when_its_time_is_over() {
    let ended = |seconds: i64| {
        let conditions = json!([{"type": "Complete", "status": "True",
            "lastTransitionTime": ago(seconds)}]);
        job(json!({"ttlSecondsAfterFinished": 30}), json!({"conditions": conditions}))
    };
    let outcome = run(ended(10), vec![]);
    assert_eq!(outcome.requeue_after, Some(std::time::Duration::from_secs(20)));
    assert_eq!(pod_writes(&run(ended(30), vec![])), ["delete sum"]);
}

#[test]
fn pods_without_their_job_lose_the_finalizer() {
    let snapshot = snapshot([(Kind::Pod, pod("a", "Running", 5))]);
    let outcome =
        with_input(None, |input| super::reconcile(&key(Kind::Job, "sum"), &snapshot, input));
    assert_eq!(pod_writes(&outcome), ["release a"]);
}
