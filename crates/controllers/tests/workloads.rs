//! DaemonSets, StatefulSets and Jobs over the real store, with lagging watches: their limits hold at
//! every step, and they come to rest.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::{Cluster, node, pods, text};
use controllers::Kind;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn settle(cluster: &mut Cluster) {
    cluster.settle(SOON, |_| {});
    assert!(cluster.failures.is_empty(), "{:#?}", cluster.failures);
}

fn workload(name: &str, image: &str, spec: Value) -> Value {
    let mut all = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": template(name, image),
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": all})
}

fn template(name: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn set_image(cluster: &mut Cluster, kind: Kind, name: &str, image: &str) {
    let body = json!({"spec": {"template": template(name, image)}});
    cluster.patch(kind, "default", name, body);
}

/// Ready pods that are not being deleted.
fn ready(cluster: &Cluster, app: &str) -> i64 {
    pods(cluster, app).1
}

/// The image of each pod that stays, by pod name or node.
fn images(cluster: &Cluster, app: &str, by: &str) -> BTreeMap<String, String> {
    let pods = cluster.all(Kind::Pod).into_iter();
    pods.filter(|pod| {
        pod["metadata"]["labels"]["app"] == app && pod["metadata"]["deletionTimestamp"].is_null()
    })
    .map(|pod| {
        let place = pod.pointer(by).map(text).unwrap_or_default();
        (place, text(&pod["spec"]["containers"][0]["image"]))
    })
    .collect()
}

fn told(cluster: &Cluster, kind: &str) -> BTreeSet<String> {
    let events = cluster.all(Kind::Event).into_iter();
    events
        .filter(|event| event["involvedObject"]["kind"] == kind)
        .map(|event| text(&event["reason"]))
        .collect()
}

/// Of many pods that no quota lets in only a few are tried: they begin slowly.
#[test]
fn a_quota_refuses_a_few_pods_of_many_and_the_workload_says_so() {
    let job = json!({"metadata": {"name": "many", "namespace": "default"}, "spec": {
        "parallelism": 90, "completions": 90, "template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}});
    let set = workload("many", "i", json!({"replicas": 90}));
    for (kind, body) in [("ReplicaSet", set), ("Job", job)] {
        for seed in 0..5 {
            let mut cluster = Cluster::new(seed, 0);
            let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "5"}}});
            cluster.create("ResourceQuota", "default", quota);
            cluster.create(kind, "default", body.clone());
            cluster.settle(Duration::ZERO, |_| {});
            assert_eq!(cluster.all(Kind::Pod).len(), 5, "{kind} {seed}");
            // The third batch meets the quota with two of its four; changes of the pods that were
            // made may each lead to one try more.
            let refused = cluster.failures.len();
            assert!((2..20).contains(&refused), "{kind} {seed}: {refused}");
            let is_other = |failure: &&String| !failure.contains("exceeded quota: few");
            assert_eq!(cluster.failures.iter().find(is_other), None);
            let expected = ["FailedCreate", "SuccessfulCreate"].map(str::to_owned);
            assert_eq!(told(&cluster, kind), expected.into(), "{kind} {seed}");
        }
    }
}

#[test]
fn a_daemon_set_has_a_pod_on_each_node_whatever_nodes_come_and_go() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 3);
        cluster.create("DaemonSet", "default", workload("agent", "a", json!({})));
        settle(&mut cluster);
        let on = |cluster: &Cluster| -> Vec<String> {
            images(cluster, "agent", "/spec/nodeName").into_keys().collect()
        };
        assert_eq!(on(&cluster), ["node1", "node2", "node3"], "seed {seed}");
        let status =
            cluster.get(Kind::DaemonSet, "default", "agent").expect("it")["status"].clone();
        for field in [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ] {
            assert_eq!(status[field], 3, "seed {seed}: {field}");
        }
        assert_eq!(status["numberMisscheduled"], 0, "seed {seed}");
        cluster.create("Node", "", node("node4"));
        let label = json!({"metadata": {"labels": {"gone": "yes"}}});
        cluster.patch(Kind::Node, "", "node1", label);
        settle(&mut cluster);
        assert_eq!(on(&cluster).len(), 4, "seed {seed}");
        assert_eq!(told(&cluster, "DaemonSet"), BTreeSet::from(["SuccessfulCreate".into()]));
        cluster.restart_controllers();
        settle(&mut cluster);
        assert!(cluster.writes.is_empty(), "seed {seed}: {:#?}", cluster.writes);
    }
}

