//! Pools of addresses: blocks claimed with the rights that the manifests give for pools, routed to
//! whoever has them, and told to the plugin alone.

use agent::rbac;
use client::{PatchKind, ResourcePath};
use cni::agent::PodAddresses;
use model::pool::BLOCKS_ANNOTATION;
use model::{ClusterConfig, Pool, layout};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::node::{NAME, Node, PATIENCE, Running, eventually, on_a_node, run};

const QUESTION: &str = "/pod-addresses?namespace=pooled&name=web-0";
/// A block of the pool that another node says it has.
const FOREIGN_BLOCK: &str = "10.244.200.0/28";

fn config() -> ClusterConfig {
    let pool = json!({
        "name": "shop",
        "cidr": "10.244.200.0/24",
        "blockSize": 28,
        "namespaceSelector": { "matchLabels": { "team": "shop" } },
    });
    let pool: Pool = serde_json::from_value(pool).expect("a pool");
    ClusterConfig { pools: vec![pool], ..ClusterConfig::default() }
}

async fn make_pod(node: &Node) {
    let namespace = json!({ "metadata": { "name": "pooled", "labels": { "team": "shop" } } });
    let path = ResourcePath::new("v1", "namespaces");
    let _: Value = node.server.admin.create(&path, &namespace).await.expect("created");
    let pod = json!({
        "metadata": { "name": "web-0" },
        "spec": { "nodeName": NAME, "containers": [{ "name": "web", "image": "web" }] },
    });
    let path = ResourcePath::new("v1", "pods").namespace("pooled");
    let _: Value = node.server.admin.create(&path, &pod).await.expect("created");
}

/// What anybody on the node hears on the port of health and metrics.
async fn ask_in_public() -> String {
    let address = ("127.0.0.1", layout::AGENT_HEALTH_PORT);
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {QUESTION} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[test]
fn blocks_are_claimed_with_the_shipped_rights_and_told_to_the_plugin_alone() {
    on_a_node(async |node| {
        let config = config();
        node.server.grant(rbac::rules(&config));
        let namespaced = rbac::namespaced_rules(&config).expect("rules for claims");
        assert_eq!(namespaced.0, "kube-system");
        node.server.grant(namespaced.1);
        make_pod(node).await;
        let mut options = node.options();
        options.config = config;
        let agent = Running::start(options);
        let answer = async || -> Option<PodAddresses> {
            serde_json::from_str(&node.ask(QUESTION).await?).ok()
        };
        eventually("the plugin is told a block", PATIENCE, async || answer().await.is_some()).await;
        let ranges = answer().await.expect("an answer").ranges;
        let (block, gateway) = (ranges[0][0].subnet, ranges[0][0].gateway().expect("a gateway"));
        assert_eq!((ranges.len(), ranges[0].len(), block.prefix_len()), (1, 1, 28));
        eventually("the bridge is the pods' gateway", PATIENCE, async || {
            run("ip -o address show dev cni0").contains(&format!("{gateway}/28"))
        })
        .await;
        assert!(ask_in_public().await.starts_with("HTTP/1.1 404"), "X-29");

        // Another node's block is routed to it, and only a block of a pool is.
        let other =
            if block.to_string() == FOREIGN_BLOCK { "10.244.200.16/28" } else { FOREIGN_BLOCK };
        let annotation = format!("{other},10.99.0.0/28");
        let patch = json!({ "metadata": { "annotations": { BLOCKS_ANNOTATION: annotation } } });
        let path = ResourcePath::new("v1", "nodes").name("node2");
        let _: Value = node.server.admin.patch(&path, PatchKind::Merge, &patch).await.expect("it");
        eventually("the way to the other node's block is there", PATIENCE, async || {
            run(&format!("ip route show {other}")).contains(layout::VXLAN_LINK)
        })
        .await;
        assert_eq!(run("ip route show 10.99.0.0/28"), "");
        agent.stop().await;
        let log = node.server.log.lock().expect("the log");
        assert_eq!((&log.denied, &log.foreign_writes), (&vec![], &vec![]));
    });
}
