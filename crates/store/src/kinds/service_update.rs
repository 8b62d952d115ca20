//! What an update of a Service keeps of what was allocated, and what a change of its type drops.

use serde_json::{Value, json as tree};

use super::service::is_external;
use crate::alloc::{needs_cluster_ip, needs_health_check_node_port, needs_node_ports};
use crate::json;

/// Carries over what a client leaves out, and drops what the new type has no use for.
pub(super) fn prepare(service: &mut Value, old: &Value) {
    keep_addresses(service, old);
    mirror_address(service);
    keep_ports(service, old);
    drop_what_the_type_lacks(service, old);
    let was_balanced = json::text(old, "/spec/type") == "LoadBalancer";
    if was_balanced && json::text(service, "/spec/type") != "LoadBalancer" {
        // Whoever balanced the load answers on those addresses no longer.
        json::set(service, "/status/loadBalancer", tree!({}));
    }
}

/// `clusterIP` is the first of `clusterIPs`: old clients write the one alone.
pub(super) fn mirror_address(service: &mut Value) {
    let first = json::text(service, "/spec/clusterIP").to_owned();
    if !first.is_empty() && json::items(service, "/spec/clusterIPs").is_empty() {
        json::set(service, "/spec/clusterIPs", vec![first]);
    }
}

fn keep_addresses(service: &mut Value, old: &Value) {
    let same = |service: &Value, pointer| json::at(service, pointer) == json::at(old, pointer);
    // A client that knows `clusterIP` only changes it alone; what it changed to is checked later.
    if !same(service, "/spec/clusterIP") && same(service, "/spec/clusterIPs") {
        json::remove(service, "/spec/clusterIPs");
    }
    if !needs_cluster_ip(service) || !needs_cluster_ip(old) {
        return;
    }
    if json::text(service, "/spec/clusterIP").is_empty() {
        json::copy(service, old, "/spec/clusterIP");
    }
    if same(service, "/spec/clusterIP") && json::items(service, "/spec/clusterIPs").is_empty() {
        json::copy(service, old, "/spec/clusterIPs");
    }
    for field in ["/spec/ipFamilies", "/spec/ipFamilyPolicy"] {
        if json::at(service, field).is_none() {
            json::copy(service, old, field);
        }
    }
    if json::text(service, "/spec/ipFamilyPolicy") != "SingleStack" {
        return;
    }
    // The policy alone says clearly enough that the second address goes.
    for field in ["/spec/clusterIPs", "/spec/ipFamilies"] {
        let first = json::items(service, field).first().cloned();
        if let Some(first) = first.filter(|_| same(service, field)) {
            json::set(service, field, vec![first]);
        }
    }
}

/// Node ports stay with the name of their port; so does the health check's. Who allocates none
/// for a load balancer gives up the ones that he leaves out.
fn keep_ports(service: &mut Value, old: &Value) {
    let allocates =
        json::at(service, "/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    if needs_node_ports(service) && needs_node_ports(old) && allocates {
        let numbers = |value: &Value| -> Vec<i64> {
            let ports = json::items(value, "/spec/ports").iter();
            ports.filter_map(|port| json::integer(port, "/nodePort")).collect()
        };
        let mut used = numbers(service);
        let old_ports = json::items(old, "/spec/ports");
        for port in json::items_mut(service, "/spec/ports") {
            let name = json::text(port, "/name");
            let before = old_ports.iter().rev().find(|before| json::text(before, "/name") == name);
            let number = before.and_then(|before| json::integer(before, "/nodePort"));
            if json::at(port, "/nodePort").is_none()
                && let Some(number) = number.filter(|number| !used.contains(number))
            {
                used.push(number);
                json::set(port, "/nodePort", number);
            }
        }
    }
    if needs_health_check_node_port(service)
        && needs_health_check_node_port(old)
        && json::integer(service, "/spec/healthCheckNodePort").unwrap_or(0) == 0
    {
        json::copy(service, old, "/spec/healthCheckNodePort");
    }
}

/// A change of the type drops what the new type has no use for, as far as the client has not
/// changed it.
fn drop_what_the_type_lacks(service: &mut Value, old: &Value) {
    let mut dropped: Vec<&str> = Vec::new();
    if !needs_cluster_ip(service) {
        dropped.extend([
            "/spec/clusterIP",
            "/spec/clusterIPs",
            "/spec/ipFamilies",
            "/spec/ipFamilyPolicy",
            "/spec/internalTrafficPolicy",
        ]);
    }
    if !is_external(service) {
        dropped.push("/spec/externalTrafficPolicy");
    }
    if !needs_health_check_node_port(service) {
        dropped.push("/spec/healthCheckNodePort");
    }
    if json::text(service, "/spec/type") != "LoadBalancer" {
        dropped.extend(["/spec/allocateLoadBalancerNodePorts", "/spec/loadBalancerClass"]);
    }
    for pointer in dropped {
        if json::at(service, pointer) == json::at(old, pointer) {
            json::remove(service, pointer);
        }
    }
    if !needs_node_ports(service) && needs_node_ports(old) {
        let ports = |value: &Value| -> Vec<Option<i64>> {
            let ports = json::items(value, "/spec/ports");
            ports.iter().map(|port| json::integer(port, "/nodePort")).collect()
        };
        if ports(service) == ports(old) {
            for port in json::items_mut(service, "/spec/ports") {
                json::remove(port, "/nodePort");
            }
        }
    }
}
