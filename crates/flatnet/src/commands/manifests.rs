//! `flatnet manifests`: what makes flatnet the network of a real cluster, for `kubectl apply`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use model::{
    ClusterConfig, DnsFastPath, LoadBalancerMode, NodeLocalDns, Overlay, ServiceAcceleration,
    ServiceBackend, layout,
};
use serde_json::{Value, json};

use super::cluster_config;

/// The name of all objects but the DNS workers' DaemonSet.
const NAME: &str = "flatnet";
/// The name of that.
const DNS_NAME: &str = "flatnet-dns";
/// The programs in the image.
const PROGRAM: &str = "/usr/bin/flatnet";
const DNS_WORKER: &str = "/usr/bin/flatnet-dnsworker";
/// Where the ConfigMap is in a container.
const CONFIG_DIRECTORY: &str = "/etc/flatnet";
/// The key of the ConfigMap.
const CONFIG_KEY: &str = "config.yaml";
/// What each container may do besides what every process of root may. Everything else is
/// dropped. The agent has no `SYS_ADMIN`: with it, it could enter pods' namespaces, where its one
/// errand would be the MTU of pods that ran before the network's changed. It names those instead.
const AGENT_CAPABILITIES: &[&str] = &["NET_ADMIN"];
/// And this where pods' packets may travel in IP in IP or plainly: while a pair of nodes takes a
/// detour, the path self-test can send nothing else by the way that it goes past.
const PACKETS_CAPABILITY: &str = "NET_RAW";
/// And these for Services in eBPF: to load programs and maps, and to let the kernel check programs
/// as quickly as those of root.
const EBPF_CAPABILITIES: &[&str] = &["BPF", "PERFMON"];
/// The worker binds port 53, and then gives up this too.
const DNS_CAPABILITIES: &[&str] = &["NET_BIND_SERVICE"];
/// For the one module that no use of it loads; the container ends before the agent starts.
const MODULE_CAPABILITIES: &[&str] = &["SYS_MODULE"];
/// Asked of the scheduler for the agent, and for the DNS worker.
const AGENT_REQUESTS: (&str, &str) = ("20m", "32Mi");
const DNS_REQUESTS: (&str, &str) = ("10m", "16Mi");
/// A worker that knows no zone for so long is started anew. An agent that is still to come, with its
/// image, has this time.
const DNS_START_LIMIT_SECONDS: u32 = 600;

