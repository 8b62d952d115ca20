//! Which pods of a Job run, and which ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::job::{Job, Uncounted};
use crate::object::Object;

use super::TRACKING;

/// Uids that the status takes in at a time: it must stay small.
const MAX_UNCOUNTED: usize = 500;
/// The annotation and label of a pod with its index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The pods of a Job in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What the status shall say next.
    pub uncounted: Uncounted,
    /// What is added to the numbers of the status.
    pub counted_succeeded: i32,
    /// The same for failures.
    pub counted_failed: i32,
}

impl Count {
    pub fn new(job: &Job, pods: &[Arc<Object>]) -> Self {
        let mut count = Self { indexes: parse(&job.status.completed_indexes), ..Self::default() };
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
        for pod in pods {
            count.add(job, pod);
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
        count
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
        let uid = &pod.meta.uid;
        let known = self.uncounted.succeeded.contains(uid) || self.uncounted.failed.contains(uid);
        let full = self.uncounted.succeeded.len() + self.uncounted.failed.len() >= MAX_UNCOUNTED;
        if known || full || !pod.has_finalizer(TRACKING) {
            return;
        }
        if view.status.phase == "Succeeded" {
            if job.spec.is_indexed() {
                let completions = job.spec.completions.unwrap_or(0);
                self.indexes.extend(index_of(pod).filter(|index| *index < completions));
            }
            self.uncounted.succeeded.push(uid.clone());
        } else if has_failed(job, pod) {
            self.uncounted.failed.push(uid.clone());
        }
    }
}

/// Whether a pod counts as failed: with the usual policy also one that somebody deletes.
fn has_failed(job: &Job, pod: &Object) -> bool {
    let phase = pod.pod().map_or("", |view| view.status.phase.as_str());
    let waits = job.spec.pod_replacement_policy == "Failed";
    phase == "Failed" || (pod.is_terminating() && phase != "Succeeded" && !waits)
}

/// The index of a pod.
pub(super) fn index_of(pod: &Object) -> Option<i32> {
    pod.meta.annotations.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// Reads `0-2,5`.
fn parse(text: &str) -> BTreeSet<i32> {
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
