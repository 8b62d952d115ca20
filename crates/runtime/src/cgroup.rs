//! Control groups of pods, beside the group of the node's own processes. Pure cgroup v2 and the
//! hybrid layout (controllers in v1, an empty v2 beside) both work: each controller is used where the
//! machine has it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use model::layout;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pod::Resources;
use crate::quantity;

/// The directory of all pods.
const PODS: &str = "pods";
/// The pause process's group: a v2 group that hands out controllers holds no process itself. No
/// container can have this name.
const SANDBOX: &str = "_sandbox";
/// Controllers in use, as both versions name them.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// The period that CPU limits are counted in, microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// Less the kernel does not take, microseconds (kubelet's `MinQuotaPeriod`).
const MIN_QUOTA_US: i64 = 1_000;

/// The interface of a hierarchy's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller.
    V1,
    /// One for all.
    V2,
}

/// What one start of a container may have, and its part of what is scarce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, bytes.
    pub memory_bytes: Option<i64>,
    /// Processor time, thousandths of a processor.
    pub cpu_milli: Option<i64>,
    /// What of it was asked for: its part of a busy processor.
    pub cpu_request_milli: Option<i64>,
}

/// One hierarchy of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Those that limit here; none in the v2 of a hybrid layout.
    controllers: Vec<&'static str>,
    /// The group below which pods have theirs.
    directory: PathBuf,
    /// Where it is mounted: the topmost group that this process sees.
    mount: PathBuf,
}

