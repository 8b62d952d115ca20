//! nothing grows with the number of pods and Services that have been.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use e2e::node_state::{NodeState, Usage};
use e2e::processes::agent_status;

use super::backends::{DEFAULT, change};
use super::ebpf::drained;
use super::kills::back;
use super::pods::{Pods, run};
use super::schedule::option;
use super::world::{NAMESPACE, World};

/// Pods that come and go before anything is measured.
const WARM_UP: u64 = 120;
/// And while it is, unless the command line says `--pods=`; `./x chaos` takes R-25's 2,000.
const MEASURED: u64 = 280;
/// Pods at once: nearly all that a range of 61 addresses has beside the pods of the world.
const AT_ONCE: u64 = 40;
/// Services that come and go with them.
const SERVICES_AT_ONCE: u64 = 5;
/// What is given up may take this long.
const SETTLED: Duration = Duration::from_secs(10);
/// A node on which nothing changes for so long is at rest.
const REST: Duration = Duration::from_secs(2);
/// Growth of what the agent keeps that is not a slope, in parts of a hundred of its memory.
const GROWTH_PERCENT: u64 = 5;
/// The agent gives back what it freed once it is quiet; a thread for calls that wait ends ten
/// seconds after the last of them (tokio's `thread_keep_alive`).
const AT_REST: Duration = Duration::from_secs(20);

pub fn come_and_go(world: &World) -> Result<()> {
    drained(world)?;
    leave_nothing(world)
}

/// The same with Services and forwarding in eBPF.
pub fn come_and_go_with_ebpf(world: &World) -> Result<()> {
    change(world, "ebpf")?;
    ensure!(map_entries(world)?.contains_key("services"), "no maps: nothing would be shown");
    let checked = leave_nothing(world);
    change(world, DEFAULT)?;
    checked
}

fn leave_nothing(world: &World) -> Result<()> {
    back(world)?;
    let mut pods = Pods::default();
    churn(world, &mut pods, WARM_UP)?;
    let (before, pinned) = at_rest(world)?;
    let entries = map_entries(world)?;
    let agent = world.cluster.process("agent/node1")?;
    let used = Usage::of(agent)?;
    let measured = option("--pods=")?.unwrap_or(MEASURED);
    churn(world, &mut pods, measured)?;
    eventually("the node is as before", SETTLED, || {
        NodeState::take(&world.cluster, "node1")?.ensure_same_as(&before)?;
        let now = map_entries(world)?;
        ensure!(now == entries, "entries of maps: {entries:?}, and now {now:?}");
        let now = pins(world)?;
        let (made, gone) = (now.difference(&pinned), pinned.difference(&now));
        let (made, gone): (Vec<_>, Vec<_>) = (made.collect(), gone.collect());
        ensure!(made.is_empty() && gone.is_empty(), "pins in eBPF: made {made:?}, gone {gone:?}");
        Ok(())
    })?;
    // What it has freed it gives back once it is quiet.
    let now = eventually("the agent uses no more than before", AT_REST, || {
        let now = Usage::of(agent)?;
        ensure!(now.descriptors <= used.descriptors, "descriptors: {used:?}, {now:?}");
        ensure!(now.threads <= used.threads, "threads: {used:?}, {now:?}");
        let growth_max = used.resident_kilobytes * GROWTH_PERCENT / 100;
        let limit = used.anonymous_kilobytes + growth_max;
        ensure!(now.anonymous_kilobytes <= limit, "memory: {used:?}, {now:?}");
        Ok(now)
    })?;
    println!("    {measured} pods: the agent used {used:?}, and now {now:?}");
    check_addresses(world)
}

/// The node's state and pins when they change no more: the agent may hear of the last Services that
/// went a moment after everything else is done.
fn at_rest(world: &World) -> Result<(NodeState, BTreeSet<String>)> {
    let take = || -> Result<_> { Ok((NodeState::take(&world.cluster, "node1")?, pins(world)?)) };
    let mut state = take()?;
    eventually("the node is at rest", SETTLED, || {
        std::thread::sleep(REST);
        let former = std::mem::replace(&mut state, take()?);
        ensure!(state.1 == former.1, "pins in eBPF: {:?}, and before {:?}", state.1, former.1);
        state.0.ensure_same_as(&former.0)
    })?;
    Ok(state)
}

fn churn(world: &World, pods: &mut Pods, total: u64) -> Result<()> {
    for _ in 0..total / AT_ONCE {
        make_services(world)?;
        let refused = pods.add(&world.cluster, "node1", AT_ONCE)?;
        ensure!(refused.is_empty(), "refused: {refused:?}");
        pods.delete(&world.cluster, "node1", AT_ONCE, false)?;
        world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "-l", "goes=away"])?;
    }
    back(world)
}

/// Services of the world's pods, with ports at the nodes too.
fn make_services(world: &World) -> Result<()> {
    let mut manifest = String::new();
    for number in 0..SERVICES_AT_ONCE {
        write!(
            manifest,
            "---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: churn-{number}, namespace: {NAMESPACE}, labels: {{goes: away}}}}\n\
             spec:\n  type: NodePort\n  selector: {{app: echo}}\n  ports:\n  \
             - {{name: http, port: 80, targetPort: http}}\n  \
             - {{name: echo, port: 90, targetPort: 9090, protocol: UDP}}\n"
        )?;
    }
    world.cluster.apply(&manifest).map(drop)
}

/// Entries of the maps of Services by map, but of those that remember clients.
fn map_entries(world: &World) -> Result<BTreeMap<String, u64>> {
    const OF_CLIENTS: [&str; 4] = ["affinities", "datagrams", "answers", "flows"];
    let status = agent_status(&world.cluster, "node1")?;
    let rows = status["ebpfMaps"].as_array().with_context(|| status.to_string())?;
    let row = |row: &serde_json::Value| {
        let name = row["name"].as_str().context("no name")?.to_owned();
        Ok((name, row["entries"].as_u64().context("no number")?))
    };
    let all: BTreeMap<String, u64> = rows.iter().map(row).collect::<Result<_>>()?;
    Ok(all.into_iter().filter(|(name, _)| !OF_CLIENTS.contains(&name.as_str())).collect())
}

/// Maps, programs and attachments in eBPF.
fn pins(world: &World) -> Result<BTreeSet<String>> {
    let text = run(&world.cluster, "node1", "find /sys/fs/bpf -type f")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// No address is anybody's twice, or nobody's and yet not free.
pub fn check_addresses(world: &World) -> Result<()> {
    for node in ["node1", "node2"] {
        run(&world.cluster, node, "flatnet ipam check")?;
    }
    Ok(())
}
