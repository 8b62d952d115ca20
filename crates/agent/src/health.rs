//! What the agent says of itself: everything on a unix socket that is root's alone, health and
//! metrics also on loopback.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use model::layout;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::feed::bind;

/// The socket's name in the run directory.
pub const STATUS_SOCKET: &str = "agent.sock";

/// What an agent says of itself (`flatnet status`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The node's name.
    pub node: String,
    /// Whether the API's objects were listed completely once.
    pub synced: bool,
    /// Whether the kernel holds what was planned.
    pub converged: bool,
    /// Services in the kernel.
    pub services: usize,
    /// Kernel operations since the start.
    pub operations_total: u64,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// Serves until the process ends.
///
/// # Errors
/// When a socket cannot be made.
pub(crate) fn serve(run_directory: &Path) -> Result<watch::Sender<AgentStatus>> {
    let (sender, status) = watch::channel(AgentStatus::default());
    let private = bind(run_directory, STATUS_SOCKET)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, layout::AGENT_HEALTH_PORT));
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("listening on {address} (does kube-proxy run on this node?)"))?;
    listener.set_nonblocking(true)?;
    let public = TcpListener::from_std(listener)?;

    let all = status.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = private.accept().await {
            tokio::spawn(answer(stream, all.clone(), true));
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = public.accept().await {
            tokio::spawn(answer(stream, status.clone(), false));
        }
    });
    Ok(sender)
}

async fn answer<S>(stream: S, status: watch::Receiver<AgentStatus>, private: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.uri().path(), &status.borrow(), private);
        async move { Ok::<_, Infallible>(response) }
    });
    // A client that goes away in the middle is nobody's problem.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn respond(path: &str, status: &AgentStatus, private: bool) -> Response<Full<Bytes>> {
    let (code, body) = match path {
        "/healthz" | "/livez" => (StatusCode::OK, "ok".to_owned()),
        "/readyz" if status.synced => (StatusCode::OK, "ok".to_owned()),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the API's objects were not listed yet: is the API server reachable?".to_owned(),
        ),
        "/metrics" => (StatusCode::OK, metrics(status)),
        "/status" if private => (StatusCode::OK, serde_json::to_string(status).unwrap_or_default()),
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    response
}

/// The Prometheus text format, version 0.0.4.
fn metrics(status: &AgentStatus) -> String {
    let rows = [
        ("flatnet_synced", "gauge", "Whether the objects were listed.", u64::from(status.synced)),
        (
            "flatnet_converged",
            "gauge",
            "Whether the kernel holds what was planned.",
            u64::from(status.converged),
        ),
        ("flatnet_services", "gauge", "Services in the kernel.", status.services as u64),
        (
            "flatnet_kernel_operations_total",
            "counter",
            "Kernel operations carried out.",
            status.operations_total,
        ),
        ("flatnet_problems", "gauge", "Problems known now.", status.problems.len() as u64),
    ];
    rows.map(|(name, kind, help, value)| {
        format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n")
    })
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_first_list_and_status_is_private() {
        let mut status = AgentStatus::default();
        assert_eq!(respond("/readyz", &status, false).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(respond("/healthz", &status, false).status(), StatusCode::OK);
        status.synced = true;
        assert_eq!(respond("/readyz", &status, false).status(), StatusCode::OK);
        assert_eq!(respond("/status", &status, false).status(), StatusCode::NOT_FOUND);
        assert_eq!(respond("/status", &status, true).status(), StatusCode::OK);
    }

    #[test]
    fn metrics_are_in_prometheus_text_form() {
        let text = metrics(&AgentStatus { services: 3, ..AgentStatus::default() });
        assert!(text.contains("# TYPE flatnet_services gauge\nflatnet_services 3\n"), "{text}");
    }
}
