//! Strategic merge patch: merge patch that knows which lists are maps by a key, and which are
//! sets. Directives: `$patch`, `$setElementOrder/F`, `$deleteFromPrimitiveList/F`, `$retainKeys`.

use serde_json::{Map, Value};

use super::MAX_MERGED_LIST_ITEMS;
use crate::json::strip_nulls;
use crate::{Resource, Status};

/// How a strategic merge patch treats one list or object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStrategy {
    /// The list is a map: items with the same value of this member are one.
    MergeBy(&'static str),
    /// The list is a set of plain values.
    Set,
}

/// One row of the list rules: the path of member names from the root, and the strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListRule {
    /// Member names joined with `/`, list indexes left out: `spec/ports`.
    pub path: &'static str,
    /// How the list is merged.
    pub strategy: ListStrategy,
}

impl ListRule {
    pub(crate) const fn merge_by(path: &'static str, key: &'static str) -> Self {
        Self { path, strategy: ListStrategy::MergeBy(key) }
    }

    pub(crate) const fn set(path: &'static str) -> Self {
        Self { path, strategy: ListStrategy::Set }
    }
}

/// Rules of `metadata`, the same for all kinds.
const METADATA_RULES: &[ListRule] =
    &[ListRule::merge_by("metadata/ownerReferences", "uid"), ListRule::set("metadata/finalizers")];

/// Rules of a pod spec, below its own path.
const POD_SPEC_RULES: &[ListRule] = &[
    ListRule::merge_by("containers", "name"),
    ListRule::merge_by("initContainers", "name"),
    ListRule::merge_by("ephemeralContainers", "name"),
    ListRule::merge_by("volumes", "name"),
    ListRule::merge_by("imagePullSecrets", "name"),
    ListRule::merge_by("hostAliases", "ip"),
    ListRule::merge_by("topologySpreadConstraints", "topologyKey"),
    ListRule::merge_by("schedulingGates", "name"),
    ListRule::merge_by("resourceClaims", "name"),
];

/// Rules of a container, below each of the container lists.
const CONTAINER_RULES: &[ListRule] = &[
    ListRule::merge_by("ports", "containerPort"),
    ListRule::merge_by("env", "name"),
    ListRule::merge_by("volumeMounts", "mountPath"),
    ListRule::merge_by("volumeDevices", "devicePath"),
];

const PATCH_DIRECTIVE: &str = "$patch";
const RETAIN_KEYS_DIRECTIVE: &str = "$retainKeys";
const ORDER_PREFIX: &str = "$setElementOrder/";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch.
pub(super) fn apply(resource: &Resource, old: &Value, patch: &Value) -> Result<Value, Status> {
    let merger = Merger { resource };
    let empty = Map::new();
    let (Some(patch), old) = (patch.as_object(), old.as_object().unwrap_or(&empty)) else {
        return Err(Status::patch_rejected());
    };
    Ok(Value::Object(merger.merge_object(old, patch, "")?))
}

struct Merger<'a> {
    resource: &'a Resource,
}

impl Merger<'_> {
    fn merge_object(
        &self,
        old: &Map<String, Value>,
        patch: &Map<String, Value>,
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
            let order = patch.get(&format!("{ORDER_PREFIX}{key}"));
            let new = self.merge_value(merged.get(key), change, order, &path)?;
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
                let strategy = self.strategy(&join(path, field));
                let old = items.clone();
                *items = set_order(std::mem::take(items), &old, order, strategy)?;
            }
        }
        Ok(merged)
    }

    fn merge_value(
        &self,
        old: Option<&Value>,
        change: &Value,
        order: Option<&Value>,
        path: &str,
    ) -> Result<Option<Value>, Status> {
        match (old, change) {
            (old, Value::Object(change)) => {
                if change.get(PATCH_DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                    return Ok(None);
                }
                let empty = Map::new();
                let old = old.and_then(Value::as_object).unwrap_or(&empty);
                self.merge_object(old, change, path).map(|merged| Some(Value::Object(merged)))
            }
            (old, Value::Array(change)) => {
                let old = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                self.merge_list(old, change, order, path).map(|merged| Some(Value::Array(merged)))
            }
            _ => Ok(Some(change.clone())),
        }
    }

    fn merge_list(
        &self,
        old: &[Value],
        change: &[Value],
        order: Option<&Value>,
        path: &str,
    ) -> Result<Vec<Value>, Status> {
        let strategy = self.strategy(path);
        if strategy.is_some() && old.len().max(change.len()) > MAX_MERGED_LIST_ITEMS {
            return Err(too_long(path));
        }
        let merged = match strategy {
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
            Some(ListStrategy::MergeBy(key)) => self.merge_map_list(old, change, key, path)?,
        };
        match order {
            Some(order) => set_order(merged, old, order, strategy),
            None => Ok(merged),
        }
    }

    fn merge_map_list(
        &self,
        old: &[Value],
        change: &[Value],
        key: &str,
        path: &str,
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
                return Err(malformed(&format!("an item of {path} is no object")));
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
                        let new = Value::Object(self.merge_object(old, members, path)?);
                        if let Some(slot) = merged.get_mut(position) {
                            *slot = new;
                        }
                    }
                }
                (_, None) => {
                    merged.push(Value::Object(self.merge_object(&Map::new(), members, path)?))
                }
            }
        }
        Ok(merged)
    }

    /// The strategy of the list at a path; `None` when it is replaced whole.
    fn strategy(&self, path: &str) -> Option<ListStrategy> {
        let find = |rules: &[ListRule], path: &str| {
            rules.iter().find(|rule| rule.path == path).map(|rule| rule.strategy)
        };
        if let Some(strategy) =
            find(METADATA_RULES, path).or_else(|| find(self.resource.list_rules, path))
        {
            return Some(strategy);
        }
        let root = self.resource.pod_spec?.trim_start_matches('/');
        // A pod template has metadata of its own.
        if let Some(template) = root.strip_suffix("/spec")
            && let Some(inner) = path.strip_prefix(template).and_then(|rest| rest.strip_prefix('/'))
            && let Some(strategy) = find(METADATA_RULES, inner)
        {
            return Some(strategy);
        }
        let inner = path.strip_prefix(root)?.strip_prefix('/')?;
        if let Some(strategy) = find(POD_SPEC_RULES, inner) {
            return Some(strategy);
        }
        let (list, field) = inner.split_once('/')?;
        matches!(list, "containers" | "initContainers" | "ephemeralContainers")
            .then(|| find(CONTAINER_RULES, field))?
    }
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
