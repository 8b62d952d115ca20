//! What the node and its containers use, read from their control groups when somebody asks: the
//! kubelet's `/stats/summary` and `/metrics/resource` as far as metrics-server reads them. Both
//! tell CPU time as a sum since the start; who wants a rate asks twice.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use model::{NamespacedName, Timestamp};
use serde_json::{Value, json};

use crate::context::{Context, now};

/// What one control group used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its processes so far, nanoseconds.
    cpu_ns: Option<u64>,
    /// Memory with the cache of files.
    memory_bytes: Option<u64>,
    /// Memory without what the kernel would drop first, files that nobody has read lately.
    working_set_bytes: Option<u64>,
}

/// A container that runs.
struct Measured {
    pod: NamespacedName,
    uid: String,
    name: String,
    started_at: Timestamp,
    usage: Usage,
}

/// The use of one moment.
pub struct Snapshot {
    node_name: String,
    time: Timestamp,
    node: Usage,
    /// In the order of namespace, pod and container.
    containers: Vec<Measured>,
}

impl Usage {
    /// Reads the files of a group, which has one directory a hierarchy.
    fn read(directories: &[PathBuf]) -> Self {
        let find = |name: &str, parse: &dyn Fn(&str) -> Option<u64>| {
            let texts = directories.iter().map(|directory| read(&directory.join(name)));
            texts.flatten().find_map(|text| parse(&text))
        };
        let whole = |text: &str| text.trim().parse().ok();
        let cpu_ns = find("cpuacct.usage", &whole).or_else(|| {
            // The file `cpu.stat` of version 1 tells of throttling alone.
            find("cpu.stat", &|text| member(text, "usage_usec"))
                .map(|microseconds| microseconds.saturating_mul(1000))
        });
        let memory_bytes =
            find("memory.usage_in_bytes", &whole).or_else(|| find("memory.current", &whole));
        // In version 1 the group's own are told beside those with all groups below.
        let inactive = find("memory.stat", &|text| {
            member(text, "total_inactive_file").or_else(|| member(text, "inactive_file"))
        });
        let working_set_bytes =
            memory_bytes.map(|bytes| bytes.saturating_sub(inactive.unwrap_or_default()));
        Self { cpu_ns, memory_bytes, working_set_bytes }
    }

    fn to_summary(self, time: Timestamp) -> [Value; 2] {
        let mut cpu = json!({"time": time.micro()});
        if let Some(nanoseconds) = self.cpu_ns {
            cpu["usageCoreNanoSeconds"] = nanoseconds.into();
        }
        let mut memory = json!({"time": time.micro()});
        if let Some(bytes) = self.memory_bytes {
            memory["usageBytes"] = bytes.into();
        }
        if let Some(bytes) = self.working_set_bytes {
            memory["workingSetBytes"] = bytes.into();
        }
        [cpu, memory]
    }
}

impl Snapshot {
    /// Reads all groups: some files a container, so that it takes milliseconds on a full node.
    pub fn take(context: &Context) -> Self {
        let mut containers = Vec::new();
        let pods = context.pods().clone();
        for (key, pod) in pods {
            for (name, view) in pod.containers {
                let Some(started_at) = view.running_since else { continue };
                let directories = context.cgroups.of_container(&pod.uid, &name, view.restarts);
                containers.push(Measured {
                    pod: key.clone(),
                    uid: pod.uid.clone(),
                    name,
                    started_at,
                    usage: Usage::read(&directories),
                });
            }
        }
        Self {
            node_name: context.options.node_name.clone(),
            time: now(),
            node: Usage::read(&context.cgroups.of_node()),
            containers,
        }
    }

