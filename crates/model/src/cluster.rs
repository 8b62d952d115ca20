//! What is configured once for a whole cluster, and the check of its address ranges.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ebpf_maps::{EBPF_MAP_ENTRIES_MAX, EBPF_MAP_ENTRIES_MIN};
use crate::node_local_dns;
use crate::pool::{self, PoolError};
use crate::{
    ConntrackConfig, DnsFastPath, EbpfMapSizes, Family, LoadBalancerMode, Overlay, Pool, PortRange,
    ServiceAcceleration, TunnelConfig,
};

/// The configuration that all programs of a cluster share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// The cluster's name on this machine.
    pub name: String,
    /// Ranges that nodes get their pod ranges from, at most one a family.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of Service addresses, at most one a family.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges of the nodes' own addresses, at most one a family.
    pub node_cidrs: Vec<IpNet>,
    /// Prefix length of one node's IPv4 pod range.
    pub node_prefix_length: u8,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// How pod packets travel between nodes.
    pub overlay: Overlay,
    /// Nodes of one L2 segment send each other pod packets directly, whatever tunnel `overlay`
    /// is; what is encrypted stays so. Calico's `CrossSubnet`, flannel's `DirectRouting`.
    #[serde(default)]
    pub cross_subnet: bool,
    /// Ways besides `overlay` whose packets are taken, while a cluster changes from one to
    /// another. Without loss: first the new one here, on all nodes; then the new one as `overlay`
    /// and the old one here; when all nodes have that, nothing here. While it is not empty,
    /// WireGuard is not strict.
    #[serde(default)]
    pub also_receive: BTreeSet<Overlay>,
    /// What tunnels of all nodes must agree on.
    #[serde(default)]
    pub tunnels: TunnelConfig,
    /// Pools of pod addresses besides the nodes' own ranges: parts of `pod_cidrs` that no node
    /// gets.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Whether pods may choose their addresses by annotations (`ipam::fixed`). Who may create pods
    /// may then take any address of the node's ranges that is free, also one that others trust.
    #[serde(default)]
    pub pod_address_annotations: bool,
    /// The DNS suffix of the cluster, without a final dot.
    pub cluster_domain: String,
    /// Where cluster DNS answers on every node besides the Service's address, at most one address
    /// a family (NodeLocal DNSCache, KEP-1024); empty: nowhere.
    #[serde(default = "node_local_dns::usual")]
    pub node_local_dns: Vec<IpAddr>,
    /// Whether the kernel answers for cluster DNS at the links of pods.
    #[serde(default)]
    pub dns_fast_path: DnsFastPath,
    /// What implements Services in the kernels of nodes.
    #[serde(default)]
    pub service_backend: ServiceBackend,
    /// Which way answers go to clients outside of the cluster. All but `snat` needs the backend
    /// `ebpf` on all nodes.
    #[serde(default)]
    pub load_balancer_mode: LoadBalancerMode,
    /// With Services in eBPF: whether what clients outside send to endpoints on other nodes is sent
    /// on at the hook XDP of the uplink. Rules of others on the node see the beginnings of flows
    /// alone then.
    #[serde(default)]
    pub service_acceleration: ServiceAcceleration,
    /// Ranges that hold the node addresses at which node ports are open; empty: all of them.
    /// kube-proxy's `--nodeport-addresses`.
    #[serde(default)]
    pub node_port_addresses: Vec<IpNet>,
    /// Ranges that `externalIPs` of Services may be in; empty: none is heeded, since whoever may
    /// write a Service could take over any address with them (CVE-2020-8554).
    #[serde(default)]
    pub external_ip_ranges: Vec<IpNet>,
    /// Whether a ClusterIP answers an ICMP echo while the Service has a ready endpoint.
    #[serde(default)]
    pub answer_ping: bool,
    /// Masquerade also what pods send to ClusterIPs. kube-proxy's `--masquerade-all`.
    #[serde(default)]
    pub masquerade_all: bool,
    /// Ranges outside of the cluster that know the way to pods: what these send there keeps its
    /// source. ip-masq-agent's `nonMasqueradeCIDRs`.
    #[serde(default)]
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// The source ports of what a node masquerades and sends outside of the cluster; none: any that
    /// Linux chooses. iptables' `--to-ports`, Calico's `natPortRange`.
    #[serde(default)]
    pub masquerade_ports: Option<PortRange>,
    /// Whether nodes and endpoints that do not answer get no new connections through Services.
    #[serde(default = "yes")]
    pub failover: bool,
    /// How much the maps of the eBPF backend take.
    #[serde(default)]
    pub ebpf_maps: EbpfMapSizes,
    /// What connection tracking of nodes is set to.
    #[serde(default)]
    pub conntrack: ConntrackConfig,
    /// With Services in eBPF: whether packets between pods go past the kernel's own path too. Rules
    /// of others in that path do not see them then.
    #[serde(default = "yes")]
    pub ebpf_forwarding: bool,
    /// With that: whether what pods of one node write to each other over TCP goes past
    /// TCP. Captures and counters of packets miss it then.
    #[serde(default)]
    pub socket_fast_path: bool,
}

