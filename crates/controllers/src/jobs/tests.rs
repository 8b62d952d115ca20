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

/// A pod that failed with an exit code, and conditions.
fn failed(name: &str, code: i32, conditions: &[&str]) -> Value {
    let mut pod = pod(name, "Failed", 30);
    pod["status"]["containerStatuses"] =
        json!([{"name": "c", "state": {"terminated": {"exitCode": code}}}]);
    let list = pod["status"]["conditions"].as_array_mut().expect("conditions");
    list.extend(conditions.iter().map(|kind| json!({"type": kind, "status": "True"})));
    pod
}

#[test]
fn a_failure_means_what_the_first_rule_that_fits_says() {
    let rules = json!([
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Count", "onExitCodes": {"operator": "In", "values": [3]}},
        {"action": "FailJob", "onExitCodes":
            {"containerName": "other", "operator": "In", "values": [4]}},
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "NotIn",
            "values": [1, 4]}},
    ]);
    let spec = json!({"parallelism": 1, "backoffLimit": 6, "podFailurePolicy": {"rules": rules}});
    let run = |pod: Value| run(job(spec.clone(), json!({"startTime": ago(99)})), vec![pod]);
    let noted = |outcome: &Outcome| status(outcome)["uncountedTerminatedPods"]["failed"].clone();
    for (code, conditions_of_pod, counts) in
        [(1, &[][..], true), (3, &[], true), (4, &[], true), (9, &["DisruptionTarget"], false)]
    {
        let outcome = run(failed("a", code, conditions_of_pod));
        let wanted = if counts { json!(["uid-a"]) } else { Value::Null };
        assert_eq!(noted(&outcome), wanted, "{code}");
        assert_eq!(conditions(&status(&outcome)), [], "{code}");
        let writes = if counts { vec!["create"] } else { vec!["release a", "create"] };
        assert_eq!(pod_writes(&outcome), writes, "{code}: one that does not count may go at once");
    }
    let outcome = run(failed("a", 9, &[]));
    let state = status(&outcome);
    assert_eq!(conditions(&state), pairs(&[("FailureTarget", "PodFailurePolicy")]));
    let message =
        "Container c for pod d/a failed with exit code 9 matching FailJob rule at index 3";
    assert_eq!(state["conditions"][0]["message"], message);
    // What it came to stays true when the pod is counted and gone.
    let mut target = state["conditions"][0].clone();
    target["lastTransitionTime"] = json!(ago(1));
    let begun = json!({"startTime": ago(99), "failed": 1, "conditions": [target]});
    let last = self::run(job(spec.clone(), begun), vec![]);
    let wanted = [("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")];
    assert_eq!(conditions(&status(&last)), pairs(&wanted));
    assert_eq!(status(&last)["conditions"][1]["message"], message);
    // Somebody deletes it: how it ends decides, not that.
    let mut going = pod("a", "Running", 5);
    going["metadata"]["deletionTimestamp"] = json!(ago(1));
    assert_eq!(pod_writes(&run(going)), [] as [&str; 0]);
}

