//! S-10, R-18: a UDP client that keeps its socket reaches the right place with the first datagram
//! after whatever change, or is told that there is none; S-07: established connections of TCP go
//! on. By every backend, from every kind of client, at every address of a Service.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use model::kinds::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, LoadBalancerIngress, SERVICE_NAME_LABEL,
    Service, ServicePort, ServiceType, SessionAffinity, TrafficPolicy, WEIGHTS_ANNOTATION,
};
use model::world::{Kind, Object};
use model::{Protocol, ServiceBackend};
use netlink::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use reconcile::Event;
use testkit::backend;
use testkit::case::Case;
use testkit::case::names::Names;
use testkit::emulated::Feature;
use testkit::lab::Lab;
use testkit::lab::probe::{PATIENCE, Servers, uninterrupted};

/// All that run on any kernel.
const BACKENDS: [ServiceBackend; 3] =
    [ServiceBackend::Nftables, ServiceBackend::Iptables, ServiceBackend::Ebpf];
/// That which most machines' kernels lack.
const IPVS: [ServiceBackend; 1] = [ServiceBackend::Ipvs];
/// Changes of each kind.
const TRIALS: usize = 20;
/// The same in the emulated kernel, whose code is interpreted.
const TRIALS_BY_IPVS: usize = 2;
/// An answer that shall not come would have come by then, in most of the trials.
const NOTHING_COMES_FOR: Duration = Duration::from_millis(50);
/// One node is enough: what a flow is led to is decided where it enters.
const CASE: &str = "\
# A client and two pods.

nodes: 1
external-ip-ranges: 198.51.100.0/24
also-at: 172.31.0.2

objects:
  {kind: Pod, metadata: {name: client}, spec: {nodeName: node1}, status: {podIP: 10.244.1.9}}
  ---
  {kind: Pod, metadata: {name: web-1}, spec: {nodeName: node1}, status: {podIP: 10.244.1.11}}
  ---
  {kind: Pod, metadata: {name: web-2}, spec: {nodeName: node1}, status: {podIP: 10.244.1.12}}

packets:
  from | to | protocol
  node | node:1 | TCP
";
const CLUSTER_IP: &str = "10.96.0.20";
const VIP: &str = "198.51.100.20";
const OTHER_VIP: &str = "198.51.100.21";
const EXTERNAL_IP: &str = "198.51.100.30";
const FURTHER_ADDRESS: &str = "172.31.0.2";
/// The client that is a process of the node.
const NODE: &str = "the node";
const WEB_1: &str = "10.244.1.11";
/// Whoever is outside the cluster.
const OUTSIDE: &str = "outside";
/// The node's own address towards its pods, with what stands before a port.
const BRIDGE: &str = "10.244.1.1:";
const WEB_2: &str = "10.244.1.12";
const PORT: u16 = 53;
const TARGET: u16 = 5353;
const OTHER_TARGET: u16 = 5454;
const NODE_PORT: u16 = 30053;

/// What the API says at a moment.
#[derive(Clone)]
struct State {
    service: Option<Service>,
    endpoints: Vec<(&'static str, u16, Conditions)>,
    /// Whether the node has its second address.
    is_at_further_address: bool,
}

/// What becomes of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// This server answers.
    At(&'static str, u16),
    /// An ICMP error comes back.
    Refused,
    /// Nothing comes back: the address of a Service that nobody has.
    Swallowed,
}
use End::{At, Refused, Swallowed};

/// What endpoints see of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Kept,
    Masqueraded,
}
use Source::{Kept, Masqueraded};

/// What clients send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frontend {
    ClusterIp,
    NodePort,
    FurtherAddress,
    LoadBalancer,
    ExternalIp,
}
use Frontend::{ClusterIp, ExternalIp, FurtherAddress, LoadBalancer, NodePort};

const FRONTENDS: [Frontend; 5] = [ClusterIp, NodePort, FurtherAddress, LoadBalancer, ExternalIp];

/// What happens to the API.
type Change = fn(&mut State);

/// A change, there and back.
struct Row {
    name: &'static str,
    before: Change,
    after: Change,
    /// Where datagrams to all frontends end before and after, but for the exceptions.
    ends: [End; 2],
    exceptions: &'static [(Frontend, End)],
}

const FIRST: End = At(WEB_1, TARGET);
const SECOND: End = At(WEB_2, TARGET);

