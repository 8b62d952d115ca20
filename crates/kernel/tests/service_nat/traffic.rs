//! Real packets: who answers, whom the server sees, and who hears of errors.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};

use kernel::bpf::service_nat::MASQUERADE_PORTS;
use netlink::Netns;
use render::ebpf::View;

use crate::lab::Mode;
use crate::scene::{
    FAMILIES, Frontend, Said, Scene, Server, ask_tcp, ask_udp, node_addresses, servers_of,
    tunnel_addresses, udp_to,
};

const MODES: [Mode; 2] = [Mode::Routed, Mode::Bridge];
/// More than fits a packet of the wire.
const LARGE_BYTES: usize = 8000;

/// What a server says over TCP, over UDP, and to a datagram in fragments.
pub fn ask_all(namespace: &Netns, target: SocketAddr, context: &str) -> [Said; 3] {
    let failed = |kind: &str, error: std::io::Error| -> Said {
        panic!("{context}: {kind} to {target}: {error}")
    };
    let udp = |bytes| ask_udp(&udp_to(namespace, target), bytes);
    // Of IPv6 the first one may be lost, and its sender learn how much the way takes: from an ICMP
    // error that was translated, or it would not believe it.
    let large = || udp(LARGE_BYTES).or_else(|_| udp(LARGE_BYTES));
    [
        ask_tcp(namespace, target).unwrap_or_else(|error| failed("TCP", error)),
        udp(10).unwrap_or_else(|error| failed("UDP", error)),
        large().unwrap_or_else(|error| failed("fragments", error)),
    ]
}

pub fn assert_masqueraded(said: &Said, by: IpAddr, context: &str) {
    assert_eq!(said.client.ip(), by, "{context}");
    assert!(MASQUERADE_PORTS.contains(&said.client.port()), "{context}: {}", said.client);
}

/// S-01, S-15: a pod's source is kept through a ClusterIP, wherever the endpoint is.
#[test]
fn pods_reach_endpoints_here_and_elsewhere_under_their_own_address() {
    for mode in MODES {
        let mut scene = Scene::new(mode);
        let _servers = [&scene.pods[1], &scene.remote].map(Server::start);
        for (name, addresses) in
            [("veth12", scene.pods[1].addresses), ("veth21", scene.remote.addresses)]
        {
            scene.serve(Frontend::CLUSTER_IP, &[addresses]);
            for family in FAMILIES {
                let client = &scene.pods[0];
                let target = Frontend::CLUSTER_IP.address(family);
                for said in ask_all(&client.namespace, target, &format!("{mode:?} {name}")) {
                    assert_eq!(said.server, name, "{mode:?}");
                    assert_eq!(said.client.ip(), client.addresses[family], "{mode:?} {name}");
                }
            }
        }
    }
}

/// S-01: a pod that gets itself is masqueraded, or it would take the answer for its own packet.
#[test]
fn a_pod_reaches_itself_under_the_nodes_address() {
    for mode in MODES {
        let mut scene = Scene::new(mode);
        let own = &scene.pods[0];
        let _server = Server::start(own);
        let addresses = own.addresses;
        scene.serve(Frontend::CLUSTER_IP, &[addresses]);
        for family in FAMILIES {
            let target = Frontend::CLUSTER_IP.address(family);
            for said in ask_all(&scene.pods[0].namespace, target, &format!("{mode:?}")) {
                assert_masqueraded(&said, node_addresses(1)[family], "hairpin");
            }
        }
    }
}

/// The rows of `plan::services` for clients outside, with the endpoint here and elsewhere.
#[test]
fn clients_outside_are_masqueraded_unless_a_local_policy_keeps_them() {
    let mut scene = Scene::new(Mode::Routed);
    let _servers = [&scene.pods[1], &scene.remote].map(Server::start);
    let (here, elsewhere) = (scene.pods[1].addresses, scene.remote.addresses);
    let rows = [
        ("node port", Frontend::NODE_PORT, here, Some([0, 1].map(|f| node_addresses(1)[f]))),
        // Of IPv4 by the tunnel, under the address that the tunnel's link has.
        (
            "node port to elsewhere",
            Frontend::NODE_PORT,
            elsewhere,
            Some([tunnel_addresses()[0], node_addresses(1)[1]]),
        ),
        ("ClusterIP", Frontend::CLUSTER_IP, here, Some(node_addresses(1))),
        ("node port, Local", Frontend::LOCAL_NODE_PORT, here, None),
    ];
    for (name, frontend, endpoint, masquerade) in rows {
        scene.serve(frontend, &[endpoint]);
        for family in FAMILIES {
            let target = frontend.address(family);
            for said in ask_all(&scene.other.namespace, target, name) {
                match masquerade {
                    Some(by) => assert_masqueraded(&said, by[family], name),
                    None => assert_eq!(said.client.ip(), node_addresses(2)[family], "{name}"),
                }
            }
        }
    }
}

