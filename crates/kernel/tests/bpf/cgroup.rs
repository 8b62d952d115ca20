//! A cgroup for the process of a test.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A cgroup of version 2 with this process in it; it goes with the value.
pub struct Cgroup {
    root: PathBuf,
    pub own: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    pub fn join() -> Self {
        let name = format!("flatnet-sockets-{}", std::process::id());
        let root = std::env::temp_dir().join(&name);
        fs::create_dir_all(&root).expect("a directory");
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .expect("cgroups of version 2 (these tests need root)");
        let current = fs::read_to_string("/proc/self/cgroup").expect("the own cgroup");
        let current =
            current.lines().find_map(|line| line.strip_prefix("0::/")).expect("version 2");
        let (own, before) = (root.join(&name), root.join(current));
        fs::create_dir(&own).expect("a cgroup");
        let cgroup = Self { root, own, before };
        cgroup.enter(&cgroup.own);
        cgroup
    }

    fn enter(&self, path: &Path) {
        fs::write(path.join("cgroup.procs"), "0").expect("into a cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.enter(&self.before);
        let _ = fs::remove_dir(&self.own);
        let _ = umount2(&self.root, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.root);
    }
}
