//! The kernel parameters of a node's network namespace, in one table with their reasons.

use std::collections::{BTreeMap, BTreeSet};

use model::layout::{BRIDGE, IPIP_LINK, IPIP6_LINK, VXLAN_LINK, WIREGUARD_LINK};
use model::{ClusterConfig, ConntrackConfig, Family, ServiceBackend};
use plan::network::NetworkPlan;

use super::ConntrackLimit;

/// All links that we make for a node.
pub const OWN_LINKS: [&str; 5] = [BRIDGE, VXLAN_LINK, IPIP_LINK, IPIP6_LINK, WIREGUARD_LINK];

/// When a parameter is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    Ipv6,
    /// With eBPF forwarding, which comes with Services in eBPF.
    Ebpf,
}

/// How many flows the machine tracks at most.
pub const CONNTRACK_MAX: &str = "net/netfilter/nf_conntrack_max";
/// Lists that they are looked up in.
pub const CONNTRACK_BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";
/// Flows for each of these lists: kube-proxy's ratio.
const FLOWS_PER_BUCKET: u32 = 4;
/// What those of connection tracking begin with.
pub const CONNTRACK_PREFIX: &str = "net/netfilter/nf_conntrack_";
const TCP_BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// What a parameter is set to; `None`: it stays.
type Setting = fn(&ConntrackConfig) -> Option<u32>;

/// Those that the configuration of connection tracking has.
const OF_CONNTRACK: &[(&str, Setting)] = &[
    ("net/netfilter/nf_conntrack_tcp_timeout_established", |config| {
        config.tcp_established_timeout.seconds()
    }),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", |config| {
        config.tcp_close_wait_timeout.seconds()
    }),
    (TCP_BE_LIBERAL, |config| config.tcp_be_liberal.then_some(1)),
    ("net/netfilter/nf_conntrack_udp_timeout", |config| config.udp_timeout.seconds()),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", |config| config.udp_stream_timeout.seconds()),
];

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
    // Connections that eBPF forwarded for a while have moved on when the kernel sees them again.
    (TCP_BE_LIBERAL, "1", Need::Ebpf),
    // Pods have their gateway from CNI; no pod may teach the node routes (CVE-2020-13401), nor
    // is a pod to be told of ways round the Service translation.
    ("net/ipv4/conf/cni0/accept_redirects", "0", Need::Always),
    ("net/ipv4/conf/cni0/send_redirects", "0", Need::Always),
    ("net/ipv6/conf/cni0/accept_ra", "0", Need::Always),
    ("net/ipv6/conf/cni0/accept_redirects", "0", Need::Always),
    ("net/ipv6/conf/cni0/autoconf", "0", Need::Always),
    // Nobody else has the bridge's addresses. While one is being checked for duplicates, a second
    // or two, the kernel has no source for the solicitations of what it forwards to a pod.
    ("net/ipv6/conf/cni0/accept_dad", "0", Need::Always),
    // All that comes from the bridge has an address that is routed back there.
    ("net/ipv4/conf/cni0/rp_filter", "1", Need::Always),
];

/// The tunnel links, and which families of packets they carry.
const TUNNEL_LINKS: [(&str, &[Family]); 4] = [
    (VXLAN_LINK, &[Family::V4, Family::V6]),
    (IPIP_LINK, &[Family::V4]),
    (IPIP6_LINK, &[Family::V6]),
    (WIREGUARD_LINK, &[Family::V4, Family::V6]),
];

/// Parameters of each tunnel link.
const OF_TUNNELS: &[(Family, &str, &str)] = &[
    (Family::V4, "accept_redirects", "0"),
    (Family::V4, "send_redirects", "0"),
    // Loose, whatever the distribution set for all links: while routes change, the way back may
    // already differ. Who may send what is judged before it is unwrapped, in `nft::tunnel`, or by
    // WireGuard itself.
    (Family::V4, "rp_filter", "2"),
    (Family::V6, "accept_ra", "0"),
    (Family::V6, "accept_redirects", "0"),
    (Family::V6, "autoconf", "0"),
    // As for the bridge.
    (Family::V6, "accept_dad", "0"),
];

