use std::time::Duration;

use serde_json::{Value, json};

use model::Timestamp;
use model::cron::{Schedule, Zone};

use crate::fixtures::{NOW, key, snapshot, with_input, writes};
use crate::kind::Kind;
use crate::write::Outcome;

use super::times::{Due, Times};

/// The fixtures' time is 08:00:00 of a Friday.
fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(NOW.seconds() - seconds)
}

/// A CronJob of every five minutes that was made so many seconds ago.
fn cron(made: i64, spec: Value, status: Value) -> (Kind, Value) {
    let mut all = json!({
        "schedule": "*/5 * * * *",
        "concurrencyPolicy": "Allow",
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1,
        "jobTemplate": {
            "metadata": {"labels": {"app": "sum"}, "annotations": {"a": "b"}},
            "spec": {"backoffLimit": 2, "template": {"spec": {"restartPolicy": "Never"}}},
        },
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    let metadata = json!({"name": "sum", "creationTimestamp": ago(made)});
    (Kind::CronJob, json!({"metadata": metadata, "spec": all, "status": status}))
}

/// The Job that was made for a time so many seconds ago.
fn job(seconds: i64, end: &str) -> (Kind, Value) {
    let time = ago(seconds);
    let mut job = json!({
        "metadata": {
            "name": format!("sum-{}", time.seconds() / 60),
            "annotations": {"batch.kubernetes.io/cronjob-scheduled-timestamp": time},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "sum",
                "uid": "uid-sum", "controller": true}],
        },
        "status": {"startTime": time},
    });
    if !end.is_empty() {
        job["status"]["conditions"] = json!([{"type": end, "status": "True"}]);
    }
    if end == "Complete" {
        job["status"]["completionTime"] = json!(ago(seconds - 9));
    }
    (Kind::Job, job)
}

fn active(seconds: i64) -> Value {
    let name = format!("sum-{}", ago(seconds).seconds() / 60);
    json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "namespace": "d",
        "resourceVersion": "2", "uid": format!("uid-{name}")})
}

fn run(objects: Vec<(Kind, Value)>) -> Outcome {
    let snapshot = snapshot(objects);
    with_input(None, |input| super::reconcile(&key(Kind::CronJob, "sum"), &snapshot, input))
}

fn told(outcome: &Outcome) -> Vec<(&'static str, bool)> {
    let of_steps = outcome.steps.iter().filter_map(|step| step.success.as_ref());
    let all = of_steps.chain(&outcome.reports);
    all.map(|report| (report.reason, report.warning)).collect()
}

fn verbs(outcome: &Outcome) -> Vec<String> {
    crate::fixtures::verbs(outcome)
}

#[test]
fn a_job_is_made_at_its_time_and_only_then() {
    let early = run(vec![cron(100, json!({"schedule": "1 8 * * *"}), json!({}))]);
    assert_eq!(verbs(&early), [""; 0]);
    assert_eq!(early.requeue_after, Some(Duration::from_millis(60_100)));
    let due = run(vec![cron(100, json!({}), json!({}))]);
    assert_eq!(verbs(&due), ["create Job", "patch sum"]);
    assert!(due.in_order, "the time counts as done only behind the creation");
    assert_eq!(told(&due), [("SuccessfulCreate", false)]);
    assert_eq!(due.requeue_after, Some(Duration::from_millis(300_100)));
    let made = &writes(&due)[0].1;
    let minutes = NOW.seconds() / 60;
    assert_eq!(made["metadata"]["name"], format!("sum-{minutes}"));
    assert_eq!(made["metadata"]["labels"], json!({"app": "sum"}));
    let annotations =
        json!({"a": "b", "batch.kubernetes.io/cronjob-scheduled-timestamp": NOW.to_string()});
    assert_eq!(made["metadata"]["annotations"], annotations);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "uid-sum");
    assert_eq!(made["spec"]["backoffLimit"], 2);
    assert_eq!(writes(&due)[1].1["status"]["lastScheduleTime"], json!(NOW));
    let again = run(vec![cron(100, json!({}), json!({"lastScheduleTime": NOW}))]);
    assert_eq!(verbs(&again), [""; 0]);
    let paused = run(vec![cron(100, json!({"suspend": true}), json!({}))]);
    assert_eq!((verbs(&paused), paused.requeue_after), (vec![], None));
}

