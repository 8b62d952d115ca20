//! ServiceCIDR and IPAddress (KEP-1880): ranges that Service addresses come from, and which
//! address is whose.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, NamespacedName};
use serde_json::{Value, json as tree};

use crate::json;
use crate::names::{NameRule, subdomain_faults};
use crate::resource::{Resource, Subresource};
use crate::table::{Column, or_none};
use crate::validate::{FieldErrors, immutable};

/// Most ranges of one ServiceCIDR: one a family.
const MAX_RANGES: usize = 2;
/// The label by which allocators know their IPAddress objects.
const MANAGED_BY_LABEL: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGED_BY: &str = "ipallocator.k8s.io";
const FAMILY_LABEL: &str = "ipaddress.kubernetes.io/ip-family";

/// networking.k8s.io/v1 ServiceCIDR.
pub(crate) static SERVICE_CIDR: Resource = Resource {
    group: "networking.k8s.io",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    singular: "servicecidr",
    namespaced: false,
    subresources: &[Subresource::Status],
    storage: "servicecidrs.networking.k8s.io",
    columns: &[
        Column::NAME,
        Column::text("CIDRs", |value, _| json::texts(value, "/spec/cidrs").join(",").into()),
        Column::AGE,
    ],
    validate: validate_service_cidr,
    ..Resource::BASE
};

/// networking.k8s.io/v1 IPAddress. Its name is the address.
pub(crate) static IP_ADDRESS: Resource = Resource {
    group: "networking.k8s.io",
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    namespaced: false,
    storage: "ipaddresses.networking.k8s.io",
    name_rule: NameRule::Address,
    columns: &[
        Column::NAME,
        Column::text("ParentRef", |value, _| or_none(&parent_text(value))),
        Column::AGE,
    ],
    validate: validate_ip_address,
    ..Resource::BASE
};

/// The IPAddress of a Service, without what the server sets.
pub(crate) fn address_of_service(address: IpAddr, service: &NamespacedName) -> Value {
    tree!({
        "apiVersion": IP_ADDRESS.api_version(),
        "kind": IP_ADDRESS.kind,
        "metadata": {
            "name": address.to_string(),
            "labels": {
                MANAGED_BY_LABEL: MANAGED_BY,
                FAMILY_LABEL: Family::of(&address).to_string(),
            },
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": service.namespace,
            "name": service.name,
        }},
    })
}

/// Whether an IPAddress is that of a Service.
pub(crate) fn belongs_to(ip_address: &Value, service: &NamespacedName) -> bool {
    let text = |field: &str| json::text(ip_address, &format!("/spec/parentRef/{field}"));
    text("group").is_empty()
        && text("resource") == "services"
        && text("namespace") == service.namespace
        && text("name") == service.name
}

/// The ranges that a ServiceCIDR gives addresses from; none any more once it is being deleted.
pub(crate) fn ranges(service_cidr: &Value) -> Vec<IpNet> {
    if json::at(service_cidr, "/metadata/deletionTimestamp").is_some() {
        return Vec::new();
    }
    let texts = json::texts(service_cidr, "/spec/cidrs");
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn validate_service_cidr(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let texts = json::texts(value, "/spec/cidrs");
    let given = || json::at(value, "/spec/cidrs").cloned().unwrap_or_default();
    if texts.is_empty() {
        errors.required("spec.cidrs", "at least one CIDR required");
        return;
    }
    if texts.len() > MAX_RANGES {
        errors.invalid("spec.cidrs", given(), "may only hold up to 2 values");
        return;
    }
    let mut families = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("spec.cidrs[{index}]");
        match text.parse::<IpNet>() {
            Err(_) => {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.invalid(field, *text, why);
            }
            Ok(range) if range.trunc() != range => {
                let why = "must not have bits set beyond the prefix length";
                errors.invalid(field, *text, why);
            }
            Ok(range) => families.push(Family::of(&range.addr())),
        }
    }
    if matches!(families.as_slice(), [one, other] if one == other) {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and \
                   2001:db8::/64";
        errors.invalid("spec.cidrs", given(), why);
    }
    let Some(old) = old else { return };
    // A second family may come, nothing may go: addresses are out there.
    let before = json::texts(old, "/spec/cidrs");
    if texts.len() < before.len() {
        errors.invalid("spec.cidrs", given(), "field is immutable");
        return;
    }
    for (index, (now, before)) in texts.iter().zip(&before).enumerate() {
        if now != before {
            errors.invalid(format!("spec.cidrs[{index}]"), *now, "field is immutable");
        }
    }
}

fn validate_ip_address(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    if json::at(value, "/spec/parentRef").is_none() {
        errors.required("spec.parentRef", "");
        return;
    }
    let group = json::text(value, "/spec/parentRef/group");
    if !group.is_empty() {
        for fault in subdomain_faults(group) {
            errors.invalid("spec.parentRef.group", group, &fault);
        }
    }
    for field in ["resource", "name"] {
        if json::text(value, &format!("/spec/parentRef/{field}")).is_empty() {
            errors.required(format!("spec.parentRef.{field}"), "");
        }
    }
    for field in ["resource", "namespace", "name"] {
        let text = json::text(value, &format!("/spec/parentRef/{field}"));
        for fault in NameRule::PathSegment.faults(text) {
            errors.invalid(format!("spec.parentRef.{field}"), text, &fault);
        }
    }
    if let Some(old) = old {
        let at = |value| json::at(value, "/spec/parentRef");
        immutable(errors, "spec.parentRef", at(value), at(old));
    }
}

/// `services/default/kubernetes`, with the group behind the resource where there is one.
fn parent_text(value: &Value) -> String {
    let text = |field: &str| json::text(value, &format!("/spec/parentRef/{field}"));
    let group = text("group");
    let resource = if group.is_empty() {
        text("resource").to_owned()
    } else {
        format!("{}.{group}", text("resource"))
    };
    let parts = [resource.as_str(), text("namespace"), text("name")];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}
