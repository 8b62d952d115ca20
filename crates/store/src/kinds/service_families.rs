//! Address families of a Service (KEP-563): which it wants, and which it gets on this cluster.

use std::net::IpAddr;

use model::Family;
use serde_json::Value;

use crate::alloc::{family_from_text, needs_cluster_ip};
use crate::json;
use crate::validate::{FieldErrors, one_of};

/// Fills in `ipFamilies` and `ipFamilyPolicy` from what the Service says and what the cluster has.
/// `configured` are the cluster's families, the default one first.
pub(crate) fn fill(service: &mut Value, configured: &[Family], errors: &mut FieldErrors) {
    if !needs_cluster_ip(service) {
        return;
    }
    let headless = json::text(service, "/spec/clusterIP") == "None";
    let has_selector = json::members(service, "/spec/selector").next().is_some();
    let policy = json::text(service, "/spec/ipFamilyPolicy").to_owned();
    let policy = match policy.as_str() {
        // Whoever writes the slices of such a Service may use either family.
        "" if headless && !has_selector => "RequireDualStack",
        "" => "SingleStack",
        policy => policy,
    };
    let mut families = wanted_families(service);
    if families.is_empty() {
        families.extend(configured.first());
    }
    let unbound = headless && !has_selector;
    let wants_two = match policy {
        "RequireDualStack" if configured.len() < 2 && !unbound => {
            let why = "this cluster is not configured for dual-stack services";
            errors.invalid("spec.ipFamilyPolicy", policy, why);
            false
        }
        "RequireDualStack" => true,
        "PreferDualStack" => configured.len() > 1,
        _ => {
            if families.len() > 1 {
                let why = "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' \
                           are specified";
                errors.invalid("spec.ipFamilyPolicy", policy, why);
            }
            false
        }
    };
    for (index, family) in families.iter().enumerate() {
        if !unbound && !configured.contains(family) {
            let why = "not configured on this cluster";
            errors.invalid(format!("spec.ipFamilies[{index}]"), family.to_string(), why);
        }
    }
    if let (true, [only]) = (wants_two, families.as_slice()) {
        families.push(match only {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        });
    }
    let texts: Vec<String> = families.iter().map(Family::to_string).collect();
    json::set(service, "/spec/ipFamilies", texts);
    json::set(service, "/spec/ipFamilyPolicy", policy);
}

/// Checks what can be told without knowing the cluster.
pub(super) fn validate(service: &Value, errors: &mut FieldErrors) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = json::at(service, "/spec/ipFamilyPolicy");
    one_of(errors, "spec.ipFamilyPolicy", policy, &policies);
    let families = json::texts(service, "/spec/ipFamilies");
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if family_from_text(family).is_none() {
            errors.unsupported(field, family, &["IPv4", "IPv6"]);
        } else if families.iter().take(index).any(|other| other == family) {
            errors.duplicate(field, *family);
        }
    }
    let addresses = json::texts(service, "/spec/clusterIPs");
    if addresses.len() > 2 {
        let given = json::at(service, "/spec/clusterIPs").cloned().unwrap_or_default();
        errors.invalid("spec.clusterIPs", given, "may only hold up to 2 values");
    }
    for (index, text) in addresses.into_iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        if text.is_empty() || (index == 0 && text == "None") {
            continue;
        }
        match text.parse::<IpAddr>() {
            Err(_) => errors.invalid(field, text, "must be empty, 'None', or a valid IP address"),
            Ok(address) => {
                let family = Family::of(&address);
                let declared = families.get(index).and_then(|family| family_from_text(family));
                if declared.is_some_and(|declared| declared != family) {
                    let why = format!(
                        "expected an {} value as indicated by `ipFamilies[{index}]`",
                        if family == Family::V4 { "IPv6" } else { "IPv4" }
                    );
                    errors.invalid(field, text, &why);
                }
            }
        }
    }
}

/// The families that the Service names, or that its addresses imply.
fn wanted_families(service: &Value) -> Vec<Family> {
    let named: Vec<Family> =
        json::texts(service, "/spec/ipFamilies").into_iter().filter_map(family_from_text).collect();
    if !named.is_empty() {
        return named;
    }
    json::texts(service, "/spec/clusterIPs")
        .into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| Family::of(&address))
        .collect()
}
