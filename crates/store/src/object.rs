//! One version of one object.

use model::NamespacedName;
use serde_json::Value;

use crate::{Resource, json};

/// One version of one object. It never changes: a write makes a new one, so that reads share it
/// behind an `Arc` without copying JSON.
#[derive(Clone, Debug)]
pub struct Object {
    /// The row in whose group and version `value` is written.
    pub resource: &'static Resource,
    /// Namespace (empty for cluster-scoped kinds) and name.
    pub key: NamespacedName,
    /// The revision that wrote this version; 0 for the answer of a dry run.
    pub revision: u64,
    /// The whole object, with `apiVersion`, `kind` and `metadata.resourceVersion`.
    pub value: Value,
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

    /// The object as an item of a list, which carries neither `kind` nor `apiVersion`.
    pub fn to_list_item(&self) -> Value {
        match &self.value {
            Value::Object(map) => Value::Object(
                map.iter()
                    .filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion"))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect(),
            ),
            other => other.clone(),
        }
    }

    /// The `PartialObjectMetadata` of the object: metadata without spec and status.
    pub fn to_partial(&self) -> Value {
        serde_json::json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": self.value.get("metadata").cloned().unwrap_or_default(),
        })
    }

    pub(crate) fn is_terminating(&self) -> bool {
        json::at(&self.value, "/metadata/deletionTimestamp").is_some()
    }

    /// The same content under another revision: what a `DELETED` event carries.
    pub(crate) fn at_revision(&self, revision: u64) -> Self {
        let mut object = Self { revision, ..self.clone() };
        json::set(&mut object.value, "/metadata/resourceVersion", revision.to_string());
        object
    }
}
