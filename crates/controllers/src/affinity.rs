//! What a pod says about other pods: where it wants to be near to them, away from them, or evenly
//! spread among its own kind.

use std::collections::BTreeMap;

use serde::Deserialize;

use model::meta::null_as_default;
use model::selector::LabelSelector;

/// `spec.affinity.podAffinity` or `podAntiAffinity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodAffinity {
    /// What must hold.
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "null_as_default"
    )]
    pub required: Vec<PodTerm>,
    /// What would be better.
    #[serde(
        rename = "preferredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "null_as_default"
    )]
    pub preferred: Vec<WeightedTerm>,
}

/// One wish of `preferredDuringSchedulingIgnoredDuringExecution`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedTerm {
    /// What it is worth, 1 to 100.
    pub weight: i64,
    /// The pods.
    pub pod_affinity_term: PodTerm,
}

/// core/v1 PodAffinityTerm: some pods, and what being in one place means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTerm {
    /// Selects the pods; none when absent.
    pub label_selector: Option<LabelSelector>,
    /// Their namespaces by name.
    #[serde(deserialize_with = "null_as_default")]
    pub namespaces: Vec<String>,
    /// Their namespaces by labels. With neither it is the pod's own namespace.
    pub namespace_selector: Option<LabelSelector>,
    /// The label of nodes that one place has in common.
    #[serde(deserialize_with = "null_as_default")]
    pub topology_key: String,
    /// Labels that the other pods must have as this one does.
    #[serde(deserialize_with = "null_as_default")]
    pub match_label_keys: Vec<String>,
    /// Labels that the other pods must not have as this one does.
    #[serde(deserialize_with = "null_as_default")]
    pub mismatch_label_keys: Vec<String>,
}

/// One entry of `spec.topologySpreadConstraints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpreadConstraint {
    /// By how many pods two places may differ.
    pub max_skew: i64,
    /// The label of nodes that one place has in common.
    #[serde(deserialize_with = "null_as_default")]
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`.
    #[serde(deserialize_with = "null_as_default")]
    pub when_unsatisfiable: String,
    /// Selects the pods, in the pod's own namespace; none when absent.
    pub label_selector: Option<LabelSelector>,
    /// With fewer places than this, each may have no more than `max_skew` pods; 1 when absent.
    pub min_domains: Option<i64>,
    /// `Ignore`, or else only nodes count that the pod's node affinity and selector choose.
    #[serde(deserialize_with = "null_as_default")]
    pub node_affinity_policy: String,
    /// `Honor`, or else nodes count whatever their taints.
    #[serde(deserialize_with = "null_as_default")]
    pub node_taints_policy: String,
    /// Labels that the other pods must have as this one does.
    #[serde(deserialize_with = "null_as_default")]
    pub match_label_keys: Vec<String>,
}

type Labels = BTreeMap<String, String>;

impl PodTerm {
    /// Whether the term of a pod with labels `own` selects a pod by its labels. Where it may be,
    /// `namespaces` say.
    pub(crate) fn selects(&self, own: &Labels, other: &Labels) -> bool {
        let mut unlike = self.mismatch_label_keys.iter().filter_map(|key| own.get_key_value(key));
        self.label_selector.as_ref().is_some_and(|selector| selector.matches(other))
            && are_alike(&self.match_label_keys, own, other)
            && unlike.all(|(key, value)| other.get(key) != Some(value))
    }
}

impl SpreadConstraint {
    /// Whether the constraint of a pod with labels `own` counts a pod by its labels.
    pub(crate) fn counts(&self, own: &Labels, other: &Labels) -> bool {
        self.label_selector.as_ref().is_some_and(|selector| selector.matches(other))
            && are_alike(&self.match_label_keys, own, other)
    }

    /// Whether the pod rather waits than breaks it.
    pub(crate) fn must_hold(&self) -> bool {
        self.when_unsatisfiable != "ScheduleAnyway"
    }
}

/// Whether labels agree in all of `keys` that `own` has.
fn are_alike(keys: &[String], own: &Labels, other: &Labels) -> bool {
    let mut wanted = keys.iter().filter_map(|key| own.get_key_value(key));
    wanted.all(|(key, value)| other.get(key) == Some(value))
}
