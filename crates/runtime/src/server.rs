//! The kubelet's server on port 10250, as far as the API server uses it: logs, streams, use of CPU
//! and memory, health. Mutual TLS; one client is let in, the API server, by the name in its
//! certificate.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use model::{NamespacedName, Timestamp};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::context::{ContainerView, Context, now};
use crate::logs::{self, LogOptions};
use crate::streams::attach::{self, AttachOptions};
use crate::streams::channels::{Session, V5, Wanted};
use crate::streams::exec::{self, ExecOptions};
use crate::streams::upgrade::{self, Agreement, Carrier, Served};
use crate::streams::{ContainerPlace, IDLE_TIMEOUT_S, port_channels, port_forward, websocket};
use crate::usage::Snapshot;

/// Connections at one time: log readers and sessions.
const MAX_CONNECTIONS: usize = 128;
/// Sessions of exec, attach and port-forward at one time.
const MAX_SESSIONS: usize = 32;
/// Longest TLS handshake and request head, seconds.
const HANDSHAKE_TIMEOUT_S: u64 = 10;
/// Wait after an `accept` that failed, milliseconds: mostly for want of descriptors.
const ACCEPT_RETRY_MS: u64 = 100;
/// hyper's buffer for one connection, bytes.
const CONNECTION_BUFFER_BYTES: usize = 32 * 1024;
/// Time between two looks whether the pod of a session is still here, seconds.
const GONE_CHECK_S: u64 = 1;
/// The protocols of commands: version 4 tells exit codes as a `Status`.
const COMMAND: Served =
    Served { spdy: &["v4.channel.k8s.io"], websocket: &[V5, "v4.channel.k8s.io"] };
/// SPDY in a websocket (KEP-4006).
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Two channels of a websocket for each port, as the Python and npm clients and kube-rs have it.
const PORT_CHANNELS: &str = "v4.channel.k8s.io";
/// The protocols of port-forward.
const PORT_FORWARD: Served = Served {
    spdy: &["portforward.k8s.io", port_forward::DATAGRAM_PROTOCOL],
    websocket: &[TUNNEL, PORT_CHANNELS],
};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// An answer that says why not.
type Refusal = (StatusCode, String);

/// The server, ready to accept.
pub struct Server {
    context: Arc<Context>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
}

impl Server {
    /// Binds to the node's address.
    ///
    /// # Errors
    /// A certificate that cannot be used, or an address that cannot be bound, each named.
    pub async fn open(context: Arc<Context>) -> anyhow::Result<Self> {
        let options = &context.options;
        let address =
            options.node_addresses.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let address = SocketAddr::new(address, options.port);
        let acceptor = TlsAcceptor::from(Arc::new(tls(options)?));
        let listener = TcpListener::bind(address).await.map_err(|error| {
            anyhow::anyhow!("cannot listen on {address} for logs and exec: {error}")
        })?;
        Ok(Self {
            context,
            listener,
            acceptor,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
        })
    }

    /// Serves. Never ends.
    pub async fn run(self) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (acceptor, sessions) = (self.acceptor.clone(), self.sessions.clone());
                    tokio::spawn(connection(
                        self.context.clone(),
                        stream,
                        acceptor,
                        sessions,
                        permit,
                    ));
                }
                Err(error) => {
                    tracing::warn!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                }
            }
        }
    }
}

fn tls(options: &crate::Options) -> anyhow::Result<ServerConfig> {
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))
    };
    let certificates = |path: &std::path::Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let text = read(path)?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        parsed.map_err(|error| anyhow::anyhow!("{} holds no certificate: {error}", path.display()))
    };
    let key = &options.serving_key;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| anyhow::anyhow!("{} holds no key: {error}", key.display()))?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&options.client_authority)? {
        roots.add(authority)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&options.serving_certificate)?, key)?)
}

