//! Walks over a tree and its message together: which fields a tree has, how two trees differ, one
//! tree laid over another, fields taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::Set;
use crate::{Message, Relation, Table, Type, table};

/// Most problems that are told of one configuration.
pub const MAX_PROBLEMS: usize = 20;

/// What the table says of a place.
#[derive(Clone, Copy)]
pub(super) enum Node<'a> {
    /// Changes hands as a whole.
    Leaf,
    Message(&'a Message),
    Map(&'a Type),
    /// A list of scalars.
    Set,
    /// A list of messages, and the members that tell its items apart.
    Keyed(&'a Message, &'a [&'static str]),
}

impl<'a> Node<'a> {
    pub fn of(table: &'a Table, kind: &'a Type, relation: &'a Relation) -> Self {
        match (kind, relation) {
            (_, Relation::Atomic) => Self::Leaf,
            (Type::Map(item), _) => Self::Map(item),
            (Type::List(_), Relation::Set) => Self::Set,
            (Type::List(item), Relation::Keys(keys)) => {
                table.message(item).map_or(Self::Leaf, |item| Self::Keyed(item, keys))
            }
            (kind, _) => match table.message(kind) {
                Some(message) if !message.atomic => Self::Message(message),
                _ => Self::Leaf,
            },
        }
    }

    /// A member of an object.
    pub fn member(self, name: &str) -> Self {
        match self {
            Self::Message(message) => message
                .field(name)
                .map_or(Self::Leaf, |field| Self::of(table(), &field.kind, &field.relation)),
            Self::Map(item) => Self::of(table(), item, &Relation::Granular),
            _ => Self::Leaf,
        }
    }

    /// The items of a list with their elements of a path. One without any key has its place.
    fn items<'v>(self, value: Option<&'v Value>) -> Vec<Item<'v, 'a>> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        let item = |(index, value): (usize, &'v Value)| match self {
            Self::Keyed(message, keys) => Item {
                element: key_of(message, keys, value).unwrap_or_else(|| format!("i:{index}")),
                value,
                node: if message.atomic { Self::Leaf } else { Self::Message(message) },
            },
            _ => Item { element: format!("v:{value}"), value, node: Self::Leaf },
        };
        items.enumerate().map(item).collect()
    }

    fn has_field(self, name: &str) -> bool {
        matches!(self, Self::Message(message) if message.field(name).is_some())
    }

    /// What Go writes for an absent member of a message where it always writes one.
    fn absent(self, name: &str) -> Option<&'static Value> {
        static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        let Self::Message(message) = self else { return None };
        let field = message.field(name)?;
        if field.embedded {
            return Some(&EMPTY);
        }
        (field.required && matches!(field.kind, Type::List(_))).then_some(&Value::Null)
    }
}

/// An item of a list.
struct Item<'v, 'a> {
    element: String,
    value: &'v Value,
    node: Node<'a>,
}

/// `k:{"containerPort":80,"protocol":"TCP"}`; absent keys have their defaults. `None` without any.
fn key_of(message: &Message, keys: &[&str], item: &Value) -> Option<String> {
    let mut found = Map::new();
    for key in keys {
        let default = || message.field(key).and_then(|field| field.default.clone());
        if let Some(value) =
            item.get(key).filter(|value| !value.is_null()).cloned().or_else(default)
        {
            found.insert((*key).to_owned(), value);
        }
    }
    (!found.is_empty()).then(|| format!("k:{}", Value::Object(found)))
}

/// The fields that a tree sets.
pub(super) fn fields(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(node, value, &mut Vec::new(), &mut set);
    set
}

