//! The IPVS driver and the rendered servers in a kernel that has IPVS, in both families, with real
//! packets in network namespaces that each test makes. Needs root.

#[path = "../common/mod.rs"]
mod common;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kernel::ipvs::IpvsDriver;
use kernel::nft::NftDriver;
use model::{Family, NamespacedName, Protocol};
use netlink::Netns;
use netlink::ipvs::{Ipvs, ServerId, ServerOptions};
use plan::services::{FrontendPlan, IpvsScheduler, Scheduling, ServicePlan};
use render::ipvs::{IpvsOp, IpvsProgram, Scheduler, ServerKey, ServerSettings};
use render::nft::Role;
use socket2::SockRef;
use testkit::emulated::Feature;

use common::{
    Answer, DEADLINE, SILENCE, Scene, Server, answered, ask, ask_udp_with, sctp_seen, service, to,
    udp_socket,
};

/// How long a connection that was reset may live on in the kernel's IPVS (10 s), and a busy
/// machine's time.
const DRAINED: Duration = Duration::from_secs(60);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A node with the rules of nftables that IPVS needs.
struct Node {
    scene: Scene,
    driver: IpvsDriver,
    nft: NftDriver,
}

impl Node {
    fn new(family: Family) -> Self {
        let scene = Scene::new(family);
        let open = || (IpvsDriver::open().expect("IPVS"), NftDriver::open().expect("nftables"));
        let (driver, nft) = scene.node.run(open).expect("the node");
        Self { scene, driver, nft }
    }

    fn serve(&mut self, name: &str, plan: ServicePlan) -> Vec<IpvsOp> {
        self.scene.desired.services.insert(NamespacedName::new("shop", name), plan);
        let Scene { desired, config, facts, .. } = &self.scene;
        let program = render::ipvs::render(desired, config, facts);
        self.set_rules(Role::BeforeIpvs);
        self.bring(&program)
    }

    fn set_rules(&mut self, role: Role) {
        let Scene { desired, config, facts, .. } = &self.scene;
        let rules = render::nft::render_as(role, desired, config, facts);
        let present = self.nft.observe().expect("observe");
        for op in render::nft::diff(&rules, &present) {
            self.nft.apply(&op).unwrap_or_else(|error| panic!("{error}"));
        }
        let present = self.nft.observe().expect("observe");
        assert_eq!(render::nft::diff(&rules, &present), [], "{role:?}");
    }

    /// Brings IPVS to a program, step by step as its model says, until nothing is left to do;
    /// answers the steps.
    fn bring(&mut self, program: &IpvsProgram) -> Vec<IpvsOp> {
        let mut all = Vec::new();
        loop {
            let mut believed = self.driver.observe().expect("observe");
            let ops = render::ipvs::diff(program, &believed);
            if ops.is_empty() {
                return all;
            }
            for op in &ops {
                self.driver.apply(op).unwrap_or_else(|error| panic!("{error}"));
                believed.apply(op).expect("the model of the kernel agrees");
            }
            all.extend(ops);
            assert!(all.len() < 1_000, "it does not come to an end: {all:?}");
        }
    }

    fn is_at(&mut self, program: &IpvsProgram) -> bool {
        render::ipvs::diff(program, &self.driver.observe().expect("observe")).is_empty()
    }
}

/// A server at a pod's port 8080, by the pod's name.
fn servers(scene: &Scene) -> [Server; 2] {
    [Server::start(&scene.pod1, "pod1", 8080), Server::start(&scene.pod2, "pod2", 8080)]
}

fn asked(from: &Netns, protocol: Protocol, address: IpAddr, port: u16) -> Answer {
    ask(from, protocol, address, port, DEADLINE)
}

