//! The guards between nodes: what may come in as a packet of another node's pods, and what may
//! leave as one.
//!
//! Anyone who can send to a node can wrap a packet of his choice in VXLAN or IP in IP, and the
//! kernel's tunnel links take it from anybody. So each packet for our tunnels is judged before it
//! is unwrapped, when both of its sources can still be seen: it passes when the outer source is a
//! node of the cluster, and the inner one an address that this node may speak for. After the
//! tunnel link, where strict reverse-path filtering would look, nobody knows any more which node a
//! packet came from: a node could speak for the pods of all others; IPv6 has no such filter; and
//! the loosest of a distribution's settings for all links would win.
//!
//! The pairs stand in one set for each length of prefix, the inner source masked to it: nodes
//! mostly have ranges of one size, so a packet costs one or two lookups, and a node one element.
//!
//! VXLAN of others on the same port is not judged. IP in IP has nothing to tell networks apart:
//! all of it that is for this node is judged where it is one of the cluster's ways. WireGuard
//! knows by its keys who speaks for whom; its port is open to nodes alone.
//!
//! The guard of encryption is strict: packets between pods of different nodes that are to be
//! encrypted leave by the WireGuard link or not at all, and arrive by it or not at all. It needs
//! no key, no link and no peer to stand: it holds before the first handshake, and while the agent
//! is down (invariant 7). Packets to a node's own address are no pod's, and not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::{ClusterConfig, Family, Overlay, Protocol, layout};
use plan::Desired;
use plan::network::{Path, Peer};

use super::language::{
    DataType, Datum, Field, Name, Set, SetSpec, Statement, Tuple, Type, Value, Verdict,
};

/// The chain that judges VXLAN packets.
pub const TUNNEL_GUARD: &str = "tunnel-guard";
const IPIP_GUARD: &str = "ipip-guard";
const WIREGUARD_GUARD: &str = "wireguard-guard";
const TUNNEL_NODES: &str = "tunnel-nodes";
/// The protocol numbers of a packet of each family within another (RFC 2003, RFC 2473).
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;

/// A rule.
type Statements = Vec<Statement>;

/// The guards in one family of outer packets.
pub struct TunnelGuard<'a> {
    family: Family,
    config: &'a ClusterConfig,
    desired: &'a Desired,
    /// Ways whose packets may come to this node.
    ways: BTreeSet<Overlay>,
    /// Outer sources that may be, and where others' tunnels end.
    nodes: BTreeSet<IpAddr>,
    /// Outer source and inner network, by the inner family and the length of its prefix.
    sources: BTreeMap<(Family, u8), BTreeSet<(IpAddr, IpAddr)>>,
}

impl<'a> TunnelGuard<'a> {
    /// The guards. While the other nodes are not known nothing passes (invariant 7): they do not
    /// know this node then either.
    pub fn new(family: Family, desired: &'a Desired, config: &'a ClusterConfig) -> Self {
        let mut ways = config.also_receive.clone();
        ways.insert(config.overlay);
        let network = desired.network.as_ref();
        let peers = || network.into_iter().flat_map(|network| network.peers.values());
        ways.extend(peers().map(|peer| peer.path.overlay()));
        let (nodes, sources) = (BTreeSet::new(), BTreeMap::new());
        let mut guard = Self { family, config, desired, ways, nodes, sources };
        for peer in peers() {
            guard.add_peer(peer);
        }
        guard
    }

    fn add_peer(&mut self, peer: &Peer) {
        let in_family = |address: &&IpAddr| Family::of(address) == self.family;
        for &address in peer.addresses.iter().filter(in_family) {
            self.nodes.insert(address);
            // What is to be encrypted is not taken from other tunnels, but during a change.
            let encrypted = peer.path == Path::Wireguard;
            if encrypted && self.config.also_receive.is_empty() {
                continue;
            }
            for range in inner_sources(peer, self.config) {
                let shape = (Family::of(&range.addr()), range.prefix_len());
                let pair = (address, range.network());
                self.sources.entry(shape).or_default().insert(pair);
            }
        }
    }

    /// Packets to this node, whichever of its addresses they are for: the tunnels' sockets are
    /// open on all.
    pub fn on_input(&self) -> Vec<Statements> {
        let judged = self.kinds().into_iter().map(|(kind, chain)| [kind, vec![goto(chain)]]);
        let mut rules: Vec<Statements> = judged.map(|rule| rule.concat()).collect();
        rules.extend(self.plain_arrivals());
        rules
    }

