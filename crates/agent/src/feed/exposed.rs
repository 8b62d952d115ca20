//! What of the cluster has names: what the node's DNS worker asks for, and, where it goes by labels of
//! namespaces, which these are. Namespaces are watched only then.

use std::collections::BTreeSet;

use client::{Client, ResourcePath, WatchEvent, WatchSpec, Watcher};
use model::ObjectMeta;
use model::selector::LabelSelector;
use plan::zone::{Exposed, Exposure, Namespaces};
use serde::Deserialize;

use super::Feed;

/// The namespaces that have some labels.
struct Labelled {
    selector: LabelSelector,
    watcher: Watcher<Namespace>,
    /// `None` before the first list.
    names: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl Feed {
    /// Follows what workers ask for; of several on a node the one that asked last.
    pub(super) async fn follow_exposure(self, client: Client) {
        let mut said = self.said();
        let mut exposure = Exposure::default();
        let mut labelled: Option<Labelled> = None;
        loop {
            tokio::select! {
                changed = said.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let asked = said.borrow_and_update().as_ref().map(|it| it.exposure.clone());
                    let asked = asked.unwrap_or_default();
                    if asked == exposure {
                        continue;
                    }
                    labelled = Labelled::new(&asked, &client);
                    exposure = asked;
                }
                () = follow(&mut labelled) => {}
            }
            let names = match &labelled {
                None => BTreeSet::new(),
                Some(Labelled { names: Some(names), .. }) => names.clone(),
                // Nobody knows them yet (invariant 3).
                Some(_) => continue,
            };
            let exposed = Exposed { exposure: exposure.clone(), labelled: names };
            self.exposed.send_if_modified(|present| {
                let is_other = *present != exposed;
                *present = exposed;
                is_other
            });
        }
    }
}

async fn follow(labelled: &mut Option<Labelled>) {
    match labelled {
        Some(labelled) => labelled.follow().await,
        None => std::future::pending().await,
    }
}

impl Labelled {
    fn new(exposure: &Exposure, client: &Client) -> Option<Self> {
        let Namespaces::Labelled(selector) = &exposure.namespaces else { return None };
        let watcher = client.watch(WatchSpec::new(ResourcePath::new("v1", "namespaces")));
        Some(Self { selector: selector.clone(), watcher, names: None })
    }

    /// Takes one event in.
    async fn follow(&mut self) {
        match self.watcher.next().await {
            WatchEvent::Listed(all) => {
                let chosen =
                    all.into_iter().filter(|it| self.selector.matches(&it.metadata.labels));
                self.names = Some(chosen.map(|it| it.metadata.name).collect());
            }
            WatchEvent::Applied(Namespace { metadata }) => {
                let names = self.names.get_or_insert_default();
                if self.selector.matches(&metadata.labels) {
                    names.insert(metadata.name);
                } else {
                    names.remove(&metadata.name);
                }
            }
            WatchEvent::Deleted(Namespace { metadata }) => {
                self.names.get_or_insert_default().remove(&metadata.name);
            }
            WatchEvent::Lost { reason } => {
                tracing::warn!("the watch of namespaces for DNS is lost: {reason}");
            }
            WatchEvent::Resumed => {}
        }
    }
}
