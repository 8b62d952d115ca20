//! What is on the machine: taken before and after, to show that nothing stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// How deep cgroups are looked at.
const CGROUP_DEPTH: usize = 6;
/// How deep the directories of others lie, such as `/sys/fs/cgroup/memory/other`.
const OTHERS_DEPTH: usize = 5;

/// Links, namespaces, mounts, cgroups, rules, routes, processes and files, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Looks at the machine.
    ///
    /// # Errors
    /// When a place cannot be read.
    pub fn take() -> Result<Self> {
        let mut lines = BTreeSet::new();
        let commands: [(&str, &[&str]); 6] = [
            ("ip", &["-o", "link", "show"]),
            ("ip", &["route", "show", "table", "all"]),
            ("ip", &["-o", "address", "show"]),
            ("ip", &["netns", "list"]),
            ("nft", &["list", "ruleset"]),
            ("lsns", &["--noheadings", "--output", "NS,TYPE"]),
        ];
        for (program, arguments) in commands {
            let output = Command::new(program)
                .args(arguments)
                .output()
                .with_context(|| format!("starting {program}"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            lines.extend(text.lines().map(|line| format!("{program}: {}", stable(line))));
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        lines.extend(mounts.lines().map(|line| format!("mount: {line}")));
        directories(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, &mut lines);
        for place in [
            "/var/lib",
            "/run",
            "/etc",
            "/opt",
            "/run/flatnet",
            "/var/lib/flatnet",
            "/etc/cni",
            "/opt/cni",
            "/var/lib/cni",
            "/run/netns",
        ] {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                lines.insert(format!("file: {}", entry.path().display()));
            }
        }
        lines.extend(processes());
        Ok(Self(lines))
    }

    /// Fails naming what was added or lost since `before`.
    ///
    /// # Errors
    /// When anything differs.
    pub fn ensure_same_as(&self, before: &Self) -> Result<()> {
        // Processes and namespaces of others come to their end by themselves, and so do cgroups of
        // others, which whoever made them removes after their last process.
        let is_foreign_cgroup =
            |line: &&String| line.starts_with("cgroup:") && !line.contains("/flatnet");
        let fleeting = |line: &&String| {
            line.starts_with("lsns:") || line.starts_with("process:") || is_foreign_cgroup(line)
        };
        // Whoever has cgroups below the root of a hierarchy makes more of them there.
        let is_others_child = |line: &&String| {
            let (parent, _) = line.rsplit_once('/').unwrap_or_default();
            let is_below_root = parent.matches('/').count() >= OTHERS_DEPTH;
            is_foreign_cgroup(line) && is_below_root && before.0.contains(parent)
        };
        let added = self.0.difference(&before.0).filter(|line| !is_others_child(line));
        let added: Vec<&String> = added.collect();
        let lost: Vec<&String> =
            before.0.difference(&self.0).filter(|line| !fleeting(line)).collect();
        ensure!(added.is_empty() && lost.is_empty(), "added {added:#?}, lost {lost:#?}");
        Ok(())
    }
}

/// Our own programs that run, by path.
fn processes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(program) = fs::read_link(entry.path().join("exe")) else { continue };
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|name| name.starts_with("flatnet")) {
            found.insert(format!("process: {} {}", entry.path().display(), program.display()));
        }
    }
    found
}

fn directories(directory: &Path, depth: usize, lines: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            lines.insert(format!("cgroup: {}", entry.path().display()));
            directories(&entry.path(), depth - 1, lines);
        }
    }
}

/// Without counters that run by themselves.
fn stable(line: &str) -> String {
    let words = line.split_whitespace();
    let mut kept = Vec::new();
    let mut skip = false;
    for word in words {
        if std::mem::take(&mut skip) {
            continue;
        }
        match word {
            "valid_lft" | "preferred_lft" | "expires" | "packets" | "bytes" => skip = true,
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}
