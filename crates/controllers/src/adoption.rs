//! Which objects a controller object owns: it adopts orphans that its selector matches, and
//! releases its own that no longer match.

use std::sync::Arc;

use serde_json::json;

use model::selector::LabelSelector;

use crate::kind::Kind;
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

/// Claims objects of `kind` for `owner`.
pub(crate) fn claim(
    owner: &Object,
    selector: &LabelSelector,
    kind: Kind,
    snapshot: &Snapshot,
) -> Claim {
    let mut claim = Claim { owned: Vec::new(), steps: Vec::new() };
    for object in snapshot.in_namespace(kind, &owner.meta.namespace) {
        let matches = selector.matches(&object.meta.labels);
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
