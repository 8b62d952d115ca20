//! `flatnet manifests`: what makes flatnet the network of a real cluster, for `kubectl apply`.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ipnet::IpNet;
use model::{ClusterConfig, Overlay, layout};
use serde_json::{Value, json};

/// The name of all objects.
const NAME: &str = "flatnet";
/// Where the ConfigMap is in the agent's container.
const CONFIG_DIRECTORY: &str = "/etc/flatnet";
/// The key of the ConfigMap.
const CONFIG_KEY: &str = "config.yaml";
/// What the agent may do besides what every process of root may. Everything else is dropped.
const CAPABILITIES: [&str; 1] = ["NET_ADMIN"];
/// Asked of the scheduler for the agent.
const REQUESTS: (&str, &str) = ("20m", "32Mi");

/// Arguments of `flatnet manifests`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  flatnet manifests --pod-cidr 10.244.0.0/16 --node-cidr 192.0.2.0/24 --api-server https://192.0.2.10:6443 | kubectl apply -f -"
)]
pub struct Arguments {
    /// The cluster's pod range, once a family: what the controller manager calls --cluster-cidr.
    #[arg(long, value_name = "RANGE", default_values = ["10.244.0.0/16"])]
    pod_cidr: Vec<IpNet>,
    /// The range of Services, once a family: the API server's --service-cluster-ip-range.
    #[arg(long, value_name = "RANGE", default_values = ["10.96.0.0/16"])]
    service_cidr: Vec<IpNet>,
    /// The range of the nodes' own addresses, once a family.
    #[arg(long, value_name = "RANGE", required = true)]
    node_cidr: Vec<IpNet>,
    /// Prefix length of a node's IPv4 pod range.
    #[arg(long, default_value_t = 24)]
    node_prefix_length: u8,
    /// How pod packets travel between nodes.
    #[arg(long, value_enum, default_value_t)]
    overlay: OverlayName,
    /// Send directly between nodes of one L2 segment, whatever the overlay.
    #[arg(long)]
    cross_subnet: bool,
    /// The DNS suffix of the cluster.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The API server's URL by a host address. Needed where nothing else serves Services: its own
    /// Service works only once the agent does.
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,
    /// The link to the other nodes, where it has one name on all of them.
    #[arg(long, value_name = "LINK")]
    uplink: Option<String>,
    /// The namespace of all objects; one that is not kube-system is made.
    #[arg(long, default_value = "kube-system")]
    namespace: String,
    /// The container image that holds `flatnet` and `flatnet-cni` in /usr/bin.
    #[arg(long, default_value = concat!("flatnet:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// [`Overlay`] on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OverlayName {
    #[default]
    Vxlan,
    HostGw,
    Ipip,
    Wireguard,
    Native,
}

/// Prints them.
///
/// # Errors
/// When the ranges cannot work, and when standard output is closed.
pub fn run(arguments: &Arguments) -> Result<()> {
    use std::io::Write;
    let text = text(arguments)?;
    std::io::stdout().write_all(text.as_bytes()).context("writing to standard output")
}

fn text(arguments: &Arguments) -> Result<String> {
    let mut text = String::new();
    for object in objects(arguments)? {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(&object)?);
    }
    Ok(text)
}

fn config(arguments: &Arguments) -> Result<ClusterConfig> {
    let config = ClusterConfig {
        name: NAME.into(),
        pod_cidrs: arguments.pod_cidr.clone(),
        service_cidrs: arguments.service_cidr.clone(),
        node_cidrs: arguments.node_cidr.clone(),
        node_prefix_length: arguments.node_prefix_length,
        overlay: match arguments.overlay {
            OverlayName::Vxlan => Overlay::Vxlan,
            OverlayName::HostGw => Overlay::HostGw,
            OverlayName::Ipip => Overlay::Ipip,
            OverlayName::Wireguard => Overlay::Wireguard,
            OverlayName::Native => Overlay::Native,
        },
        cross_subnet: arguments.cross_subnet,
        cluster_domain: arguments.cluster_domain.clone(),
        ..ClusterConfig::default()
    };
    if let Err(errors) = config.check_ranges(1) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        bail!("{}", errors.join("\n"));
    }
    Ok(config)
}

/// In the order in which they can be created.
fn objects(arguments: &Arguments) -> Result<Vec<Value>> {
    let namespace = &arguments.namespace;
    let own = json!({ "name": NAME, "namespace": namespace, "labels": labels() });
    let cluster_wide = json!({ "name": NAME, "labels": labels() });
    let mut objects = Vec::new();
    if namespace != "kube-system" {
        // The agent works on the host's network.
        let privileged = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let metadata = json!({ "name": namespace, "labels": privileged });
        objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
    }
    let rules: Vec<Value> = agent::rbac::RULES
        .iter()
        .map(|rule| {
            json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs })
        })
        .collect();
    objects.extend([
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": own }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": cluster_wide,
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": cluster_wide,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": NAME,
            },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": namespace }],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": own,
            "data": { CONFIG_KEY: serde_yaml_ng::to_string(&config(arguments)?)? },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": own,
            "spec": {
                "selector": { "matchLabels": labels() },
                "template": { "metadata": { "labels": labels() }, "spec": pod(arguments) },
            },
        }),
    ]);
    Ok(objects)
}

fn labels() -> Value {
    json!({ "app.kubernetes.io/name": NAME })
}

