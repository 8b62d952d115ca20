//! One port of a client, by a Service and directly to the same endpoint at once: in between both
//! have the same two ends.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use ipnet::IpNet;
use kernel::nft::NftDriver;
use model::ClusterConfig;
use netlink::{Netns, Route};
use plan::{Desired, NodeFacts};
use render::nft::{Role, render_as};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Mode, PATIENCE, range};
use crate::scene::{
    Connection, FAMILIES, Frontend, Said, Scene, Server, TARGET, node_addresses, parse,
};

/// Route protocol of the lab: `static`.
const ROUTE_PROTOCOL: u8 = 4;
/// How often each way is asked in turn.
const TURNS: usize = 3;

/// A client outside and what it sends to: a node port of masqueraded flows, and the endpoint.
struct Ways {
    own: SocketAddr,
    targets: [SocketAddr; 2],
}

impl Ways {
    fn new(endpoint: IpAddr, family: usize, port: u16) -> Self {
        let direct = SocketAddr::new(endpoint, TARGET);
        Self {
            own: SocketAddr::new(node_addresses(2)[family], port),
            targets: [Frontend::NODE_PORT.address(family), direct],
        }
    }

    /// Whom the endpoint must see: the node, and the client itself.
    fn assert_seen(&self, way: usize, said: &Said, context: &str) {
        let own = said.client == self.own;
        assert_eq!(own, way == 1, "{context}: way {way} of {} is {}", self.own, said.client);
    }
}

/// A socket on the client's port, which may have others beside it.
fn socket(namespace: &Netns, own: SocketAddr, kind: Type, protocol: Protocol) -> Socket {
    let open = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(own), kind, Some(protocol))?;
        socket.set_reuse_address(true)?;
        socket.bind(&own.into())?;
        Ok(socket)
    };
    namespace.run(open).expect("the client").expect("a socket")
}

fn connect(namespace: &Netns, ways: &Ways, way: usize, context: &str) -> Connection {
    let socket = socket(namespace, ways.own, Type::STREAM, Protocol::TCP);
    let connected = socket.connect_timeout(&ways.targets[way].into(), PATIENCE);
    connected.unwrap_or_else(|error| panic!("{context}: to {}: {error}", ways.targets[way]));
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Connection(stream)
}

/// Asks by one unconnected socket: which way an answer came is told by whom it is from.
fn ask(socket: &UdpSocket, target: SocketAddr, context: &str) -> Said {
    let mut piece = [0; 128];
    socket.send_to(b"who?", target).expect("sent");
    let (bytes, from) =
        socket.recv_from(&mut piece).unwrap_or_else(|error| panic!("{context}: {target}: {error}"));
    assert_eq!(from, target, "{context}");
    parse(&piece[..bytes])
}

/// The table that the node has beside Services in eBPF, as the agent makes it.
pub fn load_table(scene: &Scene) {
    let config = ClusterConfig {
        pod_cidrs: vec![range("10.244.0.0/16"), range("fd00:0:0::/29")],
        service_cidrs: vec![range("10.96.0.0/16"), range("fd00:96::/108")],
        ..ClusterConfig::default()
    };
    let facts = NodeFacts { addresses: node_addresses(1).into(), ..NodeFacts::default() };
    let program = render_as(Role::BesideEbpf, &Desired::default(), &config, &facts);
    scene.node.run(|| {
        let mut driver = NftDriver::open().expect("a socket");
        let observed = driver.observe().expect("no table yet");
        for op in render::nft::diff(&program, &observed) {
            driver.apply(&op).unwrap_or_else(|error| panic!("{error}"));
        }
    });
}

/// Lets the client outside reach the pod by the wire in both families.
fn route_to(scene: &mut Scene, pod: IpAddr) {
    let link = scene.other.netlink.require_link("eth0").expect("the uplink").index;
    let gateway = node_addresses(1)[usize::from(pod.is_ipv6())];
    let route = Route::via(IpNet::from(pod), gateway, link, ROUTE_PROTOCOL);
    scene.other.netlink.add_route(&route).expect("a route");
}

/// Connections and datagrams of one port by node port and directly, whichever began first: both go
/// on, and the endpoint sees the node and the client.
#[test]
fn one_port_reaches_an_endpoint_by_node_port_and_directly_at_once() {
    let mut scene = Scene::new(Mode::Routed);
    let _server = Server::start(&scene.pods[1]);
    let endpoint = scene.pods[1].addresses;
    endpoint.into_iter().for_each(|own| route_to(&mut scene, own));
    load_table(&scene);
    scene.serve(Frontend::NODE_PORT, &[endpoint]);
    let client = &scene.other.namespace;
    for family in FAMILIES {
        for (order, first_port) in [([0, 1], 40_100), ([1, 0], 40_200)] {
            let context = format!("family {family}, order {order:?}");
            let ways = Ways::new(endpoint[family], family, first_port);
            let mut open = order.map(|way| (way, connect(client, &ways, way, &context)));
            for _ in 0..TURNS {
                for (way, connection) in &mut open {
                    let said = connection.ask();
                    let said = said.unwrap_or_else(|error| panic!("{context}, {way}: {error}"));
                    ways.assert_seen(*way, &said, &context);
                }
            }
            let socket = UdpSocket::from(socket(client, ways.own, Type::DGRAM, Protocol::UDP));
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            for way in order.into_iter().cycle().take(2 * TURNS) {
                ways.assert_seen(way, &ask(&socket, ways.targets[way], &context), &context);
            }
        }
    }
}
