//! What becomes of packets.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::Protocol;
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};

use crate::common::{
    Addresses, Answer, DEADLINE, SILENCE, Server, answered, ask, ask_udp_with, ping, ping_as,
    sctp_seen, service, to, udp_socket,
};
use crate::lab::{EACH, Lab};

const NODE_PORT: u16 = 30080;
const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Runs a test in each variant and family, with a server in both pods.
fn each(test: impl Fn(&mut Lab, &Addresses)) {
    for (variant, family) in EACH {
        println!("{variant:?} {family}");
        let mut lab = Lab::new(variant, family);
        let _servers =
            [Server::start(&lab.pod1, "pod1", 8080), Server::start(&lab.pod2, "pod2", 8080)];
        let addresses = lab.addresses();
        test(&mut lab, &addresses);
    }
}

/// Who is served, and with which source: the rows of `plan::services` (S-01).
#[test]
fn every_protocol_reaches_an_endpoint_and_pods_keep_their_address() {
    each(|lab, at| {
        for protocol in ALL {
            let name = protocol.to_string();
            lab.serve(&name, service(at.vip, protocol, 80, NODE_PORT, &to(&[at.pod2])));
        }
        for protocol in ALL {
            let rows = [
                (&lab.pod1, at.vip, 80, at.pod1),
                // The node and strangers come with an address of the node towards the pod.
                (&lab.node, at.vip, 80, at.gateway2),
                (&lab.outside, at.vip, 80, at.gateway2),
                (&lab.outside, at.node, NODE_PORT, at.gateway2),
                (&lab.node, at.node, NODE_PORT, at.gateway2),
                (&lab.pod1, at.node, NODE_PORT, at.gateway2),
            ];
            for (client, address, port, seen) in rows {
                let answer = ask(client, protocol, address, port, DEADLINE);
                assert_eq!(answer, answered("pod2", seen), "{protocol} {address} {port}");
            }
        }
    });
}

/// S-10.
#[test]
fn sctp_reaches_the_endpoint() {
    each(|lab, at| {
        lab.serve("sctp", service(at.vip, Protocol::Sctp, 80, NODE_PORT, &to(&[at.pod2])));
        for (client, address, port, seen) in [
            (&lab.pod1, at.vip, 80, at.pod1),
            (&lab.outside, at.vip, 80, at.gateway2),
            (&lab.outside, at.node, NODE_PORT, at.gateway2),
        ] {
            let arrived = sctp_seen(client, address, port, &lab.pod2);
            assert_eq!(arrived, Some((seen, 8080)), "{address}");
        }
        assert_eq!(sctp_seen(&lab.pod1, at.vip, 81, &lab.pod2), None);
    });
}

#[test]
fn masquerade_all_hides_pods_from_cluster_ips_only() {
    each(|lab, at| {
        lab.config.masquerade_all = true;
        let local = Backends::Endpoints([SocketAddr::new(at.pod2, 8080)].into());
        let plan = FrontendPlan { outside: Some(local), ..to(&[at.pod2]) };
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, NODE_PORT, &plan));
        let ask = |address, port| ask(&lab.pod1, Protocol::Tcp, address, port, DEADLINE);
        assert_eq!(ask(at.vip, 80), answered("pod2", at.gateway2));
        assert_eq!(ask(at.node, NODE_PORT), answered("pod2", at.pod1));
    });
}

/// S-01.
#[test]
fn a_pod_reaches_itself_through_its_service() {
    each(|lab, at| {
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, 0, &to(&[at.pod1])));
        let answer = ask(&lab.pod1, Protocol::Tcp, at.vip, 80, DEADLINE);
        assert_eq!(answer, answered("pod1", at.gateway1));
    });
}

