//! What one Service becomes at a node, from objects as the API has them.

use std::sync::Arc;

use model::kinds::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, LoadBalancerIngress, PORT_RANGES_ANNOTATION,
    SERVICE_NAME_LABEL, Service, ServicePort, ServiceType, SessionAffinity, TrafficPolicy,
};
use model::world::Object;
use model::{ClusterConfig, Family, NamespacedName, Protocol, World};
use plan::services::{self, Backends, Frontend, ServicePlan};
use plan::{Finding, NodeFacts};

const READY: State = (Some(true), Some(true), Some(false));
const NOT_READY: State = (Some(false), Some(false), Some(false));
const LEAVING: State = (Some(false), Some(true), Some(true));
const GONE: State = (Some(false), Some(false), Some(true));

fn key() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

/// A Service `web` at 10.96.0.7 with a port 80 and the node port 30080.
fn web() -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "shop".into();
    service.metadata.name = "web".into();
    service.spec.kind = ServiceType::NodePort;
    service.spec.cluster_ips = vec!["10.96.0.7".into()];
    service.spec.ports =
        vec![ServicePort { name: "http".into(), port: 80, node_port: 30080, ..Default::default() }];
    service
}

/// Ready, serving, terminating.
type State = (Option<bool>, Option<bool>, Option<bool>);
/// What it is called, the endpoints, who answers without and with a Local policy.
type Row = (&'static str, &'static [(&'static str, &'static str, State)], Backends, Backends);

/// A slice of `web` with the port 8080 and endpoints of address, node and conditions.
fn slice(name: &str, endpoints: &[(&str, &str, State)]) -> EndpointSlice {
    let mut slice = EndpointSlice { address_type: "IPv4".into(), ..Default::default() };
    slice.metadata.namespace = "shop".into();
    slice.metadata.name = name.into();
    slice.metadata.labels = [(SERVICE_NAME_LABEL.into(), "web".into())].into();
    slice.ports =
        vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: Some(8080) }];
    slice.endpoints = endpoints
        .iter()
        .map(|&(address, node, (ready, serving, terminating))| Endpoint {
            addresses: vec![address.into()],
            conditions: Conditions { ready, serving, terminating },
            node_name: node.into(),
            ..Default::default()
        })
        .collect();
    slice
}

fn plan(service: Service, slices: Vec<EndpointSlice>) -> (Option<ServicePlan>, Vec<Finding>) {
    let mut world = World::default();
    for slice in slices {
        world.set(Object::EndpointSlice(Arc::new(slice)));
    }
    world.set(Object::Service(Arc::new(service)));
    let facts = NodeFacts {
        name: "here".into(),
        uplink: "eth0".into(),
        uplink_mtu: 1500,
        addresses: vec!["172.30.0.2".parse().expect("an address")],
        ..NodeFacts::default()
    };
    services::plan(&world, &ClusterConfig::default(), &facts, &key())
}

const CLUSTER_IP: fn() -> Frontend = || Frontend::ClusterIp {
    address: "10.96.0.7".parse().expect("an address"),
    protocol: Protocol::Tcp,
    port: 80,
};
const NODE_PORT: Frontend =
    Frontend::NodePort { family: Family::V4, protocol: Protocol::Tcp, port: 30080 };

fn endpoints(last_bytes: &[u8]) -> Backends {
    Backends::Endpoints(last_bytes.iter().map(|&last| ([10, 244, 0, last], 8080).into()).collect())
}

