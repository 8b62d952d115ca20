//! The loop of all controllers as a state machine: watch events and results in, writes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use model::Timestamp;

use crate::controller::{Config, Controller, Input, LastFailure, Verb};
use crate::events::Recorder;
use crate::kind::{KINDS, Kind, ObjectKey};
use crate::queue::{Queue, Task};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Failure, Report, Step, StepResult, Write};

/// Runs of controllers whose writes may be under way together.
pub const MAX_JOBS_IN_FLIGHT: usize = 32;
/// Event writes among them: they must not hold up what matters.
const MAX_EVENTS_IN_FLIGHT: usize = 4;
/// Writes of one job that are under way together; one commit of the store takes them all.
const MAX_STEPS_TOGETHER: usize = 16;
/// How long everything holds after a list that lost most of its objects (invariant 3).
pub const LIST_HOLD: Duration = Duration::from_secs(30);
/// Lists that were shorter than this before may lose any number of objects.
const LIST_HOLD_MIN_OBJECTS: usize = 10;

/// Drives all controllers.
#[derive(Debug)]
pub struct Manager {
    config: Config,
    snapshot: Snapshot,
    queue: Queue,
    recorder: Recorder,
    unlisted: BTreeSet<Kind>,
    held: BTreeMap<Kind, Hold>,
    jobs_in_flight: usize,
    events_in_flight: usize,
}

#[derive(Debug)]
struct Hold {
    objects_before: usize,
    until: Timestamp,
}

/// Writes that belong together. Give it back to [`Manager::finished`] with one result a step.
#[derive(Debug)]
pub struct Job {
    /// Where it comes from.
    pub ticket: Ticket,
    /// The writes.
    pub steps: Vec<Step>,
    /// Whether a step needs the success of the one before it.
    pub in_order: bool,
}

/// What to do with the next steps of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// So many of them run together.
    Perform(usize),
    /// So many of them are not tried.
    Skip(usize),
}

impl Job {
    /// What follows the steps that have results; `None` when all have one. Pods begin slowly, as
    /// with the real controllers (`slowStartBatch`): one, two, four, … of them together, and no more
    /// once one was refused, so that a quota refuses a few pods and not a hundred.
    pub fn next_batch(&self, results: &[StepResult]) -> Option<Batch> {
        let (done, rest) = self.steps.split_at_checked(results.len())?;
        let first = rest.first()?;
        let failed = |result: &StepResult| {
            matches!(result, StepResult::Failed(_) | StepResult::NotAbsent | StepResult::NotTried)
        };
        if self.in_order {
            let is_over = results.iter().any(failed);
            return Some(if is_over { Batch::Skip(rest.len()) } else { Batch::Perform(1) });
        }
        let makes_pod = |step: &Step| matches!(step.write, Write::Create { kind: Kind::Pod, .. });
        let made = done.iter().zip(results).filter(|(step, _)| makes_pod(step));
        let is_refused = made.clone().any(|(_, result)| failed(result));
        if is_refused && makes_pod(first) {
            return Some(Batch::Skip(rest.iter().take_while(|step| makes_pod(step)).count()));
        }
        // All batches before it and one more: 1, 3, 7 pods are behind it when it has 2, 4, 8.
        let mut room = if is_refused { 0 } else { made.count().saturating_add(1) };
        let fits = |step: &&Step| {
            let has_room = room > 0 || !makes_pod(step);
            room = room.saturating_sub(usize::from(makes_pod(step)));
            has_room
        };
        Some(Batch::Perform(rest.iter().take_while(fits).take(MAX_STEPS_TOGETHER).count()))
    }
}

/// Where a job comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// A run of a controller for a key.
    Run(Controller, ObjectKey),
    /// An Event object.
    Event(Box<Report>),
}

/// What became of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It is the state now.
    Taken,
    /// It is the state now, but lost most of its objects: nothing is written for
    /// [`LIST_HOLD`], unless a later list has them again.
    Held {
        /// Objects before.
        before: usize,
        /// Objects in the list.
        after: usize,
    },
}

