//! The DNS worker's feed: every connection gets the newest zone, and again after each change.
//! Zones in between are skipped: a zone is complete by itself.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use model::layout;
use plan::zone::Zone;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The newest zone; `None` before the first complete list.
pub(crate) type Newest = Option<Arc<Zone>>;

/// Listens in the run directory. The socket is root's alone; a worker connects before it drops
/// its privileges or by the directory handle that it kept.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn serve(
    run_directory: &Path,
    tasks: &mut JoinSet<()>,
) -> Result<watch::Sender<Newest>> {
    let listener = bind(run_directory, layout::DNS_FEED_SOCKET)?;
    let (zones, newest) = watch::channel(None);
    tasks.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(feed(stream, newest.clone()))),
                Err(error) => {
                    tracing::warn!("a DNS worker could not connect: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(zones)
}

async fn feed(mut stream: UnixStream, mut newest: watch::Receiver<Newest>) {
    loop {
        let zone = newest.borrow_and_update().clone();
        if let Some(zone) = zone {
            let frame = match dns::feed::frame(&zone) {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::error!("the zone cannot be sent to the DNS worker: {error}");
                    return;
                }
            };
            if stream.write_all(&frame).await.is_err() {
                // The worker went; its successor connects anew.
                return;
            }
        }
        if newest.changed().await.is_err() {
            return;
        }
    }
}

/// Binds a unix socket for root alone, in the place of one that a killed agent left.
///
/// # Errors
/// The file system's.
pub(crate) fn bind(run_directory: &Path, name: &str) -> Result<UnixListener> {
    let path = run_directory.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
