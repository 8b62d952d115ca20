//! The machine's actions, carried out: each is a task that ends in a fact.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use client::{ClientError, DeleteOptions, ListOptions, Preconditions, ResourcePath};
use model::{Service, Timestamp};
use pause::{Request, Response};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::cgroup::Limits;
use crate::claims;
use crate::context::{Context, now};
use crate::disk::{self, PodDirectory};
use crate::environment::{self, Data, Sources};
use crate::images::{self, Chosen};
use crate::launch::{self, Start};
use crate::machine::{Fact, StartFailure};
use crate::node;
use crate::pause_client::{self, Connection};
use crate::pod::{Container, Pod, ProbeKind};
use crate::probe::{self, Target};
use crate::sandbox;
use crate::storage;
use crate::volumes;
use crate::worker::Message;

/// Wait before a removal that failed is tried again, milliseconds; doubled up to the limit.
const RETRY_MS: u64 = 200;
/// Longest such wait, milliseconds.
const RETRY_LIMIT_MS: u64 = 10_000;

/// How often a new pod's volumes are tried before the pod says what is wrong, and the wait between,
/// milliseconds.
const VOLUME_ATTEMPTS: u32 = 8;
const VOLUME_WAIT_MS: u64 = 50;
/// Longest postStart hook, seconds. The kubelet has no limit; one that takes this long has failed.
const POST_START_LIMIT_S: u64 = 3_600;

/// What a task needs of its pod.
#[derive(Clone)]
pub struct Task {
    /// Shared by all pods.
    pub context: Arc<Context>,
    /// The pod's files.
    pub directory: PodDirectory,
    /// The pod when the task began.
    pub pod: Pod,
    /// Its addresses then.
    pub addresses: Vec<IpAddr>,
    /// Where the fact goes.
    pub sender: mpsc::Sender<Message>,
    /// Whether the pod only goes on to its end.
    pub ending: watch::Receiver<bool>,
}

/// Passes every end on to the pod's machine, and last the sandbox's own.
pub async fn follow(mut connection: Connection, sender: mpsc::Sender<Message>) {
    while let Some(response) = connection.next().await {
        if let Response::Ended(report) = &response
            && let Some(fact) = crate::adopt::fact(report)
        {
            tell(&sender, fact).await;
        }
    }
    tell(&sender, Fact::SandboxLost).await;
}

/// Hands a fact to the pod's machine. A pod that is gone needs none.
pub async fn tell(sender: &mpsc::Sender<Message>, fact: Fact) {
    let _ = sender.send(Message::Fact(fact)).await;
}

/// Removes what is left of a pod that neither the API nor its own record knows.
pub async fn remove_remains(context: Arc<Context>, uid: String) {
    let directory = context.pod_directory(&uid);
    let mut pod = Pod::default();
    pod.metadata.uid = uid;
    let mut wait_ms = RETRY_MS;
    while let Err(message) = sandbox::remove(&context, &pod).await {
        tracing::warn!(uid = %pod.metadata.uid, "remains of a pod are not removed yet: {message}");
        pause_for(&mut wait_ms).await;
    }
    volumes::unmount_all(&directory);
    for path in [&directory.run, &directory.state] {
        if let Err(message) = disk::remove_tree(path) {
            tracing::warn!("{message}");
        }
    }
}

impl Task {
    /// Makes volumes, then the sandbox.
    pub async fn create_sandbox(self) {
        let fact = match self.first_volumes().await {
            Err(message) => Fact::VolumesFailed(message),
            Ok(()) => match sandbox::create(&self.context, &self.pod).await {
                Ok(addresses) => Fact::SandboxReady(addresses),
                Err(message) => Fact::SandboxFailed(message),
            },
        };
        tell(&self.sender, fact).await;
    }

    /// Brings projected volumes up to date. What is missing meanwhile stays as it was.
    pub async fn refresh_volumes(self) {
        if let Err(message) = self.prepare_volumes().await {
            tracing::debug!(pod = %self.pod.metadata.name, "volumes not refreshed: {message}");
        }
    }

    /// Looks whether the pod keeps more on the disk than it may.
    pub async fn measure_storage(self) {
        let _permit = self.context.measurements.acquire().await;
        let (pod, directory) = (self.pod.clone(), self.directory.clone());
        let look = tokio::task::spawn_blocking(move || storage::exceeded(&pod, &directory));
        if let Ok(Some(message)) = look.await {
            tell(&self.sender, Fact::Evicted(message)).await;
        }
    }