const ROWS: [Row; 18] = [
    row("an endpoint follows another", as_it_is, second, [FIRST, SECOND], &[]),
    row("the last endpoint goes", as_it_is, nobody, [FIRST, Refused], &[]),
    row("the last endpoint is not ready any more", as_it_is, unready, [FIRST, Refused], &[]),
    row("an endpoint leaves and another is ready", as_it_is, leaving, [FIRST, SECOND], &[]),
    row("the target port changes", as_it_is, other_target, [FIRST, At(WEB_1, OTHER_TARGET)], &[]),
    row("the port changes", as_it_is, other_port, [FIRST, Refused], &STAYS_AT_NODE_PORTS),
    row("the node port changes", as_it_is, other_node_port, [FIRST, FIRST], &CLOSES_NODE_PORTS),
    row("the load balancer's address changes", as_it_is, other_vip, [FIRST, FIRST], &LEAVES_VIP),
    row("the external address goes", as_it_is, no_external, [FIRST, FIRST], &LEAVES_EXTERNAL),
    row("the type changes", as_it_is, cluster_ip, [FIRST, FIRST], &CLOSES_ALL_BUT_EXTERNAL),
    row("the Service goes", as_it_is, no_service, [FIRST, Refused], &LEAVES_ALL),
    row("affinity comes and its endpoint goes", sticky, sticky_second, [FIRST, SECOND], &[]),
    row("affinity goes with its endpoint", sticky, second, [FIRST, SECOND], &[]),
    row("an endpoint gets weight 0", as_it_is, weightless, [FIRST, SECOND], &[]),
    row("the policies become Local", as_it_is, local_second, [FIRST, SECOND], &[]),
    row("the external policy becomes Local", as_it_is, local_external, [FIRST, FIRST], &[]),
    row("it does, with a sticky client", sticky, sticky_local, [FIRST, FIRST], &[]),
    row("an address of the node goes", as_it_is, one_address, [FIRST, FIRST], &CLOSES_FURTHER),
];

/// Addresses of no Service are the world's.
const WORLD_VIP: End = At(VIP, PORT);
const WORLD_EXTERNAL: End = At(EXTERNAL_IP, PORT);

const STAYS_AT_NODE_PORTS: [(Frontend, End); 4] = [
    (NodePort, FIRST),
    (FurtherAddress, FIRST),
    (LoadBalancer, WORLD_VIP),
    (ExternalIp, WORLD_EXTERNAL),
];
const LEAVES_ALL: [(Frontend, End); 3] =
    [(ClusterIp, Swallowed), (LoadBalancer, WORLD_VIP), (ExternalIp, WORLD_EXTERNAL)];
const CLOSES_NODE_PORTS: [(Frontend, End); 2] = [(NodePort, Refused), (FurtherAddress, Refused)];
const CLOSES_FURTHER: [(Frontend, End); 1] = [(FurtherAddress, Refused)];
const LEAVES_VIP: [(Frontend, End); 1] = [(LoadBalancer, WORLD_VIP)];
const LEAVES_EXTERNAL: [(Frontend, End); 1] = [(ExternalIp, WORLD_EXTERNAL)];
const CLOSES_ALL_BUT_EXTERNAL: [(Frontend, End); 3] =
    [(NodePort, Refused), (FurtherAddress, Refused), (LoadBalancer, WORLD_VIP)];

const fn row(
    name: &'static str,
    before: Change,
    after: Change,
    ends: [End; 2],
    exceptions: &'static [(Frontend, End)],
) -> Row {
    Row { name, before, after, ends, exceptions }
}

const READY: Conditions = conditions(true, true, false);
const UNREADY: Conditions = conditions(false, false, false);
const LEAVING: Conditions = conditions(false, true, true);

const fn conditions(ready: bool, serving: bool, terminating: bool) -> Conditions {
    Conditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }
}

fn as_it_is(_: &mut State) {}

fn second(state: &mut State) {
    state.endpoints = vec![(WEB_2, TARGET, READY)];
}

fn nobody(state: &mut State) {
    state.endpoints = vec![];
}

fn unready(state: &mut State) {
    state.endpoints = vec![(WEB_1, TARGET, UNREADY)];
}

fn leaving(state: &mut State) {
    state.endpoints = vec![(WEB_1, TARGET, LEAVING), (WEB_2, TARGET, READY)];
}

