//! A container's environment: every reference resolved, every `$(NAME)` expanded. Pure: what the
//! references name was fetched before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::Service;
use serde::{Deserialize, Serialize};

use crate::claims::ClaimDirectory;
use crate::pod::{Container, FieldReference, Pod, ResourceReference, ValueSource};
use crate::quantity;
use crate::volumes::TokenRequest;

/// Where programs are looked for when neither pod nor image says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The data of a ConfigMap or Secret; `None` for one that does not exist.
pub type Data = Option<BTreeMap<String, Vec<u8>>>;

/// What the pod's references name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sources {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, Data>,
    /// Secrets of the pod's namespace.
    pub secrets: BTreeMap<String, Data>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Service>,
    /// The pod's addresses.
    pub pod_addresses: Vec<IpAddr>,
    /// The node's addresses.
    pub host_addresses: Vec<IpAddr>,
    /// The directories of the pod's claims, by the claim.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimDirectory>,
    /// What pods of this node may have in all, in thousandths.
    #[serde(default)]
    pub allocatable: BTreeMap<String, i64>,
    /// The tokens that the pod's volumes show. They are never kept.
    #[serde(skip)]
    pub tokens: BTreeMap<TokenRequest, String>,
}

/// The ConfigMaps and Secrets whose keys a container's environment names.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in &container.env_from {
        config_maps.extend(source.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for source in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
    }
    (config_maps, secrets)
}