/// The hierarchies of this machine.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Finds the groups that pods belong below, and which controllers limit there. Of a group that
    /// is named [`layout::SYSTEM_CGROUP`] pods are siblings: in v2 a group that holds processes
    /// hands no controller on.
    pub fn discover() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut hierarchies = find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let in_v1: Vec<&str> =
            hierarchies.iter().flat_map(|known| known.controllers.iter().copied()).collect();
        for second in hierarchies.iter_mut().filter(|known| known.version == Version::V2) {
            let there = fs::read_to_string(second.directory.join("cgroup.controllers"));
            let usable = usable(&there.unwrap_or_default(), &in_v1);
            second.controllers = hand_on(&second.directory, &usable);
        }
        let found = Self { hierarchies };
        let known = found.controllers();
        for missing in CONTROLLERS.iter().filter(|name| !known.contains_key(**name)) {
            tracing::warn!(
                "limits of {missing} do not hold for the pods of this node: neither cgroup v1 nor \
                 v2 has a controller {missing} that could be used here"
            );
        }
        found
    }

    /// The controllers that limit pods, each with the version by which it does.
    pub fn controllers(&self) -> BTreeMap<&'static str, Version> {
        let hierarchies = self.hierarchies.iter();
        hierarchies
            .flat_map(|known| known.controllers.iter().map(|name| (*name, known.version)))
            .collect()
    }

    /// Makes the groups of a pod, which may have at most `processes` processes and threads.
    /// Returns the files by which its pause process enters them.
    pub fn create_pod(&self, uid: &str, processes: u32) -> Vec<PathBuf> {
        let files = self.create(uid, SANDBOX, &Limits::default());
        for hierarchy in self.hierarchies.iter().filter(|known| known.limits("pids")) {
            set(&hierarchy.pod(uid), "pids.max", &processes.to_string());
        }
        files
    }

    /// Makes the groups of one start of a container, with its limits. Returns the files by which
    /// its processes enter them.
    pub fn create_container(
        &self,
        uid: &str,
        name: &str,
        restarts: u32,
        limits: &Limits,
    ) -> Vec<PathBuf> {
        self.create(uid, &format!("{name}-{restarts}"), limits)
    }

    /// Whether the kernel ended a process of this start for want of memory.
    pub fn ran_out_of_memory(&self, uid: &str, name: &str, restarts: u32) -> bool {
        let group = format!("{name}-{restarts}");
        self.hierarchies.iter().filter(|known| known.limits("memory")).any(|hierarchy| {
            let file = match hierarchy.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            let text = fs::read_to_string(hierarchy.pod(uid).join(&group).join(file));
            let text = text.unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count.trim() != "0")
        })
    }

    /// The groups of one start of a container.
    pub fn of_container(&self, uid: &str, name: &str, restarts: u32) -> Vec<PathBuf> {
        let group = format!("{name}-{restarts}");
        self.hierarchies.iter().map(|hierarchy| hierarchy.pod(uid).join(&group)).collect()
    }

    /// The topmost groups, which hold all that the node runs, and those that pods are below: the
    /// very root of version 2 tells nothing of memory.
    pub fn of_node(&self) -> Vec<PathBuf> {
        let topmost = self.hierarchies.iter().map(|hierarchy| hierarchy.mount.clone());
        let own = self.hierarchies.iter().map(|hierarchy| hierarchy.directory.clone());
        topmost.chain(own).collect()
    }

    /// Removes the groups of a start that has ended.
    pub fn remove_container(&self, uid: &str, name: &str, restarts: u32) {
        for hierarchy in &self.hierarchies {
            let _ = fs::remove_dir(hierarchy.pod(uid).join(format!("{name}-{restarts}")));
        }
    }

    /// Ends every process of a pod: those that outlived its pause process, as in the node's own pid
    /// namespace they do. To be repeated until [`Cgroups::remove_pod`] finds none.
    pub fn end_pod(&self, uid: &str) {
        for hierarchy in &self.hierarchies {
            for group in groups_below(&hierarchy.pod(uid)) {
                let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                // 0 is who is not in this pid namespace, 1 its first process.
                let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1);
                for pid in pids {
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }

    /// Removes the groups of a pod whose processes have ended. Returns whether all are gone.
    pub fn remove_pod(&self, uid: &str) -> bool {
        let mut all_gone = true;
        for hierarchy in &self.hierarchies {
            let pod = hierarchy.pod(uid);
            for group in groups_below(&pod) {
                let _ = fs::remove_dir(group);
            }
            let _ = fs::remove_dir(&pod);
            // The last pod takes the common directory with it; others keep it from going.
            let _ = fs::remove_dir(hierarchy.directory.join(PODS));
            all_gone &= !pod.exists();
        }
        all_gone
    }

    fn create(&self, uid: &str, group: &str, limits: &Limits) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for hierarchy in &self.hierarchies {
            let pod = hierarchy.pod(uid);
            let directory = pod.join(group);
            if let Err(error) = fs::create_dir_all(&pod) {
                tracing::warn!("cannot make the cgroup {}: {error}", pod.display());
                continue;
            }
            if hierarchy.version == Version::V2 {
                for parent in [&hierarchy.directory.join(PODS), &pod] {
                    hand_on(parent, &hierarchy.controllers);
                }
            }
            if fs::create_dir_all(&directory).is_ok() {
                for controller in &hierarchy.controllers {
                    for (file, value) in files_of(hierarchy.version, controller, limits) {
                        set(&directory, file, &value);
                    }
                }
                files.push(directory.join("cgroup.procs"));
            }
        }
        files
    }
}

impl Limits {
    /// What a container's `resources` come to.
    pub(crate) fn of(resources: &Resources) -> Self {
        let milli = |name: &str| resources.limits.get(name).and_then(quantity::milli);
        Self {
            memory_bytes: milli("memory").map(|milli| milli / 1000),
            cpu_milli: milli("cpu"),
            cpu_request_milli: resources.requests.get("cpu").and_then(quantity::milli),
        }
    }
}

impl Hierarchy {
    fn limits(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// The groups of one pod.
    fn pod(&self, uid: &str) -> PathBuf {
        self.directory.join(PODS).join(uid)
    }
}

fn groups_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Lets the groups below a v2 group have controllers. Returns those that the kernel agreed to.
fn hand_on(group: &Path, controllers: &[&'static str]) -> Vec<&'static str> {
    let file = group.join("cgroup.subtree_control");
    let agreed = |name: &&'static str| match fs::write(&file, format!("+{name}")) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                "limits of {name} do not hold below the cgroup {}, which holds processes itself or \
                 has no such controller: {error}",
                group.display()
            );
            false
        }
    };
    controllers.iter().copied().filter(agreed).collect()
}

