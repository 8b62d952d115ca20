//! What a pod should do next: a pure state machine. Facts and the time go in; actions, the status
//! and the next deadline come out. The executor carries the actions out and reports what came of
//! them as facts. Nothing here names a clock, a file or a socket.

mod drive;
mod facts;
mod probes;
mod record;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use model::Timestamp;

use crate::pod::{Container, Pod, ProbeKind};
pub use probes::{Judgement, Probes};
pub use record::{
    ConditionRecord, ContainerRecord, ContainerState, Ended, Hook, Outcome, Record, SandboxState,
    Stop,
};

/// The first back-off of a container that ended, seconds; doubled each time (kubelet's).
pub const BACKOFF_FIRST_S: u32 = 10;
/// The longest back-off, seconds (kubelet's).
pub const BACKOFF_LIMIT_S: u32 = 300;
/// A container that ran this long since its last back-off starts from the first again, seconds.
pub const BACKOFF_FORGOTTEN_S: u64 = 600;
/// Wait before a sandbox is tried again, seconds; doubled each time up to the limit below.
pub const SANDBOX_RETRY_S: u64 = 1;
/// Longest wait before a sandbox is tried again, seconds.
pub const SANDBOX_RETRY_LIMIT_S: u64 = 60;
/// Wait before a container whose references are missing is tried again, seconds.
pub const CONFIG_RETRY_S: u64 = 5;
/// Grace that a container has where its pod's is used up by others or by its hook, seconds (the
/// kubelet's).
const LAST_GRACE_S: i64 = 2;
/// Grace of a pod that is evicted, seconds (the kubelet's).
pub const EVICTED_GRACE_S: i64 = 1;
/// What is said of a pod that was active for longer than it may (the kubelet's words).
const OVERDUE_REASON: &str = "DeadlineExceeded";
const OVERDUE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";
/// Grace of a pod whose object is gone from the API, seconds.
pub const REMOVED_GRACE_S: u64 = 1;

/// Something to carry out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the network namespace, add the network, start the pause process.
    /// Answered by [`Fact::SandboxReady`] or [`Fact::SandboxFailed`].
    CreateSandbox,
    /// Remove all of it; answered by [`Fact::SandboxRemoved`].
    RemoveSandbox,
    /// Start a container; answered by [`Fact::Started`] or [`Fact::NotStarted`].
    Start {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
        /// How often it was started before: names its log and its writable layer.
        restarts: u32,
    },
    /// Run the container's postStart hook; answered by [`Fact::PostStarted`].
    PostStart {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
    },
    /// Run the container's preStop hook for at most `grace_s`, then send SIGTERM.
    /// Answered by [`Fact::StopAsked`].
    Stop {
        /// The container.
        container: String,
        /// Seconds until [`Action::Kill`] will follow.
        grace_s: i64,
    },
    /// Send SIGKILL.
    Kill {
        /// The container.
        container: String,
    },
    /// Run one probe; answered by [`Fact::Probed`].
    Probe {
        /// The container.
        container: String,
        /// Which of its probes.
        kind: ProbeKind,
    },
    /// Tell the API that the pod is gone, and forget it.
    Finish,
    /// Record an event.
    Emit(Note),
}

/// An event about the pod or one of its containers, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is a warning.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The container, if it is about one.
    pub container: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// The pod's object changed.
    Updated(Box<Pod>),
    /// The pod's object is gone from the API.
    Removed,
    /// The sandbox is there.
    SandboxReady(Vec<IpAddr>),
    /// The sandbox could not be made; what was made is removed again.
    SandboxFailed(String),
    /// The pod keeps more on the disk than it may; the text says what.
    Evicted(String),
    /// The pod's volumes could not be made, so that the sandbox was not tried.
    VolumesFailed(String),
    /// The pause process died, and with it all containers.
    SandboxLost,
    /// Nothing is left of the sandbox.
    SandboxRemoved,
    /// A container runs.
    Started {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
        /// Since when.
        started_at: Timestamp,
    },
    /// A container did not come to run.
    NotStarted {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
        /// Why.
        failure: StartFailure,
    },
    /// A container's postStart hook ended; the text is the failure.
    PostStarted {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
        /// Whether it succeeded.
        result: Result<(), String>,
    },
    /// A container was sent SIGTERM, after its preStop hook.
    StopAsked {
        /// The container.
        container: String,
        /// Whether the hook failed.
        hook_failed: bool,
    },
    /// The image of a container that is being started is there.
    ImageReady {
        /// The container.
        container: String,
        /// Its identity.
        id: String,
        /// As the status has the image.
        image: String,
    },
    /// A container ended.
    Ended {
        /// The container.
        container: String,
        /// How.
        ended: Ended,
    },
    /// A probe's result; the text is the failure.
    Probed {
        /// The container.
        container: String,
        /// Which probe.
        kind: ProbeKind,
        /// Whether it succeeded.
        result: Result<(), String>,
    },
}

