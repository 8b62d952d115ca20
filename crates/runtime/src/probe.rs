//! Carries out one probe or hook. HTTP, gRPC and TCP go from the node's namespace to the pod's
//! address.

mod grpc;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use pause::ExecSpec;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use crate::disk::PodDirectory;
use crate::pause_client;
use crate::pod::{Container, Handler, HttpHandler};

/// Output of a probe that is kept for its event, bytes (the kubelet's).
const MAX_OUTPUT_BYTES: u64 = 10 * 1024;
/// Body of an HTTP answer that is read, bytes (the kubelet's).
const MAX_BODY_BYTES: usize = 10 * 1024;
/// Wait for the rest of a command's output once it has ended, milliseconds.
const REST_OF_OUTPUT_MS: u64 = 100;
/// What the pod's server sees, as from a kubelet.
const USER_AGENT: &str = "kube-probe/1.33";
/// The same for hooks.
const HOOK_USER_AGENT: &str = "kube-lifecycle/1.33";
/// The port of a hook's request that names none (the kubelet's).
const HOOK_PORT: u16 = 80;

/// Where a probe goes.
pub struct Target<'a> {
    /// The container.
    pub container: &'a Container,
    /// The pod's files.
    pub directory: &'a PodDirectory,
    /// The pod's address.
    pub address: Option<IpAddr>,
}

/// Runs a probe; a time out is a failure.
///
/// # Errors
/// The kubelet's words.
pub async fn run(handler: &Handler, target: &Target<'_>, timeout: Duration) -> Result<(), String> {
    let outcome = async {
        if let Some(grpc) = &handler.grpc {
            let (stream, address) =
                connect("", Some(grpc.port), target).await.map_err(|error| {
                    format!("error: failed to connect service at port {}: {error}", grpc.port)
                })?;
            return grpc::check(stream, address, &grpc.service, USER_AGENT).await;
        }
        if let Some(http) = &handler.http_get {
            return judge(get(http, target, USER_AGENT, None).await?);
        }
        perform(handler, target).await
    };
    match tokio::time::timeout(timeout, outcome).await {
        Ok(result) => result,
        Err(_) if handler.grpc.is_some() => {
            Err(format!("timeout: health rpc did not complete within {}s", timeout.as_secs()))
        }
        Err(_) => Err(timed_out(handler, timeout)),
    }
}

/// Runs a hook; a time out is a failure. Any answer to its HTTP request is a success, as in the
/// kubelet: the hook tells a server something, and asks it nothing.
///
/// # Errors
/// What failed, for the log.
pub async fn run_hook(
    hook: &Handler,
    target: &Target<'_>,
    timeout: Duration,
) -> Result<(), String> {
    let outcome = async {
        match &hook.http_get {
            Some(http) => get(http, target, HOOK_USER_AGENT, Some(HOOK_PORT)).await.map(drop),
            None => perform(hook, target).await,
        }
    };
    match tokio::time::timeout(timeout, outcome).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(hook, timeout)),
    }
}

/// What probes and hooks do alike.
async fn perform(handler: &Handler, target: &Target<'_>) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        return execute(&exec.command, target).await;
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = tcp.port.as_ref().and_then(|port| target.container.port(port));
        return connect(&tcp.host, port, target).await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
    }
    Ok(())
}

fn timed_out(handler: &Handler, timeout: Duration) -> String {
    match &handler.exec {
        Some(exec) => {
            let command = exec.command.join(" ");
            format!("command {command:?} timed out after {} s", timeout.as_secs())
        }
        None => format!("no answer within {} s (Client.Timeout exceeded)", timeout.as_secs()),
    }
}

async fn execute(command: &[String], target: &Target<'_>) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let (sender, mut receiver) = tokio::net::unix::pipe::pipe().map_err(failed)?;
    let writer = sender.into_blocking_fd().map_err(failed)?;
    let null: OwnedFd = std::fs::File::open("/dev/null").map_err(failed)?.into();
    let spec = ExecSpec {
        container: target.container.name.clone(),
        arguments: command.to_vec(),
        terminal: false,
        kill_on_close: true,
    };
    let streams = [null.as_fd(), writer.as_fd(), writer.as_fd()];
    let mut running = pause_client::execute(&target.directory.socket(), &spec, streams).await?;
    drop(writer);
    let mut output = Vec::new();
    let code = {
        let mut reading = std::pin::pin!(async {
            let _ = (&mut receiver).take(MAX_OUTPUT_BYTES).read_to_end(&mut output).await;
            let _ = tokio::io::copy(&mut receiver, &mut tokio::io::sink()).await;
        });
        // The exit decides, not the end of output: what the command left running may hold that open.
        let mut exit = std::pin::pin!(running.exit_code());
        tokio::select! {
            code = &mut exit => {
                let rest = Duration::from_millis(REST_OF_OUTPUT_MS);
                let _ = tokio::time::timeout(rest, reading).await;
                code
            }
            () = &mut reading => exit.await,
        }
    };
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let text = String::from_utf8_lossy(&output);
            let text = text.trim();
            Err(if text.is_empty() { format!("exit code {code}") } else { text.to_owned() })
        }
        None => Err("the container ended".into()),
    }
}

/// The status that a server answers.
async fn get(
    http: &HttpHandler,
    target: &Target<'_>,
    user_agent: &str,
    default_port: Option<u16>,
) -> Result<StatusCode, String> {
    let port = match &http.port {
        Some(port) => target.container.port(port),
        None => default_port,
    };
    let path =
        if http.path.starts_with('/') { http.path.clone() } else { format!("/{}", http.path) };
    let (stream, address) = connect(&http.host, port, target).await?;
    let scheme = if http.scheme == "HTTPS" { "https" } else { "http" };
    let url = format!("{scheme}://{address}{path}");
    let failed = |problem: String| format!("Get {url:?}: {problem}");
    let mut request = Request::get(path.as_str()).header("User-Agent", user_agent);
    let mut has_host = false;
    for header in &http.http_headers {
        has_host |= header.name.eq_ignore_ascii_case("host");
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    if !has_host {
        request = request.header("Host", address.to_string());
    }
    let request = request
        .header("Accept", "*/*")
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let status = if scheme == "https" {
        let name = ServerName::from(address.ip());
        // A probe asks for health, not for identity, as in the kubelet.
        let connector = client::any_server().map_err(|error| failed(error.to_string()))?;
        let connected = connector.connect(name, stream).await;
        let stream = connected.map_err(|error| failed(format!("tls: {error}")))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    };
    status.map_err(failed)
}

fn judge(status: StatusCode) -> Result<(), String> {
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        // Read so that the server sees a client that took its answer.
        let _ = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        Ok(status)
    };
    tokio::select! {
        status = exchange => status,
        () = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        } => Err("the connection ended".to_owned()),
    }
}

async fn connect(
    host: &str,
    port: Option<u16>,
    target: &Target<'_>,
) -> Result<(TcpStream, SocketAddr), String> {
    let port = port.ok_or("its port is neither a number nor the name of a declared port")?;
    let address = match host {
        "" => target.address.ok_or("the pod has no address")?,
        host => host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?,
    };
    let address = SocketAddr::new(address, port);
    match TcpStream::connect(address).await {
        Ok(stream) => Ok((stream, address)),
        Err(error) => {
            let problem = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
                _ => error.to_string(),
            };
            Err(format!("dial tcp {address}: {problem}"))
        }
    }
}
