//! A name server over TLS and HTTPS, with certificates of the test's own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::lab::{Lab, respond};

/// Who issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A file that lists it, for a worker to trust.
    pub fn file(&self, directory: &Path) -> PathBuf {
        let file = directory.join("issuers.pem");
        self.write(&file);
        file
    }

    /// The same at a place of the test's choice.
    pub fn write(&self, file: &Path) {
        std::fs::write(file, &self.pem).expect("writes");
    }

    /// What clients show must be issued by this one.
    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("a certificate");
        roots.add(own).expect("an issuer");
        let roots = Arc::new(roots);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        builder.build().expect("a verifier")
    }

    /// A certificate for a name, that is valid until a year.
    pub fn issue(&self, name: &str, until_year: i32) -> Identity {
        let mut params = CertificateParams::default();
        let san = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into().expect("a name")),
        };
        params.subject_alt_names = vec![san];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

impl Identity {
    /// Files with the certificate and the key, for servers of others.
    pub fn files(&self, directory: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
        std::fs::write(&certificate, &self.pem).expect("writes");
        std::fs::write(&key, self.key.serialize_pem()).expect("writes");
        (certificate, key)
    }
}

/// How a server speaks and behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// DNS over TLS; every question is answered when it comes.
    Tls,
    /// The same; answers wait until so many questions came, and go in reverse order.
    TlsInReverse(usize),
    /// The same, but connections are closed after so many answers.
    TlsUntil(usize),
    /// The same, but on the first connection nothing is said behind the first answer.
    TlsThenSilent,
    /// DNS over HTTPS at `/dns-query`.
    Https,
    /// HTTPS that knows of no DNS.
    HttpsOfOthers,
}

/// What a server saw.
#[derive(Default)]
pub struct Seen {
    connections: AtomicUsize,
    questions: AtomicUsize,
}

/// A server that runs until its value goes.
pub struct Server {
    seen: Arc<Seen>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(lab: &Lab, address: &str, identity: &Identity, speaks: Speaks) -> Self {
        Self::start_for(lab, address, identity, speaks, None)
    }

    /// One that serves only those who show a certificate of `clients`, where it is given.
    pub fn start_for(
        lab: &Lab,
        address: &str,
        identity: &Identity,
        speaks: Speaks,
        clients: Option<&Authority>,
    ) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let listener = lab.on_host(|| TcpListener::bind(address).expect("a free port"));
        listener.set_nonblocking(true).expect("a socket");
        let key = PrivateKeyDer::Pkcs8(identity.key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = clients.map_or_else(WebPkiClientVerifier::no_client_auth, |authority| {
            authority.verifier(&provider)
        });
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate.clone()], key)
            .expect("a certificate and its key");
        let is_https = matches!(speaks, Speaks::Https | Speaks::HttpsOfOthers);
        config.alpn_protocols = vec![if is_https { b"h2".to_vec() } else { b"dot".to_vec() }];
        let seen = Arc::new(Seen::default());
        let (end, ended) = tokio::sync::oneshot::channel();
        let told = seen.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime.expect("a runtime"), async move {
                tokio::select! {
                    () = accept(listener, acceptor, speaks, told) => {}
                    _ = ended => {}
                }
            });
        });
        Self { seen, end: Some(end), thread: Some(thread) }
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn questions(&self) -> usize {
        self.seen.questions.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, speaks: Speaks, seen: Arc<Seen>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            // A client that does not believe us goes.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let before = seen.connections.fetch_add(1, Ordering::SeqCst);
            let speaks = match speaks {
                Speaks::TlsThenSilent if before > 0 => Speaks::Tls,
                same => same,
            };
            match speaks {
                Speaks::Https | Speaks::HttpsOfOthers => {
                    serve_https(stream, speaks == Speaks::Https, seen).await;
                }
                _ => {
                    let _ = serve_tls(stream, speaks, &seen).await;
                }
            }
        });
    }
}

async fn serve_tls(
    mut stream: TlsStream<TcpStream>,
    speaks: Speaks,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut held = Vec::new();
    for count in 1.. {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        seen.questions.fetch_add(1, Ordering::SeqCst);
        if speaks == Speaks::TlsThenSilent && count > 1 {
            continue;
        }
        held.extend(respond(&question, true));
        if let Speaks::TlsInReverse(wanted) = speaks
            && held.len() < wanted
        {
            continue;
        }
        for answer in held.drain(..).rev() {
            stream.write_u16(answer.len() as u16).await?;
            stream.write_all(&answer).await?;
        }
        stream.flush().await?;
        if let Speaks::TlsUntil(most) = speaks
            && count == most
        {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

async fn serve_https(stream: TlsStream<TcpStream>, knows_dns: bool, seen: Arc<Seen>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            seen.questions.fetch_add(1, Ordering::SeqCst);
            let is_question = request.method() == "POST"
                && request.uri().path() == "/dns-query"
                && request.headers()["content-type"] == "application/dns-message";
            let question = request.into_body().collect().await?.to_bytes();
            let answer = respond(&question, true).filter(|_| is_question && knows_dns);
            let (status, kind) = match &answer {
                Some(_) => (200, "application/dns-message"),
                None => (404, "text/html"),
            };
            let response = Response::builder().status(status).header("content-type", kind);
            let body = Full::new(Bytes::from(answer.unwrap_or_default()));
            Ok::<_, hyper::Error>(response.body(body).expect("a response"))
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}