fn set(directory: &Path, file: &str, value: &str) {
    if let Err(error) = fs::write(directory.join(file), value) {
        // Swap is accounted for on few machines; all else is there where its controller is.
        if file.contains("sw") {
            tracing::debug!("no limit {file} in {}: {error}", directory.display());
        } else {
            tracing::warn!("no limit {file} of {value} in {}: {error}", directory.display());
        }
    }
}

/// The files that one controller's part of the limits stands in, and what is written to each.
fn files_of(version: Version, controller: &str, limits: &Limits) -> Vec<(&'static str, String)> {
    match controller {
        "memory" => limits.memory_bytes.map_or_else(Vec::new, |bytes| memory(version, bytes)),
        "cpu" => {
            let shares = shares(limits.cpu_request_milli);
            let mut files = match version {
                Version::V1 => vec![("cpu.shares", shares.to_string())],
                Version::V2 => vec![("cpu.weight", weight(shares).to_string())],
            };
            let quota_us = |milli: i64| milli.saturating_mul(CPU_PERIOD_US) / 1000;
            if let Some(quota_us) = limits.cpu_milli.map(quota_us) {
                let quota_us = quota_us.max(MIN_QUOTA_US);
                files.extend(match version {
                    Version::V1 => vec![
                        ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                        ("cpu.cfs_quota_us", quota_us.to_string()),
                    ],
                    Version::V2 => vec![("cpu.max", format!("{quota_us} {CPU_PERIOD_US}"))],
                });
            }
            files
        }
        // Processes are limited for the pod as a whole.
        _ => Vec::new(),
    }
}

fn memory(version: Version, bytes: i64) -> Vec<(&'static str, String)> {
    match version {
        Version::V1 => vec![
            ("memory.limit_in_bytes", bytes.to_string()),
            ("memory.memsw.limit_in_bytes", bytes.to_string()),
        ],
        // A container that is out of memory ends as a whole, and does not swap instead.
        Version::V2 => vec![
            ("memory.max", bytes.to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("memory.swap.max", "0".to_owned()),
        ],
    }
}

/// A container's part of a busy processor, as cgroup v1 counts it (kubelet's `MilliCPUToShares`).
fn shares(request_milli: Option<i64>) -> i64 {
    let shares = request_milli.unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(2, 262_144)
}

/// The same as cgroup v2 counts it (runc's mapping).
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9_999 / 262_142
}

