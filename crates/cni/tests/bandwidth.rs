//! Limits of a pod's traffic: real streams through them. Needs root.

mod attach;
mod lab;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use attach::{Attached, BOTH_ONE, BOTH_TWO, attach, config};
use lab::{LabNode, PATIENCE, Pod};
use netlink::{LinkChange, Netlink, Netns, TokenBucket};
use serde_json::{Value, json};

/// Low enough that this machine's speed does not matter.
const RATE_BITS_PER_S: u64 = 40_000_000;
const SLOWER_BITS_PER_S: u64 = 24_000_000;
const BURST_BITS: u64 = 800_000;
/// More than a receiver's socket holds.
const BUFFER_BYTES: usize = 8 << 20;
/// Bytes of a stream before its rate is taken: more than the bucket, and TCP has found its pace.
const WARM_UP_BYTES: usize = 1_500_000;
/// Bytes whose rate is taken.
const MEASURED_BYTES: usize = 5_000_000;
/// Pieces that are sent beyond that, so that the stream does not end before it is measured.
const SPARE_PIECES: usize = 16;
/// How long a look at a socket may take: a third of a hundredth of what is measured.
const LOOK_MAX: Duration = Duration::from_millis(5);
const LOOKS_MAX: usize = 100;
/// Streams of which one must have its rate. On a busy machine a sender waits for a processor, or a
/// lost segment hides what came after it when the count begins; a wrong limit is wrong for each.
const STREAMS_MAX: usize = 5;
/// What a segment carries of what the limit counts: an MTU of 1500 bytes with IPv4 and TCP
/// headers and a time stamp, and the Ethernet header besides.
const PAYLOAD_SHARE: f64 = 1448.0 / 1514.0;

fn node() -> LabNode {
    LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into())
}

/// Bits a second that the limits of a link let through, from the time that a stream takes after so
/// many bytes.
fn rate(client: &Netns, server: &Netns, to: &str, warm_up_bytes: usize) -> f64 {
    let to: IpAddr = to.parse().expect("an address");
    let listener = server.run(|| TcpListener::bind((to, 0)).expect("bound")).expect("inside");
    let address = listener.local_addr().expect("its address");
    let taken = std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut buffer = vec![0; BUFFER_BYTES];
            // What has arrived, read or not: how late this thread runs does not count.
            let arrived = |stream: &TcpStream, received: usize, buffer: &mut [u8]| {
                let (now, waiting) = at_once(|| stream.peek(buffer).expect("what waits"));
                (now, received + waiting)
            };
            let (mut received, mut begin) = (0, None);
            while received < warm_up_bytes + MEASURED_BYTES {
                let length = stream.read(&mut buffer[..64 * 1024]).expect("data");
                assert!(length > 0, "the stream ends after {received} bytes");
                received += length;
                if received >= warm_up_bytes && begin.is_none() {
                    begin = Some(arrived(&stream, received, &mut buffer));
                }
            }
            let (begin, before) = begin.expect("more than the warm-up");
            let (end, after) = arrived(&stream, received, &mut buffer);
            (end - begin, after - before)
        });
        let connect = || TcpStream::connect_timeout(&address, PATIENCE).expect("connected");
        let mut stream = client.run(connect).expect("inside");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let piece = vec![7; 64 * 1024];
        for _ in 0..(warm_up_bytes + MEASURED_BYTES) / piece.len() + SPARE_PIECES {
            if stream.write_all(&piece).is_err() {
                break; // the receiver has enough
            }
        }
        receiver.join().expect("received")
    });
    let (time, bytes): (Duration, usize) = taken;
    bytes as f64 * 8.0 / time.as_secs_f64() / PAYLOAD_SHARE
}

/// Looks, and answers when: a thread that was put aside in between looks again.
fn at_once<T>(mut look: impl FnMut() -> T) -> (Instant, T) {
    let mut seen = (Instant::now(), look());
    for _ in 1..LOOKS_MAX {
        if seen.0.elapsed() < LOOK_MAX {
            break;
        }
        seen = (Instant::now(), look());
    }
    seen
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

/// BW: the measured rate is within 5 % of the asked one, each direction by its own.
#[test]
fn streams_have_the_rates_that_were_asked_for() {
    for datapath in ["bridge", "routed"] {
        let node = node();
        let keys = limits(RATE_BITS_PER_S, SLOWER_BITS_PER_S);
        let (limited, free, _) = pair(&node, datapath, keys);
        let rows = [
            ("ingress", &free, &limited, "10.244.1.2", RATE_BITS_PER_S),
            ("egress", &limited, &free, "10.244.1.3", SLOWER_BITS_PER_S),
        ];
        for (direction, from, to, address, asked) in rows {
            let mut ratios = Vec::new();
            let held = (0..STREAMS_MAX).any(|_| {
                let rate = rate(&from.namespace, &to.namespace, address, WARM_UP_BYTES);
                ratios.push(rate / asked as f64);
                ratios.last().is_some_and(|ratio| (0.95..=1.05).contains(ratio))
            });
            assert!(held, "{datapath} {direction}: {ratios:.3?} of {asked}");
        }
    }
}

/// BW: zero switches a limit off, and one direction leaves the other alone.
#[test]
fn a_direction_without_a_limit_is_not_slowed() {
    let node = node();
    let (limited, free, attached) = pair(&node, "bridge", limits(RATE_BITS_PER_S, 0));
    // From the first byte: later ones wait for a receiver that is late, all at once. A limit would
    // slow each stream, a busy machine only some.
    let unlimited = (0..STREAMS_MAX)
        .map(|_| rate(&limited.namespace, &free.namespace, "10.244.1.3", 0))
        .any(|rate| rate > 4.0 * RATE_BITS_PER_S as f64);
    assert!(unlimited, "none of {STREAMS_MAX} streams was faster");
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
