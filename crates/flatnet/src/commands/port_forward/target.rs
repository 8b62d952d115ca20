//! Which pod a connection goes to, from what the API says of a pod, a Service or a Deployment.

use anyhow::{Context, Result, bail};
use client::{Client, ClientError, List, ListOptions, ResourcePath};
use serde_json::Value;

use super::ports::{Port, Protocol};

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One pod. When it goes, so does what was forwarded.
    Pod(String),
    /// The ready pods of a Service.
    Service(String),
    /// The ready pods of a workload with a selector: its plural in `apps/v1`, and its name.
    Workload(&'static str, String),
}

/// A pod that takes connections, and the numbers of the ports in it, in the order of the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The pod's name.
    pub pod: String,
    /// The ports.
    pub ports: Vec<u16>,
}

/// Why there is no pod.
#[derive(Debug)]
pub enum Absent {
    /// None is ready yet: another try may find one.
    NotReady(String),
    /// It is wrong what was asked for, or nobody answers.
    Fault(anyhow::Error),
}

impl Absent {
    /// For people.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::NotReady(why) => anyhow::anyhow!(why),
            Self::Fault(error) => error,
        }
    }
}

impl From<ClientError> for Absent {
    fn from(error: ClientError) -> Self {
        Self::Fault(error.into())
    }
}

impl Target {
    /// Reads `pod/NAME`, `svc/NAME`, `deploy/NAME`, … or the name of a pod.
    ///
    /// # Errors
    /// For what has no pods.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        if name.is_empty() || name.contains('/') {
            bail!("{text:?} names nothing: pod/NAME, svc/NAME and deploy/NAME do");
        }
        let name = name.to_owned();
        Ok(match kind {
            "pod" | "pods" | "po" => Self::Pod(name),
            "service" | "services" | "svc" => Self::Service(name),
            "deployment" | "deployments" | "deploy" => Self::Workload("deployments", name),
            "replicaset" | "replicasets" | "rs" => Self::Workload("replicasets", name),
            "statefulset" | "statefulsets" | "sts" => Self::Workload("statefulsets", name),
            "daemonset" | "daemonsets" | "ds" => Self::Workload("daemonsets", name),
            _ => bail!("{kind:?} has no pods to forward to: pod, svc and deploy have"),
        })
    }

    /// Whether another pod may take over.
    pub fn has_others(&self) -> bool {
        !matches!(self, Self::Pod(_))
    }

    /// A pod that is ready.
    ///
    /// # Errors
    /// [`Absent`].
    pub async fn find(
        &self,
        client: &Client,
        namespace: &str,
        ports: &[Port],
    ) -> Result<Found, Absent> {
        let object = async |group_version: &'static str, plural: &'static str, name: &str| {
            let path = ResourcePath::new(group_version, plural).namespace(namespace.to_owned());
            client.get::<Value>(&path.name(name.to_owned())).await
        };
        let list = async |group_version: &'static str, plural: &'static str, labels: String| {
            let path = ResourcePath::new(group_version, plural).namespace(namespace.to_owned());
            let options = ListOptions { label_selector: labels, ..ListOptions::default() };
            client.list::<Value>(&path, &options).await.map(|List { items, .. }| items)
        };
        match self {
            Self::Pod(name) => of_pod(&object("v1", "pods", name).await?, ports),
            Self::Service(name) => {
                let service = object("v1", "services", name).await?;
                let labels = format!("kubernetes.io/service-name={name}");
                let slices = list("discovery.k8s.io/v1", "endpointslices", labels).await?;
                of_service(&service, &slices, ports)
            }
            Self::Workload(plural, name) => {
                let workload = object("apps/v1", plural, name).await?;
                let labels = selector_text(&workload["spec"]["selector"]);
                of_workload(name, &list("v1", "pods", labels).await?, ports)
            }
        }
    }
}

