//! Which pods of a Job run, and which ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::job::{Job, Uncounted};
use crate::object::Object;

use super::TRACKING;
use super::policy::{self, Verdict};

/// Uids that the status takes in at a time: it must stay small.
const MAX_UNCOUNTED: usize = 500;
/// The annotation and label of a pod with its index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The annotation of a pod with the failures of its index before it, where these have a limit.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same for failures that count as nothing.
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The pods of a Job in numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Count {
    /// Neither ended nor being deleted.
    pub active: i32,
    /// Of those, ready.
    pub ready: i32,
    /// Being deleted, and not ended.
    pub terminating: i32,
    /// Succeeded, those that are not counted yet included.
    pub succeeded: i32,
    /// Failed, those that are not counted yet included.
    pub failed: i32,
    /// With `Indexed`, the indexes that succeeded.
    pub indexes: BTreeSet<i32>,
    /// With a limit for each index, the indexes that failed for good.
    pub failed_indexes: BTreeSet<i32>,
    /// With a limit for each index, the last pod of each that failed.
    pub last_failures: BTreeMap<i32, Arc<Object>>,
    /// Of those, pods that are not counted before the next of their index is there: they know how
    /// often it failed.
    pub held: i32,
    /// Pods whose failure counts as nothing, and that may go.
    pub ignored: Vec<Arc<Object>>,
    /// What the status shall say next.
    pub uncounted: Uncounted,
    /// What is added to the numbers of the status.
    pub counted_succeeded: i32,
    /// The same for failures.
    pub counted_failed: i32,
}

