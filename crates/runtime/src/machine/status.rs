//! `status` of a Pod, from what is known of it: in the kubelet's words, since users and programs
//! read these.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    ConditionRecord, ContainerRecord, ContainerState, Ended, Machine, OVERDUE_MESSAGE,
    OVERDUE_REASON, Outcome, SandboxState,
};
use crate::pod::{Container, Pod};

/// What containers waiting for their turn say.
const INITIALIZING: &str = "PodInitializing";
/// What containers of a pod without init containers say.
const CREATING: &str = "ContainerCreating";

/// The status now, without the conditions of others. Remembers when each condition changed last.
pub fn status(machine: &mut Machine, host_addresses: &[IpAddr], now: Timestamp) -> Value {
    let phase = phase(machine);
    let conditions = conditions(machine, phase, now);
    let pod = &machine.pod;
    let record = &machine.record;
    let statuses = |containers: &[Container], waiting: &str| -> Vec<Value> {
        containers
            .iter()
            .filter_map(|container| {
                let known = record.containers.get(&container.name)?;
                Some(container_status(pod, container, known, waiting))
            })
            .collect()
    };
    let has_init = !pod.spec.init_containers.is_empty();
    let waiting = if has_init && !record.initialized { INITIALIZING } else { CREATING };
    let ips = |addresses: &[IpAddr]| -> Vec<Value> {
        addresses.iter().map(|address| json!({ "ip": address })).collect()
    };
    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    status.insert("conditions".into(), conditions.into());
    if let Some(address) = host_addresses.first() {
        status.insert("hostIP".into(), json!(address));
        status.insert("hostIPs".into(), ips(host_addresses).into());
    }
    if let Some(address) = record.sandbox.addresses.first() {
        status.insert("podIP".into(), json!(address));
        status.insert("podIPs".into(), ips(&record.sandbox.addresses).into());
    }
    status.insert("startTime".into(), json!(record.start_time));
    if has_init {
        let init = statuses(&pod.spec.init_containers, INITIALIZING);
        status.insert("initContainerStatuses".into(), init.into());
    }
    status.insert("containerStatuses".into(), statuses(&pod.spec.containers, waiting).into());
    if !pod.spec.ephemeral_containers.is_empty() {
        let added = statuses(&pod.spec.ephemeral_containers, CREATING);
        status.insert("ephemeralContainerStatuses".into(), added.into());
    }
    status.insert("qosClass".into(), qos_class(pod).into());
    if let Some(message) = &record.evicted {
        status.insert("reason".into(), "Evicted".into());
        status.insert("message".into(), message.as_str().into());
    } else if record.overdue {
        status.insert("reason".into(), OVERDUE_REASON.into());
        status.insert("message".into(), OVERDUE_MESSAGE.into());
    }
    status.into()
}

/// The write of a status: a strategic merge patch, as the kubelet's, so that it neither takes away
/// nor brings back what others say of the pod (its conditions merge by their type). With the uid
/// the server refuses to write to a namesake that came after.
pub fn patch(pod: &Pod, status: &Value) -> Value {
    let mut patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    let Some(status) = patch["status"].as_object_mut() else { return patch };
    // These would merge by address, and an old one would stay.
    for list in ["hostIPs", "podIPs"] {
        if let Some(addresses) = status.get_mut(list).and_then(Value::as_array_mut) {
            addresses.push(json!({"$patch": "replace"}));
        }
    }
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    let mut order = Vec::new();
    for condition in conditions.into_iter().flatten() {
        order.push(json!({"type": condition["type"]}));
        // What is not said any more must go.
        for text in ["reason", "message"] {
            if condition.get(text).is_none() {
                condition[text] = Value::Null;
            }
        }
    }
    let others = pod.status.conditions.iter().map(|condition| json!({"type": condition["type"]}));
    let others: Vec<Value> = others.filter(|other| !order.contains(other)).collect();
    order.extend(others);
    status.insert("$setElementOrder/conditions".into(), order.into());
    patch
}

/// The kubelet's `getPhase`.
fn phase(machine: &Machine) -> &'static str {
    match machine.record.finished {
        Some(Outcome::Succeeded) => return "Succeeded",
        Some(Outcome::Failed) => return "Failed",
        None => {}
    }
    if !machine.record.initialized && !has_run_before(machine) {
        return "Pending";
    }
    let records = machine
        .pod
        .spec
        .containers
        .iter()
        .filter_map(|container| machine.record.containers.get(&container.name));
    let mut running = false;
    for record in records {
        match &record.state {
            ContainerState::Waiting { .. } if record.last.is_none() => return "Pending",
            _ if is_starting(record) && record.last.is_none() => return "Pending",
            _ => running = true,
        }
    }
    if running { "Running" } else { "Pending" }
}

