//! What the agent says of itself: everything on a unix socket that is root's alone, metrics also
//! on loopback. Whether the node can take traffic is told to everybody, as kube-proxy does:
//! external load balancers ask for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::{
    EbpfMapSizes, NamespacedName, PortRange, ServiceBackend, Timestamp, Unreachable, layout,
};
use render::inventory::Row;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::acceleration::AccelerationStatus;
use crate::addressing::{Addressing, Refusal};
use crate::conntrack::ConntrackFill;
use crate::feed::bind;
use crate::fill::{self, MapRow};
use crate::forwarding::ForwardingStatus;
use crate::measure::Measurement;
use crate::metrics::{self, Measures, unix_seconds};
use crate::names::{FastPath, FastPathAnswer, FastPathStatus};
use crate::paths::PathRow;
use crate::service_health;
use crate::services::{NodeServices, ServiceReport};

/// The socket's name in the run directory.
pub const STATUS_SOCKET: &str = layout::AGENT_SOCKET;
/// Connections that are served at once; the others wait.
const CONNECTIONS_MAX: usize = 32;
/// A client that has not sent its request after this long is left.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What the path of the question about one Service begins with.
const ONE_SERVICE: &str = "/services/";
/// The same of the question about one question to DNS: `NAME/TYPE/ADDRESS`.
const ONE_NAME: &str = "/names/";
/// Questions to the loop that wait.
pub(crate) const QUESTIONS_MAX: usize = 8;

/// What an agent says of itself (`flatnet status`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The node's name.
    pub node: String,
    /// The link to the other nodes; empty while it is not known.
    pub uplink: String,
    /// Whether the API's objects were listed completely once.
    pub synced: bool,
    /// Whether the kernel holds what was planned.
    pub converged: bool,
    /// Whether pods can be added: the network is there, plugin and configuration are written.
    pub ready: bool,
    /// Whether the kernel follows what is planned: changes do not wait for long.
    pub healthy: bool,
    /// Whether the node is about to go: new connections shall be sent to others (KEP-3836).
    pub leaving: bool,
    /// What implements Services.
    pub service_backend: ServiceBackend,
    /// The source ports of what it masquerades and sends outside; none: any.
    pub masquerade_ports: Option<PortRange>,
    /// Services in the kernel.
    pub services: usize,
    /// Other nodes whose pods this node has a way to.
    pub peers: usize,
    /// Pods of this node whose links and rules at their edges are kept.
    pub pods: usize,
    /// Kernel operations since the start.
    pub operations_total: u64,
    /// What others broke since the start and was put back, by kind.
    pub repairs: BTreeMap<String, u64>,
    /// Addresses of the node's pod ranges.
    pub pools: Vec<Pool>,
    /// Paths to other nodes, as the self-test found them.
    pub paths: Arc<Vec<PathRow>>,
    /// What gets no new connections, because it does not answer this node.
    pub unreachable: UnreachableRows,
    /// Whether the kernel answers for the DNS worker.
    pub dns_fast_path: FastPathStatus,
    /// By which path packets of pods go.
    pub forwarding: ForwardingStatus,
    /// How full the maps of Services in eBPF are; empty where there are none.
    pub ebpf_maps: Vec<MapRow>,
    /// Whether the driver of the uplink sends on packets of Services; none where nobody asked.
    pub service_acceleration: Option<AccelerationStatus>,
    /// How full the node's connection tracking is; none where nothing is tracked.
    pub conntrack: Option<ConntrackFill>,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// What fail-over leaves out of new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnreachableRows {
    /// Other nodes, by name.
    pub nodes: Vec<String>,
    /// Single endpoints, by address and TCP port.
    pub endpoints: Vec<SocketAddr>,
}

impl UnreachableRows {
    pub(crate) fn of(unreachable: &Unreachable) -> Self {
        Self {
            nodes: unreachable.nodes.iter().cloned().collect(),
            endpoints: unreachable.endpoints.iter().copied().collect(),
        }
    }
}

/// The addresses of one pod range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pool {
    /// The range.
    pub range: String,
    /// Addresses that pods have.
    pub held: u64,
    /// Addresses that pods can get.
    pub free: u64,
}