    /// Removes the sandbox, and tries until nothing of it is left; then, where no container will run
    /// again, what the pod had in its volumes.
    pub async fn remove_sandbox(self, is_over: bool) {
        let mut wait_ms = RETRY_MS;
        while let Err(message) = sandbox::remove(&self.context, &self.pod).await {
            tracing::warn!(pod = %self.pod.metadata.name, "sandbox not removed yet: {message}");
            pause_for(&mut wait_ms).await;
        }
        if is_over {
            volumes::unmount_all(&self.directory);
            if let Err(message) = disk::remove_tree(&self.directory.volume("")) {
                tracing::warn!(pod = %self.pod.metadata.name, "{message}");
            }
        }
        tell(&self.sender, Fact::SandboxRemoved).await;
    }

    /// Starts a container.
    pub async fn start(self, container: String, id: String, restarts: u32) {
        let fact = match self.try_start(&container, &id, restarts).await {
            Ok(started_at) => Fact::Started { container, id, started_at },
            Err(failure) => Fact::NotStarted { container, id, failure },
        };
        tell(&self.sender, fact).await;
    }

    /// Runs the postStart hook.
    pub async fn post_start(self, container: String, id: String) {
        let Some(spec) = self.pod.container(&container) else { return };
        let Some(hook) = &spec.lifecycle.post_start else { return };
        let limit = Duration::from_secs(POST_START_LIMIT_S);
        let result = probe::run_hook(hook, &self.target(spec), limit).await;
        if let Err(message) = &result {
            tracing::info!(pod = %self.pod.metadata.name, "PostStart hook failed: {message}");
        }
        tell(&self.sender, Fact::PostStarted { container, id, result }).await;
    }

    /// Runs the preStop hook, then asks the container to end.
    pub async fn stop(self, container: String, restarts: u32, grace_s: i64) {
        let mut hook_failed = false;
        let spec = self.pod.container(&container);
        if let Some((spec, hook)) =
            spec.and_then(|spec| Some((spec, spec.lifecycle.pre_stop.as_ref()?)))
            && grace_s > 0
        {
            let target = self.target(spec);
            let grace = Duration::from_secs(grace_s as u64);
            if let Err(message) = probe::run_hook(hook, &target, grace).await {
                tracing::info!(pod = %self.pod.metadata.name, "PreStop hook failed: {message}");
                hook_failed = true;
            }
        }
        let usage = self.directory.layers(&container, restarts).join(images::USE_FILE);
        let usage = disk::read_json::<images::Use>(&usage);
        let signal = usage.map_or(libc::SIGTERM, |usage| images::stop_signal(&usage.stop_signal));
        self.signal(&container, signal).await;
        tell(&self.sender, Fact::StopAsked { container, hook_failed }).await;
    }

    /// Ends a container at once.
    pub async fn kill(self, container: String) {
        self.signal(&container, libc::SIGKILL).await;
    }

    /// Sends a signal. A container that has ended needs none.
    async fn signal(&self, container: &str, signal: i32) {
        let request = Request::Signal { container: container.to_owned(), signal };
        if let Err(message) = pause_client::ask(&self.directory.socket(), &request).await {
            tracing::debug!(pod = %self.pod.metadata.name, "signal {signal} not sent: {message}");
        }
    }

    /// Runs a probe.
    pub async fn probe(self, container: String, kind: ProbeKind) {
        let Some(spec) = self.pod.container(&container) else { return };
        let Some(probe) = spec.probe(kind) else { return };
        let result = {
            let _permit = self.context.probes.acquire().await;
            let timeout = Duration::from_secs(probe.timeout_s().into());
            probe::run(&probe.handler(), &self.target(spec), timeout).await
        };
        tell(&self.sender, Fact::Probed { container, kind, result }).await;
    }

