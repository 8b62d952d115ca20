//! Services as this node sees them, for `flatnet service`: told from the very values that the loop
//! uses (invariant 12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::kinds::{Endpoint, ServiceType, TrafficPolicy};
use model::{ClusterConfig, EndpointSlice, NamespacedName, Protocol, Service, Unreachable};
use plan::services::{Backends, Frontend, FrontendPlan, RangeFrontend, Scheduling, ServicePlan};
use reconcile::Reconciler;
use render::implementation::KernelObject;
use serde::{Deserialize, Serialize};

use crate::measure::Measurement;

/// All Services at one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeServices {
    /// The node.
    pub node: String,
    /// In the order of their names.
    pub services: Vec<ServiceReport>,
}

/// One Service at one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceReport {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.type`; `Headless` for a ClusterIP Service without address.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Its ports as kubectl writes them: `80/TCP`, `80:30080/TCP`.
    pub ports: Vec<String>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: String,
    /// `spec.externalTrafficPolicy`, where something is reachable from outside.
    pub external_traffic_policy: Option<String>,
    /// Seconds that a client stays with its endpoint.
    pub session_affinity_seconds: Option<u32>,
    /// How endpoints are chosen.
    pub scheduling: String,
    /// What clients connect to.
    pub frontends: Vec<FrontendReport>,
    /// What its EndpointSlices hold.
    pub endpoints: Vec<EndpointReport>,
    /// The kernel objects that implement it, where one Service is asked for.
    pub objects: Vec<KernelObject>,
    /// What is wrong with it, a sentence each.
    pub findings: Vec<String>,
}

/// What clients connect to at this node, and what they get.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendReport {
    /// `ClusterIP`, `External` or `NodePort`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Address, port or ports, and protocol, such as `10.96.0.10:80/TCP`.
    pub address: String,
    /// What clients get.
    pub backends: Answer,
    /// What clients outside of the cluster get, where a Local policy makes a difference.
    pub outside: Option<Answer>,
    /// Clients of these ranges only (`spec.loadBalancerSourceRanges`).
    pub source_ranges: Option<Vec<String>>,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It goes to one of these.
    Endpoints(Vec<SocketAddr>),
    /// It is refused: no endpoint anywhere.
    #[default]
    Refused,
    /// It is dropped: endpoints are on other nodes only, and the policy is Local.
    Dropped,
}

/// One endpoint of the Service's slices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointReport {
    /// Its address.
    pub address: String,
    /// Its ports, such as `8080/TCP`.
    pub ports: Vec<String>,
    /// The pod or other object that it stands for.
    pub target: String,
    /// The node that it is on.
    pub node: String,
    /// Its conditions: `Ready`, `NotReady`, `Terminating` (still serving), `Gone`.
    pub state: String,
    /// Whether new connections of this node's clients may go there.
    pub used: bool,
    /// Whether it answers this node, as far as fail-over knows.
    pub answers: bool,
    /// Flows of the Service to it that the node knows, closing ones included. Like the following,
    /// told where one Service is asked for, and where it can be known.
    pub flows: Option<u64>,
    /// Packets of these flows, where the node counts them (`net.netfilter.nf_conntrack_acct`).
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Microseconds from a SYN of this node to the answer.
    pub round_trip_us: Option<u64>,
}

/// All Services that the API has, in the order of their names.
pub(crate) fn report(reconciler: &Reconciler) -> Vec<ServiceReport> {
    let findings = findings(reconciler);
    let services = reconciler.world().services();
    services.map(|service| report_of(reconciler, &service, &findings)).collect()
}

/// One Service with what implements it, and what to measure of it; `None` when the API has none of
/// this name.
pub(crate) fn report_one(
    reconciler: &Reconciler,
    config: &ClusterConfig,
    key: &NamespacedName,
) -> Option<(ServiceReport, Measurement)> {
    let service = reconciler.world().service(key)?;
    let mut report = report_of(reconciler, &service, &findings(reconciler));
    report.objects = reconciler.implementation(key);
    let plan = reconciler.services().get(key);
    let own_pods = reconciler.network().map_or(&[][..], |network| &network.pod_ranges);
    let measurement = plan.map(|plan| Measurement::new(plan, config, own_pods));
    Some((report, measurement.unwrap_or_default()))
}

fn report_of(
    reconciler: &Reconciler,
    service: &Service,
    findings: &BTreeMap<NamespacedName, Vec<String>>,
) -> ServiceReport {
    let world = reconciler.world();
    let key = service.metadata.key();
    let plan = reconciler.services().get(&key);
    let slices: Vec<EndpointSlice> = world.slices_of(&key).collect();
    ServiceReport {
        findings: findings.get(&key).cloned().unwrap_or_default(),
        ..describe(service, slices.iter(), plan, world.unreachable())
    }
}

/// What was found about Services, by their names.
fn findings(reconciler: &Reconciler) -> BTreeMap<NamespacedName, Vec<String>> {
    let mut by_service: BTreeMap<NamespacedName, Vec<String>> = BTreeMap::new();
    for finding in reconciler.status().findings {
        let name = finding.about.strip_prefix("Service ").and_then(|name| name.split_once('/'));
        if let Some((namespace, name)) = name {
            let key = NamespacedName::new(namespace, name);
            by_service.entry(key).or_default().push(finding.message);
        }
    }
    by_service
}

