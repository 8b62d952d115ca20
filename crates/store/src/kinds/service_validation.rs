//! The checks of a Service, in the words of the real server.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json as tree};

use super::pod_spec::validate_port_reference;
use super::service::is_external;
use super::service_families;
use crate::alloc::{needs_cluster_ip, needs_health_check_node_port, needs_node_ports};
use crate::json;
use crate::names::{label_faults, qualified_name_faults, subdomain_faults};
use crate::validate::{FieldErrors, immutable, one_of, port_number};

/// Longest time that a client stays with its endpoint, in seconds.
const MAX_AFFINITY_SECONDS: i64 = 86_400;
/// The older place of `spec.loadBalancerSourceRanges`.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const BAD_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Checks a Service, and its change when the old one is given.
pub(super) fn validate(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let kind = json::text(service, "/spec/type");
    let headless = json::text(service, "/spec/clusterIP") == "None";
    let ports = json::items(service, "/spec/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.invalid("spec.clusterIPs[0]", "None", &why);
    }
    if kind == "ExternalName" {
        validate_external_name(service, errors);
    }
    for (index, port) in ports.iter().enumerate() {
        validate_service_port(service, index, port, errors);
    }
    validate_distinct_ports(ports, errors);
    let selector = json::at(service, "/spec/selector");
    crate::write::validate_labels("spec.selector", selector, errors);
    validate_affinity(service, errors);
    let at = |pointer: &str| json::at(service, pointer);
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(errors, "spec.type", at("/spec/type"), &types);
    for (index, address) in json::texts(service, "/spec/externalIPs").into_iter().enumerate() {
        validate_address(&format!("spec.externalIPs[{index}]"), address, errors);
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    let distribution = at("/spec/trafficDistribution");
    one_of(errors, "spec.trafficDistribution", distribution, &distributions);
    validate_traffic_policies(service, errors);
    validate_load_balancer(service, old, errors);
    validate_load_balancer_status(service, errors);
    service_families::validate(service, old, errors);
    if let Some(old) = old {
        validate_change(service, old, errors);
    }
}

fn validate_change(service: &Value, old: &Value, errors: &mut FieldErrors) {
    if needs_health_check_node_port(service) && needs_health_check_node_port(old) {
        let at = |value| json::at(value, "/spec/healthCheckNodePort");
        immutable(errors, "spec.healthCheckNodePort", at(service), at(old));
    }
    if !needs_cluster_ip(service)
        || !needs_cluster_ip(old)
        || json::text(old, "/spec/clusterIP").is_empty()
    {
        return;
    }
    let addresses = |value| json::texts(value, "/spec/clusterIPs");
    let (now, before) = (addresses(service), addresses(old));
    let given = || json::at(service, "/spec/clusterIPs").cloned().unwrap_or_default();
    if now.first() != before.first() {
        errors.invalid("spec.clusterIPs[0]", given(), "may not change once set");
    }
    if let (Some(now), Some(before)) = (now.get(1), before.get(1))
        && now != before
    {
        errors.invalid("spec.clusterIPs[1]", given(), "may not change once set");
    }
}

fn validate_external_name(service: &Value, errors: &mut FieldErrors) {
    let name = json::text(service, "/spec/externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.required("spec.externalName", "");
    } else {
        for fault in subdomain_faults(name) {
            errors.invalid("spec.externalName", name, &fault);
        }
    }
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let given = json::at(service, &format!("/spec/{field}"));
        if let Some(given) = given.filter(|given| given.as_array().is_none_or(|a| !a.is_empty())) {
            let why = "may not be set for ExternalName services";
            errors.invalid(format!("spec.{field}"), given.clone(), why);
        }
    }
}

