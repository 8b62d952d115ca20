//! The controllers over the running API server: real commits, real watches, real time.

mod support;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use client::{Client, ClientError, DeleteOptions, PatchKind, ResourcePath, WatchEvent, WatchSpec};
use controlplane::drive;
use serde_json::{Value, json};
use support::{Scratch, Server, config, eventually, now, start};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How soon a change of readiness must stand in the slice.
const READINESS_LIMIT: Duration = Duration::from_secs(1);
/// And nine more pods.
const SCALE_LIMIT: Duration = Duration::from_secs(3);

fn path(group_version: &'static str, plural: &'static str) -> ResourcePath {
    ResourcePath::new(group_version, plural).namespace("default")
}

struct Controllers {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Controllers {
    fn start(server: &Server) -> Self {
        let (stop, stopping) = watch::channel(false);
        let client = server.running.client();
        let task = tokio::spawn(drive::run(client, drive::config(config(), "CA".into()), stopping));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("the controllers end without a panic");
    }
}

/// Starts what is bound to a node and ends what is deleted, as a node's runtime does.
fn run_pods(client: Client) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut watcher = client.watch::<Value>(WatchSpec::new(ResourcePath::new("v1", "pods")));
        let mut started = 0;
        loop {
            let pods = match watcher.next().await {
                WatchEvent::Listed(pods) => pods,
                WatchEvent::Applied(pod) => vec![pod],
                _ => continue,
            };
            for pod in pods {
                started += 1;
                // A pod that is gone meanwhile, or that another event will show again.
                let _ = run_pod(&client, &pod, started).await;
            }
        }
    })
}

async fn run_pod(client: &Client, pod: &Value, number: u32) -> Result<(), ClientError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let path = path("v1", "pods").name(name);
    if pod["metadata"]["deletionTimestamp"].is_string() {
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        client.delete(&path, &options).await?;
    } else if pod["spec"]["nodeName"].is_string() && pod["status"]["podIP"].is_null() {
        let ip = format!("10.244.{}.{}", number / 250, number % 250 + 1);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": conditions("True")}});
        let path = path.subresource("status");
        client.patch::<_, Value>(&path, PatchKind::Strategic, &status).await?;
    }
    Ok(())
}

fn conditions(ready: &str) -> Value {
    let now = now().to_string();
    json!([{"type": "Ready", "status": ready, "lastTransitionTime": now},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": now}])
}

async fn add_node(client: &Client, name: &str) {
    let node = json!({"metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let path = ResourcePath::new("v1", "nodes");
    client.create::<_, Value>(&path, &node).await.expect("a node");
}

async fn add_web(client: &Client, replicas: u32) {
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    client.create::<_, Value>(&path("v1", "services"), &service).await.expect("a Service");
    let deployment = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "localhost/toolbox"}]}},
    }});
    let path = path("apps/v1", "deployments");
    client.create::<_, Value>(&path, &deployment).await.expect("a Deployment");
}

async fn list(client: &Client, path: &ResourcePath) -> Vec<Value> {
    client.list::<Value>(path, &client::ListOptions::default()).await.expect("a list").items
}

/// The names of the ready endpoints of the Service `web`.
async fn ready_endpoints(client: &Client) -> Vec<String> {
    let slices = list(client, &path("discovery.k8s.io/v1", "endpointslices")).await;
    let ours = slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    ours.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap_or_default().to_owned())
        .collect()
}

async fn scale(client: &Client, replicas: u32) {
    let path = path("apps/v1", "deployments").name("web").subresource("scale");
    let body = json!({"spec": {"replicas": replicas}});
    client.patch::<_, Value>(&path, PatchKind::Merge, &body).await.expect("scaled");
}

async fn settle_at(client: &Client, count: usize) -> Duration {
    let begin = Instant::now();
    eventually(&format!("{count} ready endpoints"), || async {
        ready_endpoints(client).await.len() == count
    })
    .await;
    begin.elapsed()
}

async fn set_ready(client: &Client, pod: &str, ready: &str) {
    let status = json!({"status": {"conditions": conditions(ready)}});
    let path = path("v1", "pods").name(pod).subresource("status");
    client.patch::<_, Value>(&path, PatchKind::Strategic, &status).await.expect("its readiness");
}

/// Does something that takes no longer than it may.
async fn in_time(what: &str, limit: Duration, mut measure: impl AsyncFnMut() -> Duration) {
    let took = measure().await;
    println!("{what}: {took:?}");
    assert!(took < limit, "{what}: {took:?}, and should in {limit:?}");
}