/// A pod of this node at a node port: masqueraded under Cluster, its own under Local.
#[test]
fn pods_reach_node_ports_as_the_policy_says() {
    let mut scene = Scene::new(Mode::Bridge);
    let _server = Server::start(&scene.pods[1]);
    let endpoint = scene.pods[1].addresses;
    for (frontend, is_kept) in [(Frontend::NODE_PORT, false), (Frontend::LOCAL_NODE_PORT, true)] {
        scene.serve(frontend, &[endpoint]);
        for family in FAMILIES {
            let client = &scene.pods[0];
            for said in ask_all(&client.namespace, frontend.address(family), "a pod") {
                if is_kept {
                    assert_eq!(said.client.ip(), client.addresses[family]);
                } else {
                    assert_masqueraded(&said, node_addresses(1)[family], "Cluster");
                }
            }
        }
    }
}

/// An endpoint that is the node itself, as a pod of the host's network: also for clients outside.
#[test]
fn endpoints_on_the_node_itself_answer() {
    let mut scene = Scene::new(Mode::Routed);
    let _server =
        Server::start_at(&scene.node.namespace, node_addresses(1), crate::scene::TARGET, "node");
    for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
        scene.serve(frontend, &[node_addresses(1)]);
        for family in FAMILIES {
            let target = frontend.address(family);
            for (client, own) in [
                (&scene.pods[0].namespace, scene.pods[0].addresses),
                (&scene.other.namespace, node_addresses(2)),
            ] {
                for said in ask_all(client, target, "to the node") {
                    // Nothing leaves the node, so nothing is masqueraded: as in netfilter.
                    assert_eq!((said.server.as_str(), said.client.ip()), ("node", own[family]));
                }
            }
        }
    }
}

/// S-08: no endpoint anywhere refuses, for both protocols and families; none that may be used
/// drops.
#[test]
fn without_endpoints_clients_are_refused_or_not_answered() {
    let mut scene = Scene::new(Mode::Bridge);
    for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
        for (view, expected) in
            [(View::Reject, ErrorKind::ConnectionRefused), (View::Drop, ErrorKind::TimedOut)]
        {
            scene.close(frontend, &view);
            for family in FAMILIES {
                let target = frontend.address(family);
                for client in [&scene.pods[0].namespace, &scene.other.namespace] {
                    let error = ask_tcp(client, target).expect_err("nobody answers");
                    assert_eq!(error.kind(), expected, "TCP {target} {view:?}");
                    for bytes in [0, 10, 1200] {
                        let error =
                            ask_udp(&udp_to(client, target), bytes).expect_err("nobody answers");
                        let expected = match expected {
                            ErrorKind::TimedOut => ErrorKind::WouldBlock,
                            other => other,
                        };
                        assert_eq!(error.kind(), expected, "UDP {target} {view:?} {bytes}");
                    }
                }
            }
        }
    }
    assert!(scene.counter("nat_refused") > 0 && scene.counter("nat_ignored") > 0);
}

/// An endpoint without a process refuses: its reset and its ICMP error come back translated, to
/// clients whose source is kept and to masqueraded ones.
#[test]
fn errors_of_endpoints_reach_their_clients() {
    let mut scene = Scene::new(Mode::Bridge);
    for endpoint in [scene.pods[1].addresses, scene.remote.addresses] {
        for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
            scene.serve(frontend, &[endpoint]);
            for family in FAMILIES {
                let target = frontend.address(family);
                for client in [&scene.pods[0].namespace, &scene.other.namespace] {
                    let refused = ErrorKind::ConnectionRefused;
                    let error = ask_tcp(client, target).expect_err("nobody answers");
                    assert_eq!(error.kind(), refused, "TCP {target} at {endpoint:?}");
                    let error = ask_udp(&udp_to(client, target), 10).expect_err("nobody answers");
                    assert_eq!(error.kind(), refused, "UDP {target} at {endpoint:?}");
                }
            }
        }
    }
}

