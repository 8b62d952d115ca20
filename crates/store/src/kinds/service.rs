//! Service, EndpointSlice, Endpoints.

use std::net::IpAddr;

use serde_json::{Value, json as tree};

use super::pod_spec::validate_port_reference;
use super::service_families;
use crate::alloc::{needs_cluster_ip, needs_health_check_node_port, needs_node_ports};
use crate::json;
use crate::names::{NameRule, label_faults, subdomain_faults};
use crate::patch::ListRule;
use crate::resource::{Resource, Subresource};
use crate::shape::{Field, FieldKind};
use crate::table::{Column, labels_text, or_none, shorten};
use crate::validate::{FieldErrors, immutable, one_of, port_number};

/// Most endpoints of one EndpointSlice.
pub(crate) const MAX_ENDPOINTS: usize = 1_000;
/// Most ports of one EndpointSlice, and most addresses of one endpoint.
pub(crate) const MAX_SLICE_PORTS: usize = 100;
/// Longest and default time that a client stays with its endpoint, in seconds.
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;

/// core/v1 Service.
pub(crate) static SERVICE: Resource = Resource {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    storage: "services",
    name_rule: NameRule::ServiceLabel,
    create_on_update: true,
    returns_deleted: true,
    list_rules: &[
        ListRule::merge_by("spec/ports", "port"),
        ListRule::merge_by("status/conditions", "type"),
    ],
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
    shape: &[
        Field::new("spec", FieldKind::Object, "Service"),
        Field::new("spec.type", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.clusterIP", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.clusterIPs", FieldKind::TextList, "ServiceSpec"),
        Field::new("spec.ipFamilies", FieldKind::TextList, "ServiceSpec"),
        Field::new("spec.ipFamilyPolicy", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.selector", FieldKind::TextMap, "ServiceSpec"),
        Field::new("spec.ports", FieldKind::List, "ServiceSpec"),
        Field::new("spec.ports[].name", FieldKind::Text, "ServicePort"),
        Field::new("spec.ports[].port", FieldKind::Int32, "ServicePort"),
        Field::new("spec.ports[].nodePort", FieldKind::Int32, "ServicePort"),
        Field::new("spec.ports[].protocol", FieldKind::Text, "ServicePort"),
        Field::new("spec.ports[].targetPort", FieldKind::IntOrString, "ServicePort"),
        Field::new("spec.externalIPs", FieldKind::TextList, "ServiceSpec"),
        Field::new("spec.externalName", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.sessionAffinity", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.externalTrafficPolicy", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.internalTrafficPolicy", FieldKind::Text, "ServiceSpec"),
        Field::new("spec.publishNotReadyAddresses", FieldKind::Bool, "ServiceSpec"),
        Field::new("spec.allocateLoadBalancerNodePorts", FieldKind::Bool, "ServiceSpec"),
        Field::new("spec.healthCheckNodePort", FieldKind::Int32, "ServiceSpec"),
        Field::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            FieldKind::Int32,
            "ClientIPConfig",
        ),
    ],
    default: default_service,
    prepare_create: |value| json::set(value, "/status", tree!({"loadBalancer": {}})),
    prepare_update: |value, old| {
        keep_allocated(value, old);
        drop_what_the_type_lacks(value, old);
    },
    validate: validate_service,
    ..Resource::BASE
};

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
    shape: &[
        Field::new("addressType", FieldKind::Text, "EndpointSlice"),
        Field::new("endpoints", FieldKind::List, "EndpointSlice"),
        Field::new("endpoints[]", FieldKind::Object, "EndpointSlice"),
        Field::new("endpoints[].addresses", FieldKind::TextList, "Endpoint"),
        Field::new("endpoints[].nodeName", FieldKind::Text, "Endpoint"),
        Field::new("endpoints[].hostname", FieldKind::Text, "Endpoint"),
        Field::new("endpoints[].conditions", FieldKind::Object, "Endpoint"),
        Field::new("endpoints[].conditions.ready", FieldKind::Bool, "EndpointConditions"),
        Field::new("endpoints[].conditions.serving", FieldKind::Bool, "EndpointConditions"),
        Field::new("endpoints[].conditions.terminating", FieldKind::Bool, "EndpointConditions"),
        Field::new("ports", FieldKind::List, "EndpointSlice"),
        Field::new("ports[]", FieldKind::Object, "EndpointSlice"),
        Field::new("ports[].name", FieldKind::Text, "EndpointPort"),
        Field::new("ports[].port", FieldKind::Int32, "EndpointPort"),
        Field::new("ports[].protocol", FieldKind::Text, "EndpointPort"),
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
    shape: &[
        Field::new("subsets", FieldKind::List, "Endpoints"),
        Field::new("subsets[].addresses", FieldKind::List, "EndpointSubset"),
        Field::new("subsets[].addresses[].ip", FieldKind::Text, "EndpointAddress"),
        Field::new("subsets[].ports", FieldKind::List, "EndpointSubset"),
        Field::new("subsets[].ports[].port", FieldKind::Int32, "EndpointPort"),
    ],
    default: |value| {
        for subset in json::items_mut(value, "/subsets") {
            for port in json::items_mut(subset, "/ports") {
                json::set_default_text(port, "/protocol", "TCP");
            }
        }
    },
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
    // `clusterIP` is the first of `clusterIPs`; old clients write the one, new ones the other.
    let first = json::text(service, "/spec/clusterIP").to_owned();
    if !first.is_empty() && json::items(service, "/spec/clusterIPs").is_empty() {
        json::set(service, "/spec/clusterIPs", vec![first]);
    }
}

/// Whether traffic from outside can reach the Service.
fn is_external(service: &Value) -> bool {
    needs_node_ports(service)
        || (needs_cluster_ip(service) && !json::items(service, "/spec/externalIPs").is_empty())
}

/// An update that leaves out what was allocated keeps it: clients send back what they know.
fn keep_allocated(service: &mut Value, old: &Value) {
    if needs_cluster_ip(service) && needs_cluster_ip(old) {
        if json::text(service, "/spec/clusterIP").is_empty() {
            json::copy(service, old, "/spec/clusterIP");
        }
        let same = json::text(service, "/spec/clusterIP") == json::text(old, "/spec/clusterIP");
        if same {
            keep_addresses(service, old);
        }
        for field in ["/spec/ipFamilies", "/spec/ipFamilyPolicy"] {
            if json::at(service, field).is_none() {
                json::copy(service, old, field);
            }
        }
    }
    if needs_node_ports(service) && needs_node_ports(old) {
        let old_ports = json::items(old, "/spec/ports").to_vec();
        for port in json::items_mut(service, "/spec/ports") {
            let before = old_ports.iter().find(|before| {
                ["port", "protocol"].iter().all(|field| before.get(field) == port.get(field))
            });
            if json::at(port, "/nodePort").is_none()
                && let Some(number) = before.and_then(|before| json::at(before, "/nodePort"))
            {
                json::set(port, "/nodePort", number.clone());
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

/// The second address stays too, unless the policy gives it up.
fn keep_addresses(service: &mut Value, old: &Value) {
    if json::items(service, "/spec/clusterIPs").len() < 2 {
        json::copy(service, old, "/spec/clusterIPs");
    }
    if json::text(service, "/spec/ipFamilyPolicy") != "SingleStack" {
        return;
    }
    for field in ["/spec/clusterIPs", "/spec/ipFamilies"] {
        let unchanged = json::at(service, field) == json::at(old, field);
        if unchanged && let Some(first) = json::items(service, field).first().cloned() {
            json::set(service, field, vec![first]);
        }
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

fn validate_service(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
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
    let at = |pointer: &str| json::at(service, pointer);
    one_of(errors, "spec.sessionAffinity", at("/spec/sessionAffinity"), &["ClientIP", "None"]);
    let timeout = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
    if let Some(seconds) = json::integer(service, timeout)
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.invalid(field, seconds, &why);
    }
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(errors, "spec.type", at("/spec/type"), &types);
    for (index, address) in json::texts(service, "/spec/externalIPs").into_iter().enumerate() {
        validate_address(&format!("spec.externalIPs[{index}]"), address, errors);
    }
    validate_traffic_policies(service, errors);
    service_families::validate(service, errors);
    if let Some(old) = old
        && needs_cluster_ip(service)
        && needs_cluster_ip(old)
        && !json::text(old, "/spec/clusterIP").is_empty()
    {
        let first = |value| json::at(value, "/spec/clusterIPs/0").cloned();
        if first(service) != first(old) {
            let given = at("/spec/clusterIPs").cloned().unwrap_or_default();
            errors.invalid("spec.clusterIPs[0]", given, "may not change once set");
        }
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
    if !json::items(service, "/spec/clusterIPs").is_empty() {
        let given = json::at(service, "/spec/clusterIPs").cloned().unwrap_or_default();
        errors.invalid("spec.clusterIPs", given, "may not be set for ExternalName services");
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
    let has_node_port = json::integer(port, "/nodePort").unwrap_or(0) != 0;
    if has_node_port && !needs_node_ports(service) {
        let why = "may not be used when `type` is 'ClusterIP'";
        errors.forbidden(format!("{field}.nodePort"), why);
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
    let load_balancer = json::text(service, "/spec/type") == "LoadBalancer";
    if !load_balancer && json::at(service, "/spec/allocateLoadBalancerNodePorts").is_some() {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.forbidden("spec.allocateLoadBalancerNodePorts", why);
    }
}

fn validate_address(field: &str, text: &str, errors: &mut FieldErrors) {
    match text.parse::<IpAddr>() {
        Err(_) => {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(field, text, why);
        }
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
        if let Some(number) = json::integer(port, "/port") {
            port_number(errors, format!("{field}.port"), number);
        }
        let supported = ["SCTP", "TCP", "UDP"];
        one_of(errors, format!("{field}.protocol"), port.get("protocol"), &supported);
    }
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
