//! EndpointSlices of Endpoints objects that people write for Services without a selector, so that
//! proxies need to read slices only (KEP-752). One slice for each set of ports and each family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use model::Family;
use model::kinds::SERVICE_NAME_LABEL;

use crate::endpoint_slices::{MANAGED_BY_LABEL, TRIGGER_TIME};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, beside};
use crate::slice::{EndpointAddress, EndpointConditions, EndpointSubset, SliceEndpoint, SlicePort};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Report, Step, Write};

/// Says whose slices these are.
const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
/// `true` on an Endpoints object keeps it to itself.
const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints objects that programs once elected leaders by.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// What `kubectl apply` remembers of the Endpoints object says nothing about a slice.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Most addresses of one subset that are copied
/// (kube-controller-manager's `--mirroring-max-endpoints-per-subset`).
const MAX_ENDPOINTS_PER_SUBSET: usize = 1_000;
const COMPONENT: &str = "endpoint-slice-mirroring-controller";

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        let name = match object.kind {
            Kind::Service | Kind::Endpoints => object.meta.key(),
            Kind::EndpointSlice if is_ours(object) => {
                let service = object.meta.labels.get(SERVICE_NAME_LABEL);
                beside(&object.meta, service.map_or("", String::as_str))
            }
            _ => continue,
        };
        keys.insert(ObjectKey::new(Kind::Endpoints, name));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot) -> Outcome {
    let mut outcome = Outcome::nothing();
    let existing: Vec<&Arc<Object>> = snapshot
        .slices_of(&key.name)
        .filter(|slice| is_ours(slice) && !slice.is_terminating())
        .collect();
    let service = snapshot.get(Kind::Service, &key.name).and_then(|found| found.service());
    let endpoints = snapshot.get(Kind::Endpoints, &key.name).filter(|found| is_mirrored(found));
    let mirrored = match (service, endpoints) {
        (Some(service), Some(endpoints)) if service.spec.selector.is_empty() => endpoints,
        _ => {
            outcome.steps.extend(existing.iter().map(|slice| Step::quiet(slice.delete())));
            return outcome;
        }
    };
    if snapshot.is_terminating_namespace(&key.name.namespace) {
        return outcome;
    }
    let (slices, reports) = wanted(mirrored);
    write(mirrored, slices, &existing, reports, &mut outcome);
    outcome
}

fn is_ours(slice: &Object) -> bool {
    slice.meta.labels.get(MANAGED_BY_LABEL).is_some_and(|name| name == MANAGED_BY)
}

fn is_mirrored(endpoints: &Object) -> bool {
    !endpoints.is_terminating()
        && endpoints.meta.labels.get(SKIP_MIRROR_LABEL).is_none_or(|value| value != "true")
        && !endpoints.meta.annotations.contains_key(LEADER_ANNOTATION)
}

/// The slices by family and ports; in each the endpoints by their address.
type Slices = BTreeMap<(Family, Vec<SlicePort>), BTreeMap<IpAddr, SliceEndpoint>>;

/// The slices of an Endpoints object, and what its owner should know about those that are missing.
fn wanted(object: &Object) -> (Slices, Vec<Report>) {
    let mut slices = Slices::new();
    let (mut invalid, mut left_out) = (0, 0);
    let subsets = object.endpoints().map(|view| view.subsets.as_slice()).unwrap_or_default();
    for subset in subsets {
        let mut added = 0;
        for (address, ready) in addresses(subset) {
            let Ok(parsed) = address.ip.parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            if added == MAX_ENDPOINTS_PER_SUBSET {
                left_out += 1;
                continue;
            }
            added += 1;
            let group = slices.entry((Family::of(&parsed), subset.ports.clone())).or_default();
            // The same address twice: whoever is ready is.
            group.entry(parsed).or_insert_with(|| endpoint(parsed, address, ready));
        }
    }
    let mut reports = Vec::new();
    if invalid > 0 {
        let message =
            format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        reports.push(object.report(COMPONENT, "InvalidIPAddress", message).warning());
    }
    if left_out > 0 {
        let message = format!(
            "A max of {MAX_ENDPOINTS_PER_SUBSET} addresses can be mirrored to EndpointSlices per \
             Endpoints subset. {left_out} addresses were skipped"
        );
        reports.push(object.report(COMPONENT, "TooManyAddressesToMirror", message).warning());
    }
    (slices, reports)
}

