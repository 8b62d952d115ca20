//! Direct server return, as a client outside of the cluster and the pods see it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::eventually;
use e2e::outside::{self, Outside};
use serde_json::Value;

use super::world::{ECHO_SERVICE, NAMESPACE, World, echo_pod};

/// Requests that reach both of two endpoints, but for one chance in millions.
const MANY: usize = 24;
/// What happens within a second or two, on a machine however busy.
const LONG: Duration = Duration::from_secs(20);
/// More than one packet, so that full segments are among them.
const POST_BYTES: &str = "100000";

/// Issue 4: pods of whichever node see the client's own address, whichever node it came to, by
/// tunnels and by plain routes.
pub fn server_return(_: &World) -> Result<()> {
    for (name, overlay, mode) in [("e2e-dsr", "vxlan", "dsr"), ("e2e-hybrid", "host-gw", "hybrid")]
    {
        let range = "172.29.4.0/24";
        let arguments = ["--nodes", "2", "--overlay", overlay, "--service-backend", "ebpf"];
        let ranges = ["--pod-cidr", "10.42.0.0/16", "--service-cidr", "10.43.0.0/16"];
        let others = ["--node-cidr", range, "--load-balancer-mode", mode];
        let cluster = Cluster::up(name, &[&arguments[..], &ranges, &others].concat())?;
        let world = World { cluster };
        serve(&world)?;
        let outside = Outside::attach(&world.cluster, range)?;
        for node in &world.cluster.nodes {
            ask(&world, &outside, node)?;
        }
    }
    Ok(())
}

/// A pod on each node, behind a node port.
fn serve(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let mut manifest =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    for node in &cluster.nodes {
        manifest.push_str(&echo_pod(&format!("echo-{node}"), node));
    }
    manifest.push_str(ECHO_SERVICE);
    cluster.apply(&manifest)?;
    for node in &cluster.nodes {
        cluster.pod_ready(NAMESPACE, &format!("echo-{node}"))?;
    }
    Ok(())
}

fn ask(world: &World, outside: &Outside, node: &str) -> Result<()> {
    let port = |place: &str| world.cluster.field(NAMESPACE, "service", "web", place);
    let (http, udp) = (port("/spec/ports/0/nodePort")?, port("/spec/ports/1/nodePort")?);
    let address = world.node_ip(node)?;
    let url = format!("http://{address}:{http}/");
    let get = || -> Result<Value> { Ok(serde_json::from_str(&outside.toolbox(&["http", &url])?)?) };
    eventually(&format!("{node} answers"), LONG, || get().map(drop))?;
    let mut pods = BTreeSet::new();
    for _ in 0..MANY {
        let answer = get()?;
        ensure!(answer["client"] == outside::ADDRESS, "through {node}: {answer}");
        pods.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
    }
    ensure!(pods.len() == world.cluster.nodes.len(), "through {node} only {pods:?} answered");
    let datagrams = ["udp", &address, &udp, "--payload-bytes", "100", "--count", "12"];
    outside.toolbox(&datagrams)?;
    for _ in 0..MANY {
        outside.toolbox(&["http", &format!("{url}echo"), "--post-bytes", POST_BYTES])?;
    }
    Ok(())
}
