//! The cluster of the scenarios and the pods that several of them use.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use serde_json::Value;

/// The range of the nodes' addresses.
pub const NODE_RANGE: &str = "172.29.0.0/24";
/// The namespace of the shared pods.
pub const NAMESPACE: &str = "lab";

/// The cluster and what always runs in it: an echo pod a node, `echo-NODE`, with HTTP on 8080 and
/// UDP on 9090, and a pod `tools` of the host's programs on the first node.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
}

impl World {
    /// Starts everything and waits until it is ready.
    pub fn up() -> Result<Self> {
        let ranges = [
            "--pod-cidr",
            "10.40.0.0/16",
            "--service-cidr",
            "10.41.0.0/16",
            "--node-cidr",
            NODE_RANGE,
        ];
        let cluster = Cluster::up("e2e", &ranges)?;
        let world = Self { cluster };
        let mut manifest =
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        for node in &world.cluster.nodes {
            manifest.push_str(&echo_pod(&format!("echo-{node}"), node));
        }
        manifest.push_str(&tools_pod("tools", &world.cluster.nodes[0]));
        manifest.push_str(ECHO_SERVICE);
        world.cluster.apply(&manifest)?;
        for node in &world.cluster.nodes {
            world.cluster.pod_ready(NAMESPACE, &format!("echo-{node}"))?;
        }
        world.cluster.pod_ready(NAMESPACE, "tools")?;
        Ok(world)
    }

    /// A pod's address.
    pub fn pod_ip(&self, pod: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "pod", pod, "/status/podIP")
    }

    /// A Service's address.
    pub fn cluster_ip(&self, service: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "service", service, "/spec/clusterIP")
    }

    /// A node's address.
    pub fn node_ip(&self, node: &str) -> Result<String> {
        self.cluster.field("", "node", node, "/status/addresses/0/address")
    }

    /// Where a node's network namespace is.
    pub fn network_of(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{node}", self.cluster.name))
    }

    /// Runs a toolbox command in a pod and reads its JSON.
    pub fn toolbox_json(&self, pod: &str, command: &[&str]) -> Result<Value> {
        let mut all = vec!["toolbox"];
        all.extend(command);
        let text = self.cluster.exec(NAMESPACE, pod, &all)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Starts a pod that loads a URL for some seconds, and waits until it runs.
    pub fn start_load(&self, pod: &str, url: &str, seconds: u64) -> Result<()> {
        self.start_load_of(pod, url, seconds, 400, 8)
    }

    /// The same, with so many new connections a second by so many clients.
    pub fn start_load_of(
        &self,
        pod: &str,
        url: &str,
        seconds: u64,
        rate: u64,
        clients: u64,
    ) -> Result<()> {
        self.cluster.kubectl(&[
            "delete",
            "pod",
            "-n",
            NAMESPACE,
            pod,
            "--ignore-not-found",
            "--now",
        ])?;
        self.cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {NAMESPACE}}}\nspec:\n  \
             restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: load\n    \
             image: localhost/toolbox\n    args: [load, \"{url}\", --duration-s, \"{seconds}\", \
             --timeout-ms, \"10000\", --concurrency, \"{clients}\", --rate, \"{rate}\"]\n"
        ))?;
        self.cluster.pod_ready(NAMESPACE, pod).map(drop)
    }

    /// Waits for the end of such a pod. Not one request may have failed.
    pub fn ensure_no_failure(&self, pod: &str, seconds: u64) -> Result<Value> {
        let limit = std::time::Duration::from_secs(seconds + 60);
        let text = self.cluster.pod_logs_at_end(NAMESPACE, pod, limit)?;
        let result: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let requests = result["requests"].as_u64().context("no count")?;
        ensure!(requests > 50 * seconds, "too little load to mean anything: {result}");
        ensure!(result["failed"] == 0, "requests failed: {result}");
        println!("    {pod}: {requests} requests, {} a second, none failed", requests / seconds);
        Ok(result)
    }
}

/// A pod that says who it is over HTTP and UDP.
pub fn echo_pod(name: &str, node: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: echo, pod: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: localhost/toolbox
    args: [serve, --http, "8080", --udp, "9090"]
    ports:
    - {{name: http, containerPort: 8080}}
    env:
    - name: POD_NAME
      valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
    readinessProbe:
      httpGet: {{path: /ready, port: http}}
      periodSeconds: 1
      failureThreshold: 1
"#
    )
}

/// A pod with the host's programs.
pub fn tools_pod(name: &str, node: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: tools
    image: localhost/host
    command: [sleep, infinity]
"#
    )
}

/// The Services of these pods.
pub const ECHO_SERVICE: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: lab}
spec:
  type: NodePort
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 90, targetPort: 9090, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: lab}
spec:
  clusterIP: None
  selector: {app: echo}
  ports:
  - {name: http, port: 8080}
"#;
