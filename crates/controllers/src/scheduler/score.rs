//! Which of the nodes that may have a pod gets it: the plugins of kube-scheduler that score nodes,
//! each from 0 to 100, summed by their default weights (kubernetes.io, "Scheduler Configuration").
//! The images that a node has count for nothing here. Upstream takes any of the best; we take the
//! one with the fewest pods of the same owner, then of all, then the first by name, so that the
//! same cluster gives the same answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::object::Object;
use crate::pod::Pod;

use super::filter::Candidate;
use super::topology::{self, Surroundings};

/// The most that one plugin gives a node.
const MAX_SCORE: i64 = 100;
/// TaintToleration.
const TAINTS_WEIGHT: i64 = 3;
/// NodeAffinity.
const NODE_AFFINITY_WEIGHT: i64 = 2;
/// PodTopologySpread.
const SPREAD_WEIGHT: i64 = 2;
/// InterPodAffinity.
const POD_AFFINITY_WEIGHT: i64 = 2;

const ZONE: &str = "topology.kubernetes.io/zone";
/// By how many pods zones may differ before a pod that says nothing of spreading minds.
const USUAL_ZONE_SKEW: i64 = 5;
/// The same of nodes.
const USUAL_NODE_SKEW: i64 = 3;

/// The best of `feasible`, places in `nodes`. A node that others leave for the pod comes first.
pub(super) fn best<'a>(
    object: &Object,
    pod: &Pod,
    nodes: &[Candidate<'a>],
    feasible: &[usize],
    surroundings: Option<&Surroundings<'a>>,
) -> Option<usize> {
    let chosen: Vec<(usize, &Candidate<'a>)> =
        feasible.iter().filter_map(|index| Some((*index, nodes.get(*index)?))).collect();
    let nominated = &pod.status.nominated_node_name;
    let only = match chosen.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|(_, node)| node.name() == nominated),
    };
    if let Some((index, _)) = only {
        return Some(*index);
    }
    let owner = object.meta.controller().map(|owner| owner.uid.as_str());
    let feasible: Vec<&Candidate<'a>> = chosen.iter().map(|(_, node)| *node).collect();
    let scores = total(pod, owner, nodes, &feasible, surroundings);
    let rank = |score: i64, node: &Candidate<'a>| {
        (Reverse(score), node.siblings(owner), node.pods().len(), node.name())
    };
    let best = chosen.into_iter().zip(scores).min_by_key(|((_, node), score)| rank(*score, node));
    best.map(|((index, _), _)| index)
}

/// The score of each feasible node.
fn total<'a>(
    pod: &Pod,
    owner: Option<&str>,
    nodes: &[Candidate<'a>],
    feasible: &[&Candidate<'a>],
    surroundings: Option<&Surroundings<'a>>,
) -> Vec<i64> {
    let mut total: Vec<i64> = feasible.iter().map(|node| node.room(pod)).collect();
    let mut add = |scores: Vec<i64>, weight: i64| {
        for (sum, score) in total.iter_mut().zip(scores) {
            *sum += weight * score;
        }
    };
    let each = |value: &dyn Fn(&Candidate<'a>) -> i64| -> Vec<i64> {
        feasible.iter().map(|node| value(node)).collect()
    };
    let taints = each(&|node| i64::try_from(node.unwelcome(pod)).unwrap_or(i64::MAX));
    add(share_of_most(&taints).into_iter().map(|share| MAX_SCORE - share).collect(), TAINTS_WEIGHT);
    let liking = each(&|node| topology::liking(pod, node.object()));
    add(share_of_most(&liking), NODE_AFFINITY_WEIGHT);
    if let Some(others) = surroundings {
        add(between_extremes(&each(&|node| others.worth(node))), POD_AFFINITY_WEIGHT);
    }
    let crowds = match (surroundings, pod.spec.topology_spread_constraints.is_empty()) {
        (Some(others), false) => others.crowds(feasible),
        _ => usual_crowds(owner, nodes, feasible),
    };
    add(spread(&crowds), SPREAD_WEIGHT);
    total
}

/// Each value as a share of the largest.
fn share_of_most(values: &[i64]) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or(0);
    let share = |value: &i64| if most > 0 { value.saturating_mul(MAX_SCORE) / most } else { 0 };
    values.iter().map(share).collect()
}

/// Each value's place between the smallest and the largest.
fn between_extremes(values: &[i64]) -> Vec<i64> {
    let least = values.iter().copied().min().unwrap_or(0);
    let width = values.iter().copied().max().unwrap_or(0).saturating_sub(least);
    let place = |value: &i64| match width {
        0 => 0,
        width => value.saturating_sub(least).saturating_mul(MAX_SCORE) / width,
    };
    values.iter().map(place).collect()
}

/// The fewer of the same pods a node's places have, the better. Nodes that are in no place get
/// nothing.
fn spread(crowds: &[Option<i64>]) -> Vec<i64> {
    let known = || crowds.iter().flatten().copied();
    let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    let score = |crowd: &Option<i64>| match crowd {
        None => 0,
        Some(_) if most == 0 => MAX_SCORE,
        Some(crowd) => MAX_SCORE * (most + least - crowd) / most,
    };
    crowds.iter().map(score).collect()
}

/// How crowded nodes are for a pod that says nothing of spreading: with pods of its owner, on
/// the node and in its zone (the built-in constraints of PodTopologySpread). Upstream counts the
/// pods of its Services too.
fn usual_crowds<'a>(
    owner: Option<&str>,
    nodes: &[Candidate<'a>],
    feasible: &[&Candidate<'a>],
) -> Vec<Option<i64>> {
    if owner.is_none() {
        return vec![Some(0); feasible.len()];
    }
    let mut zones: BTreeMap<&str, usize> =
        feasible.iter().filter_map(|node| Some((node.label(ZONE)?, 0))).collect();
    let zone_weight = topology::weight(zones.len());
    let node_weight = topology::weight(feasible.len());
    for node in nodes {
        if let Some(count) = node.label(ZONE).and_then(|zone| zones.get_mut(zone)) {
            *count += node.siblings(owner);
        }
    }
    let crowd = |node: &&Candidate<'a>| {
        let here = topology::crowd(node.siblings(owner), USUAL_NODE_SKEW, node_weight);
        let zone = node.label(ZONE).and_then(|zone| zones.get(zone));
        let zone = zone.map_or(0.0, |count| topology::crowd(*count, USUAL_ZONE_SKEW, zone_weight));
        // A few pods a node: far from where the conversion loses anything.
        Some((here + zone).round() as i64)
    };
    feasible.iter().map(crowd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_scores_from_nothing_to_a_hundred() {
        assert_eq!(share_of_most(&[0, 30, 60]), [0, 50, 100]);
        assert_eq!(share_of_most(&[0, 0]), [0, 0]);
        assert_eq!(between_extremes(&[-10, 0, 30]), [0, 25, 100]);
        assert_eq!(between_extremes(&[7, 7]), [0, 0]);
        assert_eq!(spread(&[Some(0), Some(3), Some(6), None]), [100, 50, 0, 0]);
        assert_eq!(spread(&[Some(0), Some(0), None]), [100, 100, 0]);
        assert_eq!(spread(&[Some(4), Some(8)]), [100, 50]);
        assert!(spread(&[]).is_empty());
    }
}
