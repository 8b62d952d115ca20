//! Servers that are asked over TLS (RFC 7858) and HTTPS (RFC 8484): a thread of their own, begun
//! with the first such question, that hands answers back to the thread that asked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dns::config::{Carrier, Server};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::exchanges::framed;

/// Questions that wait for the thread; further ones fail at once.
const QUEUE_MAX: usize = 1024;
/// Connections to one server that are kept for the next question.
const IDLE_MAX: usize = 8;
/// How long a question may take, connecting included. The forwarder stops waiting earlier.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The largest answer, in octets.
const ANSWER_OCTETS: usize = 65535;
/// The media type of RFC 8484, 6.
const MESSAGE_TYPE: &str = "application/dns-message";

/// What came of a question.
pub(crate) struct Arrived {
    pub(crate) exchange: u64,
    pub(crate) from: SocketAddr,
    pub(crate) message: Result<Vec<u8>>,
}

/// Where a thread of the worker finds what came for it.
pub(crate) struct Inbox {
    event: Arc<EventFd>,
    sender: mpsc::Sender<Arrived>,
    receiver: mpsc::Receiver<Arrived>,
}

impl Inbox {
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self { event, sender, receiver })
    }

    /// Readable when something came.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// All that came.
    pub(crate) fn take(&mut self) -> Vec<Arrived> {
        let _ = self.event.read();
        self.receiver.try_iter().collect()
    }
}

struct Job {
    exchange: u64,
    server: Server,
    message: Vec<u8>,
    event: Arc<EventFd>,
    sender: mpsc::Sender<Arrived>,
}

impl Job {
    fn finish(self, message: Result<Vec<u8>>) {
        let arrived = Arrived { exchange: self.exchange, from: self.server.address, message };
        if self.sender.send(arrived).is_ok() {
            let _ = self.event.write(1);
        }
    }
}

/// The way to the thread, the same for all threads of the worker.
#[derive(Clone, Default)]
pub(crate) struct Secure {
    jobs: Arc<OnceLock<tokio::sync::mpsc::Sender<Job>>>,
}

impl Secure {
    /// Asks a server; what comes of it arrives in the inbox.
    pub(crate) fn send(&self, inbox: &Inbox, exchange: u64, server: Server, message: Vec<u8>) {
        let (event, sender) = (inbox.event.clone(), inbox.sender.clone());
        let job = Job { exchange, server, message, event, sender };
        if let Err(refused) = self.jobs.get_or_init(start).try_send(job) {
            let job = match refused {
                tokio::sync::mpsc::error::TrySendError::Full(job)
                | tokio::sync::mpsc::error::TrySendError::Closed(job) => job,
            };
            job.finish(Err(anyhow::anyhow!("too many questions wait for servers over TLS")));
        }
    }
}

fn start() -> tokio::sync::mpsc::Sender<Job> {
    let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE_MAX);
    let started = std::thread::Builder::new().name("tls".into()).spawn(move || {
        if let Err(error) = work(receiver) {
            tracing::error!("DNS servers over TLS cannot be asked: {error:#}");
        }
    });
    if let Err(error) = started {
        tracing::error!("DNS servers over TLS cannot be asked: {error}");
    }
    sender
}

fn work(mut jobs: tokio::sync::mpsc::Receiver<Job>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pool = Rc::new(Pool::new()?);
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        while let Some(job) = jobs.recv().await {
            let pool = pool.clone();
            tokio::task::spawn_local(async move {
                let asked = tokio::time::timeout(TIMEOUT, pool.ask(&job.server, &job.message));
                let answer = asked.await.context("no answer in time").and_then(|answer| answer);
                job.finish(answer);
            });
        }
    });
    Ok(())
}

/// Connections that are open.
struct Pool {
    for_tls: TlsConnector,
    for_https: TlsConnector,
    idle: RefCell<BTreeMap<Server, Vec<TlsStream<TcpStream>>>>,
    https: RefCell<BTreeMap<Server, SendRequest<Full<Bytes>>>>,
}

impl Pool {
    /// Certificates are those that the host trusts; `SSL_CERT_FILE` names others.
    fn new() -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            bail!("the host has no certificates to trust: install ca-certificates");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let connector = |protocol: &[u8]| -> Result<TlsConnector> {
            let mut config = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(TlsConnector::from(Arc::new(config)))
        };
        Ok(Self {
            for_tls: connector(b"dot")?,
            for_https: connector(b"h2")?,
            idle: RefCell::default(),
            https: RefCell::default(),
        })
    }

    async fn ask(&self, server: &Server, message: &[u8]) -> Result<Vec<u8>> {
        match &server.carrier {
            Carrier::Plain => bail!("{server} is not asked over TLS"),
            Carrier::Tls { server_name } => {
                self.ask_tls(server, server_name.as_deref(), message).await
            }
            Carrier::Https { server_name, path } => {
                self.ask_https(server, server_name.as_deref(), path, message).await
            }
        }
    }

    async fn ask_tls(
        &self,
        server: &Server,
        name: Option<&str>,
        message: &[u8],
    ) -> Result<Vec<u8>> {
        loop {
            let idle = self.idle.borrow_mut().get_mut(server).and_then(Vec::pop);
            // A server may have closed what was idle: only a new connection's failure counts.
            let was_idle = idle.is_some();
            let mut stream = match idle {
                Some(stream) => stream,
                None => connect(&self.for_tls, server, name).await?,
            };
            match exchange(&mut stream, message).await {
                Ok(answer) => {
                    let mut idle = self.idle.borrow_mut();
                    let kept = idle.entry(server.clone()).or_default();
                    if kept.len() < IDLE_MAX {
                        kept.push(stream);
                    }
                    return Ok(answer);
                }
                Err(_) if was_idle => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask_https(
        &self,
        server: &Server,
        name: Option<&str>,
        path: &str,
        message: &[u8],
    ) -> Result<Vec<u8>> {
        let open = self.https.borrow().get(server).filter(|open| !open.is_closed()).cloned();
        let mut open = match open {
            Some(open) => open,
            None => self.connect_https(server, name).await?,
        };
        let host = name.map_or_else(|| server.address.to_string(), str::to_owned);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{host}{path}"))
            .header("accept", MESSAGE_TYPE)
            .header("content-type", MESSAGE_TYPE)
            .body(Full::new(Bytes::copy_from_slice(message)))?;
        let response = open.send_request(request).await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{server} answers {status}");
        }
        match Limited::new(response.into_body(), ANSWER_OCTETS).collect().await {
            Ok(body) => Ok(body.to_bytes().to_vec()),
            Err(error) => bail!("{error}"),
        }
    }

    async fn connect_https(
        &self,
        server: &Server,
        name: Option<&str>,
    ) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TokioIo::new(connect(&self.for_https, server, name).await?);
        let (open, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::task::spawn_local(async move {
            // Ends with the connection, whose next question opens another.
            let _ = connection.await;
        });
        self.https.borrow_mut().insert(server.clone(), open.clone());
        Ok(open)
    }
}

async fn connect(
    connector: &TlsConnector,
    server: &Server,
    name: Option<&str>,
) -> Result<TlsStream<TcpStream>> {
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name} is no name of a certificate"))?,
        None => ServerName::from(server.address.ip()),
    };
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    Ok(connector.connect(name, stream).await?)
}

async fn exchange(stream: &mut TlsStream<TcpStream>, message: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(&framed(message)).await?;
    stream.flush().await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
