//! All objects that the controllers see, indexed: the only thing that a decision is made from
//! (invariant 1). It takes in watch events and the answers to our own writes alike, so that a
//! controller never acts twice because its watch lags behind.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use model::NamespacedName;
use model::kinds::SERVICE_NAME_LABEL;
use model::meta::OwnerReference;
use model::selector::matches_map;

use crate::kind::{Kind, ObjectKey};
use crate::object::Object;

/// Deletions that are remembered. Whatever is still said about such an object is late: a watch
/// event from before we deleted it, or the answer to a write that was under way.
const MAX_TOMBSTONES: usize = 4_096;

/// One object before and after: both present for a change, one for an addition or a removal.
/// What kind of event brought it decides nothing (invariant 2).
#[derive(Clone, Debug)]
pub struct Change {
    /// As it was.
    pub old: Option<Arc<Object>>,
    /// As it is.
    pub new: Option<Arc<Object>>,
}

impl Change {
    /// The object's key.
    pub fn key(&self) -> Option<ObjectKey> {
        self.latest().map(|object| object.key())
    }

    /// The object as it is, or as it was before it went.
    pub fn latest(&self) -> Option<&Arc<Object>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// The old and the new form.
    pub fn both(&self) -> impl Iterator<Item = &Arc<Object>> + Clone {
        self.old.iter().chain(self.new.iter())
    }
}

/// The objects.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    kinds: BTreeMap<Kind, BTreeMap<NamespacedName, Arc<Object>>>,
    /// Owner uid → its dependents.
    dependents: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// Node name (empty: not scheduled) → its pods.
    pods_by_node: BTreeMap<String, BTreeSet<NamespacedName>>,
    /// Slices and pods of Services, without a look at all of them.
    groups: BTreeMap<Group, BTreeSet<NamespacedName>>,
    /// The uids of objects that are gone; none is ever used again.
    tombstones: BTreeSet<String>,
    /// The same, the oldest first.
    buried: VecDeque<String>,
}

/// What objects of a kind are looked for by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// EndpointSlices by the Service that they are of.
    SlicesOf(NamespacedName),
    /// Pods by one of their labels: namespace, key, value.
    PodsWith(String, String, String),
    /// Services by the first label of their selector: namespace, key, value.
    ServicesFor(String, String, String),
}

