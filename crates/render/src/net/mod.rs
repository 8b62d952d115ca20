//! The pod network of a node in the kernel's words: links, addresses, neighbours, forwarding
//! entries, routes and kernel parameters.

mod apply;
mod conflist;
mod diff;
mod feature;
mod program;
mod sysctls;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, ConntrackConfig, MacAddress, WireguardKey};
use plan::{Desired, NodeFacts};

pub use conflist::conflist;
pub use diff::diff;
pub use feature::Feature;
pub use sysctls::{
    CONNTRACK_BUCKETS, CONNTRACK_MAX, CONNTRACK_PREFIX, OWN_LINKS, missing_entries, owned_sysctls,
};

/// The loopback link. Of its addresses those that we want are ours, and those with our mark.
pub const LOOPBACK: &str = "lo";

/// What shall be. Without a state nothing is known of the node's network yet, and nothing that
/// exists changes (invariant 3): a Node object that is gone takes no pod's network along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetProgram {
    /// What the kernel shall hold.
    pub state: Option<NetState>,
    /// By which the limit of tracked flows is raised; `None`: it stays.
    pub conntrack: Option<ConntrackConfig>,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetObserved {
    /// What the kernel holds of ours.
    pub state: NetState,
    /// Node's ends of pod links that are no port of the bridge, as after someone removed it.
    pub detached_ports: BTreeSet<String>,
    /// Addresses of loopback that tell that they are ours, as Linux 5.18 and later let them.
    pub marked_addresses: BTreeSet<IpNet>,
    /// Whether this kernel has no IPv6 at all; its parameters are not asked for then.
    pub without_ipv6: bool,
    /// How many flows the kernel tracks at most. `None` where that cannot be set: the number is the
    /// machine's, and network namespaces but its first one only read it.
    pub conntrack: Option<ConntrackLimit>,
}

/// How many flows a machine tracks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackLimit {
    /// At most.
    pub entries_max: u32,
    /// Lists that they are looked up in.
    pub buckets: u32,
    /// The machine's processors.
    pub processors: u32,
}

/// Objects of ours, by what the kernel tells them apart with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Links by name.
    pub links: BTreeMap<String, LinkState>,
    /// Addresses, each with the name of its link.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Permanent neighbours by link and address.
    pub neighbours: BTreeMap<(String, IpAddr), MacAddress>,
    /// Forwarding entries by link and MAC address: the outer destination.
    pub forwarding: BTreeMap<(String, MacAddress), IpAddr>,
    /// What WireGuard links are, by link; a link without a key is not in it.
    pub wireguard: BTreeMap<String, WireguardDevice>,
    /// WireGuard peers by link and key.
    pub wireguard_peers: BTreeMap<(String, WireguardKey), WireguardPeer>,
    /// Routes of our protocol by destination.
    pub routes: BTreeMap<IpNet, RouteState>,
    /// Kernel parameters by key, as `netlink::sysctl` spells it.
    pub sysctls: BTreeMap<String, String>,
}

/// A link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// What it is. A change makes a new link.
    pub kind: LinkKind,
    /// Its link-layer address.
    pub mac: MacAddress,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it leaves checksums to the device below; `None` where that does not matter.
    pub tx_checksum: Option<bool>,
}

/// The kinds of link that we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The bridge of the pods.
    Bridge,
    /// The tunnel to the other nodes (RFC 7348).
    Vxlan {
        /// The VXLAN network identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The outer source address.
        local: Option<IpAddr>,
        /// The link that outer packets leave by; `None` when it is not known any more.
        uplink: Option<String>,
        /// Whether peers are learned from what arrives. Ours are static.
        learning: bool,
    },
    /// IP in IP, each family within its own; the route's next hop is the outer destination.
    Ipip {
        /// The outer source address.
        local: Option<IpAddr>,
        /// The link that outer packets leave by; `None` when it is not known any more.
        uplink: Option<String>,
    },
    /// WireGuard. Its key and port can change in place, and stand in [`NetState::wireguard`].
    Wireguard,
}

/// What can change on a WireGuard link. The private key is not here: the driver finds it by the
/// public one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireguardDevice {
    /// Who it is to its peers.
    pub public_key: WireguardKey,
    /// Its UDP port.
    pub port: u16,
}