#[test]
fn an_update_of_a_daemon_set_keeps_its_limits_at_every_step() {
    for seed in 0..20 {
        let surge = seed % 2 == 1;
        let (unavailable, more) = if surge { (0, 1) } else { (1, 0) };
        let update = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate":
            {"maxUnavailable": unavailable, "maxSurge": more}}});
        let mut cluster = Cluster::new(seed, 4);
        cluster.create("DaemonSet", "default", workload("agent", "a", update));
        settle(&mut cluster);
        set_image(&mut cluster, Kind::DaemonSet, "agent", "b");
        cluster.settle(SOON, |cluster| {
            let (all, ready) = pods(cluster, "agent");
            assert!(ready >= 4 - unavailable, "seed {seed}: {ready} ready");
            assert!(all <= 4 + more, "seed {seed}: {all} pods");
        });
        assert!(cluster.failures.is_empty(), "seed {seed}: {:#?}", cluster.failures);
        let images = images(&cluster, "agent", "/spec/nodeName");
        assert_eq!(images.len(), 4, "seed {seed}");
        assert!(images.values().all(|image| image == "b"), "seed {seed}: {images:?}");
        assert_eq!(ready(&cluster, "agent"), 4, "seed {seed}");
    }
}

#[test]
fn an_old_template_that_comes_back_takes_its_revision_along() {
    for kind in [Kind::DaemonSet, Kind::StatefulSet] {
        let mut cluster = Cluster::new(4, 2);
        cluster.create(kind.row().name, "default", workload("w", "a", json!({})));
        for image in ["b", "a"] {
            settle(&mut cluster);
            set_image(&mut cluster, kind, "w", image);
        }
        settle(&mut cluster);
        let revisions = cluster.all(Kind::ControllerRevision);
        let numbers: BTreeMap<String, i64> = revisions
            .iter()
            .map(|revision| {
                let image = "/data/spec/template/spec/containers/0/image";
                let image = revision.pointer(image).map(text).unwrap_or_default();
                (image, revision["revision"].as_i64().unwrap_or_default())
            })
            .collect();
        assert_eq!(numbers, BTreeMap::from([("a".into(), 3), ("b".into(), 2)]), "{kind:?}");
        cluster.delete(kind, "default", "w", json!({"propagationPolicy": "Background"}));
        settle(&mut cluster);
        let left = cluster.all(Kind::ControllerRevision).len() + cluster.all(Kind::Pod).len();
        assert_eq!(left, 0, "{kind:?}");
    }
}

#[test]
fn old_revisions_are_forgotten_beyond_the_limit() {
    let mut cluster = Cluster::new(5, 1);
    let limit = json!({"revisionHistoryLimit": 2});
    cluster.create("DaemonSet", "default", workload("agent", "0", limit));
    for image in 1..6 {
        settle(&mut cluster);
        set_image(&mut cluster, Kind::DaemonSet, "agent", &image.to_string());
    }
    settle(&mut cluster);
    let mut numbers: Vec<i64> = cluster
        .all(Kind::ControllerRevision)
        .iter()
        .filter_map(|revision| revision["revision"].as_i64())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [4, 5, 6]);
}

#[test]
fn a_stateful_set_is_made_scaled_and_updated_in_order() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 2);
        let spec = json!({"replicas": 4, "serviceName": "db"});
        cluster.create("StatefulSet", "default", workload("db", "a", spec));
        // No pod before the one below it is ready.
        cluster.settle(SOON, |cluster| {
            let (all, ready) = pods(cluster, "db");
            assert!(all <= ready + 1, "seed {seed}: {all} pods, {ready} ready");
        });
        let names = |cluster: &Cluster| -> Vec<String> {
            images(cluster, "db", "/metadata/name").into_keys().collect()
        };
        assert_eq!(names(&cluster), ["db-0", "db-1", "db-2", "db-3"], "seed {seed}");
        set_image(&mut cluster, Kind::StatefulSet, "db", "b");
        cluster.settle(SOON, |cluster| {
            assert!(ready(cluster, "db") >= 3, "seed {seed}");
            let images = images(cluster, "db", "/metadata/name");
            let first_new = images.iter().find(|(_, image)| *image == "b");
            let rest_is_new = first_new.is_none_or(|(first, _)| {
                images.iter().filter(|(name, _)| *name > first).all(|(_, image)| image == "b")
            });
            assert!(rest_is_new, "seed {seed}: {images:?}");
        });
        let status = cluster.get(Kind::StatefulSet, "default", "db").expect("it")["status"].clone();
        assert_eq!(status["currentRevision"], status["updateRevision"], "seed {seed}");
        assert_eq!(status["updatedReplicas"], 4, "seed {seed}");
        cluster.patch(Kind::StatefulSet, "default", "db", json!({"spec": {"replicas": 1}}));
        settle(&mut cluster);
        assert_eq!(names(&cluster), ["db-0"], "seed {seed}");
        assert_eq!(
            told(&cluster, "StatefulSet"),
            BTreeSet::from(["SuccessfulCreate".into(), "SuccessfulDelete".into()])
        );
        cluster.restart_controllers();
        settle(&mut cluster);
        assert!(cluster.writes.is_empty(), "seed {seed}: {:#?}", cluster.writes);
    }
}

