//! What eBPF forwarding shall know of a node: its pods and the ways to the pods of other nodes.
//! Names only; `kernel::bpf` finds their numbers, and writes the difference to what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use model::attachment::{Attachment, IngressPolicy, PodLink};
use model::{ClusterConfig, Family, MacAddress, layout};
use plan::network::{NetworkPlan, Path};

/// The programs of `bpf/forward.c`, by where they are attached: the node's ends of pods' links,
pub const FROM_POD: &str = "from_pod";
/// the tunnel link,
pub const FROM_TUNNEL: &str = "from_tunnel";
/// and the uplink.
pub const FROM_UPLINK: &str = "from_uplink";

/// All that the programs of one node shall know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The pods of this node, by the node's end of their links.
    pub pods: BTreeMap<String, Pod>,
    /// The pods of other nodes, and nodes, by range.
    pub remotes: BTreeMap<IpNet, Remote>,
    /// This node's end of the VXLAN tunnels, also where it only receives.
    pub tunnel: Option<TunnelEnd>,
    /// The link to the other nodes.
    pub uplink: Option<String>,
}

/// One pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The MAC address inside the pod.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Further sources that it may use.
    pub extra_sources: BTreeSet<IpNet>,
    /// Whether other sources are dropped.
    pub anti_spoofing: bool,
    /// Whether its packets take the kernel's path, since something there has a say in them.
    pub via_stack: bool,
}

/// Pods of another node, or nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// Where the node's tunnel packets come from; for the network of nodes no address.
    pub node: IpAddr,
    /// The way to them.
    pub way: Way,
}

/// The way to a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By the kernel's path: another encapsulation, encryption, or no way at all.
    Stack,
    /// By the kernel's path: nodes, in whose name any other may send through its tunnel.
    Node,
    /// Through the VXLAN link.
    Tunnel {
        /// MAC address of the other node's tunnel link.
        mac: MacAddress,
    },
    /// Through the uplink to a neighbour. IPv6 to a neighbour of IPv4 takes the kernel's path.
    Direct {
        /// The other node.
        next_hop: IpAddr,
    },
}

/// This node's end of the VXLAN tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The tunnel link.
    pub link: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
}

/// All that the programs of this node shall know, from its plan and the records of its pods.
pub fn render(
    plan: &NetworkPlan,
    config: &ClusterConfig,
    attachments: &[Attachment],
) -> Forwarding {
    let no_address = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let network = |range: &IpNet| (*range, Remote { node: no_address, way: Way::Node });
    let mut remotes: BTreeMap<IpNet, Remote> = config.node_cidrs.iter().map(network).collect();
    for peer in plan.peers.values() {
        for own in &peer.addresses {
            remotes.insert(IpNet::from(*own), Remote { node: peer.address, way: Way::Node });
        }
        for range in &peer.pod_ranges {
            let way = match (&peer.path, peer.address_for(range)) {
                (Path::Vxlan { mac }, _) => Way::Tunnel { mac: *mac },
                (Path::Direct, Some(next_hop)) => Way::Direct { next_hop },
                (Path::Direct | Path::Ipip | Path::Wireguard | Path::Native, _) => Way::Stack,
            };
            remotes.insert(*range, Remote { node: peer.address, way });
        }
    }
    let tunnel = plan.ends.vxlan.as_ref().map(|end| TunnelEnd {
        link: layout::VXLAN_LINK.to_owned(),
        vni: end.vni,
        port: end.port,
    });
    Forwarding { pods: pods(attachments), remotes, tunnel, uplink: Some(plan.uplink.clone()) }
}

/// The pods of the records of this node. Links without an end on the node (macvlan) and links of
/// other plugins are left to the kernel.
fn pods(attachments: &[Attachment]) -> BTreeMap<String, Pod> {
    let mut pods = BTreeMap::new();
    for attachment in attachments {
        let (PodLink::Bridge { name, .. } | PodLink::Routed { name }) = &attachment.link else {
            continue;
        };
        let edge = &attachment.edge;
        let pod = Pod {
            mac: attachment.mac,
            addresses: attachment.addresses.iter().map(IpNet::addr).collect(),
            extra_sources: edge.extra_sources.iter().copied().collect(),
            anti_spoofing: edge.anti_spoofing,
            via_stack: is_via_stack(attachment),
        };
        pods.insert(name.clone(), pod);
    }
    pods
}

