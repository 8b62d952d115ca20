//! The pod's interface: planned, made, checked and removed.
//!
//! ```text
//! LinkOptions::parse ─▶ plan ─▶ (the record is written, the edge's rules stand) ─▶ make
//!                                        remove ◀─ record ─▶ check, set_mtu
//! ```
//!
//! The node's end is named by a hash of container and interface, so that DEL finds it without any
//! record, and carries the container id as its alias, so that nothing foreign is ever taken for
//! ours (invariant 4).

mod bandwidth;
mod bridge;
mod check;
mod macvlan;
mod mtu;
pub mod options;
mod pod;
mod removal;
mod repair;
mod routed;
pub mod tuning;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use model::attachment::{Attachment, PodLink};
use model::mac::fnv1a;
use model::{MacAddress, layout};
use netlink::{Link, Netlink, Netns, sysctl};
use nix::libc;

use crate::config::Route;
use crate::fault::{
    Fault, INTERFACE_EXISTS, INVALID_ENVIRONMENT, KERNEL_REFUSED, UNKNOWN_CONTAINER,
};
use crate::request::Request;
use crate::result::{Address, Interface};
use options::{Datapath, LinkOptions};

pub use bridge::show_to_rules;
pub use check::{Expected, check};
pub use mtu::set_mtu;
pub use pod::{adopt, tune};
pub use removal::{remove, unrecorded};
pub use repair::{damages, repair};

/// What an attachment's interface will be: the part of the record that is decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How it is connected.
    pub link: PodLink,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses, with the prefix length that the pod sees.
    pub addresses: Vec<IpNet>,
}

/// How often a link that came up is asked whether it works, and the pause between, in ms. A bridge
/// with spanning tree takes half a minute, which nobody waits for.
const WORKS_TRIES_MAX: u32 = 200;
const WORKS_PAUSE_MS: u64 = 1;

/// What was made, for the result of ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The node's end, where there is one, and the pod's, which is the last.
    pub interfaces: Vec<Interface>,
    /// The pod's addresses and the gateways that it uses.
    pub addresses: Vec<Address>,
    /// All routes that the configuration and the data path put into the pod.
    pub routes: Vec<Route>,
}

/// Decides how the interface will be, before anything is changed. `addresses` have the prefix
/// length of their range.
///
/// # Errors
/// Code 7 for a macvlan link without a link to be on.
pub fn plan(request: &Request, options: &LinkOptions, addresses: &[IpNet]) -> Result<Plan, Fault> {
    let name = node_end(&request.container_id, &request.interface);
    let mac = options.mac.unwrap_or_else(|| match addresses.first() {
        Some(first) => MacAddress::of_pod_address(first.addr()),
        None => mac_of_name(&name),
    });
    let mut plan = Plan { link: PodLink::default(), mac, addresses: addresses.to_vec() };
    plan.link = match &options.datapath {
        Datapath::Bridge(bridge) => PodLink::Bridge { name, bridge: bridge.name.clone() },
        Datapath::Routed => {
            plan.addresses = addresses.iter().map(|net| IpNet::from(net.addr())).collect();
            PodLink::Routed { name }
        }
        Datapath::Macvlan(macvlan) => {
            let lower = macvlan::lower_link(&mut Netlink::open()?, macvlan)?;
            if macvlan.mode == netlink::MacvlanMode::Passthru && options.mac.is_none() {
                plan.mac = lower.mac.unwrap_or(mac);
            }
            PodLink::Macvlan { parent: lower.name }
        }
    };
    Ok(plan)
}

/// Makes the interface that was planned and recorded. `gateways` has one entry an address of the
/// attachment. On an error the caller removes what is there, by [`remove`].
///
/// # Errors
/// What the kernel refused, or a bridge that is none.
pub fn make(
    request: &Request,
    options: &LinkOptions,
    namespace: &Netns,
    attachment: &Attachment,
    gateways: &[Option<IpAddr>],
    routes: &[Route],
) -> Result<Made, Fault> {
    let job = Job { request, options, namespace, attachment, gateways, routes };
    match &options.datapath {
        Datapath::Bridge(bridge) => bridge::make(&job, bridge),
        Datapath::Routed => routed::make(&job),
        Datapath::Macvlan(macvlan) => macvlan::make(&job, macvlan),
    }
}

