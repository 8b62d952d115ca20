//! A veth pair whose near end is a port of a bridge (reference plugin `bridge`).

use std::net::IpAddr;

use ipnet::IpNet;
use model::MacAddress;
use model::attachment::{Attachment, IngressPolicy};
use netlink::{
    Address as KernelAddress, BridgeSpec, Link, LinkChange, Netlink, PortOptions, PortVlan,
    VethSpec, sysctl,
};
use nix::libc;

use super::options::BridgeOptions;
use super::pod::Setup;
use super::{
    Job, Made, bandwidth, default_route, enable_forwarding, hashed, mac_of_name, refused, removal,
    wait_until_it_works, write_where_present,
};
use crate::fault::{Fault, KERNEL_REFUSED};

/// The VLAN that a bridge puts new ports into.
const DEFAULT_VLAN: u16 = 1;
/// There with the module that hands bridged packets to the rules of IP.
const NETFILTER_OF_BRIDGES: &str = "net/bridge/bridge-nf-call-iptables";
/// What names of bridge ports begin with that carry a VLAN's gateway address.
const VLAN_PORT_PREFIX: &str = "vlan";

/// Puts the pod on the bridge.
pub(super) fn make(job: &Job<'_>, options: &BridgeOptions) -> Result<Made, Fault> {
    let mut node = Netlink::open()?;
    let bridge = ensure_bridge(&mut node, job, options)?;
    let name = job.attachment.link.node_end().unwrap_or_default();
    let interface = &job.request.interface;
    let mut spec = VethSpec::new(name, interface)
        .peer_in(job.namespace)
        .peer_mac(job.attachment.mac)
        .master(bridge.index);
    if let Some(mtu) = job.options.mtu {
        spec = spec.mtu(mtu);
    }
    removal::create_veth(&mut node, name, &spec)?;
    // A bridge port needs no address of its own: without IPv6 it hears no router advertisement.
    write_where_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    let near = node.require_link(name)?;
    set_vlans(&mut node, near.index, options)?;
    let port = PortOptions { hairpin: options.hairpin, isolated: options.port_isolation };
    let alias = job.alias();
    node.set_port(near.index, &LinkChange { alias: Some(&alias), ..LinkChange::up() }, port)?;
    bandwidth::apply(&mut node, job.attachment)?;
    set_up_far(&mut node, job, options, &near, bridge.operational)
}

/// Gives a pod that is on the bridge its addresses.
pub(super) fn complete(job: &Job<'_>, options: &BridgeOptions) -> Result<Made, Fault> {
    let name = job.attachment.link.node_end().unwrap_or_default();
    let mut node = Netlink::open()?;
    let near = node.require_link(name)?;
    set_up_far(&mut node, job, options, &near, false)
}

/// Whatever begins at the pod's end. `bridge_works` is whether the bridge has a port already that
/// works: then it need not be waited for.
fn set_up_far(
    node: &mut Netlink,
    job: &Job<'_>,
    options: &BridgeOptions,
    near: &Link,
    bridge_works: bool,
) -> Result<Made, Fault> {
    show_to_rules(job.attachment)?;
    let interface = &job.request.interface;
    let addresses = job.addresses(1, &|_, gateway| gateway);
    let mut routes = job.routes.to_vec();
    if options.is_default_gateway {
        for address in &addresses {
            let default = default_route(&address.address);
            if !routes.iter().any(|route| route.dst == default.dst) {
                routes.push(default);
            }
        }
    }
    let setup = Setup {
        interface,
        index: near.peer_index,
        alias: None,
        addresses: &addresses,
        routes: &routes,
        gateway_mac: None,
        tuning: &job.options.tuning,
        down: options.disable_container_interface,
    };
    let far = job.namespace.run(|| setup.run())??;
    if far.up {
        wait_until_it_works(node, &near.name)?;
        if !bridge_works {
            wait_until_it_works(node, &options.name)?;
        }
    }
    let interfaces = vec![job.interface(near, false), job.interface(&far, true)];
    Ok(Made { interfaces, addresses, routes })
}

