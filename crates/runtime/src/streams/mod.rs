//! Streams between a client and a pod: exec, attach and port-forward, over SPDY/3.1 and websockets
//! (RFC 6455). The API server has authenticated and authorised the client, and passes its
//! bytes on as they are.
//!
//! `upgrade` agrees on a protocol, `spdy` and `websocket` carry bytes, `channels` makes the streams
//! of a command of either, and `exec`, `attach` and `port_forward` use them.

pub mod attach;
pub mod channels;
mod datagrams;
pub mod exec;
mod pipes;
pub mod port_channels;
pub mod port_forward;
pub mod spdy;
mod terminal;
pub mod upgrade;
pub mod websocket;

#[cfg(test)]
pub mod tests;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A session over which nothing flows for this long is ended, seconds: the kubelet's
/// `streamingConnectionIdleTimeout`. Pings do not count.
pub const IDLE_TIMEOUT_S: u64 = 4 * 60 * 60;
/// Bytes moved at a time.
pub const CHUNK_BYTES: usize = 16 * 1024;
/// Frames that wait to be written, and pieces of input that wait for a command.
pub const QUEUE: usize = 8;
/// Longest wait for the client to take note of a session's end, seconds. A connection that is
/// closed while bytes of the client are under way is reset, and what it was told last is lost.
pub const LINGER_S: u64 = 5;

/// Where a container is.
#[derive(Clone, Debug)]
pub struct ContainerPlace {
    /// The pause process's socket.
    pub socket: PathBuf,
    /// The container.
    pub container: String,
}

/// When something last flowed in a session.
pub struct Activity(Mutex<Instant>);

impl Activity {
    /// Something flows now.
    pub fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// Something flows.
    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns once nothing has flowed for `limit`.
    pub async fn ceased_for(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }
}

/// Writes frames until nobody has more, and then the end.
pub async fn write_frames<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// The last word on the error stream: all went well.
fn success_status() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// The last word on the error stream: what was asked for came to nothing.
fn failure_status(what: &str, why: &str) -> Value {
    let message = format!("{what}: {why}");
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}
