//! One node with two pods, and a machine outside of the cluster: four network namespaces that live
//! as long as the value, joined by veth pairs.
//!
//! ```text
//! pod1 10.244.0.2 ──┐
//!                   node 172.30.0.2 ── outside 172.30.0.9, 192.0.2.1
//! pod2 10.244.0.6 ──┘
//! ```

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kernel::nft::NftDriver;
use model::kinds::{Endpoint, EndpointPort, EndpointSlice, Node, Service, ServicePort};
use model::world::Object;
use model::{ClusterConfig, Protocol, World};
use netlink::{LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use plan::{Desired, NodeFacts};
use render::nft::{NftObserved, NftOp, NftProgram};
use testkit::lab::probe::uninterrupted;
use testkit::lab::wait_for_addresses;

/// How long any single answer may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub const POD1: &str = "10.244.0.2";
pub const POD2: &str = "10.244.0.6";
pub const NODE: &str = "172.30.0.2";
pub const POD1_V6: &str = "fd00:10:244::1:2";
pub const POD2_V6: &str = "fd00:10:244::2:2";
pub const NODE_V6: &str = "fd00:172:30::2";
pub const OUTSIDE: &str = "172.30.0.9";
pub const OUTSIDE_V6: &str = "fd00:172:30::9";
/// An address outside of every range of the cluster, on the outside machine.
pub const INTERNET: &str = "192.0.2.1";

pub struct Lab {
    pub node: Netns,
    pub pod1: Netns,
    pub pod2: Netns,
    pub outside: Netns,
    pub config: ClusterConfig,
    pub facts: NodeFacts,
    pub world: World,
}

impl Lab {
    pub fn new() -> Self {
        let create = || Netns::create().expect("a network namespace (these tests need root)");
        let [node, pod1, pod2, outside] = [create(), create(), create(), create()];
        loopback_up(&node);
        for (peer, name, near, far) in [
            (&pod1, "pod1", "10.244.0.1/30", "10.244.0.2/30"),
            (&pod2, "pod2", "10.244.0.5/30", "10.244.0.6/30"),
            (&outside, "eth0", "172.30.0.2/24", "172.30.0.9/24"),
        ] {
            join(&node, peer, name, near, far);
        }
        node.run(|| {
            sysctl::write("net/ipv4/ip_forward", "1").expect("forwarding");
            // As the network driver does: clients shall be refused however many there are.
            sysctl::write("net/ipv4/icmp_ratelimit", "0").expect("no limit");
        })
        .expect("node");
        outside
            .run(|| {
                let mut netlink = Netlink::open().expect("netlink");
                let link = netlink.require_link("eth0").expect("eth0").index;
                netlink.add_address(link, "192.0.2.1/32".parse().expect("cidr")).expect("address");
            })
            .expect("outside");
        let addresses = vec![NODE.parse().expect("address")];
        let facts = NodeFacts {
            name: "node1".into(),
            uplink: "eth0".into(),
            uplink_mtu: 1500,
            addresses,
            ..NodeFacts::default()
        };
        let mut world = World::default();
        let mut object = Node::default();
        object.metadata.name = "node1".into();
        object.spec.pod_cidrs = vec!["10.244.0.0/24".parse().expect("cidr")];
        world.set(Object::Node(Arc::new(object)));
        Self { node, pod1, pod2, outside, config: ClusterConfig::default(), facts, world }
    }

    /// The same with addresses of both families everywhere.
    pub fn dual_stack() -> Self {
        let mut lab = Self::new();
        for (peer, name, near, far) in [
            (&lab.pod1, "pod1", "fd00:10:244::1:1/126", "fd00:10:244::1:2/126"),
            (&lab.pod2, "pod2", "fd00:10:244::2:1/126", "fd00:10:244::2:2/126"),
            (&lab.outside, "eth0", "fd00:172:30::2/64", "fd00:172:30::9/64"),
        ] {
            join_v6(&lab.node, peer, name, near, far);
        }
        let forwarding = "net/ipv6/conf/all/forwarding";
        lab.node.run(|| sysctl::write(forwarding, "1").expect("forwarding")).expect("node");
        let cidr = |text: &str| text.parse().expect("cidr");
        lab.config.pod_cidrs.push(cidr("fd00:10:244::/48"));
        lab.config.service_cidrs.push(cidr("fd00:10:96::/108"));
        lab.config.node_cidrs.push(cidr("fd00:172:30::/64"));
        lab.facts.addresses.push(NODE_V6.parse().expect("address"));
        let mut node = Node::default();
        node.metadata.name = "node1".into();
        node.spec.pod_cidrs = vec![cidr("10.244.0.0/24"), cidr("fd00:10:244::/64")];
        lab.world.set(Object::Node(Arc::new(node)));
        lab
    }

    pub fn desired(&self) -> Desired {
        plan::node(&self.world, &self.config, &self.facts).0
    }

    pub fn program(&self) -> NftProgram {
        render::nft::render(&self.desired(), &self.config, &self.facts)
    }

    /// Brings the node's rules to what the world wants; answers the ops that it took.
    pub fn converge(&self, driver: &mut NftDriver) -> Vec<NftOp> {
        let ops = render::nft::diff(&self.program(), &driver.observe().expect("observe"));
        for op in &ops {
            driver.apply(op).unwrap_or_else(|error| panic!("{error}"));
        }
        ops
    }

    /// A driver in the node's namespace.
    pub fn driver(&self) -> NftDriver {
        self.node.run(|| NftDriver::open().expect("a driver")).expect("node")
    }

    /// What is there, with the statements of the rules.
    pub fn observe(&self, driver: &mut NftDriver) -> NftObserved {
        let mut observed = driver.observe().expect("observe");
        observed.recognise(&self.program());
        observed
    }

    /// Sets a Service with one port, and its endpoints, all on this node.
    pub fn set_service(&mut self, service: Service, endpoints: &[SocketAddr]) {
        let port = service.spec.ports[0].clone();
        let mut ports = BTreeSet::new();
        for endpoint in endpoints {
            ports.insert(endpoint.port());
        }
        let key = service.metadata.key();
        for (index, number) in ports.iter().enumerate() {
            let family = if endpoints[0].is_ipv4() { "IPv4" } else { "IPv6" };
            let mut slice = EndpointSlice { address_type: family.into(), ..Default::default() };
            slice.metadata.namespace = key.namespace.clone();
            slice.metadata.name = format!("{}-{index}", key.name);
            slice.metadata.labels.insert(model::kinds::SERVICE_NAME_LABEL.into(), key.name.clone());
            slice.ports = vec![EndpointPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: Some(*number),
            }];
            slice.endpoints = endpoints
                .iter()
                .filter(|endpoint| endpoint.port() == *number)
                .map(|endpoint| Endpoint {
                    addresses: vec![endpoint.ip().to_string()],
                    node_name: "node1".into(),
                    ..Default::default()
                })
                .collect();
            self.world.set(Object::EndpointSlice(Arc::new(slice)));
        }
        for index in ports.len()..4 {
            let name = format!("{}-{index}", key.name);
            let key = model::NamespacedName::new(key.namespace.clone(), name);
            self.world.remove(model::world::Kind::EndpointSlice, &key);
        }
        self.world.set(Object::Service(Arc::new(service)));
    }
}