/// A peer of a WireGuard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Where it is; `None` when the kernel was never told.
    pub endpoint: Option<SocketAddr>,
    /// What it may send, and what is sent to it. An address belongs to one peer at most.
    pub allowed: BTreeSet<IpNet>,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteState {
    /// The next hop; on a link of IPv6 in IPv6 the outer destination.
    pub gateway: Option<IpAddr>,
    /// The link that packets leave by.
    pub link: String,
    /// The source of packets that the node itself sends: an address of its own pod range, so
    /// that the far side can tell by the range which node they are from.
    pub source: Option<IpAddr>,
    /// Takes the next hop for reachable on the link, whatever its address.
    pub onlink: bool,
    /// The largest packet in bytes that is sent this way, where that is less than the link's MTU:
    /// the path self-test found so. Pods have it too, but fragments are put together on the way.
    pub mtu: Option<u32>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetOp {
    /// Makes a link, down, without addresses.
    AddLink {
        /// Its name.
        name: String,
        /// What it is.
        kind: LinkKind,
        /// Its link-layer address.
        mac: MacAddress,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// Changes a link's address.
    SetMac {
        /// The link.
        link: String,
        /// Its new link-layer address.
        mac: MacAddress,
    },
    /// Changes a link's MTU.
    SetMtu {
        /// The link.
        link: String,
        /// Its new MTU in bytes.
        mtu: u32,
    },
    /// Switches whether a link leaves checksums to the device below.
    SetTxChecksum {
        /// The link.
        link: String,
        /// The new setting.
        on: bool,
    },
    /// Sets a link up.
    SetUp {
        /// The link.
        link: String,
    },
    /// Makes a pod link a port of the bridge again, with hairpin.
    AttachPort {
        /// The node's end of the pod link.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// Removes a link and all that is on it.
    DeleteLink {
        /// The link.
        name: String,
    },
    /// Adds an address.
    AddAddress {
        /// The link.
        link: String,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Removes an address, and routes that name it as their source.
    DeleteAddress {
        /// The link.
        link: String,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Adds or changes a permanent neighbour.
    SetNeighbour {
        /// The link.
        link: String,
        /// Its IP address.
        address: IpAddr,
        /// Its link-layer address.
        mac: MacAddress,
    },
    /// Removes a neighbour.
    DeleteNeighbour {
        /// The link.
        link: String,
        /// Its IP address.
        address: IpAddr,
    },
    /// Adds or changes a forwarding entry.
    SetForwarding {
        /// The VXLAN link.
        link: String,
        /// The link-layer address.
        mac: MacAddress,
        /// The outer destination.
        destination: IpAddr,
    },
    /// Removes a forwarding entry.
    DeleteForwarding {
        /// The VXLAN link.
        link: String,
        /// The link-layer address.
        mac: MacAddress,
    },
    /// Gives a WireGuard link its key and port. Sessions under another key end.
    SetWireguard {
        /// The link.
        link: String,
        /// What it is from now on.
        device: WireguardDevice,
    },
    /// Adds or changes a WireGuard peer, and takes its addresses from whoever had them.
    SetWireguardPeer {
        /// The link.
        link: String,
        /// The peer's key.
        public_key: WireguardKey,
        /// What it is from now on.
        peer: WireguardPeer,
    },
    /// Removes a WireGuard peer.
    DeleteWireguardPeer {
        /// The link.
        link: String,
        /// The peer's key.
        public_key: WireguardKey,
    },
    /// Adds a route. Refused when anyone's is there, so that a foreign one is never displaced.
    AddRoute {
        /// Where to.
        destination: IpNet,
        /// How.
        route: RouteState,
    },
    /// Puts a route in the place of ours of the same destination, in one step.
    ReplaceRoute {
        /// Where to.
        destination: IpNet,
        /// How, from now on.
        route: RouteState,
    },
    /// Removes a route of ours.
    DeleteRoute {
        /// Where to.
        destination: IpNet,
        /// The link that it left by.
        link: String,
    },
    /// Sets a kernel parameter. Only those of connection tracking are set back, when flatnet goes.
    SetSysctl {
        /// The parameter.
        key: String,
        /// Its value.
        value: String,
    },
}

/// Says a plan.
pub fn render(desired: &Desired, config: &ClusterConfig, _facts: &NodeFacts) -> NetProgram {
    let state = |plan| program::state(plan, config);
    NetProgram { state: desired.network.as_ref().map(state), conntrack: Some(config.conntrack) }
}
