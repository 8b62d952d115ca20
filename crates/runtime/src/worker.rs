//! One task a pod: it carries facts to the pod's machine and the machine's actions out.

use std::sync::Arc;
use std::time::Duration;

use client::{ClientError, PatchKind, ResourcePath};
use model::{NamespacedName, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use crate::adopt;
use crate::context::{ContainerView, Context, PodView, now};
use crate::disk::{self, PodDirectory};
use crate::launch;
use crate::machine::status::{patch, status};
use crate::machine::{Action, ContainerState, Fact, Machine, Record, SandboxState};
use crate::pod::Pod;
use crate::storage;
use crate::tasks::{self, Task};
use crate::volumes;

/// Facts that may wait for a pod's machine.
const QUEUE: usize = 64;
/// Wait before a write that failed is tried again, milliseconds; doubled up to the limit.
const RETRY_MS: u64 = 100;
/// Longest such wait, milliseconds.
const RETRY_LIMIT_MS: u64 = 5_000;

/// Time between two looks whether projected volumes are up to date, seconds (about the kubelet's).
const REFRESH_S: u64 = 60;

/// What wakes a pod's task.
#[derive(Debug)]
pub enum Message {
    /// Something happened.
    Fact(Fact),
    /// A status was written, or not.
    StatusWritten(Result<(), String>),
    /// Nothing of the pod is left, here and in the API.
    Finished,
}

/// A pod's file on disk.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    /// The object as last seen.
    pub pod: Pod,
    /// The machine's memory.
    pub record: Record,
    /// The status as last written to the API.
    pub reported: Value,
}

/// One pod.
pub struct Worker {
    context: Arc<Context>,
    machine: Machine,
    directory: PodDirectory,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    watch: Option<AbortHandle>,
    kept: Vec<u8>,
    reported: Value,
    reporting: Option<Value>,
    retry_ms: u64,
    retry_at: Option<Timestamp>,
    refresh_at: Timestamp,
    measure_at: Timestamp,
    measurement: Option<JoinHandle<()>>,
    ending: watch::Sender<bool>,
}

/// Starts a new pod's task, or one that a killed runtime had.
pub fn start(context: Arc<Context>, pod: Pod, kept: Option<Kept>) -> mpsc::Sender<Message> {
    let (sender, messages) = mpsc::channel(QUEUE);
    let directory = context.pod_directory(&pod.metadata.uid);
    let (record, reported) =
        kept.map_or_else(|| (Record::default(), Value::Null), |kept| (kept.record, kept.reported));
    let worker = Worker {
        machine: Machine::new(pod, record, now()),
        context,
        directory,
        sender: sender.clone(),
        messages,
        watch: None,
        kept: Vec::new(),
        reported,
        reporting: None,
        retry_ms: RETRY_MS,
        retry_at: None,
        refresh_at: now().after(Duration::from_secs(REFRESH_S)),
        measure_at: now(),
        measurement: None,
        ending: watch::Sender::new(false),
    };
    tokio::spawn(worker.run());
    sender
}

impl Worker {
    async fn run(mut self) {
        if self.machine.record.sandbox.state == SandboxState::Ready {
            self.adopt().await;
        }
        loop {
            for action in self.machine.next(now()) {
                // What is asked for is on disk before it is done: a new runtime then knows of it.
                self.keep();
                self.carry_out(action);
            }
            self.ending.send_if_modified(|known| {
                let before = std::mem::replace(known, self.machine.is_ending());
                before != *known
            });
            self.refresh_volumes();
            self.measure_storage();
            let status = status(&mut self.machine, self.context.node_addresses(), now());
            self.show();
            self.report(status);
            self.keep();
            let deadline = self.deadline();
            let message = tokio::select! {
                message = self.messages.recv() => message,
                () = until(deadline) => continue,
            };
            match message {
                Some(Message::Fact(fact)) => self.learn(fact),
                Some(Message::StatusWritten(result)) => self.status_written(result),
                Some(Message::Finished) | None => break,
            }
        }
        self.context.pods().retain(|_, view| view.uid != self.machine.pod.metadata.uid);
    }

    fn deadline(&self) -> Option<Timestamp> {
        let machine = self.machine.next_deadline();
        let refresh = volumes::are_projected(&self.machine.pod).then_some(self.refresh_at);
        let is_measured = storage::is_limited(&self.machine.pod) && !self.machine.is_ending();
        let measure = is_measured.then_some(self.measure_at);
        machine.into_iter().chain(self.retry_at).chain(refresh).chain(measure).min()
    }

