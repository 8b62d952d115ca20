//! The API's objects as events of the loop: three watches, one queue.

use std::sync::Arc;

use client::{Client, ResourcePath, WatchEvent, WatchSpec};
use model::world::{Kind, Object};
use model::{EndpointSlice, NamespacedName, Node, Service};
use reconcile::Event;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Starts the watches. They never end by themselves, and pause while the queue is full.
pub(crate) fn spawn(client: &Client, events: &mpsc::Sender<Event>, tasks: &mut JoinSet<()>) {
    follow::<Node>(client, events, tasks, "v1", "nodes");
    follow::<Service>(client, events, tasks, "v1", "services");
    follow::<EndpointSlice>(client, events, tasks, "discovery.k8s.io/v1", "endpointslices");
}

/// What our annotations begin with; others' are large, and change often.
const OWN_ANNOTATIONS: &str = "flatnet.io/";

/// A kind that the loop reads.
trait Watched: DeserializeOwned + Send + 'static {
    const KIND: Kind;
    fn key(&self) -> NamespacedName;
    fn object(self) -> Object;
}

fn follow<T: Watched>(
    client: &Client,
    events: &mpsc::Sender<Event>,
    tasks: &mut JoinSet<()>,
    group_version: &'static str,
    plural: &'static str,
) {
    let mut watcher = client.watch::<T>(WatchSpec::new(ResourcePath::new(group_version, plural)));
    let events = events.clone();
    tasks.spawn(async move {
        loop {
            let event = match watcher.next().await {
                WatchEvent::Listed(objects) => Event::Listed {
                    kind: T::KIND,
                    objects: objects.into_iter().map(T::object).collect(),
                },
                WatchEvent::Applied(object) => Event::Present(object.object()),
                WatchEvent::Deleted(object) => Event::Absent { kind: T::KIND, key: object.key() },
                WatchEvent::Lost { reason } => {
                    tracing::warn!("the watch of {plural} is lost: {reason}");
                    continue;
                }
                WatchEvent::Resumed => {
                    tracing::info!("the watch of {plural} goes on");
                    continue;
                }
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    });
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    /// Nodes report their health often: only what the network reads is kept, so that the rest
    /// touches nothing.
    fn object(mut self) -> Object {
        self.metadata.resource_version.clear();
        self.status.conditions.clear();
        self.metadata.annotations.retain(|key, _| key.starts_with(OWN_ANNOTATIONS));
        Object::Node(Arc::new(self))
    }
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    fn object(self) -> Object {
        Object::Service(Arc::new(self))
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    fn object(self) -> Object {
        Object::EndpointSlice(Arc::new(self))
    }
}
