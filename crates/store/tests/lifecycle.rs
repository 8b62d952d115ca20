//! Lives of the kinds that are special: pods, namespaces, events, scaled workloads.

mod common;

use std::time::Duration;

use common::{Api, named, object, row, sample};
use serde_json::{Value, json};
use store::{Action, PatchKind, Reply, Subresource};

fn pod(api: &mut Api, name: &str) -> Value {
    api.create("pods", "default", named(row("pods"), name)).expect("created").value.clone()
}

fn bind(api: &mut Api, name: &str, node: &str) -> Result<store::Staged, store::Status> {
    let body = json!({"target": {"kind": "Node", "name": node}});
    api.act("pods", "default", name, Some(Subresource::Binding), Action::Create(body))
}

#[test]
fn a_pod_gets_defaults_account_tolerations_and_phase() {
    let mut api = Api::new();
    let value = pod(&mut api, "web");
    let spec = &value["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    assert_eq!(spec["priority"], 0);
    assert_eq!(spec["enableServiceLinks"], true);
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(value["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
}

#[test]
fn the_image_tag_decides_the_pull_policy() {
    let mut api = Api::new();
    for (index, (image, policy)) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = named(row("pods"), &format!("p{index}"));
        body["spec"]["containers"][0]["image"] = image.into();
        let value = api.create("pods", "default", body).expect("created").value.clone();
        assert_eq!(value["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn a_bound_pod_is_bound_once_and_its_spec_is_frozen() {
    let mut api = Api::new();
    pod(&mut api, "web");
    let staged = bind(&mut api, "web", "node1").expect("bound");
    assert_eq!(staged.code, 201);
    let value = api.get("pods", "default", "web").expect("stored").value.clone();
    assert_eq!(value["spec"]["nodeName"], "node1");
    assert_eq!(value["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(
        bind(&mut api, "web", "node2").expect_err("bound already").message,
        "Operation cannot be fulfilled on pods \"web\": pod web is already assigned to node \
         \"node1\""
    );
    let body = json!({"spec": {"nodeName": "node2"}});
    let status = api.patch("pods", "default", "web", PatchKind::Merge, body).expect_err("frozen");
    assert!(status.message.contains("pod updates may not change fields other than"), "{status}");
    let body = json!({"spec": {"containers": [{"name": "web", "image": "nginx:1.28"}]}});
    api.patch("pods", "default", "web", PatchKind::Strategic, body).expect("the image may change");
    assert_eq!(api.names("pods", "", "spec.nodeName=node1"), ["web"]);
    assert_eq!(api.names("pods", "", "spec.nodeName=node1,status.phase!=Pending"), [""; 0]);
}

#[test]
fn a_running_pod_gets_its_grace_and_goes_when_the_node_says_so() {
    let mut api = Api::new();
    pod(&mut api, "web");
    bind(&mut api, "web", "node1").expect("bound");
    let Reply::Object(marked) = api.delete("pods", "default", "web", json!({})).expect("marked")
    else {
        panic!("a pod answers with itself");
    };
    assert_eq!(marked.value["metadata"]["deletionTimestamp"], "2026-11-20T23:25:32Z");
    assert_eq!(marked.value["metadata"]["deletionGracePeriodSeconds"], 30);
    // A longer grace changes nothing, a shorter one counts from the first deletion.
    api.now = api.now.after(Duration::from_secs(5));
    let before = api.store.revision();
    api.delete("pods", "default", "web", json!({"gracePeriodSeconds": 60})).expect("nothing");
    assert_eq!(api.store.revision(), before);
    api.delete("pods", "default", "web", json!({"gracePeriodSeconds": 10})).expect("shorter");
    let value = api.get("pods", "default", "web").expect("stored").value.clone();
    assert_eq!(value["metadata"]["deletionTimestamp"], "2026-11-20T23:25:12Z");
    api.delete("pods", "default", "web", json!({"gracePeriodSeconds": 0})).expect("gone");
    assert_eq!(api.get("pods", "default", "web").expect_err("gone").code, 404);
}

#[test]
fn a_pod_without_a_node_or_at_its_end_goes_at_once() {
    let mut api = Api::new();
    pod(&mut api, "unbound");
    api.delete("pods", "default", "unbound", json!({})).expect("gone");
    assert!(api.get("pods", "default", "unbound").is_err());
    pod(&mut api, "done");
    bind(&mut api, "done", "node1").expect("bound");
    let body = json!({"status": {"phase": "Succeeded"}});
    api.patch_status("pods", "default", "done", body).expect("done");
    api.delete("pods", "default", "done", json!({})).expect("gone");
    assert!(api.get("pods", "default", "done").is_err());
    pod(&mut api, "evicted");
    let action = Action::Create(json!({"metadata": {"name": "evicted"}}));
    let subresource = Some(Subresource::Eviction);
    let staged = api.act("pods", "default", "evicted", subresource, action).expect("evicted");
    assert_eq!(staged.code, 201);
    assert!(api.get("pods", "default", "evicted").is_err());
}

#[test]
fn a_namespace_ends_in_two_steps() {
    let mut api = Api::new();
    let created =
        api.create("namespaces", "", json!({"metadata": {"name": "shop"}})).expect("made");
    assert_eq!(created.label("kubernetes.io/metadata.name"), Some("shop"));
    assert_eq!(created.value["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(created.value["status"]["phase"], "Active");
    api.create("configmaps", "shop", named(row("configmaps"), "c")).expect("created");
    api.delete("namespaces", "", "shop", json!({})).expect("marked");
    let marked = api.get("namespaces", "", "shop").expect("still there");
    assert_eq!(marked.value["status"]["phase"], "Terminating");
    let status =
        api.create("configmaps", "shop", named(row("configmaps"), "d")).expect_err("terminating");
    assert_eq!(status.code, 403);
    assert_eq!(
        status.message,
        "configmaps \"d\" is forbidden: unable to create new content in namespace shop because it \
         is being terminated"
    );
    let cause = &status.details.expect("details").causes[0];
    assert_eq!(cause.reason, "NamespaceTerminating");
    let status = api.create("namespaces", "", json!({"metadata": {"name": "shop"}}));
    assert_eq!(
        status.expect_err("still there").message,
        "object is being deleted: namespaces \"shop\" already exists"
    );
    // Its content may change and go.
    let body = json!({"data": {"a": "1"}});
    api.patch("configmaps", "shop", "c", PatchKind::Merge, body).expect("an update is fine");
    api.delete("configmaps", "shop", "c", json!({})).expect("deleted");
    let mut value = marked.value.clone();
    value["spec"]["finalizers"] = json!([]);
    let finalize = Some(Subresource::Finalize);
    api.act("namespaces", "", "shop", finalize, Action::Update(value)).expect("finalized");
    assert_eq!(api.get("namespaces", "", "shop").expect_err("gone").code, 404);
}

#[test]
fn the_cluster_keeps_its_own_namespaces_and_ordinary_updates_keep_the_finalizer() {
    let mut api = Api::new();
    let status = api.delete("namespaces", "", "default", json!({})).expect_err("immortal");
    assert_eq!(
        status.message,
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
    let body = json!({"spec": {"finalizers": []}});
    let patched = api.patch("namespaces", "", "default", PatchKind::Merge, body).expect("ignored");
    assert_eq!(patched.value["spec"]["finalizers"], json!(["kubernetes"]));
}

#[test]
fn propagation_becomes_a_finalizer_for_the_garbage_collector() {
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        let mut api = Api::new();
        api.create("deployments", "default", named(row("deployments"), "web")).expect("created");
        let options = json!({"kind": "DeleteOptions", "propagationPolicy": policy});
        let Reply::Object(marked) =
            api.delete("deployments", "default", "web", options).expect("marked")
        else {
            panic!("{policy}: not gone yet");
        };
        assert_eq!(marked.value["metadata"]["finalizers"], json!([finalizer]));
        let generation = marked.value["metadata"]["generation"].as_i64();
        assert_eq!(generation, Some(2), "a deletion counts as a change to observe");
        // A deletion without a policy keeps to the first; one with another changes it.
        api.delete("deployments", "default", "web", json!({})).expect("marked already");
        let kept = api.get("deployments", "default", "web").expect("still there");
        assert_eq!(kept.value, marked.value);
        let mut value = marked.value.clone();
        value["metadata"]["finalizers"] = json!([]);
        api.update("deployments", "default", "web", value).expect("released");
        assert!(api.get("deployments", "default", "web").is_err());
    }
}

#[test]
fn a_background_deletion_overrides_an_earlier_foreground_one() {
    let mut api = Api::new();
    api.create("deployments", "default", named(row("deployments"), "web")).expect("created");
    let options = |policy: &str| json!({"propagationPolicy": policy});
    api.delete("deployments", "default", "web", options("Foreground")).expect("marked");
    let reply = api.delete("deployments", "default", "web", options("Background")).expect("gone");
    assert!(matches!(reply, Reply::Status(status) if status.is_success()));
    assert!(api.get("deployments", "default", "web").is_err());
    let status = api.delete("deployments", "default", "web", options("Sideways"));
    assert_eq!(
        status.expect_err("unknown").message,
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \
         \"Sideways\": supported values: \"Background\", \"Foreground\", \"Orphan\""
    );
}

#[test]
fn scale_reads_and_writes_the_replicas() {
    let mut api = Api::new();
    api.create("deployments", "default", named(row("deployments"), "web")).expect("created");
    let patch = |api: &mut Api, replicas: Value| {
        let body = json!({"spec": {"replicas": replicas}});
        let action = Action::Patch(PatchKind::Merge, body);
        api.act("deployments", "default", "web", Some(Subresource::Scale), action)
    };
    let staged = patch(&mut api, json!(3)).expect("scaled");
    let Reply::Value(scale) = staged.reply else { panic!("a Scale") };
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"], json!({"replicas": 0, "selector": "app=web"}));
    let value = api.get("deployments", "default", "web").expect("stored").value.clone();
    assert_eq!(
        (value["spec"]["replicas"].as_i64(), value["metadata"]["generation"].as_i64()),
        (Some(3), Some(2))
    );
    assert_eq!(api.store.get_scale(row("deployments"), "default", "web").expect("a Scale"), scale);
    assert_eq!(
        patch(&mut api, json!(-1)).expect_err("negative").message,
        "Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater \
         than or equal to 0"
    );
    assert_eq!(patch(&mut api, json!("x")).expect_err("text").code, 400);
}

#[test]
fn both_event_kinds_show_one_object() {
    let mut api = Api::new();
    let mut body = sample(row("events"));
    body["metadata"] = json!({"name": "web.1"});
    body["reason"] = "Scheduled".into();
    body["message"] = "assigned".into();
    body["count"] = 3.into();
    api.create("events", "default", body).expect("created");
    let new = api.get("events.v1", "default", "web.1").expect("the same").value.clone();
    assert_eq!(new["apiVersion"], "events.k8s.io/v1");
    assert_eq!(new["note"], "assigned");
    assert_eq!(new["deprecatedCount"], 3);
    assert_eq!(new["regarding"]["name"], "web");
    let patch = json!({"note": "bound"});
    api.patch("events.v1", "default", "web.1", PatchKind::Strategic, patch).expect("patched");
    let old = api.get("events", "default", "web.1").expect("the same").value.clone();
    assert_eq!(old["message"], "bound");
    assert_eq!(old["apiVersion"], "v1");
    assert_eq!(
        api.names("events", "", "involvedObject.name=web,involvedObject.kind=Pod"),
        ["web.1"]
    );
    assert_eq!(api.names("events.v1", "", "regarding.name=web"), ["web.1"]);
    assert_eq!(api.names("events", "", "involvedObject.name=other"), [""; 0]);
}

#[test]
fn an_update_of_an_absent_lease_creates_it_and_of_an_absent_pod_does_not() {
    let mut api = Api::new();
    let action = Action::Update(named(row("leases"), "n1"));
    let staged = api.act("leases", "default", "n1", None, action).expect("created");
    assert_eq!(staged.code, 201);
    let mut value = object(staged).value.clone();
    value["metadata"]["resourceVersion"] = Value::Null;
    let status = api.update("leases", "default", "n1", value).expect_err("a version is needed");
    assert_eq!(
        status.message,
        "Lease.coordination.k8s.io \"n1\" is invalid: metadata.resourceVersion: Invalid value: \
         \"\": must be specified for an update"
    );
    let status = api.update("pods", "default", "p", named(row("pods"), "p")).expect_err("absent");
    assert_eq!(status.message, "pods \"p\" not found");
}

#[test]
fn a_collection_goes_by_its_selectors() {
    let mut api = Api::new();
    for (name, tier) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = named(row("configmaps"), name);
        body["metadata"]["labels"] = json!({"tier": tier});
        api.create("configmaps", "default", body).expect("created");
    }
    let labels = store::selector::LabelSelector::parse("tier=x").expect("a selector");
    let action = Action::DeleteCollection(Default::default(), labels, Default::default());
    let staged = api.act("configmaps", "default", "", None, action).expect("deleted");
    let Reply::Objects(_, objects) = staged.reply else { panic!("a list") };
    assert_eq!(objects.len(), 2);
    assert_eq!(staged.records.len(), 2);
    assert_eq!(api.names("configmaps", "", ""), ["b"]);
    let action =
        Action::DeleteCollection(Default::default(), Default::default(), Default::default());
    assert_eq!(api.act("namespaces", "", "", None, action).expect_err("too much").code, 405);
}

#[test]
fn subresources_that_a_row_lacks_are_not_there() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    let action = Action::Update(json!({}));
    let status = api.act("configmaps", "default", "c", Some(Subresource::Status), action);
    assert_eq!(status.expect_err("no status").code, 404);
    assert_eq!(api.store.get_scale(row("pods"), "default", "p").expect_err("no scale").code, 404);
}

#[test]
fn workloads_must_select_their_own_pods() {
    let mut api = Api::new();
    let mut body = named(row("deployments"), "web");
    body["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    assert_eq!(
        api.create("deployments", "default", body).expect_err("refused").message,
        "Deployment.apps \"web\" is invalid: spec.template.metadata.labels: Invalid value: \
         {\"app\":\"web\"}: `selector` does not match template `labels`"
    );
    api.create("deployments", "default", named(row("deployments"), "web")).expect("created");
    let body = json!({"spec": {
        "selector": {"matchLabels": {"app": "new"}},
        "template": {"metadata": {"labels": {"app": "new"}}},
    }});
    let status = api.patch("deployments", "default", "web", PatchKind::Merge, body);
    assert_eq!(
        status.expect_err("immutable").message,
        "Deployment.apps \"web\" is invalid: spec.selector: Invalid value: \
         {\"matchLabels\":{\"app\":\"new\"}}: field is immutable"
    );
}

#[test]
fn a_secret_takes_text_and_an_immutable_one_nothing_more() {
    let mut api = Api::new();
    let body = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    let value = api.create("secrets", "default", body.clone()).expect("created").value.clone();
    assert_eq!(value["data"]["password"], "aHVudGVyMg==");
    assert_eq!(value["type"], "Opaque");
    let before = api.store.revision();
    api.patch("secrets", "default", "s", PatchKind::Strategic, body).expect("the same");
    assert_eq!(api.store.revision(), before);
    let bad = json!({"data": {"x": "not base64!"}});
    assert_eq!(
        api.patch("secrets", "default", "s", PatchKind::Merge, bad).expect_err("bad").code,
        422
    );
    api.patch("secrets", "default", "s", PatchKind::Merge, json!({"immutable": true}))
        .expect("set");
    let status = api.patch("secrets", "default", "s", PatchKind::Merge, json!({"data": {"a": ""}}));
    assert_eq!(
        status.expect_err("immutable").message,
        "Secret \"s\" is invalid: data: Forbidden: field is immutable when `immutable` is set"
    );
}

#[test]
fn a_pod_names_accounts_and_classes_that_exist() {
    let mut api = Api::new();
    let mut body = named(row("pods"), "p");
    body["spec"]["serviceAccountName"] = "robot".into();
    assert_eq!(
        api.create("pods", "default", body.clone()).expect_err("no account").message,
        "pods \"p\" is forbidden: error looking up service account default/robot: serviceaccount \
         \"robot\" not found"
    );
    api.create("serviceaccounts", "default", named(row("serviceaccounts"), "robot")).expect("made");
    let value = api.create("pods", "default", body).expect("created").value.clone();
    assert_eq!(value["spec"]["serviceAccount"], "robot");
    let mut body = named(row("pods"), "q");
    body["spec"]["priorityClassName"] = "urgent".into();
    assert_eq!(
        api.create("pods", "default", body.clone()).expect_err("no class").message,
        "pods \"q\" is forbidden: no PriorityClass with name urgent was found"
    );
    body["spec"]["priorityClassName"] = "system-node-critical".into();
    let value = api.create("pods", "default", body).expect("created").value.clone();
    assert_eq!(value["spec"]["priority"], 2_000_001_000_i64);
}

#[test]
fn faults_of_a_pod_spec_are_named_by_their_fields() {
    let mut api = Api::new();
    for (spec, message) in [
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [
                {"name": "v", "mountPath": "/v"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x"}]}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
             \"Never\", \"OnFailure\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "livenessProbe": {}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 \
             and 65535, inclusive",
        ),
    ] {
        let body = json!({"metadata": {"name": "p"}, "spec": spec});
        let status = api.create("pods", "default", body).expect_err("refused");
        assert_eq!(status.message, format!("Pod \"p\" is invalid: {message}"));
    }
    let body = json!({"metadata": {"name": "p"}, "spec": {"containers": "x"}});
    assert_eq!(
        api.create("pods", "default", body).expect_err("a type").message,
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go \
         struct field PodSpec.spec.containers of type []v1.Container"
    );
}

#[test]
fn faults_of_policies_slices_and_ingresses_are_named() {
    let mut api = Api::new();
    for (plural, body, message) in [
        (
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {
                "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}}),
            "NetworkPolicy.networking.k8s.io \"x\" is invalid: \
             spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a \
             strict subset of `cidr`",
        ),
        (
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "egress": [{"to": [{}]}]}}),
            "NetworkPolicy.networking.k8s.io \"x\" is invalid: spec.egress[0].to[0]: Required \
             value: must specify a peer",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]}),
            "EndpointSlice.discovery.k8s.io \"x\" is invalid: endpoints[0].addresses[0]: Invalid \
             value: \"fd00::1\": must be a valid IPv4 address",
        ),
        (
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": vec![json!({"addresses": ["10.0.0.1"]}); 1001]}),
            "EndpointSlice.discovery.k8s.io \"x\" is invalid: endpoints: Too many: 1001: must have \
             at most 1000 items",
        ),
        (
            "ingresses",
            json!({"spec": {"rules": [{"http": {"paths": [{"path": "/", "backend": {
                "service": {"name": "web", "port": {"number": 80}}}}]}}]}}),
            "Ingress.networking.k8s.io \"x\" is invalid: spec.rules[0].http.paths[0].pathType: \
             Required value: pathType must be specified",
        ),
    ] {
        let mut body = body;
        body["metadata"] = json!({"name": "x"});
        let status = api.create(plural, "default", body).expect_err("refused");
        assert_eq!(status.message, message);
    }
}

#[test]
fn an_absent_list_and_an_empty_one_stay_apart() {
    let mut api = Api::new();
    let open = json!({"metadata": {"name": "open"}, "spec": {"podSelector": {}, "ingress": [{}]}});
    let shut = json!({"metadata": {"name": "shut"}, "spec": {"podSelector": {}, "ingress": []}});
    for (body, ingress) in [(open, json!([{}])), (shut, json!([]))] {
        let value = api.create("networkpolicies", "default", body).expect("created").value.clone();
        assert_eq!(value["spec"]["ingress"], ingress);
        assert_eq!(value["spec"]["podSelector"], json!({}));
        assert_eq!(value["spec"]["policyTypes"], json!(["Ingress"]));
    }
}

#[test]
fn containers_find_the_token_of_their_account_where_clients_look_for_it() {
    const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mut api = Api::new();
    for (name, automount) in [("open", json!(null)), ("closed", json!(false))] {
        let mut account = named(row("serviceaccounts"), name);
        account["automountServiceAccountToken"] = automount;
        account["imagePullSecrets"] = json!([{"name": "registry"}]);
        api.create("serviceaccounts", "default", account).expect("made");
    }
    let mut created = |name: &str, account: &str, own: Value, mounts: Value| {
        let mut body = named(row("pods"), name);
        body["spec"]["serviceAccountName"] = account.into();
        // Null is what the pod does not say.
        body["spec"]["automountServiceAccountToken"] = own;
        body["spec"]["containers"][0]["volumeMounts"] = mounts;
        body["spec"]["initContainers"] = json!([{"name": "first", "image": "i"}]);
        body["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
        api.create("pods", "default", body).expect("created").value["spec"].clone()
    };
    let spec = created("a", "open", json!(null), json!([]));
    let name = spec["volumes"][1]["name"].as_str().expect("a volume");
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    let mount = json!({"name": name, "mountPath": PLACE, "readOnly": true});
    for list in ["initContainers", "containers"] {
        assert_eq!(spec[list][0]["volumeMounts"], json!([mount]), "{list}");
    }
    let sources = &spec["volumes"][1]["projected"]["sources"];
    assert_eq!(
        sources[0],
        json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}})
    );
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
    // A mount of the pod's own at that place stays.
    let own = json!([{"name": "own", "mountPath": PLACE}]);
    let spec = created("b", "open", json!(null), own.clone());
    assert_eq!(spec["containers"][0]["volumeMounts"], own);
    assert_eq!(spec["initContainers"][0]["volumeMounts"].as_array().map(Vec::len), Some(1));
    for (name, account, own, shown) in [
        ("c", "closed", json!(null), false),
        ("d", "closed", json!(true), true),
        ("e", "open", json!(false), false),
    ] {
        let spec = created(name, account, own, json!([]));
        assert_eq!(
            spec["volumes"].as_array().map(Vec::len),
            Some(1 + usize::from(shown)),
            "{name}"
        );
    }
}

