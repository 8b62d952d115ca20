//! The API's objects as events of the loop: a watch a kind, one queue.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, ResourcePath, WatchEvent, WatchSpec, Watcher};
use model::world::{Kind, Object};
use model::{EndpointSlice, NamespacedName, Node, Service, ServiceCidr};
use reconcile::{Event, List, Pages};
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// A kind that the API server does not serve is asked for again this often: it may be upgraded.
const MISSING_KIND_PERIOD: Duration = Duration::from_secs(60);
/// The wait after a question that the API server did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the watches. They never end by themselves, and pause while the queue is full.
pub(crate) fn spawn(client: &Client, events: &mpsc::Sender<Event>, tasks: &mut JoinSet<()>) {
    follow::<Node>(client, events, tasks, "v1", "nodes");
    follow::<Service>(client, events, tasks, "v1", "services");
    follow::<EndpointSlice>(client, events, tasks, "discovery.k8s.io/v1", "endpointslices");
    let path = ResourcePath::new("networking.k8s.io/v1", "servicecidrs");
    let (client, events) = (client.clone(), events.clone());
    tasks.spawn(async move {
        if wait_until_served::<ServiceCidr>(&client, &events, &path).await {
            pass_on::<ServiceCidr>(client.watch_into(WatchSpec::new(path)), events).await;
        }
    });
}

/// What our annotations begin with; others' are large, and change often.
const OWN_ANNOTATIONS: &str = "flatnet.io/";

/// A kind that the loop reads.
trait Watched: DeserializeOwned + Send + 'static {
    const KIND: Kind;
    /// What is kept of a list while it comes.
    type Pages: Default + Extend<Self> + Send + 'static;
    fn key(&self) -> NamespacedName;
    fn object(self) -> Object;
    fn list(pages: Self::Pages) -> List;
}

fn follow<T: Watched>(
    client: &Client,
    events: &mpsc::Sender<Event>,
    tasks: &mut JoinSet<()>,
    group_version: &'static str,
    plural: &'static str,
) {
    let spec = WatchSpec::new(ResourcePath::new(group_version, plural));
    tasks.spawn(pass_on::<T>(client.watch_into(spec), events.clone()));
}

async fn pass_on<T: Watched>(mut watcher: Watcher<T, T::Pages>, events: mpsc::Sender<Event>) {
    loop {
        let event = match watcher.next().await {
            WatchEvent::Listed(pages) => Event::Listed(T::list(pages)),
            WatchEvent::Applied(object) => Event::Present(object.object()),
            WatchEvent::Deleted(object) => Event::Absent { kind: T::KIND, key: object.key() },
            WatchEvent::Lost { reason } => {
                tracing::warn!("the watch of kind {:?} is lost: {reason}", T::KIND);
                continue;
            }
            WatchEvent::Resumed => {
                tracing::info!("the watch of kind {:?} goes on", T::KIND);
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Waits for a kind that older API servers do not have (ServiceCIDR came with Kubernetes 1.33): to
/// the loop, which waits for a list of every kind, it has no objects there. False: the loop ended.
async fn wait_until_served<T: Watched>(
    client: &Client,
    events: &mpsc::Sender<Event>,
    path: &ResourcePath,
) -> bool {
    let mut is_told = false;
    loop {
        let wait = match client.get_optional::<IgnoredAny>(path).await {
            Ok(Some(IgnoredAny)) => return true,
            Ok(None) => {
                let nothing = Event::Listed(List::new(T::KIND, []));
                if !is_told && events.send(nothing).await.is_err() {
                    return false;
                }
                is_told = true;
                MISSING_KIND_PERIOD
            }
            Err(error) => {
                tracing::warn!("whether the API serves kind {:?} is not known: {error}", T::KIND);
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
    type Pages = Vec<Self>;

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

    fn list(pages: Vec<Self>) -> List {
        List::new(Self::KIND, pages.into_iter().map(Self::object))
    }
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;
    type Pages = Pages<Self>;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    fn object(self) -> Object {
        Object::Service(Arc::new(self))
    }

    fn list(pages: Pages<Self>) -> List {
        pages.into()
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    type Pages = Pages<Self>;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    fn object(self) -> Object {
        Object::EndpointSlice(Arc::new(self))
    }

    fn list(pages: Pages<Self>) -> List {
        pages.into()
    }
}

impl Watched for ServiceCidr {
    const KIND: Kind = Kind::ServiceCidr;
    type Pages = Vec<Self>;

    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }

    /// Its status changes whenever a controller looks at it.
    fn object(mut self) -> Object {
        self.metadata.resource_version.clear();
        Object::ServiceCidr(Arc::new(self))
    }

    fn list(pages: Vec<Self>) -> List {
        List::new(Self::KIND, pages.into_iter().map(Self::object))
    }
}
