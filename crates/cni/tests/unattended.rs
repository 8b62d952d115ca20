//! R-02 with Services in eBPF: pods that are added while no agent runs reach Services. Needs root.
//!
//! The plugin looks where every machine has its pins and its agent. These tests have mounts of their
//! own there.

mod lab;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use ebpf_abi::address_bytes;
use ebpf_abi::services::{SCOPE_ADDRESS, ServiceKey};
use kernel::bpf::FILE_SYSTEM;
use kernel::bpf::node::NodeServices;
use lab::{Lab, PATIENCE, Pod};
use model::layout::{AGENT_SOCKET, RUN_DIRECTORY};
use model::{Overlay, ServiceAcceleration};
use netlink::Netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use render::ebpf::node::{NodeObserved, NodeProgram, Place, Sockets, diff_node};
use render::ebpf::{EbpfProgram, FrontendKey, FrontendProgram, NodeOp, Sizes, View};

const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
const TARGET: u16 = 8080;
/// How long a client waits where nothing shall answer.
const SILENCE: Duration = Duration::from_millis(400);

/// Gives this thread, and those that it starts, mounts of its own.
fn isolate() {
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own (these tests need root)");
    let quiet = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, quiet, None::<&str>).expect("private mounts");
    mount(Some("bpf"), FILE_SYSTEM, Some("bpf"), MsFlags::empty(), None::<&str>).expect("pins");
    // Not at the directory itself: it would have to be made, and would stay, on the machine.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .expect("an empty directory");
    std::fs::create_dir(RUN_DIRECTORY).expect("a directory");
}

/// Brings a node's links to Services in eBPF, as its agent does, but for sockets. Answers how many
/// operations that took.
fn run_agent(node: &Netns, endpoint: IpAddr) -> usize {
    let work = || {
        let mut services = NodeServices::default();
        let mut observed: NodeObserved = services.observe().expect("what is there");
        observed.sockets = Sockets::Attached;
        let ops = diff_node(Some(&program(endpoint)), &observed);
        for op in &ops {
            if *op != NodeOp::AttachSockets {
                services.apply(op).unwrap_or_else(|error| panic!("{error} at {op:?}"));
            }
        }
        ops.len()
    };
    node.run(work).expect("the node")
}

fn program(endpoint: IpAddr) -> NodeProgram {
    let (address, port) = SERVICE;
    let key = ServiceKey {
        address: address_bytes(address.into()),
        port,
        protocol: model::Protocol::Tcp.number(),
        scope: SCOPE_ADDRESS,
    };
    let plan = FrontendProgram {
        inside: View::Endpoints([(SocketAddr::new(endpoint, TARGET), 1)].into()),
        outside: None,
        masquerade: false,
        direct: false,
        affinity_timeout_s: None,
        source_ranges: None,
        is_node_allowed: true,
        maglev: false,
        has_members: false,
    };
    NodeProgram {
        maps: EbpfProgram {
            frontends: [(FrontendKey::Port(key), plan)].into_iter().collect(),
            own_pods: BTreeSet::from(["10.244.1.0/24".parse().expect("a range")]),
            ..EbpfProgram::default()
        },
        sizes: Sizes::default(),
        place: Place {
            uplink: model::layout::UPLINK.into(),
            addresses: vec!["172.30.0.2".parse().expect("an address")],
            is_uplink_a_way: false,
            acceleration: ServiceAcceleration::Disabled,
        },
        contested: BTreeSet::new(),
    }
}

/// Whether the Service answers a pod.
fn ask(pod: &Pod) -> bool {
    let target = SocketAddr::from(SERVICE);
    let ask = || {
        let mut text = String::new();
        let stream = TcpStream::connect_timeout(&target, SILENCE);
        stream.and_then(|mut stream| stream.read_to_string(&mut text)).is_ok_and(|_| text == "web")
    };
    pod.namespace.run(ask).expect("the pod")
}

fn serve(pod: &Pod) {
    let at = SocketAddr::new(pod.address, TARGET);
    let listener = pod.namespace.run(|| TcpListener::bind(at)).expect("the pod").expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"web");
        }
    });
}

/// Without an agent, with one that is stuck, and with none again: each time a new pod reaches the
/// Service, and no ADD waits longer than it may.
#[test]
fn pods_that_come_while_no_agent_answers_reach_services() {
    isolate();
    let lab = Lab::new(1, Overlay::Vxlan);
    lab.reconcile();
    let server = lab.add_pod(0, "server");
    serve(&server);
    let before = lab.add_pod(0, "before");
    assert!(!ask(&before), "nobody knows the Service yet");
    let node = &lab.nodes[0].namespace;
    run_agent(node, server.address);
    assert!(ask(&before), "the agent was there");

    let begun = Instant::now();
    let alone = lab.add_pod(0, "alone");
    assert!(begun.elapsed() < PATIENCE, "nobody is waited for");
    assert!(ask(&alone), "its programs came without an agent");

    // One that listens and says nothing.
    let _stuck = UnixListener::bind(Path::new(RUN_DIRECTORY).join(AGENT_SOCKET)).expect("bound");
    let stuck = lab.add_pod(0, "stuck");
    assert!(ask(&stuck), "an agent that does not answer");

    run_agent(node, server.address);
    for pod in [&before, &alone, &stuck] {
        assert!(ask(pod), "the agent is back");
    }
}
