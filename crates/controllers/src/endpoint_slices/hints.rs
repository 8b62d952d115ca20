//! Topology hints: for which zones and nodes an endpoint is meant.
//!
//! `spec.trafficDistribution` (KEP-4444, KEP-3015) gives each ready endpoint its own zone, and its
//! own node where that is asked for. The older annotation `service.kubernetes.io/topology-mode:
//! Auto` (KEP-2433) shares the endpoints out over the zones by their processors, and gives up
//! altogether where that would overload one.

use std::collections::BTreeMap;

use crate::object::{Object, Service, is_true};
use crate::selected_pods::ZONE_LABEL;
use crate::slice::{EndpointHints, HintName, SliceEndpoint};

use super::pack::Planned;

/// Its value `Auto` asks for hints by processors, and then `trafficDistribution` says nothing.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// The name of the annotation before Kubernetes 1.27, which wins where both are set.
const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes that run no pods of users count for no zone.
const EXCLUDED_LABELS: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may have to take, of its share (KEP-2433).
const OVERLOAD_THRESHOLD: f64 = 0.2;

/// How a Service wants its hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// None.
    Off,
    /// Each endpoint for its own zone, and for its own node when `node` is set.
    Close {
        /// Whether nodes are named.
        node: bool,
    },
    /// Endpoints for zones by their processors.
    Auto,
}

impl Mode {
    /// The mode of a Service. Unknown values mean none.
    pub(super) fn of(object: &Object, service: &Service) -> Self {
        let annotations = &object.meta.annotations;
        let mode = annotations.get(TOPOLOGY_AWARE_HINTS).or(annotations.get(TOPOLOGY_MODE));
        if mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto")) {
            return Self::Auto;
        }
        match service.spec.traffic_distribution.as_str() {
            "PreferClose" | "PreferSameZone" => Self::Close { node: false },
            "PreferSameNode" => Self::Close { node: true },
            _ => Self::Off,
        }
    }
}

/// Why there are no hints although `Auto` asks for them, in the words of the Event.
pub(super) type Refusal = String;

/// Writes the hints of one family's slices. Endpoints that are not ready have none.
///
/// # Errors
/// In mode `Auto`, what stands in the way; the slices then have no hints.
pub(super) fn set(slices: &mut [Planned], mode: Mode, zones: &Zones) -> Result<(), Refusal> {
    for endpoint in slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
        endpoint.hints = match mode {
            Mode::Close { node } if endpoint.is_ready() => own_place(endpoint, node),
            _ => None,
        };
    }
    if mode == Mode::Auto { share_out(slices, zones) } else { Ok(()) }
}

fn own_place(endpoint: &SliceEndpoint, with_node: bool) -> Option<EndpointHints> {
    let one = |name: &Option<String>| -> Vec<HintName> {
        name.iter().map(|name| HintName { name: name.clone() }).collect()
    };
    let for_zones = one(&endpoint.zone);
    let for_nodes = if with_node { one(&endpoint.node_name) } else { vec![] };
    let any = !for_zones.is_empty() || !for_nodes.is_empty();
    any.then_some(EndpointHints { for_zones, for_nodes })
}

/// The share of each zone in the processors of all ready nodes; empty when some node does not say
/// where it is or what it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Zones(BTreeMap<String, f64>);

impl Zones {
    /// The zones of some nodes.
    pub(super) fn of<'a>(nodes: impl Iterator<Item = &'a Object>) -> Self {
        let mut milli_cpus: BTreeMap<String, u64> = BTreeMap::new();
        for capacity in nodes.filter_map(capacity) {
            let (Some(zone), milli @ 1..) = capacity else { return Self::default() };
            let sum = milli_cpus.entry(zone).or_default();
            *sum = sum.saturating_add(milli);
        }
        let total: f64 = milli_cpus.values().map(|milli| *milli as f64).sum();
        let ratios = milli_cpus.into_iter().map(|(zone, milli)| (zone, milli as f64 / total));
        Self(ratios.collect())
    }
}

/// What a node counts for: its zone and its thousandths of processors. `None` when it is not
/// ready or carries no pods of users.
pub(super) fn capacity(node: &Object) -> Option<(Option<String>, u64)> {
    let view = node.node().filter(|view| is_true(&view.status.conditions, "Ready"))?;
    let labels = &node.meta.labels;
    if EXCLUDED_LABELS.iter().any(|label| labels.contains_key(*label)) {
        return None;
    }
    let zone = labels.get(ZONE_LABEL).filter(|zone| !zone.is_empty()).cloned();
    let milli = view.status.allocatable.get("cpu").map_or(0, |cpu| cpu.thousandths());
    Some((zone, milli))
}

/// What a zone shall have: endpoints at least and at most, and as near as may be to `desired`.
struct Allocation {
    maximum: usize,
    desired: f64,
}

