//! Pods, as scheduling, replica counting and endpoints read them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use model::meta::null_as_default;
use model::{Family, Protocol, Timestamp};

use crate::affinity::{PodAffinity, SpreadConstraint};
use crate::amounts::{self, Amounts};
use crate::object::{Condition, Taint, condition};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `spec`.
    pub spec: PodSpec,
    /// `status`.
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node; empty until the pod is scheduled.
    #[serde(deserialize_with = "null_as_default")]
    pub node_name: String,
    /// The pod's own DNS label.
    #[serde(deserialize_with = "null_as_default")]
    pub hostname: String,
    /// The headless Service that gives the pod a name.
    #[serde(deserialize_with = "null_as_default")]
    pub subdomain: String,
    /// Who places the pod; `default-scheduler` is us.
    #[serde(deserialize_with = "null_as_default")]
    pub scheduler_name: String,
    /// Whoever has a higher one is placed first; 0 when absent.
    #[serde(deserialize_with = "null_as_default")]
    pub priority: i32,
    /// `Never`, or else pods of a lower priority may go for this one.
    #[serde(deserialize_with = "null_as_default")]
    pub preemption_policy: String,
    /// While there is one, the pod is not placed.
    #[serde(deserialize_with = "null_as_default")]
    pub scheduling_gates: Vec<SchedulingGate>,
    /// Labels that the node must have.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector: BTreeMap<String, String>,
    /// Further wishes about the node.
    #[serde(deserialize_with = "null_as_default")]
    pub affinity: Affinity,
    /// How pods like this one spread over zones, nodes and the like.
    #[serde(deserialize_with = "null_as_default")]
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    /// Taints that do not matter to the pod.
    #[serde(deserialize_with = "null_as_default")]
    pub tolerations: Vec<Toleration>,
    /// The containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
    /// The init containers; those with `restartPolicy: Always` are sidecars.
    #[serde(deserialize_with = "null_as_default")]
    pub init_containers: Vec<Container>,
    /// The volumes, of which claims are read.
    #[serde(deserialize_with = "null_as_default")]
    pub volumes: Vec<PodVolume>,
    /// What the pod costs beside its containers.
    #[serde(deserialize_with = "amounts::read")]
    pub overhead: Amounts,
}

/// One entry of `spec.volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodVolume {
    /// The claim that the volume is.
    pub persistent_volume_claim: Option<ClaimName>,
}

/// `persistentVolumeClaim` of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimName {
    /// The claim, in the pod's namespace.
    pub claim_name: String,
}

/// One entry of `spec.schedulingGates`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SchedulingGate {
    /// The gate's name.
    pub name: String,
}

/// `spec.affinity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// About nodes.
    #[serde(deserialize_with = "null_as_default")]
    pub node_affinity: NodeAffinity,
    /// About pods that it wants to be near to.
    pub pod_affinity: Option<Box<PodAffinity>>,
    /// About pods that it wants to be away from.
    pub pod_anti_affinity: Option<Box<PodAffinity>>,
}

/// `spec.affinity.nodeAffinity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// The pod is not placed anywhere else.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// Nodes that it would rather have.
    #[serde(
        rename = "preferredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "null_as_default"
    )]
    pub preferred: Vec<PreferredNodes>,
}

/// One wish of `preferredDuringSchedulingIgnoredDuringExecution`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PreferredNodes {
    /// What it is worth, 1 to 100.
    pub weight: i64,
    /// The nodes.
    pub preference: NodeSelectorTerm,
}

/// A core/v1 NodeSelector: any of its terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// The terms.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// One term: all of its requirements. A term without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// About labels.
    #[serde(deserialize_with = "null_as_default")]
    pub match_expressions: Vec<NodeRequirement>,
    /// About fields; only `metadata.name` exists.
    #[serde(deserialize_with = "null_as_default")]
    pub match_fields: Vec<NodeRequirement>,
}

/// One requirement of a term.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeRequirement {
    /// Label key or field path.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// What is compared with.
    #[serde(deserialize_with = "null_as_default")]
    pub values: Vec<String>,
}

/// One toleration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// The taint's key; empty with `Exists` means every key.
    #[serde(deserialize_with = "null_as_default")]
    pub key: String,
    /// `Equal` (also when empty) or `Exists`.
    #[serde(deserialize_with = "null_as_default")]
    pub operator: String,
    /// The taint's value for `Equal`.
    #[serde(deserialize_with = "null_as_default")]
    pub value: String,
    /// The taint's effect; empty means every effect.
    #[serde(deserialize_with = "null_as_default")]
    pub effect: String,
    /// How long a `NoExecute` taint is tolerated; for ever when absent.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// Whether this toleration covers the taint.
    pub fn covers(&self, taint: &Taint) -> bool {
        let value = match self.operator.as_str() {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            _ => false,
        };
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && value
    }
}

/// A container, narrowed to what others must know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Declared ports.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ContainerPort>,
    /// What it asks of its node.
    #[serde(deserialize_with = "null_as_default")]
    pub resources: Resources,
    /// `Always` makes an init container a sidecar.
    #[serde(deserialize_with = "null_as_default")]
    pub restart_policy: String,
}

/// `resources` of a container. The server has made requests of limits where only these were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// What its node must have left.
    #[serde(deserialize_with = "amounts::read")]
    pub requests: Amounts,
}