/// Arguments of `flatnet manifests`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  flatnet manifests --pod-cidr 10.244.0.0/16 --node-cidr 192.0.2.0/24 --api-server https://192.0.2.10:6443 | kubectl apply -f -"
)]
pub struct Arguments {
    /// A YAML file with the cluster's configuration in place of the flags for it: all keys, also
    /// those that have no flag, such as pools. What it leaves out has its default.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["pod_cidr", "service_cidr", "node_cidr", "node_cidr_mask_size",
            "overlay", "cross_subnet", "service_backend", "load_balancer_mode",
            "service_acceleration", "failover", "dns_fast_path", "cluster_domain", "node_local_dns"]
    )]
    config: Option<PathBuf>,
    /// The cluster's pod range, or one of each family: what the controller manager calls
    /// --cluster-cidr.
    #[arg(
        long,
        value_name = "RANGE[,RANGE]",
        value_delimiter = ',',
        default_value = "10.244.0.0/16"
    )]
    pod_cidr: Vec<IpNet>,
    /// The range of Services, or one of each family: the API server's --service-cluster-ip-range.
    #[arg(
        long,
        value_name = "RANGE[,RANGE]",
        value_delimiter = ',',
        default_value = "10.96.0.0/16"
    )]
    service_cidr: Vec<IpNet>,
    /// The range of the nodes' own addresses, or one of each family.
    #[arg(
        long,
        value_name = "RANGE[,RANGE]",
        value_delimiter = ',',
        required_unless_present = "config"
    )]
    node_cidr: Vec<IpNet>,
    /// The prefix length of one node's IPv4 pod range.
    #[arg(long, value_name = "BITS", default_value_t = ClusterConfig::default().node_prefix_length)]
    node_cidr_mask_size: u8,
    /// How pod packets travel between nodes: vxlan, host-gw, ipip, wireguard, or native where
    /// someone else makes the routes.
    #[arg(long, default_value_t)]
    overlay: Overlay,
    /// Send directly between nodes of one L2 segment, whatever the overlay.
    #[arg(long)]
    cross_subnet: bool,
    /// What implements Services: auto, nftables, iptables, ipvs or ebpf.
    #[arg(long, value_name = "BACKEND", default_value_t)]
    service_backend: ServiceBackend,
    /// Which way endpoints on other nodes answer clients outside of the cluster: snat, dsr or
    /// hybrid. All but snat need the backend ebpf.
    #[arg(long, value_name = "MODE", default_value_t)]
    load_balancer_mode: LoadBalancerMode,
    /// With the backend ebpf: whether packets of clients outside to endpoints on other nodes are
    /// sent on before the kernel's stack, by XDP in the driver of the nodes' uplink: disabled,
    /// native (all nodes must) or best-effort (where the device can).
    #[arg(long, value_name = "MODE", default_value_t)]
    service_acceleration: ServiceAcceleration,
    /// Whether nodes and endpoints that do not answer get no new connections through Services.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    failover: bool,
    /// Whether the kernel answers for cluster DNS at the links of pods: auto, on or off. Without
    /// `on` the agent has not the right to load what does it.
    #[arg(long, value_name = "CHOICE", default_value_t)]
    dns_fast_path: DnsFastPath,
    /// The DNS suffix of the cluster.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Where cluster DNS answers on every node besides the Service's address: one address a family,
    /// or none.
    #[arg(long, value_name = "ADDRESS[,ADDRESS]|none", default_value_t)]
    node_local_dns: NodeLocalDns,
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
    /// The container image that holds `flatnet`, `flatnet-cni` and `flatnet-dnsworker` in /usr/bin.
    #[arg(long, default_value = concat!("flatnet:", env!("CARGO_PKG_VERSION")))]
    image: String,
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
    if let Some(file) = &arguments.config {
        return Ok(ClusterConfig { name: NAME.into(), ..cluster_config::read(file)? });
    }
    let config = ClusterConfig {
        name: NAME.into(),
        pod_cidrs: arguments.pod_cidr.clone(),
        service_cidrs: arguments.service_cidr.clone(),
        node_cidrs: arguments.node_cidr.clone(),
        node_prefix_length: arguments.node_cidr_mask_size,
        overlay: arguments.overlay,
        cross_subnet: arguments.cross_subnet,
        service_backend: arguments.service_backend,
        load_balancer_mode: arguments.load_balancer_mode,
        service_acceleration: arguments.service_acceleration,
        failover: arguments.failover,
        dns_fast_path: arguments.dns_fast_path,
        cluster_domain: arguments.cluster_domain.clone(),
        node_local_dns: arguments.node_local_dns.0.clone(),
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
    let config = config(arguments)?;
    let subjects = json!([{ "kind": "ServiceAccount", "name": NAME, "namespace": namespace }]);
    objects.extend([
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": own }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": cluster_wide,
            "rules": rules(&agent::rbac::rules(&config)),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": cluster_wide,
            "roleRef": role("ClusterRole"),
            "subjects": subjects,
        }),
    ]);
    if let Some((place, own_rules)) = agent::rbac::namespaced_rules(&config) {
        let metadata = json!({ "name": NAME, "namespace": place, "labels": labels() });
        objects.extend([
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": metadata,
                "rules": rules(&own_rules),
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": role("Role"),
                "subjects": subjects,
            }),
        ]);
    }
    objects.extend([
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": own,
            "data": { CONFIG_KEY: serde_yaml_ng::to_string(&config)? },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": own,
            "spec": {
                "selector": { "matchLabels": labels() },
                "template": { "metadata": { "labels": labels() }, "spec": pod(arguments, &config) },
            },
        }),
        dns_daemon_set(arguments),
    ]);
    Ok(objects)
}

/// The DNS workers, apart from the agents: what is written there about replacing a pod by a second
/// one on its node cannot hold for agents, of which a node has one at a time.
///
/// The sockets that questions come to are those of a process, and the processes of a pod end with
/// it: neither a container nor its pod can leave them behind. With `maxSurge` (KEP-1591, stable since
/// Kubernetes 1.25) a node has both pods for a while. The new worker takes the sockets from the old
/// one before it is ready, and only then is the old pod deleted; its worker answers what it has
/// read. The pods have no `ports`, for which the scheduler would keep the second one from the node.
/// The probe runs in the container, since by address both would answer it.
///
/// A pod that goes first and comes later (drained, deleted by hand, evicted) has no successor to
/// give anything to: then clients ask again.
fn dns_daemon_set(arguments: &Arguments) -> Value {
    let labels = json!({ "app.kubernetes.io/name": DNS_NAME });
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": DNS_NAME, "namespace": arguments.namespace, "labels": labels },
        "spec": {
            "selector": { "matchLabels": labels },
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 },
            },
            "template": { "metadata": { "labels": labels }, "spec": dns_pod(arguments) },
        },
    })
}

