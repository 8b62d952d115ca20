//! Endpoints objects: the older form of EndpointSlices, which `kubectl describe service` before
//! 1.27 asks for. Without terminating pods, one family, at most [`MAX_ADDRESSES`] addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use model::{Family, Timestamp};

use crate::endpoint_slices::{HEADLESS_LABEL, TRIGGER_TIME};
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service};
use crate::selected_pods::{self, SelectedPod, selected};
use crate::slice::{EndpointAddress, EndpointSubset, SlicePort};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, Write};

/// Upstream's limit of one object.
const MAX_ADDRESSES: usize = 1000;
/// Set where addresses were left out for [`MAX_ADDRESSES`].
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Says whose object this is: those of others are never touched.
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    selected_pods::interested(change, snapshot, keys);
    for object in change.both().filter(|object| object.kind == Kind::Endpoints) {
        keys.insert(ObjectKey::new(Kind::Service, object.meta.key()));
    }
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot) -> Outcome {
    let mut outcome = Outcome::nothing();
    let existing = snapshot.get(Kind::Endpoints, &key.name);
    let ours = existing.filter(|object| is_ours(object) && !object.is_terminating());
    let found = snapshot.get(Kind::Service, &key.name).filter(|found| !found.is_terminating());
    let Some((object, service)) = found.and_then(|found| Some((found, found.service()?))) else {
        outcome.steps.extend(ours.map(|object| Step::quiet(object.delete())));
        return outcome;
    };
    if !service.selects() || snapshot.is_terminating_namespace(&key.name.namespace) {
        return outcome;
    }
    let family = service.spec.ip_families.first().copied().unwrap_or(Family::V4);
    let pods = selected(object, service, family, snapshot);
    let trigger_time = trigger_time(object, existing, &pods);
    let (subsets, over_capacity) = subsets(service, pods);
    let labels = labels(object, service);
    match existing {
        None => {
            // A creator's nulls are no annotations (store::json::strip_nulls).
            let metadata = json!({
                "name": object.meta.name,
                "namespace": object.meta.namespace,
                "labels": labels,
                "annotations": annotations(over_capacity, trigger_time),
            });
            let mut body = Kind::Endpoints.object(metadata);
            body["subsets"] = json!(subsets);
            let namespace = object.meta.namespace.clone();
            outcome.push(Step::quiet(Write::Create { kind: Kind::Endpoints, namespace, body }));
        }
        Some(existing) => {
            let same = existing.endpoints().is_some_and(|view| view.subsets == subsets);
            let truncated = existing.meta.annotations.contains_key(OVER_CAPACITY);
            if same && existing.meta.labels == labels && truncated == over_capacity {
                return outcome;
            }
            let mut label_patch = json!(labels);
            for key in existing.meta.labels.keys().filter(|key| !labels.contains_key(*key)) {
                label_patch[key.as_str()] = Value::Null;
            }
            let annotations = annotations(over_capacity, trigger_time);
            let metadata = json!({"labels": label_patch, "annotations": annotations});
            let body = json!({"metadata": metadata, "subsets": subsets});
            outcome.push(Step::quiet(existing.patch_unchanged(body)));
        }
    }
    outcome
}

/// The annotations that are ours; null where there is nothing to say.
fn annotations(over_capacity: bool, trigger_time: Option<Timestamp>) -> Value {
    let mark = over_capacity.then_some("truncated");
    json!({OVER_CAPACITY: mark, TRIGGER_TIME: trigger_time})
}

/// When that happened which the object does not know yet: as for slices, but an address that is
/// there says only whether it is ready.
fn trigger_time(
    object: &Object,
    existing: Option<&Arc<Object>>,
    pods: &[SelectedPod],
) -> Option<Timestamp> {
    let Some(view) = existing.and_then(|existing| existing.endpoints()) else {
        return object.meta.creation_timestamp;
    };
    let subsets = view.subsets.iter();
    let known: BTreeMap<&str, bool> = subsets
        .flat_map(|subset| {
            let ready = subset.addresses.iter().map(|address| (address.ip.as_str(), true));
            let unready = subset.not_ready_addresses.iter();
            ready.chain(unready.map(|address| (address.ip.as_str(), false)))
        })
        .collect();
    pods.iter()
        .filter(|pod| {
            let address = pod.endpoint.addresses.first().map(String::as_str);
            let held = address.and_then(|address| known.get(address).copied());
            pod.endpoint.conditions.terminating != Some(true)
                && held != Some(pod.endpoint.is_ready())
        })
        .filter_map(|pod| pod.ready_changed)
        .min()
}

fn is_ours(object: &Object) -> bool {
    object.meta.labels.get(MANAGED_BY_LABEL).is_some_and(|name| name == MANAGED_BY)
}

/// The pods as subsets, and whether some were left out.
fn subsets(service: &Service, pods: Vec<SelectedPod>) -> (Vec<EndpointSubset>, bool) {
    let mut groups: BTreeMap<Vec<SlicePort>, EndpointSubset> = BTreeMap::new();
    for pod in pods {
        let conditions = pod.endpoint.conditions;
        let terminating = conditions.terminating == Some(true);
        if terminating && !service.spec.publish_not_ready_addresses {
            continue;
        }
        // A pod without any of the Service's ports stands in no subset.
        if pod.ports.is_empty() && !(service.spec.ports.is_empty() && service.is_headless()) {
            continue;
        }
        let subset = groups.entry(pod.ports).or_default();
        let address = EndpointAddress {
            ip: pod.endpoint.addresses.into_iter().next().unwrap_or_default(),
            hostname: pod.endpoint.hostname,
            node_name: pod.endpoint.node_name,
            target_ref: pod.endpoint.target_ref,
        };
        match conditions.ready {
            Some(true) => subset.addresses.push(address),
            _ => subset.not_ready_addresses.push(address),
        }
    }
    let mut subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .map(|(ports, mut subset)| {
            subset.ports = ports;
            subset.addresses.sort();
            subset.not_ready_addresses.sort();
            subset
        })
        .collect();
    let over_capacity = truncate(&mut subsets);
    (subsets, over_capacity)
}

/// Leaves out what is more than [`MAX_ADDRESSES`]: first those that are not ready, from each
/// subset the same part. Whether there was any.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let count = |lists: &mut dyn Iterator<Item = usize>| lists.sum::<usize>();
    let ready = count(&mut subsets.iter().map(|subset| subset.addresses.len()));
    let unready = count(&mut subsets.iter().map(|subset| subset.not_ready_addresses.len()));
    if ready + unready <= MAX_ADDRESSES {
        return false;
    }
    let cut = |list: &mut Vec<EndpointAddress>, total: usize, limit: usize, left: &mut usize| {
        let part = (list.len() * limit).div_ceil(total.max(1)).min(*left);
        list.truncate(part);
        *left -= list.len();
    };
    let ready_limit = ready.min(MAX_ADDRESSES);
    let unready_limit = MAX_ADDRESSES - ready_limit;
    let (mut ready_left, mut unready_left) = (ready_limit, unready_limit);
    for subset in subsets.iter_mut() {
        cut(&mut subset.addresses, ready, ready_limit, &mut ready_left);
        cut(&mut subset.not_ready_addresses, unready, unready_limit, &mut unready_left);
    }
    subsets.retain(|subset| !subset.addresses.is_empty() || !subset.not_ready_addresses.is_empty());
    true
}

fn labels(object: &Object, service: &Service) -> BTreeMap<String, String> {
    let mut labels = object.meta.labels.clone();
    labels.remove(HEADLESS_LABEL);
    if service.is_headless() {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels
}

#[cfg(test)]
mod tests;