fn other_target(state: &mut State) {
    state.endpoints = vec![(WEB_1, OTHER_TARGET, READY)];
}

fn other_port(state: &mut State) {
    state.change(|service| service.spec.ports[0].port = PORT + 1);
}

fn other_node_port(state: &mut State) {
    state.change(|service| service.spec.ports[0].node_port = NODE_PORT + 1);
}

fn other_vip(state: &mut State) {
    state.change(|service| service.status.load_balancer.ingress = vec![ingress(OTHER_VIP)]);
}

fn no_external(state: &mut State) {
    state.change(|service| service.spec.external_ips = vec![]);
}

fn cluster_ip(state: &mut State) {
    state.change(|service| {
        service.spec.kind = ServiceType::ClusterIP;
        service.spec.ports[0].node_port = 0;
        service.status.load_balancer.ingress = vec![];
    });
}

fn no_service(state: &mut State) {
    state.service = None;
}

fn sticky(state: &mut State) {
    state.change(|service| service.spec.session_affinity = SessionAffinity::ClientIP);
}

fn sticky_second(state: &mut State) {
    sticky(state);
    second(state);
}

fn weightless(state: &mut State) {
    state.endpoints.push((WEB_2, TARGET, READY));
    state.change(|service| {
        let weights = format!("{WEB_1}=0");
        service.metadata.annotations.insert(WEIGHTS_ANNOTATION.into(), weights);
    });
}

fn local_second(state: &mut State) {
    second(state);
    state.change(|service| {
        service.spec.internal_traffic_policy = TrafficPolicy::Local;
        service.spec.external_traffic_policy = TrafficPolicy::Local;
    });
}

fn local_external(state: &mut State) {
    state.change(|service| service.spec.external_traffic_policy = TrafficPolicy::Local);
}

fn sticky_local(state: &mut State) {
    sticky(state);
    local_external(state);
}

fn one_address(state: &mut State) {
    state.is_at_further_address = false;
}

impl State {
    fn new(protocol: Protocol) -> Self {
        let mut service = Service::default();
        service.metadata.namespace = "default".into();
        service.metadata.name = "web".into();
        service.spec.kind = ServiceType::LoadBalancer;
        service.spec.cluster_ips = vec![CLUSTER_IP.into()];
        service.spec.external_ips = vec![EXTERNAL_IP.into()];
        let port = ServicePort { protocol, port: PORT, node_port: NODE_PORT, ..Default::default() };
        service.spec.ports = vec![port];
        service.status.load_balancer.ingress = vec![ingress(VIP)];
        let endpoints = vec![(WEB_1, TARGET, READY)];
        Self { service: Some(service), endpoints, is_at_further_address: true }
    }

    /// Whether endpoints see clients outside the cluster by the clients' own addresses.
    fn keeps_source(&self) -> bool {
        let policy = self.service.as_ref().map(|service| service.spec.external_traffic_policy);
        policy == Some(TrafficPolicy::Local)
    }

    fn change(&mut self, change: impl FnOnce(&mut Service)) {
        change(self.service.as_mut().expect("a Service"));
    }

    /// One slice for each target port, as the controller writes them.
    fn slices(&self, protocol: Protocol) -> Vec<EndpointSlice> {
        let slice = |target: u16| {
            let mut slice =
                EndpointSlice { address_type: "IPv4".into(), ..EndpointSlice::default() };
            slice.metadata.namespace = "default".into();
            slice.metadata.name = format!("web-{target}");
            slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "web".into());
            slice.ports = vec![EndpointPort { name: String::new(), protocol, port: Some(target) }];
            let own = self.endpoints.iter().filter(|(_, port, _)| *port == target);
            let endpoint = |(address, _, conditions): &(&str, u16, Conditions)| Endpoint {
                addresses: vec![address.to_string()],
                node_name: "node1".into(),
                conditions: conditions.clone(),
                ..Endpoint::default()
            };
            slice.endpoints = own.map(endpoint).collect();
            slice
        };
        [TARGET, OTHER_TARGET].map(slice).into()
    }
}

fn ingress(address: &str) -> LoadBalancerIngress {
    LoadBalancerIngress { ip: address.into(), ip_mode: None }
}

