//! Who else changes the kernel: notifications of rtnetlink and nf_tables, sorted by what
//! they are about. What sends none is looked at by the canary.
//!
//! Our own changes come back too. Those of our sockets are told by their address; the rest costs
//! one more reading of the kernel, which writes nothing and so ends there.
#![allow(unsafe_code)] // tokio asks for a promise about the descriptor, see `register`

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use model::ServiceBackend;
use model::layout::{self, BRIDGE};
use netlink::message::u32_of;
use netlink::{Monitor, Netlink, Notice};
use render::net::{LOOPBACK, OWN_LINKS};
use render::owned::{NFT_TABLE, ROUTE_PROTOCOL};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The tables of iptables that have chains of ours, by their names in nf_tables. The older variant
/// tells nobody of its changes: those are seen when the kernel is read back.
const IPTABLES_TABLES: [&str; 2] = ["nat", "filter"];
/// `NFNLGRP_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The first attribute of every nf_tables object but a generation: its table's name.
const NFTA_TABLE: u16 = 1;
/// Bytes of `struct nfgenmsg`.
const NFT_HEADER_BYTES: usize = 4;
const NFT_MSG_NEWGEN: u8 = 15;
const ROUTE_GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
    libc::RTNLGRP_TC,
];
/// `IFLA_IFNAME` and `IFLA_IFALIAS` behind a `struct ifinfomsg`.
const LINK_HEADER_BYTES: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_IFALIAS: u16 = 20;
/// Messages about queueing disciplines, their classes and filters.
const TRAFFIC_CONTROL: std::ops::RangeInclusive<u16> = libc::RTM_NEWQDISC..=libc::RTM_GETTFILTER;

/// What may have changed by another's hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Something that the loop has put there, or keeps so.
    pub(crate) kernel: bool,
    /// The node's own links.
    pub(crate) facts: bool,
    /// Rules at the edges of pods, or the node's ends of their links.
    pub(crate) edge: bool,
}

impl Heard {
    const NOTHING: Self = Self { kernel: false, facts: false, edge: false };
    const ALL: Self = Self { kernel: true, facts: true, edge: true };
    const KERNEL: Self = Self { kernel: true, ..Self::NOTHING };
    const FACTS: Self = Self { facts: true, ..Self::NOTHING };
    const EDGE: Self = Self { edge: true, ..Self::NOTHING };

    pub(crate) fn add(&mut self, other: Self) {
        self.kernel |= other.kernel;
        self.facts |= other.facts;
        self.edge |= other.edge;
    }
}

/// The two sockets.
pub(crate) struct KernelMonitor {
    route: AsyncFd<Monitor>,
    netfilter: AsyncFd<Monitor>,
    names: Names,
}

/// What a notification is judged by.
#[derive(Default)]
struct Names {
    /// Sockets of ours.
    own_ports: Vec<u32>,
    /// Links that matter, by index.
    links: BTreeMap<u32, String>,
    /// The node's ends of pods' links.
    pods: BTreeSet<u32>,
    uplink: Option<String>,
    /// What implements Services.
    backend: ServiceBackend,
}