#[test]
fn connections_are_spread_by_weight() {
    each(|lab, at| {
        let mut plan = to(&[at.pod1, at.pod2]);
        lab.serve("web", service(at.vip, Protocol::Udp, 80, 0, &plan));
        let asked = 200;
        let to_pod1 = |lab: &Lab| {
            let answers =
                (0..asked).map(|_| ask(&lab.outside, Protocol::Udp, at.vip, 80, DEADLINE));
            answers.filter(|it| matches!(it, Answer::From(name, _) if name == "pod1")).count()
        };
        // Six standard deviations to either side.
        let even = to_pod1(lab);
        assert!((58..=142).contains(&even), "{even} of {asked}");
        let weights = [(at.pod1, 9), (at.pod2, 1)];
        let weights = weights.map(|(address, weight)| (SocketAddr::new(address, 8080), weight));
        plan.scheduling = Scheduling::Weighted(weights.into());
        lab.serve("web", service(at.vip, Protocol::Udp, 80, 0, &plan));
        let most = to_pod1(lab);
        assert!((155..200).contains(&most), "{most} of {asked}");
    });
}

/// S-08: also a port that the Service lacks; an address without a Service stays silent.
#[test]
fn without_endpoints_clients_are_refused_at_once() {
    each(|lab, at| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut plan = service(at.vip, protocol, 80, NODE_PORT, &to(&[]));
            let external = Frontend::External { address: at.external, protocol, port: 80 };
            plan.frontends.insert(external, to(&[]));
            lab.serve(&protocol.to_string(), plan);
        }
        for client in [&lab.pod1, &lab.outside, &lab.node] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for (address, port) in
                    [(at.vip, 80), (at.node, NODE_PORT), (at.external, 80), (at.vip, 81)]
                {
                    let answer = ask(client, protocol, address, port, DEADLINE);
                    assert_eq!(answer, Answer::Refused, "{protocol} {address} {port}");
                }
            }
        }
        let silent = ask(&lab.pod1, Protocol::Tcp, at.unknown_vip, 80, SILENCE);
        assert_eq!(silent, Answer::Nothing);
    });
}

/// S-06.
#[test]
fn external_policy_local_keeps_the_source_or_drops() {
    each(|lab, at| {
        let local = Backends::Endpoints([SocketAddr::new(at.pod2, 8080)].into());
        let both = to(&[at.pod1, at.pod2]);
        let plan = FrontendPlan { outside: Some(local), ..both.clone() };
        let external =
            Frontend::External { address: at.external, protocol: Protocol::Tcp, port: 80 };
        let mut service = service(at.vip, Protocol::Tcp, 80, NODE_PORT, &plan);
        service.frontends.insert(external, plan);
        lab.serve("web", service.clone());
        for (address, port) in [(at.node, NODE_PORT), (at.external, 80)] {
            for _ in 0..8 {
                let answer = ask(&lab.outside, Protocol::Tcp, address, port, DEADLINE);
                assert_eq!(answer, answered("pod2", at.outside), "{address}");
            }
            let mut seen = BTreeSet::new();
            for _ in 0..40 {
                seen.insert(ask(&lab.pod1, Protocol::Tcp, address, port, DEADLINE));
            }
            // Itself under the node's address, the neighbour under its own.
            let wanted = [answered("pod1", at.gateway1), answered("pod2", at.pod1)];
            assert_eq!(seen, wanted.into(), "{address}");
        }
        for (frontend, plan) in service.frontends.iter_mut() {
            if !matches!(frontend, Frontend::ClusterIp { .. }) {
                plan.outside = Some(Backends::Drop);
            }
        }
        lab.serve("web", service);
        for (address, port) in [(at.node, NODE_PORT), (at.external, 80)] {
            let ask = |client, patience| ask(client, Protocol::Tcp, address, port, patience);
            assert_eq!(ask(&lab.outside, SILENCE), Answer::Nothing, "{address}");
            assert!(matches!(ask(&lab.pod1, DEADLINE), Answer::From(..)), "{address}");
            assert!(matches!(ask(&lab.node, DEADLINE), Answer::From(..)), "{address}");
        }
    });
}

