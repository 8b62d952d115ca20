//! What many nodes cost one node: planning, rendering, comparing, and writing into the kernel of a
//! network namespace of its own. Needs root; WireGuard is measured up to the kernel only.
//!
//! ```text
//! ./x bench peers
//! ```

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::net::NetDriver;
use kernel::nft::NftDriver;
use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::layout::UPLINK;
use model::overlay::WIREGUARD_KEY_ANNOTATION;
use model::world::{Kind, Object};
use model::{ClusterConfig, NamespacedName, Node, ObjectMeta, Overlay, WireguardKey, World};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use plan::{Desired, NodeFacts};

/// Nodes besides the one that is measured.
const PEERS: u16 = 500;
/// Of each pure measurement.
const ROUNDS: usize = 21;

fn main() {
    println!("One of {} nodes, IPv4; medians of {ROUNDS} where nothing is written", PEERS + 1);
    let heads =
        ["plan", "render", "compare", "ops", "write all", "read", "one leaves", "memory kB"];
    println!("{:<12}{}", "", heads.map(|head| format!("{head:>12}")).concat());
    for overlay in [Overlay::Vxlan, Overlay::HostGw, Overlay::Wireguard] {
        let namespace = Netns::create().expect("a network namespace (this needs root)");
        namespace.run(|| measure(overlay)).expect("the namespace");
    }
}

fn measure(overlay: Overlay) {
    make_uplink();
    let config = ClusterConfig {
        overlay,
        pod_cidrs: vec!["10.0.0.0/8".parse().expect("a range")],
        service_cidrs: vec!["192.168.0.0/16".parse().expect("a range")],
        node_cidrs: vec!["172.30.0.0/16".parse().expect("a range")],
        ..ClusterConfig::default()
    };
    let mut world = world();
    let facts = NodeFacts {
        name: "node0".into(),
        uplink: UPLINK.into(),
        uplink_mtu: 1500,
        addresses: vec![[172, 30, 0, 1].into()],
        ..NodeFacts::default()
    };
    let before_kb = resident_kb();
    let plan = || plan::node(&world, &config, &facts).0;
    let desired = plan();
    let program = render::render(&desired, &config, &facts);
    let memory_kb = resident_kb().saturating_sub(before_kb);
    let plan_time = median(|| drop(black_box(plan())));
    let render_time = median(|| drop(black_box(render::render(&desired, &config, &facts))));
    let mut all = render::Observed::default();
    let ops = render::diff(&program, &all);
    for op in &ops {
        all.apply(op).expect("the fake takes it");
    }
    let compare_time = median(|| assert!(render::diff(&program, &all).is_empty()));
    let written = (overlay != Overlay::Wireguard).then(|| {
        let mut node = Kernel::open();
        let write_all = node.turn(&desired, &config, &facts);
        let start = Instant::now();
        black_box((node.net.observe().expect("read"), node.nft.observe().expect("read")));
        let read = start.elapsed();
        world.remove(Kind::Node, &NamespacedName::new("", "node250"));
        let fewer = plan::node(&world, &config, &facts).0;
        (write_all, read, node.turn(&fewer, &config, &facts))
    });
    let times = written.map_or([None; 3], |(all, read, one)| [Some(all), Some(read), Some(one)]);
    let [write_all, read, one] = times.map(|time| time.map_or("-".into(), text));
    println!(
        "{overlay:<12}{:>12}{:>12}{:>12}{:>12}{write_all:>12}{read:>12}{one:>12}{memory_kb:>12}",
        text(plan_time),
        text(render_time),
        text(compare_time),
        ops.len(),
    );
}

struct Kernel {
    net: NetDriver,
    nft: NftDriver,
}

impl Kernel {
    fn open() -> Self {
        let net = NetDriver::open().expect("links");
        Self { net, nft: NftDriver::open().expect("rules") }
    }

    /// One turn of the loop, without planning.
    fn turn(&mut self, desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> Duration {
        let start = Instant::now();
        let program = render::render(desired, config, facts);
        let rules = self.nft.observe().expect("read");
        for op in render::nft::diff(&program.nft, &rules) {
            self.nft.apply(&op).expect("written");
        }
        let links = self.net.observe().expect("read");
        for op in render::net::diff(&program.net, &links) {
            self.net.apply(&op).expect("written");
        }
        start.elapsed()
    }
}

fn make_uplink() {
    let mut net = Netlink::open().expect("a socket");
    net.create_veth(&VethSpec::new(UPLINK, "far")).expect("an uplink");
    for name in ["lo", UPLINK, "far"] {
        let index = net.require_link(name).expect("the link").index;
        net.change_link(index, &LinkChange::up()).expect("up");
    }
    let index = net.require_link(UPLINK).expect("the uplink").index;
    net.add_address(index, "172.30.0.1/16".parse().expect("a prefix")).expect("an address");
}

fn world() -> World {
    let mut world = World::default();
    for number in 0..=PEERS {
        let [high, low] = number.to_be_bytes();
        let mut key = [7; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let mut metadata = ObjectMeta { name: format!("node{number}"), ..ObjectMeta::default() };
        let key = WireguardKey(key).to_string();
        metadata.annotations.insert(WIREGUARD_KEY_ANNOTATION.into(), key);
        let range = format!("10.{high}.{low}.0/24").parse().expect("a range");
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 30, 0, 1)) + u32::from(number));
        let address = address.to_string();
        let kind = "InternalIP".into();
        world.set(Object::Node(Arc::new(Node {
            metadata,
            spec: NodeSpec { pod_cidrs: vec![range], ..NodeSpec::default() },
            status: NodeStatus {
                addresses: vec![NodeAddress { kind, address }],
                ..NodeStatus::default()
            },
        })));
    }
    world
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn text(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
