//! Nodes and pods in network namespaces of their own, and an eBPF file system of their own; all
//! of it goes with the values. Needs root, and no other program.
#![allow(dead_code)] // the benchmark and the tests each use a part

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use kernel::bpf::{Applied, Forwarding, Hook, Options};
use model::MacAddress;
use netlink::{
    BridgeSpec, FdbEntry, LinkChange, Neighbour, Netlink, Netns, Route, VethSpec, VxlanSpec, sysctl,
};
use render::bpf::{Pod, Remote, TunnelEnd, Way};
use testkit::lab::wait_for_addresses;

/// How long an answer that shall come may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that shall not come.
pub const SILENCE: Duration = Duration::from_millis(400);
/// Route protocol of the lab: `static`.
const PROTOCOL: u8 = 4;
pub const VNI: u32 = 7;
pub const VXLAN_PORT: u16 = 8472;
pub const BRIDGE_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0xb, 1]);
/// What pods on routed links take for their gateway.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fd00:ffff::1"];

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Bridge,
    Routed,
}

/// A node, whose own path forwards nothing unless told to: what arrives has come by eBPF.
pub struct Node {
    pub namespace: Netns,
    pub netlink: Netlink,
    pub mode: Mode,
    pub file_system: PathBuf,
    pub wanted: render::bpf::Forwarding,
}

/// A pod with one address of each family.
pub struct TestPod {
    pub namespace: Netns,
    pub link: String,
    pub link_index: u32,
    pub mac: MacAddress,
    pub addresses: [IpAddr; 2],
}

pub fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0xa, number])
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn range(text: &str) -> IpNet {
    text.parse().expect("a range")
}

/// The pod addresses of a node: 10.244.NODE.POD and fd00:NODE::POD.
pub fn pod_addresses(node: u8, pod: u8) -> [IpAddr; 2] {
    [address(&format!("10.244.{node}.{pod}")), address(&format!("fd00:{node}::{pod}"))]
}

/// The pod ranges of a node.
pub fn pod_ranges(node: u8) -> [IpNet; 2] {
    [range(&format!("10.244.{node}.0/24")), range(&format!("fd00:{node}::/64"))]
}

impl Node {
    pub fn new(mode: Mode) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("flatnet-bpf-{}-{number}", std::process::id());
        let file_system = std::env::temp_dir().join(name);
        fs::create_dir_all(&file_system).expect("a directory");
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        quiet(&namespace);
        let netlink = Netlink::open_in(&namespace).expect("a socket");
        let wanted = render::bpf::Forwarding::default();
        let mut node = Self { namespace, netlink, mode, file_system, wanted };
        node.set_forwarding(false);
        let loopback = node.netlink.require_link("lo").expect("loopback").index;
        node.netlink.change_link(loopback, &LinkChange::up()).expect("loopback up");
        if mode == Mode::Bridge {
            let spec = BridgeSpec { name: "cni0".into(), mac: Some(BRIDGE_MAC), mtu: Some(1500) };
            node.netlink.create_bridge(&spec).expect("a bridge");
        }
        node
    }

    /// Whether the kernel's own path forwards.
    pub fn set_forwarding(&mut self, on: bool) {
        let write = || {
            for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                sysctl::write(key, if on { "1" } else { "0" }).expect("a parameter");
            }
        };
        self.namespace.run(write).expect("the node");
        if let Ok(Some(bridge)) = self.netlink.link("cni0") {
            let change = LinkChange { up: Some(on), ..LinkChange::default() };
            self.netlink.change_link(bridge.index, &change).expect("the bridge");
        }
    }

    /// Adds a pod on a link of its own, in `wanted` too.
    pub fn add_pod(&mut self, node: u8, number: u8) -> TestPod {
        let namespace = Netns::create().expect("a network namespace");
        quiet(&namespace);
        let link = format!("veth{number}");
        let own = mac(number);
        let spec = VethSpec::new(&link, "eth0").peer_in(&namespace).peer_mac(own).mtu(1500);
        self.netlink.create_veth(&spec).expect("a veth pair");
        let near = self.netlink.require_link(&link).expect("the near end");
        let mut change = LinkChange::up();
        if self.mode == Mode::Bridge {
            change.master = Some(self.netlink.require_link("cni0").expect("the bridge").index);
        }
        self.netlink.change_link(near.index, &change).expect("the near end up");
        let gateway_mac = match self.mode {
            Mode::Bridge => BRIDGE_MAC,
            Mode::Routed => near.mac.expect("a MAC address"),
        };
        let addresses = pod_addresses(node, number);
        set_up_pod(&namespace, &addresses, gateway_mac);
        self.route_to(&addresses, near.index, own);
        let pod =
            Pod { mac: own, addresses: addresses.into(), anti_spoofing: true, ..Pod::default() };
        self.wanted.pods.insert(link.clone(), pod);
        TestPod { namespace, link, link_index: near.index, mac: own, addresses }
    }

    /// The kernel's own path to a pod.
    fn route_to(&mut self, addresses: &[IpAddr; 2], link_index: u32, mac: MacAddress) {
        let out = match self.mode {
            Mode::Bridge => self.netlink.require_link("cni0").expect("the bridge").index,
            Mode::Routed => link_index,
        };
        for address in addresses {
            self.netlink
                .set_neighbour(&Neighbour { link_index: out, address: *address, mac })
                .expect("a neighbour");
            let route = Route::on_link(IpNet::from(*address), out, PROTOCOL);
            match self.netlink.add_route(&route) {
                // A bridge that is down takes no routes: see `route_again`.
                Err(error) if error.errno != libc::ENETDOWN => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// Sets all links down, so that nobody sends any more.
    pub fn silence(&mut self) {
        for link in self.netlink.links().expect("links") {
            let change = LinkChange { up: Some(false), ..LinkChange::default() };
            self.netlink.change_link(link.index, &change).expect("the link down");
        }
    }

    /// Routes to this node's pods anew, as after the bridge came up.
    pub fn route_again(&mut self, pods: &[&TestPod]) {
        for pod in pods {
            self.route_to(&pod.addresses, pod.link_index, pod.mac);
        }
    }

    pub fn options(&self, hook: Hook) -> Options {
        Options { file_system: self.file_system.clone(), hook }
    }

    pub fn load(&self, hook: Hook) -> Forwarding {
        let options = self.options(hook);
        let load = || Forwarding::load(&options);
        self.run(load).expect("the kernel takes the programs")
    }

    /// One turn, which nothing may hinder. Answers what was written.
    pub fn apply(&self, forwarding: &mut Forwarding) -> Vec<String> {
        let Applied { changes, failures } =
            self.run(|| forwarding.apply(&self.wanted)).expect("a turn");
        assert_eq!(failures, []);
        changes
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).expect("the node's namespace")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.file_system, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.file_system);
    }
}

