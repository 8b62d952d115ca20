//! metrics.k8s.io/v1beta1: what nodes and pods use, computed from two samples of their runtimes and
//! never stored. `kubectl top` and autoscalers read it.
//!
//! Forms and rules are those of metrics-server: a rate is between two samples, and what has not two
//! is absent, so that kubectl says `metrics not available yet`.

use std::collections::BTreeMap;

use model::quantity::Quantity;
use model::{NamespacedName, Timestamp};
use serde_json::{Map, Value, json};

use crate::table::Column;
use crate::{Object, Resource, Status, json as tree};

/// metrics.k8s.io/v1beta1 NodeMetrics.
pub static NODES: Resource = Resource {
    kind: "NodeMetrics",
    plural: "nodes",
    namespaced: false,
    columns: &[
        Column::NAME,
        Column::text("cpu", |value, _| tree::text(value, "/usage/cpu").into()),
        Column::text("memory", |value, _| tree::text(value, "/usage/memory").into()),
        Column::text("Window", |value, _| tree::text(value, "/window").into()),
    ],
    ..MEASURED
};

/// metrics.k8s.io/v1beta1 PodMetrics.
pub static PODS: Resource = Resource {
    kind: "PodMetrics",
    plural: "pods",
    namespaced: true,
    columns: &[
        Column::NAME,
        Column::text("cpu", |value, _| sum(value, "/usage/cpu").into()),
        Column::text("memory", |value, _| sum(value, "/usage/memory").into()),
        Column::text("Window", |value, _| tree::text(value, "/window").into()),
    ],
    ..MEASURED
};

const MEASURED: Resource = Resource {
    group: "metrics.k8s.io",
    version: "v1beta1",
    verbs: &["get", "list"],
    ..Resource::BASE
};

/// What one node and its containers had used at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    node: Option<Reading>,
    /// By namespace and name of the pod.
    pods: BTreeMap<NamespacedName, PodSample>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PodSample {
    uid: String,
    containers: BTreeMap<String, Reading>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    time: Timestamp,
    /// Which start of a container this is of.
    started_at: Timestamp,
    cpu_ns: u64,
    working_set_bytes: u64,
}

/// What was used between two samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    time: Timestamp,
    window_us: u64,
    /// Billionths of a processor.
    nanocores: u64,
    working_set_bytes: u64,
}

impl Sample {
    /// Reads a kubelet's `/stats/summary` (`stats/v1alpha1.Summary`). What is not told of is left
    /// out.
    ///
    /// # Errors
    /// It is no such document.
    pub fn from_summary(text: &[u8]) -> Result<Self, String> {
        let summary: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let node = summary.get("node").ok_or("it tells of no node")?;
        let mut pods = BTreeMap::new();
        for pod in tree::items(&summary, "/pods") {
            let text = |pointer| tree::text(pod, pointer);
            let key = NamespacedName::new(text("/podRef/namespace"), text("/podRef/name"));
            let containers = tree::items(pod, "/containers").iter();
            let containers = containers
                .filter_map(|one| Some((tree::text(one, "/name").to_owned(), Reading::of(one)?)));
            let uid = text("/podRef/uid").to_owned();
            pods.insert(key, PodSample { uid, containers: containers.collect() });
        }
        Ok(Self { node: Reading::of(node), pods })
    }
}

impl Reading {
    fn of(value: &Value) -> Option<Self> {
        let number = |pointer| tree::at(value, pointer).and_then(Value::as_u64);
        let time = |pointer| Timestamp::parse(tree::text(value, pointer));
        Some(Self {
            time: time("/cpu/time")?,
            started_at: time("/startTime").unwrap_or_default(),
            cpu_ns: number("/cpu/usageCoreNanoSeconds")?,
            working_set_bytes: number("/memory/workingSetBytes")?,
        })
    }

    /// What was used since an earlier reading; `None` when that is of another start, or not earlier.
    fn since(self, earlier: Self) -> Option<Rate> {
        if self.started_at != earlier.started_at {
            return None;
        }
        let window_us = u64::try_from(self.time.since(earlier.time).as_micros()).ok()?;
        let used_ns = u128::from(self.cpu_ns.checked_sub(earlier.cpu_ns)?);
        let nanocores = used_ns.checked_mul(1_000_000)?.checked_div(u128::from(window_us))?;
        Some(Rate {
            time: self.time,
            window_us,
            nanocores: u64::try_from(nanocores).ok()?,
            working_set_bytes: self.working_set_bytes,
        })
    }
}

