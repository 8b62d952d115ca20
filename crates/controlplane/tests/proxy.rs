//! Logs and streams through the server to a node's runtime, which here is a few lines of test.

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use client::ResourcePath;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::Timestamp;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::{LOOPBACK, Scratch, Server, endpoint, start_with, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A runtime that shows what it was asked, and echoes what comes over an upgrade.
async fn runtime(pki: &controlplane::pki::Pki) -> u16 {
    let serving = &pki.nodes["node1"].serving;
    let certificates = |path| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).expect("PEM").map(|one| one.expect("PEM")).collect()
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&pki.authority) {
        roots.add(authority).expect("an authority");
    }
    // No client certificate, no connection.
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            certificates(&serving.certificate),
            PrivateKeyDer::from_pem_file(&serving.key).expect("a key"),
        )
        .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades()
                    .await;
            });
        }
    });
    port
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = request.uri().to_string();
    if asked.contains("/waiting?") {
        let text = "container \"waiting\" in pod \"two\" is waiting to start: ContainerCreating";
        let mut refusal = Response::new(Full::from(text));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refusal);
    }
    if asked == "/stats/summary" {
        return Ok(Response::new(Full::from(summary().to_string())));
    }
    if !["/exec/", "/attach/", "/portForward/"].iter().any(|verb| asked.starts_with(verb)) {
        return Ok(Response::new(Full::from(format!("{} {asked}\n", request.method()))));
    }
    let asked_for = |name: &str| request.headers().get(name).cloned();
    let protocol = asked_for("x-stream-protocol-version");
    let socket = ["sec-websocket-protocol", "sec-websocket-key", "sec-websocket-version"];
    let socket = socket.map(asked_for);
    let to = request.headers()[UPGRADE].clone();
    let method = request.method().clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("an upgrade"));
        stream.write_all(format!("{method} {asked}\n").as_bytes()).await.expect("written");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, "Upgrade".parse().expect("a value"));
    headers.insert(UPGRADE, to);
    if let Some(protocol) = protocol {
        headers.insert("x-stream-protocol-version", protocol);
    }
    if let [Some(protocol), Some(key), Some(_)] = socket {
        headers.insert("sec-websocket-protocol", protocol);
        // No hash: the test sees that it comes from here.
        headers.insert("sec-websocket-accept", key);
    }
    Ok(response)
}

/// What a node uses on which the pod `one` works and `two` does nothing: the one half of a processor,
/// the other none. `default` has started this moment.
fn summary() -> Value {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    static START: OnceLock<Instant> = OnceLock::new();
    let asked = ASKED.fetch_add(1, Ordering::Relaxed);
    let elapsed = START.get_or_init(Instant::now).elapsed();
    let time = Timestamp::from_seconds(1_000_000).after(elapsed);
    let measured = |name: &str, cpu_ns: u128, started_s: u64| {
        json!({
            "name": name,
            "startTime": Timestamp::from_seconds(started_s as i64).micro(),
            "cpu": {"time": time.micro(), "usageCoreNanoSeconds": cpu_ns as u64},
            "memory": {"time": time.micro(), "workingSetBytes": 3 << 20},
        })
    };
    let pod = |name: &str, container: Value| {
        let uid = UIDS.lock().expect("no panic").get(name).cloned();
        json!({
            "podRef": {"name": name, "namespace": "default", "uid": uid},
            "containers": [container],
        })
    };
    let half = elapsed.as_nanos() / 2;
    json!({
        "node": measured("node1", half + elapsed.as_nanos(), 0),
        "pods": [
            pod("one", measured("main", half, 1)),
            pod("two", measured("first", 7, 1)),
            pod("default", measured("first", 7, 2 + asked)),
        ],
    })
}

