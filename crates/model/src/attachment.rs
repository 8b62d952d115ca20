//! [`Attachment`]: one interface of one pod on this node, as the CNI plugin writes it down before
//! it changes the kernel, and as everything at the pod's edge is derived from it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{MacAddress, NamespacedName, Protocol};

/// One interface of one pod. The record on disk is its JSON; unknown keys of newer versions are
/// ignored, missing ones have the value of [`Default`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// The CNI network's name.
    pub network: String,
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`: the interface inside the pod.
    #[serde(rename = "ifname")]
    pub interface: String,
    /// `CNI_NETNS` of the ADD.
    pub namespace: String,
    /// `/proc/sys/kernel/random/boot_id` when the record was written: after a reboot the links
    /// are gone, whatever the record says.
    pub boot_id: String,
    /// The pod as the runtime named it (`K8S_POD_NAMESPACE`, `K8S_POD_NAME`), where it did.
    pub pod: Option<NamespacedName>,
    /// `K8S_POD_UID`; empty where the runtime named none.
    pub pod_uid: String,
    /// How the interface is connected to the node.
    pub link: PodLink,
    /// The MAC address inside the pod.
    pub mac: MacAddress,
    /// The pod's addresses on this interface, with the prefix length that the pod sees.
    pub addresses: Vec<IpNet>,
    /// What the pod may and shall do at its edge.
    pub edge: Edge,
    /// How fast the pod may send and receive.
    pub bandwidth: Bandwidth,
    /// What the interface was like before we changed it, where another plugin made it: DEL puts
    /// it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<InterfaceState>,
}

/// How a pod's interface is connected to the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "mode")]
pub enum PodLink {
    /// A veth pair whose near end is a port of a bridge.
    Bridge {
        /// The node's end.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// A veth pair without a shared layer 2: the node routes to each address.
    Routed {
        /// The node's end.
        name: String,
    },
    /// A macvlan link on one of the node's: packets do not cross the node's rules.
    Macvlan {
        /// The node's link.
        parent: String,
    },
    /// Another plugin of the list made the interface; this is the node's end, if there is one.
    Chained {
        /// The node's end.
        name: Option<String>,
        /// The bridge that it is a port of, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bridge: Option<String>,
    },
}

impl Default for PodLink {
    fn default() -> Self {
        Self::Chained { name: None, bridge: None }
    }
}

impl PodLink {
    /// The node's end of the pod's link, where packets of the pod enter the node.
    pub fn node_end(&self) -> Option<&str> {
        match self {
            Self::Bridge { name, .. } | Self::Routed { name } => Some(name),
            Self::Chained { name, .. } => name.as_deref(),
            Self::Macvlan { .. } => None,
        }
    }

    /// The bridge that the node's end is a port of.
    pub fn bridge(&self) -> Option<&str> {
        match self {
            Self::Bridge { bridge, .. } => Some(bridge),
            Self::Chained { bridge, .. } => bridge.as_deref(),
            Self::Routed { .. } | Self::Macvlan { .. } => None,
        }
    }
}

/// Limits of a pod's traffic (CNI capability `bandwidth`), seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// What comes to the pod; `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What the pod sends; `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Bits a second.
    #[serde(rename = "bitsPerSecond")]
    pub bits_per_s: u64,
    /// Bits that may pass at once after a pause.
    pub burst_bits: u64,
}

/// Properties of an interface that can be set and put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InterfaceState {
    /// Its link-layer address.
    pub mac: MacAddress,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it takes frames for others.
    pub promiscuous: bool,
    /// Whether it takes all multicast frames.
    pub all_multicast: bool,
    /// Packets that its queue takes.
    pub transmit_queue_length: u32,
}

/// What a pod may and shall do where it meets the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edge {
    /// Whether only the pod's own MAC and addresses may be sources (also ARP senders and
    /// neighbour advertisements), and router advertisements, redirects and DHCP replies are
    /// dropped. On unless an administrator's configuration switches it off.
    pub anti_spoofing: bool,
    /// Further source ranges that the administrator's configuration allows.
    pub extra_sources: Vec<IpNet>,
    /// Whether the pod's packets to elsewhere than these ranges get the node's address. `None`:
    /// no masquerade at this edge, since the agent's tables do it, or nobody shall.
    pub masquerade: Option<Masquerade>,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<PortMapping>,
    /// What a packet must fulfil besides, all of it, to be led to the pod by [`Edge::host_ports`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_port_conditions: Vec<HostPortCondition>,
    /// Whether packets to and from the pod are accepted in the node's forwarding although its
    /// policy is to drop (as Docker sets it), and who may come in.
    pub firewall: Option<Firewall>,
    /// The node's own ports that the pod may begin connections to, besides the cluster's DNS;
    /// `None` is all. ICMP is always allowed.
    pub node_ports: Option<Vec<NodePort>>,
    /// Whether the machine's metadata service (169.254.169.254 and its like), where clouds hand
    /// out credentials, is closed to the pod.
    pub metadata_blocked: bool,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            anti_spoofing: true,
            extra_sources: vec![],
            masquerade: None,
            host_ports: vec![],
            host_port_conditions: vec![],
            firewall: None,
            node_ports: None,
            metadata_blocked: false,
        }
    }
}

/// A port of the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePort {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Masquerade of what a pod sends away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Masquerade {
    /// Destinations that see the pod's own address: its own range at least.
    pub except: Vec<IpNet>,
}

/// One port of the node that leads to a pod (CNI capability `portMappings`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The node's address that it is open on; `None` for all of the node's addresses, which is
    /// also what the unspecified address of the mapping's family means.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Whether clients that could not be answered otherwise (the pod itself, loopback) get the
    /// node's address as source.
    pub snat: bool,
    /// Whether every client does.
    pub masquerade_all: bool,
}

/// A condition for ports of the node (`conditionsV4` and `conditionsV6` of the reference portmap).
/// It is one of packets of the family of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPortCondition {
    /// Which address is looked at.
    pub side: Side,
    /// The range that it is compared with.
    pub range: IpNet,
    /// Whether the address must lie outside of the range.
    #[serde(default)]
    pub outside: bool,
}

/// One of the two addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Who sent it.
    Source,
    /// Whom it is for.
    Destination,
}

/// What the node's forwarding lets through for a pod (the reference firewall plugin).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Firewall {
    /// Who may begin a connection to the pod.
    pub ingress_policy: IngressPolicy,
}

/// The reference firewall plugin's `ingressPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IngressPolicy {
    /// Everyone.
    #[default]
    Open,
    /// Pods of the same bridge, and answers.
    SameBridge,
    /// Only answers.
    Isolated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written_and_a_shorter_one_has_safe_values() {
        let attachment = Attachment {
            network: "flatnet".into(),
            container_id: "c1".into(),
            interface: "eth0".into(),
            link: PodLink::Routed { name: "veth0".into() },
            addresses: "10.244.1.5/32".parse().into_iter().collect(),
            ..Attachment::default()
        };
        let text = serde_json::to_string(&attachment).expect("JSON");
        assert_eq!(serde_json::from_str::<Attachment>(&text).expect("a record"), attachment);
        let old: Attachment =
            serde_json::from_str(r#"{"containerID":"c1","later":1}"#).expect("a record");
        assert!(old.edge.anti_spoofing);
        assert_eq!(old.link.node_end(), None);
    }
}