/// Gives an interface that [`make`] made without addresses those that the attachment has now.
///
/// # Errors
/// What the kernel refused.
pub fn complete(
    request: &Request,
    options: &LinkOptions,
    namespace: &Netns,
    attachment: &Attachment,
    gateways: &[Option<IpAddr>],
    routes: &[Route],
) -> Result<Made, Fault> {
    let job = Job { request, options, namespace, attachment, gateways, routes };
    match &options.datapath {
        Datapath::Bridge(bridge) => bridge::complete(&job, bridge),
        Datapath::Macvlan(_) => macvlan::complete(&job),
        // Addresses are what such a link is made of.
        Datapath::Routed => routed::make(&job),
    }
}

/// Opens the pod's namespace.
///
/// # Errors
/// Code 3 when it is gone; code 4 when it is none, or the node's own.
pub fn open_namespace(request: &Request) -> Result<Netns, Fault> {
    let path = request.namespace.as_deref().unwrap_or(Path::new(""));
    let namespace = Netns::open(path).map_err(|error| {
        let code = if error.is_absent() { UNKNOWN_CONTAINER } else { INVALID_ENVIRONMENT };
        Fault::new(code, format!("cannot open CNI_NETNS {}", path.display()), error)
    })?;
    if namespace.identity()? == Netns::current()?.identity()? {
        return Err(Fault::new(
            INVALID_ENVIRONMENT,
            format!("CNI_NETNS {} is the node's own network namespace", path.display()),
            "a pod with host networking needs no plugin",
        ));
    }
    Ok(namespace)
}

/// Refuses a pod that has the interface already (CNI-10): it is another plugin's, or an earlier
/// ADD's that still holds.
///
/// # Errors
/// Code 101.
pub fn refuse_existing(namespace: &Netns, interface: &str) -> Result<(), Fault> {
    match Netlink::open_in(namespace)?.link(interface)? {
        None => Ok(()),
        Some(_) => Err(Fault::new(
            INTERFACE_EXISTS,
            format!("the interface {interface} is in the container already"),
            "call DEL before another ADD, or choose another CNI_IFNAME",
        )),
    }
}

/// The name of the node's end of a pod link.
pub fn node_end(container_id: &str, interface: &str) -> String {
    hashed(layout::POD_LINK_PREFIX, container_id, interface)
}

/// The node's ends of all pod links of ours.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn all_node_ends(node: &mut Netlink) -> Result<Vec<Link>, Fault> {
    Ok(node.links()?.into_iter().filter(is_ours).collect())
}

/// How an interface that another plugin made is connected: its node's end is the peer of a veth
/// pair.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find_chained(namespace: &Netns, interface: &str) -> Result<PodLink, Fault> {
    let link = Netlink::open_in(namespace)?.require_link(interface)?;
    let Some(peer) = link.peer_index.filter(|_| link.kind == "veth") else {
        return Ok(PodLink::default());
    };
    let mut node = Netlink::open()?;
    let is_peer = |found: &Link| found.kind == "veth" && found.peer_index == Some(link.index);
    let Some(near) = node.link_at(peer)?.filter(is_peer) else { return Ok(PodLink::default()) };
    let master = near.master.map(|master| node.link_at(master)).transpose()?.flatten();
    let bridge = master.filter(|master| master.kind == "bridge").map(|master| master.name);
    Ok(PodLink::Chained { name: Some(near.name), bridge })
}

/// The next hop of a route inside the pod: its own, or the gateway of its family. One whose scope
/// is a link has none.
pub fn next_hop(route: &Route, addresses: &[Address]) -> Option<IpAddr> {
    if route.gw.is_none() && route.scope.is_some_and(|scope| scope >= libc::RT_SCOPE_LINK) {
        return None;
    }
    let of_family =
        |address: &&Address| address.address.addr().is_ipv4() == route.dst.addr().is_ipv4();
    route.gw.or_else(|| addresses.iter().find(of_family).and_then(|address| address.gateway))
}

/// One interface to make.
struct Job<'a> {
    request: &'a Request,
    options: &'a LinkOptions,
    namespace: &'a Netns,
    attachment: &'a Attachment,
    gateways: &'a [Option<IpAddr>],
    routes: &'a [Route],
}

