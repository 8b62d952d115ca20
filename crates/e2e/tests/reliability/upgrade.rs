//! another build, whose table is laid out otherwise, takes a node over and gives it back; and
//! the program's file is replaced under a cluster that runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::processes::{Held, OnNode, converged, signal};
use e2e::{eventually, program, workspace};

use super::backends::nothing_lost;
use super::kills::back;
use super::world::World;

/// A set that the rules of every node refer to, and what the other build calls it. Of one length
/// and alike at the end, so that it can be replaced within a program: compilers write the last
/// bytes of a name apart from the others.
const NAME: &str = "cluster-addresses";
const OTHER_NAME: &str = "service-addresses";
/// There and back.
const ROUNDS: usize = 2;
/// How long that is under load.
const LOAD_S: u64 = 15;
/// What died runs again within this, on a busy machine too.
const STARTED_AGAIN: Duration = Duration::from_secs(30);

/// Each build replaces the whole table of the other in one transaction.
pub fn there_and_back(world: &World) -> Result<()> {
    let (own, other) = (program("flatnet"), other_build()?);
    let held = Held::hold(&world.cluster, &["node1", "node2"])?;
    nothing_lost(world, "another build", LOAD_S, || {
        for _ in 0..ROUNDS {
            for (build, present, absent) in [(&other, OTHER_NAME, NAME), (&own, NAME, OTHER_NAME)] {
                for node in ["node1", "node2"] {
                    take_over(world, build, node)
                        .with_context(|| format!("{} on {node}", build.display()))?
                        .kill()?;
                    let rules = world.cluster.on_node(node, &["nft", "list", "ruleset"])?;
                    ensure!(rules.contains(present), "{node} has no set {present}: {rules}");
                    ensure!(!rules.contains(absent), "{node} still has {absent}: {rules}");
                }
            }
        }
        Ok(())
    })?;
    drop(held);
    back(world)
}

/// What dies after the file was replaced, as packages and `./x build` do it, starts again from the
/// new file.
pub fn replaced_file(world: &World) -> Result<()> {
    back(world)?;
    let file = program("flatnet").canonicalize()?;
    let new = file.with_file_name(".flatnet.new");
    std::fs::copy(&file, &new)?;
    std::fs::rename(&new, &file)?;
    let runs = |pid: i64| std::fs::read_link(format!("/proc/{pid}/exe"));
    let before = world.cluster.process("agent/node1")?;
    let was = runs(before)?;
    ensure!(was != file, "the file was not replaced: the agent runs {}", was.display());
    signal(before, "KILL")?;
    eventually("the supervisor starts the agent again", STARTED_AGAIN, || {
        let now = world.cluster.process("agent/node1")?;
        ensure!(now != before, "still the old process");
        // Until it has begun its program, it is the supervisor's copy.
        let runs = runs(now)?;
        ensure!(runs == file, "it runs {}", runs.display());
        Ok(())
    })?;
    back(world)
}

/// Runs that build's agent until it has nothing to do.
fn take_over(world: &World, build: &Path, node: &str) -> Result<OnNode> {
    let cluster = &world.cluster;
    let words = format!("{} agent --name {} --node-name {node}", build.display(), cluster.name);
    let agent = OnNode::start(cluster, node, "agent", &words)?;
    converged(cluster, node)?;
    Ok(agent)
}

/// The programs of this build, with the set's other name.
fn other_build() -> Result<PathBuf> {
    let own = program("flatnet");
    let directory = workspace().join("target/tmp/other-build");
    std::fs::create_dir_all(&directory)?;
    for entry in std::fs::read_dir(own.parent().context("no directory")?)? {
        let entry = entry?;
        std::fs::copy(entry.path(), directory.join(entry.file_name()))?;
    }
    let build = directory.join("flatnet");
    let mut bytes = std::fs::read(&build)?;
    let places: Vec<usize> = bytes
        .windows(NAME.len())
        .enumerate()
        .filter_map(|(place, window)| (window == NAME.as_bytes()).then_some(place))
        .collect();
    ensure!(!places.is_empty(), "the program does not name the set {NAME} any more");
    for place in places {
        bytes[place..place + NAME.len()].copy_from_slice(OTHER_NAME.as_bytes());
    }
    std::fs::write(&build, bytes)?;
    Ok(build.canonicalize()?)
}