    /// `GET /stats/summary` (`stats/v1alpha1.Summary` of the kubelet).
    pub fn to_summary(&self) -> Value {
        let mut pods: Vec<Value> = Vec::new();
        for one in &self.containers {
            let [cpu, memory] = one.usage.to_summary(self.time);
            let container = json!({
                "name": one.name,
                "startTime": one.started_at.micro(),
                "cpu": cpu,
                "memory": memory,
            });
            let is_last = |pod: &&mut Value| pod["podRef"]["uid"] == one.uid.as_str();
            let known = pods.last_mut().filter(is_last);
            match known.and_then(|pod| pod["containers"].as_array_mut()) {
                Some(containers) => containers.push(container),
                None => pods.push(json!({
                    "podRef": {
                        "name": one.pod.name,
                        "namespace": one.pod.namespace,
                        "uid": one.uid,
                    },
                    "containers": [container],
                })),
            }
        }
        let [cpu, memory] = self.node.to_summary(self.time);
        json!({"node": {"nodeName": self.node_name, "cpu": cpu, "memory": memory}, "pods": pods})
    }

    /// `GET /metrics/resource`, in the text format of Prometheus 0.0.4 under the kubelet's names.
    pub fn to_metrics(&self) -> String {
        let labels: Vec<String> = self.containers.iter().map(labels).collect();
        let of = |value: &dyn Fn(&Measured) -> Option<String>| -> Vec<(String, String)> {
            let rows = labels.iter().zip(&self.containers);
            rows.filter_map(|(labels, one)| Some((labels.clone(), value(one)?))).collect()
        };
        let of_node = |value: Option<String>| -> Vec<(String, String)> {
            value.map(|value| (String::new(), value)).into_iter().collect()
        };
        let cpu = |usage: Usage| usage.cpu_ns.map(seconds);
        let memory = |usage: Usage| usage.working_set_bytes.map(|bytes| bytes.to_string());
        let started = |one: &Measured| Some(format!("{}", one.started_at.seconds()));
        let families = [
            (
                "container_cpu_usage_seconds_total",
                "counter",
                "CPU time of the container so far, seconds",
                of(&|one| cpu(one.usage)),
            ),
            (
                "container_memory_working_set_bytes",
                "gauge",
                "Memory of the container without cache that may be dropped, bytes",
                of(&|one| memory(one.usage)),
            ),
            (
                "container_start_time_seconds",
                "gauge",
                "When the container started, seconds since 1970",
                of(&started),
            ),
            (
                "node_cpu_usage_seconds_total",
                "counter",
                "CPU time of the node so far, seconds",
                of_node(cpu(self.node)),
            ),
            (
                "node_memory_working_set_bytes",
                "gauge",
                "Memory of the node without cache that may be dropped, bytes",
                of_node(memory(self.node)),
            ),
        ];
        let time_ms = self.time.microseconds() / 1000;
        let mut text = String::new();
        for (name, kind, help, rows) in families {
            // Writing to memory cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(text, "{name}{labels} {value} {time_ms}");
            }
        }
        text
    }
}

/// Names of containers, namespaces and pods hold nothing that would have to be escaped.
fn labels(one: &Measured) -> String {
    let NamespacedName { namespace, name } = &one.pod;
    format!("{{container=\"{}\",namespace=\"{namespace}\",pod=\"{name}\"}}", one.name)
}

