//! Defaults and checks of a pod spec, in pods and in pod templates.

use std::net::IpAddr;

use serde_json::{Value, json as tree};

use super::container_checks::{self, Role};
use super::{placement_checks, volume_checks};
use crate::json;
use crate::names::{label_faults, port_name_faults, subdomain_faults};
use crate::validate::{FieldErrors, one_of, port_number};

/// The mode of files in volumes: 0644.
const DEFAULT_FILE_MODE: i64 = 0o644;

/// Most resolvers of a pod.
const MAX_NAMESERVERS: usize = 3;

/// How long a token in a volume is good, seconds.
const TOKEN_LIFE_S: i64 = 3_600;

/// Fills in what the real server fills in.
pub(super) fn default(spec: &mut Value) {
    json::set_default_text(spec, "/restartPolicy", "Always");
    json::set_default_text(spec, "/dnsPolicy", "ClusterFirst");
    json::set_default_text(spec, "/schedulerName", "default-scheduler");
    json::set_default(spec, "/terminationGracePeriodSeconds", 30);
    json::set_default(spec, "/securityContext", tree!({}));
    let account = json::text(spec, "/serviceAccountName").to_owned();
    let old_form = json::text(spec, "/serviceAccount").to_owned();
    match (account.as_str(), old_form.as_str()) {
        ("", "") => {}
        ("", old_form) => json::set(spec, "/serviceAccountName", old_form),
        (account, _) => json::set(spec, "/serviceAccount", account),
    }
    let host_network = json::flag(spec, "/hostNetwork");
    for list in ["/initContainers", "/containers", "/ephemeralContainers"] {
        for container in json::items_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    for volume in json::items_mut(spec, "/volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let image = json::text(container, "/image");
    let pull_policy = if pulls_always(image) { "Always" } else { "IfNotPresent" };
    json::set_default_text(container, "/imagePullPolicy", pull_policy);
    json::set_default_text(container, "/terminationMessagePath", "/dev/termination-log");
    json::set_default_text(container, "/terminationMessagePolicy", "File");
    json::set_default(container, "/resources", tree!({}));
    let limits: Vec<(String, Value)> = json::members(container, "/resources/limits")
        .map(|(name, quantity)| (name.to_owned(), quantity.clone()))
        .collect();
    if !limits.is_empty()
        && let Some(requests) = json::object_mut(container, "/resources/requests")
    {
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
    for port in json::items_mut(container, "/ports") {
        json::set_default_text(port, "/protocol", "TCP");
        if host_network && let Some(number) = json::integer(port, "/containerPort") {
            json::set_default(port, "/hostPort", number);
        }
    }
    for env in json::items_mut(container, "/env") {
        if json::at(env, "/valueFrom/fieldRef").is_some() {
            json::set_default_text(env, "/valueFrom/fieldRef/apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            default_probe(probe);
        }
    }
    for hook in ["/lifecycle/postStart", "/lifecycle/preStop"] {
        if let Some(hook) = container.pointer_mut(hook) {
            default_http_get(hook);
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        let pointer = format!("/{field}");
        // Zero is how Go clients write an absent number.
        if json::integer(probe, &pointer).unwrap_or(0) == 0 {
            json::set(probe, &pointer, value);
        }
    }
    default_http_get(probe);
}

fn default_http_get(handler: &mut Value) {
    if json::at(handler, "/httpGet").is_some() {
        json::set_default_text(handler, "/httpGet/path", "/");
        json::set_default_text(handler, "/httpGet/scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Value) {
    for kind in ["configMap", "secret", "downwardAPI", "projected"] {
        if volume.get(kind).is_some_and(Value::is_object) {
            json::set_default(volume, &format!("/{kind}/defaultMode"), DEFAULT_FILE_MODE);
        }
    }
    let has_source = volume.as_object().is_some_and(|map| map.keys().any(|key| key != "name"));
    if !has_source {
        json::set(volume, "/emptyDir", tree!({}));
    }
    default_downward(volume);
    for source in json::items_mut(volume, "/projected/sources") {
        default_downward(source);
        if json::at(source, "/serviceAccountToken").is_some() {
            json::set_default(source, "/serviceAccountToken/expirationSeconds", TOKEN_LIFE_S);
        }
    }
    if json::at(volume, "/hostPath").is_some() {
        json::set_default(volume, "/hostPath/type", "");
    }
}

fn default_downward(source: &mut Value) {
    for item in json::items_mut(source, "/downwardAPI/items") {
        if json::at(item, "/fieldRef").is_some() {
            json::set_default_text(item, "/fieldRef/apiVersion", "v1");
        }
    }
}

/// An image without a tag, or with the tag `latest`, may change behind its name.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

/// Checks a pod spec that stands at `field`.
pub(super) fn validate(field: &str, spec: &Value, errors: &mut FieldErrors) {
    let containers = json::items(spec, "/containers");
    if containers.is_empty() {
        errors.required(format!("{field}.containers"), "");
    }
    let volumes = validate_volumes(field, spec, errors);
    let mut names = Vec::new();
    for (list, role) in [("initContainers", Role::Init), ("containers", Role::Main)] {
        for (index, container) in json::items(spec, &format!("/{list}")).iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            validate_container(&field, container, &volumes, errors);
            container_checks::validate_role(&field, container, role, errors);
            let name = json::text(container, "/name");
            if !name.is_empty() && names.contains(&name) {
                errors.duplicate(format!("{field}.name"), name);
            }
            names.push(name);
        }
    }
    validate_host_ports(field, containers, errors);
    let policies = ["Always", "Never", "OnFailure"];
    one_of(errors, format!("{field}.restartPolicy"), spec.get("restartPolicy"), &policies);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(errors, format!("{field}.dnsPolicy"), spec.get("dnsPolicy"), &policies);
    if let Some(grace) = json::integer(spec, "/terminationGracePeriodSeconds")
        && grace < 0
    {
        let why = "must be greater than or equal to 0";
        errors.invalid(format!("{field}.terminationGracePeriodSeconds"), grace, why);
    }
    for name in ["hostname", "subdomain"] {
        let text = json::text(spec, &format!("/{name}"));
        if !text.is_empty() {
            for fault in label_faults(text) {
                errors.invalid(format!("{field}.{name}"), text, &fault);
            }
        }
    }
    for name in ["nodeName", "serviceAccountName"] {
        let text = json::text(spec, &format!("/{name}"));
        if !text.is_empty() {
            for fault in subdomain_faults(text) {
                errors.invalid(format!("{field}.{name}"), text, &fault);
            }
        }
    }
    crate::write::validate_labels(
        &format!("{field}.nodeSelector"),
        spec.get("nodeSelector"),
        errors,
    );
    for (index, toleration) in json::items(spec, "/tolerations").iter().enumerate() {
        validate_toleration(&format!("{field}.tolerations[{index}]"), toleration, errors);
    }
    placement_checks::validate(field, spec, errors);
    if let Some(seconds) = json::integer(spec, "/activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.invalid(format!("{field}.activeDeadlineSeconds"), seconds, why);
    }
    validate_names(field, spec, errors);
}

/// Checks which resolvers and names a pod shall know.
fn validate_names(field: &str, spec: &Value, errors: &mut FieldErrors) {
    let is_own = json::text(spec, "/dnsPolicy") == "None";
    let servers = json::texts(spec, "/dnsConfig/nameservers");
    let place = format!("{field}.dnsConfig.nameservers");
    if is_own && json::at(spec, "/dnsConfig").is_none() {
        let why = "must provide `dnsConfig` when `dnsPolicy` is None";
        errors.required(format!("{field}.dnsConfig"), why);
    } else if is_own && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(place.as_str(), why);
    }
    if servers.len() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(place.as_str(), tree!(servers), &why);
    }
    for (index, server) in servers.iter().enumerate() {
        validate_address(&format!("{place}[{index}]"), server, errors);
    }
    for (index, alias) in json::items(spec, "/hostAliases").iter().enumerate() {
        let field = format!("{field}.hostAliases[{index}]");
        validate_address(&format!("{field}.ip"), json::text(alias, "/ip"), errors);
        for name in json::texts(alias, "/hostnames") {
            for fault in subdomain_faults(name) {
                errors.invalid(format!("{field}.hostnames"), name, &fault);
            }
        }
    }
}

fn validate_address(field: &str, text: &str, errors: &mut FieldErrors) {
    if text.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid(field, text, why);
    }
}

pub(super) fn validate_volumes<'a>(
    field: &str,
    spec: &'a Value,
    errors: &mut FieldErrors,
) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (index, volume) in json::items(spec, "/volumes").iter().enumerate() {
        let place = format!("{field}.volumes[{index}]");
        let field = format!("{place}.name");
        let name = json::text(volume, "/name");
        if name.is_empty() {
            errors.required(field, "");
            continue;
        }
        for fault in label_faults(name) {
            errors.invalid(field.as_str(), name, &fault);
        }
        if names.contains(&name) {
            errors.duplicate(field, name);
        }
        names.push(name);
        volume_checks::validate(&place, volume, errors);
        let claim = json::at(volume, "/persistentVolumeClaim");
        if claim.is_some_and(|claim| json::text(claim, "/claimName").is_empty()) {
            errors.required(format!("{place}.persistentVolumeClaim.claimName"), "");
        }
    }
    names
}

pub(super) fn validate_container(
    field: &str,
    container: &Value,
    volumes: &[&str],
    errors: &mut FieldErrors,
) {
    let name = json::text(container, "/name");
    if name.is_empty() {
        errors.required(format!("{field}.name"), "");
    } else {
        for fault in label_faults(name) {
            errors.invalid(format!("{field}.name"), name, &fault);
        }
    }
    let image = json::text(container, "/image");
    if image.is_empty() {
        errors.required(format!("{field}.image"), "");
    } else if image.trim() != image {
        errors.invalid(
            format!("{field}.image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(errors, format!("{field}.imagePullPolicy"), container.get("imagePullPolicy"), &policies);
    validate_ports(field, container, errors);
    for (index, env) in json::items(container, "/env").iter().enumerate() {
        if json::text(env, "/name").is_empty() {
            errors.required(format!("{field}.env[{index}].name"), "");
        }
        if !json::text(env, "/value").is_empty() && json::at(env, "/valueFrom").is_some() {
            let why = "may not be specified when `value` is not empty";
            errors.invalid(format!("{field}.env[{index}].valueFrom"), "", why);
        }
    }
    let mut paths = Vec::new();
    for (index, mount) in json::items(container, "/volumeMounts").iter().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        let (name, path) = (json::text(mount, "/name"), json::text(mount, "/mountPath"));
        if name.is_empty() {
            errors.required(format!("{field}.name"), "");
        } else if !volumes.contains(&name) {
            errors.not_found(format!("{field}.name"), name);
        }
        if path.is_empty() {
            errors.required(format!("{field}.mountPath"), "");
        } else if paths.contains(&path) {
            errors.invalid(format!("{field}.mountPath"), path, "must be unique");
        }
        paths.push(path);
    }
    container_checks::validate(field, container, errors);
}

fn validate_ports(field: &str, container: &Value, errors: &mut FieldErrors) {
    let mut names = Vec::new();
    for (index, port) in json::items(container, "/ports").iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let name = json::text(port, "/name");
        if !name.is_empty() {
            for fault in port_name_faults(name) {
                errors.invalid(format!("{field}.name"), name, &fault);
            }
            if names.contains(&name) {
                errors.duplicate(format!("{field}.name"), name);
            }
            names.push(name);
        }
        match json::integer(port, "/containerPort") {
            None | Some(0) => errors.required(format!("{field}.containerPort"), ""),
            Some(number) => port_number(errors, format!("{field}.containerPort"), number),
        }
        if let Some(number) = json::integer(port, "/hostPort").filter(|number| *number != 0) {
            port_number(errors, format!("{field}.hostPort"), number);
        }
        let supported = ["SCTP", "TCP", "UDP"];
        one_of(errors, format!("{field}.protocol"), port.get("protocol"), &supported);
    }
}

fn validate_host_ports(field: &str, containers: &[Value], errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (port_index, port) in json::items(container, "/ports").iter().enumerate() {
            let Some(number) = json::integer(port, "/hostPort").filter(|number| *number != 0)
            else {
                continue;
            };
            let id = (number, json::text(port, "/protocol"), json::text(port, "/hostIP"));
            if seen.contains(&id) {
                let place = format!("{field}.containers[{index}].ports[{port_index}].hostPort");
                errors.duplicate(place, format!("{}/{number}", id.1));
            }
            seen.push(id);
        }
    }
}

/// Checks a port that is given by number or by name.
pub(super) fn validate_port_reference(field: &str, port: Option<&Value>, errors: &mut FieldErrors) {
    match port {
        Some(Value::String(name)) => {
            for fault in port_name_faults(name) {
                errors.invalid(field, name.as_str(), &fault);
            }
        }
        Some(number) => {
            if let Some(number) = number.as_i64() {
                port_number(errors, field, number);
            }
        }
        None => {}
    }
}

fn validate_toleration(field: &str, toleration: &Value, errors: &mut FieldErrors) {
    let (key, operator) = (json::text(toleration, "/key"), json::text(toleration, "/operator"));
    if key.is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and \
                   all keys\"";
        errors.invalid(format!("{field}.operator"), operator, why);
    }
    if operator == "Exists" && !json::text(toleration, "/value").is_empty() {
        let why = "value must be empty when `operator` is 'Exists'";
        errors.invalid(format!("{field}.operator"), json::text(toleration, "/value"), why);
    }
    if !operator.is_empty() {
        one_of(
            errors,
            format!("{field}.operator"),
            toleration.get("operator"),
            &["Equal", "Exists"],
        );
    }
    let effect = json::text(toleration, "/effect");
    if json::at(toleration, "/tolerationSeconds").is_some() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.invalid(format!("{field}.effect"), effect, why);
    }
    if !effect.is_empty() {
        let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        one_of(errors, format!("{field}.effect"), toleration.get("effect"), &effects);
    }
}
