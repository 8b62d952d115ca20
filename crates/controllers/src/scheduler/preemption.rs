//! Preemption: pods of a lower priority go where one of a higher priority finds no room
//! (kubernetes.io, "Pod Priority and Preemption").
//!
//! Of the nodes where it would help, that one is taken whose victims matter least: first those whose
//! PodDisruptionBudgets allow it, then those whose most important victim is the least important. The
//! node is noted on the pod, and what follows sees its place there as taken until the victims, which
//! stop in their own time, are gone.

use std::cmp::Reverse;
use std::sync::Arc;

use model::Timestamp;

use crate::conditions;
use crate::kind::Kind;
use crate::object::{Object, condition};
use crate::pod::Pod;
use crate::snapshot::Snapshot;
use crate::write::Step;

use super::refusal::{Refusal, no_victims};
use super::{NAME, Table, judge};

/// Nodes that are tried for one pod: each costs a judgement for each of its pods.
const MAX_NODES_TRIED: usize = 100;
/// Pods that are looked at for one pod in all, where what other pods say decides: then each judgement
/// looks at all of them. The node that is being tried is finished.
const MAX_PODS_LOOKED_AT: usize = 2_000_000;
const REASON: &str = "PreemptionByScheduler";

/// Pods that make room.
pub(super) struct Plan<'a> {
    /// The node, by its place in the table.
    pub node: usize,
    pub victims: Vec<&'a Arc<Object>>,
    /// Victims whose budgets do not allow it.
    violations: usize,
}

/// Why none are to go.
pub(super) struct Helpless {
    /// In the scheduler's words.
    pub why: String,
    /// The pod may not ask; else asking led to nothing, and it waits for no node any more.
    pub keeps_nomination: bool,
}

/// Finds pods whose end makes room for one that no node can have. `refusals` are those of the nodes
/// of the table.
pub(super) fn find<'a>(
    object: &'a Arc<Object>,
    pod: &'a Pod,
    table: &mut Table<'a>,
    refusals: &[Vec<Refusal>],
) -> Result<Plan<'a>, Helpless> {
    may_try(pod, table.snapshot)?;
    let (mut plans, mut reasons, mut helpless) = (Vec::new(), Vec::new(), 0);
    let depends = !table.surroundings(object, pod).is_empty();
    let all: usize = table.candidates.iter().map(|node| node.pods().len()).sum();
    let (mut tried, mut looked_at) = (0, 0);
    for (index, refused) in refusals.iter().enumerate() {
        if refused.iter().any(Refusal::is_final) {
            helpless += 1;
        } else if tried < MAX_NODES_TRIED && looked_at < MAX_PODS_LOOKED_AT {
            tried += 1;
            if depends {
                let judgements = table.candidates.get(index).map_or(0, |node| node.pods().len());
                looked_at += judgements * all;
            }
            match victims(object, pod, table, index) {
                Ok(plan) => plans.push(plan),
                Err(why) => reasons.extend(why),
            }
        }
    }
    let best = plans.into_iter().min_by_key(Plan::cost);
    best.ok_or_else(|| Helpless {
        why: no_victims(refusals.len(), helpless, reasons),
        keeps_nomination: false,
    })
}

/// What is done to the victims, in this order: they hear why, then they are deleted.
pub(super) fn steps(plan: &Plan<'_>, pod: &Object, node: &str, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    for victim in plan.victims.iter().filter(|victim| !victim.is_terminating()) {
        let why = "default-scheduler: preempting to accommodate a higher priority pod";
        steps.extend(conditions::disrupted(victim, REASON, why, None, now));
        let message = format!("Preempted by pod {} on node {node}", pod.meta.uid);
        let event = victim.report(NAME, "Preempted", message);
        steps.push(Step::quiet(victim.delete()).on_success(event));
    }
    steps
}