/// A pod whose sandbox was replaced starts its init containers again, but stays Running.
fn has_run_before(machine: &Machine) -> bool {
    machine.pod.spec.containers.iter().any(|container| {
        machine.record.containers.get(&container.name).is_some_and(|record| {
            record.last.is_some() || !matches!(record.state, ContainerState::Waiting { .. })
        })
    })
}

struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

fn conditions(machine: &mut Machine, phase: &str, now: Timestamp) -> Vec<Value> {
    let mut listed = Vec::new();
    let evicted = machine.record.evicted.clone().map(|message| Condition {
        kind: "DisruptionTarget",
        holds: true,
        reason: "TerminationByKubelet",
        message,
    });
    for condition in judge(machine, phase).into_iter().chain(evicted) {
        let known = machine.record.conditions.entry(condition.kind.into());
        let known = known
            .and_modify(|known| {
                if known.holds != condition.holds {
                    *known = ConditionRecord { holds: condition.holds, since: now };
                }
            })
            .or_insert(ConditionRecord { holds: condition.holds, since: now });
        let mut entry = json!({
            "type": condition.kind,
            "status": if condition.holds { "True" } else { "False" },
            "lastTransitionTime": known.since,
        });
        if !condition.reason.is_empty() {
            entry["reason"] = condition.reason.into();
        }
        if !condition.message.is_empty() {
            entry["message"] = condition.message.into();
        }
        listed.push(entry);
    }
    listed
}

fn judge(machine: &Machine, phase: &str) -> [Condition; 4] {
    let record = &machine.record;
    let has_sandbox = record.sandbox.state == SandboxState::Ready;
    let names = |wanted: &dyn Fn(&Container, &ContainerRecord) -> bool,
                 containers: &[Container]| {
        let names: Vec<&str> = containers
            .iter()
            .filter(|container| {
                record.containers.get(&container.name).is_none_or(|known| wanted(container, known))
            })
            .map(|container| container.name.as_str())
            .collect();
        names.join(" ")
    };
    let incomplete = names(
        &|container, known| match known.ended() {
            Some(ended) => ended.code != 0 || container.is_sidecar(),
            None => !(container.is_sidecar() && known.started),
        },
        &machine.pod.spec.init_containers,
    );
    let unready = names(&|_, known| !is_ready(known), &machine.pod.spec.containers);
    let initialized = record.initialized || record.finished == Some(Outcome::Succeeded);
    let (ready_reason, ready_message) = match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ if !unready.is_empty() => {
            ("ContainersNotReady", format!("containers with unready status: [{unready}]"))
        }
        _ => ("", String::new()),
    };
    let containers_ready = Condition {
        kind: "ContainersReady",
        holds: ready_reason.is_empty(),
        reason: ready_reason,
        message: ready_message.clone(),
    };
    let gates = if ready_reason.is_empty() { closed_gates(&machine.pod) } else { String::new() };
    let (ready_reason, ready_message) = match gates.is_empty() {
        true => (ready_reason, ready_message),
        false => ("ReadinessGatesNotReady", gates),
    };
    let ready = Condition {
        kind: "Ready",
        holds: ready_reason.is_empty(),
        reason: ready_reason,
        message: ready_message,
    };
    let (init_reason, init_message) = match (initialized, phase) {
        (true, "Succeeded") => ("PodCompleted", String::new()),
        (true, _) => ("", String::new()),
        (false, _) => (
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{incomplete}]"),
        ),
    };
    let bare = |kind, holds| Condition { kind, holds, reason: "", message: String::new() };
    // A pod without init containers is initialized from the first.
    let initialized = initialized || machine.pod.spec.init_containers.is_empty();
    let init = if initialized && init_reason != "PodCompleted" {
        bare("Initialized", true)
    } else {
        Condition {
            kind: "Initialized",
            holds: initialized,
            reason: init_reason,
            message: init_message,
        }
    };
    [bare("PodReadyToStartContainers", has_sandbox), init, ready, containers_ready]
}

/// The kubelet's words about the readiness gates whose conditions others have not set; empty where
/// none keeps the pod from being ready.
fn closed_gates(pod: &Pod) -> String {
    let closed = pod.spec.readiness_gates.iter().filter_map(|gate| {
        let name = &gate.condition_type;
        let conditions = &mut pod.status.conditions.iter();
        let Some(condition) = conditions.find(|condition| condition["type"] == name.as_str())
        else {
            return Some(format!(
                "corresponding condition of pod readiness gate {name:?} does not exist."
            ));
        };
        let status = condition["status"].as_str().unwrap_or_default();
        let said =
            format!("the status of pod readiness gate {name:?} is not \"True\", but {status}");
        (status != "True").then_some(said)
    });
    closed.collect::<Vec<_>>().join(", ")
}

