use serde_json::{Value, json};

use crate::fixtures::{key, pod, snapshot, verbs, with_input, writes};
use crate::kind::Kind;
use crate::write::Outcome;

fn service(spec: Value) -> Value {
    let mut value = json!({
        "metadata": {"name": "web", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
    });
    for (field, new) in spec.as_object().expect("fields") {
        value["spec"][field] = new.clone();
    }
    value
}

/// A pod of its own address.
fn numbered(index: usize, ready: bool) -> Value {
    let mut value = pod(&format!("p{index:03}"), "node1", ready.then_some(9));
    value["status"]["podIP"] = json!(format!("10.244.{}.{}", index / 250, index % 250 + 1));
    value
}

fn reconcile(objects: Vec<(Kind, Value)>) -> Outcome {
    with_input(None, |input| {
        super::reconcile(&key(Kind::Service, "web"), &snapshot(objects), input.config)
    })
}

/// The slices that a run creates, as if the server had stored them.
fn stored(outcome: &Outcome) -> Vec<(Kind, Value)> {
    let created = writes(outcome).into_iter().filter(|(verb, _)| verb == "create EndpointSlice");
    created
        .enumerate()
        .map(|(index, (_, mut body))| {
            body["metadata"]["name"] = json!(format!("web-{index}"));
            (Kind::EndpointSlice, body)
        })
        .collect()
}

fn with_pods(spec: Value, pods: Vec<Value>) -> Vec<(Kind, Value)> {
    let pods = pods.into_iter().map(|pod| (Kind::Pod, pod));
    let node = json!({"metadata": {"name": "node1"}});
    [(Kind::Node, node), (Kind::Service, service(spec))].into_iter().chain(pods).collect()
}

fn only(outcome: &Outcome) -> Value {
    let mut writes = writes(outcome);
    assert_eq!(writes.len(), 1, "{writes:#?}");
    writes.remove(0).1
}

#[test]
fn a_slice_carries_what_consumers_select_by_and_go_to() {
    let body = only(&reconcile(with_pods(json!({}), vec![numbered(1, true)])));
    let wanted = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": "web-",
            "namespace": "d",
            "labels": {
                "team": "a",
                "kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web",
                "uid": "uid-web", "controller": true, "blockOwnerDeletion": true}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": ["10.244.0.2"],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node1",
            "targetRef": {"kind": "Pod", "namespace": "d", "name": "p001", "uid": "uid-p001"},
        }],
    });
    assert_eq!(body, wanted);
}

#[test]
fn conditions_follow_readiness_deletion_and_publication() {
    // (ready, terminating, publishNotReadyAddresses) → (ready, serving, terminating)
    for (state, wanted) in [
        ((true, false, false), (true, true, false)),
        ((false, false, false), (false, false, false)),
        ((true, true, false), (false, true, true)),
        ((false, true, false), (false, false, true)),
        ((false, false, true), (true, false, false)),
        ((true, true, true), (true, true, true)),
    ] {
        let mut pod = numbered(1, state.0);
        if state.1 {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        }
        let spec = json!({"publishNotReadyAddresses": state.2});
        let body = only(&reconcile(with_pods(spec, vec![pod])));
        let wanted = json!({"ready": wanted.0, "serving": wanted.1, "terminating": wanted.2});
        assert_eq!(body["endpoints"][0]["conditions"], wanted, "{state:?}");
    }
}

#[test]
fn pods_without_address_or_at_their_end_are_no_endpoints() {
    let mut ended = numbered(1, true);
    ended["status"]["phase"] = json!("Succeeded");
    let mut early = numbered(2, false);
    early["status"]["podIP"] = json!("");
    let mut other = numbered(3, true);
    other["metadata"]["labels"] = json!({"app": "other"});
    let body = only(&reconcile(with_pods(json!({}), vec![ended, early, other])));
    assert_eq!(body["endpoints"], json!([]), "one empty slice says that there are none");
    assert_eq!(body["ports"], json!([]));
}

#[test]
fn a_named_port_leads_to_each_pods_own_number() {
    let mut other = numbered(2, true);
    other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    let mut sidecar = numbered(3, true);
    sidecar["spec"]["containers"][0]["ports"] = json!([]);
    sidecar["spec"]["initContainers"] = json!([{"restartPolicy": "Always",
        "ports": [{"name": "http", "containerPort": 7070}]}]);
    let mut without = numbered(4, true);
    without["spec"]["containers"][0]["ports"] = json!([]);
    let pods = vec![numbered(1, true), other, sidecar, without];
    let outcome = reconcile(with_pods(json!({}), pods));
    let mut by_port: Vec<(Value, Value)> = writes(&outcome)
        .into_iter()
        .map(|(_, body)| {
            (body["ports"][0]["port"].clone(), body["endpoints"][0]["targetRef"]["name"].clone())
        })
        .collect();
    by_port.sort_by_key(|(port, _)| port.as_u64());
    let wanted = [
        (Value::Null, "p004"),
        (json!(7070), "p003"),
        (json!(8080), "p001"),
        (json!(9090), "p002"),
    ];
    assert_eq!(by_port, wanted.map(|(port, name)| (port, json!(name))));
}