/// A Service with one port; `node_port` 0 for none.
pub fn service(
    name: &str,
    address: &str,
    protocol: Protocol,
    port: u16,
    node_port: u16,
) -> Service {
    let mut service = Service::default();
    service.metadata.namespace = "shop".into();
    service.metadata.name = name.into();
    service.spec.cluster_ips = vec![address.into()];
    if node_port != 0 {
        service.spec.kind = model::kinds::ServiceType::NodePort;
    }
    service.spec.ports = vec![ServicePort { protocol, port, node_port, ..Default::default() }];
    service
}

pub fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

fn loopback_up(namespace: &Netns) {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let lo = netlink.require_link("lo").expect("lo").index;
    netlink.change_link(lo, &LinkChange::up()).expect("lo up");
}

fn join(node: &Netns, peer: &Netns, name: &str, near: &str, far: &str) {
    let mut here = Netlink::open_in(node).expect("netlink");
    here.create_veth(&VethSpec::new(name, "eth0").peer_in(peer)).expect("a veth pair");
    let near_link = here.require_link(name).expect("the near end").index;
    here.add_address(near_link, near.parse().expect("cidr")).expect("address");
    here.change_link(near_link, &LinkChange::up()).expect("up");
    loopback_up(peer);
    let mut there = Netlink::open_in(peer).expect("netlink");
    let far_link = there.require_link("eth0").expect("the far end").index;
    there.add_address(far_link, far.parse().expect("cidr")).expect("address");
    there.change_link(far_link, &LinkChange::up()).expect("up");
    // The first end to come up drops what it shall send until it is asked: ARP would wait a second
    // for its next try, and the first datagrams arrive late, when nobody expects them any more.
    assert!(here.carrier(name).expect("the near end"));
    let gateway: ipnet::IpNet = near.parse().expect("cidr");
    let everywhere = "0.0.0.0/0".parse().expect("cidr");
    there.add_route(&Route::via(everywhere, gateway.addr(), far_link, 4)).expect("default route");
    if name == "eth0" {
        // The node's own way to the outside.
        let far: ipnet::IpNet = far.parse().expect("cidr");
        here.add_route(&Route::via(everywhere, far.addr(), near_link, 4)).expect("default route");
    }
}