/// The lab of a case's nodes and pods by one backend; and their objects.
pub fn lab_of(name: &str, text: &str, backend: ServiceBackend) -> (Lab, Vec<Object>) {
    let mut case = Case::parse(name, text).expect("a case");
    case.settings.config.service_backend = backend;
    let mut lab = Lab::new(&case).expect("a lab (these tests need root)");
    let mut names = Names::new(&case.settings);
    let mut objects = case.settings.node_objects();
    for section in &case.sections {
        if let testkit::case::Section::Objects(pods) = section {
            names.learn(pods).expect("pods");
            objects.extend(pods.iter().cloned());
        }
    }
    let node = lab.nodes.get_mut(&1).expect("the node");
    node.node.list(&objects);
    node.settle().expect("links");
    lab.add_pods(names.pods()).expect("pods");
    (lab, objects)
}

/// A node by one backend, with its pods and the world.
struct Scene {
    lab: Lab,
    /// Nodes and pods.
    objects: Vec<Object>,
    protocol: Protocol,
    state: State,
}

impl Scene {
    fn new(backend: ServiceBackend, protocol: Protocol) -> Self {
        let (lab, objects) = lab_of("flows", CASE, backend);
        let state = State::new(protocol);
        let mut scene = Self { lab, objects, protocol, state: state.clone() };
        scene.bring(state);
        scene
    }

    /// Lets the API and the node be so, until the kernel follows.
    fn bring(&mut self, state: State) {
        self.tell(state);
        self.settle();
    }

    /// The same, but that the process dies after so many operations, and the next one comes to it.
    /// Answers how many there would have been.
    fn bring_with_a_kill(&mut self, state: State, operations: usize) -> usize {
        self.tell(state);
        let objects = self.all_objects();
        let node = self.lab.nodes.get_mut(&1).expect("the node");
        let wanted = node.node.crash_during_step(operations);
        node.restart().expect("drivers");
        node.node.list(&objects);
        self.settle();
        wanted
    }

    /// What a new process is told.
    fn all_objects(&self) -> Vec<Object> {
        let mut objects = self.objects.clone();
        let service = self.state.service.clone();
        objects.extend(service.map(|service| Object::Service(Arc::new(service))));
        let slices = self.state.slices(self.protocol).into_iter();
        objects.extend(slices.map(|slice| Object::EndpointSlice(Arc::new(slice))));
        objects
    }

    fn settle(&mut self) {
        let node = self.lab.nodes.get_mut(&1).expect("the node");
        let settled = node.settle().expect("the loop converges");
        assert_eq!(settled.failures, Vec::<String>::new());
    }

    fn tell(&mut self, state: State) {
        let node = self.lab.nodes.get_mut(&1).expect("the node");
        let further: IpAddr = FURTHER_ADDRESS.parse().expect("an address");
        node.node.facts.addresses.retain(|address| *address != further);
        node.node.facts.addresses.extend(state.is_at_further_address.then_some(further));
        node.node.handle(Event::Facts(node.node.facts.clone()));
        let key = model::NamespacedName::new("default", "web");
        let service = match state.service.clone() {
            Some(service) => Event::Present(Object::Service(Arc::new(service))),
            None => Event::Absent { kind: Kind::Service, key },
        };
        node.node.handle(service);
        for slice in state.slices(self.protocol) {
            node.node.handle(Event::Present(Object::EndpointSlice(Arc::new(slice))));
        }
        self.state = state;
    }

    /// The same kernel under an agent with another backend.
    fn change_backend(&mut self, backend: ServiceBackend) {
        let objects = self.all_objects();
        let node = self.lab.nodes.get_mut(&1).expect("the node");
        node.node.config.service_backend = backend;
        node.node.restart();
        node.node.list(&objects);
        node.settle().expect("the loop converges");
    }

    fn address(&self, frontend: Frontend) -> SocketAddr {
        let (address, port) = match frontend {
            ClusterIp => (CLUSTER_IP, PORT),
            NodePort => ("172.30.0.2", NODE_PORT),
            FurtherAddress => (FURTHER_ADDRESS, NODE_PORT),
            LoadBalancer => (VIP, PORT),
            ExternalIp => (EXTERNAL_IP, PORT),
        };
        SocketAddr::new(address.parse().expect("an address"), port)
    }

