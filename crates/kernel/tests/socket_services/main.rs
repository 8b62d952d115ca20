//! Services at the socket with real sockets: the kernel cannot test-run such programs. The test's
//! own process joins a cgroup that it makes, so it stands in a program of its own, and its tests
//! take turns. Needs root.

#[path = "../bpf/cgroup.rs"]
mod cgroup;
#[path = "../bpf/lab.rs"]
mod lab;
mod random;
mod replace;
mod world;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebpf_abi::services::Slot;
use model::{Family, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};

use render::ebpf::{Change, EbpfOp};

use cgroup::Cgroup;
use world::{
    From, PORT, SERVICE_PORT, Server, World, ask, ask_connected, cluster_ip, connect, to,
    udp_socket,
};

/// Connections that meet each of three endpoints but for one run in 10^15.
const ROUNDS: usize = 90;

/// Late clients that all get the first one's endpoint by chance but for one run in 10^9.
const LATE_CLIENTS_MAX: usize = 20;

/// One test at a time is in the cgroup.
fn alone() -> (MutexGuard<'static, ()>, Cgroup) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (turn, Cgroup::join())
}

#[test]
fn clients_of_both_kinds_reach_each_endpoint_and_believe_to_talk_to_the_service() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    for family in [0, 1] {
        let (frontend, endpoints) = (world.frontend(family), world.endpoints(family));
        world.set(cluster_ip(frontend, &to(&endpoints)));
        let servers = world.listen(family, PORT);
        for from in [From::Pod, From::Node] {
            let mut met = BTreeSet::new();
            let mut asked = BTreeSet::new();
            for _ in 0..ROUNDS {
                let (server, peer) = connect(world.namespace(from), frontend, &servers);
                assert_eq!(peer, frontend, "{from:?}: the client's own word");
                met.insert(server);
                let socket = udp_socket(world.namespace(from), frontend);
                let (server, source) = ask(&socket, frontend, &servers);
                assert_eq!(source, frontend, "{from:?}: who answers");
                asked.insert(server);
            }
            assert_eq!((&met, &asked), (&endpoints, &endpoints), "{from:?}");
        }
    }
}

#[test]
fn a_socket_of_ipv6_reaches_a_service_of_ipv4() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let (frontend, endpoints) = (world.frontend(0), world.endpoints(0));
    world.set(cluster_ip(frontend, &to(&endpoints)));
    let servers = world.listen(0, PORT);
    let IpAddr::V4(address) = frontend.ip() else { panic!("IPv4") };
    let mapped = SocketAddr::new(address.to_ipv6_mapped().into(), frontend.port());
    let namespace = world.namespace(From::Pod);
    let (_, peer) = connect(namespace, mapped, &servers);
    assert_eq!(peer, mapped);
    let socket = udp_socket(namespace, mapped);
    let (_, source) = ask(&socket, mapped, &servers);
    assert_eq!(source, mapped);
}

/// What is left to the packet path goes to the Service's own address, where a listener in the
/// client's namespace is in this test; a connect never fails for it.
#[test]
fn what_the_socket_cannot_do_is_left_to_the_packet_path() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let everybody: BTreeSet<_> = [lab::range("0.0.0.0/0"), lab::range("::/0")].into();
    for family in [0, 1] {
        let frontend = world.frontend(family);
        let servers = world.listen(family, PORT);
        let untouched = [Server::new(world.namespace(From::Pod), frontend)];
        let plain = to(&world.endpoints(family));
        let external = |plan: &FrontendPlan| {
            let (address, port) = (frontend.ip(), frontend.port());
            [(Frontend::External { address, protocol: Protocol::Tcp, port }, plan.clone())].into()
        };
        let maglev = FrontendPlan { scheduling: Scheduling::Maglev, ..plain.clone() };
        let with_sources = FrontendPlan {
            source_ranges: Some(everybody.clone()),
            outside: Some(plain.backends.clone()),
            ..plain.clone()
        };
        let inside = FrontendPlan { outside: Some(plain.backends.clone()), ..plain.clone() };
        let rows = [
            ("an endpoint", cluster_ip(frontend, &plain), false),
            ("no endpoint", cluster_ip(frontend, &FrontendPlan::new(Backends::Reject)), true),
            ("hidden endpoints", cluster_ip(frontend, &FrontendPlan::new(Backends::Drop)), true),
            ("by the client's address", cluster_ip(frontend, &maglev), true),
            ("external, masqueraded", external(&plain), true),
            ("external, from here kept", external(&inside), false),
            ("external, for some", external(&with_sources), true),
            (
                "another address",
                cluster_ip(SocketAddr::new(lab::address("10.96.0.7"), 80), &plain),
                true,
            ),
            ("another port", cluster_ip(SocketAddr::new(frontend.ip(), 81), &plain), true),
        ];
        for (name, frontends, is_left) in rows {
            world.set(frontends);
            let expected = if is_left { &untouched[..] } else { &servers[..] };
            let (_, peer) = connect(world.namespace(From::Pod), frontend, expected);
            assert_eq!(peer, frontend, "{name}");
        }
        world.config.masquerade_all = true;
        world.set(cluster_ip(frontend, &plain));
        connect(world.namespace(From::Pod), frontend, &untouched);
        world.config.masquerade_all = false;
        world.set(cluster_ip(frontend, &plain));
        connect(world.namespace(From::Pod), frontend, &servers);
        // Connected UDP of a pod.
        let (_, source) = ask_connected(world.namespace(From::Pod), frontend, &untouched);
        assert_eq!(source, frontend);
    }
}