fn describe<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    plan: Option<&ServicePlan>,
    unreachable: &Unreachable,
) -> ServiceReport {
    let spec = &service.spec;
    let used: BTreeSet<IpAddr> = plan.into_iter().flat_map(used_addresses).collect();
    let mut endpoints: Vec<EndpointReport> =
        slices.flat_map(|slice| of_slice(slice, &used, unreachable)).collect();
    endpoints.sort_by(|one, other| one.address.cmp(&other.address));
    endpoints.dedup();
    let is_outside = plan.is_some_and(|plan| {
        plan.frontends.keys().any(|frontend| !matches!(frontend, Frontend::ClusterIp { .. }))
    });
    ServiceReport {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone(),
        kind: match spec.kind {
            ServiceType::ClusterIP if service.is_headless() => "Headless".to_owned(),
            kind => format!("{kind:?}"),
        },
        cluster_ips: service.cluster_ips().map(|address| address.to_string()).collect(),
        ports: spec.ports.iter().map(port_text).collect(),
        internal_traffic_policy: policy_text(spec.internal_traffic_policy),
        external_traffic_policy: is_outside.then(|| policy_text(spec.external_traffic_policy)),
        session_affinity_seconds: service.affinity_timeout_s(),
        scheduling: plan.map_or_else(String::new, scheduling_text),
        frontends: plan.map_or_else(Vec::new, frontends),
        endpoints,
        objects: vec![],
        findings: vec![],
    }
}

fn port_text(port: &model::kinds::ServicePort) -> String {
    match port.node_port {
        0 => format!("{}/{}", port.port, port.protocol),
        node_port => format!("{}:{node_port}/{}", port.port, port.protocol),
    }
}

fn policy_text(policy: TrafficPolicy) -> String {
    format!("{policy:?}")
}

/// All frontends of a Service choose in the same way.
fn scheduling_text(plan: &ServicePlan) -> String {
    let plans = plan.frontends.values().chain(plan.ranges.values());
    let text = plans.map(|frontend| match &frontend.scheduling {
        Scheduling::Random => "random",
        Scheduling::Weighted(_) => "weighted",
        Scheduling::LeastConnection => "least-connection",
        Scheduling::Maglev => "maglev",
        Scheduling::Ipvs(scheduler, _) => scheduler.name(),
    });
    text.max().unwrap_or_default().to_owned()
}

fn frontends(plan: &ServicePlan) -> Vec<FrontendReport> {
    let single = plan.frontends.iter().map(|(frontend, plan)| {
        let (kind, address) = frontend_text(frontend);
        frontend_report(kind, address, plan)
    });
    let ranges = plan.ranges.iter().map(|(range, plan)| {
        let RangeFrontend { address, protocol, first, last, .. } = range;
        let address = match address {
            IpAddr::V4(address) => format!("{address}:{first}-{last}/{protocol}"),
            IpAddr::V6(address) => format!("[{address}]:{first}-{last}/{protocol}"),
        };
        frontend_report("Range", address, plan)
    });
    single.chain(ranges).collect()
}

fn frontend_text(frontend: &Frontend) -> (&'static str, String) {
    let at = |address: IpAddr, port: u16, protocol: Protocol| {
        format!("{}/{protocol}", SocketAddr::new(address, port))
    };
    match *frontend {
        Frontend::ClusterIp { address, protocol, port } => {
            ("ClusterIP", at(address, port, protocol))
        }
        Frontend::External { address, protocol, port } => ("External", at(address, port, protocol)),
        Frontend::NodePort { family, protocol, port } => {
            ("NodePort", format!("{family}:{port}/{protocol}"))
        }
    }
}

fn frontend_report(kind: &str, address: String, plan: &FrontendPlan) -> FrontendReport {
    FrontendReport {
        kind: kind.to_owned(),
        address,
        backends: answer(&plan.backends),
        outside: plan.outside.as_ref().map(answer),
        source_ranges: plan
            .source_ranges
            .as_ref()
            .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
    }
}

fn answer(backends: &Backends) -> Answer {
    match backends {
        Backends::Endpoints(endpoints) => Answer::Endpoints(endpoints.iter().copied().collect()),
        Backends::Reject => Answer::Refused,
        Backends::Drop => Answer::Dropped,
    }
}

fn used_addresses(plan: &ServicePlan) -> impl Iterator<Item = IpAddr> + '_ {
    let plans = plan.frontends.values().chain(plan.ranges.values());
    let backends = plans.flat_map(|plan| [Some(&plan.backends), plan.outside.as_ref()]);
    let endpoints = backends.flatten().filter_map(|backends| match backends {
        Backends::Endpoints(endpoints) => Some(endpoints),
        Backends::Reject | Backends::Drop => None,
    });
    endpoints.flatten().map(SocketAddr::ip)
}

