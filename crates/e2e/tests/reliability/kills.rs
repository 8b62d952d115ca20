//! Agents that die, stay away, are stopped, or find the rules of another version: the data path
//! does not notice.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::eventually;
use e2e::load::Outcome;
use e2e::processes::{CONVERGED, Held, OnNode, agent_status, converged, signal, start_agent};

use super::backends::nothing_lost;
use super::ebpf::drained;
use super::forgery::{Arrived, Forger};
use super::losses::{Losses, RUNS_MAX};
use super::schedule::Random;
use super::world::{NAMESPACE, World};

/// R-01.
const KILLS: usize = 50;
/// How long an agent lives before the next kill, in milliseconds: some die while they start, some
/// while they write, some at rest.
pub const LIFE_MS: std::ops::Range<u64> = 20..400;
/// A Service comes or goes at every so many kills, so that agents have something to write.
const KILLS_A_CHANGE: usize = 5;
/// How long R-01's load lasts, with kills and without.
const KILLED_S: u64 = 20;
/// How long agents are away under load (R-02).
const DOWN_S: u64 = 60;
/// How long they are stopped under load (R-04).
const STOPPED_S: u64 = 30;
/// How long a replacement of all rules is under load.
const UPGRADED_S: u64 = 8;
/// Rounds of replacing them.
const UPGRADES: usize = 3;
/// Restarts that must write nothing.
const SILENT_RESTARTS: usize = 5;
/// The address of links that mark where monitors are: one that is late finds no name any more.
const MARK_ADDRESS: &str = "02:6d:61:72:6b:00";
/// Monitors listen this soon after their start, on a busy machine too.
const LISTENING: Duration = Duration::from_secs(30);
/// What changed while an agent was away is in the kernel this long after its return, on a busy
/// machine too.
const CAUGHT_UP: Duration = Duration::from_secs(20);

/// R-01, with X-07: meanwhile a pod sends under the names of others, and none of it arrives.
///
/// A run in which the machine itself dropped packets says nothing of ours, and one in which it was
/// too busy to send them, or to be done in time, says nothing at all: it is done again, for longer.
pub fn killed_under_load(world: &World) -> Result<()> {
    let (calm, load_s) = calm(world)?;
    let forger = Forger::prepare(world)?;
    for run in 0..RUNS_MAX {
        let before = Losses::take(&world.cluster)?;
        let (killed, forged) = killed_once(world, &forger, load_s << run)?;
        let lost = Losses::take(&world.cluster)? - before;
        println!("    {lost:?}, {forged:?}");
        forged.ensure_all_stopped()?;
        let is_no_worse = killed.failed <= calm.failed && killed.cut <= calm.cut;
        if is_no_worse && !killed.is_inconclusive {
            return forger.remove();
        }
        ensure!(
            is_no_worse || lost.is_of_the_machine(),
            "{killed:?}, and without the disturbance {calm:?}; {lost:?}"
        );
    }
    bail!("in each of {RUNS_MAX} runs the machine had no room or no time for packets")
}

/// What the load comes to without kills, and how long it had to last, in seconds.
fn calm(world: &World) -> Result<(Outcome, u64)> {
    for run in 0..RUNS_MAX {
        let load_s = KILLED_S << run;
        let outcome = world.under_load(load_s, || changes(world, KILLS, |_| Ok(())))?;
        if !outcome.is_inconclusive {
            return Ok((outcome, load_s));
        }
    }
    bail!("in each of {RUNS_MAX} runs without kills the machine had no time for packets")
}

fn killed_once(world: &World, forger: &Forger, load_s: u64) -> Result<(Outcome, Arrived)> {
    let held = Held::hold(&world.cluster, &["node1", "node2"])?;
    let stream = forger.start()?;
    let mut random = Random::from_seed(1);
    let killed = world.under_load(load_s, || {
        changes(world, KILLS, |round| {
            let agent = held.agent(["node1", "node2"][round % 2])?;
            let life_ms = random.within(LIFE_MS);
            std::thread::sleep(Duration::from_millis(life_ms));
            agent.kill()
        })
    });
    let forged = stream.finish()?;
    drop(held);
    back(world)?;
    Ok((killed?, forged))
}