/// Until its postStart hook has ended, a container counts as being started.
fn is_starting(record: &ContainerRecord) -> bool {
    match &record.state {
        ContainerState::Starting { .. } => true,
        ContainerState::Running { .. } => record.hook.is_some(),
        _ => false,
    }
}

fn is_ready(record: &ContainerRecord) -> bool {
    record.is_running() && record.started && record.ready
}

fn container_status(
    pod: &Pod,
    container: &Container,
    record: &ContainerRecord,
    waiting: &str,
) -> Value {
    let (state, id) = match &record.state {
        ContainerState::Waiting { reason, message } => {
            let reason = if reason.is_empty() { waiting } else { reason };
            (json!({ "waiting": without_empty(reason, message) }), "")
        }
        ContainerState::Running { id, started_at } if !is_starting(record) => {
            (json!({ "running": { "startedAt": started_at } }), id.as_str())
        }
        ContainerState::Starting { .. } | ContainerState::Running { .. } => match &record.last {
            // Between two runs the kubelet goes on to show how the last one ended.
            Some(ended) => (json!({ "terminated": terminated(ended) }), ended.id.as_str()),
            None => (json!({ "waiting": { "reason": waiting } }), ""),
        },
        ContainerState::Ended(ended) if record.start_at.is_some() => {
            (json!({ "waiting": crash_loop(pod, container, record) }), ended.id.as_str())
        }
        ContainerState::Ended(ended) => {
            (json!({ "terminated": terminated(ended) }), ended.id.as_str())
        }
    };
    let last = match &record.state {
        ContainerState::Ended(ended) if record.start_at.is_some() => Some(ended),
        _ => record.last.as_ref(),
    };
    let last_state = last.map_or(json!({}), |ended| json!({ "terminated": terminated(ended) }));
    let is_finished_init = pod.spec.init_containers.iter().any(|init| init.name == container.name)
        && record.ended().is_some_and(|ended| ended.code == 0);
    let running = record.is_running();
    let mut status = json!({
        "name": container.name,
        "state": state,
        "lastState": last_state,
        "ready": is_ready(record) || is_finished_init,
        "restartCount": record.restarts,
        "image": container.image,
        "imageID": if id.is_empty() { "" } else { record.image_id.as_str() },
        "started": running && record.started,
    });
    if !id.is_empty() {
        status["containerID"] = format!("flatnet://{id}").into();
    }
    status
}

fn crash_loop(pod: &Pod, container: &Container, record: &ContainerRecord) -> Value {
    let metadata = &pod.metadata;
    let ended_at = record.ended().map_or(Timestamp::default(), |ended| ended.finished_at);
    let wait_s = record.start_at.unwrap_or(ended_at).since(ended_at).as_secs();
    let wait = match (wait_s / 60, wait_s % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    };
    let message = format!(
        "back-off {wait} restarting failed container={} pod={}_{}({})",
        container.name, metadata.name, metadata.namespace, metadata.uid
    );
    json!({ "reason": "CrashLoopBackOff", "message": message })
}

fn terminated(ended: &Ended) -> Value {
    let mut value = without_empty(&ended.reason, &ended.message);
    value["exitCode"] = ended.code.into();
    value["startedAt"] = json!(ended.started_at);
    value["finishedAt"] = json!(ended.finished_at);
    value["containerID"] = format!("flatnet://{}", ended.id).into();
    value
}

fn without_empty(reason: &str, message: &str) -> Value {
    let mut value = json!({ "reason": reason });
    if !message.is_empty() {
        value["message"] = message.into();
    }
    value
}

/// `Guaranteed`, `Burstable` or `BestEffort`, settled by the API server where it does so.
fn qos_class(pod: &Pod) -> &str {
    if !pod.status.qos_class.is_empty() {
        return &pod.status.qos_class;
    }
    let names = ["cpu", "memory"];
    let text = |values: &BTreeMap<String, Value>, name: &str| {
        values.get(name).map(|value| value.to_string().trim_matches('"').to_owned())
    };
    let mut guaranteed = true;
    let mut best_effort = true;
    for container in pod.own_containers() {
        let resources = &container.resources;
        for name in names {
            let (limit, request) = (text(&resources.limits, name), text(&resources.requests, name));
            best_effort &= limit.is_none() && request.is_none();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}
