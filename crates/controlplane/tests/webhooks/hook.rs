//! A webhook server that says by its paths how it answers, and what tests do with it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Client, ClientError, DeleteOptions, PatchKind, ResourcePath};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::conversion;
use crate::support::Server;

const GROUP_VERSION: &str = "admissionregistration.k8s.io/v1";

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A webhook server: the path says how it answers. It remembers what it was asked.
pub struct Hook {
    pub address: SocketAddr,
    authority: String,
    seen: Seen,
}

impl Hook {
    /// Listens on an address, with a certificate for that address and these names.
    pub async fn start(address: IpAddr, names: &[&str]) -> Self {
        Self::start_with(address, names, None).await
    }

    pub async fn start_with(address: IpAddr, names: &[&str], api: Option<Client>) -> Self {
        let mut subjects: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        subjects.push(address.to_string());
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(subjects).expect("names");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let authority = certificate.pem();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let seen = Seen::default();
        let memory = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, memory, api) = (acceptor.clone(), Arc::clone(&memory), api.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        answer(Arc::clone(&memory), api.clone(), request)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, authority, seen }
    }

    /// Who signs its certificate, PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn bundle(&self) -> String {
        STANDARD.encode(&self.authority)
    }

    /// A webhook of this server about all writes of ConfigMaps.
    pub fn webhook(&self, path: &str) -> Value {
        json!({
            "name": format!("{path}.example.org"),
            "clientConfig": {
                "url": format!("https://{}/{path}", self.address),
                "caBundle": self.bundle(),
            },
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["configmaps"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        })
    }

    /// What it was asked since the last time: path and request.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

async fn answer(
    seen: Seen,
    api: Option<Client>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("a review");
    let mut asked = review["request"].clone();
    asked["query"] = query.into();
    let count = {
        let mut seen = seen.lock().expect("no panic");
        seen.push((path.clone(), asked));
        seen.len()
    };
    let is_conversion = review["kind"] == "ConversionReview";
    let patch = |operations: Value| {
        json!({"allowed": true, "patchType": "JSONPatch",
            "patch": STANDARD.encode(operations.to_string())})
    };
    let label = |key: &str, value: &str| {
        let labels = review["request"]["object"]["metadata"]["labels"].is_object();
        patch(match labels {
            true => {
                json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": value}])
            }
            false => json!([{"op": "add", "path": "/metadata/labels", "value": {key: value}}]),
        })
    };
    let mut response = match path.as_str() {
        "deny" => json!({"allowed": false, "status": {"message": "not here"}}),
        "forbid" => json!({"allowed": false,
            "status": {"code": 403, "reason": "Forbidden", "message": "ask your admin"}}),
        "mute" => json!({"allowed": false}),
        "warn" => json!({"allowed": true, "warnings": ["that is old"]}),
        "open" => patch(json!([{"op": "replace", "path": "/spec/port", "value": "8080"}])),
        "halve" => patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 1}])),
        "first" => label("first", &count.to_string()),
        "second" => label("second", &count.to_string()),
        "spoil" => label("bad label", "x"),
        "break" => patch(json!([{"op": "remove", "path": "/absent"}])),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            json!({"allowed": true})
        }
        "meddle" => {
            // Somebody else writes while the webhook thinks.
            if count == 1
                && let Some(api) = api
            {
                let path = ResourcePath::new("v1", "secrets").namespace("default").name("gate");
                let patch = json!({"metadata": {"labels": {"meddled": "yes"}}});
                let patched = api.patch::<_, Value>(&path, PatchKind::Merge, &patch).await;
                patched.expect("patched");
            }
            json!({"allowed": true})
        }
        _ => json!({"allowed": true}),
    };
    response["uid"] = match path.as_str() {
        "stranger" => "somebody-else".into(),
        _ => review["request"]["uid"].clone(),
    };
    let review = match is_conversion {
        true => conversion::answer(&path, &review),
        false => json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": response}),
    };
    let text = if path == "garbage" { "no json".to_owned() } else { review.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if path == "moved" {
        *response.status_mut() = hyper::StatusCode::FOUND;
        response.headers_mut().insert("location", "/allow".parse().expect("a value"));
    }
    Ok(response)
}

pub async fn configure(server: &Server, kind: &str, webhooks: Value) -> Result<Value, ClientError> {
    let plural = match kind {
        "mutating" => "mutatingwebhookconfigurations",
        _ => "validatingwebhookconfigurations",
    };
    let path = ResourcePath::new(GROUP_VERSION, plural);
    let _ = server.client.delete(&path.clone().name("test"), &DeleteOptions::default()).await;
    let body = json!({"metadata": {"name": "test"}, "webhooks": webhooks});
    server.client.create(&path, &body).await
}

pub fn maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

pub async fn create(server: &Server, name: &str) -> Result<Value, ClientError> {
    let map = json!({"metadata": {"name": name, "labels": {"app": "x"}}, "data": {"a": "b"}});
    server.client.create(&maps(), &map).await
}

pub fn message(error: ClientError) -> (u16, String) {
    let status = error.status().expect("a Status");
    (status.code, status.message.clone())
}
