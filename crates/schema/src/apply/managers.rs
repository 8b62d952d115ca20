//! What a write means for who owns what.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use model::Timestamp;
use serde_json::Value;

use super::Set;
use super::walk::{Node, compare, fields, merge, remove, with_parents};
use crate::Message;

/// Members of the metadata that only the server sets: nobody owns them.
const OF_THE_SERVER: &[&str] = &[
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The managers of an object and what each owns.
pub type Managers = BTreeMap<Manager, Owned>;

/// Who writes, how and through which door: the same program is another manager by another way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// How.
    pub operation: Operation,
    /// `fieldManager`, or the first word of the User-Agent.
    pub name: String,
    /// The version of the kind in which the fields have their names.
    pub api_version: String,
    /// The subresource; empty for the object itself.
    pub subresource: String,
}

/// How a manager came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// It applied them: what it applies no more goes.
    Apply,
    /// It wrote them in any other way.
    Update,
}

/// What a manager owns, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// The fields.
    pub fields: Set,
    /// When it last came to one of them.
    pub time: Option<Timestamp>,
}

/// What an apply makes of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object.
    pub object: Value,
    /// Its managers.
    pub managers: Managers,
}

/// Fields of another manager that an apply would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Whose they are.
    pub manager: Manager,
    /// Which.
    pub fields: Set,
}

impl Operation {
    /// The text on the wire.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }

    /// The operation of a text on the wire.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "Apply" => Some(Self::Apply),
            "Update" => Some(Self::Update),
            _ => None,
        }
    }
}

/// The managers after a create, an update or a patch by `manager`: it owns what it changed.
/// Whoever owns fields under their names of another version keeps them.
pub fn update(
    message: &Message,
    old: &Value,
    new: &Value,
    managers: &Managers,
    manager: &Manager,
    now: Timestamp,
) -> Managers {
    let changed = compare(Node::Message(message), old, new);
    let taken = changed.added.union(&changed.modified);
    let mut after = managers.clone();
    for (other, owned) in &mut after {
        if other.api_version == manager.api_version {
            owned.fields = owned.fields.difference(&changed.removed);
            if other != manager {
                owned.fields = owned.fields.difference(&taken);
            }
        }
    }
    let taken = taken.difference(&OWNED_BY_THE_SERVER);
    if !taken.is_empty() {
        let own = after.entry(manager.clone()).or_default();
        own.fields = own.fields.union(&taken);
        own.time = Some(now);
    }
    after.retain(|_, owned| !owned.fields.is_empty());
    after
}