impl Group {
    fn of(object: &Object) -> Vec<Self> {
        let namespace = || object.meta.namespace.clone();
        match object.kind {
            Kind::EndpointSlice => {
                let service = object.meta.labels.get(SERVICE_NAME_LABEL);
                let name = |service: &String| NamespacedName::new(namespace(), service.clone());
                service.map(name).map(Self::SlicesOf).into_iter().collect()
            }
            Kind::Pod => {
                let labels = object.meta.labels.iter();
                labels.map(|(key, value)| Self::pods(&object.meta.namespace, key, value)).collect()
            }
            Kind::Service => {
                let view = object.service().filter(|view| view.selects());
                let first = view.and_then(|view| view.spec.selector.first_key_value());
                let group = first
                    .map(|(key, value)| Self::ServicesFor(namespace(), key.clone(), value.clone()));
                group.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn pods(namespace: &str, key: &str, value: &str) -> Self {
        Self::PodsWith(namespace.to_owned(), key.to_owned(), value.to_owned())
    }
}

impl Snapshot {
    /// The object of this key.
    pub fn get(&self, kind: Kind, name: &NamespacedName) -> Option<&Arc<Object>> {
        self.kinds.get(&kind)?.get(name)
    }

    /// The same by namespace and name.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.get(kind, &NamespacedName::new(namespace, name))
    }

    /// All objects of a kind, by namespace and name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.kinds.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// The objects of a kind in one namespace, by name.
    pub fn in_namespace<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        self.kinds
            .get(&kind)
            .into_iter()
            .flat_map(move |objects| objects.range(NamespacedName::new(namespace, "")..))
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, object)| object)
    }

    /// The objects that name this uid among their owners.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|key| self.get(key.kind, &key.name))
    }

    /// The objects of a kind that this uid controls.
    pub fn controlled<'a>(
        &'a self,
        kind: Kind,
        uid: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        self.dependents(uid).filter(move |object| {
            object.kind == kind && object.meta.controller().is_some_and(|owner| owner.uid == uid)
        })
    }

    /// The pods of a node; of the empty name, those that have none yet.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Object>> {
        self.pods_by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|name| self.get(Kind::Pod, name))
    }

    /// The EndpointSlices of a Service, whoever made them.
    pub fn slices_of<'a>(
        &'a self,
        service: &NamespacedName,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.group(&Group::SlicesOf(service.clone()), Kind::EndpointSlice)
    }

    /// The pods of a namespace with all of these labels, by name; none where there are no labels.
    pub fn pods_with<'a>(
        &'a self,
        namespace: &str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let groups = labels.iter().map(|(key, value)| Group::pods(namespace, key, value));
        let fewest = groups.min_by_key(|group| self.groups.get(group).map_or(0, BTreeSet::len));
        fewest
            .into_iter()
            .flat_map(|group| self.group(&group, Kind::Pod))
            .filter(|pod| matches_map(labels, &pod.meta.labels))
    }

    /// The Services that select a pod.
    pub fn services_for<'a>(&'a self, pod: &'a Object) -> impl Iterator<Item = &'a Arc<Object>> {
        let meta = &pod.meta;
        let groups = meta.labels.iter().map(|(key, value)| {
            Group::ServicesFor(meta.namespace.clone(), key.clone(), value.clone())
        });
        groups.flat_map(|group| self.group(&group, Kind::Service)).filter(|object| {
            object.service().is_some_and(|view| matches_map(&view.spec.selector, &meta.labels))
        })
    }

    fn group(&self, group: &Group, kind: Kind) -> impl Iterator<Item = &Arc<Object>> + use<'_> {
        let names = self.groups.get(group).into_iter().flatten();
        names.filter_map(move |name| self.get(kind, name))
    }

    /// The owner of a reference in an object of `namespace`. `Err` when its kind is not known
    /// here, so that nothing can be said about it.
    pub fn owner(
        &self,
        reference: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<&Arc<Object>>, UnknownKind> {
        let key = owner_key(reference, namespace).ok_or(UnknownKind)?;
        Ok(self.get(key.kind, &key.name).filter(|owner| owner.meta.uid == reference.uid))
    }

    /// Whether the namespace is being deleted.
    pub fn is_terminating_namespace(&self, namespace: &str) -> bool {
        self.find(Kind::Namespace, "", namespace).is_some_and(|found| found.is_terminating())
    }

    /// Takes in an object as the server sent it, by watch or as an answer. `None` when nothing
    /// became newer.
    pub fn apply(&mut self, kind: Kind, value: Value) -> Option<Change> {
        let object = Object::read(kind, value)?;
        let name = object.meta.key();
        let uid = &object.meta.uid;
        if self.tombstones.contains(uid) {
            return None;
        }
        let old = self.get(kind, &name).cloned();
        if let Some(old) = &old {
            let version = object.version();
            if version != 0 && version <= old.version() {
                return None;
            }
        }
        let new = Arc::new(object);
        self.put(name, old.as_ref(), Some(&new));
        Some(Change { old, new: Some(new) })
    }

    /// Takes in that the watch reported an object as deleted.
    pub fn deleted(&mut self, kind: Kind, value: Value) -> Option<Change> {
        let object = Object::read(kind, value)?;
        self.remove(&ObjectKey::new(kind, object.meta.key()), &object.meta.uid)
    }

    /// Takes in that a write found or made an object gone, before the watch says so.
    pub fn gone(&mut self, key: &ObjectKey, uid: &str) -> Option<Change> {
        self.remove(key, uid)
    }

    /// Takes in a complete list of a kind, which was true at `revision`. Objects that we know
    /// in a newer version, from answers to our own writes, stay.
    pub fn replace(&mut self, kind: Kind, values: Vec<Value>, revision: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut listed = BTreeSet::new();
        // Objects are read from copies, and the list goes as a whole: texts that are kept would
        // otherwise lie all over it, and keep its pages from being given back.
        for value in &values {
            let metadata = value.get("metadata");
            let text = |field: &str| {
                let found =
                    metadata.and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
                found.unwrap_or_default().to_owned()
            };
            listed.insert(NamespacedName::new(text("namespace"), text("name")));
            changes.extend(self.apply(kind, value.clone()));
        }
        drop(values);
        let lost: Vec<_> = self
            .all(kind)
            .filter(|object| !listed.contains(&object.meta.key()) && object.version() <= revision)
            .map(|object| (object.key(), object.meta.uid.clone()))
            .collect();
        for (key, uid) in lost {
            changes.extend(self.remove(&key, &uid));
        }
        changes
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, BTreeMap::len)
    }

    fn remove(&mut self, key: &ObjectKey, uid: &str) -> Option<Change> {
        if self.tombstones.insert(uid.to_owned()) {
            self.buried.push_back(uid.to_owned());
            if self.buried.len() > MAX_TOMBSTONES
                && let Some(oldest) = self.buried.pop_front()
            {
                self.tombstones.remove(&oldest);
            }
        }
        let old = self.get(key.kind, &key.name).filter(|old| old.meta.uid == uid)?.clone();
        self.put(key.name.clone(), Some(&old), None);
        Some(Change { old: Some(old), new: None })
    }

    fn put(&mut self, name: NamespacedName, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        for group in old.into_iter().flat_map(|old| Group::of(old)) {
            remove_from(&mut self.groups, &group, &name);
        }
        for group in new.into_iter().flat_map(|new| Group::of(new)) {
            self.groups.entry(group).or_default().insert(name.clone());
        }
        if let Some(old) = old {
            for owner in &old.meta.owner_references {
                remove_from(&mut self.dependents, owner.uid.as_str(), &old.key());
            }
            if let Some(pod) = old.pod() {
                remove_from(&mut self.pods_by_node, pod.spec.node_name.as_str(), &name);
            }
        }
        if let Some(new) = new {
            for owner in &new.meta.owner_references {
                self.dependents.entry(owner.uid.clone()).or_default().insert(new.key());
            }
            if let Some(pod) = new.pod() {
                let node = pod.spec.node_name.clone();
                self.pods_by_node.entry(node).or_default().insert(name.clone());
            }
        }
        let Some(kind) = new.or(old).map(|object| object.kind) else { return };
        let objects = self.kinds.entry(kind).or_default();
        match new {
            Some(new) => objects.insert(name, new.clone()),
            None => objects.remove(&name),
        };
    }
}

