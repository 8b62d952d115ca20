//! What the reliability suite asks of nftables, asked with Services and forwarding in eBPF: agents
//! that are away, maps of other sizes, restarts with nothing changed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use e2e::processes::{Held, agent_status, converged};
use serde_json::{Value, json};

use super::backends::{DEFAULT, change, nothing_lost};
use super::kills::{back, caught_up, listening, nothing_written};
use super::pods::run;
use super::world::World;

/// How long agents are away under load: the whole minute of R-02 is the suite's with nftables.
const DOWN_S: u64 = 12;
/// How long maps are replaced under load.
const RESIZED_S: u64 = 15;
/// Restarts that must write nothing.
const SILENT_RESTARTS: usize = 3;
/// Flows of Services end this long after their last packet (UDP: 120 s), and then their maps go.
const DRAINED: Duration = Duration::from_secs(180);
/// The nodes.
const NODES: [&str; 2] = ["node1", "node2"];

///
pub fn down_under_load(world: &World) -> Result<()> {
    with_ebpf(world, || {
        let service = "while-down-ebpf";
        let held = Held::hold(&world.cluster, &NODES)?;
        nothing_lost(world, "without agents", DOWN_S, || world.make_service(service))?;
        let absent = agent_status(&world.cluster, "node1");
        ensure!(absent.is_err(), "an agent ran: {absent:?}");
        drop(held);
        caught_up(world, service)
    })
}

/// the next version of the configuration has maps of other sizes, and the one after it those
/// of before. What is remembered of flows moves into them.
pub fn resized_under_load(world: &World) -> Result<()> {
    with_ebpf(world, || {
        let before = entries_max(world)?;
        let spec = Path::new("/var/lib/flatnet").join(&world.cluster.name).join("cluster.json");
        let own = std::fs::read_to_string(&spec)?;
        let held = Held::hold(&world.cluster, &NODES)?;
        let resized = nothing_lost(world, "maps of other sizes", RESIZED_S, || {
            let mut other: Value = serde_json::from_str(&own)?;
            let config = other["config"].as_object_mut().context("no configuration")?;
            let sizes = json!({"services": 4096, "slots": 8192, "clients": 4096, "flows": 40000});
            config.insert("ebpfMaps".to_owned(), sizes);
            for (text, changes) in [(other.to_string(), true), (own.clone(), false)] {
                std::fs::write(&spec, text)?;
                for node in NODES {
                    let agent = held.agent(node)?;
                    converged(&world.cluster, node)?;
                    if node == "node1" {
                        let now = entries_max(world)?;
                        ensure!((now != before) == changes, "{now} entries, and before {before}");
                    }
                    agent.kill()?;
                }
            }
            Ok(())
        });
        std::fs::write(&spec, own)?;
        drop(held);
        resized?;
        back(world)
    })
}

/// An agent goes over the links once, since it cannot know what the one before brought them
/// to: one operation, by which no rule, link or route is written, and no program, map or attachment
/// made anew. Which entries of maps are written is not seen here.
pub fn silent_restarts(world: &World) -> Result<()> {
    with_ebpf(world, || {
        let held = Held::hold(&world.cluster, &["node1"])?;
        let cluster = &world.cluster;
        let monitors = listening(world)?;
        let before = in_kernel(world)?;
        for _ in 0..SILENT_RESTARTS {
            let agent = held.agent("node1")?;
            let status = converged(cluster, "node1")?;
            ensure!(status["operationsTotal"] == 1, "a restart wrote: {status}");
            agent.kill()?;
        }
        nothing_written(world, &monitors)?;
        let now = in_kernel(world)?;
        let (made, gone) = (now.difference(&before), before.difference(&now));
        let (made, gone): (Vec<_>, Vec<_>) = (made.collect(), gone.collect());
        ensure!(made.is_empty() && gone.is_empty(), "made {made:#?}, gone {gone:#?}");
        drop(held);
        back(world)
    })
}

/// Does something while the cluster has eBPF.
fn with_ebpf(world: &World, work: impl FnOnce() -> Result<()>) -> Result<()> {
    change(world, "ebpf")?;
    back(world)?;
    let done = work();
    change(world, DEFAULT)?;
    done
}

/// Waits until nodes of another backend have nothing of eBPF any more: flows that began there go on
/// there, and its maps stay as long.
pub fn drained(world: &World) -> Result<()> {
    NODES.iter().try_for_each(|node| {
        eventually(&format!("no flow of {node} is in eBPF"), DRAINED, || {
            let maps = agent_status(&world.cluster, node)?["ebpfMaps"].take();
            ensure!(maps.as_array().is_some_and(Vec::is_empty), "{maps}");
            Ok(())
        })
    })
}

/// Programs, maps and attachments that are pinned, with their numbers and times: what is made anew
/// has others.
fn in_kernel(world: &World) -> Result<BTreeSet<String>> {
    let text = run(&world.cluster, "node1", "find /sys/fs/bpf -printf '%i %C@ %p\\n'")?;
    let lines: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    ensure!(lines.len() > 10, "nothing is pinned: {text}");
    Ok(lines)
}

/// How many flows the map of flows takes.
fn entries_max(world: &World) -> Result<u64> {
    let status = agent_status(&world.cluster, "node1")?;
    let rows = status["ebpfMaps"].as_array().with_context(|| status.to_string())?;
    let flows = rows.iter().find(|row| row["name"] == "flows");
    flows.and_then(|row| row["entriesMax"].as_u64()).with_context(|| status.to_string())
}
