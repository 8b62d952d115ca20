//! What the agent says in the API: the Node's condition and annotations, and Events about what an
//! operator must know. A task of its own: the network never waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use client::{Client, ClientError, PatchKind, ResourcePath};
use model::{ObjectMeta, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::metrics::unix_seconds;

/// The Node's condition is looked at this often, in case somebody else wrote it.
const REASSERT_PERIOD: Duration = Duration::from_secs(60);
/// First and longest wait after the API refused or was not there.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LIMIT: Duration = Duration::from_secs(30);
/// The same Event is not told again for this long, the time that API servers keep Events.
const EVENT_REPEAT: Duration = Duration::from_secs(3600);
/// Events of one agent in a minute; further ones wait.
const EVENTS_A_MINUTE: usize = 20;
/// Events that are remembered as told.
const EVENTS_REMEMBERED: usize = 512;
/// The component in Events.
const COMPONENT: &str = "flatnet-agent";
/// core/v1 NodeConditionType: pods cannot be reached yet.
const CONDITION: &str = "NetworkUnavailable";

/// What shall be said. The newest counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Whether pods have a network, once that is known.
    pub(crate) network: Option<Network>,
    /// Further conditions, once they are known.
    pub(crate) conditions: Vec<Condition>,
    /// Annotations of the own Node.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Events to be told.
    pub(crate) notes: Vec<Note>,
}

/// One condition of the own Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) status: &'static str,
    /// In one word, for machines.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Whether pods have a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Up,
    /// With the reason.
    Down(String),
}

/// One Event to come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    /// `Kind name` or `Kind namespace/name`.
    pub(crate) about: String,
    /// The object's uid, where it is known.
    pub(crate) uid: String,
    /// In one word, for machines.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Starts the task.
pub(crate) fn spawn(
    client: Client,
    node: String,
    tasks: &mut JoinSet<()>,
) -> watch::Sender<Report> {
    let (sender, reports) = watch::channel(Report::default());
    tasks.spawn(async move {
        let mut reporter =
            Reporter { client, node, told: BTreeMap::new(), recent: VecDeque::new() };
        reporter.run(reports).await;
    });
    sender
}

struct Reporter {
    client: Client,
    node: String,
    told: BTreeMap<Note, Instant>,
    recent: VecDeque<Instant>,
}

impl Reporter {
    async fn run(&mut self, mut reports: watch::Receiver<Report>) {
        let mut wait = REASSERT_PERIOD;
        let mut failures = 0_u32;
        loop {
            let changed = tokio::time::timeout(wait, reports.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
            let report = reports.borrow_and_update().clone();
            let told = match self.tell_node(&report).await {
                Ok(()) => self.tell_events(&report.notes).await,
                Err(error) => Err(error),
            };
            wait = match told {
                Ok(wait) => {
                    failures = 0;
                    wait
                }
                Err(error) => {
                    tracing::warn!("the Node's condition or an Event is not written: {error}");
                    failures = failures.saturating_add(1);
                    // Not at each change either: the server may refuse for good.
                    let wait = RETRY_FIRST.saturating_mul(1 << failures.min(6)).min(RETRY_LIMIT);
                    tokio::time::sleep(wait).await;
                    Duration::ZERO
                }
            };
        }
    }

    /// Writes condition and annotations where they differ: every write of a Node goes to all who
    /// watch Nodes.
    async fn tell_node(&self, report: &Report) -> Result<(), ClientError> {
        if report.network.is_none() && report.conditions.is_empty() && report.annotations.is_empty()
        {
            return Ok(());
        }
        let path = ResourcePath::new("v1", "nodes").name(&self.node);
        let Some(present) = self.client.get_optional::<OwnNode>(&path).await? else {
            return Ok(());
        };
        let Some(patch) = patch(report, &present, now()) else { return Ok(()) };
        let path = path.subresource("status");
        let _: Value = self.client.patch(&path, PatchKind::Strategic, &patch).await?;
        Ok(())
    }

    /// Answers when to come again.
    async fn tell_events(&mut self, notes: &[Note]) -> Result<Duration, ClientError> {
        self.told.retain(|_, at| at.elapsed() < EVENT_REPEAT);
        for note in notes {
            if self.told.contains_key(note) || self.told.len() >= EVENTS_REMEMBERED {
                continue;
            }
            self.recent.retain(|at| at.elapsed() < Duration::from_secs(60));
            if self.recent.len() >= EVENTS_A_MINUTE {
                return Ok(RETRY_LIMIT);
            }
            let (namespace, event) = event(note, &self.node, now());
            let path = ResourcePath::new("v1", "events").namespace(namespace);
            match self.client.create::<_, Value>(&path, &event).await {
                Ok(_) => {}
                // Another node, or we before a restart, told the same.
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
            self.recent.push_back(Instant::now());
            self.told.insert(note.clone(), Instant::now());
        }
        Ok(REASSERT_PERIOD)
    }
}

/// The own Node, as far as it is written here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnNode {
    metadata: ObjectMeta,
    status: OwnStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnStatus {
    conditions: Option<Vec<OwnCondition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
}

impl Network {
    fn condition(&self) -> Condition {
        let (status, reason, message) = match self {
            Self::Up => ("False", "FlatnetIsUp", "flatnet is running on this node"),
            Self::Down(reason) => ("True", "FlatnetIsNotUp", reason.as_str()),
        };
        Condition { kind: CONDITION, status, reason, message: message.to_owned() }
    }
}

impl Condition {
    /// What is to be written, `None` when it stands there.
    fn patch(&self, present: &[OwnCondition], now: Timestamp) -> Option<Value> {
        let known = present.iter().find(|condition| condition.kind == self.kind);
        let same = known.is_some_and(|known| {
            known.status == self.status
                && known.reason == self.reason
                && known.message == self.message
        });
        if same {
            return None;
        }
        let mut condition = json!({
            "type": self.kind,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastHeartbeatTime": now.to_string(),
        });
        // The time of the transition stays where the status stays.
        if known.is_none_or(|known| known.status != self.status) {
            condition["lastTransitionTime"] = json!(now.to_string());
        }
        Some(condition)
    }
}

/// The strategic merge patch that makes the Node say what it shall, `None` when it does.
fn patch(report: &Report, present: &OwnNode, now: Timestamp) -> Option<Value> {
    let mut patch = json!({});
    let wanted = report.network.as_ref().map(Network::condition).into_iter();
    let present_conditions = present.status.conditions.as_deref().unwrap_or_default();
    let conditions: Vec<Value> = wanted
        .chain(report.conditions.iter().cloned())
        .filter_map(|condition| condition.patch(present_conditions, now))
        .collect();
    if !conditions.is_empty() {
        patch["status"] = json!({ "conditions": conditions });
    }
    let missing: BTreeMap<&String, &String> = report
        .annotations
        .iter()
        .filter(|(key, value)| present.metadata.annotations.get(*key) != Some(value))
        .collect();
    if !missing.is_empty() {
        patch["metadata"] = json!({ "annotations": missing });
    }
    (patch != json!({})).then_some(patch)
}

/// A core/v1 Event and its namespace. Its name is a function of what it says, so that many nodes
/// that find the same thing tell it once.
fn event(note: &Note, node: &str, now: Timestamp) -> (String, Value) {
    let (kind, name) = note.about.split_once(' ').unwrap_or(("Node", node));
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (namespace, name),
        None => ("", name),
    };
    // Events about objects without a namespace go where the kubelet's go.
    let home = if namespace.is_empty() { "default" } else { namespace };
    // `kubectl describe node` looks for the Node's name in the place of the uid.
    let uid = if kind == "Node" { name } else { &note.uid };
    let hash = fingerprint(&[&note.about, note.reason, &note.message]);
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{name}.{hash:016x}"), "namespace": home },
        "involvedObject": {
            "apiVersion": match kind {
                "EndpointSlice" => "discovery.k8s.io/v1",
                "ServiceCIDR" => "networking.k8s.io/v1",
                _ => "v1",
            },
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "uid": uid,
        },
        "reason": note.reason,
        "message": note.message,
        "type": "Warning",
        "count": 1,
        "firstTimestamp": now.to_string(),
        "lastTimestamp": now.to_string(),
        "source": { "component": COMPONENT, "host": node },
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
    });
    (home.to_owned(), event)
}

