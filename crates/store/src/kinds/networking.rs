//! networking.k8s.io: Ingress, IngressClass, NetworkPolicy. Stored and checked; nothing acts on
//! them yet, and every write says so.

use serde_json::Value;

use crate::json;
use crate::kinds::apps::{selector_text, validate_label_selector};
use crate::names::{rfc1035_label_faults, subdomain_faults};
use crate::resource::{Resource, Subresource};
use crate::table::{Column, or_none};
use crate::validate::{FieldErrors, immutable, one_of, port_number};

/// networking.k8s.io/v1 IngressClass.
pub(crate) static INGRESS_CLASS: Resource = Resource {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    namespaced: false,
    storage: "ingressclasses.networking.k8s.io",
    has_generation: true,
    notice: Some("IngressClass is stored, but nothing serves Ingresses yet"),
    columns: &[
        Column::NAME,
        Column::text("Controller", |value, _| json::text(value, "/spec/controller").into()),
        Column::text("Parameters", |value, _| or_none(&parameters_text(value))),
        Column::AGE,
    ],
    validate: |value, old, errors| {
        let controller = json::text(value, "/spec/controller");
        if controller.is_empty() {
            errors.required("spec.controller", "");
        } else if !controller.contains('/') {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid("spec.controller", controller, why);
        }
        if let Some(old) = old {
            let at = |value| json::at(value, "/spec/controller");
            immutable(errors, "spec.controller", at(value), at(old));
        }
    },
    ..Resource::BASE
};

/// networking.k8s.io/v1 Ingress.
pub(crate) static INGRESS: Resource = Resource {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    storage: "ingresses.networking.k8s.io",
    has_generation: true,
    notice: Some("Ingress is stored, but nothing serves it yet"),
    columns: &[
        Column::NAME,
        Column::text("Class", |value, _| or_none(json::text(value, "/spec/ingressClassName"))),
        Column::text("Hosts", |value, _| hosts_text(value).into()),
        Column::text("Address", |value, _| address_text(value).into()),
        Column::text("Ports", |value, _| {
            if json::items(value, "/spec/tls").is_empty() { "80".into() } else { "80, 443".into() }
        }),
        Column::AGE,
    ],
    prepare_create: |value| json::set(value, "/status/loadBalancer", serde_json::json!({})),
    validate: |value, _, errors| validate_ingress(value, errors),
    ..Resource::BASE
};

/// networking.k8s.io/v1 NetworkPolicy.
pub(crate) static NETWORK_POLICY: Resource = Resource {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    storage: "networkpolicies.networking.k8s.io",
    has_generation: true,
    notice: Some("NetworkPolicy is stored, but nothing enforces it yet: traffic is not restricted"),
    columns: &[
        Column::NAME,
        Column::text("Pod-Selector", |value, _| {
            or_none(&selector_text(json::at(value, "/spec/podSelector")))
        }),
        Column::AGE,
    ],
    default: default_policy,
    validate: |value, _, errors| validate_policy(value, errors),
    ..Resource::BASE
};

/// Isolation for ingress is always meant; for egress only where there are rules.
fn default_policy(policy: &mut Value) {
    if json::at(policy, "/spec").is_none() {
        return;
    }
    if json::items(policy, "/spec/policyTypes").is_empty() {
        let has_egress = !json::items(policy, "/spec/egress").is_empty();
        let kinds = if has_egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] };
        json::set(policy, "/spec/policyTypes", kinds);
    }
    for direction in ["/spec/ingress", "/spec/egress"] {
        for rule in json::items_mut(policy, direction) {
            for port in json::items_mut(rule, "/ports") {
                json::set_default_text(port, "/protocol", "TCP");
            }
        }
    }
}

fn validate_policy(policy: &Value, errors: &mut FieldErrors) {
    let selector = json::at(policy, "/spec/podSelector");
    validate_label_selector("spec.podSelector", selector, errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = json::items(policy, &format!("/spec/{direction}"));
        for (index, rule) in rules.iter().enumerate() {
            let field = format!("spec.{direction}[{index}]");
            for (index, port) in json::items(rule, "/ports").iter().enumerate() {
                validate_policy_port(&format!("{field}.ports[{index}]"), port, errors);
            }
            for (index, peer) in json::items(rule, &format!("/{peers}")).iter().enumerate() {
                validate_peer(&format!("{field}.{peers}[{index}]"), peer, errors);
            }
        }
    }
    let supported = ["Egress", "Ingress"];
    for (index, kind) in json::items(policy, "/spec/policyTypes").iter().enumerate() {
        one_of(errors, format!("spec.policyTypes[{index}]"), Some(kind), &supported);
    }
}

fn validate_policy_port(field: &str, port: &Value, errors: &mut FieldErrors) {
    let supported = ["SCTP", "TCP", "UDP"];
    one_of(errors, format!("{field}.protocol"), port.get("protocol"), &supported);
    let number = json::integer(port, "/port");
    if let Some(number) = number {
        port_number(errors, format!("{field}.port"), number);
    }
    if let Some(end) = json::integer(port, "/endPort") {
        match number {
            None => {
                let why = "may not be specified when `port` is not specified or is a string";
                errors.invalid(format!("{field}.endPort"), end, why);
            }
            Some(number) if end < number => {
                let why = "must be greater than or equal to `port`";
                errors.invalid(format!("{field}.endPort"), end, why);
            }
            Some(_) => port_number(errors, format!("{field}.endPort"), end),
        }
    }
}