fn addresses(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().map(|address| (address, true));
    ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false)))
}

fn endpoint(parsed: IpAddr, address: &EndpointAddress, ready: bool) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![parsed.to_string()],
        conditions: EndpointConditions { ready: Some(ready), ..EndpointConditions::default() },
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..SliceEndpoint::default()
    }
}

fn write(
    object: &Object,
    slices: Slices,
    existing: &[&Arc<Object>],
    reports: Vec<Report>,
    outcome: &mut Outcome,
) {
    let mut reports = reports.into_iter();
    let mut surplus: Vec<&Arc<Object>> = existing.to_vec();
    for ((family, ports), endpoints) in slices {
        let endpoints: Vec<SliceEndpoint> = endpoints.into_values().collect();
        let fits = |slice: &&Arc<Object>| {
            let owned = slice.meta.controller().is_some_and(|owner| owner.uid == object.meta.uid);
            owned
                && slice.slice().is_some_and(|view| {
                    view.address_type == family.to_string() && view.ports == ports
                })
        };
        let write = match surplus.iter().position(fits) {
            Some(index) => update(object, surplus.remove(index), &endpoints),
            None => Some(create(object, family, &ports, &endpoints)),
        };
        if let Some(write) = write {
            // Told together with a write, not at each look at the same object.
            let mut step = Step::quiet(write);
            step.success = reports.next();
            outcome.push(step);
        }
    }
    outcome.steps.extend(surplus.iter().map(|slice| Step::quiet(slice.delete())));
}

fn create(object: &Object, family: Family, ports: &[SlicePort], list: &[SliceEndpoint]) -> Write {
    let mut body = Kind::EndpointSlice.object(json!({
        "generateName": format!("{}-", object.meta.name),
        "namespace": object.meta.namespace,
        "labels": labels(object),
        "annotations": annotations(object),
        "ownerReferences": [object.controller_reference()],
    }));
    body["addressType"] = json!(family);
    body["ports"] = json!(ports);
    body["endpoints"] = json!(list);
    let namespace = object.meta.namespace.clone();
    Write::Create { kind: Kind::EndpointSlice, namespace, body }
}

fn update(object: &Object, existing: &Object, endpoints: &[SliceEndpoint]) -> Option<Write> {
    let view = existing.slice()?;
    let mut body = json!({});
    if view.endpoints != endpoints {
        body["endpoints"] = json!(endpoints);
    }
    let meta = &existing.meta;
    for (field, held, wanted) in [
        ("labels", &meta.labels, labels(object)),
        ("annotations", &meta.annotations, annotations(object)),
    ] {
        if *held != wanted {
            let gone = held.keys().filter(|key| !wanted.contains_key(*key));
            let mut patch = json!(wanted);
            for key in gone {
                patch[key.as_str()] = Value::Null;
            }
            body["metadata"][field] = patch;
        }
    }
    let changed = body.as_object().is_some_and(|fields| !fields.is_empty());
    changed.then(|| existing.patch_unchanged(body))
}

fn labels(object: &Object) -> BTreeMap<String, String> {
    let mut labels = object.meta.labels.clone();
    labels.insert(SERVICE_NAME_LABEL.into(), object.meta.name.clone());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels
}

fn annotations(object: &Object) -> BTreeMap<String, String> {
    let mut annotations = object.meta.annotations.clone();
    annotations.retain(|key, _| key != LAST_APPLIED && key != TRIGGER_TIME);
    annotations
}

#[cfg(test)]
mod tests;
