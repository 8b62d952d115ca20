//! Strategic merge patch: merge patch that knows which lists are maps by a key, and which are
//! sets. Directives: `$patch`, `$setElementOrder/F`, `$deleteFromPrimitiveList/F`, `$retainKeys`.

use schema::{Message, Type};
use serde_json::{Map, Value};

use super::MAX_MERGED_LIST_ITEMS;
use crate::json::strip_nulls;
use crate::{Resource, Status};

/// How a list is merged that is not replaced whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListStrategy {
    /// The list is a map: items with the same value of this member are one.
    MergeBy(&'static str),
    /// The list is a set of plain values.
    Set,
}

/// A member of an object.
struct Member {
    place: Place,
    strategy: Option<ListStrategy>,
    /// Whether an object is replaced whole.
    replaced: bool,
}

/// What the table of fields says of a place in the tree.
#[derive(Clone, Copy)]
enum Place {
    /// An object with known fields.
    Message(&'static Message),
    /// A map, and what its members are.
    Map(&'static Type),
    /// A value, or nothing that the table has: lists are replaced whole below it.
    Other,
}

/// A list or an object on the way through the tree.
#[derive(Clone, Copy)]
struct At<'a> {
    place: Place,
    strategy: Option<ListStrategy>,
    /// Member names joined with `/`, for errors.
    path: &'a str,
}

impl Place {
    fn of(kind: &'static Type) -> Self {
        match kind {
            Type::Map(item) => Self::Map(item),
            Type::List(item) => Self::of(item),
            kind => schema::table().message(kind).map_or(Self::Other, Self::Message),
        }
    }

    /// A member, and how it is merged.
    fn member(self, name: &str) -> Member {
        let plain = |place| Member { place, strategy: None, replaced: false };
        match self {
            Self::Message(message) => {
                let Some(field) = message.field(name) else { return plain(Self::Other) };
                let strategy = field.merge_key.map(|key| match key {
                    "" => ListStrategy::Set,
                    key => ListStrategy::MergeBy(key),
                });
                Member { place: Self::of(&field.kind), strategy, replaced: field.replaced }
            }
            Self::Map(item) => plain(Self::of(item)),
            Self::Other => plain(Self::Other),
        }
    }
}

const PATCH_DIRECTIVE: &str = "$patch";
const RETAIN_KEYS_DIRECTIVE: &str = "$retainKeys";
const ORDER_PREFIX: &str = "$setElementOrder/";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch.
pub(super) fn apply(resource: &Resource, old: &Value, patch: &Value) -> Result<Value, Status> {
    let place = resource.message().map_or(Place::Other, Place::Message);
    let empty = Map::new();
    let (Some(patch), old) = (patch.as_object(), old.as_object().unwrap_or(&empty)) else {
        return Err(Status::patch_rejected());
    };
    Ok(Value::Object(merge_object(old, patch, place, "")?))
}

fn merge_object(
    old: &Map<String, Value>,
    patch: &Map<String, Value>,
    place: Place,
    path: &str,
) -> Result<Map<String, Value>, Status> {
    let mut merged = match patch.get(PATCH_DIRECTIVE).and_then(Value::as_str) {
        None | Some("merge") => old.clone(),
        Some("replace") => return Ok(without_directives(patch)),
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(unknown_directive(other)),
    };
    if let Some(keep) = patch.get(RETAIN_KEYS_DIRECTIVE) {
        let Some(keep) = keep.as_array() else {
            return Err(malformed("$retainKeys must be a list"));
        };
        merged.retain(|key, _| keep.iter().any(|kept| kept.as_str() == Some(key)));
    }
    for (key, values) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PREFIX) {
            delete_from_set(&mut merged, field, values)?;
        }
    }
    for (key, change) in patch.iter().filter(|(key, _)| !is_directive(key)) {
        if change.is_null() {
            merged.remove(key);
            continue;
        }
        let path = join(path, key);
        let Member { place, strategy, replaced } = place.member(key);
        if replaced {
            merged.remove(key);
        }
        let at = At { place, strategy, path: &path };
        let order = patch.get(&format!("{ORDER_PREFIX}{key}"));
        let new = merge_value(merged.get(key), change, order, at)?;
        match new {
            Some(new) => merged.insert(key.clone(), new),
            None => merged.remove(key),
        };
    }
    // An order without a change of the list itself orders what is there.
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ORDER_PREFIX) else {
            continue;
        };
        if let (false, Some(Value::Array(items))) =
            (patch.contains_key(field), merged.get_mut(field))
        {
            let strategy = place.member(field).strategy;
            let old = items.clone();
            *items = set_order(std::mem::take(items), &old, order, strategy)?;
        }
    }
    Ok(merged)
}

fn merge_value(
    old: Option<&Value>,
    change: &Value,
    order: Option<&Value>,
    at: At<'_>,
) -> Result<Option<Value>, Status> {
    match (old, change) {
        (old, Value::Object(change)) => {
            if change.get(PATCH_DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return Ok(None);
            }
            let empty = Map::new();
            let old = old.and_then(Value::as_object).unwrap_or(&empty);
            merge_object(old, change, at.place, at.path).map(|merged| Some(Value::Object(merged)))
        }
        (old, Value::Array(change)) => {
            let old = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            merge_list(old, change, order, at).map(|merged| Some(Value::Array(merged)))
        }
        _ => Ok(Some(change.clone())),
    }
}

