//! What `kubectl` shows and sends, as recorded: the manifests, applied twice, and the Tables.

mod common;

use std::time::Duration;

use common::{Api, named, row};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Action, Include, PatchKind, Request, Resource, Subresource, registry, table};

fn manifests() -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(include_str!("data/kubectl-manifests.yaml"))
        .map(|document| Value::deserialize(document).expect("YAML"))
        .collect()
}

fn resource_of(manifest: &Value) -> &'static Resource {
    let text = |field: &str| manifest[field].as_str().expect("text");
    registry::by_kind(text("apiVersion"), text("kind")).expect("a kind that is served")
}

fn request(manifest: &Value, name: &str, action: Action) -> Request {
    let resource = resource_of(manifest);
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    Request { resource, namespace, name: name.to_owned(), subresource: None, action }
}

/// A cluster with the manifests applied and a node.
fn applied() -> Api {
    let mut api = Api::new();
    for manifest in manifests() {
        api.run(&request(&manifest, "", Action::Create(manifest.clone())))
            .unwrap_or_else(|status| panic!("{manifest}: {status}"));
    }
    api
}

/// What `kubectl get` prints of a Table (without the columns of `-o wide` unless asked for).
fn printed(api: &Api, plural: &str, namespace: &str, wide: bool) -> Vec<String> {
    let resource = row(plural);
    let options = store::ListOptions { namespace: namespace.to_owned(), ..Default::default() };
    let list = api.store.list(resource, &options).expect("a list");
    let objects = list.items.iter().map(|object| &**object);
    let table = table::table(resource, objects, list.metadata(), api.now, Include::Metadata, true);
    let columns = table["columnDefinitions"].as_array().expect("columns").clone();
    let shown: Vec<usize> =
        (0..columns.len()).filter(|index| wide || columns[*index]["priority"] == 0).collect();
    let mut rows: Vec<Vec<String>> = vec![
        shown
            .iter()
            .map(|index| columns[*index]["name"].as_str().expect("a name").to_uppercase())
            .collect(),
    ];
    for row in table["rows"].as_array().expect("rows") {
        rows.push(
            shown
                .iter()
                .map(|index| match &row["cells"][*index] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
                .collect(),
        );
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0) + 3;
    rows.iter()
        .map(|row| {
            let cells = row.iter().enumerate().map(|(at, cell)| format!("{cell:<0$}", width(at)));
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect()
}

#[test]
fn the_recorded_manifests_apply_and_a_second_time_change_nothing() {
    let mut api = applied();
    let before = api.store.revision();
    for manifest in manifests() {
        let name = manifest["metadata"]["name"].as_str().expect("a name").to_owned();
        let action = Action::Patch(PatchKind::Strategic, manifest.clone());
        api.run(&request(&manifest, &name, action)).unwrap_or_else(|s| panic!("{manifest}: {s}"));
        assert_eq!(api.store.revision(), before, "{manifest}");
    }
}

#[test]
fn services_print_as_recorded() {
    let mut api = applied();
    api.now = api.now.after(Duration::from_secs(10));
    let lines = printed(&api, "services", "shop", true);
    let spec =
        |name: &str| api.get("services", "shop", name).expect("stored").value["spec"].clone();
    let ip = |name: &str| spec(name)["clusterIP"].as_str().expect("an address").to_owned();
    let port = |name: &str, index: usize| spec(name)["ports"][index]["nodePort"].clone();
    let rows = [
        ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]
            .map(String::from),
        ["ext", "ExternalName", "<none>", "example.org", "<none>", "10s", "<none>"]
            .map(String::from),
        ["headless", "ClusterIP", "None", "<none>", "80/TCP", "10s", "app=web"].map(String::from),
        ["web", "ClusterIP", &ip("web"), "<none>", "80/TCP", "10s", "app=web"].map(String::from),
        [
            "weblb",
            "LoadBalancer",
            &ip("weblb"),
            "<pending>",
            &format!("80:{}/TCP", port("weblb", 0)),
            "10s",
            "app=web",
        ]
        .map(String::from),
        [
            "webnp",
            "NodePort",
            &ip("webnp"),
            "<none>",
            &format!("80:{}/TCP,53:{}/UDP", port("webnp", 0), port("webnp", 1)),
            "10s",
            "app=web",
        ]
        .map(String::from),
    ];
    let words: Vec<Vec<&str>> =
        lines.iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        words,
        rows.iter()
            .map(|row| row.iter().map(String::as_str).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    );
}

#[test]
fn the_recorded_service_has_the_recorded_defaults() {
    let api = applied();
    let value = api.get("services", "shop", "web").expect("stored").value.clone();
    let ip = value["spec"]["clusterIP"].clone();
    assert_eq!(
        value["spec"],
        json!({
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
            "selector": {"app": "web"},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        })
    );
    assert_eq!(value["status"], json!({"loadBalancer": {}}));
}

#[test]
fn other_kinds_print_as_recorded() {
    let mut api = applied();
    let mut pod = named(row("pods"), "one-xsqcq");
    pod["metadata"]["namespace"] = "shop".into();
    api.create("pods", "shop", pod).expect("created");
    api.now = api.now.after(Duration::from_secs(16));
    for (plural, wide, expected) in [
        (
            "pods",
            true,
            vec![
                "NAME        READY   STATUS    RESTARTS   AGE   IP       NODE     NOMINATED NODE   READINESS GATES",
                "one-xsqcq   0/1     Pending   0          16s   <none>   <none>   <none>           <none>",
            ],
        ),
        (
            "endpointslices",
            false,
            vec![
                "NAME     ADDRESSTYPE   PORTS   ENDPOINTS   AGE",
                "manual   IPv4          80      10.1.2.3    16s",
            ],
        ),
        (
            "daemonsets",
            false,
            vec![
                "NAME   DESIRED   CURRENT   READY   UP-TO-DATE   AVAILABLE   NODE SELECTOR   AGE",
                "ds     0         0         0       0            0           <none>          16s",
            ],
        ),
        (
            "deployments",
            false,
            vec![
                "NAME   READY   UP-TO-DATE   AVAILABLE   AGE",
                "web    0/2     0            0           16s",
            ],
        ),
        ("statefulsets", false, vec!["NAME   READY   AGE", "db     0/1     16s"]),
        ("configmaps", false, vec!["NAME   DATA   AGE", "cfg    1      16s"]),
    ] {
        assert_eq!(printed(&api, plural, "shop", wide), expected, "{plural}");
    }
}

#[test]
fn a_pod_shows_what_it_is_doing() {
    let running = json!({"running": {"startedAt": "2026-11-20T23:25:02Z"}});
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let ended =
        |code: i64, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
    let status = |phase: &str, states: Vec<(Value, bool)>| {
        let statuses: Vec<Value> = states
            .into_iter()
            .map(|(state, ready)| json!({"name": "web", "state": state, "ready": ready, "restartCount": 0}))
            .collect();
        json!({"phase": phase, "containerStatuses": statuses})
    };
    let mut restarted = status("Running", vec![(running.clone(), true)]);
    restarted["containerStatuses"][0]["restartCount"] = 3.into();
    restarted["containerStatuses"][0]["lastState"] =
        json!({"terminated": {"exitCode": 1, "finishedAt": "2026-11-20T23:25:02Z"}});
    let init = |state: Value| {
        json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "init", "state": state, "restartCount": 0}]})
    };
    for (status, ready, text, restarts) in [
        (json!({"phase": "Pending"}), "0/1", "Pending", "0"),
        (status("Running", vec![(running.clone(), true)]), "1/1", "Running", "0"),
        (status("Running", vec![(running, false)]), "0/1", "Running", "0"),
        (
            status("Pending", vec![(waiting("ContainerCreating"), false)]),
            "0/1",
            "ContainerCreating",
            "0",
        ),
        (
            status("Running", vec![(waiting("CrashLoopBackOff"), false)]),
            "0/1",
            "CrashLoopBackOff",
            "0",
        ),
        (status("Succeeded", vec![(ended(0, "Completed"), false)]), "0/1", "Completed", "0"),
        (status("Failed", vec![(ended(7, ""), false)]), "0/1", "ExitCode:7", "0"),
        (restarted, "1/1", "Running", "3 (60s ago)"),
        (init(json!({"running": {}})), "0/1", "Init:0/1", "0"),
        (init(waiting("ErrImagePull")), "0/1", "Init:ErrImagePull", "0"),
        (init(ended(1, "Error")), "0/1", "Init:Error", "0"),
    ] {
        let mut api = Api::new();
        let mut body = named(row("pods"), "p");
        if status.get("initContainerStatuses").is_some() {
            body["spec"]["initContainers"] = json!([{"name": "init", "image": "x:1"}]);
        }
        api.create("pods", "default", body).expect("created");
        let patch = json!({"status": status});
        api.patch_status("pods", "default", "p", patch).expect("accepted");
        api.now = api.now.after(Duration::from_secs(60));
        let lines = printed(&api, "pods", "default", false);
        let expected = format!("p {ready} {text} {restarts} 60s");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>().join(" "), expected);
    }
}

#[test]
fn a_node_shows_its_state_roles_and_addresses() {
    let mut api = Api::new();
    let node = json!({
        "metadata": {"name": "node1", "labels": {"node-role.kubernetes.io/worker": ""}},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "172.30.0.2"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.33.1"},
        },
    });
    let value = api.create("nodes", "", node).expect("created").value.clone();
    assert_eq!(value["spec"]["podCIDRs"], json!(["10.244.1.0/24"]));
    api.patch("nodes", "", "node1", PatchKind::Strategic, json!({"spec": {"unschedulable": true}}))
        .expect("cordoned");
    let lines = printed(&api, "nodes", "", true);
    let cells: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(
        cells,
        [
            "node1",
            "Ready,SchedulingDisabled",
            "worker",
            "0s",
            "v1.33.1",
            "172.30.0.2",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ]
    );
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let action = Action::Patch(PatchKind::Strategic, status);
    api.act("nodes", "", "node1", Some(Subresource::Status), action).expect("accepted");
    assert!(printed(&api, "nodes", "", false)[1].contains("NotReady,SchedulingDisabled"));
}
