//! Those who change the cluster: people with kubectl, and node runtimes that run pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use controllers::{Kind, ObjectKey};
use ipnet::IpNet;
use model::NamespacedName;
use model::cluster::nth_address;
use serde_json::{Value, json};
use store::{DeleteOptions, Status};

use super::api::Api;
use crate::random::Generator;

/// Applications: each may have a Service and a Deployment of its name.
const APPLICATIONS: usize = 4;
/// Replicas of a Deployment at most.
const REPLICAS_MAX: usize = 5;
/// The first pod address of a node's range.
const FIRST_POD: u128 = 2;
/// Pods of one node at most: then the range is taken as full.
const PODS_PER_NODE_MAX: u128 = 60;

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, NamespacedName::new("default", name))
}

/// Somebody does one thing with kubectl.
///
/// # Errors
/// When the server refuses what it should take.
pub fn act(api: &mut Api, random: &mut Generator) -> Result<()> {
    let name = format!("app{}", random.below(APPLICATIONS));
    let done = match random.below(10) {
        0..=2 => apply_service(api, random, &name),
        3 => delete(api, Kind::Service, &name),
        4..=6 => apply_deployment(api, random, &name),
        7 => delete(api, Kind::Deployment, &name),
        8 => delete_some_pod(api, random),
        _ => return flip_readiness(api, random),
    };
    done.map_err(|status| anyhow!("{name}: {status:?}"))
}

fn apply_service(api: &mut Api, random: &mut Generator, name: &str) -> Result<(), Status> {
    let policy = |random: &mut Generator| ["Cluster", "Cluster", "Local"][random.below(3)];
    let mut ports = vec![json!({"name": "web", "port": 80, "targetPort": "web"})];
    if random.below(3) == 0 {
        ports.push(json!({"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}));
    }
    let node_port = random.below(2) == 0;
    let affinity = ["None", "None", "ClientIP"][random.below(3)];
    let mut spec = json!({
        "type": if node_port { "NodePort" } else { "ClusterIP" },
        "selector": {"app": name},
        "internalTrafficPolicy": policy(random),
        "publishNotReadyAddresses": random.below(6) == 0,
        "sessionAffinity": affinity,
        "ports": ports,
    });
    if node_port {
        spec["externalTrafficPolicy"] = policy(random).into();
    }
    let key = key(Kind::Service, name);
    if api.get(&key).is_some() {
        if !node_port {
            spec["externalTrafficPolicy"] = Value::Null;
        }
        return api.patch(&key, None, json!({"spec": spec})).map(|_| ());
    }
    let body = json!({"metadata": {"name": name}, "spec": spec});
    api.create(Kind::Service, "default", body).map(|_| ())
}

fn apply_deployment(api: &mut Api, random: &mut Generator, name: &str) -> Result<(), Status> {
    let replicas = random.below(REPLICAS_MAX + 1);
    let key = key(Kind::Deployment, name);
    if api.get(&key).is_some() {
        let mut patch = json!({"spec": {"replicas": replicas}});
        if random.below(4) == 0 {
            let version = random.below(100).to_string();
            patch["spec"]["template"]["metadata"]["annotations"]["version"] = version.into();
        }
        return api.patch(&key, None, patch).map(|_| ());
    }
    let container = json!({
        "name": "main",
        "image": "localhost/toolbox",
        "ports": [{"name": "web", "containerPort": 8080}],
    });
    let body = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container]},
            },
        },
    });
    api.create(Kind::Deployment, "default", body).map(|_| ())
}

fn delete(api: &mut Api, kind: Kind, name: &str) -> Result<(), Status> {
    let key = key(kind, name);
    if api.get(&key).is_none() {
        return Ok(());
    }
    api.delete(&key, DeleteOptions::default()).map(|_| ())
}

fn delete_some_pod(api: &mut Api, random: &mut Generator) -> Result<(), Status> {
    let (pods, _) = api.list(Kind::Pod)?;
    if pods.is_empty() {
        return Ok(());
    }
    let pod = pod_key(&pods[random.below(pods.len())]);
    api.delete(&pod, DeleteOptions::default()).map(|_| ())
}

