//! Logs and streams (exec, attach, port-forward): checked here, served by the runtime of the pod's
//! node over mutual TLS. What flows in a stream is between client and runtime: once both have
//! agreed, the two connections are joined.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Body, BodyError, Encoded, Endpoint};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use model::ClusterConfig;
use serde_json::Value;
use store::{Object, Status, Subresource, registry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::query::Query;
use super::route::Target;
use super::{Call, answer};
use crate::writer::Shared;

/// Longest wait for a runtime's first byte, milliseconds.
const RUNTIME_TIMEOUT_MS: u64 = 30_000;
/// Sessions of exec, attach and port-forward at a time; each holds two connections.
const MAX_SESSIONS: usize = 64;
/// Largest error text of a runtime that is passed on, bytes.
const MAX_ERROR_BYTES: usize = 16 * 1024;
/// Copy buffer of one direction of a session, bytes.
const SPLICE_BUFFER_BYTES: usize = 16 * 1024;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What the two ends of a session tell each other in the heads of request and answer: SPDY's
/// versions, and the handshake of RFC 6455, section 4.
const AGREED_BY_REQUEST: [HeaderName; 4] =
    [STREAM_PROTOCOL, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_PROTOCOL];
const AGREED_BY_ANSWER: [HeaderName; 5] =
    [CONNECTION, UPGRADE, STREAM_PROTOCOL, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL];

/// The way to the runtimes of the nodes.
pub(crate) struct Proxy {
    /// Our identity; the address is each node's.
    endpoint: Endpoint,
    /// Only addresses in these are dialled, whatever a Node object says: a node must not be able
    /// to send our credentials elsewhere.
    node_cidrs: Vec<IpNet>,
    /// The same for addresses that pods report.
    pod_cidrs: Vec<IpNet>,
    port: u16,
    sessions: Arc<Semaphore>,
}

impl Proxy {
    pub fn new(endpoint: Endpoint, config: &ClusterConfig, port: u16) -> Self {
        Self {
            endpoint,
            node_cidrs: config.node_cidrs.clone(),
            pod_cidrs: config.pod_cidrs.clone(),
            port,
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
        }
    }

    /// Where runtimes listen.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether an address can be a pod's; `on_node` for those of the node's own network.
    pub(super) fn is_of_pods(&self, address: IpAddr, on_node: bool) -> bool {
        let ranges = if on_node { &self.node_cidrs } else { &self.pod_cidrs };
        ranges.iter().any(|range| range.contains(&address))
    }

    /// Room for one more session.
    pub(super) fn session(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.sessions).try_acquire_owned().map_err(|_| {
            let message = format!(
                "more than {MAX_SESSIONS} sessions of exec, attach and port-forward: end one and \
                 retry"
            );
            Status::failure(429, "TooManyRequests", message)
        })
    }

    /// `GET pods/NAME/log`.
    pub(super) async fn log(
        &self,
        shared: &Shared,
        target: &Target,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        let pod = shared.read().get(target.resource, &target.namespace, &target.name)?;
        let container = container(&pod, query.get("container"))?;
        // A pod that is on no node yet has no logs; that is no error.
        let Some(address) = self.node_address(shared, &pod)? else {
            return Ok(answer::nothing());
        };
        let passed_on = [
            "follow",
            "tailLines",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "previous",
            "limitBytes",
        ];
        let parameters: Vec<String> = passed_on
            .iter()
            .filter_map(|name| query.find(name).map(|value| format!("{name}={}", Encoded(value))))
            .collect();
        let path = path("containerLogs", target, &container, &parameters);
        let response = self.ask(address, Method::GET, &path, &HeaderMap::new()).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let body = response.into_body().map_err(|error| BodyError(error.to_string()));
        Ok(answer::stream(StatusCode::OK, "text/plain", body.boxed_unsync()))
    }

    /// `pods/NAME/exec`, `attach` and `portforward`, upgraded to SPDY/3.1 or a websocket.
    pub(super) async fn connect(
        &self,
        shared: &Shared,
        target: &Target,
        call: Call,
    ) -> Result<Response<Body>, Status> {
        let query = call.query();
        let pod = shared.read().get(target.resource, &target.namespace, &target.name)?;
        let path = stream_path(&pod, target, &query)?;
        let Some(address) = self.node_address(shared, &pod)? else {
            return Err(Status::bad_request(format!(
                "pod {} does not have a host assigned",
                target.name
            )));
        };
        // What is wrong with the pod comes first: no other protocol would mend it.
        let (upgrade, protocol) = upgrade(&call.headers, call.upgrade)?;
        let permit = self.session()?;
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(protocol));
        for name in AGREED_BY_REQUEST {
            for value in call.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        let response = self.ask(address, call.method, &path, &headers).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let mut headers = HeaderMap::new();
        for name in AGREED_BY_ANSWER {
            headers.extend(response.headers().get(&name).map(|value| (name, value.clone())));
        }
        Ok(splice(upgrade, response, headers, permit))
    }

    /// Sends one request to a node's runtime.
    pub(super) async fn ask(
        &self,
        address: IpAddr,
        method: Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Status> {
        let endpoint =
            self.endpoint.at(&address.to_string(), self.port).map_err(Status::internal)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(Full::default())
            .map_err(Status::internal)?;
        request.headers_mut().extend(headers.clone());
        let limit = Duration::from_millis(RUNTIME_TIMEOUT_MS);
        match tokio::time::timeout(limit, endpoint.send_once(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Status::internal(format!(
                "the node's runtime does not answer: {error}; `flatnet status` shows the node"
            ))),
            Err(_) => Err(Status::failure(
                504,
                "Timeout",
                format!("Timeout: no answer from the node's runtime at {address}"),
            )),
        }
    }

    /// A document of a node's runtime.
    pub(super) async fn document(
        &self,
        address: IpAddr,
        path: &str,
        max_bytes: usize,
    ) -> Result<Bytes, Status> {
        let response = self.ask(address, Method::GET, path, &HeaderMap::new()).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let body = Limited::new(response.into_body(), max_bytes).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(Status::internal)
    }

    /// The address of the pod's node; `None` while the pod has none.
    fn node_address(&self, shared: &Shared, pod: &Object) -> Result<Option<IpAddr>, Status> {
        match text(&pod.value, "/spec/nodeName") {
            "" => Ok(None),
            node => self.address_of(shared, node).map(Some),
        }
    }

    /// The address of a node.
    pub(super) fn address_of(&self, shared: &Shared, node_name: &str) -> Result<IpAddr, Status> {
        let Some(nodes) = registry::find("", "v1", "nodes") else {
            return Err(Status::unknown_path());
        };
        let node = shared.read().get(nodes, "", node_name)?;
        let addresses = node.value.pointer("/status/addresses").and_then(Value::as_array);
        let internal =
            addresses.into_iter().flatten().filter(|entry| entry["type"] == "InternalIP");
        let address = internal
            .filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok())
            .find(|address| self.node_cidrs.iter().any(|range| range.contains(address)));
        address.ok_or_else(|| {
            Status::internal(format!(
                "node {node_name:?} reports no InternalIP in the node range; its runtime may not \
                 have started yet"
            ))
        })
    }
}

