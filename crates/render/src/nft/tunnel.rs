//! The guard of the tunnel's entry: what may come in as a packet of another node's pods.
//!
//! Anyone who can send UDP to a node can wrap a packet of his choice in VXLAN, and the kernel's
//! tunnel link takes it from anybody. So each packet for our tunnel is judged before it is
//! unwrapped, when both of its sources can still be seen: it passes when the outer source is a
//! node of the cluster, and the inner one an address that this node may speak for. After the
//! tunnel link, where strict reverse-path filtering would look, nobody knows any more which node a
//! packet came from: a node could speak for the pods of all others; IPv6 has no such filter; and
//! the loosest of a distribution's settings for all links would win.
//!
//! The pairs stand in one set for each length of prefix, the inner source masked to it: nodes
//! mostly have ranges of one size, so a packet costs one or two lookups, and a node one element.
//!
//! Packets of other tunnels on the same port are not judged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::cluster::{VXLAN_PORT, VXLAN_VNI};
use model::{ClusterConfig, Family, Overlay, layout};
use plan::Desired;
use plan::network::Peer;

use super::language::{
    DataType, Datum, Field, Name, Set, SetSpec, Statement, Tuple, Type, Value, Verdict,
};

/// The chain that judges.
pub const TUNNEL_GUARD: &str = "tunnel-guard";
const TUNNEL_NODES: &str = "tunnel-nodes";

/// The guard in one family of outer packets.
pub struct TunnelGuard {
    family: Family,
    /// Outer sources that may be, and where others' tunnels end.
    nodes: BTreeSet<IpAddr>,
    /// Outer source and inner network, by the inner family and the length of its prefix.
    sources: BTreeMap<(Family, u8), BTreeSet<(IpAddr, IpAddr)>>,
}

impl TunnelGuard {
    /// The guard, if pod packets travel in tunnels. While the other nodes are not known nothing
    /// passes (invariant 7): they do not know this node then either.
    pub fn new(family: Family, desired: &Desired, config: &ClusterConfig) -> Option<Self> {
        if config.overlay != Overlay::Vxlan {
            return None;
        }
        let mut guard = Self { family, nodes: BTreeSet::new(), sources: BTreeMap::new() };
        let peers = desired.network.iter().flat_map(|network| network.peers.values());
        for peer in peers.filter(|peer| Family::of(&peer.address) == family) {
            guard.nodes.insert(peer.address);
            for range in inner_sources(peer, config) {
                let shape = (Family::of(&range.addr()), range.prefix_len());
                let pair = (peer.address, range.network());
                guard.sources.entry(shape).or_default().insert(pair);
            }
        }
        Some(guard)
    }

    /// Packets to this node, whichever of its addresses they are for: the tunnel's socket is open
    /// on all.
    pub fn on_input(&self) -> Vec<Statement> {
        vec![tunnel_packet(), judge()]
    }

    /// Packets to the tunnels of other nodes, after destination translation. A Service could have
    /// led them there, and masquerade would make this node their source.
    pub fn on_forward(&self) -> Vec<Statement> {
        let to_node =
            Statement::In { key: vec![Field::DestinationAddress], set: TUNNEL_NODES.into() };
        vec![tunnel_packet(), to_node, judge()]
    }

    /// The rules of [`TUNNEL_GUARD`].
    pub fn rules(&self) -> Vec<Vec<Statement>> {
        let drop = || Statement::Verdict(Verdict::Drop);
        // Whatever source a pod puts on it.
        let mut rules = vec![vec![Statement::FromLink(layout::BRIDGE.into()), drop()]];
        for &(family, prefix_len) in self.sources.keys() {
            let key = vec![Field::SourceAddress, Field::TunnelledSource { family, prefix_len }];
            rules.push(vec![
                Statement::TunnelledIs(family),
                Statement::In { key, set: set_name(family, prefix_len) },
                Statement::Verdict(Verdict::Accept),
            ]);
        }
        rules.push(vec![drop()]);
        rules
    }

    /// The sets that the rules need.
    pub fn sets(&self) -> BTreeMap<Name, Set> {
        let nodes = self.nodes.iter().map(|&node| vec![Value::Address(node)]);
        let mut sets = BTreeMap::from([(TUNNEL_NODES.to_owned(), set(vec![Type::Address], nodes))]);
        for (&(family, prefix_len), pairs) in &self.sources {
            let same = family == self.family;
            let inner = |address| match same {
                true => Value::Address(address),
                false => Value::OtherAddress(address),
            };
            let pairs =
                pairs.iter().map(|&(node, network)| vec![Value::Address(node), inner(network)]);
            let inner_type = if same { Type::Address } else { Type::OtherAddress };
            sets.insert(set_name(family, prefix_len), set(vec![Type::Address, inner_type], pairs));
        }
        sets
    }
}

/// What a node may speak for: its pods; itself, when it answers a pod that asked it at its own
/// address; and the machines of the node network, whose packets to pods it may have been given to
/// route. Whoever is on that network can speak for those without any tunnel.
fn inner_sources<'a>(
    peer: &'a Peer,
    config: &'a ClusterConfig,
) -> impl Iterator<Item = IpNet> + 'a {
    let own = [IpNet::from(peer.address)];
    let ranges = peer.pod_ranges.iter().chain(&config.node_cidrs).copied();
    ranges.chain(own)
}

fn tunnel_packet() -> Statement {
    Statement::TunnelPacket { port: VXLAN_PORT, vni: VXLAN_VNI }
}

fn judge() -> Statement {
    Statement::Verdict(Verdict::Goto(TUNNEL_GUARD.into()))
}

fn set_name(family: Family, prefix_len: u8) -> Name {
    let version = if family == Family::V4 { 4 } else { 6 };
    format!("tunnel-sources-v{version}-{prefix_len}")
}

fn set(key: Vec<Type>, members: impl Iterator<Item = Tuple>) -> Set {
    let spec = SetSpec { key, data: DataType::None, filled_by_packets_max: None };
    Set { spec, elements: members.map(|member| (member, Datum::Member)).collect() }
}
