//! What must hold before a cluster is made: each fault is a clear error that says what to do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use model::cluster::overlap;
use model::{MacAddress, Overlay, TunnelConfig};
use netlink::{BridgeSpec, IpipSpec, Netlink, Netns, VethSpec, VxlanSpec};

use super::paths::Paths;
use super::spec::ClusterSpec;

/// Programs that must lie beside this one.
pub const COMPANIONS: [&str; 4] = ["flatnet-cni", DNS_WORKER, "flatnet-pause", "flatnet-toolbox"];
/// The DNS worker.
pub const DNS_WORKER: &str = "flatnet-dnsworker";
/// The MTU of links that are made to see whether the kernel can, in bytes.
const PROBE_MTU: u32 = 1400;
/// Ports that are tried when nobody asked for one.
const API_PORTS_TRIED: u16 = 100;

/// Checks the machine.
///
/// # Errors
/// The first thing that is missing.
pub fn check_machine() -> Result<()> {
    let own = std::env::current_exe()?;
    for companion in COMPANIONS {
        let file = own.with_file_name(companion);
        if !file.is_file() {
            bail!("{} is missing: `./x build` puts the programs side by side", file.display());
        }
    }
    for kind in ["net", "mnt", "uts", "cgroup", "pid", "ipc"] {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            bail!("this kernel has no {kind} namespaces: use one built with CONFIG_NAMESPACES");
        }
    }
    let filesystems = fs::read_to_string("/proc/filesystems")?;
    if !filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        load_module("overlay")?;
    }
    load_bridge_netfilter()?;
    probe_links()
}

/// Loads the module that lets packets between pods of one bridge see netfilter, where this network
/// namespace lacks its parameters. Nothing that uses it loads it by itself.
///
/// # Errors
/// When it cannot be loaded.
pub fn load_bridge_netfilter() -> Result<()> {
    if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        return Ok(());
    }
    load_module("br_netfilter")
}

/// Tries the link kinds in a namespace that goes away again.
fn probe_links() -> Result<()> {
    let namespace = Netns::create()
        .context("making a network namespace (is CAP_SYS_ADMIN missing, as in a container?)")?;
    let mut netlink = Netlink::open_in(&namespace)?;
    let bridge = BridgeSpec { name: "probe".into(), ..BridgeSpec::default() };
    netlink.create_bridge(&bridge).context("this kernel makes no bridges: load module `bridge`")?;
    netlink
        .create_veth(&VethSpec::new("probe0", "probe1"))
        .context("this kernel makes no veth pairs: load module `veth`")
}

/// Whether this kernel can make the tunnels that the cluster shall have.
///
/// # Errors
/// Naming the overlay, the module, and what works here.
pub fn check_overlay(spec: &ClusterSpec) -> Result<()> {
    let namespace = Netns::create()?;
    let mut netlink = Netlink::open_in(&namespace)?;
    let loopback = netlink.require_link("lo")?.index;
    let local = spec.host_addresses.first().copied().context("the cluster has no node range")?;
    let (name, mtu) = ("probe".to_owned(), PROBE_MTU);
    let TunnelConfig { vxlan_vni: vni, vxlan_port: port, .. } = spec.config.tunnels;
    let (made, module) = match spec.config.overlay {
        Overlay::Vxlan => {
            let mac = MacAddress::of_vtep(local);
            let spec = VxlanSpec { name, vni, port, local, uplink_index: loopback, mac, mtu };
            (netlink.create_vxlan(&spec), "vxlan")
        }
        Overlay::Ipip => {
            let spec = IpipSpec { name, local, uplink_index: loopback, mtu };
            (netlink.create_ipip(&spec), "ipip")
        }
        Overlay::Wireguard => (netlink.create_wireguard(&name, mtu), "wireguard"),
        Overlay::HostGw | Overlay::Native => return Ok(()),
    };
    made.with_context(|| {
        format!(
            "--overlay {}: this kernel makes no such links: load module `{module}`, use a kernel \
             that has it, or choose --overlay host-gw",
            spec.config.overlay
        )
    })
}

