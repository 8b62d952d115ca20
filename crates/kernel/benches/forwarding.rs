//! What a round trip between pods costs by each way (goals G8 and G9 of the performance goals),
//! against a plain veth pair. Needs root.
//!
//! ```text
//! ./x bench forwarding
//! ```
//!
//! Client and server share one processor, so that the median of a round trip is the processor time
//! of the whole way there and back. All ways are set up first; then they take turns, and each is
//! compared with the veth pair of the same round.

#[path = "../tests/bpf/cgroup.rs"]
mod cgroup;
#[path = "../tests/bpf/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ::model::attachment::{Attachment, Masquerade, PodLink};
use ipnet::IpNet;
use kernel::bpf::{Forwarding, Hook, probe, sockets};
use kernel::edge::Edge;
use netlink::{LinkChange, Netlink, Netns, VethSpec, sysctl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use lab::{Mode, Node, TestPod, introduce, make_direct, route_between, wire};

/// Rounds that count; one before them does not.
const ROUNDS: usize = 7;
/// Round trips of one way in one round.
const ROUND_TRIPS: usize = 10_000;
const PORT: u16 = 7;
const BRIDGED_TO_IPV4: &str = "net/bridge/bridge-nf-call-iptables";

/// One connection over one way, and all that it needs to live.
struct Way {
    name: &'static str,
    goal: &'static str,
    client: TcpStream,
    _world: Vec<Box<dyn std::any::Any>>,
}

fn main() {
    let mut processor = CpuSet::new();
    processor.set(0).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &processor).expect("one processor");
    let hook = probe("/sys/fs/bpf".as_ref()).hook;
    let mut ways = vec![direct()];
    for rules in [Rules::None, Rules::Edge, Rules::Hooks, Rules::Tracking] {
        ways.push(kernel_of_one_node(Mode::Bridge, rules));
    }
    for rules in [Rules::None, Rules::Edge, Rules::Tracking] {
        ways.push(kernel_of_one_node(Mode::Routed, rules));
    }
    ways.extend([
        ebpf_of_one_node(Mode::Bridge, hook),
        ebpf_of_one_node(Mode::Routed, hook),
        sockets_of_one_node(hook),
        between_nodes(true, None),
        between_nodes(true, Some(hook)),
        between_nodes(false, None),
        between_nodes(false, Some(hook)),
    ]);
    let mut rounds: Vec<Vec<Duration>> = Vec::new();
    for round in 0..=ROUNDS {
        let medians = ways.iter_mut().map(measure).collect();
        if round > 0 {
            rounds.push(medians);
        }
    }
    println!(
        "{:<44}{:>8}{:>8}{:>8}{:>10}   goal",
        "round trip over a veth pair = 1", "min", "median", "max", "median"
    );
    for (index, way) in ways.iter().enumerate() {
        let times = sorted(rounds.iter().map(|round| round[index].as_secs_f64() * 1e6));
        let ratios =
            sorted(rounds.iter().map(|round| round[index].as_secs_f64() / round[0].as_secs_f64()));
        println!(
            "{:<44}{:>8.2}{:>8.2}{:>8.2}{:>7.2} µs   {}",
            way.name,
            ratios[0],
            ratios[ROUNDS / 2],
            ratios[ROUNDS - 1],
            times[ROUNDS / 2],
            way.goal
        );
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median of a round trip of one byte.
fn measure(way: &mut Way) -> Duration {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    let mut byte = [1];
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        way.client.write_all(&byte).expect("sent");
        way.client.read_exact(&mut byte).expect("answered");
        times.push(start.elapsed());
    }
    times.sort();
    times[ROUND_TRIPS / 2]
}

/// A connection to a server that answers each byte, for as long as the connection lives.
fn connect(client: &Netns, server: &Netns, target: SocketAddr) -> TcpStream {
    let listener = server.run(|| TcpListener::bind(target)).expect("the pod").expect("a listener");
    let stream = client.run(|| TcpStream::connect(target)).expect("the pod").expect("connected");
    stream.set_nodelay(true).expect("no delay");
    let (mut accepted, _) = listener.accept().expect("accepted");
    accepted.set_nodelay(true).expect("no delay");
    std::thread::spawn(move || {
        let mut byte = [0];
        while accepted.read_exact(&mut byte).is_ok() && accepted.write_all(&byte).is_ok() {}
    });
    stream
}

fn between(one: &TestPod, two: &TestPod) -> TcpStream {
    connect(&one.namespace, &two.namespace, SocketAddr::new(two.addresses[0], PORT))
}

fn direct() -> Way {
    let (one, two) = (Netns::create().expect("a namespace"), Netns::create().expect("a namespace"));
    let spec = VethSpec::new("eth0", "eth0").peer_in(&two);
    Netlink::open_in(&one).expect("a socket").create_veth(&spec).expect("a veth pair");
    for (namespace, own) in [(&one, "192.0.2.1/24"), (&two, "192.0.2.2/24")] {
        let mut inside = Netlink::open_in(namespace).expect("a socket");
        let link = inside.require_link("eth0").expect("the link").index;
        inside.add_address(link, lab::range(own)).expect("an address");
        inside.change_link(link, &LinkChange::up()).expect("the link up");
    }
    let client = connect(&one, &two, SocketAddr::new(lab::address("192.0.2.2"), PORT));
    Way { name: "veth pair", goal: "", client, _world: vec![Box::new((one, two))] }
}

/// The edge's rules as the plugin programs them.
fn protect(node: &Node, pod: &TestPod, masquerades: bool) {
    let link = match node.mode {
        Mode::Bridge => PodLink::Bridge { name: pod.link.clone(), bridge: "cni0".into() },
        Mode::Routed => PodLink::Routed { name: pod.link.clone() },
    };
    let mut attachment = Attachment {
        link,
        mac: pod.mac,
        addresses: pod.addresses.map(IpNet::from).into(),
        ..Attachment::default()
    };
    let except = vec![lab::range("10.244.0.0/16"), lab::range("fd00::/8")];
    attachment.edge.masquerade = masquerades.then_some(Masquerade { except });
    node.run(|| Edge::open()?.attach(&attachment, || vec![attachment.clone()]))
        .expect("the edge's rules");
}

/// What looks at packets between pods of one node on the kernel's own path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rules {
    /// Nothing.
    None,
    /// Anti-spoofing.
    Edge,
    /// And IPv4's hooks, for frames of bridges too (`br_netfilter`): Services need them.
    Hooks,
    /// And connection tracking, by a rule that translates.
    Tracking,
}

