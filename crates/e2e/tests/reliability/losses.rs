//! Where a datagram was lost: what the kernel counts of its own queues and of full sockets, apart
//! from all that rules, routes and the tracking of connections do to packets.

use std::collections::BTreeMap;
use std::ops::Sub;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;

/// Runs of a load until one is not spoilt by the machine.
pub const RUNS_MAX: usize = 3;

/// What was counted until now, in all network namespaces of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Packets that a processor's queue of received packets had no room for, whichever program of
    /// the machine they were for (`/proc/net/softnet_stat`).
    pub queues: u64,
    /// Datagrams that found their socket full (`/proc/net/snmp`).
    pub sockets: u64,
    /// Packets that the tracking of connections dropped (`/proc/net/stat/nf_conntrack`).
    pub tracking: u64,
}

impl Losses {
    /// Reads all counters.
    ///
    /// # Errors
    /// When a file of the kernel's is not as it is documented.
    pub fn take(cluster: &Cluster) -> Result<Self> {
        let mut losses = Self { queues: queues()?, ..Self::default() };
        for directory in namespaces(cluster)?.values() {
            // A process may have ended meanwhile; the namespace's others had the same numbers.
            let read = |file: &str| std::fs::read_to_string(Path::new(directory).join(file));
            let (Ok(sockets), Ok(tracking)) = (read("snmp"), read("stat/nf_conntrack")) else {
                continue;
            };
            losses.sockets += sum(&sockets, "Udp:", &["RcvbufErrors"], 10)?;
            losses.tracking += sum(&tracking, "", &["insert_failed", "drop", "early_drop"], 16)?;
        }
        Ok(losses)
    }

    /// Whether packets were lost by want of processor time alone, and so whoever loses them.
    pub fn is_of_the_machine(&self) -> bool {
        self.queues > 0 || self.sockets > 0
    }
}

impl Sub for Losses {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            queues: self.queues.saturating_sub(earlier.queues),
            sockets: self.sockets.saturating_sub(earlier.sockets),
            tracking: self.tracking.saturating_sub(earlier.tracking),
        }
    }
}

/// One line a processor; the second number is what was dropped.
fn queues() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| {
        let word = line.split_whitespace().nth(1).with_context(|| line.to_owned())?;
        Ok(u64::from_str_radix(word, 16)?)
    };
    text.lines().map(dropped).sum()
}

/// A process's view of each network namespace of the cluster, by namespace: all its processes are
/// in control groups of its own.
fn namespaces(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let group = format!("/flatnet/{}/", cluster.name);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // Of processes that end meanwhile, and of what is no process, there is nothing to read.
        let groups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let namespace = std::fs::read_link(process.join("ns/net"));
        if let (true, Ok(namespace)) = (groups.contains(&group), namespace) {
            let directory = process.join("net").display().to_string();
            found.insert(namespace.display().to_string(), directory);
        }
    }
    ensure!(!found.is_empty(), "no process is in a control group with {group}");
    Ok(found)
}

/// Sums columns that a first line names over all further lines; both begin with a word.
fn sum(text: &str, begin: &str, columns: &[&str], radix: u32) -> Result<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(begin));
    let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let mut sum = 0;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        for column in columns {
            let place = names.iter().position(|name| name == column);
            let word = place.and_then(|place| words.get(place)).context("an unknown format")?;
            sum += u64::from_str_radix(word, radix)?;
        }
    }
    Ok(sum)
}