    /// Packets to the tunnels of other nodes, after destination translation. A Service could have
    /// led them there, and masquerade would make this node their source.
    pub fn on_forward(&self) -> Vec<Statements> {
        let to_node =
            || Statement::In { key: vec![Field::DestinationAddress], set: TUNNEL_NODES.into() };
        let judged = self.kinds().into_iter().map(|(kind, chain)| {
            let rule = [kind, vec![to_node(), goto(chain)]];
            rule.concat()
        });
        judged.chain(self.plain_departures()).chain(self.plain_arrivals()).collect()
    }

    /// Packets of the node itself.
    pub fn on_output(&self) -> Vec<Statements> {
        self.plain_departures()
    }

    /// The chains that judge, with their rules.
    pub fn chains(&self) -> Vec<(&'static str, Vec<Statements>)> {
        let kinds = self.kinds().into_iter();
        kinds.map(|(_, chain)| (chain, self.rules(chain))).collect()
    }

    /// The sets that the rules need.
    pub fn sets(&self) -> BTreeMap<Name, Set> {
        if self.kinds().is_empty() {
            return BTreeMap::new();
        }
        let nodes = self.nodes.iter().map(|&node| vec![Value::Address(node)]);
        let outer = Type::Address(self.family);
        let mut sets = BTreeMap::from([(TUNNEL_NODES.to_owned(), set(vec![outer], nodes))]);
        for (&(family, prefix_len), pairs) in &self.sources {
            let pairs = pairs
                .iter()
                .map(|&(node, network)| vec![Value::Address(node), Value::Address(network)]);
            let types = vec![outer, Type::Address(family)];
            sets.insert(set_name(family, prefix_len), set(types, pairs));
        }
        sets
    }

    /// What our tunnels' packets are told by, and the chain that judges them.
    fn kinds(&self) -> Vec<(Statements, &'static str)> {
        let tunnels = &self.config.tunnels;
        let mut kinds = Vec::new();
        if self.ways.contains(&Overlay::Vxlan) {
            let (port, vni) = (tunnels.vxlan_port, tunnels.vxlan_vni);
            kinds.push((vec![Statement::TunnelPacket { port, vni }], TUNNEL_GUARD));
        }
        if self.ways.contains(&Overlay::Ipip) {
            let protocol = match self.family {
                Family::V4 => IPPROTO_IPIP,
                Family::V6 => IPPROTO_IPV6,
            };
            kinds.push((vec![Statement::ProtocolIs(protocol)], IPIP_GUARD));
        }
        if self.ways.contains(&Overlay::Wireguard) {
            let udp = Statement::ProtocolIs(Protocol::Udp.number());
            let port = Statement::PortIs(tunnels.wireguard_port);
            kinds.push((vec![udp, port], WIREGUARD_GUARD));
        }
        kinds
    }

    fn rules(&self, chain: &str) -> Vec<Statements> {
        // Whatever source a pod puts on it.
        let mut rules = vec![vec![Statement::FromLink(layout::BRIDGE.into()), drop()]];
        let accept = || Statement::Verdict(Verdict::Accept);
        if chain == WIREGUARD_GUARD {
            let key = vec![Field::SourceAddress];
            rules.push(vec![Statement::In { key, set: TUNNEL_NODES.into() }, accept()]);
        }
        for &(family, prefix_len) in self.sources.keys() {
            let set = set_name(family, prefix_len);
            let pair = |inner| Statement::In { key: vec![Field::SourceAddress, inner], set };
            if chain == TUNNEL_GUARD {
                let inner = Field::TunnelledSource { family, prefix_len };
                rules.push(vec![Statement::TunnelledIs(family), pair(inner), accept()]);
            } else if chain == IPIP_GUARD && family == self.family {
                rules.push(vec![pair(Field::IpipSource { prefix_len }), accept()]);
            }
        }
        rules.push(vec![drop()]);
        rules
    }

    /// To pods of other nodes, past the WireGuard link.
    fn plain_departures(&self) -> Vec<Statements> {
        let mut elsewhere = self.not_own_pods(Field::DestinationAddress);
        if elsewhere.is_empty() {
            // Not known yet: pods of this node are behind the bridge.
            elsewhere.push(Statement::NotToLink(layout::BRIDGE.into()));
        }
        let rule = |range| {
            let mut rule = vec![in_range(Field::DestinationAddress, range, false)];
            rule.extend(elsewhere.iter().cloned());
            rule.extend([Statement::NotToLink(layout::WIREGUARD_LINK.into()), drop()]);
            rule
        };
        self.encrypted().into_iter().map(rule).collect()
    }

