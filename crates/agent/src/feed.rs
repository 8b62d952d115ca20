//! The DNS worker's feed: every connection gets the zone as it is, and then what changes, each
//! change once. Its cost does not depend on how large the zone is.
//!
//! Whose pods have which addresses comes from a watch of its own: nothing else on a node reads all
//! pods of the cluster, and so little is kept of each that the loop's `World` is not the place.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use client::{Client, ResourcePath, WatchEvent, WatchSpec};
use dns::feed::{Change, Publisher, Settings};
use model::{ClusterConfig, Pod, layout};
use plan::zone::{PodAddresses, ZoneChanges};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The agent's end of the feed.
#[derive(Clone)]
pub(crate) struct Feed {
    publisher: Arc<Mutex<Publisher>>,
    /// The number of the newest change; 0 before the first complete list (invariant 3).
    newest: watch::Sender<u64>,
}

impl Feed {
    /// Listens in the run directory. The socket is root's alone; a worker connects before it drops
    /// its privileges or by the directory handle that it kept.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve(
        run_directory: &Path,
        config: &ClusterConfig,
        client: &Client,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self> {
        let listener = bind(run_directory, layout::DNS_FEED_SOCKET)?;
        // More than a former agent's, unless that heard of a change each second of its life.
        let sequence = unix_us() / 1_000_000;
        let publisher = Arc::new(Mutex::new(Publisher::new(Settings::new(config), sequence)));
        let feed = Self { publisher, newest: watch::Sender::new(0) };
        tasks.spawn(feed.clone().accept(listener));
        tasks.spawn(feed.clone().follow_pods(client.clone()));
        Ok(feed)
    }

    /// Passes on what changed; the first time, everything.
    pub(crate) fn publish(&self, changes: ZoneChanges, heard_us: u64) {
        let mut publisher = self.publisher();
        publisher.set_reverse_ranges(&changes.reverse_ranges);
        let services =
            changes.services.iter().map(|(key, records)| Change::of_service(key, records.as_ref()));
        if let Err(error) = publisher.publish(services, heard_us) {
            tracing::error!("a change cannot be sent to the DNS worker: {error}");
        }
        let sequence = publisher.sequence();
        drop(publisher);
        self.newest.send_replace(sequence);
    }

    async fn follow_pods(self, client: Client) {
        let mut watcher = client.watch::<Pod>(WatchSpec::new(ResourcePath::new("v1", "pods")));
        let mut pods = PodAddresses::default();
        loop {
            let touched = match watcher.next().await {
                WatchEvent::Listed(list) => pods.replace(&list),
                WatchEvent::Applied(pod) => pods.set(&pod),
                WatchEvent::Deleted(pod) => pods.remove(&pod.metadata.key()),
                WatchEvent::Lost { reason } => {
                    tracing::warn!("the watch of pods for DNS is lost: {reason}");
                    continue;
                }
                WatchEvent::Resumed => continue,
            };
            let names = |address| Change::Pod { address, names: pods.names_at(address) };
            let mut publisher = self.publisher();
            if let Err(error) = publisher.publish(touched.into_iter().map(names), unix_us()) {
                tracing::error!("a change cannot be sent to the DNS worker: {error}");
            }
            let sequence = publisher.sequence();
            drop(publisher);
            // Not before the first list of Services: names that come then would not exist yet.
            self.newest.send_if_modified(|newest| {
                let tell = *newest != 0 && *newest != sequence;
                if tell {
                    *newest = sequence;
                }
                tell
            });
        }
    }

    async fn accept(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().feed(stream))),
                Err(error) => {
                    tracing::warn!("a DNS worker could not connect: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one worker until it goes; its successor connects anew.
    async fn feed(self, mut stream: UnixStream) {
        let mut newest = self.newest.subscribe();
        let mut sent = None;
        loop {
            if *newest.borrow_and_update() != 0 {
                let (frames, sequence) = self.frames_behind(sent);
                for frame in frames {
                    if stream.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                sent = Some(sequence);
            }
            if newest.changed().await.is_err() {
                return;
            }
        }
    }

    /// What a worker lacks that was sent everything up to a number, and the number of the last.
    fn frames_behind(&self, sent: Option<u64>) -> (Vec<Arc<[u8]>>, u64) {
        let publisher = self.publisher();
        let sequence = publisher.sequence();
        if let Some(changes) = sent.and_then(|sent| publisher.since(sent)) {
            return (changes.collect(), sequence);
        }
        let frames: Result<Vec<Arc<[u8]>>, _> =
            publisher.snapshot().map(|frame| frame.map(Arc::from)).collect();
        match frames {
            Ok(frames) => (frames, sequence),
            Err(error) => {
                tracing::error!("the zone cannot be sent to the DNS worker: {error}");
                (vec![], sequence)
            }
        }
    }

    fn publisher(&self) -> MutexGuard<'_, Publisher> {
        self.publisher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Now, in microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
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
