//! What other pods mean for where a pod may run: affinity to pods, and spreading over places. A
//! place is all nodes with the same value of a label.

use std::collections::{BTreeMap, BTreeSet};

use crate::affinity::{PodAffinity, PodTerm, SpreadConstraint};
use crate::kind::Kind;
use crate::object::Object;
use crate::pod::Pod;
use crate::snapshot::Snapshot;

use super::filter::{Candidate, term_matches, wants};
use super::refusal::Refusal;

/// What it is worth to a pod that must have company to get more of it (upstream's
/// `hardPodAffinityWeight`).
const NEEDED_COMPANY_WEIGHT: i64 = 1;

/// A label of nodes with one of its values.
type Place<'a> = (&'a str, &'a str);

/// All that other pods, where they are, mean for one pod.
pub(super) struct Surroundings<'a> {
    spread: Vec<Spread<'a>>,
    /// The keys of the places where the pod must find company, and those where it does.
    near: Vec<(&'a str, BTreeSet<&'a str>)>,
    /// There is no company anywhere yet, and the pod is such itself: it may be the first.
    may_be_first: bool,
    /// Places that the pod avoids.
    away: BTreeSet<Place<'a>>,
    /// Places whose pods avoid the pod.
    closed: BTreeSet<Place<'a>>,
    /// What a place is worth.
    worth: BTreeMap<Place<'a>, i64>,
}

/// A spread constraint with its counts.
struct Spread<'a> {
    constraint: &'a SpreadConstraint,
    /// Pods in each place that counts.
    counts: BTreeMap<&'a str, i64>,
    /// Whether the pod itself will be counted.
    counts_itself: bool,
}

impl<'a> Surroundings<'a> {
    pub fn of(
        object: &'a Object,
        pod: &'a Pod,
        candidates: &[Candidate<'a>],
        snapshot: &'a Snapshot,
    ) -> Self {
        let constraints = &pod.spec.topology_spread_constraints;
        let count = |constraint| Spread::of(constraint, object, pod, candidates);
        let mut found = Self {
            spread: constraints.iter().map(count).collect(),
            near: Vec::new(),
            may_be_first: false,
            away: BTreeSet::new(),
            closed: BTreeSet::new(),
            worth: BTreeMap::new(),
        };
        let seeker = Seeker { object, snapshot };
        if let Some(affinity) = &pod.spec.affinity.pod_affinity {
            found.look_for_company(&seeker, &affinity.required, candidates);
            found.value(&seeker, affinity, 1, candidates);
        }
        if let Some(affinity) = &pod.spec.affinity.pod_anti_affinity {
            for (term, place) in seeker.meetings(affinity.required.iter(), candidates) {
                found.away.insert((&term.topology_key, place));
            }
            found.value(&seeker, affinity, -1, candidates);
        }
        found.hear_others(&seeker, candidates);
        found
    }

    /// Whether nothing here depends on which pods there are.
    pub fn is_empty(&self) -> bool {
        self.spread.is_empty()
            && self.near.is_empty()
            && self.away.is_empty()
            && self.closed.is_empty()
    }

    /// Whether other pods let the pod go to a node.
    pub fn check(&self, node: &Candidate<'_>) -> Result<(), Refusal> {
        for spread in self.spread.iter().filter(|spread| spread.constraint.must_hold()) {
            spread.check(node)?;
        }
        let meets = |places: &BTreeSet<Place<'a>>| {
            places.iter().any(|(key, value)| node.label(key) == Some(value))
        };
        if !self.near.iter().all(|(key, places)| self.has_company(node, key, places)) {
            return Err(Refusal::PodAffinity);
        }
        if meets(&self.away) {
            return Err(Refusal::PodAntiAffinity);
        }
        if meets(&self.closed) { Err(Refusal::OthersAntiAffinity) } else { Ok(()) }
    }

    /// What the node is worth to the pod for its company; more is better.
    pub fn worth(&self, node: &Candidate<'_>) -> i64 {
        let here = self.worth.iter().filter(|((key, value), _)| node.label(key) == Some(value));
        here.map(|(_, worth)| worth).fold(0, |sum, worth| sum.saturating_add(*worth))
    }