/// The kubelet's path for a container.
fn path(verb: &str, target: &Target, container: &str, parameters: &[String]) -> String {
    format!(
        "/{verb}/{}/{}/{}?{}",
        Encoded(&target.namespace),
        Encoded(&target.name),
        Encoded(container),
        parameters.join("&")
    )
}

/// The kubelet's path for a stream, once the pod and the container are such that there can be one.
fn stream_path(pod: &Object, target: &Target, query: &Query) -> Result<String, Status> {
    let completed = |what: &str| match text(&pod.value, "/status/phase") {
        phase @ ("Succeeded" | "Failed") => Err(Status::bad_request(format!(
            "cannot {what} a completed pod; current phase is {phase}"
        ))),
        _ => Ok(()),
    };
    Ok(match target.subresource {
        Some(Subresource::PortForward) => {
            completed("forward ports of")?;
            let ports: Vec<String> =
                query.all("ports").map(|ports| format!("ports={}", Encoded(ports))).collect();
            let (namespace, name) = (Encoded(&target.namespace), Encoded(&target.name));
            format!("/portForward/{namespace}/{name}?{}", ports.join("&"))
        }
        Some(Subresource::Attach) => {
            completed("attach a container in")?;
            let parameters: Vec<String> = stream_parameters(query).collect();
            path("attach", target, &container(pod, query.get("container"))?, &parameters)
        }
        _ => {
            completed("exec into a container in")?;
            let commands = query.all("command").map(|word| format!("command={}", Encoded(word)));
            let parameters: Vec<String> = commands.chain(stream_parameters(query)).collect();
            path("exec", target, &container(pod, query.get("container"))?, &parameters)
        }
    })
}

