//! `serve`: HTTP, UDP and TCP servers that say who they are and whom they see.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::http::{Crc32, Head, pattern, respond, response_head};
use crate::server::{self, DRAIN_MS, State};
use crate::{CommandResult, signals};

/// A kept connection without a request is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest `/delay`, in milliseconds.
const MAX_DELAY_MS: u64 = 60_000;
/// Bytes written at once by `/bytes`.
const PIECE_BYTES: usize = 64 << 10;
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

/// Who answers: from the environment that a pod's manifest sets, else what the machine says.
struct Identity {
    pod: String,
    namespace: String,
    node: String,
    pod_ip: String,
    ready: AtomicBool,
}

/// Runs until SIGTERM.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let ports = |name: &str| -> Result<Vec<u16>, String> {
        arguments.values(name).map(|text| arguments.parse(name, text)).collect()
    };
    let (http, tcp, udp) = (ports("--http")?, ports("--tcp")?, ports("--udp")?);
    if http.is_empty() && tcp.is_empty() && udp.is_empty() {
        let fault = "nothing to serve: give at least one of --http, --tcp, --udp";
        return Err(arguments.misuse(fault.into()));
    }
    let drain_ms = arguments.parsed("--drain-ms")?.unwrap_or(DRAIN_MS);
    let signals = signals::hold_back()?;
    let identity = Arc::new(Identity::here());
    let state = Arc::new(State::default());
    let mut listeners = Vec::new();
    for port in http {
        let listener = Arc::new(server::listen_on(port)?);
        let identity = identity.clone();
        let serve = move |stream, state: &State| serve_http(stream, state, &identity);
        server::accept_all(listener.clone(), state.clone(), serve);
        listeners.push(listener);
    }
    for port in tcp {
        let listener = Arc::new(server::listen_on(port)?);
        server::accept_all(listener.clone(), state.clone(), echo_stream);
        listeners.push(listener);
    }
    for port in udp {
        let socket = bind_udp(port)?;
        let identity = identity.clone();
        std::thread::spawn(move || echo_datagrams(&socket, &identity));
    }
    server::serve_until_told(&signals, &listeners, &state, Duration::from_millis(drain_ms))
}

impl Identity {
    fn here() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let hostname = || nix::unistd::gethostname().ok()?.into_string().ok();
        Self {
            pod: variable("POD_NAME").or_else(hostname).unwrap_or_default(),
            namespace: variable("POD_NAMESPACE").unwrap_or_default(),
            node: variable("NODE_NAME").unwrap_or_default(),
            pod_ip: variable("POD_IP").unwrap_or_default(),
            ready: AtomicBool::new(true),
        }
    }

    fn greeting(&self, client: Option<SocketAddr>, local: Option<SocketAddr>) -> Value {
        let local_ip = local.map(|local| plain_ip(local.ip()).to_string());
        let pod_ip = if self.pod_ip.is_empty() { local_ip } else { Some(self.pod_ip.clone()) };
        json!({
            "pod": self.pod,
            "namespace": self.namespace,
            "node": self.node,
            "podIP": pod_ip.unwrap_or_default(),
            "client": client.map(|client| plain_ip(client.ip()).to_string()),
            "clientPort": client.map(|client| client.port()),
        })
    }
}

/// A socket for both families shows IPv4 clients as mapped addresses.
fn plain_ip(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn serve_http(mut stream: TcpStream, state: &State, identity: &Identity) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(IDLE_TIMEOUT));
    let Ok(reading) = stream.try_clone() else { return };
    let mut reading = BufReader::new(reading);
    while let Ok(Some(head)) = Head::read(&mut reading) {
        let busy = state.busy();
        let keeps_alive = head.keeps_alive() && !state.is_draining();
        let done = answer(&head, &mut reading, &mut stream, keeps_alive, identity);
        drop(busy);
        if done.is_err() || !keeps_alive {
            return;
        }
    }
}