#[test]
fn a_pod_has_a_hostname_only_below_its_own_headless_service() {
    let mut pod = numbered(1, true);
    pod["spec"]["hostname"] = json!("db-0");
    pod["spec"]["subdomain"] = json!("web");
    let headless = json!({"clusterIP": "None"});
    let body = only(&reconcile(with_pods(headless.clone(), vec![pod.clone()])));
    assert_eq!(body["endpoints"][0]["hostname"], "db-0");
    assert_eq!(body["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    pod["spec"]["subdomain"] = json!("other");
    let body = only(&reconcile(with_pods(headless, vec![pod])));
    assert_eq!(body["endpoints"][0]["hostname"], Value::Null);
}

#[test]
fn other_people_s_slices_and_services_without_selector_are_left_alone() {
    let manual = json!({"metadata": {"name": "manual",
        "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [], "ports": []});
    let objects = vec![
        (Kind::Service, service(json!({"selector": null}))),
        (Kind::EndpointSlice, manual),
        (Kind::Pod, numbered(1, true)),
    ];
    assert!(reconcile(objects).steps.is_empty());
}

#[test]
fn changes_cost_as_few_writes_as_possible() {
    let pods = |range: std::ops::Range<usize>| range.map(|index| numbered(index, true)).collect();
    let full = reconcile(with_pods(json!({}), pods(0..230)));
    assert_eq!(full.steps.len(), 3);
    let slices = stored(&full);
    let after = |pods: Vec<Value>| {
        let mut objects = with_pods(json!({}), pods);
        objects.extend(slices.clone());
        verbs(&reconcile(objects))
    };
    assert!(after(pods(0..230)).is_empty(), "nothing changed");
    assert_eq!(after(pods(0..231)).len(), 1, "one more fits into the last slice");
    assert_eq!(after(pods(0..229)).len(), 1, "one less");
    assert_eq!(
        after(pods(0..100)),
        ["patch web-0", "delete web-1", "delete web-2"].map(String::from)[1..]
    );
    let mut moved: Vec<Value> = pods(1..230);
    moved.push(numbered(240, true));
    assert_eq!(after(moved), ["patch web-0"], "the new one takes the place of the one that went");
    let grown = after(pods(0..301));
    assert_eq!(grown, ["create EndpointSlice"], "no slice has room for all: the others stay");
}

#[test]
fn the_empty_slice_becomes_the_first_one() {
    let empty = stored(&reconcile(with_pods(json!({}), vec![])));
    let mut objects = with_pods(json!({}), vec![numbered(1, true)]);
    objects.extend(empty);
    let filled = reconcile(objects);
    assert_eq!(verbs(&filled), ["patch web-0"]);
    let body = &writes(&filled)[0].1;
    assert_eq!(body["ports"][0]["port"], 8080);
    assert_eq!(body["endpoints"].as_array().map(Vec::len), Some(1));
}

#[test]
fn slices_of_a_removed_service_go() {
    let slices = stored(&reconcile(with_pods(json!({}), vec![numbered(1, true)])));
    assert_eq!(verbs(&reconcile(slices.clone())), ["delete web-0"]);
    let mut objects = with_pods(json!({"type": "ExternalName"}), vec![numbered(1, true)]);
    objects.extend(slices);
    assert_eq!(verbs(&reconcile(objects)), ["delete web-0"]);
}

#[test]
fn the_size_of_slices_is_configured_within_what_the_api_takes() {
    for (configured, wanted) in [(7, vec![7, 7, 6]), (0, vec![1; 20]), (5_000, vec![20])] {
        let mut sizes: Vec<usize> = with_input(None, |input| {
            let config =
                crate::Config { max_endpoints_per_slice: configured, ..input.config.clone() };
            let pods = (0..20).map(|index| numbered(index, true)).collect();
            let snapshot = snapshot(with_pods(json!({}), pods));
            let outcome = super::reconcile(&key(Kind::Service, "web"), &snapshot, &config);
            let size = |body: &Value| body["endpoints"].as_array().map_or(0, Vec::len);
            writes(&outcome).iter().map(|(_, body)| size(body)).collect()
        });
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(sizes, wanted, "{configured}");
    }
}

#[test]
fn a_full_slice_and_the_fullest_that_is_written_anyway_come_first() {
    let pods = |range: std::ops::Range<usize>| range.map(|index| numbered(index, true));
    let slices = stored(&reconcile(with_pods(json!({}), pods(0..250).collect())));
    // Slices 0 and 1 lose one and forty endpoints, twenty are new: one goes to slice 0.
    let left = (1..100).chain(140..250).map(|index| numbered(index, true));
    let mut objects = with_pods(json!({}), left.chain(pods(300..320)).collect());
    objects.extend(slices);
    let outcome = reconcile(objects);
    let sizes: Vec<(String, usize)> = writes(&outcome)
        .into_iter()
        .map(|(verb, body)| (verb, body["endpoints"].as_array().map_or(0, Vec::len)))
        .collect();
    assert_eq!(sizes, [("patch web-0".to_owned(), 100), ("patch web-1".to_owned(), 79)]);
}

#[test]
fn an_endpoint_that_stands_twice_stays_once() {
    let mut slices = stored(&reconcile(with_pods(json!({}), vec![numbered(1, true)])));
    let mut copy = slices[0].clone();
    copy.1["metadata"]["name"] = json!("web-copy");
    slices.push(copy);
    let mut objects = with_pods(json!({}), vec![numbered(1, true)]);
    objects.extend(slices);
    assert_eq!(verbs(&reconcile(objects)), ["delete web-copy"]);
}

#[test]
fn slices_of_an_older_service_of_this_name_go() {
    let mut slices = stored(&reconcile(with_pods(json!({}), vec![numbered(1, true)])));
    slices[0].1["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    let mut objects = with_pods(json!({}), vec![numbered(1, true)]);
    objects.extend(slices);
    assert_eq!(verbs(&reconcile(objects)), ["delete web-0", "create EndpointSlice"]);
}

#[test]
fn pods_of_a_node_that_is_not_there_are_no_endpoints_unless_all_are_wanted() {
    for (publish, wanted) in [(false, 0), (true, 1)] {
        let mut lost = numbered(1, true);
        lost["spec"]["nodeName"] = json!("gone");
        let spec = json!({"publishNotReadyAddresses": publish});
        let body = only(&reconcile(with_pods(spec, vec![lost])));
        assert_eq!(body["endpoints"].as_array().map(Vec::len), Some(wanted), "{publish}");
    }
}

/// `endpoints.kubernetes.io/last-change-trigger-time` of the only write; `None` when no write.
fn trigger_time(pods: Vec<Value>, held: &[(Kind, Value)]) -> Option<Value> {
    let mut objects = with_pods(json!({}), pods);
    objects[1].1["metadata"]["creationTimestamp"] = json!("2026-11-20T00:00:00Z");
    objects.extend(held.iter().cloned());
    let outcome = reconcile(objects);
    let (_, body) = writes(&outcome).into_iter().next()?;
    Some(body["metadata"]["annotations"][super::TRIGGER_TIME].clone())
}

#[test]
fn a_write_says_when_that_happened_which_it_answers_to() {
    let since = |mut pod: Value, time: &str| {
        pod["status"]["conditions"][0]["lastTransitionTime"] = json!(time);
        pod
    };
    let old = since(numbered(1, true), "2026-11-20T01:00:00Z");
    assert_eq!(trigger_time(vec![old.clone()], &[]), Some(json!("2026-11-20T00:00:00Z")), "new");
    let held = stored(&reconcile(with_pods(json!({}), vec![old.clone()])));
    assert_eq!(trigger_time(vec![old.clone()], &held), None, "no write for the time alone");
    let unready = since(numbered(1, false), "2026-11-20T02:00:00Z");
    let later = since(numbered(2, true), "2026-11-20T03:00:00Z");
    let both = trigger_time(vec![unready.clone(), later.clone()], &held);
    assert_eq!(both, Some(json!("2026-11-20T02:00:00Z")), "the earliest of two");
    let one = trigger_time(vec![old.clone(), later], &held);
    assert_eq!(one, Some(json!("2026-11-20T03:00:00Z")), "what did not change does not count");
    let mut stamped = held.clone();
    stamped[0].1["metadata"]["annotations"] = json!({super::TRIGGER_TIME: "2026-11-20T00:00:00Z"});
    let mut going = old;
    going["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    assert_eq!(trigger_time(vec![going], &stamped), Some(Value::Null), "a time of before goes");
}

#[test]
fn a_dual_stack_service_has_slices_of_both_families() {
    let mut pod = numbered(1, true);
    pod["status"]["podIPs"] = json!([{"ip": "10.244.0.2"}, {"ip": "fd00:10::2"}]);
    let single = numbered(2, true);
    let spec = json!({"ipFamilies": ["IPv6", "IPv4"]});
    let outcome = reconcile(with_pods(spec, vec![pod.clone(), single]));
    let addresses: Vec<(Value, Value)> = writes(&outcome)
        .into_iter()
        .map(|(_, body)| {
            let endpoints = body["endpoints"].as_array().cloned().unwrap_or_default();
            let list = endpoints.iter().map(|endpoint| endpoint["addresses"][0].clone()).collect();
            (body["addressType"].clone(), list)
        })
        .collect();
    let wanted = [
        (json!("IPv4"), json!(["10.244.0.2", "10.244.0.3"])),
        (json!("IPv6"), json!(["fd00:10::2"])),
    ];
    assert_eq!(addresses, wanted);
    // Down to one family: the other's slice goes.
    let mut objects = with_pods(json!({"ipFamilies": ["IPv4"]}), vec![pod, numbered(2, true)]);
    objects.extend(stored(&outcome));
    assert_eq!(verbs(&reconcile(objects)), ["delete web-1"]);
}