impl Rate {
    fn usage(self) -> Value {
        let canonical =
            |text: String| Quantity::parse(&text).map_or(text, |quantity| quantity.to_string());
        json!({
            "cpu": canonical(format!("{}n", self.nanocores)),
            "memory": canonical(format!("{}Ki", self.working_set_bytes / 1024)),
        })
    }

    /// A duration as Go writes those below a minute, to the millisecond.
    fn window(self) -> String {
        let (seconds, milliseconds) =
            (self.window_us / 1_000_000, self.window_us % 1_000_000 / 1000);
        match milliseconds {
            0 => format!("{seconds}s"),
            _ => {
                let fraction = format!("{milliseconds:03}");
                format!("{seconds}.{}s", fraction.trim_end_matches('0'))
            }
        }
    }
}

/// The NodeMetrics of a node; `None` while they are not available.
pub fn of_node(node: &Object, samples: &(Sample, Sample)) -> Option<Object> {
    let (earlier, later) = samples;
    let rate = later.node?.since(earlier.node?)?;
    let mut value = head(&NODES, node, rate);
    tree::set(&mut value, "/usage", rate.usage());
    Some(Object::new(&NODES, node.key.clone(), 0, value))
}

/// The PodMetrics of a pod by the samples of its node; `None` while they are not available. As with
/// metrics-server, all its containers that run are told of or none.
pub fn of_pod(pod: &Object, samples: &(Sample, Sample)) -> Option<Object> {
    let (earlier, later) = (samples.0.pods.get(&pod.key)?, samples.1.pods.get(&pod.key)?);
    if later.uid != pod.uid() || earlier.uid != pod.uid() || later.containers.is_empty() {
        return None;
    }
    let mut containers = Vec::new();
    let mut oldest: Option<Rate> = None;
    for (name, reading) in &later.containers {
        let rate = reading.since(*earlier.containers.get(name)?)?;
        containers.push(json!({"name": name, "usage": rate.usage()}));
        oldest = oldest.filter(|known| known.time <= rate.time).or(Some(rate));
    }
    let mut value = head(&PODS, pod, oldest?);
    tree::set(&mut value, "/containers", containers);
    Some(Object::new(&PODS, pod.key.clone(), 0, value))
}

/// The refusal for what is not measured, or not yet.
pub fn not_available(resource: &Resource, namespace: &str, name: &str) -> Status {
    let kind = resource.kind.to_lowercase();
    let name = match namespace {
        "" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    };
    let message = format!("{kind}.{} {name:?} not found", resource.group);
    Status::failure(404, "NotFound", message)
}

fn head(resource: &Resource, of: &Object, rate: Rate) -> Value {
    let mut metadata = Map::new();
    let mut add = |name: &str, value: Value| metadata.insert(name.to_owned(), value);
    add("name", of.key.name.clone().into());
    if !of.key.namespace.is_empty() {
        add("namespace", of.key.namespace.clone().into());
    }
    add("creationTimestamp", rate.time.to_string().into());
    if let Some(labels) = tree::at(&of.value, "/metadata/labels") {
        add("labels", labels.clone());
    }
    json!({
        "kind": resource.kind,
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "timestamp": rate.time.to_string(),
        "window": rate.window(),
    })
}

