//! The embedded API server behind a guard that stands in for RBAC: it takes a ServiceAccount's
//! token, lets through what the shipped ClusterRole allows, answers 403 to all else, and writes
//! down what was asked.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent::rbac::{RULES, Rule};
use client::{Body, Client};
use controlplane::pki::{self, Pki, PkiRequest};
use controlplane::{ControlPlane, Options};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use model::{ClusterConfig, Timestamp};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A group, a resource with its subresource, and a verb.
pub type Right = (String, String, String);

/// What was asked.
#[derive(Default)]
pub struct Log {
    /// Rights that were used.
    pub used: BTreeSet<Right>,
    /// Requests that the role does not allow.
    pub denied: Vec<String>,
    /// Writes to another Node than the agent's own.
    pub foreign_writes: Vec<String>,
    /// Requests with a wrong token.
    pub unauthorized: usize,
}

/// The server and its guard.
pub struct Server {
    running: ControlPlane,
    /// The guard's URL.
    pub url: String,
    /// Token and authority, as the kubelet mounts them.
    pub account: PathBuf,
    /// Without the guard, with all rights.
    pub admin: Client,
    pub log: Arc<Mutex<Log>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    token: Arc<Mutex<String>>,
    acceptor: Option<(TlsAcceptor, Guard)>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Starts both on loopback; `node` is whose agent will come.
    pub async fn start(directory: &Path, config: &ClusterConfig, node: &'static str) -> Self {
        let pki = make_pki(directory, config);
        let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        let advertised = "172.30.0.1:6443".parse().expect("an address");
        let options = Options::new(directory.to_owned(), config.clone(), listen, advertised);
        let running = ControlPlane::start(options).await.expect("the API server starts");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let account = directory.join("serviceaccount");
        std::fs::create_dir_all(&account).expect("a directory");
        std::fs::copy(&pki.authority, account.join("ca.crt")).expect("the authority");
        let mut server = Self {
            admin: running.client(),
            running,
            url,
            account,
            log: Arc::default(),
            rules: Arc::new(Mutex::new(RULES.to_vec())),
            token: Arc::default(),
            acceptor: None,
            task: Mutex::default(),
        };
        server.rotate("first");
        let guard = Guard {
            node,
            admin: server.admin.clone(),
            log: Arc::clone(&server.log),
            rules: Arc::clone(&server.rules),
            token: Arc::clone(&server.token),
        };
        server.acceptor = Some((acceptor(&pki), guard));
        server.listen(listener);
        server
    }

    /// Further rules, as a cluster's manifests may give.
    pub fn grant(&self, rules: Vec<Rule>) {
        self.rules.lock().expect("the rules").extend(rules);
    }

    fn listen(&self, listener: TcpListener) {
        let (acceptor, guard) = self.acceptor.clone().expect("started");
        *self.task.lock().expect("the task") = Some(tokio::spawn(serve(listener, acceptor, guard)));
    }

    /// The server is away: connections break, and new ones are refused.
    pub async fn cut(&self) {
        let task = self.task.lock().expect("the task").take().expect("it listens");
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }

    /// It is back at the same place.
    pub async fn restore(&self) {
        let address = self.url.strip_prefix("https://").expect("a URL");
        self.listen(TcpListener::bind(address).await.expect("the same port"));
    }

    /// From now on another token is good, and in the agent's file.
    pub fn rotate(&self, token: &str) {
        std::fs::write(self.account.join("token"), token).expect("the token is written");
        *self.token.lock().expect("the token") = token.to_owned();
    }

    pub async fn stop(mut self) {
        self.cut().await;
        self.acceptor = None;
        drop(self.admin);
        self.running.stop().await;
    }
}

#[derive(Clone)]
struct Guard {
    node: &'static str,
    admin: Client,
    log: Arc<Mutex<Log>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    token: Arc<Mutex<String>>,
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, guard: Guard) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, guard) = (acceptor.clone(), guard.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let guard = guard.clone();
                async move { Ok::<_, Infallible>(guard.answer(request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Guard {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let expected = format!("Bearer {}", self.token.lock().expect("the token"));
        let given = request.headers().get(header::AUTHORIZATION);
        if given.and_then(|value| value.to_str().ok()) != Some(&expected) {
            self.log.lock().expect("the log").unauthorized += 1;
            return refuse(StatusCode::UNAUTHORIZED);
        }
        if !self.allows(&request) {
            return refuse(StatusCode::FORBIDDEN);
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let content_type =
            parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let path = parts.uri.path_and_query().expect("a path").as_str();
        self.admin.raw(parts.method, path, content_type, body).await.expect("an answer")
    }

    fn allows(&self, request: &Request<Incoming>) -> bool {
        let (right, name) = right_of(request);
        let allowed = self.rules.lock().expect("the rules").iter().any(|rule| {
            rule.group == right.0
                && rule.resources.contains(&right.1.as_str())
                && rule.verbs.contains(&right.2.as_str())
        });
        let mut log = self.log.lock().expect("the log");
        if !allowed {
            log.denied.push(format!("{} {}", request.method(), request.uri()));
        }
        if right.1.starts_with("nodes") && right.2 == "patch" && name != self.node {
            log.foreign_writes.push(name);
        }
        log.used.insert(right);
        allowed
    }
}

/// What a request asks for, as the API server's authorizer sees it, and the object's name.
fn right_of(request: &Request<Incoming>) -> (Right, String) {
    let path = request.uri().path();
    let (group, rest) = match path.strip_prefix("/apis/") {
        Some(rest) => {
            let mut parts = rest.splitn(3, '/');
            let group = parts.next().unwrap_or_default();
            (group, parts.nth(1).unwrap_or_default())
        }
        None => ("", path.strip_prefix("/api/v1/").unwrap_or_default()),
    };
    let mut parts: Vec<&str> = rest.split('/').collect();
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let mut resource = parts.first().copied().unwrap_or_default().to_owned();
    let name = parts.get(1).copied().unwrap_or_default();
    if let Some(subresource) = parts.get(2) {
        resource = format!("{resource}/{subresource}");
    }
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
    let verb = match *request.method() {
        Method::GET if !name.is_empty() => "get",
        Method::GET if is_watch => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "unknown",
    };
    ((group.to_owned(), resource, verb.to_owned()), name.to_owned())
}

fn refuse(code: StatusCode) -> Response<Body> {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": format!("the guard says {code}"),
        "code": code.as_u16(),
    });
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = code;
    response
}

fn make_pki(directory: &Path, config: &ClusterConfig) -> Pki {
    let request = PkiRequest {
        config: config.clone(),
        server_addresses: vec![Ipv4Addr::LOCALHOST.into()],
        nodes: Default::default(),
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = Timestamp::from_seconds(since.expect("a clock").as_secs() as i64);
    pki::ensure(&directory.join("pki"), &request, now).expect("certificates")
}

fn acceptor(pki: &Pki) -> TlsAcceptor {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&pki.server.certificate)
            .expect("a certificate")
            .collect::<Result<_, _>>()
            .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&pki.server.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("an identity");
    TlsAcceptor::from(Arc::new(config))
}
