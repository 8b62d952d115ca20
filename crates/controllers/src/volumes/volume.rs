//! A volume: which claim has it, and what becomes of it without one.

use std::sync::Arc;

use serde_json::json;

use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::Snapshot;
use crate::volume::{ClaimReference, Volume};
use crate::write::{Outcome, Step, Write};

use super::{COMPONENT, VOLUME_PROTECTION, is_provisioned, remove_finalizer};

pub(super) fn reconcile(
    object: &Object,
    volume: &Volume,
    snapshot: &Snapshot,
    outcome: &mut Outcome,
) {
    let reference = volume.spec.claim_ref.as_ref();
    let claim = reference.and_then(|claim| holder(claim, snapshot));
    if object.is_terminating() {
        return finish(object, volume, claim, outcome);
    }
    match (reference, claim) {
        (None, _) => set_phase(object, volume, "Available", outcome),
        (Some(kept), _) if kept.uid.is_empty() => set_phase(object, volume, "Available", outcome),
        (Some(_), Some(claim)) => {
            let taken = claim.claim().map_or("", |view| view.spec.volume_name.as_str());
            if taken == object.meta.name {
                set_phase(object, volume, "Bound", outcome);
            } else if !taken.is_empty() {
                give_back(object, outcome);
            }
        }
        (Some(gone), None) => release(object, volume, gone, outcome),
    }
}

/// The claim of a reference: its namesakes are others.
fn holder<'a>(reference: &ClaimReference, snapshot: &'a Snapshot) -> Option<&'a Arc<Object>> {
    let found = snapshot.get(Kind::PersistentVolumeClaim, &reference.key())?;
    (found.meta.uid == reference.uid).then_some(found)
}

/// The claim that must be gone, in a fresh read, before anything is removed.
fn absent(reference: &ClaimReference) -> Vec<(ObjectKey, String)> {
    let key = ObjectKey::new(Kind::PersistentVolumeClaim, reference.key());
    vec![(key, reference.uid.clone())]
}

/// Lets a volume go that nobody uses. What a claim had is removed with it, where its policy says
/// so; a volume that its claim never had is not touched.
fn finish(object: &Object, volume: &Volume, claim: Option<&Arc<Object>>, outcome: &mut Outcome) {
    let has_it = |claim: &Arc<Object>| {
        claim.claim().is_some_and(|view| view.spec.volume_name == object.meta.name)
    };
    if !object.has_finalizer(VOLUME_PROTECTION) || claim.is_some_and(has_it) {
        return;
    }
    if let Some(reference) = &volume.spec.claim_ref
        && is_provisioned(object)
        && volume.spec.persistent_volume_reclaim_policy == "Delete"
    {
        // Of a claim that is there and has another volume, this one was a surplus.
        let absent = if claim.is_some() { Vec::new() } else { absent(reference) };
        let name = object.meta.name.clone();
        let report = object.report(COMPONENT, "VolumeFailedDelete", "{error}").warning();
        outcome.push(Step::quiet(Write::RemoveVolume { volume: name, absent }).on_failure(report));
    }
    outcome.push(remove_finalizer(object, VOLUME_PROTECTION));
}

/// The claim has another volume.
fn give_back(object: &Object, outcome: &mut Outcome) {
    outcome.push(match is_provisioned(object) {
        true => Step::quiet(object.delete()),
        false => Step::quiet(object.patch_unchanged(json!({"spec": {"claimRef": null}}))),
    });
}

/// The claim is gone.
fn release(object: &Object, volume: &Volume, claim: &ClaimReference, outcome: &mut Outcome) {
    if volume.status.phase == "Failed" {
        return;
    }
    set_phase(object, volume, "Released", outcome);
    match volume.spec.persistent_volume_reclaim_policy.as_str() {
        "Delete" if is_provisioned(object) => {
            outcome.push(Step::quiet(Write::Delete {
                object: object.key(),
                uid: object.meta.uid.clone(),
                propagation: None,
                grace_period_seconds: None,
                absent: absent(claim),
            }));
        }
        "Delete" => {
            let why = "nobody here deletes what this volume is made of: delete it by hand, then \
                       the PersistentVolume";
            fail(object, "VolumeFailedDelete", why, outcome);
        }
        "Recycle" => fail(object, "VolumeFailedRecycle", "Volume has no recycler", outcome),
        _ => {}
    }
}

fn fail(object: &Object, reason: &'static str, why: &str, outcome: &mut Outcome) {
    let status = json!({"phase": "Failed", "message": why});
    let report = object.report(COMPONENT, reason, why).warning();
    outcome.push(Step::quiet(object.patch_status(status)).on_success(report));
}

fn set_phase(object: &Object, volume: &Volume, phase: &str, outcome: &mut Outcome) {
    if volume.status.phase != phase {
        outcome.push(Step::quiet(object.patch_status(json!({"phase": phase, "message": null}))));
    }
}
