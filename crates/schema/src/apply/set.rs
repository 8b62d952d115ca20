//! Sets of fields, as `metadata.managedFields` keeps them (`FieldsV1`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// The element itself, beside its members, in `FieldsV1`.
const ITSELF: &str = ".";

/// A set of paths. An element is `f:NAME` (a member), `k:{…}` (an item by its keys) or `v:…` (an
/// item of a set), written as in `FieldsV1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Paths that end here.
    members: BTreeSet<String>,
    /// Paths that go on.
    children: BTreeMap<String, Set>,
}

impl Set {
    /// Whether it has no path.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Self::is_empty)
    }

    /// Adds a path; the empty one is none.
    pub fn insert(&mut self, path: &[String]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether a path of one element is in it.
    pub fn has(&self, element: &str) -> bool {
        self.members.contains(element)
    }

    /// The paths below an element.
    pub fn below(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    /// The paths of either.
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.children {
            let ours = union.children.entry(element.clone()).or_default();
            *ours = ours.union(theirs);
        }
        union
    }

    /// The paths of both.
    pub fn intersection(&self, other: &Self) -> Self {
        let both = self.children.iter().filter_map(|(element, ours)| {
            Some((element.clone(), ours.intersection(other.children.get(element)?)))
        });
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: both.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// The paths that the other does not have.
    pub fn difference(&self, other: &Self) -> Self {
        let left = self.children.iter().map(|(element, ours)| match other.children.get(element) {
            Some(theirs) => (element.clone(), ours.difference(theirs)),
            None => (element.clone(), ours.clone()),
        });
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            children: left.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// Maps each level: `keep` says whether an element that has members is in the set itself.
    pub(super) fn with_parents(
        &self,
        keep: &dyn Fn(&str) -> bool,
        below: &dyn Fn(&str, &Self) -> Self,
    ) -> Self {
        let mut set = Self { members: self.members.clone(), children: BTreeMap::new() };
        for (element, child) in &self.children {
            if keep(element) {
                set.members.insert(element.clone());
            }
            set.children.insert(element.clone(), below(element, child));
        }
        set
    }

    /// All paths as people read them: `.spec.ports[port=80].name`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    /// The paths that end at a level stand before those that go on, as in the real server.
    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        for element in &self.members {
            paths.push(format!("{prefix}{}", shown(element)));
        }
        for (element, child) in &self.children {
            child.collect(&format!("{prefix}{}", shown(element)), paths);
        }
    }

    /// The set as `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (element, child) in &self.children {
            let mut inner = child.to_value();
            if let (true, Some(inner)) = (self.has(element), inner.as_object_mut()) {
                inner.insert(ITSELF.to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), inner);
        }
        for element in &self.members {
            map.entry(element.clone()).or_insert_with(|| Value::Object(Map::new()));
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` when it is none.
    pub fn from_value(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, inner) in value.as_object()?.iter().filter(|(name, _)| *name != ITSELF) {
            if !element.starts_with(['f', 'k', 'v', 'i'])
                || element.as_bytes().get(1) != Some(&b':')
            {
                return None;
            }
            let members = inner.as_object()?;
            if members.is_empty() || members.contains_key(ITSELF) {
                set.members.insert(element.clone());
            }
            let child = Self::from_value(inner)?;
            if !child.is_empty() {
                set.children.insert(element.clone(), child);
            }
        }
        Some(set)
    }
}

/// One element as people read it.
pub(super) fn shown(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        _ => format!("[{element}]"),
    }
}
