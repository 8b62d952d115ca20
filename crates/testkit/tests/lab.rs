//! Every case file with real packets in network namespaces. Needs root, and fails without.
//!
//! `FLATNET_CASE=NAME` runs one.

use std::net::{IpAddr, SocketAddr};

use model::{Overlay, Protocol};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use testkit::case::{self, Case};
use testkit::emulated::Feature;
use testkit::lab::probe::{Answer, PATIENCE, Servers, ask};
use testkit::lab::{Lab, run};

/// The only case whose tunnels some kernels lack. The emulated kernel has no files of ours.
const IP_IN_IP: &str = include_str!("../../../cases/network/pod-to-pod-kept-ipip.case");

#[test]
fn real_packets_do_what_every_case_says() {
    let only = std::env::var("FLATNET_CASE").ok();
    let paths = case::find(&case::directory()).expect("the cases");
    let (mut failed, mut count, mut packets) = (Vec::new(), 0, 0);
    for path in paths {
        let (case, _) = Case::file(&path).expect("a case");
        let name = &case.name;
        let is_asked_for = only.as_ref().is_none_or(|only| only == name);
        if !is_asked_for || case.settings.config.overlay == Overlay::Ipip {
            continue;
        }
        count += 1;
        match run::run(&case) {
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

#[test]
fn real_packets_travel_within_ip_in_ip() {
    if testkit::deferred!(Feature::Ipip) {
        return;
    }
    let case = Case::parse("pod-to-pod-kept-ipip", IP_IN_IP).expect("a case");
    assert_eq!(case.settings.config.overlay, Overlay::Ipip);
    let (faults, packets) = run::run(&case).expect("a lab");
    assert_eq!(faults, Vec::<String>::new());
    assert!(packets > 0);
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
