//! The backend of Services changes while everything is in use, and agents are killed on each.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::cluster::flatnet;
use e2e::processes::{Held, converged};

use super::kills::{LIFE_MS, back, changes};
use super::losses::{Losses, RUNS_MAX};
use super::schedule::{Random, option};
use super::world::World;

/// The one that clusters have by default.
pub const DEFAULT: &str = "nftables";
/// All that run on any kernel, the default one first.
pub const BACKENDS: [&str; 3] = [DEFAULT, "iptables", "ebpf"];
/// Ways through them and back to the default one.
const WAYS: &[&[&str]] = &[&["iptables", "ebpf", DEFAULT], &["ebpf", "iptables", DEFAULT]];
/// How long the load of a change lasts.
const LOAD_S: u64 = 10;
/// Kills of agents on each backend, unless the command line says `--kills=`; `./x chaos` takes
/// R-01's 50.
const KILLS: usize = 5;
/// How long the load lasts when agents are killed: that of all kills, and of the way back.
const LOAD_A_KILL_MS: u64 = 800;
const LOAD_AFTER_S: u64 = 10;

pub fn changed_under_load(world: &World) -> Result<()> {
    for way in WAYS {
        nothing_lost(world, &way.join(", "), LOAD_S, || {
            way.iter().try_for_each(|backend| {
                change(world, backend)?;
                world.request()
            })
        })?;
    }
    Ok(())
}

/// R-01 in short, on the other backends, while Services come and go; and what belongs to these
/// backends is gone in the end.
pub fn killed_on_each(world: &World) -> Result<()> {
    let kills = option("--kills=")?.unwrap_or(KILLS);
    let load_s = kills as u64 * LOAD_A_KILL_MS / 1000 + LOAD_AFTER_S;
    for other in &BACKENDS[1..] {
        change(world, other)?;
        nothing_lost(world, other, load_s, || {
            let held = Held::hold(&world.cluster, &["node1", "node2"])?;
            let mut random = Random::from_seed(1);
            changes(world, kills, |round| {
                let agent = held.agent(if round % 2 == 0 { "node1" } else { "node2" })?;
                std::thread::sleep(Duration::from_millis(random.within(LIFE_MS)));
                agent.kill()
            })?;
            drop(held);
            back(world)
        })?;
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

/// Changes the backend, and waits until both nodes have it.
pub fn change(world: &World, backend: &str) -> Result<()> {
    let text = flatnet(&["service", "backend", backend, "--name", &world.cluster.name])?;
    ensure!(text.matches(backend).count() == 2, "two nodes have {backend}: {text}");
    for node in ["node1", "node2"] {
        converged(&world.cluster, node)?;
    }
    Ok(())
}

/// Does something under load. A run in which the machine itself dropped packets says nothing of
/// ours, and one in which it was too busy to send them, or to be done in time, says nothing at all:
/// it is done again, for longer.
pub fn nothing_lost(
    world: &World,
    what: &str,
    load_s: u64,
    work: impl Fn() -> Result<()>,
) -> Result<()> {
    for run in 0..RUNS_MAX {
        let before = Losses::take(&world.cluster)?;
        let outcome = world.under_load(load_s << run, &work)?;
        let lost = Losses::take(&world.cluster)? - before;
        println!("    {what}: {lost:?}");
        let is_clean = outcome.failed == 0 && outcome.cut == 0;
        if is_clean && !outcome.is_inconclusive {
            return Ok(());
        }
        ensure!(is_clean || lost.is_of_the_machine(), "{what}: {outcome:?}, {lost:?}");
    }
    bail!("{what}: in each of {RUNS_MAX} runs the machine had no room or no time for packets")
}
