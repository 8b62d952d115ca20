//! Limits of a pod's traffic: real streams through them. Needs root.

mod attach;
mod lab;

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use attach::{Attached, BOTH_ONE, BOTH_TWO, attach, config};
use lab::{LabNode, PATIENCE, Pod};
use netlink::{LinkChange, Netlink, Netns, TokenBucket};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use serde_json::{Value, json};

/// Low enough that a bucket holds seconds of it.
const RATE_BITS_PER_S: u64 = 8_000_000;
const SLOWER_BITS_PER_S: u64 = 6_000_000;
/// What passes at once, and so much more may wait: the limit then needs no sender any more.
const BURST_BITS: u64 = 16_000_000;
/// What a datagram carries, and what a limit counts of it: Ethernet, IPv4 and UDP headers besides.
const PAYLOAD_BYTES: usize = 1400;
const DATAGRAM_BYTES: usize = PAYLOAD_BYTES + 14 + 20 + 8;
/// Of sockets, in bytes: more than is sent in a test, with what the kernel counts besides.
const SOCKET_BYTES: usize = 32 << 20;
/// How far a rate may be from the asked one.
const TOLERANCE: f64 = 0.05;

fn node() -> LabNode {
    LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into())
}

/// Sends so many datagrams at once. Answers the time from the first one's arrival to the last
/// one's, by the kernel's clock: how late this thread runs does not count, nor how slowly it sends,
/// as long as what waits at a limit does not run out.
fn transit(client: &Netns, server: &Netns, to: &str, datagrams: usize) -> Duration {
    let to: IpAddr = to.parse().expect("an address");
    let receiver = server.run(|| UdpSocket::bind((to, 0)).expect("bound")).expect("inside");
    receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    setsockopt(&receiver, sockopt::RcvBufForce, &SOCKET_BYTES).expect("a larger buffer");
    setsockopt(&receiver, sockopt::ReceiveTimestampns, &true).expect("times of arrival");
    let address = receiver.local_addr().expect("its address");
    let sender = client.run(|| UdpSocket::bind("0.0.0.0:0").expect("bound")).expect("inside");
    setsockopt(&sender, sockopt::SndBufForce, &SOCKET_BYTES).expect("a larger buffer");
    let send = || sender.send_to(&[7; PAYLOAD_BYTES], address).expect("sent");
    // One before, alone: neighbours are known then.
    send();
    arrival(&receiver);
    for _ in 0..datagrams {
        send();
    }
    // One may overtake another on the way: processors take turns with them.
    let arrivals: Vec<Duration> = (0..datagrams).map(|_| arrival(&receiver)).collect();
    let first = arrivals.iter().min().expect("a datagram");
    *arrivals.iter().max().expect("a datagram") - *first
}

/// When the next datagram arrived. A lost one is waited for in vain.
fn arrival(receiver: &UdpSocket) -> Duration {
    let mut payload = [0; PAYLOAD_BYTES];
    let mut control = nix::cmsg_space!(nix::libc::timespec);
    let mut pieces = [IoSliceMut::new(&mut payload)];
    let received = recvmsg::<SockaddrStorage>(
        receiver.as_raw_fd(),
        &mut pieces,
        Some(&mut control),
        MsgFlags::empty(),
    );
    let received = received.expect("a datagram");
    let at = received.cmsgs().expect("room").find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    at.expect("a time of arrival")
}

fn limits(ingress: u64, egress: u64) -> Value {
    let burst = |rate: u64| if rate == 0 { 0 } else { BURST_BITS };
    json!({
        "runtimeConfig": { "bandwidth": {
            "ingressRate": ingress, "ingressBurst": burst(ingress),
            "egressRate": egress, "egressBurst": burst(egress),
        } },
    })
}

fn pair(node: &LabNode, datapath: &str, keys: Value) -> (Pod, Pod, Attached) {
    let (limited, free) = (Pod::new("c1"), Pod::new("c2"));
    let attached = attach(&node.namespace, &limited, &config(datapath, keys), BOTH_ONE);
    attach(&node.namespace, &free, &config(datapath, json!({})), BOTH_TWO).expect("made");
    (limited, free, attached.expect("made"))
}

/// The rate in bits a second of a limit that passes `burst_bits` at once, by a stream that empties
/// the bucket and then waits at it.
fn rate(client: &Netns, server: &Netns, to: &str, burst_bits: u64) -> f64 {
    // Nearly as much waits as may.
    let bits = burst_bits + burst_bits / 10 * 9;
    let datagrams = bits as usize / 8 / DATAGRAM_BYTES;
    let time = transit(client, server, to, datagrams);
    let waited_bits = (datagrams * DATAGRAM_BYTES * 8) as f64 - burst_bits as f64;
    waited_bits / time.as_secs_f64()
}

fn is_within_tolerance(rate: f64, asked: u64) -> bool {
    (rate / asked as f64 - 1.0).abs() <= TOLERANCE
}

