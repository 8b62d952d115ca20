//! EndpointSlices of Services with a selector: one set of slices for each family and each set of
//! ports, with as few writes as a change allows, since every node reads every write.

mod hints;
mod pack;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use model::kinds::SERVICE_NAME_LABEL;
use model::{Family, Timestamp};

use crate::controller::Config;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service, beside};
use crate::selected_pods::{self, SelectedPod, selected};
use crate::slice::{SliceEndpoint, SlicePort};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Report, Step, Write};
use hints::{Mode, Refusal, Zones};
use pack::{Planned, identity, pack};

/// Says whose slices these are: others' are never touched.
pub(crate) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
/// Tells proxies that there is no virtual address to translate.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// When that happened which a write of endpoints answers to; consumers measure their delay by it.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const COMPONENT: &str = "endpoint-slice-controller";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    selected_pods::interested(change, snapshot, keys);
    for slice in change.both().filter(|object| object.kind == Kind::EndpointSlice) {
        if let Some(service) = slice.meta.labels.get(SERVICE_NAME_LABEL) {
            keys.insert(ObjectKey::new(Kind::Service, beside(&slice.meta, service)));
        }
    }
    let capacity = |node: &Option<Arc<Object>>| {
        node.as_ref().filter(|node| node.kind == Kind::Node).and_then(|node| hints::capacity(node))
    };
    if capacity(&change.old) != capacity(&change.new) {
        let shared_out = snapshot.all(Kind::Service).filter(|object| {
            object.service().is_some_and(|view| Mode::of(object, view) == Mode::Auto)
        });
        keys.extend(shared_out.map(|object| object.key()));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, config: &Config) -> Outcome {
    let mut outcome = Outcome::nothing();
    let existing: Vec<&Arc<Object>> = snapshot
        .slices_of(&key.name)
        .filter(|slice| is_ours(slice) && !slice.is_terminating())
        .collect();
    let found = snapshot.get(Kind::Service, &key.name).filter(|found| !found.is_terminating());
    let Some((object, service)) = found.and_then(|found| Some((found, found.service()?))) else {
        delete_all(&existing, &mut outcome);
        return outcome;
    };
    if service.spec.kind == "ExternalName" {
        delete_all(&existing, &mut outcome);
        return outcome;
    }
    if service.spec.selector.is_empty() {
        // Endpoints of such a Service are somebody else's from now on, also those we made.
        return outcome;
    }
    if snapshot.is_terminating_namespace(&key.name.namespace) {
        return outcome;
    }
    let families = match service.spec.ip_families.as_slice() {
        [] => vec![Family::V4],
        families => families.to_vec(),
    };
    // Slices of a Service of this name that is no more are not taken over: the garbage collector
    // is after them already.
    let (wanted, unwanted): (Vec<_>, Vec<_>) = existing.into_iter().partition(|slice| {
        slice.meta.controller().is_some_and(|owner| owner.uid == object.meta.uid)
            && families.iter().any(|family| is_of_family(slice, *family))
    });
    delete_all(&unwanted, &mut outcome);
    let pods: BTreeMap<Family, Vec<SelectedPod>> = families
        .iter()
        .map(|family| (*family, selected(object, service, *family, snapshot)))
        .collect();
    let trigger_time = trigger_time(object, &wanted, pods.values().flatten());
    let mode = Mode::of(object, service);
    for (family, pods) in pods {
        let held = wanted.iter().filter(|slice| is_of_family(slice, family)).copied().cloned();
        let labels = labels(object, service);
        let mut plan = Plan::new(family, labels, pods, held.collect(), config);
        plan.trigger_time = trigger_time;
        let zones = match mode {
            Mode::Auto => Zones::of(snapshot.all(Kind::Node).map(Arc::as_ref)),
            _ => Zones::default(),
        };
        let hints = hints::set(&mut plan.slices, mode, &zones);
        plan.hints_changed = hints_report(object, &plan, mode, hints);
        plan.write(object, &mut outcome);
    }
    outcome
}

fn is_ours(slice: &Object) -> bool {
    slice.meta.labels.get(MANAGED_BY_LABEL).is_some_and(|name| name == MANAGED_BY)
}

fn is_of_family(slice: &Object, family: Family) -> bool {
    slice.slice().is_some_and(|view| view.address_type == family.to_string())
}

fn delete_all(slices: &[&Arc<Object>], outcome: &mut Outcome) {
    for slice in slices {
        outcome.push(Step::quiet(slice.delete()));
    }
}

/// When that happened which the slices do not know yet: for a new Service its creation, else the
/// earliest change of readiness of a pod that is new to the slices, or stands in them with another
/// readiness. Nothing is known of when a pod went.
pub(crate) fn trigger_time<'a>(
    object: &Object,
    slices: &[&Arc<Object>],
    pods: impl Iterator<Item = &'a SelectedPod>,
) -> Option<Timestamp> {
    if slices.is_empty() {
        return object.meta.creation_timestamp;
    }
    let known: BTreeMap<String, Option<bool>> = slices
        .iter()
        .filter_map(|slice| slice.slice())
        .flat_map(|view| &view.endpoints)
        .map(|endpoint| (identity(endpoint), endpoint.conditions.serving))
        .collect();
    pods.filter(|pod| known.get(&identity(&pod.endpoint)) != Some(&pod.endpoint.conditions.serving))
        .filter_map(|pod| pod.ready_changed)
        .min()
}