/// Each scheduler, protocol and family, affinity and weights; another's server stays, and of ours
/// nothing remains.
#[test]
fn what_is_written_is_read_back_and_goes_again() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let foreign = ServerId { protocol: 6, address: SocketAddr::new(at.node, 9999) };
        let options = ServerOptions { scheduler: "rr".into(), flags: 0, affinity_timeout_s: None };
        let mut other = node.scene.node.run(|| Ipvs::open().expect("IPVS")).expect("the node");
        other.add_server(foreign, &options).expect("a server of another program");

        let ends = [at.pod1, at.pod2].map(|address| SocketAddr::new(address, 8080));
        let weights: BTreeMap<SocketAddr, u16> = ends.into_iter().zip([3, 1]).collect();
        let by_name = IpvsScheduler::ALL.map(|one| Scheduling::Ipvs(one, weights.clone()));
        let schedulings: Vec<Scheduling> = [
            Scheduling::Random,
            Scheduling::Weighted(weights),
            Scheduling::LeastConnection,
            Scheduling::Maglev,
        ]
        .into_iter()
        .chain(by_name)
        .collect();
        let count = schedulings.len();
        for (number, scheduling) in (0_u16..).zip(schedulings) {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let affinity_timeout_s = (number % 2 == 0).then_some(10_800);
                let plan = FrontendPlan {
                    affinity_timeout_s,
                    scheduling: scheduling.clone(),
                    ..to(&[at.pod1, at.pod2])
                };
                let ports = (80 + number, 30_080 + number);
                let plan = service(at.vip, protocol, ports.0, ports.1, &plan);
                let ops = node.serve(&format!("web{number}-{protocol}"), plan);
                assert!(!ops.is_empty());
            }
        }
        let Scene { desired, config, facts, .. } = &node.scene;
        let program = render::ipvs::render(desired, config, facts);
        assert_eq!(program.servers.len(), count * 3 * 2);
        let observed = node.driver.observe().expect("observe");
        for (key, server) in &program.servers {
            assert_eq!(observed.servers[key].settings, server.settings, "{key}");
        }
        assert_eq!(observed.servers.len(), program.servers.len(), "without the other's");
        assert!(node.is_at(&program), "{family}");

        node.bring(&IpvsProgram::default());
        assert_eq!(node.driver.observe().expect("observe"), Default::default());
        let left: Vec<ServerId> =
            other.servers().expect("servers").into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, [foreign], "{family}");
    }
}

/// Somebody's changes are seen and undone.
#[test]
fn what_others_change_is_set_right() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    let mut node = Node::new(Family::V4);
    let at = node.scene.addresses();
    node.serve("web", service(at.vip, Protocol::Tcp, 80, 0, &to(&[at.pod1, at.pod2])));
    let Scene { desired, config, facts, .. } = &node.scene;
    let program = render::ipvs::render(desired, config, facts);
    let mut other = node.scene.node.run(|| Ipvs::open().expect("IPVS")).expect("the node");
    let id = ServerId { protocol: 6, address: SocketAddr::new(at.vip, 80) };
    let end = |address| SocketAddr::new(address, 8080);
    other.delete_destination(id, end(at.pod1)).expect("removed");
    other.change_destination(id, end(at.pod2), 7).expect("changed");
    let key = ServerKey { protocol: Protocol::Tcp, address: id.address };
    let expected = [
        IpvsOp::AddDestination(key, end(at.pod1), 1),
        IpvsOp::ChangeDestination(key, end(at.pod2), 1),
    ];
    assert!(node.driver.has_changed(), "the canary sees it");
    assert_eq!(node.bring(&program), expected);
    assert!(!node.driver.has_changed());
    assert!(node.is_at(&program));
}

/// The rows of `plan::services`: who answers, and which source it sees.
#[test]
fn packets_reach_endpoints_with_the_right_source() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let _servers = servers(&node.scene);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let plan = service(at.vip, protocol, 80, 30_080, &to(&[at.pod2]));
            node.serve(&format!("web-{protocol}"), plan);
            let own = service(at.other_vip, protocol, 80, 0, &to(&[at.pod1]));
            node.serve(&format!("own-{protocol}"), own);
            let none = service(at.other_vip, protocol, 81, 30_081, &to(&[]));
            node.serve(&format!("none-{protocol}"), none);
            let Scene { node: host, pod1, outside, .. } = &node.scene;
            let about = format!("{family} {protocol}");
            let kept = asked(pod1, protocol, at.vip, 80);
            assert_eq!(kept, answered("pod2", at.pod1), "a pod of the node, {about}");
            let masqueraded = answered("pod2", at.gateway2);
            assert_eq!(asked(host, protocol, at.vip, 80), masqueraded, "the node, {about}");
            assert_eq!(asked(host, protocol, at.node, 30_080), masqueraded, "the node, {about}");
            assert_eq!(asked(outside, protocol, at.vip, 80), masqueraded, "outside, {about}");
            assert_eq!(asked(outside, protocol, at.node, 30_080), masqueraded, "outside, {about}");
            let hairpin = asked(pod1, protocol, at.other_vip, 80);
            assert_eq!(hairpin, answered("pod1", at.gateway1), "hairpin, {about}");
            for (address, port) in [(at.other_vip, 81), (at.node, 30_081), (at.vip, 8080)] {
                for from in [pod1, outside, host] {
                    let refused = asked(from, protocol, address, port);
                    assert_eq!(refused, Answer::Refused, "{address}:{port}, {about}");
                }
            }
            let unknown = ask(pod1, protocol, at.unknown_vip, 80, SILENCE);
            assert_eq!(unknown, Answer::Nothing, "an address without a Service, {about}");
        }
    }
}

