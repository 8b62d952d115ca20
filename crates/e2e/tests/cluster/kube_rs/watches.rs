//! Watchers and reflectors: what they see, and how they come back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{Stream, StreamExt, future};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::super::kubectl::restart_api_server;
use super::super::world::{NAMESPACE, World};
use super::{LIMIT, config_map, create, within};

/// More writes than the API server keeps of one kind for watchers that fall behind.
const WRITES: usize = 1_024;
/// Objects that these writes go to, at once.
const WRITERS: usize = 16;

type Events = Pin<Box<dyn Stream<Item = watcher::Result<Event<ConfigMap>>> + Send>>;

fn strategies() -> [(&'static str, Config); 2] {
    [
        // Every page has a list of its own.
        ("list and watch", Config::default().page_size(1)),
        ("streaming list", Config::default().streaming_lists()),
    ]
}

/// What is there, then each change once; who loses the label is gone for who watches by it.
pub async fn both_strategies(client: &Client) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    for (strategy, config) in strategies() {
        create(&maps, config_map("one", "kube-rs")).await?;
        create(&maps, config_map("two", "kube-rs")).await?;
        create(&maps, config_map("stranger", "other")).await?;
        let mut events: Events = watch(maps.clone(), config.labels("app=kube-rs")).boxed();
        let mut seen = until_listed(&mut events).await.context(strategy)?;
        let change = |name: &'static str, patch| merge(&maps, name, patch);
        change("two", json!({"data": {"n": "1"}})).await?;
        change("stranger", json!({"data": {"n": "1"}})).await?;
        change("two", json!({"metadata": {"labels": {"app": "other"}}})).await?;
        for name in ["one", "two", "stranger"] {
            maps.delete(name, &DeleteParams::default()).await?;
        }
        for _ in 0..3 {
            seen.push(next(&mut events).await.context(strategy)?.to_string());
        }
        let expected = [
            "Init",
            "InitApply(one)",
            "InitApply(two)",
            "InitDone",
            "Apply(two)",
            "Delete(two)",
            "Delete(one)",
        ];
        ensure!(seen == expected, "{strategy}: {seen:?}");
    }
    Ok(())
}

/// A watcher that does not read while more is written than the server keeps is told by 410, and
/// lists again.
pub async fn window_passed(client: &Client) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    for (strategy, config) in strategies() {
        create(&maps, config_map("slow", "slow")).await?;
        let config = config.labels("app=slow").timeout(1);
        let mut events: Events = watch(maps.clone(), config).boxed();
        until_listed(&mut events).await.context(strategy)?;
        // The server ends this watch; nobody begins the next one yet.
        tokio::time::sleep(Duration::from_secs(2)).await;
        write_much(&maps).await?;
        merge(&maps, "slow", json!({"data": {"n": "last"}})).await?;
        let told = within("an answer to a late watch", events.next()).await?;
        match told.context("the watcher ends")? {
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            other => bail!("{strategy}: {other:?} instead of 410"),
        }
        ensure!(matches!(next(&mut events).await?, Event::Init), "{strategy}: no new list");
        match next(&mut events).await? {
            Event::InitApply(map) => ensure!(map.data.context("data")?["n"] == "last"),
            other => bail!("{strategy}: {other}"),
        }
        ensure!(matches!(next(&mut events).await?, Event::InitDone), "{strategy}: more than one");
        maps.delete("slow", &DeleteParams::default()).await?;
    }
    Ok(())
}

/// Reflectors go on where they were when the server is killed and starts again: nobody lists.
pub async fn restarted_server(world: &World, client: &Client) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    create(&maps, config_map("before", "kept")).await?;
    let mut reflectors = Vec::new();
    for (strategy, config) in strategies() {
        let reflector = Reflector::start(maps.clone(), config.labels("app=kept"));
        within(strategy, reflector.store.wait_until_ready()).await??;
        reflectors.push((strategy, reflector));
    }
    tokio::task::block_in_place(|| restart_api_server(world))?;
    create(&maps, config_map("after", "kept")).await?;
    maps.delete("before", &DeleteParams::default()).await?;
    for (strategy, reflector) in &reflectors {
        within(strategy, reflector.has_only("after")).await?;
        let lists = reflector.lists.load(Ordering::Relaxed);
        ensure!(lists == 1, "{strategy}: {lists} lists");
        let errors = reflector.errors.load(Ordering::Relaxed);
        ensure!(errors > 0, "{strategy}: the watch did not notice that the server was killed");
    }
    maps.delete("after", &DeleteParams::default()).await?;
    Ok(())
}

/// A store that follows the server, and what it took. It ends with this value.
struct Reflector {
    store: Store<ConfigMap>,
    lists: Arc<AtomicUsize>,
    errors: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Reflector {
    fn start(maps: Api<ConfigMap>, config: Config) -> Self {
        let (store, writer) = reflector::store();
        let lists = Arc::new(AtomicUsize::new(0));
        let errors = Arc::new(AtomicUsize::new(0));
        let (listed, failed) = (Arc::clone(&lists), Arc::clone(&errors));
        let events = watch(maps, config).default_backoff().reflect(writer);
        let task = tokio::spawn(events.for_each(move |event| {
            match event {
                Ok(Event::Init) => drop(listed.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => {}
                Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
            }
            future::ready(())
        }));
        Self { store, lists, errors, task }
    }

    async fn has_only(&self, name: &str) {
        let names =
            || -> Vec<String> { self.store.state().iter().map(|map| map.name_any()).collect() };
        while names() != [name] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(events: &mut Events) -> Result<Event<ConfigMap>> {
    Ok(within("an event", events.next()).await?.context("the watcher ends")??)
}

/// The events up to the end of the first list.
async fn until_listed(events: &mut Events) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    loop {
        let event = next(events).await?;
        seen.push(event.to_string());
        if matches!(event, Event::InitDone) {
            return Ok(seen);
        }
    }
}

async fn merge(maps: &Api<ConfigMap>, name: &str, patch: serde_json::Value) -> Result<()> {
    let patched = maps.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(drop).with_context(|| format!("patching {name}"))
}

async fn write_much(maps: &Api<ConfigMap>) -> Result<()> {
    let writer = async |writer: usize| {
        let name = format!("busy-{writer}");
        create(maps, config_map(&name, "busy")).await?;
        for number in 0..WRITES / WRITERS {
            merge(maps, &name, json!({"data": {"n": format!("{number} of {writer}")}})).await?;
        }
        maps.delete(&name, &DeleteParams::default()).await.map(drop).context("deleting")
    };
    let writers = future::try_join_all((0..WRITERS).map(writer));
    tokio::time::timeout(LIMIT, writers).await.context("the writes take long")?.map(drop)
}
