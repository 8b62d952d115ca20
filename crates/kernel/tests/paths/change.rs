//! The way changes while connections live.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use model::{ClusterConfig, Overlay};
use testkit::deferred;
use testkit::emulated::Feature;

use super::lab::{Families, Lab, PATIENCE, Pod, udp};

/// Between two datagrams of the stream: slow enough for any socket's buffer.
const PERIOD: Duration = Duration::from_millis(1);
/// Answers that must come between two steps of a change: the streams are alive then.
const ANSWERS_BETWEEN_STEPS: u64 = 20;
/// How long to wait for the answers that are still under way at the end.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

#[test]
fn connections_outlive_the_change_of_the_overlay() {
    let direct = || (Overlay::HostGw, false);
    let ways = [(Overlay::Vxlan, false), direct(), (Overlay::Vxlan, true), (Overlay::Vxlan, false)];
    for families in [Families::V4, Families::V6] {
        let (sent, lost) = streams_outlive(families, &ways);
        // Each step replaces a route in one go, and both ends take both ways meanwhile.
        assert_eq!(lost, 0, "of {sent} datagrams under {families:?}");
    }
}

#[test]
fn connections_outlive_the_change_to_encryption_and_back() {
    if deferred!(Feature::WireGuard) {
        return;
    }
    let ways = [(Overlay::Vxlan, false), (Overlay::Wireguard, false), (Overlay::Vxlan, false)];
    let (sent, lost) = streams_outlive(Families::V4, &ways);
    // Until the first handshake a link keeps what it is given.
    assert_eq!(lost, 0, "of {sent} datagrams");
}

#[test]
fn connections_outlive_the_change_to_ip_in_ip_and_back() {
    if deferred!(Feature::Ipip) {
        return;
    }
    let ways = [(Overlay::Vxlan, false), (Overlay::Ipip, false), (Overlay::Vxlan, false)];
    let (sent, lost) = streams_outlive(Families::V4, &ways);
    assert_eq!(lost, 0, "of {sent} datagrams");
}

/// Runs a TCP and a UDP stream between pods of two nodes while the cluster changes its way step
/// by step, node after node, as [`ClusterConfig::also_receive`] says. The TCP stream must live and
/// lose nothing; answers how many datagrams were sent, and how many had no answer.
fn streams_outlive(families: Families, ways: &[(Overlay, bool)]) -> (u64, u64) {
    let mut lab = Lab::new(ways[0].0, families, &[0, 0]);
    lab.publish_keys();
    // Pods keep their MTU: that of the narrowest way.
    lab.config.also_receive = ways.iter().map(|(overlay, _)| *overlay).collect();
    lab.turn();
    let (one, two) = (lab.add_pod(0, 10), lab.add_pod(1, 20));
    lab.config.also_receive.clear();
    lab.turn();
    let counts = Counts::default();
    std::thread::scope(|scope| {
        let udp = scope.spawn(|| udp_stream(&one, &two, &counts));
        let tcp = scope.spawn(|| tcp_stream(&one, &two, &counts));
        let ends = EndsAtDrop(&counts);
        counts.wait();
        for pair in ways.windows(2) {
            for config in steps(&lab.config, pair[0], pair[1]) {
                lab.config = config;
                for index in 0..lab.nodes.len() {
                    lab.turn_of(index);
                    counts.wait();
                }
            }
        }
        drop(ends);
        let bytes = tcp.join().expect("the connection lives");
        assert!(bytes > 0);
        udp.join().expect("the stream ends")
    })
}

/// The three steps from one way to another.
fn steps(
    config: &ClusterConfig,
    (old, old_direct): (Overlay, bool),
    (new, new_direct): (Overlay, bool),
) -> [ClusterConfig; 3] {
    let with = |overlay, cross_subnet, also: &[Overlay]| ClusterConfig {
        overlay,
        cross_subnet,
        also_receive: also.iter().copied().collect::<BTreeSet<_>>(),
        ..config.clone()
    };
    [with(old, old_direct, &[new]), with(new, new_direct, &[old]), with(new, new_direct, &[])]
}

/// How far the streams are.
#[derive(Default)]
struct Counts {
    udp: AtomicU64,
    tcp: AtomicU64,
    end: AtomicBool,
}

impl Counts {
    /// Until both streams have had some more answers.
    fn wait(&self) {
        let now = || [&self.udp, &self.tcp].map(|count| count.load(Ordering::Relaxed));
        let before = now();
        let start = std::time::Instant::now();
        let enough =
            |(now, before): (u64, u64)| now.saturating_sub(before) >= ANSWERS_BETWEEN_STEPS;
        while !now().into_iter().zip(before).all(enough) {
            assert!(start.elapsed() < PATIENCE, "a stream stands still: {before:?}, {:?}", now());
            std::thread::sleep(PERIOD);
        }
    }
}

/// Ends the streams also when the test fails.
struct EndsAtDrop<'a>(&'a Counts);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Relaxed);
    }
}

/// Sends numbered datagrams and counts their echoes; answers how many were sent and lost.
fn udp_stream(one: &Pod, two: &Pod, counts: &Counts) -> (u64, u64) {
    let at = |pod: &Pod| SocketAddr::new(pod.addresses[0], 7007);
    let server = udp(&two.namespace, at(two), LAST_ANSWERS);
    let client = udp(&one.namespace, at(one), LAST_ANSWERS);
    let ended = || counts.end.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            loop {
                match server.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        server.send_to(&buffer[..length], from).expect("answered");
                    }
                    Err(_) if ended() => break,
                    Err(_) => {}
                }
            }
        });
        // Neighbours are found first: that is nobody's change.
        let mut number = [0xff; 8];
        let start = std::time::Instant::now();
        while client.send_to(&number, at(two)).is_err() || client.recv(&mut number).is_err() {
            assert!(start.elapsed() < PATIENCE, "there is no way at all");
        }
        let sender = scope.spawn(|| {
            let mut sent = 0_u64;
            while !ended() {
                client.send_to(&sent.to_be_bytes(), at(two)).expect("sent");
                sent += 1;
                std::thread::sleep(PERIOD); // the pace of the stream
            }
            sent
        });
        let mut answered = BTreeSet::new();
        loop {
            let mut number = [0; 8];
            match client.recv(&mut number) {
                Ok(_) if answered.insert(u64::from_be_bytes(number)) => {
                    counts.udp.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) if ended() => break,
                _ => {}
            }
        }
        answered.remove(&u64::MAX);
        let sent = sender.join().expect("the sender ends");
        (sent, sent - answered.len() as u64)
    })
}

/// Sends numbers and reads them back in order; answers how many bytes came back.
fn tcp_stream(one: &Pod, two: &Pod, counts: &Counts) -> u64 {
    let to: IpAddr = two.addresses[0];
    let listener = || TcpListener::bind((to, 7008)).expect("bound");
    let listener = two.namespace.run(listener).expect("inside");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..length]).expect("answered");
            }
        });
        let connect = || TcpStream::connect_timeout(&(to, 7008).into(), PATIENCE);
        let mut stream = one.namespace.run(connect).expect("inside").expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut number = 0_u64;
        while !counts.end.load(Ordering::Relaxed) {
            stream.write_all(&number.to_be_bytes()).expect("the connection takes it");
            let mut back = [0; 8];
            stream.read_exact(&mut back).expect("the connection answers");
            assert_eq!(u64::from_be_bytes(back), number, "in order and whole");
            number += 1;
            counts.tcp.fetch_add(1, Ordering::Relaxed);
        }
        number * 8
    })
}
