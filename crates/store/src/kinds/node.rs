//! Node and its Lease.

use serde_json::Value;

use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, or_none};
use crate::validate::{FieldErrors, immutable, one_of};

/// core/v1 Node.
pub(crate) static NODE: Resource = Resource {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Proxy, Subresource::Status],
    storage: "nodes",
    columns: &[
        Column::NAME,
        Column::text("Status", |value, _| status_text(value).into()),
        Column::text("Roles", |value, _| or_none(&roles(value).join(","))),
        Column::AGE,
        Column::text("Version", |value, _| {
            json::text(value, "/status/nodeInfo/kubeletVersion").into()
        }),
        Column::text("Internal-IP", |value, _| address(value, "InternalIP")).wide(),
        Column::text("External-IP", |value, _| address(value, "ExternalIP")).wide(),
        Column::text("OS-Image", |value, _| info(value, "osImage")).wide(),
        Column::text("Kernel-Version", |value, _| info(value, "kernelVersion")).wide(),
        Column::text("Container-Runtime", |value, _| info(value, "containerRuntimeVersion")).wide(),
    ],
    selectable_fields: &["/spec/unschedulable"],
    keeps_status_on_create: true,
    metadata_through_status: true,
    default: default_node,
    validate: validate_node,
    ..Resource::BASE
};

/// coordination.k8s.io/v1 Lease.
pub(crate) static LEASE: Resource = Resource {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage: "leases.coordination.k8s.io",
    columns: &[
        Column::NAME,
        Column::text("Holder", |value, _| json::text(value, "/spec/holderIdentity").into()),
        Column::AGE,
    ],
    create_on_update: true,
    unconditional_update: false,
    validate: |value, _, errors| {
        if let Some(seconds) = json::integer(value, "/spec/leaseDurationSeconds")
            && seconds <= 0
        {
            errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
        }
    },
    ..Resource::BASE
};

/// The two forms of the pod ranges mirror each other.
fn default_node(node: &mut Value) {
    let one = json::text(node, "/spec/podCIDR").to_owned();
    let several = json::texts(node, "/spec/podCIDRs").first().map(|range| range.to_string());
    match (one.as_str(), several) {
        ("", Some(first)) => json::set(node, "/spec/podCIDR", first),
        (one, None) if !one.is_empty() => json::set(node, "/spec/podCIDRs", vec![one]),
        _ => {}
    }
}

fn validate_node(node: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    for (index, range) in json::texts(node, "/spec/podCIDRs").iter().enumerate() {
        if range.parse::<ipnet::IpNet>().is_err() {
            let field = format!("spec.podCIDRs[{index}]");
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(field, *range, why);
        }
    }
    let mut seen = Vec::new();
    for (index, taint) in json::items(node, "/spec/taints").iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        let (key, effect) = (json::text(taint, "/key"), json::text(taint, "/effect"));
        if key.is_empty() {
            errors.required(format!("{field}.key"), "");
        }
        if effect.is_empty() {
            errors.required(format!("{field}.effect"), "");
        } else {
            let supported = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
            one_of(errors, format!("{field}.effect"), taint.get("effect"), &supported);
        }
        if seen.contains(&(key, effect)) {
            errors.duplicate(field, taint.clone());
        }
        seen.push((key, effect));
    }
    // A range once given stays: pods carry its addresses.
    if let Some(old) = old
        && json::at(old, "/spec/podCIDRs").is_some()
        && json::at(old, "/spec/podCIDRs") != json::at(node, "/spec/podCIDRs")
    {
        errors.forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if let Some(old) = old
        && json::at(old, "/spec/providerID").is_some()
    {
        let at = |value| json::at(value, "/spec/providerID");
        immutable(errors, "spec.providerID", at(node), at(old));
    }
}

fn status_text(node: &Value) -> String {
    let ready = json::items(node, "/status/conditions")
        .iter()
        .find(|condition| json::text(condition, "/type") == "Ready");
    let mut text = match ready.map(|condition| json::text(condition, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if json::flag(node, "/spec/unschedulable") {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(node: &Value) -> Vec<&str> {
    json::members(node, "/metadata/labels")
        .filter_map(|(key, value)| {
            let role = key.strip_prefix("node-role.kubernetes.io/");
            let legacy = || (key == "kubernetes.io/role").then(|| value.as_str()).flatten();
            role.or_else(legacy).filter(|role| !role.is_empty())
        })
        .collect()
}

fn address(node: &Value, kind: &str) -> Value {
    let address = json::items(node, "/status/addresses")
        .iter()
        .find(|address| json::text(address, "/type") == kind);
    or_none(address.map(|address| json::text(address, "/address")).unwrap_or_default())
}

fn info(node: &Value, field: &str) -> Value {
    match json::text(node, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".into(),
        text => text.into(),
    }
}