fn of_pod(pod: &Value, ports: &[Port]) -> Result<Found, Absent> {
    let name = text(&pod["metadata"]["name"]);
    match text(&pod["status"]["phase"]) {
        "Running" => {}
        phase => {
            let why = format!("pod {name} does not run: its phase is {phase:?}");
            return Err(Absent::NotReady(why));
        }
    }
    let ports = ports.iter().map(|port| port_of_pod(pod, port));
    Ok(Found { pod: name.to_owned(), ports: ports.collect::<Result<_>>().map_err(Absent::Fault)? })
}

fn of_workload(name: &str, pods: &[Value], ports: &[Port]) -> Result<Found, Absent> {
    let mut ready: Vec<&Value> = pods.iter().filter(|pod| is_ready(pod)).collect();
    ready.sort_by_key(|pod| text(&pod["metadata"]["name"]).to_owned());
    match ready.first() {
        Some(pod) => of_pod(pod, ports),
        None => Err(Absent::NotReady(format!("no pod of {name} is ready"))),
    }
}

/// Endpoints of slices say both: who is ready, and which of its ports a Service's port leads to.
fn of_service(service: &Value, slices: &[Value], ports: &[Port]) -> Result<Found, Absent> {
    let name = text(&service["metadata"]["name"]);
    let names: Vec<&str> = ports
        .iter()
        .map(|port| service_port(service, port))
        .collect::<Result<_>>()
        .map_err(Absent::Fault)?;
    let mut found: Vec<Found> = Vec::new();
    for slice in slices {
        let number = |(name, port): (&&str, &Port)| {
            let wanted = port.protocol.to_string();
            let fits = |one: &&Value| {
                text(&one["name"]) == *name && one["protocol"].as_str().unwrap_or("TCP") == wanted
            };
            let port = items(&slice["ports"]).find(fits)?;
            u16::try_from(port["port"].as_u64()?).ok()
        };
        let numbers: Option<Vec<u16>> = names.iter().zip(ports).map(number).collect();
        // A slice of pods that lack one of the ports.
        let Some(numbers) = numbers else { continue };
        for endpoint in items(&slice["endpoints"]) {
            let pod = &endpoint["targetRef"];
            if pod["kind"] == "Pod" && endpoint["conditions"]["ready"] != false {
                found.push(Found { pod: text(&pod["name"]).to_owned(), ports: numbers.clone() });
            }
        }
    }
    found.sort_by(|one, other| one.pod.cmp(&other.pod));
    found.into_iter().next().ok_or_else(|| {
        Absent::NotReady(format!(
            "no pod behind service {name} is ready (`kubectl get endpointslices`)"
        ))
    })
}

/// The name of a Service's port, which its slices carry.
fn service_port<'a>(service: &'a Value, port: &Port) -> Result<&'a str> {
    let protocol = port.protocol.to_string();
    let fits = |one: &&Value| {
        let is_it = text(&one["name"]) == port.remote
            || port.remote.parse::<u16>().is_ok_and(|number| one["port"] == number);
        is_it && one["protocol"].as_str().unwrap_or("TCP") == protocol
    };
    let found = items(&service["spec"]["ports"]).find(fits);
    found.map(|port| text(&port["name"])).with_context(|| {
        let name = text(&service["metadata"]["name"]);
        format!("service {name} has no port {} of {protocol}", port.remote)
    })
}

fn port_of_pod(pod: &Value, port: &Port) -> Result<u16> {
    if let Ok(number) = port.remote.parse() {
        return Ok(number);
    }
    let containers = items(&pod["spec"]["containers"]);
    let mut named = containers.flat_map(|container| items(&container["ports"]));
    let fits = |one: &&Value| {
        text(&one["name"]) == port.remote
            && one["protocol"].as_str().unwrap_or("TCP") == port.protocol.to_string()
    };
    let found =
        named.find(fits).and_then(|port| u16::try_from(port["containerPort"].as_u64()?).ok());
    found.with_context(|| {
        let name = text(&pod["metadata"]["name"]);
        format!("pod {name} has no port of {} named {}", port.protocol, port.remote)
    })
}

