//! The part of `metadata` that flatnet reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{NamespacedName, Timestamp};

/// `metadata`, narrowed. Nulls read as absent, as the API server reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// The object's name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The namespace; empty for cluster-scoped kinds.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// The identity that survives neither deletion nor re-creation.
    #[serde(deserialize_with = "null_as_default")]
    pub uid: String,
    /// The version as the server's decimal text; opaque but comparable for equality.
    #[serde(deserialize_with = "null_as_default")]
    pub resource_version: String,
    /// Counts changes of the spec.
    #[serde(deserialize_with = "null_as_default")]
    pub generation: i64,
    /// When the server stored the object first.
    pub creation_timestamp: Option<Timestamp>,
    /// When the object shall be gone; present while it is being deleted.
    pub deletion_timestamp: Option<Timestamp>,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// Who owns the object.
    #[serde(deserialize_with = "null_as_default")]
    pub owner_references: Vec<OwnerReference>,
    /// What must happen before the object may go.
    #[serde(deserialize_with = "null_as_default")]
    pub finalizers: Vec<String>,
}

impl ObjectMeta {
    /// Namespace and name together.
    pub fn key(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
    }

    /// The owner that manages the object, if there is one.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner, in the same namespace or cluster-scoped.
    pub name: String,
    /// Identity of the owner.
    pub uid: String,
    /// Whether this owner is the managing controller.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// Reads `null` as the type's default: clients send nulls for absent values.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
