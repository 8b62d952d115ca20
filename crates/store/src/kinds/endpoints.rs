//! EndpointSlice and Endpoints.

use std::net::IpAddr;

use serde_json::Value;

use super::service_validation::{validate_address, validate_app_protocol};
use crate::json;
use crate::names::{label_faults, label_value_faults, subdomain_faults};
use crate::resource::Resource;
use crate::table::{Column, shorten};
use crate::validate::{FieldErrors, immutable, one_of, port_number};

/// Most endpoints of one EndpointSlice.
pub(crate) const MAX_ENDPOINTS: usize = 1_000;
/// Most ports of one EndpointSlice, and most addresses of one endpoint.
pub(crate) const MAX_SLICE_PORTS: usize = 100;
/// Most zones, and most nodes, that one endpoint is meant for.
const MAX_HINTS: usize = 8;

/// discovery.k8s.io/v1 EndpointSlice.
pub(crate) static ENDPOINT_SLICE: Resource = Resource {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    storage: "endpointslices.discovery.k8s.io",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("AddressType", |value, _| json::text(value, "/addressType").into()),
        Column::text("Ports", |value, _| {
            let ports: Vec<String> = json::items(value, "/ports")
                .iter()
                .map(|port| match json::integer(port, "/port") {
                    Some(number) => number.to_string(),
                    None => "*".to_owned(),
                })
                .collect();
            shorten(&ports, "<unset>").into()
        }),
        Column::text("Endpoints", |value, _| {
            let addresses: Vec<String> = json::items(value, "/endpoints")
                .iter()
                .map(|endpoint| json::texts(endpoint, "/addresses").join(","))
                .collect();
            shorten(&addresses, "<unset>").into()
        }),
        Column::AGE,
    ],
    default: |value| {
        for port in json::items_mut(value, "/ports") {
            json::set_default(port, "/name", "");
            json::set_default_text(port, "/protocol", "TCP");
        }
    },
    validate: validate_slice,
    ..Resource::BASE
};

/// core/v1 Endpoints: the old form of slices, which old clients ask for.
pub(crate) static ENDPOINTS: Resource = Resource {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    storage: "endpoints",
    create_on_update: true,
    columns: &[
        Column::NAME,
        Column::text("Endpoints", |value, _| shorten(&endpoint_texts(value), "<none>").into()),
        Column::AGE,
    ],
    default: |value| {
        for subset in json::items_mut(value, "/subsets") {
            for port in json::items_mut(subset, "/ports") {
                json::set_default_text(port, "/protocol", "TCP");
            }
        }
    },
    validate: |value, _, errors| validate_endpoints(value, errors),
    ..Resource::BASE
};

fn validate_slice(slice: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let kind = json::text(slice, "/addressType");
    let supported = ["FQDN", "IPv4", "IPv6"];
    if kind.is_empty() {
        errors.required("addressType", "");
    } else {
        one_of(errors, "addressType", slice.get("addressType"), &supported);
    }
    if let Some(old) = old {
        immutable(errors, "addressType", slice.get("addressType"), old.get("addressType"));
    }
    let endpoints = json::items(slice, "/endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many("endpoints", endpoints.len(), MAX_ENDPOINTS);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(&format!("endpoints[{index}]"), kind, endpoint, errors);
    }
    let ports = json::items(slice, "/ports");
    if ports.len() > MAX_SLICE_PORTS {
        errors.too_many("ports", ports.len(), MAX_SLICE_PORTS);
    }
    let mut names = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("ports[{index}]");
        let name = json::text(port, "/name");
        if names.contains(&name) {
            errors.duplicate(format!("{field}.name"), name);
        }
        names.push(name);
        validate_port(&field, port, errors);
    }
}

/// What ports of slices and of subsets have in common.
fn validate_port(field: &str, port: &Value, errors: &mut FieldErrors) {
    let name = json::text(port, "/name");
    if !name.is_empty() {
        for fault in label_faults(name) {
            errors.invalid(format!("{field}.name"), name, &fault);
        }
    }
    if let Some(number) = json::integer(port, "/port") {
        port_number(errors, format!("{field}.port"), number);
    }
    let supported = ["SCTP", "TCP", "UDP"];
    one_of(errors, format!("{field}.protocol"), port.get("protocol"), &supported);
    validate_app_protocol(field, port, errors);
}

