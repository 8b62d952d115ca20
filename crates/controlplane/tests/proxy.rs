//! Logs and streams through the server to a node's runtime, which here is a few lines of test.

mod support;

use std::convert::Infallible;
use std::sync::Arc;

use client::ResourcePath;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
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
        let _: Value = server.client.create(&pods, &pod).await.expect("a pod");
    }
    server
}

async fn ask(server: &Server, method: Method, path: &str) -> (u16, String) {
    let uri = format!("/api/v1/namespaces/default/pods/{path}");
    let request = Request::builder().method(method).uri(uri).body(Full::default());
    let endpoint = endpoint(server);
    let response = within("an answer", endpoint.send_once(request.expect("a request"))).await;
    let (head, body) = response.expect("an answer").into_parts();
    let body = within("a body", body.collect()).await.expect("a body").to_bytes();
    (head.status.as_u16(), String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn logs_come_from_the_runtime_of_the_pods_node() {
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
    for address in ["192.0.2.1", "169.254.169.254", "::1"] {
        let scratch = Scratch::new("range");
        let server = cluster(&scratch, address).await;
        let (code, body) = ask(&server, Method::GET, "one/log").await;
        assert_eq!(code, 500);
        assert!(body.contains("no InternalIP in the node range"), "{body}");
        server.running.stop().await;
    }
}
