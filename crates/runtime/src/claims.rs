//! PersistentVolumeClaims of pods: which directory of the node each of them is.

use std::collections::BTreeMap;

use client::{Client, ClientError, ResourcePath};
use model::meta::null_as_default;
use serde::{Deserialize, Serialize};

use crate::pod::{HostPath, Pod};

/// The directory of the node that a claim is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimDirectory {
    /// Where it is.
    pub directory: HostPath,
    /// Whether its volume is `local`: the pod's group may own what is in it.
    pub is_local: bool,
}

/// A PersistentVolumeClaim, as far as it says which volume it has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claim {
    metadata: Identity,
    spec: ClaimSpec,
    status: ClaimStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Identity {
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    #[serde(deserialize_with = "null_as_default")]
    volume_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClaimStatus {
    #[serde(deserialize_with = "null_as_default")]
    phase: String,
}

/// A PersistentVolume, as far as it says where it lies.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Volume {
    spec: VolumeSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    #[serde(deserialize_with = "null_as_default")]
    claim_ref: Identity,
    host_path: Option<HostPath>,
    /// A directory that must be there.
    local: Option<HostPath>,
}

/// The directory of each claim of a pod, by the claim's name.
///
/// # Errors
/// The kubelet's words, where a claim has no volume that this node can serve.
pub async fn resolve(
    client: &Client,
    pod: &Pod,
) -> Result<BTreeMap<String, ClaimDirectory>, String> {
    let mut directories = BTreeMap::new();
    for name in names(pod) {
        let directory = find(client, &pod.metadata.namespace, name).await.map_err(|problem| {
            format!("error processing PVC {}/{name}: {problem}", pod.metadata.namespace)
        })?;
        directories.insert(name.to_owned(), directory);
    }
    Ok(directories)
}

fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    let claims = pod.spec.volumes.iter().filter_map(|one| one.persistent_volume_claim.as_ref());
    claims.map(|claim| claim.claim_name.as_str())
}

async fn find(client: &Client, namespace: &str, name: &str) -> Result<ClaimDirectory, String> {
    let text = |error: ClientError| error.to_string();
    let path = ResourcePath::new("v1", "persistentvolumeclaims").namespace(namespace).name(name);
    let claim: Option<Claim> = client.get_optional(&path).await.map_err(text)?;
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let volume_name = &claim.spec.volume_name;
    if claim.status.phase != "Bound" || volume_name.is_empty() {
        return Err("PVC is not bound".into());
    }
    let path = ResourcePath::new("v1", "persistentvolumes").name(volume_name.as_str());
    let volume: Option<Volume> = client.get_optional(&path).await.map_err(text)?;
    let spec = volume.ok_or_else(|| format!("persistentvolume {volume_name:?} not found"))?.spec;
    if spec.claim_ref.uid != claim.metadata.uid {
        return Err(format!("PV {volume_name:?} is bound to another claim"));
    }
    let is_local = spec.host_path.is_none();
    let local = spec.local.map(|local| HostPath { kind: "Directory".into(), ..local });
    let directory = spec.host_path.or(local);
    directory.map(|directory| ClaimDirectory { directory, is_local }).ok_or_else(|| {
        format!(
            "PV {volume_name:?} is of a kind that this node does not serve: use hostPath or local"
        )
    })
}
