//! The kernel parameters of a node's network namespace, in one table with their reasons.

use std::collections::BTreeMap;

use plan::network::NetworkPlan;

/// When a parameter is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    Tunnel,
    Ipv6,
}

const SYSCTLS: &[(&str, &str, Need)] = &[
    // The node routes for its pods.
    ("net/ipv4/ip_forward", "1", Need::Always),
    ("net/ipv6/conf/all/forwarding", "1", Need::Ipv6),
    // Bridged packets pass netfilter: without it the answer of a pod on the same bridge returns
    // past the translation of its Service.
    ("net/bridge/bridge-nf-call-iptables", "1", Need::Always),
    ("net/bridge/bridge-nf-call-ip6tables", "1", Need::Ipv6),
    // "Unreachable" is sent each time, not 1 a second a client: a refused client must not hang.
    // The mask is the kernel's default (3, 4, 11, 12) without type 3; for IPv6 (0, 1, 3-127)
    // without type 1.
    ("net/ipv4/icmp_ratemask", "6160", Need::Always),
    ("net/ipv6/icmp/ratemask", "0,3-127", Need::Ipv6),
    // kube-proxy's values: idle connections live a day; half-closed ones an hour.
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "86400", Need::Always),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600", Need::Always),
    // Pods have their gateway from CNI; no pod may teach the node routes (CVE-2020-13401), nor
    // is a pod to be told of ways round the Service translation.
    ("net/ipv4/conf/cni0/accept_redirects", "0", Need::Always),
    ("net/ipv4/conf/cni0/send_redirects", "0", Need::Always),
    ("net/ipv6/conf/cni0/accept_ra", "0", Need::Always),
    ("net/ipv6/conf/cni0/accept_redirects", "0", Need::Always),
    ("net/ipv6/conf/cni0/autoconf", "0", Need::Always),
    // All that comes from the bridge has an address that is routed back there.
    ("net/ipv4/conf/cni0/rp_filter", "1", Need::Always),
    ("net/ipv4/conf/flatnet.1/accept_redirects", "0", Need::Tunnel),
    ("net/ipv4/conf/flatnet.1/send_redirects", "0", Need::Tunnel),
    ("net/ipv6/conf/flatnet.1/accept_ra", "0", Need::Tunnel),
    ("net/ipv6/conf/flatnet.1/accept_redirects", "0", Need::Tunnel),
    ("net/ipv6/conf/flatnet.1/autoconf", "0", Need::Tunnel),
    // Loose, whatever the distribution set for all links: while routes change, the way back may
    // already differ. Who may send what is judged before it is unwrapped, in `nft::tunnel`.
    ("net/ipv4/conf/flatnet.1/rp_filter", "2", Need::Tunnel),
];

/// The parameters that a plan wants.
pub(super) fn of(plan: &NetworkPlan) -> BTreeMap<String, String> {
    let ipv6 = plan.pod_ranges.iter().any(|range| range.addr().is_ipv6());
    let wanted = SYSCTLS.iter().filter(|(_, _, need)| match need {
        Need::Always => true,
        Need::Tunnel => plan.tunnel.is_some(),
        Need::Ipv6 => ipv6,
    });
    wanted.map(|(key, value, _)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// All parameters that any plan may want: what is read back.
pub fn owned_sysctls() -> impl Iterator<Item = &'static str> {
    SYSCTLS.iter().map(|(key, _, _)| *key)
}

/// The link that a parameter belongs to, if it is one of a single link.
pub(super) fn link_of(key: &str) -> Option<&str> {
    let inside = key.strip_prefix("net/ipv4/conf/").or(key.strip_prefix("net/ipv6/conf/"))?;
    inside.split('/').next().filter(|link| !matches!(*link, "all" | "default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_links_name_links_of_ours() {
        use model::layout::{BRIDGE, VXLAN_LINK};
        for key in owned_sysctls() {
            assert!(link_of(key).is_none_or(|link| [BRIDGE, VXLAN_LINK].contains(&link)), "{key}");
        }
        assert_eq!(link_of("net/ipv6/conf/flatnet.1/accept_ra"), Some(VXLAN_LINK));
        assert_eq!(link_of("net/ipv6/conf/all/forwarding"), None);
    }
}
