//! What operators see of the machine: by kubectl, by flatnet's commands, by Prometheus.

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use serde_json::{Value, json};

use super::kubelet;
use super::machine::NAME;
use super::world::{REMOTE, World};

/// The Node's condition, and an Event about what another program did.
pub fn kubectl(world: &World) -> Result<()> {
    eventually("the Node says that it has a network", READY, || {
        let text = world.cluster.kubectl(&["describe", "node", NAME])?;
        let line = text.lines().find(|line| line.contains("NetworkUnavailable"));
        let line = line.with_context(|| text.clone())?;
        ensure!(line.contains("False") && line.contains("FlatnetIsUp"), "{line}");
        Ok(())
    })?;
    world.machine.shell("nft delete table ip flatnet")?;
    eventually("the repair is an Event of the Node", READY, || {
        let text = world.cluster.kubectl(&["describe", "node", NAME])?;
        ensure!(text.contains("FlatnetRepaired") && text.contains("flatnet-agent"), "{text}");
        Ok(())
    })?;
    world.machine.shell("nft list table ip flatnet").map(drop)
}

/// Text for people and JSON for programs, of the live agent.
pub fn commands(world: &World) -> Result<()> {
    let rows: [(&[&str], &[&str]); 4] = [
        (&["node", "status"], &[NAME, "eth0", "REPAIRED", "pod-edge", "nftables", &world.range]),
        (&["links"], &["cni0", "flatnet.1", "DIFFERENT"]),
        (&["routes"], &["10.76.", "STATE", "DIFFERENT"]),
        (&["ipam", "show"], &[&world.pod_ip(REMOTE)?, "flatnet"]),
    ];
    // Another program takes the rules at the edges of pods away: counted under its own name.
    world.machine.shell("nft flush ruleset")?;
    eventually("all is as it shall be again", READY, || {
        let report = report(world, &["node", "status"])?;
        ensure!(report["repairs"]["pod-edge"].as_u64().is_some_and(|count| count > 0), "{report}");
        ensure!(world.machine.flatnet(&["node", "status"]).is_ok(), "{report}");
        // How many addresses are held is read every few seconds.
        ensure!(report["pools"][0]["held"] == 1, "{report}");
        Ok(())
    })?;
    for (words, expected) in rows {
        let text = world.machine.flatnet(words)?;
        for word in expected.iter().filter(|word| **word != "DIFFERENT") {
            ensure!(text.contains(word), "flatnet {words:?} does not say {word}: {text}");
        }
        ensure!(!text.contains(" DIFFERENT "), "{text}");
        let json = world.machine.flatnet(&[words, &["-o", "json"]].concat())?;
        let value: Value = serde_json::from_str(&json)?;
        ensure!(!value.to_string().is_empty(), "{value}");
    }
    let report = report(world, &["node", "status"])?;
    for (key, expected) in [("node", json!(NAME)), ("ready", json!(true)), ("peers", json!(2))] {
        ensure!(report[key] == expected, "{key}: {report}");
    }
    ensure!(report["pods"] == 1, "one pod has an edge that is kept: {report}");
    Ok(())
}

/// The only node's answer.
fn report(world: &World, words: &[&str]) -> Result<Value> {
    let output = world.machine.flatnet_output(&[words, &["-o", "json"]].concat())?;
    let value: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    value.get(0).cloned().with_context(|| format!("no report: {value}"))
}

/// A route of another program stands where one of ours shall be: this the agent does not touch, so
/// that it goes on to differ.
pub fn differences(world: &World) -> Result<()> {
    let range = "10.76.99.0/24";
    world.machine.shell(&format!("ip route add unreachable {range} proto static"))?;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "late" },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
    });
    world.cluster.apply(&node.to_string())?;
    eventually("the Node has an address", READY, || {
        let mut node = world.cluster.get("", "node", "late")?;
        let address = json!([{ "type": "InternalIP", "address": "172.29.76.201" }]);
        node["status"]["addresses"] = address;
        kubelet::send(&world.cluster, "replace", "/api/v1/nodes/late/status", &node)
    })?;
    eventually("the difference is shown", READY, || {
        for words in [["routes"].as_slice(), &["node", "status"]] {
            let output = world.machine.flatnet_output(words)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.code() == Some(1), "{words:?}: {}: {text}", output.status);
            let line = text.lines().find(|line| line.contains(range)).context("no line")?;
            ensure!(line.contains("DIFFERENT"), "{line}");
        }
        let report = report(world, &["node", "status"])?;
        ensure!(report["problems"].to_string().contains("another program has a route"), "{report}");
        Ok(())
    })?;
    ensure!(world.machine.flatnet(&["links"]).is_ok(), "links do not differ");
    world.machine.shell(&format!("ip route del unreachable {range} proto static"))?;
    eventually("nothing differs", READY, || world.machine.flatnet(&["node", "status"]))?;
    world.cluster.kubectl(&["delete", "node", "late"])?;
    eventually("the route goes with its node", READY, || {
        let text = world.machine.flatnet(&["routes"])?;
        ensure!(!text.contains(range), "{text}");
        Ok(())
    })
}

/// The scrape of the loopback port.
pub fn metrics(world: &World) -> Result<()> {
    eventually("the counts are those of the node", READY, || {
        let text = world.machine.shell("curl -sf --max-time 5 http://127.0.0.1:10256/metrics")?;
        for line in [
            "flatnet_synced 1".to_owned(),
            "flatnet_peers 2".into(),
            format!("flatnet_ipam_addresses{{range=\"{}\",state=\"held\"}} 1", world.range),
        ] {
            ensure!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        let repairs = text.lines().find_map(|line| {
            line.strip_prefix("flatnet_repairs_total{kind=\"nftables\"} ")?.parse::<u64>().ok()
        });
        ensure!(repairs.is_some_and(|count| count > 0), "no repairs in {text}");
        Ok(())
    })
}