fn validate_peer(field: &str, peer: &Value, errors: &mut FieldErrors) {
    let has = |name: &str| peer.get(name).is_some();
    if !has("podSelector") && !has("namespaceSelector") && !has("ipBlock") {
        errors.required(field, "must specify a peer");
    }
    if has("ipBlock") && (has("podSelector") || has("namespaceSelector")) {
        errors.forbidden(field, "may not specify both ipBlock and another peer");
    }
    for selector in ["podSelector", "namespaceSelector"] {
        validate_label_selector(&format!("{field}.{selector}"), peer.get(selector), errors);
    }
    let Some(block) = peer.get("ipBlock") else {
        return;
    };
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let text = json::text(block, "/cidr");
    let Ok(range) = text.parse::<ipnet::IpNet>() else {
        errors.invalid(format!("{field}.ipBlock.cidr"), text, why);
        return;
    };
    for (index, except) in json::texts(block, "/except").into_iter().enumerate() {
        let field = format!("{field}.ipBlock.except[{index}]");
        match except.parse::<ipnet::IpNet>() {
            Err(_) => errors.invalid(field, except, why),
            Ok(inner) if !range.contains(&inner) || inner.prefix_len() <= range.prefix_len() => {
                errors.invalid(field, except, "must be a strict subset of `cidr`");
            }
            Ok(_) => {}
        }
    }
}

fn validate_ingress(ingress: &Value, errors: &mut FieldErrors) {
    let has_default = json::at(ingress, "/spec/defaultBackend").is_some();
    let rules = json::items(ingress, "/spec/rules");
    if rules.is_empty() && !has_default {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid("spec", Value::Array(Vec::new()), why);
    }
    if let Some(backend) = json::at(ingress, "/spec/defaultBackend") {
        validate_backend("spec.defaultBackend", backend, errors);
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        validate_host(&format!("{field}.host"), json::text(rule, "/host"), errors);
        let Some(http) = rule.get("http") else {
            continue;
        };
        let paths = json::items(http, "/paths");
        if paths.is_empty() {
            errors.required(format!("{field}.http.paths"), "");
        }
        for (index, path) in paths.iter().enumerate() {
            validate_path(&format!("{field}.http.paths[{index}]"), path, errors);
        }
    }
}

fn validate_host(field: &str, host: &str, errors: &mut FieldErrors) {
    if host.is_empty() {
        return;
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(field, host, "must be a DNS name, not an IP address");
        return;
    }
    let plain = host.strip_prefix("*.").unwrap_or(host);
    for fault in subdomain_faults(plain) {
        errors.invalid(field, host, &fault);
    }
}

fn validate_path(field: &str, path: &Value, errors: &mut FieldErrors) {
    let text = json::text(path, "/path");
    let supported = ["Exact", "ImplementationSpecific", "Prefix"];
    match json::text(path, "/pathType") {
        "" => errors.required(format!("{field}.pathType"), "pathType must be specified"),
        "Exact" | "Prefix" if !text.starts_with('/') => {
            errors.invalid(format!("{field}.path"), text, "must be an absolute path");
        }
        "Exact" | "Prefix" => {
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(bad) {
                    let why = format!("must not contain '{bad}'");
                    errors.invalid(format!("{field}.path"), text, &why);
                }
            }
        }
        kind => one_of(errors, format!("{field}.pathType"), Some(&kind.into()), &supported),
    }
    match path.get("backend") {
        Some(backend) => validate_backend(&format!("{field}.backend"), backend, errors),
        None => errors.required(format!("{field}.backend"), ""),
    }
}

fn validate_backend(field: &str, backend: &Value, errors: &mut FieldErrors) {
    match (backend.get("service"), backend.get("resource")) {
        (Some(_), Some(_)) => {
            errors.invalid(field, "", "cannot set both resource and service backends");
        }
        (None, Some(_)) => {}
        (service, None) => {
            let service = service.cloned().unwrap_or_default();
            let name = json::text(&service, "/name");
            if name.is_empty() {
                errors.required(format!("{field}.service.name"), "");
            } else {
                for fault in rfc1035_label_faults(name) {
                    errors.invalid(format!("{field}.service.name"), name, &fault);
                }
            }
            let port_name = json::text(&service, "/port/name");
            match (port_name, json::integer(&service, "/port/number")) {
                ("", None) => {
                    let why = "port name or number is required";
                    errors.required(format!("{field}.service.port"), why);
                }
                ("", Some(number)) => {
                    port_number(errors, format!("{field}.service.port.number"), number);
                }
                (_, Some(_)) => {
                    let why = "cannot set both port name & port number";
                    errors.invalid(format!("{field}.service.port"), "", why);
                }
                (_, None) => {}
            }
        }
    }
}

fn hosts_text(ingress: &Value) -> String {
    const SHOWN: usize = 3;
    let hosts: Vec<&str> = json::items(ingress, "/spec/rules")
        .iter()
        .map(|rule| json::text(rule, "/host"))
        .filter(|host| !host.is_empty())
        .collect();
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => {
            let shown: Vec<&str> = hosts.into_iter().take(SHOWN).collect();
            format!("{} + {} more...", shown.join(","), count - SHOWN)
        }
        _ => hosts.join(","),
    }
}

fn address_text(ingress: &Value) -> String {
    let addresses: Vec<&str> = json::items(ingress, "/status/loadBalancer/ingress")
        .iter()
        .map(|entry| match json::text(entry, "/ip") {
            "" => json::text(entry, "/hostname"),
            address => address,
        })
        .collect();
    addresses.join(",")
}

fn parameters_text(class: &Value) -> String {
    let Some(parameters) = json::at(class, "/spec/parameters") else {
        return String::new();
    };
    let kind = json::text(parameters, "/kind");
    let name = json::text(parameters, "/name");
    match json::text(parameters, "/apiGroup") {
        "" => format!("{kind}/{name}"),
        group => format!("{kind}.{group}/{name}"),
    }
}