/// S-06.
#[test]
fn internal_policy_local_without_endpoints_drops() {
    each(|lab, at| {
        let protocol = Protocol::Tcp;
        let mut plan = service(at.vip, protocol, 80, NODE_PORT, &to(&[at.pod2]));
        let cluster_ip = Frontend::ClusterIp { address: at.vip, protocol, port: 80 };
        plan.frontends.insert(cluster_ip, FrontendPlan::new(Backends::Drop));
        lab.serve("web", plan);
        for client in [&lab.pod1, &lab.node, &lab.outside] {
            assert_eq!(ask(client, protocol, at.vip, 80, SILENCE), Answer::Nothing);
        }
        let node_port = ask(&lab.outside, protocol, at.node, NODE_PORT, DEADLINE);
        assert_eq!(node_port, answered("pod2", at.gateway2));
    });
}

/// S-04: pods and the node are sources too, and a node port of the same number at the same address
/// lets nobody in by the back door.
#[test]
fn an_external_address_serves_its_source_ranges_only() {
    each(|lab, at| {
        let protocol = Protocol::Tcp;
        let mut plan = service(at.vip, protocol, 80, 0, &to(&[at.pod2]));
        let ranges = [ipnet::IpNet::from(at.outside)].into();
        let ranged = FrontendPlan { source_ranges: Some(ranges), ..to(&[at.pod2]) };
        for (address, port) in [(at.external, 80), (at.node, NODE_PORT)] {
            let external = Frontend::External { address, protocol, port };
            plan.frontends.insert(external, ranged.clone());
        }
        lab.serve("web", plan.clone());
        lab.serve("other", service(at.other_vip, protocol, 80, NODE_PORT, &to(&[at.pod1])));
        let _own = Server::start(&lab.node, "node", NODE_PORT);
        for (address, port) in [(at.external, 80), (at.node, NODE_PORT)] {
            let ask = |client, patience| ask(client, protocol, address, port, patience);
            assert_eq!(ask(&lab.outside, DEADLINE), answered("pod2", at.gateway2), "{address}");
            assert_eq!(ask(&lab.pod1, SILENCE), Answer::Nothing, "{address}");
            assert_eq!(ask(&lab.node, SILENCE), Answer::Nothing, "{address}");
        }
        // The defence off: the same packets arrive.
        for frontend in plan.frontends.values_mut() {
            frontend.source_ranges = None;
        }
        lab.serve("web", plan);
        for address in [(at.external, 80), (at.node, NODE_PORT)] {
            let answer = ask(&lab.pod1, protocol, address.0, address.1, DEADLINE);
            assert_eq!(answer, answered("pod2", at.gateway2));
        }
    });
}

/// node ports are open at the chosen addresses only, and never beyond the node's own.
#[test]
fn node_ports_answer_at_chosen_addresses_only() {
    each(|lab, at| {
        lab.config.node_port_addresses = vec![ipnet::IpNet::from(at.unknown_vip)];
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, NODE_PORT, &to(&[at.pod2])));
        let closed = ask(&lab.outside, Protocol::Tcp, at.node, NODE_PORT, DEADLINE);
        assert_eq!(closed, Answer::Refused);
        lab.config.node_port_addresses = vec![];
        lab.converge(&mut lab.driver());
        let open = ask(&lab.outside, Protocol::Tcp, at.node, NODE_PORT, DEADLINE);
        assert_eq!(open, answered("pod2", at.gateway2));
        // What passes through to somebody else's port is not ours.
        let _server = Server::start(&lab.outside, "outside", NODE_PORT);
        let through = ask(&lab.pod1, Protocol::Tcp, at.outside, NODE_PORT, DEADLINE);
        assert_eq!(through, answered("outside", at.pod1));
    });
}

