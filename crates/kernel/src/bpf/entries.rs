//! What is wanted, in the words of the maps: names become numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_abi::{
    ADDRESS_BITS, ANTI_SPOOFING, EXTRA_SOURCES, REMOTE_DIRECT, REMOTE_NODE, REMOTE_STACK,
    REMOTE_TUNNEL, Remote, RemoteKey, SOURCE_LINK_BITS, Settings, SourceKey, TUNNEL, VIA_STACK,
    address_bytes,
};
use ipnet::IpNet;
use model::{Family, MacAddress};
use netlink::Link;
use render::OpError;
use render::bpf::{Forwarding, Pod, Way};

use super::Program;

/// Contents of all maps, and what is attached where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) links: BTreeMap<u32, ebpf_abi::Link>,
    pub(super) sources: BTreeSet<SourceKey>,
    pub(super) pods: BTreeMap<[u8; 16], ebpf_abi::Pod>,
    pub(super) remotes: BTreeMap<RemoteKey, Remote>,
    pub(super) settings: Settings,
    pub(super) hooks: BTreeSet<(u32, Program)>,
}

impl Entries {
    /// Finds the numbers of links. What has no link is left to the kernel's path and named.
    pub(super) fn resolve(wanted: &Forwarding, links: &[Link]) -> (Self, Vec<OpError>) {
        let mut entries = Self::default();
        let mut failures = Vec::new();
        for (name, pod) in &wanted.pods {
            match links.iter().find(|link| link.name == *name) {
                Some(link) => entries.add_pod(link, pod, gateway_mac(link, links)),
                None => failures.push(gone(name)),
            }
        }
        if wanted.remotes.is_empty() {
            return (entries, failures);
        }
        let find = |name: &Option<&str>| {
            let name = name.as_ref()?;
            links.iter().find(|link| link.name == *name)
        };
        let uplink_name = wanted.uplink.as_deref();
        let tunnel_name = wanted.tunnel.as_ref().map(|end| end.link.as_str());
        let Some(uplink) = find(&uplink_name) else {
            failures.push(gone(uplink_name.unwrap_or("to the other nodes")));
            return (entries, failures);
        };
        entries.hooks.insert((uplink.index, Program::FromUplink));
        let tunnel = find(&tunnel_name);
        match (tunnel, &wanted.tunnel) {
            (Some(link), Some(end)) => {
                entries.hooks.insert((link.index, Program::FromTunnel));
                entries.settings =
                    Settings { flags: TUNNEL, vni: end.vni, port: u32::from(end.port) };
            }
            (None, Some(end)) => failures.push(gone(&end.link)),
            _ => {}
        }
        for (range, wanted) in &wanted.remotes {
            entries.remotes.insert(remote_key(range), remote(range, wanted, uplink, tunnel));
        }
        (entries, failures)
    }

    /// Takes out what relies on a program that could not be attached: where only one direction of
    /// a connection came past the kernel's tracking, the other would be refused as unknown.
    pub(super) fn withdraw(&mut self, index: u32, program: Program) {
        self.hooks.remove(&(index, program));
        match program {
            Program::FromPod => {
                self.links.remove(&index);
                self.sources.retain(|source| source.link_index != index);
                self.pods.retain(|_, pod| pod.link_index != index);
            }
            Program::FromTunnel => {
                for remote in self.remotes.values_mut().filter(|one| one.kind == REMOTE_TUNNEL) {
                    remote.kind = REMOTE_STACK;
                }
            }
            Program::FromUplink => self.remotes.clear(),
            // Nothing here relies on them.
            Program::ServiceEnter | Program::ServiceLeave | Program::AnswerName => {}
        }
    }

    fn add_pod(&mut self, link: &Link, pod: &Pod, gateway_mac: MacAddress) {
        let via_stack = if pod.via_stack { VIA_STACK } else { 0 };
        let mut own = ebpf_abi::Link {
            flags: via_stack | if pod.anti_spoofing { ANTI_SPOOFING } else { 0 },
            mac: pod.mac.0,
            gateway_mac: gateway_mac.0,
            ..ebpf_abi::Link::default()
        };
        let first = [Family::V4, Family::V6].map(|family| pod.address(family));
        for address in first.into_iter().flatten() {
            match address {
                IpAddr::V4(address) => own.ipv4 = address.octets(),
                IpAddr::V6(address) => own.ipv6 = address.octets(),
            }
        }
        let more = pod.addresses.iter().filter(|address| !first.contains(&Some(**address)));
        let ranges =
            more.map(|address| IpNet::from(*address)).chain(pod.extra_sources.iter().copied());
        for range in ranges {
            own.flags |= EXTRA_SOURCES;
            self.sources.insert(source_key(link.index, &range));
        }
        self.links.insert(link.index, own);
        self.hooks.insert((link.index, Program::FromPod));
        for address in &pod.addresses {
            let entry = ebpf_abi::Pod {
                link_index: link.index,
                flags: via_stack,
                mtu: link.mtu,
                mac: pod.mac.0,
                gateway_mac: gateway_mac.0,
            };
            self.pods.insert(address_bytes(*address), entry);
        }
    }
}

/// Whom a pod takes for its gateway: the bridge, or the node's end of its own link.
fn gateway_mac(link: &Link, links: &[Link]) -> MacAddress {
    let master = link.master.and_then(|master| links.iter().find(|one| one.index == master));
    master.unwrap_or(link).mac.unwrap_or_default()
}

fn remote(
    range: &IpNet,
    wanted: &render::bpf::Remote,
    uplink: &Link,
    tunnel: Option<&Link>,
) -> Remote {
    let node = address_bytes(wanted.node);
    match (wanted.way, tunnel) {
        (Way::Tunnel { mac }, Some(tunnel)) => Remote {
            kind: REMOTE_TUNNEL,
            link_index: tunnel.index,
            mtu: tunnel.mtu,
            node,
            mac: mac.0,
            own_mac: tunnel.mac.unwrap_or_default().0,
            ..Remote::default()
        },
        // `redirect_neigh` sends no IPv6 to a next hop of IPv4.
        (Way::Direct { next_hop }, _) if next_hop.is_ipv6() || range.addr().is_ipv4() => Remote {
            kind: REMOTE_DIRECT,
            link_index: uplink.index,
            mtu: uplink.mtu,
            node,
            next_hop: address_bytes(next_hop),
            ..Remote::default()
        },
        (Way::Node, _) => Remote { kind: REMOTE_NODE, node, ..Remote::default() },
        _ => Remote { kind: REMOTE_STACK, node, ..Remote::default() },
    }
}

fn remote_key(range: &IpNet) -> RemoteKey {
    RemoteKey { prefix_bits: bits(range), address: address_bytes(range.network()) }
}

fn source_key(link_index: u32, range: &IpNet) -> SourceKey {
    let prefix_bits = SOURCE_LINK_BITS + bits(range);
    SourceKey { prefix_bits, link_index, address: address_bytes(range.network()) }
}

/// Bits of a range's prefix in a key, where IPv4 is mapped.
fn bits(range: &IpNet) -> u32 {
    ADDRESS_BITS - u32::from(range.max_prefix_len()) + u32::from(range.prefix_len())
}

fn gone(link: &str) -> OpError {
    OpError {
        errno: libc::ENODEV,
        message: format!(
            "eBPF forwarding finds no link {link}: its packets take the kernel's own path until it is back"
        ),
    }
}
