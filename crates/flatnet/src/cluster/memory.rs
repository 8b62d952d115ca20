//! What a cluster's own processes cost in memory.

use std::fs;
use std::path::Path;

use super::cgroups;
use super::paths::Paths;
use super::preflight;

/// The result for people.
pub fn sentence(kilobytes: u64) -> String {
    let megabytes = kilobytes as f64 / 1024.0;
    format!("Memory of flatnet's own processes: {megabytes:.1} MB (PSS)")
}

/// Memory of all our own processes, pauses included, containers not: the sum of proportional set
/// sizes, so that shared pages count once.
pub fn own_kilobytes(paths: &Paths, supervisor: i32) -> u64 {
    let mut processes = cgroups::members(&paths.cgroup());
    processes.insert(supervisor);
    processes.iter().filter(|pid| is_ours(**pid)).filter_map(|pid| pss_kilobytes(*pid)).sum()
}

fn is_ours(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned());
        matches!(name.as_deref(), Some("flatnet" | preflight::DNS_WORKER | "flatnet-pause"))
    })
}

fn pss_kilobytes(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup"));
    let rollup = rollup.ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
