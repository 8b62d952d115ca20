//! The watch window of one resource: its newest records, as long as a watcher may lag behind.
//!
//! A parsed object takes about ten times the memory of its text. Nearly all watchers read only the
//! newest records, so the older ones are kept as text, and parsed again for whoever comes late.

use std::collections::VecDeque;
use std::sync::Arc;

use model::NamespacedName;

use crate::{Object, Operation, Record, Resource};

/// Records that one resource's watch window holds. A watcher that falls further behind gets 410
/// and lists again.
pub const WATCH_WINDOW_EVENTS: usize = 1_000;

/// Records at the new end of a window that are kept parsed.
const PARSED_WINDOW_EVENTS: usize = 32;

/// The newest records of one storage, in the order of revisions.
#[derive(Debug, Default)]
pub(crate) struct Window {
    packed: VecDeque<PackedRecord>,
    parsed: VecDeque<Record>,
    /// The newest revision that has left the window; a watch can begin here, not before.
    pub(crate) floor: u64,
}

impl Window {
    /// Takes the next record; gives the revision of the one that leaves the window for it.
    pub(crate) fn push(&mut self, record: Record) -> Option<u64> {
        self.parsed.push_back(record);
        if self.parsed.len() > PARSED_WINDOW_EVENTS
            && let Some(oldest) = self.parsed.pop_front()
        {
            let packed = self.pack(&oldest);
            self.packed.push_back(packed);
        }
        if self.packed.len() + self.parsed.len() <= WATCH_WINDOW_EVENTS {
            return None;
        }
        let dropped = self.packed.pop_front()?.revision;
        self.floor = dropped;
        Some(dropped)
    }

    /// The records after a revision, the oldest first.
    pub(crate) fn after(&self, revision: u64) -> impl Iterator<Item = Record> + '_ {
        let packed = self.packed.partition_point(|record| record.revision <= revision);
        let parsed = self.parsed.partition_point(|record| record.revision <= revision);
        self.packed
            .range(packed..)
            .map(PackedRecord::unpack)
            .chain(self.parsed.range(parsed..).cloned())
    }

    /// The records after a revision, the newest first.
    pub(crate) fn back_to(&self, revision: u64) -> impl Iterator<Item = Record> + '_ {
        let packed = self.packed.partition_point(|record| record.revision <= revision);
        let parsed = self.parsed.partition_point(|record| record.revision <= revision);
        let packed = self.packed.range(packed..).rev().map(PackedRecord::unpack);
        self.parsed.range(parsed..).rev().cloned().chain(packed)
    }

    /// The revision of the newest record; 0 when there is none.
    pub(crate) fn last_revision(&self) -> u64 {
        self.parsed.back().map(|record| record.revision).unwrap_or_default()
    }

    /// Whether there is no record at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.parsed.is_empty()
    }

    /// Packs a record, sharing the text of its previous object with the record that wrote it.
    fn pack(&self, record: &Record) -> PackedRecord {
        let previous = record.previous.as_ref().map(|previous| {
            let revision = previous.revision;
            match self.packed.binary_search_by_key(&revision, |packed| packed.revision) {
                Ok(index) => self.packed.get(index).map(|packed| packed.object.clone()),
                Err(_) => None,
            }
            .unwrap_or_else(|| PackedObject::of(previous))
        });
        PackedRecord {
            revision: record.revision,
            earlier_revision: record.earlier_revision,
            operation: record.operation,
            resource: record.object.resource,
            key: record.object.key.clone(),
            object: PackedObject::of(&record.object),
            previous,
        }
    }
}

#[derive(Debug)]
struct PackedRecord {
    revision: u64,
    earlier_revision: u64,
    operation: Operation,
    resource: &'static Resource,
    key: NamespacedName,
    object: PackedObject,
    previous: Option<PackedObject>,
}

#[derive(Clone, Debug)]
struct PackedObject {
    revision: u64,
    text: Arc<str>,
    managed_fields: Option<Arc<str>>,
}

impl PackedRecord {
    fn unpack(&self) -> Record {
        let object = |packed: &PackedObject| {
            Arc::new(Object {
                resource: self.resource,
                key: self.key.clone(),
                revision: packed.revision,
                // The text was written by the same library from a tree: it reads back.
                value: serde_json::from_str(&packed.text).unwrap_or_default(),
                managed_fields: packed.managed_fields.clone(),
            })
        };
        Record {
            revision: self.revision,
            earlier_revision: self.earlier_revision,
            operation: self.operation,
            object: object(&self.object),
            previous: self.previous.as_ref().map(object),
        }
    }
}

impl PackedObject {
    fn of(object: &Object) -> Self {
        Self {
            revision: object.revision,
            text: object.value.to_string().into(),
            managed_fields: object.managed_fields.clone(),
        }
    }
}