/// Why a container did not come to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The image is not there.
    Image(ImageFailure),
    /// Something that the container refers to is missing or not allowed.
    Config(String),
    /// What it is made from on this node is missing or wrong.
    Create(String),
    /// The command could not be executed.
    Run(String),
    /// The pod goes: nobody waits for the image any more.
    Withdrawn,
}

/// Why an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFailure {
    /// It could not be had from its registry.
    Pull(String),
    /// The pod forbids to ask a registry.
    Never(String),
    /// Its name is none.
    Name(String),
}

impl ImageFailure {
    /// One CamelCase word, as the status has it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pull(_) => "ErrImagePull",
            Self::Never(_) => "ErrImageNeverPull",
            Self::Name(_) => "InvalidImageName",
        }
    }

    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Self::Pull(message) | Self::Never(message) | Self::Name(message) => message,
        }
    }
}

/// One pod on this node.
pub struct Machine {
    /// The object as last seen.
    pub pod: Pod,
    /// The memory, to be kept on disk whenever it changed.
    pub record: Record,
    probes: BTreeMap<String, Probes>,
    removal_asked: bool,
    finish_asked: bool,
}

impl Machine {
    /// A pod, with what is remembered of it. What a killed runtime left half done is undone.
    pub fn new(pod: Pod, mut record: Record, now: Timestamp) -> Self {
        record.start_time.get_or_insert(now);
        if record.sandbox.state == SandboxState::Creating {
            record.sandbox.state = SandboxState::Removing;
        }
        for container in record.containers.values_mut() {
            // Whether the signal was sent is not known: a second SIGTERM does no harm.
            if let Some(stop) = &mut container.stop {
                stop.asked = false;
            }
            if let Some(hook) = &mut container.hook {
                *hook = Hook::Due;
            }
        }
        let mut machine = Self {
            pod,
            record,
            probes: BTreeMap::new(),
            removal_asked: false,
            finish_asked: false,
        };
        machine.add_missing_records();
        let running: Vec<(String, Timestamp)> = machine
            .record
            .containers
            .iter()
            .filter_map(|(name, record)| match record.state {
                ContainerState::Running { started_at, .. } if record.hook.is_none() => {
                    Some((name.clone(), started_at))
                }
                _ => None,
            })
            .collect();
        for (name, started_at) in running {
            machine.begin_probes(&name, started_at);
        }
        machine
    }

    /// Takes a fact and gives the events that it is worth.
    pub fn learn(&mut self, fact: Fact, now: Timestamp) -> Vec<Note> {
        let mut notes = Vec::new();
        match fact {
            Fact::Updated(pod) => {
                self.pod = *pod;
                self.add_missing_records();
            }
            Fact::Removed => self.record.removed = true,
            Fact::SandboxReady(addresses) => {
                self.record.sandbox.state = SandboxState::Ready;
                self.record.sandbox.addresses = addresses;
                self.record.sandbox.failures = 0;
            }
            Fact::SandboxFailed(message) => {
                let message = format!("Failed to create pod sandbox: {message}");
                notes.push(self.sandbox_failed("FailedCreatePodSandBox", message, now));
            }
            Fact::VolumesFailed(message) => {
                notes.push(self.sandbox_failed("FailedMount", message, now));
            }
            Fact::Evicted(message) => notes.extend(self.evicted(message)),
            Fact::SandboxLost => notes.extend(self.sandbox_lost(now)),
            Fact::SandboxRemoved => {
                self.record.sandbox.state = SandboxState::Absent;
                self.removal_asked = false;
            }
            Fact::Started { container, id, started_at } => {
                notes.extend(self.started(&container, &id, started_at));
            }
            Fact::NotStarted { container, id, failure } => {
                notes.extend(self.not_started(&container, &id, &failure, now));
            }
            Fact::ImageReady { container, id, image } => {
                if let Some(record) = self.record.containers.get_mut(&container)
                    && record.active_id() == Some(id.as_str())
                {
                    record.image_id = image;
                }
            }
            Fact::PostStarted { container, id, result } => {
                notes.extend(self.post_started(&container, &id, &result, now));
            }
            Fact::StopAsked { container, hook_failed } => {
                notes.extend(self.stop_asked(&container, hook_failed, now));
            }
            Fact::Ended { container, ended } => notes.extend(self.ended(&container, ended)),
            Fact::Probed { container, kind, result } => {
                notes.extend(self.probed(&container, kind, result, now));
            }
        }
        notes
    }

