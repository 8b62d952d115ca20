//! Services over the running API server, by several writers at once, and what the controllers add.

mod support;

use std::collections::BTreeMap;

use client::{
    Client, ClientError, DeleteOptions, List, ListOptions, PatchKind, ResourcePath, WatchEvent,
    WatchSpec,
};
use controlplane::drive;
use serde_json::{Value, json};
use support::{Scratch, Server, config, eventually, start_with, within};
use tokio::sync::watch;
use tokio::task::JoinSet;

fn services() -> ResourcePath {
    ResourcePath::new("v1", "services").namespace("default")
}

fn slices() -> ResourcePath {
    ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default")
}

fn networking(plural: &'static str) -> ResourcePath {
    ResourcePath::new("networking.k8s.io/v1", plural)
}

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["ports"] = spec.get("ports").cloned().unwrap_or_else(|| json!([{"port": 80}]));
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

async fn create(client: &Client, name: &str, spec: Value) -> Result<Value, ClientError> {
    client.create(&services(), &service(name, spec)).await
}

async fn list(client: &Client, path: &ResourcePath) -> Vec<Value> {
    let list: List<Value> = client.list(path, &ListOptions::default()).await.expect("a list");
    list.items
}

/// A server whose range of Service addresses has 14 of them.
async fn small(scratch: &Scratch) -> Server {
    let range = "10.96.0.0/28".parse().expect("a range");
    start_with(&scratch.0, 0, |options| options.config.service_cidrs = vec![range]).await
}

/// Runs the controllers while something happens.
async fn with_controllers(server: &Server, run: impl AsyncFnOnce(&Client)) {
    let (stop, stopping) = watch::channel(false);
    let mut settings = drive::config(config(), "CA".into());
    settings.max_endpoints_per_slice = 3;
    let controllers = tokio::spawn(drive::run(server.running.client(), settings, stopping));
    run(&server.client).await;
    stop.send_replace(true);
    controllers.await.expect("the controllers end without a panic");
}