/// The sum of a quantity over the containers.
fn sum(value: &Value, pointer: &str) -> String {
    let containers = tree::items(value, "/containers").iter();
    let quantities =
        containers.filter_map(|container| Quantity::parse(tree::text(container, pointer)));
    quantities.reduce(|sum, one| sum + one).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    fn summary(time: &str, cpu_ns: u64, started: &str) -> Vec<u8> {
        let measured = |cpu_ns: u64| {
            json!({
                "startTime": started,
                "cpu": {"time": time, "usageCoreNanoSeconds": cpu_ns},
                "memory": {"time": time, "workingSetBytes": 3 << 20},
            })
        };
        let named = |name: &str, cpu_ns: u64| {
            let mut container = measured(cpu_ns);
            tree::set(&mut container, "/name", name);
            container
        };
        json!({
            "node": {"nodeName": "n", "cpu": {"time": time, "usageCoreNanoSeconds": 10 * cpu_ns},
                "memory": {"time": time, "workingSetBytes": (5 << 20) + 1}},
            "pods": [{
                "podRef": {"name": "web", "namespace": "shop", "uid": "u"},
                "containers": [named("main", cpu_ns), named("side", 7)],
            }],
        })
        .to_string()
        .into_bytes()
    }

    fn object(plural: &str, namespace: &str, name: &str, uid: &str) -> Object {
        let resource = registry::find("", "v1", plural).expect("a row");
        let value = json!({"metadata": {"name": name, "uid": uid, "labels": {"app": "web"}}});
        Object::new(resource, NamespacedName::new(namespace, name), 1, value)
    }

    fn samples(texts: [Vec<u8>; 2]) -> (Sample, Sample) {
        let [first, second] = texts.map(|text| Sample::from_summary(&text).expect("a summary"));
        (first, second)
    }

    const START: &str = "2026-01-01T00:00:00Z";
    const FIRST: &str = "2026-01-01T00:01:00.250000Z";
    const SECOND: &str = "2026-01-01T00:01:10.750000Z";

    #[test]
    fn a_rate_is_what_was_used_between_two_samples() {
        // 10.5 s apart: 2.625 s of CPU time are a quarter of a processor.
        let texts = [summary(FIRST, 1_000_000_000, START), summary(SECOND, 3_625_000_000, START)];
        let samples = samples(texts);
        let pod = of_pod(&object("pods", "shop", "web", "u"), &samples).expect("available");
        assert_eq!(
            pod.value,
            json!({
                "kind": "PodMetrics",
                "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {
                    "name": "web",
                    "namespace": "shop",
                    "creationTimestamp": "2026-01-01T00:01:10Z",
                    "labels": {"app": "web"},
                },
                "timestamp": "2026-01-01T00:01:10Z",
                "window": "10.5s",
                "containers": [
                    {"name": "main", "usage": {"cpu": "250m", "memory": "3Mi"}},
                    {"name": "side", "usage": {"cpu": "0", "memory": "3Mi"}},
                ],
            })
        );
        assert_eq!(
            (sum(&pod.value, "/usage/cpu"), sum(&pod.value, "/usage/memory")),
            ("250m".to_owned(), "6Mi".to_owned())
        );
        let node = of_node(&object("nodes", "", "n", ""), &samples).expect("available");
        assert_eq!(node.value["usage"], json!({"cpu": "2500m", "memory": "5Mi"}));
    }

    #[test]
    fn what_has_not_two_samples_of_one_start_is_absent() {
        let pod = object("pods", "shop", "web", "u");
        let whole = || summary(SECOND, 2_000, START);
        let cases = [
            ("no time between", whole()),
            ("another start", summary(FIRST, 1_000, "2025-01-01T00:00:00Z")),
            ("the counter went back", summary(FIRST, 3_000, START)),
            ("not there before", br#"{"node": {}, "pods": []}"#.to_vec()),
        ];
        for (what, first) in cases {
            assert!(of_pod(&pod, &samples([first, whole()])).is_none(), "{what}");
        }
        let good = || samples([summary(FIRST, 1_000, START), whole()]);
        assert!(of_pod(&pod, &good()).is_some());
        let namesake = object("pods", "shop", "web", "another");
        assert!(of_pod(&namesake, &good()).is_none(), "the readings are of the pod before");
        assert!(of_pod(&object("pods", "shop", "other", "u"), &good()).is_none());
    }

    #[test]
    fn what_is_no_summary_is_an_error() {
        for text in ["", "[]", "{\"pods\": []}", "<html>"] {
            assert!(Sample::from_summary(text.as_bytes()).is_err(), "{text}");
        }
        let odd = br#"{"node": 1, "pods": [{"containers": [{}, 7]}, null]}"#;
        assert!(Sample::from_summary(odd).is_ok_and(|sample| sample.node.is_none()));
    }

    #[test]
    fn windows_are_durations_as_go_writes_them() {
        for (window_us, text) in
            [(15_000_000, "15s"), (1_002_345, "1.002s"), (10_500_000, "10.5s"), (999, "0s")]
        {
            let rate =
                Rate { time: Timestamp::default(), window_us, nanocores: 0, working_set_bytes: 0 };
            assert_eq!(rate.window(), text);
        }
    }

    #[test]
    fn what_is_not_available_is_told_by_kind() {
        assert_eq!(
            not_available(&PODS, "shop", "web").message,
            "podmetrics.metrics.k8s.io \"shop/web\" not found"
        );
        assert_eq!(
            not_available(&NODES, "", "n1").message,
            "nodemetrics.metrics.k8s.io \"n1\" not found"
        );
    }
}
