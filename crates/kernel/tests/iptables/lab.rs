//! One node with two pods, and a machine outside of the cluster, each with addresses of both
//! families: four network namespaces that live as long as the value, joined by veth pairs.
//!
//! ```text
//! pod1 10.244.0.2, fd00:244::2 ──┐
//!                                node 172.30.0.2, fd00:30::2 ── outside 172.30.0.9, fd00:30::9
//! pod2 10.244.0.6, fd00:244::6 ──┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::iptables::{IptablesDriver, Variant};
use model::kinds::Node;
use model::world::Object;
use model::{ClusterConfig, Family, NamespacedName, Protocol, World};
use netlink::{LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use render::iptables::{IptablesObserved, IptablesOp, IptablesProgram};
use socket2::{Domain, Socket, Type};

/// How long any answer may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that shall not come.
pub const SILENCE: Duration = Duration::from_millis(500);
/// Seconds that a program of these tests may take.
const PROGRAM_TIME_MAX_S: &str = "20";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Every way to have the same rules.
pub const EACH: [(Variant, Family); 4] = [
    (Variant::Nft, Family::V4),
    (Variant::Legacy, Family::V4),
    (Variant::Nft, Family::V6),
    (Variant::Legacy, Family::V6),
];

/// Addresses of one family.
pub struct Addresses {
    pub pod1: IpAddr,
    pub pod2: IpAddr,
    /// The node as pod 1 and pod 2 see it.
    pub gateway1: IpAddr,
    pub gateway2: IpAddr,
    pub node: IpAddr,
    pub outside: IpAddr,
    /// Addresses of Services, and one that is none.
    pub vip: IpAddr,
    pub other_vip: IpAddr,
    pub unknown_vip: IpAddr,
    /// An address of a load balancer, which the outside machine routes to the node.
    pub external: IpAddr,
}

pub fn addresses(family: Family) -> Addresses {
    let address = |v4: &str, v6: &str| match family {
        Family::V4 => v4.parse().expect("an address"),
        Family::V6 => v6.parse().expect("an address"),
    };
    Addresses {
        pod1: address("10.244.0.2", "fd00:244::2"),
        pod2: address("10.244.0.6", "fd00:244::6"),
        gateway1: address("10.244.0.1", "fd00:244::1"),
        gateway2: address("10.244.0.5", "fd00:244::5"),
        node: address("172.30.0.2", "fd00:30::2"),
        outside: address("172.30.0.9", "fd00:30::9"),
        vip: address("10.96.0.20", "fd00:96::20"),
        other_vip: address("10.96.0.21", "fd00:96::21"),
        unknown_vip: address("10.96.7.7", "fd00:96::77"),
        external: address("198.51.100.1", "2001:db8:51::1"),
    }
}

pub struct Lab {
    pub node: Netns,
    pub pod1: Netns,
    pub pod2: Netns,
    pub outside: Netns,
    pub variant: Variant,
    pub family: Family,
    pub config: ClusterConfig,
    pub facts: NodeFacts,
    pub desired: Desired,
}

impl Lab {
    pub fn new(variant: Variant, family: Family) -> Self {
        let create = || Netns::create().expect("a network namespace (these tests need root)");
        let [node, pod1, pod2, outside] = [create(), create(), create(), create()];
        for namespace in [&node, &pod1, &pod2, &outside] {
            prepare(namespace);
        }
        for (peer, name) in [(&pod1, "pod1"), (&pod2, "pod2"), (&outside, "eth0")] {
            join(&node, peer, name);
        }
        let mut config = ClusterConfig::default();
        let range = |text: &str| text.parse().expect("a range");
        config.pod_cidrs.push(range("fd00:244::/48"));
        config.service_cidrs.push(range("fd00:96::/108"));
        config.node_cidrs.push(range("fd00:30::/64"));
        let facts = NodeFacts {
            name: "node1".into(),
            uplink: "eth0".into(),
            uplink_mtu: 1500,
            addresses: FAMILIES.map(|family| addresses(family).node).to_vec(),
            ..NodeFacts::default()
        };
        let mut world = World::default();
        let mut object = Node::default();
        object.metadata.name = "node1".into();
        object.spec.pod_cidrs = vec![range("10.244.0.0/24"), range("fd00:244::/64")];
        world.set(Object::Node(Arc::new(object)));
        let desired = plan::node(&world, &config, &facts).0;
        Self { node, pod1, pod2, outside, variant, family, config, facts, desired }
    }

    pub fn addresses(&self) -> Addresses {
        addresses(self.family)
    }

    pub fn program(&self) -> IptablesProgram {
        render::iptables::render(&self.desired, &self.config, &self.facts)
    }

    /// A driver in the node's namespace.
    pub fn driver(&self) -> IptablesDriver {
        self.node.run(|| IptablesDriver::with(self.variant).expect("a driver")).expect("node")
    }

    /// Brings the node's rules to what is desired; answers the ops that it took.
    pub fn converge(&self, driver: &mut IptablesDriver) -> Vec<IptablesOp> {
        self.bring(driver, &self.program())
    }

    pub fn bring(&self, driver: &mut IptablesDriver, program: &IptablesProgram) -> Vec<IptablesOp> {
        let mut believed = driver.observe().expect("observe");
        let ops = render::iptables::diff(program, &believed);
        for op in &ops {
            driver.apply(op).unwrap_or_else(|error| panic!("{error}"));
            believed.apply(op).expect("the model of the kernel agrees");
        }
        assert_eq!(driver.observe().expect("observe"), believed, "{:?}", self.variant);
        ops
    }

    /// Sets a Service and its rules.
    pub fn serve(&mut self, name: &str, plan: ServicePlan) {
        self.desired.services.insert(NamespacedName::new("shop", name), plan);
        self.converge(&mut self.driver());
    }

    /// Runs `iptables` of the variant in the node's namespace.
    pub fn run(&self, arguments: &str) -> String {
        self.run_program(&self.program_name(), arguments)
    }

    /// Rules and chains without counters, ours and others'.
    pub fn saved(&self) -> BTreeSet<String> {
        let text = ["nat", "filter"].map(|table| self.run(&format!("-t {table} -S"))).concat();
        text.lines().map(str::to_string).collect()
    }

    /// Gives `iptables-restore` of the variant a text.
    pub fn restore(&self, text: &str) {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(text.as_bytes()).expect("a short text");
        drop(writer);
        let program = format!("{}-restore", self.program_name());
        self.run_program_with(&program, "--noflush", reader.into());
    }

    fn program_name(&self) -> String {
        let family = if self.family == Family::V4 { "iptables" } else { "ip6tables" };
        let variant = if self.variant == Variant::Nft { "nft" } else { "legacy" };
        format!("{family}-{variant}")
    }

    fn run_program(&self, program: &str, arguments: &str) -> String {
        self.run_program_with(program, arguments, Stdio::null())
    }

    fn run_program_with(&self, program: &str, arguments: &str, input: Stdio) -> String {
        let arguments = arguments.split(' ');
        let run = || {
            let mut command = Command::new("timeout");
            command.args([PROGRAM_TIME_MAX_S, program, "-w"]).args(arguments);
            command.stdin(input).output()
        };
        let output = self.node.run(run).expect("node").expect("the program runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {complaint}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn observe(&self) -> IptablesObserved {
        self.driver().observe().expect("observe")
    }
}

/// A Service with one port at an address, and at a node port unless that is 0.
pub fn service(
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    node_port: u16,
    plan: &FrontendPlan,
) -> ServicePlan {
    let mut frontends = BTreeMap::new();
    let internal = FrontendPlan { outside: None, ..plan.clone() };
    frontends.insert(Frontend::ClusterIp { address, protocol, port }, internal);
    if node_port != 0 {
        let family = Family::of(&address);
        let frontend = Frontend::NodePort { family, protocol, port: node_port };
        frontends.insert(frontend, plan.clone());
    }
    ServicePlan { frontends, ..ServicePlan::default() }
}

/// These endpoints at port 8080; without any, a refusal.
pub fn to(endpoints: &[IpAddr]) -> FrontendPlan {
    let endpoints: BTreeSet<SocketAddr> =
        endpoints.iter().map(|&address| SocketAddr::new(address, 8080)).collect();
    FrontendPlan::new(if endpoints.is_empty() {
        Backends::Reject
    } else {
        Backends::Endpoints(endpoints)
    })
}

fn prepare(namespace: &Netns) {
    let set = || {
        for (key, value) in [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // As the network driver does: clients shall be refused however many there are.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ] {
            sysctl::write(key, value).expect(key);
        }
    };
    namespace.run(set).expect("a namespace");
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let lo = netlink.require_link("lo").expect("lo").index;
    netlink.change_link(lo, &LinkChange::up()).expect("lo up");
}

/// Joins the node's link `name` with the peer's `eth0`, with routes of both families.
fn join(node: &Netns, peer: &Netns, name: &str) {
    let mut here = Netlink::open_in(node).expect("netlink");
    here.create_veth(&VethSpec::new(name, "eth0").peer_in(peer)).expect("a veth pair");
    let mut there = Netlink::open_in(peer).expect("netlink");
    let near_link = here.require_link(name).expect("the near end").index;
    let far_link = there.require_link("eth0").expect("the far end").index;
    here.change_link(near_link, &LinkChange::up()).expect("up");
    there.change_link(far_link, &LinkChange::up()).expect("up");
    for family in FAMILIES {
        let all = addresses(family);
        let (near, far, bits) = match (name, family) {
            ("pod1", Family::V4) => (all.gateway1, all.pod1, 30),
            ("pod2", Family::V4) => (all.gateway2, all.pod2, 30),
            ("pod1", Family::V6) => (all.gateway1, all.pod1, 126),
            ("pod2", Family::V6) => (all.gateway2, all.pod2, 126),
            (_, Family::V4) => (all.node, all.outside, 24),
            (_, Family::V6) => (all.node, all.outside, 64),
        };
        let net = |address| ipnet::IpNet::new(address, bits).expect("a prefix");
        here.add_address(near_link, net(near)).expect("address");
        there.add_address(far_link, net(far)).expect("address");
        let everywhere = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        let everywhere = everywhere.parse().expect("a range");
        there.add_route(&Route::via(everywhere, near, far_link, 4)).expect("a default route");
        if name == "eth0" {
            here.add_route(&Route::via(everywhere, far, near_link, 4)).expect("a default route");
        }
    }
}

/// Answers each connection and datagram with its name and the client's address, in both families,
/// until the value is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Netns, name: &'static str, port: u16) -> Self {
        let address: SocketAddr = SocketAddr::from(([0_u16; 8], port));
        let open = |kind: Type, protocol: Protocol| {
            let number = socket2::Protocol::from(i32::from(protocol.number()));
            let socket = Socket::new(Domain::IPV6, kind, Some(number)).expect("a socket");
            // Waiting ends now and then, to see whether to stop.
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            socket.set_only_v6(false).expect("both families");
            socket.set_reuse_address(true).expect("a port that was used before");
            socket.bind(&address.into()).expect("the port");
            if kind == Type::STREAM {
                socket.listen(16).expect("a listener");
            }
            socket
        };
        let open_both = || (open(Type::STREAM, Protocol::Tcp), open(Type::DGRAM, Protocol::Udp));
        let (tcp, udp) = namespace.run(open_both).expect("the server's namespace");
        let stop = Arc::new(AtomicBool::new(false));
        let [stop_tcp, stop_udp] = [stop.clone(), stop.clone()];
        let threads = vec![
            std::thread::spawn(move || serve_streams(&tcp, name, &stop_tcp)),
            std::thread::spawn(move || serve_datagrams(udp.into(), name, &stop_udp)),
        ];
        Self { stop, threads }
    }
}