    /// Does the work as each kind of client.
    fn clients<T>(&self, mut work: impl FnMut(&'static str) -> T) -> Vec<T> {
        let node = &self.lab.nodes[&1];
        let mut within = |namespace: &Netns, name| node.run_in(namespace, || work(name));
        let mut done = vec![
            within(&self.lab.pods["client"], "a pod").expect("a client"),
            within(&node.namespace, NODE).expect("a client"),
        ];
        done.push(self.lab.outside.run(|| work(OUTSIDE)).expect("a client"));
        done
    }
}

/// A socket that a client keeps.
struct Flow {
    client: &'static str,
    frontend: Frontend,
    to: SocketAddr,
    is_connected: bool,
    socket: UdpSocket,
}

impl Flow {
    fn open(client: &'static str, frontend: Frontend, to: SocketAddr, is_connected: bool) -> Self {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // ICMP errors are told to sockets without a peer too.
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("IP_RECVERR");
        if is_connected {
            socket.connect(to).expect("a peer");
        }
        Self { client, frontend, to, is_connected, socket }
    }

    /// Where the next datagram ends: by one alone. `source`: what its server sees, where it matters.
    fn ends(&self, expected: &End, source: Option<Source>) -> Result<(), String> {
        let patience = if *expected == Swallowed { NOTHING_COMES_FOR } else { PATIENCE };
        self.socket.set_read_timeout(Some(patience)).map_err(|error| error.to_string())?;
        let sent = match self.is_connected {
            true => self.socket.send(b"who"),
            false => self.socket.send_to(b"who", self.to),
        };
        let mut buffer = [0; 128];
        let received = match sent {
            // What the node's own rules stop does not leave `send`.
            Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
            _ => uninterrupted(|| self.socket.recv(&mut buffer)),
        };
        let is_right = match (&received, expected) {
            (Ok(length), At(address, port)) => {
                let answer = String::from_utf8_lossy(&buffer[..*length]);
                answer.strip_prefix(&format!("{address}:{port} ")).is_some_and(|saw| {
                    source.is_none_or(|source| (source == Masqueraded) == saw.starts_with(BRIDGE))
                })
            }
            (Err(error), Refused) => error.kind() == ErrorKind::ConnectionRefused,
            (Err(error), Swallowed) => is_silence(error) || self.has_lost_its_address(error),
            _ => false,
        };
        if is_right {
            return Ok(());
        }
        let got = received.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
        let kind = if self.is_connected { "connected" } else { "unconnected" };
        let Self { client, frontend, .. } = self;
        let source = source.map_or(String::new(), |source| format!(", {source:?}"));
        Err(format!("{client} to {frontend:?}, {kind}: meant {expected:?}{source}, got {got:?}"))
    }
}

impl Flow {
    /// Whether this socket of the node had the ClusterIP for its own address, which IPVS made the
    /// node's, and lost it with the Service.
    fn has_lost_its_address(&self, error: &Error) -> bool {
        self.client == NODE
            && self.is_connected
            && self.frontend == ClusterIp
            && error.kind() == ErrorKind::NetworkUnreachable
    }
}

fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The sockets of all clients. With eBPF a connected one of the node itself is led to an endpoint
/// when it connects, and stays there (`socket_services.c`).
fn flows(scene: &Scene, backend: ServiceBackend) -> Vec<Flow> {
    let mut flows = Vec::new();
    for frontend in FRONTENDS {
        for is_connected in [false, true] {
            let to = scene.address(frontend);
            flows.extend(scene.clients(|client| Flow::open(client, frontend, to, is_connected)));
        }
    }
    let stays = |flow: &Flow| flow.client == NODE && flow.is_connected;
    flows.retain(|flow| backend != ServiceBackend::Ebpf || !stays(flow));
    flows
}

fn servers(scene: &Scene) -> Servers {
    let servers = Servers::start();
    for (name, address, port) in
        [("web-1", WEB_1, TARGET), ("web-2", WEB_2, TARGET), ("web-1", WEB_1, OTHER_TARGET)]
    {
        let at = SocketAddr::new(address.parse().expect("an address"), port);
        servers.listen(&scene.lab.pods[name], Protocol::Udp, at).expect("a server");
    }
    for frontend in [LoadBalancer, ExternalIp] {
        let at = scene.address(frontend);
        servers.listen(&scene.lab.outside, Protocol::Udp, at).expect("a server of the world");
    }
    servers
}

fn for_each<const COUNT: usize>(
    backends: [ServiceBackend; COUNT],
    work: impl Fn(ServiceBackend) -> Vec<String> + Sync,
) {
    let mut failed = Vec::new();
    std::thread::scope(|scope| {
        let work = &work;
        let started = backends.map(|kind| (kind, scope.spawn(move || work(kind))));
        for (kind, thread) in started {
            let faults = thread.join().expect("no backend panics");
            failed.extend(faults.iter().map(|fault| format!("{}: {fault}", backend::name(kind))));
        }
    });
    assert!(failed.is_empty(), "{} faults:\n  {}", failed.len(), failed.join("\n  "));
}

#[test]
fn the_first_datagram_after_any_change_ends_where_it_shall() {
    for_each(BACKENDS, |kind| first_datagrams(kind, TRIALS));
}

#[test]
fn the_first_datagram_after_any_change_ends_where_it_shall_by_ipvs() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for_each(IPVS, |kind| first_datagrams(kind, TRIALS_BY_IPVS));
}

