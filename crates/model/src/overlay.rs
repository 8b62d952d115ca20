//! How pod packets travel between nodes: the ways, their cost in bytes, their parameters.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::Family;
use crate::layout::PATH_TEST_PORT;

/// The annotation by which a Node asks for another way to it than the cluster's. The value is one
/// of [`Overlay::ALL`].
pub const OVERLAY_ANNOTATION: &str = "flatnet.io/overlay";
/// The annotation that holds a Node's WireGuard public key. Its agent writes it; the device uses
/// whatever key stands here, so that all nodes change to a new one at the same time.
pub const WIREGUARD_KEY_ANNOTATION: &str = "flatnet.io/wireguard-public-key";

/// The annotation by which a Node's agent says that its path self-test found the way to some nodes
/// blocked, and which way works: `node2=host-gw,node3=vxlan`. Removed, the first way is tried anew.
pub const DETOURS_ANNOTATION: &str = "flatnet.io/detours";

/// How pod packets travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// Encapsulated in UDP (RFC 7348): needs nothing of the network between nodes.
    #[default]
    Vxlan,
    /// Routed directly: nodes must share one L2 segment.
    HostGw,
    /// IP in IP (RFC 2003, RFC 2473), each family within its own: smaller than VXLAN, but some
    /// clouds drop it.
    Ipip,
    /// Encrypted. Strict: what cannot be encrypted is dropped.
    Wireguard,
    /// Someone else brings pod packets to their nodes: we make no routes between nodes.
    Native,
}

impl Overlay {
    /// All ways, the one that asks least of the network between the nodes first. Of two nodes that
    /// ask for different ways, the earlier here is taken, so that neither is cut off nor loses
    /// the encryption that it asked for.
    pub const ALL: [Self; 5] =
        [Self::Wireguard, Self::Vxlan, Self::Ipip, Self::HostGw, Self::Native];

    /// Bytes that a packet grows by under way, within outer packets of a family.
    pub const fn overhead(self, outer: Family) -> u32 {
        let header = match outer {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self {
            // UDP 8, VXLAN 8, inner Ethernet 14.
            Self::Vxlan => header + 30,
            Self::Ipip => header,
            // UDP 8, message header 16, authentication tag 16.
            Self::Wireguard => header + 40,
            Self::HostGw | Self::Native => 0,
        }
    }

    /// Whether outer packets are of the family of the packet within: the next hop or outer
    /// destination is then the node's address of that family.
    pub const fn keeps_family(self) -> bool {
        matches!(self, Self::HostGw | Self::Ipip)
    }

    /// The word for it in configuration, flags and annotations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Ipip => "ipip",
            Self::Wireguard => "wireguard",
            Self::Native => "native",
        }
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no way between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no overlay: it is one of wireguard, vxlan, ipip, host-gw, native")]
pub struct UnknownOverlay;

impl FromStr for Overlay {
    type Err = UnknownOverlay;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|overlay| overlay.as_str() == text).ok_or(UnknownOverlay)
    }
}

/// What tunnels of all nodes must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelConfig {
    /// VXLAN network identifier, 24 bits. flannel uses 1, Calico 4096.
    pub vxlan_vni: u32,
    /// VXLAN's UDP port. flannel and the Linux kernel use 8472, Calico 4789 (RFC 7348).
    pub vxlan_port: u16,
    /// WireGuard's UDP port.
    pub wireguard_port: u16,
    /// The UDP port of the path self-test between agents.
    pub path_test_port: u16,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            vxlan_vni: 1,
            vxlan_port: 8472,
            wireguard_port: 51820,
            path_test_port: PATH_TEST_PORT,
        }
    }
}

impl TunnelConfig {
    /// What cannot be, each as a sentence of what to change.
    pub fn faults(&self) -> impl Iterator<Item = &'static str> {
        let vni = (1..=VXLAN_VNI_MAX).contains(&self.vxlan_vni);
        let all = [self.vxlan_port, self.wireguard_port, self.path_test_port];
        let ports = !all.contains(&0);
        let [vxlan, wireguard, path_test] = all;
        let rows = [
            (vni, "vxlanVni has 24 bits and is not 0: choose one from 1 to 16777215"),
            (
                ports,
                "vxlanPort, wireguardPort and pathTestPort are UDP ports: choose from 1 to 65535",
            ),
            (
                vxlan != wireguard && vxlan != path_test && wireguard != path_test,
                "two of vxlanPort, wireguardPort and pathTestPort are the same: change one",
            ),
        ];
        rows.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault)
    }
}

/// Largest VXLAN network identifier.
const VXLAN_VNI_MAX: u32 = (1 << 24) - 1;

/// A WireGuard public key (Curve25519), in text as `wg` writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey(pub [u8; 32]);

impl fmt::Display for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no WireGuard key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no WireGuard key: it is 32 bytes in base64, 44 characters")]
pub struct NoWireguardKey;

impl FromStr for WireguardKey {
    type Err = NoWireguardKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64.decode(text).map_err(|_| NoWireguardKey)?;
        bytes.try_into().map(Self).map_err(|_| NoWireguardKey)
    }
}

/// The address of a family among a node's addresses, at most one a family.
pub fn of_family(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| Family::of(address) == family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_has_one_word_and_is_read_back_by_it() {
        for overlay in Overlay::ALL {
            assert_eq!(overlay.to_string().parse(), Ok(overlay));
            let json = serde_json::to_string(&overlay).expect("JSON");
            assert_eq!(json, format!("\"{overlay}\""));
        }
        assert_eq!("geneve".parse::<Overlay>(), Err(UnknownOverlay));
        for overlay in Overlay::ALL {
            assert!(UnknownOverlay.to_string().contains(overlay.as_str()), "{overlay}");
        }
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        let both = |overlay: Overlay| (overlay.overhead(Family::V4), overlay.overhead(Family::V6));
        assert_eq!(both(Overlay::Vxlan), (50, 70));
        assert_eq!(both(Overlay::Ipip), (20, 40));
        assert_eq!(both(Overlay::Wireguard), (60, 80));
        assert_eq!((both(Overlay::HostGw), both(Overlay::Native)), ((0, 0), (0, 0)));
    }

    #[test]
    fn what_tunnels_cannot_be_is_said() {
        let faults = |vxlan_vni, vxlan_port, wireguard_port| {
            let default = TunnelConfig::default();
            let tunnels = TunnelConfig { vxlan_vni, vxlan_port, wireguard_port, ..default };
            tunnels.faults().collect::<Vec<_>>()
        };
        assert_eq!(faults(1, 8472, 51820), Vec::<&str>::new());
        assert_eq!(faults(4096, 4789, 51820), Vec::<&str>::new(), "Calico's");
        assert!(faults(1 << 24, 8472, 51820)[0].contains("24 bits"));
        assert!(faults(0, 8472, 51820)[0].contains("24 bits"));
        assert!(faults(1, 0, 51820)[0].contains("UDP ports"));
        assert!(faults(1, 8472, 8472)[0].contains("same"));
        assert!(faults(1, 8472, PATH_TEST_PORT)[0].contains("same"));
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_others_refused() {
        let key = WireguardKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "AAAA", "!", &"A".repeat(1000)] {
            assert_eq!(bad.parse::<WireguardKey>(), Err(NoWireguardKey), "{bad}");
        }
    }
}
