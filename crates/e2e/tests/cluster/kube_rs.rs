//! kube-rs, the client library of controllers in Rust, as they use it: watches by both strategies,
//! a controller with a finalizer and a status, streams by websocket.

#[path = "kube_rs/controller.rs"]
mod controller;
#[path = "kube_rs/streams.rs"]
mod streams;
#[path = "kube_rs/watches.rs"]
mod watches;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::api::PostParams;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::world::World;

/// How long one answer, event or change may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn watches(world: &World) -> Result<()> {
    with_client(world, async |client| {
        watches::both_strategies(&client).await?;
        watches::window_passed(&client).await?;
        watches::restarted_server(world, &client).await
    })
}

pub fn controller(world: &World) -> Result<()> {
    with_client(world, async |client| controller::greets(&client).await)
}

pub fn streams(world: &World) -> Result<()> {
    with_client(world, async |client| {
        streams::exec(&client).await?;
        streams::terminal(&client).await?;
        streams::port_forward(&client).await
    })
}

fn with_client(world: &World, scenario: impl AsyncFnOnce(Client) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(world.cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        scenario(Client::try_from(config)?).await
    })
}

/// What `future` comes to, in [`LIMIT`].
async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    let late = || anyhow!("{what}: not within {} s", LIMIT.as_secs());
    timeout(LIMIT, future).await.map_err(|_| late())
}

/// Makes an object given as JSON, with the kind filled in by its type.
async fn create<K>(objects: &Api<K>, object: Value) -> Result<K>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let text = object.to_string();
    let typed = serde_json::from_value(object).with_context(|| text.clone())?;
    objects.create(&PostParams::default(), &typed).await.context(text)
}

fn config_map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": label}}, "data": {"n": "0"}})
}
