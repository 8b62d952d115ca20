//! The watch window of one resource: its newest records, as long as a watcher may lag behind.
//!
//! Nearly all watchers read only the newest records, so the objects of older ones are kept as text,
//! and parsed again for whoever comes late.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::object::Kept;
use crate::{Object, Operation, Record};

/// Records that one resource's watch window holds. A watcher that falls further behind gets 410
/// and lists again.
pub const WATCH_WINDOW_EVENTS: usize = 1_000;

/// Records at the new end of a window whose objects are kept as they were written.
const FRESH_WINDOW_EVENTS: usize = 8;

/// The newest records of one storage, in the order of revisions.
#[derive(Debug, Default)]
pub(crate) struct Window {
    entries: VecDeque<Entry>,
    /// The newest revision that has left the window; a watch can begin here, not before.
    pub(crate) floor: u64,
}

/// A record in a window.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) revision: u64,
    pub(crate) operation: Operation,
    pub(crate) object: Kept,
    pub(crate) previous: Option<Kept>,
}

/// What a new record pushes on.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    /// The object that is kept as text from now on.
    pub(crate) packed: Option<Kept>,
    /// The revision that left the window.
    pub(crate) dropped: Option<u64>,
}

impl Window {
    /// Takes the next record.
    pub(crate) fn push(&mut self, record: Record) -> Pushed {
        self.entries.push_back(Entry {
            revision: record.revision,
            operation: record.operation,
            object: Kept::new(record.object),
            previous: record.previous.map(Kept::new),
        });
        let aged = self.entries.len().checked_sub(FRESH_WINDOW_EVENTS + 1);
        let packed = aged.and_then(|at| self.entries.get_mut(at)).map(Entry::pack);
        if self.entries.len() <= WATCH_WINDOW_EVENTS {
            return Pushed { packed, dropped: None };
        }
        let dropped = self.entries.pop_front().map(|entry| entry.revision);
        self.floor = dropped.unwrap_or(self.floor);
        Pushed { packed, dropped }
    }

    /// The records after a revision, the oldest first.
    pub(crate) fn after(&self, revision: u64) -> impl DoubleEndedIterator<Item = &Entry> {
        let first = self.entries.partition_point(|entry| entry.revision <= revision);
        self.entries.range(first..)
    }

    /// An object as the record has it that wrote it, where that is still here.
    pub(crate) fn shared(&self, object: Arc<Object>) -> Arc<Object> {
        let written = self.entries.binary_search_by_key(&object.revision, |entry| entry.revision);
        let entry = written.ok().and_then(|at| self.entries.get(at));
        entry.map_or(object, |entry| entry.object.lent())
    }

    /// The revision of the newest record; 0 when there is none.
    pub(crate) fn last_revision(&self) -> u64 {
        self.entries.back().map(|entry| entry.revision).unwrap_or_default()
    }

    /// Whether there is no record at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    /// Keeps the objects as text; gives the newer one.
    fn pack(&mut self) -> Kept {
        self.previous = self.previous.as_ref().map(Kept::packed);
        self.object = self.object.packed();
        self.object.clone()
    }
}