/// Addresses are there at once, and nobody speaks but the test.
fn quiet(namespace: &Netns) {
    let write = || {
        for key in
            ["net/ipv6/conf/default/accept_dad", "net/ipv6/conf/default/router_solicitations"]
        {
            sysctl::write(key, "0").expect("a parameter");
        }
    };
    namespace.run(write).expect("the pod");
}

fn set_up_pod(namespace: &Netns, addresses: &[IpAddr; 2], gateway_mac: MacAddress) {
    let mut inside = Netlink::open_in(namespace).expect("a socket");
    for link in ["lo", "eth0"] {
        let index = inside.require_link(link).expect("a link").index;
        inside.change_link(index, &LinkChange::up()).expect("the link up");
    }
    let link_index = inside.require_link("eth0").expect("the pod's link").index;
    for (own, gateway) in addresses.iter().zip(GATEWAYS) {
        let gateway = address(gateway);
        inside.add_address(link_index, IpNet::from(*own)).expect("an address");
        inside
            .set_neighbour(&Neighbour { link_index, address: gateway, mac: gateway_mac })
            .expect("the gateway's MAC address");
        let on_link = Route::on_link(IpNet::from(gateway), link_index, PROTOCOL);
        inside.add_route(&on_link).expect("a route to the gateway");
        let everywhere = if own.is_ipv4() { range("0.0.0.0/0") } else { range("::/0") };
        let default = Route::via(everywhere, gateway, link_index, PROTOCOL);
        inside.add_route(&default).expect("a default route");
    }
    wait_for_addresses(&mut inside, *addresses).expect("addresses in use");
}

/// Makes pods neighbours of each other, as on one bridge.
pub fn introduce(one: &TestPod, other: &TestPod) {
    for (from, to) in [(one, other), (other, one)] {
        let mut inside = Netlink::open_in(&from.namespace).expect("a socket");
        let link_index = inside.require_link("eth0").expect("the pod's link").index;
        for address in to.addresses {
            inside
                .set_neighbour(&Neighbour { link_index, address, mac: to.mac })
                .expect("a neighbour");
            let route = Route::on_link(IpNet::from(address), link_index, PROTOCOL);
            inside.add_route(&route).expect("a route");
        }
    }
}

/// The address of a node on the wire.
pub fn node_address(node: u8) -> IpAddr {
    address(&format!("192.0.2.{node}"))
}

/// Its address of IPv6.
fn node_address_v6(node: u8) -> IpAddr {
    address(&format!("2001:db8::{node}"))
}

fn tunnel_mac(node: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0xc, node])
}

