//! The Node object and its Lease: how the cluster knows of this node, and that it lives.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::{ClientError, PatchKind, ResourcePath};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::context::{Context, now};
use crate::storage;

/// Pods that a node takes (the kubelet's).
pub const MAX_PODS: usize = 110;
/// Time between two renewals of the Lease, seconds (the kubelet's).
const LEASE_RENEW_S: u64 = 10;
/// How long the cluster believes in a node that renews no more, seconds (the kubelet's).
const LEASE_DURATION_S: i64 = 40;
/// Time between two looks for a CNI configuration while there is none, milliseconds.
const NOT_READY_LOOK_MS: u64 = 50;
/// The same while there is one, milliseconds.
const READY_LOOK_MS: u64 = 2_000;
/// Wait before a write that failed is tried again, milliseconds; doubled up to the limit.
const RETRY_MS: u64 = 100;
/// Longest such wait, milliseconds.
const RETRY_LIMIT_MS: u64 = 5_000;
/// The Kubernetes version whose kubelet this runtime stands for.
const KUBELET_VERSION: &str = "v1.33.0+flatnet";

/// Registers the node and keeps its status true. Never ends.
pub async fn keep_registered(context: Arc<Context>) {
    let mut ready = is_network_ready(&context);
    let mut reported = retry("register the node", || register(&context, ready)).await;
    loop {
        let look_ms = if ready { READY_LOOK_MS } else { NOT_READY_LOOK_MS };
        tokio::time::sleep(Duration::from_millis(look_ms)).await;
        ready = is_network_ready(&context);
        if Some(ready) != reported_ready(&reported) {
            reported = retry("report the node's status", || register(&context, ready)).await;
        }
    }
}

/// Renews the node's Lease. Never ends.
pub async fn keep_lease(context: Arc<Context>) {
    loop {
        retry("renew the node's lease", || renew(&context)).await;
        tokio::time::sleep(Duration::from_secs(LEASE_RENEW_S)).await;
    }
}

async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
    what: &str,
    attempt: impl Fn() -> F,
) -> T {
    let mut wait_ms = RETRY_MS;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                tracing::warn!("cannot {what}: {error}; trying again in {wait_ms} ms");
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                wait_ms = (wait_ms * 2).min(RETRY_LIMIT_MS);
            }
        }
    }
}

fn is_network_ready(context: &Context) -> bool {
    matches!(context.cni.configuration(), Ok(Some(_)))
}

fn reported_ready(node: &Value) -> Option<bool> {
    condition(node, "Ready").and_then(|ready| Some(ready["status"].as_str()? == "True"))
}

fn condition<'a>(node: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Makes the Node or mends it: labels and status, and writes nothing when both are true already
/// (invariant 14).
async fn register(context: &Context, ready: bool) -> Result<Value, ClientError> {
    let name = context.options.node_name.as_str();
    let path = ResourcePath::new("v1", "nodes").name(name);
    let mut node: Value = match context.client.get_optional(&path).await? {
        Some(node) => node,
        None => {
            let body = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": labels(name)},
            });
            let nodes = ResourcePath::new("v1", "nodes");
            match context.client.create(&nodes, &body).await {
                Err(error) if error.is_already_exists() => context.client.get(&path).await?,
                created => created?,
            }
        }
    };
    let wanted = labels(name);
    let missing = wanted.as_object().into_iter().flatten();
    if missing.clone().any(|(key, value)| node["metadata"]["labels"].get(key) != Some(value)) {
        let patch = json!({"metadata": {"labels": wanted}});
        node = context.client.patch(&path, PatchKind::Merge, &patch).await?;
    }
    let status = status(context, &node, ready);
    if says(&node["status"], &status) {
        return Ok(node);
    }
    let mut patch = json!({"status": status});
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        // They would merge by their type, and a node of two families has two of one type.
        addresses.push(json!({"$patch": "replace"}));
    }
    // Conditions merge by their type: the network's agent has one of its own.
    context.client.patch(&path.subresource("status"), PatchKind::Strategic, &patch).await
}

/// Whether a node's status says all of ours already, whatever else it says.
fn says(present: &Value, ours: &Value) -> bool {
    let known = present["conditions"].as_array();
    let fields = ours.as_object();
    fields.into_iter().flatten().all(|(key, value)| match value.as_array() {
        Some(conditions) if key == "conditions" => {
            conditions.iter().all(|condition| known.is_some_and(|known| known.contains(condition)))
        }
        _ => present.get(key) == Some(value),
    })
}