/// Lets the node's rules see what passes between the ports of a pod's bridge, where they shall decide
/// who may come in to the pod.
///
/// # Errors
/// When the kernel cannot, since without it the rules would be passed by.
pub fn show_to_rules(attachment: &Attachment) -> Result<(), Fault> {
    let policy = attachment.edge.firewall.as_ref().map(|firewall| firewall.ingress_policy);
    let Some(bridge) = attachment.link.bridge() else { return Ok(()) };
    if policy.is_none_or(|policy| policy == IngressPolicy::Open) {
        return Ok(());
    }
    if let Err(error) = sysctl::read(NETFILTER_OF_BRIDGES) {
        return Err(refused(
            format!("firewall.ingressPolicy cannot hold between pods of {bridge}: {error}"),
            "load the kernel module br_netfilter, or choose the policy open",
        ));
    }
    let mut node = Netlink::open()?;
    let index = node.require_link(bridge)?.index;
    Ok(node.show_bridged_to_netfilter(index)?)
}

/// The bridge; made where the agent has not made it yet. Its gateway address is there afterwards
/// when the configuration says so, or says nothing and the bridge is new.
fn ensure_bridge(
    node: &mut Netlink,
    job: &Job<'_>,
    options: &BridgeOptions,
) -> Result<Link, Fault> {
    let gateways = gateways(job);
    let (link, fresh) = match node.link(&options.name)? {
        Some(link) => (accept_bridge(link)?, false),
        None => (create_bridge(node, job, options, &gateways)?, true),
    };
    if options.promiscuous && !link.promiscuous {
        let change = LinkChange { promiscuous: Some(true), ..LinkChange::default() };
        node.change_link(link.index, &change)?;
    }
    if options.uses_vlans() && link.vlan_filtering != Some(true) {
        enable_vlans(node, &link)?;
    }
    if options.is_gateway.unwrap_or(fresh) && !gateways.is_empty() {
        let carrier = match options.vlan {
            Some(vlan) => ensure_vlan_link(node, &link, vlan)?,
            None => link.clone(),
        };
        set_gateways(node, &carrier, &gateways, options)?;
        enable_forwarding(gateways.iter())?;
    }
    if !link.up {
        node.change_link(link.index, &LinkChange::up())?;
    }
    Ok(link)
}

fn gateways(job: &Job<'_>) -> Vec<IpNet> {
    let pairs = job.attachment.addresses.iter().zip(job.gateways);
    let gateway = |(address, gateway): (&IpNet, &Option<IpAddr>)| {
        IpNet::new((*gateway)?, address.prefix_len()).ok()
    };
    pairs.filter_map(gateway).collect()
}

fn create_bridge(
    node: &mut Netlink,
    job: &Job<'_>,
    options: &BridgeOptions,
    gateways: &[IpNet],
) -> Result<Link, Fault> {
    let name = &options.name;
    let mac = match gateways.first() {
        Some(gateway) => MacAddress::of_pod_address(gateway.addr()),
        None => mac_of_name(name),
    };
    let spec = BridgeSpec { name: name.clone(), mac: Some(mac), mtu: job.options.mtu };
    // The agent, or another ADD, may be faster: then the bridge is theirs to finish or ours, and
    // both do the same.
    match node.create_bridge(&spec) {
        Err(error) if !error.is_present() => return Err(error.into()),
        _ => {}
    }
    // What the agent sets too (`render::net`), with the reasons.
    for key in ["accept_ra", "autoconf", "accept_redirects", "accept_dad"] {
        write_where_present(&format!("net/ipv6/conf/{name}/{key}"), "0")?;
    }
    accept_bridge(node.require_link(name)?)
}

fn accept_bridge(link: Link) -> Result<Link, Fault> {
    if link.kind == "bridge" {
        return Ok(link);
    }
    Err(refused(
        format!("the link {} is no bridge", link.name),
        "rename or delete it, or name another bridge in the configuration",
    ))
}

