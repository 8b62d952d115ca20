//! Whether a node may have a pod: what the node is, and what is left of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::selector::matches_map;
use model::{Protocol, Quantity};

use crate::amounts::{self, Amounts};
use crate::node_lifecycle::NOT_READY;
use crate::object::{Node, Object, Taint, is_true};
use crate::pod::{NodeRequirement, NodeSelector, NodeSelectorTerm, Pod};
use crate::snapshot::Snapshot;

use super::refusal::Refusal;

/// Pods of a node that does not say how many it takes, as the kubelet's default.
const DEFAULT_MAX_PODS: usize = 110;
/// Resources that every node has: one that does not say how much of them is not asked.
const USUAL: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// A node, with what is placed there, the placements of this run included.
pub(super) struct Candidate<'a> {
    object: &'a Arc<Object>,
    node: &'a Node,
    pods: Vec<&'a Arc<Object>>,
    /// Those of them that say something about other pods: few, and asked for each pod that waits.
    choosy: Vec<&'a Arc<Object>>,
    siblings: BTreeMap<&'a str, usize>,
    host_ports: Vec<HostPort>,
    used: Amounts,
    /// The same for scores: no pod counts as nothing.
    weighed: Weight,
}

/// Processors and memory, in thousandths.
type Weight = [u64; 2];

/// What counts for a score of a node, in this order.
const WEIGHED: [&str; 2] = ["cpu", "memory"];
/// What a container that does not say it is thought to need (upstream's: 100m and 200Mi).
const USUAL_NEEDS: Weight = [100, 200 * 1024 * 1024 * 1000];
/// The most that one plugin gives a node.
const MAX_SCORE: u64 = 100;

/// A port of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    port: u16,
    protocol: Protocol,
    /// `None` for all addresses of the node.
    address: Option<String>,
}

impl<'a> Candidate<'a> {
    /// A node that is there to stay.
    pub fn new(object: &'a Arc<Object>, snapshot: &'a Snapshot) -> Option<Self> {
        let node = object.node().filter(|_| !object.is_terminating())?;
        let mut candidate = Self {
            object,
            node,
            pods: Vec::new(),
            choosy: Vec::new(),
            siblings: BTreeMap::new(),
            host_ports: Vec::new(),
            used: Amounts::new(),
            weighed: Weight::default(),
        };
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

    /// The value of a label of the node.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        self.object.meta.labels.get(key).map(String::as_str)
    }

    /// Pods on the node.
    pub fn pods(&self) -> &[&'a Arc<Object>] {
        &self.pods
    }

    /// Pods on the node that say near to whom, or away from whom, they want to be.
    pub fn choosy(&self) -> &[&'a Arc<Object>] {
        &self.choosy
    }

    /// Pods on the node that the same object controls.
    pub fn siblings(&self, owner: Option<&str>) -> usize {
        owner.and_then(|owner| self.siblings.get(owner)).copied().unwrap_or(0)
    }

    /// How much room there would be with the pod, and how evenly of processors and memory; more is
    /// better (NodeResourcesFit's LeastAllocated and NodeResourcesBalancedAllocation).
    pub fn room(&self, pod: &Pod) -> i64 {
        let needs = needs(pod);
        let (mut free, mut counted) = (0, 0);
        for ((name, used), needed) in WEIGHED.iter().zip(self.weighed).zip(needs) {
            let has = self.has(name);
            if has > 0 {
                let left = has.saturating_sub(used.saturating_add(needed));
                // Bytes in thousandths, times a hundred, are too many for 64 bits.
                free += u128::from(left) * u128::from(MAX_SCORE) / u128::from(has);
                counted += 1;
            }
        }
        let free = free.checked_div(counted).and_then(|score| i64::try_from(score).ok());
        free.unwrap_or(0) + self.balance(pod)
    }

    /// How evenly processors and memory are asked for. Nobody minds where the pod asks for
    /// neither.
    fn balance(&self, pod: &Pod) -> i64 {
        let requests = pod.requests();
        let asks = |name: &&str| requests.get(*name).is_some_and(|asked| !asked.is_zero());
        if !WEIGHED.iter().any(asks) {
            return 0;
        }
        let share = |name: &&str| {
            let has = self.node.status.allocatable.get(*name)?;
            let used = self.used.get(*name).copied().unwrap_or_default();
            let asked = requests.get(*name).copied().unwrap_or_default();
            (used + asked).ratio(has).map(|share| share.min(1.0))
        };
        let shares: Vec<f64> = WEIGHED.iter().filter_map(share).collect();
        let deviation = match shares.as_slice() {
            [one, other] => (one - other).abs() / 2.0,
            _ => 0.0,
        };
        // Between a half and one.
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }

    /// What the node has of a resource, in thousandths.
    fn has(&self, name: &str) -> u64 {
        self.node.status.allocatable.get(name).map_or(0, Quantity::thousandths)
    }

    /// How many of the node's taints would rather not have the pod.
    pub fn unwelcome(&self, pod: &Pod) -> usize {
        let minds = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !tolerates(pod, taint);
        self.node.spec.taints.iter().filter(minds).count()
    }

    /// Counts a pod as placed here.
    pub fn take(&mut self, pod: &'a Arc<Object>) {
        self.pods.push(pod);
        if let Some(owner) = pod.meta.controller().filter(|_| !pod.is_terminating()) {
            *self.siblings.entry(&owner.uid).or_default() += 1;
        }
        if let Some(view) = pod.pod() {
            let affinity = &view.spec.affinity;
            if affinity.pod_affinity.is_some() || affinity.pod_anti_affinity.is_some() {
                self.choosy.push(pod);
            }
            self.host_ports.extend(host_ports(view));
            amounts::add(&mut self.used, &view.requests());
            for (sum, more) in self.weighed.iter_mut().zip(needs(view)) {
                *sum = sum.saturating_add(more);
            }
        }
    }

