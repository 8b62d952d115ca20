//! What the kernel itself takes for a node, by its own accounts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of a slot in the table of tracked connections: the head of a list.
const SLOT_BYTES: u64 = 8;

/// A control group of the agents that are measured: whose memory of the kernel is counted.
pub struct Group {
    directory: PathBuf,
    is_v1: bool,
}

impl Group {
    pub fn make(name: &str) -> Self {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let is_v1 = v1.is_dir();
        let directory = if is_v1 { v1 } else { v2 }.join(name);
        fs::create_dir(&directory).expect("a control group");
        Self { directory, is_v1 }
    }

    pub fn take_in(&self, process: u32) {
        let members = self.directory.join("cgroup.procs");
        fs::write(members, process.to_string()).expect("a member");
    }

    /// What the kernel has made for the members and keeps, wherever it hangs.
    pub fn kernel_kb(&self) -> u64 {
        if self.is_v1 {
            return read_number(&self.directory.join("memory.kmem.usage_in_bytes")) / 1024;
        }
        let text = fs::read_to_string(self.directory.join("memory.stat")).expect("an account");
        let line = text.lines().find_map(|line| line.strip_prefix("kernel "));
        line.and_then(|number| number.parse::<u64>().ok()).expect("a number") / 1024
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            println!("{} stays: {error}", self.directory.display());
        }
    }
}

/// eBPF maps.
pub struct Maps {
    pub count: usize,
    pub kb: u64,
}

/// The maps that a process has open, each once, with what the kernel says that they take.
pub fn maps_of(process: u32) -> Maps {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo")).expect("a process") {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry.expect("an entry").path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok())
        };
        // Programs have `memlock` too.
        if let (Some(map), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(map, bytes);
        }
    }
    Maps { count: maps.len(), kb: maps.values().sum::<u64>() / 1024 }
}

/// What connection tracking takes on this machine, whatever it tracks.
pub struct ConnectionTracking {
    pub slots: u64,
    pub table_kb: u64,
    /// Of one connection, without its extensions.
    pub connection_bytes: u64,
}

pub fn connection_tracking() -> ConnectionTracking {
    let slots = read_number(Path::new("/proc/sys/net/netfilter/nf_conntrack_buckets"));
    let slabs = fs::read_to_string("/proc/slabinfo").expect("the kernel's slabs");
    let mut fields = slabs
        .lines()
        .find(|line| line.starts_with("nf_conntrack "))
        .expect("connection tracking")
        .split_whitespace();
    let connection_bytes = fields.nth(3).and_then(|size| size.parse().ok()).expect("a size");
    ConnectionTracking { slots, table_kb: slots * SLOT_BYTES / 1024, connection_bytes }
}

fn read_number(file: &Path) -> u64 {
    let text = fs::read_to_string(file).expect("a file of the kernel");
    text.trim().parse().expect("a number")
}
