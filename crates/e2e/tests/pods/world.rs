//! The cluster of the scenarios and its pods.

use anyhow::{Context, Result};
use e2e::cluster::Cluster;
use e2e::workspace;
use serde_json::{Value, json};

/// The range of the nodes' addresses.
pub const NODE_RANGE: &str = "172.29.74.0/24";
/// A pool for the namespaces with a label; in blocks for so many pods.
pub const POOL: &str = "10.74.200.0/24";
pub const POOL_LABEL: (&str, &str) = ("team", "shop");
pub const BLOCK_PODS: usize = 13;
/// The namespace of the pods.
pub const NAMESPACE: &str = "lab";

/// A cluster of two nodes, with an echo pod `free-NODE` on each.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
}

impl World {
    /// Starts everything and waits until it is ready.
    pub fn up() -> Result<Self> {
        let (label, value) = POOL_LABEL;
        let pool = json!({
            "name": "shop",
            "cidr": POOL,
            "blockSize": 28,
            "namespaceSelector": { "matchLabels": { label: value } },
        });
        let config = json!({
            "podCidrs": ["10.74.0.0/16"],
            "serviceCidrs": ["10.75.0.0/16"],
            "nodeCidrs": [NODE_RANGE],
            "podAddressAnnotations": true,
            "pools": [pool],
        });
        let file = workspace().join("target/tmp/pods.yaml");
        std::fs::create_dir_all(workspace().join("target/tmp"))?;
        std::fs::write(&file, config.to_string())?;
        let file = file.to_str().context("a path of text")?;
        let world = Self { cluster: Cluster::up("pods", &["--nodes", "2", "--config", file])? };
        world.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        }))?;
        for node in &world.cluster.nodes {
            world.start(&echo_pod(&free_on(node), node))?;
        }
        Ok(world)
    }

    /// Applies one object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.apply(&object.to_string()).map(drop)
    }

    /// Starts a pod and waits until it is ready.
    pub fn start(&self, pod: &Value) -> Result<()> {
        self.apply(pod)?;
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        self.cluster.pod_ready(NAMESPACE, name).map(drop)
    }

    /// Removes a pod and waits until it is gone.
    pub fn stop(&self, pod: &str) -> Result<()> {
        self.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, pod, "--now"]).map(drop)
    }

    /// A pod's address.
    pub fn pod_ip(&self, pod: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "pod", pod, "/status/podIP")
    }

    /// A node's address.
    pub fn node_ip(&self, node: &str) -> Result<String> {
        self.cluster.field("", "node", node, "/status/addresses/0/address")
    }

    /// Asks a URL from a pod; the answer says which pod it is of.
    pub fn ask(&self, pod: &str, url: &str) -> Result<Value> {
        let text = self.cluster.exec(NAMESPACE, pod, &["toolbox", "http", url])?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// What the events about a pod say, a line each.
    pub fn events(&self, pod: &str) -> Result<String> {
        let chosen = format!("involvedObject.name={pod}");
        let text = self.cluster.kubectl(&[
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector",
            &chosen,
            "-o",
            "json",
        ])?;
        let list: Value = serde_json::from_str(&text)?;
        let events = list["items"].as_array().context("no items")?;
        let line = |event: &Value| format!("{}: {}\n", event["reason"], event["message"]);
        Ok(events.iter().map(line).collect())
    }
}

/// The echo pod without wishes of a node.
pub fn free_on(node: &str) -> String {
    format!("free-{node}")
}

/// A pod that says who it is over HTTP (8080) and UDP (9090).
pub fn echo_pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "echo",
                "image": "localhost/toolbox",
                "args": ["serve", "--http", "8080", "--udp", "9090"],
                "env": [{
                    "name": "POD_NAME",
                    "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
                }],
                "readinessProbe": {
                    "httpGet": { "path": "/ready", "port": 8080 }, "periodSeconds": 1,
                },
            }],
        },
    })
}