const fn yes() -> bool {
    true
}

/// What implements Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceBackend {
    /// The best one that the node's kernel has.
    #[default]
    Auto,
    /// eBPF programs at sockets and links.
    Ebpf,
    /// An nf_tables table.
    Nftables,
    /// iptables rules, legacy or nft variant.
    Iptables,
    /// The kernel's IP virtual server.
    Ipvs,
}

impl ServiceBackend {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Ebpf, Self::Nftables, Self::Iptables, Self::Ipvs];

    /// The name, as in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl fmt::Display for ServiceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No backend has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service backends are auto, ebpf, nftables, iptables and ipvs")]
pub struct UnknownServiceBackend;

impl FromStr for ServiceBackend {
    type Err = UnknownServiceBackend;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(UnknownServiceBackend)
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        let range = |text: &str| text.parse().into_iter().collect();
        Self {
            name: "flatnet".into(),
            pod_cidrs: range("10.244.0.0/16"),
            service_cidrs: range("10.96.0.0/16"),
            node_cidrs: range("172.30.0.0/24"),
            node_prefix_length: 24,
            node_port_range: (30000, 32767),
            overlay: Overlay::default(),
            cross_subnet: false,
            also_receive: BTreeSet::new(),
            tunnels: TunnelConfig::default(),
            pools: vec![],
            pod_address_annotations: false,
            cluster_domain: "cluster.local".into(),
            node_local_dns: node_local_dns::usual(),
            dns_fast_path: DnsFastPath::Auto,
            service_backend: ServiceBackend::Auto,
            load_balancer_mode: LoadBalancerMode::Snat,
            service_acceleration: ServiceAcceleration::Disabled,
            node_port_addresses: vec![],
            external_ip_ranges: vec![],
            answer_ping: false,
            masquerade_all: false,
            non_masquerade_cidrs: vec![],
            masquerade_ports: None,
            failover: true,
            ebpf_maps: EbpfMapSizes::default(),
            conntrack: ConntrackConfig::default(),
            ebpf_forwarding: true,
            socket_fast_path: false,
        }
    }
}

impl ClusterConfig {
    /// Whether the agent is to be asked which addresses a pod gets.
    pub fn agent_chooses_addresses(&self) -> bool {
        self.pod_address_annotations || !self.pools.is_empty()
    }

    /// The address of cluster DNS: the tenth of the first service range of the family.
    pub fn dns_address(&self, family: Family) -> Option<IpAddr> {
        self.service_address(family, 10)
    }

