//! `pods/NAME/proxy`, `services/NAME/proxy` and `nodes/NAME/proxy`: HTTP requests that the API
//! server sends on for a client. Source: kubernetes.io, "Access Services Running on Clusters".
//!
//! Who may use it makes this server dial addresses (X-27, CVE-2020-8562), so where a request goes is
//! decided once, from what is in the store, and dialled as it is: a pod's own address within the
//! ranges of pods, an address of a ready endpoint of the Service, a node's runtime. Redirects are
//! handed to the client, never followed, and nothing that tells who the client is goes along.
//!
//! With `https:` before the name TLS is spoken, and as in the real server nobody asks whose
//! certificate it is: it keeps out those who listen, not those who answer in a pod's place.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use client::{Body, BodyError};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use store::{Object, Random as _, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::proxy::{Proxy, splice};
use super::route::Target;
use super::{Api, Call, answer};
use crate::webhook::ready_endpoints;
use crate::writer::{Shared, SystemRandom};

/// Longest wait for a connection to a pod, milliseconds.
const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// hyper's buffer for one connection, bytes.
const CONNECTION_BUFFER_BYTES: usize = 32 * 1024;

/// What concerns one connection alone (RFC 9110, section 7.6.1), who the client is, and what the
/// new connection says itself.
const NOT_PASSED_ON: [HeaderName; 12] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    AUTHORIZATION,
    HOST,
    CONTENT_LENGTH,
];
/// The same of whoever acts in another's name.
const IMPERSONATION: &str = "impersonate-";

/// What the name in the path says: `[SCHEME:]NAME[:PORT]`.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    /// Whether TLS is spoken there.
    is_encrypted: bool,
    name: &'a str,
    /// Empty when the request leaves it to us.
    port: &'a str,
}

/// Where a request goes.
struct Dialled {
    is_encrypted: bool,
    address: SocketAddr,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Result<Self, Status> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => ("", "", ""),
        };
        if name.is_empty() {
            return Err(Status::bad_request(format!("invalid service request {text:?}")));
        }
        match scheme {
            "" | "http" => Ok(Self { is_encrypted: false, name, port }),
            "https" => Ok(Self { is_encrypted: true, name, port }),
            _ => Err(Status::bad_request(format!("invalid service request {text:?}"))),
        }
    }
}

/// The verb of a proxied request, for roles; `None` for methods that are not sent on.
pub(super) fn verb(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    })
}

impl Api {
    /// Sends a request on.
    pub(super) async fn proxied(
        &self,
        call: Call,
        target: &Target,
    ) -> Result<Response<Body>, Status> {
        let (base, rest) = split(call.uri.path(), target);
        if rest.is_empty() && matches!(call.method, Method::GET | Method::HEAD) {
            // Links of the page are relative to its directory.
            return Ok(redirect(&call, base));
        }
        let base = base.to_owned();
        let path = match call.uri.query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        if target.resource.plural == "nodes" {
            return self.proxy.node(&self.shared, call, target, &path).await;
        }
        let place = Place::parse(&target.name)?;
        let address = match target.resource.plural {
            "pods" => {
                let pod = self.shared.read().get(target.resource, &target.namespace, place.name)?;
                pod_address(&pod, place.port, &self.proxy)?
            }
            _ => service_address(&self.shared, target, &place)?,
        };
        let dialled = Dialled { is_encrypted: place.is_encrypted, address };
        send(call, &dialled, &path, &base, &self.proxy).await
    }
}

/// The path up to the subresource, and what follows: undecoded, as the client wrote it.
fn split<'a>(path: &'a str, target: &Target) -> (&'a str, &'a str) {
    // `api`, the version, for some a namespace, then plural, name and `proxy`.
    let segments = if target.namespace.is_empty() { 5 } else { 7 };
    let mut rest = path;
    for _ in 0..segments {
        rest = rest.trim_start_matches('/');
        rest = rest.get(rest.find('/').unwrap_or(rest.len())..).unwrap_or_default();
    }
    path.split_at_checked(path.len() - rest.len()).unwrap_or((path, ""))
}

fn redirect(call: &Call, base: &str) -> Response<Body> {
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut answer = answer::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(place) = HeaderValue::from_str(&format!("{base}/{query}")) {
        answer.headers_mut().insert(LOCATION, place);
    }
    answer
}

/// Where a pod answers: its own address alone, whatever its status says.
fn pod_address(pod: &Object, port: &str, proxy: &Proxy) -> Result<SocketAddr, Status> {
    let name = &pod.key.name;
    let address = pod.value.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
    let address: IpAddr = address.parse().map_err(|_| {
        Status::failure(503, "ServiceUnavailable", format!("pod {name:?} has no address yet"))
    })?;
    let on_node = pod.value.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    if !proxy.is_of_pods(address, on_node) {
        return Err(Status::bad_request(format!("address not allowed: {address} is no pod's")));
    }
    let number = match port {
        "" => first_port(pod).unwrap_or(80),
        text => match text.parse::<u16>() {
            Ok(number @ 1..) => number,
            _ => {
                return Err(Status::bad_request(format!(
                    "port {text:?} is not between 1 and 65535"
                )));
            }
        },
    };
    Ok(SocketAddr::new(address, number))
}