/// Puts the gateways' addresses on the link. Another address of the same subnet, or any other
/// IPv4 address, is somebody's decision: it stays unless the configuration forces ours.
fn set_gateways(
    node: &mut Netlink,
    link: &Link,
    gateways: &[IpNet],
    options: &BridgeOptions,
) -> Result<(), Fault> {
    let present = node.addresses(Some(link.index))?;
    let missing: Vec<IpNet> = gateways
        .iter()
        .copied()
        .filter(|gateway| !present.iter().any(|found| found.address == *gateway))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let conflicts = |found: &&KernelAddress| {
        let found = found.address;
        let overlaps =
            |gateway: &IpNet| found.contains(&gateway.addr()) || gateway.contains(&found.addr());
        let other_ipv4 = found.addr().is_ipv4() && missing.iter().any(|net| net.addr().is_ipv4());
        !gateways.contains(&found) && (other_ipv4 || missing.iter().any(overlaps))
    };
    for found in present.iter().filter(conflicts) {
        if !options.force_address {
            return Err(Fault::new(
                KERNEL_REFUSED,
                format!("{} has the address {} already", link.name, found.address),
                "remove it, or set forceAddress, or isGateway to false",
            ));
        }
        match node.delete_address(link.index, found.address) {
            Err(error) if !error.is_absent() => return Err(error.into()),
            _ => {}
        }
    }
    for gateway in missing {
        match node.add_address(link.index, gateway) {
            Err(error) if !error.is_present() => return Err(error.into()),
            _ => {}
        }
    }
    // Once set, the address stays; without, a bridge takes the lowest of its ports.
    let stable = LinkChange { mac: link.mac, ..LinkChange::default() };
    Ok(node.change_link(link.index, &stable)?)
}

fn enable_vlans(node: &mut Netlink, bridge: &Link) -> Result<(), Fault> {
    match node.set_vlan_filtering(bridge.index, true) {
        Err(error) if error.errno == libc::EOPNOTSUPP => Err(refused(
            "this kernel cannot tell VLANs apart on a bridge".into(),
            "remove vlan and vlanTrunk, or use a kernel with CONFIG_BRIDGE_VLAN_FILTERING",
        )),
        result => Ok(result?),
    }
}

fn set_vlans(node: &mut Netlink, port: u32, options: &BridgeOptions) -> Result<(), Fault> {
    if !options.uses_vlans() {
        return Ok(());
    }
    if !options.preserve_default_vlan {
        let default = PortVlan { first: DEFAULT_VLAN, last: DEFAULT_VLAN, untagged: false };
        node.delete_port_vlan(port, default)?;
    }
    for (first, last) in &options.vlan_trunk {
        node.add_port_vlan(port, PortVlan { first: *first, last: *last, untagged: false })?;
    }
    if let Some(vlan) = options.vlan {
        node.add_port_vlan(port, PortVlan { first: vlan, last: vlan, untagged: true })?;
    }
    Ok(())
}

/// The node's link into a VLAN of the bridge, which carries the gateway's address: one end of a
/// veth pair, since a kernel that can filter VLANs on a bridge may still lack VLAN links.
fn ensure_vlan_link(node: &mut Netlink, bridge: &Link, vlan: u16) -> Result<Link, Fault> {
    let name = format!("{}.{vlan}", bridge.name);
    if let Some(link) = node.link(&name)? {
        return Ok(link);
    }
    let port_name = hashed(VLAN_PORT_PREFIX, &bridge.name, &vlan.to_string());
    match node.create_veth(&VethSpec::new(&port_name, &name).master(bridge.index)) {
        Err(error) if !error.is_present() => {
            return Err(error.during(format!("make the link {name} for the gateway")).into());
        }
        _ => {}
    }
    write_where_present(&format!("net/ipv6/conf/{port_name}/disable_ipv6"), "1")?;
    let port = node.require_link(&port_name)?.index;
    let default = PortVlan { first: DEFAULT_VLAN, last: DEFAULT_VLAN, untagged: false };
    node.delete_port_vlan(port, default)?;
    node.add_port_vlan(port, PortVlan { first: vlan, last: vlan, untagged: true })?;
    node.change_link(port, &LinkChange::up())?;
    let link = node.require_link(&name)?;
    node.change_link(link.index, &LinkChange::up())?;
    Ok(link)
}