/// What is asked of the loop.
pub(crate) enum Question {
    /// What shall be in the kernel beside what is.
    Network(oneshot::Sender<Vec<Row>>),
    /// The Services, as they are at this node.
    Services(oneshot::Sender<NodeServices>),
    /// Whether a pod's link does its part of Services; one that has just come is brought to it.
    Link(String, oneshot::Sender<bool>),
    /// One Service with what implements it, and what to measure of it.
    Service(NamespacedName, oneshot::Sender<Option<(ServiceReport, Measurement)>>),
}

/// What the loop tells the listeners.
pub(crate) struct Told {
    pub(crate) status: watch::Sender<AgentStatus>,
    pub(crate) measures: Arc<Mutex<Measures>>,
}

#[derive(Clone)]
struct Source {
    status: watch::Receiver<AgentStatus>,
    measures: Arc<Mutex<Measures>>,
    questions: mpsc::Sender<Question>,
    names: FastPath,
    maps: EbpfMapSizes,
    /// For who is root.
    addressing: Option<Addressing>,
    audience: Audience,
}

/// Who asks, and so what is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Audience {
    /// Whoever reaches the node.
    Network,
    /// Programs of the node.
    Loopback,
    /// Root, by the private socket.
    Root,
}

impl Audience {
    fn of(peer: IpAddr) -> Self {
        if peer.to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// Serves as long as `tasks` live.
///
/// # Errors
/// When a socket cannot be made.
pub(crate) fn serve(
    run_directory: &Path,
    questions: mpsc::Sender<Question>,
    (addressing, names): (Addressing, FastPath),
    tasks: &mut JoinSet<()>,
) -> Result<Told> {
    let (sender, status) = watch::channel(AgentStatus::default());
    let private = bind(run_directory, STATUS_SOCKET)?;
    let port = layout::AGENT_HEALTH_PORT;
    let public = service_health::listen(port)
        .with_context(|| format!("listening on port {port} (does kube-proxy run on this node?)"))?;
    let measures = Arc::<Mutex<Measures>>::default();
    let source = Source {
        status,
        measures: Arc::clone(&measures),
        questions,
        names,
        maps: addressing.config.ebpf_maps,
        addressing: None,
        audience: Audience::Network,
    };
    let addressing = Some(addressing);
    let for_root = Source { audience: Audience::Root, addressing, ..source.clone() };
    tasks.spawn(serve_private(private, for_root));
    tasks.spawn(serve_public(public, source));
    Ok(Told { status: sender, measures })
}

/// Only root: the mode of the socket says so, and who connects is asked all the same.
async fn serve_private(listener: UnixListener, source: Source) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) if is_root(&stream) => {
                let source = source.clone();
                tokio::spawn(async move {
                    answer(stream, source).await;
                    drop(permit);
                });
            }
            Ok(_) => tracing::warn!("a process of another user than root asked for the status"),
            Err(error) => pause(&error).await,
        }
    }
}

