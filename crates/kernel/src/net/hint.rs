//! What to do about a refused op.

use render::net::{LinkKind, NetOp};

/// What to do, where the errno of an op has one usual cause.
pub(super) fn hint(op: &NetOp, errno: i32) -> &'static str {
    match (op, errno) {
        (NetOp::SetSysctl { key, .. }, libc::ENOENT) if key.starts_with("net/bridge/") => {
            "; the kernel module br_netfilter is not loaded: modprobe br_netfilter"
        }
        (NetOp::SetSysctl { key, .. }, libc::ENOENT) if key.starts_with("net/netfilter/") => {
            "; the kernel module nf_conntrack is not loaded: modprobe nf_conntrack"
        }
        (NetOp::SetSysctl { .. }, libc::EROFS) => {
            "; /proc/sys is read-only here: run privileged, or mount it writable"
        }
        (NetOp::AddLink { kind: LinkKind::Bridge, .. }, libc::EEXIST) => {
            "; a link of this name is there and is no bridge: rename or delete it"
        }
        (NetOp::AddLink { kind: LinkKind::Vxlan { .. }, .. }, libc::EEXIST) => {
            "; another program has a link of this name, or a VXLAN of the same VNI and port \
             (flannel uses the same): remove it"
        }
        (NetOp::AddLink { kind: LinkKind::Ipip { .. }, .. }, libc::EEXIST) => {
            "; another program has a link of this name, or an IP-in-IP link of this address \
             without a far end: remove it"
        }
        (NetOp::AddLink { kind: LinkKind::Wireguard, .. }, libc::EOPNOTSUPP) => {
            "; the kernel lacks WireGuard: modprobe wireguard (Linux 5.6, or a package of the \
             distribution). Until then nothing passes between pods of different nodes, since it \
             could not be encrypted"
        }
        (NetOp::AddLink { kind: LinkKind::Ipip { .. }, .. }, libc::EOPNOTSUPP) => {
            "; the kernel lacks IP in IP: modprobe ipip (for IPv6: ip6_tunnel), or use vxlan"
        }
        (NetOp::AddLink { kind: LinkKind::Vxlan { .. }, .. }, libc::EOPNOTSUPP) => {
            "; the kernel lacks VXLAN: modprobe vxlan, or use host-gw where nodes share one L2 \
             segment"
        }
        (NetOp::SetWireguard { .. }, libc::EADDRINUSE) => {
            "; another program has this UDP port: stop it, or choose another wireguardPort"
        }
        (NetOp::AddRoute { .. }, libc::EEXIST) => {
            "; another program has a route to this range: find it with `ip route` and remove it, \
             or choose another pod range"
        }
        (NetOp::AddRoute { .. } | NetOp::ReplaceRoute { .. }, libc::ENETUNREACH) => {
            "; the node is not on this node's L2 segment: use the vxlan overlay"
        }
        (_, libc::EPERM) => "; this needs CAP_NET_ADMIN in the node's network namespace",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use model::MacAddress;

    use super::*;

    #[test]
    fn a_link_that_the_kernel_lacks_is_named_with_what_to_do() {
        let vxlan =
            LinkKind::Vxlan { vni: 1, port: 8472, local: None, uplink: None, learning: false };
        let ipip = LinkKind::Ipip { local: None, uplink: None };
        let rows = [
            (vxlan, "modprobe vxlan"),
            (ipip, "modprobe ipip"),
            (LinkKind::Wireguard, "modprobe wireguard"),
        ];
        for (kind, expected) in rows {
            let mac = MacAddress::default();
            let op = NetOp::AddLink { name: "flatnet".into(), kind, mac, mtu: 1400 };
            let said = hint(&op, libc::EOPNOTSUPP);
            assert!(said.contains("the kernel lacks") && said.contains(expected), "{said}");
            assert!(hint(&op, libc::EPERM).contains("CAP_NET_ADMIN"));
        }
    }
    #[test]
    fn a_parameter_that_a_module_would_bring_names_the_module() {
        let rows = [
            ("net/bridge/bridge-nf-call-iptables", "modprobe br_netfilter"),
            ("net/netfilter/nf_conntrack_max", "modprobe nf_conntrack"),
            ("net/ipv4/ip_forward", ""),
        ];
        for (key, expected) in rows {
            let op = NetOp::SetSysctl { key: key.into(), value: "1".into() };
            let said = hint(&op, libc::ENOENT);
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        }
    }
}
