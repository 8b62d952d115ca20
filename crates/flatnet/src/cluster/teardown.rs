//! Takes a cluster away: processes, namespaces, links, mounts, cgroups, files. Every step takes
//! absence for success, so that a half-made or half-removed cluster goes away too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::paths::{Paths, RUN_ROOT, STATE_ROOT};
use super::spec::ClusterSpec;
use super::{cgroups, fabric, node_namespaces, supervisor};

/// How long a supervisor gets to stop its processes.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// What stays on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The objects and the credentials, for the next `up`.
    Objects,
}

/// Whether there is anything of the cluster on this machine.
pub fn exists(paths: &Paths) -> bool {
    paths.state().exists() || paths.run().exists()
}

/// Takes the cluster away.
///
/// # Errors
/// What could not be removed; calling it again goes on from there.
pub fn run(paths: &Paths, keep: Keep) -> Result<()> {
    stop_supervisor(paths)?;
    cgroups::destroy(&paths.cgroup())?;
    remove_parent_cgroup();
    for node in nodes(paths) {
        node_namespaces::release(paths, &node)?;
    }
    fabric::destroy(paths)?;
    node_namespaces::finish(paths)?;
    remove_tree(&paths.run())?;
    remove_if_empty(RUN_ROOT);
    match keep {
        Keep::Objects => {
            remove_tree(&paths.nodes())?;
            remove_tree(&paths.logs())?;
        }
        Keep::Nothing => {
            remove_tree(&paths.state())?;
            remove_if_empty(STATE_ROOT);
        }
    }
    Ok(())
}

fn stop_supervisor(paths: &Paths) -> Result<()> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut asked = false;
    // The lock is held exactly while a supervisor lives: a number in a file may be another's.
    while supervisor::is_running(paths)? {
        if let (false, Ok(Some(report))) = (asked, supervisor::report(paths)) {
            let _ = kill(Pid::from_raw(report.supervisor), Signal::SIGTERM);
            asked = true;
        }
        if Instant::now() > deadline {
            bail!(
                "the supervisor of cluster {} does not end: look at {}/supervisor.log",
                paths.name(),
                paths.logs().display()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The nodes that have handles or are in the cluster's file, which may be damaged.
fn nodes(paths: &Paths) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Ok(Some(spec)) = ClusterSpec::load(paths) {
        found.extend(spec.nodes.into_iter().map(|node| node.name));
    }
    for entry in fs::read_dir(paths.namespaces()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some((node, _)) = name.to_string_lossy().rsplit_once('.') {
            found.insert(node.to_owned());
        }
    }
    found
}

fn remove_parent_cgroup() {
    for hierarchy in cgroups::hierarchies().unwrap_or_default() {
        // Another cluster may still be in it.
        let _ = fs::remove_dir(hierarchy.mount.join("flatnet"));
    }
}

fn remove_tree(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn remove_if_empty(directory: &str) {
    // Another cluster may still be in it.
    let _ = fs::remove_dir(directory);
}