impl Manager {
    /// A manager that has seen nothing yet, and does nothing before every watched kind was
    /// listed (invariant 3).
    pub fn new(config: Config) -> Self {
        let unlisted = KINDS.iter().filter(|row| row.watched).map(|row| row.kind).collect();
        Self {
            config,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            recorder: Recorder::default(),
            unlisted,
            held: BTreeMap::new(),
            jobs_in_flight: 0,
            events_in_flight: 0,
        }
    }

    /// The objects as far as they are known.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether every watched kind was listed once.
    pub fn is_synced(&self) -> bool {
        self.unlisted.is_empty()
    }

    /// Takes in a complete list of a kind, true at `revision`.
    pub fn listed(
        &mut self,
        kind: Kind,
        values: Vec<Value>,
        revision: u64,
        now: Timestamp,
    ) -> Listed {
        let first = self.unlisted.remove(&kind);
        let before =
            self.held.get(&kind).map_or(self.snapshot.count(kind), |hold| hold.objects_before);
        let changes = self.snapshot.replace(kind, values, revision);
        let after = self.snapshot.count(kind);
        if first {
            if self.is_synced() {
                self.mark_all(now);
            }
            return Listed::Taken;
        }
        for change in &changes {
            self.mark(change, now);
        }
        if before >= LIST_HOLD_MIN_OBJECTS && after * 2 < before {
            let until = now.after(LIST_HOLD);
            self.held.entry(kind).or_insert(Hold { objects_before: before, until });
            return Listed::Held { before, after };
        }
        self.held.remove(&kind);
        Listed::Taken
    }

    /// Takes in that an object was added or changed.
    pub fn applied(&mut self, kind: Kind, value: Value, now: Timestamp) {
        if let Some(change) = self.snapshot.apply(kind, value) {
            self.mark(&change, now);
        }
    }

    /// Takes in that an object was deleted.
    pub fn deleted(&mut self, kind: Kind, value: Value, now: Timestamp) {
        if let Some(change) = self.snapshot.deleted(kind, value) {
            self.mark(&change, now);
        }
    }

    /// The next writes to do. They may run while others are under way, since no two jobs are of
    /// one key. `None` when nothing is due, or enough is under way.
    pub fn next(&mut self, now: Timestamp) -> Option<Job> {
        self.held.retain(|_, hold| hold.until > now);
        if !self.is_synced() || !self.held.is_empty() {
            return None;
        }
        if self.queue.take_overflow() {
            self.mark_all(now);
        }
        while self.jobs_in_flight < MAX_JOBS_IN_FLIGHT {
            let Some(task) = self.queue.pop(now) else { break };
            if let Some(job) = self.run(task, now) {
                self.jobs_in_flight += 1;
                return Some(job);
            }
        }
        if self.events_in_flight < MAX_EVENTS_IN_FLIGHT {
            let (report, write) = self.recorder.next()?;
            self.events_in_flight += 1;
            let ticket = Ticket::Event(Box::new(report));
            return Some(Job { ticket, steps: vec![Step::quiet(write)], in_order: false });
        }
        None
    }