fn labels(name: &str) -> Value {
    json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture(),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status(context: &Context, node: &Value, ready: bool) -> Value {
    let options = &context.options;
    let mut addresses: Vec<Value> = options
        .node_addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": options.node_name}));
    let mut resources = json!({
        "cpu": cpus().to_string(),
        "memory": format!("{}Ki", memory_kib()),
        "pods": MAX_PODS.to_string(),
    });
    if let Some(size_kib) = disk_kib(&options.state_directory) {
        resources[storage::RESOURCE] = format!("{size_kib}Ki").into();
    }
    let time = now();
    let conditions: Vec<Value> = judge(ready)
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            // Unchanged conditions keep their times: an unchanged node is not written.
            match condition(node, kind).filter(|known| {
                known["status"] == status
                    && known["reason"] == reason
                    && known["message"] == message
            }) {
                Some(known) => known.clone(),
                None => json!({
                    "type": kind,
                    "status": status,
                    "lastHeartbeatTime": time,
                    "lastTransitionTime": time,
                    "reason": reason,
                    "message": message,
                }),
            }
        })
        .collect();
    json!({
        "addresses": addresses,
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": options.port}},
        "nodeInfo": node_info(),
    })
}

fn judge(ready: bool) -> [(&'static str, bool, &'static str, &'static str); 4] {
    let (reason, message) = if ready {
        ("KubeletReady", "kubelet is posting ready status")
    } else {
        (
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
             message:Network plugin returns error: cni plugin not initialized",
        )
    };
    [
        (
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", ready, reason, message),
    ]
}

fn node_info() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let system = read("/etc/os-release");
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned());
    json!({
        "architecture": architecture(),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "containerRuntimeVersion": concat!("flatnet://", env!("CARGO_PKG_VERSION")),
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "kubeProxyVersion": "",
        "kubeletVersion": KUBELET_VERSION,
        "machineID": read("/etc/machine-id"),
        "operatingSystem": "linux",
        "osImage": system,
        "systemUUID": read("/etc/machine-id"),
    })
}

/// What pods of this node may have in all, in thousandths. `disk` is where they are kept.
pub fn allocatable(disk: &Path) -> BTreeMap<String, i64> {
    let milli = |number: u64| i64::try_from(number).unwrap_or(i64::MAX).saturating_mul(1000);
    let kib = |number: u64| milli(number.saturating_mul(1024));
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), milli(cpus() as u64)),
        ("memory".to_owned(), kib(memory_kib())),
    ]);
    all.extend(disk_kib(disk).map(|size| (storage::RESOURCE.to_owned(), kib(size))));
    all
}

/// The size of the file system that keeps pods' layers, volumes and logs; `None` where that cannot
/// be asked or has none. All of it: nothing is set aside, as nobody is evicted for what others use.
fn disk_kib(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    let bytes = found.blocks().checked_mul(found.fragment_size())?;
    bytes.checked_div(1024).filter(|size| *size > 0)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

async fn renew(context: &Context) -> Result<(), ClientError> {
    let name = context.options.node_name.as_str();
    let leases = ResourcePath::new("coordination.k8s.io/v1", "leases").namespace("kube-node-lease");
    let path = leases.clone().name(name);
    let patch = json!({"spec": {"renewTime": now().micro()}});
    let renewed: Result<Value, _> = context.client.patch(&path, PatchKind::Merge, &patch).await;
    match renewed {
        Err(error) if error.is_not_found() => {
            let body = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {
                    "holderIdentity": name,
                    "leaseDurationSeconds": LEASE_DURATION_S,
                    "renewTime": now().micro(),
                },
            });
            let created: Result<Value, _> = context.client.create(&leases, &body).await;
            created.map(drop)
        }
        renewed => renewed.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_as_large_as_its_file_system() {
        let root = Path::new("/");
        let size_kib = disk_kib(root).expect("the root has a size");
        let found = statvfs(root).expect("the root is a file system");
        assert_eq!(size_kib, found.blocks() * found.fragment_size() / 1024);
        let in_all = allocatable(root).get(storage::RESOURCE).copied();
        assert_eq!(in_all, i64::try_from(size_kib * 1024 * 1000).ok());
        // What cannot be asked is left out: a node without the resource takes any pod.
        assert_eq!(disk_kib(Path::new("/proc")), None, "no disk");
        assert_eq!(disk_kib(Path::new("/nowhere/at/all")), None);
        assert!(!allocatable(Path::new("/nowhere/at/all")).contains_key(storage::RESOURCE));
    }
}