/// The Event about hints by processors, when they come or go.
fn hints_report(
    object: &Object,
    plan: &Plan,
    mode: Mode,
    hints: Result<(), Refusal>,
) -> Option<Report> {
    let held = plan.slices.iter().filter_map(|slice| slice.existing.as_ref()?.slice());
    let had = held.flat_map(|view| &view.endpoints).any(|endpoint| endpoint.hints.is_some());
    let family = plan.family;
    match (mode, hints) {
        (Mode::Auto, Ok(())) if !had => {
            let message = format!("Topology Aware Hints has been enabled, addressType: {family}");
            Some(object.report(COMPONENT, "TopologyAwareHintsEnabled", message))
        }
        (Mode::Auto, Err(why)) if had => {
            let message = format!("{why}, addressType: {family}");
            Some(object.report(COMPONENT, "TopologyAwareHintsDisabled", message).warning())
        }
        _ => None,
    }
}

/// The slices of one Service in one family.
struct Plan {
    family: Family,
    labels: BTreeMap<String, String>,
    slices: Vec<Planned>,
    surplus: Vec<Arc<Object>>,
    trigger_time: Option<Timestamp>,
    hints_changed: Option<Report>,
}

impl Plan {
    fn new(
        family: Family,
        labels: BTreeMap<String, String>,
        pods: Vec<SelectedPod>,
        held: Vec<Arc<Object>>,
        config: &Config,
    ) -> Self {
        let mut groups: BTreeMap<Vec<SlicePort>, BTreeMap<String, SliceEndpoint>> = BTreeMap::new();
        for pod in pods {
            let identity = identity(&pod.endpoint);
            groups.entry(pod.ports).or_default().insert(identity, pod.endpoint);
        }
        let mut slices_of: BTreeMap<Vec<SlicePort>, Vec<Arc<Object>>> = BTreeMap::new();
        let mut surplus = Vec::new();
        for slice in held {
            let ports = slice.slice().map(|view| view.ports.clone()).unwrap_or_default();
            if groups.contains_key(&ports) {
                slices_of.entry(ports).or_default().push(slice);
            } else {
                surplus.push(slice);
            }
        }
        let mut slices = Vec::new();
        for (ports, wanted) in groups {
            let held = slices_of.remove(&ports).unwrap_or_default();
            let limit = config.endpoints_per_slice();
            let (planned, empty) = pack(&ports, wanted, held, &labels, limit);
            slices.extend(planned);
            surplus.extend(empty);
        }
        if slices.is_empty() {
            // A Service without endpoints has one empty slice, so that "none" can be told from
            // "not yet known".
            slices.push(Planned { existing: None, ports: Vec::new(), endpoints: Vec::new() });
        }
        // What would be deleted holds what would be created: one write instead of two.
        for slice in slices.iter_mut().filter(|slice| slice.existing.is_none()) {
            slice.existing = surplus.pop();
        }
        Self { family, labels, slices, surplus, trigger_time: None, hints_changed: None }
    }

    fn write(mut self, object: &Object, outcome: &mut Outcome) {
        let mut told = self.hints_changed.take();
        for slice in &self.slices {
            let write = match &slice.existing {
                Some(existing) => self.update(existing, slice),
                None => Some(self.create(object, slice)),
            };
            if let Some(write) = write {
                let failed = object.report(
                    COMPONENT,
                    "FailedToUpdateEndpointSlices",
                    format!(
                        "Error updating Endpoint Slices for Service {}: {{error}}",
                        object.meta.key()
                    ),
                );
                // Somebody else's change is read and answered at once: not worth an event.
                let step = Step::quiet(write);
                let creates = slice.existing.is_none();
                let mut step = if creates { step.on_failure(failed.warning()) } else { step };
                step.success = told.take();
                outcome.push(step);
            }
        }
        for slice in &self.surplus {
            outcome.push(Step::quiet(slice.delete()));
        }
    }

    fn create(&self, object: &Object, slice: &Planned) -> Write {
        let mut body = Kind::EndpointSlice.object(json!({
            "generateName": format!("{}-", object.meta.name),
            "namespace": object.meta.namespace,
            "labels": self.labels,
            "ownerReferences": [object.controller_reference()],
        }));
        if let Some(time) = self.trigger_time {
            body["metadata"]["annotations"] = json!({TRIGGER_TIME: time});
        }
        body["addressType"] = json!(self.family);
        body["ports"] = json!(slice.ports);
        body["endpoints"] = json!(slice.endpoints);
        let namespace = object.meta.namespace.clone();
        Write::Create { kind: Kind::EndpointSlice, namespace, body }
    }

    fn update(&self, existing: &Object, slice: &Planned) -> Option<Write> {
        let view = existing.slice()?;
        let mut body = json!({});
        if view.endpoints != slice.endpoints {
            body["endpoints"] = json!(slice.endpoints);
        }
        if view.ports != slice.ports {
            body["ports"] = json!(slice.ports);
        }
        if existing.meta.labels != self.labels {
            let mut labels = json!(self.labels);
            for key in existing.meta.labels.keys().filter(|key| !self.labels.contains_key(*key)) {
                labels[key.as_str()] = Value::Null;
            }
            body["metadata"] = json!({"labels": labels});
        }
        if body.as_object().is_none_or(|fields| fields.is_empty()) {
            return None;
        }
        // The annotation says something about a write, and is no reason for one.
        if self.trigger_time.is_some() || existing.meta.annotations.contains_key(TRIGGER_TIME) {
            body["metadata"]["annotations"] = json!({TRIGGER_TIME: self.trigger_time});
        }
        Some(existing.patch_unchanged(body))
    }
}

/// The Service's labels, and those that consumers select by.
fn labels(object: &Object, service: &Service) -> BTreeMap<String, String> {
    let mut labels = object.meta.labels.clone();
    labels.remove(HEADLESS_LABEL);
    if service.is_headless() {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(SERVICE_NAME_LABEL.into(), object.meta.name.clone());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels
}

#[cfg(test)]
mod hints_tests;
#[cfg(test)]
mod tests;
