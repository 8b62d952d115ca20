//! S-11: packets that connection tracking calls invalid do not end a good connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use model::Protocol;
use model::kinds::TrafficPolicy;
use netlink::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::lab::{DEADLINE, Lab, NODE, OUTSIDE, POD1, service, socket as address};

const TRIALS: usize = 20;
const POD_PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// A socket for whole TCP segments; what it receives has its IP header too.
fn raw(namespace: &Netns) -> OwnedFd {
    let open = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Tcp)
            .expect("a raw socket (these tests need root)");
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).expect("a timeout");
        fd
    };
    namespace.run(open).expect("the namespace")
}

/// Half the numbers lie behind a window and half ahead of it (RFC 9293, section 3.4), and only what
/// lies far ahead is invalid to the kernel: of these two one does, wherever the connection began.
const SEQUENCES: [u32; 2] = [0x1122_3344, 0x9122_3344];

/// A segment far out of the window.
fn stray(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let octets = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().octets(),
        SocketAddr::V6(address) => panic!("{address} is no IPv4 address"),
    };
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0x55, 0x66, 0x77, 0x88, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
    let pseudo = [&octets(from)[..], &octets(to), &[0, 6, 0, 20], &segment].concat();
    let words =
        pseudo.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// How many of the strays that a pod sends arrive with the pod's own source.
fn arrivals(lab: &Lab, from: SocketAddr, to: SocketAddr) -> usize {
    let (sender, receiver) = (raw(&lab.pod1), raw(&lab.outside));
    let SocketAddr::V4(target) = to else { panic!("{to} is no IPv4 address") };
    let octets = match from {
        SocketAddr::V4(from) => from.ip().octets(),
        SocketAddr::V6(from) => panic!("{from} is no IPv4 address"),
    };
    for _ in 0..TRIALS {
        let target = SockaddrIn::from(target);
        for segment in SEQUENCES.map(|sequence| stray(from, to, sequence)) {
            sendto(sender.as_raw_fd(), &segment, &target, MsgFlags::empty()).expect("a stray");
        }
    }
    let mut count = 0;
    let mut packet = [0; 256];
    // Until all have come, or the time is over in which one would come.
    while count < TRIALS
        && let Ok(length) = recv(receiver.as_raw_fd(), &mut packet, MsgFlags::empty())
    {
        count += usize::from(packet[..length].get(12..16) == Some(&octets));
    }
    count
}

/// Whether a connection still carries a word each way.
fn carries(client: &mut TcpStream, server: &mut TcpStream) -> bool {
    let mut word = [0; 4];
    client.write_all(b"ping").is_ok()
        && server.read_exact(&mut word).is_ok()
        && server.write_all(b"pong").is_ok()
        && client.read_exact(&mut word).is_ok()
}

#[test]
fn an_invalid_packet_of_a_pod_does_not_reach_the_client_of_its_service() {
    let mut lab = Lab::new();
    let mut web = service("web", "10.96.0.20", Protocol::Tcp, 80, NODE_PORT);
    web.spec.external_traffic_policy = TrafficPolicy::Local;
    lab.set_service(web, &[address(POD1, POD_PORT)]);
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, POD_PORT)).expect("a listener");
    let listener = lab.pod1.run(bind).expect("the pod");
    let connect = || TcpStream::connect_timeout(&address(NODE, NODE_PORT), DEADLINE);
    let mut client = lab.outside.run(connect).expect("outside").expect("a connection");
    let (mut server, peer) = listener.accept().expect("the client");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    }
    assert_eq!(peer, address(OUTSIDE, client.local_addr().expect("its port").port()));
    assert!(carries(&mut client, &mut server));
    let from = address(POD1, POD_PORT);
    assert_eq!(arrivals(&lab, from, peer), 0);
    assert!(carries(&mut client, &mut server), "the connection ended");
    // Without the rule they arrive, from somebody whom the client never spoke to.
    let flush = ["flush", "chain", "ip", "flatnet", "filter-forward"];
    let flush = || Command::new("nft").args(flush).status().expect("nft").success();
    assert!(lab.node.run(flush).expect("the node"));
    assert_eq!(arrivals(&lab, from, peer), TRIALS, "the attack itself does not work");
}