/// Whether the node's rules or queues act on more of a pod's packets than who sent them: address
/// translation of its edge, a filter, or a limit of its rate, which all work in the kernel's path.
fn is_via_stack(attachment: &Attachment) -> bool {
    let edge = &attachment.edge;
    let filtered =
        edge.firewall.as_ref().is_some_and(|one| one.ingress_policy != IngressPolicy::Open);
    let limited = attachment.bandwidth.ingress.is_some() || attachment.bandwidth.egress.is_some();
    filtered || limited || edge.masquerade.is_some() || !edge.host_ports.is_empty()
}

impl Forwarding {
    /// Leaves the packets of the pods with these addresses to the kernel's path.
    pub fn leave_to_stack(&mut self, addresses: &BTreeSet<IpAddr>) {
        for pod in self.pods.values_mut() {
            pod.via_stack |= !pod.addresses.is_disjoint(addresses);
        }
    }

    /// Which programs are attached to which links.
    pub fn programs(&self) -> impl Iterator<Item = (String, &'static str)> {
        let between_nodes = !self.remotes.is_empty();
        let tunnel = self.tunnel.as_ref().map(|end| (end.link.clone(), FROM_TUNNEL));
        let uplink = self.uplink.clone().map(|link| (link, FROM_UPLINK));
        let others = tunnel.into_iter().chain(uplink).filter(move |_| between_nodes);
        self.pods.keys().map(|link| (link.clone(), FROM_POD)).chain(others)
    }
}

impl Pod {
    /// Its first address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(address) == family)
    }
}

#[cfg(test)]
mod tests {
    use model::Protocol;
    use plan::network::{Peer, TunnelEnds};

    use model::attachment::{Bandwidth, Edge, Firewall, Masquerade, PortMapping, Rate};

    use super::*;

    fn attachment(link: PodLink, edge: Edge, bandwidth: Bandwidth) -> Attachment {
        Attachment {
            link,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.244.1.5/24".parse().expect("a prefix")],
            edge,
            bandwidth,
            ..Attachment::default()
        }
    }

    fn routed() -> PodLink {
        PodLink::Routed { name: "veth1".into() }
    }

    #[test]
    fn a_pod_whose_packets_concern_the_nodes_rules_or_queues_takes_the_kernels_path() {
        let rate = Some(Rate { bits_per_s: 1, burst_bits: 1 });
        let port = PortMapping {
            host_port: 80,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
            snat: false,
            masquerade_all: false,
        };
        let firewall = |ingress_policy| Some(Firewall { ingress_policy });
        let plain = Edge::default();
        let none = Bandwidth::default();
        let rows = [
            ("nothing", plain.clone(), none, false),
            (
                "open",
                Edge { firewall: firewall(IngressPolicy::Open), ..plain.clone() },
                none,
                false,
            ),
            (
                "isolated",
                Edge { firewall: firewall(IngressPolicy::Isolated), ..plain.clone() },
                none,
                true,
            ),
            ("hostPort", Edge { host_ports: vec![port], ..plain.clone() }, none, true),
            (
                "masquerade",
                Edge { masquerade: Some(Masquerade::default()), ..plain.clone() },
                none,
                true,
            ),
            ("slow to send", plain.clone(), Bandwidth { egress: rate, ..none }, true),
            ("slow to receive", plain, Bandwidth { ingress: rate, ..none }, true),
        ];
        for (name, edge, bandwidth, expected) in rows {
            let pods = pods(&[attachment(routed(), edge, bandwidth)]);
            assert_eq!(pods["veth1"].via_stack, expected, "{name}");
        }
    }