    /// From pods of other nodes to pods, past the WireGuard link.
    fn plain_arrivals(&self) -> Vec<Statements> {
        let pods = self.config.pod_cidrs.iter().copied();
        let pods = pods.filter(|range| Family::of(&range.addr()) == self.family);
        let Some(pods) = pods.min() else { return vec![] };
        let mut elsewhere = self.not_own_pods(Field::SourceAddress);
        if elsewhere.is_empty() {
            elsewhere.push(Statement::NotFromLink(layout::BRIDGE.into()));
        }
        let rule = |range| {
            let mut rule = vec![in_range(Field::SourceAddress, range, false)];
            rule.extend(elsewhere.iter().cloned());
            rule.extend([
                in_range(Field::DestinationAddress, pods, false),
                Statement::NotFromLink(layout::WIREGUARD_LINK.into()),
                drop(),
            ]);
            rule
        };
        self.encrypted().into_iter().map(rule).collect()
    }

    /// The ranges whose packets to and from other nodes are to be encrypted: all pods of an
    /// encrypted cluster, known nodes or not; else those of peers with which it was agreed. While a
    /// cluster changes to encryption or from it, nodes that have not changed yet are still heard,
    /// and what is on its way past a route that is being replaced still goes.
    fn encrypted(&self) -> Vec<IpNet> {
        if !self.config.also_receive.is_empty() {
            return vec![];
        }
        let peers = self.desired.network.iter().flat_map(|network| network.peers.values());
        let agreed = peers.filter(|peer| peer.path == Path::Wireguard);
        let ranges: BTreeSet<IpNet> = match self.config.overlay {
            Overlay::Wireguard => self.config.pod_cidrs.iter().copied().collect(),
            _ => agreed.flat_map(|peer| peer.pod_ranges.iter().copied()).collect(),
        };
        ranges.into_iter().filter(|range| Family::of(&range.addr()) == self.family).collect()
    }

    /// In none of this node's ranges.
    fn not_own_pods(&self, field: Field) -> Vec<Statement> {
        let own = self.desired.network.iter().flat_map(|network| &network.pod_ranges);
        own.filter(|range| Family::of(&range.addr()) == self.family)
            .map(|range| in_range(field, *range, true))
            .collect()
    }
}

/// What a node may speak for: its pods; itself, when it answers a pod that asked it at its own
/// address; and the machines of the node network, whose packets to pods it may have been given to
/// route. Whoever is on that network can speak for those without any tunnel.
fn inner_sources<'a>(
    peer: &'a Peer,
    config: &'a ClusterConfig,
) -> impl Iterator<Item = IpNet> + 'a {
    let own = peer.addresses.iter().copied().map(IpNet::from);
    let ranges = peer.pod_ranges.iter().chain(&config.node_cidrs).copied();
    ranges.chain(own)
}

fn in_range(field: Field, range: IpNet, outside: bool) -> Statement {
    Statement::InRange { field, range, outside }
}

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}

fn set_name(family: Family, prefix_len: u8) -> Name {
    let version = if family == Family::V4 { 4 } else { 6 };
    format!("tunnel-sources-v{version}-{prefix_len}")
}

fn set(key: Vec<Type>, members: impl Iterator<Item = Tuple>) -> Set {
    let spec = SetSpec { key, data: DataType::None, filled_by_packets_max: None };
    Set { spec, elements: members.map(|member| (member, Datum::Member)).collect() }
}

#[cfg(test)]
mod tests {
    use plan::network::{NetworkPlan, TunnelEnds};

    use super::*;

    /// Packets to and from this node's own pods are not for the tunnel, also where the pods have
    /// addresses of blocks of pools.
    #[test]
    fn in_an_encrypted_cluster_every_own_range_is_spared() {
        let own = ["10.244.1.0/24", "10.244.200.0/28"].map(|text| text.parse().expect("a range"));
        let network = NetworkPlan {
            pod_ranges: own.to_vec(),
            blocks: [own[1]].into(),
            agent_chooses_addresses: true,
            gateways: vec![],
            mtu: 1420,
            promised_mtu: 1420,
            ends: TunnelEnds::default(),
            peers: BTreeMap::new(),
            dns_addresses: vec![],
            uplink: "eth0".into(),
        };
        let config = ClusterConfig { overlay: Overlay::Wireguard, ..ClusterConfig::default() };
        let rows = [(Some(network), own.len()), (None, 0)];
        for (network, expected) in rows {
            let desired = Desired { network, services: BTreeMap::new() };
            let guard = TunnelGuard::new(Family::V4, &desired, &config);
            let guards = [
                (Field::DestinationAddress, guard.plain_departures()),
                (Field::SourceAddress, guard.plain_arrivals()),
            ];
            for (field, rules) in guards {
                let [rule] = &rules[..] else { panic!("{rules:?}") };
                let spared =
                    own.iter().filter(|range| rule.contains(&in_range(field, **range, true)));
                assert_eq!(spared.count(), expected, "{rule:?}");
                assert_eq!(rule.last(), Some(&drop()));
            }
        }
    }
}
