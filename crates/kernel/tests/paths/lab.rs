//! Nodes and pods as network namespaces. Pods are made here, without the plugin: this is about
//! the way between nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use kernel::net::NetDriver;
use kernel::nft::NftDriver;
use kernel::wireguard::KeyStore;
use model::cluster::nth_address;
use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::layout::{BRIDGE, UPLINK};
use model::overlay::WIREGUARD_KEY_ANNOTATION;
use model::world::Object;
use model::{ClusterConfig, Family, Node, ObjectMeta, Overlay, World};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use plan::network::gateway;
use plan::{Desired, NodeFacts};
use render::net::NetOp;
use testkit::lab::probe::uninterrupted;
use testkit::lab::wait_for_addresses;

/// How long any one answer may take: the emulated kernel is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// `rtm_protocol` of the routes that the lab makes itself (`RTPROT_STATIC`).
const LAB_PROTOCOL: u8 = 4;
const WIRE_MTU: u32 = 1500;
/// The router's own number on each segment.
const ROUTER: u8 = 254;

/// Which families pods and nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Both,
}

impl Families {
    fn has(self, family: Family) -> bool {
        match self {
            Self::V4 => family == Family::V4,
            Self::V6 => family == Family::V6,
            Self::Both => true,
        }
    }

    /// What is written for IPv4, and for IPv6.
    fn pick(self, v4: &str, v6: &str) -> Vec<IpNet> {
        let rows = [(Family::V4, v4), (Family::V6, v6)].into_iter();
        let chosen = rows.filter(|(family, _)| self.has(*family));
        chosen.map(|(_, text)| text.parse().expect("a prefix")).collect()
    }
}

/// Two L2 segments with a router between them, nodes on them, and what all nodes know.
pub struct Lab {
    pub world: World,
    pub config: ClusterConfig,
    pub families: Families,
    pub nodes: Vec<LabNode>,
    pub router: Netns,
}

/// A node.
pub struct LabNode {
    pub namespace: Netns,
    pub name: String,
    /// With prefix lengths, one a family.
    pub addresses: Vec<IpNet>,
    pub pod_ranges: Vec<IpNet>,
    pub keys: KeyStore,
    directory: PathBuf,
}

impl Drop for LabNode {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A pod, behind the bridge of a node.
pub struct Pod {
    pub namespace: Netns,
    pub addresses: Vec<IpAddr>,
}

impl Lab {
    /// Nodes on these segments, 0 or 1; node n has the pod range number n and the address n + 1.
    pub fn new(overlay: Overlay, families: Families, segments: &[u8]) -> Self {
        let router = namespace();
        let mut net = Netlink::open_in(&router).expect("a socket");
        let forward = || {
            sysctl::write("net/ipv4/ip_forward", "1").expect("it forwards");
            sysctl::write("net/ipv6/conf/all/forwarding", "1").expect("it forwards");
        };
        router.run(forward).expect("inside");
        for segment in [0, 1] {
            let spec = BridgeSpec { name: segment_name(segment), ..BridgeSpec::default() };
            net.create_bridge(&spec).expect("a segment");
            let bridge = net.require_link(&spec.name).expect("it").index;
            net.change_link(bridge, &LinkChange::up()).expect("up");
            for address in segment_addresses(families, segment, ROUTER) {
                net.add_address(bridge, address).expect("the router's address");
            }
        }
        let config = ClusterConfig {
            overlay,
            pod_cidrs: families.pick("10.244.0.0/16", "fd00:10:244::/48"),
            service_cidrs: families.pick("10.96.0.0/16", "fd00:10:96::/112"),
            node_cidrs: families.pick("172.30.0.0/16", "fd00:172:30::/48"),
            ..ClusterConfig::default()
        };
        let mut lab = Self { world: World::default(), config, families, nodes: vec![], router };
        for (number, &segment) in (1_u8..).zip(segments) {
            lab.add_node(number, segment);
        }
        lab
    }