/// The object and its managers after an apply of `config` by `manager`. What it applied before,
/// does no more, and nobody else owns, goes. An apply that changes nothing leaves the time, too.
///
/// # Errors
/// Fields that others own with other values, unless `force` takes them.
pub fn apply(
    message: &Message,
    live: &Value,
    config: &Value,
    managers: &Managers,
    manager: &Manager,
    force: bool,
    now: Timestamp,
) -> Result<Applied, Vec<Conflict>> {
    let node = Node::Message(message);
    let last = managers.get(manager).cloned().unwrap_or_default();
    let mut after = managers.clone();
    let own = fields(node, config).difference(&OWNED_BY_THE_SERVER);
    let owns_the_same = own == last.fields;
    after.insert(manager.clone(), Owned { fields: own, time: last.time });
    let merged = merge(node, live, config);
    let object = prune(node, &merged, &after, &last.fields);
    let changed = compare(node, live, &object);
    let taken = changed.added.union(&changed.modified);
    let mut conflicts = Vec::new();
    for (other, owned) in after.iter_mut().filter(|(other, _)| *other != manager) {
        if other.api_version != manager.api_version {
            continue;
        }
        let fields = owned.fields.intersection(&taken);
        if !fields.is_empty() {
            owned.fields = owned.fields.difference(&fields);
            conflicts.push(Conflict { manager: other.clone(), fields });
        }
        owned.fields = owned.fields.difference(&changed.removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    if object != *live || !owns_the_same {
        after.entry(manager.clone()).or_default().time = Some(now);
    }
    after.retain(|_, owned| !owned.fields.is_empty());
    Ok(Applied { object, managers: after })
}

/// The fields that `applied` sets and `live` still has as it set them.
pub fn still(message: &Message, applied: &Value, live: &Value) -> Set {
    let node = Node::Message(message);
    let changed = compare(node, applied, live);
    let other = changed.added.union(&changed.modified).union(&changed.removed);
    fields(node, applied).difference(&other)
}

/// Takes out what the manager gave up and nobody owns.
fn prune(node: Node<'_>, merged: &Value, managers: &Managers, last: &Set) -> Value {
    if last.is_empty() {
        return merged.clone();
    }
    let without = |set: &Set| remove(node, merged, set).unwrap_or_default();
    let all = |value: &Value| with_parents(node, &fields(node, value));
    let last = with_parents(node, last);
    // Whatever anybody owns comes back, and so does what the manager never had.
    let owned = managers.values().fold(Set::default(), |all, owned| all.union(&owned.fields));
    let kept = all(&without(&last)).union(&with_parents(node, &owned));
    let lost = all(merged).difference(&kept);
    let left = all(&without(&lost));
    without(&all(merged).difference(&left).intersection(&last))
}

static OWNED_BY_THE_SERVER: LazyLock<Set> = LazyLock::new(|| {
    let mut set = Set::default();
    for name in ["apiVersion", "kind", "metadata"] {
        set.insert(&[format!("f:{name}")]);
    }
    for name in OF_THE_SERVER {
        set.insert(&["f:metadata".to_owned(), format!("f:{name}")]);
    }
    set
});

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn service() -> &'static Message {
        table().kind("v1", "Service").expect("a kind")
    }

    fn set(value: Value) -> Set {
        Set::from_value(&value).expect("a set")
    }

    fn manager(operation: Operation, name: &str) -> Manager {
        Manager {
            operation,
            name: name.to_owned(),
            api_version: "v1".to_owned(),
            subresource: String::new(),
        }
    }

    fn applied(
        live: &Applied,
        config: &Value,
        name: &str,
        force: bool,
    ) -> Result<Applied, Vec<Conflict>> {
        let manager = manager(Operation::Apply, name);
        apply(service(), &live.object, config, &live.managers, &manager, force, NOW)
    }

    fn nothing() -> Applied {
        Applied { object: json!({}), managers: Managers::new() }
    }

    fn owned<'a>(managers: &'a Managers, operation: Operation, name: &str) -> &'a Set {
        &managers.get(&manager(operation, name)).expect("a manager").fields
    }

    #[test]
    fn an_apply_owns_what_it_sets() {
        let config = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "labels": {"a": "b"}},
            "spec": {"selector": {"x": "y"}, "ports": [{"port": 80, "name": "web"}]},
        });
        let after = applied(&nothing(), &config, "me", false).expect("applied");
        assert_eq!(after.object, config);
        let expected = json!({
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {
                "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}},
                "f:selector": {},
            },
        });
        let own = owned(&after.managers, Operation::Apply, "me");
        assert_eq!(own.to_value(), expected);
        assert_eq!(set(expected), *own);
    }

    #[test]
    fn an_update_owns_what_it_changes_with_the_lists_it_made() {
        let new = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "labels": {"a": "b"}},
            "spec": {"ports": [{"port": 80}]},
        });
        let writer = manager(Operation::Update, "kubectl");
        let managers = update(service(), &json!({}), &new, &Managers::new(), &writer, NOW);
        let expected = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
        });
        assert_eq!(owned(&managers, Operation::Update, "kubectl").to_value(), expected);
        let later = Timestamp::from_seconds(2_000);
        assert_eq!(update(service(), &new, &new, &managers, &writer, later), managers);
        let mut changed = new.clone();
        changed["metadata"]["labels"]["a"] = "c".into();
        let other = manager(Operation::Update, "editor");
        let managers = update(service(), &new, &changed, &managers, &other, later);
        assert_eq!(owned(&managers, Operation::Update, "editor").paths(), [".metadata.labels.a"]);
        let left = owned(&managers, Operation::Update, "kubectl").paths();
        assert!(!left.contains(&".metadata.labels.a".to_owned()), "{left:?}");
    }

    #[test]
    fn what_was_applied_and_is_no_more_goes_unless_another_owns_it() {
        let first = json!({"metadata": {"labels": {"a": "1", "b": "2", "c": "3"}}});
        let after = applied(&nothing(), &first, "me", false).expect("applied");
        let other = json!({"metadata": {"labels": {"b": "2"}}});
        let after = applied(&after, &other, "you", false).expect("shared");
        let second = json!({"metadata": {"labels": {"a": "1"}}});
        let after = applied(&after, &second, "me", false).expect("applied");
        assert_eq!(after.object, json!({"metadata": {"labels": {"a": "1", "b": "2"}}}));
        let yours = owned(&after.managers, Operation::Apply, "you");
        assert_eq!(yours.paths(), [".metadata.labels.b"]);
    }

    #[test]
    fn an_item_that_is_applied_no_more_goes_and_the_others_stay() {
        let ports = |ports: &[u16]| {
            let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
            json!({"spec": {"ports": ports}})
        };
        let after = applied(&nothing(), &ports(&[80, 81]), "me", false).expect("applied");
        let after = applied(&after, &ports(&[90]), "you", false).expect("applied");
        assert_eq!(after.object, ports(&[80, 81, 90]));
        let after = applied(&after, &ports(&[81]), "me", false).expect("applied");
        assert_eq!(after.object, ports(&[81, 90]));
        let after = applied(&after, &ports(&[90, 81]), "me", false).expect("applied");
        assert_eq!(after.object, ports(&[90, 81]), "the order is that of the last apply");
    }

    #[test]
    fn a_field_of_another_is_a_conflict_until_forced() {
        let first = json!({"spec": {"type": "NodePort"}});
        let before = applied(&nothing(), &first, "me", false).expect("applied");
        let second = json!({"spec": {"type": "ClusterIP"}});
        let conflicts = applied(&before, &second, "you", false).expect_err("refused");
        assert_eq!(conflicts.len(), 1);
        assert_eq!(
            (conflicts[0].manager.name.as_str(), conflicts[0].fields.paths()),
            ("me", vec![".spec.type".to_owned()])
        );
        let after = applied(&before, &second, "you", true).expect("forced");
        assert_eq!(after.object, second);
        assert!(!after.managers.contains_key(&manager(Operation::Apply, "me")));
        // The same value is no conflict: both own it.
        let after = applied(&after, &second, "me", false).expect("shared");
        assert_eq!(after.managers.len(), 2);
    }

    /// Trap 9 of the API server's list.
    #[test]
    fn the_same_apply_again_changes_nothing_at_all() {
        let config = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"ports": [{"port": 80}]}});
        let before = applied(&nothing(), &config, "me", false).expect("applied");
        let later = Timestamp::from_seconds(2_000);
        let own = manager(Operation::Apply, "me");
        let again = apply(service(), &before.object, &config, &before.managers, &own, false, later);
        assert_eq!(again.expect("applied"), before);
    }

    #[test]
    fn what_live_still_has_of_an_earlier_apply_is_known() {
        let earlier = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "name": "a"}]}});
        let live = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "name": "a"}]}});
        let paths = still(service(), &earlier, &live).paths();
        assert!(!paths.contains(&".spec.type".to_owned()), "{paths:?}");
        assert!(paths.contains(&".spec.ports[port=80,protocol=\"TCP\"].name".to_owned()));
    }
}
