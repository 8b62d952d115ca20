//! S-17: mirroring of Endpoints objects that people write.

use serde_json::{Value, json};

use crate::fixtures::{key, snapshot, verbs, writes};
use crate::kind::Kind;
use crate::write::Outcome;

fn bare(spec: Value) -> (Kind, Value) {
    (Kind::Service, json!({"metadata": {"name": "db"}, "spec": spec}))
}

fn endpoints(subsets: Value) -> Value {
    json!({"metadata": {"name": "db"}, "subsets": subsets})
}

fn one_subset() -> Value {
    json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"name": "sql", "port": 5432}]}])
}

fn reconcile(objects: Vec<(Kind, Value)>) -> Outcome {
    super::reconcile(&key(Kind::Endpoints, "db"), &snapshot(objects))
}

/// What a run created, as if the server had stored it.
fn stored(outcome: &Outcome) -> Vec<(Kind, Value)> {
    let created = writes(outcome).into_iter().filter(|(verb, _)| verb == "create EndpointSlice");
    let named = created.enumerate().map(|(index, (_, mut body))| {
        body["metadata"]["name"] = json!(format!("db-{index}"));
        (Kind::EndpointSlice, body)
    });
    named.collect()
}

#[test]
fn a_slice_says_what_the_subset_says() {
    let mut object = endpoints(json!([{
        "addresses": [{"ip": "10.1.2.3", "nodeName": "n", "hostname": "h",
            "targetRef": {"kind": "Pod", "namespace": "d", "name": "p", "uid": "u"}}],
        "notReadyAddresses": [{"ip": "10.1.2.4"}],
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP", "appProtocol": "sql"}],
    }]));
    object["metadata"]["labels"] = json!({"team": "a"});
    object["metadata"]["annotations"] = json!({
        "note": "b",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T00:00:00Z",
    });
    let outcome = reconcile(vec![bare(json!({})), (Kind::Endpoints, object)]);
    let wanted = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": "db-",
            "namespace": "d",
            "labels": {
                "team": "a",
                "kubernetes.io/service-name": "db",
                "endpointslice.kubernetes.io/managed-by":
                    "endpointslicemirroring-controller.k8s.io",
            },
            "annotations": {"note": "b"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Endpoints", "name": "db",
                "uid": "uid-db", "controller": true, "blockOwnerDeletion": true}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP", "appProtocol": "sql"}],
        "endpoints": [
            {"addresses": ["10.1.2.3"], "conditions": {"ready": true}, "nodeName": "n",
             "hostname": "h",
             "targetRef": {"kind": "Pod", "namespace": "d", "name": "p", "uid": "u"}},
            {"addresses": ["10.1.2.4"], "conditions": {"ready": false}},
        ],
    });
    assert_eq!(writes(&outcome), [("create EndpointSlice".to_owned(), wanted)]);
}

