//! What the runtime remembers of a pod: kept on disk, so that a new runtime goes on where the old
//! one was killed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Timestamp;
use serde::{Deserialize, Serialize};

/// The memory of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When this node saw the pod first.
    pub start_time: Option<Timestamp>,
    /// The network namespace and pause process.
    pub sandbox: Sandbox,
    /// Every container that the spec names.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// Whether all init containers have done their part in this sandbox.
    pub initialized: bool,
    /// The conditions reported last, with the time of their last change.
    pub conditions: BTreeMap<String, ConditionRecord>,
    /// Set once no container will run again.
    pub finished: Option<Outcome>,
    /// Set once the node has evicted the pod: why.
    #[serde(default)]
    pub evicted: Option<String>,
    /// Set once the pod has been active for longer than it may.
    #[serde(default)]
    pub overdue: bool,
    /// When its containers were first told to stop: the grace is for all of them together.
    #[serde(default)]
    pub ending_since: Option<Timestamp>,
    /// Whether the object is gone from the API, and the pod shall go as well.
    pub removed: bool,
}

/// How a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every container ended with 0.
    Succeeded,
    /// One did not.
    Failed,
}

/// The sandbox of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What it is doing.
    pub state: SandboxState,
    /// The pod's addresses, kept after the sandbox is gone: the status goes on to show them.
    pub addresses: Vec<IpAddr>,
    /// Failures in a row to make it.
    pub failures: u32,
    /// When to try again.
    pub retry_at: Option<Timestamp>,
    /// When it may go, set once nothing runs in it any more.
    #[serde(default)]
    pub remove_at: Option<Timestamp>,
}

/// What a sandbox is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// There is none.
    #[default]
    Absent,
    /// It is being made. Found by a new runtime: half made, to be removed.
    Creating,
    /// It holds the pod's network.
    Ready,
    /// It is being removed.
    Removing,
}

/// The memory of one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// What it is doing.
    pub state: ContainerState,
    /// How often it was started again; also the number of its log.
    pub restarts: u32,
    /// How it ended before the present state.
    pub last: Option<Ended>,
    /// Seconds of the next back-off; 0 means that the next start waits for nothing.
    pub backoff_s: u32,
    /// When the back-off was last used.
    pub backoff_used_at: Option<Timestamp>,
    /// The next start waits until then.
    pub start_at: Option<Timestamp>,
    /// Whether its startup probe has succeeded, or it has none.
    pub started: bool,
    /// Whether its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Set from its start until its postStart hook has succeeded.
    #[serde(default)]
    pub hook: Option<Hook>,
    /// What its image is known as; empty before its first start.
    #[serde(default)]
    pub image_id: String,
    /// Set while it is being stopped.
    pub stop: Option<Stop>,
}

/// A container's postStart hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// It shall run.
    Due,
    /// It runs, or has failed. A new runtime runs it again: nobody else knows what came of it.
    Asked,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running, and why.
    Waiting {
        /// One CamelCase word; empty for the usual one of the pod's state.
        reason: String,
        /// For people.
        message: String,
    },
    /// Being started under this identity.
    Starting {
        /// The identity.
        id: String,
    },
    /// Running.
    Running {
        /// The identity.
        id: String,
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Ended(Ended),
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting { reason: String::new(), message: String::new() }
    }
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The identity.
    pub id: String,
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// `Completed`, `Error`, `StartError`, `OOMKilled`.
    pub reason: String,
    /// For people; mostly empty.
    pub message: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// A stop under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_s: i64,
    /// When SIGKILL follows.
    pub kill_at: Timestamp,
    /// Whether the hook and SIGTERM are under way.
    pub asked: bool,
    /// Whether a preStop hook comes before SIGTERM. Then `kill_at` allows for the moment that a
    /// container has even when the hook took all of the grace, until SIGTERM is known to be sent.
    #[serde(default)]
    pub has_hook: bool,
    /// Whether SIGKILL was sent.
    pub killed: bool,
}

/// A condition as reported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConditionRecord {
    /// Whether it was `True`.
    pub holds: bool,
    /// Since when.
    pub since: Timestamp,
}

impl ContainerRecord {
    /// Whether it has run to its end.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, ContainerState::Ended(_))
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Whether it runs or is about to.
    pub fn is_active(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. } | ContainerState::Starting { .. })
    }

    /// Whether the start of this identity is under way.
    pub fn is_starting(&self, wanted: &str) -> bool {
        matches!(&self.state, ContainerState::Starting { id } if id == wanted)
    }

    /// The identity that runs or is about to.
    pub fn active_id(&self) -> Option<&str> {
        match &self.state {
            ContainerState::Running { id, .. } | ContainerState::Starting { id } => Some(id),
            _ => None,
        }
    }

    /// How it ended, if that is its state.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.state {
            ContainerState::Ended(ended) => Some(ended),
            _ => None,
        }
    }
}
