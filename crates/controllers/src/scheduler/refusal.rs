//! Why a node is not for a pod, in the words of the scheduler.

use std::collections::BTreeMap;
use std::fmt;

use crate::object::Taint;

/// What taking pods away cannot help against.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// Why one node is not for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Cordoned,
    Tainted(Taint),
    Affinity,
    /// The pod names its nodes, and this is none of them.
    OtherNode,
    Ports,
    Full,
    /// Too little is left of a resource; `never`: even the empty node has too little.
    Insufficient {
        resource: String,
        never: bool,
    },
    /// A volume of the pod lies on another node.
    VolumeElsewhere,
    /// No volume there would do for a claim of the pod, and none can be made.
    NoVolume,
    /// The node lacks a label over whose values the pods are to spread.
    NoTopologyLabel,
    /// There would be too many of the same pods in one place.
    Skew,
    /// None of the pods is there that the pod must be near to.
    PodAffinity,
    /// A pod is there that the pod must be away from.
    PodAntiAffinity,
    /// A pod is there that must be away from the pod.
    OthersAntiAffinity,
}

impl Refusal {
    /// Whether it holds whatever pods are taken away from the node.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Ports
            | Self::Full
            | Self::Skew
            | Self::PodAntiAffinity
            | Self::OthersAntiAffinity => false,
            Self::Insufficient { never, .. } => *never,
            _ => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cordoned => "node(s) were unschedulable",
            Self::Tainted(taint) => {
                let Taint { key, value, .. } = taint;
                return write!(f, "node(s) had untolerated taint {{{key}: {value}}}");
            }
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::OtherNode => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Full => "Too many pods",
            Self::Insufficient { resource, .. } => return write!(f, "Insufficient {resource}"),
            Self::VolumeElsewhere => "node(s) had volume node affinity conflict",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::NoTopologyLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::Skew => "node(s) didn't match pod topology spread constraints",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::OthersAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

/// Why no node can have a pod, such as `0/3 nodes are available: 1 node(s) were unschedulable, …`.
pub(super) fn explain(refusals: &[Vec<Refusal>]) -> String {
    if refusals.is_empty() {
        return "no nodes available to schedule pods".into();
    }
    let reasons = refusals.iter().flatten().map(Refusal::to_string);
    histogram(refusals.len(), reasons.collect())
}

/// What is wrong with the pod on each of so many nodes.
pub(super) fn everywhere(nodes: usize, problem: &str) -> String {
    let why = vec![NOT_HELPFUL.to_owned(); nodes];
    format!("0/{nodes} nodes are available: {problem}. preemption: {}", histogram(nodes, why))
}

/// Why taking pods away makes no room on any of so many nodes. `reasons` are those of the nodes
/// where it might have.
pub(super) fn no_victims(nodes: usize, helpless: usize, mut reasons: Vec<String>) -> String {
    reasons.extend(vec![NOT_HELPFUL.to_owned(); helpless]);
    format!("preemption: {}", histogram(nodes, reasons))
}

fn histogram(nodes: usize, reasons: Vec<String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