/// The identities of the pods, which only their server knows.
static UIDS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// A server, a node that reports `address`, and pods on it and on none.
async fn cluster(scratch: &Scratch, address: &str) -> Server {
    let pki = support::make_pki(&scratch.0);
    let port = runtime(&pki).await;
    let server = start_with(&scratch.0, 0, |options| options.runtime_port = port).await;
    let nodes = ResourcePath::new("v1", "nodes");
    let node = json!({
        "metadata": {"name": "node1"},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    });
    let node: Value = server.client.create(&nodes, &node).await.expect("a node");
    let mut reporting = node;
    reporting["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
    let path = nodes.name("node1");
    let _: Value = server.client.update_status(&path, &reporting).await.expect("its address");
    let accounts = ResourcePath::new("v1", "serviceaccounts").namespace("default");
    let account = json!({"metadata": {"name": "default"}});
    let _: Value = server.client.create(&accounts, &account).await.expect("an account");
    for (name, node, containers, annotations) in [
        ("one", "node1", &["main"][..], json!({})),
        ("two", "node1", &["first", "second", "waiting"], json!({})),
        (
            "default",
            "node1",
            &["first", "second"],
            json!({"kubectl.kubernetes.io/default-container": "second"}),
        ),
        ("pending", "", &["main"], json!({})),
    ] {
        let containers: Vec<Value> =
            containers.iter().map(|name| json!({"name": name, "image": "x"})).collect();
        let mut pod = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "containers": containers,
                "initContainers": [{"name": "init", "image": "x"}],
            },
        });
        if !node.is_empty() {
            pod["spec"]["nodeName"] = json!(node);
        }
        let pods = ResourcePath::new("v1", "pods").namespace("default");
        let made: Value = server.client.create(&pods, &pod).await.expect("a pod");
        let uid = made["metadata"]["uid"].as_str().expect("an identity").to_owned();
        UIDS.lock().expect("no panic").insert(name.to_owned(), uid);
    }
    server
}

async fn ask(server: &Server, method: Method, path: &str) -> (u16, String) {
    ask_at(server, method, &format!("/api/v1/namespaces/default/pods/{path}")).await
}

async fn ask_at(server: &Server, method: Method, uri: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(uri).body(Full::default());
    let endpoint = endpoint(server);
    let response = within("an answer", endpoint.send_once(request.expect("a request"))).await;
    let (head, body) = response.expect("an answer").into_parts();
    let body = within("a body", body.collect()).await.expect("a body").to_bytes();
    (head.status.as_u16(), String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn logs_come_from_the_runtime_of_the_pods_node() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("log");
    let server = cluster(&scratch, "127.0.0.1").await;
    let logs = async |path: &str| ask(&server, Method::GET, path).await;
    let cases = [
        ("one/log", "GET /containerLogs/default/one/main?\n"),
        ("one/log?container=init", "GET /containerLogs/default/one/init?\n"),
        (
            "two/log?container=second&tailLines=3&follow=true&pretty=x",
            "GET /containerLogs/default/two/second?follow=true&tailLines=3\n",
        ),
        ("default/log?previous=true", "GET /containerLogs/default/default/second?previous=true\n"),
    ];
    for (path, expected) in cases {
        assert_eq!(logs(path).await, (200, expected.to_owned()), "{path}");
    }
    assert_eq!(logs("pending/log").await, (204, String::new()), "no node, no logs, no error");
    let refusals = [
        (
            "two/log",
            400,
            "a container name must be specified for pod two, choose one of: \
            [first second waiting] or one of the init containers: [init]",
        ),
        ("one/log?container=nope", 400, "container nope is not valid for pod one"),
        ("none/log", 404, "pods \"none\" not found"),
        (
            "two/log?container=waiting",
            400,
            "container \"waiting\" in pod \"two\" is waiting to start: ContainerCreating",
        ),
    ];
    for (path, code, message) in refusals {
        let (status, body) = logs(path).await;
        let body: Value = serde_json::from_str(&body).expect("a Status");
        assert_eq!((status, &body["message"]), (code, &json!(message)), "{path}");
    }
    server.running.stop().await;
}

type Headers = &'static [(&'static str, &'static str)];
/// Path, headers and method of a request, what the runtime is asked, a header of the answer.
type Joined = (&'static str, Headers, Method, &'static str, (&'static str, &'static str));

const TO_SPDY: Headers = &[
    ("connection", "Upgrade"),
    ("upgrade", "SPDY/3.1"),
    ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ("x-stream-protocol-version", "v3.channel.k8s.io"),
];
const TO_WEBSOCKET: Headers = &[
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("sec-websocket-protocol", "v5.channel.k8s.io"),
];

async fn upgrade(
    server: &Server,
    method: Method,
    path: &str,
    headers: Headers,
) -> Response<Incoming> {
    let uri = format!("/api/v1/namespaces/default/pods/{path}");
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).expect("a request");
    within("an answer", endpoint(server).send_once(request)).await.expect("an answer")
}

