//! All that flatnet puts into a kernel, and how a fresh process recognises it (invariant 4).
//!
//! | what | name or value | recognised by |
//! |---|---|---|
//! | nftables tables of Services and guards | `flatnet` (ip, ip6) | the table's name |
//! | nftables tables at pods' edges | `flatnet-pods` (bridge, arp, ip, ip6), `flatnet-host-ports`, `flatnet-masquerade`, `flatnet-firewall` (ip, ip6) | the table's name |
//! | accepts for pods in others' chains that drop by policy what is forwarded | one address each, at the chain's end | the rule's comment `flatnet …` |
//! | the same in the chain FORWARD of the older iptables | one address each | the rule's comment `flatnet-pod` |
//! | chains of iptables (nat, filter), and rules of its own chains that lead there | `FLATNET-…` | the name; such a rule by its target |
//! | nftables guards between nodes | `tunnel-guard`, `ipip-guard`, `wireguard-guard`, `tunnel-nodes`, `tunnel-sources-…` | in our tables |
//! | bridge | `cni0` | its name; adopted when it exists and is a bridge |
//! | tunnel links | `flatnet.1` (VXLAN), `flatnet-ipip`, `flatnet-ipip6`, `flatnet-wg` | name and kind |
//! | pod links | `veth` + 8 hex digits | alias `flatnet:` + container id |
//! | limits of what pods send | `ifb` + 8 hex digits | alias `flatnet:` + container id |
//! | routes | protocol 0x66 | the route protocol |
//! | routes to single pods | protocol 0x67, made by the plugin | the route protocol |
//! | neighbours, FDB | permanent entries on `flatnet.1` | the link that they are on |
//! | WireGuard key, port and peers | on `flatnet-wg` | the link that they are on |
//! | addresses | on `cni0` and the tunnel links; the DNS addresses on `lo` | the link; on `lo` the address's protocol 0x66, that of the Service also by its value |
//! | kernel parameters | the table in `render::net` | the key; never set back, but those of connection tracking: what they were is noted in the run directory |
//! | eBPF programs, maps, attachments | pins below `/sys/fs/bpf/flatnet` | the directory |
//! | the eBPF program at the hook XDP of the uplink | pins below the same directory | the directory |
//! | eBPF programs without tcx | filters `flatnet:…` of `clsact` | the filter's name |
//! | virtual servers of IPVS | flags beyond the kernel's: [`IPVS_FLAGS`] | those flags |
//! | their link and its addresses | [`IPVS_LINK`] (dummy) | the link's name |
//! | kernel parameters of IPVS | the table in `render::ipvs` | the key; never set back |
//! | packet marks | bits of [`MARK_MASK`] | the mask |
//! | connections that eBPF masquerades, in connection tracking | zone [`EBPF_ZONE`] | the zone |

/// The nftables table of each family.
pub const NFT_TABLE: &str = "flatnet";
/// The nftables tables that tell who a pod may say it is.
pub const NFT_SPOOFING_TABLE: &str = "flatnet-pods";
/// The nftables tables of ports of the node that lead to pods.
pub const NFT_HOST_PORTS_TABLE: &str = "flatnet-host-ports";
/// The nftables tables of what pods send away under the node's address.
pub const NFT_MASQUERADE_TABLE: &str = "flatnet-masquerade";
/// The nftables tables of who may come in to pods, and what of the node they may reach.
pub const NFT_FIREWALL_TABLE: &str = "flatnet-firewall";
/// What the names of our chains in iptables begin with: not kube-proxy's `KUBE-`, which is for
/// kube-proxy to flush.
pub const IPTABLES_PREFIX: &str = "FLATNET-";
/// `rtm_protocol` of our routes (`/etc/iproute2/rt_protos` leaves 100 and above free).
pub const ROUTE_PROTOCOL: u8 = 102;
/// All mark bits that flatnet uses.
pub const MARK_MASK: u32 = MARK_MASQUERADE | MARK_EBPF;
/// Set before destination translation on packets that need masquerade; cleared in postrouting.
/// kube-proxy's own masquerade bit, so that tools know it.
pub const MARK_MASQUERADE: u32 = 0x0000_4000;
/// On packets of Services that eBPF masquerades, between the programs of two links.
pub const MARK_EBPF: u32 = ebpf_abi::flows::NAT_MARK;
/// Connection tracking zone of packets that have it: in between they look as if their clients
/// talked to the endpoints themselves, and clients may do that too.
pub const EBPF_ZONE: u16 = 102;
/// nftables priority of the destination translation (NF_IP_PRI_NAT_DST).
pub const PRIORITY_DNAT: i32 = -100;
/// Priority at which IPVS takes what the node sends (`ip_vs_core.c`): NF_IP_PRI_NAT_DST + 2.
pub const PRIORITY_IPVS_OUTPUT: i32 = PRIORITY_DNAT + 2;
/// nftables priority of what is refused before IPVS takes it, and after the destination translation.
pub const PRIORITY_BEFORE_IPVS: i32 = PRIORITY_IPVS_OUTPUT - 1;
/// The link that holds the addresses at which IPVS answers.
pub const IPVS_LINK: &str = "flatnet-ipvs0";
/// Bits of `ip_vs_service_user.flags` that the kernel keeps and does not use (it uses the low 6).
pub const IPVS_FLAGS_MASK: u32 = 0xff00_0000;
/// What our virtual servers have there.
pub const IPVS_FLAGS: u32 = 0x6600_0000;
/// nftables priority of the source translation (NF_IP_PRI_NAT_SRC).
pub const PRIORITY_SNAT: i32 = 100;
/// nftables priority of ports of the node that lead to pods: a Service's node port goes first.
pub const PRIORITY_HOST_PORTS: i32 = PRIORITY_DNAT + 10;
/// nftables priority of the source translation at pods' edges, after that of Services.
pub const PRIORITY_POD_SNAT: i32 = PRIORITY_SNAT + 10;
/// nftables priority of the bridge's filter chains (NF_BR_PRI_FILTER_BRIDGED): before bridged
/// packets are handed to the chains of IP.
pub const PRIORITY_BRIDGE: i32 = -200;
/// nftables priority of our filter chains, before others' (NF_IP_PRI_FILTER is 0).
pub const PRIORITY_FILTER: i32 = -10;
/// nftables priority of the raw chains (NF_IP_PRI_RAW).
pub const PRIORITY_RAW: i32 = -300;