fn load_module(name: &str) -> Result<()> {
    let loaded = std::process::Command::new("modprobe").arg(name).output();
    if loaded.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    bail!(
        "this kernel lacks `{name}` and modprobe cannot load it: install the module or a kernel that has it"
    )
}

/// Checks that the cluster's ranges do not hide anything that the host reaches now.
///
/// # Errors
/// Naming the range, its flag and the route.
pub fn check_routes(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    let named = [
        ("--pod-cidr", &spec.config.pod_cidrs),
        ("--service-cidr", &spec.config.service_cidrs),
        ("--node-cidr", &spec.config.node_cidrs),
    ];
    for (destination, link) in foreign_routes(&mut Netlink::open()?, paths)? {
        for (flag, ranges) in named {
            if let Some(range) = ranges.iter().find(|range| overlap(range, &destination)) {
                bail!(
                    "{flag} {range} overlaps the host's route to {destination} on {link}: another \
                     network or cluster uses it; choose another range with {flag}"
                );
            }
        }
    }
    Ok(())
}

/// Where the host reaches anything but the whole world, and by which link, without the cluster's
/// own.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn foreign_routes(host: &mut Netlink, paths: &Paths) -> Result<Vec<(IpNet, String)>> {
    let links = host.links()?;
    let routes = host.routes(None)?.into_iter();
    let narrow = routes.filter(|route| route.destination.prefix_len() > 0);
    let named = narrow.map(|route| {
        let link = links.iter().find(|link| Some(link.index) == route.link_index);
        (route.destination, link.map_or("?", |link| link.name.as_str()).to_owned())
    });
    Ok(named.filter(|(_, link)| *link != paths.host_link()).collect())
}

/// A port of loopback for an API server. As long as this lives, no other `up` on this machine
/// chooses it: until the server listens, the port itself is free to be found by all.
#[derive(Debug)]
pub struct ApiPort {
    number: u16,
    /// Bound to a name that goes with the process, and is as wide as the port: the network namespace.
    _reserved: UnixDatagram,
}

impl ApiPort {
    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The port, unless somebody has it, or is about to.
    fn take(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("flatnet/api-port/{number}")).ok()?;
        // The reservation first: who has it looks at the port alone.
        let reserved = UnixDatagram::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _reserved: reserved })
    }
}

/// A port for the API server: the one asked for, or the first free one from `default`.
///
/// # Errors
/// When the port asked for is taken, or none is free.
pub fn api_port(asked: Option<u16>, default: u16) -> Result<ApiPort> {
    match asked {
        Some(port) => ApiPort::take(port).with_context(|| {
            format!(
                "port {port} of 127.0.0.1 is in use by another program, or by a cluster that \
                 starts right now: choose another with --api-port"
            )
        }),
        None => (default..=default.saturating_add(API_PORTS_TRIED - 1))
            .find_map(ApiPort::take)
            .with_context(|| {
                format!("no port from {default} on is free: choose one with --api-port")
            }),
    }
}

/// The host's resolvers: where questions outside the cluster go.
pub fn host_resolvers() -> Vec<IpAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_when_asked_for_and_passed_over_when_not() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let error = api_port(Some(port), 0).expect_err("taken").to_string();
        assert!(error.contains("--api-port"), "{error}");
        if port < u16::MAX - API_PORTS_TRIED {
            assert_ne!(api_port(None, port).expect("another").number(), port);
        }
    }

    #[test]
    fn clusters_that_start_at_one_moment_choose_different_ports() {
        // Below the ports that the kernel gives to whoever asks for none, and seldom those of
        // another run of this test.
        let from = 22_000 + u16::try_from(std::process::id() % 50).expect("small") * 200;
        let first = api_port(None, from).expect("a port");
        let port = first.number();
        let next = api_port(None, port).expect("another");
        assert_ne!(next.number(), port, "nothing listens on it yet");
        let error = api_port(Some(port), 0).expect_err("reserved").to_string();
        assert!(error.contains("starts right now"), "{error}");
        drop(first);
        assert_eq!(api_port(Some(port), 0).expect("free again").number(), port);
    }
}
