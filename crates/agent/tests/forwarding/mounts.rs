//! What a machine has mounted for itself: an eBPF file system and a cgroup, which outlive its agent.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const NOTHING: Option<&str> = None;

/// Both of one machine; they go with the value.
pub struct Mounts {
    directory: PathBuf,
    cgroup: PathBuf,
}

/// Where a machine's eBPF file system is on the machine of the test.
pub fn bpf(directory: &Path) -> PathBuf {
    directory.join("bpf")
}

/// Where the machine of the test has cgroups of version 2.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let mut lines = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
    lines.next().and_then(|line| line.split(' ').nth(4)).expect("cgroups of version 2").into()
}

fn name(directory: &Path) -> String {
    directory.to_string_lossy().trim_matches('/').replace('/', "-")
}

impl Mounts {
    pub fn make(directory: &Path) -> Self {
        let own = bpf(directory);
        fs::create_dir_all(&own).expect("a directory");
        mount(Some("bpf"), &own, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .expect("an eBPF file system (these tests need root)");
        let cgroup = cgroups().join(name(directory));
        fs::create_dir(&cgroup).expect("a cgroup");
        Self { directory: directory.to_owned(), cgroup }
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = umount2(&bpf(&self.directory), MntFlags::MNT_DETACH);
        let removed = fs::remove_dir(&self.cgroup);
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "{}: {removed:?}",
            self.cgroup.display()
        );
    }
}

/// Lets the calling thread see the machine's mounts in the usual places, for as long as it lives.
pub fn enter(directory: &Path) {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, private, NOTHING).expect("private mounts");
    let cgroups = cgroups();
    let own = cgroups.join(name(directory));
    for (from, to) in [(bpf(directory), "/sys/fs/bpf".into()), (own, cgroups)] {
        mount(Some(&from), &to, NOTHING, MsFlags::MS_BIND, NOTHING).expect("in the usual place");
    }
}