/// Whether new connections may go to a pod.
pub fn is_ready(pod: &Value) -> bool {
    let mut conditions = items(&pod["status"]["conditions"]);
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// A label selector in the text form of lists.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", text(value))).collect();
    for expression in items(&selector["matchExpressions"]) {
        let key = text(&expression["key"]);
        let values: Vec<&str> = items(&expression["values"]).map(text).collect();
        let values = values.join(",");
        parts.push(match text(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Protocol {
    /// How the port is shown behind an arrow.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "/udp",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ports(texts: &[&str]) -> Vec<Port> {
        texts.iter().map(|text| Port::parse(text).expect("a port")).collect()
    }

    fn found(pod: &str, ports: &[u16]) -> Found {
        Found { pod: pod.to_owned(), ports: ports.to_vec() }
    }

    fn pod(name: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 9090, "protocol": "UDP"},
            ]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn targets_are_named_as_for_kubectl() {
        for (text, expected) in [
            ("web", Target::Pod("web".into())),
            ("po/web", Target::Pod("web".into())),
            ("svc/web", Target::Service("web".into())),
            ("deployment/web", Target::Workload("deployments", "web".into())),
            ("sts/web", Target::Workload("statefulsets", "web".into())),
        ] {
            assert_eq!(Target::parse(text).expect(text), expected);
        }
        for text in ["", "svc/", "node/n1", "svc/a/b"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_service_leads_to_a_ready_pod_and_its_ports() {
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {"ports": [
                {"name": "http", "port": 80, "targetPort": "http"},
                {"name": "echo", "port": 80, "protocol": "UDP"},
            ]},
        });
        let endpoint = |pod: &str, ready: bool| json!({"targetRef": {"kind": "Pod", "name": pod}, "conditions": {"ready": ready}});
        let slices = [
            json!({"ports": [{"name": "http", "port": 1}], "endpoints": [endpoint("a", true)]}),
            json!({
                "ports": [
                    {"name": "http", "port": 8080},
                    {"name": "echo", "port": 9090, "protocol": "UDP"},
                ],
                "endpoints": [endpoint("b", false), endpoint("d", true), endpoint("c", true),
                    {"addresses": ["192.0.2.1"]}],
            }),
        ];
        let find = |texts: &[&str]| of_service(&service, &slices, &ports(texts));
        assert_eq!(find(&["80", "1:echo/udp"]).expect("a pod"), found("c", &[8080, 9090]));
        assert_eq!(find(&["http"]).expect("a pod"), found("a", &[1]));
        assert!(matches!(find(&["81"]), Err(Absent::Fault(_))), "no such port");
        assert!(matches!(find(&["http/udp"]), Err(Absent::Fault(_))), "another protocol");
        assert!(matches!(of_service(&service, &[], &ports(&["80"])), Err(Absent::NotReady(_))));
    }

    #[test]
    fn a_workload_leads_to_its_first_ready_pod() {
        let mut leaving = pod("a", "True");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let pods = [pod("d", "True"), pod("b", "False"), leaving, pod("c", "True")];
        let wanted = ports(&["http", "dns/udp", "22"]);
        let chosen = of_workload("web", &pods, &wanted).expect("a pod");
        assert_eq!(chosen, found("c", &[8080, 9090, 22]));
        assert!(matches!(of_workload("web", &pods[1..3], &wanted), Err(Absent::NotReady(_))));
        let absent = of_workload("web", &pods, &ports(&["dns"]));
        assert!(matches!(absent, Err(Absent::Fault(_))), "dns is UDP");
    }

    #[test]
    fn selectors_are_written_as_lists_take_them() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "new", "operator": "Exists"},
                {"key": "zone", "operator": "NotIn", "values": ["c"]},
            ],
        });
        assert_eq!(selector_text(&selector), "app=web,tier in (a,b),!old,new,zone notin (c)");
    }
}