impl Job<'_> {
    fn alias(&self) -> String {
        alias_of(&self.request.container_id)
    }

    fn interface(&self, link: &Link, in_pod: bool) -> Interface {
        let path = self.request.namespace.as_ref().filter(|_| in_pod);
        Interface {
            name: link.name.clone(),
            mac: link.mac.unwrap_or_default().to_string(),
            mtu: link.mtu,
            sandbox: path.map(|path| path.display().to_string()).unwrap_or_default(),
            ..Interface::default()
        }
    }

    /// The addresses of the result, on the interface of a number.
    fn addresses(&self, interface_index: usize, gateway_of: GatewayOf<'_>) -> Vec<Address> {
        let all = self.attachment.addresses.iter().enumerate();
        let address = |(number, address): (usize, &IpNet)| Address {
            address: *address,
            gateway: gateway_of(address, self.gateways.get(number).copied().flatten()),
            interface_index: Some(interface_index),
        };
        all.map(address).collect()
    }
}

/// From an address and the gateway of its range: the gateway that the pod uses.
type GatewayOf<'a> = &'a dyn Fn(&IpNet, Option<IpAddr>) -> Option<IpAddr>;

/// The default route of a family.
fn default_route(of: &IpNet) -> Route {
    Route::to(match of {
        IpNet::V4(_) => ipnet::Ipv4Net::default().into(),
        IpNet::V6(_) => ipnet::Ipv6Net::default().into(),
    })
}

fn alias_of(container_id: &str) -> String {
    format!("{}{container_id}", layout::POD_LINK_ALIAS_PREFIX)
}

fn hashed(prefix: &str, container_id: &str, interface: &str) -> String {
    let hash = fnv1a(format!("{container_id}\0{interface}").as_bytes());
    format!("{prefix}{hash:08x}")
}

/// The address of a link that no pod address stands behind: stable, local, unicast.
fn mac_of_name(name: &str) -> MacAddress {
    let [a, b, c, d] = fnv1a(name.as_bytes()).to_be_bytes();
    MacAddress([0x0a, 0x59, a, b, c, d])
}

fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.kind == "veth"
        && link.name.starts_with(layout::POD_LINK_PREFIX)
        && alias.starts_with(layout::POD_LINK_ALIAS_PREFIX)
}

/// Writes a parameter that a kernel without IPv6 does not have.
fn write_where_present(key: &str, value: &str) -> Result<(), netlink::Error> {
    match sysctl::write(key, value) {
        Err(error) if error.errno == libc::ENOENT && key.starts_with("net/ipv6/") => Ok(()),
        result => result,
    }
}

/// Waits until a link whose other end has come up sends what it is given. The end that comes up last
/// works at once, the other one when the kernel has noticed, and what is sent to it before is lost:
/// the first packet of a pod, which TCP repeats a second later and UDP never.
fn wait_until_it_works(node: &mut Netlink, name: &str) -> Result<(), netlink::Error> {
    for _ in 0..WORKS_TRIES_MAX {
        // Recent kernels finish it now; older ones in a worker, within a millisecond or so.
        node.carrier(name)?;
        if node.require_link(name)?.operational {
            break;
        }
        std::thread::sleep(Duration::from_millis(WORKS_PAUSE_MS));
    }
    Ok(())
}

/// Lets the node forward between its links, for the families of these addresses. A value that is
/// there already is not written again: writing it resets other parameters of all links.
fn enable_forwarding<'a>(
    addresses: impl Iterator<Item = &'a IpNet> + Clone,
) -> Result<(), netlink::Error> {
    let families = [
        (addresses.clone().any(|net| net.addr().is_ipv4()), "net/ipv4/ip_forward"),
        (addresses.clone().any(|net| net.addr().is_ipv6()), "net/ipv6/conf/all/forwarding"),
    ];
    for (wanted, key) in families {
        if wanted && sysctl::read(key)? != "1" {
            sysctl::write(key, "1")?;
        }
    }
    Ok(())
}

fn refused(message: String, remedy: &str) -> Fault {
    Fault::new(KERNEL_REFUSED, message, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ends_fit_a_link_name_and_differ_by_container_and_interface() {
        let names = [node_end("c1", "eth0"), node_end("c1", "net1"), node_end("c1e", "th0")];
        assert!(names.iter().all(|name| name.len() == 12 && name.starts_with("veth")));
        assert!(names[0] != names[1] && names[0] != names[2]);
    }
}
