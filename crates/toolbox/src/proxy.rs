//! `proxy`: passes TCP connections on, for pods with an ambassador.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::resolver;
use crate::server::{self, DRAIN_MS, State};
use crate::{CommandResult, signals};

/// How long connecting to the target may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let port = arguments.parsed("--listen")?;
    let port: u16 = port.ok_or_else(|| arguments.misuse("--listen is missing".into()))?;
    let missing = || arguments.misuse("--to is missing: give HOST:PORT".into());
    let target = arguments.value("--to").ok_or_else(missing)?;
    let (host, target_port) = target.rsplit_once(':').ok_or_else(missing)?;
    let target_port: u16 = arguments.parse("--to", target_port)?;
    let host = host.trim_matches(['[', ']']).to_string();
    let drain_ms = arguments.parsed("--drain-ms")?.unwrap_or(DRAIN_MS);
    let signals = signals::hold_back()?;
    let state = Arc::new(State::default());
    let listener = Arc::new(server::listen_on(port)?);
    let serve = move |stream: TcpStream, state: &State| {
        let _busy = state.busy();
        if let Err(fault) = pass_on(&stream, &host, target_port) {
            eprintln!("proxy: {fault}");
        }
    };
    server::accept_all(listener.clone(), state.clone(), serve);
    server::serve_until_told(&signals, &[listener], &state, Duration::from_millis(drain_ms))
}

fn pass_on(client: &TcpStream, host: &str, port: u16) -> Result<(), String> {
    let target =
        resolver::connect(host, port, CONNECT_TIMEOUT).map_err(|fault| fault.to_string())?;
    let text = |error: io::Error| format!("connection to {host}:{port}: {error}");
    std::thread::scope(|scope| {
        let upwards = scope.spawn(|| copy(client, &target));
        let downwards = copy(&target, client);
        downwards.map_err(text)?;
        match upwards.join() {
            Ok(copied) => copied.map_err(text),
            Err(_) => Err("a thread failed".into()),
        }
    })
}

/// Copies one direction, and passes its end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    if copied.is_err() {
        // The other direction has nobody to talk to either.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
    copied.map(drop)
}
