//! The DNS worker of a node dies, and is ended, while it is asked: the supervisor has its sockets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use e2e::processes::signal;
use e2e::questions::{Answers, Questions, ask};

use super::world::World;

/// How often the worker is killed, and how often it is told to end.
const KILLS: usize = 20;
const ENDS: usize = 5;
/// Issue 5, item 5: a killed worker is back in this time. A busy machine is late now and then; a
/// delay that is built in shows every time.
const BACK: Duration = Duration::from_millis(100);
/// The supervisor follows a process at once that lived for a second; others it lets wait.
const LIVED: Duration = Duration::from_millis(1100);
/// How long another process may take to be in the supervisor's report.
const REPORTED: Duration = Duration::from_secs(15);
const NAME: &str = "web.lab.svc.cluster.local";
const SERVER: [u8; 4] = [10, 41, 0, 10];

/// What the killed worker had read is asked again; everything else waits for its successor.
pub fn killed(world: &World) -> Result<()> {
    let (mut gaps, answers) = under_load(world, KILLS, "KILL")?;
    gaps.sort_unstable();
    let (first, middle) = (gaps.first().context("no gaps")?, gaps.get(KILLS / 2));
    println!("    {answers:?}; back after {first:?}, {middle:?} and at most {:?}", gaps.last());
    ensure!(answers.iter().all(|one| one.lost == 0), "{answers:?}");
    ensure!(*first <= BACK, "{gaps:?}");
    Ok(())
}

/// As in an upgrade: the old process ends when it has answered, and a new one takes its place.
pub fn replaced(world: &World) -> Result<()> {
    let (_, answers) = under_load(world, ENDS, "TERM")?;
    println!("    {answers:?}");
    ensure!(answers.iter().all(|one| one.asked_again == 0 && one.lost == 0), "{answers:?}");
    Ok(())
}

/// Signals one worker after another, and asks at once. Answers how long each answer took, and what
/// came of the questions over UDP and TCP meanwhile.
fn under_load(world: &World, times: usize, with: &str) -> Result<(Vec<Duration>, [Answers; 2])> {
    let node = &world.cluster.nodes[0];
    let namespace = world.network_of(node);
    let worker = format!("dns/{node}");
    let questions = Questions::start(&namespace, SERVER.into(), NAME)?;
    let mut gaps = Vec::new();
    for _ in 0..times {
        let old = world.cluster.process(&worker)?;
        std::thread::sleep(LIVED);
        signal(old, with)?;
        gaps.push(ask(&namespace, SERVER.into(), NAME)?);
        eventually("another worker runs", REPORTED, || {
            ensure!(world.cluster.process(&worker)? != old, "still the old process");
            Ok(())
        })?;
    }
    Ok((gaps, questions.finish()?))
}
