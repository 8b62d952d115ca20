//! Which pods run here: those that the API binds to this node, and those that a killed runtime left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use client::{PatchKind, ResourcePath, WatchEvent, WatchSpec};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::disk;
use crate::machine::Fact;
use crate::node::MAX_PODS;
use crate::pod::Pod;
use crate::security;
use crate::tasks;
use crate::worker::{self, Kept, Message};

/// The pods of a node, each with its task.
pub struct Pods {
    context: Arc<Context>,
    workers: BTreeMap<String, mpsc::Sender<Message>>,
    /// Pods that were found on disk without a whole record, such as a power loss leaves.
    unreadable: Vec<String>,
}

impl Pods {
    /// Goes on with the pods that are on disk. They are not touched before the API has listed its
    /// pods (invariant 3), but served: probes, restarts, logs.
    pub fn adopt(context: Arc<Context>) -> Self {
        let mut pods = Self { context, workers: BTreeMap::new(), unreadable: Vec::new() };
        let directory = pods.context.options.state_directory.join("pods");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            let file = pods.context.pod_directory(&uid).record();
            match disk::read_json::<Kept>(&file) {
                Some(kept) => {
                    let worker = worker::start(pods.context.clone(), kept.pod.clone(), Some(kept));
                    pods.workers.insert(uid, worker);
                }
                None => {
                    tracing::warn!("{} is not readable: its pod is made anew", file.display());
                    pods.unreadable.push(uid);
                }
            }
        }
        pods
    }

    /// Follows the API. Never ends.
    pub async fn follow(mut self) {
        let node = self.context.options.node_name.clone();
        let spec = WatchSpec::new(ResourcePath::new("v1", "pods"))
            .field_selector(format!("spec.nodeName={node}"));
        let mut watcher = self.context.client.watch::<Pod>(spec);
        loop {
            match watcher.next().await {
                WatchEvent::Listed(pods) => self.listed(pods).await,
                WatchEvent::Applied(pod) => self.applied(pod).await,
                WatchEvent::Deleted(pod) => self.gone(&pod.metadata.uid).await,
                WatchEvent::Resumed => {}
                WatchEvent::Lost { reason, .. } => {
                    tracing::info!("the watch of pods is interrupted: {reason}");
                }
            }
        }
    }

    async fn listed(&mut self, pods: Vec<Pod>) {
        let listed: BTreeSet<String> = pods.iter().map(|pod| pod.metadata.uid.clone()).collect();
        for pod in pods {
            self.applied(pod).await;
        }
        let gone: Vec<String> =
            self.workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.gone(&uid).await;
        }
        // Only now is it known which of them nobody wants any more (invariant 3).
        for uid in std::mem::take(&mut self.unreadable) {
            if !listed.contains(&uid) {
                tokio::spawn(tasks::remove_remains(self.context.clone(), uid));
            }
        }
    }

    async fn applied(&mut self, pod: Pod) {
        self.workers.retain(|_, worker| !worker.is_closed());
        let uid = pod.metadata.uid.clone();
        if uid.is_empty() || uid.contains(['/', '.']) {
            return; // The server gives identities; this names a directory.
        }
        if let Some(worker) = self.workers.get(&uid) {
            let _ = worker.send(Message::Fact(Fact::Updated(Box::new(pod)))).await;
            return;
        }
        let is_finished = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        if is_finished && pod.metadata.deletion_timestamp.is_none() {
            return; // It ended on this node before its disk was cleared: it runs no more.
        }
        if self.workers.len() >= MAX_PODS && pod.metadata.deletion_timestamp.is_none() {
            let message = format!(
                "Node didn't have enough resource: pods, requested: 1, used: {MAX_PODS}, \
                 capacity: {MAX_PODS}"
            );
            self.refuse(&pod, "OutOfpods", &message).await;
            return;
        }
        if let Err(message) = security::check_sysctls(&pod)
            && pod.metadata.deletion_timestamp.is_none()
        {
            self.refuse(&pod, "SysctlForbidden", &message).await;
            return;
        }
        let worker = worker::start(self.context.clone(), pod, None);
        self.workers.insert(uid, worker);
    }

    async fn gone(&mut self, uid: &str) {
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.send(Message::Fact(Fact::Removed)).await;
        }
    }

    /// The kubelet's refusal of a pod that this node cannot run; its owner makes another elsewhere.
    async fn refuse(&self, pod: &Pod, reason: &str, message: &str) {
        let metadata = &pod.metadata;
        let path = ResourcePath::new("v1", "pods")
            .namespace(metadata.namespace.as_str())
            .name(metadata.name.as_str())
            .subresource("status");
        let message = format!("Pod was rejected: {message}");
        let patch = json!({
            "metadata": {"uid": metadata.uid},
            "status": {"phase": "Failed", "reason": reason, "message": message},
        });
        let written: Result<Value, _> =
            self.context.client.patch(&path, PatchKind::Merge, &patch).await;
        if let Err(error) = written {
            tracing::warn!(pod = %metadata.name, "the refusal was not written: {error}");
        }
    }
}