fn seconds(nanoseconds: u64) -> String {
    const NANOSECONDS: u64 = 1_000_000_000;
    format!("{}.{:09}", nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A line `NAME NUMBER` of a file of statistics.
fn member(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(found, _)| *found == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories with files, which go at the end.
    struct Group(Vec<PathBuf>);

    impl Group {
        fn new(name: &str, hierarchies: &[&[(&str, &str)]]) -> Self {
            let root = std::env::temp_dir().join(format!("flatnet-{name}-{}", std::process::id()));
            let directories = (0..hierarchies.len()).map(|number| root.join(number.to_string()));
            let directories: Vec<PathBuf> = directories.collect();
            for (directory, files) in directories.iter().zip(hierarchies) {
                fs::create_dir_all(directory).expect("a directory");
                for (name, text) in *files {
                    fs::write(directory.join(name), text).expect("a file");
                }
            }
            Self(directories)
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            if let Some(root) = self.0.first().and_then(|first| first.parent()) {
                let _ = fs::remove_dir_all(root);
            }
        }
    }

    #[test]
    fn both_versions_of_groups_are_read() {
        let first = Group::new(
            "usage-1",
            &[
                &[
                    ("memory.usage_in_bytes", "10000\n"),
                    ("memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 4000\n"),
                ],
                &[("cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n")],
                &[("cpu.stat", "usage_usec 25\nuser_usec 5\n")],
            ],
        );
        let expected = Usage {
            cpu_ns: Some(25_000),
            memory_bytes: Some(10_000),
            working_set_bytes: Some(6_000),
        };
        assert_eq!(Usage::read(&first.0), expected, "memory of version 1, CPU time of version 2");
        let accounted = Group::new("usage-a", &[&[("cpuacct.usage", "77\n"), ("cpu.stat", "")]]);
        assert_eq!(Usage::read(&accounted.0).cpu_ns, Some(77));
        let second = Group::new(
            "usage-2",
            &[&[
                ("memory.current", "5000\n"),
                ("memory.stat", "anon 1\ninactive_file 9000\n"),
                ("cpu.stat", "usage_usec 3\n"),
            ]],
        );
        let expected =
            Usage { cpu_ns: Some(3_000), memory_bytes: Some(5_000), working_set_bytes: Some(0) };
        assert_eq!(Usage::read(&second.0), expected);
        assert_eq!(Usage::read(&[]), Usage::default(), "what is not told is not zero");
    }

    fn snapshot() -> Snapshot {
        let one = |pod: &str, name: &str, cpu_ns| Measured {
            pod: NamespacedName::new("shop", pod),
            uid: format!("uid-{pod}"),
            name: name.to_owned(),
            started_at: Timestamp::from_seconds(100),
            usage: Usage { cpu_ns, memory_bytes: Some(9), working_set_bytes: Some(7) },
        };
        Snapshot {
            node_name: "node1".to_owned(),
            time: Timestamp::from_microseconds(200_500_000),
            node: Usage { cpu_ns: Some(1), memory_bytes: None, working_set_bytes: None },
            containers: vec![
                one("a", "main", Some(1_500_000_000)),
                one("a", "side", None),
                one("b", "main", Some(0)),
            ],
        }
    }

    #[test]
    fn the_summary_has_each_pod_once_and_nothing_that_is_unknown() {
        let summary = snapshot().to_summary();
        assert_eq!(summary["node"]["cpu"]["usageCoreNanoSeconds"], 1);
        assert_eq!(summary["node"]["memory"], json!({"time": "1970-01-01T00:03:20.500000Z"}));
        let pods = summary["pods"].as_array().expect("pods");
        assert_eq!(pods.len(), 2);
        assert_eq!(pods[0]["podRef"], json!({"name": "a", "namespace": "shop", "uid": "uid-a"}));
        let containers = pods[0]["containers"].as_array().expect("containers");
        assert_eq!(containers.len(), 2);
        assert_eq!(containers[0]["cpu"]["usageCoreNanoSeconds"], 1_500_000_000);
        assert_eq!(containers[1]["cpu"].get("usageCoreNanoSeconds"), None);
        assert_eq!(containers[1]["memory"]["workingSetBytes"], 7);
    }

    #[test]
    fn metrics_are_in_the_format_of_prometheus() {
        let text = snapshot().to_metrics();
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"main\",namespace=\"shop\",pod=\"a\"} \
             1.500000000 200500",
            "container_memory_working_set_bytes{container=\"side\",namespace=\"shop\",pod=\"a\"} 7 \
             200500",
            "node_cpu_usage_seconds_total 0.000000001 200500",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("container_cpu_usage_seconds_total{container=\"side\""), "{text}");
    }
}