fn of_slice<'a>(
    slice: &'a EndpointSlice,
    used: &'a BTreeSet<IpAddr>,
    unreachable: &'a Unreachable,
) -> impl Iterator<Item = EndpointReport> + 'a {
    let ports: Vec<String> = slice
        .ports
        .iter()
        .map(|port| match port.port {
            Some(number) => format!("{number}/{}", port.protocol),
            None => format!("*/{}", port.protocol),
        })
        .collect();
    slice.endpoints.iter().map(move |endpoint| EndpointReport {
        address: endpoint.addresses.first().cloned().unwrap_or_default(),
        ports: ports.clone(),
        target: endpoint.target_ref.as_ref().map(|it| it.name.clone()).unwrap_or_default(),
        node: endpoint.node_name.clone(),
        state: state(endpoint).to_owned(),
        used: endpoint.address().is_some_and(|address| used.contains(&address)),
        answers: !is_unreachable(unreachable, slice, endpoint),
        ..EndpointReport::default()
    })
}

fn is_unreachable(unreachable: &Unreachable, slice: &EndpointSlice, endpoint: &Endpoint) -> bool {
    let tcp = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let sockets = tcp.filter_map(|port| Some(SocketAddr::new(endpoint.address()?, port.port?)));
    unreachable.nodes.contains(&endpoint.node_name)
        || sockets.into_iter().any(|socket| unreachable.endpoints.contains(&socket))
}

fn state(endpoint: &Endpoint) -> &'static str {
    let conditions = &endpoint.conditions;
    match (conditions.is_terminating(), conditions.is_ready(), conditions.is_serving()) {
        (true, _, true) => "Terminating",
        (true, _, false) => "Gone",
        (false, true, _) => "Ready",
        (false, false, _) => "NotReady",
    }
}

#[cfg(test)]
mod tests {
    use model::ClusterConfig;
    use model::world::{Kind, Object};
    use plan::NodeFacts;
    use reconcile::{Event, List, Now};

    use super::*;

    fn objects() -> (Service, EndpointSlice) {
        let service = serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.7"],
                "externalTrafficPolicy": "Local",
                "ports": [{"port": 80, "nodePort": 30080}]},
        });
        let slice = serde_json::json!({
            "metadata": {"name": "web-1", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [
                {"addresses": ["10.244.1.5"], "nodeName": "node1", "targetRef": {"name": "web-a"}},
                {"addresses": ["10.244.2.5"], "nodeName": "node2", "conditions": {"ready": false}},
                {"addresses": ["10.244.2.6"], "nodeName": "node2",
                    "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        });
        let service = serde_json::from_value(service).expect("a Service");
        (service, serde_json::from_value(slice).expect("a slice"))
    }

    /// A loop at node2, which has no ready endpoint.
    fn node2() -> Reconciler {
        let mut reconciler = Reconciler::new(ClusterConfig::default());
        let (service, slice) = objects();
        let lists = [
            (Kind::Node, vec![]),
            (Kind::Service, vec![Object::Service(service.into())]),
            (Kind::EndpointSlice, vec![Object::EndpointSlice(slice.into())]),
            (Kind::ServiceCidr, vec![]),
        ];
        for (kind, objects) in lists {
            reconciler.handle(Event::Listed(List::new(kind, objects)), Now::ZERO);
        }
        let facts = NodeFacts { name: "node2".into(), ..NodeFacts::default() };
        reconciler.handle(Event::Facts(facts), Now::ZERO);
        reconciler.poll(Now::ZERO);
        reconciler
    }

    #[test]
    fn a_service_is_told_with_what_each_client_gets() {
        let reports = report(&node2());
        let [web] = reports.as_slice() else { panic!("one Service, not {reports:?}") };
        assert_eq!((web.namespace.as_str(), web.name.as_str()), ("shop", "web"));
        assert_eq!(
            (web.kind.as_str(), web.ports.as_slice()),
            ("NodePort", ["80:30080/TCP".into()].as_slice())
        );
        assert_eq!(web.external_traffic_policy.as_deref(), Some("Local"));
        let ready: SocketAddr = "10.244.1.5:8080".parse().expect("an endpoint");
        let of = |kind: &str| web.frontends.iter().find(|it| it.kind == kind).expect("a frontend");
        assert_eq!(of("ClusterIP").address, "10.96.0.7:80/TCP");
        assert_eq!(of("ClusterIP").backends, Answer::Endpoints(vec![ready]));
        assert_eq!(of("ClusterIP").outside, None);
        assert_eq!(of("NodePort").backends, Answer::Endpoints(vec![ready]));
        assert!(matches!(of("NodePort").outside, Some(Answer::Endpoints(_))), "what still serves");
    }

    #[test]
    fn endpoints_are_told_with_their_state_and_whether_they_are_used() {
        let reports = report(&node2());
        let told: Vec<(&str, &str, &str, bool)> = reports[0]
            .endpoints
            .iter()
            .map(|it| (it.address.as_str(), it.target.as_str(), it.state.as_str(), it.used))
            .collect();
        let expected = [
            ("10.244.1.5", "web-a", "Ready", true),
            ("10.244.2.5", "", "NotReady", false),
            ("10.244.2.6", "", "Terminating", true),
        ];
        assert_eq!(told, expected);
    }
}
