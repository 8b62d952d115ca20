//! A controller as people write them with kube-rs: it keeps a ConfigMap for each of its objects, says
//! in their status what it did, and cleans up before they go.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, future};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::discovery::Discovery;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, Event, finalizer};
use kube::runtime::wait::{Condition, await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::super::world::NAMESPACE;
use super::{create, within};

/// Who writes the ConfigMaps and the status.
const MANAGER: &str = "greeter";
const FINALIZER: &str = "rust.example/farewell";
const DEFINITION: &str = "greetings.rust.example";

pub async fn greets(client: &Client) -> Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    create(&definitions, definition()).await?;
    let established = conditions::is_crd_established();
    until(&definitions, DEFINITION, "established", established).await?;
    let greeter = Arc::new(Greeter::new(client).await?);
    let controller = tokio::spawn(run(Arc::clone(&greeter)));
    let done = scenario(&greeter).await;
    controller.abort();
    done?;
    definitions.delete(DEFINITION, &DeleteParams::default()).await?;
    until(&definitions, DEFINITION, "gone", |found: Option<&_>| found.is_none()).await
}

async fn scenario(greeter: &Greeter) -> Result<()> {
    let Greeter { greetings, maps, .. } = greeter;
    create(greetings, json!({"metadata": {"name": "dawn"}, "spec": {"text": "good morning"}}))
        .await?;
    until(greetings, "dawn", "greeted", says("good morning", 1)).await?;
    let made = maps.get("dawn").await?;
    ensure!(made.data.context("data")?["text"] == "good morning");

    // Another's field stays, the controller's follows.
    let label = Patch::Merge(json!({"metadata": {"labels": {"watched": "yes"}}}));
    maps.patch("dawn", &PatchParams::default(), &label).await?;
    let change = Patch::Merge(json!({"spec": {"text": "good evening"}}));
    greetings.patch("dawn", &PatchParams::default(), &change).await?;
    until(greetings, "dawn", "greeted anew", says("good evening", 2)).await?;
    let map = maps.get("dawn").await?;
    ensure!(map.labels().get("watched").is_some_and(|value| value == "yes"), "{map:?}");
    ensure!(map.data.context("data")?["text"] == "good evening");
    refuses_other_managers(greeter).await?;

    // What somebody deletes is made again.
    let uid = made.metadata.uid.context("uid")?;
    maps.delete("dawn", &DeleteParams::default()).await?;
    let another =
        |found: Option<&ConfigMap>| found.is_some_and(|map| map.uid() != Some(uid.clone()));
    until(maps, "dawn", "made again", another).await?;

    // The finalizer's work is done before the object goes; what it owns goes with it.
    let uid = greetings.get("dawn").await?.uid().context("uid")?;
    greetings.delete("dawn", &DeleteParams::foreground()).await?;
    until(greetings, "dawn", "gone", conditions::is_deleted(&uid)).await?;
    until(maps, "dawn", "collected", |found: Option<&_>| found.is_none()).await?;
    let farewell = maps.get("farewell-dawn").await?;
    ensure!(farewell.data.context("data")?["text"] == "good evening");
    maps.delete("farewell-dawn", &DeleteParams::default()).await?;
    Ok(())
}

/// A field that the controller applied is not for others to apply, unless they force it.
async fn refuses_other_managers(greeter: &Greeter) -> Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": "mine"}});
    let other = PatchParams::apply("other");
    match greeter.maps.patch("dawn", &other, &Patch::Apply(map)).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            let text = &status.message;
            ensure!(text.contains("conflict with \"greeter\": .data.text"), "{text}");
            Ok(())
        }
        other => bail!("{other:?} instead of a conflict"),
    }
}

struct Greeter {
    greetings: Api<DynamicObject>,
    maps: Api<ConfigMap>,
    resource: ApiResource,
}