impl Count {
    /// `ends`: the Job has begun to end, and no pod is made any more.
    pub fn new(job: &Job, pods: &[Arc<Object>], ends: bool) -> Self {
        let failed_indexes = job.status.failed_indexes.as_deref().unwrap_or_default();
        let mut count = Self {
            indexes: parse(&job.status.completed_indexes),
            failed_indexes: parse(failed_indexes),
            ..Self::default()
        };
        count.indexes.retain(|index| job.spec.completions.is_none_or(|all| *index < all));
        let tracked: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| pod.has_finalizer(TRACKING))
            .map(|pod| pod.meta.uid.as_str())
            .collect();
        let old = &job.status.uncounted_terminated_pods;
        let waits = |uids: &[String]| -> Vec<String> {
            uids.iter().filter(|uid| tracked.contains(uid.as_str())).cloned().collect()
        };
        count.uncounted =
            Uncounted { succeeded: waits(&old.succeeded), failed: waits(&old.failed) };
        count.counted_succeeded = number(old.succeeded.len() - count.uncounted.succeeded.len());
        count.counted_failed = number(old.failed.len() - count.uncounted.failed.len());
        pods.iter().for_each(|pod| count.add(job, pod));
        count.look_at_indexes(job, pods);
        let held = if ends { BTreeSet::new() } else { count.held(job, pods) };
        count.held = number(held.len());
        for pod in pods.iter().filter(|pod| !held.contains(pod.meta.uid.as_str())) {
            count.add_failure(job, pod);
        }
        count.succeeded = match job.spec.is_indexed() {
            true => number(count.indexes.len()),
            false => {
                let known = job.status.succeeded.saturating_add(count.counted_succeeded);
                known.saturating_add(number(count.uncounted.succeeded.len()))
            }
        };
        let known = job.status.failed.saturating_add(count.counted_failed);
        count.failed = known.saturating_add(number(count.uncounted.failed.len()));
        count.failed = count.failed.saturating_add(count.held);
        count
    }

    /// Notes the last failure of each index, and which have failed for good.
    fn look_at_indexes(&mut self, job: &Job, pods: &[Arc<Object>]) {
        if job.spec.backoff_limit_per_index.is_none() {
            return;
        }
        let completions = job.spec.completions.unwrap_or(0);
        for pod in pods.iter().filter(|pod| has_failed(job, pod)) {
            let Some(index) = index_of(pod).filter(|index| *index < completions) else { continue };
            let rank =
                |pod: &Object| (failures(pod) + ignored_failures(pod), pod.meta.creation_timestamp);
            let last = self.last_failures.entry(index).or_insert_with(|| pod.clone());
            if rank(pod) > rank(last) {
                *last = pod.clone();
            }
            if policy::fails_index(job, pod, failures(pod)) {
                self.failed_indexes.insert(index);
            }
        }
    }

    /// The uids of pods that stay until the next of their index is there.
    fn held<'a>(&self, job: &Job, pods: &'a [Arc<Object>]) -> BTreeSet<&'a str> {
        let active: BTreeSet<i32> = pods
            .iter()
            .filter(|pod| crate::replica_sets::is_active(pod))
            .filter_map(|pod| index_of(pod))
            .collect();
        let next_comes = |index: &i32| {
            !active.contains(index)
                && !self.indexes.contains(index)
                && !self.failed_indexes.contains(index)
        };
        let counts = |pod: &Object| policy::judge(job, pod) != Verdict::Ignore;
        let last = |pod: &&Arc<Object>| {
            let uid = &pod.meta.uid;
            let index = index_of(pod).filter(next_comes);
            let last = index.and_then(|index| self.last_failures.get(&index));
            let known = self.uncounted.failed.contains(uid);
            last.is_some_and(|last| last.meta.uid == *uid)
                && pod.has_finalizer(TRACKING)
                && !known
                && counts(pod)
        };
        pods.iter().filter(last).map(|pod| pod.meta.uid.as_str()).collect()
    }

    fn add(&mut self, job: &Job, pod: &Object) {
        let Some(view) = pod.pod() else { return };
        let ended = view.is_finished();
        if !ended && pod.is_terminating() {
            self.terminating += 1;
        } else if !ended {
            self.active += 1;
            self.ready += i32::from(view.is_ready());
        }
        if view.status.phase == "Succeeded" && self.may_note(pod) {
            if job.spec.is_indexed() {
                let completions = job.spec.completions.unwrap_or(0);
                self.indexes.extend(index_of(pod).filter(|index| *index < completions));
            }
            self.uncounted.succeeded.push(pod.meta.uid.clone());
        }
    }

    fn add_failure(&mut self, job: &Job, pod: &Arc<Object>) {
        if !has_failed(job, pod) || !self.may_note(pod) {
            return;
        }
        match policy::judge(job, pod) {
            Verdict::Ignore => self.ignored.push(pod.clone()),
            _ => self.uncounted.failed.push(pod.meta.uid.clone()),
        }
    }

    /// Whether the end of a pod is still to be noted, and there is room for it.
    fn may_note(&self, pod: &Object) -> bool {
        let uid = &pod.meta.uid;
        let Uncounted { succeeded, failed } = &self.uncounted;
        let known = succeeded.contains(uid) || failed.contains(uid);
        let full = succeeded.len() + failed.len() >= MAX_UNCOUNTED;
        !known && !full && pod.has_finalizer(TRACKING)
    }
}

/// Whether a pod counts as failed: with the usual policy also one that somebody deletes.
pub(super) fn has_failed(job: &Job, pod: &Object) -> bool {
    let phase = pod.pod().map_or("", |view| view.status.phase.as_str());
    let waits = job.spec.waits_for_ends();
    phase == "Failed" || (pod.is_terminating() && phase != "Succeeded" && !waits)
}

/// How often the index of a pod had failed before it.
pub(super) fn failures(pod: &Object) -> i32 {
    pod.meta.annotations.get(FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The same for failures that count as nothing.
pub(super) fn ignored_failures(pod: &Object) -> i32 {
    pod.meta.annotations.get(IGNORED_FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The index of a pod.
pub(super) fn index_of(pod: &Object) -> Option<i32> {
    pod.meta.annotations.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// Reads `0-2,5`.
pub(super) fn parse(text: &str) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last);
        }
    }
    indexes
}

/// Writes `0-2,5`: two in a row stand apart, as upstream writes them.
pub(super) fn print(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let texts = ranges.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_ranges_and_read_back() {
        for (text, indexes) in [
            ("", vec![]),
            ("0", vec![0]),
            ("0,1", vec![0, 1]),
            ("0-2,5,7,8", vec![0, 1, 2, 5, 7, 8]),
        ] {
            let indexes: BTreeSet<i32> = indexes.into_iter().collect();
            assert_eq!(print(&indexes), text);
            assert_eq!(parse(text), indexes);
        }
        assert!(parse("x,3-,-1").is_empty());
    }
}
