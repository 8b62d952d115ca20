//! Which objects a controller object owns: it adopts orphans that its selector matches, and
//! releases its own that no longer match.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use model::selector::LabelSelector;

use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::Snapshot;
use crate::write::{Step, list_or_null};

/// What a controller object owns, and what must be written so that it does.
pub(crate) struct Claim {
    /// The objects that are owned, by name.
    pub owned: Vec<Arc<Object>>,
    /// Adoptions and releases.
    pub steps: Vec<Step>,
}

/// Claims objects of `kind` for `owner`; those that do not fit count as not selected.
pub(crate) fn claim(
    owner: &Object,
    selector: &LabelSelector,
    kind: Kind,
    snapshot: &Snapshot,
    fits: impl Fn(&Object) -> bool,
) -> Claim {
    let mut claim = Claim { owned: Vec::new(), steps: Vec::new() };
    for object in snapshot.in_namespace(kind, &owner.meta.namespace) {
        let matches = selector.matches(&object.meta.labels) && fits(object);
        match object.meta.controller() {
            Some(reference) if reference.uid == owner.meta.uid => {
                if matches {
                    claim.owned.push(object.clone());
                } else if !owner.is_terminating() {
                    claim.steps.push(release(object, owner));
                }
            }
            None if matches && !owner.is_terminating() && !object.is_terminating() => {
                claim.steps.push(adopt(object, owner));
            }
            _ => {}
        }
    }
    claim
}

fn adopt(object: &Object, owner: &Object) -> Step {
    let mut references = object.meta.owner_references.clone();
    references.push(owner.controller_reference());
    Step::quiet(object.patch_unchanged(json!({"metadata": {"ownerReferences": references}})))
}

fn release(object: &Object, owner: &Object) -> Step {
    let mut references = object.meta.owner_references.clone();
    references.retain(|reference| reference.uid != owner.meta.uid);
    Step::quiet(
        object.patch_unchanged(json!({"metadata": {"ownerReferences": list_or_null(&references)}})),
    )
}

/// Adds the objects of `kind` that a change of a dependent concerns: the one that controls it;
/// for an orphan all that would adopt it.
pub(crate) fn owners<'a>(
    dependent: &'a Object,
    kind: Kind,
    snapshot: &'a Snapshot,
    keys: &mut BTreeSet<ObjectKey>,
    selector: impl Fn(&'a Object) -> Option<&'a LabelSelector>,
) {
    let namespace = &dependent.meta.namespace;
    match dependent.meta.controller() {
        Some(owner) => {
            let found = snapshot.owner(owner, namespace).ok().flatten();
            keys.extend(found.filter(|owner| owner.kind == kind).map(|owner| owner.key()));
        }
        None => {
            let candidates = snapshot.in_namespace(kind, namespace);
            let selects = |owner: &&'a Arc<Object>| {
                selector(owner).is_some_and(|selector| selector.matches(&dependent.meta.labels))
            };
            keys.extend(candidates.filter(selects).map(|owner| owner.key()));
        }
    }
}
