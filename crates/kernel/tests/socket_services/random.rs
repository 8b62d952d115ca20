//! Random connects and datagrams in random clusters through the loaded programs: what the API means
//! for them, which `testkit::agreement` holds all tracers to (invariant 13), as far as
//! `bpf/socket_services.c` does not leave it to the packet path.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, NamespacedName, Protocol, World as Objects};
use netlink::{LinkChange, Neighbour, Netlink, Netns, Route, VethSpec};
use oracle::service::Rule;
use plan::services::Scheduling;
use plan::{Desired, NodeFacts};
use render::ebpf::Sizes;
use socket2::{Domain, Socket, Type};
use testkit::agreement::is_of_service;
use testkit::lab::probe::uninterrupted;
use testkit::random::{self, Choices};
use testkit::verdict;

use crate::lab::{Mode, Node, PATIENCE, TestPod, address, range};
use crate::{alone, world};

/// Clusters, one a seed. `FLATNET_SEED` names the first one, and then it is the only one.
const SEEDS: u64 = 100;
/// Packets of each cluster, of which three in five are a pod's or the node's own.
const PACKETS: usize = 100;
/// Bytes that decide a cluster, what does not answer there, and one packet.
const BYTES: [usize; 3] = [600, 100, 16];
/// Each socket has a port of its own, by which what it sent is known again.
const FIRST_PORT: u16 = 1024;
/// Sockets of all seeds, and those of them whose Service is translated, and is left to the packet
/// path: what meets nothing shows nothing.
const MET_MIN: [usize; 3] = [3_000, 150, 800];
/// The frames of the most verbose second of a test.
const FRAMES_BYTES: usize = 4 << 20;
const ETHERNET_BYTES: usize = 14;
/// `ETH_P_ALL`, as the kernel wants it.
const EVERYTHING: i32 = 3_i32.swap_bytes() >> 16;

/// Where what clients send is seen: none of their packets arrives anywhere.
struct Scene {
    node: Node,
    pod: TestPod,
    /// The other end of the node's uplink.
    _far: Netns,
    pod_frames: Socket,
    node_frames: Socket,
}

/// How a client says where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    TcpConnect,
    UdpConnect,
    SendMessage,
}

#[test]
fn loaded_programs_do_what_the_api_means() {
    let (_turn, cgroup) = alone();
    let scene = Scene::new();
    let mut driver = world::open(&scene.node, Sizes::default());
    let (mut port, mut met) = (FIRST_PORT, [0, 0, 0]);
    let first = std::env::var("FLATNET_SEED").ok().map(|text| text.parse().expect("a seed"));
    for seed in first.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
        let (objects, config, facts, desired) = cluster(seed);
        world::fill(&mut driver, &desired, &config, &facts);
        driver.attach(&cgroup.own).expect("the kernel takes the programs");
        let bytes = random::bytes(seed ^ u64::MAX, BYTES[2] * PACKETS);
        for bytes in bytes.chunks(BYTES[2]) {
            let packet = random::packet(&mut Choices::new(bytes), &objects, &config, &facts);
            if !is_of_a_client_here(&packet, &desired) {
                continue;
            }
            let meant = verdict::by_oracle(&objects, &config, &facts, &packet);
            for &call in calls(packet.protocol) {
                let led_to = scene.send(&packet, call, port);
                port += 1;
                let allowed = allowed(&packet, call, &meant.verdict, &meant.rule, &objects);
                assert!(
                    allowed.contains(&led_to),
                    "FLATNET_SEED={seed}: {call:?} of {packet:?}: the API means {} by {:?}, which \
                     allows {allowed:?} here, but it goes to {led_to}",
                    meant.verdict,
                    meant.rule
                );
                met[0] += 1;
                met[1] += usize::from(led_to != packet.destination);
                let is_left = is_of_service(&meant.rule) && led_to == packet.destination;
                met[2] += usize::from(is_left);
            }
        }
    }
    println!("{} sockets, {} translated, {} left to the packet path", met[0], met[1], met[2]);
    let enough = met.iter().zip(MET_MIN).all(|(met, least)| *met >= least);
    assert!(enough || first.is_some(), "{met:?} are too few");
}

