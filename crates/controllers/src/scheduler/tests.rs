use serde_json::{Value, json};

use crate::fixtures::{pod, snapshot, verbs, with_input, writes};
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

/// Why a pod waits, as the condition of the last write to it says.
fn why(objects: Vec<(Kind, Value)>) -> String {
    let snapshot = snapshot(objects);
    let outcome = with_input(None, |input| super::reconcile(&snapshot, input));
    let last = writes(&outcome).pop().expect("a write").1;
    let list = last["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let scheduled = list.iter().find(|found| found["type"] == "PodScheduled").expect("it");
    scheduled["message"].as_str().unwrap_or_default().to_owned()
}

fn asks(amounts: Value) -> Value {
    json!({"containers": [{"resources": {"requests": amounts}}]})
}

/// A pod of this spec on a node.
fn placed(name: &str, node: &str, spec: Value) -> (Kind, Value) {
    let mut value = pod(name, node, Some(9));
    for (field, new) in spec.as_object().expect("fields") {
        value["spec"][field] = new.clone();
    }
    (Kind::Pod, value)
}

#[test]
fn a_node_gives_no_more_than_it_has() {
    let has = json!({"status/allocatable": {"cpu": "2", "memory": "1Gi", "x.org/gpu": "1"}});
    for (asked, fitting) in [
        (json!({"cpu": "2"}), true),
        (json!({"cpu": "2001m"}), false),
        (json!({"memory": "1024Mi"}), true),
        (json!({"memory": "1025Mi"}), false),
        (json!({"x.org/gpu": 1}), true),
        (json!({"x.org/other": 1}), false),
        (json!({"x.org/other": 0}), true),
        // It does not say how much of its disk there is.
        (json!({"ephemeral-storage": "1Ti"}), true),
    ] {
        assert_eq!(fits(has.clone(), asks(asked.clone())), fitting, "{asked}");
    }
    let disk = json!({"status/allocatable": {"cpu": "2", "ephemeral-storage": "10485760Ki"}});
    for (asked, fitting) in [("10Gi", true), ("10241Mi", false)] {
        let asked = asks(json!({"ephemeral-storage": asked}));
        assert_eq!(fits(disk.clone(), asked.clone()), fitting, "{asked}");
    }
    let beside = vec![
        node("n", has),
        placed("one", "n", asks(json!({"cpu": "1500m"}))),
        waiting("p", asks(json!({"cpu": "600m", "x.org/other": 1}))),
    ];
    let wanted = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient x.org/other. \
                  preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    assert_eq!(why(beside), wanted);
}

#[test]
fn of_like_nodes_the_less_loaded_one_is_taken() {
    let has = json!({"status/allocatable": {"cpu": "4"}});
    let objects = vec![
        node("a", has.clone()),
        node("b", has),
        placed("one", "a", asks(json!({"cpu": "3"}))),
        placed("two", "b", asks(json!({"cpu": "1"}))),
        waiting("p", json!({"containers": []})),
    ];
    assert_eq!(placements(objects), ["bind p b"]);
}

#[test]
fn a_pod_that_names_its_node_hears_nothing_of_the_others() {
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["a"]});
    let required = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
    let mut spec = asks(json!({"cpu": 2}));
    spec["affinity"] = affinity;
    let small = json!({"status/allocatable": {"cpu": 1}});
    let objects = vec![node("a", small), node("b", json!({})), waiting("p", spec)];
    let wanted = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) \
                  [NodeAffinity]. preemption: 0/2 nodes are available: 2 Preemption is not helpful \
                  for scheduling.";
    assert_eq!(why(objects), wanted);
}

/// Two zones: a and b in one, c in the other.
fn zones() -> Vec<(Kind, Value)> {
    let zoned = |name: &str, zone: &str| {
        node(name, json!({"metadata/labels": {"zone": zone, "kubernetes.io/hostname": name}}))
    };
    vec![zoned("a", "one"), zoned("b", "one"), zoned("c", "two")]
}