#[test]
fn clocks_are_those_of_the_zone() {
    let berlin = json!({"schedule": "0 9 * * *", "timeZone": "Europe/Berlin"});
    let made = &writes(&run(vec![cron(100, berlin, json!({}))]))[0].1.clone();
    let annotation = &made["metadata"]["annotations"][super::SCHEDULED];
    assert_eq!(annotation, "2027-01-15T09:00:00+01:00");
    let unknown = run(vec![cron(100, json!({"timeZone": "Europe/Atlantis"}), json!({}))]);
    assert_eq!((verbs(&unknown), told(&unknown)), (vec![], vec![("UnknownTimeZone", true)]));
    let odd = run(vec![cron(100, json!({"schedule": "often"}), json!({}))]);
    assert_eq!((verbs(&odd), told(&odd)), (vec![], vec![("UnparseableSchedule", true)]));
}

#[test]
fn a_killed_controller_goes_on_from_the_jobs_that_it_made() {
    // The Job is there, the status says nothing of it yet.
    let outcome = run(vec![cron(100, json!({}), json!({})), job(0, "")]);
    assert_eq!(verbs(&outcome), ["patch sum"]);
    let status = &writes(&outcome)[0].1["status"];
    assert_eq!(status["lastScheduleTime"], json!(NOW));
    assert_eq!(status["active"], json!([active(0)]));
}

#[test]
fn a_job_that_runs_means_what_the_policy_says() {
    let running = || json!({"lastScheduleTime": ago(300), "active": [active(300)]});
    let policy = |name: &str| cron(900, json!({"concurrencyPolicy": name}), running());
    let jobs = |name: &str| vec![policy(name), job(300, "")];
    let allow = run(jobs("Allow"));
    assert_eq!(verbs(&allow), ["create Job", "patch sum"]);
    let forbid = run(jobs("Forbid"));
    assert_eq!((verbs(&forbid), told(&forbid)), (vec![], vec![("JobAlreadyActive", false)]));
    assert!(forbid.requeue_after.is_some());
    let replace = run(jobs("Replace"));
    let name = format!("delete sum-{}", ago(300).seconds() / 60);
    assert_eq!(verbs(&replace), [name.as_str(), "create Job", "patch sum"]);
    assert_eq!(told(&replace), [("SuccessfulDelete", false), ("SuccessfulCreate", false)]);
    assert_eq!(writes(&replace)[2].1["status"]["active"], Value::Null);
    let ended = run(vec![policy("Forbid"), job(300, "Complete")]);
    let verbs = verbs(&ended);
    assert_eq!(verbs, ["patch sum", "create Job", "patch sum"], "its end is seen first");
    assert!(told(&ended).contains(&("SawCompletedJob", false)));
    let status = &writes(&ended)[0].1["status"];
    assert_eq!(status["active"], Value::Null);
    assert_eq!(status["lastSuccessfulTime"], json!(ago(291)));
}

#[test]
fn only_so_many_ended_jobs_are_kept_and_the_oldest_go() {
    let status = json!({"lastScheduleTime": NOW, "lastSuccessfulTime": ago(0)});
    let ended = |seconds: i64| job(seconds, "Complete");
    let failed = |seconds: i64| job(seconds, "Failed");
    let objects = vec![
        cron(9_000, json!({"successfulJobsHistoryLimit": 2}), status.clone()),
        ended(1_500),
        ended(600),
        failed(300),
        ended(2_100),
        failed(900),
        job(1_200, ""),
        ended(1_800),
    ];
    let outcome = run(objects);
    let name = |seconds: i64| format!("delete sum-{}", ago(seconds).seconds() / 60);
    assert_eq!(verbs(&outcome)[1..], [name(2_100), name(1_800), name(900)]);
    let all = cron(9_000, json!({"successfulJobsHistoryLimit": null}), status);
    let outcome = run(vec![all, ended(600), ended(900), ended(1_200), ended(1_500)]);
    assert_eq!(verbs(&outcome), [""; 0], "no limit, no clean-up");
}

