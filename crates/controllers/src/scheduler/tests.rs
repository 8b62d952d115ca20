use serde_json::{Value, json};

use crate::fixtures::{pod, snapshot, verbs, with_input};
use crate::kind::Kind;

fn node(name: &str, changes: Value) -> (Kind, Value) {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    for (pointer, new) in changes.as_object().expect("changes") {
        let (section, field) = pointer.split_once('/').expect("section/field");
        value[section][field] = new.clone();
    }
    (Kind::Node, value)
}

fn waiting(name: &str, spec: Value) -> (Kind, Value) {
    let mut value = pod(name, "", None);
    for (field, new) in spec.as_object().expect("fields") {
        value["spec"][field] = new.clone();
    }
    (Kind::Pod, value)
}

fn placements(objects: Vec<(Kind, Value)>) -> Vec<String> {
    let snapshot = snapshot(objects);
    with_input(None, |input| verbs(&super::reconcile(&snapshot, input)))
}

/// Whether a pod of this spec may go to a node with these changes.
fn fits(node_changes: Value, spec: Value) -> bool {
    placements(vec![node("n", node_changes), waiting("p", spec)]) == ["bind p n"]
}

#[test]
fn pods_of_one_owner_spread_before_the_number_of_pods_counts() {
    let mut other = pod("other", "b", Some(9));
    other["metadata"]["ownerReferences"][0]["uid"] = json!("uid-else");
    let objects = vec![
        node("a", json!({})),
        node("b", json!({})),
        (Kind::Pod, pod("sibling", "a", Some(9))),
        (Kind::Pod, other.clone()),
        (Kind::Pod, {
            let mut third = other;
            third["metadata"]["name"] = json!("third");
            third
        }),
        waiting("p", json!({})),
        waiting("q", json!({})),
    ];
    // b has more pods but no sibling; then each has one sibling, and a has fewer pods.
    assert_eq!(placements(objects), ["bind p b", "bind q a"]);
}

#[test]
fn a_run_sees_its_own_placements() {
    let mut objects: Vec<_> = ["a", "b", "c"].map(|name| node(name, json!({}))).into();
    objects.extend((0..6).map(|index| waiting(&format!("p{index}"), json!({}))));
    let mut nodes: Vec<String> = placements(objects)
        .iter()
        .map(|verb| verb.rsplit(' ').next().unwrap_or("").into())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b", "b", "c", "c"]);
}

#[test]
fn only_nodes_that_are_ready_and_open_are_taken() {
    assert!(fits(json!({}), json!({})));
    assert!(!fits(json!({"spec/unschedulable": true}), json!({})));
    assert!(!fits(json!({"status/conditions": []}), json!({})));
    assert!(!fits(
        json!({"status/conditions": [{"type": "Ready", "status": "Unknown"}]}),
        json!({})
    ));
    let taints = json!({"spec/taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    assert!(!fits(taints.clone(), json!({})));
    let tolerations = json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "v"}]});
    assert!(fits(taints, tolerations));
    assert!(!fits(json!({"status/allocatable": {"pods": "0"}}), json!({})));
}

#[test]
fn selector_and_required_affinity_must_hold() {
    let labels = json!({"metadata/labels": {"disk": "ssd", "cores": "8"}});
    assert!(fits(labels.clone(), json!({"nodeSelector": {"disk": "ssd"}})));
    assert!(!fits(labels.clone(), json!({"nodeSelector": {"disk": "hdd"}})));
    let affinity = |term: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [term]}}}})
    };
    let cases = [
        (json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}), true),
        (json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}), false),
        (
            json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["hdd"]}]}),
            true,
        ),
        (json!({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}), false),
        (
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}),
            true,
        ),
        (
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}),
            false,
        ),
        (json!({}), false),
    ];
    for (term, wanted) in cases {
        assert_eq!(fits(labels.clone(), affinity(term.clone())), wanted, "{term}");
    }
}

#[test]
fn two_pods_do_not_share_a_host_port() {
    let port = |changes: Value| {
        let mut port = json!({"containerPort": 80, "hostPort": 8080});
        for (field, value) in changes.as_object().expect("fields") {
            port[field] = value.clone();
        }
        json!({"containers": [{"ports": [port]}]})
    };
    let on = |address: &str| json!({ "hostIP": address });
    let rows = [
        (json!({}), json!({}), false),
        (json!({}), json!({"hostPort": 8081}), true),
        (json!({}), json!({"protocol": "UDP"}), true),
        (json!({}), on("10.0.0.1"), false),
        (on("0.0.0.0"), on("10.0.0.1"), false),
        (on("10.0.0.1"), on("10.0.0.1"), false),
        (on("10.0.0.1"), on("10.0.0.2"), true),
    ];
    for (one, other, both) in rows {
        let pods = [waiting("p", port(one.clone())), waiting("q", port(other.clone()))];
        let second = if both { "bind q a" } else { "patch q" };
        let objects = [vec![node("a", json!({}))], pods.into()].concat();
        assert_eq!(placements(objects), ["bind p a", second], "{one} and {other}");
    }
}

#[test]
fn pods_of_others_and_gated_ones_are_left_alone() {
    let objects = vec![
        node("a", json!({})),
        waiting("p", json!({"schedulerName": "mine"})),
        waiting("q", json!({"schedulingGates": [{"name": "wait"}]})),
    ];
    assert!(placements(objects).is_empty());
}

#[test]
fn the_last_place_goes_to_the_highest_priority() {
    let full = json!({"status/allocatable": {"pods": "1"}});
    let mut objects = vec![node("n", full)];
    for (name, priority) in
        [("a", json!(null)), ("b", json!(-1)), ("c", json!(100)), ("d", json!(99))]
    {
        objects.push(waiting(name, json!({"priority": priority})));
    }
    let placed = placements(objects);
    assert_eq!(placed.first().map(String::as_str), Some("bind c n"));
    assert_eq!(placed.iter().filter(|write| write.starts_with("bind")).count(), 1);
}