/// S-05, and what affinity keeps from: without it connections go to all endpoints.
#[test]
fn connections_are_spread_unless_a_client_stays() {
    let mut scene = Scene::new(Mode::Routed);
    let _servers = [&scene.pods[1], &scene.remote].map(Server::start);
    let endpoints = [scene.pods[1].addresses, scene.remote.addresses];
    for (affinity_timeout_s, expected) in [(None, 2), (Some(60), 1)] {
        let frontend = Frontend { affinity_timeout_s, ..Frontend::CLUSTER_IP };
        scene.serve(frontend, &endpoints);
        for family in FAMILIES {
            let target = frontend.address(family);
            let servers = servers_of(&scene.pods[0].namespace, target, 20);
            assert_eq!(servers.len(), expected, "{servers:?}");
        }
    }
}

/// S-10: a socket that sends on and on from one port is led to where the Service is now: another
/// endpoint, none (an error), and one again.
#[test]
fn datagrams_of_one_port_follow_the_endpoints() {
    let mut scene = Scene::new(Mode::Routed);
    let _servers = [&scene.pods[1], &scene.remote].map(Server::start);
    let endpoints = [scene.pods[1].addresses, scene.remote.addresses];
    for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
        scene.serve(frontend, &endpoints[..1]);
        let outside = &scene.other.namespace;
        let sockets = FAMILIES.map(|family| udp_to(outside, frontend.address(family)));
        let ask = |family: usize| ask_udp(&sockets[family], 10);
        for family in FAMILIES {
            assert_eq!(ask(family).expect("an answer").server, "veth12");
        }
        scene.serve(frontend, &endpoints);
        for family in FAMILIES {
            assert_eq!(ask(family).expect("an answer").server, "veth12", "it stays");
        }
        scene.serve(frontend, &endpoints[1..]);
        for family in FAMILIES {
            assert_eq!(ask(family).expect("an answer").server, "veth21", "it follows");
        }
        scene.close(frontend, &View::Reject);
        for family in FAMILIES {
            let error = ask(family).expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        scene.serve(frontend, &endpoints[..1]);
        for family in FAMILIES {
            assert_eq!(ask(family).expect("an answer").server, "veth12", "it is back");
        }
    }
}

/// A node whose rules drop what connection tracking calls INVALID, and masquerade pods that talk
/// to the outside: to it no flow was ever translated.
const RULES: &str = "
table inet test {
    chain forward {
        type filter hook forward priority 0
        ct state invalid counter drop
    }
    chain input {
        type filter hook input priority 0
        ct state invalid counter drop
    }
    chain postrouting {
        type nat hook postrouting priority 100
        ip saddr 10.244.0.0/16 ip daddr != { 10.244.0.0/16, 192.0.2.0/24 } masquerade
        ip6 saddr fd00:1::/64 ip6 daddr != { fd00::/16, 2001:db8::/64 } masquerade
    }
}
";

/// S-11: the kernel's connection tracking sees both directions of each flow between the same ends.
#[test]
fn nothing_is_invalid_to_connection_tracking() {
    let mut scene = Scene::new(Mode::Routed);
    let _servers = [&scene.pods[0], &scene.pods[1], &scene.remote].map(Server::start);
    scene.node.run(|| run_nft(&["-f", "-"], RULES));
    let endpoints = [scene.pods[0].addresses, scene.pods[1].addresses, scene.remote.addresses];
    for endpoint in endpoints {
        for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
            scene.serve(frontend, &[endpoint]);
            for family in FAMILIES {
                for client in [&scene.pods[0].namespace, &scene.other.namespace] {
                    ask_all(client, frontend.address(family), "beside netfilter");
                }
            }
        }
    }
    let listed = scene.node.run(|| run_nft(&["list", "table", "inet", "test"], ""));
    assert_eq!(listed.matches("counter packets 0 bytes 0 drop").count(), 2, "{listed}");
}

fn run_nft(arguments: &[&str], input: &str) -> String {
    let mut child = std::process::Command::new("nft")
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("nft");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "nft {arguments:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