impl KernelMonitor {
    /// Listens in the network namespace of the calling thread; to tables of iptables, or links of
    /// pods, too where Services stand there.
    ///
    /// # Errors
    /// When the system refuses a socket or the links.
    pub(crate) fn open(own_ports: Vec<u32>, backend: ServiceBackend) -> Result<Self> {
        let route = Monitor::open(libc::NETLINK_ROUTE, &ROUTE_GROUPS)?;
        let netfilter = Monitor::open(libc::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        let mut names = Names { own_ports, backend, ..Names::default() };
        // After the sockets: what appears between the two is heard of.
        for link in Netlink::open()?.links()? {
            names.learn(link.index, &link.name, link.alias.as_deref());
        }
        Ok(Self { route: register(route)?, netfilter: register(netfilter)?, names })
    }

    /// Whose changes are facts.
    pub(crate) fn set_uplink(&mut self, uplink: &str) -> Result<()> {
        if self.names.uplink.as_deref() == Some(uplink) {
            return Ok(());
        }
        self.names.uplink = Some(uplink.to_owned());
        if let Some(link) = Netlink::open()?.link(uplink)? {
            self.names.learn(link.index, &link.name, link.alias.as_deref());
        }
        Ok(())
    }

    /// Waits for notifications and says what they are about; often nothing of ours.
    ///
    /// # Errors
    /// When a socket fails for good.
    pub(crate) async fn heard(&mut self) -> Result<Heard> {
        let (mut ready, is_route) = tokio::select! {
            ready = self.route.readable_mut() => (ready?, true),
            ready = self.netfilter.readable_mut() => (ready?, false),
        };
        let read = ready.get_inner_mut().read()?;
        if !read.more {
            ready.clear_ready();
        }
        let mut heard = if read.lost { Heard::ALL } else { Heard::default() };
        for notice in &read.notices {
            heard.add(match is_route {
                true => self.names.of_route(notice),
                false => self.names.of_netfilter(notice),
            });
        }
        Ok(heard)
    }
}

pub(crate) fn register(monitor: Monitor) -> Result<AsyncFd<Monitor>> {
    // SAFETY: a `Monitor` owns one descriptor from its making to its end, and answers no other.
    let registered = unsafe { AsyncFd::register_with_interest(monitor, Interest::READABLE) };
    Ok(registered?)
}

impl Names {
    fn learn(&mut self, index: u32, name: &str, alias: Option<&str>) {
        let matters = OWN_LINKS.contains(&name) || self.uplink.as_deref() == Some(name);
        if matters || name == LOOPBACK {
            self.links.insert(index, name.to_owned());
        } else {
            self.links.remove(&index);
        }
        if alias.is_some_and(|alias| alias.starts_with(layout::POD_LINK_ALIAS_PREFIX)) {
            self.pods.insert(index);
        }
    }

    fn of_route(&mut self, notice: &Notice) -> Heard {
        let byte = |offset: usize| notice.payload.get(offset).copied().unwrap_or_default();
        // The link stands at the same place in ifinfomsg, ifaddrmsg, ndmsg and tcmsg.
        let index = notice.payload.get(4..).and_then(u32_of).unwrap_or_default();
        let own = self.own_ports.contains(&notice.port_id);
        let kernel = if own { Heard::NOTHING } else { Heard::KERNEL };
        match notice.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.of_link(notice, index, own),
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.of_known_link(index, own),
            // Those of the bridge are pods, whom the kernel learns.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH if self.pods.contains(&index) => Heard::EDGE,
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => match self.links.get(&index) {
                Some(name) if OWN_LINKS.contains(&name.as_str()) && name != BRIDGE => kernel,
                _ => Heard::NOTHING,
            },
            // struct rtmsg: destination length, protocol.
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => match (byte(5), byte(1)) {
                (ROUTE_PROTOCOL, _) => kernel,
                (layout::POD_ROUTE_PROTOCOL, _) => Heard::EDGE,
                (_, 0) => Heard::FACTS,
                _ => Heard::NOTHING,
            },
            kind if TRAFFIC_CONTROL.contains(&kind) => {
                let edge = self.pods.contains(&index);
                let on_ours = edge || self.links.contains_key(&index);
                Heard { edge, kernel: on_ours && self.has_programs(), facts: false }
            }
            // Policy rules and parameters of links: rare, and read back cheaply.
            _ => kernel,
        }
    }

    fn of_link(&mut self, notice: &Notice, index: u32, own: bool) -> Heard {
        let attributes = notice.attributes(LINK_HEADER_BYTES);
        let name = attributes.text(IFLA_IFNAME).unwrap_or_default();
        let alias = attributes.text(IFLA_IFALIAS);
        let gone = notice.kind == libc::RTM_DELLINK;
        // A port that leaves a bridge is told of in the bridge's family.
        let family = notice.payload.first().copied().map(i32::from);
        let left = gone && family == Some(libc::AF_BRIDGE);
        if family != Some(libc::AF_BRIDGE) {
            self.learn(index, &name, alias.as_deref());
        }
        let mut heard = self.of_known_link(index, own);
        heard.kernel |= left && !own;
        heard.edge |= self.pods.contains(&index);
        // A link that comes gets its programs, also one of ours.
        let may_have_programs = heard.edge || self.links.contains_key(&index);
        heard.kernel |= may_have_programs && self.has_programs();
        if gone && !left {
            self.links.remove(&index);
            self.pods.remove(&index);
        }
        heard
    }