/// Its packets meet no other program.
#[test]
fn the_node_itself_gets_every_service_at_the_socket() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    for family in [0, 1] {
        let frontend = world.frontend(family);
        let servers = world.listen(family, PORT);
        let plain = to(&world.endpoints(family));
        let (address, port) = (frontend.ip(), frontend.port());
        let own = FrontendPlan {
            source_ranges: Some([world.node_address(family).into()].into()),
            ..plain.clone()
        };
        let external = Frontend::External { address, protocol: Protocol::Tcp, port };
        let maglev = FrontendPlan { scheduling: Scheduling::Maglev, ..plain.clone() };
        let rows = [
            ("external, masqueraded", [(external, plain.clone())].into()),
            ("external, for the node", [(external, own.clone())].into()),
            ("by the client's address", cluster_ip(frontend, &maglev)),
        ];
        for (name, frontends) in rows {
            world.set(frontends);
            let (server, peer) = connect(world.namespace(From::Node), frontend, &servers);
            assert_eq!(peer, frontend, "{name} by {server}");
        }
        world.set(cluster_ip(frontend, &plain));
        let (_, source) = ask_connected(world.namespace(From::Node), frontend, &servers);
        assert_eq!(source, frontend);
        // With a source of its own its packets are judged: here they find no way.
        world.set([(external, own.clone())].into());
        let node = SocketAddr::new(world.node_address(family), 0);
        let socket = world::tcp_socket(world.namespace(From::Node), frontend);
        socket.bind(&node.into()).expect("the node's address");
        assert!(socket.connect_timeout(&frontend.into(), lab::SILENCE).is_err());
        let datagram = Frontend::External { address, protocol: Protocol::Udp, port };
        world.set([(datagram, own.clone())].into());
        let any = udp_socket(world.namespace(From::Node), frontend);
        assert_eq!(ask(&any, frontend, &servers).1, frontend);
        let bound = world.namespace(From::Node).run(|| UdpSocket::bind(node));
        let bound = bound.expect("the namespace").expect("the node's address");
        let _ = bound.send_to(b"question", frontend);
        let _ = bound.connect(frontend).and_then(|()| bound.send(b"question"));
        std::thread::sleep(lab::SILENCE);
        assert!(servers.iter().all(|server| !server.answer()), "nobody is asked");
        // For others alone: the same connect finds no way.
        let others =
            FrontendPlan { source_ranges: Some([lab::range("203.0.113.0/24")].into()), ..own };
        world.set([(external, others)].into());
        let socket = world::tcp_socket(world.namespace(From::Node), frontend);
        let result = socket.connect_timeout(&frontend.into(), lab::SILENCE);
        assert_ne!(world::refusal(result), libc::EPERM, "a program here must not refuse");
    }
}

