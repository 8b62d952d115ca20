//! Endpoints objects: the older form of EndpointSlices, which `kubectl describe service` before
//! 1.27 asks for. Without terminating pods, one family, at most [`MAX_ADDRESSES`] addresses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use model::Family;

use crate::endpoint_slices::HEADLESS_LABEL;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service};
use crate::selected_pods::{self, selected};
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
    let (subsets, over_capacity) = subsets(object, service, snapshot);
    let labels = labels(object, service);
    match existing {
        None => {
            let mut metadata = json!({
                "name": object.meta.name,
                "namespace": object.meta.namespace,
                "labels": labels,
            });
            if over_capacity {
                metadata["annotations"] = json!({OVER_CAPACITY: "truncated"});
            }
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
            let mark = if over_capacity { json!("truncated") } else { Value::Null };
            let metadata = json!({"labels": label_patch, "annotations": {OVER_CAPACITY: mark}});
            let body = json!({"metadata": metadata, "subsets": subsets});
            outcome.push(Step::quiet(existing.patch_unchanged(body)));
        }
    }
    outcome
}

fn is_ours(object: &Object) -> bool {
    object.meta.labels.get(MANAGED_BY_LABEL).is_some_and(|name| name == MANAGED_BY)
}

fn subsets(object: &Object, service: &Service, snapshot: &Snapshot) -> (Vec<EndpointSubset>, bool) {
    let family = service.spec.ip_families.first().copied().unwrap_or(Family::V4);
    let mut groups: BTreeMap<Vec<SlicePort>, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    for pod in selected(object, service, family, snapshot) {
        let conditions = pod.endpoint.conditions;
        let terminating = conditions.terminating == Some(true);
        if terminating && !service.spec.publish_not_ready_addresses {
            continue;
        }
        // A pod without any of the Service's ports stands in no subset.
        if pod.ports.is_empty() && !(service.spec.ports.is_empty() && service.is_headless()) {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            break;
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
    let subsets = groups
        .into_iter()
        .map(|(ports, mut subset)| {
            subset.ports = ports;
            subset.addresses.sort();
            subset.not_ready_addresses.sort();
            subset
        })
        .collect();
    (subsets, count > MAX_ADDRESSES)
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
