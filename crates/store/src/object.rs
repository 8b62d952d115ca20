//! One version of one object.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::document::Document;
use crate::{Resource, json};

/// One version of one object. It never changes: a write makes a new one, so that reads share it
/// behind an `Arc` without copying JSON.
#[derive(Debug)]
pub struct Object {
    /// The row in whose group and version `value` is written.
    pub resource: &'static Resource,
    /// Namespace (empty for cluster-scoped kinds) and name.
    pub key: NamespacedName,
    /// The revision that wrote this version; 0 for the answer of a dry run.
    pub revision: u64,
    /// The object with `apiVersion`, `kind` and `metadata.resourceVersion`, but without
    /// `metadata.managedFields`.
    pub value: Document,
}

/// An object as the store keeps it: most of them as text alone. Whoever reads it gets a copy, so
/// that the tree which reading makes goes with the reader.
#[derive(Clone, Debug)]
pub(crate) struct Kept(Arc<Object>);

impl Kept {
    pub(crate) fn new(object: Arc<Object>) -> Self {
        Self(object)
    }

    /// The same as text alone.
    pub(crate) fn packed(&self) -> Self {
        if self.0.value.is_packed() { self.clone() } else { Self(Arc::new(self.0.packed())) }
    }

    /// For one who reads it and lets it go.
    pub(crate) fn lent(&self) -> Arc<Object> {
        if self.0.value.is_packed() { Arc::new(self.0.packed()) } else { self.0.clone() }
    }

    /// For what is read again and again: its tree stays.
    pub(crate) fn settled(&self) -> &Arc<Object> {
        let _: &Value = &self.0.value;
        &self.0
    }

    /// What is known without its tree.
    pub(crate) fn untouched(&self) -> &Object {
        &self.0
    }
}

impl Object {
    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        json::text(&self.value, "/metadata/uid")
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        json::at(&self.value, "/metadata/labels")?.get(key)?.as_str()
    }

    /// An object of its whole tree: `managedFields` moves where it costs less.
    pub(crate) fn new(
        resource: &'static Resource,
        key: NamespacedName,
        revision: u64,
        mut value: Value,
    ) -> Self {
        let managed_fields = json::remove(&mut value, "/metadata/managedFields");
        let managed_fields = managed_fields.map(|entries| entries.to_string().into());
        Self { resource, key, revision, value: Document::of(value, managed_fields) }
    }

    /// The same as text alone.
    fn packed(&self) -> Self {
        let Self { resource, key, revision, value } = self;
        Self { resource, key: key.clone(), revision: *revision, value: value.packed() }
    }

    /// `metadata.managedFields` as JSON text; `None` when nobody is on record.
    pub(crate) fn managed_fields(&self) -> Option<Arc<str>> {
        self.value.managed_fields()
    }

    /// The whole object, as clients see it.
    pub fn to_value(&self) -> Value {
        let mut value = self.value.clone();
        self.add_managed_fields(&mut value);
        value
    }

    /// The object as an item of a list, which carries neither `kind` nor `apiVersion`.
    pub fn to_list_item(&self) -> Value {
        let mut item = self.to_value();
        json::remove(&mut item, "/kind");
        json::remove(&mut item, "/apiVersion");
        item
    }

    /// The `PartialObjectMetadata` of the object: metadata without spec and status.
    pub fn to_partial(&self) -> Value {
        let mut partial = self.to_row_metadata();
        self.add_managed_fields(&mut partial);
        partial
    }

    /// The metadata for the row of a Table, where nobody looks for managers.
    pub(crate) fn to_row_metadata(&self) -> Value {
        serde_json::json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": self.value.get("metadata").cloned().unwrap_or_default(),
        })
    }

    /// Writes the JSON text of [`Object::to_value`].
    pub fn write_text(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.value.whole_text().as_bytes());
    }

    /// Writes the JSON text of [`Object::to_list_item`].
    pub fn write_list_item(&self, text: &mut Vec<u8>) {
        self.value.write_item(text);
    }

    fn add_managed_fields(&self, value: &mut Value) {
        let entries = self.managed_fields();
        let entries = entries.as_deref();
        // The text was written by the same library from a tree: it reads back.
        if let Some(entries) = entries.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            json::set(value, "/metadata/managedFields", entries);
        }
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.value.peek("/metadata/deletionTimestamp").is_some()
    }

    /// The same content under another revision: what a `DELETED` event carries.
    pub(crate) fn at_revision(&self, revision: u64) -> Self {
        let mut value = self.value.clone();
        json::set(&mut value, "/metadata/resourceVersion", revision.to_string());
        let value = Document::of(value, self.managed_fields());
        Self { resource: self.resource, key: self.key.clone(), revision, value }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry;

    #[test]
    fn text_and_tree_say_the_same_with_and_without_managers() {
        let managed = json!([{"manager": "a \"quoted\" one", "operation": "Update"}]);
        let resource = registry::find("", "v1", "configmaps").expect("a resource");
        for managed in [None, Some(managed)] {
            let mut whole = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "uid": "u"},
                "data": {"\"": "\n"},
            });
            if let Some(managed) = &managed {
                json::set(&mut whole, "/metadata/managedFields", managed.clone());
            }
            let object = Object::new(resource, NamespacedName::new("", "c"), 1, whole.clone());
            assert_eq!(object.value.pointer("/metadata/managedFields"), None);
            assert_eq!(object.to_value(), whole);
            let read = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).expect("JSON");
            let (mut text, mut item) = (Vec::new(), Vec::new());
            object.write_text(&mut text);
            object.write_list_item(&mut item);
            assert_eq!(read(text), whole);
            assert_eq!(read(item), object.to_list_item());
            assert_eq!(object.to_partial().pointer("/metadata"), whole.pointer("/metadata"));
        }
    }
}
