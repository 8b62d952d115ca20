//! Claims and volumes: claims get volumes that are there or are made for them, and what nobody
//! uses any more may go. As upstream's binder and its two protection controllers, with a
//! provisioner of directories.
//!
//! Source: kubernetes.io, "Persistent Volumes".

mod claim;
mod volume;

pub(crate) use claim::free_volume;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, list_or_null};

/// The provisioner of this cluster: directories of the node on which the first pod runs.
pub const PROVISIONER: &str = "flatnet.io/host-path";
/// The node that the scheduler chose for the first pod of a claim.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

const COMPONENT: &str = "persistentvolume-controller";
/// Keeps a claim while a pod uses it.
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim has it.
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Says who made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Says that nobody chose the other side by hand.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Says that a claim once had its volume: a volume that is missing then is lost.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Asks a provisioner that is not ours.
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The class `provisioner` of volumes that people make.
pub(crate) const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::PersistentVolumeClaim => {
                keys.insert(object.key());
                let is_ours = |volume: &&Arc<Object>| {
                    let view = volume.volume().and_then(|view| view.spec.claim_ref.as_ref());
                    view.is_some_and(|claim| claim.key() == object.meta.key())
                };
                keys.extend(snapshot.all(Kind::PersistentVolume).filter(is_ours).map(|v| v.key()));
            }
            Kind::PersistentVolume => {
                keys.insert(object.key());
                match object.volume().and_then(|view| view.spec.claim_ref.as_ref()) {
                    Some(claim) => {
                        keys.insert(ObjectKey::new(Kind::PersistentVolumeClaim, claim.key()));
                    }
                    None => unbound(snapshot, keys),
                }
            }
            Kind::StorageClass => unbound(snapshot, keys),
            Kind::Pod if change.new.is_none() => {
                let claims = object.pod().into_iter().flat_map(|pod| pod.claims());
                keys.extend(claims.map(|name| {
                    let name = crate::object::beside(&object.meta, name);
                    ObjectKey::new(Kind::PersistentVolumeClaim, name)
                }));
            }
            _ => {}
        }
    }
}

fn unbound(snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let waits = |claim: &&Arc<Object>| claim.claim().is_some_and(|view| !view.is_bound());
    keys.extend(snapshot.all(Kind::PersistentVolumeClaim).filter(waits).map(|claim| claim.key()));
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome { in_order: true, ..Outcome::nothing() };
    let Some(object) = snapshot.get(key.kind, &key.name) else { return outcome };
    if let Some(view) = object.claim() {
        claim::reconcile(object, view, snapshot, input, &mut outcome);
    } else if let Some(view) = object.volume() {
        volume::reconcile(object, view, snapshot, &mut outcome);
    }
    outcome
}

/// Whether the provisioner of this cluster made a volume.
fn is_provisioned(volume: &Object) -> bool {
    volume.meta.annotations.get(PROVISIONED_BY).is_some_and(|by| by == PROVISIONER)
}

fn remove_finalizer(object: &Object, name: &str) -> Step {
    let rest: Vec<_> = object.meta.finalizers.iter().filter(|found| *found != name).collect();
    let body = json!({"metadata": {"finalizers": list_or_null(&rest)}});
    Step::quiet(object.patch_unchanged(body))
}
