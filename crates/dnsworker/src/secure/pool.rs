//! The connections to servers over TLS and HTTPS.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dns::config::{Carrier, Server, TlsFiles};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pipeline::Pipeline;
use super::trust::Trust;
use super::{ANSWER_OCTETS, TIMEOUT};

/// A server that no connection could be made to is not tried again for this time.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Servers whose connections are kept in mind; of more, those that are closed are forgotten.
const MAX_SERVERS: usize = 64;
/// How often a connection that should bring answers is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// The media type of RFC 8484, 6.
const MESSAGE_TYPE: &str = "application/dns-message";
/// The port that addresses of HTTPS leave out.
const HTTPS_PORT: u16 = 443;

/// All of them.
#[derive(Default)]
pub(super) struct Pool {
    host: OnceCell<Trust>,
    ways: RefCell<BTreeMap<Server, Rc<Mutex<Way>>>>,
}

/// One server. Locked while a connection is made: who comes meanwhile gets the same.
#[derive(Default)]
struct Way {
    open: Option<Open>,
    failed: Option<(Instant, String)>,
}

/// A connection.
#[derive(Clone)]
enum Open {
    Tls(Pipeline),
    Https(http2::SendRequest<Full<Bytes>>),
}

impl Pool {
    pub(super) async fn ask(&self, server: &Server, message: &[u8]) -> Result<Vec<u8>> {
        let way = self.way(server);
        let (open, was_open) = self.open(&way, server).await?;
        match open.ask(server, message).await {
            // A server may close what was idle, just when it is used again: that says nothing of
            // the server (RFC 7766, 6.2.4). A new connection's failure does.
            Err(_) if was_open && open.is_closed() => {
                let (open, _) = self.open(&way, server).await?;
                open.ask(server, message).await
            }
            answer => answer,
        }
    }

    fn way(&self, server: &Server) -> Rc<Mutex<Way>> {
        let mut ways = self.ways.borrow_mut();
        if ways.len() >= MAX_SERVERS {
            ways.retain(|_, way| {
                way.try_lock()
                    .map_or(true, |way| way.open.as_ref().is_some_and(|open| !open.is_closed()))
            });
        }
        ways.entry(server.clone()).or_default().clone()
    }

    /// The connection to a server, and whether it was there before.
    async fn open(&self, way: &Mutex<Way>, server: &Server) -> Result<(Open, bool)> {
        let mut way = way.lock().await;
        if let Some(open) = way.open.as_ref().filter(|open| !open.is_closed()) {
            return Ok((open.clone(), true));
        }
        if let Some((at, error)) = &way.failed
            && at.elapsed() < RETRY_AFTER
        {
            bail!("{error}");
        }
        way.open = None;
        let connected = tokio::time::timeout(TIMEOUT / 2, self.connect(server)).await;
        match connected.unwrap_or_else(|_| Err(anyhow!("it does not take the connection"))) {
            Ok(open) => {
                if way.failed.take().is_some() {
                    tracing::info!("the DNS server {server} can be asked again");
                }
                way.open = Some(open.clone());
                Ok((open, false))
            }
            Err(error) => {
                let error = format!("{error:#}");
                // Once, not at every question.
                if way.failed.is_none() {
                    tracing::warn!("the DNS server {server} cannot be asked: {error}");
                }
                way.failed = Some((Instant::now(), error.clone()));
                bail!("{error}")
            }
        }
    }

    /// What the host trusts, read once.
    fn host(&self) -> Result<&Trust> {
        Ok(match self.host.get() {
            Some(trust) => trust,
            None => {
                let trust = Trust::of_host()?;
                self.host.get_or_init(|| trust)
            }
        })
    }

    async fn connect(&self, server: &Server) -> Result<Open> {
        let Some(tls) = server.carrier.tls() else { bail!("it is not asked over TLS") };
        let trust = if tls.files == TlsFiles::default() {
            self.host()?
        } else {
            &Trust::of_files(&tls.files)?
        };
        let name = tls.server_name.as_deref();
        match &server.carrier {
            Carrier::Plain | Carrier::Tls(_) => {
                let stream = connect_tls(&trust.for_tls, server, name).await?;
                Ok(Open::Tls(Pipeline::new(stream)))
            }
            Carrier::Https { .. } => {
                let stream = connect_tls(&trust.for_https, server, name).await?;
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    bail!("it does not speak HTTP/2, which DNS over HTTPS needs (RFC 8484, 5.2)");
                }
                let (open, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_INTERVAL)
                    .handshake(TokioIo::new(stream))
                    .await?;
                // Ends with the connection, whose next question makes another.
                tokio::task::spawn_local(connection);
                Ok(Open::Https(open))
            }
        }
    }
}

impl Open {
    fn is_closed(&self) -> bool {
        match self {
            Self::Tls(pipeline) => pipeline.is_closed(),
            Self::Https(open) => open.is_closed(),
        }
    }

    async fn ask(&self, server: &Server, message: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Tls(pipeline) => pipeline.ask(message).await,
            Self::Https(open) => ask_https(open.clone(), server, message).await,
        }
    }
}

async fn ask_https(
    mut open: http2::SendRequest<Full<Bytes>>,
    server: &Server,
    message: &[u8],
) -> Result<Vec<u8>> {
    let Carrier::Https { tls, path } = &server.carrier else {
        bail!("it is not asked over HTTPS");
    };
    let host = match (&tls.server_name, server.address.port()) {
        (None, _) => server.address.to_string(),
        (Some(name), HTTPS_PORT) => name.clone(),
        (Some(name), port) => format!("{name}:{port}"),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{host}{path}"))
        .header(ACCEPT, MESSAGE_TYPE)
        .header(CONTENT_TYPE, MESSAGE_TYPE)
        .body(Full::new(Bytes::copy_from_slice(message)))?;
    let response = open.send_request(request).await?;
    let status = response.status();
    if !status.is_success() {
        bail!("it answers {status} at {path}: is that the path of its DNS over HTTPS?");
    }
    let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    if kind != Some(MESSAGE_TYPE.as_bytes()) {
        bail!("what it has at {path} is no DNS message ({MESSAGE_TYPE})");
    }
    match Limited::new(response.into_body(), ANSWER_OCTETS).collect().await {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) => bail!("{error}"),
    }
}

async fn connect_tls(
    connector: &TlsConnector,
    server: &Server,
    name: Option<&str>,
) -> Result<TlsStream<TcpStream>> {
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned())
            .with_context(|| format!("tls_servername {name:?} is no name of a certificate"))?,
        None => ServerName::from(server.address.ip()),
    };
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    connector.connect(name, stream).await.map_err(|error| match advice(&error) {
        Some(advice) => anyhow!("{error}: {advice}"),
        None => anyhow!(error).context("TLS"),
    })
}

/// What to do about a certificate that does not count.
fn advice(error: &std::io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(certificate) = error else { return None };
    Some(match certificate {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "write a name that the certificate has as tls_servername, or somebody stands between"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "its operator must renew it, or this machine's clock is wrong"
        }
        CertificateError::UnknownIssuer => {
            "nobody that counts issued it: name a file with its issuer as `tls: {ca: FILE}` of the \
             rule, or add the issuer to the host's certificates (SSL_CERT_FILE names others), or \
             somebody stands between"
        }
        _ => "the certificate does not count",
    })
}