impl Greeter {
    /// Finds its kind by aggregated discovery, as controllers of unknown kinds do.
    async fn new(client: &Client) -> Result<Self> {
        let kind = GroupVersionKind::gvk("rust.example", "v1", "Greeting");
        let discovery = Discovery::new(client.clone()).run_aggregated().await?;
        let (resource, capabilities) =
            discovery.resolve_gvk(&kind).context("the kind is not discovered")?;
        ensure!(capabilities.subresources.iter().any(|(of, _)| of.plural.contains("status")));
        Ok(Self {
            greetings: Api::namespaced_with(client.clone(), NAMESPACE, &resource),
            maps: Api::namespaced(client.clone(), NAMESPACE),
            resource,
        })
    }

    async fn reconcile(self: Arc<Self>, greeting: Arc<DynamicObject>) -> Result<Action, Error> {
        let greeter = Arc::clone(&self);
        let event = async move |event| match event {
            Event::Apply(greeting) => greeter.greet(&greeting).await,
            Event::Cleanup(greeting) => greeter.part(&greeting).await,
        };
        finalizer(&self.greetings, FINALIZER, greeting, event).await
    }

    async fn greet(&self, greeting: &DynamicObject) -> kube::Result<Action> {
        let name = greeting.name_any();
        let owner = greeting.controller_owner_ref(&self.resource);
        self.keep_map(&name, json!([owner]), greeting).await?;
        let status = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "status": {
                "observedGeneration": greeting.metadata.generation,
                "said": greeting.data["spec"]["text"],
            },
        });
        let manager = PatchParams::apply(MANAGER).force();
        self.greetings.patch_status(&name, &manager, &Patch::Apply(status)).await?;
        Ok(Action::await_change())
    }

    async fn part(&self, greeting: &DynamicObject) -> kube::Result<Action> {
        let name = format!("farewell-{}", greeting.name_any());
        self.keep_map(&name, json!([]), greeting).await?;
        Ok(Action::await_change())
    }

    async fn keep_map(
        &self,
        name: &str,
        owners: Value,
        greeting: &DynamicObject,
    ) -> kube::Result<()> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "ownerReferences": owners},
            "data": {"text": greeting.data["spec"]["text"]},
        });
        let manager = PatchParams::apply(MANAGER).force();
        self.maps.patch(name, &manager, &Patch::Apply(map)).await.map(drop)
    }
}

type Error = finalizer::Error<kube::Error>;

async fn run(greeter: Arc<Greeter>) {
    let config = watcher::Config::default();
    let (greetings, resource) = (greeter.greetings.clone(), greeter.resource.clone());
    Controller::new_with(greetings, config.clone(), resource)
        .owns(greeter.maps.clone(), config)
        .run(
            |greeting, greeter| Greeter::reconcile(greeter, greeting),
            |_, error, _| {
                println!("    the controller tries again: {error}");
                Action::requeue(Duration::from_millis(200))
            },
            greeter,
        )
        .for_each(|_| future::ready(()))
        .await;
}

fn says(text: &'static str, generation: i64) -> impl Condition<DynamicObject> {
    move |found: Option<&DynamicObject>| {
        let status = json!({"observedGeneration": generation, "said": text});
        found.is_some_and(|greeting| greeting.data["status"] == status)
    }
}

async fn until<K>(
    objects: &Api<K>,
    name: &str,
    what: &str,
    condition: impl Condition<K>,
) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let waited = await_condition(objects.clone(), name, condition);
    within(&format!("{name} is {what}"), waited).await??;
    Ok(())
}

fn definition() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"text": {"type": "string"}}},
            "status": {"type": "object", "properties": {
                "observedGeneration": {"type": "integer"},
                "said": {"type": "string"},
            }},
        },
    });
    json!({
        "metadata": {"name": DEFINITION},
        "spec": {
            "group": "rust.example",
            "scope": "Namespaced",
            "names": {"plural": "greetings", "singular": "greeting", "kind": "Greeting"},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
            }],
        },
    })
}
