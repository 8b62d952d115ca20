//! What eBPF forwarding shall know of a node: its pods and the ways to the pods of other nodes.
//! Names only; `kernel::bpf` finds their numbers, and writes the difference to what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::attachment::{Attachment, IngressPolicy, PodLink};
use model::{Family, MacAddress, layout};
use plan::network::{NetworkPlan, Path};

/// All that the programs of one node shall know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The pods of this node, by the node's end of their links.
    pub pods: BTreeMap<String, Pod>,
    /// The pods of other nodes, by range.
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

/// Pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// Where the node's tunnel packets come from.
    pub node: IpAddr,
    /// The way to them.
    pub way: Way,
}

/// The way to pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By the kernel's path: another encapsulation, encryption, or no way at all.
    Stack,
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
pub fn render(plan: &NetworkPlan, attachments: &[Attachment]) -> Forwarding {
    let mut remotes = BTreeMap::new();
    for peer in plan.peers.values() {
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
            let remotes = render(&plan, &[]).remotes;
            let node = address("192.0.2.2");
            let expected = expected.map(|way| Remote { node, way });
            assert_eq!(remotes, ranges.into_iter().zip(expected).collect(), "{path:?}");
        }
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