    /// ConfigMaps and Secrets change under running containers.
    fn refresh_volumes(&mut self) {
        let ready = self.machine.record.sandbox.state == SandboxState::Ready;
        if self.refresh_at > now() || !volumes::are_projected(&self.machine.pod) {
            return;
        }
        self.refresh_at = now().after(Duration::from_secs(REFRESH_S));
        if ready && !self.machine.is_ending() {
            tokio::spawn(self.task().refresh_volumes());
        }
    }

    /// What a pod keeps on the disk has no other limit. One look at a time.
    fn measure_storage(&mut self) {
        if self.measure_at > now() {
            return;
        }
        self.measure_at = now().after(self.context.options.storage_period);
        let is_under_way = self.measurement.as_ref().is_some_and(|look| !look.is_finished());
        let is_measured = storage::is_limited(&self.machine.pod) && !self.machine.is_ending();
        if is_measured && !is_under_way {
            self.measurement = Some(tokio::spawn(self.task().measure_storage()));
        }
    }

    fn task(&self) -> Task {
        Task {
            context: self.context.clone(),
            directory: self.directory.clone(),
            pod: self.machine.pod.clone(),
            addresses: self.machine.record.sandbox.addresses.clone(),
            sender: self.sender.clone(),
            ending: self.ending.subscribe(),
        }
    }

    /// Goes on with containers that run: they have not noticed that the runtime was away.
    async fn adopt(&mut self) {
        match adopt::find(&self.machine, &self.directory).await {
            Some(found) => {
                for fact in found.facts {
                    self.learn(fact);
                }
                for container in found.never_started {
                    self.machine.forget_start(&container);
                }
                self.follow(found.connection);
            }
            None => {
                for fact in adopt::ended(&self.machine, &self.directory) {
                    self.learn(fact);
                }
                self.learn(Fact::SandboxLost);
            }
        }
    }

    fn learn(&mut self, mut fact: Fact) {
        if let Fact::Ended { container, ended } = &mut fact {
            let restarts = self.restarts(container);
            let uid = &self.machine.pod.metadata.uid;
            // A shell that outlives its program reports the end by a code of its own.
            if ended.code != 0 && self.context.cgroups.ran_out_of_memory(uid, container, restarts) {
                ended.reason = "OOMKilled".into();
            }
            self.context.cgroups.remove_container(uid, container, restarts);
            if let Some(spec) = self.machine.pod.container(container)
                && ended.message.is_empty()
            {
                ended.message = launch::last_words(&self.directory, spec, restarts, ended.code);
            }
        }
        if let Fact::Updated(pod) = &fact
            && self.machine.pod.has_other_labels(pod)
        {
            self.refresh_at = now();
        }
        let sandbox_ready = matches!(fact, Fact::SandboxReady(_));
        for note in self.machine.learn(fact, now()) {
            self.context.events.record(&self.machine.pod, note);
        }
        if sandbox_ready {
            let (directory, sender) = (self.directory.clone(), self.sender.clone());
            let task = tokio::spawn(async move {
                match crate::pause_client::watch(&directory.socket()).await {
                    Ok((_, connection)) => tasks::follow(connection, sender).await,
                    Err(_) => tasks::tell(&sender, Fact::SandboxLost).await,
                }
            });
            self.watch = Some(task.abort_handle());
        }
    }

    fn follow(&mut self, connection: crate::pause_client::Connection) {
        let task = tokio::spawn(tasks::follow(connection, self.sender.clone()));
        self.watch = Some(task.abort_handle());
    }

    fn restarts(&self, container: &str) -> u32 {
        self.machine.record.containers.get(container).map_or(0, |record| record.restarts)
    }