#[test]
fn node_ports_answer_at_the_nodes_own_addresses_alone() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    const NODE_PORT: u16 = 30080;
    for (family, kind) in [(0, Family::V4), (1, Family::V6)] {
        let servers = world.listen(family, PORT);
        let plain = to(&world.endpoints(family));
        let frontend =
            Frontend::NodePort { family: kind, protocol: Protocol::Tcp, port: NODE_PORT };
        let kept = FrontendPlan { outside: Some(Backends::Drop), ..plain.clone() };
        let target = SocketAddr::new(world.node_address(family), NODE_PORT);
        world.set([(frontend, plain)].into());
        assert_eq!(connect(world.namespace(From::Node), target, &servers).1, target);
        world.set([(frontend, kept)].into());
        assert_eq!(connect(world.namespace(From::Pod), target, &servers).1, target);
        // Neither at loopback addresses nor where the configuration has none.
        let loopback = lab::address(if family == 0 { "127.0.0.1" } else { "::1" });
        let connect_to = |address: IpAddr, world: &World| {
            let target = SocketAddr::new(address, NODE_PORT);
            let socket = world::tcp_socket(world.namespace(From::Node), target);
            world::refusal(socket.connect_timeout(&target.into(), lab::PATIENCE))
        };
        assert_eq!(connect_to(loopback, &world), libc::ECONNREFUSED);
        world.config.node_port_addresses = vec![lab::range("198.51.100.0/24")];
        let plan = world.desired.services.values().next().cloned().expect("a Service");
        world.set_plan(plan);
        assert_eq!(connect_to(target.ip(), &world), libc::ECONNREFUSED);
        world.config.node_port_addresses = vec![];
    }
}

#[test]
fn a_range_keeps_the_port_and_has_exactly_its_ports() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let address = world.frontend(0).ip();
    let servers: Vec<Server> =
        [5000, 5007, 6010].into_iter().flat_map(|port| world.listen(0, port)).collect();
    let endpoints =
        world.endpoints(0).into_iter().map(|one| SocketAddr::new(one.ip(), 0)).collect();
    let range = RangeFrontend {
        scope: RangeScope::ClusterIp,
        address,
        protocol: Protocol::Tcp,
        first: 5000,
        last: 6010,
    };
    let ranges = [(range, to(&endpoints))].into();
    world.set_plan(ServicePlan { ranges, ..ServicePlan::default() });
    for port in [5000, 5007, 6010] {
        let target = SocketAddr::new(address, port);
        let (server, peer) = connect(world.namespace(From::Pod), target, &servers);
        assert_eq!((server.port(), peer), (port, target));
    }
    for port in [4999, 6011] {
        let target = SocketAddr::new(address, port);
        let untouched = [Server::new(world.namespace(From::Pod), target)];
        connect(world.namespace(From::Pod), target, &untouched);
    }
}

#[test]
fn a_client_stays_with_its_endpoint_until_it_goes_or_time_is_up() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let (frontend, mut endpoints) = (world.frontend(0), world.endpoints(0));
    let servers = world.listen(0, PORT);
    let sticky = |endpoints: &BTreeSet<SocketAddr>, timeout_s| FrontendPlan {
        affinity_timeout_s: Some(timeout_s),
        ..to(endpoints)
    };
    world.set(cluster_ip(frontend, &sticky(&endpoints, 10_800)));
    let choices = |world: &World, from| -> BTreeSet<SocketAddr> {
        (0..ROUNDS).map(|_| connect(world.namespace(from), frontend, &servers).0).collect()
    };
    let chosen = choices(&world, From::Pod);
    assert_eq!(chosen.len(), 1, "{chosen:?}");
    // Another endpoint goes: it moves in its slot, not from its clients.
    let chosen = *chosen.first().expect("one");
    let gone = *endpoints.iter().find(|one| **one != chosen).expect("another");
    endpoints.remove(&gone);
    world.set(cluster_ip(frontend, &sticky(&endpoints, 10_800)));
    assert_eq!(choices(&world, From::Pod), [chosen].into());
    endpoints.remove(&chosen);
    world.set(cluster_ip(frontend, &sticky(&endpoints, 10_800)));
    assert_eq!(choices(&world, From::Pod), endpoints);
    // Who comes back later than the timeout is a new client.
    let endpoints = world.endpoints(0);
    world.set(cluster_ip(frontend, &sticky(&endpoints, 1)));
    let first = connect(world.namespace(From::Pod), frontend, &servers).0;
    let moves = (0..LATE_CLIENTS_MAX).any(|_| {
        std::thread::sleep(Duration::from_secs(1));
        connect(world.namespace(From::Pod), frontend, &servers).0 != first
    });
    assert!(moves, "{first} was chosen anew each time");
}