#[test]
fn conditions_and_policies_decide_who_answers() {
    use TrafficPolicy::{Cluster, Local};
    const THERE: &str = "there";
    const HERE: &str = "here";
    const ONE: &str = "10.244.0.1";
    const TWO: &str = "10.244.0.2";
    let rows: [Row; 9] = [
        ("nobody", &[], Backends::Reject, Backends::Reject),
        (
            "ready on both",
            &[(ONE, HERE, READY), (TWO, THERE, READY)],
            endpoints(&[1, 2]),
            endpoints(&[1]),
        ),
        (
            "one not ready",
            &[(ONE, HERE, NOT_READY), (TWO, THERE, READY)],
            endpoints(&[2]),
            Backends::Drop,
        ),
        ("absent conditions", &[(ONE, HERE, (None, None, None))], endpoints(&[1]), endpoints(&[1])),
        (
            "all leaving",
            &[(ONE, HERE, LEAVING), (TWO, THERE, LEAVING)],
            endpoints(&[1, 2]),
            endpoints(&[1]),
        ),
        (
            "here leaving, there ready",
            &[(ONE, HERE, LEAVING), (TWO, THERE, READY)],
            endpoints(&[2]),
            endpoints(&[1]),
        ),
        ("all gone", &[(ONE, HERE, GONE), (TWO, THERE, GONE)], Backends::Reject, Backends::Reject),
        ("node unknown", &[(ONE, "", READY)], endpoints(&[1]), Backends::Drop),
        (
            "published though not ready",
            &[(ONE, HERE, (Some(true), Some(false), Some(false)))],
            endpoints(&[1]),
            endpoints(&[1]),
        ),
    ];
    for (what, objects, everywhere, local) in rows {
        for (internal, external) in
            [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)]
        {
            let mut service = web();
            service.spec.internal_traffic_policy = internal;
            service.spec.external_traffic_policy = external;
            let (plan, _) = plan(service, vec![slice("a", objects)]);
            let plan = plan.expect("frontends");
            let by = |policy| if policy == Cluster { &everywhere } else { &local };
            assert_eq!(plan.frontends[&CLUSTER_IP()].backends, *by(internal), "{what}");
            assert_eq!(plan.frontends[&CLUSTER_IP()].outside, None, "{what}");
            let node_port = &plan.frontends[&NODE_PORT];
            assert_eq!(node_port.backends, everywhere, "{what}");
            let outside = (external == Local).then(|| local.clone());
            assert_eq!(node_port.outside, outside, "{what}");
        }
    }
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_at_its_best() {
    let slices = vec![
        slice("a", &[("10.244.0.1", "", NOT_READY)]),
        slice("b", &[("10.244.0.1", "here", READY), ("10.244.0.2", "there", READY)]),
    ];
    let (plan, findings) = plan(web(), slices);
    let plan = plan.expect("frontends");
    assert_eq!(plan.frontends[&CLUSTER_IP()].backends, endpoints(&[1, 2]));
    assert_eq!(plan.local_addresses, ["10.244.0.1".parse().expect("an address")].into());
    assert_eq!(findings, []);
}

#[test]
fn services_that_are_not_ours_need_nothing() {
    type Change = fn(&mut Service);
    let rows: [(&str, Change); 6] = [
        ("headless", |service| service.spec.cluster_ips = vec!["None".into()]),
        ("external name", |service| service.spec.kind = ServiceType::ExternalName),
        ("not allocated", |service| service.spec.cluster_ips.clear()),
        ("another proxy's", |service| {
            service.metadata.labels.insert(services::SERVICE_PROXY_NAME_LABEL.into(), "x".into());
        }),
        ("headless by label", |service| {
            service.metadata.labels.insert(services::HEADLESS_LABEL.into(), String::new());
        }),
        ("without ports", |service| service.spec.ports.clear()),
    ];
    for (what, change) in rows {
        let mut service = web();
        change(&mut service);
        let (plan, _) = plan(service, vec![slice("a", &[("10.244.0.1", "here", READY)])]);
        assert_eq!(plan, None, "{what}");
    }
}