#[test]
fn people_hear_of_jobs_that_are_missing_or_not_ours() {
    let gone = json!({"lastScheduleTime": NOW, "active": [active(300)]});
    let outcome = run(vec![cron(900, json!({}), gone)]);
    assert_eq!(told(&outcome), [("MissingJob", false)]);
    assert_eq!(writes(&outcome)[0].1["status"]["active"], Value::Null);
    let (kind, mut manual) = job(60, "");
    manual["metadata"]["name"] = json!("by-hand");
    manual["metadata"]["annotations"] = json!({"cronjob.kubernetes.io/instantiate": "manual"});
    let done = json!({"lastScheduleTime": NOW});
    let outcome = run(vec![cron(900, json!({}), done.clone()), (kind, manual.clone())]);
    assert_eq!((verbs(&outcome), told(&outcome)), (vec![], vec![("UnexpectedJob", true)]));
    manual["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
    manual["status"]["completionTime"] = json!(ago(5));
    let outcome = run(vec![cron(900, json!({}), done), (kind, manual)]);
    assert_eq!(writes(&outcome)[0].1["status"]["lastSuccessfulTime"], json!(ago(5)));
}

#[test]
fn of_missed_times_the_latest_is_made_up_for_within_the_deadline() {
    let late = json!({"schedule": "50 7 * * *"});
    let outcome = run(vec![cron(900, late, json!({}))]);
    let made = &writes(&outcome)[0].1.clone();
    assert_eq!(made["metadata"]["annotations"][super::SCHEDULED], json!(ago(600)));
    let deadline = json!({"schedule": "50 7 * * *", "startingDeadlineSeconds": 300});
    let outcome = run(vec![cron(900, deadline, json!({}))]);
    assert_eq!((verbs(&outcome), told(&outcome)), (vec![], vec![("MissSchedule", true)]));
    let message = &outcome.reports[0].message;
    let wanted = "Missed scheduled time to start a job: Fri, 15 Jan 2027 07:50:00 +0000";
    assert_eq!(message, wanted);
    let outcome = run(vec![cron(90_000, json!({"schedule": "* * * * *"}), json!({}))]);
    assert_eq!(told(&outcome), [("SuccessfulCreate", false), ("TooManyMissedTimes", true)]);
}

#[test]
fn the_latest_time_is_found_however_the_times_are_spread() {
    let due = |schedule: &str, since: i64| {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let times = Times { schedule: &schedule, zone: &Zone::UTC, now: ago(-10) };
        let Due { time, too_many } = times.latest(ago(since), None);
        let next = times.following(ago(since)).map(|next| next.seconds() - NOW.seconds());
        (time.map(|time| NOW.seconds() - time.seconds()), too_many, next)
    };
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    for (schedule, since, wanted) in [
        ("* * * * *", 5, (Some(0), false, Some(60))),
        ("* * * * *", -5, (None, false, Some(60))),
        ("* * * * *", 150 * 60, (Some(0), true, Some(60))),
        // Two times side by side in each hour: the first distance says little.
        ("20,21 * * * *", 5 * HOUR, (Some(39 * 60), true, Some(20 * 60))),
        ("0 7-8 * * *", 3 * DAY, (Some(0), false, Some(23 * HOUR))),
        // From the moment that it was made, not from whole minutes.
        ("@every 25m", 61 * 60, (Some(11 * 60), false, Some(14 * 60))),
        ("59 23 31 2 *", DAY, (None, false, None)),
    ] {
        assert_eq!(due(schedule, since), wanted, "{schedule}, {since} s ago");
    }
}