/// A cluster, and what the node shall do for it.
fn cluster(seed: u64) -> (Objects, ClusterConfig, NodeFacts, Desired) {
    let bytes = random::bytes(seed, BYTES[0]);
    let mut choices = Choices::new(&bytes);
    let config = random::config(&mut choices);
    let facts = random::facts(&mut choices, &config);
    let mut objects = Objects::default();
    let nodes = random::nodes(&mut choices, &config).into_iter();
    nodes.chain(random::services(&mut choices, &config)).for_each(|it| drop(objects.set(it)));
    let silent = random::bytes(seed.rotate_left(32), BYTES[1]);
    objects.set_unreachable(random::unreachable(&mut Choices::new(&silent), &objects));
    let (mut desired, _) = plan::node(&objects, &config, &facts);
    for service in desired.services.values_mut() {
        // Maglev is left to the packet path, which `what_the_socket_cannot_do…` shows: here it
        // would only hide what else decides.
        let plans = service.frontends.values_mut().chain(service.ranges.values_mut());
        plans
            .filter(|plan| plan.scheduling == Scheduling::Maglev)
            .for_each(|plan| plan.scheduling = Scheduling::Random);
    }
    (objects, config, facts, desired)
}

/// The kernel keeps what goes to loopback addresses on the client's own machine, where nobody sees
/// it. A pod has an address of its node.
fn is_of_a_client_here(packet: &Packet, desired: &Desired) -> bool {
    let source = packet.source.ip();
    let is_client = match packet.entry {
        Entry::Local => true,
        Entry::Pod => desired
            .network
            .iter()
            .flat_map(|network| &network.pod_ranges)
            .any(|range| range.contains(&source)),
        Entry::Uplink | Entry::Overlay => false,
    };
    is_client && !packet.destination.ip().is_loopback()
}

fn calls(protocol: Protocol) -> &'static [Call] {
    match protocol {
        Protocol::Tcp => &[Call::TcpConnect],
        Protocol::Udp => &[Call::SendMessage, Call::UdpConnect],
        // The kernel asks no program.
        Protocol::Sctp => &[],
    }
}

/// Where this may go: to one of the Service's endpoints, or, untouched, to the packet path.
fn allowed(
    packet: &Packet,
    call: Call,
    verdict: &Verdict,
    rule: &Rule,
    objects: &Objects,
) -> Vec<SocketAddr> {
    let untouched = vec![packet.destination];
    let Verdict::Pass { destinations, source, .. } = verdict else { return untouched };
    if !is_of_service(rule) {
        return untouched;
    }
    let endpoints: Vec<SocketAddr> = destinations.iter().copied().collect();
    if packet.entry == Entry::Local {
        return endpoints;
    }
    if call == Call::UdpConnect {
        return untouched;
    }
    // Who gets itself keeps its own source: the answer comes to it without a translation.
    let itself = endpoints.iter().all(|endpoint| endpoint.ip() == packet.source.ip());
    let masqueraded = *source == SourceTranslation::Masqueraded;
    match (masqueraded, itself || has_source_ranges(rule, objects)) {
        (true, false) => untouched,
        (_, true) => [endpoints, untouched].concat(),
        (false, false) => endpoints,
    }
}

/// Whether the Service's load balancer is for some clients only. What it is for them at other
/// addresses is not told apart here.
fn has_source_ranges(rule: &Rule, objects: &Objects) -> bool {
    let (Rule::External(name, _) | Rule::PortRange(name, _)) = rule else { return false };
    let is_named = |object: NamespacedName| object == *name;
    objects.services().any(|service| {
        is_named(service.metadata.key()) && !service.spec.load_balancer_source_ranges.is_empty()
    })
}

