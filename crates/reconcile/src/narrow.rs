//! Of each object the loop keeps what it reads: a node of a large cluster has tens of thousands.

use std::sync::Arc;

use model::kinds::SERVICE_NAME_LABEL;
use model::world::Object;
use model::{EndpointSlice, Service};
use plan::services::{HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL};

/// What our annotations begin with; others' are large, and change often.
const OWN_ANNOTATIONS: &str = "flatnet.io/";
/// The labels of slices that anything reads.
const SLICE_LABELS: [&str; 3] = [SERVICE_NAME_LABEL, SERVICE_PROXY_NAME_LABEL, HEADLESS_LABEL];

/// Takes out what nothing here reads.
pub fn narrow(object: &mut Object) {
    // Whoever sent the object has kept no reference to it: nothing is copied.
    match object {
        Object::Service(service) => narrow_service(Arc::make_mut(service)),
        Object::EndpointSlice(slice) => narrow_slice(Arc::make_mut(slice)),
        Object::Node(_) | Object::ServiceCidr(_) | Object::Pod(_) => {}
    }
}

pub(crate) fn narrow_service(service: &mut Service) {
    service.metadata.annotations.retain(|key, _| key.starts_with(OWN_ANNOTATIONS));
}

/// The time of the trigger goes too: it was noted when the change came.
pub(crate) fn narrow_slice(slice: &mut EndpointSlice) {
    slice.metadata.uid = String::new();
    slice.metadata.annotations.clear();
    slice.metadata.labels.retain(|key, _| SLICE_LABELS.contains(&key.as_str()));
    for endpoint in &mut slice.endpoints {
        // "Fungible": of the addresses the first is read.
        endpoint.addresses.truncate(1);
    }
}