/// The parameters that a plan wants.
pub(super) fn of(plan: &NetworkPlan, config: &ClusterConfig) -> BTreeMap<String, String> {
    let ipv6 = plan.pod_ranges.iter().any(|range| range.addr().is_ipv6());
    let ipip = |is_v4: bool| plan.ends.ipip.iter().any(|end| end.local.is_ipv4() == is_v4);
    let exists = |link: &str| match link {
        VXLAN_LINK => plan.ends.vxlan.is_some(),
        IPIP_LINK => ipip(true),
        IPIP6_LINK => ipip(false),
        _ => plan.ends.wireguard.is_some(),
    };
    let wanted = SYSCTLS.iter().filter(|(_, _, need)| match need {
        Need::Always => true,
        Need::Ipv6 => ipv6,
        Need::Ebpf => config.service_backend == ServiceBackend::Ebpf,
    });
    let general = wanted.map(|(key, value, _)| ((*key).to_owned(), (*value).to_owned()));
    let conntrack = OF_CONNTRACK.iter().filter_map(|(key, value)| {
        value(&config.conntrack).map(|value| ((*key).to_owned(), value.to_string()))
    });
    let tunnels = of_tunnels().filter(|(link, ..)| exists(link));
    general.chain(conntrack).chain(tunnels.map(|(_, key, value)| (key, value.to_owned()))).collect()
}

/// The number of flows to which the limit is to be raised. It is never lowered: another program may
/// have raised it, and flows beyond it would be refused.
pub fn missing_entries(config: &ConntrackConfig, limit: &ConntrackLimit) -> Option<u32> {
    config.entries_min(limit.processors).filter(|&entries| entries > limit.entries_max)
}

/// The parameters that raise it, with their values.
pub(super) fn raise(
    config: &ConntrackConfig,
    limit: &ConntrackLimit,
) -> Vec<(&'static str, String)> {
    let Some(entries) = missing_entries(config, limit) else { return vec![] };
    let buckets = entries / FLOWS_PER_BUCKET;
    let buckets = (buckets > limit.buckets).then(|| (CONNTRACK_BUCKETS, buckets.to_string()));
    buckets.into_iter().chain([(CONNTRACK_MAX, entries.to_string())]).collect()
}

/// All parameters that any plan may want: what is read back.
pub fn owned_sysctls() -> impl Iterator<Item = String> {
    let of_node = SYSCTLS.iter().map(|(key, ..)| *key);
    let of_node: BTreeSet<&str> = of_node.chain(OF_CONNTRACK.iter().map(|(key, _)| *key)).collect();
    of_node.into_iter().map(str::to_owned).chain(of_tunnels().map(|(_, key, _)| key))
}

/// Link, key and value.
fn of_tunnels() -> impl Iterator<Item = (&'static str, String, &'static str)> {
    TUNNEL_LINKS.into_iter().flat_map(|(link, families)| {
        let rows = OF_TUNNELS.iter().filter(|(family, ..)| families.contains(family));
        rows.map(move |(family, name, value)| {
            let version = match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            (link, format!("net/{version}/conf/{link}/{name}"), *value)
        })
    })
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
        for key in owned_sysctls() {
            assert!(link_of(&key).is_none_or(|link| OWN_LINKS.contains(&link)), "{key}");
        }
        // Without these, a node forwards no IPv6 to its first pod for two seconds.
        for link in OWN_LINKS.into_iter().filter(|link| *link != IPIP_LINK) {
            let key = format!("net/ipv6/conf/{link}/accept_dad");
            assert!(owned_sysctls().any(|owned| owned == key), "{key}");
        }
        assert_eq!(link_of("net/ipv6/conf/flatnet.1/accept_ra"), Some(VXLAN_LINK));
        assert_eq!(link_of("net/ipv6/conf/all/forwarding"), None);
    }
}
