//! What the store holds: the published state, what is staged on top of it, and the watch windows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::{ClusterConfig, NamespacedName};
use serde_json::Value;

use crate::alloc::{Allocations, cluster_addresses};
use crate::conversion::{Conversions, converter_for};
use crate::definitions::version_of;
use crate::kinds::addressing::{IP_ADDRESS, SERVICE_CIDR, address_of_service, belongs_to};
use crate::kinds::admission_policy::{self, POLICY};
use crate::kinds::definition::DEFINITION;
use crate::kinds::quota::RESOURCE_QUOTA;
use crate::kinds::rbac::CLUSTER_ROLE;
use crate::kinds::service::SERVICE;
use crate::object::Kept;
use crate::webhooks::Proposal;
use crate::window::{Pushed, Window};
use crate::{
    Context, Definitions, Document, Object, Operation, Record, Resource, RestoreError, json,
    registry,
};

/// What a store is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Ranges of Service addresses, at most one a family; the first is the default family.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_port_range: (u16, u16),
}

impl From<&ClusterConfig> for StoreConfig {
    fn from(config: &ClusterConfig) -> Self {
        Self {
            service_cidrs: config.service_cidrs.clone(),
            node_port_range: config.node_port_range,
        }
    }
}

/// What [`Store::publish`] made visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The revision that reads now see.
    pub revision: u64,
    /// The storages that changed: watchers of their resources have something to read.
    pub storages: Vec<&'static str>,
    /// Revisions whose log entries have left the watch windows; the shell may delete them.
    pub dropped: Vec<u64>,
}

/// The state of the API server. One writer stages and publishes; reads take `&self`.
#[derive(Debug)]
pub struct Store {
    pub(crate) config: StoreConfig,
    /// The newest published revision.
    pub(crate) revision: u64,
    pub(crate) shelves: BTreeMap<&'static str, Shelf>,
    /// Changes that are staged, not published: `None` for a deleted object.
    overlay: BTreeMap<&'static str, BTreeMap<NamespacedName, Option<Arc<Object>>>>,
    staged: Vec<Record>,
    head_revision: u64,
    /// Derived from objects of the head state, so that it cannot leak.
    pub(crate) allocations: Allocations,
    /// What the write that runs has removed, until that is followed up.
    pub(crate) removed: Vec<Arc<Object>>,
    /// What the write that runs wants webhooks to be asked about.
    pub(crate) proposal: Option<Proposal>,
    /// What the write that runs has of objects in other versions than they are kept in.
    pub(crate) conversions: Conversions,
    /// Follows the published definitions.
    pub(crate) definitions: Definitions,
}

/// What a write makes of an object.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) value: Value,
    pub(crate) managed_fields: Option<Arc<str>>,
}

impl Content {
    /// What the object has.
    pub(crate) fn of(object: &Object) -> Self {
        Self { value: object.value.clone(), managed_fields: object.managed_fields() }
    }

    /// The object with this content.
    pub(crate) fn into_object(
        self,
        resource: &'static Resource,
        key: NamespacedName,
        revision: u64,
    ) -> Object {
        let value = Document::of(self.value, self.managed_fields);
        Object { resource, key, revision, value }
    }
}

/// Objects in the order of their keys.
pub(crate) type Objects = BTreeMap<NamespacedName, Kept>;

/// The trees of a storage with no more objects than these stay once they are made: settings that
/// writes look at again and again are few.
const FEW_OBJECTS: usize = 64;

/// The published objects of one storage, and its newest records.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) objects: Objects,
    pub(crate) window: Window,
    /// The revision of the newest record, staged ones included.
    last_revision: u64,
}

impl Store {
    /// An empty store.
    pub fn new(config: StoreConfig) -> Self {
        let allocations = Allocations::new(&config);
        let shelves = registry::resources().map(|row| (row.storage, Shelf::default())).collect();
        Self {
            config,
            revision: 0,
            shelves,
            overlay: BTreeMap::new(),
            staged: Vec::new(),
            head_revision: 0,
            allocations,
            removed: Vec::new(),
            proposal: None,
            conversions: Conversions::default(),
            definitions: Definitions::default(),
        }
    }

