//! Frames of the tests' own making, sent past the pod's network stack.
#![allow(unsafe_code)] // packet sockets

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ::model::MacAddress;
use ebpf_abi::Reason;
use nix::sys::socket::{MsgFlags, recv};

use crate::lab::{self, Node, PATIENCE, TestPod};
use crate::model::checksum;

/// Frames that are sent before the receiver looks.
const BATCH: usize = 64;
const ETH_P_ALL: u16 = 3;

/// A socket for whole frames on a pod's link.
fn packet_socket(pod: &TestPod) -> OwnedFd {
    let open = || {
        let protocol = i32::from(ETH_P_ALL.to_be());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
        assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and ours alone.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    let socket = pod.namespace.run(open).expect("the pod");
    let mut inside = netlink::Netlink::open_in(&pod.namespace).expect("a socket");
    let index = inside.require_link("eth0").expect("the pod's link").index;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    place.sll_family = libc::AF_PACKET as u16;
    place.sll_protocol = ETH_P_ALL.to_be();
    place.sll_ifindex = i32::try_from(index).expect("an index");
    let bytes = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the pointer and the length are those of a structure that outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const place).cast(), bytes) };
    assert_eq!(result, 0, "bind: {}", std::io::Error::last_os_error());
    socket
}

/// Sends a frame many times and one honest frame; answers how many came through before that one.
pub fn count_passed(
    attacker: &TestPod,
    victim: &TestPod,
    frame: &[u8],
    honest: &[u8],
    times: usize,
) -> usize {
    let (sender, receiver) = (packet_socket(attacker), packet_socket(victim));
    let (mut passed, mut sent) = (0, 0);
    let send = |frame: &[u8]| {
        nix::sys::socket::send(sender.as_raw_fd(), frame, MsgFlags::empty()).expect("sent");
    };
    while sent < times {
        let batch = BATCH.min(times - sent);
        (0..batch).for_each(|_| send(frame));
        sent += batch;
        while let Some(found) = receive(&receiver) {
            passed += usize::from(is_same(&found, frame));
        }
    }
    send(honest);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match receive(&receiver) {
            Some(found) if is_same(&found, honest) => return passed,
            Some(found) => passed += usize::from(is_same(&found, frame)),
            None => {
                assert!(Instant::now() < deadline, "the honest frame does not come through");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    let bytes = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
    Some(buffer[..bytes].to_vec())
}

/// Equal but for what a hop changes: compares what follows the IP header's checksum. A receiver
/// gets a VLAN tag beside the frame.
fn is_same(found: &[u8], sent: &[u8]) -> bool {
    if sent[12..14] == [0x81, 0] {
        return is_same(found, &[&sent[..12], &sent[16..]].concat());
    }
    found.len() == sent.len() && found[12..14] == sent[12..14] && found[26..] == sent[26..]
}

/// A datagram that the attacker may send.
pub fn honest(attacker: &TestPod, victim: &TestPod) -> Vec<u8> {
    let addresses = (attacker.addresses[0], victim.addresses[0]);
    udp_frame((victim.mac, attacker.mac), addresses, (1000, 1001))
}

/// One frame of each kind that a pod may not send, and why it is dropped.
pub fn spoofed(attacker: &TestPod, victim: &TestPod) -> Vec<(&'static str, Reason, Vec<u8>)> {
    let macs = (victim.mac, attacker.mac);
    let own = (attacker.addresses, victim.addresses);
    let foreign = lab::pod_addresses(1, 99);
    let icmpv6 = |kind: u8, target: IpAddr| icmpv6_frame(macs, (own.0[1], own.1[1]), kind, target);
    vec![
        (
            "another MAC address",
            Reason::DropSourceMac,
            udp_frame((victim.mac, lab::mac(99)), (own.0[0], own.1[0]), (1, 2)),
        ),
        (
            "another IPv4 source",
            Reason::DropSourceAddress,
            udp_frame(macs, (foreign[0], own.1[0]), (1, 2)),
        ),
        (
            "another IPv6 source",
            Reason::DropSourceAddress,
            udp_frame(macs, (foreign[1], own.1[1]), (1, 2)),
        ),
        ("ARP for another", Reason::DropArp, arp_frame(macs, foreign[0], own.1[0])),
        ("neighbour advertisement for another", Reason::DropNeighbour, icmpv6(136, foreign[1])),
        ("router advertisement", Reason::DropRouter, icmpv6(134, own.0[1])),
        ("redirect", Reason::DropRouter, icmpv6(137, own.0[1])),
        ("DHCP answer", Reason::DropDhcp, udp_frame(macs, (own.0[0], own.1[0]), (67, 68))),
        ("DHCPv6 answer", Reason::DropDhcp, udp_frame(macs, (own.0[1], own.1[1]), (547, 546))),
        ("VLAN tag", Reason::DropVlan, tagged(&udp_frame(macs, (own.0[0], own.1[0]), (1, 2)))),
    ]
}

/// `(destination, source)` and `(source, destination)` as the headers have them.
pub fn udp_frame(
    macs: (MacAddress, MacAddress),
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
) -> Vec<u8> {
    udp_frame_with(macs, addresses, ports, b"from the test")
}

pub fn udp_frame_with(
    macs: (MacAddress, MacAddress),
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let bytes = u16::try_from(8 + payload.len()).expect("short");
    let mut udp: Vec<u8> =
        [ports.0.to_be_bytes(), ports.1.to_be_bytes(), bytes.to_be_bytes(), [0, 0]].concat();
    udp.extend(payload);
    ip_frame(macs, addresses, 17, &udp)
}

fn icmpv6_frame(
    macs: (MacAddress, MacAddress),
    addresses: (IpAddr, IpAddr),
    kind: u8,
    target: IpAddr,
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(octets(target));
    ip_frame(macs, addresses, 58, &message)
}

fn ip_frame(
    (to, from): (MacAddress, MacAddress),
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    let bytes = u16::try_from(payload.len()).expect("short");
    if source.is_ipv4() {
        frame.extend([8, 0]);
        let mut header = vec![0x45, 0];
        header.extend((bytes + 20).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        header.extend(octets(source));
        header.extend(octets(destination));
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(bytes.to_be_bytes());
        frame.extend([protocol, 255]);
        frame.extend(octets(source));
        frame.extend(octets(destination));
    }
    frame.extend(payload);
    frame
}

fn arp_frame((to, from): (MacAddress, MacAddress), sender: IpAddr, target: IpAddr) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(from.0);
    frame.extend(octets(sender));
    frame.extend(to.0);
    frame.extend(octets(target));
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Sends a frame within our tunnel from a node, as who controls the node could.
pub fn send_tunnelled(from: &Node, to: IpAddr, frame: &[u8]) {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((lab::VNI << 8).to_be_bytes());
    packet.extend(frame);
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    socket.send_to(&packet, (to, lab::VXLAN_PORT)).expect("sent");
}

/// Removes all filters of a link, as somebody's `tc qdisc del dev … clsact` does.
pub fn delete_clsact(link_index: u32) {
    const RTM_DELQDISC: u16 = 37;
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&link_index.to_ne_bytes());
    header[12..16].copy_from_slice(&TC_H_CLSACT.to_ne_bytes());
    let request = netlink::message::Request::new(RTM_DELQDISC, 0, &header);
    let mut socket = netlink::socket::Socket::open(libc::NETLINK_ROUTE).expect("a socket");
    socket.call(&request, || "delete clsact".into()).expect("the queueing discipline");
}