async fn connection(
    context: Arc<Context>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    sessions: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
) {
    // Frames are small and wanted at once. A kernel that refuses changes only the latency.
    let _ = stream.set_nodelay(true);
    let timeout = Duration::from_secs(HANDSHAKE_TIMEOUT_S);
    let Ok(Ok(stream)) = tokio::time::timeout(timeout, acceptor.accept(stream)).await else {
        return;
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| common_name(chain.first()?));
    let is_known = peer.as_deref() == Some(context.options.client_name.as_str());
    // An exec session outlives the HTTP connection that it began on: the permit goes with it.
    let permit = Arc::new(permit);
    let service = service_fn(move |request| {
        let (context, sessions, permit) = (context.clone(), sessions.clone(), permit.clone());
        async move {
            let answer = if is_known {
                answer(&context, request, sessions, permit)
            } else {
                refuse(StatusCode::FORBIDDEN, "Forbidden: only the API server may ask this node")
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("connection of the API server: {error}");
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

fn answer(
    context: &Arc<Context>,
    request: Request<Incoming>,
    sessions: Arc<Semaphore>,
    permit: Arc<OwnedSemaphorePermit>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"]) => text(StatusCode::OK, "ok"),
        (&Method::GET, ["stats", "summary"]) => {
            usage(context, "application/json", |snapshot| snapshot.to_summary().to_string())
        }
        (&Method::GET, ["metrics", "resource"]) => {
            usage(context, "text/plain; version=0.0.4; charset=utf-8", Snapshot::to_metrics)
        }
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            let target = find(context, namespace, pod, container);
            target.map_or_else(refused, |target| log(context, &target, &query))
        }
        (&Method::POST | &Method::GET, ["exec", namespace, pod, container]) => {
            let target = find(context, namespace, pod, container);
            let answered = target
                .and_then(|target| execute(context, &target, &query, request, sessions, permit));
            answered.unwrap_or_else(refused)
        }
        (&Method::POST | &Method::GET, ["attach", namespace, pod, container]) => {
            let target = find(context, namespace, pod, container);
            let answered = target.and_then(|target| {
                let place = place(context, &target)?;
                let streams = wanted(&query);
                let options = AttachOptions { streams, input_ends: target.view.input_ends };
                in_session(request, streams, sessions, permit, move |session| {
                    attach::serve(session, options, place)
                })
            });
            answered.unwrap_or_else(refused)
        }
        (&Method::POST | &Method::GET, ["portForward", namespace, pod]) => {
            let key = NamespacedName::new(*namespace, *pod);
            forward_ports(context, &key, &query, request, sessions, permit).unwrap_or_else(refused)
        }
        _ => refuse(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// What the node and its containers use, read on a thread of its own: it is many files.
fn usage(
    context: &Arc<Context>,
    media_type: &'static str,
    show: impl FnOnce(&Snapshot) -> String + Send + 'static,
) -> Answer {
    let (sender, receiver) = mpsc::channel(1);
    let context = context.clone();
    tokio::task::spawn_blocking(move || {
        let text = show(&Snapshot::take(&context));
        // A client that has left meanwhile wants nothing any more.
        let _ = sender.blocking_send(text.into());
    });
    let mut answer = Response::new(Stream(receiver).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    answer
}

/// A container that exists.
struct Target {
    key: NamespacedName,
    container: String,
    uid: String,
    view: ContainerView,
}

fn find(context: &Context, namespace: &str, pod: &str, container: &str) -> Result<Target, Refusal> {
    let key = NamespacedName::new(namespace, pod);
    let pods = context.pods();
    let view = pods.get(&key).ok_or_else(|| no_pod(&key))?;
    let uid = view.uid.clone();
    match view.containers.get(container) {
        Some(view) => Ok(Target { key, container: container.to_owned(), uid, view: view.clone() }),
        None => {
            let message = format!("container {container} is not valid for pod {pod}");
            Err((StatusCode::BAD_REQUEST, message))
        }
    }
}

fn log(context: &Arc<Context>, target: &Target, query: &Query) -> Answer {
    let options = match log_options(query, now()) {
        Ok(options) => options,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, &message),
    };
    let (name, pod) = (&target.container, &target.key.name);
    let restarts = if query.flag("previous") {
        match target.view.restarts.checked_sub(1) {
            Some(previous) => previous,
            None => {
                let message =
                    format!("previous terminated container {name:?} in pod {pod:?} not found");
                return refuse(StatusCode::BAD_REQUEST, &message);
            }
        }
    } else if let Some(reason) = &target.view.waiting {
        let why = match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image",
            reason => reason,
        };
        let message = format!("container {name:?} in pod {pod:?} is waiting to start: {why}");
        return refuse(StatusCode::BAD_REQUEST, &message);
    } else {
        target.view.restarts
    };
    let path = context.pod_directory(&target.uid).log(name, restarts);
    let (sender, receiver) = mpsc::channel(logs::QUEUE);
    let (context, key, name) = (context.clone(), target.key.clone(), name.clone());
    let is_running = move || {
        let pods = context.pods();
        let view = pods.get(&key).and_then(|pod| pod.containers.get(&name));
        view.is_some_and(|view| view.running && view.restarts == restarts)
    };
    tokio::spawn(logs::send(path, options, is_running, sender));
    let mut answer = Response::new(Stream(receiver).boxed_unsync());
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    answer
}

fn log_options(query: &Query, now: Timestamp) -> Result<LogOptions, String> {
    let number = |name: &str| -> Result<Option<usize>, String> {
        match query.get(name) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<usize>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name}: {text:?} is not a number of at least 0")),
            },
        }
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => {
            let before = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            Some(Timestamp::from_microseconds(now.microseconds().saturating_sub(before)))
        }
        (None, Some(text)) if !text.is_empty() => Some(
            Timestamp::parse(text).ok_or_else(|| format!("sinceTime: {text:?} is not a time"))?,
        ),
        _ => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        tail_lines: number("tailLines")?,
        since,
        timestamps: query.flag("timestamps"),
        limit_bytes: number("limitBytes")?,
    })
}

fn execute(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    request: Request<Incoming>,
    sessions: Arc<Semaphore>,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Answer, Refusal> {
    let options = ExecOptions { command: query.all("command"), streams: wanted(query) };
    if options.command.is_empty() {
        let message = "you must specify at least 1 command to execute";
        return Err((StatusCode::BAD_REQUEST, message.to_owned()));
    }
    let place = place(context, target)?;
    in_session(request, options.streams, sessions, permit, move |session| {
        exec::serve(session, options, place)
    })
}

fn wanted(query: &Query) -> Wanted {
    Wanted {
        stdin: query.flag("input"),
        stdout: query.flag("output"),
        stderr: query.flag("error"),
        tty: query.flag("tty"),
    }
}

/// Where a running container is.
fn place(context: &Context, target: &Target) -> Result<ContainerPlace, Refusal> {
    if !target.view.running {
        let message = format!("container not found (\"{}\")", target.container);
        return Err((StatusCode::NOT_FOUND, message));
    }
    let socket = context.pod_directory(&target.uid).socket();
    Ok(ContainerPlace { socket, container: target.container.clone() })
}

/// Answers 101, and serves the streams that the client then opens.
fn in_session<F, T>(
    request: Request<Incoming>,
    wanted: Wanted,
    sessions: Arc<Semaphore>,
    permit: Arc<OwnedSemaphorePermit>,
    serve: F,
) -> Result<Answer, Refusal>
where
    F: FnOnce(Session) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let agreement = upgrade::agree(request.headers(), &COMMAND)?;
    let held = (room_for_session(sessions)?, permit);
    let protocol = agreement.protocol;
    Ok(upgraded(request, agreement, held, move |connection, carrier| async move {
        let channels = wanted.channels();
        let session = match carrier {
            Carrier::Spdy => Session::over_spdy(connection, &channels).await,
            Carrier::WebSocket => {
                Ok(Session::over_websocket(connection, protocol, &channels).await)
            }
        };
        match session {
            Ok(session) => serve(session).await,
            Err(message) => tracing::debug!("no session: {message}"),
        }
    }))
}

fn forward_ports(
    context: &Arc<Context>,
    key: &NamespacedName,
    query: &Query,
    request: Request<Incoming>,
    sessions: Arc<Semaphore>,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Answer, Refusal> {
    let view = context.pods().get(key).cloned().ok_or_else(|| no_pod(key))?;
    let agreement = upgrade::agree(request.headers(), &PORT_FORWARD)?;
    let protocol = agreement.protocol;
    let ports = if protocol == PORT_CHANNELS {
        port_channels::ports(&query.all("ports"))
            .map_err(|message| (StatusCode::BAD_REQUEST, message))?
    } else {
        Vec::new() // Each stream names its own.
    };
    let directory = context.pod_directory(&view.uid);
    let place = port_forward::Place {
        pod: key.name.clone(),
        uid: view.uid.clone(),
        namespace: (!view.host_network).then(|| directory.namespace()),
    };
    let gone = until_gone(context.clone(), key.clone(), view.uid);
    let held = (room_for_session(sessions)?, permit);
    let idle = Duration::from_secs(IDLE_TIMEOUT_S);
    Ok(upgraded(request, agreement, held, move |connection, carrier| async move {
        match carrier {
            Carrier::Spdy => port_forward::serve(connection, place, gone, idle).await,
            Carrier::WebSocket if protocol == PORT_CHANNELS => {
                port_channels::serve(connection, place, &ports, gone, idle).await;
            }
            Carrier::WebSocket => {
                port_forward::serve(websocket::tunnel(connection), place, gone, idle).await;
            }
        }
    }))
}

/// Returns once a pod has left the node: its sessions would keep its network namespace alive.
async fn until_gone(context: Arc<Context>, key: NamespacedName, uid: String) {
    let is_here = || context.pods().get(&key).is_some_and(|view| view.uid == uid);
    while is_here() {
        tokio::time::sleep(Duration::from_secs(GONE_CHECK_S)).await;
    }
}

/// Room for one more session.
fn room_for_session(sessions: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    sessions.try_acquire_owned().map_err(|_| {
        let message = format!("this node serves {MAX_SESSIONS} sessions already: end one");
        (StatusCode::TOO_MANY_REQUESTS, message)
    })
}

/// Answers 101, and serves the connection that the client then has. `held` is given back at its end.
fn upgraded<F, T>(
    mut request: Request<Incoming>,
    agreement: Agreement,
    held: impl Send + 'static,
    serve: F,
) -> Answer
where
    F: FnOnce(TokioIo<Upgraded>, Carrier) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => serve(TokioIo::new(connection), agreement.carrier).await,
            Err(error) => tracing::debug!("the upgrade failed: {error}"),
        }
        drop(held);
    });
    let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "");
    answer.headers_mut().extend(agreement.headers);
    answer
}

