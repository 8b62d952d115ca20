//! nothing grows with the number of pods that have been.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::eventually;
use e2e::node_state::{NodeState, Usage};

use super::kills::back;
use super::pods::{Pods, run};
use super::schedule::option;
use super::world::World;

/// Pods that come and go before anything is measured.
const WARM_UP: u64 = 120;
/// And while it is, unless the command line says `--pods=`; `./x chaos` takes R-25's 2,000.
const MEASURED: u64 = 280;
/// Pods at once: nearly all that a range of 61 addresses has beside the pods of the world.
const AT_ONCE: u64 = 40;
/// What is given up may take this long.
const SETTLED: Duration = Duration::from_secs(10);
/// Growth of the agent's memory that is not a slope, in parts of a hundred.
const GROWTH_PERCENT: u64 = 5;

pub fn pods_come_and_go(world: &World) -> Result<()> {
    back(world)?;
    let mut pods = Pods::default();
    churn(world, &mut pods, WARM_UP)?;
    let before = NodeState::take(&world.cluster, "node1")?;
    let agent = world.cluster.process("agent/node1")?;
    let used = Usage::of(agent)?;
    let measured = option("--pods=")?.unwrap_or(MEASURED);
    churn(world, &mut pods, measured)?;
    eventually("the node is as before", SETTLED, || {
        NodeState::take(&world.cluster, "node1")?.ensure_same_as(&before)
    })?;
    let now = Usage::of(agent)?;
    println!("    {measured} pods: the agent used {used:?}, and now {now:?}");
    ensure!(now.descriptors <= used.descriptors, "descriptors: {used:?}, {now:?}");
    ensure!(now.threads <= used.threads, "threads: {used:?}, {now:?}");
    let limit = used.resident_kilobytes * (100 + GROWTH_PERCENT) / 100;
    ensure!(now.resident_kilobytes <= limit, "memory: {used:?}, {now:?}");
    check_addresses(world)
}

fn churn(world: &World, pods: &mut Pods, total: u64) -> Result<()> {
    for _ in 0..total / AT_ONCE {
        let refused = pods.add(&world.cluster, "node1", AT_ONCE)?;
        ensure!(refused.is_empty(), "refused: {refused:?}");
        pods.delete(&world.cluster, "node1", AT_ONCE, false)?;
    }
    Ok(())
}

/// No address is anybody's twice, or nobody's and yet not free.
pub fn check_addresses(world: &World) -> Result<()> {
    for node in ["node1", "node2"] {
        run(&world.cluster, node, "flatnet ipam check")?;
    }
    Ok(())
}
