//! The log: what the shell makes durable, and what the watch windows hold.

use std::borrow::Cow;
use std::sync::Arc;

use model::NamespacedName;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::definitions::version_of;
use crate::{Definitions, Document, Object, Resource, json as tree, registry};

/// What a record does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The object is new.
    Create,
    /// The object changed.
    Update,
    /// The object is gone.
    Delete,
}

/// One write of one object, under one revision.
///
/// The shell keeps two tables: objects, by [`Record::object_key`] (put [`Record::object_bytes`],
/// or remove when there are none), and the log, by revision ([`Record::to_bytes`]).
#[derive(Clone, Debug)]
pub struct Record {
    /// The revision, never reused.
    pub revision: u64,
    /// The revision of the record before this one in the same storage; 0 for the first. It tells
    /// a restored watch window where it begins.
    pub earlier_revision: u64,
    /// What happened.
    pub operation: Operation,
    /// The object after the write; for a deletion its last state under the deletion's revision.
    pub object: Arc<Object>,
    /// The object before the write: watches with selectors need it.
    pub previous: Option<Arc<Object>>,
}

/// Why stored bytes cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are no JSON.
    #[error(
        "stored entry {key} is damaged: {cause}; restore the state directory from a copy, or remove it to begin anew"
    )]
    Damaged {
        /// Key or revision of the entry.
        key: String,
        /// What the parser says.
        cause: String,
    },
    /// A resource that this program does not know.
    #[error(
        "stored entry {key} is of an unknown resource: it was written by a newer program, or its CustomResourceDefinition is lost; use that program, or restore the state directory from a copy"
    )]
    UnknownResource {
        /// Key or revision of the entry.
        key: String,
    },
}

impl Record {
    /// The row of the storage, which says whether losing the last seconds matters.
    pub fn resource(&self) -> &'static Resource {
        self.object.resource
    }

    /// The key of the object: `deployments.apps/default/web`.
    pub fn object_key(&self) -> String {
        let object = &self.object;
        format!("{}/{}/{}", object.resource.storage, object.key.namespace, object.key.name)
    }

    /// The object's new bytes, or `None` when it is gone.
    pub fn object_bytes(&self) -> Option<&[u8]> {
        match self.operation {
            Operation::Create | Operation::Update => {
                Some(self.object.value.whole_text().as_bytes())
            }
            Operation::Delete => None,
        }
    }

    /// The bytes of the log entry.
    pub fn to_bytes(&self) -> Vec<u8> {
        let operation = match self.operation {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Delete => "delete",
        };
        let head = json!({
            "key": self.object_key(),
            "earlier": self.earlier_revision,
            "operation": operation,
        });
        let mut text = head.to_string().into_bytes();
        // The objects follow as text.
        text.pop();
        text.extend_from_slice(b",\"object\":");
        self.object.write_text(&mut text);
        if let Some(previous) = &self.previous {
            text.extend_from_slice(b",\"previous\":");
            previous.write_text(&mut text);
        }
        text.push(b'}');
        text
    }

    /// Reads a log entry back.
    ///
    /// # Errors
    /// When the bytes are not what [`Record::to_bytes`] wrote, naming the revision.
    pub fn from_bytes(
        definitions: &Definitions,
        revision: u64,
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let name = format!("log/{revision}");
        let entry: Entry<'_> =
            serde_json::from_slice(bytes).map_err(|error| damaged(&name, error))?;
        let operation = match &*entry.operation {
            "create" => Operation::Create,
            "update" => Operation::Update,
            "delete" => Operation::Delete,
            other => return Err(damaged(&name, format!("unknown operation {other:?}"))),
        };
        let decode =
            |text: &RawValue| object_from_text(definitions, &entry.key, text.get()).map(Arc::new);
        Ok(Self {
            revision,
            earlier_revision: entry.earlier,
            operation,
            object: decode(entry.object)?,
            previous: entry.previous.map(decode).transpose()?,
        })
    }
}

/// Reads the bytes of an object row back.
///
/// # Errors
/// When the bytes are no object of a known resource, naming the key.
pub fn object_from_bytes(
    definitions: &Definitions,
    key: &str,
    bytes: &[u8],
) -> Result<Object, RestoreError> {
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(key, error))?;
    object_from_text(definitions, key, text)
}

/// What a log entry holds.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(default)]
    earlier: u64,
    #[serde(borrow)]
    operation: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
    #[serde(borrow)]
    previous: Option<&'a RawValue>,
}

fn object_from_text(
    definitions: &Definitions,
    key: &str,
    text: &str,
) -> Result<Object, RestoreError> {
    let mut parts = key.splitn(3, '/');
    let (Some(storage), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(damaged(key, "the key has fewer than three parts"));
    };
    let unknown = || RestoreError::UnknownResource { key: key.to_owned() };
    let name = NamespacedName::new(namespace, name);
    let own = registry::by_storage(storage);
    if let Some(resource) = own {
        let read = Document::of_text(resource, text).map_err(|error| damaged(key, error))?;
        if let Some((value, revision)) = read {
            return Ok(Object { resource, key: name, revision, value });
        }
    }
    let mut value = serde_json::from_str(text).map_err(|error| damaged(key, error))?;
    let written = || definitions.row_of(storage, version_of(&value));
    let resource = own.or_else(written).ok_or_else(unknown)?;
    if let Some(custom) = resource.custom {
        // The schema may have got defaults since, and the version may be gone.
        custom.fill(&mut value);
        tree::set(&mut value, "/apiVersion", resource.api_version());
    }
    let revision = tree::text(&value, "/metadata/resourceVersion")
        .parse()
        .map_err(|error| damaged(key, format!("metadata.resourceVersion: {error}")))?;
    Ok(Object::new(resource, name, revision, value))
}

fn damaged(key: &str, cause: impl ToString) -> RestoreError {
    RestoreError::Damaged { key: key.to_owned(), cause: cause.to_string() }
}