    /// How crowded the places of nodes are with the same pods, by the constraints that need not
    /// hold; less is better. `None` for a node that lacks one of their labels.
    pub fn crowds(&self, nodes: &[&Candidate<'_>]) -> Vec<Option<i64>> {
        let soft: Vec<&Spread<'_>> =
            self.spread.iter().filter(|spread| !spread.constraint.must_hold()).collect();
        let is_placed = |node: &&&Candidate<'_>| {
            soft.iter().all(|spread| node.label(&spread.constraint.topology_key).is_some())
        };
        let weights: Vec<f64> = soft
            .iter()
            .map(|spread| {
                let key = &spread.constraint.topology_key;
                let placed = nodes.iter().filter(is_placed);
                let places: BTreeSet<&str> = placed.filter_map(|node| node.label(key)).collect();
                weight(places.len())
            })
            .collect();
        let one = |node: &Candidate<'_>, spread: &Spread<'_>, weight: f64| {
            let place = node.label(&spread.constraint.topology_key)?;
            let count = spread.counts.get(place).copied().unwrap_or(0);
            let count = usize::try_from(count).unwrap_or(0);
            Some(crowd(count, spread.constraint.max_skew, weight))
        };
        let sum = |node: &&Candidate<'_>| {
            let each = soft.iter().zip(&weights).map(|(spread, weight)| one(node, spread, *weight));
            // A few pods a place: far from where the conversion loses anything.
            each.sum::<Option<f64>>().map(|sum| sum.round() as i64)
        };
        nodes.iter().map(sum).collect()
    }

    fn has_company(&self, node: &Candidate<'_>, key: &str, places: &BTreeSet<&str>) -> bool {
        node.label(key).is_some_and(|place| self.may_be_first || places.contains(place))
    }

    /// Company is whoever all terms select together.
    fn look_for_company(
        &mut self,
        seeker: &Seeker<'a>,
        terms: &'a [PodTerm],
        candidates: &[Candidate<'a>],
    ) {
        let is_company = |other: &Object| terms.iter().all(|term| seeker.selects(term, other));
        self.near = terms.iter().map(|term| (&*term.topology_key, BTreeSet::new())).collect();
        for node in candidates {
            if node.pods().iter().any(|other| is_company(other)) {
                for (key, places) in &mut self.near {
                    places.extend(node.label(key));
                }
            }
        }
        let nowhere = self.near.iter().all(|(_, places)| places.is_empty());
        self.may_be_first = nowhere && is_company(seeker.object);
    }

    /// What the pod would like, `sign` for it or against it.
    fn value(
        &mut self,
        seeker: &Seeker<'a>,
        affinity: &'a PodAffinity,
        sign: i64,
        candidates: &[Candidate<'a>],
    ) {
        for wish in &affinity.preferred {
            let terms = std::iter::once(&wish.pod_affinity_term);
            for (term, place) in seeker.meetings(terms, candidates) {
                *self.worth.entry((&term.topology_key, place)).or_default() += sign * wish.weight;
            }
        }
    }

    /// What the pods that are placed say about the pod.
    fn hear_others(&mut self, seeker: &Seeker<'a>, candidates: &[Candidate<'a>]) {
        for node in candidates {
            for other in node.choosy() {
                let Some(view) = other.pod() else { continue };
                let asker = Seeker { object: other, snapshot: seeker.snapshot };
                let place = |term: &'a PodTerm| {
                    let value = node.label(&term.topology_key)?;
                    asker.selects(term, seeker.object).then_some((&*term.topology_key, value))
                };
                let affinity = &view.spec.affinity;
                if let Some(anti) = &affinity.pod_anti_affinity {
                    self.closed.extend(anti.required.iter().filter_map(place));
                }
                // Who needs such company likes more of it.
                let needed = affinity.pod_affinity.iter().flat_map(|near| &near.required);
                for place in needed.filter_map(place) {
                    *self.worth.entry(place).or_default() += NEEDED_COMPANY_WEIGHT;
                }
                for (wishes, sign) in
                    [(&affinity.pod_affinity, 1), (&affinity.pod_anti_affinity, -1)]
                {
                    for wish in wishes.iter().flat_map(|wishes| &wishes.preferred) {
                        if let Some(place) = place(&wish.pod_affinity_term) {
                            *self.worth.entry(place).or_default() += sign * wish.weight;
                        }
                    }
                }
            }
        }
    }
}