/// The first port that a pod names.
fn first_port(pod: &Object) -> Option<u16> {
    let containers = pod.value.pointer("/spec/containers")?.as_array()?;
    let ports = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
    ports.filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok()).next()
}

/// A ready endpoint of the Service that the path names.
fn service_address(
    shared: &Shared,
    target: &Target,
    place: &Place<'_>,
) -> Result<SocketAddr, Status> {
    let store = shared.read();
    let service = store.get(target.resource, &target.namespace, place.name)?;
    let ports = service.value.pointer("/spec/ports").and_then(Value::as_array);
    let ports: Vec<&Value> = ports.into_iter().flatten().collect();
    let wanted = |port: &&&Value| {
        port["name"] == place.port || place.port.parse::<u16>().is_ok_and(|one| port["port"] == one)
    };
    let port = match (place.port, ports.as_slice()) {
        ("", [only]) => Some(*only),
        ("", several) => several.iter().find(|port| port["name"].is_null()).copied(),
        _ => ports.iter().find(wanted).copied(),
    };
    let unavailable = |why: String| Status::failure(503, "ServiceUnavailable", why);
    let port = port.ok_or_else(|| {
        unavailable(format!("no service port {:?} found for service {:?}", place.port, place.name))
    })?;
    let name = port["name"].as_str().unwrap_or_default();
    let ready =
        ready_endpoints(&store, &target.namespace, place.name, name).map_err(unavailable)?;
    let chance = usize::try_from(SystemRandom.next_u64() >> 1).unwrap_or(0);
    ready
        .get(chance % ready.len().max(1))
        .copied()
        .ok_or_else(|| unavailable(format!("no endpoints available for service {:?}", place.name)))
}

impl Proxy {
    /// What a node's runtime tells: documents alone. Streams are subresources of pods, with rights
    /// of their own.
    async fn node(
        &self,
        shared: &Shared,
        call: Call,
        target: &Target,
        path: &str,
    ) -> Result<Response<Body>, Status> {
        let name = target.name.strip_prefix("https:").unwrap_or(&target.name);
        let (name, port) = name.split_once(':').unwrap_or((name, ""));
        if !port.is_empty() && port != self.port().to_string() {
            return Err(Status::bad_request(format!(
                "of node {name:?} the port {} alone is asked, not {port:?}",
                self.port()
            )));
        }
        if call.method != Method::GET {
            return Err(Status::method_not_allowed());
        }
        let address = self.address_of(shared, name)?;
        let response = self.ask(address, Method::GET, path, &HeaderMap::new()).await?;
        Ok(passed_back(response, "", ""))
    }
}

async fn send(
    call: Call,
    dialled: &Dialled,
    path: &str,
    base: &str,
    proxy: &Proxy,
) -> Result<Response<Body>, Status> {
    let mut headers = end_to_end(&call.headers);
    let upgrade = call.upgrade.zip(call.headers.get(UPGRADE).cloned());
    let upgrade = match upgrade {
        Some((upgrade, protocol)) => {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, protocol);
            Some((upgrade, proxy.session()?))
        }
        None => None,
    };
    let address = dialled.address.to_string();
    headers.insert(HOST, HeaderValue::from_str(&address).map_err(Status::internal)?);
    let mut request =
        Request::builder()
            .method(call.method)
            .uri(path)
            .body(Full::new(call.body))
            .map_err(|error| Status::bad_request(format!("the path {path:?}: {error}")))?;
    *request.headers_mut() = headers;
    let response = exchange(dialled, request).await.map_err(|why| {
        let message = format!("error trying to reach service: {why}");
        Status::failure(503, "ServiceUnavailable", message)
    })?;
    match upgrade {
        Some((upgrade, permit)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let mut headers = end_to_end(response.headers());
            for name in [CONNECTION, UPGRADE] {
                headers.extend(response.headers().get(&name).map(|value| (name, value.clone())));
            }
            Ok(splice(upgrade, response, headers, permit))
        }
        _ => {
            let scheme = if dialled.is_encrypted { "https" } else { "http" };
            Ok(passed_back(response, base, &format!("{scheme}://{address}")))
        }
    }
}

