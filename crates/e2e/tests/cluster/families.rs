//! Clusters of IPv6 alone and of both families: pods, Services and names in each family.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, READY, is_ready};
use e2e::eventually;
use serde_json::Value;

use super::network::{BODY_BYTES, DATAGRAM_BYTES};
use super::world::{NAMESPACE, World, echo_pod};

pub fn ipv6_only(_: &World) -> Result<()> {
    let ranges = ["fd00:42::/56", "fd00:43::/112", "fd00:2901::/64"];
    let cluster = start("e2e-six", "vxlan", ranges)?;
    let families = families_of(&cluster, "/status/podIPs")?;
    ensure!(families == ["IPv6"], "an IPv6-only cluster gave pods {families:?}");
    reach_each_other(&cluster, "IPv6")
}

pub fn dual_stack(_: &World) -> Result<()> {
    let ranges =
        ["10.42.0.0/16,fd00:42::/56", "10.43.0.0/16,fd00:43::/112", "172.29.1.0/24,fd00:2901::/64"];
    for overlay in ["vxlan", "host-gw"] {
        let cluster = start("e2e-dual", overlay, ranges)?;
        let families = families_of(&cluster, "/status/podIPs")?;
        ensure!(families == ["IPv4", "IPv6"], "a dual-stack cluster gave pods {families:?}");
        for family in ["IPv4", "IPv6"] {
            reach_each_other(&cluster, family).with_context(|| format!("{family} by {overlay}"))?;
        }
    }
    Ok(())
}

/// A cluster of two nodes with an echo pod each, and a Service of each family that it has.
fn start(name: &str, overlay: &str, [pods, services, nodes]: [&str; 3]) -> Result<Cluster> {
    let ranges = ["--pod-cidr", pods, "--service-cidr", services, "--node-cidr", nodes];
    let mut arguments = vec!["--overlay", overlay, "--nodes", "2"];
    arguments.extend(ranges);
    let cluster = Cluster::up(name, &arguments)?;
    let mut manifest =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    manifest.push_str(&[echo_pod("one", "node1"), echo_pod("two", "node2")].concat());
    for range in pods.split(',') {
        manifest.push_str(&service(if range.contains(':') { "IPv6" } else { "IPv4" }));
    }
    cluster.apply(&manifest)?;
    for pod in ["one", "two"] {
        cluster.pod_ready(NAMESPACE, pod)?;
    }
    Ok(cluster)
}

fn service(family: &str) -> String {
    let name = service_name(family);
    format!(
        r#"---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  type: NodePort
  ipFamilies: [{family}]
  selector: {{pod: two}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
"#
    )
}

fn service_name(family: &str) -> String {
    format!("web-{}", family.to_lowercase())
}

/// The families of a pod's addresses, in their order.
fn families_of(cluster: &Cluster, pointer: &str) -> Result<Vec<&'static str>> {
    let pod = cluster.get(NAMESPACE, "pod", "one")?;
    ensure!(is_ready(&pod), "{}", pod["status"]);
    let addresses = pod.pointer(pointer).and_then(Value::as_array).context("no addresses")?;
    let parsed = addresses.iter().map(|address| address["ip"].as_str().unwrap_or_default().parse());
    let parsed: Vec<IpAddr> = parsed.collect::<Result<_, _>>()?;
    Ok(parsed.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect())
}

/// The address of one family that a pod has.
fn pod_ip(cluster: &Cluster, pod: &str, family: &str) -> Result<IpAddr> {
    let object = cluster.get(NAMESPACE, "pod", pod)?;
    let addresses = object["status"]["podIPs"].as_array().context("no podIPs")?;
    let mut parsed = addresses.iter().filter_map(|address| address["ip"].as_str()?.parse().ok());
    parsed
        .find(|ip: &IpAddr| ip.is_ipv6() == (family == "IPv6"))
        .with_context(|| format!("pod {pod} has no {family} address"))
}

/// `http://` and the address as URLs have it.
fn url(address: IpAddr, port: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}:{port}"),
        IpAddr::V6(address) => format!("http://[{address}]:{port}"),
    }
}

fn reach_each_other(cluster: &Cluster, family: &str) -> Result<()> {
    let one = pod_ip(cluster, "one", family)?;
    let two = pod_ip(cluster, "two", family)?;
    // Pod to pod across the nodes, without translation.
    let text = cluster.exec(NAMESPACE, "one", &["toolbox", "http", &url(two, "8080")])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["pod"] == "two", "{answer}");
    let client: IpAddr = answer["client"].as_str().unwrap_or_default().parse()?;
    ensure!(client == one, "two should see {one}: {answer}");
    // Large messages, in pieces and in segments.
    let address = two.to_string();
    let datagrams = ["udp", &address, "9090", "--payload-bytes", DATAGRAM_BYTES, "--count", "5"];
    let text = cluster.exec(NAMESPACE, "one", &[&["toolbox"], &datagrams[..]].concat())?;
    ensure!(text.contains(DATAGRAM_BYTES), "{text}");
    let echo = url(two, "8080/echo");
    let post = ["toolbox", "http", &echo, "--post-bytes", BODY_BYTES];
    let text = cluster.exec(NAMESPACE, "one", &post)?;
    ensure!(text.contains(BODY_BYTES), "{text}");
    through_services(cluster, family)
}

/// The Service of the family answers pods, nodes and the host, by address, name and node port.
fn through_services(cluster: &Cluster, family: &str) -> Result<()> {
    let name = service_name(family);
    let address: IpAddr = cluster.field(NAMESPACE, "service", &name, "/spec/clusterIP")?.parse()?;
    let port = cluster.field(NAMESPACE, "service", &name, "/spec/ports/0/nodePort")?;
    let answers = |text: String| -> Result<()> {
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(answer["pod"] == "two", "{answer}");
        Ok(())
    };
    eventually("the Service answers", READY, || {
        cluster.exec(NAMESPACE, "one", &["toolbox", "http", &url(address, "80")]).and_then(answers)
    })?;
    // Names and other nodes may hear of it later.
    let by_name = format!("http://{name}.{NAMESPACE}.svc.cluster.local/");
    eventually("its name answers", READY, || {
        cluster.exec(NAMESPACE, "one", &["toolbox", "http", &by_name]).and_then(answers)
    })?;
    let fetch = ["curl", "-sg", "--max-time", "5"];
    for node in &cluster.nodes {
        let cluster_ip = url(address, "80");
        eventually(&format!("it answers {node}"), READY, || {
            cluster.on_node(node, &[&fetch[..], &[&cluster_ip]].concat()).and_then(answers)
        })?;
        let object = cluster.get("", "node", node)?;
        let addresses = object["status"]["addresses"].as_array().context("no addresses")?;
        let mut parsed = addresses
            .iter()
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok());
        let node_ip = parsed.find(|ip: &IpAddr| ip.is_ipv6() == (family == "IPv6"));
        let node_port = url(node_ip.context("the node has no address of the family")?, &port);
        let output =
            std::process::Command::new("curl").args(&fetch[1..]).arg(&node_port).output()?;
        answers(String::from_utf8_lossy(&output.stdout).into_owned())
            .with_context(|| format!("from the host at {node_port}"))?;
    }
    Ok(())
}
