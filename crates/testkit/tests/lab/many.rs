//! 10,000 Services with three endpoints each, by every backend: they load, one changes alone, and a
//! new process writes nothing, all seen by real packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::kinds::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, SERVICE_NAME_LABEL, Service,
};
use model::kinds::{ServicePort, ServiceType};
use model::world::Object;
use model::{Protocol, ServiceBackend};
use reconcile::Event;
use render::Op;
use render::ebpf::NodeOp;
use testkit::backend;
use testkit::emulated::Feature;
use testkit::lab::Lab;
use testkit::lab::probe::{Answer, PATIENCE, Servers, ask};

use crate::flows::lab_of;

/// Services of an ordinary run.
const SERVICES: u32 = 10_000;
/// The same in the emulated kernel, whose code is interpreted.
const SERVICES_BY_IPVS: u32 = 1_000;
/// Connections that are tried each time: none of three endpoints is left out but once in 500 runs,
/// and one that should be is taken.
const CONNECTIONS: usize = 20;
/// What changes one Service is a smaller part than this of what loads all of them.
const PART_OF_THE_LOAD: usize = 500;
const CLIENT: &str = "10.244.1.9";
const WEB: [&str; 3] = ["10.244.1.11", "10.244.1.12", "10.244.1.13"];
const TARGET: u16 = 8080;
const CASE: &str = "\
# A client and three pods of one of many Services.

nodes: 1

objects:
  {kind: Pod, metadata: {name: client}, spec: {nodeName: node1}, status: {podIP: 10.244.1.9}}
  ---
  {kind: Pod, metadata: {name: web-1}, spec: {nodeName: node1}, status: {podIP: 10.244.1.11}}
  ---
  {kind: Pod, metadata: {name: web-2}, spec: {nodeName: node1}, status: {podIP: 10.244.1.12}}
  ---
  {kind: Pod, metadata: {name: web-3}, spec: {nodeName: node1}, status: {podIP: 10.244.1.13}}

packets:
  from | to | protocol
  node | node:1 | TCP
";

#[test]
fn ten_thousand_services_load_change_and_outlive_a_restart_by_nftables() {
    load_change_and_restart(ServiceBackend::Nftables, SERVICES);
}

#[test]
fn ten_thousand_services_load_change_and_outlive_a_restart_by_iptables() {
    load_change_and_restart(ServiceBackend::Iptables, SERVICES);
}

#[test]
fn ten_thousand_services_load_change_and_outlive_a_restart_by_ebpf() {
    load_change_and_restart(ServiceBackend::Ebpf, SERVICES);
}

#[test]
fn a_thousand_services_load_change_and_outlive_a_restart_by_ipvs() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    load_change_and_restart(ServiceBackend::Ipvs, SERVICES_BY_IPVS);
}

fn load_change_and_restart(kind: ServiceBackend, services: u32) {
    let mut scene = Scene::new(kind);
    let middle = services / 2;
    let mut objects = scene.objects.clone();
    for number in 0..services {
        let endpoints = if number == middle { addresses(&WEB) } else { strangers(number) };
        objects.extend([service(number), slice(number, endpoints)]);
    }
    let loaded = scene.turn("load", |scene| scene.node().node.list(&objects));
    let answered = scene.answers(middle);
    assert!(WEB.iter().all(|web| answered.contains(&web.to_string())), "{answered:?}");

    let other = slice(middle, addresses(&WEB[1..2]));
    let place = objects.iter_mut().find(|one| one.key() == other.key()).expect("the slice");
    *place = other.clone();
    let changed = scene.turn("change", |scene| scene.node().node.handle(Event::Present(other)));
    let [written, of_all] = [&changed, &loaded].map(|ops| size(ops));
    assert!(written > 0 && written * PART_OF_THE_LOAD < of_all, "{written} of {of_all}");
    assert_eq!(scene.answers(middle), [WEB[1]; CONNECTIONS]);

    let restarted = scene.turn("restart", |scene| {
        scene.node().restart().expect("drivers");
        scene.node().node.list(&objects);
    });
    // With eBPF a new process goes over the links once, and finds them as they shall be.
    let is_look = |op: &Op| matches!(op, Op::Ebpf(NodeOp::AttachLinks(_)));
    assert!(restarted.iter().all(is_look), "a restart wrote {restarted:?}");
    assert_eq!(scene.answers(middle), [WEB[1]; CONNECTIONS]);
}

