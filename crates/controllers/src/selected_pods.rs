//! The pods of a Service as endpoints: shared by EndpointSlices and the older Endpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::Family;
use model::kinds::IntOrString;
use model::selector::matches_map;

use crate::kind::{Kind, ObjectKey};
use crate::object::{Object, Service, ServicePort};
use crate::pod::Pod;
use crate::slice::{EndpointConditions, SliceEndpoint, SlicePort, TargetReference};
use crate::snapshot::{Change, Snapshot};

/// The label that nodes carry their zone in.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Adds the Services that a change of a Service or of a pod concerns.
pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    match object.kind {
        Kind::Service => {
            keys.insert(object.key());
        }
        Kind::Pod => {
            for service in snapshot.in_namespace(Kind::Service, &object.meta.namespace) {
                let Some(view) = service.service().filter(|view| view.selects()) else { continue };
                if change.both().any(|pod| matches_map(&view.spec.selector, &pod.meta.labels)) {
                    keys.insert(service.key());
                }
            }
        }
        _ => {}
    }
}

/// One endpoint with the ports that it has.
pub(crate) struct SelectedPod {
    /// The ports of the Service, as this pod serves them.
    pub ports: Vec<SlicePort>,
    /// The endpoint.
    pub endpoint: SliceEndpoint,
}

/// The endpoints of a Service in one family, by pod name. Pods that have ended, or have no
/// address yet, are none.
pub(crate) fn selected(
    object: &Object,
    service: &Service,
    family: Family,
    snapshot: &Snapshot,
) -> Vec<SelectedPod> {
    snapshot
        .in_namespace(Kind::Pod, &object.meta.namespace)
        .filter(|pod| matches_map(&service.spec.selector, &pod.meta.labels))
        .filter_map(|pod| {
            let view = pod.pod().filter(|view| !view.is_finished())?;
            let endpoint = endpoint(object, service, pod, view, family, snapshot)?;
            let ports = service.spec.ports.iter().filter_map(|port| resolve(port, view)).collect();
            Some(SelectedPod { ports, endpoint })
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
    let zone = node_name
        .as_deref()
        .and_then(|name| snapshot.find(Kind::Node, "", name))
        .and_then(|node| node.meta.labels.get(ZONE_LABEL))
        .cloned();
    Some(SliceEndpoint {
        addresses: vec![address.to_string()],
        conditions: EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        },
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
