//! What a Service costs by each backend and by kube-proxy's layouts, beside the endpoint itself: a
//! connect (G1, G3), an established connection (G2), the first load of all Services (G3, G4), and
//! the change of one endpoint (G5). Needs root.
//!
//! ```text
//! ./x bench services
//! cargo bench -p kernel --bench services -- 1000
//! ```
//!
//! Client and servers share one processor, so that the median of a connect is the processor time
//! of the whole handshake. The ways take turns, and each is compared with the endpoint of the same
//! round. The measured Service stands in the middle of the others. IPVS is left out where the
//! kernel has none: the emulated one's times say nothing.

#[path = "../../tests/bpf/cgroup.rs"]
mod cgroup;
mod changes;
mod kube_proxy;
#[path = "../../tests/bpf/lab.rs"]
mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::bpf::services::EbpfDriver;
use kernel::iptables::{IptablesDriver, Variant};
use kernel::nft::NftDriver;
use model::{ClusterConfig, NamespacedName, Protocol};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use plan::network::{NetworkPlan, TunnelEnds};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use render::ebpf::{EbpfObserved, Sizes};
use render::iptables::IptablesObserved;
use render::nft::NftObserved;
use socket2::{Domain, SockAddr, Socket, Type};

use cgroup::Cgroup;
use kube_proxy::Layout;
use lab::{Mode, Node, TestPod};

/// Services unless the command line names one number.
const SERVICES: [u32; 4] = [1, 1_000, 10_000, 50_000];
const ENDPOINTS: u8 = 3;
/// With more Services kube-proxy's layout of nftables is left out: its load takes a time that grows
/// with their square, more than half an hour for 50,000.
const NFT_PEER_MAX: u32 = 10_000;
/// Rounds that count; one before them does not.
const ROUNDS: usize = 7;
const CONNECTS: usize = 2_000;
const ROUND_TRIPS: usize = 10_000;
const PORT: u16 = 8080;

fn main() {
    let mut processor = CpuSet::new();
    processor.set(0).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &processor).expect("one processor");
    let number = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let numbers = number.map_or(SERVICES.to_vec(), |number| vec![number]);
    let cgroup = Cgroup::join();
    for number in numbers {
        measure(number, &cgroup.own);
        changes::measure(number, &cgroup.own);
    }
}

/// A client and the endpoints of the measured Service, on one node of its own.
struct World {
    node: Node,
    client: TestPod,
    servers: Vec<TcpListener>,
    endpoints: BTreeSet<SocketAddr>,
}

impl World {
    fn new() -> Self {
        let mut node = Node::new(Mode::Routed);
        node.set_forwarding(true);
        let client = node.add_pod(1, 11);
        let pods: Vec<TestPod> = (0..ENDPOINTS).map(|one| node.add_pod(1, 21 + one)).collect();
        let endpoints: BTreeSet<SocketAddr> =
            pods.iter().map(|pod| SocketAddr::new(pod.addresses[0], PORT)).collect();
        let listen = |pod: &TestPod| {
            let address = SocketAddr::new(pod.addresses[0], PORT);
            let listener = pod.namespace.run(|| TcpListener::bind(address)).expect("the pod");
            let listener = listener.expect("a listener");
            listener.set_nonblocking(true).expect("does not wait");
            listener
        };
        Self { client, servers: pods.iter().map(listen).collect(), endpoints, node }
    }

    fn desired(&self, number: u32) -> Desired {
        let middle = number / 2;
        let service = |one: u32| {
            let own = (one == middle).then(|| self.endpoints.clone());
            let name = NamespacedName::new("shop", format!("web-{one}"));
            (name, service(one, own.unwrap_or_else(|| endpoints(one).into_iter().collect())))
        };
        // Of pods of this node the source is kept.
        let network = Some(network());
        Desired { network, services: (0..number).map(service).collect() }
    }

    /// The median of a connect; what was connected is reset and taken from the server's queue.
    fn connect(&self, target: SocketAddr) -> Duration {
        let mut times = Vec::with_capacity(CONNECTS);
        let address = SockAddr::from(target);
        self.client
            .namespace
            .run(|| {
                for _ in 0..CONNECTS {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                    socket.set_linger(Some(Duration::ZERO)).expect("a reset at the end");
                    let start = Instant::now();
                    socket.connect(&address).expect("connected");
                    times.push(start.elapsed());
                    drop(socket);
                    self.servers.iter().for_each(|server| drop(server.accept()));
                }
            })
            .expect("the pod");
        median(times)
    }

    /// A connection to whichever endpoint answers each byte.
    fn established(&self, target: SocketAddr) -> TcpStream {
        let connect = || TcpStream::connect(target);
        let client = self.client.namespace.run(connect).expect("the pod").expect("connected");
        client.set_nodelay(true).expect("no delay");
        let accepted = self.servers.iter().find_map(|server| server.accept().ok());
        let (mut server, _) = accepted.expect("one of them has it");
        server.set_nonblocking(false).expect("waits");
        server.set_nodelay(true).expect("no delay");
        std::thread::spawn(move || {
            let mut byte = [0];
            while server.read_exact(&mut byte).and_then(|()| server.write_all(&byte)).is_ok() {}
        });
        client
    }
}

