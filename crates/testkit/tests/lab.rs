//! Every case file with real packets in network namespaces. Needs root, and fails without.
//!
//! `FLATNET_CASE=NAME` runs one.

use std::net::{IpAddr, SocketAddr};

use model::Protocol;
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use testkit::case;
use testkit::lab::probe::{Answer, PATIENCE, Servers, ask};
use testkit::lab::{Lab, run};

/// Cases whose packets need what the lab does not have, and the tests that send them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("pod-to-pod-kept-ipip", "IP in IP: kernel/tests/paths, in the emulated kernel"),
    ("pod-to-pod-kept-native", "routes of somebody else: kernel/tests/paths, between pods"),
];

#[test]
fn real_packets_do_what_every_case_says() {
    let only = std::env::var("FLATNET_CASE").ok();
    let paths = case::find(&case::directory()).expect("the cases");
    let (mut failed, mut count, mut packets) = (Vec::new(), 0, 0);
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        count += 1;
        if let Some((_, place)) = ELSEWHERE.iter().find(|(case, _)| *case == name) {
            println!("{name}: {place}");
            continue;
        }
        match run::file(&path) {
            Ok((faults, sent)) => {
                packets += sent;
                failed.extend(faults.iter().map(|fault| format!("{name}: {fault}")));
            }
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    assert!(count > 0, "no case has the name {only:?}");
    assert!(failed.is_empty(), "{} faults:\n  {}", failed.len(), failed.join("\n  "));
    println!("{count} cases, {packets} connections and datagrams");
}

/// The attack of `loopback-from-neighbour-dropped` works on a machine without our guard: the case
/// shows the guard, not a mistake in the attack.
#[test]
fn an_unguarded_machine_answers_on_loopback() {
    let attacker = Netns::create().expect("network namespaces need root");
    let victim = Netns::create().expect("a namespace");
    let mut net = Netlink::open_in(&attacker).expect("a socket");
    net.create_veth(&VethSpec::new("eth0", "eth0").peer_in(&victim)).expect("a link");
    let [near, far] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().expect("one"));
    for (namespace, address) in [(&attacker, near), (&victim, far)] {
        let mut net = Netlink::open_in(namespace).expect("a socket");
        let lo = net.require_link("lo").expect("lo").index;
        net.change_link(lo, &LinkChange::up()).expect("lo up");
        let eth0 = net.require_link("eth0").expect("eth0").index;
        net.add_address(eth0, ipnet::IpNet::new(address, 24).expect("a prefix")).expect("added");
        net.change_link(eth0, &LinkChange::up()).expect("eth0 up");
    }
    Lab::expose_loopback(&attacker, "eth0", far, &victim).expect("exposed");
    let servers = Servers::start();
    let loopback: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    servers.listen(&victim, Protocol::Udp, loopback).expect("a server");
    let answer = attacker
        .run(|| ask(Protocol::Udp, SocketAddr::new(near, 0), loopback, PATIENCE))
        .expect("the attacker's namespace");
    assert_eq!(answer, Answer::Served { by: loopback, saw: near });
}