fn flip_readiness(api: &mut Api, random: &mut Generator) -> Result<()> {
    let (pods, _) = api.list(Kind::Pod).map_err(|status| anyhow!("{status:?}"))?;
    let running: Vec<&Value> =
        pods.iter().filter(|pod| pod["status"]["podIP"].is_string()).collect();
    if running.is_empty() {
        return Ok(());
    }
    let pod = running[random.below(running.len())];
    let ready = if is_ready(pod) { "False" } else { "True" };
    set_status(api, pod, json!({"conditions": conditions(pod, ready)}))
}

/// A node's runtime does one thing for one pod: gives it an address, makes it ready, or removes
/// it. Answers whether there was anything to do.
///
/// # Errors
/// When the server refuses what it should take.
pub fn run_pods(api: &mut Api, random: &mut Generator) -> Result<bool> {
    let (pods, _) = api.list(Kind::Pod).map_err(|status| anyhow!("{status:?}"))?;
    let todo: Vec<&Value> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"].is_string())
        .filter(|pod| is_leaving(pod) || pod["status"]["podIP"].is_null() || !was_ready(pod))
        .collect();
    if todo.is_empty() {
        return Ok(false);
    }
    let pod = todo[random.below(todo.len())];
    if is_leaving(pod) {
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let deleted = api.delete(&pod_key(pod), options);
        deleted.map_err(|status| anyhow!("{status:?}"))?;
        return Ok(true);
    }
    if pod["status"]["podIP"].is_string() {
        set_status(api, pod, json!({"conditions": conditions(pod, "True")}))?;
        return Ok(true);
    }
    let Some(ip) = free_address(api, pod, &pods)? else { return Ok(false) };
    let status = json!({
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": conditions(pod, "False"),
    });
    set_status(api, pod, status)?;
    Ok(true)
}

/// The lowest free address of the pod's node; `None` while the node has no range.
fn free_address(api: &Api, pod: &Value, pods: &[Value]) -> Result<Option<IpAddr>> {
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let node = api.get(&ObjectKey::new(Kind::Node, NamespacedName::new("", name)));
    let node = node.context("a pod is bound to a node that is not there")?;
    let Some(range) = node["spec"]["podCIDR"].as_str() else { return Ok(None) };
    let range: IpNet = range.parse()?;
    let taken: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    let mut candidates = (FIRST_POD..PODS_PER_NODE_MAX).filter_map(|n| nth_address(&range, n));
    Ok(candidates.find(|address| !taken.contains(address.to_string().as_str())))
}

fn set_status(api: &mut Api, pod: &Value, status: Value) -> Result<()> {
    let set = api.patch(&pod_key(pod), Some("status"), json!({"status": status}));
    set.map(|_| ()).map_err(|status| anyhow!("{status:?}"))
}

fn pod_key(pod: &Value) -> ObjectKey {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let metadata = &pod["metadata"];
    let name = NamespacedName::new(text(&metadata["namespace"]), text(&metadata["name"]));
    ObjectKey::new(Kind::Pod, name)
}

fn is_leaving(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

fn has_condition(pod: &Value, kind: &str, status: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == status))
}

fn is_ready(pod: &Value) -> bool {
    has_condition(pod, "Ready", "True")
}

/// Whether the pod was ready once: from then on only people change its readiness.
fn was_ready(pod: &Value) -> bool {
    has_condition(pod, "ContainersReady", "True") || has_condition(pod, "WasReady", "True")
}

fn conditions(pod: &Value, ready: &str) -> Vec<Value> {
    let old = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = old
        .into_iter()
        .filter(|one| !["Ready", "ContainersReady", "WasReady"].iter().any(|k| one["type"] == *k))
        .collect();
    let was_ready = if was_ready(pod) || ready == "True" { "True" } else { "False" };
    for (kind, status) in [("ContainersReady", ready), ("Ready", ready), ("WasReady", was_ready)] {
        conditions.push(json!({"type": kind, "status": status}));
    }
    conditions
}
