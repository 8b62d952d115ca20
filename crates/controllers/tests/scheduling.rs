//! Who makes room for whom, and what others learn of it, in a cluster in memory.

mod cluster;

use std::time::Duration;

use cluster::Cluster;
use controllers::Kind;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn settle(cluster: &mut Cluster) {
    cluster.settle(SOON, |_| {});
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut all = object["status"]["conditions"].as_array()?.iter();
    all.find(|condition| condition["type"] == kind)
}

/// The pods of an app.
fn pods(cluster: &Cluster, app: &str) -> Vec<Value> {
    let all = cluster.all(Kind::Pod).into_iter();
    all.filter(|pod| pod["metadata"]["labels"]["app"] == app).collect()
}

fn told(cluster: &Cluster, reason: &str) -> Vec<String> {
    let events = cluster.all(Kind::Event).into_iter();
    let told = events.filter(|event| event["reason"] == reason);
    told.map(|event| cluster::text(&event["message"])).collect()
}

fn with_processors(seed: u64, nodes: usize) -> Cluster {
    let mut cluster = Cluster::new(seed, nodes);
    for index in 1..=nodes {
        let allocatable = json!({"allocatable": {"cpu": "4", "pods": "110"}});
        cluster.patch_status(Kind::Node, "", &format!("node{index}"), allocatable);
    }
    cluster
}

fn deployment(name: &str, replicas: i64, cpu: i64) -> Value {
    let mut body = cluster::deployment(name, replicas, "i");
    body["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": cpu}});
    body
}

#[test]
fn the_important_gets_its_place_and_the_rest_waits_whatever_the_order_of_things() {
    for seed in 0..20 {
        let mut cluster = with_processors(seed, 2);
        cluster.create("Deployment", "default", deployment("low", 4, 2));
        settle(&mut cluster);
        assert!(pods(&cluster, "low").iter().all(|pod| pod["spec"]["nodeName"].is_string()));
        let budget = json!({"metadata": {"name": "low"},
            "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "low"}}}});
        cluster.create("PodDisruptionBudget", "default", budget);
        let mut high = deployment("high", 1, 3);
        high["spec"]["template"]["spec"]["priorityClassName"] = json!("system-cluster-critical");
        cluster.create("Deployment", "default", high);
        if seed % 2 == 0 {
            settle(&mut cluster);
        } else {
            for _ in 0..40 {
                cluster.step();
            }
            cluster.restart_controllers();
            settle(&mut cluster);
        }
        let high = pods(&cluster, "high").pop().expect("the pod");
        let node = high["spec"]["nodeName"].as_str().expect("it has a place").to_owned();
        let low = pods(&cluster, "low");
        let placed = |pod: &&Value| pod["spec"]["nodeName"].is_string();
        assert_eq!((low.len(), low.iter().filter(placed).count()), (4, 2), "seed {seed}");
        assert!(low.iter().all(|pod| pod["spec"]["nodeName"] != json!(node)), "seed {seed}");
        for waiting in low.iter().filter(|pod| !placed(pod)) {
            let why = &condition(waiting, "PodScheduled").expect("it")["message"];
            let words = "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are \
                         available: 2 No preemption victims found for incoming pod.";
            assert_eq!(why, words, "seed {seed}");
        }
        let uid = cluster::text(&high["metadata"]["uid"]);
        let wanted = format!("Preempted by pod {uid} on node {node}");
        // Controllers that die take along what they were about to tell.
        if seed % 2 == 0 {
            assert_eq!(told(&cluster, "Preempted"), [&*wanted, &*wanted], "seed {seed}");
        }
        assert!(cluster.failures.is_empty(), "seed {seed}: {:?}", cluster.failures);
    }
}

#[test]
fn whoever_is_taken_away_is_told_why() {
    let mut cluster = with_processors(3, 2);
    let target = |cluster: &Cluster, name: &str| {
        let pod = cluster.get(Kind::Pod, "default", name)?;
        condition(&pod, "DisruptionTarget").map(|found| cluster::text(&found["reason"]))
    };
    // A finalizer keeps what is left of them to look at.
    for (name, node) in [("evicted", "node1"), ("tainted", "node1"), ("lost", "node2")] {
        let pod = json!({"metadata": {"name": name, "finalizers": ["example.org/look"]},
            "spec": {"nodeName": node, "tolerations": [],
                "containers": [{"name": "c", "image": "i"}]}});
        cluster.create("Pod", "default", pod);
    }
    settle(&mut cluster);
    cluster.evict("default", "evicted");
    let taint = json!({"key": "away", "effect": "NoExecute"});
    cluster.patch(Kind::Node, "", "node1", json!({"spec": {"taints": [taint]}}));
    settle(&mut cluster);
    cluster.dead_nodes.push("node2".to_owned());
    cluster.delete(Kind::Node, "", "node2", json!({}));
    cluster.pass(Duration::from_secs(60));
    for (name, reason) in [
        ("evicted", "EvictionByEvictionAPI"),
        ("tainted", "DeletionByTaintManager"),
        ("lost", "DeletionByPodGC"),
    ] {
        assert_eq!(target(&cluster, name).as_deref(), Some(reason), "{name}");
    }
    let lost = cluster.get(Kind::Pod, "default", "lost").expect("it is looked at");
    assert_eq!(lost["status"]["phase"], "Failed", "nobody else will say so");
}

#[test]
fn a_job_forgives_what_its_policy_excuses_and_nothing_else() {
    for (excused, failed) in [(true, false), (false, true)] {
        let mut cluster = with_processors(5, 1);
        let action = if excused { "Ignore" } else { "Count" };
        let rules = json!([{"action": action, "onPodConditions": [{"type": "DisruptionTarget"}]}]);
        let job = json!({"metadata": {"name": "sum"}, "spec": {"backoffLimit": 0,
            "podFailurePolicy": {"rules": rules},
            "template": {"metadata": {"labels": {"app": "sum"}}, "spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "stays"}]}}}});
        cluster.create("Job", "default", job);
        settle(&mut cluster);
        let first = cluster::text(&pods(&cluster, "sum").pop().expect("a pod")["metadata"]["name"]);
        cluster.evict("default", &first);
        cluster.settle(Duration::from_secs(60), |_| {});
        let job = cluster.get(Kind::Job, "default", "sum").expect("the job");
        let is_failed = condition(&job, "Failed").is_some_and(|found| found["status"] == "True");
        assert_eq!(is_failed, failed, "{action}: {}", job["status"]);
        assert_eq!(job["status"]["failed"].as_i64().unwrap_or(0), i64::from(failed), "{action}");
        let runs = pods(&cluster, "sum").iter().any(|pod| pod["metadata"]["name"] != first);
        assert_eq!(runs, excused, "{action}");
    }
}
