//! Event objects: what `kubectl describe` shows below an object. Repetitions raise a count.

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;

use model::{NamespacedName, Timestamp};

use crate::kind::{Kind, ObjectKey};
use crate::write::{Report, Write};

/// Events that wait to be written. The oldest are dropped beyond that: they inform, no more.
const MAX_QUEUED_EVENTS: usize = 1_000;
/// Events whose repetition is recognised; the longest silent ones are forgotten beyond that.
const MAX_KNOWN_EVENTS: usize = 512;
/// The namespace of events about objects that have none.
const DEFAULT_NAMESPACE: &str = "default";

/// Turns reports into writes.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    known: BTreeMap<Report, Known>,
    queue: VecDeque<Report>,
    /// The stamp in the newest name: names of one object must differ.
    last_stamp: i64,
}

#[derive(Debug)]
struct Known {
    name: String,
    count: u32,
    written: u32,
    first: Timestamp,
    last: Timestamp,
}

impl Recorder {
    /// Takes in a report.
    pub fn record(&mut self, report: Report, now: Timestamp) {
        if let Some(known) = self.known.get_mut(&report) {
            known.count = known.count.saturating_add(1);
            known.last = now;
        } else {
            self.forget_one();
            // Upstream's name: the object's, and the time in hexadecimal nanoseconds.
            self.last_stamp = (self.last_stamp + 1).max(now.microseconds().saturating_mul(1000));
            let name = format!("{}.{:x}", report.object.name.name, self.last_stamp);
            let known = Known { name, count: 1, written: 0, first: now, last: now };
            self.known.insert(report.clone(), known);
        }
        if !self.queue.contains(&report) {
            if self.queue.len() >= MAX_QUEUED_EVENTS {
                self.queue.pop_front();
            }
            self.queue.push_back(report);
        }
    }

    /// The next event to write.
    pub fn next(&mut self) -> Option<(Report, Write)> {
        loop {
            let report = self.queue.pop_front()?;
            if let Some(known) = self.known.get_mut(&report) {
                let write = write(&report, known);
                known.written = known.count;
                return Some((report, write));
            }
        }
    }

    /// Takes in that an event could not be written, or is gone: the next report makes a new one.
    pub fn lost(&mut self, report: &Report) {
        self.known.remove(report);
    }

    fn forget_one(&mut self) {
        if self.known.len() < MAX_KNOWN_EVENTS {
            return;
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.last);
        if let Some(report) = oldest.map(|(report, _)| report.clone()) {
            self.known.remove(&report);
        }
    }
}

fn write(report: &Report, known: &Known) -> Write {
    let about = &report.object;
    let row = about.kind.row();
    let namespace = match about.name.namespace.as_str() {
        "" => DEFAULT_NAMESPACE.to_owned(),
        namespace => namespace.to_owned(),
    };
    if known.written > 0 {
        let object = ObjectKey::new(Kind::Event, NamespacedName::new(namespace, &*known.name));
        let body = json!({"count": known.count, "lastTimestamp": known.last});
        return Write::Patch { object, subresource: None, body };
    }
    let mut involved = json!({
        "apiVersion": row.api_version,
        "kind": row.name,
        "name": about.name.name,
        "uid": report.uid,
    });
    if row.namespaced {
        involved["namespace"] = json!(about.name.namespace);
    }
    let mut body = Kind::Event.object(json!({"name": known.name, "namespace": namespace}));
    body["involvedObject"] = involved;
    body["reason"] = json!(report.reason);
    body["message"] = json!(report.message);
    body["source"] = json!({"component": report.component});
    body["reportingComponent"] = json!(report.component);
    body["reportingInstance"] = json!("");
    body["firstTimestamp"] = json!(known.first);
    body["lastTimestamp"] = json!(known.last);
    body["count"] = json!(known.count);
    body["type"] = json!(if report.warning { "Warning" } else { "Normal" });
    Write::Create { kind: Kind::Event, namespace, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(message: &str) -> Report {
        Report {
            object: ObjectKey::new(Kind::Node, NamespacedName::new("", "node1")),
            uid: "u".into(),
            warning: true,
            reason: "NodeNotReady",
            message: message.into(),
            component: "node-controller",
        }
    }

    #[test]
    fn a_repetition_raises_the_count_of_the_first_event() {
        let mut recorder = Recorder::default();
        let now = Timestamp::from_seconds(100);
        recorder.record(report("a"), now);
        let (_, first) = recorder.next().expect("an event");
        let Write::Create { namespace, body, .. } = first else { panic!("not a create") };
        assert_eq!((namespace.as_str(), &body["count"]), ("default", &json!(1)));
        assert!(body["involvedObject"].get("namespace").is_none());
        recorder.record(report("a"), Timestamp::from_seconds(107));
        recorder.record(report("b"), Timestamp::from_seconds(107));
        let (_, second) = recorder.next().expect("an event");
        let Write::Patch { object, body: patch, .. } = second else { panic!("not a patch") };
        assert_eq!(json!(object.name.name), body["metadata"]["name"]);
        assert_eq!(patch, json!({"count": 2, "lastTimestamp": "1970-01-01T00:01:47Z"}));
        let (_, third) = recorder.next().expect("an event");
        assert!(matches!(third, Write::Create { .. }));
        assert!(recorder.next().is_none());
    }

    #[test]
    fn memory_of_past_events_is_bounded() {
        let mut recorder = Recorder::default();
        for second in 0..2_000 {
            recorder.record(report(&second.to_string()), Timestamp::from_seconds(second));
        }
        assert_eq!(recorder.known.len(), MAX_KNOWN_EVENTS);
        assert_eq!(recorder.queue.len(), MAX_QUEUED_EVENTS);
        assert_eq!(recorder.next().map(|(report, _)| report.message), Some("1488".into()));
    }
}