    /// When [`Manager::next`] may have something without anything new being taken in.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if !self.is_synced() {
            return None;
        }
        if let Some(until) = self.held.values().map(|hold| hold.until).max() {
            return Some(until);
        }
        // With all places taken only a result makes room: no time does.
        self.queue.next_due().filter(|_| self.jobs_in_flight < MAX_JOBS_IN_FLIGHT)
    }

    /// Takes in what came of a job, before any other key runs: the snapshot then holds our own
    /// writes although the watch has not reported them.
    pub fn finished(&mut self, job: Job, results: Vec<StepResult>, now: Timestamp) {
        match job.ticket {
            Ticket::Event(report) => {
                self.events_in_flight = self.events_in_flight.saturating_sub(1);
                let written = matches!(results.first(), Some(StepResult::Object(_)));
                if !written {
                    self.recorder.lost(&report);
                }
            }
            Ticket::Run(controller, key) => {
                self.jobs_in_flight = self.jobs_in_flight.saturating_sub(1);
                let mut failure = None;
                for (step, result) in job.steps.into_iter().zip(results) {
                    let failed = self.step_finished(step, result, now);
                    failure = failure.or(failed);
                }
                self.queue.finished((controller, key), failure, now);
            }
        }
    }

    fn run(&mut self, task: Task, now: Timestamp) -> Option<Job> {
        let (controller, key) = &task;
        let last_failure = self.queue.last_failure(&task);
        let input = Input { config: &self.config, now, last_failure };
        let outcome = controller.reconcile(key, &self.snapshot, &input);
        if let Some(delay) = outcome.requeue_after {
            self.queue.mark(task.clone(), now.after(delay));
        }
        for report in outcome.reports {
            self.recorder.record(report, now);
        }
        if outcome.steps.is_empty() {
            self.queue.finished(task, None, now);
            return None;
        }
        let (controller, key) = task;
        let ticket = Ticket::Run(controller, key);
        Some(Job { ticket, steps: outcome.steps, in_order: outcome.in_order })
    }

    fn step_finished(
        &mut self,
        step: Step,
        result: StepResult,
        now: Timestamp,
    ) -> Option<LastFailure> {
        let verb = step.write.verb();
        let failure = match result {
            StepResult::Object(value) => {
                self.succeeded(&step, Some(&value), now);
                self.written(&step.write, value, now);
                return None;
            }
            StepResult::Done => {
                self.succeeded(&step, None, now);
                if verb == Verb::Delete {
                    self.gone(&step.write, now);
                }
                return None;
            }
            StepResult::Gone => {
                // Only a deletion proves it: to a patch, a path that is not served looks the
                // same. The watch tells about objects that others removed.
                if verb == Verb::Delete {
                    self.gone(&step.write, now);
                }
                return None;
            }
            StepResult::NotTried => return None,
            StepResult::NotAbsent => Failure::default(),
            StepResult::Failed(failure) if failure.namespace_terminating => return None,
            StepResult::Failed(failure) => failure,
        };
        if let Some(mut report) = step.failure.filter(|_| failure.code != 0) {
            report.message = report.message.replace("{error}", &failure.message);
            self.recorder.record(report, now);
        }
        Some(LastFailure { verb, failure })
    }

    fn succeeded(&mut self, step: &Step, value: Option<&Value>, now: Timestamp) {
        let Some(mut report) = step.success.clone() else { return };
        let written = value.and_then(|value| value.pointer("/metadata/name")?.as_str());
        let object = step.write.object();
        let name = written.or(object.as_ref().map(|key| key.name.name.as_str()));
        report.message = report.message.replace("{name}", name.unwrap_or_default());
        self.recorder.record(report, now);
    }

    /// Takes in the object that a write answered with. The answer to a deletion that left
    /// nothing behind is the object as it was last.
    fn written(&mut self, write: &Write, value: Value, now: Timestamp) {
        let metadata = |field: &str| value.get("metadata").and_then(|found| found.get(field));
        let lingers = metadata("deletionTimestamp").is_some_and(Value::is_string)
            && (metadata("deletionGracePeriodSeconds").and_then(Value::as_i64) != Some(0)
                || metadata("finalizers")
                    .and_then(Value::as_array)
                    .is_some_and(|list| !list.is_empty()));
        if matches!(write, Write::Delete { .. }) && !lingers {
            self.gone(write, now);
            return;
        }
        let kind = match write {
            Write::Create { kind, .. } => *kind,
            Write::Patch { object, .. } | Write::Delete { object, .. } => object.kind,
            Write::Bind { .. } => Kind::Pod,
            Write::GiveToken { secret, .. } => secret.kind,
            Write::Finalize { .. } => Kind::Namespace,
            Write::DeleteCollection { .. }
            | Write::MakeVolume { .. }
            | Write::RemoveVolume { .. } => return,
        };
        self.applied(kind, value, now);
    }

    fn gone(&mut self, write: &Write, now: Timestamp) {
        let Write::Delete { object, uid, .. } = write else { return };
        if let Some(change) = self.snapshot.gone(object, uid) {
            self.mark(&change, now);
        }
    }

    fn mark_all(&mut self, now: Timestamp) {
        let objects: Vec<_> =
            KINDS.iter().flat_map(|row| self.snapshot.all(row.kind)).cloned().collect();
        for object in objects {
            self.mark(&Change { old: None, new: Some(object) }, now);
        }
    }

    fn mark(&mut self, change: &Change, now: Timestamp) {
        if !self.is_synced() {
            return;
        }
        let mut keys = BTreeSet::new();
        for controller in Controller::ALL {
            controller.interested(change, &self.snapshot, &mut keys);
            while let Some(key) = keys.pop_first() {
                self.queue.mark((controller, key), now);
            }
        }
    }
}