/// Whether the pod may make others go at all, and does not wait for some already.
fn may_try(pod: &Pod, snapshot: &Snapshot) -> Result<(), Helpless> {
    let not_eligible = |why: &str| {
        let why = format!("preemption: not eligible due to {why}.");
        Err(Helpless { why, keeps_nomination: true })
    };
    if pod.spec.preemption_policy == "Never" {
        return not_eligible("preemptionPolicy=Never");
    }
    let goes_for_us = |victim: &Arc<Object>| {
        let Some(view) = victim.pod() else { return false };
        let target = condition(&view.status.conditions, conditions::DISRUPTION_TARGET);
        victim.is_terminating()
            && view.spec.priority < pod.spec.priority
            && target.is_some_and(|target| target.reason == REASON)
    };
    let nominated = &pod.status.nominated_node_name;
    if !nominated.is_empty() && snapshot.pods_on(nominated).any(goes_for_us) {
        return not_eligible("a terminating pod on the nominated node");
    }
    Ok(())
}

/// The fewest and least important pods of a node without which it can have the pod. `Err` says what
/// is in the way even without all of them.
fn victims<'a>(
    object: &'a Arc<Object>,
    pod: &'a Pod,
    table: &mut Table<'a>,
    index: usize,
) -> Result<Plan<'a>, Vec<String>> {
    let all = table.candidates.get(index).map(|node| node.pods().to_vec()).unwrap_or_default();
    let lower = |other: &&Arc<Object>| priority(other) < pod.spec.priority;
    let mut lower: Vec<&Arc<Object>> = all.into_iter().filter(lower).collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    // The most important first; those that go anyway come last.
    lower.sort_by_key(|other| (other.is_terminating(), Reverse(priority(other)), started(other)));
    lower.iter().for_each(|other| table.release(index, other));
    let without_all = judge(object, pod, table, index);
    let mut plan = Plan { node: index, victims: Vec::new(), violations: 0 };
    if without_all.is_ok() {
        let (violating, others) = by_budgets(&lower, table.snapshot);
        let count = violating.len();
        for (place, other) in violating.into_iter().chain(others).enumerate() {
            table.take(index, other);
            if judge(object, pod, table, index).is_err() {
                table.release(index, other);
                plan.violations += usize::from(place < count);
                plan.victims.push(other);
            }
        }
    }
    // The table is as it was: it was a trial.
    let gone = if without_all.is_ok() { &plan.victims } else { &lower };
    gone.iter().for_each(|other| table.take(index, other));
    match without_all {
        Ok(()) => Ok(plan),
        Err(refusals) => Err(refusals.iter().map(Refusal::to_string).collect()),
    }
}

/// Sorts out the pods whose end some PodDisruptionBudget does not allow.
fn by_budgets<'a>(
    pods: &[&'a Arc<Object>],
    snapshot: &Snapshot,
) -> (Vec<&'a Arc<Object>>, Vec<&'a Arc<Object>>) {
    let mut budgets: Vec<(&Object, i32)> = snapshot
        .all(Kind::PodDisruptionBudget)
        .filter_map(|budget| {
            Some((&**budget, budget.disruption_budget()?.status.disruptions_allowed))
        })
        .collect();
    pods.iter().copied().partition(|pod| {
        let mut violates = false;
        for (budget, left) in &mut budgets {
            if spends(budget, pod) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

/// Whether the end of a pod takes something from a budget.
fn spends(budget: &Object, pod: &Object) -> bool {
    let Some(view) = budget.disruption_budget() else { return false };
    let selector = view.spec.selector.as_ref();
    budget.meta.namespace == pod.meta.namespace
        && !pod.is_terminating()
        && !view.status.disrupted_pods.contains_key(&pod.meta.name)
        && selector.is_some_and(|selector| selector.matches(&pod.meta.labels))
}

fn priority(pod: &Object) -> i32 {
    pod.pod().map_or(0, |view| view.spec.priority)
}

fn started(pod: &Object) -> Option<Timestamp> {
    pod.pod().and_then(|view| view.status.start_time).or(pod.meta.creation_timestamp)
}

impl Plan<'_> {
    /// What is taken is what costs least, in this order.
    fn cost(&self) -> impl Ord + use<> {
        let highest = self.victims.iter().map(|victim| priority(victim)).max();
        // One victim more always costs more than none, however low its priority.
        let weight = |victim: &&Arc<Object>| i64::from(priority(victim)) - i64::from(i32::MIN) + 1;
        let total: i64 = self.victims.iter().map(weight).sum();
        let important = self.victims.iter().filter(|victim| Some(priority(victim)) == highest);
        let oldest = important.filter_map(|victim| started(victim)).min();
        (self.violations, highest, total, self.victims.len(), Reverse(oldest), self.node)
    }
}