fn collect(node: Node<'_>, value: &Value, path: &mut Vec<String>, set: &mut Set) {
    match (node, value) {
        (Node::Message(_) | Node::Map(_), Value::Object(members)) => {
            for (name, member) in members {
                path.push(format!("f:{name}"));
                collect(node.member(name), member, path, set);
                let is_empty = member.is_null() || member.as_object().is_some_and(Map::is_empty);
                if is_empty || !node.has_field(name) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Node::Set | Node::Keyed(..), Value::Array(_)) => {
            for item in node.items(Some(value)) {
                path.push(item.element);
                collect(item.node, item.value, path, set);
                set.insert(path);
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}

/// How two trees differ.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

pub(super) fn compare(node: Node<'_>, old: &Value, new: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    compare_at(node, Some(old), Some(new), &mut Vec::new(), &mut comparison);
    comparison
}

fn compare_at(
    node: Node<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(members)) => members.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if old == new {
        return;
    }
    if matches!(node, Node::Leaf) || (is_empty(old) && is_empty(new)) {
        match (old, new) {
            (None, _) => found.added.insert(path),
            (_, None) => found.removed.insert(path),
            _ => found.modified.insert(path),
        }
        return;
    }
    match node {
        Node::Message(_) | Node::Map(_) => compare_members(node, old, new, path, found),
        _ => compare_items(node, old, new, path, found),
    }
    match (old, new) {
        (None, _) => found.added.insert(path),
        (_, None) => found.removed.insert(path),
        _ => {}
    }
}

fn compare_members(
    node: Node<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    let members = [old, new].into_iter().flatten().filter_map(Value::as_object);
    let names: BTreeSet<&String> = members.flat_map(Map::keys).collect();
    for name in names {
        let absent = node.absent(name);
        let before = old.and_then(|old| old.get(name)).or(absent);
        let after = new.and_then(|new| new.get(name)).or(absent);
        if before != after {
            path.push(format!("f:{name}"));
            compare_at(node.member(name), before, after, path, found);
            path.pop();
        }
    }
}

fn compare_items(
    node: Node<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    found: &mut Comparison,
) {
    let (old, new) = (node.items(old), node.items(new));
    let (before, after) = (by_element(&old), by_element(&new));
    for item in &old {
        let after = after.get(item.element.as_str()).map(|item| item.value);
        path.push(item.element.clone());
        compare_at(item.node, Some(item.value), after, path, found);
        path.pop();
    }
    for item in new.iter().filter(|item| !before.contains_key(item.element.as_str())) {
        path.push(item.element.clone());
        compare_at(item.node, None, Some(item.value), path, found);
        path.pop();
    }
}

/// The first item of each element.
fn by_element<'i, 'v, 'a>(items: &'i [Item<'v, 'a>]) -> BTreeMap<&'i str, &'i Item<'v, 'a>> {
    items.iter().rev().map(|item| (item.element.as_str(), item)).collect()
}

/// `over` laid over `under`.
pub(super) fn merge(node: Node<'_>, under: &Value, over: &Value) -> Value {
    match (node, under, over) {
        (Node::Message(_) | Node::Map(_), Value::Object(under), Value::Object(over)) => {
            let mut merged = under.clone();
            for (name, value) in over {
                let before = merged.entry(name.clone()).or_insert(Value::Null);
                *before = merge(node.member(name), before, value);
            }
            Value::Object(merged)
        }
        (Node::Set | Node::Keyed(..), Value::Array(_), Value::Array(_)) => {
            Value::Array(merge_items(node, under, over))
        }
        _ => over.clone(),
    }
}

/// The order is that of `over`; what only `under` has stays before what it stood before.
fn merge_items(node: Node<'_>, under: &Value, over: &Value) -> Vec<Value> {
    let (under, over) = (node.items(Some(under)), node.items(Some(over)));
    let (before, after) = (by_element(&under), by_element(&over));
    let mut shared = over.iter().filter(|item| before.contains_key(item.element.as_str()));
    let mut next_shared = shared.next();
    let mut rest = under.iter().peekable();
    let mut merged = Vec::with_capacity(under.len() + over.len());
    for item in &over {
        let wanted = next_shared.map(|item| item.element.as_str());
        while let Some(old) = rest.next_if(|old| Some(old.element.as_str()) != wanted) {
            if !after.contains_key(old.element.as_str()) {
                merged.push(old.value.clone());
            }
        }
        merged.push(match before.get(item.element.as_str()) {
            Some(old) => merge(item.node, old.value, item.value),
            None => item.value.clone(),
        });
        if Some(item.element.as_str()) == wanted {
            rest.next_if(|old| old.element == item.element);
            next_shared = shared.next();
        }
    }
    let only_under = rest.filter(|old| !after.contains_key(old.element.as_str()));
    merged.extend(only_under.map(|old| old.value.clone()));
    merged
}

/// The tree without these fields; `None` when nothing is left of an object or list.
pub(super) fn remove(node: Node<'_>, value: &Value, set: &Set) -> Option<Value> {
    match (node, value) {
        (Node::Message(_) | Node::Map(_), Value::Object(members)) => {
            let mut left = Map::new();
            for (name, member) in members {
                let element = format!("f:{name}");
                if set.has(&element) {
                    continue;
                }
                let kept = match set.below(&element) {
                    Some(below) => remove(node.member(name), member, below),
                    None => Some(member.clone()),
                };
                left.extend(kept.map(|kept| (name.clone(), kept)));
            }
            (!left.is_empty()).then_some(Value::Object(left))
        }
        (Node::Set | Node::Keyed(..), Value::Array(_)) => {
            let mut left = Vec::new();
            for item in node.items(Some(value)) {
                if set.has(&item.element) {
                    continue;
                }
                left.extend(match set.below(&item.element) {
                    Some(below) => remove(item.node, item.value, below),
                    None => Some(item.value.clone()),
                });
            }
            (!left.is_empty()).then_some(Value::Array(left))
        }
        _ => Some(value.clone()),
    }
}

/// The set with the messages and lists whose fields it has, as far as they have names.
pub(super) fn with_parents(node: Node<'_>, set: &Set) -> Set {
    let keep = |element: &str| element.strip_prefix("f:").is_some_and(|name| node.has_field(name));
    let below = |element: &str, child: &Set| {
        let inner = match (element.strip_prefix("f:"), node) {
            (Some(name), _) => node.member(name),
            (None, Node::Keyed(message, _)) if !message.atomic => Node::Message(message),
            _ => Node::Leaf,
        };
        with_parents(inner, child)
    };
    set.with_parents(&keep, &below)
}

/// What is wrong with a configuration that shall be applied, in the words of structured-merge-diff.
pub fn problems(message: &Message, config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(Node::Message(message), config, "", &mut found);
    found.truncate(MAX_PROBLEMS);
    found
}

fn look(node: Node<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    if found.len() >= MAX_PROBLEMS {
        return;
    }
    match (node, value) {
        (Node::Message(message), Value::Object(members)) => {
            for (name, member) in members {
                let path = format!("{path}.{name}");
                let is_of_type = message.typed && matches!(name.as_str(), "apiVersion" | "kind");
                if message.field(name).is_none() && !is_of_type && !message.open {
                    found.push(format!("{path}: field not declared in schema"));
                } else {
                    look(node.member(name), member, &path, found);
                }
            }
        }
        (Node::Map(_), Value::Object(members)) => {
            for (name, member) in members {
                look(node.member(name), member, &format!("{path}.{name}"), found);
            }
        }
        (Node::Set | Node::Keyed(..), Value::Array(_)) => look_at_items(node, value, path, found),
        _ => {}
    }
}

fn look_at_items(node: Node<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, item) in node.items(Some(value)).into_iter().enumerate() {
        if let (true, Node::Keyed(_, keys)) = (item.element.starts_with("i:"), node) {
            let key = keys.first().copied().unwrap_or_default();
            found.push(format!(
                "{path}: element {index}: associative list with keys has an element that omits key \
                 field {key:?} (and doesn't have default value)"
            ));
            continue;
        }
        let shown = super::set::shown(&item.element);
        if seen.contains(&item.element) {
            found.push(format!("{path}: duplicate entries for key {shown}"));
        }
        look(item.node, item.value, &format!("{path}{shown}"), found);
        seen.insert(item.element);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_applied_is_told() {
        let service = table().kind("v1", "Service").expect("a kind");
        let config = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"any": "key"}},
            "spec": {
                "portz": 1,
                "selector": {"any": "key"},
                "ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}, {"port": 81, "x": 1}],
            },
        });
        assert_eq!(
            problems(service, &config),
            [
                ".spec.ports: duplicate entries for key [port=80,protocol=\"TCP\"]",
                ".spec.ports[port=81,protocol=\"TCP\"].x: field not declared in schema",
                ".spec.portz: field not declared in schema",
            ]
        );
        let pod = table().kind("v1", "Pod").expect("a kind");
        let config = json!({"spec": {"containers": [{"image": "a"}]}});
        assert!(problems(pod, &config)[0].contains("omits key field \"name\""));
        let many: Map<String, Value> = (0..500).map(|n| (format!("x{n}"), json!(n))).collect();
        assert_eq!(problems(pod, &Value::Object(many)).len(), MAX_PROBLEMS);
    }

    #[test]
    fn items_keep_their_order_as_far_as_nobody_says_otherwise() {
        let service = table().kind("v1", "Service").expect("a kind");
        let object = |ports: &[u16]| {
            let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
            json!({"spec": {"ports": ports}})
        };
        let cases: [(&[u16], &[u16], &[u16]); 6] = [
            (&[1], &[2], &[1, 2]),
            (&[1, 3], &[2, 3], &[1, 2, 3]),
            (&[1, 2], &[2, 1], &[2, 1]),
            (&[1, 2, 3], &[3, 1], &[2, 3, 1]),
            (&[1, 2, 3], &[2], &[1, 2, 3]),
            (&[], &[2, 1], &[2, 1]),
        ];
        for (under, over, expected) in cases {
            let merged = merge(Node::Message(service), &object(under), &object(over));
            assert_eq!(merged, object(expected), "{over:?} over {under:?}");
        }
    }
}
