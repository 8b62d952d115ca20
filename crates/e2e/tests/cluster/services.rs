//! Services as their users see them.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::cluster::text_of;
use e2e::eventually;
use e2e::outside::Outside;
use serde_json::Value;

use super::world::{NAMESPACE, NODE_RANGE, World};

/// Requests that reach every one of three endpoints, but for one chance in millions.
const MANY: usize = 40;

/// What happens within a second or two, on a machine however busy.
const LONG: Duration = Duration::from_secs(20);
/// From a pod that says it is not ready to the slice: the probe's period is a second, and the way
/// from there to the slice has another.
const UNREADY_LIMIT: Duration = Duration::from_secs(2);
/// From the slice to the nodes' rules.
const QUIET_LIMIT: Duration = Duration::from_secs(1);
/// What addresses of [`FURTHER_RANGE`] begin with.
const FURTHER_PREFIX: &str = "10.47.3.";
const FURTHER_RANGE: &str = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\n\
    metadata: {name: further}\nspec: {cidrs: [10.47.3.0/24]}\n";
const FAR_SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: lab}\n\
    spec:\n  clusterIP: 10.47.3.9\n  selector: {app: echo}\n  \
    ports: [{port: 80, targetPort: http}]\n";

pub fn node_ports(world: &World) -> Result<()> {
    ask_node_ports(world, &Outside::attach(&world.cluster, NODE_RANGE)?)
}

/// Through each node, by TCP and UDP.
pub fn ask_node_ports(world: &World, outside: &Outside) -> Result<()> {
    let http = world.cluster.field(NAMESPACE, "service", "web", "/spec/ports/0/nodePort")?;
    let udp = world.cluster.field(NAMESPACE, "service", "web", "/spec/ports/1/nodePort")?;
    for node in &world.cluster.nodes {
        let address = world.node_ip(node)?;
        let mut pods = BTreeSet::new();
        for _ in 0..MANY {
            let text = outside.toolbox(&["http", &format!("http://{address}:{http}/")])?;
            let answer: Value = serde_json::from_str(&text)?;
            pods.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
        }
        ensure!(pods.len() == 3, "through {node} only {pods:?} answered");
        outside.toolbox(&["udp", &address, &udp, "--payload-bytes", "100", "--count", "3"])?;
    }
    Ok(())
}

pub fn cluster_ip_from_node_and_host(world: &World) -> Result<()> {
    let url = format!("http://{}/", world.cluster_ip("web")?);
    for node in &world.cluster.nodes {
        let text = world.cluster.on_node(node, &["curl", "-s", "--max-time", "5", &url])?;
        ensure!(text.contains("echo-node"), "from {node}: {text}");
    }
    let output = Command::new("curl").args(["-s", "--max-time", "5", &url]).output()?;
    let text = text_of(output)?;
    ensure!(text.contains("echo-node"), "from the host: {text}");
    Ok(())
}

/// S-13 (KEP-1880): a range that is added while the cluster runs, from everywhere.
pub fn further_range(world: &World) -> Result<()> {
    world.cluster.apply(FURTHER_RANGE)?;
    // The first range goes on being the one that addresses are chosen from, so this one is named.
    eventually("an address of the range is taken", LONG, || world.cluster.apply(FAR_SERVICE))?;
    let url = format!("http://{}/", world.cluster_ip("far")?);
    ensure!(url.contains(FURTHER_PREFIX), "{url}");
    let curl = ["curl", "-s", "-S", "--max-time", "2", &url];
    let reached = |from: &str, answer: &dyn Fn() -> Result<String>| {
        eventually(&format!("reached from {from}"), LONG, || {
            let text = answer()?;
            ensure!(text.contains("echo-node"), "{text:?}");
            Ok(())
        })
    };
    reached("a pod", &|| world.cluster.exec(NAMESPACE, "tools", &curl))?;
    for node in &world.cluster.nodes {
        reached(node, &|| world.cluster.on_node(node, &curl))?;
    }
    reached("the host", &|| text_of(Command::new(curl[0]).args(&curl[1..]).output()?))?;
    // Whoever deletes the range first does not cut the Service off: it stays until its addresses
    // are free.
    let cluster = &world.cluster;
    cluster.kubectl(&["delete", "servicecidr", "further", "--wait=false"])?;
    eventually("the range is being deleted", LONG, || {
        cluster.field("", "servicecidr", "further", "/metadata/deletionTimestamp")
    })?;
    reached("the host", &|| text_of(Command::new(curl[0]).args(&curl[1..]).output()?))?;
    ensure!(further_routes()?.len() == 1, "{:?}", further_routes()?);
    cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "far"])?;
    eventually("the host has no route any more", LONG, || {
        let routes = further_routes()?;
        ensure!(routes.is_empty(), "{routes:?}");
        Ok(())
    })
}