/// Services come and go; `each` is done as often as agents are killed.
pub fn changes(
    world: &World,
    kills: usize,
    mut each: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    for round in 0..kills {
        each(round)?;
        let name = format!("change-{}", round / KILLS_A_CHANGE);
        match round % KILLS_A_CHANGE {
            0 => world.make_service(&name)?,
            last if last + 1 == KILLS_A_CHANGE => delete_service(world, &name)?,
            _ => {}
        }
    }
    Ok(())
}

/// R-02.
pub fn down_under_load(world: &World) -> Result<()> {
    back(world)?;
    let held = Held::hold(&world.cluster, &["node1", "node2"])?;
    nothing_lost(world, "without agents", DOWN_S, || world.make_service("while-down"))?;
    let absent = agent_status(&world.cluster, "node1");
    ensure!(absent.is_err(), "an agent ran: {absent:?}");
    drop(held);
    caught_up(world, "while-down")
}

/// R-03: an agent finds the table of another version, with rules that it does not know in every
/// chain, a chain and a set too many, and known ones missing. It replaces all in one transaction.
pub fn upgraded_under_load(world: &World) -> Result<()> {
    let held = Held::hold(&world.cluster, &["node1", "node2"])?;
    nothing_lost(world, "rules of another version", UPGRADED_S, || {
        for _ in 0..UPGRADES {
            for node in ["node1", "node2"] {
                world.cluster.on_node(node, &["sh", "-c", OTHER_VERSION])?;
                let agent = held.agent(node)?;
                converged(&world.cluster, node)?;
                let rules = world.cluster.on_node(node, &["nft", "list", "ruleset"])?;
                ensure!(!rules.contains("other-version"), "rules of the other version stay");
                ensure!(!rules.contains(OTHER_FINGERPRINT), "rules of the other version stay");
                agent.kill()?;
            }
        }
        Ok(())
    })?;
    drop(held);
    back(world)
}

/// No text of ours has this fingerprint: FNV-1a of the right length, made up.
const OTHER_FINGERPRINT: &str = "flatnet 0123456789abcdef";
/// Writes such a table in one transaction, as that version would have.
const OTHER_VERSION: &str = r#"
{ echo 'add set ip flatnet other-version { type ipv4_addr; }'
  echo 'add chain ip flatnet other-version'
  echo 'add rule ip flatnet other-version accept comment "flatnet 0123456789abcdef"'
  for chain in $(nft list table ip flatnet | sed -n 's/^\tchain \(.*\) {/\1/p'); do
    echo "insert rule ip flatnet $chain counter comment \"flatnet 0123456789abcdef\""
  done
} | nft -f -"#;

/// R-04: nothing is asked of a stopped agent that the kernel does not do alone.
pub fn stopped_under_load(world: &World) -> Result<()> {
    let pid = world.cluster.process("agent/node1")?;
    signal(pid, "STOP")?;
    let lost =
        nothing_lost(world, "a stopped agent", STOPPED_S, || world.make_service("while-stopped"));
    signal(pid, "CONT")?;
    lost?;
    ensure!(world.cluster.process("agent/node1")? == pid, "the agent was started anew");
    caught_up(world, "while-stopped")
}

/// R-05, with a change of the test's own at the end, which the counters must see.
pub fn silent_restarts(world: &World) -> Result<()> {
    drained(world)?;
    back(world)?;
    let held = Held::hold(&world.cluster, &["node1"])?;
    let monitors = listening(world)?;
    for _ in 0..SILENT_RESTARTS {
        let agent = held.agent("node1")?;
        let status = converged(&world.cluster, "node1")?;
        ensure!(status["operationsTotal"] == 0, "a restart wrote: {status}");
        agent.kill()?;
    }
    nothing_written(world, &monitors)
}

