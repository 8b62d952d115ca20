//! core/v1 Pod.

use model::Timestamp;
use serde_json::{Value, json as tree};

use super::{pod_spec, pod_update};
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::{Column, human_duration, or_none};
use crate::validate::FieldErrors;

/// core/v1 Pod.
pub(crate) static POD: Resource = Resource {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Status,
    ],
    storage: "pods",
    has_generation: true,
    returns_deleted: true,
    graceful: true,
    metadata_through_status: true,
    columns: &[
        Column::NAME,
        Column::text("Ready", |value, _| {
            let summary = Summary::of(value);
            format!("{}/{}", summary.ready, summary.total).into()
        }),
        Column::text("Status", |value, _| Summary::of(value).reason.into()),
        Column::text("Restarts", |value, now| Summary::of(value).restarts_text(now).into()),
        Column::AGE,
        Column::text("IP", |value, _| or_none(pod_ip(value))).wide(),
        Column::text("Node", |value, _| or_none(json::text(value, "/spec/nodeName"))).wide(),
        Column::text("Nominated Node", |value, _| {
            or_none(json::text(value, "/status/nominatedNodeName"))
        })
        .wide(),
        Column::text("Readiness Gates", |value, _| or_none(&readiness_gates(value))).wide(),
    ],
    selectable_fields: &[
        "/spec/nodeName",
        "/spec/restartPolicy",
        "/spec/schedulerName",
        "/spec/serviceAccountName",
        "/spec/hostNetwork",
        "/status/phase",
        "/status/podIP",
        "/status/podIPs",
        "/status/nominatedNodeName",
    ],
    default: |value| {
        if let Some(spec) = value.pointer_mut("/spec") {
            pod_spec::default(spec);
            json::set_default(spec, "/enableServiceLinks", true);
        }
        for condition in json::items_mut(value, "/status/conditions") {
            // The API writes these times even where nobody has set them.
            json::set_default(condition, "/lastProbeTime", Value::Null);
            json::set_default(condition, "/lastTransitionTime", Value::Null);
        }
    },
    prepare_create: |value| {
        let class = quality_of_service(value);
        let mut status = tree!({"phase": "Pending", "qosClass": class});
        if !json::items(value, "/spec/schedulingGates").is_empty() {
            status["conditions"] = tree!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        json::set(value, "/status", status);
    },
    validate: validate_pod,
    ..Resource::BASE
};

fn validate_pod(pod: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let Some(spec) = json::at(pod, "/spec") else {
        errors.required("spec.containers", "");
        return;
    };
    if old.and_then(|old| json::at(old, "/spec")) == Some(spec) {
        return; // What was taken once stays, whatever is checked since.
    }
    pod_spec::validate("spec", spec, errors);
    if old.is_none() && !json::items(spec, "/ephemeralContainers").is_empty() {
        errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    match old.and_then(|old| json::at(old, "/spec")) {
        Some(old) => pod_update::validate(spec, old, errors),
        // Gates are there from the beginning (KEP-3521).
        None if !json::items(spec, "/schedulingGates").is_empty()
            && !json::text(spec, "/nodeName").is_empty() =>
        {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden("spec.nodeName", why);
        }
        None => {}
    }
}

/// Guaranteed when every container's limits for cpu and memory are its requests; BestEffort when
/// nobody asks for either; Burstable else.
pub(crate) fn quality_of_service(pod: &Value) -> &'static str {
    let containers = || {
        json::items(pod, "/spec/containers").iter().chain(json::items(pod, "/spec/initContainers"))
    };
    let quantity = |container: &Value, side: &str, name: &str| {
        json::at(container, &format!("/resources/{side}/{name}")).cloned()
    };
    let asks = |container: &Value| {
        ["requests", "limits"].iter().any(|side| {
            ["cpu", "memory"].iter().any(|name| quantity(container, side, name).is_some())
        })
    };
    if !containers().any(asks) {
        return "BestEffort";
    }
    let fixed = |container: &Value| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = quantity(container, "limits", name);
            limit.is_some() && limit == quantity(container, "requests", name)
        })
    };
    if containers().all(fixed) { "Guaranteed" } else { "Burstable" }
}

