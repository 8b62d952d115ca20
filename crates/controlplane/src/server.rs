//! Connections: accepting, TLS, HTTP/1.1 and HTTP/2, and an orderly end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::UPGRADE;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use store::Status;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Call};
use crate::stopped;
use crate::tls::{User, user_of};

/// Connections at a time; further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 1_024;
/// Longest TLS handshake, milliseconds: a client that says nothing holds no connection.
const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// Longest wait for the head of a request on an HTTP/1.1 connection, milliseconds; also how long
/// an idle one is kept.
const HEAD_TIMEOUT_MS: u64 = 90_000;
/// Longest wait for the body of a request, milliseconds.
const BODY_TIMEOUT_MS: u64 = 60_000;
/// Largest body of a request, bytes: the real server's limit.
const MAX_BODY_BYTES: usize = 3 << 20;
/// Buffer of an HTTP/1.1 connection, bytes.
const HTTP1_BUFFER_BYTES: usize = 32 * 1024;
/// Streams of one HTTP/2 connection: many watches share it, as in Go's server.
const HTTP2_STREAMS: u32 = 250;
/// Unsent bytes of one HTTP/2 stream: a slow reader holds up no other.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Largest set of headers, bytes.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// A silent HTTP/2 peer is asked for a sign of life this often, seconds.
const HTTP2_PING_SECONDS: u64 = 30;
/// Pause after a failed accept, milliseconds: the usual cause is too many open files.
const ACCEPT_RETRY_MS: u64 = 100;
/// How long open connections may go on when the server stops, milliseconds.
const DRAIN_TIMEOUT_MS: u64 = 2_000;

/// Serves one listener until `stop` becomes true and its connections have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Some((stream, peer)) = accept(&listener, &permits, &mut connections, &mut stop).await
    {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (acceptor, api, stop) = (acceptor.clone(), Arc::clone(&api), stop.clone());
        connections.spawn(async move {
            if let Err(problem) = connection(stream, peer, acceptor, api, stop).await {
                tracing::debug!(%peer, %problem, "a connection failed");
            }
            drop(permit);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What has not ended by then is cut off as the set is dropped.
    let _ = tokio::time::timeout(Duration::from_millis(DRAIN_TIMEOUT_MS), drained).await;
}

/// The next connection, while there is room for one; `None` when the server stops.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    connections: &mut JoinSet<()>,
    stop: &mut watch::Receiver<bool>,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let has_room = permits.available_permits() > 0;
        tokio::select! {
            () = stopped(stop) => return None,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; is the limit of open files too low?");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                }
            },
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    // Answers are small and wanted at once. A kernel that refuses changes only the latency.
    let _ = stream.set_nodelay(true);
    let limit = Duration::from_millis(HANDSHAKE_TIMEOUT_MS);
    let stream = tokio::time::timeout(limit, acceptor.accept(stream))
        .await
        .map_err(|_| "no TLS handshake in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(user_of);
    let service = service_fn(move |request| answer(Arc::clone(&api), user.clone(), peer, request));
    let builder = builder();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
        () = stopped(&mut stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(|error| error.to_string())
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_TIMEOUT_MS))
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(HTTP2_PING_SECONDS))
        .keep_alive_timeout(Duration::from_secs(HTTP2_PING_SECONDS));
    builder
}

async fn answer(
    api: Arc<Api>,
    user: Option<User>,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let upgrade = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(Duration::from_millis(BODY_TIMEOUT_MS), body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("Request entity too large: limit is {MAX_BODY_BYTES}");
            let status = Status::failure(413, "RequestEntityTooLarge", message);
            return Ok(Api::refuse(&status));
        }
        Ok(Err(error)) => {
            return Ok(Api::refuse(&Status::bad_request(format!("the body broke off: {error}"))));
        }
        Err(_) => {
            let message = "Timeout: the body did not arrive in time";
            return Ok(Api::refuse(&Status::failure(504, "Timeout", message)));
        }
    };
    let call = Call {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body,
        user,
        source: Some(peer.ip()),
        is_exempt: false,
        upgrade,
    };
    Ok(api.handle(call).await)
}