/// How much operations say.
fn size(ops: &[Op]) -> usize {
    ops.iter().map(|op| format!("{op:?}").len()).sum()
}

/// A node with a client and three servers.
struct Scene {
    kind: ServiceBackend,
    lab: Lab,
    objects: Vec<Object>,
    _servers: Servers,
}

impl Scene {
    fn new(kind: ServiceBackend) -> Self {
        let (lab, objects) = lab_of("many", CASE, kind);
        let servers = Servers::start();
        for (name, address) in ["web-1", "web-2", "web-3"].into_iter().zip(addresses(&WEB)) {
            let at = SocketAddr::new(address, TARGET);
            servers.listen(&lab.pods[name], Protocol::Tcp, at).expect("a server");
        }
        Self { kind, lab, objects, _servers: servers }
    }

    fn node(&mut self) -> &mut testkit::lab::LabNode {
        self.lab.nodes.get_mut(&1).expect("the node")
    }

    /// Lets the kernel follow what happens. Answers the operations that it took.
    fn turn(&mut self, name: &str, happens: impl FnOnce(&mut Self)) -> Vec<Op> {
        let begun = Instant::now();
        happens(self);
        let settled = self.node().settle().expect("the loop converges");
        assert_eq!(settled.failures, [""; 0], "{name}");
        let elapsed: Duration = begun.elapsed();
        println!("{}: {name} took {elapsed:.1?}", backend::name(self.kind));
        settled.ops
    }

    /// Who answers the client at a Service, connection by connection.
    fn answers(&mut self, number: u32) -> Vec<String> {
        let client = SocketAddr::new(CLIENT.parse().expect("an address"), 0);
        let to = SocketAddr::new(cluster_ip(number), 80);
        let node = &self.lab.nodes[&1];
        let work = || {
            let asked = (0..CONNECTIONS).map(|_| ask(Protocol::Tcp, client, to, PATIENCE));
            let by = asked.map(|answer| match answer {
                Answer::Served { by, .. } => by.ip().to_string(),
                other => format!("{other:?}"),
            });
            by.collect()
        };
        node.run_in(&self.lab.pods["client"], work).expect("the client")
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

/// Three addresses that nobody has.
fn strangers(number: u32) -> Vec<IpAddr> {
    let first = u32::from(Ipv4Addr::new(10, 244, 16, 0)) + 3 * number;
    (first..first + 3).map(|address| IpAddr::V4(address.into())).collect()
}

fn cluster_ip(number: u32) -> IpAddr {
    IpAddr::V4((u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number).into())
}

fn service(number: u32) -> Object {
    let mut service = Service::default();
    service.metadata.namespace = "default".into();
    service.metadata.name = format!("many-{number}");
    service.spec.kind = ServiceType::ClusterIP;
    service.spec.cluster_ips = vec![cluster_ip(number).to_string()];
    service.spec.ports =
        vec![ServicePort { protocol: Protocol::Tcp, port: 80, ..ServicePort::default() }];
    Object::Service(Arc::new(service))
}

fn slice(number: u32, endpoints: Vec<IpAddr>) -> Object {
    let mut slice = EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
    slice.metadata.namespace = "default".into();
    slice.metadata.name = format!("many-{number}-x");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), format!("many-{number}"));
    let port = EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: Some(TARGET) };
    slice.ports = vec![port];
    let ready = Conditions { ready: Some(true), serving: Some(true), terminating: Some(false) };
    let endpoint = |address: IpAddr| Endpoint {
        addresses: vec![address.to_string()],
        node_name: "node1".into(),
        conditions: ready.clone(),
        ..Endpoint::default()
    };
    slice.endpoints = endpoints.into_iter().map(endpoint).collect();
    Object::EndpointSlice(Arc::new(slice))
}