#[test]
fn node_ports_are_for_the_types_that_have_them() {
    for (kind, open) in [
        (ServiceType::ClusterIP, false),
        (ServiceType::NodePort, true),
        (ServiceType::LoadBalancer, true),
    ] {
        let mut service = web();
        service.spec.kind = kind;
        let (plan, _) = plan(service, vec![]);
        assert_eq!(plan.expect("frontends").frontends.contains_key(&NODE_PORT), open, "{kind:?}");
    }
}

#[test]
fn the_dns_address_is_answered_on_the_node_itself() {
    let mut service = web();
    service.spec.cluster_ips = vec!["10.96.0.10".into()];
    let (plan, _) = plan(service, vec![]);
    let frontends: Vec<Frontend> = plan.expect("a node port").frontends.into_keys().collect();
    assert_eq!(frontends, [NODE_PORT]);
}

/// S-05: the same at every address of the Service.
#[test]
fn affinity_has_its_time() {
    let timeout = |mut service: Service| {
        service.spec.kind = ServiceType::LoadBalancer;
        let ingress = LoadBalancerIngress { ip: "198.51.100.1".into(), ip_mode: None };
        service.status.load_balancer.ingress = vec![ingress];
        service.metadata.annotations.insert(PORT_RANGES_ANNOTATION.into(), "udp:5000".into());
        let (plan, _) = plan(service, vec![]);
        let plan = plan.expect("frontends");
        let all = plan.frontends.values().chain(plan.ranges.values());
        let mut timeouts: Vec<Option<u32>> = all.map(|one| one.affinity_timeout_s).collect();
        assert_eq!(timeouts.len(), 5, "ClusterIP, balancer, node port, and two of ranges");
        timeouts.dedup();
        timeouts
    };
    let mut service = web();
    service.spec.session_affinity_config.client_ip.timeout_seconds = Some(7);
    assert_eq!(timeout(service.clone()), [None]);
    service.spec.session_affinity = SessionAffinity::ClientIP;
    assert_eq!(timeout(service.clone()), [Some(7)]);
    service.spec.session_affinity_config.client_ip.timeout_seconds = None;
    assert_eq!(timeout(service), [Some(10_800)]);
}

#[test]
fn slices_match_ports_by_name_and_protocol_and_each_has_its_own_number() {
    let mut other = slice("b", &[("10.244.0.2", "there", READY)]);
    other.ports[0].port = Some(9090);
    let mut udp = slice("c", &[("10.244.0.3", "there", READY)]);
    udp.ports[0].protocol = Protocol::Udp;
    let mut no_number = slice("d", &[("10.244.0.4", "there", READY)]);
    no_number.ports[0].port = None;
    let slices = vec![slice("a", &[("10.244.0.1", "there", READY)]), other, udp, no_number];
    let (plan, _) = plan(web(), slices);
    let expected = [([10, 244, 0, 1], 8080).into(), ([10, 244, 0, 2], 9090).into()];
    let backends = &plan.expect("frontends").frontends[&CLUSTER_IP()].backends;
    assert_eq!(*backends, Backends::Endpoints(expected.into()));
}

#[test]
fn what_is_broken_is_found_and_left_out() {
    let mut other_name = slice("a", &[("10.244.0.1", "here", READY)]);
    other_name.ports[0].name = "metrics".into();
    let (plan_, findings) = plan(web(), vec![other_name]);
    assert_eq!(plan_.expect("frontends").frontends[&CLUSTER_IP()].backends, Backends::Reject);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("matches no port of its EndpointSlices"));
    assert!(findings[0].message.contains("\"metrics\"/TCP"), "{}", findings[0].message);

    for address in ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "::1", "web", ""] {
        let (plan_, findings) = plan(web(), vec![slice("a", &[(address, "here", READY)])]);
        let backends = &plan_.expect("frontends").frontends[&CLUSTER_IP()].backends;
        assert_eq!(*backends, Backends::Reject, "{address:?}");
        assert_eq!(findings.len(), 1, "{address:?}");
        assert_eq!(findings[0].about, "EndpointSlice shop/a");
    }
}