impl Write {
    fn verb(&self) -> Verb {
        match self {
            Self::Create { .. } => Verb::Create,
            Self::Delete { .. } => Verb::Delete,
            _ => Verb::Change,
        }
    }

    /// The object that is changed or deleted.
    fn object(&self) -> Option<ObjectKey> {
        match self {
            Self::Patch { object, .. } | Self::Delete { object, .. } => Some(object.clone()),
            Self::GiveToken { secret, .. } => Some(secret.clone()),
            Self::Bind { pod, .. } => Some(ObjectKey::new(Kind::Pod, pod.clone())),
            Self::Create { .. }
            | Self::DeleteCollection { .. }
            | Self::MakeVolume { .. }
            | Self::RemoveVolume { .. }
            | Self::Finalize { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::NOW;
    use model::ClusterConfig;
    use serde_json::json;

    fn manager() -> Manager {
        let cluster = ClusterConfig::default();
        Manager::new(Config::new(cluster, "CA".into(), NOW))
    }

    fn namespace(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "uid": format!("uid-{name}"),
            "resourceVersion": version.to_string()}})
    }

    fn list_all(manager: &mut Manager, namespaces: u64) {
        for row in KINDS.iter().filter(|row| row.watched) {
            let values = match row.kind {
                Kind::Namespace => {
                    (1..=namespaces).map(|index| namespace(&format!("n{index}"), index)).collect()
                }
                _ => vec![],
            };
            manager.listed(row.kind, values, namespaces, NOW);
        }
    }

    /// Sizes of the batches of a job, of which the `refused` step fails; `0` for what is skipped.
    fn batches(kinds: &[Kind], in_order: bool, refused: Option<usize>) -> Vec<usize> {
        let create = |kind: &Kind| {
            Step::quiet(Write::Create { kind: *kind, namespace: "d".into(), body: json!({}) })
        };
        let ticket = Ticket::Run(Controller::ReplicaSets, crate::controller::whole(Kind::Pod));
        let job = Job { ticket, steps: kinds.iter().map(create).collect(), in_order };
        let mut results: Vec<StepResult> = Vec::new();
        let mut sizes = Vec::new();
        while let Some(batch) = job.next_batch(&results) {
            match batch {
                Batch::Perform(count) => {
                    sizes.push(count);
                    for place in results.len()..results.len() + count {
                        results.push(match refused == Some(place) {
                            true => StepResult::Failed(Failure::default()),
                            false => StepResult::Done,
                        });
                    }
                }
                Batch::Skip(count) => {
                    sizes.push(0);
                    results.extend(vec![StepResult::NotTried; count]);
                }
            }
        }
        assert_eq!(results.len(), kinds.len());
        sizes
    }

    #[test]
    fn pods_begin_slowly_and_end_with_the_first_refusal() {
        let pods = |count: usize| vec![Kind::Pod; count];
        assert_eq!(batches(&pods(100), false, None), [1, 2, 4, 8, 16, 16, 16, 16, 16, 5]);
        assert_eq!(batches(&pods(100), false, Some(0)), [1, 0]);
        assert_eq!(batches(&pods(100), false, Some(4)), [1, 2, 4, 0]);
        // What else is to be written waits for no pod, and is written whatever became of them.
        let with_status = |count: usize| [pods(count), vec![Kind::ReplicaSet]].concat();
        assert_eq!(batches(&with_status(1), false, None), [2]);
        assert_eq!(batches(&with_status(3), false, None), [1, 3]);
        assert_eq!(batches(&with_status(9), false, Some(1)), [1, 2, 0, 1]);
        assert_eq!(batches(&[Kind::ReplicaSet, Kind::Pod, Kind::Pod], false, None), [2, 1]);
        assert_eq!(batches(&[Kind::ReplicaSet; 40], false, Some(0)), [16, 16, 8]);
        assert_eq!(batches(&pods(3), true, None), [1, 1, 1]);
        assert_eq!(batches(&pods(3), true, Some(1)), [1, 1, 0]);
    }