fn merge_list(
    old: &[Value],
    change: &[Value],
    order: Option<&Value>,
    at: At<'_>,
) -> Result<Vec<Value>, Status> {
    if at.strategy.is_some() && old.len().max(change.len()) > MAX_MERGED_LIST_ITEMS {
        return Err(too_long(at.path));
    }
    let merged = match at.strategy {
        None => {
            let mut replaced = Value::Array(change.to_vec());
            strip_nulls(&mut replaced);
            return Ok(replaced.as_array().cloned().unwrap_or_default());
        }
        Some(ListStrategy::Set) => {
            let mut merged = old.to_vec();
            for value in change {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            merged
        }
        Some(ListStrategy::MergeBy(key)) => merge_map_list(old, change, key, at)?,
    };
    match order {
        Some(order) => set_order(merged, old, order, at.strategy),
        None => Ok(merged),
    }
}

fn merge_map_list(
    old: &[Value],
    change: &[Value],
    key: &str,
    at: At<'_>,
) -> Result<Vec<Value>, Status> {
    let is_replace =
        |item: &Value| item.get(PATCH_DIRECTIVE).and_then(Value::as_str) == Some("replace");
    if change.iter().any(|item| is_replace(item) && item.get(key).is_none()) {
        return Ok(change
            .iter()
            .filter(|item| !is_replace(item))
            .filter_map(|item| item.as_object().map(without_directives).map(Value::Object))
            .collect());
    }
    let mut merged = old.to_vec();
    for item in change {
        let Some(members) = item.as_object() else {
            return Err(malformed(&format!("an item of {} is no object", at.path)));
        };
        let Some(id) = members.get(key) else {
            return Err(malformed(&format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        // Where two old items have the same key (a Service's port 53 over TCP and UDP), the
        // first is meant: the real server has the same flaw, and clients know it.
        let position = merged.iter().position(|old| old.get(key) == Some(id));
        let directive = members.get(PATCH_DIRECTIVE).and_then(Value::as_str);
        match (directive, position) {
            (Some("delete"), _) => merged.retain(|old| old.get(key) != Some(id)),
            (_, Some(position)) => {
                if let Some(Value::Object(old)) = merged.get(position) {
                    let new = Value::Object(merge_object(old, members, at.place, at.path)?);
                    if let Some(slot) = merged.get_mut(position) {
                        *slot = new;
                    }
                }
            }
            (_, None) => {
                merged.push(Value::Object(merge_object(&Map::new(), members, at.place, at.path)?))
            }
        }
    }
    Ok(merged)
}

/// Orders a merged list: items that the patch names in its order; the others stay before the
/// item that they stood before.
fn set_order(
    merged: Vec<Value>,
    old: &[Value],
    order: &Value,
    strategy: Option<ListStrategy>,
) -> Result<Vec<Value>, Status> {
    let Some(order) = order.as_array() else {
        return Err(malformed("$setElementOrder must be a list"));
    };
    if merged.len().max(order.len()) > MAX_MERGED_LIST_ITEMS {
        return Err(too_long("$setElementOrder"));
    }
    let same = |one: &Value, other: &Value| match strategy {
        Some(ListStrategy::MergeBy(key)) => {
            one.get(key).is_some() && one.get(key) == other.get(key)
        }
        _ => one == other,
    };
    let rank = |item: &Value| order.iter().position(|wanted| same(item, wanted));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| rank(item).is_some());
    named.sort_by_key(|item| rank(item));
    let old_position = |item: &Value| old.iter().position(|other| same(other, item));
    let mut result: Vec<Value> = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let here = old_position(&item);
        while let Some(other) = others.peek() {
            match (old_position(other), here) {
                (Some(other_position), Some(here)) if other_position < here => {
                    result.extend(others.next());
                }
                _ => break,
            }
        }
        result.push(item);
    }
    result.extend(others);
    Ok(result)
}

fn too_long(path: &str) -> Status {
    malformed(&format!("{path} has more than {MAX_MERGED_LIST_ITEMS} items"))
}

fn delete_from_set(
    merged: &mut Map<String, Value>,
    field: &str,
    values: &Value,
) -> Result<(), Status> {
    let Some(values) = values.as_array() else {
        return Err(malformed("$deleteFromPrimitiveList must be a list"));
    };
    if let Some(Value::Array(items)) = merged.get_mut(field) {
        if values.len().max(items.len()) > MAX_MERGED_LIST_ITEMS {
            return Err(too_long(field));
        }
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, value)| !is_directive(key) && !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH_DIRECTIVE
        || key == RETAIN_KEYS_DIRECTIVE
        || key.starts_with(ORDER_PREFIX)
        || key.starts_with(DELETE_PREFIX)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}/{key}") }
}

fn unknown_directive(directive: &str) -> Status {
    malformed(&format!("unrecognized {PATCH_DIRECTIVE} {directive:?}"))
}

fn malformed(why: &str) -> Status {
    Status::bad_request(format!("invalid strategic merge patch: {why}"))
}
