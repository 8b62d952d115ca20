//! S-12: hints by `trafficDistribution` and by processors.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::fixtures::{key, pod, snapshot, with_input, writes};
use crate::kind::{Kind, ObjectKey};
use crate::snapshot::Change;
use crate::write::Outcome;

const AUTO: &str = "service.kubernetes.io/topology-mode";

fn service(distribution: &str, mode: &str) -> (Kind, Value) {
    let mut value = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
    });
    if !distribution.is_empty() {
        value["spec"]["trafficDistribution"] = json!(distribution);
    }
    if !mode.is_empty() {
        value["metadata"]["annotations"] = json!({AUTO: mode});
    }
    (Kind::Service, value)
}

fn node(name: &str, zone: &str, cpu: &str) -> (Kind, Value) {
    let labels =
        if zone.is_empty() { json!({}) } else { json!({crate::selected_pods::ZONE_LABEL: zone}) };
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}],
        "allocatable": {"cpu": cpu}});
    (Kind::Node, json!({"metadata": {"name": name, "labels": labels}, "status": status}))
}

fn on(node: &str, index: usize, ready: bool) -> (Kind, Value) {
    let mut value = pod(&format!("p{index:03}"), node, ready.then_some(9));
    value["status"]["podIP"] = json!(format!("10.244.0.{}", index + 1));
    (Kind::Pod, value)
}

fn reconcile(objects: Vec<(Kind, Value)>) -> Outcome {
    with_input(None, |input| {
        super::reconcile(&key(Kind::Service, "web"), &snapshot(objects), input.config)
    })
}

fn hints(outcome: &Outcome) -> Vec<Value> {
    let writes = writes(outcome);
    let endpoints = writes.iter().filter_map(|(_, body)| body["endpoints"].as_array()).flatten();
    endpoints.map(|endpoint| endpoint["hints"].clone()).collect()
}

fn stored(outcome: &Outcome) -> Vec<(Kind, Value)> {
    let bodies = writes(outcome).into_iter().enumerate();
    let named = bodies.map(|(index, (_, mut body))| {
        body["metadata"]["name"] = json!(format!("web-{index}"));
        (Kind::EndpointSlice, body)
    });
    named.collect()
}

/// How many endpoints are meant for each zone.
fn zones(outcome: &Outcome) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for hint in hints(outcome) {
        let zone = hint["forZones"][0]["name"].as_str().unwrap_or("none");
        *counts.entry(zone.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn traffic_distribution_gives_ready_endpoints_their_own_place() {
    let zone = json!({"forZones": [{"name": "a"}]});
    let both = json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]});
    let node_only = json!({"forNodes": [{"name": "n2"}]});
    // (trafficDistribution, mode) → hints of a ready pod in a zone, of one that is not ready, and
    // of a ready one on a node without a zone
    for (distribution, mode, wanted) in [
        ("", "", [Value::Null, Value::Null, Value::Null]),
        ("PreferClose", "", [zone.clone(), Value::Null, Value::Null]),
        ("PreferSameZone", "", [zone.clone(), Value::Null, Value::Null]),
        ("PreferSameZone", "Disabled", [zone.clone(), Value::Null, Value::Null]),
        ("PreferSameNode", "", [both, Value::Null, node_only]),
        ("PreferFar", "", [Value::Null, Value::Null, Value::Null]),
        // The annotation wins, and has no place for these three.
        ("PreferClose", "Auto", [Value::Null, Value::Null, Value::Null]),
    ] {
        let objects = vec![
            service(distribution, mode),
            node("n1", "a", "4"),
            node("n2", "", "4"),
            on("n1", 1, true),
            on("n1", 2, false),
            on("n2", 3, true),
        ];
        let outcome = reconcile(objects.clone());
        assert_eq!(hints(&outcome), wanted, "{distribution} {mode}");
        let again = reconcile([objects, stored(&outcome)].concat());
        assert!(again.steps.is_empty(), "{distribution} {mode}: nothing changed");
    }
}

#[test]
fn hints_go_when_they_are_no_longer_asked_for() {
    let cluster = vec![node("n1", "a", "4"), on("n1", 1, true)];
    let before = [vec![service("PreferClose", "")], cluster.clone()].concat();
    let slices = stored(&reconcile(before));
    let outcome = reconcile([vec![service("", "")], cluster, slices].concat());
    assert_eq!(hints(&outcome), [Value::Null]);
}

