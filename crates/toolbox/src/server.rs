//! What servers have in common: bounded threads, and an end without lost requests.
//!
//! When a pod is deleted, SIGTERM comes at the same moment as its endpoint's removal starts to
//! travel to all nodes. So a server goes on accepting for a while after SIGTERM, asks clients of
//! kept connections to come back elsewhere (`Connection: close`), then stops listening, finishes
//! the requests it has, and exits with 0.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

use crate::{CommandResult, Outcome};

/// Connections at one time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// Stack of a thread in bytes; requests need little.
const STACK_BYTES: usize = 192 << 10;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 1024;
/// How long requests under way may take after the server stopped listening.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the end of these requests is looked for.
const FINISH_POLL: Duration = Duration::from_millis(5);
/// How long a server goes on after SIGTERM, in milliseconds, unless told otherwise.
pub(crate) const DRAIN_MS: u64 = 3000;

/// What all threads of a server share.
#[derive(Default)]
pub(crate) struct State {
    connections: AtomicUsize,
    busy: AtomicUsize,
    draining: AtomicBool,
    closed: AtomicBool,
}

/// A request, or a proxied connection, under way: the process does not end within it.
pub(crate) struct Busy<'a>(&'a State);

impl State {
    /// Whether SIGTERM came.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Marks a request as under way until the mark is dropped.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Listens on a port of all addresses, both families where the machine has them.
pub(crate) fn listen_on(port: u16) -> Result<TcpListener, String> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = match TcpListener::bind(both) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(v4),
        bound => bound,
    };
    let listener = listener.map_err(|error| format!("listening on TCP port {port}: {error}"))?;
    let backlog = Backlog::new(BACKLOG).map_err(|error| error.to_string())?;
    listen(&listener, backlog).map_err(|error| format!("listening on TCP port {port}: {error}"))?;
    Ok(listener)
}

/// Serves each connection of a listener in a thread of its own.
pub(crate) fn accept_all<F>(listener: Arc<TcpListener>, state: Arc<State>, serve: F)
where
    F: Fn(TcpStream, &State) + Clone + Send + 'static,
{
    std::thread::spawn(move || {
        while !state.closed.load(Ordering::SeqCst) {
            let Ok((stream, _)) = listener.accept() else {
                // Out of descriptors, or the listener was shut down.
                std::thread::sleep(FINISH_POLL);
                continue;
            };
            while state.connections.load(Ordering::SeqCst) >= MAX_CONNECTIONS {
                std::thread::sleep(FINISH_POLL);
            }
            state.connections.fetch_add(1, Ordering::SeqCst);
            let (serve, shared) = (serve.clone(), state.clone());
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
                serve(stream, &shared);
                shared.connections.fetch_sub(1, Ordering::SeqCst);
            });
            if thread.is_err() {
                state.connections.fetch_sub(1, Ordering::SeqCst);
            }
        }
    });
}

/// Waits for SIGTERM, drains and ends.
pub(crate) fn serve_until_told(
    signals: &SigSet,
    listeners: &[Arc<TcpListener>],
    state: &State,
    drain: Duration,
) -> CommandResult {
    signals.wait().map_err(|error| format!("waiting for signals: {error}"))?;
    state.draining.store(true, Ordering::SeqCst);
    std::thread::sleep(drain);
    state.closed.store(true, Ordering::SeqCst);
    for listener in listeners {
        // Wakes the thread that accepts.
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Read);
    }
    let end = Instant::now() + FINISH_TIMEOUT;
    while state.busy.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        std::thread::sleep(FINISH_POLL);
    }
    Ok(Outcome::Success)
}