    fn add_node(&mut self, number: u8, segment: u8) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("flatnet-paths-{}-{unique}", std::process::id()));
        let namespace = namespace();
        let addresses = segment_addresses(self.families, segment, number + 1);
        self.plug_in(&namespace, segment, &addresses, &format!("n{number}"));
        let node = LabNode {
            namespace,
            name: format!("node{number}"),
            addresses,
            pod_ranges: self
                .families
                .pick(&format!("10.244.{number}.0/24"), &format!("fd00:10:244:{number}::/64")),
            keys: KeyStore::at(&directory),
            directory,
        };
        self.world.set(node.object(&[]));
        self.nodes.push(node);
    }

    /// A wire from a machine to a segment, its addresses, and its way to the other segment.
    fn plug_in(&self, machine: &Netns, segment: u8, addresses: &[IpNet], port: &str) {
        let mut net = Netlink::open_in(&self.router).expect("a socket");
        let bridge = net.require_link(&segment_name(segment)).expect("the segment").index;
        let pair = VethSpec::new(port, UPLINK).peer_in(machine).mtu(WIRE_MTU).master(bridge);
        net.create_veth(&pair).expect("a wire");
        let index = net.require_link(port).expect("its port").index;
        net.change_link(index, &LinkChange::up()).expect("up");
        let mut inside = Netlink::open_in(machine).expect("a socket");
        for name in [UPLINK, "lo"] {
            let index = inside.require_link(name).expect("the link").index;
            inside.change_link(index, &LinkChange::up()).expect("up");
        }
        let uplink = inside.require_link(UPLINK).expect("the uplink").index;
        for &address in addresses {
            inside.add_address(uplink, address).expect("an address");
        }
        let own = addresses.iter().map(|address| address.addr());
        wait_for_addresses(&mut inside, own).expect("addresses in use");
        for router in segment_addresses(self.families, segment, ROUTER) {
            let route = Route::via(everywhere(router.addr()), router.addr(), uplink, LAB_PROTOCOL);
            inside.add_route(&route).expect("the way to the other segment");
        }
    }

    /// A machine that is no node.
    pub fn stranger(&self, segment: u8, number: u8) -> Netns {
        let machine = namespace();
        let addresses = segment_addresses(self.families, segment, number);
        self.plug_in(&machine, segment, &addresses, &format!("s{number}"));
        machine
    }

    /// All nodes make a key and publish it.
    pub fn publish_keys(&mut self) {
        for node in &self.nodes {
            let key = node.keys.load_or_make().expect("a key").to_string();
            self.world.set(node.object(&[(WIREGUARD_KEY_ANNOTATION, &key)]));
        }
    }

    /// One turn of the loop of every node: rules, then links.
    pub fn turn(&self) {
        for index in 0..self.nodes.len() {
            self.turn_of(index);
        }
    }

    /// One turn of the loop of one node.
    pub fn turn_of(&self, index: usize) -> Vec<NetOp> {
        let node = &self.nodes[index];
        node.enforce(&self.desired(index), &self.config);
        node.make_links(&self.desired(index), &self.config)
    }

    /// What a node shall hold.
    pub fn desired(&self, index: usize) -> Desired {
        let (desired, findings) = plan::node(&self.world, &self.config, &self.nodes[index].facts());
        assert_eq!(findings, [], "on {}", self.nodes[index].name);
        desired
    }

    /// A pod on a node, with the MTU of its plan.
    pub fn add_pod(&self, index: usize, number: u8) -> Pod {
        let node = &self.nodes[index];
        let mtu = self.desired(index).network.expect("a plan").mtu;
        let namespace = namespace();
        let mut outside = Netlink::open_in(&node.namespace).expect("a socket");
        let bridge = outside.require_link(BRIDGE).expect("the bridge").index;
        let name = format!("pod{number}");
        let pair = VethSpec::new(&name, "eth0").peer_in(&namespace).mtu(mtu).master(bridge);
        outside.create_veth(&pair).expect("its link");
        let port = outside.require_link(&name).expect("its port").index;
        outside.change_link(port, &LinkChange::up()).expect("up");
        let mut inside = Netlink::open_in(&namespace).expect("a socket");
        let link = inside.require_link("eth0").expect("its link").index;
        inside.change_link(link, &LinkChange::up()).expect("up");
        let mut addresses = Vec::new();
        for range in &node.pod_ranges {
            let address = nth_address(range, u128::from(number)).expect("an address");
            let prefix = IpNet::new(address, range.prefix_len()).expect("a prefix");
            inside.add_address(link, prefix).expect("added");
            let gateway = gateway(range).expect("a gateway").addr();
            let route = Route::via(everywhere(gateway), gateway, link, LAB_PROTOCOL);
            inside.add_route(&route).expect("its way out");
            addresses.push(address);
        }
        let own = addresses.iter().copied();
        wait_for_addresses(&mut inside, own).expect("addresses in use");
        Pod { namespace, addresses }
    }
}