fn serve_streams(listener: &Socket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, client)) = listener.accept() else { continue };
        let Some(client) = client.as_socket() else { continue };
        // A client that went away is its own business.
        let _ = stream.set_read_timeout(Some(DEADLINE));
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(format!("{name} {}", client.ip().to_canonical()).as_bytes());
    }
}

fn serve_datagrams(socket: UdpSocket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, client)) = socket.recv_from(&mut [0; 64]) else { continue };
        let answer = format!("{name} {}", client.ip().to_canonical());
        let _ = socket.send_to(answer.as_bytes(), client);
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Who answered, and which client address it saw.
    From(String, IpAddr),
    Refused,
    Nothing,
}

pub fn answered(name: &str, client: IpAddr) -> Answer {
    Answer::From(name.into(), client)
}

/// One request over a protocol.
pub fn ask(
    from: &Netns,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
    patience: Duration,
) -> Answer {
    let address = SocketAddr::new(address, port);
    match protocol {
        Protocol::Udp => {
            ask_udp_with(&udp_socket(from, Family::of(&address.ip())), address, patience)
        }
        Protocol::Tcp => from.run(|| ask_tcp(address, patience)).expect("the client's namespace"),
        Protocol::Sctp => panic!("many kernels have no SCTP: see `sctp_seen`"),
    }
}

