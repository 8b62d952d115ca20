//! ClusterIPs that answer a ping: exactly while they have a ready endpoint, and only where the
//! configuration says so.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use model::{Family, Protocol};
use netlink::Netns;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::lab::{DEADLINE, Lab, POD1, POD1_V6, service, socket as address};

/// How long to wait for an answer that shall not come.
const SILENCE: Duration = Duration::from_millis(400);
const IDENTIFIER: [u8; 2] = [0xf1, 0xa7];
const IPV4_HEADER_BYTES: usize = 20;

/// Whether an echo request is answered, by whom it was sent to.
fn answers(from: &Netns, to: IpAddr, patience: Duration) -> bool {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let fd: OwnedFd = from
        .run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))
        .expect("the namespace")
        .expect("a raw socket (these tests need root)");
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).expect("a timeout");
    // Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443).
    let mut message = vec![request, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], 0, 1];
    let raw = fd.as_raw_fd();
    let sent = match to {
        IpAddr::V4(to) => {
            let words = message
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
            let sum = words.sum::<u32>();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
            sendto(raw, &message, &to, MsgFlags::empty())
        }
        // The kernel writes the checksum.
        IpAddr::V6(to) => {
            let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
            sendto(raw, &message, &to, MsgFlags::empty())
        }
    };
    match sent {
        Ok(_) => {}
        // What the kernel tells a sender on the node itself whose packet a rule rejects.
        Err(Errno::EPERM) => return false,
        Err(error) => panic!("cannot send to {to}: {error}"),
    }
    let end = Instant::now() + patience;
    let mut packet = [0; 256];
    while Instant::now() < end {
        let Ok(length) = recv(raw, &mut packet, MsgFlags::empty()) else { continue };
        let packet = &packet[..length];
        // IPv4 comes with its header, and so with who sent it.
        let (ours, answer) = match to {
            IpAddr::V4(to) => {
                (packet.get(12..16) == Some(&to.octets()[..]), packet.get(IPV4_HEADER_BYTES..))
            }
            IpAddr::V6(_) => (true, Some(packet)),
        };
        let echoed = answer
            .is_some_and(|it| it.first() == Some(&reply) && it.get(4..6) == Some(&IDENTIFIER));
        if ours && echoed {
            return true;
        }
    }
    false
}

#[test]
fn a_cluster_ip_answers_a_ping_exactly_while_it_has_a_ready_endpoint() {
    for (family, cluster_ip, pod) in
        [(Family::V4, "10.96.0.20", POD1), (Family::V6, "fd00:10:96::20", POD1_V6)]
    {
        let mut lab = Lab::dual_stack();
        let mut driver = lab.driver();
        let to: IpAddr = cluster_ip.parse().expect("an address");
        let rows =
            [(false, true, false), (true, false, false), (true, true, true), (true, false, false)];
        for (allowed, ready, expected) in rows {
            lab.config.answer_ping = allowed;
            let endpoint = [address(pod, 8080)];
            let endpoints = if ready { &endpoint[..] } else { &[] };
            lab.set_service(service("web", cluster_ip, Protocol::Tcp, 80, 0), endpoints);
            lab.converge(&mut driver);
            assert_eq!(lab.converge(&mut driver), [], "what is written is read back");
            for client in [&lab.pod1, &lab.pod2, &lab.outside, &lab.node] {
                let patience = if expected { DEADLINE } else { SILENCE };
                let found = answers(client, to, patience);
                assert_eq!(found, expected, "{family}: allowed {allowed}, ready {ready}");
            }
        }
    }
}
