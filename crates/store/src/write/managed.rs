//! Who owns which field after a write (`metadata.managedFields`, KEP-555). Kept on every write.

use std::sync::Arc;

use schema::apply::{self, Manager, Managers, Operation};
use serde_json::{Value, json as tree};

use crate::{Context, Object, Request, Status};

use super::MAX_OBJECT_BYTES;

/// The manager of those who do not say who they are.
const UNKNOWN: &str = "unknown";

/// What a write says of ownership.
pub(super) enum Claim {
    /// The writer owns what it changes. Its body may have `managedFields`, which then are those of
    /// before.
    Changes(Option<Value>),
    /// An apply has settled it.
    Settled(Managers),
}

/// The managed fields of `new`, which a write puts in the place of `old`.
pub(super) fn after(
    request: &Request,
    old: Option<&Object>,
    new: &Value,
    claim: Claim,
    context: &Context<'_>,
) -> Result<Option<Arc<str>>, Status> {
    let mut managers = match claim {
        Claim::Settled(managers) => managers,
        Claim::Changes(given) => {
            // Subresources cannot set managers.
            let given = given.filter(|_| request.subresource.is_none());
            if let Some(old) = old.filter(|old| given.is_none() && old.value == *new) {
                return Ok(old.managed_fields());
            }
            let before = match given {
                Some(given) if is_reset(&given) => Managers::new(),
                Some(given) => of_entries(&given).unwrap_or_else(|| of_object(old)),
                None => of_object(old),
            };
            // Nobody is on record for what is there: so it stays until somebody applies.
            if before.is_empty() && old.is_some() {
                return Ok(None);
            }
            changed(request, old, new, &before, context)
        }
    };
    apply::limit(&mut managers);
    if managers.is_empty() {
        return Ok(None);
    }
    let text = apply::encode(&managers);
    if text.len() > MAX_OBJECT_BYTES {
        return Err(super::too_large());
    }
    let text = Some(text.into());
    Ok(match old {
        Some(old) if is_same(&text, &old.managed_fields()) => old.managed_fields(),
        _ => text,
    })
}

/// Whether the same managers own the same; since when is nothing to write for.
pub(super) fn is_same(one: &Option<Arc<str>>, other: &Option<Arc<str>>) -> bool {
    let timeless = |text: &Option<Arc<str>>| {
        let mut managers = text.as_deref().map(read).unwrap_or_default();
        managers.values_mut().for_each(|owned| owned.time = None);
        managers
    };
    one == other || timeless(one) == timeless(other)
}

/// The managers of an object.
pub(super) fn of_object(object: Option<&Object>) -> Managers {
    let text = object.and_then(Object::managed_fields);
    text.as_deref().map(read).unwrap_or_default()
}

/// Who asks, as a manager.
pub(super) fn manager(request: &Request, operation: Operation, context: &Context<'_>) -> Manager {
    let name = if context.manager.is_empty() { UNKNOWN } else { context.manager };
    Manager {
        operation,
        name: name.to_owned(),
        api_version: request.resource.api_version(),
        subresource: request.subresource.map(|one| one.name().to_owned()).unwrap_or_default(),
    }
}

fn changed(
    request: &Request,
    old: Option<&Object>,
    new: &Value,
    before: &Managers,
    context: &Context<'_>,
) -> Managers {
    let nothing = tree!({});
    let old = old.map_or(&nothing, |old| &old.value);
    let manager = manager(request, Operation::Update, context);
    match request.resource.message() {
        Some(message) => apply::update(message, old, new, before, &manager, context.now),
        None => before.clone(),
    }
}

/// `[]` and `[{}]`: the client wants nobody on record.
fn is_reset(given: &Value) -> bool {
    given.as_array().is_some_and(|entries| match entries.as_slice() {
        [] => true,
        [only] => only.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    })
}

fn of_entries(given: &Value) -> Option<Managers> {
    apply::decode(given).filter(|managers| !managers.is_empty())
}

fn read(text: &str) -> Managers {
    let entries = serde_json::from_str(text).ok();
    entries.as_ref().and_then(apply::decode).unwrap_or_default()
}