fn validate_service_port(service: &Value, index: usize, port: &Value, errors: &mut FieldErrors) {
    let field = format!("spec.ports[{index}]");
    let name = json::text(port, "/name");
    let several = json::items(service, "/spec/ports").len() > 1;
    if several && name.is_empty() {
        errors.required(format!("{field}.name"), "");
    } else if !name.is_empty() {
        for fault in label_faults(name) {
            errors.invalid(format!("{field}.name"), name, &fault);
        }
    }
    port_number(errors, format!("{field}.port"), json::integer(port, "/port").unwrap_or(0));
    let supported = ["SCTP", "TCP", "UDP"];
    one_of(errors, format!("{field}.protocol"), port.get("protocol"), &supported);
    validate_port_reference(&format!("{field}.targetPort"), port.get("targetPort"), errors);
    validate_app_protocol(&field, port, errors);
    let has_node_port = json::integer(port, "/nodePort").unwrap_or(0) != 0;
    if has_node_port && !needs_node_ports(service) {
        let kind = json::text(service, "/spec/type");
        let why = format!("may not be used when `type` is '{kind}'");
        errors.forbidden(format!("{field}.nodePort"), &why);
    }
}

/// Checks `appProtocol` of a port of a Service, a slice or a subset.
pub(super) fn validate_app_protocol(field: &str, port: &Value, errors: &mut FieldErrors) {
    let Some(protocol) = json::at(port, "/appProtocol").and_then(Value::as_str) else { return };
    for fault in qualified_name_faults(protocol) {
        errors.invalid(format!("{field}.appProtocol"), protocol, &fault);
    }
}

fn validate_distinct_ports(ports: &[Value], errors: &mut FieldErrors) {
    let (mut names, mut numbers, mut node_ports) = (Vec::new(), Vec::new(), Vec::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = json::text(port, "/name");
        if !name.is_empty() && names.contains(&name) {
            errors.duplicate(format!("{field}.name"), name);
        }
        names.push(name);
        let protocol = json::text(port, "/protocol");
        let number = (json::integer(port, "/port"), protocol);
        if numbers.contains(&number) {
            let shown = tree!({"port": number.0, "protocol": protocol});
            errors.duplicate(field.as_str(), shown);
        }
        numbers.push(number);
        if let Some(node_port) = json::integer(port, "/nodePort").filter(|port| *port != 0) {
            if node_ports.contains(&(node_port, protocol)) {
                errors.duplicate(format!("{field}.nodePort"), node_port);
            }
            node_ports.push((node_port, protocol));
        }
    }
}

fn validate_affinity(service: &Value, errors: &mut FieldErrors) {
    let affinity = json::at(service, "/spec/sessionAffinity");
    one_of(errors, "spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    let timeout = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
    if let Some(seconds) = json::integer(service, timeout)
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.invalid(field, seconds, &why);
    }
}

