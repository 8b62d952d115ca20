//! Handshakes that an endpoint leaves unanswered (issue 4, item 5).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Result;
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::bpf::handshakes;
use netlink::Netns;
use socket2::{Domain, Socket, Type};

use crate::lab::Mode;
use crate::scene::{Connection, FAMILIES, Frontend, Scene, Server, TARGET};

/// A client tries again after 1, 3, 7 and 15 seconds.
const DEADLINE: Duration = Duration::from_secs(20);

type Client = JoinHandle<Result<TcpStream>>;

/// Of two clients that try an endpoint which does not answer, the one whose flow is forgotten when
/// the endpoint is left out is led to another by the next repetition of its handshake. The other one
/// stays.
#[test]
fn a_handshake_whose_flow_is_forgotten_is_led_elsewhere() {
    for (frontend, family) in [Frontend::CLUSTER_IP, Frontend::NODE_PORT].into_iter().zip(FAMILIES)
    {
        let mut scene = Scene::new(Mode::Routed);
        let (silent, other) = (scene.pods[1].addresses, scene.remote.addresses);
        let _server = Server::start(&scene.remote);
        let endpoint = SocketAddr::new(silent[family], TARGET);
        let (listener, _full) = fall_silent(&scene, endpoint);
        scene.serve(frontend, &[silent]);
        // A pod, or who is outside.
        let client = match frontend.is_node_port {
            true => &scene.other.namespace,
            false => &scene.pods[0].namespace,
        };
        let target = frontend.address(family);
        let clients = [(); 2].map(|()| start(client, target));
        let tried = wait_for_two(&scene);
        assert!(tried.values().all(|to| *to == endpoint), "{tried:?}");

        scene.serve(frontend, &[other]);
        let abandoned: BTreeSet<u64> = tried.keys().take(1).copied().collect();
        let left = unanswered(&scene, &abandoned);
        assert_eq!(left.keys().collect::<Vec<_>>(), [tried.keys().last().expect("two")]);
        let (served, waiting) = wait_for_one(clients);
        served.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        assert_eq!(Connection(served).ask().expect("an answer").server, scene.remote.link);
        assert!(!waiting.is_finished(), "{frontend:?}");
        // Room for the other one.
        listener.accept().expect("the first");
        listener.accept().expect("who stayed");
        waiting.join().expect("no panic").expect("a connection");
    }
}

/// A listener whose queue is full with one connection drops what comes after.
fn fall_silent(scene: &Scene, endpoint: SocketAddr) -> (Socket, TcpStream) {
    let listen = || {
        let socket = Socket::new(Domain::for_address(endpoint), Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.bind(&endpoint.into()).expect("the port");
        socket.listen(0).expect("a listener");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        socket
    };
    let listener = scene.pods[1].namespace.run(listen).expect("the pod");
    let connect = || TcpStream::connect_timeout(&endpoint, DEADLINE);
    let first = scene.pods[1].namespace.run(connect).expect("the pod").expect("room for one");
    (listener, first)
}

fn start(from: &Netns, target: SocketAddr) -> Client {
    // A thread stays in the namespace that it was made in.
    let connect = move || TcpStream::connect_timeout(&target, DEADLINE);
    from.run(|| std::thread::spawn(connect)).expect("the client")
}

fn unanswered(scene: &Scene, abandoned: &BTreeSet<u64>) -> BTreeMap<u64, SocketAddr> {
    handshakes::unanswered(&scene.node.file_system, abandoned).expect("the maps")
}

/// The connection of who has one first, and the other client.
fn wait_for_one(clients: [Client; 2]) -> (TcpStream, Client) {
    let deadline = Instant::now() + DEADLINE;
    while !clients.iter().any(Client::is_finished) {
        assert!(Instant::now() < deadline, "nobody was led elsewhere");
        std::thread::sleep(Duration::from_millis(10));
    }
    let [one, two] = clients;
    let (done, other) = if one.is_finished() { (one, two) } else { (two, one) };
    (done.join().expect("no panic").expect("a connection"), other)
}

fn wait_for_two(scene: &Scene) -> BTreeMap<u64, SocketAddr> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = unanswered(scene, &BTreeSet::new());
        if found.len() == 2 {
            return found;
        }
        assert!(Instant::now() < deadline, "only {found:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
