//! Garbage collection: objects go when the last of their owners is gone; with `Foreground` they
//! go before their owner, with `Orphan` they stay.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use model::meta::OwnerReference;

use crate::kind::ObjectKey;
use crate::object::Object;
use crate::snapshot::{Change, Snapshot, owner_key};
use crate::write::{Outcome, Propagation, Step, Write, list_or_null};

/// The owner waits until its dependents are gone.
const FOREGROUND: &str = "foregroundDeletion";
/// The dependents lose the owner before it goes.
const ORPHAN: &str = "orphan";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    if change.new.is_some() {
        let has_part = !object.meta.owner_references.is_empty() || deletes_itself(object);
        if has_part {
            keys.insert(object.key());
        }
    } else {
        keys.extend(snapshot.dependents(&object.meta.uid).map(|dependent| dependent.key()));
    }
    // An owner that waits for its dependents counts them again; one whose deletion has begun
    // passes it on.
    for object in change.both() {
        for reference in &object.meta.owner_references {
            if let Ok(Some(owner)) = snapshot.owner(reference, &object.meta.namespace)
                && deletes_itself(owner)
            {
                keys.insert(owner.key());
            }
        }
    }
    if change.new.as_ref().is_some_and(|new| new.is_terminating()) {
        keys.extend(snapshot.dependents(&object.meta.uid).map(|dependent| dependent.key()));
    }
}

/// Whether the object's own deletion waits for us.
fn deletes_itself(object: &Object) -> bool {
    object.is_terminating() && (object.has_finalizer(FOREGROUND) || object.has_finalizer(ORPHAN))
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(key.kind, &key.name) else { return outcome };
    if object.is_terminating() {
        if object.has_finalizer(ORPHAN) {
            orphan_dependents(object, snapshot, &mut outcome);
        } else if object.has_finalizer(FOREGROUND) {
            let blocked = dependents(object, snapshot).any(|dependent| blocks(dependent, object));
            if !blocked {
                outcome.push(remove_finalizer(object, FOREGROUND));
            }
        }
        return outcome;
    }
    if !object.meta.owner_references.is_empty() {
        judge(object, snapshot, &mut outcome);
    }
    outcome
}

/// The dependents that the owner may have: owners of a namespaced kind have none elsewhere.
fn dependents<'a>(
    owner: &'a Object,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = &'a Arc<Object>> {
    let namespace = &owner.meta.namespace;
    snapshot
        .dependents(&owner.meta.uid)
        .filter(move |found| namespace.is_empty() || found.meta.namespace == *namespace)
}

fn blocks(dependent: &Object, owner: &Object) -> bool {
    let references = &dependent.meta.owner_references;
    references
        .iter()
        .any(|reference| reference.uid == owner.meta.uid && reference.block_owner_deletion)
}

fn orphan_dependents(object: &Object, snapshot: &Snapshot, outcome: &mut Outcome) {
    let mut released = 0;
    for dependent in dependents(object, snapshot) {
        released += 1;
        outcome.push(without_owners(dependent, |reference| reference.uid == object.meta.uid));
    }
    if released == 0 {
        outcome.push(remove_finalizer(object, ORPHAN));
    }
}

fn remove_finalizer(object: &Object, name: &str) -> Step {
    let rest: Vec<_> = object.meta.finalizers.iter().filter(|found| *found != name).collect();
    Step::quiet(object.patch_unchanged(json!({"metadata": {"finalizers": list_or_null(&rest)}})))
}

fn without_owners(object: &Object, is_lost: impl Fn(&OwnerReference) -> bool) -> Step {
    let rest: Vec<_> =
        object.meta.owner_references.iter().filter(|reference| !is_lost(reference)).collect();
    Step::quiet(
        object.patch_unchanged(json!({"metadata": {"ownerReferences": list_or_null(&rest)}})),
    )
}

/// Decides whether an object that has owners stays.
fn judge(object: &Arc<Object>, snapshot: &Snapshot, outcome: &mut Outcome) {
    let namespace = &object.meta.namespace;
    let mut missing: Vec<(ObjectKey, String)> = Vec::new();
    let mut waiting = Vec::new();
    let mut has_owner = false;
    for reference in &object.meta.owner_references {
        match snapshot.owner(reference, namespace) {
            Ok(None) => {
                let key = owner_key(reference, namespace);
                missing.extend(key.map(|key| (key, reference.uid.clone())));
            }
            Ok(Some(owner)) if owner.is_terminating() && owner.has_finalizer(FOREGROUND) => {
                waiting.push(reference.uid.clone());
            }
            // An owner of a kind that is not watched may be there: nothing is deleted on
            // partial knowledge (invariant 3).
            Ok(Some(_)) | Err(_) => has_owner = true,
        }
    }
    if missing.is_empty() && waiting.is_empty() {
        return;
    }
    if has_owner {
        if missing.is_empty() {
            let is_lost = |found: &OwnerReference| waiting.contains(&found.uid);
            outcome.push(without_owners(object, is_lost));
        }
        // References to owners that are gone stay: harmless, and upstream's check of them by a
        // fresh read would be one for each change.
        return;
    }
    let has_dependents = dependents(object, snapshot).next().is_some();
    let propagation = if object.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if !waiting.is_empty() && has_dependents {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    outcome.push(Step::quiet(Write::Delete {
        object: object.key(),
        uid: object.meta.uid.clone(),
        propagation: Some(propagation),
        grace_period_seconds: None,
        absent: missing,
    }));
}
