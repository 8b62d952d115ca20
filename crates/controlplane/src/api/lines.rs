//! Events of watches as they go over the wire, each written once for all who are told the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper::body::Bytes;
use store::{EventType, Object};

use super::negotiate::Accepted;

/// Events that are kept: the newest of each storage come to all its watchers within milliseconds.
const MAX_LINES: usize = 16;
/// The longest event that is kept, bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// The newest events, the newest last.
#[derive(Default)]
pub(super) struct Lines(Mutex<VecDeque<Line>>);

struct Line {
    kind: EventType,
    accepted: Accepted,
    /// It keeps the object's place, so that no other is taken for it, but not what it holds.
    object: Weak<Object>,
    bytes: Bytes,
}

impl Lines {
    /// The event as it was written before, or as `write` does now. `None` when it cannot be.
    pub fn get(
        &self,
        kind: EventType,
        accepted: Accepted,
        object: &Arc<Object>,
        write: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Bytes> {
        // What only the caller has is told to nobody else.
        if Arc::strong_count(object) == 1 {
            return write().map(Bytes::from);
        }
        let is_it = |line: &&Line| {
            std::ptr::eq(line.object.as_ptr(), Arc::as_ptr(object))
                && line.kind == kind
                && line.accepted == accepted
        };
        if let Some(line) = self.lock().iter().rev().find(is_it) {
            return Some(line.bytes.clone());
        }
        let bytes = Bytes::from(write()?);
        if bytes.len() <= MAX_LINE_BYTES {
            let mut lines = self.lock();
            if lines.len() >= MAX_LINES {
                lines.pop_front();
            }
            let object = Arc::downgrade(object);
            lines.push_back(Line { kind, accepted, object, bytes: bytes.clone() });
        }
        Some(bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use store::Definitions;
    use store::record::object_from_bytes;

    use super::super::negotiate::{Encoding, Form};
    use super::*;

    const PROTOBUF: Accepted = Accepted { form: Form::Plain, encoding: Encoding::Protobuf };

    fn object(revision: u64) -> Arc<Object> {
        let text = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"resourceVersion":"{revision}"}}}}"#
        );
        let read =
            object_from_bytes(&Definitions::default(), "configmaps/default/a", text.as_bytes());
        Arc::new(read.expect("an object"))
    }

    /// Asks for an event, and tells whether it had to be written.
    fn ask(
        lines: &Lines,
        kind: EventType,
        accepted: Accepted,
        object: &Arc<Object>,
        text: &str,
    ) -> (Bytes, bool) {
        let mut is_new = false;
        let bytes = lines.get(kind, accepted, object, || {
            is_new = true;
            Some(text.into())
        });
        (bytes.expect("an event"), is_new)
    }

    #[test]
    fn an_event_is_written_once_for_all_who_hear_the_same() {
        let lines = Lines::default();
        let (first, second) = (object(1), object(2));
        let _kept = (Arc::clone(&first), Arc::clone(&second));
        let (added, deleted) = (EventType::Added, EventType::Deleted);
        let (text, is_new) = ask(&lines, added, Accepted::JSON, &first, "a");
        assert!(is_new);
        for (kind, accepted, object, is_new) in [
            (added, Accepted::JSON, &first, false),
            (deleted, Accepted::JSON, &first, true),
            (added, PROTOBUF, &first, true),
            (added, Accepted::JSON, &second, true),
        ] {
            assert_eq!(ask(&lines, kind, accepted, object, "b").1, is_new, "{kind:?} {accepted:?}");
        }
        let (again, is_new) = ask(&lines, added, Accepted::JSON, &first, "c");
        assert!(!is_new);
        assert_eq!(again.as_ptr(), text.as_ptr(), "the very same bytes");
        assert!(lines.get(added, Accepted::JSON, &object(3), || None).is_none());
    }

    #[test]
    fn what_is_kept_is_little() {
        let lines = Lines::default();
        let (kind, accepted) = (EventType::Added, Accepted::JSON);
        let held: Vec<_> = (0..100).map(object).collect();
        let _kept = held.clone();
        for object in &held {
            ask(&lines, kind, accepted, object, "short");
        }
        assert_eq!(lines.lock().len(), MAX_LINES);
        let newest = held.last().expect("an object");
        assert!(!ask(&lines, kind, accepted, newest, "short").1, "the newest is there");
        assert!(ask(&lines, kind, accepted, &held[0], "short").1, "the oldest has gone");
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        for object in [&held[1], &object(200)] {
            assert!(ask(&lines, kind, accepted, object, &long).1);
            assert!(ask(&lines, kind, accepted, object, &long).1, "it was not kept");
        }
        let weak = Arc::downgrade(newest);
        drop((held, _kept));
        assert!(weak.upgrade().is_none(), "objects are not kept alive");
    }
}