    fn carry_out(&mut self, action: Action) {
        let task = self.task();
        match action {
            Action::Emit(note) => self.context.events.record(&self.machine.pod, note),
            Action::RemoveSandbox => {
                let is_over = self.machine.record.finished.is_some();
                // Its end is wanted now and no news.
                if let Some(watch) = self.watch.take() {
                    watch.abort();
                }
                tokio::spawn(task.remove_sandbox(is_over));
            }
            Action::CreateSandbox => drop(tokio::spawn(task.create_sandbox())),
            Action::Start { container, id, restarts } => {
                tokio::spawn(task.start(container, id, restarts));
            }
            Action::PostStart { container, id } => {
                drop(tokio::spawn(task.post_start(container, id)))
            }
            Action::Stop { container, grace_s } => {
                let restarts = self.restarts(&container);
                tokio::spawn(task.stop(container, restarts, grace_s));
            }
            Action::Kill { container } => drop(tokio::spawn(task.kill(container))),
            Action::Probe { container, kind } => drop(tokio::spawn(task.probe(container, kind))),
            Action::Finish => drop(tokio::spawn(task.finish())),
        }
    }

    fn keep(&mut self) {
        let kept = Kept {
            pod: self.machine.pod.clone(),
            record: self.machine.record.clone(),
            reported: self.reported.clone(),
        };
        let Ok(text) = serde_json::to_vec(&kept) else { return };
        if text == self.kept {
            return;
        }
        let written = disk::make_private(&self.directory.state)
            .and_then(|()| disk::write(&self.directory.record(), &text, 0o600));
        match written {
            Ok(()) => self.kept = text,
            Err(error) => tracing::error!(pod = %self.key(), "{error}"),
        }
    }

    fn key(&self) -> NamespacedName {
        let metadata = &self.machine.pod.metadata;
        NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str())
    }

    /// Lets the log and exec server know.
    fn show(&self) {
        let pod = &self.machine.pod;
        let view = |name: &str, record: &crate::machine::ContainerRecord| ContainerView {
            restarts: record.restarts,
            running: record.is_running(),
            running_since: match record.state {
                ContainerState::Running { started_at, .. } => Some(started_at),
                _ => None,
            },
            input_ends: pod.container(name).is_some_and(crate::pod::Container::input_ends),
            waiting: match &record.state {
                ContainerState::Waiting { reason, .. } if reason.is_empty() => {
                    Some("ContainerCreating".to_owned())
                }
                ContainerState::Waiting { reason, .. } => Some(reason.clone()),
                _ => None,
            },
        };
        let containers = self.machine.record.containers.iter();
        let containers = containers.map(|(name, record)| (name.clone(), view(name, record)));
        let uid = self.machine.pod.metadata.uid.clone();
        let host_network = self.machine.pod.spec.host_network;
        let view = PodView { uid, host_network, containers: containers.collect() };
        let mut pods = self.context.pods();
        // A pod on its way out does not hide a namesake that came after.
        let has_successor = pods.get(&self.key()).is_some_and(|known| known.uid != view.uid);
        if !(has_successor && self.machine.is_ending()) {
            pods.insert(self.key(), view);
        }
    }

    /// Writes the status where it changed; one write at a time, always the newest.
    fn report(&mut self, status: Value) {
        let too_early = self.retry_at.is_some_and(|at| at > now());
        if status == self.reported || self.reporting.is_some() || too_early {
            return;
        }
        if self.machine.record.removed {
            return;
        }
        self.retry_at = None;
        self.reporting = Some(status.clone());
        let metadata = &self.machine.pod.metadata;
        let path = ResourcePath::new("v1", "pods")
            .namespace(metadata.namespace.as_str())
            .name(metadata.name.as_str())
            .subresource("status");
        let patch = patch(&self.machine.pod, &status);
        let (context, sender) = (self.context.clone(), self.sender.clone());
        tokio::spawn(async move {
            let written: Result<Value, ClientError> =
                context.client.patch(&path, PatchKind::Strategic, &patch).await;
            let result = match written {
                Ok(_) => Ok(()),
                // Gone, or replaced by a namesake: the watch will tell.
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            let _ = sender.send(Message::StatusWritten(result)).await;
        });
    }

    fn status_written(&mut self, result: Result<(), String>) {
        let Some(status) = self.reporting.take() else { return };
        match result {
            Ok(()) => {
                self.reported = status;
                self.retry_ms = RETRY_MS;
            }
            Err(error) => {
                tracing::debug!(pod = %self.key(), "the status was not written: {error}");
                self.retry_at = Some(now().after(Duration::from_millis(self.retry_ms)));
                self.retry_ms = (self.retry_ms * 2).min(RETRY_LIMIT_MS);
            }
        }
    }
}

async fn until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(now())).await,
        None => std::future::pending().await,
    }
}
