//! Control groups of pods, under the group that this process runs in. Pure cgroup v2 and the hybrid
//! layout (controllers in v1, an empty v2 beside) both work; what a machine lacks is passed over.

use std::fs;
use std::path::{Path, PathBuf};

use crate::pod::{Pod, Resources};
use crate::quantity;

/// The directory of all pods.
const PODS: &str = "pods";
/// The pause process's group: a v2 group that hands out controllers holds no process itself. No
/// container can have this name.
const SANDBOX: &str = "_sandbox";
/// v1 controllers in use.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// The period that CPU limits are counted in, microseconds.
const CPU_PERIOD_US: i64 = 100_000;

/// One hierarchy of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    directory: PathBuf,
    /// Where it is mounted: the topmost group that this process sees.
    mount: PathBuf,
    /// The v1 controller; `None` for v2.
    controller: Option<&'static str>,
}

/// The hierarchies of this machine.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Finds the groups that this process runs in.
    pub fn discover() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let hierarchies = find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        Self { hierarchies }
    }

    /// Makes the groups of a pod, which may have at most `processes` processes and threads.
    /// Returns the files by which its pause process enters them.
    pub fn create_pod(&self, pod: &Pod, processes: u32) -> Vec<PathBuf> {
        let files = self.create(&pod.metadata.uid, SANDBOX, &Resources::default());
        for hierarchy in &self.hierarchies {
            if matches!(hierarchy.controller, None | Some("pids")) {
                let pod = hierarchy.directory.join(PODS).join(&pod.metadata.uid);
                set(&pod, "pids.max", processes.to_string());
            }
        }
        files
    }

    /// Makes the groups of one start of a container, with its limits.
    pub fn create_container(
        &self,
        pod: &Pod,
        name: &str,
        restarts: u32,
        resources: &Resources,
    ) -> Vec<PathBuf> {
        self.create(&pod.metadata.uid, &format!("{name}-{restarts}"), resources)
    }

    /// Whether the kernel ended a process of this start for want of memory.
    pub fn ran_out_of_memory(&self, uid: &str, name: &str, restarts: u32) -> bool {
        let group = format!("{name}-{restarts}");
        self.hierarchies.iter().any(|hierarchy| {
            let directory = hierarchy.directory.join(PODS).join(uid).join(&group);
            let file = match hierarchy.controller {
                None => "memory.events",
                Some("memory") => "memory.oom_control",
                Some(_) => return false,
            };
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count.trim() != "0")
        })
    }

    /// The groups of one start of a container.
    pub fn of_container(&self, uid: &str, name: &str, restarts: u32) -> Vec<PathBuf> {
        let group = format!("{name}-{restarts}");
        let hierarchies = self.hierarchies.iter();
        hierarchies.map(|hierarchy| hierarchy.directory.join(PODS).join(uid).join(&group)).collect()
    }

    /// The topmost groups, which hold all that the node runs, and our own below: the very root of
    /// version 2 tells nothing of memory.
    pub fn of_node(&self) -> Vec<PathBuf> {
        let topmost = self.hierarchies.iter().map(|hierarchy| hierarchy.mount.clone());
        let own = self.hierarchies.iter().map(|hierarchy| hierarchy.directory.clone());
        topmost.chain(own).collect()
    }

    /// Removes the groups of a start that has ended.
    pub fn remove_container(&self, uid: &str, name: &str, restarts: u32) {
        for hierarchy in &self.hierarchies {
            let pod = hierarchy.directory.join(PODS).join(uid);
            let _ = fs::remove_dir(pod.join(format!("{name}-{restarts}")));
        }
    }

    /// Removes the groups of a pod whose processes have ended. Returns whether all are gone.
    pub fn remove_pod(&self, uid: &str) -> bool {
        self.hierarchies.iter().all(|hierarchy| {
            let pod = hierarchy.directory.join(PODS).join(uid);
            for entry in fs::read_dir(&pod).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
            let _ = fs::remove_dir(&pod);
            // The last pod takes the common directory with it; others keep it from going.
            let _ = fs::remove_dir(hierarchy.directory.join(PODS));
            !pod.exists()
        })
    }

    fn create(&self, uid: &str, group: &str, resources: &Resources) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for hierarchy in &self.hierarchies {
            let pods = hierarchy.directory.join(PODS);
            let pod = pods.join(uid);
            let directory = pod.join(group);
            if hierarchy.controller.is_none() {
                let _ = fs::create_dir_all(&pod);
                for parent in [&hierarchy.directory, &pods, &pod] {
                    for name in CONTROLLERS {
                        // Refused where a parent group lacks the controller, or holds processes.
                        let file = parent.join("cgroup.subtree_control");
                        let _ = fs::write(file, format!("+{name}"));
                    }
                }
            }
            if fs::create_dir_all(&directory).is_ok() {
                limit(&directory, hierarchy.controller, resources);
                files.push(directory.join("cgroup.procs"));
            }
        }
        files
    }
}

