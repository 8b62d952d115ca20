//! DaemonSets, StatefulSets and their revisions, as the controllers read them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use model::kinds::IntOrString;
use model::meta::null_as_default;
use model::selector::LabelSelector;

use crate::object::Condition;

/// A DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    /// `spec`.
    pub spec: DaemonSetSpec,
    /// `status`.
    pub status: DaemonSetStatus,
}

/// `spec` of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into pods.
    pub template: Value,
    /// How pods of old templates are replaced.
    #[serde(deserialize_with = "null_as_default")]
    pub update_strategy: UpdateStrategy,
    /// Seconds that a ready pod must stay ready before it counts as available.
    pub min_ready_seconds: i32,
    /// Old revisions that are kept; 10 when absent.
    pub revision_history_limit: Option<i32>,
}

/// `spec.updateStrategy` of a DaemonSet or StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// `RollingUpdate` (also when empty) or `OnDelete`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limits of a rolling update.
    #[serde(deserialize_with = "null_as_default")]
    pub rolling_update: RollingUpdate,
}

/// `spec.updateStrategy.rollingUpdate`: the limits that either kind knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// Nodes of a DaemonSet that may be without an available pod, pods of a StatefulSet that may be
    /// unavailable; 1 when absent.
    pub max_unavailable: Option<IntOrString>,
    /// DaemonSets: nodes that may have a second pod meanwhile; none when absent.
    pub max_surge: Option<IntOrString>,
    /// StatefulSets: pods with a lower ordinal keep the old template; 0 when absent.
    pub partition: Option<i32>,
}

/// `status` of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetStatus {
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// Nodes that shall have a pod.
    pub desired_number_scheduled: i32,
    /// Of those, nodes that have one.
    pub current_number_scheduled: i32,
    /// Nodes that have a pod and shall not.
    pub number_misscheduled: i32,
    /// Of the wanted nodes, those whose pod is ready.
    pub number_ready: i32,
    /// Of the wanted nodes, those whose pod is of the present template.
    pub updated_number_scheduled: i32,
    /// Of the wanted nodes, those whose pod has been ready for long enough.
    pub number_available: i32,
    /// The other wanted nodes.
    pub number_unavailable: i32,
    /// How often the hash of a template met a foreign revision of the same name.
    pub collision_count: Option<i32>,
}

/// A StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    /// `spec`.
    pub spec: StatefulSetSpec,
    /// `status`.
    pub status: StatefulSetStatus,
}

/// `spec` of a StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    /// Wanted pods; 1 when absent.
    pub replicas: Option<i32>,
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into pods.
    pub template: Value,
    /// The headless Service that names the pods.
    #[serde(deserialize_with = "null_as_default")]
    pub service_name: String,
    /// `OrderedReady` (also when empty) or `Parallel`.
    #[serde(deserialize_with = "null_as_default")]
    pub pod_management_policy: String,
    /// How pods of old templates are replaced.
    #[serde(deserialize_with = "null_as_default")]
    pub update_strategy: UpdateStrategy,
    /// Seconds that a ready pod must stay ready before it counts as available.
    pub min_ready_seconds: i32,
    /// Old revisions that are kept; 10 when absent.
    pub revision_history_limit: Option<i32>,
    /// Where the ordinals begin.
    #[serde(deserialize_with = "null_as_default")]
    pub ordinals: Ordinals,
    /// The claims that each pod has, whole: they are copied.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_claim_templates: Vec<Value>,
    /// Whether claims go with the set, or with their pod.
    #[serde(deserialize_with = "null_as_default")]
    pub persistent_volume_claim_retention_policy: ClaimRetention,
}

/// `spec.ordinals` of a StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    /// The first ordinal.
    pub start: i32,
}

/// `spec.persistentVolumeClaimRetentionPolicy`: `Retain` (also when empty) or `Delete` each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimRetention {
    /// When the set is deleted.
    #[serde(deserialize_with = "null_as_default")]
    pub when_deleted: String,
    /// When the pod is one too many.
    #[serde(deserialize_with = "null_as_default")]
    pub when_scaled: String,
}

/// `status` of a StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStatus {
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// Pods that there are.
    pub replicas: i32,
    /// Of those, ready ones.
    pub ready_replicas: i32,
    /// Of those, ready for long enough.
    pub available_replicas: i32,
    /// Pods of the revision that is replaced.
    pub current_replicas: i32,
    /// Pods of the present template's revision.
    pub updated_replicas: i32,
    /// The revision that is replaced; the same as the next once that is done.
    #[serde(deserialize_with = "null_as_default")]
    pub current_revision: String,
    /// The revision of the present template.
    #[serde(deserialize_with = "null_as_default")]
    pub update_revision: String,
    /// How often the hash of a template met a foreign revision of the same name.
    pub collision_count: Option<i32>,
    /// Written by nobody here, but kept.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A ControllerRevision.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ControllerRevision {
    /// Its number: the newest is the highest.
    pub revision: i64,
    /// The strategic merge patch that brings the template back.
    pub data: Value,
}

impl StatefulSetSpec {
    /// The wanted number of pods.
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1).max(0)
    }
}
