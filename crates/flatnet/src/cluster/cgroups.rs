//! A cluster's cgroups: `flatnet/CLUSTER/NODE` in every hierarchy that nodes use.
//!
//! Pure cgroup v2 and the hybrid layout (controllers in v1, an empty v2 beside) both work: a
//! hierarchy is a mount point, and a cluster has the same path below each.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The v1 controllers that pods of a node are accounted and limited by.
const V1_CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "cpuacct"];
/// Of these, what v2 limits by: its accounting of processor time needs none.
const V2_CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// How long processes that were killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The v1 controllers; empty for v2.
    pub controllers: Vec<String>,
}

/// The hierarchies of this machine that nodes use.
///
/// # Errors
/// When there is none at all.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let found = parse_mounts(&mounts);
    if found.is_empty() {
        bail!("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup and try again");
    }
    Ok(found)
}

fn parse_mounts(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind, options, ..] = fields[..] else { continue };
        let controllers: Vec<String> = match kind {
            "cgroup2" => vec![],
            "cgroup" => options
                .split(',')
                .filter(|option| V1_CONTROLLERS.contains(option))
                .map(str::to_owned)
                .collect(),
            _ => continue,
        };
        if kind == "cgroup" && controllers.is_empty() {
            continue;
        }
        let hierarchy = Hierarchy { mount: mount.into(), controllers };
        let seen = |other: &Hierarchy| other.controllers == hierarchy.controllers;
        if !found.iter().any(seen) {
            found.push(hierarchy);
        }
    }
    found
}

/// Makes one cgroup below every hierarchy.
///
/// # Errors
/// The kernel's, naming the directory.
pub fn create(path: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        let directory = hierarchy.mount.join(path);
        fs::create_dir_all(&directory)
            .with_context(|| format!("making cgroup {}", directory.display()))?;
    }
    Ok(())
}

/// Lets the cgroup have the controllers of v2 that its pods are limited by. Those that v1 has
/// taken, or that this machine withholds, are passed over: nodes say what they lack.
///
/// # Errors
/// When no hierarchy is mounted at all.
pub fn give_controllers(path: &Path) -> Result<()> {
    for hierarchy in hierarchies()?.iter().filter(|one| one.controllers.is_empty()) {
        for parent in ancestors(path) {
            let file = hierarchy.mount.join(parent).join("cgroup.subtree_control");
            for controller in V2_CONTROLLERS {
                let _ = fs::write(&file, format!("+{controller}"));
            }
        }
    }
    Ok(())
}

/// All groups above a group, topmost first.
fn ancestors(path: &Path) -> Vec<&Path> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above
}

/// Opens the files through which a process joins the cgroup: it writes `0` to each.
///
/// # Errors
/// The kernel's, naming the file.
pub fn open_for_joining(path: &Path) -> Result<Vec<OwnedFd>> {
    hierarchies()?
        .iter()
        .map(|hierarchy| {
            let file = hierarchy.mount.join(path).join("cgroup.procs");
            let handle = fs::OpenOptions::new().write(true).open(&file);
            Ok(handle.with_context(|| format!("opening {}", file.display()))?.into())
        })
        .collect()
}

/// The processes in the cgroup and below, in any hierarchy.
pub fn members(path: &Path) -> BTreeSet<i32> {
    let hierarchies = hierarchies().unwrap_or_default();
    hierarchies.iter().flat_map(|hierarchy| processes(&hierarchy.mount.join(path))).collect()
}

/// Kills every process in the cgroup and below, and removes the directories. An absent one is
/// fine.
///
/// # Errors
/// When processes outlive their SIGKILL, or the kernel keeps a directory.
pub fn destroy(path: &Path) -> Result<()> {
    let hierarchies = hierarchies()?;
    let roots: Vec<PathBuf> =
        hierarchies.iter().map(|hierarchy| hierarchy.mount.join(path)).collect();
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let alive: Vec<i32> = roots.iter().flat_map(|root| processes(root)).collect();
        if alive.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("processes {alive:?} in cgroup {} do not end", path.display());
        }
        for process in alive {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    for root in roots {
        remove_tree(&root, deadline)?;
    }
    Ok(())
}

fn processes(directory: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        // 0: a process that this PID namespace does not see.
        .filter(|&process| process > 0)
        .collect();
    for child in subdirectories(directory) {
        found.extend(processes(&child));
    }
    found
}

fn remove_tree(directory: &Path, deadline: Instant) -> Result<()> {
    for child in subdirectories(directory) {
        remove_tree(&child, deadline)?;
    }
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // The last process is gone from the list a moment before it is gone.
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("removing cgroup {}", directory.display()));
            }
        }
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_handed_down_from_the_top() {
        let above = ancestors(Path::new("flatnet/demo/node1"));
        assert_eq!(above, ["", "flatnet", "flatnet/demo"].map(Path::new));
    }

    #[test]
    fn hybrid_and_pure_layouts_are_read() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = parse_mounts(hybrid);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].controllers, ["cpu"]);
        assert_eq!(found[1].mount, Path::new("/sys/fs/cgroup/unified"));
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(parse_mounts(pure).len(), 1);
    }
}
