//! Events of pods, as the kubelet records them. One that repeats is counted, not written anew.

use std::collections::VecDeque;

use client::{Client, PatchKind, ResourcePath};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::context::now;
use crate::machine::Note;
use crate::pod::Pod;

/// Events that wait to be written. When the API server is slower than that, newer ones are lost:
/// events are for people, and must never hold a pod up.
const QUEUE: usize = 256;
/// Events that are remembered to be counted.
const REMEMBERED: usize = 256;

/// Where events go.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Entry>,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    involved: Value,
    namespace: String,
    name: String,
    warning: bool,
    reason: &'static str,
    message: String,
}

struct Remembered {
    entry: Entry,
    event: String,
    count: u32,
}

impl Events {
    /// Starts the task that writes them.
    pub fn start(client: Client, node: String) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node, entries));
        Self { queue }
    }

    /// Records an event about a pod.
    pub fn record(&self, pod: &Pod, note: Note) {
        let metadata = &pod.metadata;
        let mut involved = json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        });
        if let Some(container) = &note.container {
            let is_init = pod.spec.init_containers.iter().any(|init| init.name == *container);
            let list = if is_init { "initContainers" } else { "containers" };
            involved["fieldPath"] = format!("spec.{list}{{{container}}}").into();
        }
        let entry = Entry {
            involved,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            warning: note.warning,
            reason: note.reason,
            message: note.message,
        };
        if self.queue.try_send(entry).is_err() {
            tracing::warn!(pod = %metadata.name, "an event was lost: the API server is too slow");
        }
    }
}

impl Entry {
    /// Whether it says the same of the same object; the object's version does not matter.
    fn repeats(&self, other: &Self) -> bool {
        let key = |entry: &Self| {
            (entry.involved["uid"].clone(), entry.involved["fieldPath"].clone(), entry.reason)
        };
        key(self) == key(other) && self.message == other.message
    }
}

async fn write_all(client: Client, node: String, mut entries: mpsc::Receiver<Entry>) {
    let mut remembered: VecDeque<Remembered> = VecDeque::new();
    let mut number: u64 = 0;
    while let Some(entry) = entries.recv().await {
        let path = ResourcePath::new("v1", "events").namespace(entry.namespace.as_str());
        let time = now();
        if let Some(known) = remembered.iter_mut().find(|known| known.entry.repeats(&entry)) {
            known.count += 1;
            let patch = json!({"count": known.count, "lastTimestamp": time});
            let path = path.clone().name(known.event.as_str());
            let written: Result<Value, _> = client.patch(&path, PatchKind::Merge, &patch).await;
            match written {
                Ok(_) => continue,
                Err(error) if error.is_not_found() => {} // Expired: write it anew.
                Err(error) => {
                    tracing::debug!("an event was not counted: {error}");
                    continue;
                }
            }
        }
        number += 1;
        let event = format!("{}.{:x}{number:04x}", entry.name, time.microseconds());
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event, "namespace": entry.namespace},
            "involvedObject": entry.involved,
            "reason": entry.reason,
            "message": entry.message,
            "type": if entry.warning { "Warning" } else { "Normal" },
            "source": {"component": "kubelet", "host": node},
            "reportingComponent": "kubelet",
            "reportingInstance": node,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        });
        let written: Result<Value, _> = client.create(&path, &body).await;
        match written {
            Ok(_) => {
                remembered.retain(|known| !known.entry.repeats(&entry));
                remembered.push_back(Remembered { entry, event, count: 1 });
                if remembered.len() > REMEMBERED {
                    remembered.pop_front();
                }
            }
            Err(error) => tracing::debug!("an event was not written: {error}"),
        }
    }
}
