//! What the server does without being asked: keep its own objects, and let Events expire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use model::{ClusterConfig, Timestamp};
use serde_json::Value;
use store::{Action, DeleteOptions, ListOptions, Object, Preconditions, Request, registry};
use tokio::sync::watch;

use crate::writer::{Shared, WriteOptions, now};
use crate::{bootstrap, stopped};

/// How often the cluster's own objects are looked at, seconds; the real server's pace.
const ENSURE_SECONDS: u64 = 10;
/// How long an Event is kept after its last update, the real server's default.
const EVENT_LIFE: Duration = Duration::from_secs(60 * 60);
/// How often Events are looked at, in rounds of [`ENSURE_SECONDS`].
const EXPIRE_EVERY_ROUNDS: u64 = 6;
/// Events removed in one round: they share the writer with everybody else.
const MAX_EXPIRED_EVENTS: usize = 500;

/// Runs until `stop` becomes true.
pub(crate) async fn run(
    client: Client,
    shared: Arc<Shared>,
    config: ClusterConfig,
    advertised: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let mut round: u64 = 0;
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = tokio::time::sleep(Duration::from_secs(ENSURE_SECONDS)) => {}
        }
        if let Err(error) = bootstrap::ensure(&client, &config, advertised).await {
            tracing::warn!(%error, "the cluster's own objects cannot be kept");
        }
        round += 1;
        if round.is_multiple_of(EXPIRE_EVERY_ROUNDS) {
            expire_events(&shared, now()).await;
        }
    }
}

/// Removes the Events that nobody has touched for [`EVENT_LIFE`].
pub(crate) async fn expire_events(shared: &Shared, now: Timestamp) {
    let Some(events) = registry::find("", "v1", "events") else { return };
    let Ok(list) = shared.read().list(events, &ListOptions::default()) else { return };
    let expired = list.items.iter().filter(|event| now.since(last_touched(event)) > EVENT_LIFE);
    for event in expired.take(MAX_EXPIRED_EVENTS) {
        let preconditions = Preconditions {
            uid: Some(event.uid().to_owned()),
            resource_version: Some(event.revision.to_string()),
        };
        let request = Request {
            resource: events,
            namespace: event.key.namespace.clone(),
            name: event.key.name.clone(),
            subresource: None,
            action: Action::Delete(DeleteOptions { preconditions, ..DeleteOptions::default() }),
        };
        // Updated or gone meanwhile: both are fine.
        let options = WriteOptions::default();
        let _ = shared.write(request, options).await;
    }
}

/// The newest of the times that an Event names. One without any was made in 1970, and goes.
fn last_touched(event: &Object) -> Timestamp {
    ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"]
        .into_iter()
        .filter_map(|pointer| event.value.pointer(pointer).and_then(Value::as_str))
        .filter_map(Timestamp::parse)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use store::StoreConfig;

    use super::*;
    use crate::disk::Disk;

    async fn write(shared: &Shared, plural: &str, namespace: &str, object: Value) {
        let request = Request {
            resource: registry::find("", "v1", plural).expect("a resource"),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: None,
            action: Action::Create(object),
        };
        shared.write(request, WriteOptions::default()).await.expect("written");
    }

    #[tokio::test]
    async fn events_go_an_hour_after_they_were_touched_last() {
        let directory = std::env::temp_dir().join(format!("flatnet-events-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let disk = Disk::open(&directory).expect("a disk");
        let config = StoreConfig::from(&ClusterConfig::default());
        let (store, dropped) = disk.load(config).expect("a store");
        let (shared, _) = Shared::start(store, disk, dropped).expect("a writer");
        write(&shared, "namespaces", "", json!({"metadata": {"name": "default"}})).await;
        let started = now();
        let touched = started.after(Duration::from_secs(30 * 60));
        for (name, last) in [("old", started), ("young", touched)] {
            let event = json!({
                "metadata": {"name": name},
                "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"},
                "lastTimestamp": last,
            });
            write(&shared, "events", "default", event).await;
        }
        let events = registry::find("", "v1", "events").expect("a resource");
        let names = || -> Vec<String> {
            let list = shared.read().list(events, &ListOptions::default()).expect("a list");
            list.items.iter().map(|event| event.key.name.clone()).collect()
        };
        for (minutes, expected) in [(55, vec!["old", "young"]), (65, vec!["young"]), (95, vec![])] {
            expire_events(&shared, started.after(Duration::from_secs(minutes * 60))).await;
            assert_eq!(names(), expected, "after {minutes} minutes");
        }
        let _ = std::fs::remove_dir_all(&directory);
    }
}
