//! What is to be done, by controller and key: at most one entry a key, never two runs of one key
//! at a time, and back-off for keys that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::Timestamp;

use crate::controller::{Controller, LastFailure};
use crate::kind::ObjectKey;

/// Keys of all controllers together. Beyond that a mark is dropped, and all keys are marked anew
/// once the queue has drained.
const MAX_KEYS: usize = 200_000;
/// The wait after the first failure of a key; each further one doubles it.
const BACK_OFF_BASE: Duration = Duration::from_millis(5);
/// The longest wait between two tries.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Doublings that reach the longest wait.
const BACK_OFF_DOUBLINGS: u32 = 13;

/// A controller and one of its keys.
pub(crate) type Task = (Controller, ObjectKey);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: BTreeMap<Task, Entry>,
    due: BTreeSet<(Timestamp, u64, Task)>,
    sequence: u64,
    overflowed: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// When to run; a place in `due` unless busy.
    due: Option<(Timestamp, u64)>,
    busy: bool,
    failures: u32,
    last_failure: Option<LastFailure>,
}

impl Queue {
    /// Asks for a run at `at`, or earlier where that was asked before.
    pub fn mark(&mut self, task: Task, at: Timestamp) {
        if self.entries.len() >= MAX_KEYS && !self.entries.contains_key(&task) {
            self.overflowed = true;
            return;
        }
        self.sequence += 1;
        let entry = self.entries.entry(task.clone()).or_default();
        if let Some((old, sequence)) = entry.due {
            if old <= at {
                return;
            }
            self.due.remove(&(old, sequence, task.clone()));
        }
        entry.due = Some((at, self.sequence));
        if !entry.busy {
            self.due.insert((at, self.sequence, task));
        }
    }

    /// The next task that is due, which is then busy until [`Queue::finished`].
    pub fn pop(&mut self, now: Timestamp) -> Option<Task> {
        let (at, _, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, _, task) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&task) {
            entry.due = None;
            entry.busy = true;
        }
        Some(task)
    }

    /// Ends the run of a task. A failure asks for another run after its back-off; marks that came
    /// meanwhile wait for that too, so that a failing key does not spin.
    pub fn finished(&mut self, task: Task, failure: Option<LastFailure>, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&task) else { return };
        entry.busy = false;
        if failure.is_some() {
            let doublings = entry.failures.min(BACK_OFF_DOUBLINGS);
            let wait = (BACK_OFF_BASE * 2_u32.pow(doublings)).min(BACK_OFF_MAX);
            entry.failures = entry.failures.saturating_add(1);
            self.sequence += 1;
            entry.due = Some((now.after(wait), self.sequence));
        } else {
            entry.failures = 0;
        }
        entry.last_failure = failure;
        match entry.due {
            Some((at, sequence)) => {
                self.due.insert((at, sequence, task));
            }
            None => {
                self.entries.remove(&task);
            }
        }
    }

    /// The failure that ended the last run of a task.
    pub fn last_failure(&self, task: &Task) -> Option<&LastFailure> {
        self.entries.get(task)?.last_failure.as_ref()
    }

    /// When the next task is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _, _)| *at)
    }

    /// Whether marks were lost and nothing is left to do, once.
    pub fn take_overflow(&mut self) -> bool {
        self.due.is_empty() && std::mem::take(&mut self.overflowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Verb;
    use crate::kind::Kind;
    use crate::write::Failure;
    use model::NamespacedName;

    fn task(name: &str) -> Task {
        let key = ObjectKey::new(Kind::Service, NamespacedName::new("d", name));
        (Controller::EndpointSlices, key)
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_microseconds(milliseconds * 1000)
    }

    #[test]
    fn a_key_waits_once_and_never_runs_twice_at_a_time() {
        let mut queue = Queue::default();
        queue.mark(task("a"), at(0));
        queue.mark(task("a"), at(0));
        queue.mark(task("b"), at(0));
        assert_eq!(queue.pop(at(0)), Some(task("a")));
        queue.mark(task("a"), at(0));
        assert_eq!(queue.pop(at(0)), Some(task("b")));
        assert_eq!(queue.pop(at(0)), None, "a is busy");
        queue.finished(task("a"), None, at(0));
        assert_eq!(queue.pop(at(0)), Some(task("a")), "it was marked while it ran");
        queue.finished(task("a"), None, at(0));
        queue.finished(task("b"), None, at(0));
        assert_eq!(queue.next_due(), None);
        assert!(queue.entries.is_empty(), "an idle key costs nothing");
    }

    #[test]
    fn the_earlier_time_wins() {
        let mut queue = Queue::default();
        queue.mark(task("a"), at(50));
        queue.mark(task("a"), at(10));
        queue.mark(task("a"), at(90));
        assert_eq!(queue.next_due(), Some(at(10)));
        assert_eq!(queue.pop(at(9)), None);
        assert_eq!(queue.pop(at(10)), Some(task("a")));
    }

    #[test]
    fn failures_double_the_wait_up_to_the_limit() {
        let mut queue = Queue::default();
        let failure = LastFailure { verb: Verb::Change, failure: Failure::default() };
        let mut now = at(0);
        let mut waits = Vec::new();
        queue.mark(task("a"), now);
        for _ in 0..20 {
            queue.pop(now).expect("due");
            queue.mark(task("a"), now);
            queue.finished(task("a"), Some(failure.clone()), now);
            let next = queue.next_due().expect("another try");
            waits.push(next.since(now));
            now = next;
        }
        assert_eq!(waits[..3], [5, 10, 20].map(Duration::from_millis));
        assert_eq!(waits[19], BACK_OFF_MAX);
    }
}