#[test]
fn each_family_and_each_set_of_ports_has_its_slice() {
    let subsets = json!([
        {"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}], "ports": [{"port": 80}]},
        {"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 443}]},
        {"addresses": [{"ip": "10.1.2.4"}, {"ip": "10.1.2.3"}], "ports": [{"port": 80}]},
    ]);
    let outcome = reconcile(vec![bare(json!({})), (Kind::Endpoints, endpoints(subsets))]);
    let slices: Vec<(String, u64, usize)> = writes(&outcome)
        .iter()
        .map(|(_, body)| {
            let family = body["addressType"].as_str().unwrap_or_default().to_owned();
            let port = body["ports"][0]["port"].as_u64().unwrap_or_default();
            (family, port, body["endpoints"].as_array().map_or(0, Vec::len))
        })
        .collect();
    let wanted = [("IPv4".to_owned(), 80, 2), ("IPv4".into(), 443, 1), ("IPv6".into(), 80, 1)];
    assert_eq!(slices, wanted);
}

#[test]
fn what_is_not_to_be_copied_is_not_and_what_was_goes() {
    let mirrored = vec![bare(json!({})), (Kind::Endpoints, endpoints(one_subset()))];
    let slices = stored(&reconcile(mirrored.clone()));
    assert_eq!(slices.len(), 1);
    let with = |label: Value, annotation: Value| {
        let mut object = endpoints(one_subset());
        object["metadata"]["labels"] = label;
        object["metadata"]["annotations"] = annotation;
        vec![bare(json!({})), (Kind::Endpoints, object)]
    };
    let selecting = vec![bare(json!({"selector": {"a": "b"}})), mirrored[1].clone()];
    let cases: Vec<(&str, Vec<(Kind, Value)>)> = vec![
        ("no Service", vec![mirrored[1].clone()]),
        ("no Endpoints", vec![mirrored[0].clone()]),
        ("the Service selects pods", selecting),
        ("no addresses", vec![bare(json!({})), (Kind::Endpoints, endpoints(json!([])))]),
        (
            "skip-mirror",
            with(json!({"endpointslice.kubernetes.io/skip-mirror": "true"}), Value::Null),
        ),
        (
            "leader election",
            with(Value::Null, json!({"control-plane.alpha.kubernetes.io/leader": "{}"})),
        ),
    ];
    for (case, objects) in cases {
        assert!(reconcile(objects.clone()).steps.is_empty(), "{case}: nothing to begin with");
        let before = [objects, slices.clone()].concat();
        assert_eq!(verbs(&reconcile(before)), ["delete db-0"], "{case}");
    }
    let skipped = with(json!({"endpointslice.kubernetes.io/skip-mirror": "false"}), Value::Null);
    assert_eq!(verbs(&reconcile(skipped)), ["create EndpointSlice"]);
}

#[test]
fn a_change_is_one_write_and_no_change_none() {
    let objects = |subsets: Value, label: &str| {
        let mut object = endpoints(subsets);
        object["metadata"]["labels"] = json!({"team": label});
        vec![bare(json!({})), (Kind::Endpoints, object)]
    };
    let slices = stored(&reconcile(objects(one_subset(), "a")));
    let after = |subsets: Value, label: &str| {
        verbs(&reconcile([objects(subsets, label), slices.clone()].concat()))
    };
    assert!(after(one_subset(), "a").is_empty());
    assert_eq!(after(one_subset(), "b"), ["patch db-0"]);
    let moved = json!([{"addresses": [{"ip": "10.1.2.9"}],
        "ports": [{"name": "sql", "port": 5432}]}]);
    assert_eq!(after(moved, "a"), ["patch db-0"]);
    let other_port = json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 1}]}]);
    assert_eq!(after(other_port, "a"), ["create EndpointSlice", "delete db-0"]);
    // A copy that somebody made of the slice, and one of an object of that name that is no more.
    let mut foreign = slices.clone();
    foreign[0].1["metadata"]["name"] = json!("db-9");
    foreign[0].1["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    let all = [objects(one_subset(), "a"), slices.clone(), foreign].concat();
    assert_eq!(verbs(&reconcile(all)), ["delete db-9"]);
}

#[test]
fn a_thousand_addresses_of_a_subset_are_copied_and_the_rest_is_told() {
    let address = |index: usize| json!({"ip": format!("10.1.{}.{}", index / 250, index % 250 + 1)});
    let mut addresses: Vec<Value> = (0..1003).map(address).collect();
    addresses.push(json!({"ip": "not an address"}));
    let subsets = json!([{"addresses": addresses, "ports": [{"port": 80}]}]);
    let outcome = reconcile(vec![bare(json!({})), (Kind::Endpoints, endpoints(subsets))]);
    let (_, body) = writes(&outcome).remove(0);
    assert_eq!(body["endpoints"].as_array().map(Vec::len), Some(1000));
    let told = outcome.steps[0].success.as_ref().expect("an Event");
    assert_eq!(
        (told.reason, told.message.as_str()),
        ("InvalidIPAddress", "Skipped 1 invalid IP addresses when mirroring to EndpointSlices")
    );
}