    /// Counts a pod as placed here no more.
    pub fn release(&mut self, pod: &'a Arc<Object>) {
        let Some(index) = self.pods.iter().position(|other| Arc::ptr_eq(other, pod)) else {
            return;
        };
        self.pods.swap_remove(index);
        self.choosy.retain(|other| !Arc::ptr_eq(other, pod));
        if let Some(owner) = pod.meta.controller().filter(|_| !pod.is_terminating())
            && let Some(count) = self.siblings.get_mut(owner.uid.as_str())
        {
            *count = count.saturating_sub(1);
        }
        let Some(view) = pod.pod() else { return };
        amounts::subtract(&mut self.used, &view.requests());
        for (sum, less) in self.weighed.iter_mut().zip(needs(view)) {
            *sum = sum.saturating_sub(less);
        }
        for port in host_ports(view) {
            if let Some(index) = self.host_ports.iter().position(|taken| *taken == port) {
                self.host_ports.swap_remove(index);
            }
        }
    }

    /// Whether the node is one for the pod, and has enough left for it. Other pods and volumes are
    /// judged elsewhere.
    pub fn check(&self, pod: &Pod) -> Result<(), Vec<Refusal>> {
        self.check_node(pod).map_err(|refusal| vec![refusal])?;
        if host_ports(pod).any(|port| self.host_ports.iter().any(|taken| port.meets(taken))) {
            return Err(vec![Refusal::Ports]);
        }
        let short = self.shortages(pod);
        if short.is_empty() { Ok(()) } else { Err(short) }
    }

    fn check_node(&self, pod: &Pod) -> Result<(), Refusal> {
        let required = pod.spec.affinity.node_affinity.required.as_ref();
        let named = required.and_then(names);
        if named.is_some_and(|names| !names.contains(&self.name())) {
            return Err(Refusal::OtherNode);
        }
        let cordon = taint("node.kubernetes.io/unschedulable");
        if self.node.spec.unschedulable && !tolerates(pod, &cordon) {
            return Err(Refusal::Cordoned);
        }
        if let Some(found) = self.intolerable(pod) {
            return Err(Refusal::Tainted(found));
        }
        if wants(pod, self.object) { Ok(()) } else { Err(Refusal::Affinity) }
    }

    /// The taint that keeps a pod away.
    pub fn intolerable(&self, pod: &Pod) -> Option<Taint> {
        let forbids = |taint: &&Taint| {
            matches!(&*taint.effect, "NoSchedule" | "NoExecute") && !tolerates(pod, taint)
        };
        if let Some(found) = self.node.spec.taints.iter().find(forbids) {
            return Some(found.clone());
        }
        // The taint follows the condition; between the two the condition counts.
        let ready = is_true(&self.node.status.conditions, "Ready");
        let unready = taint(NOT_READY);
        (!ready && !tolerates(pod, &unready)).then_some(unready)
    }

    /// What the node has too little left of.
    fn shortages(&self, pod: &Pod) -> Vec<Refusal> {
        let allocatable = &self.node.status.allocatable;
        let mut short = Vec::new();
        let max = allocatable.get("pods").and_then(Quantity::integer);
        let max = max.and_then(|pods| usize::try_from(pods).ok()).unwrap_or(DEFAULT_MAX_PODS);
        if self.pods.len() >= max {
            short.push(Refusal::Full);
        }
        for (name, asked) in pod.requests() {
            let has = match allocatable.get(&name) {
                Some(has) => *has,
                None if USUAL.contains(&&*name) => continue,
                None => Quantity::default(),
            };
            let used = self.used.get(&name).copied().unwrap_or_default();
            if !asked.is_zero() && used + asked > has {
                short.push(Refusal::Insufficient { never: asked > has, resource: name });
            }
        }
        short
    }
}

/// What a pod is thought to need, whether it says so or not.
fn needs(pod: &Pod) -> Weight {
    let mut needs = Weight::default();
    for ((need, name), usual) in needs.iter_mut().zip(WEIGHED).zip(USUAL_NEEDS) {
        let asked = pod.lasting_containers().map(|container| {
            container.resources.requests.get(name).map_or(usual, Quantity::thousandths)
        });
        *need = asked.fold(0, u64::saturating_add);
    }
    needs
}

/// Whether node selector and required node affinity of a pod choose the node.
pub(crate) fn wants(pod: &Pod, node: &Object) -> bool {
    let required = pod.spec.affinity.node_affinity.required.as_ref();
    matches_map(&pod.spec.node_selector, &node.meta.labels)
        && required.is_none_or(|selector| selects(selector, node))
}

fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    pod.spec.tolerations.iter().any(|one| one.covers(taint))
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

/// The nodes that a selector names, where every term of it names some: no other is looked at.
fn names(selector: &NodeSelector) -> Option<Vec<&str>> {
    let mut all = Vec::new();
    for term in &selector.node_selector_terms {
        let named = term
            .match_fields
            .iter()
            .find(|field| field.key == "metadata.name" && field.operator == "In")?;
        all.extend(named.values.iter().map(String::as_str));
    }
    Some(all)
}

/// Whether a selector of nodes chooses a node.
pub(super) fn selects(selector: &NodeSelector, node: &Object) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether one term does.
pub(super) fn term_matches(term: &NodeSelectorTerm, node: &Object) -> bool {
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