/// Joins nodes 1 and 2 by a wire, `eth0` on both, each with a VXLAN link to the other.
pub fn wire(one: &mut Node, two: &mut Node) {
    let spec = VethSpec::new("eth0", "eth0").peer_in(&two.namespace).mtu(1600);
    one.netlink.create_veth(&spec).expect("a wire");
    for (node, own, other) in [(&mut *one, 1, 2), (&mut *two, 2, 1)] {
        let uplink_index = node.netlink.require_link("eth0").expect("the uplink").index;
        node.netlink.change_link(uplink_index, &LinkChange::up()).expect("the uplink up");
        let on_wire = IpNet::new(node_address(own), 24).expect("a prefix");
        node.netlink.add_address(uplink_index, on_wire).expect("an address");
        let on_wire = IpNet::new(node_address_v6(own), 64).expect("a prefix");
        node.netlink.add_address(uplink_index, on_wire).expect("an address");
        let spec = VxlanSpec {
            name: "flatnet.1".into(),
            vni: VNI,
            port: VXLAN_PORT,
            local: node_address(own),
            uplink_index,
            mac: tunnel_mac(own),
            mtu: 1500,
        };
        node.netlink.create_vxlan(&spec).expect("a tunnel link");
        let link_index = node.netlink.require_link("flatnet.1").expect("the tunnel link").index;
        node.netlink.change_link(link_index, &LinkChange::up()).expect("the tunnel link up");
        let entry =
            FdbEntry { link_index, mac: tunnel_mac(other), destination: node_address(other) };
        node.netlink.set_fdb(&entry).expect("the other end");
        node.wanted.uplink = Some("eth0".into());
        let link = "flatnet.1".to_owned();
        node.wanted.tunnel = Some(TunnelEnd { link, vni: VNI, port: VXLAN_PORT });
        let way = Way::Tunnel { mac: tunnel_mac(other) };
        let remote = Remote { node: node_address(other), way };
        node.wanted.remotes = pod_ranges(other).map(|range| (range, remote)).into();
    }
    for (node, own) in [(one, 1), (two, 2)] {
        let address = node_address_v6(own);
        wait_for_addresses(&mut node.netlink, [address]).expect("an address in use");
    }
}

/// Lets both nodes reach each other's pods directly, by eBPF.
pub fn make_direct(one: &mut Node, two: &mut Node) {
    for (node, other) in [(one, 2), (two, 1)] {
        node.wanted.tunnel = None;
        let next_hops = [node_address(other), node_address_v6(other)];
        let ways = next_hops
            .map(|next_hop| Remote { node: node_address(other), way: Way::Direct { next_hop } });
        node.wanted.remotes = pod_ranges(other).into_iter().zip(ways).collect();
    }
}

/// The kernel's own way to the other node's pods of IPv4, by tunnel or direct.
pub fn route_between(one: &mut Node, two: &mut Node, direct: bool) {
    for (node, other) in [(one, 2), (two, 1)] {
        let (link, gateway) = if direct {
            ("eth0", node_address(other))
        } else {
            ("flatnet.1", pod_addresses(other, 0)[0])
        };
        let link_index = node.netlink.require_link(link).expect("a link").index;
        if !direct {
            let mac = tunnel_mac(other);
            node.netlink
                .set_neighbour(&Neighbour { link_index, address: gateway, mac })
                .expect("a neighbour");
        }
        let route = Route::via(pod_ranges(other)[0], gateway, link_index, PROTOCOL);
        node.netlink.add_route(&Route { onlink: true, ..route }).expect("a route");
    }
}

/// Sends a megabyte over TCP there and back: `Ok` when it came back whole.
pub fn echo(client: &TestPod, server: &TestPod, family: usize) -> io::Result<()> {
    let target = SocketAddr::new(server.addresses[family], 7);
    let listener = server.namespace.run(|| TcpListener::bind(target)).expect("the pod")?;
    let payload: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[n as usize % 3]).collect();
    std::thread::scope(|scope| {
        let connect = || TcpStream::connect_timeout(&target, SILENCE);
        let mut stream = client.namespace.run(connect).expect("the pod")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (mut accepted, _) = listener.accept()?;
        accepted.set_read_timeout(Some(PATIENCE))?;
        let server = scope.spawn(move || -> io::Result<()> {
            let mut piece = [0; 16_384];
            loop {
                match accepted.read(&mut piece)? {
                    0 => return Ok(()),
                    bytes => accepted.write_all(&piece[..bytes])?,
                }
            }
        });
        let mut sending = stream.try_clone()?;
        let sent = payload.clone();
        let sender = scope.spawn(move || -> io::Result<()> {
            sending.write_all(&sent)?;
            sending.shutdown(std::net::Shutdown::Write)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        sender.join().expect("the sender")?;
        server.join().expect("the server")?;
        assert!(received == payload, "{} bytes came back", received.len());
        Ok(())
    })
}

/// A socket of a pod that receives on a port.
pub fn udp_socket(pod: &TestPod, family: usize, port: u16) -> UdpSocket {
    let own = SocketAddr::new(pod.addresses[family], port);
    let socket = pod.namespace.run(|| UdpSocket::bind(own)).expect("the pod").expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}
