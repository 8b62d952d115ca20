//! How requests travel: TLS connections, or a function call within the control plane.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::service_account::ServiceAccount;
use crate::{ClientError, Identity};

/// Longest wait for TCP, TLS and HTTP to be ready, milliseconds.
const CONNECT_TIMEOUT_MS: u64 = 5_000;
/// Idle connections kept for the next request. Watches have connections of their own.
const MAX_IDLE_CONNECTIONS: usize = 2;
/// hyper's buffer for one connection, bytes.
const CONNECTION_BUFFER_BYTES: usize = 32 * 1024;
/// A silent peer is probed after this many seconds, and then at this pace: a watch must notice
/// that its server's machine is gone.
const KEEPALIVE_SECONDS: u64 = 20;
/// Probes without an answer after which the connection is dead.
const KEEPALIVE_PROBES: u32 = 3;

/// Why a body broke off, for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(pub String);

/// A body that arrives piece by piece.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// The answer of a [`Transport`], to come.
pub type TransportFuture =
    Pin<Box<dyn Future<Output = Result<Response<Body>, ClientError>> + Send>>;

/// Takes a request with an origin-form URI (path and query) to the server and brings the answer.
pub trait Transport: Send + Sync {
    /// Sends one request.
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture;
}

/// A TLS server to connect to, and our identity for it.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    /// Where connections go, where somebody has looked the host up.
    dial: Option<SocketAddr>,
    server_name: ServerName<'static>,
    credentials: Credentials,
}

#[derive(Clone)]
enum Credentials {
    /// A client certificate, or a token that stays the same.
    Fixed { tls: Arc<rustls::ClientConfig>, token: Option<header::HeaderValue> },
    /// Files that are replaced while we run.
    ServiceAccount(Arc<ServiceAccount>),
}

impl Endpoint {
    /// An endpoint from an `https://HOST:PORT` URL.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the URL names no host, or key and certificate do not fit.
    pub fn new(url: &str, identity: &Identity) -> Result<Self, ClientError> {
        let fault = |problem: String| ClientError::Config { path: url.to_owned(), problem };
        let tls = tls_config(&identity.authorities, Some(identity))
            .map_err(|error| fault(error.to_string()))?;
        Self::with_credentials(url, Credentials::Fixed { tls: Arc::new(tls), token: None })
    }

    /// An endpoint that takes a bearer token (RFC 6750) for an identity.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn with_token(
        url: &str,
        authorities: &[CertificateDer<'static>],
        token: &str,
    ) -> Result<Self, ClientError> {
        let fault = |problem: String| ClientError::Config { path: url.to_owned(), problem };
        let tls = tls_config(authorities, None).map_err(|error| fault(error.to_string()))?;
        let token = bearer(token).ok_or_else(|| fault("the token is not text".to_owned()))?;
        Self::with_credentials(url, Credentials::Fixed { tls: Arc::new(tls), token: Some(token) })
    }

    /// An endpoint that is told nothing about who we are, such as an admission webhook.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn without_identity(
        url: &str,
        authorities: &[CertificateDer<'static>],
    ) -> Result<Self, ClientError> {
        let fault = |problem: String| ClientError::Config { path: url.to_owned(), problem };
        let tls = tls_config(authorities, None).map_err(|error| fault(error.to_string()))?;
        Self::with_credentials(url, Credentials::Fixed { tls: Arc::new(tls), token: None })
    }

    /// An endpoint for a pod's ServiceAccount, whose files are read again as they are rotated.
    ///
    /// # Errors
    /// As [`Endpoint::new`], and when the files are missing.
    pub fn for_service_account(url: &str, directory: &Path) -> Result<Self, ClientError> {
        let account = ServiceAccount::open(directory)?;
        Self::with_credentials(url, Credentials::ServiceAccount(Arc::new(account)))
    }

    fn with_credentials(url: &str, credentials: Credentials) -> Result<Self, ClientError> {
        let fault = |problem: String| ClientError::Config { path: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|error| fault(format!("not a URL: {error}")))?;
        if uri.scheme_str() != Some("https") {
            return Err(fault("not an https URL: credentials never travel in clear".to_owned()));
        }
        let host = uri.host().ok_or_else(|| fault("the URL names no host".to_owned()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name = ServerName::try_from(host.clone())
            .map_err(|error| fault(format!("not a host name or address: {error}")))?;
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self { host, port, dial: None, server_name, credentials })
    }

    /// The same identity and authorities for another host and port.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the host is neither a name nor an address.
    pub fn at(&self, host: &str, port: u16) -> Result<Self, ClientError> {
        let server_name = ServerName::try_from(host.to_owned()).map_err(|error| {
            ClientError::Config { path: host.to_owned(), problem: error.to_string() }
        })?;
        let credentials = self.credentials.clone();
        Ok(Self { host: host.to_owned(), port, dial: None, server_name, credentials })
    }

    /// The same endpoint at an address: its host is not looked up (again), but the certificate
    /// must name it.
    #[must_use]
    pub fn dialling(self, address: SocketAddr) -> Self {
        Self { dial: Some(address), ..self }
    }

    /// The host of the URL.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port of the URL.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Opens a fresh connection and sends one request on it. The connection ends with the
    /// answer's body, or goes over to its upgrade ([`hyper::upgrade::on`]).
    ///
    /// # Errors
    /// [`ClientError::Transport`] when there is no connection or no answer.
    pub async fn send_once(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.prepare(&mut request);
        let mut sender = self.connect().await?;
        sender.send_request(request).await.map_err(|error| self.lost(&error))
    }

    /// Opens a connection, its driver spawned, within [`CONNECT_TIMEOUT_MS`].
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let limit = Duration::from_millis(CONNECT_TIMEOUT_MS);
        match tokio::time::timeout(limit, self.handshake()).await {
            Ok(connected) => connected,
            Err(_) => Err(self.fault(
                format!("no connection within {CONNECT_TIMEOUT_MS} ms"),
                "check that the server runs and that nothing drops its packets",
            )),
        }
    }