/// What a container starts with where its pod says nothing else: its image's variables, `NAME=value`
/// each, and those of every container.
pub fn of_image(hostname: &str, image: &[String]) -> BTreeMap<String, String> {
    let every = [("PATH", DEFAULT_PATH.to_owned()), ("HOSTNAME", hostname.to_owned())];
    let every = every.into_iter().map(|(name, value)| (name.to_owned(), value));
    let own = image.iter().filter_map(|pair| pair.split_once('='));
    every.chain(own.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

/// The variables that a container's pod gives it.
///
/// # Errors
/// The kubelet's words for a reference that leads nowhere.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, String> {
    let mut variables = BTreeMap::new();
    let links = pod.spec.enable_service_links.unwrap_or(true);
    for service in &sources.services {
        let is_api =
            service.metadata.namespace == "default" && service.metadata.name == "kubernetes";
        if is_api || (links && service.metadata.namespace == pod.metadata.namespace) {
            service_variables(service, &mut variables);
        }
    }
    for source in &container.env_from {
        if let Some(reference) = &source.config_map_ref {
            let data =
                find("configmap", &sources.config_maps, &reference.name, reference.optional)?;
            add_all(data, &source.prefix, &mut variables);
        }
        if let Some(reference) = &source.secret_ref {
            let data = find("secret", &sources.secrets, &reference.name, reference.optional)?;
            add_all(data, &source.prefix, &mut variables);
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand(&variable.value, &variables)),
            Some(source) => value_of(pod, container, source, sources)?,
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`; unknown names stay as they are.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    expand_by(text, |name| {
        Some(variables.get(name).cloned().unwrap_or_else(|| format!("$({name})")))
    })
    .unwrap_or_default()
}

/// The same where every name must be known.
///
/// # Errors
/// The name that is not.
pub fn expand_known(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    expand_by(text, |name| variables.get(name).cloned())
}

fn expand_by(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            expanded.push_str(&value(name).ok_or_else(|| name.to_owned())?);
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The value of a pod's field, as `fieldRef` and `downwardAPI` name it.
///
/// # Errors
/// For a field that the API does not offer.
pub fn field(pod: &Pod, reference: &FieldReference, sources: &Sources) -> Result<String, String> {
    let path = reference.field_path.as_str();
    let join = |addresses: &[IpAddr]| {
        addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
    };
    let first = |addresses: &[IpAddr]| addresses.first().map(IpAddr::to_string).unwrap_or_default();
    let keyed = |prefix: &str| {
        path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned)
    };
    let all = |values: &BTreeMap<String, String>| {
        values.iter().map(|(key, value)| format!("{key}={value:?}\n")).collect::<String>()
    };
    let metadata = &pod.metadata;
    if let Some(key) = keyed("metadata.labels") {
        return Ok(metadata.labels.get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(metadata.annotations.get(&key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => all(&metadata.labels),
        "metadata.annotations" => all(&metadata.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => first(&sources.host_addresses),
        "status.hostIPs" => join(&sources.host_addresses),
        "status.podIP" => first(&sources.pod_addresses),
        "status.podIPs" => join(&sources.pod_addresses),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn value_of(
    pod: &Pod,
    container: &Container,
    source: &ValueSource,
    sources: &Sources,
) -> Result<Option<String>, String> {
    if let Some(reference) = &source.field_ref {
        return field(pod, reference, sources).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return resource(pod, Some(container), reference, sources).map(Some);
    }
    let (kind, title, objects, reference) =
        match (&source.config_map_key_ref, &source.secret_key_ref) {
            (Some(reference), _) => ("configmap", "ConfigMap", &sources.config_maps, reference),
            (None, Some(reference)) => ("secret", "Secret", &sources.secrets, reference),
            (None, None) => return Ok(None),
        };
    let data = find(kind, objects, &reference.name, reference.optional)?;
    match data.and_then(|data| data.get(&reference.key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if reference.optional => Ok(None),
        None => Err(format!(
            "couldn't find key {} in {title} {}/{}",
            reference.key, pod.metadata.namespace, reference.name
        )),
    }
}

/// The value of a limit or request, as `resourceFieldRef` names it. A container without a limit may
/// have all of the node.
///
/// # Errors
/// For a container or resource that there is not.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    reference: &ResourceReference,
    sources: &Sources,
) -> Result<String, String> {
    let name = reference.container_name.as_str();
    let container = if name.is_empty() { own } else { pod.container(name) };
    let container = container.ok_or_else(|| format!("container {name} not found"))?;
    let (values, name) = match reference.resource.split_once('.') {
        Some(("limits", name)) => (&container.resources.limits, name),
        Some(("requests", name)) => (&container.resources.requests, name),
        _ => return Err(format!("unsupported resource: {}", reference.resource)),
    };
    let is_limit = reference.resource.starts_with("limits.");
    let of_node = || sources.allocatable.get(name).copied().filter(|_| is_limit);
    let milli = values.get(name).and_then(quantity::milli).or_else(of_node).unwrap_or(0);
    let divisor = reference.divisor.as_ref().and_then(quantity::milli);
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(1000);
    Ok((milli / divisor + i64::from(milli % divisor > 0)).to_string())
}

/// What a ConfigMap or Secret holds; nothing where it is not there and need not be.
///
/// # Errors
/// When it is not there and must be.
pub fn find<'a>(
    kind: &str,
    objects: &'a BTreeMap<String, Data>,
    name: &str,
    optional: bool,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, String> {
    match objects.get(name) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional => Ok(None),
        _ => Err(format!("{kind} {name:?} not found")),
    }
}

fn add_all(
    data: Option<&BTreeMap<String, Vec<u8>>>,
    prefix: &str,
    variables: &mut BTreeMap<String, String>,
) {
    for (key, value) in data.into_iter().flatten() {
        variables.insert(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
    }
}

/// The variables of one Service, in both forms that Kubernetes inherited from Docker links.
fn service_variables(service: &Service, variables: &mut BTreeMap<String, String>) {
    let address = service.spec.cluster_ips.first().and_then(|text| text.parse::<IpAddr>().ok());
    let (Some(address), Some(first)) = (address, service.spec.ports.first()) else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(&service.metadata.name);
    let host = match address {
        IpAddr::V4(_) => address.to_string(),
        IpAddr::V6(_) => format!("[{address}]"),
    };
    let mut set = |key: String, value: String| variables.insert(key, value);
    set(format!("{name}_SERVICE_HOST"), address.to_string());
    set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in &service.spec.ports {
        if !port.name.is_empty() {
            set(format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string());
        }
        let protocol = port.protocol.to_string();
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if std::ptr::eq(port, first) {
            set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        set(prefix.clone(), url);
        set(format!("{prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{prefix}_PORT"), port.port.to_string());
        set(format!("{prefix}_ADDR"), address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1",
                "labels": {"app": "web"}},
            "spec": {"nodeName": "node1", "containers": [{
                "name": "web",
                "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}],
                "env": [
                    {"name": "A", "value": "one"},
                    {"name": "B", "value": "$(A)-$(P_color)-$(WEB_SERVICE_HOST)-$$(A)-$(NONE)"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k", "optional": true}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MILLI", "valueFrom": {"resourceFieldRef":
                        {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "MEMORY", "valueFrom": {"resourceFieldRef":
                        {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "DISK", "valueFrom": {"resourceFieldRef":
                        {"resource": "limits.ephemeral-storage"}}},
                    {"name": "ASKED", "valueFrom": {"resourceFieldRef":
                        {"resource": "requests.ephemeral-storage"}}}
                ]
            }]}
        }))
        .expect("a pod")
    }

    fn sources() -> Sources {
        let data = |key: &str, value: &str| Some([(key.into(), value.into())].into());
        let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
            "clusterIPs": ["10.96.1.2"], "ports": [{"name": "http", "port": 80}]}});
        Sources {
            config_maps: [("settings".into(), data("color", "red"))].into(),
            secrets: [("s".into(), data("k", "hidden")), ("t".into(), None)].into(),
            services: vec![serde_json::from_value(service).expect("a Service")],
            pod_addresses: vec!["10.244.1.5".parse().expect("an address")],
            allocatable: [("ephemeral-storage".into(), 5_000)].into(),
            ..Sources::default()
        }
    }

    #[test]
    fn references_of_every_kind_are_resolved_in_order() {
        let pod = pod();
        let variables =
            environment(&pod, &pod.spec.containers[0], &sources()).expect("an environment");
        let expected = [
            ("B", Some("one-red-10.96.1.2-$(A)-$(NONE)")),
            ("POD", Some("web-1")),
            ("APP", Some("web")),
            ("IP", Some("10.244.1.5")),
            ("KEY", Some("hidden")),
            ("GONE", None),
            ("CPU", Some("2")),
            ("MILLI", Some("1500")),
            ("MEMORY", Some("64")),
            ("DISK", Some("5")),
            ("ASKED", Some("0")),
            ("WEB_SERVICE_PORT_HTTP", Some("80")),
            ("WEB_PORT_80_TCP", Some("tcp://10.96.1.2:80")),
        ];
        for (name, value) in expected {
            assert_eq!(variables.get(name).map(String::as_str), value, "{name}");
        }
    }

    #[test]
    fn an_images_variables_replace_those_of_every_container() {
        let own = ["PATH=/opt/bin".to_owned(), "A=b=c".to_owned(), "broken".to_owned()];
        let variables = of_image("web-1", &own);
        let pairs: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "b=c"), ("HOSTNAME", "web-1"), ("PATH", "/opt/bin")]);
        assert_eq!(of_image("web-1", &[])["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn a_missing_reference_is_named_as_the_kubelet_names_it() {
        let pod = pod();
        let container = &pod.spec.containers[0];
        let mut missing = sources();
        missing.config_maps.insert("settings".into(), None);
        let error = environment(&pod, container, &missing).expect_err("no ConfigMap");
        assert_eq!(error, "configmap \"settings\" not found");
        let mut missing = sources();
        missing.secrets.insert("s".into(), Some(BTreeMap::new()));
        let error = environment(&pod, container, &missing).expect_err("no key");
        assert_eq!(error, "couldn't find key k in Secret shop/s");
    }
}
