use serde_json::{Value, json};

use crate::fixtures::{key, pod, snapshot, writes};
use crate::kind::Kind;

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "creationTimestamp": "2026-11-20T00:00:00Z"}, "spec": spec})
}

fn object(spec: Value, pods: impl Iterator<Item = Value>) -> Value {
    let node = json!({"metadata": {"name": "node1"}});
    let pods = pods.map(|pod| (Kind::Pod, pod));
    let objects = [(Kind::Node, node), (Kind::Service, service(spec))].into_iter().chain(pods);
    let outcome = super::reconcile(&key(Kind::Service, "web"), &snapshot(objects));
    let mut writes = writes(&outcome);
    assert_eq!(writes.len(), 1, "{writes:#?}");
    writes.remove(0).1
}

fn numbered(index: usize, ready: bool) -> Value {
    let mut value = pod(&format!("p{index:04}"), "node1", ready.then_some(9));
    value["status"]["podIP"] = json!(format!("10.244.{}.{}", index / 250, index % 250 + 1));
    value
}

fn count(object: &Value, list: &str) -> usize {
    let subsets = object["subsets"].as_array().map(Vec::as_slice).unwrap_or_default();
    subsets.iter().map(|subset| subset[list].as_array().map_or(0, Vec::len)).sum()
}

#[test]
fn a_thousand_addresses_are_the_most_and_ready_ones_come_first() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    // (ready, not ready) → what stands there, and whether it says that it is not all
    for ((ready, unready), wanted, marked) in [
        ((600, 400), (600, 400), false),
        ((600, 401), (600, 400), true),
        ((999, 50), (999, 1), true),
        ((1001, 7), (1000, 0), true),
    ] {
        let pods = (0..ready + unready).map(|index| numbered(index, index < ready));
        let object = object(spec.clone(), pods);
        let found = (count(&object, "addresses"), count(&object, "notReadyAddresses"));
        assert_eq!(found, wanted, "{ready} and {unready}");
        let mark = &object["metadata"]["annotations"]["endpoints.kubernetes.io/over-capacity"];
        let wanted = if marked { json!("truncated") } else { Value::Null };
        assert_eq!(*mark, wanted, "{ready} and {unready}");
    }
}

#[test]
fn subsets_lose_the_same_part_each() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    let pods = (0..1200).map(|index| {
        let mut pod = numbered(index, true);
        let port = if index < 900 { 8080 } else { 9090 };
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(port);
        pod
    });
    let object = object(spec, pods);
    let sizes: Vec<(u64, usize)> = object["subsets"]
        .as_array()
        .expect("subsets")
        .iter()
        .map(|subset| {
            let port = subset["ports"][0]["port"].as_u64().unwrap_or_default();
            (port, subset["addresses"].as_array().map_or(0, Vec::len))
        })
        .collect();
    assert_eq!(sizes, [(8080, 750), (9090, 250)]);
}

#[test]
fn terminating_pods_are_left_out_unless_pods_are_wanted_whatever_their_state() {
    for (publish, wanted) in [(false, 0), (true, 1)] {
        let mut pod = numbered(1, true);
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}],
            "publishNotReadyAddresses": publish});
        let object = object(spec, [pod].into_iter());
        assert_eq!(count(&object, "addresses"), wanted, "publishNotReadyAddresses {publish}");
    }
}

#[test]
fn a_new_object_says_when_its_service_was_made() {
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    let object = object(spec, [numbered(1, true)].into_iter());
    let annotations = &object["metadata"]["annotations"];
    let time = &annotations["endpoints.kubernetes.io/last-change-trigger-time"];
    assert_eq!(*time, "2026-11-20T00:00:00Z");
}