/// A connection goes on while its endpoint goes; new ones go elsewhere.
#[test]
fn an_endpoint_that_goes_keeps_its_connections() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let _servers = servers(&node.scene);
        let web = |ends: &[IpAddr]| service(at.vip, Protocol::Tcp, 80, 0, &to(ends));
        node.serve("web", web(&[at.pod2]));
        let address = SocketAddr::new(at.vip, 80);
        let connect = || TcpStream::connect_timeout(&address, DEADLINE).expect("a connection");
        let mut stream = node.scene.outside.run(connect).expect("outside");
        node.serve("web", web(&[at.pod1]));
        let key = ServerKey { protocol: Protocol::Tcp, address };
        let observed = node.driver.observe().expect("observe");
        let old = observed.servers[&key].destinations[&SocketAddr::new(at.pod2, 8080)];
        assert_eq!((old.weight, old.is_busy), (0, true), "{family}");
        for _ in 0..4 {
            let answer = asked(&node.scene.outside, Protocol::Tcp, at.vip, 80);
            assert_eq!(answer, answered("pod1", at.gateway1), "{family}");
        }
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(b"who").expect("it is still open");
        let mut text = [0; 64];
        let length = stream.read(&mut text).expect("an answer");
        assert!(text[..length].starts_with(b"pod2 "), "{family}");
        // Back again before the last connection has gone.
        node.serve("web", web(&[at.pod1, at.pod2]));
        let observed = node.driver.observe().expect("observe");
        let weights = observed.servers[&key].destinations.values().map(|one| one.weight);
        assert_eq!(weights.collect::<Vec<_>>(), [1, 1], "{family}");
    }
}

/// Who comes to a node port after its Service has gone gets what else listens there, while older
/// connections by the Service go on; and stays with it when IPVS goes in the end.
#[test]
fn a_node_port_that_goes_is_the_nodes_own_while_connections_last() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let _servers = servers(&node.scene);
        node.serve("web", service(at.vip, Protocol::Tcp, 80, 30_080, &to(&[at.pod2])));
        let address = SocketAddr::new(at.node, 30_080);
        let connect = || TcpStream::connect_timeout(&address, DEADLINE).expect("a connection");
        let by_service = node.scene.outside.run(connect).expect("outside");
        node.serve("web", ServicePlan::default());
        let key = ServerKey { protocol: Protocol::Tcp, address };
        assert!(node.driver.observe().expect("observe").servers.contains_key(&key), "{family}");

        let refused = asked(&node.scene.outside, Protocol::Tcp, at.node, 30_080);
        assert_eq!(refused, Answer::Refused, "{family}: nobody listens yet");
        let _own = Server::start(&node.scene.node, "node", 30_080);
        let own = asked(&node.scene.outside, Protocol::Tcp, at.node, 30_080);
        assert_eq!(own, answered("node", at.outside), "{family}");
        let by_node = node.scene.outside.run(connect).expect("outside");
        assert_eq!(said(&by_service), "pod2", "{family}: it goes on");

        SockRef::from(&by_service).set_linger(Some(Duration::ZERO)).expect("set");
        drop(by_service);
        let Scene { desired, config, facts, .. } = &node.scene;
        let program = render::ipvs::render(desired, config, facts);
        let deadline = Instant::now() + DRAINED;
        while node.driver.observe().expect("observe").servers.contains_key(&key) {
            assert!(Instant::now() < deadline, "{family}: the server never goes");
            node.bring(&program);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(said(&by_node), "node", "{family}: it goes on without IPVS");
    }
}

