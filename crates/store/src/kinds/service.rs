//! core/v1 Service: its row, its defaults, its columns.

use serde_json::{Value, json as tree};

use super::{service_update, service_validation};
use crate::alloc::{needs_cluster_ip, needs_node_ports};
use crate::json;
use crate::names::NameRule;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, labels_text, or_none};

/// How long a client stays with its endpoint when nobody says otherwise, in seconds.
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;

/// core/v1 Service.
pub(crate) static SERVICE: Resource = Resource {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Proxy, Subresource::Status],
    storage: "services",
    name_rule: NameRule::ServiceLabel,
    create_on_update: true,
    returns_deleted: true,
    selectable_fields: &["/spec/clusterIP", "/spec/type"],
    columns: &[
        Column::NAME,
        Column::text("Type", |value, _| json::text(value, "/spec/type").into()),
        Column::text("Cluster-IP", |value, _| or_none(json::text(value, "/spec/clusterIP"))),
        Column::text("External-IP", |value, _| external_text(value).into()),
        Column::text("Port(s)", |value, _| or_none(&ports_text(value))),
        Column::AGE,
        Column::text("Selector", |value, _| {
            or_none(&labels_text(json::at(value, "/spec/selector")))
        })
        .wide(),
    ],
    default: default_service,
    prepare_create: |value| {
        json::set(value, "/status", tree!({"loadBalancer": {}}));
        service_update::mirror_address(value);
    },
    prepare_update: service_update::prepare,
    validate: service_validation::validate,
    ..Resource::BASE
};

fn default_service(service: &mut Value) {
    json::set_default_text(service, "/spec/sessionAffinity", "None");
    json::set_default_text(service, "/spec/type", "ClusterIP");
    match json::text(service, "/spec/sessionAffinity") {
        "ClientIP" => json::set_default(
            service,
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            DEFAULT_AFFINITY_SECONDS,
        ),
        "None" => {
            json::remove(service, "/spec/sessionAffinityConfig");
        }
        _ => {}
    }
    for port in json::items_mut(service, "/spec/ports") {
        json::set_default_text(port, "/protocol", "TCP");
        let target = json::at(port, "/targetPort");
        let unset = target.is_none_or(|target| *target == tree!(0) || *target == tree!(""));
        if unset && let Some(number) = json::at(port, "/port").cloned() {
            json::set(port, "/targetPort", number);
        }
        if json::integer(port, "/nodePort") == Some(0) {
            json::remove(port, "/nodePort");
        }
    }
    if is_external(service) {
        json::set_default_text(service, "/spec/externalTrafficPolicy", "Cluster");
    }
    if needs_cluster_ip(service) {
        json::set_default_text(service, "/spec/internalTrafficPolicy", "Cluster");
    }
    if json::text(service, "/spec/type") == "LoadBalancer" {
        json::set_default(service, "/spec/allocateLoadBalancerNodePorts", true);
        for ingress in json::items_mut(service, "/status/loadBalancer/ingress") {
            if !json::text(ingress, "/ip").is_empty() {
                json::set_default_text(ingress, "/ipMode", "VIP");
            }
        }
    }
}

/// Whether traffic from outside can reach the Service.
pub(super) fn is_external(service: &Value) -> bool {
    needs_node_ports(service)
        || (needs_cluster_ip(service) && !json::items(service, "/spec/externalIPs").is_empty())
}

fn external_text(service: &Value) -> String {
    let own = json::texts(service, "/spec/externalIPs").join(",");
    let none = || "<none>".to_owned();
    match json::text(service, "/spec/type") {
        "ExternalName" => json::text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let given = json::items(service, "/status/loadBalancer/ingress").iter();
            let mut addresses: Vec<&str> = given
                .map(|entry| match json::text(entry, "/ip") {
                    "" => json::text(entry, "/hostname"),
                    address => address,
                })
                .collect();
            addresses.extend(json::texts(service, "/spec/externalIPs"));
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(",") }
        }
        _ if own.is_empty() => none(),
        _ => own,
    }
}

fn ports_text(service: &Value) -> String {
    let ports: Vec<String> = json::items(service, "/spec/ports")
        .iter()
        .map(|port| {
            let number = json::integer(port, "/port").unwrap_or(0);
            let protocol = json::text(port, "/protocol");
            match json::integer(port, "/nodePort").filter(|port| *port != 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    ports.join(",")
}