    async fn handshake(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let connected = match self.dial {
            Some(address) => TcpStream::connect(address).await,
            None => TcpStream::connect((self.host.as_str(), self.port)).await,
        };
        let stream = connected.map_err(|error| {
            self.fault(error.to_string(), "check that the control plane runs (`flatnet status`)")
        })?;
        // Neither option decides over correctness, so a kernel that refuses one changes nothing.
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(
            &socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(KEEPALIVE_SECONDS))
                .with_interval(Duration::from_secs(KEEPALIVE_SECONDS))
                .with_retries(KEEPALIVE_PROBES),
        );
        let tls = match &self.credentials {
            Credentials::Fixed { tls, .. } => Arc::clone(tls),
            Credentials::ServiceAccount(account) => account.current().tls,
        };
        let stream = TlsConnector::from(tls)
            .connect(self.server_name.clone(), stream)
            .await
            .map_err(|error| {
                self.fault(
                    error.to_string(),
                    "check that the kubeconfig belongs to this cluster and that the clocks agree",
                )
            })?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(CONNECTION_BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.lost(&error))?;
        tokio::spawn(async move {
            // Its end shows in the sender and in the body; both report it with more to say.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// Adds what HTTP/1.1 asks of every request.
    fn prepare(&self, request: &mut Request<Full<Bytes>>) {
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        if let Ok(value) = header::HeaderValue::from_str(&host) {
            request.headers_mut().insert(header::HOST, value);
        }
        let token = match &self.credentials {
            Credentials::Fixed { token, .. } => token.clone(),
            Credentials::ServiceAccount(account) => Some(account.current().token),
        };
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
    }

    /// The server does not know us any more: the next request reads the credentials anew.
    fn distrust(&self) {
        if let Credentials::ServiceAccount(account) = &self.credentials {
            account.distrust();
        }
    }

    fn fault(&self, problem: String, hint: &'static str) -> ClientError {
        ClientError::Transport { target: format!("{}:{}", self.host, self.port), problem, hint }
    }

    fn lost(&self, error: &hyper::Error) -> ClientError {
        self.fault(with_sources(error), "the server may be restarting: retry")
    }
}

/// A pool of HTTP/1.1 connections to one [`Endpoint`]. Clones share it.
#[derive(Clone)]
pub struct HttpsTransport {
    endpoint: Endpoint,
    idle: Arc<Idle>,
}

impl HttpsTransport {
    /// A pool without connections yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, idle: Arc::default() }
    }

    async fn send_pooled(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Body>, ClientError> {
        self.endpoint.prepare(&mut request);
        // An idle connection may have been closed by the server meanwhile. Only a request that
        // provably never left is sent again: a write must not happen twice.
        while let Some(mut sender) = self.idle.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.with_return(response, sender)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.endpoint.lost(&failed.into_error())),
                },
            }
        }
        let mut sender = self.endpoint.connect().await?;
        let response =
            sender.send_request(request).await.map_err(|error| self.endpoint.lost(&error))?;
        Ok(self.with_return(response, sender))
    }

    fn with_return(
        &self,
        response: Response<Incoming>,
        sender: SendRequest<Full<Bytes>>,
    ) -> Response<Body> {
        if response.status() == StatusCode::UNAUTHORIZED {
            self.endpoint.distrust();
        }
        let idle = Arc::clone(&self.idle);
        response.map(|body| {
            let mut body = PooledBody { body, returning: Some((idle, sender)) };
            if body.body.is_end_stream() {
                body.give_back();
            }
            body.boxed_unsync()
        })
    }
}

impl Transport for HttpsTransport {
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture {
        let pool = self.clone();
        Box::pin(async move { pool.send_pooled(request).await })
    }
}

#[derive(Default)]
struct Idle(Mutex<Vec<SendRequest<Full<Bytes>>>>);

impl Idle {
    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_CONNECTIONS && !sender.is_closed() {
            idle.push(sender);
        }
    }
}

/// A body that gives its connection back once it was read to the end. Dropped earlier, it closes
/// the connection: that is how a watch stops.
struct PooledBody {
    body: Incoming,
    returning: Option<(Arc<Idle>, SendRequest<Full<Bytes>>)>,
}

impl PooledBody {
    fn give_back(&mut self) {
        if let Some((idle, sender)) = self.returning.take() {
            idle.put(sender);
        }
    }
}

impl hyper::body::Body for PooledBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.give_back();
        }
        polled
            .map(|frame| frame.map(|frame| frame.map_err(|error| BodyError(with_sources(&error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A bearer token as a header that is never printed; `None` when it cannot be one.
pub(crate) fn bearer(token: &str) -> Option<header::HeaderValue> {
    let mut value = header::HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub(crate) fn tls_config(
    authorities: &[CertificateDer<'static>],
    identity: Option<&Identity>,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.certificates.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    // Few, long connections: a session cache would cost more memory than it saves handshakes.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// hyper says only "connection error" itself; the reason is in the sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}
