//! The claims of a pod, as far as they say where it may run.

use std::sync::Arc;

use serde_json::json;

use crate::kind::Kind;
use crate::object::{Object, beside};
use crate::snapshot::Snapshot;
use crate::volume::{Claim, Volume};
use crate::volumes::{NO_PROVISIONER, SELECTED_NODE, free_volume};
use crate::write::Step;

use super::filter::{Candidate, selects};
use super::refusal::Refusal;

/// The claims of one pod.
#[derive(Default)]
pub(super) struct Claims<'a> {
    /// Why no node can have the pod, in the scheduler's words.
    pub problem: Option<String>,
    /// The volumes that are there.
    volumes: Vec<&'a Volume>,
    /// Claims that get their volume where the pod goes.
    waiting: Vec<(&'a Arc<Object>, &'a Claim)>,
}

impl<'a> Claims<'a> {
    pub fn of(pod: &Object, snapshot: &'a Snapshot) -> Self {
        let mut claims = Self::default();
        for name in pod.pod().into_iter().flat_map(|view| view.claims()) {
            if let Err(problem) = claims.add(pod, name, snapshot) {
                claims.problem = Some(problem);
                break;
            }
        }
        claims
    }

    fn add(&mut self, pod: &Object, name: &str, snapshot: &'a Snapshot) -> Result<(), String> {
        let found = snapshot.get(Kind::PersistentVolumeClaim, &beside(&pod.meta, name));
        let Some((object, claim)) = found.and_then(|found| Some((found, found.claim()?))) else {
            return Err(format!("persistentvolumeclaim {name:?} not found"));
        };
        if object.is_terminating() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let volume = &claim.spec.volume_name;
        if claim.status.phase == "Lost" {
            let why = "bound to non-existent persistentvolume";
            return Err(format!("persistentvolumeclaim {name:?} {why} {volume:?}"));
        }
        if claim.is_bound() {
            let found = snapshot.find(Kind::PersistentVolume, "", volume);
            let Some(volume) = found.and_then(|found| found.volume()) else {
                return Err(format!("persistentvolume {volume:?} not found"));
            };
            self.volumes.push(volume);
            return Ok(());
        }
        let class = snapshot.find(Kind::StorageClass, "", claim.class());
        if !class.and_then(|class| class.storage_class()).is_some_and(|class| class.waits()) {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        self.waiting.push((object, claim));
        Ok(())
    }

    /// Whether every claim has its volume.
    pub fn is_ready(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the claims let the pod go to a node.
    pub fn check(&self, node: &Candidate<'_>, snapshot: &Snapshot) -> Result<(), Refusal> {
        if !self.volumes.iter().all(|volume| can_have(volume, node.object())) {
            return Err(Refusal::VolumeElsewhere);
        }
        let can_get = |(object, claim): &(&Arc<Object>, &Claim)| {
            if let Some(selected) = object.meta.annotations.get(SELECTED_NODE) {
                return selected == node.name();
            }
            let class = snapshot.find(Kind::StorageClass, "", claim.class());
            let class = class.and_then(|class| class.storage_class());
            class.is_some_and(|class| class.provisioner != NO_PROVISIONER)
                || free_volume(object, claim, Some(node.object()), snapshot).is_some()
        };
        if self.waiting.iter().all(can_get) { Ok(()) } else { Err(Refusal::NoVolume) }
    }

    /// Tells the claims that wait where the pod goes.
    pub fn select(&self, node: &str) -> Vec<Step> {
        let untold = self
            .waiting
            .iter()
            .filter(|(object, _)| !object.meta.annotations.contains_key(SELECTED_NODE));
        untold
            .map(|(object, _)| {
                let body = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                Step::quiet(object.patch_unchanged(body))
            })
            .collect()
    }
}

/// Whether a node can have a volume.
pub(crate) fn can_have(volume: &Volume, node: &Object) -> bool {
    let required = volume.spec.node_affinity.required.as_ref();
    required.is_none_or(|selector| selects(selector, node))
}