    #[test]
    fn each_peer_has_its_way_and_what_the_programs_cannot_do_is_the_kernels() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let mac = MacAddress([2, 0, 0, 0, 0, 9]);
        let rows = [
            (Path::Vxlan { mac }, [Way::Tunnel { mac }; 2]),
            (Path::Direct, [Way::Direct { next_hop: address("192.0.2.2") }, Way::Stack]),
            (Path::Ipip, [Way::Stack; 2]),
            (Path::Wireguard, [Way::Stack; 2]),
            (Path::Native, [Way::Stack; 2]),
        ];
        for (path, expected) in rows {
            let ranges =
                ["10.244.2.0/24", "fd00:2::/64"].map(|text| text.parse().expect("a range"));
            let peer = Peer {
                address: address("192.0.2.2"),
                addresses: vec![address("192.0.2.2")],
                pod_ranges: ranges.to_vec(),
                path: path.clone(),
                avoided: None,
                wireguard_key: None,
            };
            let plan = NetworkPlan {
                pod_ranges: vec![],
                blocks: BTreeSet::new(),
                agent_chooses_addresses: false,
                gateways: vec![],
                mtu: 1450,
                promised_mtu: 1450,
                ends: TunnelEnds::default(),
                peers: [("node2".to_owned(), peer)].into(),
                dns_addresses: vec![],
                uplink: "eth0".into(),
            };
            let remotes = render(&plan, &ClusterConfig::default(), &[]).remotes;
            let node = address("192.0.2.2");
            let expected = expected.map(|way| Remote { node, way });
            let nodes = ["172.30.0.0/24", "192.0.2.2/32"].map(|text| text.parse().expect("one"));
            let owners = [address("::"), node].map(|node| Remote { node, way: Way::Node });
            let all = ranges.into_iter().zip(expected).chain(nodes.into_iter().zip(owners));
            assert_eq!(remotes, all.collect(), "{path:?}");
        }
    }

    #[test]
    fn pods_that_another_backend_translates_for_are_left_to_the_kernels_path() {
        let attached = attachment(routed(), Edge::default(), Bandwidth::default());
        let pods = pods(&[attached]);
        let mut wanted = Forwarding { pods, uplink: Some("eth0".into()), ..Forwarding::default() };
        let end = |text: &str| [text.parse().expect("an address")].into();
        wanted.leave_to_stack(&end("10.244.1.6"));
        assert!(!wanted.pods["veth1"].via_stack);
        wanted.leave_to_stack(&end("10.244.1.5"));
        assert!(wanted.pods["veth1"].via_stack);
    }

    #[test]
    fn links_to_other_nodes_have_programs_where_there_are_other_nodes() {
        let tunnel = TunnelEnd { link: "flatnet.1".into(), vni: 1, port: 4789 };
        let pods = [("veth1".to_owned(), Pod::default())].into();
        let uplink = Some("eth0".to_owned());
        let mut wanted = Forwarding { pods, uplink, tunnel: Some(tunnel), ..Forwarding::default() };
        let place = |link: &str, program| (link.to_owned(), program);
        assert_eq!(wanted.programs().collect::<Vec<_>>(), [place("veth1", FROM_POD)]);
        let node = "192.0.2.2".parse().expect("an address");
        let range = "10.244.2.0/24".parse().expect("a range");
        wanted.remotes = [(range, Remote { node, way: Way::Stack })].into();
        let expected = [("veth1", FROM_POD), ("flatnet.1", FROM_TUNNEL), ("eth0", FROM_UPLINK)];
        let expected = expected.map(|(link, program)| place(link, program));
        assert_eq!(wanted.programs().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn links_that_the_node_has_no_end_of_are_left_out() {
        let macvlan = PodLink::Macvlan { parent: "eth0".into() };
        let foreign = PodLink::Chained { name: Some("veth9".into()), bridge: None };
        let bridge = PodLink::Bridge { name: "veth2".into(), bridge: "cni0".into() };
        let attachments = [macvlan, foreign, bridge, routed()]
            .map(|link| attachment(link, Edge::default(), Bandwidth::default()));
        let pods = pods(&attachments);
        assert_eq!(pods.keys().collect::<Vec<_>>(), ["veth1", "veth2"]);
        let address = "10.244.1.5".parse().ok();
        assert_eq!(pods["veth1"].address(Family::V4), address);
        assert_eq!(pods["veth1"].address(Family::V6), None);
    }
}