impl LabNode {
    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            name: self.name.clone(),
            uplink: UPLINK.into(),
            uplink_mtu: WIRE_MTU,
            addresses: self.addresses.iter().map(IpNet::addr).collect(),
            uplink_prefixes: self.addresses.iter().map(IpNet::trunc).collect(),
            tunnel_checksum_broken: false,
            pod_mtu_limit: None,
        }
    }

    /// Its Node object, with annotations.
    pub fn object(&self, annotations: &[(&str, &str)]) -> Object {
        let kind = "InternalIP".to_owned();
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Object::Node(Arc::new(Node {
            metadata: ObjectMeta {
                name: self.name.clone(),
                annotations: annotations.iter().map(owned).collect(),
                ..ObjectMeta::default()
            },
            spec: NodeSpec { pod_cidrs: self.pod_ranges.clone(), ..NodeSpec::default() },
            status: NodeStatus {
                addresses: self
                    .addresses
                    .iter()
                    .map(|address| NodeAddress {
                        kind: kind.clone(),
                        address: address.addr().to_string(),
                    })
                    .collect(),
                ..NodeStatus::default()
            },
        }))
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).expect("a socket in the node")
    }

    /// Writes the rules; a second turn finds nothing to do.
    pub fn enforce(&self, desired: &Desired, config: &ClusterConfig) {
        let program = render::nft::render(desired, config, &self.facts());
        let work = || {
            let mut driver = NftDriver::open().expect("the driver");
            for op in render::nft::diff(&program, &driver.observe().expect("what is there")) {
                driver.apply(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            }
            let after = driver.observe().expect("what is there now");
            assert_eq!(render::nft::diff(&program, &after), [], "a second turn writes nothing");
        };
        self.namespace.run(work).expect("the node's namespace");
    }

    /// Writes the links; what the fake holds after the same ops is what the kernel holds.
    pub fn make_links(&self, desired: &Desired, config: &ClusterConfig) -> Vec<NetOp> {
        let program = render::net::render(desired, config, &self.facts());
        let work = || {
            let mut driver = NetDriver::with_keys(self.keys.clone()).expect("the driver");
            let mut believed = driver.observe().expect("what is there");
            let ops = render::net::diff(&program, &believed);
            for op in &ops {
                driver.apply(op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
                believed.apply(op).unwrap_or_else(|error| panic!("the fake on {op:?}: {error}"));
            }
            let mut after = driver.observe().expect("what is there now");
            assert_eq!(render::net::diff(&program, &after), [], "a second turn writes nothing");
            // Linux makes some parameters anew with a link, which nobody asked for.
            after.state.sysctls.clone_from(&believed.state.sysctls);
            assert_eq!(believed, after, "the honest fake and Linux agree");
            ops
        };
        self.namespace.run(work).expect("the node's namespace")
    }
}

fn segment_name(segment: u8) -> String {
    format!("segment{segment}")
}

fn segment_addresses(families: Families, segment: u8, number: u8) -> Vec<IpNet> {
    families.pick(
        &format!("172.30.{segment}.{number}/24"),
        &format!("fd00:172:30:{segment}::{number}/64"),
    )
}

fn everywhere(family_of: IpAddr) -> IpNet {
    if family_of.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().expect("a prefix")
}

fn any_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whose links use IPv6 addresses at once. While the kernel looks for duplicates of a link's own, it
/// solicits nobody for what it forwards and drops it: seconds, on a busy machine.
fn namespace() -> Netns {
    let made = Netns::create().expect("a network namespace (these tests need root)");
    let without_detection = || sysctl::write("net/ipv6/conf/default/accept_dad", "0");
    made.run(without_detection).expect("inside").expect("no detection");
    made
}

/// A UDP socket in a namespace.
pub fn udp(namespace: &Netns, at: SocketAddr, patience: Duration) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(at).expect("bound")).expect("inside");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    socket
}

/// Sends one datagram and its echo; answers the source that the server saw, `None` when nothing
/// came for so long.
pub fn udp_echo(
    client: &Netns,
    server: &Netns,
    to: IpAddr,
    bytes: usize,
    patience: Duration,
) -> Option<IpAddr> {
    let server = udp(server, SocketAddr::new(to, 0), patience);
    let client = udp(client, SocketAddr::new(any_like(to), 0), patience);
    let sent: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
    // Where a guard stops it at once, the sender is told.
    client.send_to(&sent, server.local_addr().expect("its address")).ok()?;
    let mut buffer = vec![0; 65536];
    let (length, from) = uninterrupted(|| server.recv_from(&mut buffer)).ok()?;
    assert_eq!(&buffer[..length], sent, "whole");
    server.send_to(&buffer[..length], from).ok()?;
    (uninterrupted(|| client.recv(&mut buffer)).ok()? == bytes).then_some(from.ip())
}

/// Sends a body over TCP; answers the source that the server saw.
pub fn tcp_body(client: &Netns, server: &Netns, to: IpAddr, bytes: usize) -> IpAddr {
    use std::io::{Read, Write};
    let listener = server.run(|| TcpListener::bind((to, 0)).expect("bound")).expect("inside");
    let address = listener.local_addr().expect("its address");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, from) = listener.accept().expect("accepted");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut body = Vec::new();
            stream.read_to_end(&mut body).expect("the body");
            (from.ip(), body.len())
        });
        let connect = || TcpStream::connect_timeout(&address, PATIENCE).expect("connected");
        let mut stream = client.run(connect).expect("inside");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&vec![7; bytes]).expect("sent");
        drop(stream);
        let (from, length) = receiver.join().expect("received");
        assert_eq!(length, bytes);
        from
    })
}
