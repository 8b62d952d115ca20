//! The random run: agents die, rules, links and routes are broken, pods come and go on ranges of
//! 61 addresses; at each tick no address is anybody's twice, and at the end nothing is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::eventually;
use e2e::node_state::NodeState;
use e2e::processes::{converged, signal};

use super::damage::{DAMAGES, VARIABLES};
use super::kills::back;
use super::leaks::check_addresses;
use super::pods::{Pods, run};
use super::schedule::{Blow, Random, Tick, option};
use super::world::World;

/// The suite's share.
const MINUTES: f64 = 1.0;
/// Addresses of a range of /26 that pods of the schedule may have; the rest is the world's.
const LIVE_MAX: u64 = 50;
/// After the last blow everything is whole again this soon: an agent that died often waits up to
/// 10 s for its next start.
const HEALED: Duration = Duration::from_secs(30);

/// Reasons of refused pods that are told apart: some name the pod, and a run may last for hours.
const REFUSALS_MAX: usize = 20;
/// How further reasons are counted.
const OTHER_REFUSALS: &str = "for other reasons";

/// What happened.
#[derive(Debug, Default)]
struct Tally {
    ticks: u64,
    kills: u64,
    damages: u64,
    deleted: u64,
    refused: BTreeMap<String, u64>,
}

pub fn random(world: &World) -> Result<()> {
    let minutes = option("--minutes=")?.unwrap_or(MINUTES);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = option("--seed=")?.unwrap_or(now);
    println!("    again: ./x chaos --minutes {minutes} --seed {seed}");
    back(world)?;
    let nodes = ["node1", "node2"];
    let take = || nodes.map(|node| NodeState::take(&world.cluster, node));
    let before = take();
    let (mut random, mut pods, mut tally) =
        (Random::from_seed(seed), Pods::default(), Tally::default());
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    while Instant::now() < end {
        let tick = Tick::next(&mut random);
        let number = tally.ticks;
        play(world, &tick, &mut pods, &mut tally)
            .with_context(|| format!("seed {seed}, tick {number}: {tick:?}"))?;
    }
    all_reachable(world, &pods).with_context(|| format!("seed {seed}"))?;
    for node in nodes {
        let count = pods.on(node);
        tally.deleted += pods.delete(&world.cluster, node, count, false)?;
    }
    println!("    {} pods added, {tally:?}", pods.made());
    for (node, before) in nodes.iter().zip(before) {
        let before = before?;
        eventually(&format!("{node} is as before (seed {seed})"), HEALED, || {
            NodeState::take(&world.cluster, node)?.ensure_same_as(&before)
        })?;
    }
    check_addresses(world)?;
    world.request()
}

/// One tick, and what must hold after it: no address twice (`Pods::add`), none lost, none of a
/// namespace that is gone.
fn play(world: &World, tick: &Tick, pods: &mut Pods, tally: &mut Tally) -> Result<()> {
    let node = ["node1", "node2"][tick.node];
    tally.ticks += 1;
    match &tick.blow {
        Blow::Kill => {
            // It may wait for its next start.
            if let Ok(pid) = world.cluster.process(&format!("agent/{node}")) {
                signal(pid, "KILL")?;
                tally.kills += 1;
            }
        }
        Blow::Damage(number) => {
            let damage = &DAMAGES[usize::try_from(*number)? % DAMAGES.len()];
            // What is broken already cannot be broken again.
            let breaks = world.with_octets(damage.breaks);
            let script = format!("{VARIABLES}\n{breaks} >/dev/null 2>&1 || true");
            run(&world.cluster, node, &script)?;
            tally.damages += 1;
        }
        Blow::None => {}
    }
    tally.deleted += pods.delete(&world.cluster, node, tick.deletes, tick.namespaces_first)?;
    let adds = tick.adds.min(LIVE_MAX - pods.on(node));
    for why in pods.add(&world.cluster, node, adds)? {
        let known = tally.refused.contains_key(&why) || tally.refused.len() < REFUSALS_MAX;
        let why = if known { why } else { OTHER_REFUSALS.to_owned() };
        *tally.refused.entry(why).or_default() += 1;
    }
    run(&world.cluster, node, "flatnet ipam check").map(drop)
}

/// Each pod that lives reaches its node, and a pod of the other node.
fn all_reachable(world: &World, pods: &Pods) -> Result<()> {
    for node in ["node1", "node2"] {
        eventually(&format!("{node} heals"), HEALED, || converged(&world.cluster, node))?;
    }
    let remote = BTreeMap::from([
        ("node1", world.pod_ip("echo-node2")?),
        ("node2", world.pod_ip("echo-node1")?),
    ]);
    for (node, name, address) in pods.all() {
        let target = remote.get(node).context("a third node")?;
        let probe = format!(
            "ip netns exec {name} flatnet-toolbox http http://{target}:8080/ --timeout-ms 1000"
        );
        eventually(&format!("{name} ({address}) reaches {target}"), HEALED, || {
            run(&world.cluster, node, &probe)
        })?;
    }
    Ok(())
}