/// Of the controllers that a v2 group's `cgroup.controllers` names, those in use: what v1 has
/// taken is not v2's.
fn usable(text: &str, in_v1: &[&str]) -> Vec<&'static str> {
    let named: Vec<&str> = text.split_whitespace().collect();
    let is_usable = |name: &&'static str| named.contains(name) && !in_v1.contains(name);
    CONTROLLERS.into_iter().filter(is_usable).collect()
}

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`; which controllers v2 has stands in
/// neither. A mount whose root lies above this process's cgroup namespace does not show our own
/// group and is passed over.
fn find(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
        let mut kind = right.split(' ');
        let controllers = match (kind.next(), kind.next_back()) {
            (Some("cgroup2"), _) => Vec::new(),
            (Some("cgroup"), Some(options)) => {
                let named: Vec<&str> = options.split(',').collect();
                CONTROLLERS.into_iter().filter(|name| named.contains(name)).collect()
            }
            _ => continue,
        };
        let version = if right.starts_with("cgroup2 ") { Version::V2 } else { Version::V1 };
        if version == Version::V1 && controllers.is_empty() {
            continue;
        }
        let Some(group) = group_of(groups, controllers.first().copied()) else { continue };
        let Some(relative) = below(group, root) else { continue };
        let directory = Path::new(point).join(relative.trim_start_matches('/'));
        let is_known = |known: &Hierarchy| {
            known.version == version && known.controllers.first() == controllers.first()
        };
        if !hierarchies.iter().any(is_known) {
            hierarchies.push(Hierarchy { version, controllers, directory, mount: point.into() });
        }
    }
    hierarchies
}

/// This process's group in the hierarchy of a v1 controller, or in v2.
fn group_of<'a>(groups: &'a str, controller: Option<&str>) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let matches = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|one| one == name),
        };
        matches.then_some(path)
    })
}

/// The group that pods belong below, as a mount with this root shows it.
fn below<'a>(group: &'a str, root: &str) -> Option<&'a str> {
    let relative = if root == "/" { group } else { group.strip_prefix(root)? };
    if relative.contains("..") || root.contains("..") {
        return None;
    }
    let of_system = relative.strip_suffix(layout::SYSTEM_CGROUP);
    Some(of_system.filter(|parent| parent.ends_with('/')).unwrap_or(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = (PathBuf, Version, Vec<&'static str>);

    fn found(mounts: &str, groups: &str) -> Vec<Found> {
        let all = find(mounts, groups).into_iter();
        all.map(|one| (one.directory, one.version, one.controllers)).collect()
    }

    #[test]
    fn both_layouts_are_found() {
        let hybrid = "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      35 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      34 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/n/1\n3:pids:/n\n2:cpu,cpuacct:/\n0::/n/2\n";
        let expected = [
            ("/sys/fs/cgroup/memory/n/1".into(), Version::V1, vec!["memory"]),
            ("/sys/fs/cgroup/cpu".into(), Version::V1, vec!["cpu"]),
            ("/sys/fs/cgroup/pids/n".into(), Version::V1, vec!["pids"]),
            ("/sys/fs/cgroup/unified/n/2".into(), Version::V2, vec![]),
        ];
        assert_eq!(found(hybrid, groups), expected);
        let pure = "34 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let root = ("/sys/fs/cgroup".into(), Version::V2, vec![]);
        assert_eq!(found(pure, "0::/\n"), [root]);
        let outside = "34 25 0:30 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(outside, "0::/\n"), []);
    }

    #[test]
    fn pods_are_beside_the_nodes_own_processes() {
        let mounts = "34 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                      33 25 0:29 / /pids rw - cgroup cgroup rw,pids\n";
        let directories = |groups| -> Vec<PathBuf> {
            found(mounts, groups).into_iter().map(|(directory, ..)| directory).collect()
        };
        let expected: [PathBuf; 2] = ["/sys/fs/cgroup".into(), "/pids".into()];
        assert_eq!(directories("3:pids:/system\n0::/system\n"), expected);
        let expected: [PathBuf; 2] = ["/sys/fs/cgroup/a".into(), "/pids/ecosystem".into()];
        assert_eq!(directories("3:pids:/ecosystem\n0::/a/system\n"), expected);
    }

    #[test]
    fn what_v1_has_taken_is_not_asked_of_v2() {
        assert_eq!(usable("cpuset cpu io memory pids\n", &[]), ["memory", "cpu", "pids"]);
        assert_eq!(usable("cpuset cpu io memory pids\n", &["memory", "pids"]), ["cpu"]);
        assert_eq!(usable("hugetlb\n", &["memory"]), [""; 0]);
        assert_eq!(usable("", &[]), [""; 0]);
    }

    #[test]
    fn limits_stand_in_the_files_of_their_version() {
        let limits = Limits {
            memory_bytes: Some(1000),
            cpu_milli: Some(250),
            cpu_request_milli: Some(1000),
        };
        let written = |version| -> Vec<String> {
            let all = CONTROLLERS.iter().flat_map(|name| files_of(version, name, &limits));
            all.map(|(file, value)| format!("{file}={value}")).collect()
        };
        let first = [
            "memory.limit_in_bytes=1000",
            "memory.memsw.limit_in_bytes=1000",
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=25000",
        ];
        assert_eq!(written(Version::V1), first);
        let second = [
            "memory.max=1000",
            "memory.oom.group=1",
            "memory.swap.max=0",
            "cpu.weight=39",
            "cpu.max=25000 100000",
        ];
        assert_eq!(written(Version::V2), second);
        let none = Limits::default();
        assert_eq!(files_of(Version::V2, "memory", &none), []);
        assert_eq!(files_of(Version::V2, "cpu", &none), [("cpu.weight", "1".to_owned())]);
        let least = Limits { cpu_milli: Some(1), ..none };
        let least = files_of(Version::V2, "cpu", &least);
        assert_eq!(least.last(), Some(&("cpu.max", "1000 100000".to_owned())));
    }

    #[test]
    fn requests_are_parts_of_a_busy_processor() {
        assert_eq!([shares(None), shares(Some(100)), shares(Some(1000))], [2, 102, 1024]);
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }
}