    /// All addresses of cluster DNS of a family, the Service's first: none without Services of it.
    pub fn dns_addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + use<'_> {
        let of_service = self.dns_address(family);
        let further = self.node_local_dns.iter().copied();
        let further = further.filter(move |one| of_service.is_some() && Family::of(one) == family);
        of_service.into_iter().chain(further)
    }

    /// Whether cluster DNS answers at an address.
    pub fn is_dns_address(&self, address: IpAddr) -> bool {
        self.dns_addresses(Family::of(&address)).any(|own| own == address)
    }

    /// The address of the `default/kubernetes` Service: the first of the service range.
    pub fn kubernetes_address(&self, family: Family) -> Option<IpAddr> {
        self.service_address(family, 1)
    }

    /// The family of outer packets of VXLAN and WireGuard, where a node has addresses of both:
    /// that of the first range of nodes.
    pub fn outer_family(&self) -> Family {
        self.node_cidrs.first().map_or(Family::V4, |range| Family::of(&range.addr()))
    }

    /// Whether an address belongs to pods.
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.pod_cidrs.iter().any(|range| range.contains(&address))
    }

    /// Whether node ports are open at an address of a node. Never at a loopback address.
    pub fn has_node_ports_at(&self, address: IpAddr) -> bool {
        let ranges = &self.node_port_addresses;
        !address.is_loopback()
            && (ranges.is_empty() || ranges.iter().any(|range| range.contains(&address)))
    }

    fn service_address(&self, family: Family, index: u128) -> Option<IpAddr> {
        let range = self.service_cidrs.iter().find(|range| Family::of(&range.addr()) == family)?;
        nth_address(range, index)
    }

    /// Checks the three ranges, for a cluster of `nodes` nodes, what tunnels need, source ports,
    /// and sizes of maps.
    ///
    /// # Errors
    /// Every fault found, each naming the flag to change: overlaps, a range too small for the
    /// nodes or for the cluster's own Services, a family without its partner range.
    pub fn check_ranges(&self, nodes: usize) -> Result<(), Vec<RangeError>> {
        let mut errors = Vec::new();
        let named = [
            ("--pod-cidr", &self.pod_cidrs),
            ("--service-cidr", &self.service_cidrs),
            ("--node-cidr", &self.node_cidrs),
        ];
        for (flag, ranges) in named {
            if ranges.is_empty() {
                errors.push(RangeError::Missing { flag });
            }
            for range in ranges.iter().filter(|range| range.trunc() != **range) {
                errors.push(RangeError::HostBits { flag, range: *range });
            }
            for range in ranges.iter().filter(|range| is_special(range)) {
                errors.push(RangeError::Special { flag, range: *range });
            }
        }
        for (index, (flag, ranges)) in named.iter().enumerate() {
            for (other_flag, others) in &named[index + 1..] {
                for range in ranges.iter() {
                    for other in others.iter().filter(|other| overlap(range, other)) {
                        errors.push(RangeError::Overlap {
                            flag,
                            range: *range,
                            other_flag,
                            other: *other,
                        });
                    }
                }
            }
        }
        self.check_sizes(nodes, &mut errors);
        let ranges = named.map(|(_, ranges)| ranges.as_slice());
        errors.extend(
            node_local_dns::faults(&self.node_local_dns, &ranges)
                .map(|(address, fault)| RangeError::NodeLocalDns { address, fault }),
        );
        errors.extend(pool::check(&self.pools, &self.pod_cidrs).err().map(RangeError::Pools));
        errors.extend(self.tunnels.faults().map(|fault| RangeError::Tunnels { fault }));
        let ports = self.masquerade_ports;
        let fault = ports.and_then(|ports| ports.fault_as_sources(self.node_port_range));
        errors.extend(fault.map(|fault| RangeError::MasqueradePorts { fault }));
        errors.extend(self.ebpf_maps.impossible().map(|map| RangeError::EbpfMaps { map }));
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn check_sizes(&self, nodes: usize, errors: &mut Vec<RangeError>) {
        for range in self.pod_cidrs.iter().filter(|range| range.addr().is_ipv4()) {
            let length = range.prefix_len();
            let blocks = match self.node_prefix_length.checked_sub(length) {
                Some(bits) if self.node_prefix_length <= 30 => 1_u128 << bits,
                _ => 0,
            };
            if blocks < nodes as u128 {
                let node_prefix_length = self.node_prefix_length;
                errors.push(RangeError::PodRangeTooSmall {
                    range: *range,
                    node_prefix_length,
                    nodes,
                });
            }
        }
        for range in &self.service_cidrs {
            if address_count(range) < 16 {
                errors.push(RangeError::TooSmall {
                    flag: "--service-cidr",
                    range: *range,
                    needed: 16,
                });
            }
        }
        for range in &self.node_cidrs {
            // Network, host leg, nodes and broadcast.
            let needed = nodes as u128 + 3;
            if address_count(range) < needed {
                errors.push(RangeError::TooSmall { flag: "--node-cidr", range: *range, needed });
            }
        }
    }
}

