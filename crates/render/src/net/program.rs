//! A plan in the kernel's words.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, MacAddress, layout};
use plan::network::{NetworkPlan, Path, Peer, TunnelEnds};

use super::{
    LOOPBACK, LinkKind, LinkState, NetState, RouteState, WireguardDevice, WireguardPeer, sysctls,
};

/// What a node's kernel holds under a plan.
pub(super) fn state(plan: &NetworkPlan, config: &ClusterConfig) -> NetState {
    let mut state = NetState { sysctls: sysctls::of(plan, config), ..NetState::default() };
    add_bridge(plan, &mut state);
    add_ends(plan, &mut state);
    for address in &plan.dns_addresses {
        state.addresses.insert((LOOPBACK.to_owned(), IpNet::from(*address)));
    }
    for peer in plan.peers.values() {
        add_peer(plan, peer, &mut state);
    }
    state
}

fn add_bridge(plan: &NetworkPlan, state: &mut NetState) {
    let Some(first) = plan.gateways.first() else { return };
    let mac = MacAddress::of_pod_address(first.addr());
    state.links.insert(layout::BRIDGE.to_owned(), link(LinkKind::Bridge, mac, plan.mtu));
    for gateway in &plan.gateways {
        state.addresses.insert((layout::BRIDGE.to_owned(), *gateway));
    }
}

fn add_ends(plan: &NetworkPlan, state: &mut NetState) {
    let TunnelEnds { addresses, vxlan, ipip, wireguard } = &plan.ends;
    let uplink = Some(plan.uplink.clone());
    if let Some(end) = vxlan {
        let kind = LinkKind::Vxlan {
            vni: end.vni,
            port: end.port,
            local: Some(end.local),
            uplink: uplink.clone(),
            learning: false,
        };
        let link = LinkState { tx_checksum: Some(end.tx_checksum), ..link(kind, end.mac, end.mtu) };
        add_end(layout::VXLAN_LINK, link, addresses, state);
    }
    for end in ipip {
        let kind = LinkKind::Ipip { local: Some(end.local), uplink: uplink.clone() };
        let is_v4 = end.local.is_ipv4();
        let own: Vec<IpNet> =
            addresses.iter().copied().filter(|own| own.addr().is_ipv4() == is_v4).collect();
        let link = link(kind, MacAddress::default(), end.mtu);
        add_end(ipip_link(end.local), link, &own, state);
    }
    if let Some(end) = wireguard {
        let link = link(LinkKind::Wireguard, MacAddress::default(), end.mtu);
        add_end(layout::WIREGUARD_LINK, link, addresses, state);
        let device = WireguardDevice { public_key: end.public_key, port: end.port };
        state.wireguard.insert(layout::WIREGUARD_LINK.to_owned(), device);
    }
}

fn add_end(name: &str, link: LinkState, addresses: &[IpNet], state: &mut NetState) {
    state.links.insert(name.to_owned(), link);
    for address in addresses {
        state.addresses.insert((name.to_owned(), *address));
    }
}

fn add_peer(plan: &NetworkPlan, peer: &Peer, state: &mut NetState) {
    for range in &peer.pod_ranges {
        if let Some(route) = route(plan, peer, range) {
            state.routes.insert(*range, route);
        }
    }
    if let (Path::Vxlan { mac }, Some(_)) = (&peer.path, &plan.ends.vxlan) {
        let link = layout::VXLAN_LINK.to_owned();
        for range in &peer.pod_ranges {
            state.neighbours.insert((link.clone(), tunnel_next_hop(range, *mac)), *mac);
        }
        state.forwarding.insert((link, *mac), peer.address);
    }
    if let (Some(key), Some(end)) = (peer.wireguard_key, &plan.ends.wireguard) {
        // Its pods, and itself: it answers pods that asked it at its own addresses.
        let own = peer.addresses.iter().copied().map(IpNet::from);
        let allowed: BTreeSet<IpNet> = peer.pod_ranges.iter().copied().chain(own).collect();
        let endpoint = Some(SocketAddr::new(peer.address, end.port));
        let key = (layout::WIREGUARD_LINK.to_owned(), key);
        state.wireguard_peers.insert(key, WireguardPeer { endpoint, allowed });
    }
}

/// The way to one of a peer's ranges; `None` when there is none, or it is not ours.
fn route(plan: &NetworkPlan, peer: &Peer, range: &IpNet) -> Option<RouteState> {
    let source = source_for(plan, range);
    let mtu = (plan.mtu < plan.promised_mtu).then_some(plan.mtu);
    match &peer.path {
        Path::Vxlan { mac } => {
            plan.ends.vxlan.as_ref()?;
            let link = layout::VXLAN_LINK.to_owned();
            let gateway = tunnel_next_hop(range, *mac);
            let onlink = gateway.is_ipv4();
            Some(RouteState { gateway: Some(gateway), link, source, onlink, mtu })
        }
        Path::Direct => {
            let gateway = peer.address_for(range)?;
            let link = plan.uplink.clone();
            Some(RouteState { gateway: Some(gateway), link, source, onlink: false, mtu })
        }
        Path::Ipip => {
            let gateway = peer.address_for(range)?;
            let has_end = plan.ends.ipip.iter().any(|end| end.local.is_ipv4() == gateway.is_ipv4());
            let link = ipip_link(gateway).to_owned();
            let onlink = gateway.is_ipv4();
            has_end.then_some(RouteState { gateway: Some(gateway), link, source, onlink, mtu })
        }
        // Before a key is there, the route would have no peer to lead to.
        Path::Wireguard => {
            peer.wireguard_key.and(plan.ends.wireguard.as_ref())?;
            let link = layout::WIREGUARD_LINK.to_owned();
            Some(RouteState { gateway: None, link, source, onlink: false, mtu })
        }
        Path::Native => None,
    }
}

/// What stands for a peer on the VXLAN link: over IPv4 the network address of its range, over IPv6
/// the link-local address of its tunnel end. Linux looks an IPv6 next hop up among the routes and
/// refuses one that another link leads to, as the range's own route does while it changes links.
fn tunnel_next_hop(range: &IpNet, MacAddress([a, b, c, d, e, f]): MacAddress) -> IpAddr {
    match range {
        IpNet::V4(range) => range.network().into(),
        // RFC 4291, appendix A.
        IpNet::V6(_) => {
            let word = |high, low| u16::from_be_bytes([high, low]);
            let identifier = [word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f)];
            let [p, q, r, s] = identifier;
            Ipv6Addr::new(0xfe80, 0, 0, 0, p, q, r, s).into()
        }
    }
}

fn ipip_link(outer: IpAddr) -> &'static str {
    if outer.is_ipv4() { layout::IPIP_LINK } else { layout::IPIP6_LINK }
}

fn link(kind: LinkKind, mac: MacAddress, mtu: u32) -> LinkState {
    LinkState { kind, mac, mtu, up: true, tx_checksum: None }
}

/// The own gateway address of a range's family.
fn source_for(plan: &NetworkPlan, range: &IpNet) -> Option<IpAddr> {
    let gateways = plan.gateways.iter().map(IpNet::addr);
    gateways.into_iter().find(|address| address.is_ipv4() == range.addr().is_ipv4())
}
