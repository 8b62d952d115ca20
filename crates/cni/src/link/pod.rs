//! The pod's side of its interface.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use model::MacAddress;
use model::attachment::{Attachment, InterfaceState};
use netlink::{
    Ipv4Parameter, Link, LinkChange, Neighbour, Netlink, Netns, Route as KernelRoute, RouteScope,
    sysctl,
};
use nix::libc;

use super::options::LinkOptions;
use super::tuning::{self, Tuning};
use super::{bandwidth, next_hop};
use crate::config::Route;
use crate::fault::Fault;
use crate::request::Request;
use crate::result::Address;

/// `RTPROT_STATIC`: the routes inside a pod are an administrator's, as far as routing daemons in
/// the pod are concerned.
const ROUTE_PROTOCOL: u8 = 4;
/// `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;
/// Written before the link is up: no router and no redirect may lead the pod's packets elsewhere
/// (CVE-2020-10749), and addresses, unique by allocation, are usable at once.
const IPV6_PARAMETERS: [(&str, &str); 4] =
    [("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0"), ("accept_dad", "0")];
/// While a host does not forward, one yes is enough: the link's or this one.
const IPV4_REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

/// Milliseconds within which the kernel takes an address into use. One worker does it for all
/// namespaces: with hundreds of pods at once on a busy machine 5 s were not enough.
const ADDRESS_TIMEOUT_MS: u64 = 20_000;
/// Microseconds between two looks at that.
const ADDRESS_PAUSE_US: u64 = 50;

/// What the pod's end becomes.
pub(super) struct Setup<'a> {
    /// Its name.
    pub(super) interface: &'a str,
    /// Its number, where the node's end of a pair tells it.
    pub(super) index: Option<u32>,
    /// Its alias; `None` for a link that is recognised by its other end.
    pub(super) alias: Option<&'a str>,
    /// Its addresses and their gateways.
    pub(super) addresses: &'a [Address],
    /// Its routes.
    pub(super) routes: &'a [Route],
    /// The MAC address of the gateways, where the pod shall never ask for it. The gateways are
    /// then on the link, whatever their addresses.
    pub(super) gateway_mac: Option<MacAddress>,
    /// Further properties.
    pub(super) tuning: &'a Tuning,
    /// Whether the link stays down.
    pub(super) down: bool,
}

impl Setup<'_> {
    /// Sets the pod's end up and answers what it is then. Inside the pod's namespace.
    pub(super) fn run(&self) -> Result<Link, netlink::Error> {
        let mut pod = Netlink::open()?;
        let index = match self.index {
            Some(index) => index,
            None => pod.require_link(self.interface)?.index,
        };
        match sysctl::write_all(&format!("net/ipv6/conf/{}", self.interface), &IPV6_PARAMETERS) {
            // A kernel without IPv6.
            Err(error) if error.errno == libc::ENOENT => {}
            result => result?,
        }
        sysctl::write(IPV4_REDIRECTS, "0")?;
        let ipv4 = [(Ipv4Parameter::AcceptRedirects, 0)];
        pod.change_link(index, &LinkChange { ipv4: &ipv4, ..LinkChange::default() })?;
        self.tuning.write_parameters()?;
        self.tuning.apply(&mut pod, index, None, None)?;
        pod.change_link(LOOPBACK_INDEX, &LinkChange::up())?;
        for address in self.addresses {
            pod.add_address(index, address.address)?;
        }
        let change = LinkChange {
            alias: self.alias,
            up: (!self.down).then_some(true),
            ..LinkChange::default()
        };
        if change.alias.is_some() || change.up.is_some() {
            pod.change_link(index, &change)?;
        }
        self.lead_out(&mut pod, index)?;
        self.wait_for_addresses(&mut pod)?;
        pod.require_link(self.interface)
    }

    /// The kernel takes IPv6 addresses into use by and by; a pod that is told of them may be
    /// asked at once.
    fn wait_for_addresses(&self, pod: &mut Netlink) -> Result<(), netlink::Error> {
        let deadline = Instant::now() + Duration::from_millis(ADDRESS_TIMEOUT_MS);
        for address in self.addresses.iter().map(|one| one.address.addr()) {
            while address.is_ipv6() && !pod.is_local(address)? {
                if Instant::now() > deadline {
                    let action = format!("see the address {address} in use");
                    return Err(netlink::Error::new(libc::ETIMEDOUT, action));
                }
                std::thread::sleep(Duration::from_micros(ADDRESS_PAUSE_US));
            }
        }
        Ok(())
    }

    /// Neighbours and routes.
    fn lead_out(&self, pod: &mut Netlink, link_index: u32) -> Result<(), netlink::Error> {
        if let Some(mac) = self.gateway_mac {
            let mut gateways: Vec<IpAddr> =
                self.addresses.iter().filter_map(|a| a.gateway).collect();
            gateways.dedup();
            for address in gateways {
                pod.set_neighbour(&Neighbour { link_index, address, mac })?;
            }
        }
        for route in self.routes {
            let made = match next_hop(route, self.addresses) {
                Some(gateway) => KernelRoute {
                    onlink: self.gateway_mac.is_some(),
                    ..KernelRoute::via(route.dst, gateway, link_index, ROUTE_PROTOCOL)
                },
                None => KernelRoute::on_link(route.dst, link_index, ROUTE_PROTOCOL),
            };
            let made = KernelRoute {
                mtu: route.mtu,
                advmss: route.advmss,
                metric: route.priority,
                scope: scope(route).unwrap_or(made.scope),
                ..made
            };
            match route.table {
                Some(table) => pod.add_route_in(table, &made)?,
                None => pod.add_route(&made)?,
            }
        }
        Ok(())
    }
}