#[tokio::test]
async fn a_deployment_serves_scales_and_reports_readiness_in_time() {
    let scratch = Scratch::new("controllers");
    let server = start(&scratch.0, 0).await;
    let controllers = Controllers::start(&server);
    let runtime = run_pods(server.client.clone());
    for name in ["node1", "node2", "node3"] {
        add_node(&server.client, name).await;
    }
    add_web(&server.client, 1).await;
    settle_at(&server.client, 1).await;
    in_time("1 → 10", SCALE_LIMIT, async || {
        scale(&server.client, 1).await;
        settle_at(&server.client, 1).await;
        scale(&server.client, 10).await;
        settle_at(&server.client, 10).await
    })
    .await;
    let name = ready_endpoints(&server.client).await.swap_remove(0);
    in_time("readiness false in the slice", READINESS_LIMIT, async || {
        set_ready(&server.client, &name, "True").await;
        settle_at(&server.client, 10).await;
        set_ready(&server.client, &name, "False").await;
        settle_at(&server.client, 9).await
    })
    .await;

    scale(&server.client, 1).await;
    settle_at(&server.client, 1).await;
    eventually("one pod", || async { list(&server.client, &path("v1", "pods")).await.len() == 1 })
        .await;
    runtime.abort();
    controllers.stop().await;
    server.running.stop().await;
}

#[tokio::test]
async fn controllers_that_die_in_a_rollout_go_on_where_they_were() {
    let scratch = Scratch::new("controllers");
    let server = start(&scratch.0, 0).await;
    let runtime = run_pods(server.client.clone());
    add_node(&server.client, "node1").await;
    add_web(&server.client, 4).await;
    for round in 0..5 {
        let controllers = Controllers::start(&server);
        settle_at(&server.client, 4).await;
        let image = json!({"spec": {"template": {"spec": {"containers":
            [{"name": "c", "image": format!("localhost/toolbox:{round}")}]}}}});
        let deployment = path("apps/v1", "deployments").name("web");
        let patched =
            server.client.patch::<_, Value>(&deployment, PatchKind::Strategic, &image).await;
        patched.expect("a new template");
        // Anywhere in the rollout: the task is cut off at whatever it awaits.
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        controllers.task.abort();
        assert!(controllers.task.await.is_err_and(|error| error.is_cancelled()));
    }
    let controllers = Controllers::start(&server);
    eventually("the last template alone", || async {
        let pods = list(&server.client, &path("v1", "pods")).await;
        let last = |pod: &Value| pod["spec"]["containers"][0]["image"] == "localhost/toolbox:4";
        pods.len() == 4 && pods.iter().all(last)
    })
    .await;
    settle_at(&server.client, 4).await;
    runtime.abort();
    controllers.stop().await;
    server.running.stop().await;
}

/// A Secret that was made for it gets a token, which ends with the Secret, and with the account.
#[tokio::test]
async fn tokens_in_secrets_are_good_as_long_as_these() {
    let scratch = Scratch::new("controllers-tokens");
    let server = start(&scratch.0, 0).await;
    let controllers = Controllers::start(&server);
    let client = &server.client;
    let make = async |plural: &'static str, body: Value| {
        let made: Result<Value, ClientError> = client.create(&path("v1", plural), &body).await;
        made
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "robot"}});
    make("serviceaccounts", account).await.expect("an account");
    let secret = |annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "robot-token", "annotations": annotations},
            "type": "kubernetes.io/service-account-token"})
    };
    let refused = make("secrets", secret(json!({}))).await.expect_err("whose?").to_string();
    let why = "metadata.annotations[kubernetes.io/service-account.name]: Required value";
    assert!(refused.contains(why), "{refused}");
    let named = secret(json!({"kubernetes.io/service-account.name": "robot"}));
    make("secrets", named).await.expect("a secret");
    let secret = path("v1", "secrets").name("robot-token");
    let is_filled = async || {
        let found: Value = client.get(&secret).await.expect("the secret");
        found["data"]["token"].is_string()
    };
    eventually("a token", is_filled).await;
    let filled: Value = client.get(&secret).await.expect("the secret");
    let text = |key: &str| {
        let encoded = filled["data"][key].as_str().expect("text");
        String::from_utf8(STANDARD.decode(encoded).expect("base64")).expect("UTF-8")
    };
    assert_eq!((text("namespace").as_str(), text("ca.crt").as_str()), ("default", "CA"));
    let token = text("token");
    let review = async || {
        let path = ResourcePath::new("authentication.k8s.io/v1", "tokenreviews");
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token}});
        let answered: Value = client.create(&path, &body).await.expect("a review");
        answered["status"].clone()
    };
    assert_eq!(review().await["user"]["username"], "system:serviceaccount:default:robot");
    let claims = token.split('.').nth(1).expect("claims");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64url");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    let years = (claims["exp"].as_i64().expect("an end") - now().seconds()) / (365 * 86_400);
    assert!(years > 100, "it ends in {years} years");
    // Without its account the Secret goes, and the token with it.
    let account = path("v1", "serviceaccounts").name("robot");
    let gone: Result<Value, _> = client.delete(&account, &DeleteOptions::default()).await;
    gone.expect("deleted");
    let is_gone = async || {
        let found: Option<Value> = client.get_optional(&secret).await.expect("an answer");
        found.is_none()
    };
    eventually("the secret's end", is_gone).await;
    assert_eq!(review().await["authenticated"], Value::Null);
    controllers.stop().await;
    server.running.stop().await;
}