/// BW: the measured rate is within 5 % of the asked one, each direction by its own.
#[test]
fn streams_have_the_rates_that_were_asked_for() {
    for datapath in ["bridge", "routed"] {
        let node = node();
        let keys = limits(RATE_BITS_PER_S, SLOWER_BITS_PER_S);
        let (limited, free, attached) = pair(&node, datapath, keys);
        let rows = [
            ("ingress", &free, &limited, "10.244.1.2", RATE_BITS_PER_S),
            ("egress", &limited, &free, "10.244.1.3", SLOWER_BITS_PER_S),
        ];
        for (direction, from, to, address, asked) in rows {
            let rate = rate(&from.namespace, &to.namespace, address, BURST_BITS);
            assert!(is_within_tolerance(rate, asked), "{datapath} {direction}: {rate} of {asked}");
        }
        // What is wrong by little more is seen.
        let mut netlink = node.netlink();
        let near = netlink.require_link(attached.near()).expect("the node's end").index;
        let right = netlink.token_bucket(near).expect("read").expect("a limit");
        for percent in [92, 108] {
            let rate_bytes_per_s = right.rate_bytes_per_s * percent / 100;
            let wrong = TokenBucket { rate_bytes_per_s, ..right };
            netlink.set_token_bucket(near, &wrong).expect("changed");
            let rate = rate(&free.namespace, &limited.namespace, "10.244.1.2", BURST_BITS);
            assert!(!is_within_tolerance(rate, RATE_BITS_PER_S), "{percent} %: {rate}");
        }
    }
}

/// BW: zero switches a limit off, and one direction leaves the other alone.
#[test]
fn a_direction_without_a_limit_is_not_slowed() {
    let node = node();
    let (limited, free, attached) = pair(&node, "bridge", limits(RATE_BITS_PER_S, 0));
    let datagrams = (2 * RATE_BITS_PER_S) as usize / 8 / DATAGRAM_BYTES;
    let time = transit(&limited.namespace, &free.namespace, "10.244.1.3", datagrams);
    // Under the other direction's limit these are two seconds' worth.
    assert!(time < Duration::from_secs(1), "{time:?}");
    let kinds: Vec<String> =
        node.netlink().links().expect("links").into_iter().map(|link| link.kind).collect();
    assert!(!kinds.iter().any(|kind| kind == "ifb"), "{kinds:?}");
    let near = node.netlink().require_link(attached.near()).expect("the node's end").index;
    assert_eq!(node.netlink().ingress_redirect(near), Ok(None));
}

/// Changes one thing that CHECK looks at.
type Damage = fn(&mut Netlink, u32, u32);

/// BW: CHECK.
#[test]
fn check_names_a_limit_that_is_gone_or_changed() {
    let rows: [(&str, Damage); 5] = [
        ("ingress limit", |netlink, near, _| {
            netlink.delete_token_bucket(near).expect("removed");
        }),
        ("ingress limit", |netlink, near, _| {
            let other = TokenBucket {
                rate_bytes_per_s: 1_000_000,
                burst_bytes: 100_000,
                limit_bytes: 200_000,
            };
            netlink.set_token_bucket(near, &other).expect("changed");
        }),
        ("egress limit", |netlink, near, _| {
            netlink.delete_ingress_redirect(near).expect("removed");
        }),
        ("egress limit", |netlink, _, ifb| {
            netlink.delete_token_bucket(ifb).expect("removed");
        }),
        ("is gone or down", |netlink, _, ifb| {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            netlink.change_link(ifb, &down).expect("down");
        }),
    ];
    for (said, damage) in rows {
        let node = node();
        let keys = limits(RATE_BITS_PER_S, SLOWER_BITS_PER_S);
        let (_limited, _free, attached) = pair(&node, "bridge", keys);
        attached.check(&node.namespace).expect("as made");
        let mut netlink = node.netlink();
        let near = netlink.require_link(attached.near()).expect("the node's end").index;
        let links = netlink.links().expect("links");
        let ifb = links.iter().find(|link| link.kind == "ifb").expect("the ifb").index;
        assert_eq!(netlink.ingress_redirect(near), Ok(Some(ifb)));
        damage(&mut netlink, near, ifb);
        let fault = attached.check(&node.namespace).expect_err(said);
        assert!(fault.message.contains(said), "{fault} should say {said:?}");
    }
}

/// BW: the ifb is removed on DEL, also when the veth pair is gone before.
#[test]
fn nothing_of_a_limit_stays_after_del() {
    for alone in [false, true] {
        let node = node();
        let keys = limits(RATE_BITS_PER_S, SLOWER_BITS_PER_S);
        let (_limited, _free, attached) = pair(&node, "routed", keys);
        let mut netlink = node.netlink();
        if alone {
            let near = netlink.require_link(attached.near()).expect("the node's end").index;
            netlink.delete_link(near).expect("removed");
        }
        attached.remove(&node.namespace).expect("removed");
        let links = netlink.links().expect("links");
        assert_eq!(links.len(), 2, "loopback and the other pod's end: {links:?}");
        assert!(links.iter().all(|link| link.kind != "ifb"));
    }
}