/// One request on a connection of its own.
async fn exchange(
    dialled: &Dialled,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let limit = Duration::from_millis(CONNECT_TIMEOUT_MS);
    let address = dialled.address;
    let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| format!("dial tcp {address}: i/o timeout"))?;
    let stream = stream.map_err(|error| format!("dial tcp {address}: {}", words(&error)))?;
    if !dialled.is_encrypted {
        return ask(stream, request).await;
    }
    let connector = client::any_server().map_err(|error| format!("tls: {error}"))?;
    let handshake = connector.connect(ServerName::from(address.ip()), stream);
    let stream = tokio::time::timeout(limit, handshake).await;
    let stream = stream.map_err(|_| "net/http: TLS handshake timeout".to_owned())?;
    ask(stream.map_err(|error| format!("tls: {error}"))?, request).await
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // Its end shows in the answer's body.
        let _ = connection.with_upgrades().await;
    });
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// An error in Go's words, which scripts look for: `connection refused`.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("connect: {}", text.to_lowercase())
}

/// The headers that are meant for the other end.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<&str> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let is_named = named.iter().any(|one| name.as_str().eq_ignore_ascii_case(one));
        if !is_named && !NOT_PASSED_ON.contains(name) && !name.as_str().starts_with(IMPERSONATION) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// An answer for the client. Where it leads on within the same server, the way is by us again.
fn passed_back(response: Response<Incoming>, base: &str, origin: &str) -> Response<Body> {
    let (head, body) = response.into_parts();
    let mut headers = end_to_end(&head.headers);
    let place = headers.get(LOCATION).and_then(|place| place.to_str().ok());
    let place = place.and_then(|place| rebased(place, base, origin));
    if let Some(place) = place.and_then(|place| HeaderValue::from_str(&place).ok()) {
        headers.insert(LOCATION, place);
    }
    if let Some(length) = head.headers.get(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    let body = body.map_err(|error| BodyError(error.to_string())).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = head.status;
    *answer.headers_mut() = headers;
    answer
}

fn rebased(place: &str, base: &str, origin: &str) -> Option<String> {
    let absolute = place.strip_prefix(origin).filter(|_| !origin.is_empty());
    let path = match absolute {
        Some("") => "/",
        Some(path) if path.starts_with('/') => path,
        Some(_) => return None,
        None if place.starts_with('/') && !place.starts_with("//") => place,
        None => return None,
    };
    (!base.is_empty()).then(|| format!("{base}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_a_port_and_a_scheme() {
        let place = |name, port| Ok::<_, u16>(Place { is_encrypted: false, name, port });
        let encrypted = |name, port| Ok(Place { is_encrypted: true, name, port });
        let cases = [
            ("web", place("web", "")),
            ("web:80", place("web", "80")),
            ("http:web:metrics", place("web", "metrics")),
            (":web:80", place("web", "80")),
            ("http:web:", place("web", "")),
            ("https:web:443", encrypted("web", "443")),
            ("https:web:", encrypted("web", "")),
            ("https::443", Err(400)),
            ("gopher:web:70", Err(400)),
            ("a:b:c:d", Err(400)),
            (":80", Err(400)),
            ("", Err(400)),
        ];
        for (text, expected) in cases {
            assert_eq!(Place::parse(text).map_err(|status| status.code), expected, "{text}");
        }
    }

    #[test]
    fn what_follows_stays_as_it_was_written() {
        let target = |namespace: &str| Target {
            resource: store::registry::find("", "v1", "services").expect("a row"),
            namespace: namespace.to_owned(),
            name: "web".to_owned(),
            subresource: None,
        };
        let base = "/api/v1/namespaces/shop/services/web/proxy";
        for rest in ["", "/", "/a/b/", "//x", "/a%2Fb", "/proxy/proxy"] {
            let path = format!("{base}{rest}");
            assert_eq!(split(&path, &target("shop")), (base, rest));
        }
        assert_eq!(
            split("//api/v1/nodes/n/proxy/x", &target("")),
            ("//api/v1/nodes/n/proxy", "/x")
        );
    }

    #[test]
    fn who_the_client_is_stays_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "vera"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("accept", "text/html"),
            ("cookie", "a=b"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let kept = end_to_end(&headers);
        let names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept", "cookie"]);
    }

    #[test]
    fn redirects_within_the_server_come_back_through_us() {
        let (base, origin) = ("/api/v1/namespaces/x/services/y/proxy", "http://10.0.0.1:80");
        let cases = [
            ("/login", Some("/login")),
            ("http://10.0.0.1:80/login?a", Some("/login?a")),
            ("http://10.0.0.1:80", Some("/")),
            ("next", None),
            ("//elsewhere/x", None),
            ("http://10.0.0.1:8080/x", None),
            ("https://10.0.0.1:80/x", None),
            ("https://example.org/", None),
        ];
        for (place, expected) in cases {
            let expected = expected.map(|path| format!("{base}{path}"));
            assert_eq!(rebased(place, base, origin), expected, "{place}");
        }
        assert_eq!(rebased("/x", "", ""), None, "a node's runtime sends nobody anywhere");
    }
}
