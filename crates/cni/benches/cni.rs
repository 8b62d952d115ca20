//! What a pod's coming and going costs (goals G6 and G7 of the performance goals): our plugin, with
//! the configuration that the agent writes, masquerade and anti-spoofing, against the reference
//! plugins bridge and host-local with `ipMasq`. Needs root and `containernetworking-plugins`.
//!
//! ```text
//! ./x bench cni
//! ```
//!
//! Both run as a container runtime runs them, by exec, each in a node and with pods of its own, and
//! take turns. Processor time is that of all processes of a call, also of those that outlive it.
//! Wall time ends when the program has ended; then link and address are seen to be gone.

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::{LabNode, Pod, node_with_ranges};
use model::{ClusterConfig, World};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::wait;
use serde_json::{Value, json};

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// The programs as they are installed: ours is static there.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/flatnet");
/// Room for the pods of a large node and those that come and go, and little more: what is known of
/// addresses that were given back costs time, too.
const POD_RANGE: &str = "10.244.0.0/23";
/// Pods that are there already.
const PRESENT: [usize; 2] = [0, 250];
/// Rounds that count; one before them does not.
const ROUNDS: usize = 15;
const TEARDOWN_ROUNDS: usize = 5;
const TEARDOWN_PODS: usize = 60;
/// How many pods are torn down at one time.
const WORKERS: [usize; 2] = [1, 10];
/// Between two calls, so that none pays for what the kernel has put off of another.
const PAUSE: Duration = Duration::from_millis(50);

/// One of the two, with its node.
struct Contender {
    name: &'static str,
    program: PathBuf,
    plugins: &'static str,
    node: LabNode,
    config: Value,
    /// Where it keeps addresses.
    addresses: PathBuf,
}

/// What a call cost.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    processor: Duration,
}

fn main() {
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
    let contenders = [ours(), reference()];
    for contender in &contenders {
        let (program, name) = (&contender.program, contender.name);
        assert!(program.exists(), "{} is missing: {name} cannot be measured", program.display());
    }
    let heading = |text: &str| {
        let heads = ["flatnet", "min", "median", "max", "reference", "median", "ratio"];
        let [ours, min, median, max, theirs, other, ratio] = heads;
        println!(
            "{text:<34}{ours:>8} {min}{median:>9}{max:>8}{theirs:>11} {other}{ratio:>9}  goal"
        );
    };
    let mut present: Vec<Vec<Pod>> = contenders.iter().map(|_| vec![]).collect();
    for count in PRESENT {
        for (contender, pods) in contenders.iter().zip(&mut present) {
            while pods.len() < count {
                pods.push(contender.add(&format!("present{}", pods.len())).0);
            }
        }
        heading(&format!("with {count} pods there, in ms"));
        comings_and_goings(&contenders);
        for workers in WORKERS {
            teardowns(&contenders, workers);
        }
    }
}

/// One pod after another, the contenders in turn.
fn comings_and_goings(contenders: &[Contender; 2]) {
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let costs = contenders.each_ref().map(|contender| {
            let (pod, add) = contender.add("one");
            let delete = contender.delete(&pod);
            [add.processor, add.wall, delete.processor, delete.wall]
        });
        if round > 0 {
            rounds.push(costs);
        }
    }
    let rows = [
        ("ADD, processor", "G6 ≤ 1/15"),
        ("ADD, wall", "G6 ≤ 1/8"),
        ("DEL, processor", ""),
        ("DEL, wall", "G7 ≤ 1/20"),
    ];
    for (index, (name, goal)) in rows.into_iter().enumerate() {
        report(name, goal, rounds.iter().map(|costs| costs.map(|of_one| of_one[index])));
    }
}

/// All pods of a drained node.
fn teardowns(contenders: &[Contender; 2], workers: usize) {
    let mut rounds = Vec::new();
    for _ in 0..TEARDOWN_ROUNDS {
        rounds.push(contenders.each_ref().map(|contender| {
            let name = |number| format!("leaving{number}");
            let pods: Vec<Pod> =
                (0..TEARDOWN_PODS).map(|number| contender.add(&name(number)).0).collect();
            let next = AtomicUsize::new(0);
            let start = Instant::now();
            std::thread::scope(|scope| {
                let work = || {
                    while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                        contender.call(pod, "DEL");
                    }
                };
                for _ in 0..workers {
                    scope.spawn(work);
                }
            });
            let wall = start.elapsed();
            settle();
            pods.iter().for_each(|pod| contender.assert_gone(pod));
            wall
        }));
    }
    let name = format!("{TEARDOWN_PODS} DELs, {workers} at a time, wall");
    report(&name, "G7 ≤ 1/15", rounds.into_iter());
}