/// The owner is of a kind that controllers do not watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

/// The key of an owner, as seen from a dependent in `namespace`.
pub fn owner_key(reference: &OwnerReference, namespace: &str) -> Option<ObjectKey> {
    let kind = Kind::of_reference(&reference.api_version, &reference.kind)?;
    let row = kind.row();
    let namespace = if row.namespaced { namespace } else { "" };
    row.watched.then(|| ObjectKey::new(kind, NamespacedName::new(namespace, &*reference.name)))
}

fn remove_from<K, Q, T>(index: &mut BTreeMap<K, BTreeSet<T>>, key: &Q, value: &T)
where
    K: Ord + Borrow<Q>,
    Q: Ord + ?Sized,
    T: Ord,
{
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, version: u64, node: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "uid": format!("u-{name}"),
            "resourceVersion": version.to_string()}, "spec": {"nodeName": node}})
    }

    #[test]
    fn an_older_event_never_goes_back_behind_an_answer() {
        let mut snapshot = Snapshot::default();
        assert!(snapshot.apply(Kind::Pod, pod("a", 5, "n")).is_some());
        assert!(snapshot.apply(Kind::Pod, pod("a", 4, "")).is_none());
        assert_eq!(snapshot.pods_on("n").count(), 1);
        assert_eq!(snapshot.pods_on("").count(), 0);
    }

    #[test]
    fn a_confirmed_deletion_is_not_undone_by_a_late_event() {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Kind::Pod, pod("a", 5, "n"));
        let key = ObjectKey::new(Kind::Pod, NamespacedName::new("d", "a"));
        assert!(snapshot.gone(&key, "u-a").is_some());
        assert!(snapshot.apply(Kind::Pod, pod("a", 6, "n")).is_none());
        assert!(snapshot.deleted(Kind::Pod, pod("a", 7, "n")).is_none());
        assert!(snapshot.apply(Kind::Pod, pod("a", 8, "n")).is_none(), "a late answer");
        // The name lives on with another identity.
        let mut next = pod("a", 9, "n");
        next["metadata"]["uid"] = json!("u-other");
        assert!(snapshot.apply(Kind::Pod, next).is_some());
    }

    #[test]
    fn a_list_removes_what_it_lacks_but_not_what_is_newer() {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Kind::Pod, pod("old", 5, "n"));
        snapshot.apply(Kind::Pod, pod("ours", 9, "n"));
        let changes = snapshot.replace(Kind::Pod, vec![pod("listed", 6, "n")], 7);
        assert_eq!(changes.len(), 2);
        let names: Vec<_> = snapshot.all(Kind::Pod).map(|pod| pod.meta.name.clone()).collect();
        assert_eq!(names, ["listed", "ours"]);
    }

    #[test]
    fn groups_find_what_a_look_at_everything_finds() {
        let mut snapshot = Snapshot::default();
        let mut version = 0;
        let mut apply = |snapshot: &mut Snapshot, kind: Kind, name: &str, mut value: Value| {
            version += 1;
            value["metadata"]["name"] = json!(name);
            value["metadata"]["namespace"] = json!("d");
            value["metadata"]["uid"] = json!(format!("u-{name}"));
            value["metadata"]["resourceVersion"] = json!(version.to_string());
            assert!(snapshot.apply(kind, value).is_some());
        };
        let labels = |app: &str, tier: &str| json!({"metadata": {"labels": {"a": app, "t": tier}}});
        let selecting = |selector: Value| json!({"spec": {"selector": selector}});
        // Each is written twice: what it was before finds it no longer.
        for (first, second) in [("x", "y"), ("y", "x"), ("x", "x")] {
            let name = format!("{first}{second}");
            for (index, app) in [first, second].into_iter().enumerate() {
                apply(&mut snapshot, Kind::Pod, &format!("p{name}"), labels(app, second));
                let selector = if index == 0 { json!({"a": app}) } else { json!({"t": app}) };
                apply(&mut snapshot, Kind::Service, &format!("s{name}"), selecting(selector));
                let slice = json!({"metadata": {"labels": {SERVICE_NAME_LABEL: app}}});
                apply(&mut snapshot, Kind::EndpointSlice, &format!("e{name}"), slice);
            }
        }
        apply(&mut snapshot, Kind::Service, "all", selecting(json!({})));
        let names = |objects: Vec<&Arc<Object>>| -> BTreeSet<String> {
            objects.iter().map(|object| object.meta.name.clone()).collect()
        };
        for service in snapshot.all(Kind::Service) {
            let view = service.service().expect("a Service");
            let selector = &view.spec.selector;
            let by_scan = snapshot
                .all(Kind::Pod)
                .filter(|pod| view.selects() && matches_map(selector, &pod.meta.labels));
            let found = names(snapshot.pods_with("d", selector).collect());
            assert_eq!(found, names(by_scan.collect()), "{}", service.meta.name);
            assert_eq!(snapshot.pods_with("other", selector).count(), 0);
        }
        for pod in snapshot.all(Kind::Pod) {
            let by_scan = snapshot.all(Kind::Service).filter(|service| {
                let view = service.service().expect("a Service");
                view.selects() && matches_map(&view.spec.selector, &pod.meta.labels)
            });
            let found = names(snapshot.services_for(pod).collect());
            assert_eq!(found, names(by_scan.collect()), "{}", pod.meta.name);
        }
        for (service, wanted) in [("x", vec!["exx", "eyx"]), ("y", vec!["exy"]), ("z", vec![])] {
            let found = snapshot.slices_of(&NamespacedName::new("d", service));
            let wanted: BTreeSet<String> = wanted.into_iter().map(str::to_owned).collect();
            assert_eq!(names(found.collect()), wanted);
        }
    }
}