fn kernel_of_one_node(mode: Mode, rules: Rules) -> Way {
    let mut node = Node::new(mode);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    node.set_forwarding(true);
    if mode == Mode::Bridge {
        introduce(&one, &two);
        let value = if rules >= Rules::Hooks { "1" } else { "0" };
        node.run(|| sysctl::write(BRIDGED_TO_IPV4, value)).expect("br_netfilter");
    }
    if rules >= Rules::Edge {
        for pod in [&one, &two] {
            protect(&node, pod, rules == Rules::Tracking);
        }
    }
    let client = between(&one, &two);
    let (name, goal) = match (mode, rules) {
        (Mode::Bridge, Rules::None) => ("one node, bridge", ""),
        (Mode::Bridge, Rules::Edge) => ("one node, bridge, nft edge", ""),
        (Mode::Bridge, Rules::Hooks) => ("one node, bridge, nft edge, br_netfilter", "G8 ≤ 1.17"),
        (Mode::Bridge, Rules::Tracking) => ("and connection tracking", ""),
        (Mode::Routed, Rules::None) => ("one node, routed", ""),
        (Mode::Routed, Rules::Edge | Rules::Hooks) => ("one node, routed, nft edge", "G8 ≤ 1.15"),
        (Mode::Routed, Rules::Tracking) => ("and connection tracking", ""),
    };
    Way { name, goal, client, _world: vec![Box::new((node, one, two))] }
}

fn load(node: &Node, hook: Hook) -> Forwarding {
    let mut forwarding = node.load(hook);
    node.apply(&mut forwarding);
    forwarding
}

fn ebpf_of_one_node(mode: Mode, hook: Hook) -> Way {
    let mut node = Node::new(mode);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    if mode == Mode::Bridge {
        introduce(&one, &two);
    }
    let forwarding = load(&node, hook);
    let client = between(&one, &two);
    let name = match mode {
        Mode::Bridge => "one node, bridge, eBPF",
        Mode::Routed => "one node, routed, eBPF",
    };
    Way { name, goal: "G8 ≤ 1.08", client, _world: vec![Box::new((node, one, two, forwarding))] }
}

fn sockets_of_one_node(hook: Hook) -> Way {
    let mut node = Node::new(Mode::Routed);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    let forwarding = load(&node, hook);
    // Only what is connected in here goes by the fast path, and does so afterwards.
    let group = cgroup::Cgroup::join();
    sockets::load(&node.file_system, &group.own).expect("the fast path");
    let client = between(&one, &two);
    drop(group);
    Way {
        name: "one node, routed, eBPF, socket fast path",
        goal: "G8 ≤ 0.70",
        client,
        _world: vec![Box::new((node, one, two, forwarding))],
    }
}

fn between_nodes(is_direct: bool, hook: Option<Hook>) -> Way {
    let mode = if hook.is_some() { Mode::Routed } else { Mode::Bridge };
    let (mut first, mut second) = (Node::new(mode), Node::new(mode));
    let (one, two) = (first.add_pod(1, 11), second.add_pod(2, 22));
    wire(&mut first, &mut second);
    if is_direct {
        make_direct(&mut first, &mut second);
    }
    let mut loaded = Vec::new();
    match hook {
        Some(hook) => loaded.extend([&first, &second].map(|node| load(node, hook))),
        None => {
            for (node, pod) in [(&mut first, &one), (&mut second, &two)] {
                node.set_forwarding(true);
                node.route_again(&[pod]);
                protect(node, pod, false);
            }
            route_between(&mut first, &mut second, is_direct);
        }
    }
    let client = between(&one, &two);
    let (name, goal) = match (is_direct, hook.is_some()) {
        (true, false) => ("two nodes, host-gw, bridge, nft edge", ""),
        (true, true) => ("two nodes, host-gw, eBPF", "G9 ≤ 1.30"),
        (false, false) => ("two nodes, VXLAN, bridge, nft edge", ""),
        (false, true) => ("two nodes, VXLAN, eBPF", "G9 ≤ 1.56"),
    };
    Way { name, goal, client, _world: vec![Box::new((first, second, one, two, loaded))] }
}