#[test]
fn an_update_never_takes_more_pods_than_may_be_unavailable() {
    for (seed, policy) in (0..6).zip(["Parallel", "OrderedReady"].into_iter().cycle()) {
        let mut cluster = Cluster::new(seed, 2);
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "40%"}});
        let spec = json!({"replicas": 5, "podManagementPolicy": policy, "updateStrategy": rolling});
        cluster.create("StatefulSet", "default", workload("db", "a", spec));
        settle(&mut cluster);
        set_image(&mut cluster, Kind::StatefulSet, "db", "b");
        let mut fewest = 5;
        cluster.settle(SOON, |cluster| fewest = fewest.min(ready(cluster, "db")));
        assert_eq!(fewest, 3, "{policy} {seed}");
        let images = images(&cluster, "db", "/metadata/name");
        assert!(images.len() == 5 && images.values().all(|image| image == "b"), "{images:?}");
    }
}

#[test]
fn a_partition_holds_an_update_back_until_it_is_lowered() {
    let mut cluster = Cluster::new(6, 2);
    let update = |partition: i32| {
        json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"partition": partition}}})
    };
    cluster.create("StatefulSet", "default", workload("db", "a", update(2)));
    settle(&mut cluster);
    set_image(&mut cluster, Kind::StatefulSet, "db", "b");
    settle(&mut cluster);
    let now = |cluster: &Cluster| -> Vec<String> {
        images(cluster, "db", "/metadata/name").into_values().collect()
    };
    assert_eq!(now(&cluster), ["a", "a", "b"]);
    // One below the partition comes back as it was.
    cluster.delete(Kind::Pod, "default", "db-0", json!({}));
    settle(&mut cluster);
    assert_eq!(now(&cluster), ["a", "a", "b"]);
    cluster.patch(Kind::StatefulSet, "default", "db", json!({"spec": update(0)}));
    settle(&mut cluster);
    assert_eq!(now(&cluster), ["b", "b", "b"]);
}

fn job(name: &str, image: &str, spec: Value) -> Value {
    let mut all = json!({"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": image}]}}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": all})
}

fn is_true(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|found| found["type"] == kind && found["status"] == "True")
}

#[test]
fn every_pod_of_a_job_is_counted_once_though_controllers_die_anywhere() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 2);
        let mode = if seed % 2 == 0 { "NonIndexed" } else { "Indexed" };
        let spec = json!({"completions": 5, "parallelism": 2, "completionMode": mode});
        cluster.create("Job", "default", job("sum", "works", spec));
        for _ in 0..3 {
            for _ in 0..cluster.seed.below(120) {
                cluster.step();
            }
            cluster.restart_controllers();
        }
        cluster.settle(SOON, |cluster| {
            let pods = cluster.all(Kind::Pod);
            let running = pods.iter().filter(|pod| {
                let phase = pod["status"]["phase"].as_str().unwrap_or_default();
                phase != "Succeeded" && pod["metadata"]["deletionTimestamp"].is_null()
            });
            assert!(running.count() <= 2, "seed {seed}");
        });
        assert!(cluster.failures.is_empty(), "seed {seed}: {:#?}", cluster.failures);
        let job = cluster.get(Kind::Job, "default", "sum").expect("it");
        assert_eq!(job["status"]["succeeded"], 5, "seed {seed}: {}", job["status"]);
        assert!(is_true(&job, "Complete"), "seed {seed}");
        assert_eq!(job["status"]["active"], Value::Null, "seed {seed}");
        if mode == "Indexed" {
            assert_eq!(job["status"]["completedIndexes"], "0-4", "seed {seed}");
        }
        let pods = cluster.all(Kind::Pod);
        assert_eq!(pods.len(), 5, "seed {seed}");
        let held = pods.iter().filter(|pod| pod["metadata"]["finalizers"].is_array());
        assert_eq!(held.count(), 0, "seed {seed}");
        cluster.delete(Kind::Job, "default", "sum", json!({"propagationPolicy": "Background"}));
        settle(&mut cluster);
        assert!(cluster.all(Kind::Pod).is_empty(), "seed {seed}");
    }
}