#[test]
fn containers_are_added_to_a_pod_and_never_changed() {
    const PART: Option<Subresource> = Some(Subresource::EphemeralContainers);
    let mut api = Api::new();
    pod(&mut api, "web");
    let body = |containers: Value| json!({"spec": {"ephemeralContainers": containers}});
    let mut add = |patch: Value| {
        let staged =
            api.act("pods", "default", "web", PART, Action::Patch(PatchKind::Strategic, patch));
        staged.map(|staged| object(staged).value["spec"].clone())
    };
    let own = add(body(json!([]))).expect("nothing to do")["containers"][0]["name"].clone();
    let debugger = json!({"name": "debug", "image": "busybox", "targetContainerName": own,
        "stdin": true, "tty": true, "resources": {}});
    let spec = add(body(json!([debugger]))).expect("added");
    let added = spec["ephemeralContainers"].clone();
    assert_eq!(added[0]["imagePullPolicy"], "Always");
    assert_eq!(added[0]["terminationMessagePath"], "/dev/termination-log");
    let second = json!({"name": "again", "image": "busybox:1"});
    let spec = add(body(json!([second]))).expect("added");
    assert_eq!(spec["ephemeralContainers"].as_array().map(Vec::len), Some(2));
    // The rest of the pod is not this part.
    let moved = json!({"spec": {"nodeName": "elsewhere", "hostNetwork": true}});
    assert_eq!(add(moved).expect("nothing changed"), spec);
    let prefix = "Pod \"web\" is invalid: spec.ephemeralContainers";
    for (containers, fault) in [
        (
            json!([{"name": "debug", "image": "other"}]),
            ": Forbidden: existing ephemeral containers \"debug\" may not be changed\n",
        ),
        (
            json!([{"name": "debug", "$patch": "delete"}]),
            ": Forbidden: existing ephemeral containers \"debug\" may not be removed\n",
        ),
        (json!([{"name": own, "image": "i"}]), "[2].name: Duplicate value: "),
        (
            json!([{"name": "x", "image": "i", "targetContainerName": "none"}]),
            "[2].targetContainerName: Not found: \"none\"",
        ),
        (
            json!([{"name": "x", "image": "i", "ports": [{"containerPort": 1}]}]),
            "[2].ports: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (json!([{"name": "x"}]), "[2].image: Required value"),
    ] {
        let message = add(body(containers)).expect_err(fault).message;
        assert!(message.starts_with(&format!("{prefix}{fault}")), "{message}");
    }
    let status = api.patch("pods", "default", "web", PatchKind::Strategic, body(json!([second])));
    status.expect("the same as before");
    let other = body(json!([{"name": "third", "image": "i"}]));
    let status = api.patch("pods", "default", "web", PatchKind::Strategic, other.clone());
    assert!(status.expect_err("not here").message.contains("pod updates may not change fields"));
    let mut early = named(row("pods"), "early");
    early["spec"]["ephemeralContainers"] = other["spec"]["ephemeralContainers"].clone();
    let message = api.create("pods", "default", early).expect_err("too early").message;
    assert!(message.ends_with("spec.ephemeralContainers: Forbidden: cannot be set on create"));
    // kubectl before 1.22 has a kind of its own for this, and is not shown what is there.
    let old_form = json!({"apiVersion": "v1", "kind": "EphemeralContainers",
        "metadata": {"name": "web"}, "ephemeralContainers": [{"name": "old", "image": "i"}]});
    let staged = api.act("pods", "default", "web", PART, Action::Update(old_form)).expect("added");
    let value = object(staged).value.clone();
    assert_eq!(value["spec"]["ephemeralContainers"].as_array().map(Vec::len), Some(3));
}