/// Reads what an interface that another plugin made is like, for the record: DEL puts it back.
///
/// # Errors
/// When the interface is not there.
pub fn adopt(namespace: &Netns, interface: &str) -> Result<InterfaceState, Fault> {
    Ok(tuning::state_of(&Netlink::open_in(namespace)?.require_link(interface)?))
}

/// Changes an interface that another plugin made as the options say: tuning, MAC, MTU and
/// bandwidth. Answers what it is then.
///
/// # Errors
/// What the kernel refused; the caller then calls [`super::remove`].
pub fn tune(
    request: &Request,
    options: &LinkOptions,
    namespace: &Netns,
    attachment: &Attachment,
) -> Result<Link, Fault> {
    let interface = &request.interface;
    let link = namespace.run(|| {
        let mut pod = Netlink::open()?;
        let link = pod.require_link(interface)?;
        options.tuning.write_parameters()?;
        options.tuning.apply(&mut pod, link.index, options.mac, options.mtu)?;
        pod.require_link(interface)
    })??;
    bandwidth::apply(&mut Netlink::open()?, attachment)?;
    Ok(link)
}

/// The scope that a route asks for; those between the kernel's three have no use here.
fn scope(route: &Route) -> Option<RouteScope> {
    Some(match route.scope? {
        libc::RT_SCOPE_HOST => RouteScope::Host,
        libc::RT_SCOPE_LINK => RouteScope::Link,
        _ => RouteScope::Universe,
    })
}

/// What of the pod's side is not as it was made; `None` when nothing.
pub(super) fn difference(
    link: &Link,
    mac: &str,
    addresses: &[Address],
    routes: &[Route],
    pod: &mut Netlink,
) -> Result<Option<String>, netlink::Error> {
    let name = &link.name;
    let found_mac = link.mac.unwrap_or_default().to_string();
    if mac.to_lowercase() != found_mac {
        return Ok(Some(format!("the interface {name} has another MAC address: {found_mac}")));
    }
    let present = pod.addresses(Some(link.index))?;
    let lost = |wanted: &IpNet| !present.iter().any(|found| found.address == *wanted);
    if let Some(address) = addresses.iter().map(|one| one.address).find(lost) {
        return Ok(Some(format!("the address {address} is missing on {name}")));
    }
    let main = pod.routes(None)?;
    for wanted in routes {
        let there = match wanted.table {
            Some(table) => &pod.routes_in(table, None)?,
            None => &main,
        };
        let gateway = next_hop(wanted, addresses);
        let is_wanted = |found: &KernelRoute| {
            found.destination == wanted.dst && (gateway.is_none() || found.gateway == gateway)
        };
        if !there.iter().any(is_wanted) {
            return Ok(Some(format!("the route to {} is missing or changed", wanted.dst)));
        }
    }
    Ok(None)
}