fn ask_tcp(address: SocketAddr, patience: Duration) -> Answer {
    match TcpStream::connect_timeout(&address, patience) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream.write_all(b"who").expect("a request");
            let mut text = [0; 64];
            let length = stream.read(&mut text).expect("an answer");
            parse(&String::from_utf8_lossy(&text[..length]))
        }
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::TimedOut => Answer::Nothing,
            _ => panic!("cannot connect to {address}: {error}"),
        },
    }
}

/// One request over UDP from a socket of the client's.
pub fn ask_udp_with(socket: &UdpSocket, address: SocketAddr, patience: Duration) -> Answer {
    // Connected, so that an ICMP error reaches the socket.
    socket.connect(address).expect("connect");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    match socket.send(b"who") {
        Ok(_) => {}
        // What the kernel tells a sender on the node itself whose datagram a rule refuses.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused
            ) =>
        {
            return Answer::Refused;
        }
        Err(error) => panic!("cannot send to {address}: {error}"),
    }
    let mut answer = [0; 64];
    match socket.recv(&mut answer) {
        Ok(length) => parse(&String::from_utf8_lossy(&answer[..length])),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Answer::Nothing
        }
        Err(error) => panic!("cannot ask {address}: {error}"),
    }
}

pub fn udp_socket(from: &Netns, family: Family) -> UdpSocket {
    let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
    from.run(|| UdpSocket::bind(any).expect("a socket")).expect("the client's namespace")
}

