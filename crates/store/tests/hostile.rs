//! Whatever a client sends: an answer, never a panic, and nothing stored that our own readers
//! cannot read.

mod common;

use common::{Api, named, namespace_of, request, sample};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use store::{Action, DeleteOptions, Include, ListOptions, PatchKind, Subresource, registry, table};

/// Names that mean something to the server, so that random trees hit real fields.
const NAMES: &[&str] = &[
    "metadata",
    "name",
    "generateName",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "uid",
    "resourceVersion",
    "spec",
    "status",
    "ports",
    "port",
    "nodePort",
    "targetPort",
    "protocol",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "type",
    "selector",
    "matchLabels",
    "matchExpressions",
    "template",
    "containers",
    "initContainers",
    "env",
    "image",
    "volumes",
    "volumeMounts",
    "replicas",
    "strategy",
    "rollingUpdate",
    "maxSurge",
    "endpoints",
    "addresses",
    "addressType",
    "data",
    "stringData",
    "rules",
    "http",
    "paths",
    "ingress",
    "from",
    "ipBlock",
    "cidr",
    "taints",
    "podCIDR",
    "podCIDRs",
    "conditions",
    "podIPs",
    "containerStatuses",
    "state",
    "waiting",
    "running",
    "terminated",
    "startedAt",
    "finishedAt",
    "exitCode",
    "reason",
    "message",
    "lastTransitionTime",
    "nodeName",
    "nodeSelector",
    "hostname",
    "hostNetwork",
    "ready",
    "restartCount",
    "serving",
    "key",
    "effect",
    "value",
    "address",
    "unschedulable",
    "sessionAffinity",
    "sessionAffinityConfig",
    "clientIP",
    "timeoutSeconds",
    "publishNotReadyAddresses",
    "ip",
    "phase",
    "startTime",
    "restartPolicy",
    "containerPort",
    "$patch",
    "$retainKeys",
    "$setElementOrder/ports",
    "$deleteFromPrimitiveList/finalizers",
    "deletionTimestamp",
    "tolerations",
];

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..70_000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "a",
            "A",
            "None",
            "NodePort",
            "LoadBalancer",
            "ExternalName",
            "ClientIP",
            "IPv4",
            "IPv6",
            "10.96.0.7",
            "fd00::1",
            "replace",
            "delete",
            "100%",
            "2026-11-20T23:25:02Z",
            "é",
            "a/b",
            "-",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let member = (prop::sample::select(NAMES), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            prop::collection::vec(member, 0..6).prop_map(|members| {
                let map: Map<String, Value> =
                    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                Value::Object(map)
            }),
        ]
    })
}

/// Merges a random tree into a valid object: most of it stays meaningful.
fn graft(target: &mut Value, graft_in: &Value) {
    match (target, graft_in) {
        (Value::Object(target), Value::Object(graft_in)) => {
            for (name, value) in graft_in {
                graft(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (target, graft_in) => *target = graft_in.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_body_gets_an_answer(index in 0..registry::resources().count(), body in tree(), spec in tree()) {
        let resource = registry::resources().nth(index).expect("a row");
        let mut api = Api::new();
        let namespace = namespace_of(resource);
        let [one, two] = match resource.kind {
            "CustomResourceDefinition" => ["ones.example.com", "twos.example.com"],
            "IPAddress" => ["10.96.7.1", "10.96.7.2"],
            _ => ["one", "two"],
        };
        let start = request(resource, namespace, "", None, Action::Create(named(resource, one)));
        api.run(&start).expect("created");
        let mut grafted = named(resource, two);
        graft(&mut grafted, &json!({"spec": spec}));
        graft(&mut grafted, &body);
        let mut patch = sample(resource);
        graft(&mut patch, &body);
        let on_one = |subresource, action| request(resource, namespace, one, subresource, action);
        let mut requests = vec![
            request(resource, namespace, "", None, Action::Create(body.clone())),
            request(resource, namespace, "", None, Action::Create(grafted.clone())),
            on_one(None, Action::Update(body.clone())),
            on_one(None, Action::Update(grafted)),
            on_one(None, Action::Patch(PatchKind::Json, body.clone())),
        ];
        for kind in [PatchKind::Merge, PatchKind::Strategic] {
            for change in [&body, &patch, &json!({"spec": spec})] {
                requests.push(on_one(None, Action::Patch(kind, change.clone())));
                for subresource in [Subresource::Status, Subresource::Scale] {
                    let action = Action::Patch(kind, change.clone());
                    requests.push(on_one(Some(subresource), action));
                }
            }
        }
        requests.push(on_one(Some(Subresource::Binding), Action::Create(body.clone())));
        requests.push(on_one(Some(Subresource::Finalize), Action::Update(body.clone())));
        if let Ok(options) = DeleteOptions::from_value(&body) {
            requests.push(on_one(None, Action::Delete(options)));
        }
        for request in &requests {
            if let Err(status) = api.run(request) {
                prop_assert!((400..500).contains(&status.code), "{}: {request:?}", status);
            }
        }
        check_stored(&api)?;
    }
}

/// What is stored can be shown, and read by the narrow structs of our own programs.
fn check_stored(api: &Api) -> Result<(), TestCaseError> {
    for resource in registry::resources() {
        let list = api.store.list(resource, &ListOptions::default()).expect("a list");
        let objects = list.items.iter().map(|object| &**object);
        table::table(resource, objects, list.metadata(), api.now, Include::Object, true);
        for object in &list.items {
            let value = object.value.clone();
            let read = match resource.kind {
                "Pod" => serde_json::from_value::<model::Pod>(value).err(),
                "Service" => serde_json::from_value::<model::Service>(value).err(),
                "EndpointSlice" => serde_json::from_value::<model::EndpointSlice>(value).err(),
                "Node" => serde_json::from_value::<model::Node>(value).err(),
                _ => serde_json::from_value::<model::ObjectMeta>(value["metadata"].clone()).err(),
            };
            prop_assert!(read.is_none(), "{}: {:?}", object.value, read);
        }
    }
    Ok(())
}