/// Whoever makes connections, in the order of a row's columns.
const WAYS: [(&str, &str); 7] = [
    ("the endpoint itself", ""),
    ("connect, eBPF at the socket", "G1 ≤ 1.05"),
    ("connect, nftables", "G3 ≤ 1.25"),
    ("connect, iptables", ""),
    ("connect, kube-proxy's layout of nftables", ""),
    ("connect, kube-proxy's layout of iptables", ""),
    ("established, eBPF at the socket", "G2 ≤ 1.02"),
];

fn measure(number: u32, cgroup: &Path) {
    let frontend = frontend(number / 2);
    let target = SocketAddr::new(frontend.0, frontend.1);
    let plain = World::new();
    let others: [World; 4] = std::array::from_fn(|_| World::new());
    let [nft, iptables, nft_peer, iptables_peer] = &others;
    let (mut driver, ebpf_load) = load_ebpf(&plain, number);
    let loads = [
        ("eBPF", ebpf_load),
        ("nftables", load_nft(nft, number)),
        ("iptables", load_iptables(iptables, number)),
        ("kube-proxy's layout of nftables", load_as_kube_proxy(nft_peer, number, Layout::Nftables)),
        (
            "kube-proxy's layout of iptables",
            load_as_kube_proxy(iptables_peer, number, Layout::Iptables),
        ),
    ];
    let direct = *plain.endpoints.first().expect("an endpoint");
    let mut rounds: Vec<[f64; WAYS.len()]> = Vec::new();
    for round in 0..=ROUNDS {
        driver.detach().expect("detached");
        let alone = plain.connect(direct).as_secs_f64();
        let established = trips(plain.established(direct)).as_secs_f64();
        driver.attach(cgroup).expect("attached");
        let by_ebpf = plain.connect(target).as_secs_f64() / alone;
        let through = trips(plain.established(target)).as_secs_f64() / established;
        driver.detach().expect("detached");
        let by = |world: &World| world.connect(target).as_secs_f64() / alone;
        let by_nft_peer = if number > NFT_PEER_MAX { f64::NAN } else { by(nft_peer) };
        let (by_nft, by_iptables, by_iptables_peer) = (by(nft), by(iptables), by(iptables_peer));
        let row = [1.0, by_ebpf, by_nft, by_iptables, by_nft_peer, by_iptables_peer, through];
        if round > 0 {
            rounds.push(row);
        }
    }
    println!("{number} Services × {ENDPOINTS} endpoints");
    println!("{:<44}{:>8}{:>8}{:>8}   goal", "the endpoint itself = 1", "min", "median", "max");
    for (way, (name, goal)) in WAYS.iter().enumerate().skip(1) {
        let mut ratios: Vec<f64> = rounds.iter().map(|row| row[way]).collect();
        ratios.sort_by(f64::total_cmp);
        let [least, middle, most] = [0, ROUNDS / 2, ROUNDS - 1].map(|one| ratios[one]);
        if least.is_nan() {
            println!("{name:<44}{:>24}", "left out");
        } else {
            println!("{name:<44}{least:>8.2}{middle:>8.2}{most:>8.2}   {goal}");
        }
    }
    print_loads(&loads);
}

fn print_loads(loads: &[(&str, [f64; 2]); 5]) {
    println!("{:<44}{:>12}{:>16}", "CPU of the first load, ms", "plan to ops", "to the kernel");
    for (name, [planned, written]) in loads {
        if written.is_nan() {
            println!("{name:<44}{:>28}", "left out");
        } else {
            println!("{name:<44}{planned:>12.1}{written:>16.1}");
        }
    }
    let [ebpf, nft, _, nft_peer, iptables_peer] = loads.map(|(_, [_, written])| written);
    println!(
        "eBPF ÷ kube-proxy's iptables {} (G4 ≤ 1/100), nftables ÷ kube-proxy's nftables {} (G3 ≤ \
         1/50), nftables ÷ kube-proxy's iptables {} (G3 ≤ 1/3)\n",
        part(ebpf, iptables_peer),
        part(nft, nft_peer),
        part(nft, iptables_peer)
    );
}

/// What part of another's cost ours is; nothing is known of what was left out.
fn part(ours: f64, others: f64) -> String {
    if others.is_nan() { "-".to_owned() } else { format!("1/{:.1}", others / ours) }
}

/// The median of a round trip of one byte.
fn trips(mut client: TcpStream) -> Duration {
    let mut byte = [1];
    let trip = |_| {
        let start = Instant::now();
        client.write_all(&byte).expect("sent");
        client.read_exact(&mut byte).expect("answered");
        start.elapsed()
    };
    median((0..ROUND_TRIPS).map(trip).collect())
}