fn no_pod(key: &NamespacedName) -> Refusal {
    let NamespacedName { namespace, name } = key;
    let message = format!("pod {name:?} in namespace {namespace:?} is not on this node (any more)");
    (StatusCode::NOT_FOUND, message)
}

fn refused((code, message): Refusal) -> Answer {
    refuse(code, &message)
}

fn refuse(code: StatusCode, message: &str) -> Answer {
    text(code, message)
}

fn text(code: StatusCode, message: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(message.to_owned())).boxed_unsync());
    *answer.status_mut() = code;
    answer
}

/// A query string, decoded. Names may repeat.
struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    fn parse(text: &str) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decode(name)).or_default().push(decode(&value.replace('+', " ")));
        }
        Self(values)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str)
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | ""))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| std::str::from_utf8(after.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A body that arrives piece by piece.
struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_may_repeat() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%26b+c&tty=1&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a&b c"]);
        assert!(query.flag("tty") && !query.flag("input") && query.flag("x"));
    }

    #[test]
    fn log_options_are_checked() {
        let now = Timestamp::from_seconds(1000);
        let options = log_options(&Query::parse("tailLines=5&sinceSeconds=10&follow=true"), now);
        let expected = LogOptions {
            follow: true,
            tail_lines: Some(5),
            since: Some(Timestamp::from_seconds(990)),
            ..LogOptions::default()
        };
        assert_eq!(options, Ok(expected));
        for query in ["tailLines=-1", "limitBytes=x", "sinceTime=yesterday"] {
            assert!(log_options(&Query::parse(query), now).is_err(), "{query}");
        }
    }
}