/// What the first columns say about a pod.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = json::text(pod, "/status/phase");
        let own_reason = json::text(pod, "/status/reason");
        let reason = if own_reason.is_empty() { phase } else { own_reason };
        let mut summary = Self {
            reason: reason.to_owned(),
            ready: 0,
            total: json::items(pod, "/spec/containers").len(),
            restarts: 0,
            last_restart: None,
        };
        let gated = json::items(pod, "/status/conditions").iter().any(|condition| {
            json::text(condition, "/type") == "PodScheduled"
                && json::text(condition, "/reason") == "SchedulingGated"
        });
        if gated {
            summary.reason = "SchedulingGated".to_owned();
        }
        let initializing = summary.read_init_containers(pod);
        if !initializing || is_initialized(pod) {
            summary.read_containers(pod);
        }
        if json::at(pod, "/metadata/deletionTimestamp").is_some() {
            if own_reason == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Reads the init containers in their order; whether one of them still holds the pod up.
    fn read_init_containers(&mut self, pod: &Value) -> bool {
        let specs = json::items(pod, "/spec/initContainers");
        let is_sidecar = |name: &str| {
            specs.iter().any(|spec| {
                json::text(spec, "/name") == name && json::text(spec, "/restartPolicy") == "Always"
            })
        };
        let sidecars =
            specs.iter().filter(|spec| json::text(spec, "/restartPolicy") == "Always").count();
        self.total += sidecars;
        let (mut all_restarts, mut all_last) = (0, None);
        for (index, status) in json::items(pod, "/status/initContainerStatuses").iter().enumerate()
        {
            let restarts = json::integer(status, "/restartCount").unwrap_or(0);
            let last = last_end(status);
            all_restarts += restarts;
            all_last = all_last.max(last);
            let sidecar = is_sidecar(json::text(status, "/name"));
            if sidecar {
                self.restarts += restarts;
                self.last_restart = self.last_restart.max(last);
            }
            if json::integer(status, "/state/terminated/exitCode") == Some(0) {
                continue;
            }
            if sidecar && json::flag(status, "/started") {
                self.ready += usize::from(json::flag(status, "/ready"));
                continue;
            }
            let waiting = json::text(status, "/state/waiting/reason");
            self.reason = if let Some(terminated) = json::at(status, "/state/terminated") {
                format!("Init:{}", end_reason(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            (self.restarts, self.last_restart) = (all_restarts, all_last);
            return true;
        }
        false
    }

    fn read_containers(&mut self, pod: &Value) {
        let mut has_running = false;
        for status in json::items(pod, "/status/containerStatuses").iter().rev() {
            self.restarts += json::integer(status, "/restartCount").unwrap_or(0);
            self.last_restart = self.last_restart.max(last_end(status));
            let waiting = json::text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = json::at(status, "/state/terminated") {
                self.reason = end_reason(terminated);
            } else if json::flag(status, "/ready") && json::at(status, "/state/running").is_some() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && has_running {
            let ready = has_condition(pod, "Ready");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(last) if self.restarts > 0 => {
                let seconds = now.seconds().saturating_sub(last.seconds());
                format!("{} ({} ago)", self.restarts, human_duration(seconds))
            }
            _ => self.restarts.to_string(),
        }
    }
}

fn last_end(status: &Value) -> Option<Timestamp> {
    Timestamp::parse(json::text(status, "/lastState/terminated/finishedAt"))
}

fn end_reason(terminated: &Value) -> String {
    let reason = json::text(terminated, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match json::integer(terminated, "/signal").filter(|signal| *signal != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!("ExitCode:{}", json::integer(terminated, "/exitCode").unwrap_or(0)),
    }
}

fn is_initialized(pod: &Value) -> bool {
    has_condition(pod, "Initialized")
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    json::items(pod, "/status/conditions").iter().any(|condition| {
        json::text(condition, "/type") == kind && json::text(condition, "/status") == "True"
    })
}

fn pod_ip(pod: &Value) -> &str {
    let first = json::items(pod, "/status/podIPs").first();
    first.map(|ip| json::text(ip, "/ip")).unwrap_or_else(|| json::text(pod, "/status/podIP"))
}

fn readiness_gates(pod: &Value) -> String {
    let gates = json::items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let open = gates.iter().filter(|gate| has_condition(pod, json::text(gate, "/conditionType")));
    format!("{}/{}", open.count(), gates.len())
}
