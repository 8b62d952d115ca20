//! The three kinds of patches.

mod json_patch;
mod merge;
mod strategic;

use serde_json::Value;

use crate::{PatchKind, Resource, Status};

/// Most operations of one JSON patch, as in the real server.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Most bytes that the `copy` operations of one JSON patch may copy together: each could double
/// the object.
pub const MAX_JSON_PATCH_COPIED_BYTES: usize = 3 * 1024 * 1024;
/// Most items of a list that is merged item by item: the work grows with their square.
pub const MAX_MERGED_LIST_ITEMS: usize = 5_000;

/// The object that a patch makes of `old`.
///
/// # Errors
/// 400 for a body that is no patch, 422 for one that cannot be applied.
pub fn apply(
    resource: &Resource,
    kind: PatchKind,
    old: &Value,
    patch: &Value,
) -> Result<Value, Status> {
    match kind {
        PatchKind::Json => json_patch::apply(old, patch),
        PatchKind::Merge => {
            require_object(patch)?;
            let mut patched = old.clone();
            merge::apply(&mut patched, patch);
            Ok(patched)
        }
        PatchKind::Strategic => {
            require_object(patch)?;
            strategic::apply(resource, old, patch)
        }
    }
}

fn require_object(patch: &Value) -> Result<(), Status> {
    if patch.is_object() {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "error decoding patch: json: cannot unmarshal {} into Go value of type \
         map[string]interface {{}}",
        schema::decode::go_kind(patch)
    )))
}