#[test]
fn a_job_that_always_fails_is_given_up_and_one_that_goes_leaves_no_pod() {
    let mut cluster = Cluster::new(7, 2);
    cluster.create("Job", "default", job("bad", "fails", json!({"backoffLimit": 2})));
    cluster.pass(Duration::from_secs(28));
    let bad = cluster.get(Kind::Job, "default", "bad").expect("it");
    assert_eq!(bad["status"]["failed"], 2, "the third waits: {}", bad["status"]);
    cluster.pass(Duration::from_secs(7));
    let bad = cluster.get(Kind::Job, "default", "bad").expect("it");
    assert_eq!(bad["status"]["failed"], 3, "{}", bad["status"]);
    assert!(is_true(&bad, "Failed") && is_true(&bad, "FailureTarget"), "{}", bad["status"]);
    assert!(told(&cluster, "Job").contains("BackoffLimitExceeded"));
    // Deleted in the middle of its work.
    cluster.pods_become_ready = false;
    cluster.create("Job", "default", job("long", "works", json!({"parallelism": 3})));
    cluster.settle(Duration::ZERO, |_| {});
    cluster.delete(Kind::Job, "default", "long", json!({"propagationPolicy": "Background"}));
    settle(&mut cluster);
    let left = cluster.all(Kind::Pod).len();
    assert_eq!(left, 3, "those of the other Job");
}

#[test]
fn every_failure_of_an_index_is_counted_once_though_controllers_die_anywhere() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 2);
        let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed",
            "backoffLimitPerIndex": 1});
        cluster.create("Job", "default", job("sum", "fails", spec));
        for _ in 0..4 {
            for _ in 0..cluster.seed.below(80) {
                cluster.step();
            }
            cluster.restart_controllers();
            cluster.settle(Duration::from_secs(8), |_| {});
        }
        cluster.settle(Duration::from_secs(120), |_| {});
        assert!(cluster.failures.is_empty(), "seed {seed}: {:#?}", cluster.failures);
        let job = cluster.get(Kind::Job, "default", "sum").expect("it");
        let status = &job["status"];
        assert_eq!(
            (&status["failed"], &status["failedIndexes"]),
            (&json!(6), &json!("0-2")),
            "seed {seed}: {status}"
        );
        assert!(is_true(&job, "Failed"), "seed {seed}: {status}");
        let held = cluster.all(Kind::Pod);
        let held = held.iter().filter(|pod| pod["metadata"]["finalizers"].is_array());
        assert_eq!(held.count(), 0, "seed {seed}");
    }
}

/// The Jobs of a CronJob that came to their end, or not.
fn cron_jobs(cluster: &Cluster, ended: bool) -> usize {
    let jobs = cluster.all(Kind::Job).into_iter();
    jobs.filter(|job| (is_true(job, "Complete") || is_true(job, "Failed")) == ended).count()
}

#[test]
fn a_cron_job_makes_each_job_once_though_controllers_die_anywhere() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 2);
        let template = job("", "works", json!({}))["spec"].clone();
        let spec = json!({"schedule": "*/2 * * * *", "successfulJobsHistoryLimit": 2,
            "jobTemplate": {"spec": template}});
        let body = json!({"metadata": {"name": "sum", "namespace": "default"}, "spec": spec});
        cluster.create("CronJob", "default", body);
        let made = |cluster: &Cluster| -> BTreeSet<String> {
            let jobs = cluster.all(Kind::Job).into_iter();
            jobs.map(|job| text(&job["metadata"]["name"])).collect()
        };
        let mut seen = BTreeSet::new();
        for _ in 0..25 {
            cluster.pass(Duration::from_secs(20));
            // Watches lag again, and whoever made a Job knows no more of it.
            for _ in 0..cluster.seed.below(30) {
                cluster.step();
            }
            seen.extend(made(&cluster));
            cluster.restart_controllers();
        }
        cluster.pass(Duration::from_secs(15));
        seen.extend(made(&cluster));
        assert!(cluster.failures.is_empty(), "seed {seed}: {:#?}", cluster.failures);
        // 515 seconds from 08:00:00 on.
        let first = 1_800_000_000 / 60;
        let wanted: BTreeSet<String> =
            [2, 4, 6, 8].map(|minute| format!("sum-{}", first + minute)).into();
        assert_eq!(seen, wanted, "seed {seed}");
        assert_eq!((cron_jobs(&cluster, true), cron_jobs(&cluster, false)), (2, 0), "seed {seed}");
        let status = cluster.get(Kind::CronJob, "default", "sum").expect("it")["status"].take();
        assert_eq!(status["lastScheduleTime"], "2027-01-15T08:08:00Z", "seed {seed}: {status}");
        assert_eq!(status["active"], Value::Null, "seed {seed}: {status}");
        assert!(status["lastSuccessfulTime"].is_string(), "seed {seed}: {status}");
        let reasons = ["SawCompletedJob", "SuccessfulCreate", "SuccessfulDelete"];
        assert!(told(&cluster, "CronJob").is_superset(&reasons.map(String::from).into()));
        let options = json!({"propagationPolicy": "Background"});
        cluster.delete(Kind::CronJob, "default", "sum", options);
        settle(&mut cluster);
        assert_eq!(cluster.all(Kind::Job).len() + cluster.all(Kind::Pod).len(), 0, "seed {seed}");
    }
}
