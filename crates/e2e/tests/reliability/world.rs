//! The cluster of the scenarios: two nodes with pod ranges of 61 addresses, an echo pod on each, a
//! client, a Service of all kinds, and things of other programs on the first node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::eventually;
use e2e::load::{Generator, Load, Outcome};
use e2e::node_state::{NodeState, add_foreign};

use super::schedule::option;

/// Names of clusters and the second octets of their ranges: the suite's, and the one of `./x chaos`,
/// which may run for hours beside it.
const CLUSTERS: [(&str, u8); 2] = [("harm", 70), ("chaos", 78)];
/// The namespace of the pods.
pub const NAMESPACE: &str = "lab";
/// The pod from which loads run.
const CLIENT: &str = "client";
/// Every node has heard of an endpoint after this.
const SERVED: Duration = Duration::from_secs(20);

/// The cluster, and what others had on its first node.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// Taken before anything was done.
    pub foreign: NodeState,
    /// The second octet of its ranges.
    octet: u8,
}

impl World {
    /// Starts everything and waits until it is ready.
    pub fn up() -> Result<Self> {
        let wished: String = option("--cluster=")?.unwrap_or_else(|| CLUSTERS[0].0.to_owned());
        let known = CLUSTERS.iter().find(|(name, _)| *name == wished);
        let (name, octet) = *known.with_context(|| format!("no cluster is named {wished}"))?;
        let pods = format!("10.{octet}.0.0/16");
        let services = format!("10.{}.0.0/16", octet + 1);
        let nodes = format!("172.29.{octet}.0/24");
        let flags = ["--nodes", "2", "--node-cidr-mask-size", "26"];
        let ranges = ["--pod-cidr", &pods, "--service-cidr", &services, "--node-cidr", &nodes];
        let cluster = Cluster::up(name, &[&flags[..], &ranges[..]].concat())?;
        add_foreign(&cluster, "node1")?;
        let foreign = NodeState::foreign(&cluster, "node1")?;
        let world = Self { cluster, foreign, octet };
        world.cluster.apply(MANIFEST)?;
        for pod in ["echo-node1", "echo-node2", CLIENT] {
            world.cluster.pod_ready(NAMESPACE, pod)?;
        }
        Ok(world)
    }

    /// A text with the second octets of this cluster's ranges, `@pods` and `@services`.
    pub fn with_octets(&self, text: &str) -> String {
        let services = (self.octet + 1).to_string();
        text.replace("@pods", &self.octet.to_string()).replace("@services", &services)
    }

    /// A pod's address.
    pub fn pod_ip(&self, pod: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "pod", pod, "/status/podIP")
    }

    /// A field of the Service.
    pub fn service(&self, pointer: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "service", "web", pointer)
    }

    /// R-01's load: 200 streams, half between pods, half through the ClusterIP, 2,000 datagrams a
    /// second through the ClusterIP, and 500 new connections a second, half through the ClusterIP,
    /// half through the NodePort.
    pub fn load(&self, seconds: u64) -> Result<Load> {
        let cluster_ip = self.service("/spec/clusterIP")?;
        let node_port = self.service("/spec/ports/0/nodePort")?;
        let node2 = self.cluster.field("", "node", "node2", "/status/addresses/0/address")?;
        let remote = self.pod_ip("echo-node2")?;
        let words = |text: String| text.split(' ').map(str::to_owned).collect();
        let streams = "--keep-alive --concurrency 100";
        let generators = vec![
            Generator {
                name: "streams between pods",
                words: words(format!("load http://{remote}:8080/ {streams}")),
                rate: 500,
            },
            Generator {
                name: "streams by ClusterIP",
                words: words(format!("load http://{cluster_ip}/ {streams}")),
                rate: 500,
            },
            Generator {
                name: "datagrams",
                words: words(format!("udp {cluster_ip} 90")),
                rate: 2000,
            },
            Generator {
                name: "connections by ClusterIP",
                words: words(format!("load http://{cluster_ip}/ --concurrency 8")),
                rate: 250,
            },
            Generator {
                name: "connections by NodePort",
                words: words(format!("load http://{node2}:{node_port}/ --concurrency 8")),
                rate: 250,
            },
        ];
        Load::start(&self.cluster, NAMESPACE, CLIENT, generators, seconds)
    }

    /// One request from the client through the Service.
    pub fn request(&self) -> Result<()> {
        let url = format!("http://{}/", self.service("/spec/clusterIP")?);
        let words = ["toolbox", "http", &url, "--timeout-ms", "1000"];
        self.cluster.exec(NAMESPACE, CLIENT, &words).map(drop)
    }

    /// Waits until a pod is ready and the Service leads the client to it: nodes hear of it a moment
    /// later.
    pub fn reaches(&self, pod: &str) -> Result<()> {
        self.cluster.pod_ready(NAMESPACE, pod)?;
        let url = format!("http://{}/", self.service("/spec/clusterIP")?);
        let words = ["toolbox", "http", &url, "--count", "30", "--interval-ms", "2"];
        eventually(&format!("the Service leads to {pod}"), SERVED, || {
            let text = self.cluster.exec(NAMESPACE, CLIENT, &words)?;
            ensure!(text.contains(&format!(" {pod} ")), "none of 30 connections: {text}");
            Ok(())
        })
    }

    /// Makes a Service with this name, so that every node has something to write.
    pub fn make_service(&self, name: &str) -> Result<()> {
        self.cluster
            .apply(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
                 spec:\n  selector: {{app: echo}}\n  ports:\n  - {{port: 80, targetPort: http}}\n"
            ))
            .map(drop)
    }

    /// Runs a load while something else is done. Where that takes longer, the outcome says nothing
    /// of the rest.
    pub fn under_load(&self, seconds: u64, work: impl FnOnce() -> Result<()>) -> Result<Outcome> {
        let load = self.load(seconds)?;
        let began = Instant::now();
        let worked = work();
        let took = began.elapsed();
        let outcome = load.outcome();
        worked.context("under load")?;
        let mut outcome = outcome?;
        if took.as_secs() >= seconds {
            println!("    it took {took:?}: longer than the load of {seconds} s");
            outcome.is_inconclusive = true;
        }
        Ok(outcome)
    }
}

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: lab}
---
apiVersion: v1
kind: Pod
metadata: {name: echo-node1, namespace: lab, labels: {app: echo}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: localhost/toolbox
    args: [serve, --http, "8080", --udp, "9090"]
    ports:
    - {name: http, containerPort: 8080, hostPort: 18080}
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Pod
metadata: {name: echo-node2, namespace: lab, labels: {app: echo}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: localhost/toolbox
    args: [serve, --http, "8080", --udp, "9090"]
    ports:
    - {name: http, containerPort: 8080}
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: lab, labels: {app: client}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: localhost/toolbox, args: [sleep, infinity]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: lab}
spec:
  type: NodePort
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 90, targetPort: 9090, protocol: UDP}
"#;