fn answer(
    head: &Head,
    reading: &mut BufReader<TcpStream>,
    stream: &mut TcpStream,
    keeps_alive: bool,
    identity: &Identity,
) -> std::io::Result<()> {
    let mut words = head.start.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if head.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let (mut crc, mut length) = (Crc32::default(), 0);
    head.read_request_body(reading, &mut |bytes| {
        crc.add(bytes);
        length += bytes.len() as u64;
    })?;
    let text = |stream: &mut TcpStream, code, body: &str| {
        respond(stream, code, TEXT, body.as_bytes(), keeps_alive)
    };
    let number = |name: &str| query_number(query, name);
    match (method, path) {
        ("POST", "/echo") => {
            let mut body = identity.greeting(stream.peer_addr().ok(), stream.local_addr().ok());
            body["bytes"] = length.into();
            body["crc32"] = crc.text().into();
            respond(stream, 200, JSON, format!("{body}\n").as_bytes(), keeps_alive)
        }
        ("POST", "/ready/true" | "/ready/false") => {
            identity.ready.store(path == "/ready/true", Ordering::SeqCst);
            text(stream, 200, "set\n")
        }
        ("GET" | "HEAD", "/healthz") => text(stream, 200, "ok\n"),
        ("GET" | "HEAD", "/ready") => match identity.ready.load(Ordering::SeqCst) {
            true => text(stream, 200, "ready\n"),
            false => text(stream, 503, "not ready\n"),
        },
        ("GET", "/bytes") => match number("n") {
            Some(count) => stream_bytes(stream, count, keeps_alive),
            None => text(stream, 400, "give the number of bytes: /bytes?n=1000\n"),
        },
        ("GET", "/delay") => match number("ms") {
            Some(delay_ms) => {
                std::thread::sleep(Duration::from_millis(delay_ms.min(MAX_DELAY_MS)));
                text(stream, 200, "done\n")
            }
            None => text(stream, 400, "give a time: /delay?ms=100\n"),
        },
        ("GET" | "POST", "/exit") => {
            let code = number("code").and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            text(stream, 200, "exiting\n")?;
            std::process::exit(code.into());
        }
        ("GET" | "POST", _) => {
            let mut body = identity.greeting(stream.peer_addr().ok(), stream.local_addr().ok());
            body["path"] = target.into();
            body["host"] = head.field("host").unwrap_or_default().into();
            respond(stream, 200, JSON, format!("{body}\n").as_bytes(), keeps_alive)
        }
        _ => text(stream, 405, "GET or POST\n"),
    }
}

fn query_number(query: &str, name: &str) -> Option<u64> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name)?.1.parse().ok()
}

fn stream_bytes(stream: &mut TcpStream, count: u64, keeps_alive: bool) -> std::io::Result<()> {
    let head = response_head(200, "application/octet-stream", count, keeps_alive);
    stream.write_all(head.as_bytes())?;
    let mut sent = 0;
    while sent < count {
        let piece = PIECE_BYTES.min(usize::try_from(count - sent).unwrap_or(PIECE_BYTES));
        stream.write_all(&pattern(sent, piece))?;
        sent += piece as u64;
    }
    Ok(())
}

/// Sends back what comes, until the client closes its side.
fn echo_stream(mut stream: TcpStream, state: &State) {
    let _busy = state.busy();
    let _ = stream.set_read_timeout(Some(IDLE_TIMEOUT));
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            return;
        }
    }
}

fn bind_udp(port: u16) -> Result<UdpSocket, String> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|error| format!("opening UDP port {port}: {error}"))
}

fn echo_datagrams(socket: &UdpSocket, identity: &Identity) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let mut crc = Crc32::default();
        crc.add(buffer.get(..length).unwrap_or_default());
        let mut body = identity.greeting(Some(client), None);
        body["bytes"] = length.into();
        body["crc32"] = crc.text().into();
        // A client that is gone by now needs no answer.
        let _ = socket.send_to(body.to_string().as_bytes(), client);
    }
}