fn first_datagrams(kind: ServiceBackend, trials: usize) -> Vec<String> {
    let mut scene = Scene::new(kind, Protocol::Udp);
    let _servers = servers(&scene);
    let flows = flows(&scene, kind);
    let initial = scene.state.clone();
    let mut failed = Vec::new();
    for row in &ROWS {
        let first = (0..trials).find_map(|trial| {
            let faults = row.faults(&mut scene, &initial, &flows);
            (!faults.is_empty()).then_some((trial, faults))
        });
        let (trial, faults) = first.unwrap_or_default();
        failed.extend(faults.iter().map(|fault| format!("{} #{trial}: {fault}", row.name)));
    }
    failed
}

/// R-18, invariant 14: whichever operation of a change was the last one of a process, after the next
/// one has started the first datagram ends where it shall. What is new to the network itself, and in
/// a source, is not among the changes (`render::flows`).
#[test]
fn the_first_datagram_after_a_kill_within_a_change_ends_where_it_shall() {
    for_each(BACKENDS, |kind| datagrams_after_kills(kind, &KILLED_WITHIN));
}

#[test]
fn the_first_datagram_after_a_kill_within_a_change_ends_where_it_shall_by_ipvs() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for_each(IPVS, |kind| datagrams_after_kills(kind, &KILLED_WITHIN[..3]));
}

/// Changes within which processes die, by name.
const KILLED_WITHIN: [&str; 7] = [
    "an endpoint follows another",
    "the last endpoint goes",
    "the Service goes",
    "the target port changes",
    "the port changes",
    "the node port changes",
    "the external address goes",
];

fn datagrams_after_kills(kind: ServiceBackend, names: &[&str]) -> Vec<String> {
    let mut scene = Scene::new(kind, Protocol::Udp);
    let _servers = servers(&scene);
    let flows = flows(&scene, kind);
    let initial = scene.state.clone();
    let mut failed = Vec::new();
    for row in ROWS.iter().filter(|row| names.contains(&row.name)) {
        for operations in 0.. {
            scene.bring(changed(&initial, row.before));
            let mut faults = row.wrong_ends(&scene, &flows, false);
            let wanted = scene.bring_with_a_kill(changed(&initial, row.after), operations);
            assert!(wanted > 0, "{}: nothing was written", row.name);
            faults.extend(row.wrong_ends(&scene, &flows, true));
            let name = |fault| format!("{}, {operations} of {wanted}: {fault}", row.name);
            failed.extend(faults.into_iter().map(name));
            if operations >= wanted {
                break;
            }
        }
    }
    failed
}

fn changed(initial: &State, change: Change) -> State {
    let mut state = initial.clone();
    change(&mut state);
    state
}

impl Row {
    /// What is wrong with the first datagrams after the change, there and back.
    fn faults(&self, scene: &mut Scene, initial: &State, flows: &[Flow]) -> Vec<String> {
        let mut faults = Vec::new();
        for (change, is_after) in [(self.before, false), (self.after, true)] {
            scene.bring(changed(initial, change));
            faults.extend(self.wrong_ends(scene, flows, is_after));
        }
        faults
    }