fn rules(rules: &[agent::rbac::Rule]) -> Vec<Value> {
    let rule = |rule: &agent::rbac::Rule| json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs });
    rules.iter().map(rule).collect()
}

fn role(kind: &str) -> Value {
    json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": NAME })
}

fn labels() -> Value {
    json!({ "app.kubernetes.io/name": NAME })
}

fn pod(arguments: &Arguments, config: &ClusterConfig) -> Value {
    let host = [&AGENT_PATHS[..], ebpf_paths(config), &MODULE_PATHS].concat();
    let no_token = json!({ "name": NO_TOKEN.0, "emptyDir": {} });
    json!({
        "serviceAccountName": NAME,
        "hostNetwork": true,
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        // Also on nodes that are not ready, for that is what it makes them.
        "tolerations": [{ "operator": "Exists" }],
        // What is in the kernel stays; there is nothing to wait for.
        "terminationGracePeriodSeconds": 5,
        "initContainers": [modules(arguments)],
        "containers": [agent(arguments, config)],
        "volumes": volumes(&host).chain([no_token]).collect::<Value>(),
    })
}

/// It reads what anybody sends, so that it sees neither a token nor the node's keys.
fn dns_pod(arguments: &Arguments) -> Value {
    json!({
        "automountServiceAccountToken": false,
        "hostNetwork": true,
        // The worker asks the servers that the host asks.
        "dnsPolicy": "Default",
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "operator": "Exists" }],
        // More than the worker takes to answer what it has read.
        "terminationGracePeriodSeconds": 5,
        "containers": [dns(arguments)],
        "volumes": volumes(&DNS_PATHS).collect::<Value>(),
    })
}

/// Loads what the agent, without that right, cannot.
fn modules(arguments: &Arguments) -> Value {
    json!({
        "name": "modules",
        "image": arguments.image,
        "command": [PROGRAM, "load-modules"],
        "securityContext": security(MODULE_CAPABILITIES),
        "volumeMounts": mounts(&MODULE_PATHS, &[NO_TOKEN]),
    })
}

fn agent(arguments: &Arguments, config: &ClusterConfig) -> Value {
    let (cpu, memory) = AGENT_REQUESTS;
    let plain = config.cross_subnet || matches!(config.overlay, Overlay::Ipip | Overlay::HostGw);
    let mut capabilities = AGENT_CAPABILITIES.to_vec();
    capabilities.extend(plain.then_some(PACKETS_CAPABILITY));
    let ebpf = ebpf_paths(config);
    if !ebpf.is_empty() {
        capabilities.extend(EBPF_CAPABILITIES);
    }
    let host = [&AGENT_PATHS, ebpf].concat();
    json!({
        "name": "agent",
        "image": arguments.image,
        "command": command(arguments),
        "env": [{
            "name": "NODE_NAME",
            "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } },
        }],
        "resources": { "requests": { "cpu": cpu, "memory": memory } },
        "securityContext": security(&capabilities),
        "readinessProbe": probe("/readyz", 5),
        "livenessProbe": probe("/livez", 30),
        "volumeMounts": mounts(&host, &[CONFIG]),
    })
}

fn dns(arguments: &Arguments) -> Value {
    let (cpu, memory) = DNS_REQUESTS;
    let control = format!("{}/{}", layout::RUN_DIRECTORY, layout::DNS_CONTROL_SOCKET);
    json!({
        "name": "dns",
        "image": arguments.image,
        "command": [PROGRAM, "dns", format!("--config={CONFIG_DIRECTORY}/{CONFIG_KEY}")],
        "resources": { "requests": { "cpu": cpu, "memory": memory } },
        "securityContext": security(DNS_CAPABILITIES),
        "startupProbe": {
            "exec": { "command": [DNS_WORKER, dnsworker::IS_READY, control] },
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": DNS_START_LIMIT_SECONDS,
        },
        "volumeMounts": mounts(&DNS_PATHS, &[CONFIG]),
    })
}

fn security(capabilities: &[&str]) -> Value {
    json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsUser": 0,
        "capabilities": { "drop": ["ALL"], "add": capabilities },
    })
}