/// The host's routes to the further range.
fn further_routes() -> Result<Vec<String>> {
    let text = text_of(Command::new("ip").args(["route", "show"]).output()?)?;
    Ok(text.lines().filter(|line| line.contains(FURTHER_PREFIX)).map(str::to_owned).collect())
}

pub fn hairpin(world: &World) -> Result<()> {
    // Only this pod is behind the Service, so it must reach itself.
    world.cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: self, namespace: lab}\nspec:\n  \
         selector: {pod: echo-node1}\n  ports: [{port: 80, targetPort: http}]\n",
    )?;
    let url = format!("http://{}/", world.cluster_ip("self")?);
    eventually("the pod reaches itself", Duration::from_secs(10), || {
        let answer = world.toolbox_json("echo-node1", &["http", &url, "--timeout-ms", "1000"])?;
        ensure!(answer["pod"] == "echo-node1", "{answer}");
        Ok(())
    })?;
    world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "self"]).map(drop)
}

pub fn refused_without_endpoints(world: &World) -> Result<()> {
    world.cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nobody, namespace: lab}\nspec:\n  \
         selector: {app: nobody}\n  ports: [{port: 80}]\n",
    )?;
    let url = format!("http://{}/", world.cluster_ip("nobody")?);
    let command = ["curl", "-s", "-o", "/dev/null", "--max-time", "5", &url];
    eventually("connections are refused", LONG, || {
        let started = Instant::now();
        let error = world.cluster.exec(NAMESPACE, "tools", &command).expect_err("nobody is there");
        let said = format!("{error:#}");
        // curl: 7 is a refused connection, 28 a timeout.
        ensure!(said.contains("code 7"), "{said}");
        ensure!(
            started.elapsed() < Duration::from_secs(2),
            "refused after {:?}",
            started.elapsed()
        );
        Ok(())
    })?;
    world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "nobody"]).map(drop)
}

/// S-06: pods, and pods with the network of their node, reach endpoints of their own node alone;
/// elsewhere nobody answers them.
pub fn internal_policy_local(world: &World) -> Result<()> {
    let mut manifest = String::from(NEAR);
    for node in ["node1", "node2"] {
        manifest.push_str(&host_network_pod(node));
    }
    world.cluster.apply(&manifest)?;
    let url = format!("http://{}/", world.cluster_ip("near")?);
    let ask = |pod: &str| world.toolbox_json(pod, &["http", &url, "--timeout-ms", "1000"]);
    for node in ["node1", "node2"] {
        world.cluster.pod_ready(NAMESPACE, &format!("host-{node}"))?;
    }
    for pod in ["host-node1", "echo-node1"] {
        eventually(&format!("{pod} is answered"), LONG, || {
            let answer = ask(pod)?;
            ensure!(answer["pod"] == "echo-node1", "{answer}");
            Ok(())
        })?;
    }
    let mut answers = Vec::new();
    for pod in ["host-node2", "echo-node2"] {
        // That node may hear of the Service later than the first one, and refuses until then.
        eventually(&format!("{pod} has no answer"), LONG, || {
            let error = match ask(pod) {
                Err(error) => format!("{error:#}"),
                Ok(answer) => {
                    answers.push(format!("{pod}: {answer}"));
                    answer.to_string()
                }
            };
            ensure!(error.contains("timeout while connecting"), "{error}");
            Ok(())
        })?;
    }
    ensure!(answers.is_empty(), "nobody may answer there: {answers:?}");
    let goes = ["delete", "-n", NAMESPACE, "--now", "service/near", "pod/host-node1"];
    world.cluster.kubectl(&[&goes[..], &["pod/host-node2"]].concat()).map(drop)
}