#[test]
fn processors_decide_how_many_endpoints_a_zone_gets() {
    let cluster = |cpus: [&str; 3], pods: [usize; 3]| {
        let mut objects = vec![service("", "Auto")];
        let mut index = 0;
        for (number, (cpu, pods)) in cpus.into_iter().zip(pods).enumerate() {
            let name = format!("n{number}");
            objects.push(node(&name, &format!("z{number}"), cpu));
            for _ in 0..pods {
                objects.push(on(&name, index, true));
                index += 1;
            }
        }
        objects
    };
    let counts = |list: [usize; 3]| -> BTreeMap<String, usize> {
        let named = list.into_iter().enumerate().filter(|(_, count)| *count > 0);
        named.map(|(number, count)| (format!("z{number}"), count)).collect()
    };
    for (cpus, pods, wanted) in [
        (["2", "2", "2"], [3, 3, 3], counts([3, 3, 3])),
        // All endpoints in one zone serve all three.
        (["2", "2", "2"], [9, 0, 0], counts([3, 3, 3])),
        (["4", "2000m", "2"], [4, 4, 4], counts([6, 3, 3])),
        // Too few endpoints for three zones, or for their shares.
        (["2", "2", "2"], [1, 1, 0], BTreeMap::from([("none".to_owned(), 2)])),
        (["2", "2", "2"], [2, 2, 0], BTreeMap::from([("none".to_owned(), 4)])),
        // A node does not say what it has.
        (["2", "0", "2"], [3, 3, 3], BTreeMap::from([("none".to_owned(), 9)])),
    ] {
        let objects = cluster(cpus, pods);
        let outcome = reconcile(objects.clone());
        assert_eq!(zones(&outcome), wanted, "{cpus:?} {pods:?}");
        let again = reconcile([objects, stored(&outcome)].concat());
        assert!(again.steps.is_empty(), "{cpus:?} {pods:?}: nothing changed");
    }
}

#[test]
fn control_plane_nodes_and_nodes_that_are_not_ready_count_for_no_zone() {
    let mut away = node("n2", "c", "64");
    away.1["status"]["conditions"][0]["status"] = json!("False");
    let mut master = node("n3", "d", "64");
    master.1["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("");
    let mut objects =
        vec![service("", "Auto"), node("n0", "a", "2"), node("n1", "b", "2"), away, master];
    objects.extend((0..4).map(|index| on("n0", index, true)));
    let wanted = BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 2)]);
    assert_eq!(zones(&reconcile(objects)), wanted);
}

#[test]
fn the_coming_and_going_of_shares_is_told() {
    let pods = (0..4).map(|index| on("n0", index, true));
    let two_zones = [node("n0", "a", "2"), node("n1", "b", "2")].into_iter();
    let both: Vec<_> = [service("", "Auto")].into_iter().chain(two_zones).chain(pods).collect();
    let outcome = reconcile(both.clone());
    let told = outcome.steps[0].success.clone().expect("an Event");
    assert_eq!(
        (told.reason, told.warning, told.message.as_str()),
        (
            "TopologyAwareHintsEnabled",
            false,
            "Topology Aware Hints has been enabled, addressType: IPv4"
        )
    );
    let mut one_zone: Vec<_> =
        both.into_iter().filter(|(_, value)| value["metadata"]["name"] != "n1").collect();
    one_zone.extend(stored(&outcome));
    let outcome = reconcile(one_zone);
    let told = outcome.steps[0].success.clone().expect("an Event");
    assert_eq!((told.reason, told.warning), ("TopologyAwareHintsDisabled", true));
    assert_eq!(zones(&outcome), BTreeMap::from([("none".to_owned(), 4)]));
}

#[test]
fn a_node_concerns_services_by_its_zone_and_shares_by_its_processors() {
    let concerned = |mode: &str, change: fn(&mut Value)| -> BTreeSet<ObjectKey> {
        let pods = vec![service("", mode), node("n1", "a", "2"), on("n1", 1, true)];
        let mut snapshot = snapshot(pods);
        let (_, mut value) = node("n1", "a", "2");
        value["metadata"]["uid"] = json!("uid-n1");
        value["metadata"]["resourceVersion"] = json!("99");
        change(&mut value);
        let change: Change = snapshot.apply(Kind::Node, value).expect("newer");
        let mut keys = BTreeSet::new();
        super::interested(&change, &snapshot, &mut keys);
        keys
    };
    let web = BTreeSet::from([key(Kind::Service, "web")]);
    let heartbeat = |value: &mut Value| value["status"]["nodeInfo"] = json!({});
    let zone = |value: &mut Value| {
        value["metadata"]["labels"] = json!({crate::selected_pods::ZONE_LABEL: "b"})
    };
    let cpu = |value: &mut Value| value["status"]["allocatable"]["cpu"] = json!("3");
    for (mode, change, wanted) in [
        ("", heartbeat as fn(&mut Value), BTreeSet::new()),
        ("Auto", heartbeat, BTreeSet::new()),
        ("", zone, web.clone()),
        ("", cpu, BTreeSet::new()),
        ("Auto", cpu, web),
    ] {
        assert_eq!(concerned(mode, change), wanted, "{mode}");
    }
}