#[tokio::test]
async fn streams_join_both_connections() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("streams");
    let server = cluster(&scratch, "127.0.0.1").await;
    let cases: &[Joined] = &[
        (
            "one/exec?command=sh&command=-c&command=echo%20a&stdin=true&stdout=true&tty=true",
            TO_SPDY,
            Method::POST,
            "POST /exec/default/one/main?command=sh&command=-c&command=echo%20a\
             &input=1&output=1&tty=1\n",
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ),
        (
            "one/exec?command=ls&stdout=true",
            TO_WEBSOCKET,
            Method::GET,
            "GET /exec/default/one/main?command=ls&output=1\n",
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ),
        (
            "two/exec?container=second&command=cat&stdin=true&stderr=true",
            TO_WEBSOCKET,
            Method::GET,
            "GET /exec/default/two/second?command=cat&input=1&error=1\n",
            ("sec-websocket-accept", "dGhlIHNhbXBsZSBub25jZQ=="),
        ),
        (
            "one/attach?stdin=true&stdout=true&tty=true",
            TO_SPDY,
            Method::POST,
            "POST /attach/default/one/main?input=1&output=1&tty=1\n",
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ),
        (
            "two/portforward?ports=80&ports=81",
            TO_SPDY,
            Method::POST,
            "POST /portForward/default/two?ports=80&ports=81\n",
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ),
    ];
    for (path, headers, method, expected, (name, value)) in cases {
        let response = upgrade(&server, method.clone(), path, headers).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "{path}");
        assert_eq!(response.headers()[*name], *value, "{path}");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("an upgrade"));
        let mut asked = vec![0; expected.len()];
        within("the question", stream.read_exact(&mut asked)).await.expect("read");
        assert_eq!(String::from_utf8_lossy(&asked), *expected);
        let payload = vec![7_u8; 200_000];
        let (mut reader, mut writer) = tokio::io::split(stream);
        let written = payload.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&written).await.expect("written");
            writer.shutdown().await.expect("half closed");
            writer
        });
        let mut echoed = Vec::new();
        within("the echo", reader.read_to_end(&mut echoed)).await.expect("read");
        assert!(echoed == payload, "{path}: what was written before the half-close comes back");
        drop(writing.await.expect("the writer"));
    }
    server.running.stop().await;
}

