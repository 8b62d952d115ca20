//! S-11: packets that connection tracking calls invalid do not end a good connection.

use std::io::ErrorKind::HostUnreachable;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use model::Protocol;
use model::kinds::TrafficPolicy;
use netlink::Netns;
use socket2::{Domain, Socket, Type};
use testkit::lab::probe::uninterrupted;

use crate::lab::{
    DEADLINE, Lab, NODE, NODE_V6, OUTSIDE, OUTSIDE_V6, POD1, POD1_V6, service, socket as address,
};

const TRIALS: usize = 20;
const POD_PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// One that shall not come would have come by then.
const NOTHING_COMES_FOR: Duration = Duration::from_secs(1);

/// A socket for whole TCP segments.
fn raw(namespace: &Netns, domain: Domain) -> Socket {
    let open = || Socket::new(domain, Type::RAW, Some(socket2::Protocol::TCP));
    namespace.run(open).expect("the namespace").expect("a raw socket (these tests need root)")
}

/// Half the numbers lie behind a window and half ahead of it (RFC 9293, section 3.4), and only what
/// lies far ahead is invalid to the kernel: of these two one does, wherever the connection began.
const SEQUENCES: [u32; 2] = [0x1122_3344, 0x9122_3344];

/// A segment far out of the window.
fn stray(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0x55, 0x66, 0x77, 0x88, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
    // The pseudo headers of both families have the same sum (RFC 9293, section 3.1; RFC 8200,
    // section 8.1).
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
fn arrivals(lab: &Lab, from: SocketAddr, to: SocketAddr, patience: Duration) -> usize {
    let domain = Domain::for_address(to);
    let (sender, receiver) = (raw(&lab.pod1, domain), raw(&lab.outside, domain));
    receiver.set_read_timeout(Some(patience)).expect("a timeout");
    for _ in 0..TRIALS {
        for segment in SEQUENCES.map(|sequence| stray(from, to, sequence)) {
            // The segment has the port.
            sender.send_to(&segment, &SocketAddr::new(to.ip(), 0).into()).expect("a stray");
        }
    }
    let mut count = 0;
    // Until all have come, or the time is over in which one would come.
    while count < TRIALS
        && let Ok(source) = source_of_next(&receiver)
    {
        count += usize::from(source == Some(from.ip()));
    }
    count
}

fn source_of_next(receiver: &Socket) -> std::io::Result<Option<IpAddr>> {
    let mut packet = [MaybeUninit::uninit(); 256];
    let (_, source) = uninterrupted(|| receiver.recv_from(&mut packet))?;
    Ok(source.as_socket().map(|source| source.ip()))
}

/// A connection. Where a neighbour is not found within three seconds, because the machine is that
/// busy, it is tried again.
fn connect(to: SocketAddr) -> TcpStream {
    let end = Instant::now() + DEADLINE;
    loop {
        match TcpStream::connect_timeout(&to, DEADLINE) {
            Err(error) if error.kind() == HostUnreachable && Instant::now() < end => {}
            result => return result.expect("a connection"),
        }
    }
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
    for (family, cluster_ip, node, pod, outside) in [
        ("ip", "10.96.0.20", NODE, POD1, OUTSIDE),
        ("ip6", "fd00:10:96::20", NODE_V6, POD1_V6, OUTSIDE_V6),
    ] {
        let mut lab = Lab::dual_stack();
        let mut web = service("web", cluster_ip, Protocol::Tcp, 80, NODE_PORT);
        web.spec.external_traffic_policy = TrafficPolicy::Local;
        let from = address(pod, POD_PORT);
        lab.set_service(web, &[from]);
        let mut driver = lab.driver();
        lab.converge(&mut driver);
        let bind = || TcpListener::bind(from).expect("a listener");
        let listener = lab.pod1.run(bind).expect("the pod");
        let connect = || connect(address(node, NODE_PORT));
        let mut client = lab.outside.run(connect).expect("outside");
        let (mut server, peer) = listener.accept().expect("the client");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        }
        assert_eq!(peer, address(outside, client.local_addr().expect("its port").port()));
        assert!(carries(&mut client, &mut server), "{family}");
        assert_eq!(arrivals(&lab, from, peer, NOTHING_COMES_FOR), 0, "{family}");
        assert!(carries(&mut client, &mut server), "{family}: the connection ended");
        // Without the rule they arrive, from somebody whom the client never spoke to.
        let flush = ["flush", "chain", family, "flatnet", "filter-forward"];
        let flush = || Command::new("nft").args(flush).status().expect("nft").success();
        assert!(lab.node.run(flush).expect("the node"));
        let arrived = arrivals(&lab, from, peer, DEADLINE);
        assert_eq!(arrived, TRIALS, "{family}: the attack itself does not work");
    }
}
