//! EndpointSlices of Services with a selector: at most [`MAX_ENDPOINTS_PER_SLICE`] endpoints
//! each, with as few writes as a change allows, since every node reads every write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use model::Family;
use model::kinds::SERVICE_NAME_LABEL;

use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service, beside};
use crate::selected_pods::{self, selected};
use crate::slice::{SliceEndpoint, SlicePort};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

/// Upstream's default; larger slices make each change of readiness dearer.
const MAX_ENDPOINTS_PER_SLICE: usize = 100;
/// Says whose slices these are: others' are never touched.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
/// Tells proxies that there is no virtual address to translate.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const COMPONENT: &str = "endpoint-slice-controller";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    selected_pods::interested(change, snapshot, keys);
    for slice in change.both().filter(|object| object.kind == Kind::EndpointSlice) {
        if let Some(service) = slice.meta.labels.get(SERVICE_NAME_LABEL) {
            keys.insert(ObjectKey::new(Kind::Service, beside(&slice.meta, service)));
        }
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot) -> Outcome {
    let mut outcome = Outcome::nothing();
    let existing: Vec<&Arc<Object>> = snapshot
        .in_namespace(Kind::EndpointSlice, &key.name.namespace)
        .filter(|slice| is_ours(slice, &key.name.name) && !slice.is_terminating())
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
    let (wanted, unwanted): (Vec<_>, Vec<_>) = existing.into_iter().partition(|slice| {
        families.iter().any(|family| address_type(slice) == Some(family.to_string()))
    });
    delete_all(&unwanted, &mut outcome);
    for family in families {
        let of_family =
            wanted.iter().filter(|slice| address_type(slice) == Some(family.to_string()));
        let plan = Plan::new(object, service, family, of_family.copied(), snapshot);
        plan.write(object, &mut outcome);
    }
    outcome
}

fn is_ours(slice: &Object, service: &str) -> bool {
    let labels = &slice.meta.labels;
    labels.get(SERVICE_NAME_LABEL).is_some_and(|name| name == service)
        && labels.get(MANAGED_BY_LABEL).is_some_and(|name| name == MANAGED_BY)
}

fn address_type(slice: &Object) -> Option<String> {
    slice.slice().map(|view| view.address_type.clone())
}

fn delete_all(slices: &[&Arc<Object>], outcome: &mut Outcome) {
    for slice in slices {
        outcome.push(Step::quiet(slice.delete()));
    }
}

/// A slice as it shall be.
struct Planned {
    /// What is there to hold it.
    existing: Option<Arc<Object>>,
    ports: Vec<SlicePort>,
    endpoints: Vec<SliceEndpoint>,
}

/// The slices of one Service in one family.
struct Plan {
    family: Family,
    labels: BTreeMap<String, String>,
    slices: Vec<Planned>,
    surplus: Vec<Arc<Object>>,
}

impl Plan {
    fn new<'a>(
        object: &Object,
        service: &Service,
        family: Family,
        existing: impl Iterator<Item = &'a Arc<Object>>,
        snapshot: &Snapshot,
    ) -> Self {
        let mut groups: BTreeMap<Vec<SlicePort>, BTreeMap<String, SliceEndpoint>> = BTreeMap::new();
        for pod in selected(object, service, family, snapshot) {
            let identity = identity(&pod.endpoint);
            groups.entry(pod.ports).or_default().insert(identity, pod.endpoint);
        }
        let mut slices_of: BTreeMap<Vec<SlicePort>, Vec<Arc<Object>>> = BTreeMap::new();
        let mut surplus = Vec::new();
        for slice in existing {
            let ports = slice.slice().map(|view| view.ports.clone()).unwrap_or_default();
            if groups.contains_key(&ports) {
                slices_of.entry(ports).or_default().push(slice.clone());
            } else {
                surplus.push(slice.clone());
            }
        }
        let mut slices = Vec::new();
        for (ports, wanted) in groups {
            let held = slices_of.remove(&ports).unwrap_or_default();
            surplus.extend(pack(ports, wanted, held, &mut slices));
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
        Self { family, labels: labels(object, service), slices, surplus }
    }

    fn write(self, object: &Object, outcome: &mut Outcome) {
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
                outcome.push(if creates { step.on_failure(failed.warning()) } else { step });
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
        let changed = body.as_object().is_some_and(|fields| !fields.is_empty());
        changed.then(|| existing.patch_unchanged(body))
    }
}

/// Puts the endpoints of one set of ports into slices, leaving each endpoint where it is. New
/// ones go first into slices that are written anyway, then into one that has room, then into new
/// ones. Returns the slices that are left empty.
fn pack(
    ports: Vec<SlicePort>,
    mut wanted: BTreeMap<String, SliceEndpoint>,
    held: Vec<Arc<Object>>,
    slices: &mut Vec<Planned>,
) -> Vec<Arc<Object>> {
    let mut kept: Vec<(Arc<Object>, Vec<SliceEndpoint>, bool)> = Vec::new();
    for slice in held {
        let Some(view) = slice.slice() else { continue };
        let mut changed = false;
        let mut endpoints = Vec::with_capacity(view.endpoints.len());
        for endpoint in &view.endpoints {
            match wanted.remove(&identity(endpoint)) {
                Some(new) if endpoints.len() < MAX_ENDPOINTS_PER_SLICE => {
                    changed |= new != *endpoint;
                    endpoints.push(new);
                }
                Some(new) => {
                    wanted.insert(identity(&new), new);
                    changed = true;
                }
                None => changed = true,
            }
        }
        kept.push((slice, endpoints, changed));
    }
    let mut rest = wanted.into_values().peekable();
    let room = |endpoints: &Vec<SliceEndpoint>| MAX_ENDPOINTS_PER_SLICE - endpoints.len();
    for (_, endpoints, _) in kept.iter_mut().filter(|(_, _, changed)| *changed) {
        endpoints.extend(rest.by_ref().take(room(endpoints)));
    }
    let left = rest.len();
    if left > 0 {
        // The fullest slice that takes all of them, so that one write does.
        let fitting = kept.iter_mut().filter(|(_, endpoints, _)| room(endpoints) >= left);
        if let Some((_, endpoints, _)) = fitting.min_by_key(|(_, endpoints, _)| room(endpoints)) {
            endpoints.extend(rest.by_ref());
        }
    }
    let mut empty = Vec::new();
    for (slice, endpoints, _) in kept {
        if endpoints.is_empty() {
            empty.push(slice);
        } else {
            slices.push(Planned { existing: Some(slice), ports: ports.clone(), endpoints });
        }
    }
    while rest.peek().is_some() {
        let endpoints = rest.by_ref().take(MAX_ENDPOINTS_PER_SLICE).collect();
        slices.push(Planned { existing: None, ports: ports.clone(), endpoints });
    }
    empty
}

/// What makes two endpoints the same: the pod, and where there is none, the address.
fn identity(endpoint: &SliceEndpoint) -> String {
    match &endpoint.target_ref {
        Some(target) if !target.uid.is_empty() => target.uid.clone(),
        _ => endpoint.addresses.join(","),
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
mod tests;