/// What comes back before anybody has read that it still waits is taken up again as it is.
#[test]
fn a_server_that_waits_is_taken_up_again() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    let mut node = Node::new(Family::V4);
    let at = node.scene.addresses();
    let _servers = servers(&node.scene);
    node.serve("web", service(at.vip, Protocol::Tcp, 80, 30_080, &to(&[at.pod2])));
    let addresses = [SocketAddr::new(at.vip, 80), SocketAddr::new(at.node, 30_080)];
    let ask = |address: SocketAddr| {
        let answer = asked(&node.scene.outside, Protocol::Tcp, address.ip(), address.port());
        assert_eq!(answer, answered("pod2", at.gateway2), "{address}");
    };
    let settings =
        ServerSettings { scheduler: Scheduler::from_name("rr"), affinity_timeout_s: None };
    for address in addresses {
        let key = ServerKey { protocol: Protocol::Tcp, address };
        let endpoint = SocketAddr::new(at.pod2, 8080);
        // IPVS remembers it for minutes after its end.
        ask(address);
        for op in [
            IpvsOp::RetireServer(key),
            IpvsOp::AddServer(key, settings.clone()),
            IpvsOp::AddDestination(key, endpoint, 1),
        ] {
            node.driver.apply(&op).unwrap_or_else(|error| panic!("{error}"));
        }
        (0..4).for_each(|_| ask(address));
    }
}

/// Whose the other end of a connection is.
fn said(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(b"who").expect("it is open");
    let mut text = [0; 64];
    let length = stream.read(&mut text).expect("an answer");
    let text = String::from_utf8_lossy(&text[..length]);
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A UDP client with a fixed port does not stay with an endpoint that is gone: not one datagram.
#[test]
fn datagrams_of_one_socket_follow_the_endpoints() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let _servers = servers(&node.scene);
        let dns = |ends: &[IpAddr]| service(at.vip, Protocol::Udp, 53, 0, &to(ends));
        let socket = udp_socket(&node.scene.outside, family);
        let address = SocketAddr::new(at.vip, 53);
        for (end, name) in [(at.pod2, "pod2"), (at.pod1, "pod1"), (at.pod2, "pod2")] {
            node.serve("dns", dns(&[end]));
            let answer = ask_udp_with(&socket, address, DEADLINE);
            assert!(matches!(answer, Answer::From(who, _) if who == name), "{family}: {name}");
        }
    }
}

/// A client stays with its endpoint until that goes.
#[test]
fn a_client_stays_with_its_endpoint() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let _servers = servers(&node.scene);
        let mut answers = |sticky: bool| {
            let affinity_timeout_s = sticky.then_some(10_800);
            let plan = FrontendPlan { affinity_timeout_s, ..to(&[at.pod1, at.pod2]) };
            node.serve("web", service(at.vip, Protocol::Tcp, 80, 0, &plan));
            let ask = |_| asked(&node.scene.outside, Protocol::Tcp, at.vip, 80);
            (0..8).map(ask).collect::<BTreeSet<Answer>>()
        };
        assert_eq!(answers(false).len(), 2, "{family}: one after the other");
        assert_eq!(answers(true).len(), 1, "{family}");
        assert_eq!(answers(false).len(), 2, "{family}: again without");
    }
}

/// SCTP: port and checksum are translated too.
#[test]
fn sctp_reaches_an_endpoint() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in FAMILIES {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let plan = service(at.vip, Protocol::Sctp, 80, 30_080, &to(&[at.pod2]));
        node.serve("web", plan);
        let Scene { outside, pod2, .. } = &node.scene;
        for (address, port) in [(at.vip, 80), (at.node, 30_080)] {
            let seen = sctp_seen(outside, address, port, pod2);
            assert_eq!(seen, Some((at.gateway2, 8080)), "{family} {address}:{port}");
        }
    }
}

/// Another program's server where ours shall be: an error that says what to do.
#[test]
fn a_place_that_another_program_has_is_told() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    let mut node = Node::new(Family::V4);
    let at = node.scene.addresses();
    let id = ServerId { protocol: 6, address: SocketAddr::new(at.node, 30_080) };
    let options = ServerOptions { scheduler: "rr".into(), flags: 0, affinity_timeout_s: None };
    let mut other = node.scene.node.run(|| Ipvs::open().expect("IPVS")).expect("the node");
    other.add_server(id, &options).expect("a server of another program");
    let key = ServerKey { protocol: Protocol::Tcp, address: id.address };
    let settings =
        ServerSettings { scheduler: Scheduler::from_name("rr"), affinity_timeout_s: None };
    let error = node.driver.apply(&IpvsOp::AddServer(key, settings)).expect_err("it is taken");
    assert_eq!(error.errno, 17);
    for part in ["172.30.0.2:30080", "another program"] {
        assert!(error.message.contains(part), "{error}");
    }
}