/// kube-proxy's tracked flows do the same: the next datagram of a socket goes where the first went.
#[test]
fn the_datagrams_of_a_socket_stay_together_and_move_when_their_endpoint_goes() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    for family in [0, 1] {
        let (frontend, mut endpoints) = (world.frontend(family), world.endpoints(family));
        world.set(cluster_ip(frontend, &to(&endpoints)));
        let servers = world.listen(family, PORT);
        let socket = udp_socket(world.namespace(From::Pod), frontend);
        let asked = |socket: &UdpSocket| -> BTreeSet<SocketAddr> {
            (0..ROUNDS).map(|_| ask(socket, frontend, &servers).0).collect()
        };
        let first = asked(&socket);
        assert_eq!(first.len(), 1, "{first:?}");
        endpoints.retain(|endpoint| !first.contains(endpoint));
        world.set(cluster_ip(frontend, &to(&endpoints)));
        let second = asked(&socket);
        assert!(second.len() == 1 && second.is_subset(&endpoints), "{second:?}");
        // A port of the Service that is no longer there is not remembered either.
        world.set(cluster_ip(SocketAddr::new(frontend.ip(), SERVICE_PORT + 1), &to(&endpoints)));
        socket.send_to(b"question", frontend).expect("sent");
        assert!(socket.recv_from(&mut [0; 64]).is_err(), "nobody is asked");
    }
}

#[test]
fn weights_decide_how_often_an_endpoint_is_chosen() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let (frontend, endpoints) = (world.frontend(0), world.endpoints(0));
    let weights = endpoints.iter().copied().zip([65_535, 65_535, 1]).collect();
    let plan = FrontendPlan { scheduling: Scheduling::Weighted(weights), ..to(&endpoints) };
    world.set(cluster_ip(frontend, &plan));
    let servers = world.listen(0, PORT);
    let rare = *endpoints.last().expect("an endpoint");
    let met: Vec<SocketAddr> =
        (0..ROUNDS).map(|_| connect(world.namespace(From::Pod), frontend, &servers).0).collect();
    // With equal weights it would be met by 30 of them.
    let count = met.iter().filter(|one| **one == rare).count();
    assert!(count <= 2, "{rare} was met {count} times of {ROUNDS}");
}

/// The first endpoints lie in the frontend's entry, the others in entries of their own: one is as
/// good as the other, and whoever finds his gone gets one of the first.
#[test]
fn of_many_endpoints_each_is_met_and_without_their_entries_the_first_ones() {
    /// Connections that meet each of nine endpoints but for one run in 10^14.
    const ROUNDS: usize = 300;
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    for family in [0, 1] {
        let frontend = world.frontend(family);
        let servers: Vec<Server> =
            (PORT..PORT + 3).flat_map(|port| world.listen(family, port)).collect();
        let endpoints: BTreeSet<SocketAddr> = servers.iter().map(|one| one.address).collect();
        world.set(cluster_ip(frontend, &to(&endpoints)));
        let meet = |world: &World, rounds: usize| -> BTreeSet<SocketAddr> {
            (0..rounds).map(|_| connect(world.namespace(From::Pod), frontend, &servers).0).collect()
        };
        assert_eq!(meet(&world, ROUNDS), endpoints);

        let present = world.driver.observe().expect("the maps");
        let near = present.services.values().flat_map(|it| it.near_slots().to_vec());
        let near: BTreeSet<SocketAddr> = near.map(address_of).collect();
        assert!(near.len() < endpoints.len(), "{near:?}");
        let gone = present.slots.keys().collect();
        world.driver.apply(&EbpfOp::Slots(Change::Remove(gone))).expect("removed");
        assert_eq!(meet(&world, ROUNDS), near);

        // Of weights only one counts: who draws another is passed on, from either place to either.
        for only in [endpoints.first(), endpoints.last()] {
            let only = *only.expect("an endpoint");
            let weights = endpoints.iter().map(|one| (*one, u16::from(*one == only))).collect();
            let scheduling = Scheduling::Weighted(weights);
            world.set(cluster_ip(frontend, &FrontendPlan { scheduling, ..to(&endpoints) }));
            assert_eq!(meet(&world, 30), [only].into());
        }
    }
}

fn address_of(slot: Slot) -> SocketAddr {
    SocketAddr::new(IpAddr::from(slot.address).to_canonical(), slot.port)
}
