//! What is on the machine: taken before and after, to show that nothing stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster;

/// How deep cgroups are looked at.
const CGROUP_DEPTH: usize = 6;
/// How deep the directories of others lie, such as `/sys/fs/cgroup/memory/other`.
const OTHERS_DEPTH: usize = 5;
/// How cgroups and mounts of other crates' tests are called, which no suite here has.
const OF_TESTS: [&str; 5] =
    ["/flatnet-lab-", "/flatnet-bpf-", "/flatnet-sockets-", "/fn-paths-", "/tmp-fn-paths-"];

/// Links, namespaces, mounts, cgroups, rules, routes, processes and files, a line each, but for what
/// evidently belongs to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    lines: BTreeSet<String>,
    /// Clusters that are not the suites'.
    others: BTreeSet<String>,
}

impl Inventory {
    /// Looks at the machine.
    ///
    /// # Errors
    /// When a place cannot be read.
    pub fn take() -> Result<Self> {
        let mut others = Others::find()?;
        let mut lines = BTreeSet::new();
        let commands: [(&str, &[&str]); 5] = [
            ("ip", &["-o", "link", "show"]),
            ("ip", &["route", "show", "table", "all"]),
            ("ip", &["-o", "address", "show"]),
            ("ip", &["netns", "list"]),
            ("nft", &["list", "ruleset"]),
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
        // One may have come meanwhile.
        others.clusters.extend(Others::find()?.clusters);
        lines.extend(others.traces_of_processes());
        Ok(Self { lines, others: others.clusters })
    }

    /// Fails naming what was added or lost since `before`.
    ///
    /// # Errors
    /// When anything differs.
    pub fn ensure_same_as(&self, before: &Self) -> Result<()> {
        let others: Vec<&String> = self.others.union(&before.others).collect();
        let is_others = |line: &&String| {
            OF_TESTS.iter().any(|name| line.contains(name))
                || others.iter().any(|name| is_of_cluster(line, name))
        };
        // Processes and namespaces of others come to their end by themselves, and so do cgroups of
        // others, which whoever made them removes after their last process.
        let is_foreign_cgroup =
            |line: &&String| line.starts_with("cgroup:") && !line.contains("/flatnet");
        let fleeting = |line: &&String| {
            let begins = |kind| line.starts_with(kind);
            begins("namespace:") || begins("process:") || is_foreign_cgroup(line)
        };
        // Whoever has cgroups below the root of a hierarchy makes more of them there.
        let is_others_child = |line: &&String| {
            let (parent, _) = line.rsplit_once('/').unwrap_or_default();
            let is_below_root = parent.matches('/').count() >= OTHERS_DEPTH;
            is_foreign_cgroup(line) && is_below_root && before.lines.contains(parent)
        };
        let added = self.lines.difference(&before.lines);
        let added = added.filter(|line| !is_others_child(line) && !is_others(line));
        let added: Vec<&String> = added.collect();
        let lost = before.lines.difference(&self.lines);
        let lost: Vec<&String> = lost.filter(|line| !fleeting(line) && !is_others(line)).collect();
        ensure!(added.is_empty() && lost.is_empty(), "added {added:#?}, lost {lost:#?}");
        Ok(())
    }
}

/// Whose work beside the suite can be told from it.
struct Others {
    /// Clusters that no suite and not this program has.
    clusters: BTreeSet<String>,
    /// This program's session: what it starts is in it, or leads one of its own.
    session: String,
}

impl Others {
    fn find() -> Result<Self> {
        let mut clusters = BTreeSet::new();
        for place in ["/run/flatnet", "/var/lib/flatnet"] {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                clusters.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        clusters.retain(|name| !cluster::is_of_suites(name));
        let session = session_of(Path::new("/proc/self")).context("no session in /proc")?;
        Ok(Self { clusters, session })
    }

    /// Our programs that run, by path, and the namespaces of all processes, without those that
    /// others have alone.
    fn traces_of_processes(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = entry.path();
            // Of what is no process, or has ended meanwhile, there is nothing to read.
            let Ok(program) = fs::read_link(process.join("exe")) else { continue };
            if self.have(&process) {
                continue;
            }
            let name = program.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with("flatnet")) {
                found.insert(format!("process: {} {}", process.display(), program.display()));
            }
            for entry in fs::read_dir(process.join("ns")).into_iter().flatten().flatten() {
                if let Ok(namespace) = fs::read_link(entry.path()) {
                    found.insert(format!("namespace: {}", namespace.display()));
                }
            }
        }
        found
    }

    /// Whether a process is in another cluster, or in another session whose leader lives.
    fn have(&self, process: &Path) -> bool {
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if self.clusters.iter().any(|name| groups.contains(&format!("/flatnet/{name}/"))) {
            return true;
        }
        let Some(session) = session_of(process) else { return false };
        let leader = Path::new("/proc").join(&session);
        session != self.session && leader != process && leader.join("exe").exists()
    }
}