/// The kubelet names the streams differently than the API does.
fn stream_parameters(query: &Query) -> impl Iterator<Item = String> {
    let streams = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let streams = streams.into_iter().filter(|(api, _)| query.flag(api));
    streams.map(|(_, kubelet)| format!("{kubelet}=1"))
}

/// The container that a request means, as the real server chooses it.
fn container(pod: &Object, asked: &str) -> Result<String, Status> {
    let names = |pointer: &str| -> Vec<&str> {
        let containers = pod.value.pointer(pointer).and_then(Value::as_array);
        containers.into_iter().flatten().filter_map(|entry| entry["name"].as_str()).collect()
    };
    let containers = names("/spec/containers");
    let init_containers = names("/spec/initContainers");
    let added = names("/spec/ephemeralContainers");
    let pod_name = &pod.key.name;
    if !asked.is_empty() {
        let mut all = containers.iter().chain(&init_containers).chain(&added);
        return match all.any(|name| *name == asked) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {pod_name}"
            ))),
        };
    }
    let annotations = pod.value.pointer("/metadata/annotations");
    let default = annotations
        .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
        .and_then(Value::as_str)
        .filter(|name| containers.contains(name));
    match (containers.as_slice(), default) {
        ([only], _) => Ok((*only).to_owned()),
        (_, Some(default)) => Ok(default.to_owned()),
        (several, None) => {
            let mut message = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                several.join(" ")
            );
            if !init_containers.is_empty() {
                let init_containers = init_containers.join(" ");
                message.push_str(&format!(" or one of the init containers: [{init_containers}]"));
            }
            Err(Status::bad_request(message))
        }
    }
}

/// The client's connection, and the protocol that it asks for.
fn upgrade(
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
) -> Result<(OnUpgrade, &'static str), Status> {
    let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = ["SPDY/3.1", "websocket"].into_iter().find(|one| asked.eq_ignore_ascii_case(one));
    match (upgrade, known) {
        (Some(upgrade), Some(protocol)) => Ok((upgrade, protocol)),
        (Some(_), None) => Err(Status::bad_request(format!(
            "unable to upgrade: unsupported protocol {asked:?}; streams are served over SPDY/3.1 \
             and websockets"
        ))),
        (None, _) => Err(Status::bad_request("Upgrade request required")),
    }
}

/// Answers 101 with `headers` and joins both connections until one side ends.
pub(super) fn splice(
    from_client: OnUpgrade,
    from_runtime: Response<Incoming>,
    headers: HeaderMap,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let mut answer = Response::new(answer::full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    tokio::spawn(async move {
        let _permit = permit;
        let upgraded = tokio::try_join!(from_client, hyper::upgrade::on(from_runtime));
        let Ok((client, runtime)) = upgraded else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        // Either end may simply go away: that is how a session ends.
        let _ = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut runtime,
            SPLICE_BUFFER_BYTES,
            SPLICE_BUFFER_BYTES,
        )
        .await;
    });
    answer
}

/// A runtime's refusal is plain text; clients want a `Status`.
async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await;
    let message = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
    let message = message.unwrap_or_else(|error| format!("the node's runtime broke off: {error}"));
    match code {
        400 => Status::bad_request(message),
        404 => Status::failure(404, "NotFound", message),
        403 => Status::failure(403, "Forbidden", message),
        _ => Status::internal(message),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