fn validate_traffic_policies(service: &Value, errors: &mut FieldErrors) {
    let supported = ["Cluster", "Local"];
    let external = json::at(service, "/spec/externalTrafficPolicy");
    match external {
        Some(policy) if !is_external(service) => errors.invalid(
            "spec.externalTrafficPolicy",
            policy.clone(),
            "may only be set for externally-accessible services",
        ),
        policy => one_of(errors, "spec.externalTrafficPolicy", policy, &supported),
    }
    let internal = json::at(service, "/spec/internalTrafficPolicy");
    one_of(errors, "spec.internalTrafficPolicy", internal, &supported);
    let health = json::integer(service, "/spec/healthCheckNodePort").unwrap_or(0);
    if health != 0 {
        if needs_health_check_node_port(service) {
            port_number(errors, "spec.healthCheckNodePort", health);
        } else {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` \
                       is 'Local'";
            errors.invalid("spec.healthCheckNodePort", health, why);
        }
    }
}

fn validate_load_balancer(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    const NOT_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balanced = |value: &Value| json::text(value, "/spec/type") == "LoadBalancer";
    let balanced = is_balanced(service);
    let class = json::at(service, "/spec/loadBalancerClass");
    if !balanced {
        if json::at(service, "/spec/allocateLoadBalancerNodePorts").is_some() {
            errors.forbidden("spec.allocateLoadBalancerNodePorts", NOT_BALANCED);
        }
        if class.is_some() {
            errors.forbidden("spec.loadBalancerClass", NOT_BALANCED);
        }
    } else if let Some(name) = class.and_then(Value::as_str) {
        for fault in qualified_name_faults(name) {
            errors.invalid("spec.loadBalancerClass", name, &fault);
        }
    }
    // Another implementation could not clean up what the first one made.
    if let Some(old) = old
        && balanced
        && is_balanced(old)
        && class != json::at(old, "/spec/loadBalancerClass")
    {
        let given = class.cloned().unwrap_or_default();
        errors.invalid("spec.loadBalancerClass", given, "may not change once set");
    }
    let ranges = json::texts(service, "/spec/loadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !balanced {
            errors.forbidden("spec.LoadBalancerSourceRanges", NOT_BALANCED);
        }
        for (index, range) in ranges.iter().map(|range| range.trim()).enumerate() {
            if range.parse::<IpNet>().is_err() {
                let field = format!("spec.LoadBalancerSourceRanges[{index}]");
                errors.invalid(field, range, BAD_RANGE);
            }
        }
        return;
    }
    let annotations = json::at(service, "/metadata/annotations");
    let annotation = annotations.and_then(|all| all.get(SOURCE_RANGES_ANNOTATION)?.as_str());
    let Some(text) = annotation else { return };
    let field = format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]");
    if !balanced {
        errors.forbidden(field.as_str(), NOT_BALANCED);
    }
    let bad = |range: &str| range.trim().parse::<IpNet>().is_err();
    if !text.trim().is_empty() && text.split(',').any(bad) {
        let why = "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24";
        errors.invalid(field, text, why);
    }
}

/// What implementations of load balancers write (`status.loadBalancer`, KEP-1860 for `ipMode`).
fn validate_load_balancer_status(service: &Value, errors: &mut FieldErrors) {
    let ingress = json::items(service, "/status/loadBalancer/ingress");
    if !ingress.is_empty() && json::text(service, "/spec/type") != "LoadBalancer" {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        errors.forbidden("status.loadBalancer.ingress", why);
        return;
    }
    for (index, entry) in ingress.iter().enumerate() {
        let field = format!("status.loadBalancer.ingress[{index}]");
        let (address, hostname) = (json::text(entry, "/ip"), json::text(entry, "/hostname"));
        let mode = json::at(entry, "/ipMode");
        if address.is_empty() {
            if mode.is_some() {
                let why = "may not be specified when `ip` is not set";
                errors.forbidden(format!("{field}.ipMode"), why);
            }
        } else {
            if address.parse::<IpAddr>().is_err() {
                errors.invalid(format!("{field}.ip"), address, BAD_ADDRESS);
            }
            one_of(errors, format!("{field}.ipMode"), mode, &["Proxy", "VIP"]);
        }
        if hostname.parse::<IpAddr>().is_ok() {
            let why = "must be a DNS name, not an IP address";
            errors.invalid(format!("{field}.hostname"), hostname, why);
        } else if !hostname.is_empty() {
            for fault in subdomain_faults(hostname) {
                errors.invalid(format!("{field}.hostname"), hostname, &fault);
            }
        }
    }
}

/// Checks an address that packets are to be sent to.
pub(super) fn validate_address(field: &str, text: &str, errors: &mut FieldErrors) {
    match text.parse::<IpAddr>() {
        Err(_) => errors.invalid(field, text, BAD_ADDRESS),
        Ok(address) if address.is_unspecified() => {
            errors.invalid(field, text, "may not be unspecified (0.0.0.0 or ::)");
        }
        Ok(address) if address.is_loopback() => {
            errors.invalid(field, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
        }
        Ok(address) if is_link_local(address) => errors.invalid(
            field,
            text,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        Ok(address) if address.is_multicast() => {
            errors.invalid(
                field,
                text,
                "may not be in the multicast range (224.0.0.0/4, ff00::/8)",
            );
        }
        Ok(_) => {}
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
