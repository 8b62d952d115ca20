//! Names and places that several programs must agree on. What stands in the kernel has its
//! recognition rules in `render::owned`.

/// The bridge that pods of a node attach to, by the name that CNI users know.
pub const BRIDGE: &str = "cni0";
/// The VXLAN link of a node.
pub const VXLAN_LINK: &str = "flatnet.1";
/// The link of a node for IPv4 in IPv4.
pub const IPIP_LINK: &str = "flatnet-ipip";
/// The link of a node for IPv6 in IPv6.
pub const IPIP6_LINK: &str = "flatnet-ipip6";
/// The WireGuard link of a node.
pub const WIREGUARD_LINK: &str = "flatnet-wg";
/// A node's WireGuard keys, mode 0700; each file 0600.
pub const WIREGUARD_KEY_DIRECTORY: &str = "/var/lib/flatnet/wireguard";
/// Where the DNS worker of a real node keeps the newest zone, mode 0700.
pub const DNS_ZONE_DIRECTORY: &str = "/var/lib/flatnet/dns";
/// What names of a node's ends of pod links begin with; eight hex digits follow.
pub const POD_LINK_PREFIX: &str = "veth";
/// What aliases of a node's ends of pod links begin with; the container id follows.
pub const POD_LINK_ALIAS_PREFIX: &str = "flatnet:";
/// What names of `ifb` links begin with that shape what pods send; eight hex digits follow.
pub const POD_IFB_PREFIX: &str = "ifb";
/// `rtm_protocol` of a node's routes to single pods (routed data path). The agent's own routes
/// have another, since it removes what it does not plan.
pub const POD_ROUTE_PROTOCOL: u8 = 103;
/// A node's link to the node network, in clusters that `flatnet up` makes.
pub const UPLINK: &str = "eth0";

/// The control group of a node's own processes, in clusters that `flatnet up` makes. Pods' are
/// beside it, not below: the kernel hands no controller of version 2 on to groups below one that
/// holds processes.
pub const SYSTEM_CGROUP: &str = "system";

/// Where container runtimes look for network configurations.
pub const CNI_CONFIGURATION_DIRECTORY: &str = "/etc/cni/net.d";
/// Our network configuration list, written last: its presence says that pods can be added.
pub const CNI_CONFIGURATION_FILE: &str = "10-flatnet.conflist";
/// Where container runtimes look for plugins.
pub const CNI_PLUGIN_DIRECTORY: &str = "/opt/cni/bin";
/// The name of our plugin in that directory, and its `type` in a conflist.
pub const CNI_PLUGIN: &str = "flatnet";
/// The `name` of our network in the conflist, and of its IPAM directory.
pub const CNI_NETWORK: &str = "flatnet";
/// Where the plugin keeps records of attachments, a directory a network.
pub const CNI_RECORD_DIRECTORY: &str = "/var/lib/cni/flatnet";
/// host-local's default state directory; a network's addresses are files in a directory below.
pub const IPAM_DIRECTORY: &str = "/var/lib/cni/networks";

/// A node's directory for sockets and volatile state, mode 0700.
pub const RUN_DIRECTORY: &str = "/run/flatnet";
/// Below [`RUN_DIRECTORY`]: where the agent answers root's questions.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Below [`RUN_DIRECTORY`]: where the agent serves zone snapshots to the DNS worker.
pub const DNS_FEED_SOCKET: &str = "dns.sock";
/// Below [`RUN_DIRECTORY`]: where the DNS worker answers root's questions.
pub const DNS_CONTROL_SOCKET: &str = "dns-control.sock";
/// TCP port of a node runtime's log and exec endpoint, the kubelet's.
pub const RUNTIME_PORT: u16 = 10250;
/// TCP port of an agent's `/healthz` and `/livez`, kube-proxy's health port; of its `/metrics`
/// from loopback.
pub const AGENT_HEALTH_PORT: u16 = 10256;

/// UDP port of the path self-test between agents, unless the cluster is configured otherwise: the
/// number of the health port, so that one number is opened between nodes.
pub const PATH_TEST_PORT: u16 = 10256;

/// The TCP port of the API server.
pub const API_PORT: u16 = 6443;
/// Group of the certificates of administrators.
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of the certificates of node components.
pub const GROUP_NODES: &str = "system:nodes";

/// Where nodes keep their claims of blocks of pod addresses, as Leases.
pub const CLAIM_NAMESPACE: &str = "kube-system";
/// The label of claims; its value is the pool's name.
pub const CLAIM_LABEL: &str = "flatnet.io/pod-block";
