//! What a node of the lab needs for Services in eBPF: a cgroup whose sockets are translated, and
//! an eBPF file system. The nodes' clients are threads of this process, so the cgroups are those of
//! threads (`cgroup.type`, Linux's admin-guide/cgroup-v2).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kernel::bpf::node::NodeServices;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Attempts to remove a cgroup, and the time between two.
const REMOVALS_MAX: u32 = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// A mount of cgroups of version 2, with this process in one of its own; it goes with the last
/// node.
struct Machine {
    root: PathBuf,
    own: PathBuf,
    before: PathBuf,
}

/// One for all labs of the process, and how many nodes have a part of it. It comes and goes under
/// the lock: one that came while another goes would take that one's cgroup for the way back.
static MACHINE: Mutex<(usize, Option<Machine>)> = Mutex::new((0, None));

impl Machine {
    /// Makes room for one more node: the cgroup below which it has its own.
    fn join() -> Result<PathBuf> {
        let mut shared = MACHINE.lock().map_err(|_| anyhow!("another lab died"))?;
        let (nodes, machine) = &mut *shared;
        let machine = match machine {
            Some(machine) => machine,
            None => machine.insert(Self::new().context("cannot make a cgroup of version 2")?),
        };
        *nodes += 1;
        Ok(machine.own.clone())
    }

    fn leave() {
        let Ok(mut shared) = MACHINE.lock() else { return };
        let (nodes, machine) = &mut *shared;
        *nodes -= 1;
        if *nodes == 0 {
            *machine = None;
        }
    }

    fn new() -> Result<Self> {
        let root = temporary("cgroups")?;
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        let current = fs::read_to_string("/proc/self/cgroup")?;
        let current = current.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(current.context("this process has no cgroup of version 2")?);
        let own = root.join(format!("flatnet-lab-{}-{}", std::process::id(), number()));
        let machine = Self { root, own, before };
        fs::create_dir(&machine.own)?;
        fs::write(machine.own.join("cgroup.procs"), "0")?;
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        remove(&self.own);
        unmount(&self.root);
    }
}

/// One node's share of the machine.
pub(super) struct NodeCgroup {
    parent: PathBuf,
    path: PathBuf,
    file_system: PathBuf,
}

impl NodeCgroup {
    pub(super) fn new() -> Result<Self> {
        let file_system = temporary("bpf")?;
        let parent = Machine::join()?;
        let path = parent.join(number().to_string());
        let node = Self { parent, path, file_system };
        fs::create_dir(&node.path)?;
        fs::write(node.path.join("cgroup.type"), "threaded")?;
        Ok(node)
    }

    /// Services in eBPF of this node alone.
    pub(super) fn services(&self) -> NodeServices {
        NodeServices::at(&self.file_system).in_cgroup(&self.path)
    }

    /// Does the work as one of the node's or its pods' processes.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let enter = |path: &Path| {
            fs::write(path.join("cgroup.threads"), "0")
                .with_context(|| format!("cannot enter the cgroup {}", path.display()))
        };
        enter(&self.path)?;
        let done = work();
        enter(&self.parent)?;
        Ok(done)
    }
}

impl Drop for NodeCgroup {
    fn drop(&mut self) {
        remove(&self.path);
        unmount(&self.file_system);
        Machine::leave();
    }
}

/// A thread that has ended is in its cgroup for a moment yet.
fn remove(cgroup: &Path) {
    for _ in 0..REMOVALS_MAX {
        if fs::remove_dir(cgroup).is_ok() {
            return;
        }
        std::thread::sleep(REMOVAL_PAUSE);
    }
    eprintln!("cannot remove the cgroup {}", cgroup.display());
}

/// No two of this process are equal.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn temporary(what: &str) -> Result<PathBuf> {
    let name = format!("flatnet-lab-{}-{what}-{}", std::process::id(), number());
    let path = std::env::temp_dir().join(name);
    fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Without the mount whatever is pinned in it goes.
fn unmount(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(path);
}