/// S-05.
#[test]
fn an_affine_client_stays_until_its_endpoint_goes_or_time_passes() {
    each(|lab, at| {
        let affine = |endpoints: &[_]| {
            let plan = FrontendPlan { affinity_timeout_s: Some(2), ..to(endpoints) };
            service(at.vip, Protocol::Tcp, 80, 0, &plan)
        };
        lab.serve("web", affine(&[at.pod1, at.pod2]));
        let ask = |lab: &Lab| match ask(&lab.outside, Protocol::Tcp, at.vip, 80, DEADLINE) {
            Answer::From(name, _) => name,
            other => panic!("{other:?}"),
        };
        let first = ask(lab);
        for _ in 0..20 {
            assert_eq!(ask(lab), first);
        }
        let (left, other) = if first == "pod1" { (at.pod2, "pod2") } else { (at.pod1, "pod1") };
        lab.serve("web", affine(&[left]));
        assert_eq!(ask(lab), other);
        lab.serve("web", affine(&[at.pod1, at.pod2]));
        for _ in 0..20 {
            assert_eq!(ask(lab), other);
        }
        // Forgotten after two seconds of silence: then either is as likely. That all of so many are
        // led to one happens once in a thousand million times.
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            if seen.len() < 2 {
                std::thread::sleep(std::time::Duration::from_millis(2_600));
                seen.insert(ask(lab));
            }
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
    });
}

/// S-10.
#[test]
fn a_udp_client_with_a_fixed_port_follows_the_endpoints() {
    each(|lab, at| {
        lab.converge(&mut lab.driver());
        let client = udp_socket(&lab.outside, lab.family);
        let ask = |address, port, patience| {
            ask_udp_with(&client, SocketAddr::new(address, port), patience)
        };
        for (address, port) in [(at.vip, 53), (at.node, NODE_PORT)] {
            for pods in [&[at.pod1][..], &[at.pod2], &[], &[at.pod1]] {
                lab.serve("dns", service(at.vip, Protocol::Udp, 53, NODE_PORT, &to(pods)));
                let wanted = match pods {
                    [] => Answer::Refused,
                    [pod] if *pod == at.pod1 => answered("pod1", at.gateway1),
                    _ => answered("pod2", at.gateway2),
                };
                assert_eq!(ask(address, port, DEADLINE), wanted, "{address} {pods:?}");
            }
        }
        // A range of ports: the port of the packet stays.
        for (pod, name, seen) in [(at.pod1, "pod1", at.gateway1), (at.pod2, "pod2", at.gateway2)] {
            lab.serve("range", ranged(at, Protocol::Udp, pod));
            assert_eq!(ask(at.other_vip, 8080, DEADLINE), answered(name, seen));
        }
    });
}

fn ranged(at: &Addresses, protocol: Protocol, pod: std::net::IpAddr) -> ServicePlan {
    let endpoints = Backends::Endpoints([SocketAddr::new(pod, 0)].into());
    let range = RangeFrontend {
        scope: RangeScope::ClusterIp,
        address: at.other_vip,
        protocol,
        first: 8000,
        last: 8999,
    };
    let ranges = [(range, FrontendPlan::new(endpoints))].into();
    ServicePlan { ranges, ..ServicePlan::default() }
}

#[test]
fn a_range_of_ports_leads_to_the_same_ports() {
    each(|lab, at| {
        let _more = Server::start(&lab.pod2, "more", 8500);
        lab.serve("range", ranged(at, Protocol::Tcp, at.pod2));
        let ask = |port| ask(&lab.pod1, Protocol::Tcp, at.other_vip, port, DEADLINE);
        assert_eq!(ask(8080), answered("pod2", at.pod1));
        assert_eq!(ask(8500), answered("more", at.pod1));
        assert_eq!(ask(9000), Answer::Refused);
    });
}

#[test]
fn a_cluster_ip_answers_ping_while_it_shall() {
    each(|lab, at| {
        let mut plan = service(at.vip, Protocol::Tcp, 80, 0, &to(&[at.pod2]));
        plan.answers_ping.insert(at.vip);
        lab.serve("web", plan.clone());
        for client in [&lab.pod1, &lab.node, &lab.outside] {
            assert!(ping(client, at.vip, DEADLINE));
        }
        // One that goes on pinging, too, hears no more.
        let running = 40_000;
        assert!(ping_as(running, &lab.outside, at.vip, DEADLINE));
        plan.answers_ping.clear();
        lab.serve("web", plan);
        for client in [&lab.pod1, &lab.node, &lab.outside] {
            assert!(!ping(client, at.vip, SILENCE));
        }
        assert!(!ping_as(running, &lab.outside, at.vip, SILENCE));
    });
}