fn join_v6(node: &Netns, peer: &Netns, name: &str, near: &str, far: &str) {
    for (namespace, link, address) in [(node, name, near), (peer, "eth0", far)] {
        let mut netlink = Netlink::open_in(namespace).expect("netlink");
        // An address works at once only where nobody asks first whether it is taken.
        let dad = format!("net/ipv6/conf/{link}/accept_dad");
        namespace.run(|| sysctl::write(&dad, "0").expect("no detection")).expect("namespace");
        let link = netlink.require_link(link).expect("the link").index;
        let address: ipnet::IpNet = address.parse().expect("cidr");
        netlink.add_address(link, address).expect("address");
        wait_for_addresses(&mut netlink, [address.addr()]).expect("an address in use");
    }
    let everywhere: ipnet::IpNet = "::/0".parse().expect("cidr");
    let [near, far]: [ipnet::IpNet; 2] = [near, far].map(|text| text.parse().expect("cidr"));
    let default_route = |namespace: &Netns, link: &str, gateway: IpAddr| {
        let mut netlink = Netlink::open_in(namespace).expect("netlink");
        let link = netlink.require_link(link).expect("the link").index;
        netlink.add_route(&Route::via(everywhere, gateway, link, 4)).expect("default route");
    };
    default_route(peer, "eth0", near.addr());
    if name == "eth0" {
        default_route(node, name, far.addr());
    }
}

/// Answers each TCP connection and UDP datagram with its name and the client's address, until the
/// value is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// On all addresses.
    pub fn start(namespace: &Netns, name: &'static str, port: u16) -> Self {
        Self::start_at(namespace, name, SocketAddr::from(([0, 0, 0, 0], port)))
    }

    pub fn start_at(namespace: &Netns, name: &'static str, address: SocketAddr) -> Self {
        let (tcp, udp) = namespace
            .run(|| {
                let tcp = TcpListener::bind(address).expect("a listener");
                let udp = UdpSocket::bind(address).expect("a socket");
                (tcp, udp)
            })
            .expect("the server's namespace");
        // Waiting ends now and then, to see whether to stop.
        let tick = TimeVal::new(0, 50_000);
        setsockopt(&tcp, sockopt::ReceiveTimeout, &tick).expect("a timeout");
        setsockopt(&udp, sockopt::ReceiveTimeout, &tick).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_tcp, stop_udp) = (stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || serve_tcp(&tcp, name, &stop_tcp)),
            std::thread::spawn(move || serve_udp(&udp, name, &stop_udp)),
        ];
        Self { stop, threads }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, client)) = listener.accept() else { continue };
        // A client that went away is its own business.
        let _ = stream.set_read_timeout(Some(DEADLINE));
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(format!("{name} {}", client.ip()).as_bytes());
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, client)) = socket.recv_from(&mut [0; 64]) else { continue };
        let _ = socket.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a client learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Who answered, and which client address it saw.
    From(String, String),
    Refused,
    Nothing,
}

pub fn answered(name: &str, client: &str) -> Answer {
    Answer::From(name.into(), client.into())
}

/// One request over TCP.
pub fn ask_tcp(from: &Netns, to: SocketAddr, patience: Duration) -> Answer {
    from.run(|| match TcpStream::connect_timeout(&to, patience) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream.write_all(b"who").expect("a request");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            parse(&text)
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) if error.kind() == ErrorKind::TimedOut => Answer::Nothing,
        Err(error) => panic!("cannot connect to {to}: {error}"),
    })
    .expect("the client's namespace")
}

/// One request over UDP from a socket of the client's.
pub fn ask_udp_with(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> Answer {
    // Connected, so that an ICMP error reaches the socket.
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    match socket.send(b"who") {
        Ok(_) => {}
        // What the kernel tells a sender on the node itself whose datagram a rule rejects.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Answer::Refused,
        Err(error) => panic!("cannot send to {to}: {error}"),
    }
    let mut answer = [0; 64];
    match uninterrupted(|| socket.recv(&mut answer)) {
        Ok(length) => parse(&String::from_utf8_lossy(&answer[..length])),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Answer::Nothing
        }
        Err(error) => panic!("cannot ask {to}: {error}"),
    }
}

/// One request over UDP.
pub fn ask_udp(from: &Netns, to: SocketAddr, patience: Duration) -> Answer {
    ask_udp_with(&udp_socket(from), to, patience)
}

pub fn udp_socket(from: &Netns) -> UdpSocket {
    from.run(|| UdpSocket::bind("0.0.0.0:0").expect("a socket")).expect("the client's namespace")
}

fn parse(text: &str) -> Answer {
    match text.split_once(' ') {
        Some((name, client)) => answered(name, client),
        None => panic!("an answer of another form: {text:?}"),
    }
}