/// The process id of the leader of a process's session (`/proc/PID/stat`, the sixth field).
fn session_of(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The second field, a name in brackets, may have spaces and brackets of its own.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(3).map(str::to_owned)
}

/// Whether a line is about a cluster: its link on the host, its named namespaces, its mounts, cgroups
/// and files, or the directories that it shares with all other clusters.
fn is_of_cluster(line: &str, name: &str) -> bool {
    let (link, namespace, directory) =
        (format!("fn-{name}"), format!("{name}-"), format!("/flatnet/{name}"));
    let is_link = |word: &str| word.split(['@', ':']).next() == Some(link.as_str());
    let is_namespace = |word: &str| {
        let word = word.strip_prefix("/run/netns/").unwrap_or(word);
        word.starts_with(&namespace)
    };
    let is_in_directory = |word: &str| {
        let rest = word.split_once(&directory).map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is_shared = |word: &str| word.starts_with('/') && word.ends_with("/flatnet");
    let mut words = line.split_whitespace().skip(1);
    words
        .any(|word| is_link(word) || is_namespace(word) || is_in_directory(word) || is_shared(word))
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use super::*;

    fn inventory(lines: &[&str], others: &[&str]) -> Inventory {
        let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Inventory { lines: set(lines), others: set(others) }
    }

    #[test]
    fn what_a_cluster_of_another_name_has_is_not_counted_and_all_of_ours_is() {
        let of = |name: &str| {
            [
                format!("ip: 9: fn-{name}@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500"),
                format!("ip: 10.244.0.0/24 via 172.30.0.2 dev fn-{name} proto 102"),
                format!("ip: {name}-node1 (id: 0)"),
                format!("file: /run/netns/{name}-node1"),
                format!("mount: nsfs /run/flatnet/{name}/ns/node1.net nsfs rw 0 0"),
                format!("cgroup: /sys/fs/cgroup/memory/flatnet/{name}"),
                format!("cgroup: /sys/fs/cgroup/memory/flatnet/{name}/node1"),
                format!("file: /var/lib/flatnet/{name}"),
            ]
        };
        let before = inventory(&["file: /etc"], &[]);
        for line in of("other") {
            let now = inventory(&["file: /etc", &line], &["other"]);
            now.ensure_same_as(&before).expect("another's came");
            before.ensure_same_as(&now).expect("another's went");
            let unknown = inventory(&["file: /etc", &line], &["others", "othe"]);
            unknown.ensure_same_as(&before).expect_err(&line);
        }
        for line in of("harm") {
            let now = inventory(&["file: /etc", &line], &["other"]);
            now.ensure_same_as(&before).expect_err(&line);
        }
    }

    #[test]
    fn the_directories_of_all_clusters_are_not_counted_while_others_have_some() {
        let before = inventory(&[], &[]);
        for line in ["file: /run/flatnet", "cgroup: /sys/fs/cgroup/flatnet"] {
            inventory(&[line], &["other"]).ensure_same_as(&before).expect("another's");
            inventory(&[line], &[]).ensure_same_as(&before).expect_err(line);
        }
    }

    #[test]
    fn what_tests_of_other_crates_have_is_not_counted() {
        let cgroup = "cgroup: /sys/fs/cgroup/unified/flatnet-lab-12327-5/147";
        let mount = "mount: bpf /tmp/flatnet-bpf-24459-76 bpf rw,relatime,mode=700 0 0";
        let now = inventory(&[cgroup, mount], &[]);
        now.ensure_same_as(&inventory(&[], &[])).expect("a lab's");
    }

    /// The namespaces of a process of this session count, and those of a leader that left it too;
    /// those of a process whose leader lives in another session do not.
    #[test]
    fn processes_of_other_sessions_are_not_counted() {
        let of_this = || Others::find().expect("a session");
        let child = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("a shell");
            let mut line = String::new();
            let output = child.stdout.take().expect("its output");
            BufReader::new(output).read_line(&mut line).expect("its process id");
            let process = Path::new("/proc").join(line.trim());
            (child, process)
        };
        let here = child("echo $$; read end");
        let leader = child("exec setsid -f -w sh -c 'echo $$; read end'");
        let follower =
            child("exec setsid -f -w sh -c '(sh -c \"echo \\$\\$; read end\" <&0); true'");
        assert!(!of_this().have(&here.1), "of this session");
        assert!(!of_this().have(&leader.1), "nobody else answers for a leader");
        assert!(of_this().have(&follower.1), "of another session");
        for (mut child, _) in [here, leader, follower] {
            drop(child.stdin.take());
            child.wait().expect("its end");
        }
    }
}