/// Sends the first packet of an SCTP connection (RFC 9260, section 3.3.2) by a raw socket, and
/// answers with which source, and to which port, it arrives in another namespace.
pub fn sctp_seen(from: &Netns, address: IpAddr, port: u16, at: &Netns) -> Option<(IpAddr, u16)> {
    let any = SocketAddr::new(address, 0);
    let open = || {
        let number = socket2::Protocol::from(i32::from(Protocol::Sctp.number()));
        let socket = Socket::new(Domain::for_address(any), Type::RAW, Some(number));
        let socket = socket.expect("a raw socket");
        socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
        UdpSocket::from(socket)
    };
    let listener = at.run(open).expect("the receiver's namespace");
    // Ports, tag 0, no checksum yet; INIT with its tag, window, streams and first number.
    let mut init = [0; 32];
    init[..2].copy_from_slice(&40_001_u16.to_be_bytes());
    init[2..4].copy_from_slice(&port.to_be_bytes());
    init[12..16].copy_from_slice(&[1, 0, 0, 20]);
    init[16..].copy_from_slice(&[0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&init);
    init[8..12].copy_from_slice(&sum.to_le_bytes());
    let sender = from.run(open).expect("the sender's namespace");
    sender.send_to(&init, any).expect("sent");
    let mut packet = [0; 128];
    let (length, source) = listener.recv_from(&mut packet).ok()?;
    let header = if any.is_ipv4() { 20 } else { 0 };
    let port = packet.get(header + 2..header + 4).filter(|_| length >= header + 32)?;
    Some((source.ip(), u16::from_be_bytes([port[0], port[1]])))
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
        })
    })
}

/// Whether an echo request is answered.
pub fn ping(from: &Netns, address: IpAddr, patience: Duration) -> bool {
    let (domain, number, request) = match Family::of(&address) {
        Family::V4 => (Domain::IPV4, 1, 8),
        Family::V6 => (Domain::IPV6, 58, 128),
    };
    let open = || Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(number)));
    let mut socket = from.run(open).expect("the client's namespace").expect("a raw socket");
    // Type, code, checksum, identifier, number. The kernel sums those of IPv6. Each has an
    // identifier of its own: one that was answered is a flow that goes on.
    static IDENTIFIERS: AtomicU16 = AtomicU16::new(1);
    let identifier = IDENTIFIERS.fetch_add(1, Ordering::Relaxed);
    let mut echo = [request, 0, 0, 0, 0, 0, 0, 1];
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    if domain == Domain::IPV4 {
        let sum = !(u16::from_be_bytes([request, 0]) + identifier + 1);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.connect(&SocketAddr::new(address, 0).into()).expect("connect");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    let deadline = Instant::now() + patience;
    match socket.send(&echo) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return false,
        Err(error) => panic!("cannot ping {address}: {error}"),
    }
    let answer = if domain == Domain::IPV4 { 0 } else { 129 };
    let mut packet = [0; 128];
    while Instant::now() < deadline {
        let Ok(length) = socket.read(&mut packet) else { return false };
        let header = if domain == Domain::IPV4 { 20 } else { 0 };
        if length > header && packet[header] == answer {
            return true;
        }
    }
    false
}

fn parse(text: &str) -> Answer {
    match text.split_once(' ') {
        Some((name, client)) => answered(name, client.parse().expect("an address")),
        None => panic!("an answer of another form: {text:?}"),
    }
}