fn command(arguments: &Arguments) -> Vec<String> {
    let mut command = vec![
        PROGRAM.to_owned(),
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

/// Name, path on the host, and path in a container. As flannel's, and what pods of this node
/// have: their addresses and records, the node's keys, and the newest zone. A container's own
/// `/proc/sys` is read-only. For eBPF, where pins are; for Services in eBPF, also the cgroup of all
/// processes, of which a container has another view.
const HOST_PATHS: [(&str, &str, &str); 10] = [
    ("run", layout::RUN_DIRECTORY, layout::RUN_DIRECTORY),
    ("cni-configuration", layout::CNI_CONFIGURATION_DIRECTORY, layout::CNI_CONFIGURATION_DIRECTORY),
    ("cni-plugin", layout::CNI_PLUGIN_DIRECTORY, layout::CNI_PLUGIN_DIRECTORY),
    ("cni-state", "/var/lib/cni", "/var/lib/cni"),
    ("state", "/var/lib/flatnet", "/var/lib/flatnet"),
    ("dns-zone", layout::DNS_ZONE_DIRECTORY, layout::DNS_ZONE_DIRECTORY),
    ("sysctls", "/proc/sys/net", SYSCTLS),
    ("modules", MODULES, MODULES),
    ("ebpf", EBPF_PINS, EBPF_PINS),
    ("cgroups", CGROUPS, "/host/sys/fs/cgroup"),
];
/// Those of the agent, whatever it shall do.
const AGENT_PATHS: [&str; 6] =
    ["run", "cni-configuration", "cni-plugin", "cni-state", "state", "sysctls"];
/// What a DNS worker has of the node: where it meets the agent and its own successor, and the zone.
const DNS_PATHS: [&str; 2] = ["run", "dns-zone"];
const MODULE_PATHS: [&str; 1] = ["modules"];
const EBPF_PINS: &str = "/sys/fs/bpf";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the agent looks for parameters that it cannot write in its own `/proc/sys`.
const SYSCTLS: &str = "/host/proc/sys/net";
/// Where modprobe looks; nothing writes there.
const MODULES: &str = "/lib/modules";
/// Further volumes and where they are mounted, read-only. What stands in the place of the
/// ServiceAccount's token keeps it out of a container.
const CONFIG: (&str, &str) = ("config", CONFIG_DIRECTORY);
const NO_TOKEN: (&str, &str) = ("no-token", client::SERVICE_ACCOUNT_DIRECTORY);

fn mounts(host: &[&str], further: &[(&str, &str)]) -> Value {
    let own = HOST_PATHS.iter().filter(|(name, ..)| host.contains(name));
    let host = own.map(|(name, from, path)| {
        let is_read_only = [MODULES, CGROUPS].contains(from);
        json!({ "name": name, "mountPath": path, "readOnly": is_read_only })
    });
    let further = further
        .iter()
        .map(|(name, path)| json!({ "name": name, "mountPath": path, "readOnly": true }));
    host.chain(further).collect()
}

fn ebpf_paths(config: &ClusterConfig) -> &'static [&'static str] {
    match (config.service_backend, config.dns_fast_path) {
        (ServiceBackend::Ebpf, _) => &["ebpf", "cgroups"],
        (_, DnsFastPath::On) => &["ebpf"],
        (_, DnsFastPath::Auto | DnsFastPath::Off) => &[],
    }
}

/// The volumes of a pod: parts of the host, and the ConfigMap.
fn volumes(host: &[&str]) -> impl Iterator<Item = Value> {
    let own = HOST_PATHS.iter().filter(|(name, ..)| host.contains(name));
    let host = own.map(|(name, path, _)| {
        let kind = match *path {
            path if path.starts_with("/proc") || path.starts_with("/sys") => "Directory",
            // No trace on a node that has none.
            MODULES => "",
            _ => "DirectoryOrCreate",
        };
        json!({ "name": name, "hostPath": { "path": path, "type": kind } })
    });
    host.chain([json!({ "name": CONFIG.0, "configMap": { "name": NAME } })])
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
        let dns = &dns_daemon_set(&arguments(&[]))["spec"]["template"]["spec"];
        let mounted = |container: &Value, path: &str| {
            let mounts = container["volumeMounts"].as_array().expect("mounts");
            mounts
                .iter()
                .find(|mount| mount["mountPath"] == path)
                .map(|mount| mount["name"].clone())
        };
        let rows = [
            (&pod["initContainers"][0], "SYS_MODULE", Some(json!("no-token"))),
            (&pod["containers"][0], "NET_ADMIN", None),
            (&dns["containers"][0], "NET_BIND_SERVICE", None),
        ];
        for (container, capability, at_token) in rows {
            let security = &container["securityContext"];
            assert_eq!(security["privileged"], false);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"], "add": [capability] }));
            assert_eq!(mounted(container, client::SERVICE_ACCOUNT_DIRECTORY), at_token);
        }
        let agent = &pod["containers"][0];
        assert!(mounted(agent, &format!("{}/net", netlink::sysctl::HOST_ROOT)).is_some());
        assert_eq!(mounted(&dns["containers"][0], "/var/lib/flatnet"), None, "the node's keys");
        assert_eq!(dns["automountServiceAccountToken"], false);
        assert_eq!(dns["serviceAccountName"], Value::Null);
    }

    /// Issue 5, item 5: the new worker is there before the old one goes, and a pod of it has no ports
    /// for which it could not be.
    #[test]
    fn a_dns_pod_is_replaced_by_one_that_is_ready_beside_it() {
        let all = objects(&arguments(&[])).expect("objects");
        let sets: Vec<&Value> = all.iter().filter(|one| one["kind"] == "DaemonSet").collect();
        let [agent, dns] = sets.as_slice() else { panic!("{sets:?}") };
        let strategy = json!({ "maxSurge": 1, "maxUnavailable": 0 });
        assert_eq!(dns["spec"]["updateStrategy"]["rollingUpdate"], strategy);
        // Two agents would undo each other's work.
        assert_eq!(agent["spec"]["updateStrategy"], Value::Null);
        assert_ne!(agent["spec"]["selector"], dns["spec"]["selector"]);
        for set in [agent, dns] {
            let labels = &set["spec"]["template"]["metadata"]["labels"];
            assert_eq!(set["spec"]["selector"]["matchLabels"], *labels);
        }
        let container = &dns["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["ports"], Value::Null);
        let probe = json!([DNS_WORKER, "--is-ready", "/run/flatnet/dns-control.sock"]);
        assert_eq!(container["startupProbe"]["exec"]["command"], probe);
    }

    /// What only packets of other protocols need comes with ways that are such.
    #[test]
    fn the_agent_makes_packets_of_its_own_only_where_pods_travel_without_udp() {
        for (flags, may) in [
            (&[][..], false),
            (&["--overlay=wireguard"], false),
            (&["--overlay=ipip"], true),
            (&["--overlay=host-gw"], true),
            (&["--cross-subnet"], true),
        ] {
            let pod = &find(flags, "DaemonSet")["spec"]["template"]["spec"];
            let added = &pod["containers"][0]["securityContext"]["capabilities"]["add"];
            let wanted = if may { json!(["NET_ADMIN", "NET_RAW"]) } else { json!(["NET_ADMIN"]) };
            assert_eq!(*added, wanted, "{flags:?}");
        }
    }

    /// Services in eBPF bring what they need, and no other backend does.
    #[test]
    fn ebpf_brings_its_rights_and_places() {
        for backend in ["auto", "nftables", "iptables", "ipvs", "ebpf"] {
            let flag = format!("--service-backend={backend}");
            let pod = &find(&[&flag], "DaemonSet")["spec"]["template"]["spec"];
            let is_ebpf = backend == "ebpf";
            let agent = &pod["containers"][0];
            let added = agent["securityContext"]["capabilities"]["add"].to_string();
            assert_eq!(added.contains("\"BPF\",\"PERFMON\""), is_ebpf, "{backend}: {added}");
            assert!(!added.contains("SYS_ADMIN"));
            for (name, path, is_read_only) in
                [("ebpf", "/sys/fs/bpf", false), ("cgroups", "/host/sys/fs/cgroup", true)]
            {
                let mount = json!({ "name": name, "mountPath": path, "readOnly": is_read_only });
                let mounts = agent["volumeMounts"].as_array().expect("mounts");
                assert_eq!(mounts.contains(&mount), is_ebpf, "{backend}: {path}");
                let volumes = pod["volumes"].as_array().expect("volumes");
                assert_eq!(volumes.iter().any(|one| one["name"] == name), is_ebpf, "{backend}");
            }
        }
    }

    /// That the kernel answers for DNS needs the rights of eBPF, but no cgroups.
    #[test]
    fn the_fast_path_of_dns_brings_its_rights_where_it_is_asked_for() {
        for (choice, may) in [("auto", false), ("off", false), ("on", true)] {
            let flag = format!("--dns-fast-path={choice}");
            let pod = &find(&[&flag], "DaemonSet")["spec"]["template"]["spec"];
            let agent = &pod["containers"][0];
            let added = agent["securityContext"]["capabilities"]["add"].to_string();
            assert_eq!(added.contains("\"BPF\",\"PERFMON\""), may, "{choice}: {added}");
            assert_eq!(agent["volumeMounts"].to_string().contains("/sys/fs/bpf"), may, "{choice}");
            assert!(!pod["volumes"].to_string().contains("cgroup"), "{choice}");
        }
    }

    /// Rights that only pools need, in their own place, come with pools.
    #[test]
    fn pools_bring_their_rights_and_no_more() {
        let file = std::env::temp_dir().join(format!("flatnet-pools-{}.yaml", std::process::id()));
        let text = "nodeCidrs: [192.0.2.0/24]\npodCidrs: [10.244.0.0/15]\n\
                    pools: [{name: all, cidr: 10.245.0.0/16, blockSize: 26}]\n";
        std::fs::write(&file, text).expect("written");
        let line = ["manifests", "--config", file.to_str().expect("a path")];
        let read = Line::try_parse_from(line).expect("a line").arguments;
        let objects = objects(&read).expect("objects");
        std::fs::remove_file(&file).expect("removed");
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).expect(kind);
        assert!(!of("ClusterRole").to_string().contains("leases"));
        assert_eq!(
            verbs_of(of("ClusterRole"), "namespaces"),
            [["list", "watch"].as_slice(), &["get"]]
        );
        assert_eq!(of("Role")["metadata"]["namespace"], "kube-system");
        assert!(of("ConfigMap").to_string().contains("10.245.0.0/16"));
        // Cluster DNS hears of all pods and namespaces; only pools ask for one.
        let role = find(&[], "ClusterRole");
        assert_eq!(verbs_of(&role, "pods"), [["list", "watch"]]);
        assert_eq!(verbs_of(&role, "namespaces"), [["list", "watch"]]);
    }

    /// What each rule of a role about this resource alone allows.
    fn verbs_of(role: &Value, resource: &str) -> Vec<Vec<String>> {
        let rules = role["rules"].as_array().expect("rules").iter();
        let about = rules.filter(|rule| rule["resources"] == json!([resource]));
        about.map(|rule| serde_json::from_value(rule["verbs"].clone()).expect("verbs")).collect()
    }

    #[test]
    fn the_configuration_is_what_the_agent_reads() {
        let flags = ["--pod-cidr", "10.1.0.0/16", "--overlay", "wireguard", "--cross-subnet"];
        let map = find(&flags, "ConfigMap");
        let text = map["data"][CONFIG_KEY].as_str().expect("text");
        let read = cluster_config::parse(text).expect("read");
        assert_eq!(read, config(&arguments(&flags)).expect("a configuration"));
        assert_eq!(read.overlay, Overlay::Wireguard);
    }

    #[test]
    fn programs_are_called_with_flags_that_they_have() {
        #[derive(Parser)]
        struct Agent {
            #[command(flatten)]
            _arguments: super::super::agent::Arguments,
        }
        #[derive(Parser)]
        struct Dns {
            #[command(flatten)]
            _arguments: super::super::dns::Arguments,
        }
        let flags = ["--api-server", "https://192.0.2.10:6443", "--uplink", "eth1"];
        let command = command(&arguments(&flags));
        assert!(command.contains(&"--uplink=eth1".to_owned()));
        Agent::try_parse_from(&command[1..]).expect("the agent takes them");
        let dns = dns(&arguments(&flags))["command"].as_array().cloned().expect("a command");
        let words = dns[1..].iter().filter_map(Value::as_str);
        Dns::try_parse_from(words).expect("the worker takes them");
    }

    /// As `flatnet up` takes them.
    #[test]
    fn ranges_of_both_families_are_given_with_a_comma() {
        let flags = [
            "--pod-cidr=10.1.0.0/16,fd00:1::/48",
            "--service-cidr=10.2.0.0/16,fd00:2::/112",
            "--node-cidr=fd00:3::/64",
            "--node-cidr-mask-size=26",
        ];
        let config = config(&arguments(&flags)).expect("a configuration");
        assert_eq!(config.pod_cidrs.len(), 2);
        assert_eq!(config.node_cidrs.len(), 2);
        assert_eq!(config.node_prefix_length, 26);
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        let error = objects(&arguments(&["--pod-cidr", "192.0.2.0/25"])).expect_err("refused");
        assert!(error.to_string().contains("overlaps --node-cidr"), "{error}");
    }
}