fn validate_endpoint(field: &str, kind: &str, endpoint: &Value, errors: &mut FieldErrors) {
    let addresses = json::texts(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.required(format!("{field}.addresses"), "must contain at least 1 address");
    }
    if addresses.len() > MAX_SLICE_PORTS {
        errors.too_many(format!("{field}.addresses"), addresses.len(), MAX_SLICE_PORTS);
    }
    for (index, address) in addresses.into_iter().enumerate() {
        let field = format!("{field}.addresses[{index}]");
        let parsed = address.parse::<IpAddr>();
        match (kind, parsed) {
            ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                validate_address(&field, address, errors);
            }
            ("IPv4", _) => errors.invalid(field, address, "must be a valid IPv4 address"),
            ("IPv6", _) => errors.invalid(field, address, "must be a valid IPv6 address"),
            _ => {
                for fault in subdomain_faults(address) {
                    errors.invalid(field.as_str(), address, &fault);
                }
            }
        }
    }
    let hostname = json::text(endpoint, "/hostname");
    if !hostname.is_empty() {
        for fault in label_faults(hostname) {
            errors.invalid(format!("{field}.hostname"), hostname, &fault);
        }
    }
    let node = json::text(endpoint, "/nodeName");
    if !node.is_empty() {
        for fault in subdomain_faults(node) {
            errors.invalid(format!("{field}.nodeName"), node, &fault);
        }
    }
    validate_hints(&format!("{field}.hints.forZones"), endpoint, "/hints/forZones", errors);
    validate_hints(&format!("{field}.hints.forNodes"), endpoint, "/hints/forNodes", errors);
}

/// Zones are label values, nodes are names; both stand once.
fn validate_hints(field: &str, endpoint: &Value, pointer: &str, errors: &mut FieldErrors) {
    let hints = json::items(endpoint, pointer);
    if hints.len() > MAX_HINTS {
        errors.too_many(field, hints.len(), MAX_HINTS);
        return;
    }
    let mut seen = Vec::new();
    for (index, hint) in hints.iter().enumerate() {
        let field = format!("{field}[{index}].name");
        let name = json::text(hint, "/name");
        if seen.contains(&name) {
            errors.duplicate(field.as_str(), name);
        }
        seen.push(name);
        if name.is_empty() {
            errors.required(field, "");
            continue;
        }
        let is_zone = pointer.ends_with("forZones");
        let faults = if is_zone { label_value_faults(name) } else { subdomain_faults(name) };
        for fault in faults {
            errors.invalid(field.as_str(), name, &fault);
        }
    }
}

fn validate_endpoints(endpoints: &Value, errors: &mut FieldErrors) {
    for (index, subset) in json::items(endpoints, "/subsets").iter().enumerate() {
        let field = format!("subsets[{index}]");
        let lists = ["addresses", "notReadyAddresses"]
            .map(|list| (list, json::items(subset, &format!("/{list}"))));
        if lists.iter().all(|(_, addresses)| addresses.is_empty()) {
            errors.required(field.as_str(), "must specify `addresses` or `notReadyAddresses`");
        }
        for (list, addresses) in lists {
            for (index, address) in addresses.iter().enumerate() {
                validate_endpoint_address(&format!("{field}.{list}[{index}]"), address, errors);
            }
        }
        let ports = json::items(subset, "/ports");
        for (index, port) in ports.iter().enumerate() {
            let field = format!("{field}.ports[{index}]");
            if ports.len() > 1 && json::text(port, "/name").is_empty() {
                errors.required(format!("{field}.name"), "");
            }
            if json::integer(port, "/port").is_none() {
                port_number(errors, format!("{field}.port"), 0);
            }
            validate_port(&field, port, errors);
        }
    }
}

fn validate_endpoint_address(field: &str, address: &Value, errors: &mut FieldErrors) {
    validate_address(&format!("{field}.ip"), json::text(address, "/ip"), errors);
    let hostname = json::text(address, "/hostname");
    if !hostname.is_empty() {
        for fault in label_faults(hostname) {
            errors.invalid(format!("{field}.hostname"), hostname, &fault);
        }
    }
    let node = json::text(address, "/nodeName");
    if !node.is_empty() {
        for fault in subdomain_faults(node) {
            errors.invalid(format!("{field}.nodeName"), node, &fault);
        }
    }
}

fn endpoint_texts(endpoints: &Value) -> Vec<String> {
    let mut texts = Vec::new();
    for subset in json::items(endpoints, "/subsets") {
        let addresses = json::items(subset, "/addresses");
        let ports = json::items(subset, "/ports");
        if ports.is_empty() {
            texts.extend(addresses.iter().map(|address| json::text(address, "/ip").to_owned()));
        }
        for port in ports {
            let number = json::integer(port, "/port").unwrap_or(0);
            texts.extend(
                addresses.iter().map(|address| format!("{}:{number}", json::text(address, "/ip"))),
            );
        }
    }
    texts
}
