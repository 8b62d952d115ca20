//! The pods of a Service as endpoints: shared by EndpointSlices and the older Endpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::kinds::IntOrString;
use model::{Family, Timestamp};

use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service, ServicePort};
use crate::pod::Pod;
use crate::slice::{EndpointConditions, SliceEndpoint, SlicePort, TargetReference};
use crate::snapshot::{Change, Snapshot};

/// The label that nodes carry their zone in.
pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Adds the Services that a change of a Service or of a pod concerns.
pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    match object.kind {
        Kind::Service => {
            keys.insert(object.key());
        }
        Kind::Pod => change.both().for_each(|pod| services_of(pod, snapshot, keys)),
        // Endpoints carry the zone of their node, and there are none on a node that is not there.
        Kind::Node => {
            let place = |node: &Option<Arc<Object>>| {
                node.as_ref().map(|node| node.meta.labels.get(ZONE_LABEL).cloned())
            };
            if place(&change.old) != place(&change.new) {
                let pods = snapshot.pods_on(&object.meta.name);
                pods.for_each(|pod| services_of(pod, snapshot, keys));
            }
        }
        _ => {}
    }
}

fn services_of(pod: &Object, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    keys.extend(snapshot.services_for(pod).map(|service| service.key()));
}

/// One endpoint with the ports that it has.
pub(crate) struct SelectedPod {
    /// The ports of the Service, as this pod serves them.
    pub ports: Vec<SlicePort>,
    /// The endpoint.
    pub endpoint: SliceEndpoint,
    /// When the pod became ready or unready last.
    pub ready_changed: Option<Timestamp>,
}

/// The endpoints of a Service in one family, by pod name. Pods that have ended, or have no
/// address yet, are none; nor are those of a node that is not there, unless the Service wants
/// pods whatever their state.
pub(crate) fn selected(
    object: &Object,
    service: &Service,
    family: Family,
    snapshot: &Snapshot,
) -> Vec<SelectedPod> {
    snapshot
        .pods_with(&object.meta.namespace, &service.spec.selector)
        .filter_map(|pod| {
            let view = pod.pod().filter(|view| !view.is_finished())?;
            let endpoint = endpoint(object, service, pod, view, family, snapshot)?;
            let ports = service.spec.ports.iter().filter_map(|port| resolve(port, view)).collect();
            let ready_changed = view.ready_condition().and_then(|found| found.last_transition_time);
            Some(SelectedPod { ports, endpoint, ready_changed })
        })
        .collect()
}

fn endpoint(
    object: &Object,
    service: &Service,
    pod: &Arc<Object>,
    view: &Pod,
    family: Family,
    snapshot: &Snapshot,
) -> Option<SliceEndpoint> {
    let address = view.ip(family)?;
    let serving = view.is_ready();
    let terminating = pod.is_terminating();
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    let named = !view.spec.hostname.is_empty() && view.spec.subdomain == object.meta.name;
    let node_name = Some(view.spec.node_name.clone()).filter(|name| !name.is_empty());
    let node = node_name.as_deref().and_then(|name| snapshot.find(Kind::Node, "", name));
    if node.is_none() && !service.spec.publish_not_ready_addresses {
        return None;
    }
    let zone = node.and_then(|node| node.meta.labels.get(ZONE_LABEL)).cloned();
    Some(SliceEndpoint {
        addresses: vec![address.to_string()],
        conditions: EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        },
        hints: None,
        hostname: named.then(|| view.spec.hostname.clone()),
        node_name,
        target_ref: Some(TargetReference {
            kind: "Pod".into(),
            namespace: pod.meta.namespace.clone(),
            name: pod.meta.name.clone(),
            uid: pod.meta.uid.clone(),
        }),
        zone,
    })
}

/// The port of one pod for a port of the Service. `None` when the pod has no port of the wanted
/// name: the Service's port then does not lead to this pod.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<SlicePort> {
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
        Some(IntOrString::String(name)) => pod
            .lasting_containers()
            .flat_map(|container| &container.ports)
            .find(|declared| declared.name == *name && declared.protocol == port.protocol)
            .map(|declared| declared.container_port)?,
    };
    Some(SlicePort {
        name: port.name.clone(),
        port: Some(number),
        protocol: port.protocol,
        app_protocol: port.app_protocol.clone(),
    })
}