    /// A store as it was: `definitions` have taken the stored definitions, `objects` come from [`crate::record::object_from_bytes`], `log` from
    /// [`Record::from_bytes`] in the order of revisions. Watches resume across the restart as
    /// far as the log reaches.
    ///
    /// # Errors
    /// When log and objects contradict each other.
    pub fn restore(
        config: StoreConfig,
        definitions: Definitions,
        objects: impl IntoIterator<Item = Object>,
        log: impl IntoIterator<Item = Record>,
    ) -> Result<Self, RestoreError> {
        let mut store = Self { definitions, ..Self::new(config) };
        store.make_shelves();
        let mut found: BTreeMap<&str, Vec<(NamespacedName, Kept)>> = BTreeMap::new();
        for object in objects {
            store.revision = store.revision.max(object.revision);
            let (storage, key) = (object.resource.storage, object.key.clone());
            let kept = Kept::new(Arc::new(object)).packed();
            found.entry(storage).or_default().push((key, kept));
        }
        for (storage, objects) in found {
            if let Some(shelf) = store.shelves.get_mut(storage) {
                let revisions = objects.iter().map(|(_, kept)| kept.untouched().revision);
                shelf.last_revision = revisions.max().unwrap_or_default();
                // At once: they come in the order of their keys, or nearly.
                shelf.objects = objects.into_iter().collect();
            }
        }
        for record in log {
            store.revision = store.revision.max(record.revision);
            if let Some(shelf) = store.shelves.get_mut(record.resource().storage) {
                shelf.remember_restored(record)?;
            }
        }
        for shelf in store.shelves.values_mut() {
            // A storage whose log is gone altogether cannot serve watches from the past.
            if shelf.window.is_empty() {
                shelf.window.floor = shelf.last_revision;
            }
        }
        store.head_revision = store.revision;
        store.rebuild_allocations();
        Ok(store)
    }

    /// The newest published revision: the `resourceVersion` of lists.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes all that is staged visible, in revision order.
    pub fn publish(&mut self) -> Published {
        let mut published = Published::default();
        let mut redefined = BTreeSet::new();
        self.overlay.clear();
        for record in std::mem::take(&mut self.staged) {
            self.revision = record.revision;
            let storage = record.resource().storage;
            if storage == DEFINITION.storage {
                redefined.insert(self.redefine(&record));
            }
            if !published.storages.contains(&storage) {
                published.storages.push(storage);
            }
            if let Some(shelf) = self.shelves.get_mut(storage) {
                published.dropped.extend(shelf.apply(record));
            }
        }
        if !redefined.is_empty() {
            self.make_shelves();
        }
        for storage in redefined {
            self.take_current_rows(&storage);
            // Its watches may have to end.
            published
                .storages
                .extend(self.shelves.get_key_value(storage.as_str()).map(|(key, _)| *key));
        }
        published.revision = self.revision;
        published
    }

    /// Follows a write of a definition; gives its name.
    fn redefine(&mut self, record: &Record) -> String {
        let name = &record.object.key.name;
        match record.operation {
            Operation::Delete => self.definitions.forget(name),
            Operation::Create | Operation::Update => self.definitions.take(&record.object.value),
        }
        name.clone()
    }

    fn make_shelves(&mut self) {
        for storage in self.definitions.storages() {
            self.shelves.entry(storage).or_default();
        }
    }

