//! Whether a node may have a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use model::Protocol;
use model::selector::matches_map;

use crate::node_lifecycle::NOT_READY;
use crate::object::{Node, Object, Taint, is_true};
use crate::pod::{NodeRequirement, NodeSelector, NodeSelectorTerm, Pod};
use crate::snapshot::Snapshot;

/// Pods of a node that does not say how many it takes, as the kubelet's default.
const DEFAULT_MAX_PODS: usize = 110;

/// A node, with what is placed there, the placements of this run included.
pub(super) struct Candidate<'a> {
    object: &'a Arc<Object>,
    node: &'a Node,
    pods: usize,
    siblings: BTreeMap<String, usize>,
    host_ports: BTreeSet<HostPort>,
}

/// A port of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    port: u16,
    protocol: Protocol,
    /// `None` for all addresses of the node.
    address: Option<String>,
}

/// Why a node is not for a pod, in the words of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Cordoned,
    Tainted(Taint),
    Affinity,
    Ports,
    Full,
    /// A volume of the pod lies on another node.
    VolumeElsewhere,
    /// No volume there would do for a claim of the pod, and none can be made.
    NoVolume,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::Tainted(taint) => {
                write!(f, "node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)
            }
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => {
                f.write_str("node(s) didn't have free ports for the requested pod ports")
            }
            Self::Full => f.write_str("Too many pods"),
            Self::VolumeElsewhere => f.write_str("node(s) had volume node affinity conflict"),
            Self::NoVolume => {
                f.write_str("node(s) didn't find available persistent volumes to bind")
            }
        }
    }
}

impl<'a> Candidate<'a> {
    /// A node that is there to stay.
    pub fn new(object: &'a Arc<Object>, snapshot: &Snapshot) -> Option<Self> {
        let node = object.node().filter(|_| !object.is_terminating())?;
        let mut candidate =
            Self { object, node, pods: 0, siblings: BTreeMap::new(), host_ports: BTreeSet::new() };
        for pod in snapshot.pods_on(&object.meta.name) {
            if pod.pod().is_some_and(|view| !view.is_finished()) {
                candidate.take(pod);
            }
        }
        Some(candidate)
    }

    pub fn name(&self) -> &'a str {
        &self.object.meta.name
    }

    pub fn object(&self) -> &'a Arc<Object> {
        self.object
    }

    /// Pods on the node.
    pub fn pods(&self) -> usize {
        self.pods
    }

    /// Pods on the node that the same object controls.
    pub fn siblings(&self, owner: Option<&str>) -> usize {
        owner.and_then(|owner| self.siblings.get(owner)).copied().unwrap_or(0)
    }

    /// Counts a pod as placed here.
    pub fn take(&mut self, pod: &Object) {
        self.pods += 1;
        if let Some(owner) = pod.meta.controller().filter(|_| !pod.is_terminating()) {
            *self.siblings.entry(owner.uid.clone()).or_default() += 1;
        }
        self.host_ports.extend(pod.pod().into_iter().flat_map(host_ports));
    }

    /// Whether the node may have the pod; if so, how many of its taints would rather not.
    pub fn check(&self, object: &Object) -> Result<usize, Refusal> {
        let Some(pod) = object.pod() else { return Err(Refusal::Affinity) };
        let tolerates = |taint: &Taint| pod.spec.tolerations.iter().any(|one| one.covers(taint));
        if self.node.spec.unschedulable && !tolerates(&taint("node.kubernetes.io/unschedulable")) {
            return Err(Refusal::Cordoned);
        }
        let mut taints = self.node.spec.taints.iter();
        let forbids = |taint: &&Taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute");
        if let Some(found) = taints.find(|taint| forbids(taint) && !tolerates(taint)) {
            return Err(Refusal::Tainted(found.clone()));
        }
        // The taint follows the condition; between the two the condition counts.
        let ready = is_true(&self.node.status.conditions, "Ready");
        if !ready && !tolerates(&taint(NOT_READY)) {
            return Err(Refusal::Tainted(taint(NOT_READY)));
        }
        if !wants(pod, self.object) {
            return Err(Refusal::Affinity);
        }
        if host_ports(pod).any(|port| self.host_ports.iter().any(|taken| port.meets(taken))) {
            return Err(Refusal::Ports);
        }
        let allocatable = self.node.status.allocatable.pods.as_ref();
        let max = allocatable.and_then(|pods| pods.whole()).unwrap_or(DEFAULT_MAX_PODS);
        if self.pods >= max {
            return Err(Refusal::Full);
        }
        let prefers_not = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !tolerates(taint);
        Ok(self.node.spec.taints.iter().filter(prefers_not).count())
    }
}

/// Whether node selector and required node affinity of a pod choose the node.
pub(crate) fn wants(pod: &Pod, node: &Object) -> bool {
    let required = pod.spec.affinity.node_affinity.required.as_ref();
    matches_map(&pod.spec.node_selector, &node.meta.labels)
        && required.is_none_or(|selector| selects(selector, node))
}

fn taint(key: &str) -> Taint {
    Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() }
}

impl HostPort {
    /// Whether the two cannot both be taken: all addresses meet each single one.
    fn meets(&self, other: &Self) -> bool {
        let same_address = match (&self.address, &other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        (self.port, self.protocol) == (other.port, other.protocol) && same_address
    }
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let is_any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
    pod.lasting_containers()
        .flat_map(|container| &container.ports)
        .filter(|port| port.host_port != 0)
        .map(move |port| HostPort {
            port: port.host_port,
            protocol: port.protocol,
            address: Some(port.host_ip.clone()).filter(|address| !is_any(address)),
        })
}

/// Whether a selector of nodes chooses a node.
pub(super) fn selects(selector: &NodeSelector, node: &Object) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

fn term_matches(term: &NodeSelectorTerm, node: &Object) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let labels = &node.meta.labels;
    let by_label = |one: &NodeRequirement| requirement_matches(one, labels.get(&one.key));
    let by_field = |one: &NodeRequirement| {
        one.key == "metadata.name" && requirement_matches(one, Some(&node.meta.name))
    };
    term.match_expressions.iter().all(by_label) && term.match_fields.iter().all(by_field)
}

fn requirement_matches(requirement: &NodeRequirement, value: Option<&String>) -> bool {
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = requirement.values.first().and_then(number);
    let compare = |wanted: fn(i64, i64) -> bool| {
        value.and_then(number).zip(bound).is_some_and(|(value, bound)| wanted(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| requirement.values.contains(value)),
        "NotIn" => value.is_none_or(|value| !requirement.values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}
