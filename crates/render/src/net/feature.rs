//! Parts of the kernel that ops need and that a kernel may be without.

use super::{LinkKind, NetOp};

const ENOENT: i32 = 2;
const EOPNOTSUPP: i32 = 95;

/// A part of the kernel, mostly a module of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Links of VXLAN.
    Vxlan,
    /// Links of IP in IP.
    Ipip,
    /// Links of WireGuard.
    Wireguard,
    /// What hands bridged packets to the packet filter.
    BridgeNetfilter,
    /// Connection tracking.
    ConnectionTracking,
}

impl Feature {
    /// What an op needs; `None` when every kernel has it.
    pub fn of(op: &NetOp) -> Option<Self> {
        match op {
            NetOp::AddLink { kind, .. } => match kind {
                LinkKind::Bridge => None,
                LinkKind::Vxlan { .. } => Some(Self::Vxlan),
                LinkKind::Ipip { .. } => Some(Self::Ipip),
                LinkKind::Wireguard => Some(Self::Wireguard),
            },
            NetOp::SetSysctl { key, .. } if key.starts_with("net/bridge/") => {
                Some(Self::BridgeNetfilter)
            }
            NetOp::SetSysctl { key, .. } if key.starts_with("net/netfilter/") => {
                Some(Self::ConnectionTracking)
            }
            _ => None,
        }
    }

    /// What a refused op would have needed, when it was refused for that.
    pub fn lacked(op: &NetOp, errno: i32) -> Option<Self> {
        let absent = match op {
            NetOp::SetSysctl { .. } => ENOENT,
            _ => EOPNOTSUPP,
        };
        Self::of(op).filter(|_| errno == absent)
    }

    /// That the kernel lacks it, and what to do.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Vxlan => {
                "the kernel lacks VXLAN: modprobe vxlan, or use host-gw where nodes share one L2 \
                 segment"
            }
            Self::Ipip => {
                "the kernel lacks IP in IP: modprobe ipip (for IPv6: ip6_tunnel), or use vxlan"
            }
            Self::Wireguard => {
                "the kernel lacks WireGuard: modprobe wireguard (Linux 5.6, or a package of the \
                 distribution). Until then nothing passes between pods of different nodes, since \
                 it could not be encrypted"
            }
            Self::BridgeNetfilter => {
                "the kernel module br_netfilter is not loaded: modprobe br_netfilter"
            }
            Self::ConnectionTracking => {
                "the kernel module nf_conntrack is not loaded: modprobe nf_conntrack"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::MacAddress;

    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_told_from_other_refusals_and_says_what_to_load() {
        let link = |kind| NetOp::AddLink {
            name: "flatnet".into(),
            kind,
            mac: MacAddress::default(),
            mtu: 1400,
        };
        let vxlan =
            LinkKind::Vxlan { vni: 1, port: 8472, local: None, uplink: None, learning: false };
        let sysctl = |key: &str| NetOp::SetSysctl { key: key.into(), value: "1".into() };
        let rows = [
            (link(vxlan), EOPNOTSUPP, "modprobe vxlan"),
            (link(LinkKind::Ipip { local: None, uplink: None }), EOPNOTSUPP, "modprobe ipip"),
            (link(LinkKind::Wireguard), EOPNOTSUPP, "modprobe wireguard"),
            (sysctl("net/bridge/bridge-nf-call-iptables"), ENOENT, "modprobe br_netfilter"),
            (sysctl("net/netfilter/nf_conntrack_max"), ENOENT, "modprobe nf_conntrack"),
        ];
        for (op, errno, load) in rows {
            let lacked = Feature::lacked(&op, errno).expect(load);
            assert!(lacked.advice().contains(load), "{op:?}");
            assert_eq!((Feature::of(&op), Feature::lacked(&op, 1)), (Some(lacked), None));
        }
        for op in [link(LinkKind::Bridge), sysctl("net/ipv4/ip_forward")] {
            assert_eq!(Feature::of(&op), None, "{op:?}");
        }
    }
}
