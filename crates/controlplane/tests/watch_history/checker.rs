//! What a watcher may see, checked apart from how it came to see it: no event lost, doubled or out
//! of order, and selectors that objects enter and leave.

use std::collections::BTreeMap;

/// What an event says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One event, as a watcher saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    pub name: String,
    pub revision: u64,
    /// Whether the object, in the state that the event carries, is one that selectors select.
    pub selected: bool,
}

/// An object's revision and whether selectors select it.
pub type Snapshot = BTreeMap<String, (u64, bool)>;

/// What one watcher saw from one list on, over all its connections.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The revision of the list.
    pub from: u64,
    /// What was in it.
    pub listed: Snapshot,
    pub events: Vec<Seen>,
    /// Up to here the watcher has seen everything.
    pub until: u64,
}

impl History {
    /// Whether nothing was listed yet: revisions begin with 1.
    pub fn is_unread(&self) -> bool {
        self.until == 0
    }

    /// What is there after all events.
    ///
    /// # Errors
    /// The first event that cannot follow those before it.
    pub fn replay(&self) -> Result<Snapshot, String> {
        let mut state = self.listed.clone();
        let mut last = self.from;
        for event in &self.events {
            if event.revision <= last {
                return Err(format!("{event:?} came after revision {last}"));
            }
            last = event.revision;
            let known = match event.kind {
                Kind::Added | Kind::Modified => {
                    state.insert(event.name.clone(), (event.revision, event.selected)).is_some()
                }
                Kind::Deleted => state.remove(&event.name).is_some(),
            };
            if known != (event.kind != Kind::Added) {
                return Err(format!("{event:?} of an object that was there: {known}"));
            }
        }
        Ok(state)
    }
}

/// All that happened, gathered from everybody who saw it: each write once, by revision.
#[derive(Clone, Debug, Default)]
pub struct Truth(BTreeMap<u64, Seen>);

impl Truth {
    /// Takes what a watcher of everything saw.
    ///
    /// # Errors
    /// When another saw something else under the same revision.
    pub fn take(&mut self, history: &History) -> Result<(), String> {
        for event in &history.events {
            match self.0.insert(event.revision, event.clone()) {
                Some(other) if !is_the_same_write(&other, event) => {
                    return Err(format!("one saw {event:?}, another {other:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A write that was acknowledged.
    ///
    /// # Errors
    /// When nobody saw it.
    pub fn has(&self, name: &str, revision: u64) -> Result<(), String> {
        match self.0.get(&revision) {
            Some(event) if event.name == name => Ok(()),
            other => Err(format!("{name} at {revision} was acknowledged, and seen is {other:?}")),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a history has just the events that it must have.
    ///
    /// # Errors
    /// The first that it lacks or has too many.
    pub fn check(&self, history: &History, selects: bool) -> Result<(), String> {
        let expected = self.expected(history, selects);
        for at in 0..expected.len().max(history.events.len()) {
            let (wanted, seen) = (expected.get(at), history.events.get(at));
            if wanted != seen {
                return Err(format!("event {at}: {seen:?} was seen instead of {wanted:?}"));
            }
        }
        Ok(())
    }

    /// What must be seen between two revisions by one who selects, or by one who does not.
    fn expected(&self, history: &History, selects: bool) -> Vec<Seen> {
        let mut inside = history.listed.clone();
        let mut events = Vec::new();
        for event in self.0.range(history.from + 1..=history.until).map(|entry| entry.1) {
            let was = inside.contains_key(&event.name);
            let is = event.kind != Kind::Deleted && (event.selected || !selects);
            let kind = match (was, is) {
                (false, true) => Kind::Added,
                (true, true) => Kind::Modified,
                (true, false) => Kind::Deleted,
                (false, false) => continue,
            };
            if is {
                inside.insert(event.name.clone(), (event.revision, event.selected));
            } else {
                inside.remove(&event.name);
            }
            // Who leaves a selection is shown as it was while it belonged to it.
            let selected = event.selected || (selects && kind == Kind::Deleted);
            events.push(Seen { kind, selected, ..event.clone() });
        }
        events
    }
}

/// Who saw an object for the first time says added where others say modified.
fn is_the_same_write(one: &Seen, other: &Seen) -> bool {
    one.name == other.name && (one.kind == Kind::Deleted) == (other.kind == Kind::Deleted)
}

/// The checker finds what it is there for.
pub fn faults_are_found() {
    let event = |kind, name: &str, revision, selected| Seen {
        kind,
        name: name.to_owned(),
        revision,
        selected,
    };
    let whole = History {
        from: 10,
        listed: Snapshot::from([("a".to_owned(), (4, true))]),
        events: vec![
            event(Kind::Added, "b", 11, false),
            event(Kind::Modified, "a", 13, false),
            event(Kind::Modified, "b", 14, true),
            event(Kind::Deleted, "a", 15, false),
        ],
        until: 15,
    };
    let mut truth = Truth::default();
    truth.take(&whole).expect("one history agrees with itself");
    truth.check(&whole, false).expect("it is whole");
    whole.replay().expect("it can be replayed");
    let selecting = History {
        events: vec![event(Kind::Deleted, "a", 13, true), event(Kind::Added, "b", 14, true)],
        ..whole.clone()
    };
    truth.check(&selecting, true).expect("who selects sees them enter and leave");

    for at in 0..whole.events.len() {
        let mut lost = whole.clone();
        lost.events.remove(at);
        truth.check(&lost, false).expect_err("an event is lost");
        let mut doubled = whole.clone();
        doubled.events.insert(at, whole.events[at].clone());
        truth.check(&doubled, false).expect_err("an event is doubled");
        doubled.replay().expect_err("an event is doubled");
    }
    let mut turned = whole.clone();
    turned.events.swap(0, 1);
    truth.check(&turned, false).expect_err("events are out of order");
    turned.replay().expect_err("events are out of order");
    truth.check(&whole, true).expect_err("a selector that selects everything");
    truth.has("b", 12).expect_err("nobody saw this write");
    truth.has("b", 11).expect("this one was seen");
    let mut other = whole.clone();
    other.events[0].name = "c".to_owned();
    truth.take(&other).expect_err("two saw different writes under one revision");
}
