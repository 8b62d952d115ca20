//! Health check node ports of Services with `externalTrafficPolicy: Local`: external load balancers
//! ask them which nodes have endpoints of the Service. Answers are kube-proxy's, word for word
//! where programs read them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::NamespacedName;
use plan::services::ServicePlan;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections to one Service's port that are served at once; the others wait.
const CONNECTIONS_MAX: usize = 64;
/// A client that has not sent its request after this long is left.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How many endpoints this node has: weighted load balancers read it.
const WEIGHT_HEADER: &str = "x-load-balancing-endpoint-weight";

/// What the ports answer with.
#[derive(Clone, Debug, Default)]
struct Answers {
    local_endpoints: BTreeMap<NamespacedName, usize>,
    is_proxy_healthy: bool,
}

/// The open ports.
#[derive(Default)]
pub(crate) struct HealthPorts {
    answers: Arc<Mutex<Answers>>,
    wanted: BTreeMap<u16, NamespacedName>,
    /// Each listener ends with its set.
    open: BTreeMap<u16, (NamespacedName, JoinSet<()>)>,
    problems: BTreeMap<u16, String>,
}

impl HealthPorts {
    /// Opens and closes ports so that they are those of the plans. A port that could not be
    /// opened is tried again by each call.
    pub(crate) fn follow<'a>(
        &mut self,
        plans: impl Iterator<Item = (&'a NamespacedName, &'a ServicePlan)>,
        is_proxy_healthy: bool,
    ) {
        let mut answers = Answers { is_proxy_healthy, ..Answers::default() };
        self.wanted.clear();
        for (key, plan) in plans {
            if let Some(check) = &plan.health_check {
                answers.local_endpoints.insert(key.clone(), check.local_endpoints);
                // The API gives a port to one Service; of two the first by name has it.
                self.wanted.entry(check.port).or_insert_with(|| key.clone());
            }
        }
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers;
        self.open.retain(|port, (key, _)| self.wanted.get(port) == Some(key));
        self.problems.retain(|port, _| self.wanted.contains_key(port));
        for (port, key) in &self.wanted {
            if self.open.contains_key(port) {
                continue;
            }
            match listen(*port) {
                Ok(listener) => {
                    let mut task = JoinSet::new();
                    task.spawn(serve(listener, key.clone(), Arc::clone(&self.answers)));
                    self.open.insert(*port, (key.clone(), task));
                    self.problems.remove(port);
                }
                Err(error) => {
                    let problem = format!(
                        "Service {key}: health check node port {port} cannot be opened ({error}): \
                         load balancers will not send to this node; does another program listen \
                         there?"
                    );
                    if self.problems.insert(*port, problem.clone()).is_none() {
                        tracing::warn!("{problem}");
                    }
                }
            }
        }
    }

    /// Ports that could not be opened.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values()
    }
}

/// Listens at every address of both families; where the kernel has no IPv6, at those of IPv4.
///
/// # Errors
/// When the port is taken.
pub(crate) fn listen(port: u16) -> std::io::Result<TcpListener> {
    let both = bind(Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    let socket = match both {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind(Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?
        }
        other => other?,
    };
    TcpListener::from_std(socket.into())
}

fn bind(domain: Domain, address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    // Connections of a killed agent may linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

async fn serve(listener: TcpListener, key: NamespacedName, answers: Arc<Mutex<Answers>>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (key, answers) = (key.clone(), Arc::clone(&answers));
                tasks.spawn(async move {
                    serve_one(stream, &key, &answers).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("a health check of Service {key} could not connect: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, key: &NamespacedName, answers: &Mutex<Answers>) {
    let service = service_fn(|_: Request<Incoming>| {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        std::future::ready(Ok::<_, Infallible>(answer(key, &answers)))
    });
    // A client that goes away in the middle is nobody's problem.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(key: &NamespacedName, answers: &Answers) -> Response<Full<Bytes>> {
    let local_endpoints = answers.local_endpoints.get(key).copied().unwrap_or_default();
    let healthy = local_endpoints > 0 && answers.is_proxy_healthy;
    let body = serde_json::json!({
        "service": { "namespace": key.namespace, "name": key.name },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": answers.is_proxy_healthy,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", hyper::header::HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT_HEADER, local_endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use plan::services::HealthCheck;

    use super::*;

    fn plan(port: u16, local_endpoints: usize) -> ServicePlan {
        let health_check = Some(HealthCheck { port, local_endpoints });
        ServicePlan { health_check, ..ServicePlan::default() }
    }

    fn free_port() -> u16 {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        socket.local_addr().expect("an address").port()
    }

    async fn ask(port: u16) -> Option<(u16, String)> {
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some((text.get(9..12)?.parse().ok()?, text))
        });
        asked.await.expect("no panic")
    }

    /// S-06: 200 with the count, 503 without endpoints, closed without the Service.
    #[tokio::test]
    async fn ports_follow_the_services_and_tell_of_local_endpoints() {
        let (key, port) = (NamespacedName::new("default", "web"), free_port());
        let mut ports = HealthPorts::default();
        for (count, proxy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            ports.follow([(&key, &plan(port, count))].into_iter(), proxy);
            let (found, text) = ask(port).await.expect("an answer");
            assert_eq!(found, code, "{text}");
            let json = text.rsplit_once("\r\n\r\n").expect("a body").1;
            let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
            assert_eq!(json["localEndpoints"], count);
            assert_eq!(json["serviceProxyHealthy"], proxy);
            assert_eq!(json["service"]["name"], "web");
            assert!(text.contains(&format!("{WEIGHT_HEADER}: {count}\r\n")), "{text}");
        }
        ports.follow(std::iter::empty(), true);
        // The task that is ended lets go of its socket when it is next polled.
        for _ in 0..1000 {
            if ask(port).await.is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the port of a Service that is gone stays open");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_and_tried_again() {
        let (key, port) = (NamespacedName::new("default", "web"), free_port());
        let other = std::net::TcpListener::bind(("0.0.0.0", port)).expect("a socket");
        let mut ports = HealthPorts::default();
        ports.follow([(&key, &plan(port, 1))].into_iter(), true);
        let problems: Vec<&String> = ports.problems().collect();
        assert!(problems.len() == 1 && problems[0].contains("default/web"), "{problems:?}");
        drop(other);
        ports.follow([(&key, &plan(port, 1))].into_iter(), true);
        assert_eq!(ports.problems().count(), 0);
        assert_eq!(ask(port).await.expect("an answer").0, 200);
    }
}