/// One declared port of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the node; 0 when there is none.
    #[serde(deserialize_with = "null_as_default")]
    pub host_port: u16,
    /// The node's address that the port is taken on; empty for all of them.
    #[serde(rename = "hostIP", deserialize_with = "null_as_default")]
    pub host_ip: String,
    /// The transport protocol.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: Protocol,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
    /// The first address.
    #[serde(rename = "podIP", deserialize_with = "null_as_default")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs", deserialize_with = "null_as_default")]
    pub pod_ips: Vec<PodIp>,
    /// Conditions.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// The containers' states, of which restarts and ends are read.
    #[serde(deserialize_with = "null_as_default")]
    pub container_statuses: Vec<ContainerStatus>,
    /// The same of the init containers.
    #[serde(deserialize_with = "null_as_default")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// When its node took the pod up.
    pub start_time: Option<Timestamp>,
    /// The node that others are leaving for this pod.
    #[serde(deserialize_with = "null_as_default")]
    pub nominated_node_name: String,
}

/// One entry of `status.podIPs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// One entry of `status.containerStatuses`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// The container.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// How often the container was started again.
    pub restart_count: i32,
    /// What it does.
    #[serde(deserialize_with = "null_as_default")]
    pub state: ContainerState,
}

/// `state` of a container, of which its end is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// How it ended.
    pub terminated: Option<Terminated>,
}

/// `state.terminated` of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Pod {
    /// The names of the claims that the pod uses.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        let claims =
            self.spec.volumes.iter().filter_map(|one| one.persistent_volume_claim.as_ref());
        claims.map(|claim| claim.claim_name.as_str())
    }

    /// The pod's address of a family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.status
            .pod_ips
            .iter()
            .map(|entry| entry.ip.as_str())
            .chain([self.status.pod_ip.as_str()])
            .filter_map(|text| text.parse().ok())
            .find(|address| Family::of(address) == family)
    }

    /// The condition `Ready`.
    pub fn ready_condition(&self) -> Option<&Condition> {
        condition(&self.status.conditions, "Ready")
    }

    /// Whether the condition `Ready` is `True`.
    pub fn is_ready(&self) -> bool {
        self.ready_condition().is_some_and(|condition| condition.status == "True")
    }

    /// How long until the pod counts as available: zero when it does, `None` when it is not
    /// ready.
    pub fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        let ready = self.ready_condition().filter(|condition| condition.status == "True")?;
        let needed = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
        if needed.is_zero() {
            return Some(Duration::ZERO);
        }
        let since = ready.last_transition_time?;
        Some(needed.saturating_sub(now.since(since)))
    }

    /// Whether all containers have ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// What the pod asks of its node: its containers and sidecars together, or an init container
    /// with the sidecars before it, whichever is more (KEP-753), and its overhead (KEP-688).
    pub fn requests(&self) -> Amounts {
        let mut lasting = Amounts::new();
        for container in &self.spec.containers {
            amounts::add(&mut lasting, &container.resources.requests);
        }
        let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
        for container in &self.spec.init_containers {
            let requests = &container.resources.requests;
            if container.restart_policy == "Always" {
                amounts::add(&mut lasting, requests);
                amounts::add(&mut sidecars, requests);
                amounts::raise(&mut most, &sidecars);
            } else {
                let mut beside = sidecars.clone();
                amounts::add(&mut beside, requests);
                amounts::raise(&mut most, &beside);
            }
        }
        amounts::raise(&mut lasting, &most);
        amounts::add(&mut lasting, &self.spec.overhead);
        lasting
    }

    /// The containers that run as long as the pod: the ordinary ones, then the sidecars.
    pub fn lasting_containers(&self) -> impl Iterator<Item = &Container> {
        let sidecars = self
            .spec
            .init_containers
            .iter()
            .filter(|container| container.restart_policy == "Always");
        self.spec.containers.iter().chain(sidecars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_asks_for_what_it_needs_at_its_hungriest_moment() {
        let asks = |milli: u32, sidecar: bool| {
            let policy = if sidecar { "Always" } else { "" };
            serde_json::json!({"resources": {"requests": {"cpu": format!("{milli}m")}},
                "restartPolicy": policy})
        };
        let total = |init: &[(u32, bool)], main: u32, overhead: u32| {
            let init: Vec<_> = init.iter().map(|(milli, sidecar)| asks(*milli, *sidecar)).collect();
            let spec = serde_json::json!({"initContainers": init, "containers": [asks(main, false)],
                "overhead": {"cpu": format!("{overhead}m")}});
            let pod: Pod =
                serde_json::from_value(serde_json::json!({ "spec": spec })).expect("a pod");
            pod.requests()["cpu"].thousandths()
        };
        for (what, init, main, overhead, wanted) in [
            ("containers alone", &[][..], 100, 0, 100),
            ("an init container that needs more", &[(300, false)], 100, 0, 300),
            ("one that needs less", &[(50, false)], 100, 0, 100),
            ("a sidecar runs beside the containers", &[(50, true)], 100, 0, 150),
            ("and beside init containers after it", &[(50, true), (300, false)], 100, 0, 350),
            ("not before it", &[(300, false), (50, true)], 100, 0, 300),
            ("and what the pod itself costs", &[(300, false)], 100, 7, 307),
        ] {
            assert_eq!(total(init, main, overhead), wanted, "{what}");
        }
    }

    #[test]
    fn tolerations_match_as_the_api_says() {
        let taint = Taint {
            key: "k".into(),
            value: "v".into(),
            effect: "NoSchedule".into(),
            time_added: None,
        };
        let covers = |json: serde_json::Value| {
            serde_json::from_value::<Toleration>(json).expect("a toleration").covers(&taint)
        };
        assert!(covers(serde_json::json!({"operator": "Exists"})));
        assert!(covers(serde_json::json!({"key": "k", "value": "v"})));
        assert!(covers(serde_json::json!({"key": "k", "operator": "Exists"})));
        assert!(!covers(serde_json::json!({"key": "k", "value": "w"})));
        assert!(!covers(
            serde_json::json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})
        ));
        assert!(!covers(serde_json::json!({"key": "other", "operator": "Exists"})));
    }
}