/// Ratios are those of the rounds.
fn report(name: &str, goal: &str, rounds: impl Iterator<Item = [Duration; 2]>) {
    let rounds: Vec<[f64; 2]> =
        rounds.map(|times| times.map(|it| it.as_secs_f64() * 1e3)).collect();
    let [min, median, max] = spread(rounds.iter().map(|times| times[0]));
    let [_, theirs, _] = spread(rounds.iter().map(|times| times[1]));
    let [least, ratio, most] = spread(rounds.iter().map(|[ours, theirs]| theirs / ours));
    println!(
        "{name:<34}{min:>12.2}{median:>9.2}{max:>8.2}{theirs:>18.2}{:>9}  {goal} ({least:.1} to {most:.1})",
        format!("1/{ratio:.1}")
    );
}

/// Minimum, median, maximum.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [0, values.len() / 2, values.len() - 1].map(|at| values[at])
}

fn ours() -> Contender {
    let node = LabNode::alone("node1", IpAddr::from([172, 30, 0, 2]));
    let mut world = World::default();
    world.set(node_with_ranges("node1", "172.30.0.2", &[POD_RANGE]));
    let mut config = node.plugin_config(&world, &ClusterConfig::default());
    // In our clusters the agent's rules masquerade; so that both do the same, the plugin here.
    config["ipMasq"] = json!(true);
    let addresses = node.scratch.0.join("flatnet");
    let program = Path::new(INSTALLED).join("flatnet-cni");
    Contender { name: "flatnet", program, plugins: INSTALLED, node, config, addresses }
}

fn reference() -> Contender {
    let node = LabNode::alone("node2", IpAddr::from([172, 30, 0, 3]));
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "dataDir": node.scratch.0,
            "ranges": [[{ "subnet": POD_RANGE }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let addresses = node.scratch.0.join("reference");
    let program = Path::new(REFERENCE).join("bridge");
    Contender { name: "the reference", program, plugins: REFERENCE, node, config, addresses }
}

impl Contender {
    /// A new pod, and what its ADD cost.
    fn add(&self, id: &str) -> (Pod, Cost) {
        let pod = Pod::new(id);
        std::thread::sleep(PAUSE);
        let cost = self.measure(&pod, "ADD");
        (pod, cost)
    }

    /// What a pod's DEL cost.
    fn delete(&self, pod: &Pod) -> Cost {
        std::thread::sleep(PAUSE);
        let cost = self.measure(pod, "DEL");
        self.assert_gone(pod);
        cost
    }

    fn measure(&self, pod: &Pod, command: &str) -> Cost {
        let before = processor_of_children();
        let start = Instant::now();
        self.call(pod, command);
        let wall = start.elapsed();
        settle();
        Cost { wall, processor: processor_of_children() - before }
    }

    fn call(&self, pod: &Pod, command: &str) {
        let run = || {
            let mut child = Command::new(&self.program)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", &pod.id)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", pod.path())
                .env("CNI_PATH", self.plugins)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the plugin starts");
            let mut input = child.stdin.take().expect("its input");
            input.write_all(self.config.to_string().as_bytes()).expect("written");
            drop(input);
            child.wait_with_output().expect("it ends")
        };
        let output = self.node.namespace.run(run).expect("the node's namespace");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{} {command}: {text}", self.name);
    }

    /// The pod has no link, and its address may be another pod's.
    fn assert_gone(&self, pod: &Pod) {
        assert_eq!(pod.netlink().link("eth0").expect("an answer"), None, "{}", self.name);
        for entry in std::fs::read_dir(&self.addresses).expect("the addresses").flatten() {
            let is_address = entry.file_name().to_string_lossy().parse::<IpAddr>().is_ok();
            let owner = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let is_own = owner.split_whitespace().next() == Some(&pod.id);
            assert!(!is_address || !is_own, "{} gave no address back", self.name);
        }
    }
}

/// Waits for the children that outlive a call, which count too.
fn settle() {
    while wait().is_ok() {}
}

fn processor_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("an answer");
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Duration::from_micros(microseconds.unsigned_abs())
}
