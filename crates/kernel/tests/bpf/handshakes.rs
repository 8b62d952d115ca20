//! What fail-over reads: handshakes that pass the kernel's connection tracking and go unanswered.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Result};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kernel::bpf::handshakes;
use socket2::{Domain, Socket, Type};

use crate::lab::{Mode, Node, TestPod, wire};
use crate::{FAMILIES, hooks};

const PORT: u16 = 8080;
/// A client tries again after 1, 3 and 7 seconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Of a pod of the same node and of one elsewhere: a listener whose program does not accept drops
/// what comes, and is no longer told of when it accepts; a refusal is an answer.
#[test]
fn handshakes_are_told_of_until_they_are_answered() {
    for hook in hooks() {
        let (mut here, mut there) = (Node::new(Mode::Routed), Node::new(Mode::Bridge));
        let (client, near) = (here.add_pod(1, 11), here.add_pod(1, 12));
        let far = there.add_pod(2, 22);
        wire(&mut here, &mut there);
        let (mut first, mut second) = (here.load(hook), there.load(hook));
        here.apply(&mut first);
        there.apply(&mut second);
        for server in [&near, &far] {
            for family in FAMILIES {
                let at = SocketAddr::new(server.addresses[family], PORT);
                assert_eq!(unanswered(&here), [], "{at}");
                let refused = connect(&client, at).expect_err("nobody listens");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{at}");
                assert_eq!(unanswered(&here), [], "{at}: refused");

                let listener = listen(server, at);
                // The one that a full queue has room for.
                let _first = connect(&client, at).expect("a connection");
                assert_eq!(unanswered(&here), [], "{at}: answered");
                std::thread::scope(|scope| {
                    let late = scope.spawn(|| connect(&client, at));
                    wait_until("it is told of", || unanswered(&here) == [at]);
                    let (_accepted, _) = listener.accept().expect("the one in the queue");
                    late.join().expect("no panic").expect("it is tried again");
                });
                assert_eq!(unanswered(&here), [], "{at}: answered late");
            }
        }
    }
}

fn unanswered(node: &Node) -> Vec<SocketAddr> {
    let found = handshakes::unanswered(&node.file_system, &BTreeSet::new()).expect("the map");
    found.into_values().collect::<BTreeSet<_>>().into_iter().collect()
}

fn connect(from: &TestPod, at: SocketAddr) -> Result<TcpStream> {
    from.namespace.run(|| TcpStream::connect_timeout(&at, DEADLINE)).expect("the pod")
}

/// One whose queue is full with one connection.
fn listen(pod: &TestPod, at: SocketAddr) -> Socket {
    let open = || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("set");
        socket.bind(&at.into()).expect("the port");
        socket.listen(0).expect("a listener");
        socket
    };
    pod.namespace.run(open).expect("the pod")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
