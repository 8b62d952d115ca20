//! The part of `metadata` that flatnet reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{FlatMap, NamespacedName, Timestamp};

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

/// `metadata` of kinds that every node keeps by the thousand: what its network reads and no more.
/// Versions, owners and managers of fields change without anything to do, and are half of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NarrowMeta {
    /// The object's name.
    #[serde(with = "nullable")]
    pub name: String,
    /// The namespace.
    #[serde(with = "nullable")]
    pub namespace: String,
    /// The identity that survives neither deletion nor re-creation.
    #[serde(with = "nullable")]
    pub uid: String,
    /// Labels.
    #[serde(with = "nullable")]
    pub labels: FlatMap<String, String>,
    /// Annotations.
    #[serde(with = "nullable")]
    pub annotations: FlatMap<String, String>,
}

impl NarrowMeta {
    /// Namespace and name together.
    pub fn key(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
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

/// As [`null_as_default`], for types that are also written without the names of their fields, where
/// it must show in the same way whether there is a value.
pub mod nullable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the value; in JSON it looks as any other.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_some(value)
    }

    /// Reads `null` as the type's default.
    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: Default + Deserialize<'de>,
    {
        super::null_as_default(deserializer)
    }
}