fn pod(arguments: &Arguments) -> Value {
    let (cpu, memory) = REQUESTS;
    json!({
        "serviceAccountName": NAME,
        "hostNetwork": true,
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        // Also on nodes that are not ready, for that is what it makes them.
        "tolerations": [{ "operator": "Exists" }],
        // What is in the kernel stays; there is nothing to wait for.
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "agent",
            "image": arguments.image,
            "command": command(arguments),
            "env": [{
                "name": "NODE_NAME",
                "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } },
            }],
            "resources": { "requests": { "cpu": cpu, "memory": memory } },
            "securityContext": {
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsUser": 0,
                "capabilities": { "drop": ["ALL"], "add": CAPABILITIES },
            },
            "readinessProbe": probe("/readyz", 5),
            "livenessProbe": probe("/livez", 30),
            "volumeMounts": mounts(),
        }],
        "volumes": volumes(),
    })
}

fn command(arguments: &Arguments) -> Vec<String> {
    let mut command = vec![
        "/usr/bin/flatnet".to_owned(),
        "agent".into(),
        "--node-name=$(NODE_NAME)".into(),
        format!("--config={CONFIG_DIRECTORY}/{CONFIG_KEY}"),
    ];
    command.extend(arguments.api_server.as_ref().map(|url| format!("--api-server={url}")));
    command.extend(arguments.uplink.as_ref().map(|link| format!("--uplink={link}")));
    command
}

fn probe(path: &str, period_seconds: u32) -> Value {
    json!({
        "httpGet": { "host": "127.0.0.1", "port": layout::AGENT_HEALTH_PORT, "path": path },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
    })
}

/// Name, path on the host, and path in the container. As flannel's, and what pods of this node
/// have: their addresses and records, and the node's keys. A container's own `/proc/sys` is
/// read-only.
const HOST_PATHS: [(&str, &str, &str); 6] = [
    ("run", layout::RUN_DIRECTORY, layout::RUN_DIRECTORY),
    ("cni-configuration", layout::CNI_CONFIGURATION_DIRECTORY, layout::CNI_CONFIGURATION_DIRECTORY),
    ("cni-plugin", layout::CNI_PLUGIN_DIRECTORY, layout::CNI_PLUGIN_DIRECTORY),
    ("cni-state", "/var/lib/cni", "/var/lib/cni"),
    ("state", "/var/lib/flatnet", "/var/lib/flatnet"),
    ("sysctls", "/proc/sys/net", SYSCTLS),
];
/// Where the agent looks for parameters that it cannot write in its own `/proc/sys`.
const SYSCTLS: &str = "/host/proc/sys/net";

fn mounts() -> Value {
    let host = HOST_PATHS.iter().map(|(name, _, path)| json!({ "name": name, "mountPath": path }));
    let config = json!({ "name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": true });
    host.chain([config]).collect()
}

fn volumes() -> Value {
    let host = HOST_PATHS.iter().map(|(name, path, _)| {
        let kind = if path.starts_with("/proc") { "Directory" } else { "DirectoryOrCreate" };
        json!({ "name": name, "hostPath": { "path": path, "type": kind } })
    });
    let config = json!({ "name": "config", "configMap": { "name": NAME } });
    host.chain([config]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(flags: &[&str]) -> Arguments {
        let line = ["manifests", "--node-cidr", "192.0.2.0/24"].iter().chain(flags);
        Line::try_parse_from(line).expect("a line").arguments
    }

    fn find(flags: &[&str], kind: &str) -> Value {
        let all = objects(&arguments(flags)).expect("objects");
        all.into_iter().find(|object| object["kind"] == kind).expect(kind)
    }

    #[test]
    fn each_document_is_an_object_of_yaml() {
        let text = text(&arguments(&["--namespace", "network"])).expect("text");
        let kinds: Vec<String> = text
            .split("---\n")
            .skip(1)
            .map(|document| {
                let object: Value = serde_yaml_ng::from_str(document).expect("YAML");
                object["kind"].as_str().expect("a kind").to_owned()
            })
            .collect();
        let expected = [
            "Namespace",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
        ];
        assert_eq!(kinds, expected);
    }

    /// no more than is used.
    #[test]
    fn rights_are_the_least() {
        let role = find(&[], "ClusterRole").to_string();
        for forbidden in ["secrets", "\"*\"", "delete", "update"] {
            assert!(!role.contains(forbidden), "{forbidden}: {role}");
        }
        let pod = &find(&[], "DaemonSet")["spec"]["template"]["spec"];
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["privileged"], false);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(security["capabilities"]["add"], json!(["NET_ADMIN"]));
        let sysctls = format!("{}/net", netlink::sysctl::HOST_ROOT);
        let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
        assert!(mounts.iter().any(|mount| mount["mountPath"] == sysctls.as_str()));
    }

    #[test]
    fn the_configuration_is_what_the_agent_reads() {
        let flags = ["--pod-cidr", "10.1.0.0/16", "--overlay", "wireguard", "--cross-subnet"];
        let map = find(&flags, "ConfigMap");
        let text = map["data"][CONFIG_KEY].as_str().expect("text");
        let read = super::super::cluster_config::parse(text).expect("read");
        assert_eq!(read, config(&arguments(&flags)).expect("a configuration"));
        assert_eq!(read.overlay, Overlay::Wireguard);
    }

    #[test]
    fn the_agent_is_called_with_flags_that_it_has() {
        #[derive(Parser)]
        struct Agent {
            #[command(flatten)]
            _arguments: super::super::agent::Arguments,
        }
        let flags = ["--api-server", "https://192.0.2.10:6443", "--uplink", "eth1"];
        let command = command(&arguments(&flags));
        assert!(command.contains(&"--uplink=eth1".to_owned()));
        Agent::try_parse_from(&command[1..]).expect("the agent takes them");
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        let error = objects(&arguments(&["--pod-cidr", "192.0.2.0/25"])).expect_err("refused");
        assert!(error.to_string().contains("overlaps --node-cidr"), "{error}");
    }
}