fn labelled((kind, mut value): (Kind, Value), labels: Value) -> (Kind, Value) {
    value["metadata"]["labels"] = labels;
    (kind, value)
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn affinity(kind: &str, term: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

#[test]
fn pods_find_company_and_avoid_each_other_by_place() {
    let db = |node: &str| labelled(placed("db", node, json!({})), json!({"app": "db"}));
    let with = |others: Vec<(Kind, Value)>, spec: Value| {
        placements([zones(), others, vec![waiting("p", spec)]].concat())
    };
    let near = affinity("podAffinity", term("db", "zone"));
    assert_eq!(with(vec![db("c")], near.clone()), ["bind p c"]);
    assert_eq!(with(vec![db("a")], near.clone()), ["bind p b"], "the emptier node of the zone");
    assert_eq!(with(vec![], near), ["patch p"], "nobody is there, and it is none itself");
    let first = affinity("podAffinity", term("web", "zone"));
    assert_eq!(with(vec![], first), ["bind p a"], "it is the first of its kind");
    let away = affinity("podAntiAffinity", term("db", "zone"));
    assert_eq!(with(vec![db("a")], away), ["bind p c"]);
    // Those that are there are heard too.
    let shy = affinity("podAntiAffinity", term("web", "zone"));
    let shy = labelled(placed("shy", "b", shy), json!({"app": "shy"}));
    assert_eq!(with(vec![shy], json!({})), ["bind p c"]);
    // Other namespaces count where the term says so.
    let elsewhere = |spec: Value| {
        let (kind, mut other) = db("a");
        other["metadata"]["namespace"] = json!("other");
        let label = json!({"team": "x"});
        let namespace = json!({"metadata": {"name": "other", "labels": label}});
        with(vec![(kind, other), (Kind::Namespace, namespace)], spec)
    };
    for (scope, found) in [
        (json!({}), "bind p b"),
        (json!({"namespaces": ["other"]}), "bind p c"),
        (json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}), "bind p c"),
        (json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}), "bind p b"),
        (json!({"namespaceSelector": {}}), "bind p c"),
    ] {
        let mut term = term("db", "zone");
        for (field, value) in scope.as_object().expect("fields") {
            term[field] = value.clone();
        }
        assert_eq!(elsewhere(affinity("podAntiAffinity", term)), [found], "{scope}");
    }
}

#[test]
fn wishes_decide_among_nodes_that_would_do() {
    let wish = |kind: &str| {
        json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 10, "podAffinityTerm": term("db", "zone")}]}}})
    };
    let db = || labelled(placed("db", "c", json!({})), json!({"app": "db"}));
    let with = |spec: Value| placements([zones(), vec![db(), waiting("p", spec)]].concat());
    assert_eq!(with(json!({})), ["bind p a"]);
    assert_eq!(with(wish("podAffinity")), ["bind p c"], "although it has more pods");
    assert_eq!(with(wish("podAntiAffinity")), ["bind p a"]);
    let preference = json!({"matchExpressions":
        [{"key": "zone", "operator": "In", "values": ["two"]}]});
    let nodes = json!({"affinity": {"nodeAffinity":
        {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 1, "preference": preference}]}}});
    assert_eq!(with(nodes), ["bind p c"]);
}

fn spread(changes: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    for (field, value) in changes.as_object().expect("fields") {
        constraint[field] = value.clone();
    }
    json!({"topologySpreadConstraints": [constraint]})
}

#[test]
fn pods_spread_over_places_as_evenly_as_they_say() {
    let web = |name: &str, node: &str| placed(name, node, json!({}));
    let with = |others: Vec<(Kind, Value)>, spec: Value| {
        placements([zones(), others, vec![waiting("p", spec)]].concat())
    };
    let two = || vec![web("one", "a"), web("two", "a")];
    assert_eq!(with(two(), json!({})), ["bind p b"], "without a constraint");
    assert_eq!(with(two(), spread(json!({}))), ["bind p c"]);
    assert_eq!(with(two(), spread(json!({"maxSkew": 3}))), ["bind p b"]);
    assert_eq!(with(two(), spread(json!({"whenUnsatisfiable": "ScheduleAnyway"}))), ["bind p c"]);
    assert_eq!(with(two(), spread(json!({"minDomains": 2}))), ["bind p c"]);
    let others = json!({"labelSelector": {"matchLabels": {"app": "else"}}});
    assert_eq!(with(two(), spread(others)), ["bind p b"], "they are no such pods");
    // With fewer places than wanted, none may have more than the skew.
    let refused = [zones(), two(), vec![web("three", "c")]].concat();
    let pod = vec![waiting("p", spread(json!({"minDomains": 3})))];
    let wanted = "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints. \
                  preemption: 0/3 nodes are available: 3 No preemption victims found for incoming \
                  pod.";
    assert_eq!(why([refused, pod].concat()), wanted);
    let unlabelled = vec![node("n", json!({})), waiting("p", spread(json!({})))];
    let wanted = "(missing required label)";
    assert!(why(unlabelled).contains(wanted));
    // A node that the pod cannot have counts, unless the constraint says otherwise.
    let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
    for (policy, wanted) in [("Ignore", "patch p"), ("Honor", "bind p b")] {
        let mut nodes = zones();
        nodes[2].1["spec"]["taints"] = taint.clone();
        let pod = waiting("p", spread(json!({ "nodeTaintsPolicy": policy })));
        let objects = [nodes, vec![web("one", "a")], vec![pod]].concat();
        assert_eq!(placements(objects), [wanted], "{policy}");
    }
}

