//! Images of a registry that asks who they are for, as private registries do. It listens on the
//! loopback of one node, where plain HTTP is allowed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, READY, flatnet};
use e2e::eventually;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use netlink::Netns;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use super::containers::{CONFIG, LAYER, digest_of, write_image};
use super::world::World;

const NAMESPACE: &str = "registry";
const REPOSITORY: &str = "shop/web";
const TAG: &str = "1";
/// Who is let in, and how that is told (RFC 7617).
const USER: &str = "me";
const PASSWORD: &str = "secret";
const AUTHORIZATION: &str = "Basic bWU6c2VjcmV0";

/// What the registry has, by path.
type Documents = BTreeMap<String, Bytes>;

/// A pod with the right password runs the image. One with a wrong password does not, although the
/// image is on its node by then: `Always` asks the registry for each pod.
pub fn pulled_by_who_may(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let node = &cluster.nodes[0];
    let (documents, digest) = image()?;
    let registry = Registry::start(&world.network_of(node), documents)?;
    let name = format!("{}/{REPOSITORY}", registry.address);
    let image = format!("{name}:{TAG}");
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    create_secret(cluster, "right", &registry, PASSWORD)?;
    create_secret(cluster, "wrong", &registry, "guess")?;
    cluster.apply(&pod("right", node, &image))?;
    let right = cluster.pod_ready(NAMESPACE, "right")?;
    let id = &right["status"]["containerStatuses"][0]["imageID"];
    ensure!(*id == format!("{name}@{digest}"), "{id} instead of {name}@{digest}");
    answers(world, &right)?;
    cluster.apply(&pod("wrong", node, &image))?;
    is_refused(cluster, "wrong", &image)?;
    let all = ["delete", "pods", "--all", "-n", NAMESPACE, "--now", "--timeout=60s"];
    cluster.kubectl(&all)?;
    let left = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
    eventually("the image is free", READY, || {
        flatnet(&["image", "remove", "--name", &cluster.name, &image]).map(drop)
    })
}

fn create_secret(cluster: &Cluster, name: &str, registry: &Registry, password: &str) -> Result<()> {
    let server = format!("--docker-server={}", registry.address);
    let user = format!("--docker-username={USER}");
    let password = format!("--docker-password={password}");
    let call =
        ["create", "secret", "docker-registry", name, "-n", NAMESPACE, &server, &user, &password];
    cluster.kubectl(&call).map(drop)
}

/// A pod on a node with the Secret of its own name.
fn pod(name: &str, node: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [{{name: {name}}}]
  containers:
  - name: main
    image: "{image}"
    imagePullPolicy: Always
    args: [serve, --http, "8080"]
    env: [{{name: POD_NAME, value: {name}}}]
    readinessProbe:
      httpGet: {{path: /ready, port: 8080}}
      periodSeconds: 1
"#
    )
}

/// The image's program serves pods of other nodes.
fn answers(world: &World, pod: &Value) -> Result<()> {
    let address = pod["status"]["podIP"].as_str().context("no address")?;
    let url = format!("http://{address}:8080/");
    let answer = eventually("the image's program answers", READY, || {
        world.toolbox_json("echo-node2", &["http", &url])
    })?;
    ensure!(answer["pod"] == pod["metadata"]["name"], "{answer}");
    Ok(())
}

/// The pod waits for its image, and an Event says what the registry answered.
fn is_refused(cluster: &Cluster, pod: &str, image: &str) -> Result<()> {
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    eventually("the pod waits for its image", READY, || {
        let reason = cluster.field(NAMESPACE, "pod", pod, reason)?;
        ensure!(["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()), "{reason}");
        Ok(())
    })?;
    let begin = format!("Failed to pull image \"{image}\": ");
    eventually("an Event tells of the refusal", READY, || {
        let text = cluster.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let events = list["items"].as_array().context("no list of Events")?;
        let is_told = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["involvedObject"]["name"] == pod
                && event["type"] == "Warning"
                && message.starts_with(&begin)
                && message.contains("pull access denied")
        };
        ensure!(events.iter().any(is_told), "{text}");
        Ok(())
    })
}

/// The image as registries have it (the OCI's distribution specification), and the digest of its
/// manifest.
fn image() -> Result<(Documents, String)> {
    let name = format!("flatnet-e2e-registry-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    let image = read_image(&directory);
    fs::remove_dir_all(&directory).context("removing the image's files")?;
    image
}

fn read_image(directory: &Path) -> Result<(Documents, String)> {
    write_image(directory)?;
    let mut documents = Documents::new();
    let mut put = |file: &str| -> Result<Value> {
        let path = directory.join(file);
        let (digest, content) = (digest_of(&path)?, fs::read(&path)?);
        let descriptor = json!({"digest": digest, "size": content.len()});
        documents.insert(format!("/v2/{REPOSITORY}/blobs/{digest}"), content.into());
        Ok(descriptor)
    };
    let (config, layer) = (put(CONFIG)?, put(LAYER)?);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let path = directory.join("manifest.json");
    fs::write(&path, &manifest)?;
    documents.insert(format!("/v2/{REPOSITORY}/manifests/{TAG}"), manifest.into());
    Ok((documents, digest_of(&path)?))
}

/// A registry on the loopback of a node. It ends with this value.
struct Registry {
    address: SocketAddr,
    _server: Runtime,
}

impl Registry {
    /// Serves in the network namespace at a path.
    fn start(network: &Path, documents: Documents) -> Result<Self> {
        let bind = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = Netns::open(network)?.run(bind)??;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let server = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _within = server.enter();
            TcpListener::from_std(listener)?
        };
        server.spawn(serve(listener, Arc::new(documents)));
        Ok(Self { address, _server: server })
    }
}

async fn serve(listener: TcpListener, documents: Arc<Documents>) {
    while let Ok((stream, _)) = listener.accept().await {
        let documents = Arc::clone(&documents);
        let service = service_fn(move |request| {
            let answer = answer(&request, &documents);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move {
            // A client that leaves early is no concern of the registry's.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, documents: &Documents) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let who = request.headers().get(header::AUTHORIZATION);
    if who.is_none_or(|who| who != AUTHORIZATION) {
        let challenge = HeaderValue::from_static("Basic realm=\"registry\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    match documents.get(request.uri().path()) {
        Some(document) => *response.body_mut() = Full::new(document.clone()),
        None => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