#[tokio::test]
async fn streams_without_a_known_upgrade_are_refused() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("upgrade");
    let server = cluster(&scratch, "127.0.0.1").await;
    for verb in ["exec?command=ls&", "attach?", "portforward?"] {
        let path = format!("one/{verb}stdout=true");
        let unknown = &[("connection", "Upgrade"), ("upgrade", "h2c")];
        let response = upgrade(&server, Method::GET, &path, unknown).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        let (code, body) = ask(&server, Method::POST, &path).await;
        assert_eq!(code, 400, "{path}");
        assert!(body.contains("Upgrade request required"), "{path}: {body}");
        let (code, body) = ask(&server, Method::POST, &path.replace("one", "pending")).await;
        assert_eq!(code, 400, "{path}");
        assert!(body.contains("pod pending does not have a host assigned"), "{path}: {body}");
        let (code, _) = ask(&server, Method::DELETE, &path).await;
        assert_eq!(code, 405, "{path}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn credentials_never_leave_the_node_range() {
    let _alone = ONE_CLUSTER.lock().await;
    for address in ["192.0.2.1", "169.254.169.254", "::1"] {
        let scratch = Scratch::new("range");
        let server = cluster(&scratch, address).await;
        let (code, body) = ask(&server, Method::GET, "one/log").await;
        assert_eq!(code, 500);
        assert!(body.contains("no InternalIP in the node range"), "{body}");
        server.running.stop().await;
    }
}

/// All pods of all servers of these tests have the same names: one test at a time.
static ONE_CLUSTER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn get_json(server: &Server, path: &str) -> (u16, Value) {
    let (code, body) = ask_at(server, Method::GET, path).await;
    (code, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn use_is_measured_between_two_samples_of_the_runtime() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("metrics");
    let server = cluster(&scratch, "127.0.0.1").await;
    let base = "/apis/metrics.k8s.io/v1beta1";
    let (code, resources) = get_json(&server, base).await;
    let kinds: Vec<&Value> =
        resources["resources"].as_array().expect("rows").iter().map(|row| &row["kind"]).collect();
    assert_eq!((code, kinds), (200, vec![&json!("NodeMetrics"), &json!("PodMetrics")]));
    let (code, nodes) = get_json(&server, &format!("{base}/nodes")).await;
    assert_eq!((code, &nodes["kind"]), (200, &json!("NodeMetricsList")));
    let node = &nodes["items"][0];
    assert_eq!(
        (&node["metadata"]["name"], &node["usage"]["memory"]),
        (&json!("node1"), &json!("3Mi"))
    );
    let cores = nanocores(&node["usage"]["cpu"]);
    assert!((1_490_000_000..1_510_000_000).contains(&cores), "one and a half: {node}");
    let (_, pods) = get_json(&server, &format!("{base}/namespaces/default/pods")).await;
    let names: Vec<&Value> = pods["items"]
        .as_array()
        .expect("pods")
        .iter()
        .map(|pod| &pod["metadata"]["name"])
        .collect();
    assert_eq!(
        names,
        ["one", "two"],
        "what has just started has no rate, and what has no node none"
    );
    let cores = nanocores(&pods["items"][0]["containers"][0]["usage"]["cpu"]);
    assert!((490_000_000..510_000_000).contains(&cores), "half a processor: {pods}");
    assert_eq!(pods["items"][1]["containers"][0]["usage"]["cpu"], "0");
    // The answer serves for a while: the same window for all who ask.
    let (_, one) = get_json(&server, &format!("{base}/namespaces/default/pods/one")).await;
    assert_eq!(one["timestamp"], pods["items"][0]["timestamp"]);
    assert_eq!(one["window"], pods["items"][0]["window"]);
    for (path, message) in [
        (
            "namespaces/default/pods/default",
            "podmetrics.metrics.k8s.io \"default/default\" not found",
        ),
        ("namespaces/default/pods/nope", "podmetrics.metrics.k8s.io \"default/nope\" not found"),
        ("nodes/nope", "nodemetrics.metrics.k8s.io \"nope\" not found"),
    ] {
        let (code, status) = get_json(&server, &format!("{base}/{path}")).await;
        assert_eq!((code, &status["message"]), (404, &json!(message)), "{path}");
    }
    let (_, none) = get_json(&server, &format!("{base}/pods?labelSelector=app%3Dnone")).await;
    assert_eq!(none["items"], json!([]));
    for path in ["nodes?watch=true", "namespaces/default/pods?watch=1"] {
        assert_eq!(get_json(&server, &format!("{base}/{path}")).await.0, 405, "{path}");
    }
    let (code, _) = ask_at(&server, Method::DELETE, &format!("{base}/nodes/node1")).await;
    assert_eq!(code, 405);
    server.running.stop().await;
}

fn nanocores(cpu: &Value) -> u64 {
    let text = cpu.as_str().expect("a quantity");
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        other => panic!("{text}: {other}"),
    };
    digits.parse::<u64>().expect("a number") * unit
}

/// The same over TLS, with a certificate that nobody here can know to be right, and for clients
/// that show none.
async fn encrypted_program() -> u16 {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example.org".to_owned()]);
    let made = made.expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(said))
                    .await;
            });
        }
    });
    port
}

/// A program of a pod: it says what it was asked, and by whom.
async fn program() -> u16 {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(said))
                    .await;
            });
        }
    });
    port
}

async fn said(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let names: Vec<&str> = request.headers().keys().map(|name| name.as_str()).collect();
    let text = format!("{} {} {names:?}", request.method(), request.uri());
    let moved = request.uri().path() == "/moved";
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let mut answer = Response::new(Full::from(format!("{text} {}", body.len())));
    if moved {
        *answer.status_mut() = StatusCode::FOUND;
        answer.headers_mut().insert("location", "/there?x=1".parse().expect("a value"));
    }
    Ok(answer)
}