    /// Gives the objects of a definition its rows of now.
    fn take_current_rows(&mut self, storage: &str) {
        let Some(shelf) = self.shelves.get_mut(storage) else { return };
        for kept in shelf.objects.values_mut() {
            let object = kept.untouched();
            let row = self.definitions.row_of(storage, object.resource.version);
            // Where its version is gone, no webhook makes another of it.
            let is_new = |row: &&'static Resource| {
                converter_for(row, object).is_none() && !std::ptr::eq(object.resource, *row)
            };
            let Some(row) = row.filter(is_new) else { continue };
            let current = crate::read::converted(row, &kept.lent());
            let mut content = Content::of(&current);
            row.fill(&mut content.value);
            let object = content.into_object(row, current.key, current.revision);
            *kept = Kept::new(Arc::new(object)).packed();
        }
    }

    /// The row of a URL: `find("apps", "v1", "deployments")`; the core group is empty.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        let is_it = |row: &&'static Resource| {
            row.group == group && row.version == version && row.plural == plural
        };
        registry::find(group, version, plural).or_else(|| self.definitions.served().find(is_it))
    }

    /// Every resource whose objects are stored: those of the program, then those of definitions.
    pub fn resources(&self) -> Vec<&'static Resource> {
        registry::resources().chain(self.definitions.served()).collect()
    }

    /// Every resource that is served, for documents about the API.
    pub fn served(&self) -> Vec<&'static Resource> {
        let own = registry::resources().chain(registry::reviews()).chain(registry::measured());
        own.chain(self.definitions.served()).collect()
    }

    /// Counts changes of what is served.
    pub fn generation(&self) -> u64 {
        self.definitions.generation()
    }

    /// The row in whose form new objects of a row's storage are kept.
    pub(crate) fn storage_row(&self, resource: &'static Resource) -> &'static Resource {
        let found = match resource.custom {
            None => registry::by_storage(resource.storage),
            Some(_) => self.definitions.storage_row(resource.storage),
        };
        found.unwrap_or(resource)
    }

    /// Forgets all that is staged: what the shell could not make durable never happened.
    /// The revisions are used again, since nobody has seen them.
    pub fn discard(&mut self) {
        self.overlay.clear();
        for record in std::mem::take(&mut self.staged) {
            if let Some(shelf) = self.shelves.get_mut(record.resource().storage) {
                shelf.last_revision = shelf.last_revision.min(record.earlier_revision);
            }
        }
        self.head_revision = self.revision;
        self.rebuild_allocations();
    }

    /// Whether something is staged that is not published.
    pub fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// The object in the head state: published, or staged on top.
    pub(crate) fn head(&self, resource: &Resource, key: &NamespacedName) -> Option<Arc<Object>> {
        match self.overlay.get(resource.storage).and_then(|changes| changes.get(key)) {
            Some(change) => change.clone(),
            None => self.shelves.get(resource.storage)?.get(key),
        }
    }

    /// All objects of a storage in the head state, in the order of their keys.
    pub(crate) fn head_objects(&self, storage: &str) -> Vec<Arc<Object>> {
        self.head_objects_that(storage, "", |_| true)
    }

    /// The same of those that may mention a text, such as a uid.
    pub(crate) fn head_objects_with(&self, storage: &str, text: &str) -> Vec<Arc<Object>> {
        self.head_objects_that(storage, "", |object| object.value.may_mention(text))
    }

    /// The objects of a storage that stand in a namespace, in the head state, by name.
    pub(crate) fn head_in_namespace(&self, storage: &str, namespace: &str) -> Vec<Arc<Object>> {
        self.head_objects_that(storage, namespace, |_| true)
    }

    /// The objects of a namespace, or of all, of which something is true that is known without
    /// their trees.
    fn head_objects_that(
        &self,
        storage: &str,
        namespace: &str,
        is_wanted: impl Fn(&Object) -> bool,
    ) -> Vec<Arc<Object>> {
        let from = NamespacedName::new(namespace, "");
        let is_in = |key: &NamespacedName| namespace.is_empty() || key.namespace == namespace;
        let changes = self.overlay.get(storage);
        let changed = changes.into_iter().flat_map(|changes| changes.range(&from..));
        let mut objects: BTreeMap<&NamespacedName, Arc<Object>> = changed
            .take_while(|(key, _)| is_in(key))
            .filter_map(|(key, change)| Some((key, change.clone()?)))
            .collect();
        if let Some(shelf) = self.shelves.get(storage) {
            let standing = shelf
                .objects
                .range(&from..)
                .take_while(|(key, _)| is_in(key))
                .filter(|(key, _)| !changes.is_some_and(|changes| changes.contains_key(*key)))
                .filter(|(_, kept)| is_wanted(kept.untouched()));
            objects.extend(standing.map(|(key, kept)| (key, shelf.lend(kept))));
        }
        objects.into_values().collect()
    }

    /// Stages one write of one object under the next revision, and with a Service its IPAddress
    /// objects. The only place that writes: a dry run passes through here and leaves nothing.
    pub(crate) fn commit(
        &mut self,
        resource: &'static Resource,
        key: NamespacedName,
        operation: Operation,
        mut content: Content,
        context: &mut Context<'_>,
    ) -> Arc<Object> {
        let resource = match resource.custom {
            None => self.storage_row(resource),
            Some(_) => {
                let version = version_of(&content.value);
                self.definitions.row_of(resource.storage, version).unwrap_or(resource)
            }
        };
        if context.dry_run {
            return Arc::new(content.into_object(resource, key, 0));
        }
        let addresses = |value: &Value| {
            if resource == &SERVICE { cluster_addresses(value) } else { Vec::new() }
        };
        let before = self.head(resource, &key).map(|old| addresses(&old.value)).unwrap_or_default();
        let remains = operation != Operation::Delete;
        let now = if remains { addresses(&content.value) } else { Vec::new() };
        for address in &now {
            self.reserve(*address, &key, context);
        }
        if resource == &RESOURCE_QUOTA && remains {
            self.recount_quota(&key, &mut content.value);
        }
        if resource == &CLUSTER_ROLE && remains {
            self.aggregate_own(&mut content.value);
        }
        if resource == &POLICY && remains {
            admission_policy::set_status(&mut content.value, |policy| self.type_checking(policy));
        }
        let old = self.head(resource, &key);
        let object = self.stage_record(resource, key, operation, content);
        if resource == &CLUSTER_ROLE {
            self.aggregate_all();
        }
        let old = old.as_ref().map(|old| &*old.value);
        self.charge_quotas(resource, &object.key, old, remains.then_some(&*object.value));
        for address in before.iter().filter(|address| !now.contains(address)) {
            self.release(*address, &object.key, context);
        }
        if resource == &IP_ADDRESS && !remains {
            // Whoever deletes the object of a Service does not take its address away.
            let owner = object
                .key
                .name
                .parse()
                .ok()
                .and_then(|address| Some((address, self.allocations.owner(address)?.clone())));
            if let Some((address, service)) = owner {
                self.reserve(address, &service, context);
            }
        }
        if !remains {
            self.removed.push(object.clone());
        }
        object
    }

    /// Stages one record, and nothing that follows from it.
    pub(crate) fn stage_record(
        &mut self,
        resource: &'static Resource,
        key: NamespacedName,
        operation: Operation,
        mut content: Content,
    ) -> Arc<Object> {
        let previous = self.head(resource, &key);
        self.head_revision += 1;
        let revision = self.head_revision;
        json::set(&mut content.value, "/metadata/resourceVersion", revision.to_string());
        let object = Arc::new(content.into_object(resource, key, revision));
        let remains = operation != Operation::Delete;
        let old = previous.as_ref().map(|previous| &*previous.value);
        self.follow(resource, &object.key, old, remains.then_some(&*object.value));
        let change = remains.then(|| object.clone());
        self.overlay.entry(resource.storage).or_default().insert(object.key.clone(), change);
        let shelf = self.shelves.entry(resource.storage).or_default();
        let earlier_revision = std::mem::replace(&mut shelf.last_revision, revision);
        let object_of_record = object.clone();
        self.staged.push(Record {
            revision,
            earlier_revision,
            operation,
            object: object_of_record,
            previous,
        });
        object
    }

    /// Makes the IPAddress of an address that a Service has or is about to get, in the same batch,
    /// so that one is never without the other.
    fn reserve(&mut self, address: IpAddr, service: &NamespacedName, context: &mut Context<'_>) {
        let key = NamespacedName::new("", address.to_string());
        if self.head(&IP_ADDRESS, &key).is_none() {
            let mut value = address_of_service(address, service);
            crate::write::begin(&IP_ADDRESS, &mut value, context);
            let content = Content { value, managed_fields: None };
            self.commit(&IP_ADDRESS, key, Operation::Create, content, context);
        }
    }

    /// Removes the IPAddress of an address that a Service has given up.
    fn release(&mut self, address: IpAddr, service: &NamespacedName, context: &mut Context<'_>) {
        let key = NamespacedName::new("", address.to_string());
        let held = self.head(&IP_ADDRESS, &key).filter(|held| belongs_to(&held.value, service));
        if let Some(content) = held.map(|held| Content::of(&held)) {
            self.commit(&IP_ADDRESS, key, Operation::Delete, content, context);
        }
    }

    /// Keeps the index of addresses and ports in step with the objects that it comes from.
    fn follow(
        &mut self,
        resource: &Resource,
        key: &NamespacedName,
        old: Option<&Value>,
        new: Option<&Value>,
    ) {
        if resource == &SERVICE {
            self.allocations.replace(key, old, new);
        } else if resource == &IP_ADDRESS {
            self.allocations.replace_ip_address(&key.name, new);
        } else if resource == &SERVICE_CIDR {
            self.allocations.replace_service_cidr(&key.name, new);
        }
    }

    /// The records staged since there were `count` of them.
    pub(crate) fn records_since(&self, count: usize) -> Vec<Record> {
        self.staged.get(count..).unwrap_or_default().to_vec()
    }

    /// How many records are staged.
    pub(crate) fn staged_count(&self) -> usize {
        self.staged.len()
    }

    fn rebuild_allocations(&mut self) {
        self.allocations = Allocations::new(&self.config);
        for resource in [&SERVICE, &IP_ADDRESS, &SERVICE_CIDR] {
            for object in self.head_objects(resource.storage) {
                self.follow(resource, &object.key, None, Some(&object.value));
            }
        }
    }
}