/// A pod of nobody's that waits.
fn single(spec: Value) -> (Kind, Value) {
    let (kind, mut value) = waiting("p", spec);
    value["metadata"]["ownerReferences"] = json!([]);
    (kind, value)
}

#[test]
fn what_speaks_for_and_against_a_node_is_summed_by_weight() {
    let has = json!({"cpu": "4", "memory": "4Gi"});
    let plain = |name: &str| {
        node(
            name,
            json!({"status/allocatable": has,
            "metadata/labels": {"kubernetes.io/hostname": name, "zone": name}}),
        )
    };
    let unwelcome = |name: &str| {
        let (kind, mut value) = plain(name);
        value["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
        (kind, value)
    };
    let on = |node: &str, spec: Value| {
        labelled(placed(&format!("on-{node}"), node, spec), json!({"app": "x"}))
    };
    let likes = |name: &str| {
        let field = json!({"key": "zone", "operator": "In", "values": [name]});
        json!([{"weight": 1, "preference": {"matchExpressions": [field]}}])
    };
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let near = json!([{"weight": 1, "podAffinityTerm": term("x", "zone")}]);
    let mut evenly = spread(json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    evenly["topologySpreadConstraints"][0]["labelSelector"] = json!({"matchLabels": {"app": "x"}});
    evenly["affinity"] = json!({"nodeAffinity": {preferred: likes("a")}});
    let needs_company = affinity("podAffinity", term("web", "zone"));
    let both = json!({"affinity":
        {"nodeAffinity": {preferred: likes("a")}, "podAffinity": {preferred: near}}});
    for (what, nodes, others, spec, wanted) in [
        (
            "a taint is more than a wish",
            vec![unwelcome("a"), plain("b")],
            vec![],
            json!({"affinity": {"nodeAffinity": {preferred: likes("a")}}}),
            "b",
        ),
        (
            "a wish and company are more than a taint",
            vec![unwelcome("a"), plain("b")],
            vec![on("a", json!({}))],
            both,
            "a",
        ),
        (
            "a wish is more than room",
            vec![plain("a"), plain("b")],
            vec![on("b", asks(json!({"cpu": 3})))],
            json!({"affinity": {"nodeAffinity": {preferred: likes("b")}}}),
            "b",
        ),
        (
            "spreading is as much as a wish, and room then decides",
            vec![plain("a"), plain("b")],
            vec![on("a", json!({}))],
            evenly,
            "b",
        ),
        (
            "as much room, but more even",
            vec![plain("a"), plain("b")],
            vec![
                on("a", asks(json!({"cpu": 2, "memory": 0}))),
                on("b", asks(json!({"cpu": 0, "memory": "2Gi"}))),
            ],
            asks(json!({"cpu": 1, "memory": 0})),
            "b",
        ),
        (
            "pods that say nothing are thought to need something",
            vec![plain("a"), plain("b")],
            vec![
                on("a", json!({"containers": [{}]})),
                on("b", asks(json!({"cpu": 0, "memory": 0}))),
            ],
            json!({"containers": [{}]}),
            "b",
        ),
        (
            "company for whoever needs it",
            vec![plain("a"), plain("b")],
            vec![on("b", needs_company)],
            json!({}),
            "b",
        ),
    ] {
        let (kind, mut pod) = single(spec);
        pod["metadata"]["labels"] = json!({"app": "web"});
        let objects = [nodes, others, vec![(kind, pod)]].concat();
        assert_eq!(placements(objects), [format!("bind p {wanted}")], "{what}");
    }
}

#[test]
fn pods_that_say_nothing_of_spreading_spread_over_zones_too() {
    let zoned = |name: &str, zone: &str| {
        let labels = json!({"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name});
        node(name, json!({ "metadata/labels": labels }))
    };
    let nodes = || vec![zoned("a", "one"), zoned("b", "one"), zoned("c", "two"), zoned("d", "two")];
    let two = vec![placed("x", "a", json!({})), placed("y", "c", json!({}))];
    let third = [two, vec![placed("z", "c", json!({}))]].concat();
    assert_eq!(placements([nodes(), third, vec![waiting("p", json!({}))]].concat()), ["bind p b"]);
    let lone = vec![placed("x", "a", json!({}))];
    let objects = [nodes(), lone, vec![waiting("p", json!({}))]].concat();
    assert_eq!(placements(objects), ["bind p c"], "the other node of the zone would do as well");
}

/// A pod of a priority that asks for processors.
fn of(priority: i32, cpu: i64) -> Value {
    let mut spec = asks(json!({ "cpu": cpu }));
    spec["priority"] = json!(priority);
    spec
}

#[test]
fn the_least_important_pods_that_suffice_make_room() {
    let has = || json!({"status/allocatable": {"cpu": "4"}});
    let nodes = || vec![node("a", has()), node("b", has())];
    for (what, others, budgeted, wanted) in [
        (
            "one is enough, the lowest",
            vec![("low", "a", 1, 2), ("lower", "a", 0, 2), ("high", "b", 9, 4)],
            None,
            Some("lower a"),
        ),
        (
            "the node whose victim matters least",
            vec![("five", "a", 5, 4), ("three", "b", 3, 4)],
            None,
            Some("three b"),
        ),
        (
            "fewer victims",
            vec![("x", "a", 1, 3), ("y", "a", 1, 1), ("z", "b", 1, 4)],
            None,
            Some("x a"),
        ),
        (
            "rather one whose budget allows it",
            vec![("three", "a", 3, 4), ("five", "b", 5, 4)],
            Some("three"),
            Some("five b"),
        ),
        (
            "against a budget where nothing else helps",
            vec![("low", "a", 1, 4), ("high", "b", 9, 4)],
            Some("low"),
            Some("low a"),
        ),
        ("not for its equals", vec![("x", "a", 7, 4), ("y", "b", 9, 4)], None, None),
    ] {
        let mut objects = nodes();
        for (name, node, priority, cpu) in &others {
            let pod = placed(name, node, of(*priority, *cpu));
            objects.push(labelled(pod, json!({"app": name})));
        }
        if let Some(app) = budgeted {
            let budget = json!({"metadata": {"name": "keep"},
                "spec": {"selector": {"matchLabels": {"app": app}}}, "status": {}});
            objects.push((Kind::PodDisruptionBudget, budget));
        }
        objects.push(waiting("p", of(7, if what == "fewer victims" { 3 } else { 2 })));
        let snapshot = snapshot(objects);
        let outcome = with_input(None, |input| super::reconcile(&snapshot, input));
        let Some(wanted) = wanted else {
            assert_eq!(verbs(&outcome), ["patch p"], "{what}");
            continue;
        };
        let (victim, node) = wanted.split_once(' ').expect("victim and node");
        let patch = format!("patch {victim}");
        let delete = format!("delete {victim}");
        assert_eq!(verbs(&outcome), [&*patch, &*delete, "patch p"], "{what}");
        assert!(outcome.in_order, "who goes hears why first");
        let all = writes(&outcome);
        assert_eq!(all[2].1["status"]["nominatedNodeName"], node, "{what}");
        let told = all[0].1["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let told = told.iter().find(|found| found["type"] == "DisruptionTarget").expect("it");
        assert_eq!(told["reason"], "PreemptionByScheduler");
        let event = outcome.steps[1].success.clone().expect("an event");
        let message = format!("Preempted by pod uid-p on node {node}");
        assert_eq!((event.reason, event.message), ("Preempted", message));
    }
}

#[test]
fn whoever_waits_for_others_to_go_keeps_the_place_and_asks_no_more() {
    let has = json!({"status/allocatable": {"cpu": "4"}});
    let mut going = placed("low", "a", of(0, 4));
    going.1["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    going.1["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True",
        "reason": "PreemptionByScheduler"}]);
    let mut first = waiting("p", of(7, 4));
    first.1["status"]["nominatedNodeName"] = json!("a");
    let second = waiting("q", of(3, 1));
    let waits = vec![node("a", has.clone()), going, first.clone(), second.clone()];
    let all = {
        let snapshot = snapshot(waits);
        writes(&with_input(None, |input| super::reconcile(&snapshot, input)))
    };
    let verbs: Vec<&str> = all.iter().map(|(verb, _)| verb.as_str()).collect();
    assert_eq!(verbs, ["patch p", "patch q"]);
    let message = &all[0].1["status"]["conditions"][1]["message"];
    let wanted = "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a \
                  terminating pod on the nominated node.";
    assert_eq!(message, wanted);
    assert_eq!(all[0].1["status"]["nominatedNodeName"], "a");
    // The others are gone: the place is its, though the other came first to it.
    let free = vec![node("a", has.clone()), first, second.clone()];
    assert_eq!(placements(free), ["bind p a", "patch q"]);
    // One that may not make others go says so.
    let mut never = of(7, 4);
    never["preemptionPolicy"] = json!("Never");
    let objects = vec![node("a", has), placed("low", "a", of(0, 4)), waiting("p", never)];
    assert!(why(objects).ends_with("not eligible due to preemptionPolicy=Never."));
}