fn load_ebpf(world: &World, number: u32) -> (EbpfDriver, [f64; 2]) {
    let sizes = Sizes::default();
    let open = || EbpfDriver::open(&world.node.file_system, sizes);
    let mut driver = world.node.run(open).expect("the maps");
    let desired = world.desired(number);
    let before = cpu_ms();
    let program = render::ebpf::render(&desired, &ClusterConfig::default(), &facts());
    let present = EbpfObserved { sizes, ..EbpfObserved::default() };
    let ops = render::ebpf::diff(&program, &present);
    let planned = cpu_ms() - before;
    let before = cpu_ms();
    ops.iter().for_each(|op| driver.apply(op).expect("written"));
    (driver, [planned, cpu_ms() - before])
}

fn load_nft(world: &World, number: u32) -> [f64; 2] {
    let mut driver = world.node.run(NftDriver::open).expect("rules");
    let desired = world.desired(number);
    let before = cpu_ms();
    let program = render::nft::render(&desired, &ClusterConfig::default(), &facts());
    let ops = render::nft::diff(&program, &NftObserved::default());
    let planned = cpu_ms() - before;
    let before = cpu_ms();
    world.node.run(|| ops.iter().for_each(|op| driver.apply(op).expect("written")));
    [planned, cpu_ms() - before]
}

fn load_iptables(world: &World, number: u32) -> [f64; 2] {
    let desired = world.desired(number);
    let before = cpu_ms();
    let program = render::iptables::render(&desired, &ClusterConfig::default(), &facts());
    let ops = render::iptables::diff(&program, &IptablesObserved::default());
    let planned = cpu_ms() - before;
    let before = cpu_ms();
    world.node.run(|| {
        let mut driver = IptablesDriver::with(Variant::Legacy).expect("a driver");
        ops.iter().for_each(|op| driver.apply(op).expect("written"));
    });
    [planned, cpu_ms() - before]
}

/// What kube-proxy computes is not counted.
fn load_as_kube_proxy(world: &World, number: u32, layout: Layout) -> [f64; 2] {
    if layout == Layout::Nftables && number > NFT_PEER_MAX {
        return [0.0, f64::NAN];
    }
    let middle = number / 2;
    let own: Vec<SocketAddr> = world.endpoints.iter().copied().collect();
    let services =
        as_of_kube_proxy(number, &|one| if one == middle { own.clone() } else { endpoints(one) });
    if layout == Layout::Iptables {
        world.node.run(|| layout.write(kube_proxy::IPTABLES_JUMPS));
    }
    let rules = layout.all(&services);
    let before = cpu_ms();
    world.node.run(|| layout.write(&rules));
    [0.0, cpu_ms() - before]
}

fn as_of_kube_proxy(
    number: u32,
    endpoints: &dyn Fn(u32) -> Vec<SocketAddr>,
) -> Vec<kube_proxy::Service> {
    let service = |number| {
        let (address, port) = frontend(number);
        kube_proxy::Service { number, address, port, endpoints: endpoints(number) }
    };
    (0..number).map(service).collect()
}

/// Of this process and of the programs that it ran, in milliseconds.
fn cpu_ms() -> f64 {
    let of = |who| {
        let usage = getrusage(who).expect("usage");
        (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1000.0
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

fn facts() -> NodeFacts {
    NodeFacts { name: "node1".into(), ..NodeFacts::default() }
}

fn network() -> NetworkPlan {
    NetworkPlan {
        pod_ranges: lab::pod_ranges(1).into(),
        blocks: BTreeSet::new(),
        agent_chooses_addresses: false,
        gateways: vec![],
        mtu: 1500,
        promised_mtu: 1500,
        ends: TunnelEnds::default(),
        peers: BTreeMap::new(),
        dns_addresses: vec![],
        uplink: "eth0".into(),
    }
}

fn frontend(number: u32) -> (std::net::IpAddr, u16) {
    let [_, second, third, fourth] = (number + 256).to_be_bytes();
    ([10, 96 + second, third, fourth].into(), 80)
}

fn endpoints(number: u32) -> Vec<SocketAddr> {
    let endpoint = |index: u32| {
        let [_, second, third, fourth] = (number * u32::from(ENDPOINTS) + index).to_be_bytes();
        SocketAddr::from(([10, 128 + second, third, fourth], PORT))
    };
    (0..u32::from(ENDPOINTS)).map(endpoint).collect()
}

fn service(number: u32, endpoints: BTreeSet<SocketAddr>) -> ServicePlan {
    let (address, port) = frontend(number);
    let frontend = Frontend::ClusterIp { address, protocol: Protocol::Tcp, port };
    let plan = FrontendPlan::new(Backends::Endpoints(endpoints.into()));
    ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