    /// Tells the API that the pod is gone, then forgets it.
    pub async fn finish(self) {
        let metadata = &self.pod.metadata;
        let path = ResourcePath::new("v1", "pods")
            .namespace(metadata.namespace.as_str())
            .name(metadata.name.as_str());
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(metadata.uid.clone()),
                resource_version: None,
            }),
            ..DeleteOptions::default()
        };
        let mut wait_ms = RETRY_MS;
        while let Err(error) = self.context.client.delete(&path, &options).await {
            // A conflict means that a namesake with another uid is there already.
            if error.is_not_found() || error.is_conflict() {
                break;
            }
            tracing::debug!(pod = %metadata.name, "not deleted from the API yet: {error}");
            pause_for(&mut wait_ms).await;
        }
        self.context.tokens.forget(&metadata.uid);
        volumes::unmount_all(&self.directory);
        let mut wait_ms = RETRY_MS;
        while let Err(message) = disk::remove_tree(&self.directory.run)
            .and_then(|()| disk::remove_tree(&self.directory.state))
        {
            tracing::warn!(pod = %metadata.name, "{message}");
            pause_for(&mut wait_ms).await;
        }
        let _ = self.sender.send(Message::Finished).await;
    }

    fn target<'a>(&'a self, container: &'a Container) -> Target<'a> {
        Target { container, directory: &self.directory, address: self.addresses.first().copied() }
    }

    /// What a pod's volumes show may be a moment behind the pod: its namespace's ConfigMap with the
    /// cluster's authority above all, which a controller makes.
    async fn first_volumes(&self) -> Result<(), String> {
        for _ in 1..VOLUME_ATTEMPTS {
            if self.prepare_volumes().await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(VOLUME_WAIT_MS)).await;
        }
        self.prepare_volumes().await
    }

    async fn prepare_volumes(&self) -> Result<(), String> {
        disk::make_private(&self.directory.state)?;
        disk::make_private(&self.directory.run)?;
        let (config_maps, secrets) = volumes::references(&self.pod);
        let found = self.fetch(&config_maps, &secrets).await;
        let mut sources = found.map_err(|error| error.message)?;
        sources.claims = claims::resolve(&self.context.client, &self.pod).await?;
        sources.tokens = self.tokens().await?;
        volumes::prepare(&self.pod, &self.directory, &sources)
    }

    async fn try_start(
        &self,
        name: &str,
        id: &str,
        restarts: u32,
    ) -> Result<Timestamp, StartFailure> {
        let container = self
            .pod
            .container(name)
            .ok_or_else(|| StartFailure::Config(format!("container {name} is not in the pod")))?;
        let image = self.image_unless_ending(name).await?;
        let ready =
            Fact::ImageReady { container: name.into(), id: id.into(), image: image.id.clone() };
        tell(&self.sender, ready).await;
        let sources = self.sources(container).await.map_err(StartFailure::Config)?;
        self.forget_older(name, restarts);
        let (uid, limits) = (&self.pod.metadata.uid, Limits::of(&container.resources));
        let cgroups = self.context.cgroups.create_container(uid, name, restarts, &limits);
        let available = self.context.capabilities;
        let options = &self.context.options;
        let seccomp_directory = &options.seccomp_directory;
        let (pod, image) = (&self.pod, &image);
        let hostname = pod.hostname(&options.node_name, &options.cluster_domain);
        let start = Start {
            pod,
            hostname,
            container,
            id,
            restarts,
            image,
            cgroups,
            available,
            seccomp_directory,
        };
        let spec = launch::prepare(&start, &self.directory, &self.context.images, &sources)?;
        let started_at = now();
        let request = Request::Start(Box::new(spec));
        match pause_client::ask(&self.directory.socket(), &request).await {
            Ok(Response::Started { .. }) => Ok(started_at),
            Ok(other) => Err(StartFailure::Run(format!("strange answer: {other:?}"))),
            Err(message) => Err(StartFailure::Run(message)),
        }
    }

    /// The container's image. A pod that is deleted meanwhile does not wait for it; the pull goes
    /// on, and the next pod finds the image.
    async fn image_unless_ending(&self, container: &str) -> Result<Chosen, StartFailure> {
        let (task, name) = (self.clone(), container.to_owned());
        let image = tokio::spawn(async move {
            match task.pod.container(&name) {
                Some(container) => task.image(container).await.map_err(StartFailure::Image),
                None => Err(StartFailure::Config(format!("container {name} is not in the pod"))),
            }
        });
        let mut ending = self.ending.clone();
        tokio::select! {
            image = image => {
                image.unwrap_or_else(|error| Err(StartFailure::Config(error.to_string())))
            }
            Ok(_) = ending.wait_for(|ending| *ending) => Err(StartFailure::Withdrawn),
        }
    }

    /// What the container's environment comes from. While the API server is away a container that
    /// ran before starts again with what it had: its restart waits for nobody.
    async fn sources(&self, container: &Container) -> Result<Sources, String> {
        let (config_maps, secrets) = environment::references(container);
        let fetched = async {
            let mut sources = self.fetch(&config_maps, &secrets).await?;
            sources.services = self.services().await?;
            Ok::<Sources, FetchError>(sources)
        };
        let file = self.directory.sources(&container.name);
        match fetched.await {
            Ok(sources) => {
                disk::write_json(&file, &sources)?;
                Ok(sources)
            }
            Err(error) if error.is_away => match disk::read_json::<Sources>(&file) {
                Some(sources) => Ok(Sources { pod_addresses: self.addresses.clone(), ..sources }),
                None => Err(error.message),
            },
            Err(error) => Err(error.message),
        }
    }

    /// Of earlier starts only the last one's log is kept, for `kubectl logs --previous`.
    fn forget_older(&self, name: &str, restarts: u32) {
        let Some(last) = restarts.checked_sub(1) else { return };
        let _ = disk::remove_tree(&self.directory.layers(name, last));
        let Some(older) = last.checked_sub(1) else { return };
        let log = self.directory.log(name, older);
        let rotated = log.with_extension("log.1");
        for path in [log, rotated, self.directory.exit(name, older)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// What environment and volumes refer to, with the pod's own values.
    async fn fetch(
        &self,
        config_maps: &BTreeSet<String>,
        secrets: &BTreeSet<String>,
    ) -> Result<Sources, FetchError> {
        let mut sources = Sources {
            pod_addresses: self.addresses.clone(),
            host_addresses: self.context.node_addresses().to_vec(),
            allocatable: node::allocatable(&self.context.options.state_directory),
            ..Sources::default()
        };
        for name in config_maps {
            sources.config_maps.insert(name.clone(), self.data("configmaps", name).await?);
        }
        for name in secrets {
            sources.secrets.insert(name.clone(), self.data("secrets", name).await?);
        }
        Ok(sources)
    }

    /// The data of a ConfigMap or Secret of the pod's namespace.
    ///
    /// # Errors
    /// The server's, or that it is no base64.
    pub async fn data(&self, plural: &'static str, name: &str) -> Result<Data, FetchError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Object {
            #[serde(default, deserialize_with = "model::meta::null_as_default")]
            data: BTreeMap<String, String>,
            #[serde(default, deserialize_with = "model::meta::null_as_default")]
            binary_data: BTreeMap<String, String>,
        }
        let namespace = self.pod.metadata.namespace.as_str();
        let path = ResourcePath::new("v1", plural).namespace(namespace).name(name);
        let object: Option<Object> = self.context.client.get_optional(&path).await?;
        let Some(object) = object else { return Ok(None) };
        let decode = |text: String| {
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| FetchError {
                message: format!("{plural} {name:?} holds no base64: {error}"),
                is_away: false,
            })
        };
        let mut data = BTreeMap::new();
        for (key, value) in object.data {
            let value = if plural == "secrets" { decode(value)? } else { value.into_bytes() };
            data.insert(key, value);
        }
        for (key, value) in object.binary_data {
            data.insert(key, decode(value)?);
        }
        Ok(Some(data))
    }

    /// Services whose addresses become environment variables.
    async fn services(&self) -> Result<Vec<Service>, FetchError> {
        let namespace = self.pod.metadata.namespace.as_str();
        let mut services = Vec::new();
        if self.pod.spec.enable_service_links.unwrap_or(true) {
            let path = ResourcePath::new("v1", "services").namespace(namespace);
            let options = ListOptions::default();
            services = self.context.client.list::<Service>(&path, &options).await?.items;
        }
        if !services.iter().any(|service| {
            service.metadata.name == "kubernetes" && service.metadata.namespace == "default"
        }) {
            let path = ResourcePath::new("v1", "services").namespace("default").name("kubernetes");
            services.extend(self.context.client.get_optional::<Service>(&path).await?);
        }
        Ok(services)
    }
}

/// Why something was not fetched.
pub struct FetchError {
    /// For people.
    pub message: String,
    /// Whether the API server did not answer at all.
    is_away: bool,
}

impl From<ClientError> for FetchError {
    fn from(error: ClientError) -> Self {
        Self { is_away: error.is_transport(), message: error.to_string() }
    }
}

async fn pause_for(wait_ms: &mut u64) {
    tokio::time::sleep(Duration::from_millis(*wait_ms)).await;
    *wait_ms = (*wait_ms * 2).min(RETRY_LIMIT_MS);
}
