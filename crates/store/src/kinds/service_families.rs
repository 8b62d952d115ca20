//! Address families of a Service (KEP-563): which it wants, and which it gets on this cluster.

use std::net::IpAddr;

use model::Family;
use serde_json::Value;

use crate::alloc::{family_from_text, needs_cluster_ip};
use crate::json;
use crate::validate::{FieldErrors, one_of};

/// Fills in `ipFamilies` and `ipFamilyPolicy` from what the Service says and what the cluster has.
/// `configured` are the cluster's families, the default one first; `old` is the Service before an
/// update.
pub(crate) fn fill(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[Family],
    errors: &mut FieldErrors,
) {
    if !needs_cluster_ip(service) || old.is_some_and(|old| prefers_as_before(service, old)) {
        return;
    }
    let unbound = is_unbound(service);
    let policy = json::text(service, "/spec/ipFamilyPolicy").to_owned();
    let policy = match policy.as_str() {
        // Whoever writes the slices of such a Service may use either family.
        "" if unbound => "RequireDualStack",
        "" => "SingleStack",
        policy => policy,
    };
    check_reduction(service, old, policy, errors);
    let mut families = wanted_families(service, configured, unbound, errors);
    if policy == "SingleStack" {
        check_single(service, policy, errors);
    }
    if policy == "RequireDualStack" && configured.len() < 2 && !unbound {
        let why = "this cluster is not configured for dual-stack services";
        errors.invalid("spec.ipFamilyPolicy", policy, why);
    }
    let named = json::texts(service, "/spec/ipFamilies").len();
    for (index, family) in families.iter().take(named).enumerate() {
        if !unbound && !configured.contains(family) {
            let why = "not configured on this cluster";
            errors.invalid(format!("spec.ipFamilies[{index}]"), family.to_string(), why);
        }
    }
    if families.is_empty() {
        families.extend(configured.first());
    }
    let wants_two = policy != "SingleStack" && (unbound || configured.len() > 1);
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

/// A Service that takes what the cluster has is not changed because the cluster has more or less
/// now: only by a change of its own policy, families or addresses.
fn prefers_as_before(service: &Value, old: &Value) -> bool {
    let same = |field| json::at(service, field) == json::at(old, field);
    json::text(service, "/spec/ipFamilyPolicy") == "PreferDualStack"
        && needs_cluster_ip(old)
        && ["/spec/ipFamilyPolicy", "/spec/ipFamilies", "/spec/clusterIPs"].into_iter().all(same)
}

/// Headless and without selector: its endpoints are somebody else's, and so are their families.
fn is_unbound(service: &Value) -> bool {
    json::text(service, "/spec/clusterIP") == "None"
        && json::members(service, "/spec/selector").next().is_none()
}

/// An address that was given is given back only by whoever says so with the policy.
fn check_reduction(service: &Value, old: Option<&Value>, policy: &str, errors: &mut FieldErrors) {
    let Some(old) = old.filter(|old| needs_cluster_ip(old) && policy != "SingleStack") else {
        return;
    };
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let count = |value| json::items(value, &format!("/spec/{field}")).len();
        if count(service) > 0 && count(service) < count(old) {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.invalid("spec.ipFamilyPolicy", policy, &why);
        }
    }
}

fn check_single(service: &Value, policy: &str, errors: &mut FieldErrors) {
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if json::items(service, &format!("/spec/{field}")).len() == 2 {
            let why = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            errors.invalid("spec.ipFamilyPolicy", policy, &why);
        }
    }
}

/// The families that the Service names, and those that its addresses imply.
fn wanted_families(
    service: &Value,
    configured: &[Family],
    unbound: bool,
    errors: &mut FieldErrors,
) -> Vec<Family> {
    let mut families: Vec<Family> =
        json::texts(service, "/spec/ipFamilies").into_iter().filter_map(family_from_text).collect();
    let addresses = json::texts(service, "/spec/clusterIPs");
    let implied = addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    for (index, address) in implied.enumerate().skip(families.len()) {
        let family = Family::of(&address);
        if !unbound && !configured.contains(&family) {
            let given = json::at(service, "/spec/clusterIPs").cloned().unwrap_or_default();
            let why = format!("{family} is not configured on this cluster");
            errors.invalid(format!("spec.clusterIPs[{index}]"), given, &why);
        }
        families.push(family);
    }
    families
}

/// Checks what can be told without knowing the cluster.
pub(super) fn validate(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
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
    if needs_cluster_ip(service) {
        validate_addresses(service, &families, errors);
    }
    let Some(old) = old.filter(|old| needs_cluster_ip(service) && needs_cluster_ip(old)) else {
        return;
    };
    let before = json::texts(old, "/spec/ipFamilies");
    let free = is_unbound(service) || is_unbound(old);
    for (index, (now, before)) in families.iter().zip(&before).enumerate() {
        if now != before && !free {
            let given = json::at(service, "/spec/ipFamilies").cloned().unwrap_or_default();
            errors.invalid(format!("spec.ipFamilies[{index}]"), given, "may not change once set");
        }
    }
}

fn validate_addresses(service: &Value, families: &[&str], errors: &mut FieldErrors) {
    let given = || json::at(service, "/spec/clusterIPs").cloned().unwrap_or_default();
    let addresses = json::texts(service, "/spec/clusterIPs");
    let first = json::text(service, "/spec/clusterIP");
    if first.is_empty() && !addresses.is_empty() {
        let why = "must be empty when `clusterIP` is not specified";
        errors.invalid("spec.clusterIPs", given(), why);
        return;
    }
    if addresses.first().is_some_and(|address| *address != first) {
        errors.invalid("spec.clusterIPs", given(), "first value must match `clusterIP`");
    }
    if addresses.len() > 2 {
        errors.invalid("spec.clusterIPs", given(), "may only hold up to 2 values");
        return;
    }
    if addresses.len() > 1 && addresses.contains(&"None") {
        errors.invalid("spec.clusterIPs", given(), "'None' must be the first and only value");
        return;
    }
    let mut seen = Vec::new();
    for (index, text) in addresses.into_iter().enumerate().filter(|(_, text)| *text != "None") {
        let field = format!("spec.clusterIPs[{index}]");
        let Ok(address) = text.parse::<IpAddr>() else {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(field, text, why);
            continue;
        };
        let family = Family::of(&address);
        let declared = families.get(index).and_then(|family| family_from_text(family));
        if let Some(declared) = declared.filter(|declared| *declared != family) {
            let why = format!("expected an {declared} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(field, text, &why);
        }
        if seen.contains(&family) {
            let why = "may specify no more than one IP for each IP family";
            errors.invalid("spec.clusterIPs", given(), why);
        }
        seen.push(family);
    }
}
