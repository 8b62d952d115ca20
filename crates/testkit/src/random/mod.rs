//! Small random worlds: few names and few addresses, so that collisions of every kind happen.
//!
//! Everything is decoded from bytes ([`Choices`]): a test library shrinks bytes towards zero, and
//! zero is always the plainest choice. The simulator and [`crate::agreement`] draw their bytes from
//! a seed.

mod packets;
mod services;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::kinds::ZONE_LABEL;
use model::world::Object;
use model::{ClusterConfig, Family, PortRange, Protocol, Unreachable, World};
use plan::NodeFacts;

use crate::objects;
pub use packets::packet;
pub use services::services;

/// Nodes of a random world.
pub const NODES: u8 = 3;

/// What a random cluster is configured with: an IPv4 one without options is the plainest.
pub fn config(choices: &mut Choices<'_>) -> ClusterConfig {
    let families: [&[Family]; 4] =
        [&[Family::V4], &[Family::V4, Family::V6], &[Family::V6], &[Family::V6, Family::V4]];
    let mut config = objects::config_of(choices.one_of(&families));
    let ranges = |texts: &[&str]| -> Vec<IpNet> {
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    };
    config.external_ip_ranges = match choices.below(3) {
        0 => ranges(&["198.51.100.0/24", "2001:db8:51::/48"]),
        1 => ranges(&["198.51.100.20/31"]),
        _ => vec![],
    };
    config.node_port_addresses = match choices.below(4) {
        0 | 1 => vec![],
        2 => ranges(&["172.30.0.0/24", "fd00:172:30::/64"]),
        _ => ranges(&["172.31.0.0/24", "::/0"]),
    };
    config.masquerade_all = choices.once_in(4);
    config.masquerade_ports = choices.once_in(3).then(|| PortRange::new(40_000, 49_999)).flatten();
    config.answer_ping = choices.once_in(4);
    config
}

/// What the node that is looked at knows of itself: at times it has a second address.
pub fn facts(choices: &mut Choices<'_>, config: &ClusterConfig) -> NodeFacts {
    let mut facts = objects::facts(1, config);
    if choices.once_in(3) {
        let more = ["172.31.0.2", "fd00:172:31::2"];
        let more = more.iter().filter_map(|text| text.parse::<IpAddr>().ok());
        let is_of_cluster =
            |address: &IpAddr| objects::families(config).any(|one| one == Family::of(address));
        facts.addresses.extend(more.filter(is_of_cluster));
    }
    facts
}

/// The node objects of random worlds, some of them with zones.
pub fn nodes(choices: &mut Choices<'_>, config: &ClusterConfig) -> Vec<Object> {
    let mut node = |number| {
        let mut node = objects::node(number, config);
        let zone = choices.one_of(&["", "a", "b"]);
        if !zone.is_empty() {
            node.metadata.labels.insert(ZONE_LABEL.into(), zone.into());
        }
        Object::Node(node.into())
    };
    (1..=NODES).map(&mut node).collect()
}

/// What does not answer the node that is looked at: most of the time nothing, else a node, some
/// endpoints by their TCP ports, or both.
pub fn unreachable(choices: &mut Choices<'_>, world: &World) -> Unreachable {
    let mut unreachable = Unreachable::default();
    let wanted = choices.below(4);
    if wanted & 1 != 0 {
        unreachable.nodes.insert(format!("node{}", 1 + choices.below(NODES.into())));
    }
    if wanted & 2 != 0 {
        for slice in world.slices() {
            let tcp = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            for port in tcp.filter_map(|port| port.port) {
                let addresses = slice.endpoints.iter().filter_map(|endpoint| endpoint.address());
                let silent = addresses.filter(|_| choices.once_in(2));
                unreachable.endpoints.extend(silent.map(|address| SocketAddr::new(address, port)));
            }
        }
    }
    unreachable
}

/// Decisions read from bytes; past their end every decision is the first one.
#[derive(Debug)]
pub struct Choices<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl<'a> Choices<'a> {
    /// Decisions from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter() }
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.bytes.next().copied().unwrap_or_default()) % count.max(1)
    }

    /// True once in `count` times.
    pub fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == count.saturating_sub(1)
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Bytes from a seed (splitmix64, public domain, S. Vigna).
pub fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut generator = Generator::new(seed);
    (0..count).map(|_| generator.next() as u8).collect()
}

/// A small deterministic generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Generator {
    state: u64,
}

impl Generator {
    /// A generator with its own sequence for every seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}
