//! The socket fast path with real connections. The test's own process joins a cgroup that it
//! makes, so it stands in a program of its own. Needs root.

#[path = "bpf/cgroup.rs"]
mod cgroup;
#[path = "bpf/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use ebpf_abi::Reason;
use kernel::bpf::{Forwarding, probe, sockets};

use cgroup::Cgroup;
use lab::{Mode, Node, PATIENCE, TestPod};

const STREAM_BYTES: u32 = 8 << 20;

struct Connection {
    client: TcpStream,
    server: TcpStream,
}

fn connect(client: &TestPod, server: &TestPod, port: u16) -> Connection {
    let target = SocketAddr::new(server.addresses[0], port);
    let listener = server.namespace.run(|| TcpListener::bind(target)).expect("the pod");
    let listener = listener.expect("a listener");
    let stream = client.namespace.run(|| TcpStream::connect_timeout(&target, PATIENCE));
    let client = stream.expect("the pod").expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        end.set_nodelay(true).expect("no delay");
    }
    Connection { client, server }
}

impl Connection {
    fn ping(&mut self, times: usize) {
        for number in 0..times {
            let question = number.to_le_bytes();
            let mut answer = [0; size_of::<usize>()];
            self.client.write_all(&question).expect("sent");
            self.server.read_exact(&mut answer).expect("received");
            assert_eq!(question, answer);
            self.server.write_all(&answer).expect("sent back");
            self.client.read_exact(&mut answer).expect("received back");
            assert_eq!(question, answer);
        }
    }
}

impl Connection {
    /// Sends much more than any queue holds, and then the end.
    fn stream(mut self) {
        let sent: Vec<u8> = (0..STREAM_BYTES).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            self.server.read_to_end(&mut received).map(|_| received)
        });
        self.client.write_all(&sent).expect("sent");
        drop(self.client);
        let received = reader.join().expect("the reader").expect("received");
        assert!(received == sent, "{} bytes came whole and in order", received.len());
    }
}

/// Round trips of one connection, and how many packets passed the node for them.
fn packets_of(connection: &mut Connection, forwarding: &Forwarding, times: usize) -> u64 {
    let to_pod = || forwarding.counters().expect("the counters")[Reason::ToPod.name()];
    let before = to_pod();
    connection.ping(times);
    to_pod() - before
}

#[test]
fn data_between_pods_of_one_node_goes_past_tcp_and_survives_restarts() {
    let cgroup = Cgroup::join();
    let mut node = Node::new(Mode::Routed);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    let flagged = node.add_pod(1, 13);
    node.wanted.pods.get_mut("veth13").expect("the pod").via_stack = true;
    let mut forwarding = node.load(probe("/sys/fs/bpf".as_ref()).hook);
    node.apply(&mut forwarding);
    let mut older = connect(&one, &two, 1);
    assert!(packets_of(&mut older, &forwarding, 100) >= 200, "without it packets go");

    let load = || sockets::load(&node.file_system, &cgroup.own).expect("the fast path");
    load();
    let mut fast = connect(&one, &two, 2);
    assert!(packets_of(&mut fast, &forwarding, 100) < 20, "no packets but TCP's own");
    assert!(packets_of(&mut older, &forwarding, 100) >= 200, "what was there stays with TCP");
    connect(&one, &two, 20).stream();
    connect(&two, &one, 21).stream();

    // A restart of both: nothing of them is in a process.
    drop(forwarding);
    let mut forwarding = node.load(probe("/sys/fs/bpf".as_ref()).hook);
    assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());
    load();
    assert!(packets_of(&mut fast, &forwarding, 100) < 20, "after a restart");

    // A pod that rules act on has none of it.
    node.set_forwarding(true);
    let mut slow = connect(&one, &flagged, 3);
    let stack = || forwarding.counters().expect("the counters")[Reason::StackFlagged.name()];
    let before = stack();
    slow.ping(100);
    assert!(stack() - before >= 200, "rules see each packet");

    // An end that goes is told by TCP.
    drop(fast.server);
    assert_eq!(fast.client.read(&mut [0; 8]).expect("the end"), 0);

    let mut last = connect(&one, &two, 4);
    last.ping(10);
    sockets::remove(&node.file_system).expect("nothing stays");
    last.ping(100);
    let mut later = connect(&one, &two, 5);
    assert!(packets_of(&mut later, &forwarding, 100) >= 200, "packets again");
}