    /// Whether programs at links translate packets of Services.
    fn has_programs(&self) -> bool {
        self.backend == ServiceBackend::Ebpf
    }

    /// Routes over a link that goes down go without a word, so that every word counts.
    fn of_known_link(&self, index: u32, own: bool) -> Heard {
        let name = self.links.get(&index).map(String::as_str);
        let is_uplink = name.is_some() && name == self.uplink.as_deref();
        Heard { kernel: !own && name.is_some(), facts: is_uplink, edge: false }
    }

    fn of_netfilter(&self, notice: &Notice) -> Heard {
        let [message, _] = notice.kind.to_ne_bytes();
        if message == NFT_MSG_NEWGEN || self.own_ports.contains(&notice.port_id) {
            return Heard::NOTHING;
        }
        let has_iptables = self.backend == ServiceBackend::Iptables;
        match notice.attributes(NFT_HEADER_BYTES).text(NFTA_TABLE).as_deref() {
            Some(NFT_TABLE) => Heard::KERNEL,
            Some(table) if table.starts_with(NFT_TABLE) => Heard::EDGE,
            Some(table) if has_iptables && IPTABLES_TABLES.contains(&table) => Heard::KERNEL,
            _ => Heard::NOTHING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_PORT: u32 = 7;
    const TUNNEL: u32 = 3;
    const UPLINK: u32 = 2;
    const POD: u32 = 9;

    fn names() -> Names {
        let mut names =
            Names { own_ports: vec![OWN_PORT], uplink: Some("eth0".into()), ..Names::default() };
        names.learn(UPLINK, "eth0", None);
        names.learn(TUNNEL, layout::VXLAN_LINK, None);
        names.learn(4, BRIDGE, None);
        names.learn(POD, "veth1", Some("flatnet:c1"));
        names.learn(10, "docker0", None);
        names
    }

    /// A header of 16 bytes with an index, then one attribute.
    fn notice(kind: u16, index: u32, attribute: (u16, &str)) -> Notice {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        let value = [attribute.1.as_bytes(), &[0]].concat();
        payload.extend((4 + value.len() as u16).to_ne_bytes());
        payload.extend(attribute.0.to_ne_bytes());
        payload.extend(value);
        Notice { kind, port_id: 0, payload }
    }

    #[test]
    fn what_is_ours_matters_and_what_is_not_does_not() {
        let link = |index, name| notice(libc::RTM_NEWLINK, index, (IFLA_IFNAME, name));
        let of = |kind, index| notice(kind, index, (0, ""));
        let route = |protocol: u8, length: u8| {
            let mut notice = of(libc::RTM_DELROUTE, 0);
            (notice.payload[1], notice.payload[5]) = (length, protocol);
            notice
        };
        let rows = [
            (link(TUNNEL, layout::VXLAN_LINK), Heard::KERNEL),
            (link(UPLINK, "eth0"), Heard { kernel: true, facts: true, edge: false }),
            (link(POD, "veth1"), Heard::EDGE),
            (link(10, "docker0"), Heard::NOTHING),
            (of(libc::RTM_DELADDR, TUNNEL), Heard::KERNEL),
            (of(libc::RTM_NEWADDR, 10), Heard::NOTHING),
            (of(libc::RTM_DELNEIGH, TUNNEL), Heard::KERNEL),
            (of(libc::RTM_NEWNEIGH, 4), Heard::NOTHING),
            (of(libc::RTM_NEWNEIGH, UPLINK), Heard::NOTHING),
            (of(libc::RTM_DELNEIGH, POD), Heard::EDGE),
            (of(libc::RTM_DELQDISC, POD), Heard::EDGE),
            (of(libc::RTM_DELQDISC, 10), Heard::NOTHING),
            (route(ROUTE_PROTOCOL, 24), Heard::KERNEL),
            (route(layout::POD_ROUTE_PROTOCOL, 32), Heard::EDGE),
            (route(libc::RTPROT_STATIC, 0), Heard::FACTS),
            (route(libc::RTPROT_STATIC, 24), Heard::NOTHING),
        ];
        for (notice, expected) in rows {
            assert_eq!(names().of_route(&notice), expected, "{notice:?}");
        }
    }

    #[test]
    fn with_services_in_ebpf_links_of_pods_and_our_own_new_ones_are_read_back() {
        let mut names = Names { backend: ServiceBackend::Ebpf, ..names() };
        let with_kernel = Heard { kernel: true, ..Heard::EDGE };
        let of = |kind, index| notice(kind, index, (0, ""));
        let own = |mut notice: Notice| {
            notice.port_id = OWN_PORT;
            notice
        };
        let link = |index, name| notice(libc::RTM_NEWLINK, index, (IFLA_IFNAME, name));
        let rows = [
            (link(POD, "veth1"), with_kernel),
            (own(link(TUNNEL, layout::VXLAN_LINK)), Heard::KERNEL),
            (of(libc::RTM_DELQDISC, POD), with_kernel),
            (of(libc::RTM_DELTFILTER, TUNNEL), Heard::KERNEL),
            (link(10, "docker0"), Heard::NOTHING),
            (of(libc::RTM_DELQDISC, 10), Heard::NOTHING),
        ];
        for (notice, expected) in rows {
            assert_eq!(names.of_route(&notice), expected, "{notice:?}");
        }
    }

    #[test]
    fn our_own_changes_and_other_tables_do_not_matter() {
        let table = |name: &str, port_id: u32| {
            let mut payload = vec![0; 4];
            payload.extend((5 + name.len() as u16).to_ne_bytes());
            payload.extend(NFTA_TABLE.to_ne_bytes());
            payload.extend(name.bytes().chain([0]));
            Notice { kind: 0x0a02, port_id, payload }
        };
        assert_eq!(names().of_netfilter(&table(NFT_TABLE, 1)), Heard::KERNEL);
        assert_eq!(names().of_netfilter(&table(NFT_TABLE, OWN_PORT)), Heard::NOTHING);
        assert_eq!(names().of_netfilter(&table("nat", 1)), Heard::NOTHING);
        let with_iptables = Names { backend: ServiceBackend::Iptables, ..names() };
        assert_eq!(with_iptables.of_netfilter(&table("nat", 1)), Heard::KERNEL);
        assert_eq!(with_iptables.of_netfilter(&table("raw", 1)), Heard::NOTHING);
        assert_eq!(names().of_netfilter(&table("flatnet-pods", 1)), Heard::EDGE);
        assert_eq!(names().of_netfilter(&table("docker", 1)), Heard::NOTHING);
        let mut own = notice(libc::RTM_DELADDR, TUNNEL, (0, ""));
        own.port_id = OWN_PORT;
        assert_eq!(names().of_route(&own), Heard::NOTHING);
    }

    #[test]
    fn a_link_that_comes_back_under_another_index_is_known_again() {
        let mut names = names();
        let gone = notice(libc::RTM_DELLINK, TUNNEL, (IFLA_IFNAME, layout::VXLAN_LINK));
        assert_eq!(names.of_route(&gone), Heard::KERNEL);
        let address = |index| notice(libc::RTM_NEWADDR, index, (0, ""));
        assert_eq!(names.of_route(&address(TUNNEL)), Heard::NOTHING);
        let back = notice(libc::RTM_NEWLINK, 30, (IFLA_IFNAME, layout::VXLAN_LINK));
        assert_eq!(names.of_route(&back), Heard::KERNEL);
        assert_eq!(names.of_route(&address(30)), Heard::KERNEL);
    }
}