impl Shelf {
    /// An object, for a reader.
    pub(crate) fn get(&self, key: &NamespacedName) -> Option<Arc<Object>> {
        self.objects.get(key).map(|kept| self.lend(kept))
    }

    fn lend(&self, kept: &Kept) -> Arc<Object> {
        if self.objects.len() <= FEW_OBJECTS { kept.settled().clone() } else { kept.lent() }
    }

    /// Follows a record; gives the revision that leaves the window for it.
    fn apply(&mut self, record: Record) -> Option<u64> {
        let key = record.object.key.clone();
        match record.operation {
            Operation::Create | Operation::Update => {
                self.objects.insert(key, Kept::new(record.object.clone()));
            }
            Operation::Delete => {
                self.objects.remove(&key);
            }
        }
        self.push(record)
    }

    /// Takes a record of the restored log.
    fn remember_restored(&mut self, mut record: Record) -> Result<(), RestoreError> {
        if self.window.is_empty() {
            self.window.floor = record.earlier_revision;
        } else if record.revision <= self.window.last_revision() {
            return Err(RestoreError::Damaged {
                key: format!("log/{}", record.revision),
                cause: "the log is out of order".to_owned(),
            });
        }
        self.last_revision = self.last_revision.max(record.revision);
        record.previous = record.previous.map(|previous| self.window.shared(previous));
        self.push(record);
        Ok(())
    }

    /// Remembers a record. An object that is packed in the window is so here too, and shares its
    /// text.
    fn push(&mut self, record: Record) -> Option<u64> {
        let Pushed { packed, dropped } = self.window.push(record);
        if let Some(packed) = packed {
            let object = packed.untouched();
            let current = self.objects.get_mut(&object.key);
            if let Some(kept) = current.filter(|kept| kept.untouched().revision == object.revision)
            {
                *kept = packed;
            }
        }
        dropped
    }
}