    /// What is wrong with datagrams, before the change or after it.
    fn wrong_ends(&self, scene: &Scene, flows: &[Flow], is_after: bool) -> Vec<String> {
        let outside = if scene.state.keeps_source() { Kept } else { Masqueraded };
        let [before, after] = &self.ends;
        let (meant, exceptions) =
            if is_after { (after, self.exceptions) } else { (before, &[][..]) };
        let mut faults = Vec::new();
        for flow in flows {
            let exception = exceptions.iter().find(|one| one.0 == flow.frontend);
            let meant = exception.map_or(meant, |(_, end)| end);
            let is_external = flow.client == OUTSIDE && flow.frontend != ClusterIp;
            // The world's own servers are no endpoints.
            let is_to_pod = matches!(meant, At(WEB_1 | WEB_2, _));
            let source = (is_external && is_to_pod).then_some(outside);
            faults.extend(flow.ends(meant, source).err());
        }
        faults
    }
}

/// A connection, with both its ends.
struct Stream {
    client: TcpStream,
    server: TcpStream,
}

impl Stream {
    fn open(client: TcpStream, listener: &TcpListener) -> Self {
        let (server, _) = listener.accept().expect("the client");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        Self { client, server }
    }

    /// A word each way.
    fn carries(&mut self) -> bool {
        let mut word = [0; 4];
        self.client.write_all(b"ping").is_ok()
            && self.server.read_exact(&mut word).is_ok()
            && self.server.write_all(b"pong").is_ok()
            && self.client.read_exact(&mut word).is_ok()
    }
}

/// S-07: what is established goes on while its endpoint terminates, and as long as its pod is there.
#[test]
fn established_connections_outlive_what_made_them() {
    for_each(BACKENDS, streams_that_break);
}

#[test]
fn established_connections_outlive_what_made_them_by_ipvs() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for_each(IPVS, streams_that_break);
}

fn streams_that_break(kind: ServiceBackend) -> Vec<String> {
    let mut scene = Scene::new(kind, Protocol::Tcp);
    let at = SocketAddr::new(WEB_1.parse().expect("an address"), TARGET);
    let bind = || TcpListener::bind(at).expect("a listener");
    let listener = scene.lab.pods["web-1"].run(bind).expect("the pod");
    let mut streams = Vec::new();
    for frontend in FRONTENDS {
        let to = scene.address(frontend);
        streams.extend(scene.clients(|client| {
            let connected = TcpStream::connect_timeout(&to, Duration::from_secs(10));
            let connected = connected.unwrap_or_else(|error| panic!("{client} to {to}: {error}"));
            (format!("{client} to {frontend:?}"), Stream::open(connected, &listener))
        }));
    }
    let initial = scene.state.clone();
    let changes: [(&str, Change); 6] = [
        ("its endpoint terminates", leaving),
        ("its endpoint is gone", second),
        ("no endpoint is left", nobody),
        ("its node port changes", other_node_port),
        ("the Service has another type", cluster_ip),
        ("the Service is gone", no_service),
    ];
    let mut failed = Vec::new();
    for (name, change) in changes {
        let mut state = initial.clone();
        change(&mut state);
        scene.bring(state);
        for (who, stream) in &mut streams {
            if !stream.carries() {
                failed.push(format!("{name}: the connection of {who} broke"));
            }
        }
    }
    failed
}

/// A backend takes over from another: flows go on, and follow their endpoint under the new one. One
/// that begins before any datagram leaves no flows.
#[test]
fn flows_go_on_from_backend_to_backend() {
    use ServiceBackend::{Ebpf, Iptables, Nftables};
    let turns: [(ServiceBackend, &[ServiceBackend]); 3] = [
        (Nftables, &[Iptables, Nftables, Iptables]),
        (Ebpf, &[Nftables, Ebpf]),
        (Ebpf, &[Iptables, Ebpf]),
    ];
    let mut failed = Vec::new();
    for (first, turn) in turns {
        let mut scene = Scene::new(first, Protocol::Udp);
        let _servers = servers(&scene);
        let flows = flows(&scene, first);
        let initial = scene.state.clone();
        for &kind in turn {
            scene.change_backend(kind);
            let changes: [(Change, End); 4] =
                [(as_it_is, FIRST), (second, SECOND), (nobody, Refused), (as_it_is, FIRST)];
            for (change, meant) in changes {
                let mut state = initial.clone();
                change(&mut state);
                scene.bring(state);
                let faults = flows.iter().filter_map(|flow| flow.ends(&meant, None).err());
                let name = backend::name(kind);
                failed.extend(faults.map(|fault| format!("{turn:?}, {name}: {fault}")));
            }
        }
    }
    assert!(failed.is_empty(), "{} faults:\n  {}", failed.len(), failed.join("\n  "));
}
