//! Requests to registries: TLS by what the machine trusts, redirects, limits.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest connection and handshake, seconds.
const CONNECT_LIMIT_S: u64 = 15;
/// Longest wait for an answer, and for more of one, seconds.
const ANSWER_LIMIT_S: u64 = 60;
/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("flatnet/", env!("CARGO_PKG_VERSION"));

/// An address of HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    is_secure: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl Url {
    /// Reads `https://HOST[:PORT][/PATH]`; plain `http` for this machine's loopback alone.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: hyper::Uri =
            text.parse().map_err(|error| format!("{text:?} is no address: {error}"))?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{text:?} must begin with https://")),
        };
        let host = uri.host().ok_or_else(|| format!("{text:?} names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let url = Self { is_secure, host, port, path };
        if !is_secure && !url.is_loopback() {
            return Err(format!("{url} is not secure: plain HTTP is for this machine alone"));
        }
        Ok(url)
    }

    /// Whether it is of this machine.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// Whether it is asked by TLS.
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// A path at the same place, below this one.
    pub fn below(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// The same with more of a query.
    pub fn with_query(&self, pairs: &[(&str, &str)]) -> Self {
        let mut path = self.path.clone();
        for (name, value) in pairs {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", encode(value)));
        }
        Self { path, ..self.clone() }
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn join(&self, location: &str) -> Result<Self, String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Self { path: location.to_owned(), ..self.clone() });
        }
        Self::parse(location)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.origin(), self.path)
    }
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte);
    let one = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(one).collect()
}

/// Asks registries.
pub struct Client {
    tls: TlsConnector,
}

impl Client {
    /// Trusts what the machine trusts, and the authorities of these PEM files.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn new(authorities: &[PathBuf]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in authorities {
            let failed = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
            let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
            for certificate in found {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Asks for a document, and follows redirects. Who asks is told to no other place than `url`'s.
    ///
    /// # Errors
    /// The address and what went wrong.
    pub async fn get(
        &self,
        url: &Url,
        authorization: Option<&str>,
        accept: &str,
    ) -> Result<Answer, String> {
        let mut now = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let told = authorization.filter(|_| now.origin() == url.origin());
            let response = self.once(&now, told, accept).await;
            let response = response.map_err(|error| format!("Get \"{now}\": {error}"))?;
            let location = response.headers().get(header::LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(location) => now = now.join(location)?,
                None => return Ok(Answer { response }),
            }
            if !now.is_secure && !url.is_loopback() {
                return Err(format!("Get \"{url}\": it leads to {now}, which is this machine"));
            }
        }
        Err(format!("Get \"{url}\": more than {MAX_REDIRECTS} redirects"))
    }

    async fn once(
        &self,
        url: &Url,
        authorization: Option<&str>,
        accept: &str,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::get(url.path.as_str())
            .header(header::HOST, url.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, accept);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let limit = Duration::from_secs(CONNECT_LIMIT_S);
        let late = |_| format!("no connection within {CONNECT_LIMIT_S} s");
        let stream = timeout(limit, connect(url)).await.map_err(late)??;
        if !url.is_secure {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(url.host.clone()).map_err(|error| error.to_string())?;
        let stream = timeout(limit, self.tls.connect(name, stream)).await.map_err(late)?;
        exchange(stream.map_err(|error| format!("tls: {error}"))?, request).await
    }
}

/// Plain connections go to loopback, whatever the resolver says that `localhost` is.
async fn connect(url: &Url) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
    let found = found.map_err(|error| format!("dial tcp: lookup {}: {error}", url.host))?;
    let fits = |address: &SocketAddr| url.is_secure || address.ip().is_loopback();
    let mut last = format!("dial tcp: lookup {}: no such host", url.host);
    for address in found.filter(fits) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("dial tcp {address}: {error}"),
        }
    }
    Err(last)
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the answer's last part, or when the answer is dropped.
    tokio::spawn(connection);
    let answer = timeout(Duration::from_secs(ANSWER_LIMIT_S), sender.send_request(request)).await;
    answer.map_err(|_| format!("no answer within {ANSWER_LIMIT_S} s"))?.map_err(failed)
}

/// What a server answers.
pub struct Answer {
    response: Response<Incoming>,
}

impl Answer {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// What it asks for before it answers.
    pub fn challenge(&self) -> Option<&str> {
        self.response.headers().get(header::WWW_AUTHENTICATE)?.to_str().ok()
    }

    /// The next part of its content; `None` at the end.
    ///
    /// # Errors
    /// The connection ended early, or nothing more comes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let limit = Duration::from_secs(ANSWER_LIMIT_S);
        loop {
            let frame = timeout(limit, self.response.body_mut().frame()).await;
            match frame.map_err(|_| format!("nothing more came within {ANSWER_LIMIT_S} s"))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(format!("the download broke off: {error}")),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of its content.
    ///
    /// # Errors
    /// As for a part, or that it is longer than `limit_bytes`.
    pub async fn whole(mut self, limit_bytes: u64) -> Result<Vec<u8>, String> {
        let mut whole = Vec::new();
        while let Some(part) = self.next().await? {
            if (whole.len() + part.len()) as u64 > limit_bytes {
                return Err(format!("the answer has more than {limit_bytes} bytes"));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    }

    /// The beginning of a refusal's text, for people.
    pub async fn refusal(self, limit_bytes: u64) -> String {
        let text = self.whole(limit_bytes).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.chars().filter(|one| !one.is_control()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for text in ["http://127.0.0.1:5000", "http://localhost/x", "http://[::1]:5000/"] {
            assert!(Url::parse(text).is_ok_and(|url| url.is_loopback()), "{text}");
        }
        for text in ["http://r.test", "http://127.0.0.1.r.test", "ftp://r.test", "r.test", ""] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        let url = Url::parse("https://r.test/a?b=c").expect("an address");
        assert_eq!(
            url.with_query(&[("d", "e f&g")]).to_string(),
            "https://r.test:443/a?b=c&d=e%20f%26g"
        );
        assert_eq!(url.join("/x").expect("joined").to_string(), "https://r.test:443/x");
        assert!(url.join("http://r.test/x").is_err());
    }
}