#[tokio::test]
async fn requests_are_sent_on_to_pods_and_nodes_and_nowhere_else() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("sent-on");
    let server = cluster(&scratch, "127.0.0.1").await;
    let port = program().await;
    let at = |address: &'static str, host_network: bool| {
        let client = server.client.clone();
        async move {
            let name = format!("at-{}-{host_network}", address.replace([':', '.'], "-"));
            let pods = ResourcePath::new("v1", "pods").namespace("default");
            let mut pod: Value = client
                .create(
                    &pods,
                    &json!({
                        "metadata": {"name": name},
                        "spec": {
                            "nodeName": "node1", "hostNetwork": host_network,
                            "containers": [{"name": "main", "image": "x"}],
                        },
                    }),
                )
                .await
                .expect("a pod");
            pod["status"] = json!({"phase": "Running", "podIP": address});
            let path = pods.name(name.clone());
            let _: Value = client.update_status(&path, &pod).await.expect("its address");
            name
        }
    };
    let own = at("127.0.0.1", true).await;
    let pods = "/api/v1/namespaces/default/pods";
    let (code, text) =
        ask_at(&server, Method::GET, &format!("{pods}/{own}:{port}/proxy/a%2Fb/c?x=y%20z")).await;
    assert_eq!((code, text.as_str()), (200, "GET /a%2Fb/c?x=y%20z [\"host\"] 0"));
    let (code, text) =
        ask_at(&server, Method::PUT, &format!("{pods}/http:{own}:{port}/proxy/")).await;
    assert!(code == 200 && text.starts_with("PUT / "), "{code} {text}");
    let encrypted = encrypted_program().await;
    let (code, text) =
        ask_at(&server, Method::GET, &format!("{pods}/https:{own}:{encrypted}/proxy/x")).await;
    assert_eq!((code, text.as_str()), (200, "GET /x [\"host\"] 0"), "in TLS");
    // Redirects are the client's to follow, through here again.
    for (asked, place) in [("/moved", "/there?x=1"), ("", "/")] {
        let base = format!("{pods}/{own}:{port}/proxy");
        let request = Request::get(format!("{base}{asked}")).body(Full::default());
        let response = endpoint(&server).send_once(request.expect("a request")).await;
        let response = response.expect("an answer");
        assert!(response.status().is_redirection(), "{}", response.status());
        assert_eq!(response.headers()["location"], format!("{base}{place}").as_str());
    }
    let mut refused = vec![
        (format!("{pods}/{own}:99999/proxy/"), 400, "is not between 1 and 65535"),
        (format!("{pods}/https:{own}:{port}/proxy/"), 503, "error trying to reach service: tls: "),
        (format!("{pods}/ftp:{own}:{port}/proxy/"), 400, "invalid service request"),
        (format!("{pods}/nope:80/proxy/"), 404, "not found"),
        (format!("{pods}/pending/proxy/"), 503, "has no address yet"),
    ];
    // What a node says of its pods leads nobody to this machine, or to where clouds keep secrets.
    for address in ["127.0.0.1", "169.254.169.254", "::1", "192.0.2.1"] {
        let name = at(address, false).await;
        refused.push((format!("{pods}/{name}:{port}/proxy/"), 400, "address not allowed"));
    }
    let metadata = at("169.254.169.254", true).await;
    refused.push((format!("{pods}/{metadata}:80/proxy/"), 400, "address not allowed"));
    let nodes = "/api/v1/nodes";
    refused.extend([
        (format!("{nodes}/node1:22/proxy/"), 400, "alone is asked"),
        (format!("{nodes}/nope/proxy/healthz"), 404, "not found"),
    ]);
    for (path, code, text) in refused {
        let (found, body) = ask_at(&server, Method::GET, &path).await;
        assert!(found == code && body.contains(text), "{path}: {found} {body}");
    }
    let (code, text) =
        ask_at(&server, Method::GET, &format!("{nodes}/node1/proxy/healthz?a")).await;
    assert_eq!((code, text.as_str()), (200, "GET /healthz?a\n"));
    let (code, _) = ask_at(&server, Method::POST, &format!("{nodes}/node1/proxy/exec/a/b/c")).await;
    assert_eq!(code, 405, "streams have rights of their own");
    server.running.stop().await;
}

#[tokio::test]
async fn a_service_without_ready_endpoints_is_asked_nowhere() {
    let _alone = ONE_CLUSTER.lock().await;
    let scratch = Scratch::new("service");
    let server = cluster(&scratch, "127.0.0.1").await;
    let services = ResourcePath::new("v1", "services").namespace("default");
    let ports = json!([{"name": "http", "port": 80}, {"name": "other", "port": 81}]);
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": ports}});
    let _: Value = server.client.create(&services, &service).await.expect("a Service");
    let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default");
    let slice = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": false}}],
    });
    let _: Value = server.client.create(&slices, &slice).await.expect("a slice");
    let base = "/api/v1/namespaces/default/services";
    for (name, code, text) in [
        ("web:http", 503, "no endpoints available for service \\\"web\\\""),
        ("web:80", 503, "no endpoints available"),
        ("web:nope", 503, "no service port \\\"nope\\\" found for service \\\"web\\\""),
        ("web", 503, "no service port"),
        ("https:web:http", 503, "no endpoints available"),
        ("none:80", 404, "services \\\"none\\\" not found"),
    ] {
        let (found, body) = ask_at(&server, Method::GET, &format!("{base}/{name}/proxy/")).await;
        assert!(found == code && body.contains(text), "{name}: {found} {body}");
    }
    server.running.stop().await;
}
