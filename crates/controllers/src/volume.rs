//! PersistentVolumes, their claims and classes, as binder and scheduler read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use model::meta::null_as_default;
use model::selector::LabelSelector;
use model::{NamespacedName, Quantity};

use crate::pod::NodeSelector;

/// A PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Volume {
    /// `spec`.
    pub spec: VolumeSpec,
    /// `status`.
    pub status: Phase,
}

/// `spec` of a PersistentVolume, but for where it lies.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// How large it is, by `storage`.
    #[serde(deserialize_with = "null_as_default")]
    pub capacity: BTreeMap<String, Value>,
    /// How nodes may have it.
    #[serde(deserialize_with = "null_as_default")]
    pub access_modes: Vec<String>,
    /// The claim that has it, or for which it is kept.
    pub claim_ref: Option<ClaimReference>,
    /// What becomes of it when its claim is gone: `Retain`, `Delete` or `Recycle`.
    #[serde(deserialize_with = "null_as_default")]
    pub persistent_volume_reclaim_policy: String,
    /// Its class; empty for none.
    #[serde(deserialize_with = "null_as_default")]
    pub storage_class_name: String,
    /// `Filesystem` (also when empty) or `Block`.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_mode: String,
    /// The nodes that can have it.
    #[serde(deserialize_with = "null_as_default")]
    pub node_affinity: VolumeNodeAffinity,
}

/// `spec.nodeAffinity` of a PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct VolumeNodeAffinity {
    /// All nodes where absent.
    pub required: Option<NodeSelector>,
}

/// `spec.claimRef` of a PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimReference {
    /// The claim's namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Its identity; empty where a person keeps the volume for whoever comes under the name.
    #[serde(deserialize_with = "null_as_default")]
    pub uid: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// `spec`.
    pub spec: ClaimSpec,
    /// `status`.
    pub status: Phase,
}

/// `spec` of a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    /// How nodes shall have the volume.
    #[serde(deserialize_with = "null_as_default")]
    pub access_modes: Vec<String>,
    /// How large it must be.
    #[serde(deserialize_with = "null_as_default")]
    pub resources: ClaimResources,
    /// The class; `Some` of nothing asks for a volume without one.
    pub storage_class_name: Option<String>,
    /// The volume; empty until the claim has one.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_name: String,
    /// `Filesystem` (also when empty) or `Block`.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_mode: String,
    /// Labels that the volume must have.
    pub selector: Option<LabelSelector>,
}

/// `spec.resources` of a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClaimResources {
    /// By `storage`.
    #[serde(deserialize_with = "null_as_default")]
    pub requests: BTreeMap<String, Value>,
}

/// `status` of either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// `Pending`, `Available`, `Bound`, `Released`, `Failed` or `Lost`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
}

/// A StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageClass {
    /// Who makes its volumes.
    #[serde(deserialize_with = "null_as_default")]
    pub provisioner: String,
    /// What its volumes get.
    #[serde(deserialize_with = "null_as_default")]
    pub reclaim_policy: String,
    /// `Immediate` (also when empty) or `WaitForFirstConsumer`.
    #[serde(deserialize_with = "null_as_default")]
    pub volume_binding_mode: String,
}

impl Volume {
    /// How large it is.
    pub fn capacity(&self) -> Quantity {
        storage(&self.spec.capacity)
    }

    /// Why the volume is not for the claim, in the binder's words.
    pub(crate) fn mismatch(&self, claim: &Claim) -> Option<&'static str> {
        let (spec, asked) = (&self.spec, &claim.spec);
        let mode = |text: &str| text == "Block";
        let has_mode = |wanted: &String| spec.access_modes.contains(wanted);
        match () {
            () if self.capacity() < claim.asked() => Some("requested PV is too small"),
            () if spec.storage_class_name != claim.class() => {
                Some("storageClassName does not match")
            }
            () if mode(&spec.volume_mode) != mode(&asked.volume_mode) => {
                Some("incompatible volumeMode")
            }
            () if !asked.access_modes.iter().all(has_mode) => Some("incompatible accessMode"),
            () => None,
        }
    }
}

impl Claim {
    /// How large the volume must be.
    pub fn asked(&self) -> Quantity {
        storage(&self.spec.resources.requests)
    }

    /// The name of the class; empty for none.
    pub fn class(&self) -> &str {
        self.spec.storage_class_name.as_deref().unwrap_or_default()
    }

    /// Whether the claim has a volume.
    pub fn is_bound(&self) -> bool {
        !self.spec.volume_name.is_empty() && self.status.phase == "Bound"
    }
}

impl ClaimReference {
    /// The claim's namespace and name.
    pub fn key(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
    }
}

impl StorageClass {
    /// Whether claims wait for a pod that uses them.
    pub fn waits(&self) -> bool {
        self.volume_binding_mode == "WaitForFirstConsumer"
    }
}

fn storage(amounts: &BTreeMap<String, Value>) -> Quantity {
    let parsed = match amounts.get("storage") {
        Some(Value::String(text)) => Quantity::parse(text),
        Some(Value::Number(number)) => Quantity::parse(&number.to_string()),
        _ => None,
    };
    parsed.unwrap_or_default()
}
