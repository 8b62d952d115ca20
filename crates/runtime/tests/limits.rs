//! Limits of containers as the kernel keeps them, by the control groups that the runtime makes: of
//! version 1 or 2, whichever this machine has. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runtime::cgroup::{Cgroups, Limits, Version};

/// Longest wait for what the kernel does in milliseconds, on a machine that is busy or emulated.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The container of all pods here, and its start.
const CONTAINER: &str = "main";
const START: u32 = 0;

/// A pod's groups with one container, which go with the value and with them all processes.
struct Pod {
    cgroups: Cgroups,
    uid: String,
    entrances: Vec<PathBuf>,
}

impl Pod {
    fn new(name: &str, processes: u32, limits: &Limits) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes control groups: run it as root");
        let uid = format!("limits-{name}-{}", std::process::id());
        let cgroups = Cgroups::discover();
        cgroups.create_pod(&uid, processes);
        let entrances = cgroups.create_container(&uid, CONTAINER, START, limits);
        assert!(!entrances.is_empty(), "this machine has no control groups");
        Self { cgroups, uid, entrances }
    }

    /// Starts a script in the container's groups.
    fn start(&self, script: &str) -> Child {
        let enter: String =
            self.entrances.iter().map(|file| format!("echo 0 > {} && ", file.display())).collect();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{enter}{{ {script}; }}")]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
        command.spawn().expect("a shell")
    }

    /// Runs a script to its end: its exit code, or none where a signal ended it, and its output.
    fn run(&self, script: &str) -> (Option<i32>, String) {
        let output = self.start(script).wait_with_output().expect("an end");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn ran_out_of_memory(&self) -> bool {
        self.cgroups.ran_out_of_memory(&self.uid, CONTAINER, START)
    }

    /// How often the kernel made the container wait for its next part of the processors.
    fn throttled(&self) -> u64 {
        let groups = self.cgroups.of_container(&self.uid, CONTAINER, START);
        let count = |group: &PathBuf| {
            let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?;
            line.trim().parse::<u64>().ok()
        };
        groups.iter().find_map(count).expect("a group that counts the controller's periods")
    }

    fn groups(&self) -> BTreeSet<PathBuf> {
        let groups = self.cgroups.of_container(&self.uid, CONTAINER, START);
        groups.iter().filter_map(|group| group.parent().map(Path::to_owned)).collect()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        self.cgroups.end_pod(&self.uid);
        while !self.cgroups.remove_pod(&self.uid) && Instant::now() < deadline {
            std::thread::sleep(POLL);
            self.cgroups.end_pod(&self.uid);
        }
    }
}

/// As many processes as no pod here needs.
const MANY: u32 = 100;

/// Whether the file system of version 2 is mounted where it is on machines that have no other.
fn has_version_2_alone() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/sys/fs/cgroup", "cgroup2"]))
}

#[test]
fn every_limit_is_the_controllers_of_one_version() {
    let found = Cgroups::discover().controllers();
    let names: Vec<&str> = found.keys().copied().collect();
    assert_eq!(names, ["cpu", "memory", "pids"]);
    // The v2 that is mounted beside v1 has no controllers, and is not taken for more than it is.
    let expected = if has_version_2_alone() { Version::V2 } else { Version::V1 };
    assert!(found.values().all(|version| *version == expected), "{found:?}");
}

#[test]
fn memory_over_the_limit_ends_the_container_and_is_counted() {
    let limits = |bytes| Limits { memory_bytes: Some(bytes), ..Limits::default() };
    // A block of this size is read into memory as a whole.
    let fill = "dd if=/dev/zero of=/dev/null bs=48M count=1 && echo filled";
    let narrow = Pod::new("narrow", MANY, &limits(16 << 20));
    let (code, output) = narrow.run(fill);
    assert_ne!(code, Some(0), "{output}");
    assert_eq!(output, "");
    assert!(narrow.ran_out_of_memory());
    let wide = Pod::new("wide", MANY, &limits(128 << 20));
    assert_eq!(wide.run(fill), (Some(0), "filled\n".to_owned()));
    assert!(!wide.ran_out_of_memory());
}

#[test]
fn a_pod_forks_no_more_than_its_limit_allows() {
    let script = "for number in 1 2 3 4 5 6 7 8; do sleep 1000 >/dev/null & done; echo all";
    let narrow = Pod::new("few", 4, &Limits::default());
    let (code, output) = narrow.run(script);
    assert_ne!(code, Some(0), "{output}");
    assert_eq!(output, "");
    let wide = Pod::new("many", MANY, &Limits::default());
    assert_eq!(wide.run(script), (Some(0), "all\n".to_owned()));
}

#[test]
fn processor_time_over_the_limit_is_waited_for() {
    let busy = "while :; do :; done";
    let limits = Limits { cpu_milli: Some(50), ..Limits::default() };
    let slow = Pod::new("slow", MANY, &limits);
    let fast = Pod::new("fast", MANY, &Limits::default());
    let mut children = [slow.start(busy), fast.start(busy)];
    let deadline = Instant::now() + DEADLINE;
    while slow.throttled() < 3 {
        assert!(Instant::now() < deadline, "throttled {} times", slow.throttled());
        std::thread::sleep(POLL);
    }
    assert_eq!(fast.throttled(), 0);
    drop((slow, fast));
    for child in &mut children {
        assert!(!child.wait().expect("an end").success());
    }
}

#[test]
fn nothing_is_left_of_a_pods_groups() {
    let pod = Pod::new("gone", MANY, &Limits::default());
    let mut child = pod.start("sleep 1000 & sleep 1000");
    let groups = pod.groups();
    assert!(groups.iter().all(|group| group.is_dir()), "{groups:?}");
    drop(pod);
    assert!(!child.wait().expect("an end").success());
    assert!(!groups.iter().any(|group| group.exists()), "{groups:?}");
}
