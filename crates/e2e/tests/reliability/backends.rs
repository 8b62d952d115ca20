//! The backend of Services changes while everything is in use, and agents are killed on each.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::flatnet;
use e2e::load::Outcome;
use e2e::processes::{Held, converged};

use super::kills::back;
use super::world::World;

/// The backends that the machine has, besides the one that clusters have by default.
const OTHERS: &[&str] = &["iptables"];
/// The default one.
const DEFAULT: &str = "nftables";
/// How long each load lasts.
const LOAD_S: u64 = 10;
/// Kills of agents on each backend.
const KILLS: usize = 5;
/// How long an agent lives before it is killed.
const LIFE: Duration = Duration::from_millis(300);

pub fn changed_under_load(world: &World) -> Result<()> {
    for other in OTHERS {
        let outcome = world.under_load(LOAD_S, || {
            change(world, other)?;
            world.request()?;
            change(world, DEFAULT)?;
            world.request()
        })?;
        ensure_nothing_lost(other, outcome)?;
    }
    Ok(())
}

/// R-01 in short, on the other backends; and what belongs to them is gone in the end.
pub fn killed_on_each(world: &World) -> Result<()> {
    for other in OTHERS {
        change(world, other)?;
        let held = Held::hold(&world.cluster, &["node1", "node2"])?;
        let outcome = world.under_load(LOAD_S, || {
            for round in 0..KILLS {
                let agent = held.agent(["node1", "node2"][round % 2])?;
                std::thread::sleep(LIFE);
                agent.kill()?;
            }
            Ok(())
        });
        drop(held);
        back(world)?;
        ensure_nothing_lost(other, outcome?)?;
        change(world, DEFAULT)?;
    }
    for node in ["node1", "node2"] {
        let rules = world.cluster.on_node(node, &["iptables-save"])?;
        ensure!(
            !rules.contains("FLATNET-"),
            "{node} keeps chains of the backend that went: {rules}"
        );
    }
    Ok(())
}

fn change(world: &World, backend: &str) -> Result<()> {
    let text = flatnet(&["service", "backend", backend, "--name", &world.cluster.name])?;
    ensure!(text.matches(backend).count() == 2, "two nodes have {backend}: {text}");
    for node in ["node1", "node2"] {
        converged(&world.cluster, node)?;
    }
    Ok(())
}

fn ensure_nothing_lost(backend: &str, outcome: Outcome) -> Result<()> {
    ensure!(outcome.failed == 0 && outcome.cut == 0, "{backend}: {outcome:?}");
    Ok(())
}