/// A machine without this controller has no such limit.
fn set(directory: &Path, file: &str, value: String) {
    if let Err(error) = fs::write(directory.join(file), value) {
        tracing::debug!("no limit {file} in {}: {error}", directory.display());
    }
}

fn limit(directory: &Path, controller: Option<&str>, resources: &Resources) {
    let milli = |name: &str| resources.limits.get(name).and_then(quantity::milli);
    let set = |file: &str, value: String| set(directory, file, value);
    let shares = shares(resources.requests.get("cpu").and_then(quantity::milli));
    match controller {
        None => set("cpu.weight", weight(shares).to_string()),
        Some("cpu") => set("cpu.shares", shares.to_string()),
        Some(_) => {}
    }
    if let Some(bytes) = milli("memory").map(|milli| milli / 1000) {
        match controller {
            None => {
                set("memory.max", bytes.to_string());
                // A container that is out of memory ends as a whole, and does not swap instead.
                set("memory.oom.group", "1".into());
                set("memory.swap.max", "0".into());
            }
            Some("memory") => {
                set("memory.limit_in_bytes", bytes.to_string());
                set("memory.memsw.limit_in_bytes", bytes.to_string());
            }
            Some(_) => {}
        }
    }
    if let Some(quota_us) = milli("cpu").map(|milli| milli * CPU_PERIOD_US / 1000) {
        match controller {
            None => set("cpu.max", format!("{quota_us} {CPU_PERIOD_US}")),
            Some("cpu") => {
                set("cpu.cfs_period_us", CPU_PERIOD_US.to_string());
                set("cpu.cfs_quota_us", quota_us.to_string());
            }
            Some(_) => {}
        }
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

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`. A mount whose root lies above this
/// process's cgroup namespace does not show our own group and is passed over.
fn find(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    let group_of = |controller: Option<&str>| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let matches = match controller {
                None => controllers.is_empty(),
                Some(name) => controllers.split(',').any(|one| one == name),
            };
            matches.then_some(path)
        })
    };
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
        let mut kind = right.split(' ');
        let controller = match (kind.next(), kind.next_back()) {
            (Some("cgroup2"), _) => None,
            (Some("cgroup"), Some(options)) => {
                match CONTROLLERS.iter().find(|name| options.split(',').any(|one| one == **name)) {
                    Some(name) => Some(*name),
                    None => continue,
                }
            }
            _ => continue,
        };
        let Some(group) = group_of(controller) else { continue };
        let relative = match *root {
            "/" => group,
            root => match group.strip_prefix(root) {
                Some(relative) => relative,
                None => continue,
            },
        };
        if relative.contains("..") || root.contains("..") {
            continue;
        }
        let directory = Path::new(point).join(relative.trim_start_matches('/'));
        if hierarchies.iter().all(|known| known.controller != controller) {
            hierarchies.push(Hierarchy { directory, mount: point.into(), controller });
        }
    }
    hierarchies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_found() {
        let hybrid = "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      34 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/n/1\n3:pids:/n\n2:cpu,cpuacct:/\n0::/n/2\n";
        let found = |mounts, groups| -> Vec<(PathBuf, Option<&str>)> {
            let all = find(mounts, groups).into_iter();
            all.map(|one| (one.directory, one.controller)).collect()
        };
        let expected = [
            ("/sys/fs/cgroup/memory/n/1".into(), Some("memory")),
            ("/sys/fs/cgroup/cpu".into(), Some("cpu")),
            ("/sys/fs/cgroup/pids/n".into(), Some("pids")),
            ("/sys/fs/cgroup/unified/n/2".into(), None),
        ];
        assert_eq!(found(hybrid, groups), expected);
        let pure = "34 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(pure, "0::/\n"), [("/sys/fs/cgroup".into(), None)]);
        let outside = "34 25 0:30 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(outside, "0::/\n"), []);
    }
    #[test]
    fn requests_are_parts_of_a_busy_processor() {
        assert_eq!([shares(None), shares(Some(100)), shares(Some(1000))], [2, 102, 1024]);
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }
}
