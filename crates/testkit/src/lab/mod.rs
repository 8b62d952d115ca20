//! Real nodes and pods in network namespaces that nobody else sees, and real packets between them.
//!
//! ```text
//!  outside ── br0 (172.30.0.1, 192.0.2.10) ──┬── node1 eth0 · cni0 ──┬── pod
//!                                            ├── node2 …             └── pod
//! ```
//!
//! The node's loop writes each node's kernel exactly as the agent does. All namespaces are unnamed:
//! they end with the test, whatever happens to it. Needs root.

mod cgroups;
pub mod probe;
pub mod run;
mod sctp;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::Linux;
use model::layout::{BRIDGE, POD_LINK_ALIAS_PREFIX, UPLINK};
use model::{ClusterConfig, Family, Overlay, ServiceBackend};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use reconcile::Event;
use render::nft::StaleFlows;
use render::{Kernel, Observed, Op, OpError};

use crate::case::names::{Pod, outside as outside_address};
use crate::case::{Case, Settings};
use crate::node::{NodeLoop, Settled};
use crate::objects;
use cgroups::NodeCgroup;

/// `rtm_protocol` of the lab's own routes (RTPROT_STATIC).
const PROTOCOL_STATIC: u8 = 4;
/// Bytes of a link's name (`IFNAMSIZ` without the end).
const LINK_NAME_MAX: usize = 15;
/// The bridge of the node network.
const NODE_BRIDGE: &str = "br0";
/// Within this time the kernel takes an address into use, and so often it is looked at.
const IN_USE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until the kernel takes addresses for those of a host. One worker of the kernel's does so
/// for IPv6 addresses of all namespaces, some time after they were added, and what comes for them
/// before is lost. Their links must be up, at both ends.
///
/// # Errors
/// When one is not in use in time.
pub fn wait_for_addresses(
    netlink: &mut Netlink,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<()> {
    let end = Instant::now() + IN_USE;
    for address in addresses {
        while !netlink.is_local(address)? {
            if Instant::now() > end {
                bail!("the address {address} is not in use after {} s", IN_USE.as_secs());
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// The bridge's address: the nodes' default route.
const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 1)),
    }
}

/// Where the cases' load balancer addresses and externalIPs are (RFC 5737 and 3849): the world
/// behind the default route finds them through one node, as it finds Services. What comes from
/// there untranslated finds them in the world itself.
fn external_ranges() -> [IpNet; 3] {
    let v4 =
        [[198, 51, 100, 0], [203, 0, 113, 0]].map(|range| Ipv4Net::new_assert(range.into(), 24));
    let v6 = Ipv6Net::new_assert([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0].into(), 48);
    [v4[0].into(), v4[1].into(), v6.into()]
}

/// Has all addresses of some ranges, for what comes over the node network. The world asks there too,
/// and gets its own packets back where no node takes them.
fn be_the_world(ranges: &[IpNet], families: &[Family]) -> Result<()> {
    for family in families {
        let (version, name) = match family {
            Family::V4 => ("-4", "ipv4"),
            Family::V6 => ("-6", "ipv6"),
        };
        sysctl::write(&format!("net/{name}/ip_nonlocal_bind"), "1")?;
        for range in ranges.iter().filter(|range| Family::of(&range.addr()) == *family) {
            let range = range.to_string();
            ip(&[version, "route", "add", "local", &range, "dev", "lo"])?;
            ip(&[
                version, "rule", "add", "pref", "5", "iif", "lo", "to", &range, "lookup", "main",
            ])?;
        }
        // Local addresses come first unless they are told to come later.
        ip(&[version, "rule", "add", "pref", "10", "lookup", "local"])?;
        ip(&[version, "rule", "del", "pref", "0"])?;
    }
    sysctl::write(&format!("net/ipv4/conf/{NODE_BRIDGE}/accept_local"), "1")?;
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output().context("cannot run ip (iproute2)")?;
    if !done.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// A kernel seen from inside one namespace.
pub struct LinuxIn {
    namespace: Arc<Netns>,
    linux: Linux,
}

impl LinuxIn {
    /// Opens the drivers inside the namespace.
    ///
    /// # Errors
    /// When it cannot be entered, or the drivers cannot be opened.
    pub fn open(namespace: Arc<Netns>) -> Result<Self> {
        let linux = namespace.run(Linux::open)??;
        Ok(Self { namespace, linux })
    }

    /// The same for a node that may have Services in eBPF and share its machine with others.
    fn open_for(namespace: &Arc<Netns>, cgroup: Option<&NodeCgroup>) -> Result<Self> {
        let Some(cgroup) = cgroup else { return Self::open(namespace.clone()) };
        let linux = namespace.run(|| Linux::with_ebpf(cgroup.services()))??;
        Ok(Self { namespace: namespace.clone(), linux })
    }

    /// As [`Linux::has_changed_silently`].
    fn has_changed_silently(&mut self) -> Result<bool> {
        let Self { namespace, linux } = self;
        Ok(namespace.run(|| linux.has_changed_silently())?)
    }
}

impl Kernel for LinuxIn {
    fn observe(&mut self) -> Result<Observed, OpError> {
        let Self { namespace, linux } = self;
        namespace.run(|| linux.observe()).map_err(outer)?
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let Self { namespace, linux } = self;
        match namespace.run(|| linux.apply(ops)) {
            Ok(results) => results,
            Err(error) => {
                let error = outer(error);
                ops.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn forget_flows(&mut self, stray: &[StaleFlows]) -> Result<(), OpError> {
        let Self { namespace, linux } = self;
        namespace.run(|| linux.forget_flows(stray)).map_err(outer)?
    }
}

fn outer(error: netlink::Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

/// One node of the lab.
pub struct LabNode {
    /// Its namespace.
    pub namespace: Arc<Netns>,
    /// Its loop.
    pub node: NodeLoop<LinuxIn>,
    /// Where its processes and those of its pods are, if their sockets matter.
    cgroup: Option<NodeCgroup>,
}

impl LabNode {
    /// Does the work as a process of the node, or of one of its pods, within their namespace.
    ///
    /// # Errors
    /// When the namespace or the node's cgroup cannot be entered.
    pub fn run_in<T>(&self, namespace: &Netns, work: impl FnOnce() -> T) -> Result<T> {
        let work = || namespace.run(work);
        Ok(match &self.cgroup {
            Some(cgroup) => cgroup.run(work)??,
            None => work()?,
        })
    }

    /// The process dies and a new one starts, whose drivers know nothing either.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn restart(&mut self) -> Result<()> {
        self.node.kernel = LinuxIn::open_for(&self.namespace, self.cgroup.as_ref())?;
        self.node.restart();
        Ok(())
    }

    /// Lets the loop act until the kernel holds what it planned, also where others changed it.
    ///
    /// # Errors
    /// When it does not converge.
    pub fn settle(&mut self) -> Result<Settled> {
        if self.node.kernel.has_changed_silently()? {
            self.node.handle(Event::KernelChanged);
        }
        self.node.settle().map_err(anyhow::Error::msg)
    }
}

/// Namespaces of a cluster.
pub struct Lab {
    /// The machine outside, and the network between the nodes.
    pub outside: Netns,
    /// The nodes by number.
    pub nodes: BTreeMap<u8, LabNode>,
    /// The pods' namespaces by name.
    pub pods: BTreeMap<String, Netns>,
}

impl Lab {
    /// Makes the nodes of a case and the network between them; their loops know nothing yet.
    ///
    /// # Errors
    /// Without root, or when the kernel lacks a link type.
    pub fn new(case: &Case) -> Result<Self> {
        let outside = Netns::create().context(
            "the lab makes network namespaces: run it as root, or run `./x test --pure`",
        )?;
        let mut net = Netlink::open_in(&outside)?;
        net.create_bridge(&BridgeSpec { name: NODE_BRIDGE.into(), ..BridgeSpec::default() })?;
        outside.run(|| use_addresses_at_once(NODE_BRIDGE))??;
        let bridge = net.require_link(NODE_BRIDGE)?.index;
        let config = &case.settings.config;
        for family in objects::families(config) {
            net.add_address(bridge, on_node_network(gateway(family), config)?)?;
            net.add_address(bridge, IpNet::from(outside_address(family)))?;
        }
        net.change_link(bridge, &LinkChange::up())?;
        up(&mut net, "lo")?;
        let mut lab = Self { outside, nodes: BTreeMap::new(), pods: BTreeMap::new() };
        for number in 1..=case.settings.nodes {
            let node = lab.new_node(case, &mut net, bridge, number)?;
            lab.nodes.insert(number, node);
        }
        let families: Vec<Family> = objects::families(config).collect();
        // Its bridge works with the first node's link.
        let own = families.iter().flat_map(|family| [gateway(*family), outside_address(*family)]);
        wait_for_addresses(&mut net, own)?;
        lab.outside.run(|| be_the_world(&external_ranges(), &families))??;
        // The world behind the default route finds Services and pods through one node.
        let own = case.settings.also_at.iter().copied().map(IpNet::from);
        let ranges = config.service_cidrs.iter().chain(&config.pod_cidrs).copied();
        for range in ranges.chain(external_ranges()).chain(own) {
            let family = Family::of(&range.addr());
            if objects::families(config).any(|one| one == family) {
                let through = objects::node_address(case.settings.at, family);
                net.add_route(&Route::via(range, through, bridge, PROTOCOL_STATIC))?;
            }
        }
        Ok(lab)
    }

    fn new_node(&self, case: &Case, net: &mut Netlink, bridge: u32, number: u8) -> Result<LabNode> {
        let namespace = Arc::new(Netns::create()?);
        let near = format!("node{number}");
        net.create_veth(&VethSpec::new(&near, UPLINK).peer_in(&namespace).master(bridge))?;
        up(net, &near)?;
        let mut inside = Netlink::open_in(&namespace)?;
        up(&mut inside, "lo")?;
        let uplink = inside.require_link(UPLINK)?.index;
        namespace.run(|| use_addresses_at_once(UPLINK))??;
        let (settings, facts) = (&case.settings, case.settings.facts(number));
        for address in &facts.addresses {
            inside.add_address(uplink, on_node_network(*address, &settings.config)?)?;
        }
        inside.change_link(uplink, &LinkChange::up())?;
        wait_for_addresses(&mut inside, facts.addresses.iter().copied())?;
        for family in objects::families(&settings.config) {
            let default = Route::via(everywhere(family), gateway(family), uplink, PROTOCOL_STATIC);
            inside.add_route(&default)?;
            if settings.config.overlay == Overlay::Native {
                // The routes that somebody else makes there.
                for other in (1..=settings.nodes).filter(|other| *other != number) {
                    let range = objects::pod_range(other, family);
                    let through = objects::node_address(other, family);
                    inside.add_route(&Route::via(range, through, uplink, PROTOCOL_STATIC))?;
                }
            }
        }
        let is_ebpf = settings.config.service_backend == ServiceBackend::Ebpf;
        let cgroup = is_ebpf.then(NodeCgroup::new).transpose()?;
        let kernel = LinuxIn::open_for(&namespace, cgroup.as_ref())?;
        let node = NodeLoop::new(settings.config.clone(), facts, kernel);
        Ok(LabNode { namespace, node, cgroup })
    }

    /// Makes the pods that are not there yet. The nodes' bridges must exist.
    ///
    /// # Errors
    /// When a node has no bridge, or the kernel refuses a link.
    pub fn add_pods(&mut self, pods: &BTreeMap<String, Pod>) -> Result<()> {
        for (name, pod) in pods {
            if !self.pods.contains_key(name) {
                let made =
                    self.new_pod(name, pod).with_context(|| format!("cannot make pod {name}"))?;
                self.pods.insert(name.clone(), made);
            }
        }
        Ok(())
    }

    fn new_pod(&self, name: &str, pod: &Pod) -> Result<Netns> {
        let node = self.nodes.get(&pod.node).context("the pod's node is not in the lab")?;
        let namespace = Netns::create()?;
        let mut net = Netlink::open_in(&node.namespace)?;
        let bridge = net.require_link(BRIDGE).context("the node's loop made no bridge")?;
        let near = format!("v-{name}");
        if near.len() > LINK_NAME_MAX {
            bail!("the lab has links named after pods: {LINK_NAME_MAX} characters at most");
        }
        let spec = VethSpec::new(&near, "eth0").peer_in(&namespace).mtu(bridge.mtu);
        net.create_veth(&spec.master(bridge.index))?;
        let near = net.require_link(&near)?.index;
        net.set_hairpin(near, true)?;
        let alias = format!("{POD_LINK_ALIAS_PREFIX}{name}");
        net.change_link(near, &LinkChange { alias: Some(&alias), ..LinkChange::up() })?;
        let mut inside = Netlink::open_in(&namespace)?;
        up(&mut inside, "lo")?;
        let eth0 = inside.require_link("eth0")?.index;
        namespace.run(|| use_addresses_at_once("eth0"))??;
        for address in &pod.addresses {
            let range = objects::pod_range(pod.node, Family::of(address));
            inside.add_address(eth0, IpNet::new(*address, range.prefix_len())?)?;
        }
        inside.change_link(eth0, &LinkChange::up())?;
        wait_for_addresses(&mut inside, pod.addresses.iter().copied())?;
        for family in pod.addresses.iter().map(Family::of) {
            let range = objects::pod_range(pod.node, family);
            let gateway = plan::network::gateway(&range).context("a range with a gateway")?.addr();
            inside.add_route(&Route::via(everywhere(family), gateway, eth0, PROTOCOL_STATIC))?;
        }
        Ok(namespace)
    }

    /// Lets a namespace send to 127.0.0.1 over its link, as an attacker's machine can, and lets a
    /// node take it as far as its sysctls go: what is left is the guard.
    ///
    /// # Errors
    /// When a sysctl or a route is refused.
    pub fn expose_loopback(sender: &Netns, link: &str, victim: IpAddr, node: &Netns) -> Result<()> {
        let mut net = Netlink::open_in(sender)?;
        // Without the address the sender's own route to 127.0.0.0/8 is gone.
        let lo = net.require_link("lo")?.index;
        match net.delete_address(lo, "127.0.0.1/8".parse()?) {
            Err(error) if !error.is_absent() => return Err(error.into()),
            _ => {}
        }
        sender.run(|| sysctl::write("net/ipv4/conf/all/route_localnet", "1"))??;
        let index = net.require_link(link)?.index;
        let loopback: IpNet = "127.0.0.1/32".parse()?;
        match net.add_route(&Route::via(loopback, victim, index, PROTOCOL_STATIC)) {
            Err(error) if !error.is_present() => return Err(error.into()),
            _ => {}
        }
        node.run(|| {
            sysctl::write("net/ipv4/conf/all/route_localnet", "1")?;
            sysctl::write("net/ipv4/conf/all/rp_filter", "0")
        })??;
        Ok(())
    }
}

/// Whether an address is the world's own, unless a Service has it.
pub fn is_external(address: IpAddr) -> bool {
    external_ranges().iter().any(|range| range.contains(&address))
}

/// Whether an address is a node's own: on the node network, on its bridge or on its tunnel.
pub fn is_node_address(settings: &Settings, address: IpAddr) -> bool {
    let family = Family::of(&address);
    (1..=settings.nodes).any(|number| {
        let range = objects::pod_range(number, family);
        let gateway = plan::network::gateway(&range).map(|gateway| gateway.addr());
        settings.facts(number).addresses.contains(&address)
            || address == range.network()
            || Some(address) == gateway
    })
}

/// An address of a node with the prefix length of the node network.
fn on_node_network(address: IpAddr, config: &ClusterConfig) -> Result<IpNet> {
    let range = config.node_cidrs.iter().find(|range| range.contains(&address));
    Ok(match range {
        Some(range) => IpNet::new(address, range.prefix_len())?,
        None => IpNet::from(address),
    })
}

/// Without looking for duplicates of its IPv6 addresses, the link's own among them: that takes a
/// second or two, and until then the kernel solicits nobody for what it forwards.
fn use_addresses_at_once(link: &str) -> Result<(), netlink::Error> {
    sysctl::write_all(&format!("net/ipv6/conf/{link}"), &[("accept_dad", "0")])
}

fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

fn up(net: &mut Netlink, link: &str) -> Result<()> {
    let index = net.require_link(link)?.index;
    Ok(net.change_link(index, &LinkChange::up())?)
}