/// A failed pod of an index that failed before, so many seconds ago.
fn failed_again(name: &str, index: i32, before: i32, seconds: i64) -> Value {
    let mut pod = indexed(failed(name, 1, &[]), index);
    pod["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] =
        json!(before.to_string());
    pod["status"]["conditions"][0]["lastTransitionTime"] = json!(ago(seconds));
    pod
}

#[test]
fn each_index_has_its_own_limit_and_its_own_pauses() {
    let spec = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3,
            "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
        for (field, value) in more.as_object().expect("fields") {
            spec[field] = value.clone();
        }
        spec
    };
    let started = json!({"startTime": ago(99)});
    let made = |outcome: &Outcome| -> Vec<(Value, Value)> {
        let pods = writes(outcome).into_iter().filter(|(verb, _)| verb == "create Pod");
        let note = |pod: &Value, name: &str| pod["metadata"]["annotations"][name].clone();
        pods.map(|(_, pod)| {
            (
                note(&pod, "batch.kubernetes.io/job-completion-index"),
                note(&pod, "batch.kubernetes.io/job-index-failure-count"),
            )
        })
        .collect()
    };
    let count = |index: &str, failures: &str| (json!(index), json!(failures));
    // 0 failed long ago and is tried again; 1 has to wait; 2 is new. Those whose successor is not
    // there yet stay uncounted: they know how often their index failed.
    let pods = vec![failed_again("a", 0, 0, 30), failed_again("b", 1, 0, 4)];
    let outcome = run(job(spec(json!({})), started.clone()), pods);
    assert_eq!(made(&outcome), [count("0", "1"), count("2", "0")]);
    assert_eq!(outcome.requeue_after, Some(std::time::Duration::from_secs(6)));
    let state = status(&outcome);
    assert_eq!(state["uncountedTerminatedPods"]["failed"], Value::Null);
    assert_eq!(state["failedIndexes"], "");
    // The successor is there: the first is counted.
    let pods = || vec![failed_again("a", 0, 0, 30), indexed(pod("n", "Running", 1), 0)];
    let state = status(&run(job(spec(json!({})), started.clone()), pods()));
    assert_eq!(state["uncountedTerminatedPods"]["failed"], json!(["uid-a"]));
    // The second failure is one too many for its index, but not for the Job.
    let lost = || vec![failed_again("a", 0, 1, 60), indexed(pod("n", "Running", 1), 1)];
    let outcome = run(job(spec(json!({})), started.clone()), lost());
    let state = status(&outcome);
    assert_eq!((&state["failedIndexes"], &state["conditions"]), (&json!("0"), &Value::Null));
    assert_eq!(made(&outcome), [count("2", "0")], "and no other takes it up");
    // More may not fail.
    let state = status(&run(job(spec(json!({"maxFailedIndexes": 0})), started.clone()), lost()));
    assert_eq!(conditions(&state), pairs(&[("FailureTarget", "MaxFailedIndexesExceeded")]));
    // Nothing is left to do.
    let rest = json!({"startTime": ago(99), "completedIndexes": "1,2", "succeeded": 2});
    let state = status(&run(job(spec(json!({})), rest), vec![failed_again("a", 0, 1, 60)]));
    assert_eq!(conditions(&state), pairs(&[("FailureTarget", "FailedIndexes")]));
    // A rule ends the work on an index at once.
    let rules = json!({"podFailurePolicy": {"rules": [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]}});
    let state = status(&run(job(spec(rules), started), vec![failed_again("a", 2, 0, 60)]));
    assert_eq!(state["failedIndexes"], "2");
}

#[test]
fn a_job_may_have_enough_before_all_is_done() {
    let spec = |rule: Value| {
        json!({"completionMode": "Indexed", "parallelism": 4, "completions": 4,
            "successPolicy": {"rules": [{"succeededIndexes": "3"}, rule]}})
    };
    let done = json!({"startTime": ago(9), "completedIndexes": "0,1", "succeeded": 2});
    let running = || vec![indexed(pod("r", "Running", 5), 2)];
    for (rule, met) in [
        (json!({"succeededCount": 2}), true),
        (json!({"succeededCount": 3}), false),
        (json!({"succeededIndexes": "0,1"}), true),
        (json!({"succeededIndexes": "0-2"}), false),
        (json!({"succeededIndexes": "0-2", "succeededCount": 2}), true),
    ] {
        let outcome = run(job(spec(rule.clone()), done.clone()), running());
        let state = status(&outcome);
        let wanted: &[(&str, &str)] =
            if met { &[("SuccessCriteriaMet", "SuccessPolicy")] } else { &[] };
        assert_eq!(conditions(&state), pairs(wanted), "{rule}");
        let is_stopped = pod_writes(&outcome).contains(&"delete r".to_owned());
        assert_eq!(is_stopped, met, "{rule}");
        if met {
            assert_eq!(state["conditions"][0]["message"], "Matched rules at index 1");
        }
    }
}

#[test]
fn a_job_that_somebody_else_runs_is_left_alone() {
    for (manager, writes) in [("acme.io/queue", 0), ("kubernetes.io/job-controller", 3)] {
        let outcome = run(job(json!({"managedBy": manager}), json!({})), vec![]);
        assert_eq!(outcome.steps.len(), writes, "{manager}");
    }
}