async fn serve_public(listener: TcpListener, source: Source) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let source = Source { audience: Audience::of(peer.ip()), ..source.clone() };
                tokio::spawn(async move {
                    answer(stream, source).await;
                    drop(permit);
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Descriptors may have run out: they come back.
async fn pause(error: &std::io::Error) {
    tracing::warn!("a client of the health port could not connect: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

async fn answer<S>(stream: S, source: Source)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(respond(request.uri(), &source).await) }
    });
    // A client that goes away in the middle is nobody's problem.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(uri: &Uri, source: &Source) -> Response<Full<Bytes>> {
    let status = source.status.borrow().clone();
    let measures = || source.measures.lock().unwrap_or_else(PoisonError::into_inner);
    let (code, body) = match (uri.path(), source.audience) {
        ("/healthz", _) => {
            let code = health(status.healthy && !status.leaving);
            measures().healthz.count(code);
            (code, proxy_health(&status, &measures()))
        }
        ("/livez", _) => {
            let code = health(status.healthy);
            measures().livez.count(code);
            (code, proxy_health(&status, &measures()))
        }
        (_, Audience::Network) => (StatusCode::NOT_FOUND, "not found".to_owned()),
        ("/readyz", _) if status.ready => (StatusCode::OK, "ok".to_owned()),
        ("/readyz", _) => (StatusCode::SERVICE_UNAVAILABLE, unready(&status)),
        ("/metrics", _) => {
            let maps = fill::metrics(&fill::rows(source.maps).await);
            let flows = ConntrackFill::read().map(|fill| fill.metrics()).unwrap_or_default();
            let accelerated = status.service_acceleration.clone().map(AccelerationStatus::counted);
            let accelerated = accelerated.map(|it| it.metrics()).unwrap_or_default();
            let text = metrics::text(&status, &measures()) + &source.names.metrics();
            (StatusCode::OK, text + &maps + &flows + &accelerated)
        }
        ("/status", Audience::Root) => {
            let ebpf_maps = fill::rows(source.maps).await;
            let conntrack = ConntrackFill::read();
            let dns_fast_path = source.names.status();
            let accelerated = status.service_acceleration.clone();
            let service_acceleration = accelerated.map(AccelerationStatus::counted);
            let counted = AgentStatus { dns_fast_path, ebpf_maps, conntrack, ..status };
            json(&AgentStatus { service_acceleration, ..counted })
        }
        ("/network", Audience::Root) => ask_loop(source, Question::Network).await,
        ("/services", Audience::Root) => ask_loop(source, Question::Services).await,
        (path, Audience::Root) if path.starts_with(ONE_SERVICE) => {
            one_service(path.trim_start_matches(ONE_SERVICE), &status.node, source).await
        }
        (path, Audience::Root) if path.starts_with(ONE_NAME) => {
            one_name(path.trim_start_matches(ONE_NAME), &status.node, source)
        }
        (path, Audience::Root) if path.starts_with(cni::agent::LINK_PATH) => {
            pod_link(path.trim_start_matches(cni::agent::LINK_PATH), source).await
        }
        (cni::agent::PATH, _) => pod_addresses(uri.query().unwrap_or_default(), source).await,
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    response
}

fn health(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// kube-proxy's answer.
fn proxy_health(status: &AgentStatus, measures: &Measures) -> String {
    let time = |seconds: f64| Timestamp::from_microseconds((seconds * 1e6) as i64).micro();
    serde_json::json!({
        "lastUpdated": time(measures.last_sync_seconds),
        "currentTime": time(unix_seconds()),
        "nodeEligible": !status.leaving,
    })
    .to_string()
}

fn unready(status: &AgentStatus) -> String {
    if !status.synced {
        return "the API's objects were not listed yet: is the API server reachable?".to_owned();
    }
    let problems = status.problems.join("\n");
    format!("pods cannot be added yet: {problems}")
}

fn json<T: Serialize>(value: &T) -> (StatusCode, String) {
    match serde_json::to_string(value) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn ask_loop<T: Serialize>(
    source: &Source,
    question: fn(oneshot::Sender<T>) -> Question,
) -> (StatusCode, String) {
    match ask(source, question).await {
        Some(answer) => json(&answer),
        None => busy(),
    }
}

/// `None`: the loop has too much to do.
async fn ask<T>(
    source: &Source,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (sender, answer) = oneshot::channel();
    source.questions.try_send(question(sender)).ok()?;
    answer.await.ok()
}

fn busy() -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent is busy: ask again".to_owned())
}

/// One Service, `NAMESPACE/NAME`, with what is measured now; of a name that nobody has, none.
async fn one_service(name: &str, node: &str, source: &Source) -> (StatusCode, String) {
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    let key = NamespacedName::new(namespace, name);
    let Some(answer) = ask(source, |sender| Question::Service(key, sender)).await else {
        return busy();
    };
    let mut services = Vec::new();
    if let Some((mut report, measurement)) = answer {
        measurement.carry_out(&mut report).await;
        services.push(report);
    }
    json(&NodeServices { node: node.to_owned(), services })
}

/// Whether the kernel would answer a question to DNS.
fn one_name(question: &str, node: &str, source: &Source) -> (StatusCode, String) {
    let words: Vec<&str> = question.split('/').collect();
    if let [name, kind, address] = words.as_slice()
        && let Ok(address) = address.parse()
    {
        let answer = source.names.explain(name, kind, address);
        return json(&FastPathAnswer { node: node.to_owned(), ..answer });
    }
    (StatusCode::BAD_REQUEST, "/names/NAME/TYPE/ADDRESS".to_owned())
}

/// The plugin's question whether a pod's link is ready.
async fn pod_link(link: &str, source: &Source) -> (StatusCode, String) {
    let link = link.to_owned();
    match ask(source, |sender| Question::Link(link, sender)).await {
        Some(true) => (StatusCode::OK, "ok".to_owned()),
        Some(false) => (StatusCode::SERVICE_UNAVAILABLE, "not yet".to_owned()),
        None => busy(),
    }
}

/// The plugin's question. Names of pods need no decoding.
async fn pod_addresses(query: &str, source: &Source) -> (StatusCode, String) {
    let Some(addressing) = &source.addressing else {
        return (StatusCode::NOT_FOUND, "not found".to_owned());
    };
    let pairs: BTreeMap<&str, &str> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let value = |key: &str| pairs.get(key).copied().unwrap_or_default();
    let key = NamespacedName::new(value("namespace"), value("name"));
    match addressing.answer(&key, value("uid")).await {
        Ok(addresses) => json(&addresses),
        Err(Refusal::NotYet(reason)) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        Err(Refusal::Never(reason)) => (StatusCode::CONFLICT, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn code(path: &'static str, status: &AgentStatus, audience: Audience) -> u16 {
        let (_sender, status) = watch::channel(status.clone());
        let (questions, _) = mpsc::channel(1);
        let measures = Arc::default();
        let names = FastPath::new(model::DnsFastPath::Auto);
        let maps = EbpfMapSizes::default();
        let source =
            Source { status, measures, questions, names, maps, addressing: None, audience };
        respond(&Uri::from_static(path), &source).await.status().as_u16()
    }

    #[tokio::test]
    async fn readiness_follows_the_network_and_status_is_private() {
        let mut status = AgentStatus { healthy: true, ..AgentStatus::default() };
        assert_eq!(code("/readyz", &status, Audience::Loopback).await, 503);
        status.synced = true;
        assert_eq!(code("/readyz", &status, Audience::Loopback).await, 503);
        status.ready = true;
        assert_eq!(code("/readyz", &status, Audience::Loopback).await, 200);
        for path in ["/status", "/network", "/services", "/services/shop/web"] {
            assert_eq!(code(path, &status, Audience::Loopback).await, 404, "{path}");
        }
        assert_eq!(code("/status", &status, Audience::Root).await, 200);
        assert_eq!(code("/network", &status, Audience::Root).await, 503, "nobody answers");
    }

    /// the network learns whether the node takes traffic, and nothing else.
    #[tokio::test]
    async fn the_network_is_told_of_health_alone() {
        let status = AgentStatus { healthy: true, ready: true, ..AgentStatus::default() };
        for (path, network, loopback) in [
            ("/healthz", 200, 200),
            ("/livez", 200, 200),
            ("/readyz", 404, 200),
            ("/metrics", 404, 200),
            ("/status", 404, 404),
            ("/", 404, 404),
        ] {
            assert_eq!(code(path, &status, Audience::Network).await, network, "{path}");
            assert_eq!(code(path, &status, Audience::Loopback).await, loopback, "{path}");
        }
        for (address, audience) in [
            ("127.0.0.1", Audience::Loopback),
            ("::1", Audience::Loopback),
            ("::ffff:127.0.0.1", Audience::Loopback),
            ("::ffff:10.0.0.1", Audience::Network),
            ("2001:db8::1", Audience::Network),
        ] {
            assert_eq!(Audience::of(address.parse().expect("an address")), audience, "{address}");
        }
    }

    /// KEP-3836: a node that leaves takes no new connections, but its proxy lives.
    #[tokio::test]
    async fn a_leaving_node_is_alive_but_takes_nothing_new() {
        for (healthy, leaving, healthz, livez) in
            [(true, false, 200, 200), (true, true, 503, 200), (false, false, 503, 503)]
        {
            let status = AgentStatus { healthy, leaving, ..AgentStatus::default() };
            assert_eq!(code("/healthz", &status, Audience::Network).await, healthz);
            assert_eq!(code("/livez", &status, Audience::Network).await, livez);
        }
    }
}