    #[test]
    fn nothing_happens_before_every_kind_was_listed() {
        let mut manager = manager();
        for row in KINDS.iter().filter(|row| row.watched) {
            assert!(manager.next(NOW).is_none(), "before {}", row.plural);
            assert!(manager.next_deadline().is_none());
            let values = match row.kind {
                Kind::Namespace => vec![namespace("n", 1)],
                _ => vec![],
            };
            manager.listed(row.kind, values, 1, NOW);
        }
        assert!(manager.next(NOW).is_some(), "the namespace needs its ServiceAccount");
    }

    #[test]
    fn a_list_that_lost_most_objects_holds_everything_for_a_while() {
        let mut manager = manager();
        list_all(&mut manager, 20);
        let short = || (1..=5).map(|index| namespace(&format!("n{index}"), index)).collect();
        let held = manager.listed(Kind::Namespace, short(), 30, NOW);
        assert_eq!(held, Listed::Held { before: 20, after: 5 });
        assert!(manager.next(NOW).is_none());
        assert_eq!(manager.next_deadline(), Some(NOW.after(LIST_HOLD)));
        // Once more the same: the hold neither ends nor grows.
        let later = NOW.after(LIST_HOLD / 2);
        assert!(matches!(manager.listed(Kind::Namespace, short(), 31, later), Listed::Held { .. }));
        assert!(manager.next(later).is_none());
        assert!(manager.next(NOW.after(LIST_HOLD)).is_some());
    }

    #[test]
    fn a_later_list_that_has_the_objects_again_ends_the_hold() {
        let mut manager = manager();
        list_all(&mut manager, 20);
        manager.listed(Kind::Namespace, vec![], 30, NOW);
        assert!(manager.next(NOW).is_none());
        let full = (1..=20)
            .map(|index| {
                let mut value = namespace(&format!("n{index}"), 40 + index);
                value["metadata"]["uid"] = json!(format!("again-{index}"));
                value
            })
            .collect();
        assert_eq!(manager.listed(Kind::Namespace, full, 60, NOW), Listed::Taken);
        assert!(manager.next(NOW).is_some());
    }

    #[test]
    fn with_all_places_taken_no_time_is_worth_waiting_for() {
        let mut manager = manager();
        list_all(&mut manager, 40);
        let jobs: Vec<Job> = std::iter::from_fn(|| manager.next(NOW)).collect();
        assert_eq!(jobs.len(), MAX_JOBS_IN_FLIGHT);
        assert_eq!(manager.next_deadline(), None, "the driver would spin");
        let job = jobs.into_iter().next().expect("a job");
        manager.finished(job, vec![StepResult::Done, StepResult::Done], NOW);
        assert!(manager.next(NOW).is_some());
    }

    #[test]
    fn a_key_waits_for_the_result_of_its_own_writes() {
        let mut manager = manager();
        list_all(&mut manager, 1);
        let job = manager.next(NOW).expect("a job");
        assert_eq!(job.steps.len(), 2, "ServiceAccount and CA");
        manager.applied(Kind::Namespace, namespace("n1", 5), NOW);
        assert!(manager.next(NOW).is_none(), "it runs already");
        let results = job
            .steps
            .iter()
            .zip(6..)
            .map(|(step, version)| {
                let Write::Create { body, .. } = &step.write else { panic!("no create") };
                let mut value = body.clone();
                value["metadata"]["uid"] = json!(format!("uid-{version}"));
                value["metadata"]["resourceVersion"] = json!(version.to_string());
                StepResult::Object(value)
            })
            .collect();
        manager.finished(job, results, NOW);
        assert!(manager.next(NOW).is_none(), "the answers count although no watch showed them");
    }
}