/// S-13: two writers, one range: nothing is given twice, whoever asks and however.
#[tokio::test]
async fn two_writers_never_get_the_same_address_or_port() {
    let scratch = Scratch::new("services");
    let server = start_with(&scratch.0, 0, |options| {
        options.config.service_cidrs = vec!["10.96.0.0/25".parse().expect("a range")];
        options.config.node_port_range = (30_000, 30_063);
    })
    .await;
    let writers = [
        Client::from_kubeconfig(&server.kubeconfig).await.expect("a client"),
        Client::from_kubeconfig(&server.kubeconfig).await.expect("a client"),
    ];
    let mut tasks = JoinSet::new();
    for index in 0..30_u16 {
        for (writer, client) in writers.iter().cloned().enumerate() {
            tasks.spawn(async move {
                let fixed = json!({"type": "NodePort", "clusterIP": format!("10.96.0.{}", index + 64),
                    "ports": [{"port": 80, "nodePort": 30_030 + index}]});
                let one = create(&client, &format!("fixed-{index}-{writer}"), fixed).await;
                let any = json!({"type": "NodePort"});
                let two = create(&client, &format!("any-{index}-{writer}"), any).await;
                (index, one.is_ok(), two.is_ok())
            });
        }
    }
    let mut fixed: BTreeMap<u16, usize> = BTreeMap::new();
    let mut given = 0;
    while let Some(done) = within("a writer", tasks.join_next()).await {
        let (index, one, two) = done.expect("no panic");
        *fixed.entry(index).or_default() += usize::from(one);
        given += usize::from(two);
    }
    assert!(fixed.values().all(|winners| *winners <= 1), "{fixed:?}");
    let all = list(&server.client, &services()).await;
    let mut addresses: Vec<String> = Vec::new();
    let mut ports: Vec<u64> = Vec::new();
    for one in &all {
        addresses.push(one["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned());
        ports.extend(one["spec"]["ports"][0]["nodePort"].as_u64());
    }
    let count = fixed.values().sum::<usize>() + given;
    assert_eq!(all.len(), count + 1, "those and `kubernetes`");
    assert!(count >= 60, "{count} of them: the ranges have room for 64 ports");
    assert_eq!(ports.len(), count, "each has one");
    let objects = list(&server.client, &networking("ipaddresses")).await;
    let mut held: Vec<String> = objects
        .iter()
        .map(|one| one["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    // `kube-dns` lives elsewhere.
    addresses.push("10.96.0.10".to_owned());
    for values in [&mut addresses, &mut held] {
        values.sort();
    }
    assert_eq!(addresses, held, "each address is one object, none is twice");
    ports.sort_unstable();
    let before = ports.len();
    ports.dedup();
    assert_eq!(ports.len(), before, "a port is given twice");
    server.running.stop().await;
}

/// S-13: a range that is added at run time is used at once, and goes when nothing needs it.
#[tokio::test]
async fn a_range_is_added_used_and_given_up() {
    let scratch = Scratch::new("services");
    let server = small(&scratch).await;
    with_controllers(&server, async |client| {
        let mut names = Vec::new();
        // Two of the fourteen addresses are the cluster's own.
        for index in 0..12 {
            names.push(format!("s{index}"));
            create(client, &names[index], json!({})).await.expect("room");
        }
        let full = create(client, "more", json!({})).await.expect_err("full");
        assert!(full.to_string().contains("range is full"), "{full}");
        let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/28"]}});
        let path = networking("servicecidrs");
        client.create::<_, Value>(&path, &range).await.expect("a range");
        let more = create(client, "more", json!({})).await.expect("room");
        let address = more["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        assert!(address.starts_with("10.97.0."), "{address}");
        let path = path.name("more");
        let ready = async |status: &str| {
            let found: Option<Value> = client.get_optional(&path).await.expect("an answer");
            found.is_some_and(|found| found["status"]["conditions"][0]["status"] == status)
        };
        eventually("Ready", async || ready("True").await).await;
        client.delete(&path, &DeleteOptions::default()).await.expect("marked");
        eventually("Terminating", async || ready("False").await).await;
        client
            .delete(&services().name("more"), &DeleteOptions::default())
            .await
            .expect("the last of its Services");
        eventually("the range goes", async || {
            client.get_optional::<Value>(&path).await.expect("an answer").is_none()
        })
        .await;
    })
    .await;
    server.running.stop().await;
}

/// S-17: Endpoints that people write stand in slices as long as they are there.
#[tokio::test]
async fn custom_endpoints_are_mirrored() {
    let scratch = Scratch::new("services");
    let server = small(&scratch).await;
    with_controllers(&server, async |client| {
        create(client, "db", json!({"ports": [{"name": "sql", "port": 5432}]})).await.expect("one");
        let path = ResourcePath::new("v1", "endpoints").namespace("default");
        let object = |address: &str| {
            json!({"metadata": {"name": "db"}, "subsets": [
                {"addresses": [{"ip": address}], "ports": [{"name": "sql", "port": 5432}]}]})
        };
        let mirrored = async || -> Vec<Value> {
            let all = list(client, &slices()).await;
            let label = "endpointslice.kubernetes.io/managed-by";
            let ours = all.into_iter().filter(|slice| {
                slice["metadata"]["labels"][label] == "endpointslicemirroring-controller.k8s.io"
            });
            ours.map(|slice| slice["endpoints"][0]["addresses"][0].clone()).collect()
        };
        client.create::<_, Value>(&path, &object("192.0.2.1")).await.expect("created");
        eventually("a slice", async || mirrored().await == [json!("192.0.2.1")]).await;
        let db = path.name("db");
        client.update::<_, Value>(&db, &object("192.0.2.2")).await.expect("changed");
        eventually("another address", async || mirrored().await == [json!("192.0.2.2")]).await;
        let selector = json!({"spec": {"selector": {"app": "db"}}});
        let path = services().name("db");
        client.patch::<_, Value>(&path, PatchKind::Merge, &selector).await.expect("changed");
        eventually("no copy of what pods are selected for", async || mirrored().await.is_empty())
            .await;
    })
    .await;
    server.running.stop().await;
}

/// S-17: a slice takes as many endpoints as is configured.
#[tokio::test]
async fn slices_have_the_configured_size() {
    let scratch = Scratch::new("services");
    let server = small(&scratch).await;
    with_controllers(&server, async |client| {
        let node = json!({"metadata": {"name": "node1"}});
        client.create::<_, Value>(&ResourcePath::new("v1", "nodes"), &node).await.expect("a node");
        create(client, "web", json!({"selector": {"app": "web"}})).await.expect("created");
        let pods = ResourcePath::new("v1", "pods").namespace("default");
        for index in 0..8 {
            let name = format!("p{index}");
            let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}},
                "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "i"}]}});
            client.create::<_, Value>(&pods, &pod).await.expect("a pod");
            let status = json!({"status": {"phase": "Running",
                "podIPs": [{"ip": format!("10.244.0.{}", index + 2)}],
                "conditions": [{"type": "Ready", "status": "True"}]}});
            let path = pods.clone().name(&name).subresource("status");
            client.patch::<_, Value>(&path, PatchKind::Merge, &status).await.expect("running");
        }
        eventually("eight endpoints in slices of at most three", async || {
            let all = list(client, &slices()).await;
            let sizes: Vec<usize> = all
                .iter()
                .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web")
                .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
                .collect();
            assert!(sizes.iter().all(|size| *size <= 3), "{sizes:?}");
            sizes.iter().sum::<usize>() == 8
        })
        .await;
    })
    .await;
    server.running.stop().await;
}

/// The conformance rows "status lifecycle" and "deletecollection" of Services.
#[tokio::test]
async fn a_service_lives_through_its_status_and_goes_with_its_collection() {
    let scratch = Scratch::new("services");
    let server = small(&scratch).await;
    let client = &server.client;
    let labelled = |name: &str| {
        let mut body = service(name, json!({"type": "LoadBalancer"}));
        body["metadata"]["labels"] = json!({"set": "a"});
        body
    };
    for name in ["one", "two"] {
        client.create::<_, Value>(&services(), &labelled(name)).await.expect("created");
    }
    create(client, "other", json!({})).await.expect("created");
    let mut watcher = client.watch::<Value>(WatchSpec::new(services()));
    let WatchEvent::Listed(listed) = within("a list", watcher.next()).await else {
        panic!("no list first")
    };
    assert_eq!(listed.len(), 4, "with `kubernetes`");
    let path = services().name("one");
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let to_status = path.clone().subresource("status");
    client.patch::<_, Value>(&to_status, PatchKind::Merge, &status).await.expect("patched");
    let mut found: Value = client.get(&path).await.expect("it");
    let ingress = json!([{"ip": "203.0.113.1", "ipMode": "VIP"}]);
    assert_eq!(found["status"]["loadBalancer"]["ingress"], ingress);
    found["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True",
        "reason": "E2E", "message": "Set", "lastTransitionTime": "2026-11-21T00:00:00Z"}]);
    client.update::<_, Value>(&to_status, &found).await.expect("updated");
    let seen = within("the change by watch", async {
        loop {
            if let WatchEvent::Applied(value) = watcher.next().await
                && value["status"]["conditions"][0]["type"] == "StatusUpdate"
            {
                return value;
            }
        }
    })
    .await;
    assert_eq!(seen["metadata"]["name"], "one");
    let endpoint = support::endpoint(&server);
    let request = hyper::Request::builder()
        .method(hyper::Method::DELETE)
        .uri("/api/v1/namespaces/default/services?labelSelector=set%3Da")
        .body(http_body_util::Full::new(hyper::body::Bytes::new()))
        .expect("a request");
    let answer = within("an answer", endpoint.send_once(request)).await.expect("an answer");
    assert!(answer.status().is_success(), "{:?}", answer.status());
    let left = list(client, &services()).await;
    let names: Vec<&str> = left.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["kubernetes", "other"]);
    server.running.stop().await;
}
