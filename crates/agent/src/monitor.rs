//! Who else changes the kernel: notifications of rtnetlink and nf_tables, sorted by what
//! they are about. What sends none is looked at by the canary.
//!
//! Our own changes come back too. Those of our sockets are told by their address; the rest costs
//! one more reading of the kernel, which writes nothing and so ends there.
#![allow(unsafe_code)] // tokio asks for a promise about the descriptor, see `register`

use std::collections::BTreeMap;

use anyhow::Result;
use netlink::message::u32_of;
use netlink::{Monitor, Netlink, Notice};
use render::net::{LOOPBACK, OWN_LINKS};
use render::owned::{NFT_TABLE, ROUTE_PROTOCOL};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The first attribute of every nf_tables object but a generation: its table's name.
const NFTA_TABLE: u16 = 1;
/// Bytes of `struct nfgenmsg`.
const NFT_HEADER_BYTES: usize = 4;
const NFT_MSG_NEWGEN: u8 = 15;
const ROUTE_GROUPS: [u32; 10] = [
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
];

/// What may have changed by another's hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Something that the loop has put there, or keeps so.
    pub(crate) kernel: bool,
    /// The node's own links.
    pub(crate) facts: bool,
    /// Rules at the edges of pods.
    pub(crate) edge: bool,
}

impl Heard {
    const ALL: Self = Self { kernel: true, facts: true, edge: true };

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
    uplink: Option<String>,
}

impl KernelMonitor {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses a socket or the links.
    pub(crate) fn open(own_ports: Vec<u32>) -> Result<Self> {
        let route = Monitor::open(libc::NETLINK_ROUTE, &ROUTE_GROUPS)?;
        let netfilter = Monitor::open(libc::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        let mut names = Names { own_ports, ..Names::default() };
        // After the sockets: what appears between the two is heard of.
        for link in Netlink::open()?.links()? {
            names.learn(link.index, &link.name);
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
            self.names.learn(link.index, &link.name);
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

fn register(monitor: Monitor) -> Result<AsyncFd<Monitor>> {
    // SAFETY: a `Monitor` owns one descriptor from its making to its end, and answers no other.
    let registered = unsafe { AsyncFd::register_with_interest(monitor, Interest::READABLE) };
    Ok(registered?)
}

impl Names {
    fn learn(&mut self, index: u32, name: &str) {
        let matters = OWN_LINKS.contains(&name) || self.uplink.as_deref() == Some(name);
        if matters || name == LOOPBACK {
            self.links.insert(index, name.to_owned());
        } else {
            self.links.remove(&index);
        }
    }

    fn of_route(&mut self, notice: &Notice) -> Heard {
        let byte = |offset: usize| notice.payload.get(offset).copied().unwrap_or_default();
        let index = notice.payload.get(4..).and_then(u32_of).unwrap_or_default();
        let own = self.own_ports.contains(&notice.port_id);
        let kernel = Heard { kernel: !own, ..Heard::default() };
        match notice.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                // struct ifinfomsg; IFLA_IFNAME is 3. A port that leaves a bridge is told of in
                // the bridge's family.
                let left =
                    notice.kind == libc::RTM_DELLINK && i32::from(byte(0)) == libc::AF_BRIDGE;
                if let Some(name) = notice.attributes(16).text(3).filter(|_| !left) {
                    self.learn(index, &name);
                }
                self.of_link(index, own, left)
            }
            // struct ifaddrmsg has the index at the same place.
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.of_link(index, own, false),
            // struct ndmsg likewise. Those of the bridge are pods, whom the kernel learns.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => match self.links.get(&index) {
                Some(name) if OWN_LINKS.contains(&name.as_str()) && !is_bridge(name) => kernel,
                _ => Heard::default(),
            },
            // struct rtmsg: destination length, protocol.
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => match (byte(5), byte(1)) {
                (ROUTE_PROTOCOL, _) => kernel,
                (_, 0) => Heard { facts: true, ..Heard::default() },
                _ => Heard::default(),
            },
            // Policy rules and parameters of links: rare, and read back cheaply.
            _ => kernel,
        }
    }

    fn of_link(&self, index: u32, own: bool, left: bool) -> Heard {
        let name = self.links.get(&index).map(String::as_str);
        let is_uplink = name.is_some() && name == self.uplink.as_deref();
        // Routes over a link that goes down go without a word.
        let kernel = !own && (left || name.is_some());
        Heard { kernel, facts: is_uplink, edge: false }
    }

    fn of_netfilter(&self, notice: &Notice) -> Heard {
        let [message, _] = notice.kind.to_ne_bytes();
        if message == NFT_MSG_NEWGEN || self.own_ports.contains(&notice.port_id) {
            return Heard::default();
        }
        match notice.attributes(NFT_HEADER_BYTES).text(NFTA_TABLE).as_deref() {
            Some(NFT_TABLE) => Heard { kernel: true, ..Heard::default() },
            Some(table) if table.starts_with(NFT_TABLE) => Heard { edge: true, ..Heard::default() },
            _ => Heard::default(),
        }
    }
}

fn is_bridge(name: &str) -> bool {
    name == model::layout::BRIDGE
}