impl Scene {
    fn new() -> Self {
        let mut node = Node::new(Mode::Routed);
        // An address that no random cluster has.
        let pod = node.add_pod(1, 99);
        let far = Netns::create().expect("a network namespace");
        let spec = VethSpec::new("uplink", "near").peer_in(&far);
        node.netlink.create_veth(&spec).expect("an uplink");
        let link_index = node.netlink.require_link("uplink").expect("the uplink").index;
        node.netlink.change_link(link_index, &LinkChange::up()).expect("the uplink up");
        let mut net = Netlink::open_in(&far).expect("a socket");
        let near = net.require_link("near").expect("the other end");
        net.change_link(near.index, &LinkChange::up()).expect("the other end up");
        let mac = near.mac.expect("a MAC address");
        for (own, next, everything) in
            [("198.18.0.9/24", "198.18.0.1", "0.0.0.0/0"), ("2001:2::9/64", "2001:2::1", "::/0")]
        {
            let (own, next) = (own.parse().expect("an address"), address(next));
            node.netlink.add_address(link_index, own).expect("an address");
            let neighbour = Neighbour { link_index, address: next, mac };
            node.netlink.set_neighbour(&neighbour).expect("a neighbour");
            let route = Route::via(range(everything), next, link_index, 4);
            node.netlink.add_route(&route).expect("a default route");
        }
        let (pod_frames, node_frames) = (frames(&node.namespace), frames(&far));
        Self { node, pod, _far: far, pod_frames, node_frames }
    }

    /// Where what a client sends from this port goes, seen on its way.
    fn send(&self, packet: &Packet, call: Call, port: u16) -> SocketAddr {
        let to = packet.destination;
        let (namespace, frames) = match packet.entry {
            Entry::Local => (&self.node.namespace, &self.node_frames),
            _ => (&self.pod.namespace, &self.pod_frames),
        };
        let kind = if call == Call::TcpConnect { Type::STREAM } else { Type::DGRAM };
        let make = || Socket::new(Domain::for_address(to), kind, None);
        let socket = namespace.run(make).expect("the namespace").expect("a socket");
        let any = if to.is_ipv4() { address("0.0.0.0") } else { address("::") };
        socket.bind(&SocketAddr::new(any, port).into()).expect("a port");
        socket.set_nonblocking(true).expect("does not wait");
        let sent = match call {
            Call::TcpConnect => match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                result => result,
            },
            Call::UdpConnect => {
                socket.connect(&to.into()).and_then(|()| socket.send(b"question").map(drop))
            }
            Call::SendMessage => socket.send_to(b"question", &to.into()).map(drop),
        };
        sent.unwrap_or_else(|error| panic!("{call:?} of {packet:?} is refused: {error}"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match next_frame(frames).as_deref().and_then(ends) {
                Some((from, to)) if from.port() == port => return to,
                _ => assert!(Instant::now() < deadline, "{call:?} of {packet:?} is not seen"),
            }
        }
    }
}

/// All that arrives in a namespace from now on.
fn frames(namespace: &Netns) -> Socket {
    let make = || Socket::new(Domain::PACKET, Type::RAW, Some(EVERYTHING.into()));
    let socket = namespace.run(make).expect("the namespace").expect("a packet socket");
    socket.set_recv_buffer_size(FRAMES_BYTES).expect("room");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    socket
}

fn next_frame(socket: &Socket) -> Option<Vec<u8>> {
    let mut bytes = [0; 2048];
    let mut receive = || io::Read::read(&mut (&*socket), &mut bytes);
    match uninterrupted(&mut receive) {
        Ok(count) => Some(bytes[..count].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("no frames: {error}"),
    }
}

/// Source and destination of a frame of TCP or UDP.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let (addresses, protocol, header) = match packet.first()? >> 4 {
        4 => (packet.get(12..20)?, packet[9], 20),
        6 => (packet.get(8..40)?, packet[6], 40),
        _ => return None,
    };
    if ![Protocol::Tcp, Protocol::Udp].iter().any(|one| one.number() == protocol) {
        return None;
    }
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let end = |octets: &[u8], at: usize| -> Option<SocketAddr> {
        let port = packet.get(header + at..header + at + 2)?;
        let address = match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok()?.into(),
            _ => <[u8; 16]>::try_from(octets).ok()?.into(),
        };
        Some(SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)))
    };
    Some((end(source, 0)?, end(destination, 2)?))
}