impl<'a> Spread<'a> {
    fn of(
        constraint: &'a SpreadConstraint,
        object: &Object,
        pod: &Pod,
        candidates: &[Candidate<'a>],
    ) -> Self {
        let own = &object.meta.labels;
        let counts_one = |other: &Object| {
            other.meta.namespace == object.meta.namespace
                && !other.is_terminating()
                && constraint.counts(own, &other.meta.labels)
        };
        let mut counts = BTreeMap::new();
        for node in candidates.iter().filter(|node| counts_node(constraint, pod, node)) {
            if let Some(place) = node.label(&constraint.topology_key) {
                let pods = node.pods().iter().filter(|other| counts_one(other)).count();
                *counts.entry(place).or_default() += i64::try_from(pods).unwrap_or(i64::MAX);
            }
        }
        let counts_itself = constraint.counts(own, own);
        Self { constraint, counts, counts_itself }
    }

    fn check(&self, node: &Candidate<'_>) -> Result<(), Refusal> {
        let Some(place) = node.label(&self.constraint.topology_key) else {
            return Err(Refusal::NoTopologyLabel);
        };
        let here = self.counts.get(place).copied().unwrap_or(0);
        let places = i64::try_from(self.counts.len()).unwrap_or(i64::MAX);
        let least = match self.counts.values().min() {
            Some(least) if places >= self.constraint.min_domains.unwrap_or(1) => *least,
            _ => 0,
        };
        let skew = here + i64::from(self.counts_itself) - least;
        if skew > self.constraint.max_skew { Err(Refusal::Skew) } else { Ok(()) }
    }
}

/// What a pod in one of so many places counts: the more places, the more it matters that they are
/// even (upstream's `topologyNormalizingWeight`).
pub(super) fn weight(places: usize) -> f64 {
    // As many as there are nodes at most.
    (places as f64 + 2.0).ln()
}

/// How crowded a place with so many of the same pods is.
pub(super) fn crowd(pods: usize, max_skew: i64, weight: f64) -> f64 {
    // Skews are small numbers that people write.
    pods as f64 * weight + (max_skew - 1) as f64
}

/// Whether the pods of a node count for a constraint of the pod (KEP-3094). A node counts only if
/// it has the labels of all constraints of its kind: those that must hold, or those that need not.
fn counts_node(constraint: &SpreadConstraint, pod: &Pod, node: &Candidate<'_>) -> bool {
    let all = pod.spec.topology_spread_constraints.iter();
    let mut alike = all.filter(|one| one.must_hold() == constraint.must_hold());
    let has_places = alike.all(|one| node.label(&one.topology_key).is_some());
    let chosen = constraint.node_affinity_policy == "Ignore" || wants(pod, node.object());
    let welcome = constraint.node_taints_policy != "Honor" || node.intolerable(pod).is_none();
    has_places && chosen && welcome
}

/// What node affinity would rather have of a node; more is better.
pub(super) fn liking(pod: &Pod, node: &Object) -> i64 {
    let wishes = pod.spec.affinity.node_affinity.preferred.iter();
    wishes.filter(|wish| term_matches(&wish.preference, node)).map(|wish| wish.weight).sum()
}

/// A pod with terms about others.
struct Seeker<'a> {
    object: &'a Object,
    snapshot: &'a Snapshot,
}

impl<'a> Seeker<'a> {
    fn selects(&self, term: &PodTerm, other: &Object) -> bool {
        let namespace = &other.meta.namespace;
        let by_labels = |selector: &model::selector::LabelSelector| {
            let found = self.snapshot.find(Kind::Namespace, "", namespace);
            found.is_some_and(|found| selector.matches(&found.meta.labels))
        };
        let here = match (&term.namespace_selector, term.namespaces.as_slice()) {
            (None, []) => *namespace == self.object.meta.namespace,
            (selector, names) => {
                names.contains(namespace) || selector.as_ref().is_some_and(by_labels)
            }
        };
        here && term.selects(&self.object.meta.labels, &other.meta.labels)
    }

    /// Each place of a term where a pod is that it selects, once for each such pod.
    fn meetings(
        &self,
        terms: impl Iterator<Item = &'a PodTerm>,
        candidates: &[Candidate<'a>],
    ) -> Vec<(&'a PodTerm, &'a str)> {
        let mut found = Vec::new();
        for term in terms {
            for node in candidates {
                let Some(place) = node.label(&term.topology_key) else { continue };
                let met = node.pods().iter().filter(|other| self.selects(term, other));
                found.extend(met.map(|_| (term, place)));
            }
        }
        found
    }
}
