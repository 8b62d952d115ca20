//! What the worker tells of itself over HTTP: metrics on a TCP port, everything on a unix socket
//! that is root's alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dns::{Client, Name, Transport};

use crate::handover;
use crate::shared::Shared;

/// The largest request read, in octets.
const REQUEST_OCTETS: usize = 4096;
/// A client that has not sent its request, or not taken its answer, after this long is left.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Names and clients that are told at most.
const TOP_ROWS: usize = 256;

/// The sockets, opened before the worker gives up its rights.
pub(crate) struct Listeners {
    metrics: Option<TcpListener>,
    control: Option<UnixListener>,
}

impl Listeners {
    /// Opens them, or takes a predecessor's. Without the port of the metrics the worker answers all
    /// the same.
    pub(crate) fn open(
        metrics: SocketAddr,
        inherited: Vec<TcpListener>,
        control: Option<&Path>,
    ) -> Result<Self> {
        let is_it = |listener: &TcpListener| listener.local_addr().is_ok_and(|own| own == metrics);
        let bound = match inherited.into_iter().find(is_it) {
            Some(listener) => Ok(listener),
            None => TcpListener::bind(metrics),
        };
        if let Err(error) = &bound {
            tracing::warn!(
                "no metrics at {metrics}: {error} (does another program have the port?)"
            );
        }
        let control = control.map(bind).transpose()?;
        Ok(Self { metrics: bound.ok(), control })
    }

    /// The listener for metrics again, for whoever takes it over.
    pub(crate) fn duplicate(&self) -> Result<Option<OwnedFd>> {
        Ok(self.metrics.as_ref().map(TcpListener::try_clone).transpose()?.map(OwnedFd::from))
    }

    /// Answers in threads of their own.
    pub(crate) fn serve(self, shared: &Arc<Shared>, offered: Vec<OwnedFd>) -> Result<()> {
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        if let Some(listener) = self.metrics {
            let shared = shared.clone();
            named("metrics").spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.set_read_timeout(Some(TIMEOUT));
                    let _ = stream.set_write_timeout(Some(TIMEOUT));
                    if let Some(path) = path(&mut stream) {
                        answer(stream, &shared, &path, false);
                    }
                }
            })?;
        }
        if let Some(listener) = self.control {
            let shared = shared.clone();
            named("control").spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = stream.set_read_timeout(Some(TIMEOUT));
                    let _ = stream.set_write_timeout(Some(TIMEOUT));
                    answer_root(stream, &shared, &offered);
                }
            })?;
        }
        Ok(())
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let binding = || format!("opening the control socket {}", path.display());
    // The worker may start before the agent, whose directory it is.
    if let Some(directory) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).with_context(binding)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(binding);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(binding)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(binding)?;
    Ok(listener)
}

fn answer_root(mut stream: UnixStream, shared: &Shared, offered: &[OwnedFd]) {
    match path(&mut stream) {
        Some(asked) if asked == handover::PATH => {
            if let Err(error) = handover::hand_over(&stream, offered) {
                tracing::warn!("the sockets are not given away: {error:#}");
            }
        }
        Some(path) => answer(stream, shared, &path, true),
        None => {}
    }
}

fn answer(mut stream: impl Write, shared: &Shared, path: &str, is_root: bool) {
    let (code, kind, body) = match path {
        "/metrics" => ("200 OK", "text/plain; version=0.0.4", shared.metrics()),
        handover::READY_PATH if is_root => match shared.index().is_some() {
            true => ("200 OK", "text/plain", "names are answered\n".into()),
            false => ("503 Service Unavailable", "text/plain", "no zone is known yet\n".into()),
        },
        "/top" if is_root => {
            let top = serde_json::to_string(&shared.snapshot().top(TOP_ROWS));
            ("200 OK", "application/json", top.unwrap_or_default())
        }
        question if is_root && question.starts_with("/query/") => match explained(shared, question)
        {
            Some(explanation) => ("200 OK", "application/json", explanation),
            None => ("400 Bad Request", "text/plain", "/query/NAME/TYPE/ADDRESS\n".into()),
        },
        _ => {
            let paths = "there are /metrics and, for root, /ready, /sockets, /top and \
                         /query/NAME/TYPE/ADDRESS\n";
            ("404 Not Found", "text/plain", paths.into())
        }
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

/// Why a question gets its answer from the zone; `None`: it is none.
fn explained(shared: &Shared, path: &str) -> Option<String> {
    let mut words = path.strip_prefix("/query/")?.split('/');
    let name: Name = words.next()?.parse().ok()?;
    let kind = words.next()?.parse().ok()?;
    let address = words.next()?.parse().ok()?;
    let client = Client { transport: Transport::Udp, address };
    let now_us = shared.now_us();
    let server = shared.server_of(address)?;
    let index = shared.index();
    let explanation = dns::explain_by(&server, now_us, index.as_ref(), client, (&name, kind));
    drop((index, server));
    serde_json::to_string(&explanation).ok()
}

/// The path of a GET request.
fn path(stream: &mut impl Read) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        request.extend_from_slice(buffer.get(..count)?);
        if request.len() > REQUEST_OCTETS {
            return None;
        }
    }
    let text = String::from_utf8(request).ok()?;
    Some(text.strip_prefix("GET ")?.split_whitespace().next()?.to_owned())
}