/// Only a pod of the first node is behind it.
const NEAR: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: near, namespace: lab}\nspec:\n  \
    internalTrafficPolicy: Local\n  selector: {pod: echo-node1}\n  \
    ports: [{port: 80, targetPort: http}]\n";

fn host_network_pod(node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: host-{node}, namespace: {NAMESPACE}}}\n\
         spec:\n  nodeName: {node}\n  hostNetwork: true\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - {{name: main, image: localhost/toolbox, args: [sleep, infinity]}}\n"
    )
}

/// S-01, KEP-753: the name is that of a port of an init container that goes on running.
pub fn sidecar_port(world: &World) -> Result<()> {
    world.cluster.apply(SIDECAR)?;
    world.cluster.pod_ready(NAMESPACE, "beside")?;
    let url = format!("http://{}/", world.cluster_ip("beside")?);
    eventually("the sidecar answers", LONG, || {
        let answer = world.toolbox_json("echo-node1", &["http", &url, "--timeout-ms", "1000"])?;
        ensure!(answer["pod"] == "the-sidecar", "{answer}");
        Ok(())
    })?;
    let goes = ["delete", "-n", NAMESPACE, "--now", "service/beside", "pod/beside"];
    world.cluster.kubectl(&goes).map(drop)
}

/// A pod whose sidecar says that it is one, and whose other container serves elsewhere.
const SIDECAR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: beside, namespace: lab, labels: {app: beside}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: proxy
    restartPolicy: Always
    image: localhost/toolbox
    args: [serve, --http, "7070"]
    env: [{name: POD_NAME, value: the-sidecar}]
    ports: [{name: side, containerPort: 7070}]
  containers:
  - name: main
    image: localhost/toolbox
    args: [serve, --http, "8080"]
    ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: beside, namespace: lab}
spec:
  selector: {app: beside}
  ports: [{port: 80, targetPort: side}]
"#;

pub fn readiness(world: &World) -> Result<()> {
    let pod = "echo-node3";
    let address = world.pod_ip(pod)?;
    let set = |ready: bool| {
        let url = format!("http://{address}:8080/ready/{ready}");
        world.cluster.exec(NAMESPACE, "tools", &["curl", "-s", "-X", "POST", &url])
    };
    set(false)?;
    eventually("the slice says not ready", UNREADY_LIMIT, || {
        let slices =
            world.cluster.list(NAMESPACE, "endpointslice", "kubernetes.io/service-name=web")?;
        ensure!(conditions_of(&slices, &address) == Some(false), "{slices:?}");
        Ok(())
    })?;
    let url = format!("http://{}/", world.cluster_ip("web")?);
    let quiet = eventually("no request reaches it", QUIET_LIMIT, || {
        for _ in 0..MANY {
            let answer = world.toolbox_json("echo-node1", &["http", &url])?;
            ensure!(answer["pod"] != pod, "{pod} still gets requests");
        }
        Ok(())
    });
    set(true)?;
    world.cluster.pod_ready(NAMESPACE, pod)?;
    quiet
}

/// Whether the endpoint of this address is ready; `None` when there is none.
fn conditions_of(slices: &[Value], address: &str) -> Option<bool> {
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let mut found = endpoints.filter(|endpoint| endpoint["addresses"][0] == address);
    found.next()?["conditions"]["ready"].as_bool()
}