/// Why the configured ranges cannot work. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// No range given.
    #[error("{flag} names no range: give at least one, such as 10.244.0.0/16")]
    Missing {
        /// The flag.
        flag: &'static str,
    },
    /// Bits below the prefix are set.
    #[error("{flag} {range} has bits set below its prefix: write {}", range.trunc())]
    HostBits {
        /// The flag.
        flag: &'static str,
        /// Its value.
        range: IpNet,
    },
    /// The range has a meaning of its own.
    #[error(
        "{flag} {range} lies in a range with a meaning of its own (loopback, link-local, multicast or reserved): use a private one (RFC 1918)"
    )]
    Special {
        /// The flag.
        flag: &'static str,
        /// Its value.
        range: IpNet,
    },
    /// Two ranges share addresses.
    #[error(
        "{flag} {range} overlaps {other_flag} {other}: pods, Services and nodes need ranges of their own; change one of the two"
    )]
    Overlap {
        /// One flag.
        flag: &'static str,
        /// Its value.
        range: IpNet,
        /// The other flag.
        other_flag: &'static str,
        /// Its value.
        other: IpNet,
    },
    /// The pod range has too few node blocks.
    #[error(
        "--pod-cidr {range} is too small: {nodes} nodes need a /{node_prefix_length} each; use a shorter prefix or fewer nodes"
    )]
    PodRangeTooSmall {
        /// The range.
        range: IpNet,
        /// Prefix length of one node's block.
        node_prefix_length: u8,
        /// Number of nodes.
        nodes: usize,
    },
    /// A range has too few addresses.
    #[error(
        "{flag} {range} is too small: at least {needed} addresses are needed; use a shorter prefix"
    )]
    TooSmall {
        /// The flag.
        flag: &'static str,
        /// Its value.
        range: IpNet,
        /// Addresses needed.
        needed: u128,
    },
    /// Cluster DNS cannot answer there.
    #[error("--node-local-dns: {address} {fault}")]
    NodeLocalDns {
        /// The address.
        address: IpAddr,
        /// What is wrong, and what to do.
        fault: &'static str,
    },
    /// The pools cannot work.
    #[error(transparent)]
    Pools(PoolError),
    /// What tunnels need cannot be.
    #[error("tunnels: {fault}")]
    Tunnels {
        /// What is wrong.
        fault: &'static str,
    },
    /// Pods cannot have these source ports.
    #[error("masqueradePorts: {fault}")]
    MasqueradePorts {
        /// What is wrong, and what to do.
        fault: String,
    },
    /// No eBPF map can have the size.
    #[error(
        "ebpfMaps.{map}: choose a number from {EBPF_MAP_ENTRIES_MIN} to {EBPF_MAP_ENTRIES_MAX}"
    )]
    EbpfMaps {
        /// The key of the size.
        map: &'static str,
    },
}

/// Whether two ranges share an address.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Ranges that no host may use as its own (RFC 6890).
const SPECIAL: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

fn is_special(range: &IpNet) -> bool {
    SPECIAL.iter().filter_map(|text| text.parse().ok()).any(|special| overlap(&special, range))
}

/// The address `index` places after the network address; `None` outside the range.
pub fn nth_address(range: &IpNet, index: u128) -> Option<IpAddr> {
    if index >= address_count(range) {
        return None;
    }
    Some(match range.network() {
        IpAddr::V4(network) => {
            IpAddr::V4(u32::from(network).checked_add(u32::try_from(index).ok()?)?.into())
        }
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).checked_add(index)?.into()),
    })
}

/// How many addresses a range holds, network and broadcast address included.
pub fn address_count(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_three_nodes() {
        assert_eq!(ClusterConfig::default().check_ranges(3), Ok(()));
        let dns = ClusterConfig::default().dns_address(Family::V4);
        assert_eq!(dns, "10.96.0.10".parse().ok());
    }

    #[test]
    fn overlap_is_named_with_both_flags() {
        let config = ClusterConfig {
            service_cidrs: vec!["10.244.128.0/20".parse().expect("a range")],
            ..ClusterConfig::default()
        };
        let errors = config.check_ranges(3).expect_err("an overlap");
        let text = errors[0].to_string();
        assert!(text.contains("--pod-cidr 10.244.0.0/16 overlaps --service-cidr 10.244.128.0/20"));
    }

    #[test]
    fn too_small_ranges_say_what_is_needed() {
        let config = ClusterConfig {
            pod_cidrs: vec!["10.244.0.0/23".parse().expect("a range")],
            node_cidrs: vec!["172.30.0.0/30".parse().expect("a range")],
            ..ClusterConfig::default()
        };
        let errors = config.check_ranges(3).expect_err("two faults");
        assert_eq!(errors.len(), 2);
        assert!(errors[0].to_string().contains("3 nodes need a /24 each"));
        assert!(errors[1].to_string().contains("at least 6 addresses"));
    }

    #[test]
    fn ranges_with_a_meaning_of_their_own_are_refused() {
        for bad in ["127.0.0.0/16", "169.254.0.0/16", "240.0.0.0/8", "0.0.0.0/0"] {
            let config = ClusterConfig {
                pod_cidrs: vec![bad.parse().expect("a range")],
                ..ClusterConfig::default()
            };
            let errors = config.check_ranges(1).expect_err("refused");
            let text = errors[0].to_string();
            assert!(text.contains("--pod-cidr") && text.contains("meaning of its own"), "{text}");
        }
    }

    #[test]
    fn host_bits_are_refused_with_the_right_spelling() {
        let config = ClusterConfig {
            pod_cidrs: vec!["10.244.7.1/16".parse().expect("a range")],
            ..ClusterConfig::default()
        };
        let errors = config.check_ranges(1).expect_err("host bits");
        assert!(errors[0].to_string().ends_with("write 10.244.0.0/16"));
    }
}