/// FNV-1a, 64 bits, with an end of each part: names only, nothing hostile.
fn fingerprint(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn now() -> Timestamp {
    // Seconds since 1970 fit for as long as anyone will look at the Event.
    Timestamp::from_seconds(unix_seconds() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_700_000_000;

    fn node(conditions: Value) -> OwnNode {
        let object = json!({
            "metadata": { "name": "node1", "annotations": { "a": "1" } },
            "status": { "conditions": conditions },
        });
        serde_json::from_value(object).expect("a node")
    }

    fn up() -> Report {
        Report { network: Some(Network::Up), ..Report::default() }
    }

    #[test]
    fn a_node_that_says_what_it_shall_is_not_written() {
        let now = Timestamp::from_seconds(AT);
        let first = patch(&up(), &node(Value::Null), now).expect("a patch");
        let condition = &first["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["reason"], "FlatnetIsUp");
        assert_eq!(patch(&up(), &node(json!([condition])), now), None);
        let down = Report { network: Some(Network::Down("why".into())), ..Report::default() };
        let second = patch(&down, &node(json!([condition])), now).expect("a patch");
        assert_eq!(second["status"]["conditions"][0]["status"], "True");
        assert_eq!(second["status"]["conditions"][0]["message"], "why");
    }

    #[test]
    fn the_time_of_the_transition_stays_while_the_status_stays() {
        let present = json!([{ "type": CONDITION, "status": "False", "reason": "RouteCreated" }]);
        let patch = patch(&up(), &node(present), Timestamp::from_seconds(AT)).expect("a patch");
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["reason"], "FlatnetIsUp");
        assert_eq!(condition.get("lastTransitionTime"), None);
    }

    #[test]
    fn only_annotations_that_differ_are_written() {
        let annotations = [("a", "1"), ("b", "2")].map(|(key, value)| (key.into(), value.into()));
        let report = Report { annotations: annotations.into(), ..Report::default() };
        let now = Timestamp::from_seconds(AT);
        let patch = patch(&report, &node(Value::Null), now).expect("a patch");
        assert_eq!(patch, json!({ "metadata": { "annotations": { "b": "2" } } }));
    }

    #[test]
    fn many_nodes_that_find_the_same_thing_name_the_same_event() {
        let note = |about: &str| Note {
            about: about.into(),
            uid: "u1".into(),
            reason: "Finding",
            message: "m".into(),
        };
        let at = Timestamp::from_seconds(AT);
        let (namespace, one) = event(&note("Service shop/web"), "node1", at);
        let (_, other) = event(&note("Service shop/web"), "node2", at);
        assert_eq!(namespace, "shop");
        assert_eq!(one["metadata"], other["metadata"]);
        assert_eq!(one["involvedObject"]["uid"], "u1");
        let (namespace, node) = event(&note("Node node1"), "node1", at);
        assert_eq!(
            (namespace.as_str(), &node["involvedObject"]["uid"]),
            ("default", &json!("node1"))
        );
        assert_ne!(node["metadata"]["name"], one["metadata"]["name"]);
    }
}