fn allocations(zones: &Zones, endpoints: usize) -> Result<BTreeMap<&str, Allocation>, Refusal> {
    let Zones(ratios) = zones;
    if ratios.len() < 2 {
        return Err("Insufficient Node information: allocatable CPU or zone not specified on one \
                    or more nodes"
            .to_owned());
    }
    let counts = format!("({endpoints} endpoints, {} zones)", ratios.len());
    if ratios.len() > endpoints {
        return Err(format!(
            "Insufficient number of endpoints, impossible to safely allocate proportionally \
             {counts}"
        ));
    }
    let mut minimums = BTreeMap::new();
    for (zone, ratio) in ratios {
        let desired = ratio * endpoints as f64;
        minimums.insert(zone.as_str(), ((desired / (1.0 + OVERLOAD_THRESHOLD)).ceil(), desired));
    }
    let total: f64 = minimums.values().map(|(minimum, _)| minimum).sum();
    let spare = endpoints as f64 - total;
    if spare < 0.0 {
        return Err(format!("Minimum allocation of required endpoints exceeds {counts}"));
    }
    let allocation = |(minimum, desired): (f64, f64)| Allocation {
        maximum: (minimum + spare) as usize,
        desired: desired.max(minimum),
    };
    Ok(minimums.into_iter().map(|(zone, numbers)| (zone, allocation(numbers))).collect())
}

/// Shares the ready endpoints out. Slices that are not written anyway keep their hints where those
/// still do, so that a change of one endpoint does not rewrite all slices.
fn share_out(slices: &mut [Planned], zones: &Zones) -> Result<(), Refusal> {
    let ready = |slices: &[Planned]| -> usize {
        slices.iter().flat_map(|slice| &slice.endpoints).filter(|one| one.is_ready()).count()
    };
    let allocations = allocations(zones, ready(slices))?;
    let mut hinted: BTreeMap<String, usize> = BTreeMap::new();
    let mut free: Vec<&mut SliceEndpoint> = Vec::new();
    for slice in slices.iter_mut() {
        let kept = slice.is_unchanged().then(|| kept_hints(slice, &hinted, &allocations)).flatten();
        let held = slice.existing.as_ref().and_then(|existing| existing.slice());
        match (kept, held) {
            (Some(kept), Some(held)) => {
                for (endpoint, old) in slice.endpoints.iter_mut().zip(&held.endpoints) {
                    endpoint.hints = old.hints.clone().filter(|_| endpoint.is_ready());
                }
                hinted = kept;
            }
            _ => free.extend(slice.endpoints.iter_mut().filter(|endpoint| endpoint.is_ready())),
        }
    }
    if free.iter().any(|endpoint| endpoint.zone.as_deref().is_none_or(str::is_empty)) {
        drop(free);
        for endpoint in slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
            endpoint.hints = None;
        }
        return Err("One or more endpoints do not have a zone specified".to_owned());
    }
    for endpoint in &mut free {
        let zone = endpoint.zone.clone().unwrap_or_default();
        endpoint.hints = Some(EndpointHints::zone(&zone));
        *hinted.entry(zone).or_default() += 1;
    }
    redistribute(&mut free, &allocations, &hinted);
    Ok(())
}

/// The hints so far with those that a slice has; `None` when one of its ready endpoints has none,
/// names a zone that is none, or a zone would have too many.
fn kept_hints(
    slice: &Planned,
    hinted: &BTreeMap<String, usize>,
    allocations: &BTreeMap<&str, Allocation>,
) -> Option<BTreeMap<String, usize>> {
    let mut counts = hinted.clone();
    let held = slice.existing.as_ref()?.slice()?;
    for endpoint in held.endpoints.iter().filter(|endpoint| endpoint.is_ready()) {
        let zones = &endpoint.hints.as_ref().filter(|hints| !hints.for_zones.is_empty())?.for_zones;
        for zone in zones {
            let allocation = allocations.get(zone.name.as_str())?;
            let count = counts.entry(zone.name.clone()).or_default();
            *count += 1;
            if *count > allocation.maximum {
                return None;
            }
        }
    }
    Some(counts)
}

/// Moves hints from zones that have more than their share to zones that have less: the most in
/// excess gives to the most in need, as long as a move helps one of them by a whole endpoint and
/// harms none.
fn redistribute(
    endpoints: &mut [&mut SliceEndpoint],
    allocations: &BTreeMap<&str, Allocation>,
    hinted: &BTreeMap<String, usize>,
) {
    let balance =
        |zone: &str, desired: f64| hinted.get(zone).copied().unwrap_or(0) as f64 - desired;
    let mut balances: BTreeMap<&str, f64> = allocations
        .iter()
        .map(|(zone, allocation)| (*zone, balance(zone, allocation.desired)))
        .collect();
    // Endpoints in a zone without any node of ours all move.
    balances.extend(
        hinted
            .iter()
            .filter(|(zone, _)| !allocations.contains_key(zone.as_str()))
            .map(|(zone, count)| (zone.as_str(), *count as f64)),
    );
    let mut moves: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // Each round moves one endpoint, so that there are no more rounds than endpoints.
    for _ in 0..endpoints.len() {
        let most = balances.iter().max_by(|one, other| one.1.total_cmp(other.1));
        let least = balances.iter().min_by(|one, other| one.1.total_cmp(other.1));
        let (Some((giver, excess)), Some((taker, need))) = (most, least) else { break };
        let (giver, excess, taker, need) = (*giver, *excess, *taker, -*need);
        if excess < 0.5 || need < 0.5 || (excess < 1.0 && need < 1.0) {
            break;
        }
        moves.entry(giver).or_default().push(taker);
        balances.insert(giver, excess - 1.0);
        balances.insert(taker, 1.0 - need);
    }
    for endpoint in endpoints {
        let zone = endpoint.zone.as_deref().unwrap_or_default();
        if let Some(taker) = moves.get_mut(zone).and_then(Vec::pop) {
            endpoint.hints = Some(EndpointHints::zone(taker));
        }
    }
}