/// Listens to what is written on the first node, whose agent does not run.
pub fn listening(world: &World) -> Result<[OnNode; 3]> {
    let cluster = &world.cluster;
    eventually("the kernel has checked its own addresses", CONVERGED, || {
        let tentative =
            cluster.on_node("node1", &["ip", "-6", "-o", "address", "show", "tentative"])?;
        ensure!(tentative.is_empty(), "{tentative}");
        Ok(())
    })?;
    let monitors = [
        OnNode::start(cluster, "node1", "nft-monitor", "nft monitor")?,
        OnNode::start(cluster, "node1", "ip-monitor", "ip monitor link address route rule neigh")?,
        OnNode::start(cluster, "node1", "fdb-monitor", "bridge monitor fdb")?,
    ];
    mark(world, &monitors, "begin")?;
    Ok(monitors)
}

/// Fails where anything was written since [`listening`] began.
pub fn nothing_written(world: &World, monitors: &[OnNode]) -> Result<()> {
    mark(world, monitors, "end")?;
    for monitor in monitors {
        let said = monitor.said()?;
        let lines: Vec<&str> = said.lines().collect();
        let begin = lines.iter().rposition(|line| line.contains("mark-begin")).unwrap_or(0);
        let written: Vec<&&str> =
            lines.iter().skip(begin).filter(|line| is_a_write(line)).collect();
        ensure!(written.is_empty(), "restarts wrote {written:#?}");
    }
    Ok(())
}

/// A link and a table of the test's own come and go, so that every monitor is known to hear.
fn mark(world: &World, monitors: &[OnNode], when: &str) -> Result<()> {
    let name = format!("mark-{when}");
    let script = format!(
        "nft add table ip {name} && nft delete table ip {name} && \
         ip link add {name} address {MARK_ADDRESS} type bridge && ip link delete {name}"
    );
    eventually("the monitors hear", LISTENING, || {
        // A monitor that is not listening yet hears the next one.
        world.cluster.on_node("node1", &["sh", "-c", &script])?;
        // The bridge of the test has no forwarding entries: that monitor has nothing to hear.
        for monitor in monitors.iter().take(2) {
            let said = monitor.said()?;
            ensure!(
                said.lines().any(|line| line.contains("elete") && line.contains(&name)),
                "{said}"
            );
        }
        Ok(())
    })
}

/// Whether a line of a monitor is about something that an agent writes: neighbours that the kernel
/// learns come and go by themselves, and the test's own marks are no writes of anybody else.
fn is_a_write(line: &str) -> bool {
    let learned = ["REACHABLE", "STALE", "DELAY", "PROBE", "INCOMPLETE", "FAILED"];
    let is_mark = line.contains("mark-") || line.contains(MARK_ADDRESS);
    let is_own = is_mark || line.trim().is_empty() || line.starts_with("    link/");
    let is_generation = line.starts_with("# new generation");
    !is_own && !is_generation && !learned.iter().any(|state| line.contains(state))
}

/// R-11.
pub fn second_agent(world: &World) -> Result<()> {
    back(world)?;
    let first = world.cluster.process("agent/node1")?;
    let mut second = start_agent(&world.cluster, "node1")?;
    let succeeded = second.ended(CAUGHT_UP)?;
    let said = second.said()?;
    ensure!(!succeeded, "a second agent ran: {said}");
    ensure!(said.contains("another agent works on this node"), "{said}");
    ensure!(said.contains(&format!("process {first}")), "{said}");
    ensure!(world.cluster.process("agent/node1")? == first, "the first agent died");
    Ok(())
}

/// Waits until both agents run again under the supervisor and have nothing to do.
pub fn back(world: &World) -> Result<()> {
    for node in ["node1", "node2"] {
        converged(&world.cluster, node)?;
    }
    Ok(())
}

/// A Service that was made meanwhile answers; it is deleted then.
pub fn caught_up(world: &World, service: &str) -> Result<()> {
    let address = world.cluster.field(NAMESPACE, "service", service, "/spec/clusterIP")?;
    let url = format!("http://{address}/");
    eventually("the new Service answers", CAUGHT_UP, || {
        let words = ["toolbox", "http", &url, "--timeout-ms", "500"];
        world.cluster.exec(NAMESPACE, "client", &words).map(drop)
    })?;
    delete_service(world, service)?;
    back(world)
}

fn delete_service(world: &World, name: &str) -> Result<()> {
    world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, name]).map(drop)
}
