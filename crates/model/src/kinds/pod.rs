//! core/v1 Pod, narrowed to what the network and the controllers read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::meta::{ObjectMeta, null_as_default};
use crate::{Protocol, Timestamp};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Name, labels, annotations, owners.
    pub metadata: ObjectMeta,
    /// What the pod shall be.
    pub spec: PodSpec,
    /// What its node says of it.
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node of the pod; empty until it is scheduled.
    #[serde(deserialize_with = "null_as_default")]
    pub node_name: String,
    /// Whether the pod uses the node's own network namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub host_network: bool,
    /// The pod's DNS label below its subdomain.
    #[serde(deserialize_with = "null_as_default")]
    pub hostname: String,
    /// The headless Service that gives the pod a name.
    #[serde(deserialize_with = "null_as_default")]
    pub subdomain: String,
    /// Labels that the node must have.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector: BTreeMap<String, String>,
    /// The containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
    /// The init containers; those with `restartPolicy: Always` are sidecars.
    #[serde(deserialize_with = "null_as_default")]
    pub init_containers: Vec<Container>,
}

/// A container, narrowed to its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// The container's name in its pod.
    pub name: String,
    /// Named ports that Services refer to.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ContainerPort>,
    /// `Always` on an init container makes it a sidecar; empty otherwise.
    #[serde(deserialize_with = "null_as_default")]
    pub restart_policy: String,
}

/// One declared port of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// The port's name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The port in the pod.
    pub container_port: u16,
    /// The transport protocol.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: Protocol,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
    /// The pod's first address; empty before the sandbox exists.
    #[serde(rename = "podIP", deserialize_with = "null_as_default")]
    pub pod_ip: String,
    /// All addresses, at most one a family.
    #[serde(rename = "podIPs", deserialize_with = "null_as_default")]
    pub pod_ips: Vec<PodIp>,
    /// Conditions; `Ready` decides endpoints.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<PodCondition>,
    /// The containers' states.
    #[serde(deserialize_with = "null_as_default")]
    pub container_statuses: Vec<ContainerStatus>,
    /// When the node first saw the pod.
    pub start_time: Option<Timestamp>,
}

/// One entry of `status.podIPs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// One entry of `status.conditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCondition {
    /// `PodScheduled`, `Initialized`, `ContainersReady`, `Ready`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When the status changed last.
    pub last_transition_time: Option<Timestamp>,
}

/// One entry of `status.containerStatuses`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// The container's name.
    pub name: String,
    /// Whether its readiness probe succeeds.
    #[serde(deserialize_with = "null_as_default")]
    pub ready: bool,
    /// How often it was started again.
    #[serde(deserialize_with = "null_as_default")]
    pub restart_count: i32,
    /// What it does now.
    #[serde(deserialize_with = "null_as_default")]
    pub state: ContainerState,
}

/// Exactly one of the three is set; none means waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Not started.
    pub waiting: Option<StateWaiting>,
    /// Started.
    pub running: Option<StateRunning>,
    /// Ended.
    pub terminated: Option<StateTerminated>,
}

/// Why a container waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateWaiting {
    /// One CamelCase word, such as `CrashLoopBackOff`.
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// For people.
    #[serde(deserialize_with = "null_as_default")]
    pub message: String,
}

/// Since when a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateRunning {
    /// When it started.
    pub started_at: Option<Timestamp>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateTerminated {
    /// The exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, …
    #[serde(deserialize_with = "null_as_default")]
    pub reason: String,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Pod {
    /// The pod's addresses, from `podIPs`, or from `podIP` where only that is set.
    pub fn ips(&self) -> Vec<IpAddr> {
        let listed: Vec<IpAddr> =
            self.status.pod_ips.iter().filter_map(|entry| entry.ip.parse().ok()).collect();
        if listed.is_empty() { self.status.pod_ip.parse().into_iter().collect() } else { listed }
    }

    /// Whether the condition `Ready` is `True`.
    pub fn is_ready(&self) -> bool {
        self.status
            .conditions
            .iter()
            .any(|condition| condition.kind == "Ready" && condition.status == "True")
    }

    /// Whether all containers have ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether deletion has begun.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}