    /// A start that was decided on never happened.
    pub fn forget_start(&mut self, container: &str) {
        if let Some(record) = self.record.containers.get_mut(container)
            && matches!(record.state, ContainerState::Starting { .. })
        {
            record.state = ContainerState::default();
        }
    }

    /// When [`Machine::next`] has something to do though no fact has come.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let waits_for_sandbox = self.record.sandbox.state == SandboxState::Absent;
        let sandbox = self.record.sandbox.retry_at.filter(|_| waits_for_sandbox);
        let containers = self.record.containers.iter().flat_map(|(name, record)| {
            let start = record.start_at.filter(|_| !record.is_active());
            let kill = record.stop.filter(|stop| !stop.killed).map(|stop| stop.kill_at);
            let probes = self.probes.get(name).filter(|_| record.is_running());
            [start, kill, probes.and_then(|probes| probes.next_due(record.started))]
        });
        let containers = containers.flatten().filter(|_| !waits_for_sandbox);
        let removal = self.record.sandbox.remove_at;
        let active = self.active_until().filter(|_| !self.is_ending());
        let all = sandbox.into_iter().chain(containers).chain(removal).chain(active);
        all.min().filter(|_| !self.finish_asked)
    }

    /// When the pod has been active for as long as it may (`activeDeadlineSeconds`).
    fn active_until(&self) -> Option<Timestamp> {
        let seconds = u64::try_from(self.pod.spec.active_deadline_seconds?).ok()?;
        Some(self.record.start_time?.after(Duration::from_secs(seconds)))
    }

    /// Whether the pod only goes on to its end: it is deleted, or all has run that shall run.
    pub fn is_ending(&self) -> bool {
        self.record.removed
            || self.record.finished.is_some()
            || self.pod.metadata.deletion_timestamp.is_some()
    }

    fn add_missing_records(&mut self) {
        for container in self.pod.all_containers() {
            self.record.containers.entry(container.name.clone()).or_default();
        }
    }

    fn begin_probes(&mut self, name: &str, started_at: Timestamp) {
        if let Some(container) = self.pod.container(name) {
            self.probes.insert(name.to_owned(), Probes::new(container, started_at));
        }
    }
}

/// Whether a time that may not be set has come.
fn is_due(at: Option<Timestamp>, now: Timestamp) -> bool {
    at.is_none_or(|at| at <= now)
}

/// After which exits a container runs again.
fn restarts(container: &Container, pod: &Pod, code: i32) -> bool {
    if pod.spec.ephemeral_containers.iter().any(|added| added.name == container.name) {
        return false;
    }
    let is_init = pod.spec.init_containers.iter().any(|init| init.name == container.name);
    if is_init && container.is_sidecar() {
        return true;
    }
    match pod.spec.restart_policy.as_str() {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => !is_init || code != 0,
    }
}

impl Note {
    /// About one container.
    pub fn container(warning: bool, reason: &'static str, message: String, name: &str) -> Self {
        Self { warning, reason, message, container: Some(name.to_owned()) }
    }

    fn pod(warning: bool, reason: &'static str, message: String) -> Self {
        Self { warning, reason, message, container: None }
    }
}
