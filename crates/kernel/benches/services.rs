//! What a Service costs by each backend, beside the endpoint itself: a connect (G1, G3), an
//! established connection (G2), and the first load of all Services (G4). Needs root.
//!
//! ```text
//! ./x bench services [SERVICES]
//! ```
//!
//! Client and servers share one processor, so that the median of a connect is the processor time
//! of the whole handshake. The ways take turns, and each is compared with the endpoint of the same
//! round. The measured Service stands in the middle of the others.

#[path = "../tests/bpf/cgroup.rs"]
mod cgroup;
#[path = "../tests/bpf/lab.rs"]
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
use lab::{Mode, Node, TestPod};

/// Services unless the command line names one number.
const SERVICES: [u32; 3] = [1, 10_000, 50_000];
const ENDPOINTS: u8 = 3;
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
            (name, service(one, own.unwrap_or_else(|| others(one))))
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

fn measure(number: u32, cgroup: &Path) {
    let frontend = frontend(number / 2);
    let target = SocketAddr::new(frontend.0, frontend.1);
    let (plain, nft, iptables) = (World::new(), World::new(), World::new());
    let (mut driver, ebpf_load) = load_ebpf(&plain, number);
    let nft_load = load_nft(&nft, number);
    let iptables_load = load_iptables(&iptables, number);
    let direct = *plain.endpoints.first().expect("an endpoint");
    let mut rounds: Vec<[Duration; 6]> = Vec::new();
    for round in 0..=ROUNDS {
        driver.detach().expect("detached");
        let alone = plain.connect(direct);
        let established = trips(plain.established(direct));
        driver.attach(cgroup).expect("attached");
        let by_ebpf = plain.connect(target);
        let through = trips(plain.established(target));
        driver.detach().expect("detached");
        let row =
            [alone, by_ebpf, nft.connect(target), iptables.connect(target), established, through];
        if round > 0 {
            rounds.push(row);
        }
    }
    println!("{number} Services × {ENDPOINTS} endpoints");
    println!("{:<44}{:>8}{:>8}{:>8}   goal", "the endpoint itself = 1", "min", "median", "max");
    let rows = [
        ("connect, eBPF at the socket", 1, 0, "G1 ≤ 1.05"),
        ("connect, nftables", 2, 0, "G3 ≤ 1.25"),
        ("connect, iptables", 3, 0, ""),
        ("established, eBPF at the socket", 5, 4, "G2 ≤ 1.02"),
    ];
    for (name, way, base, goal) in rows {
        let ratio = |row: &[Duration; 6]| row[way].as_secs_f64() / row[base].as_secs_f64();
        let mut ratios: Vec<f64> = rounds.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let [least, middle, most] = [0, ROUNDS / 2, ROUNDS - 1].map(|one| ratios[one]);
        println!("{name:<44}{least:>8.2}{middle:>8.2}{most:>8.2}   {goal}");
    }
    println!("{:<44}{:>12}{:>16}", "CPU of the first load, ms", "plan to ops", "to the kernel");
    let loads = [("eBPF", ebpf_load), ("nftables", nft_load), ("iptables", iptables_load)];
    for (name, [planned, written]) in loads {
        println!("{name:<44}{planned:>12.1}{written:>16.1}");
    }
    println!("eBPF ÷ iptables: 1/{:.0}   G4 ≤ 1/100\n", iptables_load[1] / ebpf_load[1]);
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

fn others(number: u32) -> BTreeSet<SocketAddr> {
    let endpoint = |index: u32| {
        let [_, second, third, fourth] = (number * u32::from(ENDPOINTS) + index).to_be_bytes();
        SocketAddr::from(([10, 128 + second, third, fourth], PORT))
    };
    (0..u32::from(ENDPOINTS)).map(endpoint).collect()
}

fn service(number: u32, endpoints: BTreeSet<SocketAddr>) -> ServicePlan {
    let (address, port) = frontend(number);
    let frontend = Frontend::ClusterIp { address, protocol: Protocol::Tcp, port };
    let plan = FrontendPlan::new(Backends::Endpoints(endpoints));
    ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
